# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_GUEST_DEBUG for a normal VM: single steps and breakpoints (kvm_arch_vcpu_ioctl_set_guest_debug).

While debugging, #DB and #BP exit and become KVM_EXIT_DEBUG. A single step is the guest's trap flag, set at every entry
and hidden again afterwards, as KVM does.
"""

import errno
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import EventType
from swtdx.linux.err import err
from swtdx.linux.kvm import run_page
from swtdx.uapi.kvm import (
    KVM_EXIT_DEBUG,
    KVM_GUESTDBG_ENABLE,
    KVM_GUESTDBG_INJECT_BP,
    KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP,
    KVM_GUESTDBG_USE_SW_BP,
    Vector,
    kvm_guest_debug,
)

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.kvm.vcpu import Vcpu

RFLAGS_TF = 1 << 8
DR6_BS = 1 << 14
_DB, _BP = 1 << Vector.DB, 1 << Vector.BP


def set_guest_debug(vcpu: "Vcpu", request: kvm_guest_debug) -> None:
    """Raises OSError(EBUSY) if an exception to be injected collides with a pending one."""
    context = vcpu.vmx.context
    control = request.control
    if control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP):
        if context.event_pending:
            raise err(errno.EBUSY, "an event is pending already")
        vector = Vector.DB if control & KVM_GUESTDBG_INJECT_DB else Vector.BP
        context.inject(vector, EventType.HARDWARE_EXCEPTION)
    enabled = bool(control & KVM_GUESTDBG_ENABLE)
    vcpu.vmx.guest_debug = control if enabled else 0
    bitmap = context.exception_bitmap & ~(_DB | _BP)
    if enabled and control & (KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP):
        bitmap |= _DB
    if enabled and control & KVM_GUESTDBG_USE_SW_BP:
        bitmap |= _BP
    context.exception_bitmap = bitmap
    if enabled and control & KVM_GUESTDBG_USE_HW_BP:
        for number in range(4):
            context.set_dr(number, request.arch.debugreg[number])
        context.set_dr(7, request.arch.debugreg[7] & 0xFFFFFFFF | 0x400)
    if not vcpu.vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP:
        context.rflags &= ~RFLAGS_TF


def before_entry(vcpu: "Vcpu", context: "GuestContext") -> None:
    """Arm the single step."""
    if vcpu.vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP:
        context.rflags |= RFLAGS_TF


def handle_debug_exception(vcpu: "Vcpu", context: "GuestContext", vector: int) -> int:
    """#DB or #BP while debugging. 0: KVM_EXIT_DEBUG."""
    dr6 = context.exit_qualification if vector == Vector.DB else 0
    if vcpu.vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP:
        context.rflags &= ~RFLAGS_TF
        dr6 |= DR6_BS if vector == Vector.DB else 0
    pc = context.segment(1)[1] + context.rip
    run_page.U32.pack_into(vcpu.run, run_page.EXIT_REASON, int(KVM_EXIT_DEBUG))
    run_page.DEBUG.pack_into(vcpu.run, run_page.UNION, vector, pc, dr6 | 0xFFFF0FF0, context.get_dr(7))
    return 0
