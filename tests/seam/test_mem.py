# SPDX-License-Identifier: GPL-2.0-or-later
"""Private memory: operands, walks, entries in real tables, blocking and tracking, debug access."""

from __future__ import annotations

from typing import Any

import pytest

from swtdx.seam import sept
from swtdx.seam.pamt import PageType
from swtdx.seam.sept import SeptState
from swtdx.seam.status import Operand, StatusCode
from testing.seam.fake_host import Host

INVALID = StatusCode.OPERAND_INVALID
GPA = 0x8000_0000
NULL = (1 << 64) - 1


@pytest.fixture
def td(host: Host) -> Any:
    return host.build()


# --- operands ---------------------------------------------------------------------------------------------------------

GPA_LEAVES = {
    "TDH.MEM.PAGE.ADD": (0, 0),
    "TDH.MEM.SEPT.ADD": (1, 3),
    "TDH.MEM.PAGE.AUG": (0, 1),
    "TDH.MEM.RANGE.BLOCK": (0, 3),
    "TDH.MEM.RANGE.UNBLOCK": (0, 3),
    "TDH.MEM.PAGE.REMOVE": (0, 2),
    "TDH.MEM.SEPT.REMOVE": (1, 3),
    "TDH.MEM.SEPT.RD": (0, 3),
}


@pytest.mark.parametrize("name", GPA_LEAVES)
def test_gpa_operand(host: Host, td: Any, name: str) -> None:
    lowest, highest = GPA_LEAVES[name]
    bad = [1 << 3 | lowest, 1 << 11 | lowest, 1 << 52 | lowest, 1 << 63 | lowest, highest + 1]
    bad += [1 << 47 | lowest, 1 << 48 | lowest, 1 << 51 | lowest]  # not private
    bad += [4096 | level for level in range(max(lowest, 1), highest + 1)]  # not aligned to the level
    bad += [lowest - 1] if lowest else []
    for rcx in bad:
        status, args = host.call(name, rcx=rcx, rdx=td, r8=host.page(), r9=host.page())
        assert status == INVALID | Operand.RCX, hex(rcx)
        assert (args.rcx, args.rdx) == (0, 0)


@pytest.mark.parametrize("name", GPA_LEAVES)
def test_a_walk_that_ends_early_shows_where(host: Host, td: Any, name: str) -> None:
    lowest, _ = GPA_LEAVES[name]
    status, args = host.call(name, rcx=lowest, rdx=td, r8=host.page(), r9=host.page())
    assert status == StatusCode.EPT_WALK_FAILED | Operand.RCX
    assert args.rcx == 1 << 63  # a free entry shows bit 63 only
    assert args.rdx == 3  # level 3 (of four levels), state FREE


@pytest.mark.parametrize("name", ["TDH.MEM.SEPT.ADD", "TDH.MEM.SEPT.RD"])
def test_reserved_bits_beside_the_tdr(host: Host, td: Any, name: str) -> None:
    for bit in (1, 11, 52, 63):
        assert host.call(name, rcx=1, rdx=td | 1 << bit, r8=host.page())[0] == INVALID | Operand.RDX


# --- SEPT.ADD ---------------------------------------------------------------------------------------------------------


def test_sept_pages_are_real_tables(host: Host, td: Any) -> None:
    host.tables(td, GPA)
    root = host.module.tds[td].tdcx[3]
    table, path = root, []
    for level in (3, 2, 1):
        entry = host.memory.qwords[(table >> 3) + (GPA >> 12 + 9 * level & 511)]
        assert entry & ~sept.HPA_MASK == 1 << 63 | 7
        table = entry & sept.HPA_MASK
        path.append(table)
        assert host.memory.key_of(table) == host.module.tds[td].hkid
    assert host.memory.raw[table : table + 4096].tobytes() == (0x80E0 << 48).to_bytes(8, "little") * 512
    assert host.module.tds[td].child_count == 6 + 3
    metadata = host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=path[0])
    assert (metadata.rcx, metadata.rdx) == (8, td)


def test_sept_add_twice(host: Host, td: Any) -> None:
    host.tables(td, 0)
    status, args = host.call("TDH.MEM.SEPT.ADD", rcx=3, rdx=td, r8=host.page())
    assert status == StatusCode.EPT_ENTRY_STATE_INCORRECT | Operand.RCX
    assert args.rcx == 7  # RWX; the HPA of a table stays hidden
    assert args.rdx == 3 | 132 << 8


