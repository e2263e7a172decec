# SPDX-License-Identifier: GPL-2.0-or-later
"""guest_memfd: memory that belongs to a guest and that no user mapping reaches (virt/kvm/guest_memfd.c).

Pages are kernel pages, allocated at first use. A page is "prepared" once it was mapped into or populated for a guest;
populating it a second time is EEXIST. Slots bind ranges of the file; punching a hole or closing the file takes the
pages out of the guests' page tables before they are freed. The file holds a reference to its VM.

Pages come one by one, or, where the kernel was booted with ``tdx_huge_page`` and the guest accepts 2 MiB, 512 at once.
A huge page that loses a part (a hole is punched, an attribute changes) is split first.

As in Linux 6.16 the file cannot be mapped, read or written. In the v10 dialect the kernel makes one without descriptor
for every slot of a TD (`Kvm._create_slot`), which stands for that series' inaccessible memfd.
"""

from __future__ import annotations

import errno
from bisect import bisect_left, insort
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.files import File
from swtdx.linux.mm import HUGE_PAGE_PAGES, PAGE_SHIFT, PAGE_SIZE
from swtdx.uapi.kernel import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE

if TYPE_CHECKING:
    from swtdx.linux.virt.kvm.kvm_main import Kvm
    from swtdx.linux.virt.kvm.memslots import Memslot


def kvm_gmem_get_index(slot: Memslot, gfn: int) -> int:
    """Return the page of the file that ``slot`` shows at ``gfn``."""
    return gfn - slot.base_gfn + slot.gmem_pgoff


