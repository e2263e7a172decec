# SPDX-License-Identifier: GPL-2.0-or-later
"""Every (leaf function, Secure-EPT entry state) pair of the published table, in the states that SEAMCALLs lead to.

States that only export and import give (REMOVED, everything blocked for writing or exported) are out of reach for a
module without migration: there the entry is written by hand. Of the rest a pair is out of reach when the leaf function
cannot be pointed at such an entry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam import sept
from swtdx.seam.sept import SeptState
from swtdx.seam.status import StatusCode
from testing.seam.fake_host import FakeContext, GuestStep, Host

S = SeptState
GIB = 1 << 30
REACHABLE = (S.FREE, S.NL_MAPPED, S.NL_BLOCKED, S.MAPPED, S.BLOCKED, S.PENDING, S.PENDING_BLOCKED)
NON_LEAF = (S.NL_MAPPED, S.NL_BLOCKED)
MIGRATION = {"TDH_EXPORT_BLOCKW", "TDH_EXPORT_RESTORE", "TDH_EXPORT_MEM", "TDH_IMPORT_MEM"}
ONLY_4K = {"TDH_MEM_PAGE_ADD", "TDH_MEM_PAGE_RELOCATE", "TDH_EXPORT_UNBLOCKW"}
ANY_LEAF = {"TDH_MEM_RD", "TDH_MEM_WR", "TDH_MR_EXTEND", "TDG_MEM_PAGE_ATTR_RD"}
FROM_2M = {"TDH_MEM_SEPT_ADD", "TDH_MEM_SEPT_REMOVE", "TDH_MEM_PAGE_PROMOTE", "TDH_MEM_PAGE_DEMOTE"}
BUILDING = {"TDH_MEM_PAGE_ADD", "TDH_MR_EXTEND"}
REMOVAL_LIKE = {
    "TDH_MEM_PAGE_REMOVE", "TDH_MEM_SEPT_REMOVE", "TDH_MEM_PAGE_RELOCATE", "TDH_MEM_PAGE_PROMOTE",
    "TDH_MEM_PAGE_DEMOTE",
}  # fmt: skip


def out_of_reach(leaf: str, state: Any) -> Any:
    """Why no SEAMCALL leads there, or None."""
    if state not in REACHABLE:
        return "the entry state is one of a migration"
    if leaf in MIGRATION:
        return "the leaf function needs an OP_STATE of a migration, or a TD that was exported"
    if leaf in ONLY_4K and state in NON_LEAF:
        return "it takes entries of 4 KiB pages, and those are leaves"
    if leaf in ANY_LEAF and state is S.NL_MAPPED:
        return "its walk does not end at a table that is mapped"
    return None


LEAVES = [leaf for leaf in sept.ALLOWED if not leaf.startswith("TDG")]
GUEST_LEAVES = [leaf for leaf in sept.ALLOWED if leaf.startswith("TDG")]
ALL = [(leaf, state) for leaf in sept.ALLOWED for state in SeptState]
PAIRS = [pair for pair in ALL if out_of_reach(*pair) is None]
HOST_PAIRS = [
    pytest.param(leaf, state, running, id=f"{leaf}-{state.name}-{'RUNNABLE' if running else 'INITIALIZED'}")
    for leaf, state in PAIRS
    for running in (False, True)
    if leaf in LEAVES and not (leaf in BUILDING and running) and not (leaf == "TDH_EXPORT_UNBLOCKW" and not running)
]
"""Each in both OP_STATEs in which a TD's memory can be worked on, as far as the leaf function is allowed there."""


@pytest.fixture(scope="module")
def world(new_host: Callable[..., Host]) -> Any:
    """A debug TD under construction and one that runs (debug, so that MEM.RD and WR pass)."""
    host = new_host().bring_up()
    building = host.build(attributes=1)
    runnable, tdvpr, context = host.runnable(attributes=1 | 1 << 28)
    return host, building, runnable, tdvpr, context, iter(range(GIB, 1 << 40, 1 << 21))


