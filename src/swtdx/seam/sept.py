# SPDX-License-Identifier: GPL-2.0-or-later
"""The Secure EPT: the tables that map a TD's private guest-physical memory.

They are real pages of 512 64-bit entries in physical memory, in the architectural encoding, because the processor
walks them. An entry:

=======  =============================================================================================
bits     meaning
=======  =============================================================================================
2:0      read, write, execute; all zero where the guest may not pass (pending, blocked, free)
5:3      memory type of a leaf (6, write-back)
6, 7     ignore PAT; leaf (set in 4 KiB leaves, too)
9        dirty since export
11, 52   entry lock, host-priority
51:12    HPA (a pending 2 MiB leaf keeps its acceptance progress in 20:12)
56:53    state: TDP pending, TDB blocked, TDBW blocked for writing, TDEX exported
63       suppress #VE, always set
=======  =============================================================================================

The state of an entry is coded in bits 56:53, 9, 7 and 6; FREE is 0x80E0000000000000, not 0. Which leaf function may
act on which state, and what becomes of it, is ``tables/sept_transitions.json``. `after` applies that table, and no leaf
function computes a state otherwise. Leaf functions that run for every page of a TD and always make the same entry take
it from the table once (`made_by`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from swtdx.seam.lifecycle import IllegalTransition
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tables import load

_TABLE = load("sept_transitions")

ENTRIES = 512
READ_WRITE_EXECUTE = 7
LEAF = 1 << 7
PRESENT_OR_LEAF = LEAF | READ_WRITE_EXECUTE
SUPPRESS_VE = 1 << 63
WRITE_BACK = 6 << 3
STATE_MASK = (0xF << 53) | (1 << 9) | LEAF | (1 << 6)
ENTRY_LOCK = 1 << 11
HOST_PRIORITY = 1 << 52
LOCK_OR_PRIORITY = ENTRY_LOCK | HOST_PRIORITY
HPA_MASK = 0x000F_FFFF_FFFF_F000
ACCEPT_COUNTER = 0x1F_F000
FREE = 0x80E0_0000_0000_0000
FREE_PAGE = FREE.to_bytes(8, "little") * ENTRIES
MAPPED_LEAF = SUPPRESS_VE | 0xC0 | WRITE_BACK | READ_WRITE_EXECUTE
PENDING_LEAF = SUPPRESS_VE | 1 << 56 | 0xC0 | WRITE_BACK
NL_MAPPED = SUPPRESS_VE | READ_WRITE_EXECUTE
NOWHERE = -1
ROOT_TDCX_INDEX = 3
"""Which TDCX page is the root of the Secure EPT."""


class SeptState(IntEnum):
    """Entry states; the value is the state code inside the entry (``entry & STATE_MASK``)."""

    FREE = 0xE0000000000000
    REMOVED = 0xC0000000000000
    NL_MAPPED = 0
    NL_BLOCKED = 0x80000000000000
    MAPPED = 0xC0
    BLOCKED = 0x800000000000C0
    BLOCKEDW = 0x400000000000C0
    EXPORTED_BLOCKEDW = 0x600000000000C0
    EXPORTED_DIRTY = 0x200000000002C0
    EXPORTED_DIRTY_BLOCKEDW = 0x600000000002C0
    PENDING = 0x1000000000000C0
    PENDING_BLOCKED = 0x1800000000000C0
    PENDING_BLOCKEDW = 0x1400000000000C0
    PENDING_EXPORTED_BLOCKEDW = 0x1600000000000C0
    PENDING_EXPORTED_DIRTY = 0x1200000000002C0
    PENDING_EXPORTED_DIRTY_BLOCKEDW = 0x1600000000002C0


def _having(flag: str) -> frozenset[int]:
    return frozenset(state for state in SeptState if flag in _TABLE["states"][state.name]["flags"])


ARCH_STATE: Mapping[int, int] = {state: _TABLE["states"][state.name]["arch_state"] for state in SeptState}
"""The state number reported to the host in bits 15:8 of extended error information."""
ALLOWED: Mapping[str, frozenset[int]] = {
    leaf: frozenset(SeptState[state] for state in states) for leaf, states in _TABLE["allowed"].items()
}
"""For each leaf function (``TDH_MEM_PAGE_AUG``) the entry states on which it may act."""
TRANSITIONS: Mapping[str, Mapping[int, int]] = {
    leaf: {SeptState[old]: SeptState[new] for old, new in moves.items()}
    for leaf, moves in _TABLE["transitions"].items()
}
CONDITIONAL_TRANSITIONS: Mapping[str, Mapping[str, Mapping[int, int]]] = {
    leaf: {
        condition: {SeptState[old]: SeptState[new] for old, new in moves.items()}
        for condition, moves in conditions.items()
    }
    for leaf, conditions in _TABLE["conditional_transitions"].items()
}
"""Transitions that depend on more than the entry: by leaf function and condition."""
FORMER_STATES = 7
"""The bits of a state number that module 1.0 has: its numbers are the same for tables and pages."""
TLB_TRACKING_REQUIRED = _having("tlb_tracking_required")
ANY_BLOCKED = _having("any_blocked")
ANY_PENDING = _having("any_pending")
GUEST_ACCEPTABLE = _having("any_pending_and_guest_acceptable")
GUEST_ACCESSIBLE = _having("guest_accessible_leaf")
GUEST_FULLY_ACCESSIBLE = _having("guest_fully_accessible_leaf")

_PERMISSIONS = {
    state: 0
    if state in ANY_PENDING | ANY_BLOCKED or state in (SeptState.FREE, SeptState.REMOVED)
    else READ_WRITE_EXECUTE & ~2
    if "any_blockedw" in _TABLE["states"][state.name]["flags"]
    else READ_WRITE_EXECUTE
    for state in SeptState
}


_EMPTY = frozenset((SeptState.FREE, SeptState.REMOVED))


def _move(old: int, new: int) -> tuple[int, int]:
    """Return (bits of an entry to keep, bits to set) for a change of state.

    An entry that stays a page, or stays a table, keeps its HPA and memory type. Any other change makes a new entry.
    """
    bits = SUPPRESS_VE | new | _PERMISSIONS[SeptState(new)]
    if new & LEAF and not (old & LEAF):
        return 0, bits | WRITE_BACK
    if new in _EMPTY or old in _EMPTY or (old ^ new) & LEAF:
        return 0, bits
    return ~(STATE_MASK | READ_WRITE_EXECUTE), bits


_MOVES = {
    (leaf, condition): {old: _move(old, new) for old, new in moves.items()}
    for leaf, conditions in [
        *((leaf, {"": moves}) for leaf, moves in TRANSITIONS.items()),
        *CONDITIONAL_TRANSITIONS.items(),
    ]
    for condition, moves in conditions.items()
}


def after(leaf: str, entry: int, condition: str = "") -> int:
    """Return the entry after the leaf function ``leaf`` (``TDH_MEM_RANGE_BLOCK``) has acted on it.

    A new entry lacks its HPA, which the caller adds. Raises IllegalTransition for a state without a transition.
    """
    try:
        kept, bits = _MOVES[leaf, condition][entry & STATE_MASK]
    except KeyError:
        raise IllegalTransition(f"Secure EPT: {leaf} {condition} on {entry:#x}") from None
    return entry & kept | bits


def made_by(leaf: str, condition: str = "") -> int:
    """Return the one entry that a leaf function makes of every entry it may act on, without its HPA.

    Raises ValueError for a leaf function that makes more than one, or keeps bits of the old entry.
    """
    made = set(_MOVES[leaf, condition].values())
    if len(made) != 1 or any(kept for kept, _ in made):
        raise ValueError(f"{leaf} {condition} does not make one and the same entry")
    return made.pop()[1]


def level_shift(level: int) -> int:
    """Return log2 of the bytes that an entry at ``level`` maps: 12, 21, 30, 39, 48."""
    return 12 + 9 * level


def extended_info(entry: int, level: int) -> dict[str, int]:
    """Return RCX and RDX of a Secure-EPT error: the entry as the host may see it, its level and state.

    The HPA of a non-leaf entry stays hidden; of a free entry only bit 63 shows.
    """
    state = entry & STATE_MASK
    if state in (SeptState.FREE, SeptState.REMOVED):
        shown = SUPPRESS_VE
    elif entry & LEAF:
        shown = entry & (HPA_MASK | SUPPRESS_VE | 0xFF)
    else:
        shown = entry & (READ_WRITE_EXECUTE | LEAF)
    return {"rcx": shown, "rdx": level | ARCH_STATE[state] << 8}


def former_info(entry: int, level: int) -> dict[str, int]:
    """Return RCX and RDX of a Secure-EPT error as module 1.0 gives them.

    Permissions show as 7 whatever they are, and the HPA of a table shows; there are five states, of pages and tables
    alike: FREE 0, BLOCKED 1, PENDING 2, PENDING_BLOCKED 3, PRESENT 4.
    """
    state = entry & STATE_MASK
    if state == SeptState.FREE:
        return {"rcx": SUPPRESS_VE | READ_WRITE_EXECUTE, "rdx": level}
    shown = entry & HPA_MASK | READ_WRITE_EXECUTE
    if entry & LEAF:
        shown |= SUPPRESS_VE | MAPPED_LEAF
        if state in ANY_PENDING and level:
            shown &= ~ACCEPT_COUNTER
    return {"rcx": shown, "rdx": level | (ARCH_STATE[state] & FORMER_STATES) << 8}


def wrong_state(entry: int, level: int) -> Status:
    """Return EPT_ENTRY_STATE_INCORRECT with the entry that was found."""
    return Status(StatusCode.EPT_ENTRY_STATE_INCORRECT, Operand.RCX, **extended_info(entry, level))


def locked(entry: int, level: int) -> Status:
    """Return OPERAND_BUSY with the entry, which another logical processor holds."""
    return Status(StatusCode.OPERAND_BUSY, Operand.RCX, **extended_info(entry, level))


class SecureEpt:
    """One TD's Secure EPT: a root page and the number of levels (4 or 5)."""

    __slots__ = ("levels", "qwords", "range", "root", "table")

    def __init__(self, qwords: memoryview, root: int, levels: int) -> None:
        self.qwords = qwords
        self.root = root
        self.levels = levels
        self.range, self.table = NOWHERE, 0

    def forget(self) -> None:
        """Forget the last table that a walk reached: a table is about to leave the tree.

        The counterpart of the processor's paging-structure cache, for walks that go to the same 2 MiB again and again.
        """
        self.range = NOWHERE

    def go_on(self, kept: None) -> None:
        """Walk from the root again: the tree is another one."""
        self.range = NOWHERE

    @property
    def eptp(self) -> int:
        """The EPT pointer: root, write-back, walk length less one in bits 5:3."""
        return self.root | (self.levels - 1) << 3 | 6

    def walk(self, gpa: int, level: int) -> tuple[int, int, int]:
        """Walk towards the entry of ``gpa`` at ``level``: (index in 64-bit words, entry, level where it ended).

        The walk goes down through present non-leaf entries and stops early at anything else.
        """
        qwords = self.qwords
        if gpa >> 21 == self.range and not level:
            known = self.table + (gpa >> 12 & 511)
            return known, qwords[known], 0
        reached = self.levels - 1
        shift = 12 + 9 * reached
        index: int = self.root >> 3 | gpa >> shift & 511
        entry: int = qwords[index]
        while reached > level and 0 < entry & PRESENT_OR_LEAF < LEAF:  # present, and no leaf
            reached -= 1
            shift -= 9
            index = (entry & HPA_MASK) >> 3 | gpa >> shift & 511
            entry = qwords[index]
        if not reached:
            self.range, self.table = gpa >> 21, index & ~511
        return index, entry, reached
