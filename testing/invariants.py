# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold between KVM, the TDX module and the physical memory, whatever was called.

* Secure EPT and page metadata agree in both directions: what an entry points to belongs to that TD as that kind of page
  at that size, and every private page or table that the metadata gives to a TD is pointed to once.
* A TD's count of child pages is the number of 4 KiB pages that the metadata gives it.
* KVM's mirror has what the Secure EPT has; only pages that KVM mapped and has not yet added may be missing there.
* Each TD has an HKID of its own that the host does not count as free, and every page of a TD is one that the kernel's
  page allocator gave away.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.mmu.spte import pages_per_level
from swtdx.linux.mm import HUGE_PAGE_SIZE, PAGE_SIZE
from swtdx.seam import sept
from swtdx.seam.lifecycle import HkidState
from swtdx.seam.pamt import PageType

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.mmu.mirror import KvmMmuPage
    from swtdx.linux.virt.kvm.kvm_main import Kvm
    from swtdx.machine import MachineKernel
    from swtdx.seam.td import Td

Page = tuple[int, int, PageType]
"""HPA, level of the size (0: 4 KiB), type."""


class Violation(AssertionError):
    """An invariant does not hold."""


def _walk(kernel: MachineKernel, table: int, level: int) -> Iterator[Page]:
    for entry in kernel.processor.memory.qwords[table >> 3 : (table >> 3) + 512].tolist():
        if entry & sept.STATE_MASK in (sept.SeptState.FREE, sept.SeptState.REMOVED):
            continue
        hpa = entry & sept.HPA_MASK
        if entry & sept.LEAF:
            yield hpa & ~((1 << 12 + 9 * level) - 1), level, PageType.REG
        else:
            yield hpa, 0, PageType.EPT
            yield from _walk(kernel, hpa, level - 1)


def in_secure_ept(kernel: MachineKernel, td: Td) -> list[Page]:
    """Everything that the TD's Secure EPT points to."""
    return sorted(_walk(kernel, td.sept.root, td.sept.levels - 1)) if hasattr(td, "sept") else []


def _booked(kernel: MachineKernel) -> Iterator[tuple[int, str]]:
    """(HPA, use) of what the kernel's allocator gave away: 2 MiB as one where the module's metadata has it as one."""
    yield from list(kernel.pages.booked().items())
    for huge, use in list(kernel.pages._used_huge.items()):
        small = kernel.module.pamt.index_of(huge)[1] == 0  # free, or the module was told to split what KVM keeps whole
        yield from ((hpa, use) for hpa in range(huge, huge + HUGE_PAGE_SIZE, PAGE_SIZE if small else HUGE_PAGE_SIZE))


def owned(kernel: MachineKernel) -> dict[int, list[Page]]:
    """What the page metadata gives to each TDR."""
    pamt, found = kernel.module.pamt, dict[int, list[Page]]()
    for hpa, use in _booked(kernel):
        index, size = pamt.index_of(hpa)
        kind = pamt.type_at(index)
        if kind in (PageType.NDA, PageType.RSVD, PageType.TDR):
            continue
        owner = pamt.owner_at(index)
        if use not in ("guest_memfd", "sept", "tdvpr", "tdcx", "tdcs"):
            raise Violation(f"the module holds {hpa:#x} as {kind.name}, KVM uses it as {use}")
        found.setdefault(owner, []).append((hpa, int(size), kind))
    return found


def check(kernel: MachineKernel) -> None:
    """Raises Violation."""
    module, host = kernel.module, kernel.tdx
    assert host is not None
    by_owner = owned(kernel)
    strangers = set(by_owner) - set(module.tds)
    if strangers:
        raise Violation(f"pages belong to TDs that do not exist: {strangers}")
    for tdr, td in module.tds.items():
        has = by_owner.get(tdr, [])
        count = sum(pages_per_level(level + 1) for _, level, _ in has)
        if count != td.child_count:
            raise Violation(f"TDR {tdr:#x} counts {td.child_count} pages, the metadata gives it {count}")
        memory = sorted(page for page in has if page[2] in (PageType.REG, PageType.EPT))
        if memory != in_secure_ept(kernel, td):
            raise Violation(f"TDR {tdr:#x}: metadata and Secure EPT differ")
    vms = {vm.tdx.tdr: vm for vm in kernel.vms if vm.tdx is not None and vm.tdx.tdr}
    if set(vms) != set(module.tds):
        raise Violation(f"KVM has the TDRs {set(vms)}, the module {set(module.tds)}")
    for tdr, vm in vms.items():
        _check_mirror(kernel, vm, module.tds[tdr])
    hkids = [vm.tdx.hkid for vm in vms.values() if vm.tdx is not None and vm.tdx.is_hkid_assigned]
    if max(Counter(hkids).values(), default=1) > 1:
        raise Violation(f"TDs share an HKID: {hkids}")


def check_ownership(kernel: MachineKernel, what: str) -> None:
    """No page that the module holds is free to the kernel, and no KeyID that it uses is. Raises Violation."""
    assert kernel.tdx is not None
    pamt = kernel.module.pamt
    for page in kernel.pages.given_back:
        index, _ = pamt.index_of(page)
        if pamt.type_at(index) not in (PageType.NDA, PageType.RSVD):
            raise Violation(f"{what}: the kernel may use {page:#x}, which the module holds")
    states = {kernel.module.kot.state(hkid) for hkid in kernel.tdx._free_hkids}
    if states - {HkidState.FREE}:
        raise Violation(f"{what}: the kernel may use KeyIDs that are {states}")


def _check_mirror(kernel: MachineKernel, vm: Kvm, td: Td) -> None:
    mirror, tdx = vm.mmu.mirror, vm.tdx
    assert tdx is not None
    if mirror is None:
        return
    tables, leaves = set[int](), dict[int, tuple[int, int]]()

    def walk(page: KvmMmuPage) -> None:
        frames = pages_per_level(page.level)
        present = [(index, hpa) for index, hpa in enumerate(page.leaves) if hpa]
        leaves.update({page.gfn + index * frames: (hpa, page.level - 1) for index, hpa in present})
        for below in page.tables.values():
            tables.add(below.external_spt)
            walk(below)

    walk(mirror.root)
    real = in_secure_ept(kernel, td)
    if tables != {hpa for hpa, _, kind in real if kind is PageType.EPT}:
        raise Violation(f"VM {vm.number}: the mirror has other tables than the Secure EPT")
    orphans = {(hpa, level - 1) for hpa, level in tdx.orphans}
    added = {leaf for gfn, leaf in leaves.items() if gfn not in tdx.premapped}
    if added != {(hpa, level) for hpa, level, kind in real if kind is PageType.REG} - orphans:
        raise Violation(f"VM {vm.number}: the mirror has other pages than the Secure EPT")
