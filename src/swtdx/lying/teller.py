# SPDX-License-Identifier: GPL-2.0-or-later
"""Which answer becomes a lie, and which: decided from the call alone, so that the same calls get the same lies.

A decision depends on the function, its operand, how many calls with both there were, and the seed: not on what other
calls or virtual CPUs do in between. A random answer is of the kind at which programs fail: nothing, everything, the
sign, one off, a bit turned, a small number, any number.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from random import Random
from typing import Any

from swtdx.lying.lie import ANY, CALLS, Lie, kind_of, statuses, table

_MOST_OPERANDS = 65536
"""Operands that are counted one by one: a guest chooses them."""


class Teller:
    """The policy of one machine. ``told`` is called with the text of each lie, ``left`` with each RIP at an exit."""

    def __init__(
        self,
        lies: Iterable[Lie],
        told: Callable[[str], object] = lambda text: None,
        left: Callable[[int], object] | None = None,
    ) -> None:
        self.left = left
        self.asked: Callable[[], object] | None = None
        """As `swtdx.lying.live.Answers`."""
        self.told = 0
        self._exact: dict[tuple[str, int, int], Lie] = {}
        """Those about one call, as a record of a run has many of."""
        self._others: list[Lie] = []
        for lie in lies:
            when = lie.when
            if lie.operand is not None and when.first == when.last and when.every == when.chance == 1:
                self._exact[lie.function, lie.operand, when.first] = lie
            else:
                self._others.append(lie)
        self._about = {each.function for each in (*self._exact.values(), *self._others)}
        self._tell = told
        self._calls = Counter[int]()
        self._nth = Counter[tuple[str, int]]()
        self._lock = threading.Lock()

    def is_about(self, function: str) -> bool:
        """Whether there is any lie about it."""
        return function in self._about

    def kept(self) -> object:
        """Return where it is, for `go_on`."""
        with self._lock:
            return self.told, self._calls.copy(), self._nth.copy()

    def go_on(self, kept: tuple[int, Counter[int], Counter[tuple[str, int]]]) -> None:
        """Decide from there again; what was told since is not taken back."""
        with self._lock:
            self.told, self._calls, self._nth = kept[0], kept[1].copy(), kept[2].copy()

    def lie(self, function: str, registers: dict[str, int], honest: dict[str, int]) -> dict[str, int]:
        """Return registers of the answer that become others.

        ``registers`` are those of the call, ``honest`` those of the answer that reach the guest. For lies of another
        kind they are what the table calls the operand, and the parts that can be others.
        """
        row = table()["functions"][function]
        operand = registers.get(row.get("operand", ""), 0)
        with self._lock:
            key = function, operand
            if key not in self._nth and len(self._nth) >= _MOST_OPERANDS:
                key = function, -1
            self._nth[key] += 1
            nth = self._nth[key]
            due = self._due(function, operand, nth)
            if due is None:
                return {}
            found = self._answer(*due, row, registers, honest)
            if found is None:
                return {}
            self.told += 1
            where = f" {operand:#x}" if "operand" in row else ""
            self._tell(f"{function}{where}: {found[0].upper()}={found[1]:#x} @{nth}")
            return {found[0]: found[1]}

    def _due(self, function: str, operand: int, nth: int) -> tuple[Lie, Random] | None:
        """Count the call for every lie that may be about it; return the first that is due."""
        due: tuple[Lie, Random] | None = None
        for number, lie in enumerate(self._others):
            if lie.function != function and (lie.function != ANY or kind_of(function) != CALLS):
                continue
            if lie.operand not in (None, operand):
                continue
            self._calls[number] += 1
            if due is None:
                random = Random(f"{lie.when.seed}/{function}/{operand:#x}/{nth}")
                due = (lie, random) if _due(lie, self._calls[number], random) else None
        exact = self._exact.get((function, operand, nth))
        return due if exact is None else (exact, Random(0))

    @staticmethod
    def _answer(
        lie: Lie, random: Random, row: dict[str, Any], registers: dict[str, int], honest: dict[str, int]
    ) -> tuple[str, int] | None:
        if lie.register is not None and lie.value is not None:
            return (lie.register, lie.value) if lie.register in honest else None
        bits = {"r10": 0, **row["answers"]}
        if "data" in bits.values() and registers.get("r13"):  # a write: only the result is an answer
            bits = {"r10": 0}
        names = [name for name in bits if name in honest]
        if not names:
            return None
        name = random.choice(names)
        if name == "r10":
            return name, random.choice([status for status in statuses().values() if status != honest[name]])
        kind = bits[name]
        width = 8 * min(registers.get("r12", 8), 8) if kind == "data" else int(kind)
        other = value(random, honest[name], width or 64)
        return (name, other) if other != honest[name] else None


def _due(lie: Lie, call: int, random: Random) -> bool:
    when = lie.when
    if call < when.first or (when.last is not None and call > when.last) or call % when.every:
        return False
    return when.chance >= 1 or random.random() < when.chance


def value(random: Random, honest: int, width: int) -> int:
    """Return a value of ``width`` bits at which programs fail."""
    mask = (1 << width) - 1
    return mask & random.choice(
        [
            0,
            mask,
            1 << width - 1,
            mask >> 1,
            honest + 1,
            honest - 1,
            honest ^ 1 << random.randrange(width),
            random.randrange(256),
            random.getrandbits(width),
        ]
    )