def drive(world: Any, tdr: int, state: Any, level: int) -> Any:
    """A GPA whose entry at ``level`` is in this state, by SEAMCALLs (and TDCALL) alone."""
    host, building, _, tdvpr, context, addresses = world
    gpa = next(addresses)
    if state in NON_LEAF:
        host.tables(tdr, gpa, lowest=1)
    elif state is S.FREE:
        host.tables(tdr, gpa, lowest=level + 1)
    elif state in (S.PENDING, S.PENDING_BLOCKED):
        host.augment(tdr, gpa, level)
    elif tdr != building:
        host.augment(tdr, gpa, level)
        context.queue(accept(gpa | level), 1)
        host.enter(tdvpr)
    elif level == 0:
        host.add(tdr, gpa)
    else:
        host.page(1 << 21)
        host.next_page -= 1 << 21
        source = host.write(bytes(4096))
        host.tables(tdr, gpa)
        first = host.page(1 << 21)
        for offset in range(0, 1 << 21, 4096):
            host.ok("TDH.MEM.PAGE.ADD", rcx=gpa + offset, rdx=tdr, r8=first + offset, r9=source)
        host.ok("TDH.MEM.PAGE.PROMOTE", rcx=gpa | 1, rdx=tdr)
    if state in (S.NL_BLOCKED, S.BLOCKED, S.PENDING_BLOCKED):
        host.ok("TDH.MEM.RANGE.BLOCK", rcx=gpa | level, rdx=tdr)
        host.ok("TDH.MEM.TRACK", rcx=tdr)
    entry, reached = host.entry(tdr, gpa, level)
    assert (reached, entry & sept.STATE_MASK) == (level, state)
    return gpa


def accept(operand: Any) -> Any:
    def step(context: FakeContext) -> int:
        context.gpr[0], context.gpr[1] = 6, operand
        return 77

    return step


def expected(leaf: str, state: Any, *, running: Any) -> Any:
    """Status in this entry state, when all else is in order."""
    code = StatusCode
    if state in sept.ALLOWED[leaf]:
        tracked = not running or state in sept.ANY_BLOCKED
        if leaf in REMOVAL_LIKE and not tracked:
            return code.GPA_RANGE_NOT_BLOCKED | 1
        return code.EPT_INVALID_PROMOTE_CONDITIONS | 1 if leaf == "TDH_MEM_PAGE_PROMOTE" else code.SUCCESS
    if leaf == "TDH_MEM_RANGE_BLOCK" and state in sept.ANY_BLOCKED:
        return code.GPA_RANGE_ALREADY_BLOCKED | 1
    if leaf in ANY_LEAF and not sept._PERMISSIONS[state]:
        return code.EPT_ENTRY_NOT_PRESENT | 1
    return code.EPT_ENTRY_NOT_PRESENT if leaf == "TDH_MR_EXTEND" else code.EPT_ENTRY_STATE_INCORRECT | 1


@pytest.mark.parametrize(("leaf", "state", "running"), HOST_PAIRS)
def test_host_pair(world: Any, leaf: str, state: Any, running: Any) -> None:
    host, building, runnable, *_ = world
    tdr = runnable if running else building
    level = 1 if state in NON_LEAF or leaf in FROM_2M else 0
    gpa = drive(world, tdr, state, level)
    operand = gpa if leaf in ANY_LEAF else gpa | level
    td = tdr | (leaf == "TDH_MEM_SEPT_ADD")
    page = host.page()
    source = host.write(bytes(4096))
    old, _ = host.entry(tdr, gpa, level)
    before = host.snapshot()
    status, args = host.call(leaf.replace("_", "."), rcx=operand, rdx=td, r8=page, r9=source)
    assert status == expected(leaf, state, running=running)
    new, _ = host.entry(tdr, gpa, level)
    if status and leaf != "TDH_MR_EXTEND":
        assert host.snapshot() == before
        assert args.rdx == level | sept.ARCH_STATE[state] << 8
    elif status == 0 and state in sept.TRANSITIONS.get(leaf, {}):
        assert new & sept.STATE_MASK == sept.TRANSITIONS[leaf][state]
    else:
        assert new == old or leaf == "TDH_MEM_PAGE_DEMOTE"


BY_HAND = [
    (leaf, state)
    for leaf, state in ALL
    if state not in REACHABLE and leaf not in MIGRATION and leaf != "TDH_EXPORT_UNBLOCKW"
]
"""States of a migration; leaf functions whose effect is not one of it."""


