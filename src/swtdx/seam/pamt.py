# SPDX-License-Identifier: GPL-2.0-or-later
"""The physical address metadata table: what each page of convertible memory is used for.

For each TDMR the host donates three arrays of 16-byte entries, one for each page size; they are real memory here, too.
An entry, as two 64-bit words:

=====  =======================================================================
word   content
=====  =======================================================================
0      lock 15:0, page type 23:16, owner (TDR HPA bits 51:12) 63:24
1      BEPOCH: the TD epoch at which the page's mapping was blocked
=====  =======================================================================

The search for a page's entry starts at 1 GiB and stops at the first level that tracks a page itself (PT_REG); a page
in use as 4 KiB leaves its parents PT_NDA. Only 1 GiB blocks that TDH.SYS.TDMR.INIT has finished take part.

The lock counts shared holders; bit 15 is an exclusive one. Leaf functions are serialised by the module, so that only
VP.ENTER, which holds its TD and virtual CPU while the guest runs, is ever seen to hold one (and `contention`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from functools import reduce
from operator import or_
from typing import NamedTuple

from swtdx.seam.hardware import Memory
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.x86 import PAGE_OFFSET_MASK, PAGE_SIZE

ENTRY_SIZE = 16
LOCK_MASK = 0xFFFF
EXCLUSIVE = 0x8000
TYPE_SHIFT = 16
TYPE_MASK = 0xFF << TYPE_SHIFT
OWNER_SHIFT = 12
"""Word 0 holds HPA bits 51:12 at 63:24, which is the page-aligned HPA shifted left by 12."""
BUSY_OR_USED = LOCK_MASK | TYPE_MASK
SLICE_PAGES = 16 << 10
"""4 KiB pages whose metadata one TDH.SYS.TDMR.INIT call initialises: 64 MiB of memory. How much is the module's choice;
a call for each 4 MiB took a twentieth of the start of ``swtdx run``."""
LARGE_TDMR = 16 << 30
LARGE_SLICE_PAGES = 1 << 18
"""In a TDMR of at least `LARGE_TDMR` bytes: 1 GiB of memory. Otherwise a host of terabytes takes minutes to start, and
each program under ``swtdx exec`` half a second."""
_NEVER_USED = bytes(512 * ENTRY_SIZE)
"""The metadata of 2 MiB of which no 4 KiB page was ever given to a TD."""
GIB = 1 << 30


class PageType(IntEnum):
    """Page types (PT). 2 is not used; TDVPX pages, those of a virtual CPU, are module 1.0's: 1.5 has TDCX for both."""

    NDA = 0
    RSVD = 1
    REG = 3
    TDR = 4
    TDCX = 5
    TDVPR = 6
    TDVPX = 7
    EPT = 8


class PageSize(IntEnum):
    """Page sizes in PAMT order."""

    SIZE_4K = 0
    SIZE_2M = 1
    SIZE_1G = 2

    @property
    def shift(self) -> int:
        """log2 of the size in bytes."""
        return 12 + 9 * self


_SHIFTS = tuple((size, size.shift, (1 << size.shift) - 1) for size in PageSize)
"""Each size with its shift, and what rounds up to it: a machine that starts computes with them for each 4 MiB."""


@dataclass(frozen=True)
class Tdmr:
    """One trust domain memory region and where its metadata lies; areas are absolute (base, size)."""

    base: int
    size: int
    pamt: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    """PAMT (base, size), indexed by PageSize."""
    reserved: tuple[tuple[int, int], ...]

    @property
    def end(self) -> int:
        """First HPA after the region."""
        return self.base + self.size


class Block(NamedTuple):
    """A usable 1 GiB block: indices (64-bit words) that make ``bias + (hpa >> shift) * 2`` the entry of ``hpa``."""

    bias_4k: int
    bias_2m: int
    bias_1g: int


