# SPDX-License-Identifier: GPL-2.0-or-later
"""RELOCATE, PROMOTE, DEMOTE: entries, metadata, content and counts before and after; and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam import sept
from swtdx.seam.sept import SeptState
from swtdx.seam.status import Operand, StatusCode
from testing.seam.fake_host import GuestStep, Host

GPA = 0x8000_0000
MIB2, GIB = 1 << 21, 1 << 30
NULL = (1 << 64) - 1


def state(host: Host, tdr: int, gpa: int, level: int = 0) -> Any:
    entry, reached = host.entry(tdr, gpa, level)
    assert reached == level
    return SeptState(entry & sept.STATE_MASK)


def block_and_track(host: Host, tdr: int, operand: Any) -> None:
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=operand, rdx=tdr)
    host.ok("TDH.MEM.TRACK", rcx=tdr)


def metadata(host: Host, hpa: int) -> Any:
    args = host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=hpa)
    return args.rcx, args.r8


# --- relocate ---------------------------------------------------------------------------------------------------------


def test_relocate_moves_content_mapping_and_metadata(host: Host) -> None:
    tdr = host.build()
    old = host.add(tdr, GPA, b"moved" * 800 + bytes(96))
    children = host.module.tds[tdr].child_count
    new = host.page()
    args = host.ok("TDH.MEM.PAGE.RELOCATE", rcx=GPA, rdx=tdr, r8=new)
    assert (args.rcx, args.rdx) == (old, 0)
    assert host.entry(tdr, GPA)[0] == sept.MAPPED_LEAF | new
    assert host.memory.raw[new : new + 4000].tobytes() == b"moved" * 800
    assert host.memory.key_of(new) == host.module.tds[tdr].hkid
    assert (metadata(host, old), metadata(host, new)) == ((0, 0), (3, 0))
    assert host.module.tds[tdr].child_count == children


def test_relocate_does_not_heal_what_the_host_has_broken(host: Host) -> None:
    """The integrity of a page's lines is gone with a write under another KeyID; moving them does not bring it back."""
    tdr = host.build()
    hpa = host.add(tdr, GPA, b"x" * 4096)
    host.memory.write(hpa, b"vandalism")
    new = host.page()
    host.ok("TDH.MEM.PAGE.RELOCATE", rcx=GPA, rdx=tdr, r8=new)
    assert host.memory.poison[new >> 12]


def test_relocate_of_a_pending_page_moves_no_content(host: Host) -> None:
    tdr, *_ = host.runnable()
    host.augment(tdr, GPA)
    new = host.write(b"left alone" * 400)
    block_and_track(host, tdr, GPA)
    host.ok("TDH.MEM.PAGE.RELOCATE", rcx=GPA, rdx=tdr, r8=new)
    assert state(host, tdr, GPA) is SeptState.PENDING
    assert host.memory.raw[new : new + 10].tobytes() == b"left alone"


def test_relocate_refuses(host: Host) -> None:
    tdr, *_ = host.runnable()
    hpa = host.augment(tdr, GPA)
    page, used = host.page(), host.module.tds[tdr].tdcx[0]

    def call(**registers: Any) -> Any:
        return host.call("TDH.MEM.PAGE.RELOCATE", **({"rcx": GPA, "rdx": tdr, "r8": page} | registers))[0]

    assert call(rcx=GPA | 1) == StatusCode.OPERAND_INVALID | Operand.RCX
    assert call(rcx=GPA + MIB2) == StatusCode.EPT_WALK_FAILED | Operand.RCX
    assert call(rcx=GPA + 4096) == StatusCode.EPT_ENTRY_STATE_INCORRECT | Operand.RCX
    assert call(r8=hpa) == StatusCode.OPERAND_INVALID | Operand.R8
    assert call() == StatusCode.GPA_RANGE_NOT_BLOCKED | Operand.RCX
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)
    status, args = host.call("TDH.MEM.PAGE.RELOCATE", rcx=GPA, rdx=tdr, r8=page)
    assert status == StatusCode.TLB_TRACKING_NOT_DONE | Operand.RCX
    assert (args.rcx, args.rdx) == (0, 0)
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    assert call(r8=page + 8) == StatusCode.OPERAND_INVALID | Operand.R8
    assert call(r8=1 << 40) == StatusCode.OPERAND_ADDR_RANGE_ERROR | Operand.R8
    assert call(r8=used) == StatusCode.PAGE_METADATA_INCORRECT | Operand.R8
    assert call() == 0


