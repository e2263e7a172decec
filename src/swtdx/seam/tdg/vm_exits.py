# SPDX-License-Identifier: GPL-2.0-or-later
"""VM exits of a TD: what the module does about each, without the host where it can.

Instructions that only a hypervisor could emulate raise #VE, so that the guest asks for what it wants by TDVMCALL;
those that a TD must not use raise #UD or #GP(0). Interrupts, NMIs and triple faults go to the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.seam import tdg
from swtdx.seam.hardware import Args, EventType, ExitReason
from swtdx.seam.lifecycle import Event
from swtdx.seam.msr import Access, Refused
from swtdx.seam.status import StatusCode
from swtdx.seam.td import ATTRIBUTE_PERFMON
from swtdx.seam.td_exit import advance, asynchronous, inject_gp, inject_ud, inject_ve
from swtdx.seam.tdg import mem, mem_attr, mr, not_reproduced, vp
from swtdx.seam.tdg.guest_memory import (
    BLOCKED_BY_NMI,
    NMI_UNBLOCKED_BY_IRET,
    ept_misconfiguration,
    ept_violation,
    machine_check,
)
from swtdx.seam.tdg.tdcall import tdcall
from swtdx.seam.vcpu import CR0_IGNORED, CR0_RESERVED, CR4_RESERVED, forbidden_cr4
from swtdx.x86 import Cr0, Cr4, Gpr, Vector, XFeature

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

Handler = Callable[["TdxModule", "Vcpu", Args], "int | None"]
LEAF_FUNCTIONS = (tdg, mem, mem_attr, mr, not_reproduced, vp)
"""Imported so that the TDCALL leaf functions are registered."""

MOV_TO_CR, LMSW = 0, 3
LMSW_MASK = Cr0.MP | Cr0.EM | Cr0.TS
XCR0_USER_STATES = XFeature.X87 | XFeature.SSE | XFeature.AVX | XFeature.AVX512 | XFeature.PKRU | XFeature.AMX
# Plain integers: they index a view at each exit.
RAX, RCX, RDX, RBX = int(Gpr.RAX), int(Gpr.RCX), int(Gpr.RDX), int(Gpr.RBX)
INTERRUPTION_TYPE_SHIFT = 8
MACHINE_CHECK_SMI, CONTEXT_INVALID = 1 << 0, 1 << 0
"""Exit-qualification bits of an SMI and of a notification."""
LOW32 = 0xFFFF_FFFF


def cpuid(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Answer CPUID from the TD's table, or raise #VE."""
    context = vcpu.context
    gpr = context.gpr
    value = vcpu.td.cpuid.query(vcpu, gpr[RAX] & LOW32, gpr[RCX] & LOW32)
    if value is None:
        inject_ve(vcpu, ExitReason.CPUID, qualification=0)
        return None
    gpr[RAX], gpr[RBX], gpr[RCX], gpr[RDX] = value
    context.rip += context.instruction_length
    return None


