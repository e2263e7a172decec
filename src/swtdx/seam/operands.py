# SPDX-License-Identifier: GPL-2.0-or-later
"""Operand checks that many leaf functions share, other than those of physical pages (`pamt`) and states (`td`)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import sept
from swtdx.seam.hardware import Platform
from swtdx.seam.status import Operand, Status, StatusCode

if TYPE_CHECKING:
    from swtdx.seam.pamt import Pamt
    from swtdx.seam.td import Td

LEVEL_MASK = 7
GPA_RESERVED = 0xFFF0_0000_0000_0FF8
"""RCX bits of a GPA operand that must be zero: 63:52 and 11:3."""


class HostAddresses:
    """The rule for buffers that the host shares with the module."""

    def __init__(self, platform: Platform) -> None:
        self._hkid_shift = platform.physical_address_bits - platform.keyid_bits
        self._first_private = platform.first_private_hkid
        self._limit = 1 << platform.physical_address_bits

    @property
    def hkid_shift(self) -> int:
        """First HPA bit of the KeyID field."""
        return self._hkid_shift

    def split(self, pa: int) -> tuple[int, int]:
        """Return (HPA without KeyID, KeyID)."""
        return pa & ((1 << self._hkid_shift) - 1), (pa & (self._limit - 1)) >> self._hkid_shift

    def is_shared(self, hpa: int, alignment: int) -> bool:
        """Return whether an HPA is aligned, inside the physical address width, and has a shared KeyID."""
        return not (hpa & (alignment - 1) or hpa >= self._limit or hpa >> self._hkid_shift >= self._first_private)

    def shared(self, hpa: int, alignment: int, operand: Operand) -> int:
        """Check a shared HPA operand; raises OPERAND_INVALID. SEAMRR does not exist here, so nothing overlaps it."""
        if hpa & (alignment - 1) or hpa >= self._limit or hpa >> self._hkid_shift >= self._first_private:
            raise Status(StatusCode.OPERAND_INVALID, operand)
        return hpa


def gpa_and_level(operand: int, lowest: int, highest: int) -> tuple[int, int]:
    """Split RCX into GPA and level, GPA(lowest, highest); raises OPERAND_INVALID|RCX."""
    level = operand & LEVEL_MASK
    gpa = operand & ~LEVEL_MASK
    if operand & GPA_RESERVED or not lowest <= level <= highest or gpa & ((1 << (12 + 9 * level)) - 1):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    return gpa, level


def walk(td: Td, gpa: int, level: int, *, exclusive: bool = False) -> tuple[int, int]:
    """Return the Secure-EPT entry of a private GPA at ``level`` as (index, entry), WALK.

    Raises OPERAND_INVALID|RCX for a GPA that is not private, OPERAND_BUSY|SEPT_TREE, EPT_WALK_FAILED where the tables
    end early. ``exclusive``: the leaf function takes the tree's lock exclusively, so that sharers are in its way, too.
    """
    if gpa >= td.gpa_limit:
        raise td.cannot_walk(gpa)
    if exclusive:
        td.check_lock(Operand.SEPT_TREE)
    index, entry, reached = td.sept.walk(gpa, level)
    if reached != level:
        raise walk_failed(td, entry, reached)
    return index, entry


def walk_failed(td: Td, entry: int, level: int) -> Status:
    """Return EPT_WALK_FAILED with the entry at which the walk stopped."""
    return Status(StatusCode.EPT_WALK_FAILED, Operand.RCX, **td.version.entry_info(entry, level))


def check_entry(td: Td, leaf: str, entry: int, level: int, index: int) -> int:
    """Check ENTRY(leaf): the entry is not locked, and ``tables/sept_transitions.json`` allows its state.

    Returns the entry, without the mark of a host that waited for it. Raises OPERAND_BUSY|RCX and
    EPT_ENTRY_STATE_INCORRECT, both with the entry; module 1.0 has other statuses.
    """
    if entry & sept.LOCK_OR_PRIORITY:
        if entry & sept.ENTRY_LOCK:
            raise contended(td, entry, level, index)
        entry &= ~sept.HOST_PRIORITY
        td.sept.qwords[index] = entry
    td.version.check_entry(leaf, entry, level)
    return entry


def check_state(td: Td, leaf: str, entry: int, level: int) -> None:
    """Check the state of an entry that needs no lock: the leaf function has the TD for itself."""
    td.version.check_entry(leaf, entry, level)


def contended(td: Td, entry: int, level: int, index: int) -> Status:
    """Return OPERAND_BUSY|RCX with the entry, and mark it: the host is to have its lock before any guest."""
    td.sept.qwords[index] = entry | sept.HOST_PRIORITY
    return sept.locked(entry, level)


def check_leaf(td: Td, entry: int, level: int) -> None:
    """Check that the entry at which a walk to level 0 ended maps a page, of any size, that can be accessed.

    Raises EPT_ENTRY_NOT_PRESENT with the entry at which the walk ended; in module 1.0 EPT_WALK_FAILED where it ended
    early, and EPT_ENTRY_NOT_PRESENT for a page that the guest cannot use.
    """
    if td.version.entry_states:
        if not entry & sept.LEAF or not entry & sept.READ_WRITE_EXECUTE:
            raise Status(StatusCode.EPT_ENTRY_NOT_PRESENT, Operand.RCX, **sept.extended_info(entry, level))
    elif level and not entry & sept.LEAF:
        raise walk_failed(td, entry, level)
    elif entry & sept.STATE_MASK != sept.SeptState.MAPPED:
        raise Status(StatusCode.EPT_ENTRY_NOT_PRESENT, Operand.RCX, **td.version.entry_info(entry, level))


def check_tracked(td: Td, pamt: Pamt, entry: int, level: int, pamt_index: int) -> None:
    """Check TRACKED: a mapping to be removed is blocked, and every vCPU has exited since.

    Raises GPA_RANGE_NOT_BLOCKED (with the entry) or TLB_TRACKING_NOT_DONE; neither before the TD can run.
    """
    state = entry & sept.STATE_MASK
    if not td.tlb_tracking or state not in sept.TLB_TRACKING_REQUIRED:
        return
    if state not in sept.ANY_BLOCKED:
        raise Status(StatusCode.GPA_RANGE_NOT_BLOCKED, Operand.RCX, **sept.extended_info(entry, level))
    if not td.tracked(pamt.epoch_at(pamt_index)):
        raise Status(StatusCode.TLB_TRACKING_NOT_DONE, Operand.RCX)
