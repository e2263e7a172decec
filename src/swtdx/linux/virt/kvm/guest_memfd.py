# SPDX-License-Identifier: GPL-2.0-or-later
"""guest_memfd: memory that belongs to a guest and that no user mapping reaches (virt/kvm/guest_memfd.c).

Pages are kernel pages, allocated at first use. A page is "prepared" once it was mapped into or populated for a guest;
populating it a second time is EEXIST. Slots bind ranges of the file; punching a hole or closing the file takes the
pages out of the guests' page tables before they are freed. The file holds a reference to its VM.

Pages come one by one, or, where the kernel was booted with ``tdx_huge_page`` and the guest accepts 2 MiB, 512 at once.
A huge page that loses a part (a hole is punched, an attribute changes) is split first.

The file cannot be read or written, and mapped only if it was created with GUEST_MEMFD_FLAG_MMAP. A slot that shows
such a file takes all of its memory from there, what is shared, too (KVM_MEMSLOT_GMEM_ONLY). With
GUEST_MEMFD_FLAG_INIT_SHARED as well, user space reaches the pages through its mapping: then they are those of the memfd
behind the descriptor, and a slot has a window on it. Without, the mapping is made and each access to it is SIGBUS.

In the v10 dialect the kernel makes a file without descriptor for every slot of a TD (`Kvm._create_slot`), which stands
for that series' inaccessible memfd.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
from array import array
from bisect import bisect_left, insort
from typing import TYPE_CHECKING, Any

from swtdx.linux.err import err
from swtdx.linux.files import File, FileMapping, show_file
from swtdx.linux.mm import HUGE_PAGE_PAGES, HUGE_PAGE_SIZE, PAGE_SHIFT, PAGE_SIZE
from swtdx.uapi.kernel import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
from swtdx.uapi.kvm import GUEST_MEMFD_FLAG_INIT_SHARED, GUEST_MEMFD_FLAG_MMAP
from swtdx.uapi.layout import address_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from swtdx.cpu.memory import PhysicalMemory
    from swtdx.linux.virt.kvm.kvm_main import Kvm
    from swtdx.linux.virt.kvm.memslots import Memslot

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
PREPARED = 1
"""Beside the HPA of a page: it was populated, or mapped into a guest."""
_HOLES = bytes(HUGE_PAGE_PAGES * 8)
BEYOND_THE_END = 1 << 62
"""An offset in any memfd at which each access to a mapping is SIGBUS."""


def kvm_gmem_get_index(slot: Memslot, gfn: int) -> int:
    """Return the page of the file that ``slot`` shows at ``gfn``."""
    return gfn - slot.base_gfn + slot.gmem_pgoff


class GmemWindow:
    """What a slot shows of a file whose pages user space has, too: physical addresses for the processor."""

    def __init__(self, memory: PhysicalMemory, fd: int, start: int, length: int) -> None:
        """``start`` and ``length`` in bytes of the memfd ``fd``. Raises OSError, MemoryError."""
        self._memory = memory
        self._mapping = mmap.mmap(-1, length)
        show_file(self._mapping, fd, offset=start)
        self._length = length
        self.hpa = memory.map_user(address_of(self._mapping), length)

    def forget_code(self, start: int, end: int) -> None:
        """Forget what guests translated from these bytes of the window."""
        self._memory.forget_code(self.hpa + start, end - start)

    def release(self) -> None:
        """Nothing points at the window any more."""
        self._memory.unmap_user(self.hpa, self._length)
        self._mapping.close()


class GuestMemfd(File):
    """``length`` in bytes; indices in pages."""

    name = "anon_inode:[kvm-gmem]"
    close_on_exec = False  # get_unused_fd_flags(0), where the others are made with O_CLOEXEC

    def __init__(self, kvm: Kvm, length: int, flags: int = 0) -> None:
        super().__init__()
        self.kvm = kvm
        # The memfd has the size that fstat(2) reports; unless user space may have the pages, nothing of it is touched.
        self.length = self.size = length
        self.supports_mmap = flags & GUEST_MEMFD_FLAG_MMAP != 0
        self.init_shared = flags & GUEST_MEMFD_FLAG_INIT_SHARED != 0
        self.pages: dict[int, array[int]] = {}
        """By index / 512 the HPAs of 512 pages, with PREPARED; 0 is a hole, and where all are holes there is none. Of
        64 GiB there are 16 million, and what each takes here, the process takes 16 million times."""
        self.huge: dict[int, int] = {}  # index / 512 -> HPA of 2 MiB, all of it prepared
        self.cleared: set[int] = set()  # of a TD: which pages hold what is shared, and not what the module left
        self.bindings: list[tuple[int, int, Memslot]] = []
        """The slots that are bound, by the first page of the file that they show, and id; no two overlap."""
        kvm.guest_memfds.add(self)
        kvm.get()

    def ioctl(self, request: int, arg: int) -> int:
        raise err(errno.ENOTTY, "a guest_memfd takes no ioctl")

    # --- Pages --------------------------------------------------------------------------------------------------------

    def kvm_gmem_get_folio(self, index: int) -> int:
        """HPA of the page at ``index``, allocated if need be. Raises OSError(ENOMEM)."""
        number, offset = index // HUGE_PAGE_PAGES, index % HUGE_PAGE_PAGES
        entries = self.pages.get(number)
        if entries is not None and entries[offset]:
            return entries[offset] & -PAGE_SIZE
        huge = self.huge.get(number)
        if huge is not None:
            return huge + (offset << PAGE_SHIFT)
        # Of a TD the module initialises each page, so the kernel's zeros would never be seen.
        alloc = self.kvm.pages.alloc_page if self.kvm.is_td else self.kvm.pages.alloc_zeroed_page
        page = alloc("guest_memfd")
        if entries is None:
            entries = self.pages[number] = array("Q", _HOLES)
        entries[offset] = page
        return page

    def overwrite(self, offset: int, data: bytes) -> None:
        """Change what is stored, under whichever KeyID. Raises OSError(EINVAL, ENOMEM)."""
        if offset < 0 or offset + len(data) > self.length:
            raise err(errno.EINVAL, f"{len(data)} bytes at {offset:#x} are not in the file")
        memory = self.kvm.pages.memory
        while data:
            start = offset % PAGE_SIZE
            piece, data = data[: PAGE_SIZE - start], data[PAGE_SIZE - start :]
            address = self.kvm_gmem_get_folio(offset >> PAGE_SHIFT) + start
            memory.raw[address : address + len(piece)] = piece
            memory.forget_code(address, len(piece))
            offset += len(piece)

    def get_shared(self, slot: Memslot, index: int) -> int:
        """HPA of a page that guests have as shared memory, by way of ``slot``. Raises OSError(ENOMEM)."""
        if slot.gmem_window is not None:
            return slot.gmem_window.hpa + (index - slot.gmem_pgoff << PAGE_SHIFT)
        page = self.kvm_gmem_get_folio(index)
        if self.kvm.is_td and index not in self.cleared:
            self.kvm.pages.memory.clear_page(page)
            self.cleared.add(index)
        return page

    def get_huge_page(self, index: int) -> int | None:
        """HPA of the 2 MiB at ``index`` (a multiple of 512), allocated if all of it is a hole; None if it cannot be."""
        number = index // HUGE_PAGE_PAGES
        page = self.huge.get(number)
        if page is None:
            if (index + HUGE_PAGE_PAGES) << PAGE_SHIFT > self.length or number in self.pages:
                return None
            page = self.kvm.pages.alloc_huge_page("guest_memfd")
            if page is not None:
                self.huge[number] = page
        return page

    def is_prepared(self, index: int) -> bool:
        """Return whether the page was populated or mapped into a guest."""
        return bool(self._entry(index) & PREPARED) or index // HUGE_PAGE_PAGES in self.huge

    def _entry(self, index: int) -> int:
        entries = self.pages.get(index // HUGE_PAGE_PAGES)
        return entries[index % HUGE_PAGE_PAGES] if entries is not None else 0

    def kvm_gmem_mark_prepared(self, index: int) -> None:
        """Note that a guest has the page: to populate it again is an error."""
        if self._entry(index):  # of a huge page all are
            self.pages[index // HUGE_PAGE_PAGES][index % HUGE_PAGE_PAGES] |= PREPARED
        self.cleared.discard(index)

    def _split(self, number: int) -> None:
        """A huge page becomes 512 pages. Where guests map it, they map small pages by now."""
        page = self.huge.pop(number)
        self.kvm.pages.split_huge_page(page)
        self.pages[number] = array("Q", range(page | PREPARED, page + HUGE_PAGE_SIZE, PAGE_SIZE))

    def give_up(self, page: int) -> None:
        """Forget a page (or huge page) that the TDX module does not give back; the caller accounts for it."""
        for number, huge in self.huge.items():
            if huge == page:
                del self.huge[number]
                return
        for number, entries in self.pages.items():
            for entry in (page, page | PREPARED):
                if entry in entries:
                    entries[entries.index(entry)] = 0
                    self._forget_holes(number)
                    return

    # --- Slots --------------------------------------------------------------------------------------------------------

    def kvm_gmem_check_range(self, slot: Memslot, pgoff: int) -> None:
        """Raises OSError(EINVAL) unless the file has what ``slot`` is to show, from page ``pgoff`` on."""
        if (pgoff + slot.npages) << PAGE_SHIFT > self.length:
            raise err(errno.EINVAL, "the slot reaches beyond the end of the guest_memfd")

    def kvm_gmem_bind(self, slot: Memslot, pgoff: int) -> None:
        """Let ``slot`` show the file from page ``pgoff`` on, which it has. Raises OSError(EINVAL, EEXIST, ENOMEM)."""
        for other in self._bound(pgoff, pgoff + slot.npages):
            code = self.kvm.kernel.release.bound_twice
            raise err(code, f"that range of the guest_memfd is bound to slot {other.slot_id}")
        if self.supports_mmap and self.init_shared:
            slot.gmem_window = self._window(pgoff << PAGE_SHIFT, slot.npages << PAGE_SHIFT)
        slot.gmem, slot.gmem_pgoff, slot.gmem_only = self, pgoff, self.supports_mmap
        insort(self.bindings, (pgoff, slot.slot_id, slot))

    def _window(self, start: int, length: int) -> GmemWindow:
        try:
            return GmemWindow(self.kvm.pages.memory, self.descriptor(), start, length)
        except (OSError, ValueError, MemoryError) as error:
            raise err(errno.ENOMEM, f"no window on the guest_memfd: {error}") from error

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
        window, slot.gmem_window = slot.gmem_window, None
        if window is not None:
            window.release()

    # --- The file -----------------------------------------------------------------------------------------------------

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        if not self.supports_mmap:
            raise err(errno.ENODEV, "the guest_memfd was created without GUEST_MEMFD_FLAG_MMAP")
        if offset % mmap.PAGESIZE:
            raise err(errno.EINVAL, f"offset {offset:#x} is not a multiple of a page")
        mapping = FileMapping(-1, length)  # Python's own of a file must lie within it; a mapping may reach beyond
        files = self.kvm.kernel.files
        mapping.show(fd, 0, length, offset if self.init_shared else BEYOND_THE_END, apart=files.of_clients)
        mapping.hold(files, self)
        return mapping

    def kvm_gmem_fallocate(self, mode: int, offset: int, length: int) -> None:
        """Punch a hole or allocate. Raises OSError(EOPNOTSUPP, EINVAL, ENOMEM)."""
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
            with self.kvm.mmu.lock:  # no hole is punched around it
                self.kvm_gmem_get_folio(index)

    def kvm_gmem_punch_hole(self, start: int, end: int) -> None:
        """Zap the pages [start, end) wherever they are mapped, and free them; beyond the file's end there are none."""
        end = min(end, self.length >> PAGE_SHIFT)
        with self.kvm.slots_lock, self.kvm.mmu.lock:
            self.kvm_gmem_invalidate_begin(start, end)
            for number in self._within(self.huge, start, end):
                first = number * HUGE_PAGE_PAGES
                if start <= first and first + HUGE_PAGE_PAGES <= end:
                    self.kvm.pages.free_huge_page(self.huge.pop(number))
                else:
                    self._split(number)
            for number in self._within(self.pages, start, end):
                self._punch_small(number, start, end)
            if self.supports_mmap and self.init_shared and start < end:
                self._punch_memfd(start, end)

    def _punch_memfd(self, start: int, end: int) -> None:
        """Take the pages from user space, too. Its mappings show zeros from then on."""
        fd = self.descriptor()
        mode, offset, length = (
            FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            start << PAGE_SHIFT,
            end - start << PAGE_SHIFT,
        )
        if fd < 0 or _libc.fallocate(fd, mode, offset, length):  # the last descriptor is gone, and its pages with it
            return
        for slot in self._bound(start, end):
            low, high = max(start, slot.gmem_pgoff), min(end, slot.gmem_pgoff + slot.npages)
            if slot.gmem_window is not None:
                shift = slot.gmem_pgoff
                slot.gmem_window.forget_code(low - shift << PAGE_SHIFT, high - shift << PAGE_SHIFT)

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
                if slot.gmem_only:
                    self.kvm.mmu.zap_direct(low + shift, high + shift)

    @staticmethod
    def _within(table: Mapping[int, object], start: int, end: int) -> list[int]:
        """Return the keys of a table of 2 MiB each that have a part of the pages [start, end)."""
        first, last = start // HUGE_PAGE_PAGES, (end + HUGE_PAGE_PAGES - 1) // HUGE_PAGE_PAGES
        if last - first < len(table):
            return [number for number in range(first, last) if number in table]
        return [number for number in table if first <= number < last]

    def _punch_small(self, number: int, start: int, end: int) -> None:
        """Free the small pages of 2 MiB that lie in [start, end)."""
        first, entries = number * HUGE_PAGE_PAGES, self.pages[number]
        for offset in range(max(start - first, 0), min(end - first, HUGE_PAGE_PAGES)):
            if entries[offset]:
                self.cleared.discard(first + offset)
                self.kvm.pages.free_page(entries[offset] & -PAGE_SIZE)
                entries[offset] = 0
        self._forget_holes(number)

    def _forget_holes(self, number: int) -> None:
        if self.pages[number].tobytes() == _HOLES:
            del self.pages[number]
            self.kvm.memslots.generation += 1  # a run of first touches has the table

    def go_on(self, kept: None) -> None:
        """Read bytes as numbers: a snapshot brings tables that were not there."""
        tables: dict[int, Any] = self.pages
        for number, entries in tables.items():
            if not isinstance(entries, array):
                if len(entries) != len(_HOLES):
                    raise TypeError("512 pages are not 4 KiB")
                tables[number] = array("Q", entries)

    def kvm_gmem_release(self) -> None:
        """Close the file: take its pages from the guest, end its bindings and drop the reference to the VM."""
        with self.kvm.slots_lock, self.kvm.mmu.lock:  # no fault between the last page and the end of the binding
            self.kvm_gmem_punch_hole(0, self.length >> PAGE_SHIFT)
            for _, _, slot in list(self.bindings):
                self.kvm_gmem_unbind(slot)
        self.kvm.put()

    release = kvm_gmem_release