def test_sept_add_version_1_may_find_the_page_there(host: Host, td: Any) -> None:
    host.tables(td, 0)
    page = host.page()
    args = host.ok("TDH.MEM.SEPT.ADD", version=1, rcx=3, rdx=td | 1, r8=page, r9=NULL, r10=NULL, r11=NULL)
    assert args.r8 == page | 1 << 63
    assert (args.r9, args.r10, args.r11) == (NULL, NULL, NULL)
    used = host.module.tds[td].tdcx[0]  # what is not needed is not looked at
    assert host.ok("TDH.MEM.SEPT.ADD", version=1, rcx=3, rdx=td | 1, r8=used, r9=NULL, r10=NULL, r11=NULL).r8 >> 63
    assert host.ok("TDH.MEM.SEPT.ADD", version=1, rcx=3, rdx=td | 1, r8=NULL, r9=NULL, r10=NULL, r11=NULL).r8 == NULL
    assert host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=page).rcx == 0  # still free


@pytest.mark.parametrize("vm", [1, 2, 3])
def test_sept_add_has_no_pages_for_other_virtual_machines(host: Host, td: Any, vm: int) -> None:
    """Those that do not exist are refused by operand; R8 to R11 come back without bit 63 on every path."""
    page, offered = host.page(), host.page()
    registers = {"r9": NULL, "r10": NULL, "r11": NULL} | {f"r{8 + vm}": offered | 1 << 63}
    status, args = host.call("TDH.MEM.SEPT.ADD", version=1, rcx=3, rdx=td, r8=page | 1 << 63, **registers)
    assert status == INVALID | Operand.R8 + vm
    assert (args.r8, getattr(args, f"r{8 + vm}")) == (page, offered)


def test_sept_add_takes_a_page_with_bit_63(host: Host, td: Any) -> None:
    page = host.page()
    host.ok("TDH.MEM.SEPT.ADD", rcx=3, rdx=td, r8=page | 1 << 63)
    assert host.entry(td, 0, 3)[0] & 0x000F_FFFF_FFFF_F000 == page


def test_an_existing_table_needs_no_leave_if_no_page_is_offered(host: Host, td: Any) -> None:
    host.tables(td, 0)
    args = host.ok("TDH.MEM.SEPT.ADD", version=1, rcx=3, rdx=td, r8=NULL, r9=NULL, r10=NULL, r11=NULL)
    assert (args.r8, args.r9, args.r10, args.r11) == (NULL, NULL, NULL, NULL)


def test_sept_add_without_a_page(host: Host, td: Any) -> None:
    assert host.call("TDH.MEM.SEPT.ADD", rcx=3, rdx=td, r8=NULL)[0] == INVALID | Operand.R8
    status, _ = host.call("TDH.MEM.SEPT.ADD", version=1, rcx=3, rdx=td, r8=NULL)
    assert status == StatusCode.EPT_ENTRY_STATE_INCORRECT | Operand.RCX


# --- PAGE.ADD ---------------------------------------------------------------------------------------------------------


def test_page_add_copies_maps_and_encrypts(host: Host, td: Any) -> None:
    content = bytes(range(256)) * 16
    hpa = host.add(td, GPA, content)
    entry, level = host.entry(td, GPA)
    assert level == 0
    assert entry == hpa | 0x80000000000000F7
    assert host.memory.raw[hpa : hpa + 4096].tobytes() == content
    seen = host.memory.read(hpa, 4096)
    assert seen != content
    assert host.memory.read(hpa, 4096) == seen
    metadata = host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=hpa)
    assert (metadata.rcx, metadata.rdx, metadata.r8, metadata.r9) == (3, td, 0, 0)


def test_page_add_checks_in_order(host: Host, td: Any) -> None:
    """Entry before source, source before target."""
    host.add(td, GPA)
    status, args = host.call("TDH.MEM.PAGE.ADD", rcx=GPA, rdx=td, r8=1, r9=1)
    assert status == StatusCode.EPT_ENTRY_STATE_INCORRECT | Operand.RCX
    assert args.rdx == 0 | 4 << 8
    assert host.call("TDH.MEM.PAGE.ADD", rcx=GPA + 4096, rdx=td, r8=1, r9=1)[0] == INVALID | Operand.R9
    assert host.call("TDH.MEM.PAGE.ADD", rcx=GPA + 4096, rdx=td, r8=1, r9=0x1000000)[0] == INVALID | Operand.R8
    used = host.module.tds[td].tdcx[0]
    status, _ = host.call("TDH.MEM.PAGE.ADD", rcx=GPA + 4096, rdx=td, r8=used, r9=0x1000000)
    assert status == StatusCode.PAGE_METADATA_INCORRECT | Operand.R8


