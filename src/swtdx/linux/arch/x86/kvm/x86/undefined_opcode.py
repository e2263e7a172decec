# SPDX-License-Identifier: GPL-2.0-or-later
"""#UD of a normal VM, which KVM intercepts (handle_ud, em_hypercall and emulator_fix_hypercall, arch/x86/kvm).

A guest picks VMCALL or VMMCALL by the vendor that its CPUID tells, and user space tells what it likes. This processor
has VMCALL. KVM therefore writes VMCALL over a VMMCALL, once, and lets the guest execute it again; with
KVM_X86_QUIRK_FIX_HYPERCALL_INSN disabled the guest takes the #UD. Every other #UD is the guest's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.cpu.vmx import EventType, Segment
from swtdx.linux.arch.x86.kvm.emulate import inject_page_fault
from swtdx.linux.arch.x86.kvm.mmu.paging_tmpl import EFER_LMA, writable
from swtdx.linux.arch.x86.kvm.x86.guest_debug import linear_rip
from swtdx.linux.arch.x86.kvm.x86.guest_memory import GuestPageFault, Mmio, fetch, write_linear
from swtdx.uapi.kvm import KVM_X86_QUIRK_FIX_HYPERCALL_INSN, Vector

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

VMCALL, VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"
_PF_PRESENT_WRITE = 0b11


def handle_ud(vcpu: Vcpu, context: GuestContext) -> int:
    """1: enter the guest again, with the instruction replaced or the exception pending."""
    if not vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_FIX_HYPERCALL_INSN:
        address = linear_rip(context)
        if not context.efer & EFER_LMA:
            address &= 0xFFFFFFFF
        try:
            if fetch(vcpu, context, address, len(VMMCALL)) == VMMCALL:
                return _fix_hypercall(vcpu, context, address)
        except (GuestPageFault, Mmio, OSError):
            pass  # the bytes are gone since the guest fetched them: the exception stands
    context.inject(Vector.UD, EventType.HARDWARE_EXCEPTION)
    return 1


def _fix_hypercall(vcpu: Vcpu, context: GuestContext, address: int) -> int:
    """The write is the guest's own: a page that it may not write raises #PF."""
    user = context.segment(Segment.SS)[3] >> 5 & 3 == 3
    for byte in (address, address + len(VMCALL) - 1):
        if not writable(vcpu.kvm, context, byte, user=user):
            return inject_page_fault(context, byte, _PF_PRESENT_WRITE)
    write_linear(vcpu, context, address, VMCALL)
    context.check_code()  # the processor has a translation of the old instruction
    return 1
