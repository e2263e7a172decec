# SPDX-License-Identifier: GPL-2.0-or-later
"""The host of a machine that is run again and again: other lies each time, and a note of every call it is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from swtdx.lying.lie import Lie, table
from swtdx.lying.teller import Teller

Site = tuple[str, int]
"""A function of TDG.VP.VMCALL, and its operand."""
_MOST_SITES = 4096
_CONSOLE = frozenset(("Instruction.IO", port) for port in range(0x3F8, 0x400))
"""Calls that do not count, and about which no lies are made up: by these a kernel says what is wrong."""


@dataclass
class Call:
    """What is known of the calls of one site: how many there were in a run, and how the last was answered."""

    count: int
    honest: dict[str, int]
    bits: dict[str, int]
    """Width of each register of the answer."""


class Host:
    """Stands where a `Teller` stands (`swtdx.lying.live`); `begin` each run."""

    def __init__(self) -> None:
        self.sites: dict[Site, Call] = {}
        """All that was ever called, in the order in which it was first."""
        self.told: list[str] = []
        self.calls = 0
        self.called_at = 0.0
        self.rip = 0
        """Where the guest left last."""
        self._teller = Teller(())
        self._limit = 0
        self._enough: Callable[[], object] = lambda: None
        self._counts: dict[Site, int] = {}

    def begin(self, lies: Iterable[Lie], limit: int, enough: Callable[[], object]) -> None:
        """Tell these; ``enough`` is called at the ``limit``-th call, those to the serial port not counted."""
        self.told = []
        self._teller = Teller(lies, self.told.append)
        self._counts = {}
        self._limit, self._enough = limit, enough
        self.calls = 0
        self.called_at = time.monotonic()

    def left(self, rip: int) -> None:
        """Note where the guest has left."""
        self.rip = rip

    def lie(self, function: str, registers: dict[str, int], honest: dict[str, int]) -> dict[str, int]:
        """As `Teller.lie`."""
        self.called_at = time.monotonic()
        row = table()["functions"][function]
        site = function, registers.get(row.get("operand", ""), 0)
        if site in _CONSOLE:
            return self._teller.lie(function, registers, honest)
        self.calls += 1
        if self.calls == self._limit:
            self._enough()
        count = self._counts[site] = self._counts.get(site, 0) + 1
        call = self.sites.get(site)
        if call is not None:
            call.count = max(call.count, count)
            call.honest = honest
        elif len(self.sites) < _MOST_SITES:
            self.sites[site] = Call(count, honest, _bits(row["answers"], registers, honest))
        return self._teller.lie(function, registers, honest)


def _bits(answers: dict[str, object], registers: dict[str, int], honest: dict[str, int]) -> dict[str, int]:
    """Return the width of each register that can be lied about. A write is answered by a status only."""
    widths = {"r10": 64} if "r10" in honest else {}
    is_write = "data" in answers.values() and registers.get("r13")
    for name, kind in answers.items():
        if name in honest and not is_write:
            widths[name] = int(str(kind)) if kind != "data" else (8 * min(registers.get("r12", 8), 8) or 64)
    return widths