class GuestMemfd(File):
    """``length`` in bytes; indices in pages."""

    name = "anon_inode:[kvm-gmem]"

    def __init__(self, kvm: Kvm, length: int) -> None:
        super().__init__()
        self.kvm = kvm
        self.length = self.size = length  # of the memfd nothing is ever touched: it has the size that fstat(2) reports
        self.pages: dict[int, int] = {}  # index -> HPA
        self.huge: dict[int, int] = {}  # index / 512 -> HPA of 2 MiB, all of it prepared
        self.prepared: set[int] = set()
        self.bindings: list[tuple[int, int, Memslot]] = []
        """The slots that are bound, by the first page of the file that they show, and id; no two overlap."""
        kvm.guest_memfds.add(self)
        kvm.get()

    def ioctl(self, request: int, arg: int) -> int:
        raise err(errno.ENOTTY, "a guest_memfd takes no ioctl")

    # --- Pages --------------------------------------------------------------------------------------------------------

    def kvm_gmem_get_folio(self, index: int) -> int:
        """HPA of the page at ``index``, allocated if need be. Raises OSError(ENOMEM)."""
        page = self.pages.get(index)
        if page is None:
            huge = self.huge.get(index // HUGE_PAGE_PAGES)
            if huge is not None:
                return huge + (index % HUGE_PAGE_PAGES << PAGE_SHIFT)
            # Of a TD the module initialises each page, so the kernel's zeros would never be seen.
            alloc = self.kvm.pages.alloc_page if self.kvm.is_td else self.kvm.pages.alloc_zeroed_page
            page = self.pages[index] = alloc("guest_memfd")
        return page

    def get_huge_page(self, index: int) -> int | None:
        """HPA of the 2 MiB at ``index`` (a multiple of 512), allocated if all of it is a hole; None if it cannot be."""
        number = index // HUGE_PAGE_PAGES
        page = self.huge.get(number)
        if page is None:
            end = index + HUGE_PAGE_PAGES
            if end << PAGE_SHIFT > self.length or not self.pages.keys().isdisjoint(range(index, end)):
                return None
            page = self.kvm.pages.alloc_huge_page("guest_memfd")
            if page is not None:
                self.huge[number] = page
        return page

    def is_prepared(self, index: int) -> bool:
        """Return whether the page was populated or mapped into a guest."""
        return index in self.prepared or index // HUGE_PAGE_PAGES in self.huge

    def kvm_gmem_mark_prepared(self, index: int) -> None:
        """Note that a guest has the page: to populate it again is an error."""
        self.prepared.add(index)

    def _split(self, number: int) -> None:
        """A huge page becomes 512 pages. Where guests map it, they map small pages by now."""
        page = self.huge.pop(number)
        self.kvm.pages.split_huge_page(page)
        first = number * HUGE_PAGE_PAGES
        for offset in range(HUGE_PAGE_PAGES):
            self.pages[first + offset] = page + (offset << PAGE_SHIFT)
        self.prepared.update(range(first, first + HUGE_PAGE_PAGES))

    def give_up(self, page: int) -> None:
        """Forget a page (or huge page) that the TDX module does not give back; the caller accounts for it."""
        for number, huge in self.huge.items():
            if huge == page:
                del self.huge[number]
                return
        for index, other in self.pages.items():
            if other == page:
                del self.pages[index]
                self.prepared.discard(index)
                return

    # --- Slots --------------------------------------------------------------------------------------------------------

    def kvm_gmem_bind(self, slot: Memslot, pgoff: int) -> None:
        """Let ``slot`` show the file from page ``pgoff`` on. Raises OSError(EINVAL)."""
        if (pgoff + slot.npages) << PAGE_SHIFT > self.length:
            raise err(errno.EINVAL, "the slot reaches beyond the end of the guest_memfd")
        for other in self._bound(pgoff, pgoff + slot.npages):
            raise err(errno.EINVAL, f"that range of the guest_memfd is bound to slot {other.slot_id}")
        slot.gmem, slot.gmem_pgoff = self, pgoff
        insort(self.bindings, (pgoff, slot.slot_id, slot))

    def _bound(self, start: int, end: int) -> list[Memslot]:
        """Return the slots that show a page of [start, end)."""
        first = max(0, bisect_left(self.bindings, (start,)) - 1)
        last = bisect_left(self.bindings, (end,), first)
        return [slot for _, _, slot in self.bindings[first:last] if slot.gmem_pgoff + slot.npages > start]

    def kvm_gmem_unbind(self, slot: Memslot) -> None:
        """End the binding of ``slot``."""
        del self.bindings[bisect_left(self.bindings, (slot.gmem_pgoff,))]
        slot.gmem = None
        self.kvm.memslots.generation += 1  # what was found by way of the slot holds no more (`FirstTouch`)

    # --- The file -----------------------------------------------------------------------------------------------------

    def kvm_gmem_fallocate(self, mode: int, offset: int, length: int) -> None:
        """Punch a hole or allocate. Raises OSError(EOPNOTSUPP, EINVAL, ENOMEM)."""
        if offset < 0 or length <= 0:
            raise err(errno.EINVAL, "negative offset or empty range")
        if not mode & FALLOC_FL_KEEP_SIZE or mode & ~(FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE):
            raise err(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
        if offset % PAGE_SIZE or length % PAGE_SIZE:
            raise err(errno.EINVAL, "offset and length must be multiples of 4 KiB")
        start, end = offset >> PAGE_SHIFT, (offset + length) >> PAGE_SHIFT
        if mode & FALLOC_FL_PUNCH_HOLE:
            self.kvm_gmem_punch_hole(start, end)
            return
        if offset + length > self.length:
            raise err(errno.EINVAL, "beyond the end of the guest_memfd, whose size is fixed")
        self.kvm_gmem_allocate(start, end)

    fallocate = kvm_gmem_fallocate

    def kvm_gmem_allocate(self, start: int, end: int) -> None:
        """Allocate the pages [start, end) that lie within the file. Raises OSError(ENOMEM)."""
        for index in range(start, min(end, self.length >> PAGE_SHIFT)):
            self.kvm_gmem_get_folio(index)

    def kvm_gmem_punch_hole(self, start: int, end: int) -> None:
        """Zap the pages [start, end) wherever they are mapped, and free them; beyond the file's end there are none."""
        end = min(end, self.length >> PAGE_SHIFT)
        with self.kvm.slots_lock, self.kvm.mmu.lock:
            self.kvm_gmem_invalidate_begin(start, end)
            for number in self._huge_within(start, end):
                first = number * HUGE_PAGE_PAGES
                if start <= first and first + HUGE_PAGE_PAGES <= end:
                    self.kvm.pages.free_huge_page(self.huge.pop(number))
                else:
                    self._split(number)
            if end - start < len(self.pages):
                indices = [index for index in range(start, end) if index in self.pages]
            else:
                indices = [index for index in self.pages if start <= index < end]
            for index in indices:
                self.prepared.discard(index)
                self.kvm.pages.free_page(self.pages.pop(index))

    def kvm_gmem_invalidate_begin(self, start: int, end: int) -> None:
        """Take the pages [start, end) out of every guest's page tables. The caller holds mmu_lock.

        upstream: faults are told to retry until kvm_gmem_invalidate_end. Here mmu_lock is held to the end of the hole,
        so that no fault can map a page between its zap and its release.
        """
        for slot in self._bound(start, end):
            low, high = max(start, slot.gmem_pgoff), min(end, slot.gmem_pgoff + slot.npages)
            if low < high:
                shift = slot.base_gfn - slot.gmem_pgoff
                self.kvm.mmu.zap_private(low + shift, high + shift)

    def _huge_within(self, start: int, end: int) -> list[int]:
        numbers = range(start // HUGE_PAGE_PAGES, (end + HUGE_PAGE_PAGES - 1) // HUGE_PAGE_PAGES)
        if len(numbers) < len(self.huge):
            return [number for number in numbers if number in self.huge]
        return [number for number in self.huge if number in numbers]

    def kvm_gmem_release(self) -> None:
        """Close the file: take its pages from the guest, end its bindings and drop the reference to the VM."""
        with self.kvm.slots_lock, self.kvm.mmu.lock:  # no fault between the last page and the end of the binding
            self.kvm_gmem_punch_hole(0, self.length >> PAGE_SHIFT)
            for _, _, slot in list(self.bindings):
                self.kvm_gmem_unbind(slot)
        self.kvm.put()

    release = kvm_gmem_release
