# SPDX-License-Identifier: GPL-2.0-or-later
"""The mirror root: KVM's own picture of a TD's Secure EPT (arch/x86/kvm/mmu/tdp_mmu.c, "mirror" page tables).

The real entries live in pages that belong to the TDX module; KVM may not read them and would need a SEAMCALL for each
look. It keeps a mirror instead: ordinary table pages, never walked by hardware, each with a partner (``external_spt``)
that the module was given. A change to the mirror goes out through the external operations of `kvm_x86_ops`:
link_external_spt, set_external_spte, remove_external_spte, free_external_spt. An operation that fails leaves the mirror
as it was. Mirror leaves are 4 KiB.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from swtdx.linux.kvm.x86.mmu.spte import PG_LEVEL_4K, pages_per_level

if TYPE_CHECKING:
    from swtdx.linux.kvm.kvm_main import Kvm


class KvmMmuPage:
    """A table of the mirror (struct kvm_mmu_page). ``spt``: index to leaf HPA (level 1) or to the next table."""

    __slots__ = ("external_spt", "gfn", "leaves", "level", "tables")

    def __init__(self, level: int, gfn: int, external_spt: int) -> None:
        self.level = level
        self.gfn = gfn
        self.external_spt = external_spt
        self.leaves: dict[int, int] = {}
        self.tables: dict[int, KvmMmuPage] = {}


class MirrorRoot:
    """The callers hold mmu_lock. gfns have the shared bit clear."""

    def __init__(self, kvm: "Kvm", levels: int) -> None:
        self._kvm = kvm
        self.levels = levels
        self.root = KvmMmuPage(levels, 0, -1)  # the Secure EPT's root is one of the TDCS pages
        self.mapped = 0

    def lookup(self, gfn: int) -> int | None:
        """HPA mapped at ``gfn``, or None."""
        page = self.root
        level = self.levels
        while level > PG_LEVEL_4K:
            below = page.tables.get(gfn >> 9 * (level - 1) & 511)
            if below is None:
                return None
            page = below
            level -= 1
        return page.leaves.get(gfn & 511)

    def map(self, gfn: int, hpa: int) -> None:
        """Map a page, linking the tables on the way, top down.

        Raises OSError(EBUSY) when the module was busy (retry the fault), OSError(EIO) when it refused (the VM is dead).
        """
        kvm = self._kvm
        page = self.root
        for level in range(self.levels, PG_LEVEL_4K, -1):
            index = gfn >> 9 * (level - 1) & 511
            below = page.tables.get(index)
            if below is None:
                below = self._link(page, index, gfn & -pages_per_level(level), level)
            page = below
        if gfn & 511 in page.leaves:
            return
        kvm.ops.set_external_spte(kvm, gfn, PG_LEVEL_4K, hpa)
        page.leaves[gfn & 511] = hpa
        self.mapped += 1

    def _link(self, page: KvmMmuPage, index: int, gfn: int, level: int) -> KvmMmuPage:
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

    def zap(self, start: int, end: int) -> None:
        """Remove every leaf in [start, end). Tables stay until the TD is destroyed."""
        kvm = self._kvm
        for table in list(self._tables(self.root, start, end)):
            if len(table.leaves) < 512 and start <= table.gfn and table.gfn + 512 <= end:
                indices = list(table.leaves)
            else:
                indices = [index for index in table.leaves if start <= table.gfn + index < end]
            for index in indices:
                hpa = table.leaves.pop(index)
                self.mapped -= 1
                kvm.ops.remove_external_spte(kvm, table.gfn + index, PG_LEVEL_4K, hpa)

    def _tables(self, page: KvmMmuPage, start: int, end: int) -> Iterator[KvmMmuPage]:
        """The level-1 tables that hold a part of the range."""
        if page.level == PG_LEVEL_4K:
            yield page
            return
        for below in list(page.tables.values()):
            if below.gfn < end and start < below.gfn + pages_per_level(page.level):
                yield from self._tables(below, start, end)

    def free(self) -> None:
        """free_external_spt for every table, lowest first. The TD's key must be gone."""
        self._free(self.root)
        self.root = KvmMmuPage(self.levels, 0, -1)
        self.mapped = 0

    def _free(self, page: KvmMmuPage) -> None:
        kvm = self._kvm
        for below in page.tables.values():
            if below.level > PG_LEVEL_4K:
                self._free(below)
            kvm.ops.free_external_spt(kvm, below.gfn, below.level, below.external_spt)
        page.tables.clear()
        page.leaves.clear()
