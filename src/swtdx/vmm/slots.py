# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory slots, and the conversion of guest pages between private and shared.

Upstream, a TD's slot has two halves: user memory behind shared addresses, and a guest_memfd behind private ones; the
attribute PRIVATE says which of the two a page is.  Converting a page means setting the attribute and giving back the
half that is no longer used (KVM_SET_MEMORY_ATTRIBUTES, then madvise or fallocate, as QEMU's kvm_convert_memory does).
In the v10 dialect a slot has user memory only and the kernel converts by itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from swtdx.uapi import kvm
from swtdx.uapi.client import Vm
from swtdx.uapi.dialect import InitialMemory
from swtdx.vmm.memory import GuestMemory


@dataclass(frozen=True)
class Slot:
    """One memory slot: ``length`` bytes at ``gpa``. ``guest_memfd`` is None where there is no private half."""

    number: int
    gpa: int
    length: int
    guest_memfd: int | None


class MemorySlots:
    """The slots of one VM, with the user memory behind them. Close it after the VM: the kernel uses the memory."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.memory = GuestMemory()
        self.slots: list[Slot] = []

    def add(self, gpa: int, length: int, *, readonly: bool = False, contents: bytes = b"") -> Slot:
        """A slot without private half, whose memory begins with ``contents``. Raises KvmError."""
        memory = self.memory.add(gpa, length)
        memory.view[: len(contents)] = contents
        flags = kvm.MemFlag.READONLY if readonly else kvm.MemFlag(0)
        slot = Slot(len(self.slots), gpa, length, None)
        self.vm.set_user_memory_region(slot.number, gpa, length, memory.address, flags)
        self.slots.append(slot)
        return slot

    def add_private(self, gpa: int, length: int) -> Slot:
        """A slot with a guest_memfd, all of it private. Raises KvmError."""
        memory = self.memory.add(gpa, length)
        descriptor = self.vm.create_guest_memfd(length)
        slot = Slot(len(self.slots), gpa, length, descriptor)
        self.slots.append(slot)  # from here on the descriptor is closed with the rest
        flags = kvm.MemFlag.GUEST_MEMFD
        self.vm.set_user_memory_region2(slot.number, gpa, length, memory.address, flags, descriptor, 0)
        self.vm.set_memory_attributes(gpa, length, kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        return slot

    def convert(self, gpa: int, length: int, private: bool) -> bool:
        """Make pages private or shared, as the guest asked; False if that cannot be.

        Addresses without memory are registers of devices, which are shared as they are. Raises KvmError.
        """
        if self.vm.dialect.initial_memory is InitialMemory.MEMSLOT:
            return True  # the kernel has seen to it
        pieces = self._pieces(gpa, length)
        if not pieces:
            return not private
        if sum(size for _, _, size in pieces) != length:
            return False  # partly memory, partly not: no guest means that
        for slot, start, size in pieces:
            if slot.guest_memfd is None:
                return False
            attributes = kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
            self.vm.set_memory_attributes(start, size, attributes)
            if private:
                self.memory.discard(start, size)
            else:
                self.vm.punch_hole(slot.guest_memfd, start - slot.gpa, size)
        return True

    def close(self) -> None:
        """Close the guest_memfds and unmap the user memory."""
        while self.slots:
            descriptor = self.slots.pop().guest_memfd
            if descriptor is not None:
                self.vm.kernel.close(descriptor)
        self.memory.close()

    def _pieces(self, gpa: int, length: int) -> list[tuple[Slot, int, int]]:
        """The parts of a range that are memory: (slot, GPA, length)."""
        pieces = []
        for slot in self.slots:
            start = max(gpa, slot.gpa)
            end = min(gpa + length, slot.gpa + slot.length)
            if start < end:
                pieces.append((slot, start, end - start))
        return pieces
