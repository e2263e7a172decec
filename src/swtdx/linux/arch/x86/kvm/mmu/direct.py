# SPDX-License-Identifier: GPL-2.0-or-later
"""A direct root: page tables that KVM writes and the processor walks (a normal VM's EPT, a TD's shared EPT).

Tables are pages of emulated physical memory, 512 entries of 64 bits. They are freed when the root is; a zapped range
leaves empty tables behind, as is usual for a guest that converts memory back and forth. Frames are gfns as the
processor sees them: for a TD's shared EPT the caller sets the shared bit.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.mmu.spte import (
    EPT_ADDRESS,
    EPT_LARGE,
    EPT_RWX,
    PG_LEVEL_4K,
    SHADOW_NONPRESENT_VALUE,
    TDX_MMIO_VALUE,
    pages_per_level,
)

if TYPE_CHECKING:
    from swtdx.linux.mm import PageAllocator

_EMPTY = array("Q", [SHADOW_NONPRESENT_VALUE]) * 512


class DirectRoot:
    """``levels``: 4 or 5. The callers hold mmu_lock."""

    def __init__(self, pages: PageAllocator, levels: int) -> None:
        self._pages = pages
        self._qwords = pages.memory.qwords
        self.levels = levels
        self._tables: list[int] = []
        self.leaves = [0] * (levels + 1)
        """Present leaves, by level."""
        self.root = self._alloc_table()

    def _alloc_table(self) -> int:
        table = self._pages.alloc_page("ept")
        self._qwords[table >> 3 : (table >> 3) + 512] = _EMPTY
        self._tables.append(table)
        return table

    def grow(self) -> None:
        """Add a level on top; mappings stay. The old root remains correct for the addresses that it covers."""
        top = self._alloc_table()
        self._qwords[top >> 3] = self.root | EPT_RWX
        self.root = top
        self.levels += 1
        self.leaves.append(0)

    def kvm_tdp_mmu_map(self, gfn: int, entry: int, level: int) -> bool:
        """Store ``entry`` (leaf bits included) for ``gfn`` at ``level``. True if a present entry was changed.

        A table that is already there under a larger leaf stays, and the leaf is not stored: see `level_for`.
        """
        qwords = self._qwords
        table, walk, flush = self.root, self.levels, False
        while walk > level:
            index = (table >> 3) + (gfn >> 9 * (walk - 1) & 511)
            link = qwords[index]
            if not link & EPT_RWX or link & EPT_LARGE:
                flush |= bool(link & EPT_RWX)
                below = self._alloc_table()
                if link & EPT_LARGE and link & EPT_RWX:
                    self.leaves[walk] -= 1
                link = below | EPT_RWX
                qwords[index] = link
            table = link & EPT_ADDRESS
            walk -= 1
        index = (table >> 3) + (gfn >> 9 * (level - 1) & 511)
        old = qwords[index]
        if old == entry:
            return flush
        qwords[index] = entry
        self.leaves[level] += bool(entry & EPT_RWX) - bool(old & EPT_RWX)
        return flush or bool(old & EPT_RWX)

    def level_for(self, gfn: int, level: int) -> int:
        """Return the largest level up to ``level`` at which a leaf for ``gfn`` does not displace a table."""
        qwords = self._qwords
        table, walk = self.root, self.levels
        while walk > PG_LEVEL_4K:
            link = qwords[(table >> 3) + (gfn >> 9 * (walk - 1) & 511)]
            if not link & EPT_RWX or link & EPT_LARGE:
                break
            table = link & EPT_ADDRESS
            walk -= 1
        return min(level, walk)

    def lookup(self, gfn: int) -> tuple[int, int]:
        """Return (entry, level) where the walk for ``gfn`` ends."""
        qwords = self._qwords
        table, walk = self.root, self.levels
        while True:
            entry = qwords[(table >> 3) + (gfn >> 9 * (walk - 1) & 511)]
            if walk == PG_LEVEL_4K or not entry & EPT_RWX or entry & EPT_LARGE:
                return entry, walk
            table = entry & EPT_ADDRESS
            walk -= 1

    def tdp_mmu_zap_leafs(self, start: int, end: int) -> bool:
        """Empty all leaves that touch [start, end). True if one of them was present: the TLBs need flushing."""
        return self._zap(self.root, self.levels, 0, start, min(end, 1 << 9 * self.levels))

    def _zap(self, table: int, level: int, base: int, start: int, end: int) -> bool:
        qwords = self._qwords
        span = pages_per_level(level)
        first, last = max(0, (start - base) // span), min(512, -(-(end - base) // span))
        if first >= last:
            return False
        here = table >> 3
        if level == PG_LEVEL_4K:
            entries = qwords[here + first : here + last].tolist()
            qwords[here + first : here + last] = _EMPTY[first:last]
            present = len(entries) - entries.count(SHADOW_NONPRESENT_VALUE) - entries.count(TDX_MMIO_VALUE)
            self.leaves[PG_LEVEL_4K] -= present
            return present > 0
        flush = False
        for index, entry in enumerate(qwords[here + first : here + last].tolist(), first):
            if not entry & EPT_RWX:
                if entry == TDX_MMIO_VALUE:  # it said that there is no memory in all that it covers
                    qwords[here + index] = SHADOW_NONPRESENT_VALUE
                continue
            if entry & EPT_LARGE:
                qwords[here + index] = SHADOW_NONPRESENT_VALUE
                self.leaves[level] -= 1
                flush = True
            else:
                flush |= self._zap(entry & EPT_ADDRESS, level - 1, base + index * span, start, end)
        return flush

    def free(self) -> None:
        """Give every table back. The processor must not use the root any more."""
        tables, self._tables = self._tables, []
        for table in tables:
            self._pages.free_page(table)