def test_page_add_into_a_running_td_is_refused(host: Host) -> None:
    tdr, *_ = host.runnable()
    status, _ = host.call("TDH.MEM.PAGE.ADD", rcx=GPA, rdx=tdr, r8=host.page(), r9=host.page())
    assert status == StatusCode.OP_STATE_INCORRECT


# --- PAGE.AUG ---------------------------------------------------------------------------------------------------------


def test_page_aug_maps_pending_and_leaves_the_content(host: Host, td: Any) -> None:
    host.tables(td, GPA)
    hpa = host.write(b"what the host left")
    host.ok("TDH.MEM.PAGE.AUG", rcx=GPA, rdx=td, r8=hpa)
    entry, _ = host.entry(td, GPA)
    assert entry == hpa | 0x81000000000000F0
    assert host.memory.read(hpa, 18) == b"what the host left"


def test_page_aug_of_two_mebibytes(host: Host, td: Any) -> None:
    hpa = host.augment(td, GPA, level=1)
    entry, level = host.entry(td, GPA, level=1)
    assert (entry, level) == (hpa | 0x81000000000000F0, 1)
    assert host.module.tds[td].child_count == 6 + 2 + 512
    metadata = host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=hpa + 0x5000)
    assert (metadata.rcx, metadata.rdx, metadata.r8) == (3, td, 1)
    assert host.call("TDH.VP.CREATE", rcx=hpa + 0x5000, rdx=td)[0] == StatusCode.PAGE_METADATA_INCORRECT | Operand.RCX
    args = host.ok("TDH.MEM.PAGE.REMOVE", rcx=GPA | 1, rdx=td)
    assert args.rcx == hpa
    assert host.module.tds[td].child_count == 6 + 2
    host.ok("TDH.VP.CREATE", rcx=hpa + 0x5000, rdx=td)


def test_page_aug_of_two_mebibytes_wants_all_512_free(host: Host, td: Any) -> None:
    host.tables(td, GPA, lowest=2)
    hpa = host.page(1 << 21)
    host.ok("TDH.VP.CREATE", rcx=hpa + 511 * 4096, rdx=td)
    status, _ = host.call("TDH.MEM.PAGE.AUG", rcx=GPA | 1, rdx=td, r8=hpa)
    assert status == StatusCode.PAGE_METADATA_INCORRECT | Operand.R8
    assert host.call("TDH.MEM.PAGE.AUG", rcx=GPA | 1, rdx=td, r8=hpa + 4096)[0] == INVALID | Operand.R8


# --- BLOCK, TRACK, REMOVE ---------------------------------------------------------------------------------------------


def test_before_it_runs_a_page_is_removed_without_blocking(host: Host, td: Any) -> None:
    hpa = host.add(td, GPA)
    assert host.ok("TDH.MEM.PAGE.REMOVE", rcx=GPA, rdx=td).rcx == hpa
    assert host.entry(td, GPA)[0] == 0x80E0 << 48
    assert host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=hpa).rcx == 0
    assert host.memory.read(hpa, 64) != bytes(64)  # still under the TD's key


