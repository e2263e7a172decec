# SPDX-License-Identifier: GPL-2.0-or-later
"""Contention: locks that other processors hold, pending interrupts, a random-number generator without entropy.

Leaf functions are serialised here, and two of them never run at the same time. On the real module they do: a lock is
tried once, and OPERAND_BUSY (SYS_BUSY for the module's own lock) names the one that another logical processor holds.
Long leaf functions check for a pending interrupt and return INTERRUPTED_RESUMABLE or _RESTARTABLE. RDSEED and PCONFIG
can find no entropy. A host kernel must handle all of it; a test of one produces it from here::

    with module.contention.hold(Operand.SEPT_TREE, tdr):
        ...                                  # TDH.MEM.PAGE.AUG: OPERAND_BUSY|SEPT_TREE
    module.contention.interrupt(lp)          # the next long leaf function on that logical processor is interrupted

The locks of pages (TDR, TDVPR, TDCX, ...) are those in their metadata entries: `hold_page`.

Sources: TDX module 1.5.06, lock acquisition of the leaf functions. Host-priority locks, by which a host that failed
runs before the guest, are not reproduced: with leaf functions serialised no caller waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from swtdx.seam.status import Operand, Status, StatusCode

if TYPE_CHECKING:
    from swtdx.seam.pamt import Pamt
    from swtdx.seam.td import Td
    from swtdx.seam.vcpu import Vcpu

TD_LOCKS = frozenset(
    (
        *(Operand.OP_STATE, Operand.SEPT_TREE, Operand.TD_EPOCH, Operand.RTMR, Operand.METADATA_FIELD),
        *(Operand.MIG, Operand.SERVTD_BINDINGS),
    )
)
"""Locks that belong to one TD; the others belong to the module (WBCACHE to a package, TDMR to a region)."""


class Contention:
    """Locks, interrupts and entropy of one module, as another logical processor or the hardware left them."""

    def __init__(self, pamt: Pamt, tds: dict[int, Td], vcpus: dict[int, Vcpu]) -> None:
        self._pamt = pamt
        self._vcpus = vcpus
        self._tds = tds
        self._held: set[tuple[Operand, int]] = set()
        self._interrupted: set[int] = set()
        self.entropy = True
        """Whether RDSEED, RDRAND and PCONFIG find random bits; False: RND_NO_ENTROPY, KEY_GENERATION_FAILED."""

    @contextmanager
    def hold(self, lock: Operand, owner: int = 0, *, shared: bool = False) -> Iterator[None]:
        """Hold ``lock`` as another logical processor would.

        ``owner``: HPA of the TDR for the locks in TD_LOCKS, package number for WBCACHE, base of the region for TDMR.
        ``shared`` matters for a TD's locks: leaf functions that take them shared, too, do not mind.
        """
        if lock in TD_LOCKS:
            td = self._tds[owner]
            td.hold(lock, shared=shared)
            try:
                yield
            finally:
                td.let_go(lock)
        else:
            self._held.add((lock, owner))
            try:
                yield
            finally:
                self._held.discard((lock, owner))

    @contextmanager
    def hold_page(self, hpa: int, *, exclusive: bool = False) -> Iterator[None]:
        """Hold the metadata entry of a page (TDR, TDVPR, ...) as another logical processor would.

        While a TDR or TDVPR is held exclusively, no other caller finds the TD or virtual CPU behind it.
        """
        index, _ = self._pamt.index_of(hpa)
        hidden_td = self._tds.pop(hpa, None) if exclusive else None
        hidden = [key for key, vcpu in self._vcpus.items() if exclusive and (key == hpa or vcpu.td is hidden_td)]
        vcpus = {key: self._vcpus.pop(key) for key in hidden}
        lock, unlock = (
            (self._pamt.lock_exclusive, self._pamt.unlock_exclusive)
            if exclusive
            else (self._pamt.lock_shared, self._pamt.unlock_shared)
        )
        lock(index)
        try:
            yield
        finally:
            unlock(index)
            self._vcpus.update(vcpus)
            if hidden_td is not None:
                self._tds[hpa] = hidden_td

    def interrupt(self, lp: int) -> None:
        """Make an interrupt pending on a logical processor. The leaf function that notices it clears it."""
        self._interrupted.add(lp)

    # --- asked by leaf functions --------------------------------------------------------------------------------------

    def check(self, lock: Operand, owner: int = 0, *, named: Operand | None = None) -> None:
        """Try a lock of the module: raises OPERAND_BUSY with it (or with ``named``), SYS_BUSY for the module's own."""
        if (lock, owner) in self._held:
            if lock is Operand.SYS:
                raise Status(StatusCode.SYS_BUSY)
            raise Status(StatusCode.OPERAND_BUSY, lock if named is None else named)

    def check_entropy(self) -> None:
        """Execute RDSEED or RDRAND: raises RND_NO_ENTROPY."""
        if not self.entropy:
            raise Status(StatusCode.RND_NO_ENTROPY)

    def check_key_generation(self) -> None:
        """Execute PCONFIG with a random key: raises OPERAND_BUSY|KET, KEY_GENERATION_FAILED."""
        self.check(Operand.KET)
        if not self.entropy:
            raise Status(StatusCode.KEY_GENERATION_FAILED)

    def interrupted(self, lp: int) -> bool:
        """Return whether an interrupt is pending on the logical processor, and clear it."""
        if lp in self._interrupted:
            self._interrupted.discard(lp)
            return True
        return False