def put(world: Any, tdr: int, state: Any, level: int) -> Any:
    """A GPA whose entry at ``level``, that of a pending page, is given this state by hand."""
    host = world[0]
    gpa = drive(world, tdr, S.PENDING, level)
    index, entry, _ = host.module.tds[tdr].sept.walk(gpa, level)
    rest = 0 if state is S.REMOVED else entry & (sept.HPA_MASK | sept.WRITE_BACK) | sept._PERMISSIONS[state]
    host.memory.qwords[index] = sept.SUPPRESS_VE | rest | state
    return gpa


@pytest.mark.parametrize(("leaf", "state"), [pair for pair in BY_HAND if pair[0] in LEAVES])
def test_host_pair_by_hand(world: Any, leaf: str, state: Any) -> None:
    host, building, *_ = world
    level = 1 if leaf in FROM_2M else 0
    gpa = put(world, building, state, level)
    page, source = host.page(), host.write(bytes(4096))
    before = host.snapshot()
    registers = {"rcx": gpa | (0 if leaf in ANY_LEAF else level), "rdx": building, "r8": page, "r9": source}
    status, args = host.call(leaf.replace("_", "."), **registers)
    assert status == expected(leaf, state, running=False)
    new, _ = host.entry(building, gpa, level)
    if status:
        assert host.snapshot() == before
        hidden = leaf == "TDH_MR_EXTEND" and sept._PERMISSIONS[state]
        shown = 0 if hidden else level | sept.ARCH_STATE[state] << 8
        assert args.rdx == shown
    else:
        assert new & sept.STATE_MASK == sept.TRANSITIONS.get(leaf, {}).get(state, state)


@pytest.mark.parametrize(("leaf", "state"), [pair for pair in PAIRS + BY_HAND if pair[0] in GUEST_LEAVES])
def test_guest_pair(world: Any, leaf: str, state: Any, call: Callable[..., GuestStep]) -> None:
    host, _, tdr, tdvpr, context, _ = world
    level = 1 if state in NON_LEAF else 0
    gpa = (drive if state in REACHABLE else put)(world, tdr, state, level)
    number = {"TDG_MEM_PAGE_ACCEPT": 6, "TDG_MEM_PAGE_ATTR_RD": 23, "TDG_MEM_PAGE_ATTR_WR": 24}[leaf]
    old, _ = host.entry(tdr, gpa, level)
    context.script.clear()
    context.queue(call(number, rcx=gpa | (0 if leaf in ANY_LEAF else level), rdx=0, r8=0), 1)
    exit_status, args = host.enter(tdvpr)
    context.script.clear()
    status = context.gpr[0]
    new, _ = host.entry(tdr, gpa, level)
    if state in sept.ALLOWED[leaf]:
        assert (exit_status, status) == (1, 0)
        assert new & sept.STATE_MASK == sept.TRANSITIONS.get(leaf, {}).get(state, state)
        return
    assert new == old
    if (state in NON_LEAF or state is S.REMOVED) and leaf != "TDG_MEM_PAGE_ATTR_RD":
        assert (exit_status, status) == (1, StatusCode.PAGE_SIZE_MISMATCH | level)
    elif state in sept.GUEST_ACCESSIBLE and leaf == "TDG_MEM_PAGE_ACCEPT":
        assert (exit_status, status) == (1, StatusCode.PAGE_ALREADY_ACCEPTED | level)
    else:
        assert exit_status == 48  # an EPT violation, told to the host
        assert args.r8 == gpa
        assert args.rdx & 0xF == {"TDG_MEM_PAGE_ACCEPT": 1, "TDG_MEM_PAGE_ATTR_RD": 0, "TDG_MEM_PAGE_ATTR_WR": 5}[leaf]


def test_all_pairs_are_accounted_for(report: Callable[..., None]) -> None:
    reasons: dict[str, int] = {}
    for pair in ALL:
        reason = out_of_reach(*pair)
        if reason is not None:
            reasons[reason] = reasons.get(reason, 0) + 1
    assert len(PAIRS) + sum(reasons.values()) == len(ALL) == len(sept.ALLOWED) * len(SeptState)
    report(
        f"(leaf, Secure-EPT state): {len(PAIRS)} of {len(ALL)} pairs driven by SEAMCALLs; not reachable:",
        *(f"  {count}: {reason}" for reason, count in reasons.items()),
        f"  (of these {len(BY_HAND)} with an entry that was written by hand)",
    )