def test_a_running_td_is_blocked_tracked_and_left_before_removal(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()
    hpa = host.augment(tdr, GPA)
    remove = {"rcx": GPA, "rdx": tdr}
    status, args = host.call("TDH.MEM.PAGE.REMOVE", **remove)
    assert status == StatusCode.GPA_RANGE_NOT_BLOCKED | Operand.RCX
    assert args.rdx == 0 | 2 << 8

    def inside(_: Any) -> Any:
        """While the guest runs: block, track; what is inside may still use the old translation."""
        host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)
        again, info = host.call("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)
        assert again == StatusCode.GPA_RANGE_ALREADY_BLOCKED | Operand.RCX
        assert info.rdx == 0 | 3 << 8
        assert host.call("TDH.MEM.PAGE.REMOVE", **remove)[0] == StatusCode.TLB_TRACKING_NOT_DONE | Operand.RCX
        host.ok("TDH.MEM.TRACK", rcx=tdr)
        early, empty = host.call("TDH.MEM.PAGE.REMOVE", **remove)
        assert early == StatusCode.TLB_TRACKING_NOT_DONE | Operand.RCX
        assert (empty.rcx, empty.rdx) == (0, 0)
        assert host.call("TDH.MEM.TRACK", rcx=tdr)[0] == StatusCode.PREVIOUS_TLB_EPOCH_BUSY
        return 1

    context.queue(inside)
    assert host.enter(tdvpr)[0] == 1
    assert host.ok("TDH.MEM.PAGE.REMOVE", **remove).rcx == hpa


def test_entering_in_a_new_epoch_drops_translations(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()
    context.queue(1, 1, 1)
    host.enter(tdvpr)
    flushed = context.flushes
    host.enter(tdvpr)
    assert context.flushes == flushed
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    host.enter(tdvpr)
    assert context.flushes == flushed + 1


def test_unblock_gives_the_mapping_back_once_tracked(host: Host) -> None:
    tdr, *_ = host.runnable()
    hpa = host.augment(tdr, GPA)
    status, _ = host.call("TDH.MEM.RANGE.UNBLOCK", rcx=GPA, rdx=tdr)
    assert status == StatusCode.EPT_ENTRY_STATE_INCORRECT | Operand.RCX
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)
    assert host.call("TDH.MEM.RANGE.UNBLOCK", rcx=GPA, rdx=tdr)[0] == StatusCode.TLB_TRACKING_NOT_DONE | Operand.RCX
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    host.ok("TDH.MEM.RANGE.UNBLOCK", rcx=GPA, rdx=tdr)
    assert host.entry(tdr, GPA)[0] == hpa | sept.PENDING_LEAF


def test_sept_remove_wants_an_empty_page(host: Host, td: Any) -> None:
    host.add(td, GPA)
    rcx = GPA | 1
    status, args = host.call("TDH.MEM.SEPT.REMOVE", rcx=rcx, rdx=td)
    assert status == StatusCode.EPT_PAGE_NOT_FREE | Operand.RCX
    assert args.rdx == 1 | 132 << 8
    host.ok("TDH.MEM.PAGE.REMOVE", rcx=GPA, rdx=td)
    args = host.ok("TDH.MEM.SEPT.REMOVE", version=1, rcx=rcx, rdx=td)
    assert host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=args.rcx).rcx == 0
    assert (args.r9, args.r10, args.r11) == (NULL, NULL, NULL)
    assert host.call("TDH.MEM.SEPT.RD", rcx=GPA, rdx=td)[0] == StatusCode.EPT_WALK_FAILED | Operand.RCX


