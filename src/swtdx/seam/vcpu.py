# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual CPU of a TD: the module's view of its TDVPS, with the processor context that runs it.

Registers, segments and native MSRs live in the context; here is what the TDVPS adds: state and association, VE_INFO,
the pieces of the VMCS that the host may set, and the MSRs that the module keeps because no CPU context holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtdx.seam.hardware import Context, Segment
from swtdx.seam.lifecycle import VCPU_STATE, Event, LastTdExit
from swtdx.x86 import DR6_INIT, PAT_RESET, Cr0, Cr4, Dr7, Efer, Gpr, Msr, Rflags, Vector, XFeature

if TYPE_CHECKING:
    from swtdx.seam.td import Td

NO_LP = -1
"""ASSOC_LPID of a virtual CPU that is associated with no logical processor."""

CR0_FIXED = Cr0.PE | Cr0.NE
"""CR0 bits that are one in a TD."""
CR0_IGNORED = 0x1FFA_FFC0
"""Reserved CR0 bits that software may write without effect: 28:19, 17, 15:6."""
CR0_RESERVED = 0xFFFF_FFFF_0000_0000
CR0_OWNED = CR0_FIXED | Cr0.NW | Cr0.CD | CR0_IGNORED | CR0_RESERVED
"""CR0 bits that stay the module's."""
CR4_RESERVED = 0xFFFF_FFFF_F400_8000 & ~Cr4.LAM_SUP
CR4_OWNED = Cr4.MCE | Cr4.VMXE | Cr4.SMXE | CR4_RESERVED & ~(1 << 32)
"""CR4 bits that stay the module's in any TD."""
AR_LONG = 1 << 13
PIN_PROCESS_POSTED_INTERRUPTS, PROC2_BUS_LOCK_DETECTION = 1 << 7, 1 << 30

PIN_CONTROLS = 0x29
PROC_CONTROLS = 0x91220088
PROC2_CONTROLS = 0x133CB3FA
EXIT_CONTROLS = 0x1F3C9204
ENTRY_CONTROLS = 0x3EE004
EXCEPTION_BITMAP = 1 << Vector.MC
"""#MC, the one exception the module intercepts."""

INITIAL_FMASK = Rflags.IF | Rflags.VM
INITIAL_EFER = Efer.SCE | Efer.LME | Efer.NXE
RESET_VECTOR = 0xFFFF_FFF0
UNSET_POSTED_VECTOR = 0xFFFF
UNSET_DESCRIPTOR = 0xFFFF_FFFF_FFFF_FFC0  # all ones in the writable bits (64-byte aligned)


@dataclass
class VeInfo:
    """The virtualization exception information area."""

    valid: bool = False
    exit_reason: int = 0
    qualification: int = 0
    gla: int = 0
    gpa: int = 0
    instruction_length: int = 0
    instruction_info: int = 0


class Vcpu:
    """One virtual CPU, from TDH.VP.CREATE until its TDVPR is reclaimed."""

    __slots__ = ("__dict__", "__weakref__", "flush_needed", "pending_nmi")  # PageRun reads them

    def __init__(self, hpa: int, td: Td, pamt_index: int) -> None:
        self.hpa = hpa
        self.td = td
        self.pamt_index = pamt_index
        self.pages: list[int] = [hpa]
        """TDVPR, then its TDCX pages."""
        self.state = VCPU_STATE.initial
        self.index = 0
        self.x2apic_id = 0
        self.lp = NO_LP
        self.epoch = 0
        self.flush_needed = False
        """Set by association: the next entry starts without cached translations."""
        self.last_td_exit = LastTdExit.ASYNC_FAULT
        self.host_waits_since: int | None = None
        """HP_LOCK_BUSY_START: when a TDCALL first found the host waiting for a lock; None unless the last one did."""
        self.pending_nmi = False
        self.last_exit_tsc = 0
        self.ve = VeInfo()
        self.injected = 0
        """Interruption information of the exception that the module raised last, for `injected_for_debugger`."""
        self.cpuid_supervisor_ve = False
        self.cpuid_user_ve = False
        self.cpuid_control = bytearray(128)
        self.context: Context
        """The processor context; there since TDH.VP.INIT."""
        self.msrs: dict[int, int] = {}
        """MSRs the table calls native that no context holds, and those the module emulates."""
        # VMCS
        self.posted_vector = UNSET_POSTED_VECTOR
        self.posted_descriptor = UNSET_DESCRIPTOR
        self.shared_eptp = 0
        self.pin_controls = PIN_CONTROLS
        self.proc2_controls = PROC2_CONTROLS
        self.instruction_timeout = 0

    def advance(self, event: Event) -> None:
        """Move VCPU_STATE; raises IllegalTransition."""
        self.state = VCPU_STATE.after(self.state, event)

    def associate(self, lp: int) -> None:
        """Bind an unassociated virtual CPU to a logical processor."""
        if self.lp == NO_LP:
            self.lp = lp
            self.flush_needed = True
            self.td.num_associated += 1

    def disassociate(self) -> None:
        """Release the virtual CPU from its processor, which holds nothing of it any more (TDH.VP.FLUSH)."""
        self.lp = NO_LP
        self.td.num_associated -= 1

    @property
    def cpl(self) -> int:
        """Current privilege level: the DPL of SS."""
        return (self.context.segment(Segment.SS)[3] >> 5) & 3


