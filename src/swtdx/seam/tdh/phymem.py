# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical pages and caches: TDH.PHYMEM.PAGE.RDMD, RECLAIM and WBINVD, PHYMEM.CACHE.WB."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam.dispatch import SUCCESS, leaf
from swtdx.seam.hardware import Args
from swtdx.seam.lifecycle import LifecycleState
from swtdx.seam.pamt import PageType
from swtdx.seam.status import Operand, Status, StatusCode

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.td import Td

OUTPUTS = ("rcx", "rdx", "r8", "r9", "r10", "r11")
START, RESUME = 0, 1


@leaf("TDH.PHYMEM.PAGE.RDMD", clears=OUTPUTS)
def tdh_phymem_page_rdmd(module: TdxModule, args: Args, lp: int) -> int:
    """Read a page's metadata: RCX type, RDX owner, R8 size, R9 BEPOCH."""
    pamt = module.pamt
    index, size = pamt.find(args.rcx, Operand.RCX, shared=True)
    page_type = pamt.type_at(index)
    args.rcx, args.rdx, args.r8 = page_type, pamt.owner_at(index), size
    args.r9 = pamt.epoch_at(index) if page_type in (PageType.REG, PageType.EPT) else 0
    args.r10 = args.r11 = 0
    return SUCCESS


@leaf("TDH.PHYMEM.PAGE.RECLAIM", clears=OUTPUTS)
def tdh_phymem_page_reclaim(module: TdxModule, args: Args, lp: int) -> int:
    """Return a page of a TD in teardown to the host; the TDR last. RCX type, RDX owner, R8 size."""
    pamt, hpa = module.pamt, args.rcx
    index, size = pamt.find(hpa, Operand.RCX)
    page_type, owner = pamt.type_at(index), pamt.owner_at(index)
    if page_type in (PageType.NDA, PageType.RSVD):
        raise Status(StatusCode.PAGE_METADATA_INCORRECT, Operand.RCX)
    found = {"rcx": int(page_type), "rdx": owner, "r8": int(size)}
    if hpa & ((1 << size.shift) - 1):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX, **found)
    td = module.tds.get(hpa if page_type is PageType.TDR else owner)
    if td is None:  # held exclusively (`contention`)
        raise Status(StatusCode.OPERAND_BUSY, Operand.TDR, **found)
    if td.lifecycle is not LifecycleState.TEARDOWN:
        raise Status(StatusCode.LIFECYCLE_STATE_INCORRECT, **found)
    if page_type is PageType.TDR:
        if td.child_count:
            raise Status(StatusCode.TD_ASSOCIATED_PAGES_EXIST, **found)
        del module.tds[hpa]
    else:
        td.child_count -= 1 << (9 * size)
        if page_type is PageType.TDVPR:
            _forget_vcpu(module, td, hpa)
    pamt.release(index)
    args.rcx, args.rdx, args.r8 = page_type, owner, size
    args.r9 = args.r10 = args.r11 = 0
    return SUCCESS


def _forget_vcpu(module: TdxModule, td: Td, hpa: int) -> None:
    vcpu = module.vcpus.pop(hpa)
    if vcpu in td.vcpus:
        vcpu.context.close()


@leaf("TDH.PHYMEM.PAGE.WBINVD")
def tdh_phymem_page_wbinvd(module: TdxModule, args: Args, lp: int) -> int:
    """Write a free page's cache lines back, for the KeyID in RCX. There are no caches: only the operand is checked."""
    hpa, _ = module.host.split(args.rcx)
    if args.rcx >> module.platform.physical_address_bits:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    module.pamt.page(hpa, Operand.RCX, PageType.NDA, shared=True)
    return SUCCESS


@leaf("TDH.PHYMEM.CACHE.WB")
def tdh_phymem_cache_wb(module: TdxModule, args: Args, lp: int) -> int:
    """Write this package's caches back for all KeyIDs that wait for it; an interrupt stops it half-way.

    The KeyIDs are those that wait when it starts: one that is given up in between waits for the next start.
    """
    if args.rcx not in (START, RESUME):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    package = module.package_of(lp)
    module.contention.check(Operand.WBCACHE, package)
    module.contention.check(Operand.KOT)
    if args.rcx == START:
        flushed = module.kot.flushed()
        module.interrupted_write_back.pop(package, None)
        if not flushed:
            raise Status(StatusCode.NO_HKID_READY_TO_WBCACHE)
    elif package in module.interrupted_write_back:
        flushed = module.interrupted_write_back[package]
    else:
        raise Status(StatusCode.WBCACHE_RESUME_ERROR)
    if module.contention.interrupted(lp):
        module.interrupted_write_back[package] = flushed
        raise Status(StatusCode.INTERRUPTED_RESUMABLE)
    module.interrupted_write_back.pop(package, None)
    for hkid in flushed:
        module.kot.written_back(hkid, package)
    return SUCCESS
