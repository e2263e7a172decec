# SPDX-License-Identifier: GPL-2.0-or-later
"""The mirror root: KVM's own picture of a TD's Secure EPT (arch/x86/kvm/mmu/tdp_mmu.c, "mirror" page tables).

The real entries live in pages that belong to the TDX module; KVM may not read them and would need a SEAMCALL for each
look. It keeps a mirror instead: ordinary table pages, never walked by hardware, each with a partner (``external_spt``)
that the module was given. A change to the mirror goes out through the external operations of `kvm_x86_ops`:
link_external_spt, set_external_spte, remove_external_spte, free_external_spt. An operation that fails leaves the mirror
as it was.

Leaves are 4 KiB, and 2 MiB where the guest accepts 2 MiB at once and the kernel was booted with ``tdx_huge_page`` (of
the series "KVM: TDX huge page support for private memory"; no merged kernel has it, so it is off unless asked for). To
take a part of a large leaf away it is split first (split_external_spte), which keeps what the guest has in it.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

from swtdx.linux.arch.x86.kvm.mmu.removal import remove_at_once
from swtdx.linux.arch.x86.kvm.mmu.spte import PG_LEVEL_2M, PG_LEVEL_4K, pages_per_level
from swtdx.linux.mm import HUGE_PAGE_SIZE, PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.linux.virt.kvm.kvm_main import Kvm

_NO_LEAVES = bytes(512 * 8)


class KvmMmuPage:
    """A table of the mirror (struct kvm_mmu_page). ``leaves``: HPAs (levels 1, 2) or 0; ``tables``: index to the next.

    As in Linux a table takes 4 KiB, which is little beside the 2 MiB that it maps.
    """

    __slots__ = ("external_spt", "gfn", "leaves", "level", "tables")

    def __init__(self, level: int, gfn: int, external_spt: int) -> None:
        self.level = level
        self.gfn = gfn
        self.external_spt = external_spt
        self.leaves = array("Q", _NO_LEAVES)
        self.tables: dict[int, KvmMmuPage] = {}

    def tables_within(self, start: int, end: int) -> list[KvmMmuPage]:
        """Return the tables below that hold a part of [start, end)."""
        shift = 9 * (self.level - 1)
        first, last = start - self.gfn >> shift, end - self.gfn - 1 >> shift
        return [self.tables[index] for index in range(max(first, 0), min(last + 1, 512)) if index in self.tables]

    def leaves_within(self, first: int, end: int) -> list[int]:
        """Return the indices of [first, end) that have a leaf."""
        leaves = self.leaves
        return [index for index in range(max(first, 0), min(end, 512)) if leaves[index]]

    def take_leaf(self, index: int) -> int:
        """Return the HPA of a leaf, which is none any more."""
        hpa = self.leaves[index]
        self.leaves[index] = 0
        return hpa


class MirrorRoot:
    """The callers hold mmu_lock. gfns have the shared bit clear."""

    def __init__(self, kvm: Kvm, levels: int) -> None:
        self._kvm = kvm
        self.levels = levels
        self.root = KvmMmuPage(levels, 0, -1)  # the Secure EPT's root is one of the TDCS pages
        self.mapped = 0  # 4 KiB pages
        self.huge = 0  # leaves of 2 MiB

    def lookup(self, gfn: int) -> int | None:
        """HPA mapped at ``gfn``, or None."""
        page = self.root
        level = self.levels
        while level > PG_LEVEL_4K:
            index = gfn >> 9 * (level - 1) & 511
            below = page.tables.get(index)
            if below is None:
                huge = page.leaves[index]
                return huge + ((gfn & 511) << 12) if huge else None
            page = below
            level -= 1
        return page.leaves[gfn & 511] or None

    def table_of(self, gfn: int) -> KvmMmuPage | None:
        """The table that has the 4 KiB leaf of ``gfn``, if it is linked."""
        page: KvmMmuPage | None = self.root
        for level in range(self.levels, PG_LEVEL_4K, -1):
            if page is None:
                break
            page = page.tables.get(gfn >> 9 * (level - 1) & 511)
        return page

    def can_be_huge(self, gfn: int) -> bool:
        """Return whether the 2 MiB around ``gfn`` are mapped by one leaf, or could be: no table is linked there."""
        page = self.root
        for level in range(self.levels, PG_LEVEL_2M, -1):
            below = page.tables.get(gfn >> 9 * (level - 1) & 511)
            if below is None:
                return True
            page = below
        return gfn >> 9 & 511 not in page.tables

    def kvm_tdp_mmu_map(self, gfn: int, hpa: int, target: int = PG_LEVEL_4K) -> None:
        """Map a page at level ``target``, linking the tables on the way, top down. What is there already stays.

        Raises OSError(EBUSY) when the module was busy (retry the fault), OSError(EIO) when it refused (the VM is dead).
        """
        kvm = self._kvm
        page = self.root
        for level in range(self.levels, target, -1):
            index = gfn >> 9 * (level - 1) & 511
            below = page.tables.get(index)
            if below is None:
                if page.leaves[index]:
                    return
                below = self.tdp_mmu_link_sp(page, index, gfn & -pages_per_level(level), level)
            page = below
        index = gfn >> 9 * (target - 1) & 511
        if page.leaves[index] or index in page.tables:
            return
        kvm.ops.set_external_spte(kvm, gfn, target, hpa)
        page.leaves[index] = hpa
        self.mapped += pages_per_level(target)
        self.huge += target == PG_LEVEL_2M

    def split(self, gfn: int) -> None:
        """Split the 2 MiB leaf around ``gfn``, if there is one. Raises OSError(EBUSY, EIO, ENOMEM)."""
        page = self.root
        for level in range(self.levels, PG_LEVEL_2M, -1):
            below = page.tables.get(gfn >> 9 * (level - 1) & 511)
            if below is None:
                return
            page = below
        self.tdp_mmu_split_huge_page(page, gfn >> 9 & 511)

    def tdp_mmu_split_huge_page(self, page: KvmMmuPage, index: int) -> None:
        huge = page.leaves[index]
        if not huge:
            return
        kvm, gfn = self._kvm, page.gfn + (index << 9)
        external_spt = kvm.pages.alloc_page("sept")
        try:
            kvm.ops.split_external_spte(kvm, gfn, PG_LEVEL_2M, external_spt)
        except OSError:
            kvm.pages.free_page(external_spt)
            raise
        below = KvmMmuPage(PG_LEVEL_4K, gfn, external_spt)
        below.leaves = array("Q", range(huge, huge + HUGE_PAGE_SIZE, PAGE_SIZE))
        page.leaves[index] = 0
        self.huge -= 1
        page.tables[index] = below

    def tdp_mmu_link_sp(self, page: KvmMmuPage, index: int, gfn: int, level: int) -> KvmMmuPage:
        kvm = self._kvm
        external_spt = kvm.pages.alloc_page("sept")
        try:
            kvm.ops.link_external_spt(kvm, gfn, level, external_spt)
        except OSError:
            kvm.pages.free_page(external_spt)
            raise
        below = KvmMmuPage(level - 1, gfn, external_spt)
        page.tables[index] = below
        return below

    def tdp_mmu_zap_leafs(self, start: int, end: int) -> None:
        """Remove every leaf in [start, end). Tables stay until the TD is destroyed."""
        if self.huge:
            self._zap_huge(self.root, start, end)
        for table in self._tables(start, end):
            indices = table.leaves_within(start - table.gfn, end - table.gfn)
            if not self._removed_at_once(table, indices):
                # The first one has all vCPUs leave the guest, which may be what was in the way.
                self._remove(table, indices[:1])
                if not self._removed_at_once(table, indices[1:]):
                    self._remove(table, indices[1:])

    def _removed_at_once(self, table: KvmMmuPage, indices: list[int]) -> bool:
        if not indices:
            return True
        done = remove_at_once(self._kvm, table, indices)
        if done:
            self.mapped -= len(indices)
        return done

    def _remove(self, table: KvmMmuPage, indices: list[int]) -> None:
        kvm = self._kvm
        for index in indices:
            hpa = table.take_leaf(index)
            self.mapped -= 1
            kvm.ops.remove_external_spte(kvm, table.gfn + index, PG_LEVEL_4K, hpa)

    def _zap_huge(self, page: KvmMmuPage, start: int, end: int) -> None:
        """Remove 2 MiB leaves that lie in the range, split those of which a part does."""
        if page.level > PG_LEVEL_2M:
            for below in page.tables_within(start, end):
                self._zap_huge(below, start, end)
            return
        kvm = self._kvm
        for index in page.leaves_within(start - page.gfn >> 9, end - page.gfn + 511 >> 9):
            gfn = page.gfn + (index << 9)
            if start <= gfn and gfn + 512 <= end:
                hpa = page.take_leaf(index)
                self.mapped -= 512
                self.huge -= 1
                kvm.ops.remove_external_spte(kvm, gfn, PG_LEVEL_2M, hpa)
            elif gfn < end and start < gfn + 512:
                self.tdp_mmu_split_huge_page(page, index)

    def _tables(self, start: int, end: int) -> list[KvmMmuPage]:
        """Return the level-1 tables that hold a part of the range."""
        if start >> 9 == end - 1 >> 9 and end <= 1 << 9 * self.levels:  # a guest mostly converts a page or two
            table = self.table_of(start)
            return [] if table is None else [table]
        tables = [self.root]
        for _ in range(self.levels, PG_LEVEL_4K, -1):
            tables = [below for table in tables for below in table.tables_within(start, end)]
        return tables

    def free(self) -> None:
        """free_external_spt for every table, lowest first. The TD's key must be gone."""
        self._free(self.root)
        self.root = KvmMmuPage(self.levels, 0, -1)
        self.mapped = self.huge = 0

    def _free(self, page: KvmMmuPage) -> None:
        kvm = self._kvm
        for below in page.tables.values():
            if below.level > PG_LEVEL_4K:
                self._free(below)
            kvm.ops.free_external_spt(kvm, below.gfn, below.level, below.external_spt)
        page.tables.clear()
        page.leaves = array("Q", _NO_LEAVES)

    def go_on(self, kept: None) -> None:
        """Read bytes as numbers: a snapshot brings tables that were not there."""
        tables = [self.root]
        while tables:
            page = tables.pop()
            tables += page.tables.values()
            leaves: Any = page.leaves
            if not isinstance(leaves, array):
                if len(leaves) != len(_NO_LEAVES):
                    raise TypeError("512 leaves are not 4 KiB")
                page.leaves = array("Q", leaves)
