# SPDX-License-Identifier: GPL-2.0-or-later
"""A normal VM's memory as KVM's emulator reaches it: linear addresses, through the guest's page tables and the slots.

Memory without a slot is MMIO and not served here. A linear address that the guest does not map, or may not read or
write at its privilege, raises `GuestPageFault`; the guest then takes that #PF.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import EventType, Segment
from swtdx.linux.arch.x86.kvm.mmu.paging_tmpl import access, fetch_access
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.linux.uaccess import copy_from_user, copy_to_user
from swtdx.uapi.kvm import Vector

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.kvm_main import Kvm


class GuestPageFault(Exception):
    """The guest's page tables do not map the address, or not for such an access."""

    def __init__(self, address: int, error_code: int) -> None:
        self.address = address
        self.error_code = error_code


class GuestException(Exception):
    """An exception that the emulated instruction raises in the guest."""

    def __init__(self, vector: int, error_code: int | None) -> None:
        self.vector = vector
        self.error_code = error_code


class Unhandled(Exception):
    """The emulator does not know the instruction, or not in this form."""


class Mmio(Exception):
    """There is no slot at the guest-physical address, or nothing behind it in user space (any more)."""


def inject_page_fault(context: GuestContext, fault: GuestPageFault) -> int:
    """Let the guest take the #PF. 1."""
    context.cr2 = fault.address
    context.inject(Vector.PF, EventType.HARDWARE_EXCEPTION, fault.error_code)
    return 1


def user_address(kvm: Kvm, gpa: int) -> int | None:
    """Return the user address behind ``gpa``, or None where there is no slot (gfn_to_hva)."""
    slot = kvm.memslots.gfn_to_memslot(gpa >> PAGE_SHIFT)
    if slot is None:
        return None
    return slot.userspace_addr + gpa - (slot.base_gfn << PAGE_SHIFT)


def is_user(context: GuestContext) -> bool:
    """Whether the guest is at privilege level 3."""
    return context.segment(Segment.SS)[3] >> 5 & 3 == 3


def translate(vcpu: Vcpu, context: GuestContext, address: int, *, write: bool = False, implicit: bool = False) -> int:
    """Return the GPA of data at a linear address. Raises GuestPageFault.

    ``implicit``: the processor's access to a table, which has the supervisor's rights in user code too.
    """
    user = is_user(context) and not implicit
    gpa, error_code = access(vcpu, context, address, write=write, user=user, implicit=implicit)
    if gpa is None:
        raise GuestPageFault(address, error_code)
    return gpa


def _translate_code(vcpu: Vcpu, context: GuestContext, address: int) -> int:
    gpa, error_code = fetch_access(vcpu, context, address, user=is_user(context))
    if gpa is None:
        raise GuestPageFault(address, error_code)
    return gpa


def read_linear(
    vcpu: Vcpu, context: GuestContext, address: int, length: int, to_gpa: Callable[..., int] = translate
) -> bytes:
    """Read bytes of guest memory. Raises GuestPageFault, Mmio."""
    pieces = []
    while length:
        gpa = to_gpa(vcpu, context, address)
        take = min(length, PAGE_SIZE - (address & PAGE_SIZE - 1))
        hva = user_address(vcpu.kvm, gpa)
        if hva is None:
            raise Mmio
        try:
            pieces.append(copy_from_user(hva, take, vcpu.kvm.mm))
        except OSError as error:  # the slot may be gone by now, and its memory with it
            raise Mmio from error
        address += take
        length -= take
    return b"".join(pieces)


def fetch(vcpu: Vcpu, context: GuestContext, address: int, length: int) -> bytes:
    """Instruction bytes at a linear address, at most ``length``. Raises GuestPageFault if there is not even one."""
    in_page = PAGE_SIZE - (address & PAGE_SIZE - 1)
    code = read_linear(vcpu, context, address, min(length, in_page), _translate_code)
    if length > in_page:
        try:
            code += read_linear(vcpu, context, address + in_page, length - in_page, _translate_code)
        except (GuestPageFault, Mmio):
            return code
    return code


def write_linear(vcpu: Vcpu, context: GuestContext, address: int, data: bytes) -> None:
    """Write guest memory. Raises GuestPageFault, Mmio."""
    done = 0
    while done < len(data):
        gpa = translate(vcpu, context, address + done, write=True)
        take = min(len(data) - done, PAGE_SIZE - (address + done & PAGE_SIZE - 1))
        slot = vcpu.kvm.memslots.gfn_to_memslot(gpa >> PAGE_SHIFT)
        hva = user_address(vcpu.kvm, gpa)
        if hva is None or slot is None:
            raise Mmio
        try:
            copy_to_user(hva, data[done : done + take], vcpu.kvm.mm)
        except OSError as error:
            raise Mmio from error
        vcpu.kvm.mark_page_dirty_in_slot(slot, gpa >> PAGE_SHIFT)
        done += take
