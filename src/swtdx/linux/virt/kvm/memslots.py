# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory slots: which guest frames are backed by which user addresses (struct kvm_memory_slot, virt/kvm/kvm_main.c).

`check_region` and `plan` make the checks of kvm_set_memory_region in its order; what is to be done about a change
(zapping, binding a guest_memfd) is `Kvm.kvm_set_memory_region`'s. Frame numbers are gfns, addresses bytes.
"""

from __future__ import annotations

import errno
import threading
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.linux.uaccess import access_ok
from swtdx.linux.virt.kvm.hva import HvaMapping
from swtdx.uapi.kvm import (
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_READONLY,
    kvm_userspace_memory_region2,
)

if TYPE_CHECKING:
    from swtdx.linux.virt.kvm.guest_memfd import GmemWindow, GuestMemfd

KVM_USER_MEM_SLOTS = 32764
KVM_MEM_MAX_NR_PAGES = (1 << 31) - 1
_READONLY, _GUEST_MEMFD = int(KVM_MEM_READONLY), int(KVM_MEM_GUEST_MEMFD)


@dataclass(eq=False)
class Memslot:
    """A slot that exists. ``base_gfn`` and ``npages`` in frames, ``gmem_pgoff`` in pages of the guest_memfd."""

    slot_id: int
    as_id: int
    flags: int
    base_gfn: int
    npages: int
    userspace_addr: int
    hva: HvaMapping
    gmem: GuestMemfd | None = None
    gmem_pgoff: int = 0
    gmem_only: bool = False
    """What is shared comes from the guest_memfd, too (KVM_MEMSLOT_GMEM_ONLY)."""
    gmem_window: GmemWindow | None = None
    dirty_bitmap: bytearray | None = None

    @property
    def end_gfn(self) -> int:
        """The first frame after the slot."""
        return self.base_gfn + self.npages


class Change(Enum):
    """enum kvm_mr_change."""

    CREATE = "create"
    DELETE = "delete"
    MOVE = "move"
    FLAGS_ONLY = "flags only"
    NOTHING = "nothing"


class Memslots:
    """The slots of one address space, by frame and by id.

    Changes are made under slots_lock. Look-ups take no lock: one list holds everything and changes in one step, and a
    look-up whose two steps fell on both sides of a change is made again (SRCU and the generation, in the kernel).
    """

    __slots__ = ("__dict__", "__weakref__", "generation")  # PageRun reads them

    def __init__(self) -> None:
        self.by_id: dict[int, Memslot] = {}
        self._entries: list[tuple[int, int, Memslot]] = []  # first gfn, id (which decides nothing: no two overlap)
        self._hvas: list[tuple[int, int, Memslot]] = []  # first user address, id; they may overlap
        self._sizes: list[int] = []  # of the slots in bytes, ascending: how far before a range a slot in it can begin
        self._hva_lock = threading.Lock()  # munmap(2) comes without slots_lock
        self.generation = 0
        self._indexed = 0
        """The generation of which `_hvas` and `_sizes` tell. No snapshot keeps them: user addresses are a process's."""

    def gfn_to_memslot(self, gfn: int) -> Memslot | None:
        """Return the slot that holds ``gfn``."""
        wanted = (gfn, KVM_USER_MEM_SLOTS)
        while True:
            generation, slot = self.generation, None
            position = bisect_right(self._entries, wanted) - 1
            if position >= 0:
                try:
                    slot = self._entries[position][2]
                except IndexError:  # taken out meanwhile
                    continue
            if generation == self.generation:
                break
        return slot if slot is not None and gfn < slot.base_gfn + slot.npages else None

    def kvm_check_memslot_overlap(self, base_gfn: int, end_gfn: int, but: int) -> bool:
        """Return whether a slot other than the one with id ``but`` has a frame of the range."""
        return any(slot.slot_id != but for slot in self.within(base_gfn, end_gfn))

    def within(self, base_gfn: int, end_gfn: int) -> Iterator[Memslot]:
        """Yield the slots that have a frame of the range, ascending (kvm_for_each_memslot_in_gfn_range).

        Under slots_lock.
        """
        position = max(0, bisect_right(self._entries, (base_gfn, KVM_USER_MEM_SLOTS)) - 1)
        while position < len(self._entries):
            slot = self._entries[position][2]
            if slot.base_gfn >= end_gfn:
                return
            if slot.end_gfn > base_gfn:
                yield slot
            position += 1

    def behind(self, start: int, end: int) -> list[Memslot]:
        """Return the slots that show user addresses of [start, end), by address, without a look at those far from it.

        Linux has an interval tree (kvm_for_each_memslot_in_hva_range). Under slots_lock or mmu_lock.
        """
        with self._hva_lock:
            if self._indexed != self.generation:
                self._index()
            longest = self._sizes[-1] if self._sizes else 0
            low = bisect_left(self._hvas, (start - longest + 1,))
            high = bisect_left(self._hvas, (end,), low)
            near = self._hvas[low:high]
        return [slot for address, _, slot in near if address + (slot.npages << PAGE_SHIFT) > start]

    def insert(self, slot: Memslot) -> None:
        """Make ``slot`` visible; its id and its frames are free."""
        self.by_id[slot.slot_id] = slot
        self.generation += 1
        insort(self._entries, (slot.base_gfn, slot.slot_id, slot))
        self.generation += 1
        with self._hva_lock:
            if self._is_next():
                insort(self._hvas, (slot.userspace_addr, slot.slot_id, slot))
                insort(self._sizes, slot.npages << PAGE_SHIFT)

    def remove(self, slot_id: int) -> None:
        """Take the slot out."""
        slot = self.by_id.pop(slot_id)
        position = bisect_right(self._entries, (slot.base_gfn, KVM_USER_MEM_SLOTS)) - 1
        self.generation += 1
        del self._entries[position]
        self.generation += 1
        with self._hva_lock:
            if self._is_next():
                del self._hvas[bisect_left(self._hvas, (slot.userspace_addr, slot_id))]
                del self._sizes[bisect_left(self._sizes, slot.npages << PAGE_SHIFT)]

    def _is_next(self) -> bool:
        """Whether the index lacks only the change that was just made; if not, `behind` makes it again."""
        is_next = self._indexed == self.generation - 2
        self._indexed = self.generation if is_next else -1
        return is_next

    def _index(self) -> None:
        generation, slots = self.generation, list(self.by_id.values())
        self._hvas = sorted((slot.userspace_addr, slot.slot_id, slot) for slot in slots)
        self._sizes = sorted(slot.npages << PAGE_SHIFT for slot in slots)
        self._indexed = generation

    def move(self, slot: Memslot, base_gfn: int) -> None:
        """Let ``slot`` begin at another frame."""
        self.remove(slot.slot_id)
        slot.base_gfn = base_gfn
        self.insert(slot)

    def __iter__(self) -> Iterator[Memslot]:
        return iter([slot for _, _, slot in self._entries])


