# SPDX-License-Identifier: GPL-2.0-or-later
"""The page that a vCPU shares with its VMM, and the reasons for which KVM_RUN returns (linux/kvm.h, kvm_run).

KVM_GET_VCPU_MMAP_SIZE says how much of the vCPU's fd to map: on x86 the first page is `kvm_run`, the second holds the
data of port I/O (``io.data_offset`` = 0x1000), the third is the ring of coalesced MMIO. Which member of the union at
byte 32 counts is told by ``exit_reason``; the union is anonymous, so one writes ``run.io.port``.

Members of other architectures, Xen and Hyper-V are left out. Sizes and offsets of what Linux 6.1 does not have yet
(memory_fault, tdx, hypercall.flags) follow the header of 6.18.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

from swtdx.uapi.asm_kvm import kvm_debug_exit_arch, kvm_sync_regs
from swtdx.uapi.layout import u8, u16, u32, u64


class Exit(IntEnum):
    """``kvm_run.exit_reason``."""

    UNKNOWN = 0
    EXCEPTION = 1
    IO = 2
    HYPERCALL = 3
    DEBUG = 4
    HLT = 5
    MMIO = 6
    IRQ_WINDOW_OPEN = 7
    SHUTDOWN = 8
    FAIL_ENTRY = 9
    INTR = 10
    SET_TPR = 11
    TPR_ACCESS = 12
    NMI = 16
    INTERNAL_ERROR = 17
    WATCHDOG = 21
    SYSTEM_EVENT = 24
    IOAPIC_EOI = 26
    HYPERV = 27
    X86_RDMSR = 29
    X86_WRMSR = 30
    DIRTY_RING_FULL = 31
    AP_RESET_HOLD = 32
    X86_BUS_LOCK = 33
    XEN = 34
    NOTIFY = 37
    MEMORY_FAULT = 39
    TDX = 40


KVM_EXIT_UNKNOWN = Exit.UNKNOWN
KVM_EXIT_EXCEPTION = Exit.EXCEPTION
KVM_EXIT_IO = Exit.IO
KVM_EXIT_HYPERCALL = Exit.HYPERCALL
KVM_EXIT_DEBUG = Exit.DEBUG
KVM_EXIT_HLT = Exit.HLT
KVM_EXIT_MMIO = Exit.MMIO
KVM_EXIT_IRQ_WINDOW_OPEN = Exit.IRQ_WINDOW_OPEN
KVM_EXIT_SHUTDOWN = Exit.SHUTDOWN
KVM_EXIT_FAIL_ENTRY = Exit.FAIL_ENTRY
KVM_EXIT_INTR = Exit.INTR
KVM_EXIT_SET_TPR = Exit.SET_TPR
KVM_EXIT_TPR_ACCESS = Exit.TPR_ACCESS
KVM_EXIT_NMI = Exit.NMI
KVM_EXIT_INTERNAL_ERROR = Exit.INTERNAL_ERROR
KVM_EXIT_WATCHDOG = Exit.WATCHDOG
KVM_EXIT_SYSTEM_EVENT = Exit.SYSTEM_EVENT
KVM_EXIT_IOAPIC_EOI = Exit.IOAPIC_EOI
KVM_EXIT_HYPERV = Exit.HYPERV
KVM_EXIT_X86_RDMSR = Exit.X86_RDMSR
KVM_EXIT_X86_WRMSR = Exit.X86_WRMSR
KVM_EXIT_DIRTY_RING_FULL = Exit.DIRTY_RING_FULL
KVM_EXIT_AP_RESET_HOLD = Exit.AP_RESET_HOLD
KVM_EXIT_X86_BUS_LOCK = Exit.X86_BUS_LOCK
KVM_EXIT_XEN = Exit.XEN
KVM_EXIT_NOTIFY = Exit.NOTIFY
KVM_EXIT_MEMORY_FAULT = Exit.MEMORY_FAULT
KVM_EXIT_TDX = Exit.TDX

KVM_EXIT_IO_IN, KVM_EXIT_IO_OUT = 0, 1

# KVM_EXIT_INTERNAL_ERROR: suberror
KVM_INTERNAL_ERROR_EMULATION = 1
KVM_INTERNAL_ERROR_SIMUL_EX = 2
KVM_INTERNAL_ERROR_DELIVERY_EV = 3
KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON = 4
KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES = 1 << 0


class SystemEvent(IntEnum):
    """``kvm_run.system_event.type``."""

    SHUTDOWN = 1
    RESET = 2
    CRASH = 3
    WAKEUP = 4
    SUSPEND = 5
    SEV_TERM = 6
    TDX_FATAL = 7


KVM_SYSTEM_EVENT_SHUTDOWN = SystemEvent.SHUTDOWN
KVM_SYSTEM_EVENT_RESET = SystemEvent.RESET
KVM_SYSTEM_EVENT_CRASH = SystemEvent.CRASH
KVM_SYSTEM_EVENT_WAKEUP = SystemEvent.WAKEUP
KVM_SYSTEM_EVENT_SUSPEND = SystemEvent.SUSPEND
KVM_SYSTEM_EVENT_SEV_TERM = SystemEvent.SEV_TERM
KVM_SYSTEM_EVENT_TDX_FATAL = SystemEvent.TDX_FATAL

# KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR: reason; also the mask that KVM_CAP_X86_USER_SPACE_MSR is enabled with
KVM_MSR_EXIT_REASON_INVAL = 1 << 0
KVM_MSR_EXIT_REASON_UNKNOWN = 1 << 1
KVM_MSR_EXIT_REASON_FILTER = 1 << 2
KVM_MSR_EXIT_REASON_VALID_MASK = 0x7

KVM_MEMORY_EXIT_FLAG_PRIVATE = 1 << 3
KVM_NOTIFY_CONTEXT_INVALID = 1 << 0
KVM_EXIT_HYPERCALL_LONG_MODE = 1 << 0

# kvm_run.flags
KVM_RUN_X86_SMM, KVM_RUN_X86_BUS_LOCK, KVM_RUN_X86_GUEST_MODE = 1 << 0, 1 << 1, 1 << 2

# KVM_EXIT_HYPERCALL: nr and attributes (linux/kvm_para.h); KVM_CAP_EXIT_HYPERCALL takes 1 << nr
KVM_HC_MAP_GPA_RANGE = 12
KVM_MAP_GPA_RANGE_PAGE_SZ_4K, KVM_MAP_GPA_RANGE_PAGE_SZ_2M, KVM_MAP_GPA_RANGE_PAGE_SZ_1G = 0, 1, 2
KVM_MAP_GPA_RANGE_ENCRYPTED = 1 << 4
KVM_MAP_GPA_RANGE_DECRYPTED = 0

# KVM_EXIT_TDX: nr (TDVMCALL leaves) and ret. No uapi header has them: they are Intel's GHCI, as the kernel names them
TDVMCALL_GET_TD_VM_CALL_INFO = 0x10000
TDVMCALL_MAP_GPA = 0x10001
TDVMCALL_GET_QUOTE = 0x10002
TDVMCALL_REPORT_FATAL_ERROR = 0x10003
TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT = 0x10004
TDVMCALL_STATUS_SUCCESS = 0
TDVMCALL_STATUS_RETRY = 1
TDVMCALL_STATUS_INVALID_OPERAND = 0x8000000000000000
TDVMCALL_STATUS_GPA_INUSE = 0x8000000000000001
TDVMCALL_STATUS_ALIGN_ERROR = 0x8000000000000002
TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED = 0x8000000000000003

SYNC_REGS_SIZE_BYTES = 2048


class _hw(ctypes.Structure):
    _fields_ = [("hardware_exit_reason", u64)]


class _fail_entry(ctypes.Structure):
    _fields_ = [("hardware_entry_failure_reason", u64), ("cpu", u32)]


class _ex(ctypes.Structure):
    _fields_ = [("exception", u32), ("error_code", u32)]


class _io(ctypes.Structure):
    """``count`` items of ``size`` bytes each at ``data_offset`` bytes from the start of kvm_run."""

    _fields_ = [("direction", u8), ("size", u8), ("port", u16), ("count", u32), ("data_offset", u64)]


class _debug(ctypes.Structure):
    _fields_ = [("arch", kvm_debug_exit_arch)]


class _mmio(ctypes.Structure):
    _fields_ = [("phys_addr", u64), ("data", u8 * 8), ("len", u32), ("is_write", u8)]


class _hypercall(ctypes.Structure):
    class _mode(ctypes.Union):
        _fields_ = [("longmode", u32), ("flags", u64)]

    _anonymous_ = ("mode",)
    _fields_ = [("nr", u64), ("args", u64 * 6), ("ret", u64), ("mode", _mode)]


class _tpr_access(ctypes.Structure):
    _fields_ = [("rip", u64), ("is_write", u32), ("pad", u32)]


class _internal(ctypes.Structure):
    _fields_ = [("suberror", u32), ("ndata", u32), ("data", u64 * 16)]


class _emulation_failure(ctypes.Structure):
    """Overlay of ``internal`` for KVM_INTERNAL_ERROR_EMULATION."""

    _fields_ = [("suberror", u32), ("ndata", u32), ("flags", u64), ("insn_size", u8), ("insn_bytes", u8 * 15)]


class _system_event(ctypes.Structure):
    class _payload(ctypes.Union):
        _fields_ = [("flags", u64), ("data", u64 * 16)]

    _anonymous_ = ("payload",)
    _fields_ = [("type", u32), ("ndata", u32), ("payload", _payload)]


class _eoi(ctypes.Structure):
    _fields_ = [("vector", u8)]


class _msr(ctypes.Structure):
    _fields_ = [("error", u8), ("pad", u8 * 7), ("reason", u32), ("index", u32), ("data", u64)]


class _notify(ctypes.Structure):
    _fields_ = [("flags", u32)]


class _memory_fault(ctypes.Structure):
    """Filled in although KVM_RUN fails, with EFAULT or EHWPOISON."""

    _fields_ = [("flags", u64), ("gpa", u64), ("size", u64)]


class _tdx(ctypes.Structure):
    """A TDVMCALL that the VMM is to answer; ``nr`` is its leaf and chooses the member, each beginning with ``ret``."""

    class _call(ctypes.Union):
        class _unknown(ctypes.Structure):
            _fields_ = [("ret", u64), ("data", u64 * 5)]

        class _get_quote(ctypes.Structure):
            _fields_ = [("ret", u64), ("gpa", u64), ("size", u64)]

        class _get_tdvmcall_info(ctypes.Structure):
            _fields_ = [("ret", u64), ("leaf", u64), ("r11", u64), ("r12", u64), ("r13", u64), ("r14", u64)]

        class _setup_event_notify(ctypes.Structure):
            _fields_ = [("ret", u64), ("vector", u64)]

        _fields_ = [
            ("unknown", _unknown),
            ("get_quote", _get_quote),
            ("get_tdvmcall_info", _get_tdvmcall_info),
            ("setup_event_notify", _setup_event_notify),
        ]

    _anonymous_ = ("call",)
    _fields_ = [("flags", u64), ("nr", u64), ("call", _call)]


class _exit(ctypes.Union):
    _fields_ = [
        ("hw", _hw),
        ("fail_entry", _fail_entry),
        ("ex", _ex),
        ("io", _io),
        ("debug", _debug),
        ("mmio", _mmio),
        ("hypercall", _hypercall),
        ("tpr_access", _tpr_access),
        ("internal", _internal),
        ("emulation_failure", _emulation_failure),
        ("system_event", _system_event),
        ("eoi", _eoi),
        ("msr", _msr),
        ("notify", _notify),
        ("memory_fault", _memory_fault),
        ("tdx", _tdx),
        ("padding", u8 * 256),
    ]


class _sync(ctypes.Union):
    _fields_ = [("regs", kvm_sync_regs), ("padding", u8 * SYNC_REGS_SIZE_BYTES)]


class kvm_run(ctypes.Structure):
    """Page 0 of a vCPU's mapping. ``kvm_run.from_buffer(mapping)`` lays it over the mapping without copying."""

    _anonymous_ = ("exit",)
    _fields_ = [
        ("request_interrupt_window", u8),
        ("immediate_exit", u8),
        ("padding1", u8 * 6),
        ("exit_reason", u32),
        ("ready_for_interrupt_injection", u8),
        ("if_flag", u8),
        ("flags", u16),
        ("cr8", u64),
        ("apic_base", u64),
        ("exit", _exit),
        ("kvm_valid_regs", u64),
        ("kvm_dirty_regs", u64),
        ("s", _sync),
    ]
