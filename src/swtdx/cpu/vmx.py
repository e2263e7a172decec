# SPDX-License-Identifier: GPL-2.0-or-later
"""VMX numbers: exit reasons, event types, segment registers, EPT entries (Intel SDM volume 3, 25-29, appendix C)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from functools import lru_cache


class ExitReason(IntEnum):
    """Basic exit reasons (appendix C)."""

    EXCEPTION_NMI = 0
    EXTERNAL_INTERRUPT = 1
    TRIPLE_FAULT = 2
    INIT = 3
    SIPI = 4
    OTHER_SMI = 6
    INTERRUPT_WINDOW = 7
    NMI_WINDOW = 8
    TASK_SWITCH = 9
    CPUID = 10
    GETSEC = 11
    HLT = 12
    INVD = 13
    INVLPG = 14
    RDPMC = 15
    RDTSC = 16
    RSM = 17
    VMCALL = 18
    VMCLEAR = 19
    VMLAUNCH = 20
    VMPTRLD = 21
    VMPTRST = 22
    VMREAD = 23
    VMRESUME = 24
    VMWRITE = 25
    VMXOFF = 26
    VMXON = 27
    CR_ACCESS = 28
    DR_ACCESS = 29
    IO = 30
    RDMSR = 31
    WRMSR = 32
    ENTRY_FAILURE = 33
    MSR_LOADING = 34
    MWAIT = 36
    MTF = 37
    MONITOR = 39
    PAUSE = 40
    MACHINE_CHECK_DURING_ENTRY = 41
    C_STATE_SMI = 42
    APIC_ACCESS = 44
    VIRTUALIZED_EOI = 45
    EPT_VIOLATION = 48
    EPT_MISCONFIG = 49
    INVEPT = 50
    RDTSCP = 51
    PREEMPTION_TIMER = 52
    INVVPID = 53
    WBINVD = 54
    XSETBV = 55
    APIC_WRITE = 56
    RDRAND = 57
    INVPCID = 58
    VMFUNC = 59
    ENCLS = 60
    PCONFIG = 65
    ENCLV = 70
    ENQCMD = 72
    ENQCMDS = 73
    BUS_LOCK = 74
    NOTIFICATION = 75
    SEAMCALL = 76
    TDCALL = 77
    HOST_FAULT = 0x10000
    """Not VMX: memory of this process that a guest used is gone."""


BUS_LOCK_DETECTED = 1 << 26
"""In an exit reason: the instruction locked the bus, and this exit follows it, too."""


class EventType(IntEnum):
    """VM-entry interruption types (25.8.3)."""

    EXTERNAL = 0
    NMI = 2
    HARDWARE_EXCEPTION = 3
    SOFTWARE_INTERRUPT = 4
    PRIVILEGED_SOFTWARE_EXCEPTION = 5
    SOFTWARE_EXCEPTION = 6


class Segment(IntEnum):
    """Segment and descriptor-table registers, in the order in which instructions encode the first six."""

    ES = 0
    CS = 1
    SS = 2
    DS = 3
    FS = 4
    GS = 5
    LDTR = 6
    TR = 7
    GDTR = 8
    IDTR = 9


class EptEntry(IntFlag):
    """Bits of an EPT entry (29.3.2)."""

    READ = 1
    WRITE = 2
    EXECUTE = 4
    WRITE_BACK = 6 << 3
    IGNORE_PAT = 1 << 6
    LEAF = 1 << 7
    ACCESSED = 1 << 8
    DIRTY = 1 << 9
    SUPPRESS_VE = 1 << 63


EPT_ADDRESS_MASK = 0x000F_FFFF_FFFF_F000
EPTP_WRITE_BACK = 6
"""Memory type of the tables in an EPT pointer; bits 5:3 hold the number of levels less one."""


@lru_cache(256)
def reason_name(reason: int) -> str:
    """Return ``EPT_VIOLATION``; for a reason without a name its number."""
    try:
        return ExitReason(reason).name
    except ValueError:
        return f"reason {reason}"


def event_type_name(kind: int) -> str:
    """Return ``hardware exception``."""
    try:
        return EventType(kind).name.lower().replace("_", " ")
    except ValueError:
        return f"type {kind}"