def check_region(region: kvm_userspace_memory_region2, valid_flags: int, address_spaces: int) -> None:
    """What can be said without looking at other slots. Raises OSError(EINVAL)."""
    flags = region.flags
    if region.slot & 0xFFFF >= KVM_USER_MEM_SLOTS:
        raise err(errno.EINVAL, f"slot id {region.slot & 0xFFFF} is beyond KVM_CAP_NR_MEMSLOTS")
    if flags & ~valid_flags:
        raise err(errno.EINVAL, f"slot flags {flags & ~valid_flags:#x} are not possible for this VM")
    if region.memory_size % PAGE_SIZE or region.memory_size >> 63:
        raise err(errno.EINVAL, f"memory_size {region.memory_size:#x} is not a multiple of 4 KiB")
    if region.guest_phys_addr % PAGE_SIZE:
        raise err(errno.EINVAL, f"guest_phys_addr {region.guest_phys_addr:#x} is not 4 KiB aligned")
    if region.userspace_addr % PAGE_SIZE or not access_ok(region.userspace_addr, region.memory_size):
        raise err(errno.EINVAL, f"userspace_addr {region.userspace_addr:#x} is not an aligned user address")
    if flags & _GUEST_MEMFD:
        offset = region.guest_memfd_offset
        if offset % PAGE_SIZE or offset + region.memory_size >= 1 << 64:
            raise err(errno.EINVAL, f"guest_memfd_offset {offset:#x} is unaligned or wraps")
    if region.slot >> 16 >= address_spaces:
        raise err(errno.EINVAL, f"address space {region.slot >> 16} does not exist")
    if region.guest_phys_addr + region.memory_size >= 1 << 64:
        raise err(errno.EINVAL, "the slot wraps around the end of guest physical memory")
    if region.memory_size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES:
        raise err(errno.EINVAL, "the slot has more than 2^31-1 pages")


def plan(region: kvm_userspace_memory_region2, slots: Memslots) -> Change:
    """Return what the call asks for, given the slots that exist. Raises OSError(EINVAL, EEXIST)."""
    old = slots.by_id.get(region.slot & 0xFFFF)
    base_gfn, npages = region.guest_phys_addr >> PAGE_SHIFT, region.memory_size >> PAGE_SHIFT
    if not npages:
        if old is None:
            raise err(errno.EINVAL, f"slot {region.slot} does not exist and cannot be deleted")
        return Change.DELETE
    if old is None:
        change = Change.CREATE
    else:
        if (region.flags | old.flags) & _GUEST_MEMFD:
            raise err(errno.EINVAL, "a slot with a guest_memfd can only be deleted")
        if (
            region.userspace_addr != old.userspace_addr
            or npages != old.npages
            or (region.flags ^ old.flags) & _READONLY
        ):
            raise err(errno.EINVAL, "size, user address and READONLY of an existing slot cannot change")
        if base_gfn != old.base_gfn:
            change = Change.MOVE
        elif region.flags != old.flags:
            change = Change.FLAGS_ONLY
        else:
            return Change.NOTHING
    if change in (Change.CREATE, Change.MOVE) and slots.kvm_check_memslot_overlap(
        base_gfn, base_gfn + npages, region.slot & 0xFFFF
    ):
        raise err(errno.EEXIST, f"slot {region.slot & 0xFFFF} kvm_check_memslot_overlap another slot")
    return change
