# SPDX-License-Identifier: GPL-2.0-or-later
"""Taking a TD down gives everything back: pages, KeyID, keys, child counts; and the rules on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.lifecycle import HkidState
from swtdx.seam.status import Operand, StatusCode
from testing.seam.fake_host import Host

GPA = 0x8000_0000


def pages_of(host: Host, tdr: int) -> Any:
    """Every 4 KiB page (or its start, for a large one) that the TD owns, by the metadata."""
    pamt, found = host.module.pamt, []
    for page in host.pages:
        index, _ = pamt.index_of(page)
        if page != tdr and pamt.type_at(index) in (3, 5, 6, 8) and pamt.owner_at(index) == tdr:
            found.append(page)
    return found


def page_types(host: Host) -> Any:
    """Types of all pages of RAM from 16 MiB on."""
    pamt = host.module.pamt
    block = pamt.blocks[0]
    first = block.bias_4k + (0x100_0000 >> 11)
    small = host.memory.qwords[first : block.bias_4k + (1 << 30 >> 11) : 2].tolist()
    large = host.memory.qwords[block.bias_2m : block.bias_2m + 1024 : 2].tolist()
    return {word >> 16 & 0xFF for word in small + large}


@pytest.mark.parametrize("packages", [1, 2])
def test_everything_comes_back(make_host: Callable[..., Host], packages: int) -> None:
    host = make_host(logical_processors=4, packages=packages).bring_up()
    for _ in range(3):
        tdr, tdvpr, context = host.runnable()
        second = host.page()
        assert host.call("TDH.VP.CREATE", rcx=second, rdx=tdr)[0] == StatusCode.OP_STATE_INCORRECT
        host.augment(tdr, GPA)
        host.augment(tdr, 2 * GPA, level=1)
        hkid = host.module.tds[tdr].hkid
        pages = pages_of(host, tdr)
        assert len(pages) == 6 + 6 + 4 + 2  # TDCX; TDVPR and its TDCX; Secure-EPT pages; a small and a large page
        host.tear_down(tdr, [tdvpr], pages)
        assert host.module.tds == {}
        assert host.module.vcpus == {}
        assert context.closed
        assert host.module.kot.state(hkid) is HkidState.FREE
        assert hkid not in host.memory._keys
        assert page_types(host) == {0}
    host.create(hkid=33)


def test_a_td_that_was_only_created(host: Host) -> None:
    tdr = host.page()
    host.ok("TDH.MNG.CREATE", rcx=tdr, rdx=33)
    host.tear_down(tdr)
    assert host.module.kot.state(33) is HkidState.FREE
    assert page_types(host) == {0}


def test_vpflushdone_waits_for_every_virtual_cpu(host: Host) -> None:
    tdr = host.build()
    first, second = host.vcpu(tdr, lp=0), host.vcpu(tdr, lp=1)
    assert host.call("TDH.MNG.VPFLUSHDONE", rcx=tdr)[0] == StatusCode.FLUSHVP_NOT_DONE
    host.ok("TDH.VP.FLUSH", rcx=first, lp=0)
    assert host.call("TDH.MNG.VPFLUSHDONE", rcx=tdr)[0] == StatusCode.FLUSHVP_NOT_DONE
    host.ok("TDH.VP.FLUSH", rcx=second, lp=1)
    host.ok("TDH.MNG.VPFLUSHDONE", rcx=tdr)
    assert host.call("TDH.MNG.VPFLUSHDONE", rcx=tdr)[0] == StatusCode.LIFECYCLE_STATE_INCORRECT


def test_the_key_waits_for_the_caches_of_all_packages(make_host: Callable[..., Host]) -> None:
    host = make_host(logical_processors=4, packages=2).bring_up()
    tdr = host.create()
    assert host.call("TDH.MNG.KEY.FREEID", rcx=tdr)[0] == StatusCode.LIFECYCLE_STATE_INCORRECT
    assert host.call("TDH.PHYMEM.CACHE.WB", rcx=0)[0] == StatusCode.NO_HKID_READY_TO_WBCACHE
    host.ok("TDH.MNG.VPFLUSHDONE", rcx=tdr)
    assert host.call("TDH.MNG.KEY.FREEID", rcx=tdr)[0] == StatusCode.WBCACHE_NOT_COMPLETE
    host.ok("TDH.PHYMEM.CACHE.WB", rcx=0, lp=1)
    assert host.call("TDH.MNG.KEY.FREEID", rcx=tdr)[0] == StatusCode.WBCACHE_NOT_COMPLETE
    host.ok("TDH.PHYMEM.CACHE.WB", rcx=0, lp=2)
    assert host.call("TDH.MNG.CREATE", rcx=host.page(), rdx=host.module.tds[tdr].hkid)[0] == StatusCode.HKID_NOT_FREE
    host.ok("TDH.MNG.KEY.FREEID", rcx=tdr)


@pytest.mark.parametrize(
    ("rcx", "status"), [(1, StatusCode.WBCACHE_RESUME_ERROR), (2, StatusCode.OPERAND_INVALID | Operand.RCX)]
)
def test_cache_wb_operand(host: Host, rcx: int, status: int) -> None:
    assert host.call("TDH.PHYMEM.CACHE.WB", rcx=rcx)[0] == status


def test_reclaim_rules(host: Host) -> None:
    tdr = host.build()
    page = host.module.tds[tdr].tdcx[0]
    free = host.page()
    status, args = host.call("TDH.PHYMEM.PAGE.RECLAIM", rcx=free)
    assert status == StatusCode.PAGE_METADATA_INCORRECT | Operand.RCX
    assert (args.rcx, args.rdx, args.r8) == (0, 0, 0)
    assert host.call("TDH.PHYMEM.PAGE.RECLAIM", rcx=free + 1)[0] == StatusCode.OPERAND_INVALID | Operand.RCX
    assert host.call("TDH.PHYMEM.PAGE.RECLAIM", rcx=1 << 30)[0] == StatusCode.OPERAND_ADDR_RANGE_ERROR | Operand.RCX
    status, args = host.call("TDH.PHYMEM.PAGE.RECLAIM", rcx=page)
    assert status == StatusCode.LIFECYCLE_STATE_INCORRECT
    assert (args.rcx, args.rdx, args.r8) == (5, tdr, 0)  # outputs are set before this check
    host.ok("TDH.MNG.VPFLUSHDONE", rcx=tdr)
    host.ok("TDH.PHYMEM.CACHE.WB")
    host.ok("TDH.MNG.KEY.FREEID", rcx=tdr)
    status, args = host.call("TDH.PHYMEM.PAGE.RECLAIM", rcx=tdr)
    assert status == StatusCode.TD_ASSOCIATED_PAGES_EXIST
    assert (args.rcx, args.rdx) == (4, 0)
    args = host.ok("TDH.PHYMEM.PAGE.RECLAIM", rcx=page)
    assert (args.rcx, args.rdx, args.r8) == (5, tdr, 0)
    assert host.module.tds[tdr].child_count == 5


def test_a_large_page_is_reclaimed_by_its_start(host: Host) -> None:
    tdr = host.build()
    hpa = host.augment(tdr, GPA, level=1)
    pages = pages_of(host, tdr)
    assert host.call("TDH.PHYMEM.PAGE.RECLAIM", rcx=hpa + 4096)[0] == StatusCode.OPERAND_INVALID | Operand.RCX
    host.tear_down(tdr, (), pages)
    assert page_types(host) == {0}


def test_keys_die_with_the_td(host: Host) -> None:
    tdr = host.build()
    hpa = host.add(tdr, GPA, b"private" + bytes(4089))
    td = host.module.tds[tdr]
    pa = hpa | td.hkid << 46
    assert host.memory.read(pa, 7) == b"private"
    host.tear_down(tdr, (), pages_of(host, tdr))
    host.ok("TDH.PHYMEM.PAGE.WBINVD", rcx=pa)
    host.memory.clear_page(hpa)
    assert host.memory.read(hpa, 4096) == bytes(4096)


def test_wbinvd_takes_a_free_page_with_its_keyid(host: Host) -> None:
    page, tdr = host.page(), host.create()
    host.ok("TDH.PHYMEM.PAGE.WBINVD", rcx=page | 33 << 46)
    assert (
        host.call("TDH.PHYMEM.PAGE.WBINVD", rcx=tdr | 33 << 46)[0] == StatusCode.PAGE_METADATA_INCORRECT | Operand.RCX
    )
    assert host.call("TDH.PHYMEM.PAGE.WBINVD", rcx=page | 1 << 52)[0] == StatusCode.OPERAND_INVALID | Operand.RCX
    assert host.call("TDH.PHYMEM.PAGE.WBINVD", rcx=page + 8)[0] == StatusCode.OPERAND_INVALID | Operand.RCX


def test_reclaimid_does_nothing(host: Host) -> None:
    host.ok("TDH.MNG.KEY.RECLAIMID", rcx=12345)
