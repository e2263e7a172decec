# SPDX-License-Identifier: GPL-2.0-or-later
"""MEM.RANGE.BLOCK, MEM.TRACK, MEM.PAGE.REMOVE and PHYMEM.PAGE.WBINVD for many 4 KiB pages of a TD, as one step.

With no virtual CPU inside, nothing comes between the four, and they succeed if the page is what the host takes it for.
So all is looked at first, and then what they leave behind is written: free entries, metadata without a type and with
the epoch of the block, an epoch more for each page, children less.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from swtdx.seam.lifecycle import IMPORT_IN_PROGRESS
from swtdx.seam.pamt import BUSY_OR_USED, LOCK_MASK, TYPE_MASK
from swtdx.seam.sept import HPA_MASK, MAPPED_LEAF, PENDING_LEAF
from swtdx.seam.tdh.mem_build import REG_TYPE
from swtdx.seam.tdh.mem_manage import MEM_TRACK, PAGE_REMOVE, RANGE_BLOCK, REMOVED
from swtdx.x86 import PAGE_OFFSET_MASK

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.td import Td

_LEAVES = frozenset((RANGE_BLOCK, MEM_TRACK, PAGE_REMOVE))
_LARGE = 0x1F_FFFF


def removed(module: TdxModule, td: Td, gpa: int, indices: Sequence[int], pages: Sequence[int]) -> bool:
    """Remove ``pages``, mapped at ``indices`` of the 2 MiB at ``gpa``. The caller holds the module's lock."""
    # A lock of the TD that another holds leaves no leaf function allowed.
    if (
        not td.allowed >= _LEAVES
        or any(td.refcount)
        or td.op_state in IMPORT_IN_PROGRESS
        or module.version.has_own_statuses
        or gpa & _LARGE
        or gpa + _LARGE >= td.gpa_limit
    ):
        return False
    index, _, reached = td.sept.walk(gpa, 0)
    metadata = None if reached else _metadata(module, index, indices, pages)
    if metadata is None:
        return False
    qwords, epoch = module.memory.qwords, td.epoch
    for number in indices:
        qwords[index + number] = REMOVED
    for entry in metadata:
        qwords[entry] &= ~BUSY_OR_USED
        qwords[entry + 1] = epoch
        epoch += 1
    td.epoch = epoch
    td.child_count -= len(metadata)
    td.sept.forget()
    return True


def _metadata(module: TdxModule, index: int, indices: Sequence[int], pages: Sequence[int]) -> list[int] | None:
    """Return where the metadata of the pages is; None if one is not mapped there, or is not free to be removed."""
    qwords, blocks = module.memory.qwords, module.pamt.blocks
    found = []
    for number, page in zip(indices, pages, strict=True):
        block, entry = blocks.get(page >> 30), qwords[index + number]
        if block is None or entry & ~HPA_MASK not in (MAPPED_LEAF, PENDING_LEAF):
            return None
        metadata = block[0] + (page >> 11)
        if (
            entry & HPA_MASK != page
            or page & PAGE_OFFSET_MASK
            or qwords[metadata] & (LOCK_MASK | TYPE_MASK) != REG_TYPE
            or qwords[block[1] + (page >> 21) * 2] & TYPE_MASK
            or qwords[block[2] + (page >> 30) * 2] & TYPE_MASK
        ):
            return None
        found.append(metadata)
    return found