class Pamt:
    """All metadata of the machine: initialisation, look-up and the checks made on physical page operands."""

    def __init__(self, memory: Memory, hkid_shift: int) -> None:
        """``hkid_shift``: the first HPA bit that carries a KeyID; private page operands have none above it."""
        self._memory = memory
        self._hkid_shift = hkid_shift
        self._qwords = memory.qwords
        self.tdmrs: tuple[Tdmr, ...] = ()
        self._progress: dict[int, int] = {}
        self.blocks: dict[int, Block] = {}

    def configure(self, tdmrs: tuple[Tdmr, ...]) -> None:
        """Take over the TDMRs of TDH.SYS.CONFIG; nothing of them is usable yet."""
        self.tdmrs = tdmrs
        self._progress = {tdmr.base: tdmr.base for tdmr in tdmrs}

    def initialized_up_to(self, base: int) -> int | None:
        """Return the HPA up to which the TDMR at ``base`` is initialised; None if no TDMR begins there."""
        return self._progress.get(base)

    def initialize_slice(self, base: int, hkid: int) -> int:
        """Do one step of TDH.SYS.TDMR.INIT for the TDMR at ``base``; returns the new progress as an HPA.

        The metadata becomes private under ``hkid``. Parents (2 MiB, 1 GiB) are written when their first page is.
        """
        tdmr = next(tdmr for tdmr in self.tdmrs if tdmr.base == base)
        start = self._progress[base]
        pages = SLICE_PAGES if tdmr.size < LARGE_TDMR else LARGE_SLICE_PAGES
        end = min(start + pages * PAGE_SIZE, tdmr.end)
        for size, shift, rest in _SHIFTS:
            first, last = start - base + rest >> shift, end - base + rest >> shift
            if first != last:
                self._fill(tdmr, tdmr.pamt[size][0], first, last, size, hkid)
        self._progress[base] = end
        if end % GIB == 0 or end == tdmr.end:
            self._open_block(tdmr, (end - 1) >> 30)
        return end

    def _fill(self, tdmr: Tdmr, table: int, first: int, last: int, size: PageSize, hkid: int) -> None:
        begin, length = table + first * ENTRY_SIZE, (last - first) * ENTRY_SIZE
        if begin & PAGE_OFFSET_MASK or length & PAGE_OFFSET_MASK:
            self._fill_part(begin, length, hkid)
        else:
            self._memory.clear_range(begin, length, hkid)
        if size is not PageSize.SIZE_4K:
            return
        window = (tdmr.base + first * PAGE_SIZE, tdmr.base + last * PAGE_SIZE)
        for area, area_size in tdmr.reserved:
            for hpa in range(max(area, window[0]), min(area + area_size, window[1]), PAGE_SIZE):
                self._qwords[(table >> 3) + ((hpa - tdmr.base) >> 12) * 2] = PageType.RSVD << TYPE_SHIFT

    def _fill_part(self, begin: int, length: int, hkid: int) -> None:
        """The same for entries that share their pages with others."""
        for page in range(begin & ~PAGE_OFFSET_MASK, begin + length, PAGE_SIZE):
            self._memory.set_key(page, hkid)
        raw = self._memory.raw
        zeros = bytes(length)
        if raw[begin : begin + length].tobytes() != zeros:  # lazily backed memory that is zero already stays unbacked
            raw[begin : begin + length] = zeros

    def _open_block(self, tdmr: Tdmr, number: int) -> None:
        self.blocks[number] = Block(*((tdmr.pamt[size][0] >> 3) - (tdmr.base >> size.shift) * 2 for size in PageSize))

    def lies_in(self, hpa: int) -> bool:
        """Return whether the page at ``hpa`` holds metadata."""
        return any(base <= hpa < base + size for tdmr in self.tdmrs for base, size in tdmr.pamt)

    # --- operands -----------------------------------------------------------------------------------------------------

    def free_page(self, hpa: int, operand: Operand) -> int:
        """Return the entry index of a free 4 KiB page, HPA4K(operand, PT_NDA) exclusive.

        Raises the Status of the first check that fails.
        """
        block = self.blocks.get(hpa >> 30)
        if block is None or hpa & PAGE_OFFSET_MASK:
            return self.page(hpa, operand, PageType.NDA)
        index = block.bias_4k + (hpa >> 11)
        qwords = self._qwords
        if (
            qwords[index] & BUSY_OR_USED
            or qwords[block.bias_2m + (hpa >> 21) * 2] & TYPE_MASK
            or qwords[block.bias_1g + (hpa >> 30) * 2] & TYPE_MASK
        ):
            return self.page(hpa, operand, PageType.NDA)
        return index

    def take_page(self, hpa: int, operand: Operand, used: int) -> None:
        """Do `free_page` and `assign` in one: a guest that boots has this done for each of its pages.

        ``used``: what `word` returns for the page's new type and owner. Raises Status.
        """
        block = self.blocks.get(hpa >> 30)
        qwords = self._qwords
        if (
            block is None
            or hpa & PAGE_OFFSET_MASK
            or qwords[(index := block[0] + (hpa >> 11))] & BUSY_OR_USED
            or qwords[block[1] + (hpa >> 21) * 2] & TYPE_MASK
            or qwords[block[2] + (hpa >> 30) * 2] & TYPE_MASK
        ):
            index = self.page(hpa, operand, PageType.NDA)
        qwords[index] = used
        qwords[index + 1] = 0

    def page(self, hpa: int, operand: Operand, page_type: PageType, *, shared: bool = False) -> int:
        """Return the entry index of the 4 KiB page at ``hpa``, HPA4K(operand, page_type); raises Status."""
        index, size = self.find(hpa, operand, shared=shared)
        if size is not PageSize.SIZE_4K or self.type_at(index) is not page_type:
            raise Status(StatusCode.PAGE_METADATA_INCORRECT, operand)
        return index

    def find(self, hpa: int, operand: Operand, *, shared: bool = False) -> tuple[int, PageSize]:
        """Make the form, TDMR and lock checks of a page operand; returns (entry index, size) of the page around it."""
        if hpa & PAGE_OFFSET_MASK or hpa >> self._hkid_shift:
            raise Status(StatusCode.OPERAND_INVALID, operand)
        block = self.blocks.get(hpa >> 30)
        if block is None:
            raise Status(StatusCode.OPERAND_ADDR_RANGE_ERROR, operand)
        index, size = self.search(block, hpa)
        lock = self._qwords[index] & (EXCLUSIVE if shared else LOCK_MASK)
        if lock:
            raise Status(StatusCode.OPERAND_BUSY, operand)
        return index, size

    def search(self, block: Block, hpa: int) -> tuple[int, PageSize]:
        """Walk from 1 GiB down to the entry that tracks ``hpa``."""
        qwords = self._qwords
        for size in (PageSize.SIZE_1G, PageSize.SIZE_2M):
            index = block[size] + (hpa >> size.shift) * 2
            if qwords[index] & TYPE_MASK:
                return index, size
        return block.bias_4k + (hpa >> 12) * 2, PageSize.SIZE_4K

    def free_large_page(self, hpa: int, operand: Operand) -> int:
        """Return the entry of a free 2 MiB page for MEM.PAGE.AUG: it and its 512 small pages are PT_NDA."""
        if hpa & 0x1F_FFFF or hpa >> self._hkid_shift:
            raise Status(StatusCode.OPERAND_INVALID, operand)
        block = self.blocks.get(hpa >> 30)
        if block is None:
            raise Status(StatusCode.OPERAND_ADDR_RANGE_ERROR, operand)
        index = block.bias_2m + (hpa >> 21) * 2
        first = block.bias_4k + (hpa >> 12) * 2
        union = self._qwords[block.bias_1g + (hpa >> 30) * 2] | self._qwords[index]
        small = self._qwords[first : first + 1024]
        if small.tobytes() != _NEVER_USED:
            union |= reduce(or_, small[::2].tolist())
        if union & LOCK_MASK:
            raise Status(StatusCode.OPERAND_BUSY, operand)
        if union & TYPE_MASK:
            raise Status(StatusCode.PAGE_METADATA_INCORRECT, operand)
        return index

    # --- entries ------------------------------------------------------------------------------------------------------

    def index_of(self, hpa: int) -> tuple[int, PageSize]:
        """Return entry index and size of a page known to be inside an initialised block."""
        return self.search(self.blocks[hpa >> 30], hpa)

    def type_at(self, index: int) -> PageType:
        """Return the page type of an entry."""
        return PageType((self._qwords[index] & TYPE_MASK) >> TYPE_SHIFT)

    def owner_at(self, index: int) -> int:
        """Return the HPA of the TDR that owns (or last owned) the page of an entry."""
        return (self._qwords[index] >> 24) << 12

    def epoch_at(self, index: int) -> int:
        """Return the BEPOCH of an entry."""
        word: int = self._qwords[index + 1]
        return word

    def assign(self, index: int, page_type: PageType, owner: int) -> None:
        """Give the page of an entry a type and an owner (TDR HPA); BEPOCH becomes 0."""
        self._qwords[index] = self.word(page_type, owner)
        self._qwords[index + 1] = 0

    @staticmethod
    def word(page_type: PageType, owner: int) -> int:
        """Return the first word of the entry of a page with this type and owner (TDR HPA)."""
        return (owner << OWNER_SHIFT) | (page_type << TYPE_SHIFT)

    def release(self, index: int) -> None:
        """Make the page of an entry PT_NDA; the owner field keeps its old value."""
        self._qwords[index] &= ~BUSY_OR_USED

    def block_at(self, index: int, epoch: int) -> None:
        """Note the TD epoch at which the page's mapping was blocked."""
        self._qwords[index + 1] = epoch

    def large(self, hpa: int, size: PageSize) -> int:
        """Return the index of the entry that tracks ``hpa`` as a page of this size."""
        return self.blocks[hpa >> 30][size] + (hpa >> size.shift) * 2

    def _smaller(self, hpa: int, size: PageSize) -> slice:
        """Return the entries' first words of the 512 pages of the next smaller size."""
        first = self.large(hpa, PageSize(size - 1))
        return slice(first, first + 1024, 2)

    def any_locked(self, hpa: int, size: PageSize) -> bool:
        """Return whether the entry of a page of this size, or of one of the 512 inside it, is locked."""
        words = [self._qwords[self.large(hpa, size)], *self._qwords[self._smaller(hpa, size)].tolist()]
        return any(word & LOCK_MASK for word in words)

    def merge(self, hpa: int, size: PageSize, owner: int) -> None:
        """Merge 512 private pages into one of ``size``; BEPOCH 0."""
        inside = self._smaller(hpa, size)
        for index in range(inside.start, inside.stop, 2):
            self.release(index)
        self.assign(self.large(hpa, size), PageType.REG, owner)

    def split(self, hpa: int, size: PageSize, owner: int) -> None:
        """Split a private page of ``size`` into 512 of the next smaller size; BEPOCH 0."""
        inside = self._smaller(hpa, size)
        for index in range(inside.start, inside.stop, 2):
            self.assign(index, PageType.REG, owner)
        self.release(self.large(hpa, size))

    def locked(self, index: int) -> bool:
        """Return whether the entry's lock is held."""
        return bool(self._qwords[index] & LOCK_MASK)

    def lock_shared(self, index: int) -> None:
        """Add a shared holder."""
        self._qwords[index] += 1

    def lock_exclusive(self, index: int) -> None:
        """Lock out all others."""
        self._qwords[index] |= EXCLUSIVE

    def unlock_exclusive(self, index: int) -> None:
        """Release the exclusive lock."""
        self._qwords[index] &= ~EXCLUSIVE

    def unlock_shared(self, index: int) -> None:
        """Remove a shared holder."""
        self._qwords[index] -= 1