# --- demote and promote -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pending", [True, False])
def test_demote_and_promote_are_each_others_reverse(host: Host, call: Callable[..., GuestStep], pending: bool) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    td = host.module.tds[tdr]
    hpa = host.augment(tdr, GPA, level=1)
    if not pending:
        host.guest(tdvpr, context, call(6, rcx=GPA | 1))
    host.memory.raw[hpa + 7 * 4096] = 0x77
    whole, children = host.entry(tdr, GPA, 1)[0], td.child_count
    table = host.page()
    block_and_track(host, tdr, GPA | 1)
    args = host.ok("TDH.MEM.PAGE.DEMOTE", rcx=GPA | 1, rdx=tdr, r8=table, r9=NULL, r10=5, r11=NULL)
    assert (args.rcx, args.rdx, args.r9, args.r10, args.r11) == (0, 0, NULL, 5, NULL)
    assert state(host, tdr, GPA, 1) is SeptState.NL_MAPPED
    for number in (0, 7, 511):
        entry, _ = host.entry(tdr, GPA + number * 4096)
        assert entry == whole + number * 4096
        assert metadata(host, hpa + number * 4096) == (3, 0)
    assert metadata(host, table) == (8, 0)
    assert td.child_count == children + 1
    status, _ = host.call("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 1, rdx=tdr)
    assert status == StatusCode.GPA_RANGE_NOT_BLOCKED | Operand.RCX
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA | 1, rdx=tdr)
    assert host.call("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 1, rdx=tdr)[0] == StatusCode.TLB_TRACKING_NOT_DONE | Operand.RCX
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    args = host.ok("TDH.MEM.PAGE.PROMOTE", version=1, rcx=GPA | 1, rdx=tdr)
    assert (args.rcx, args.rdx, args.r9, args.r10, args.r11) == (table, 0, NULL, NULL, NULL)
    assert host.entry(tdr, GPA, 1)[0] == whole
    assert (metadata(host, hpa + 5 * 4096), metadata(host, table)) == ((3, 1), (0, 0))
    assert td.child_count == children
    assert host.memory.raw[hpa + 7 * 4096] == 0x77
    block_and_track(host, tdr, GPA | 1)
    assert host.ok("TDH.MEM.PAGE.REMOVE", rcx=GPA | 1, rdx=tdr).rcx == hpa
    assert metadata(host, hpa) == (0, 0)


def test_one_gibibyte(make_host: Callable[..., Host]) -> None:
    host = make_host(memory_size=3 * GIB)
    host.start()
    status, _ = host.config(host.tdmr(size=3 * GIB, pamt=0x10_0000, reserved=[(0, 0x200_0000)]))
    assert status == 0
    host.ok("TDH.SYS.KEY.CONFIG")
    while host.ok("TDH.SYS.TDMR.INIT", rcx=0).rdx < 3 * GIB:
        pass
    host.next_page = 0x200_0000
    tdr = host.build()
    td = host.module.tds[tdr]
    host.tables(tdr, GPA, lowest=2)
    for number in range(512):
        host.ok("TDH.MEM.PAGE.AUG", rcx=GPA + number * MIB2 | 1, rdx=tdr, r8=GIB + number * MIB2)
    children = td.child_count
    table = host.ok("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 2, rdx=tdr).rcx
    assert td.child_count == children - 1
    assert host.entry(tdr, GPA, 2)[0] == sept.PENDING_LEAF | GIB
    assert metadata(host, GIB + 12345 * 4096) == (3, 2)
    assert metadata(host, table) == (0, 0)
    assert host.call("TDH.MEM.PAGE.AUG", rcx=2 * GPA | 1, rdx=tdr, r8=GIB)[0] != 0  # taken
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA | 2, rdx=tdr)
    host.ok("TDH.MEM.RANGE.UNBLOCK", rcx=GPA | 2, rdx=tdr)
    host.ok("TDH.MEM.PAGE.DEMOTE", rcx=GPA | 2, rdx=tdr, r8=table)
    assert state(host, tdr, GPA + 511 * MIB2, 1) is SeptState.PENDING
    assert metadata(host, GIB + 511 * MIB2) == (3, 1)
    host.ok("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 2, rdx=tdr)
    assert host.ok("TDH.MEM.PAGE.REMOVE", rcx=GPA | 2, rdx=tdr).rcx == GIB
    assert td.child_count == children - 1 - (1 << 18)
    assert metadata(host, GIB) == (0, 0)


def split(host: Host, tdr: int) -> Any:
    hpa = host.augment(tdr, GPA, level=1)
    host.ok("TDH.MEM.PAGE.DEMOTE", rcx=GPA | 1, rdx=tdr, r8=host.page())
    return hpa


def test_promote_wants_512_pages_that_are_alike_and_side_by_side(host: Host) -> None:
    tdr = host.build()
    split(host, tdr)

    def refused(operand: int = GPA | 1) -> None:
        before = host.snapshot()
        status, args = host.call("TDH.MEM.PAGE.PROMOTE", rcx=operand, rdx=tdr)
        assert status == StatusCode.EPT_INVALID_PROMOTE_CONDITIONS | Operand.RCX
        assert args.rdx & 7 == operand & 7
        assert host.snapshot() == before

    old = host.ok("TDH.MEM.PAGE.RELOCATE", rcx=GPA + 4096, rdx=tdr, r8=host.page()).rcx
    refused()  # one lies elsewhere
    host.ok("TDH.MEM.PAGE.RELOCATE", rcx=GPA + 4096, rdx=tdr, r8=old)
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA + 8192, rdx=tdr)
    refused()  # one is blocked
    host.ok("TDH.MEM.RANGE.UNBLOCK", rcx=GPA + 8192, rdx=tdr)
    refused(GPA & -GIB | 2)  # the children are tables
    host.ok("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 1, rdx=tdr)


def test_promote_meets_a_locked_child(host: Host) -> None:
    tdr = host.build()
    hpa = split(host, tdr)
    index, entry, _ = host.module.tds[tdr].sept.walk(GPA + 4096, 0)
    host.memory.qwords[index] = entry | sept.ENTRY_LOCK
    assert host.call("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 1, rdx=tdr)[0] == StatusCode.OPERAND_BUSY | Operand.RCX
    host.memory.qwords[index] = entry
    with host.module.contention.hold_page(hpa + 9 * 4096):
        assert host.call("TDH.MEM.PAGE.PROMOTE", rcx=GPA | 1, rdx=tdr)[0] == StatusCode.OPERAND_BUSY | Operand.RCX


def test_demote_refuses(host: Host) -> None:
    tdr, *_ = host.runnable()
    host.augment(tdr, GPA, level=1)
    page, used = host.page(), host.module.tds[tdr].tdcx[0]

    def call(**registers: Any) -> Any:
        return host.call("TDH.MEM.PAGE.DEMOTE", **({"rcx": GPA | 1, "rdx": tdr, "r8": page} | registers))[0]

    assert call(rdx=tdr | 2) == StatusCode.OPERAND_INVALID | Operand.RDX
    assert call(rcx=GPA) == StatusCode.OPERAND_INVALID | Operand.RCX
    assert call(rcx=GPA | 3) == StatusCode.OPERAND_INVALID | Operand.RCX
    assert call(rcx=4 * GIB | 1) == StatusCode.EPT_WALK_FAILED | Operand.RCX
    assert call() == StatusCode.GPA_RANGE_NOT_BLOCKED | Operand.RCX
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA | 1, rdx=tdr)
    assert call() == StatusCode.TLB_TRACKING_NOT_DONE | Operand.RCX
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    assert call(r8=page | 8) == StatusCode.OPERAND_INVALID | Operand.R8
    assert call(r8=1 << 40) == StatusCode.OPERAND_ADDR_RANGE_ERROR | Operand.R8
    assert call(r8=used) == StatusCode.PAGE_METADATA_INCORRECT | Operand.R8
    assert call(rdx=tdr | 1) == 0
