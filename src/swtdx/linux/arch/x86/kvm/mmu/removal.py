# SPDX-License-Identifier: GPL-2.0-or-later
"""Many leaves of the Secure EPT removed in one step.

A guest converts memory to shared, and KVM removes it page by page: BLOCK, TRACK, all vCPUs out, REMOVE, WBINVD, wipe.
For Linux's swiotlb these are up to 262,144 times six steps. Where nothing is unusual the outcome is known beforehand,
and the TDX module does the same for the pages of a table at once (`Processor.remove_pages`): what is left behind is the
same, epochs and all. It answers no where a page is not what KVM takes it for, a lock is held or a vCPU is inside. Then
nothing has changed, and the long way reports what is wrong.

A module whose calls are made to fail offers no such step; a trace tells the four SEAMCALLs of each page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.vmx.tdx import TdState
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.mmu.mirror import KvmMmuPage
    from swtdx.linux.virt.kvm.kvm_main import Kvm


def remove_at_once(kvm: Kvm, table: KvmMmuPage, indices: list[int]) -> bool:
    """Remove these leaves of a level-1 table, and wipe the pages. False: nothing is done."""
    tdx = kvm.tdx
    if tdx is None or tdx.state is not TdState.RUNNABLE or not tdx.is_hkid_assigned or tdx.premapped or kvm.dead:
        return False
    leaves = table.leaves
    pages = [leaves[index] for index in indices]
    if not kvm.processor.remove_pages(tdx.tdr, table.gfn << PAGE_SHIFT, indices, pages):
        return False
    for index in indices:
        leaves[index] = 0
    wipe = kvm.processor.memory.clear_range
    for first, length in _runs(pages):
        wipe(first, length, 0)
    return True


def _runs(pages: list[int]) -> list[tuple[int, int]]:
    """Put pages that lie side by side together: (address, length)."""
    runs: list[tuple[int, int]] = []
    first = end = 0
    for page in sorted(pages):
        if page != end:
            if end:
                runs.append((first, end - first))
            first = page
        end = page + PAGE_SIZE
    runs.append((first, end - first))
    return runs
