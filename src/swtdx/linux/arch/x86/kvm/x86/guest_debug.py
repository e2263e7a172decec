# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_GUEST_DEBUG for a normal VM: single steps and breakpoints (kvm_arch_vcpu_ioctl_set_guest_debug).

While debugging, #DB and #BP exit and become KVM_EXIT_DEBUG, RIP before an instruction that has a breakpoint and after
one that was stepped or that touched watched data. A single step is the guest's trap flag, set by the ioctl itself and
hidden from KVM_GET_REGS; an instruction that KVM carries out in the guest's stead is a step as well
(kvm_skip_emulated_instruction).

Breakpoint registers of the debugger take the place of the guest's: what the guest reads and writes then is a copy
(``arch.db`` beside ``arch.eff_db`` in KVM), for which MOV DR exits.

KVM_GUESTDBG_BLOCKIRQ is done by the shadow that STI casts over the next instruction.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import EventType
from swtdx.linux.err import err
from swtdx.linux.virt.kvm import run_struct
from swtdx.uapi.kvm import (
    KVM_EXIT_DEBUG,
    KVM_GUESTDBG_BLOCKIRQ,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_INJECT_BP,
    KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP,
    Vector,
    kvm_guest_debug,
)
from swtdx.x86 import DR6_INIT, Cr4, Dr6, Dr7, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

RFLAGS_TF = Rflags.TF
DR6_BD, DR6_BS, DR6_ACTIVE_LOW = Dr6.BD, Dr6.BS, DR6_INIT
DR7_FIXED_1, DR7_GD = Dr7.FIXED_1, Dr7.GD
CR4_DE = Cr4.DE
_CS = 1
_STI_SHADOW = 1
_BP = 1 << Vector.BP
_BREAKPOINT_REGISTERS = (0, 1, 2, 3, 7)
KVM_GUESTDBG_VALID_MASK = (
    KVM_GUESTDBG_ENABLE
    | KVM_GUESTDBG_SINGLESTEP
    | KVM_GUESTDBG_USE_HW_BP
    | KVM_GUESTDBG_USE_SW_BP
    | KVM_GUESTDBG_INJECT_DB
    | KVM_GUESTDBG_INJECT_BP
    | KVM_GUESTDBG_BLOCKIRQ
)


def linear_rip(context: GuestContext) -> int:
    """CS base and RIP, as KVM_EXIT_DEBUG reports them."""
    base: int = context.segment(_CS)[1]
    return base + context.rip & (1 << 64) - 1


def set_guest_debug(vcpu: Vcpu, request: kvm_guest_debug) -> None:
    """Raises OSError(EBUSY) if an exception to be injected collides with a pending one."""
    vmx, context = vcpu.vmx, vcpu.vmx.context
    control = request.control
    if control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP):
        if context.event_pending:
            raise err(errno.EBUSY, "an event is pending already")
        if control & KVM_GUESTDBG_INJECT_DB:
            context.inject(Vector.DB, EventType.HARDWARE_EXCEPTION)
        else:  # as INT3 does it: the handler returns behind the instruction
            context.inject(Vector.BP, EventType.SOFTWARE_EXCEPTION, None, 1)
    stepped = vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP
    vmx.guest_debug = control if control & KVM_GUESTDBG_ENABLE else 0
    bitmap = context.exception_bitmap & ~_BP  # #DB exits always
    if vmx.guest_debug & KVM_GUESTDBG_USE_SW_BP:
        bitmap |= _BP
    context.exception_bitmap = bitmap
    _take_debug_registers(vcpu, bool(vmx.guest_debug & KVM_GUESTDBG_USE_HW_BP))
    if vmx.guest_debug & KVM_GUESTDBG_USE_HW_BP:
        for number in range(4):
            context.set_dr(number, request.arch.debugreg[number])
        context.set_dr(7, request.arch.debugreg[7] & 0xFFFFFFFF | DR7_FIXED_1)
    if vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP:
        vmx.singlestep_rip = linear_rip(context)
        context.rflags |= RFLAGS_TF
    elif stepped:
        context.rflags &= ~RFLAGS_TF
    context.check_code(True)  # user space has planted breakpoints, or taken them out


