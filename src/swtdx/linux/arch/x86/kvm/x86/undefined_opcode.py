# SPDX-License-Identifier: GPL-2.0-or-later
"""#UD of a normal VM, which KVM intercepts (handle_ud, em_hypercall, emulator_fix_hypercall, em_syscall, arch/x86/kvm).

A guest picks VMCALL or VMMCALL by the vendor that its CPUID tells, and user space tells what it likes. This processor
has VMCALL. KVM therefore writes VMCALL over a VMMCALL, once, and lets the guest execute it again; with
KVM_X86_QUIRK_FIX_HYPERCALL_INSN disabled the guest takes the #UD. SYSCALL exists on Intel's processors in 64-bit mode
alone: KVM executes it in the other protected modes for a guest whose CPUID names AMD. Any other #UD is the guest's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.cpu.vmx import EventType, Segment
from swtdx.linux.arch.x86.kvm.mmu.paging_tmpl import EFER_LMA
from swtdx.linux.arch.x86.kvm.x86.guest_debug import do_singlestep, linear_rip
from swtdx.linux.arch.x86.kvm.x86.guest_memory import (
    GuestPageFault,
    Mmio,
    fetch,
    inject_page_fault,
    translate,
    write_linear,
)
from swtdx.uapi.kvm import KVM_X86_QUIRK_FIX_HYPERCALL_INSN, Vector
from swtdx.x86 import Cr0, Efer, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

VMCALL, VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"
SYSCALL = b"\x0f\x05"
_LONG = 1 << 13


def _address(context: GuestContext) -> int:
    address = linear_rip(context)
    return address if context.efer & EFER_LMA else address & 0xFFFFFFFF


def is_vmmcall(vcpu: Vcpu, context: GuestContext) -> bool:
    """Whether the instruction is VMMCALL, and the processor is one that has it.

    The engine has VMCALL alone. A guest's kernel that is told of AMD executes VMMCALL in pages that it may not write:
    to replace it there ends the guest, so a machine that names AMD needs the instruction.
    """
    if not vcpu.kvm.processor.platform.vmmcall:
        return False
    try:
        return fetch(vcpu, context, _address(context), len(VMMCALL)) == VMMCALL
    except (GuestPageFault, Mmio, OSError):
        return False


def handle_ud(vcpu: Vcpu, context: GuestContext) -> int:
    """1: enter the guest again, with the instruction replaced or the exception pending."""
    address = _address(context)
    try:
        code = fetch(vcpu, context, address, len(VMMCALL))
        # VMCALL: another vCPU has replaced the instruction between this one's exception and here.
        if code in (VMMCALL, VMCALL) and not vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_FIX_HYPERCALL_INSN:
            return _fix_hypercall(vcpu, context, address)
        if code[:2] == SYSCALL and _em_syscall(vcpu, context):
            return do_singlestep(vcpu, context) if context.rflags & Rflags.TF else 1
    except (GuestPageFault, Mmio, OSError):
        pass  # the bytes are gone since the guest fetched them: the exception stands
    context.inject(Vector.UD, EventType.HARDWARE_EXCEPTION)
    return 1


def _em_syscall(vcpu: Vcpu, context: GuestContext) -> bool:
    """SYSCALL outside 64-bit mode, as on AMD's processors; False where it is #UD there, too."""
    if not vcpu.cpuid.is_amd_compatible:
        return False
    if not context.cr0 & Cr0.PE or context.rflags & Rflags.VM or not context.efer & Efer.SCE:
        return False
    if context.efer & EFER_LMA and context.segment(Segment.CS)[3] & _LONG:
        return False  # there it is the processor's own
    from swtdx.linux.arch.x86.kvm.emulate_system import enter_by_syscall

    enter_by_syscall(vcpu, context, context.rip + len(SYSCALL) & 0xFFFFFFFF, wide=False)
    return True


def _fix_hypercall(vcpu: Vcpu, context: GuestContext, address: int) -> int:
    """The write is the guest's own: a page that it may not write raises #PF."""
    try:
        for byte in (address, address + len(VMCALL) - 1):
            translate(vcpu, context, byte, write=True)
        write_linear(vcpu, context, address, VMCALL)
    except GuestPageFault as fault:
        return inject_page_fault(context, fault)
    context.check_code()  # the processor has a translation of the old instruction
    return 1