def rdmsr(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Handle RDMSR of a register that the bitmap intercepts."""
    gpr = vcpu.context.gpr
    try:
        value = vcpu.td.msrs.read(vcpu, gpr[RCX] & LOW32)
    except Refused as refused:
        _refuse(vcpu, refused.access, ExitReason.RDMSR)
        return None
    gpr[RAX], gpr[RDX] = value & LOW32, value >> 32
    advance(vcpu)
    return None


def wrmsr(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Handle WRMSR of a register that the bitmap intercepts."""
    gpr = vcpu.context.gpr
    try:
        vcpu.td.msrs.write(vcpu, gpr[RCX] & LOW32, gpr[RAX] & LOW32 | (gpr[RDX] & LOW32) << 32)
    except Refused as refused:
        _refuse(vcpu, refused.access, ExitReason.WRMSR)
        return None
    advance(vcpu)
    return None


def _refuse(vcpu: Vcpu, access: Access, reason: ExitReason) -> None:
    if access is Access.GP:
        inject_gp(vcpu)
    else:
        inject_ve(vcpu, reason, qualification=0)


def cr_access(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Handle a change of CR0 or CR4 bits that the module owns. LMSW exits too, because of CR0.PE."""
    context = vcpu.context
    qualification = context.exit_qualification
    kind, number = qualification >> 4 & 3, qualification & 0xF
    if kind == LMSW:
        context.cr0 = context.cr0 & ~LMSW_MASK | qualification >> 16 & LMSW_MASK
        advance(vcpu)
        return None
    if kind != MOV_TO_CR or number not in (0, 4):
        return unexpected(module, vcpu, args, ExitReason.CR_ACCESS)
    value: int = context.gpr[qualification >> 8 & 0xF]
    refused = _write_cr0(vcpu, value) if number == 0 else _refuse_cr4(vcpu, value)
    if refused is None:
        advance(vcpu)
    elif refused is Access.GP:
        inject_gp(vcpu)
    else:
        inject_ve(vcpu, ExitReason.CR_ACCESS, qualification=qualification)
    return None


def _write_cr0(vcpu: Vcpu, value: int) -> Access | None:
    """Write CR0 if the value is one that a TD can have; what the processor would refuse anywhere comes first."""
    context = vcpu.context
    if value & CR0_RESERVED or not value & Cr0.NE or (value & Cr0.PG and not value & Cr0.PE):
        return Access.GP
    if context.cr4 & Cr4.CET and not value & Cr0.WP:
        return Access.GP
    if not value & Cr0.PE or value & (Cr0.NW | Cr0.CD):
        return Access.VE
    context.cr0 = value & ~CR0_IGNORED | context.cr0 & CR0_IGNORED
    return None


def _refuse_cr4(vcpu: Vcpu, value: int) -> Access:
    """Tell why a MOV to CR4 exited: any that a TD may make does not."""
    if value & (CR4_RESERVED | forbidden_cr4(vcpu.td)):
        return Access.GP
    if value & Cr4.CET and not vcpu.context.cr0 & Cr0.WP:
        return Access.GP
    return Access.VE


def xsetbv(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Execute XSETBV if XCR0 is within XFAM and architecturally consistent, else raise #GP(0)."""
    context, gpr = vcpu.context, vcpu.context.gpr
    value = gpr[RAX] & LOW32 | (gpr[RDX] & LOW32) << 32
    avx512, amx = value & XFeature.AVX512, value & XFeature.AMX
    if (
        gpr[RCX] & LOW32
        or value & ~(vcpu.td.xfam & XCR0_USER_STATES)
        or not value & XFeature.X87
        or (value & XFeature.AVX and not value & XFeature.SSE)
        or (avx512 and (avx512 != XFeature.AVX512 or not value & XFeature.AVX))
        or amx not in (0, XFeature.AMX)
    ):
        inject_gp(vcpu)
        return None
    context.xcr0 = value
    advance(vcpu)
    return None


def exception_or_nmi(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Pass an NMI to the host; on #MC, kill the TD, which accessed a line whose integrity is broken."""
    context = vcpu.context
    info = context.interruption_info
    if info >> INTERRUPTION_TYPE_SHIFT & 7 != EventType.NMI:
        if info & 0xFF == Vector.MC:
            return machine_check(vcpu, args, info, context.exit_qualification)
        if not vcpu.td.debug:
            return unexpected(module, vcpu, args, ExitReason.EXCEPTION_NMI)
    return asynchronous(
        vcpu, args, ExitReason.EXCEPTION_NMI, qualification=context.exit_qualification, interruption=info
    )


def interrupt(reason: int) -> Handler:
    """Return a handler that passes an interrupt of the host to the host."""

    def handler(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
        context = vcpu.context
        qualification, information = context.exit_qualification, context.interruption_info
        return asynchronous(vcpu, args, reason, qualification=qualification, interruption=information)

    return handler


def smi(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Pass a system-management interrupt to the host. One that a machine check caused kills the TD."""
    context, status = vcpu.context, 0
    if context.exit_qualification & MACHINE_CHECK_SMI:
        vcpu.td.die()
        status = int(StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE)
    return asynchronous(
        vcpu,
        args,
        ExitReason.OTHER_SMI,
        status=status,
        qualification=context.exit_qualification,
        interruption=context.interruption_info,
    )


def notification(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Pass the end of an instruction that took too long to the host. One that left no valid context kills the TD."""
    context, status = vcpu.context, 0
    qualification = context.exit_qualification
    if qualification & NMI_UNBLOCKED_BY_IRET:
        context.interruptibility |= BLOCKED_BY_NMI
    if qualification & CONTEXT_INVALID:
        vcpu.td.die()
        status = int(StatusCode.NON_RECOVERABLE_TD)
    return asynchronous(vcpu, args, ExitReason.NOTIFICATION, status=status, qualification=qualification)


def triple_fault(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Disable the virtual CPU, which cannot continue."""
    vcpu.advance(Event.TRIPLE_FAULT)
    qualification = vcpu.context.exit_qualification
    return asynchronous(
        vcpu, args, ExitReason.TRIPLE_FAULT, status=StatusCode.NON_RECOVERABLE_VCPU, qualification=qualification
    )


def nmi_window(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Inject the NMI that the host requested, unless the guest has a #VE to read first."""
    context = vcpu.context
    if vcpu.pending_nmi and not vcpu.ve.valid:
        context.inject(Vector.NMI, EventType.NMI)
        vcpu.pending_nmi = False
    context.nmi_window_exiting = False
    return None


def to_host(reason: int) -> Handler:
    """Return a handler that only exits to the host."""

    def handler(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
        return asynchronous(vcpu, args, reason, qualification=vcpu.context.exit_qualification)

    return handler


def virtualization_exception(reason: int) -> Handler:
    """Return a handler that raises #VE."""

    def handler(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
        inject_ve(vcpu, reason, qualification=vcpu.context.exit_qualification)
        return None

    return handler


def undefined_opcode(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Raise #UD: the instruction does not exist in a TD."""
    inject_ud(vcpu)
    return None


def rdpmc(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Raise #GP(0): there are no performance counters to read. A debug TD with ATTRIBUTES.PERFMON exits."""
    if vcpu.td.debug and vcpu.td.attributes & ATTRIBUTE_PERFMON:
        return unexpected(module, vcpu, args, ExitReason.RDPMC)
    inject_gp(vcpu)
    return None


def general_protection(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Raise #GP(0)."""
    inject_gp(vcpu)
    return None


def host_fault(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Report shared memory that the host unmapped while the guest used it, as a missing EPT entry."""
    return asynchronous(vcpu, args, ExitReason.EPT_VIOLATION, gpa=vcpu.context.guest_physical_address)


def unexpected(module: TdxModule, vcpu: Vcpu, args: Args, reason: int) -> int:
    """Handle an exit that a TD should not be able to cause: fatal, except to a debug TD."""
    status = 0
    if not vcpu.td.debug:
        vcpu.td.die()
        status = int(StatusCode.NON_RECOVERABLE_TD)
    return asynchronous(vcpu, args, reason, status=status, qualification=vcpu.context.exit_qualification)


_UNDEFINED = (
    ExitReason.GETSEC, ExitReason.RSM, ExitReason.MONITOR, ExitReason.MWAIT,
    ExitReason.VMCLEAR, ExitReason.VMLAUNCH, ExitReason.VMPTRLD, ExitReason.VMPTRST, ExitReason.VMREAD,
    ExitReason.VMRESUME, ExitReason.VMWRITE, ExitReason.VMXOFF, ExitReason.VMXON,
    ExitReason.INVEPT, ExitReason.INVVPID, ExitReason.VMFUNC,
    ExitReason.ENCLS, ExitReason.ENCLV, ExitReason.SEAMCALL,
    ExitReason.ENQCMDS,  # without PASID translation
)  # fmt: skip

_TABLE: dict[int, Handler] = {
    **dict.fromkeys(_UNDEFINED, undefined_opcode),
    **{
        reason: virtualization_exception(reason)
        for reason in (
            ExitReason.IO, ExitReason.HLT, ExitReason.INVD, ExitReason.VMCALL, ExitReason.WBINVD, ExitReason.PCONFIG,
            ExitReason.APIC_WRITE,
        )
    },
    **{
        reason: to_host(reason)
        for reason in (
            ExitReason.INIT, ExitReason.TASK_SWITCH, ExitReason.BUS_LOCK
        )
    },
    ExitReason.EXCEPTION_NMI: exception_or_nmi,
    ExitReason.EXTERNAL_INTERRUPT: interrupt(ExitReason.EXTERNAL_INTERRUPT),
    ExitReason.C_STATE_SMI: interrupt(ExitReason.C_STATE_SMI),
    ExitReason.OTHER_SMI: smi,
    ExitReason.NOTIFICATION: notification,
    ExitReason.TRIPLE_FAULT: triple_fault,
    ExitReason.NMI_WINDOW: nmi_window,
    ExitReason.CPUID: cpuid,
    ExitReason.RDMSR: rdmsr,
    ExitReason.WRMSR: wrmsr,
    ExitReason.CR_ACCESS: cr_access,
    ExitReason.XSETBV: xsetbv,
    ExitReason.RDPMC: rdpmc,
    ExitReason.ENQCMD: general_protection,
    ExitReason.EPT_VIOLATION: ept_violation,
    ExitReason.EPT_MISCONFIG: ept_misconfiguration,
    ExitReason.TDCALL: tdcall,
    ExitReason.HOST_FAULT: host_fault,
}  # fmt: skip
HANDLERS = {int(reason): handler for reason, handler in _TABLE.items()}
"""What to do about each VMX exit reason; any other is `unexpected`."""