def test_a_blocked_table_of_a_running_td_hides_what_is_below(host: Host) -> None:
    tdr, *_ = host.runnable()
    host.augment(tdr, GPA)
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA | 1, rdx=tdr)
    args = host.ok("TDH.MEM.SEPT.RD", rcx=GPA | 1, rdx=tdr)
    assert args.rdx == 1 | 129 << 8
    assert host.call("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)[0] == StatusCode.EPT_WALK_FAILED | Operand.RCX


def test_sept_rd(host: Host, td: Any) -> None:
    hpa = host.add(td, GPA)
    args = host.ok("TDH.MEM.SEPT.RD", rcx=GPA, rdx=td)
    assert (args.rcx, args.rdx) == (hpa | 0x80000000000000F7, 0 | 4 << 8)
    assert (
        host.call("TDH.MEM.SEPT.RD", rcx=GPA, rdx=td | 1)[0] == INVALID | Operand.RDX
    )  # L2 attributes: debug TDs only


# --- every leaf against every entry state -----------------------------------------------------------------------------

ENTRY_LEAVES = {
    "TDH.MEM.PAGE.ADD": 0,
    "TDH.MEM.SEPT.ADD": 1,
    "TDH.MEM.PAGE.AUG": 0,
    "TDH.MEM.RANGE.BLOCK": 0,
    "TDH.MEM.RANGE.UNBLOCK": 0,
    "TDH.MEM.PAGE.REMOVE": 0,
    "TDH.MEM.SEPT.REMOVE": 1,
    "TDH.MEM.RD": 0,
    "TDH.MEM.WR": 0,
}
NON_LEAF = {"NL_MAPPED", "NL_BLOCKED"}


@pytest.mark.parametrize("state", [state.name for state in SeptState])
@pytest.mark.parametrize("name", ENTRY_LEAVES)
def test_entry_states_follow_the_table(host: Host, name: str, state: Any) -> None:
    td = host.build(attributes=1)
    level = ENTRY_LEAVES[name]
    host.tables(td, GPA, lowest=level + 1)
    index, _, _ = host.module.tds[td].sept.walk(GPA, level)
    page = host.page(4096 << 9 * level)
    entry = 1 << 63 | SeptState[state]
    if state not in ("FREE", "REMOVED"):
        metadata, _ = host.module.pamt.index_of(page)
        table = state in NON_LEAF
        host.module.pamt.assign(metadata, PageType.EPT if table else PageType.REG, td)
        host.memory.raw[page : page + 4096] = sept.FREE_PAGE
        entry |= page | (0 if table else 6 << 3) | sept._PERMISSIONS[SeptState[state]]
    host.memory.qwords[index] = entry
    leaf = name.replace(".", "_")
    operands = {"rcx": GPA | level, "rdx": td, "r8": host.page(), "r9": host.page()}
    before = host.snapshot()
    status, args = host.call(name, **operands)
    allowed = SeptState[state] in sept.ALLOWED[leaf]
    if allowed and not (name == "TDH.MEM.SEPT.ADD" and state == "NL_MAPPED"):
        assert status == 0
        if leaf in sept.TRANSITIONS:
            assert host.memory.qwords[index] & sept.STATE_MASK == sept.TRANSITIONS[leaf][SeptState[state]]
        return
    assert host.snapshot() == before
    if name == "TDH.MEM.RANGE.BLOCK" and SeptState[state] in sept.ANY_BLOCKED:
        assert status == StatusCode.GPA_RANGE_ALREADY_BLOCKED | Operand.RCX
    elif name in ("TDH.MEM.RD", "TDH.MEM.WR") and not (
        SeptState[state] & sept.LEAF and sept._PERMISSIONS[SeptState[state]]
    ):
        assert status == StatusCode.EPT_ENTRY_NOT_PRESENT | Operand.RCX
    else:
        assert status == StatusCode.EPT_ENTRY_STATE_INCORRECT | Operand.RCX
    assert args.rdx == level | sept.ARCH_STATE[SeptState[state]] << 8


@pytest.mark.parametrize("how", ["removed", "blocked", "blocked above", "promoted"])
def test_a_table_that_is_gone_is_not_walked_any_more(host: Host, td: Any, how: str) -> None:
    """However often the walks before came to it."""
    host.tables(td, GPA)
    first, source = host.page(1 << 21), host.page()
    if how == "promoted":
        for offset in range(0, 1 << 21, 4096):
            host.ok("TDH.MEM.PAGE.ADD", rcx=GPA + offset, rdx=td, r8=first + offset, r9=source)
    host.ok("TDH.MEM.SEPT.RD", rcx=GPA, rdx=td)
    host.ok("TDH.MEM.SEPT.RD", rcx=GPA + 4096, rdx=td)
    name, level = {
        "removed": ("TDH.MEM.SEPT.REMOVE", 1), "blocked": ("TDH.MEM.RANGE.BLOCK", 1),
        "blocked above": ("TDH.MEM.RANGE.BLOCK", 2), "promoted": ("TDH.MEM.PAGE.PROMOTE", 1),
    }[how]  # fmt: skip
    host.ok(name, rcx=GPA | level, rdx=td)
    status, args = host.call("TDH.MEM.SEPT.RD", rcx=GPA, rdx=td)
    assert (status, args.rdx & 7) == (StatusCode.EPT_WALK_FAILED | Operand.RCX, level)


# --- debug access -----------------------------------------------------------------------------------------------------


def test_memory_of_a_production_td_is_not_read(host: Host, td: Any) -> None:
    host.add(td, GPA)
    assert host.call("TDH.MEM.RD", rcx=GPA, rdx=td)[0] == StatusCode.TD_NON_DEBUG
    assert host.call("TDH.MEM.WR", rcx=GPA, rdx=td)[0] == StatusCode.TD_NON_DEBUG


def test_memory_of_a_debug_td_is_read_and_written(host: Host) -> None:
    td = host.build(attributes=1)
    hpa = host.add(td, GPA, b"\x11" * 4096)
    assert host.ok("TDH.MEM.RD", rcx=GPA + 8, rdx=td).r8 == 0x1111111111111111
    assert host.ok("TDH.MEM.WR", rcx=GPA + 8, rdx=td, r8=0x22).r8 == 0x1111111111111111
    assert host.memory.raw[hpa + 8] == 0x22
    assert host.memory.poison[hpa >> 12] == 0
    assert host.call("TDH.MEM.RD", rcx=GPA + 4, rdx=td)[0] == INVALID | Operand.RCX
    assert host.call("TDH.MEM.RD", rcx=0, rdx=td)[0] == StatusCode.EPT_ENTRY_NOT_PRESENT | Operand.RCX
