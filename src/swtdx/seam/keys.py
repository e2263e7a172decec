# SPDX-License-Identifier: GPL-2.0-or-later
"""The key ownership table (KOT): which private KeyID (HKID) belongs to a TD, and what stands between it and reuse.

A KeyID that a TD gave up may still tag lines in caches. It becomes free only after each package wrote its caches back:
the table keeps a bitmap of the packages that have not (TDH.PHYMEM.CACHE.WB clears them).
"""

from __future__ import annotations

from swtdx.seam.hardware import Platform
from swtdx.seam.lifecycle import HKID_STATE, Event, HkidState
from swtdx.seam.status import Operand, Status, StatusCode

HKID_RESERVED = ~0xFFFF


class KeyOwnershipTable:
    """State of every private HKID."""

    def __init__(self, platform: Platform) -> None:
        first = platform.first_private_hkid
        self.private = range(first, first + platform.tdx_keyids)
        self._state = dict.fromkeys(self.private, HKID_STATE.initial)
        self._write_back_pending = dict.fromkeys(self.private, 0)

    def check_private(self, hkid: int, operand: Operand) -> int:
        """Check an HKID operand: reserved bits zero, inside the private range; raises OPERAND_INVALID."""
        if hkid & HKID_RESERVED or hkid not in self.private:
            raise Status(StatusCode.OPERAND_INVALID, operand)
        return hkid

    def state(self, hkid: int) -> HkidState:
        """Return the HKID's state."""
        return self._state[hkid]

    def check_free(self, hkid: int) -> None:
        """Check that the HKID is free; raises HKID_NOT_FREE."""
        if self._state[hkid] is not HkidState.FREE:
            raise Status(StatusCode.HKID_NOT_FREE)

    def advance(self, hkid: int, event: Event) -> None:
        """Move the HKID's state; raises IllegalTransition."""
        self._state[hkid] = HKID_STATE.after(self._state[hkid], event)

    def flush(self, hkid: int, packages: int) -> None:
        """Take the HKID from its TD (TDH.MNG.VPFLUSHDONE): every package still has to write its caches back."""
        self.advance(hkid, Event.MNG_VPFLUSHDONE)
        self._write_back_pending[hkid] = (1 << packages) - 1

    def flushed(self) -> list[int]:
        """Return the HKIDs that wait for cache write-back."""
        return [hkid for hkid, state in self._state.items() if state is HkidState.FLUSHED]

    def written_back(self, hkid: int, package: int) -> None:
        """Note that a package wrote its caches back for the HKID."""
        self._write_back_pending[hkid] &= ~(1 << package)

    def write_back_pending(self, hkid: int) -> int:
        """Return a bitmap of the packages that have not written their caches back."""
        return self._write_back_pending[hkid]