def _take_debug_registers(vcpu: Vcpu, taken: bool) -> None:
    """From the guest, which gets a copy, or back to it."""
    vmx, context = vcpu.vmx, vcpu.vmx.context
    if taken and vmx.guest_dr is None:
        vmx.guest_dr = {number: context.get_dr(number) for number in _BREAKPOINT_REGISTERS}
    elif not taken and vmx.guest_dr is not None:
        for number, value in vmx.guest_dr.items():
            context.set_dr(number, value)
        vmx.guest_dr = None
    context.mov_dr_exiting = taken


def guest_get_dr(vcpu: Vcpu, number: int) -> int:
    """The guest's own debug register (kvm_get_dr)."""
    mine = vcpu.vmx.guest_dr
    return mine[number] if mine is not None and number in mine else vcpu.vmx.context.get_dr(number)


def guest_set_dr(vcpu: Vcpu, number: int, value: int) -> None:
    """Set the guest's own debug register (kvm_set_dr)."""
    if number == 6:
        value = value & ~DR6_ACTIVE_LOW & 0xE00F | DR6_ACTIVE_LOW
    elif number == 7:
        value = value & 0xFFFFFFFF | DR7_FIXED_1
    mine = vcpu.vmx.guest_dr
    if mine is not None and number in mine:
        mine[number] = value
    else:
        vcpu.vmx.context.set_dr(number, value)


def before_entry(vcpu: Vcpu, context: GuestContext) -> None:
    """Keep interrupts out of a single step, where user space asked for that."""
    if vcpu.vmx.guest_debug & KVM_GUESTDBG_BLOCKIRQ:
        context.interruptibility |= _STI_SHADOW


def handle_debug_exception(vcpu: Vcpu, context: GuestContext, vector: int) -> int:
    """#DB or #BP. 0: KVM_EXIT_DEBUG. 1: a #DB that no debugger asked for is delivered to the guest.

    It exits at all so that a guest whose delivery of #DB causes the next one leaves the processor each time
    (CVE-2015-8104).
    """
    if vector == Vector.DB and not vcpu.vmx.guest_debug & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP):
        reasons = context.exit_qualification
        context.set_dr(6, context.get_dr(6) & ~0xF | DR6_ACTIVE_LOW | reasons)
        context.set_dr(7, context.get_dr(7) & ~DR7_GD)
        context.inject(Vector.DB, EventType.HARDWARE_EXCEPTION)
        return 1
    return _debug_exit(vcpu, vector, context.exit_qualification if vector == Vector.DB else 0)


def handle_general_detect(vcpu: Vcpu, context: GuestContext) -> int:
    """MOV DR while the DR7 that is loaded has GD, and MOV DR exits: it is the debugger's (handle_dr). 0."""
    return _debug_exit(vcpu, Vector.DB, DR6_BD)


def do_singlestep(vcpu: Vcpu, context: GuestContext) -> int:
    """An instruction was carried out for a guest that has RFLAGS.TF set: #DB, unless a debugger steps. 1.

    kvm_vcpu_do_singlestep; what a debugger is told is in `handle_emulated`.
    """
    if not vcpu.vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP:
        context.set_dr(6, context.get_dr(6) & ~0xF | DR6_ACTIVE_LOW | DR6_BS)
        context.inject(Vector.DB, EventType.HARDWARE_EXCEPTION)
    return 1


def handle_emulated(vcpu: Vcpu, context: GuestContext, rip: int, result: int) -> int:
    """After an exit from the instruction at ``rip``: if KVM has carried that out while stepping, the step is done.

    ``result``: what the exit's handler answers (1: enter again, 0: to user space), and the new answer.
    """
    if not vcpu.vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP:
        return result
    complete = vcpu.complete_userspace_io
    if result == 0 and complete is not None:

        def completed() -> int | None:
            answer = complete()
            return _debug_exit(vcpu, Vector.DB, DR6_BS) if context.rip != rip else answer

        vcpu.complete_userspace_io = completed
    elif result and context.rip != rip:
        return _debug_exit(vcpu, Vector.DB, DR6_BS)
    return result


def _debug_exit(vcpu: Vcpu, vector: int, reasons: int) -> int:
    context = vcpu.vmx.context
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_DEBUG))
    run_struct.DEBUG.pack_into(
        vcpu.run, run_struct.UNION, vector, linear_rip(context), reasons | DR6_ACTIVE_LOW, context.get_dr(7)
    )
    return 0