def reset(vcpu: Vcpu, *, initial_rcx: int, family_model_stepping: int) -> None:
    """Set the state that TDH.VP.INIT gives: 32-bit protected mode without paging at 4 GiB - 16."""
    context, td = vcpu.context, vcpu.td
    registers = [0] * 16
    registers[Gpr.RCX] = registers[Gpr.R8] = initial_rcx
    registers[Gpr.RDX] = family_model_stepping
    registers[Gpr.RBX] = td.gpaw
    registers[Gpr.RSI] = vcpu.index
    for number, value in enumerate(registers):
        context.gpr[number] = value
    context.rip, context.rflags = RESET_VECTOR, Rflags.FIXED_1
    context.cr0, context.cr2, context.cr3, context.cr8 = CR0_FIXED, 0, 0, 0
    context.cr4 = Cr4.MCE | Cr4.VMXE
    context.efer, context.xcr0 = INITIAL_EFER, XFeature.X87
    context.set_segment(Segment.CS, 0, 0, 0xFFFF_FFFF, 0xC09B)
    for segment in (Segment.DS, Segment.ES, Segment.FS, Segment.GS, Segment.SS):
        context.set_segment(segment, 0, 0, 0xFFFF_FFFF, 0xC093)
    context.set_segment(Segment.LDTR, 0, 0, 0xFFFF, 0x10082)
    context.set_segment(Segment.TR, 0, 0, 0xFFFF, 0x8B)
    context.set_segment(Segment.GDTR, 0, 0, 0xFFFF, 0)
    context.set_segment(Segment.IDTR, 0, 0, 0, 0)
    context.wrmsr(Msr.PAT, PAT_RESET)
    context.wrmsr(Msr.FMASK, INITIAL_FMASK)
    context.set_dr(6, DR6_INIT)
    context.set_dr(7, Dr7.FIXED_1)
    vcpu.msrs = {
        Msr.PERF_GLOBAL_CTRL: 0xFF if td.attributes >> 63 else 0x1_0000_0000,
        Msr.XSS: 0,
        Msr.DEBUGCTL: 0,
    }


def control(vcpu: Vcpu) -> None:
    """Set the VMCS controls of a TD: what exits, which Secure EPT is walked, virtual APIC, virtual TSC."""
    context, td = vcpu.context, vcpu.td
    context.tdx_mode = True
    context.exception_bitmap = EXCEPTION_BITMAP
    context.cr0_guest_host_mask, context.cr0_read_shadow = CR0_OWNED, CR0_FIXED
    context.cr4_guest_host_mask, context.cr4_read_shadow = owned_cr4(td), Cr4.MCE
    context.tsc_offset, context.tsc_multiplier = td.tsc_offset, td.tsc_multiplier
    context.apicv = True
    context.set_msr_bitmap(td.msrs.bitmap)
    context.set_ept(td.sept.eptp)
    context.set_shared_ept(0, td.shared_bit)


def owned_cr4(td: Td) -> int:
    """Return the CR4 bits whose change exits: fixed ones, and those of features that the TD lacks."""
    return CR4_OWNED | forbidden_cr4(td)


def forbidden_cr4(td: Td) -> int:
    """Return the CR4 bits that raise #GP(0) when set, because XFAM or ATTRIBUTES lack the feature."""
    forbidden: int = Cr4.KL
    if not td.xfam & XFeature.PKRU:
        forbidden |= Cr4.PKE
    if td.xfam & XFeature.CET != XFeature.CET:
        forbidden |= Cr4.CET
    if not td.xfam & XFeature.UINTR:
        forbidden |= Cr4.UINTR
    if not td.attributes >> 30 & 1:
        forbidden |= Cr4.PKS
    if not td.attributes >> 27 & 1:
        forbidden |= Cr4.LASS
    return forbidden
