# SPDX-License-Identifier: GPL-2.0-or-later
"""The host of a machine that is run again and again: other lies each time, and a note of every call it is asked."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from swtdx.fuzzing.hostile import ACPI, AT_CALLS
from swtdx.lying.lie import CALLS, Lie, kind_of, table
from swtdx.lying.teller import Teller

Site = tuple[str, int]
"""A function of TDG.VP.VMCALL, and its operand."""
_MOST_SITES = 4096
_OFFERED = frozenset((ACPI, *AT_CALLS))
"""Where lies are made up without waiting until they could be told (`Host.offer`)."""
_CONSOLE = frozenset(("Instruction.IO", port) for port in range(0x3F8, 0x400))
"""Calls that do not count, and about which no lies are made up: by these a kernel says what is wrong."""


@dataclass
class Call:
    """What is known of the calls of one site: how many there were in a run, and how the last was answered."""

    count: int
    honest: dict[str, int]
    bits: dict[str, int]
    """Width of each register of the answer."""
    values: Sequence[int] = ()
    """What is likely to matter, where most of what could be drawn does not."""


class Host:
    """Stands where a `Teller` stands (`swtdx.lying.live`); `begin` each run.

    ``kinds``: what lies are made up about. Those of a case are told whatever their kind is.
    """

    def __init__(self, kinds: Iterable[str] = (CALLS,)) -> None:
        self.kinds = frozenset(kinds)
        self.sites: dict[Site, Call] = {}
        """All that was ever called, in the order in which it was first."""
        self.told: list[str] = []
        self.calls = 0
        self.called_at = 0.0
        self.asked: Callable[[], object] | None = None
        """As `swtdx.lying.live.Answers`."""
        self.rip = 0
        """Where the guest left last."""
        self._teller = Teller(())
        self._limit = 0
        self._enough: Callable[[], object] = lambda: None
        self._counts: dict[Site, int] = {}
        self._moments = 0
        self._at_calls: list[Call] = []

    def offer(self, function: str, operand: int, honest: dict[str, int], values: Sequence[int] = ()) -> None:
        """Have lies made up about what needs no call: about memory, or at any call."""
        row = table()["functions"][function]
        if row["kind"] not in self.kinds:
            return
        call = self.sites[function, operand] = Call(1, honest, dict(row["answers"]), values)
        if function in AT_CALLS:
            self._at_calls.append(call)

    def is_about(self, function: str) -> bool:
        """As `Teller.is_about`."""
        return self._teller.is_about(function)

    def begin(self, lies: Iterable[Lie], limit: int, enough: Callable[[], object]) -> None:
        """Tell these; ``enough`` is called at the ``limit``-th call, those to the serial port not counted."""
        self.told = []
        for each in self._at_calls:
            each.count = max(each.count, self._moments)
        self._moments = 0
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
        row = table()["functions"][function]
        site = function, registers.get(row.get("operand", ""), 0)
        kind = kind_of(function)
        if kind == CALLS:
            self.called_at = time.monotonic()
            self._moments += 1
            if site not in _CONSOLE:
                self._count()
        if kind in self.kinds and site not in _CONSOLE and function not in _OFFERED:
            self._note(site, row["answers"], registers, honest)
        return self._teller.lie(function, registers, honest)

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._limit:
            self._enough()

    def _note(self, site: Site, answers: dict[str, object], registers: dict[str, int], honest: dict[str, int]) -> None:
        count = self._counts[site] = self._counts.get(site, 0) + 1
        call = self.sites.get(site)
        if call is not None:
            call.count = max(call.count, count)
            call.honest = honest
        elif len(self.sites) < _MOST_SITES:
            self.sites[site] = Call(count, honest, _bits(answers, registers, honest))


def _bits(answers: dict[str, object], registers: dict[str, int], honest: dict[str, int]) -> dict[str, int]:
    """Return the width of each register that can be lied about. A write is answered by a status only."""
    widths = {"r10": 64} if "r10" in honest else {}
    is_write = "data" in answers.values() and registers.get("r13")
    for name, kind in answers.items():
        if name in honest and not is_write:
            widths[name] = int(str(kind)) if kind != "data" else (8 * min(registers.get("r12", 8), 8) or 64)
    return widths
