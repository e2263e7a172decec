# SPDX-License-Identifier: GPL-2.0-or-later
"""What was found: each kind once, with where, how often, and an example."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from swtdx.lint.call import Vmcall, table
from swtdx.lint.rules import Hit

_MOST_PLACES = 64
"""Distinct instructions that are kept of one kind."""
_SHOWN_PLACES = 4
Symbol = Callable[[int], str]
"""Name of a guest address; empty for none."""


@dataclass
class Finding:
    """One kind."""

    rule: str
    what: str
    operand: int
    example: str
    instruction: str
    tdcall: int
    bits: int = 0
    count: int = 0
    places: Counter[int] = field(default_factory=Counter)
    """Addresses of the instructions: of the one that raised the #VE, or of the TDCALL."""

    @property
    def severity(self) -> str:
        """``leak`` or ``note``."""
        return str(table()["rules"][self.rule][0])

    def as_json(self, symbol: Symbol) -> dict[str, Any]:
        """Ready for JSON."""
        places = [
            {"address": f"{place:#x}", "symbol": symbol(place), "count": count}
            for place, count in self.places.most_common()
        ]
        return {
            "rule": self.rule,
            "severity": self.severity,
            "meaning": table()["rules"][self.rule][1],
            "what": self.what,
            "bits": f"{self.bits:#x}",
            "operand": f"{self.operand:#x}",
            "mask": f"{self.bits | self.operand:#x}",
            "count": self.count,
            "example": self.example,
            "instruction": self.instruction,
            "tdcall": f"{self.tdcall:#x}",
            "tdcall_symbol": symbol(self.tdcall),
            "places": places,
        }


class Findings:
    """Findings of one run or trace; `add` may be called from any thread. ``notes``: keep those, too."""

    def __init__(self, *, notes: bool = False) -> None:
        self.notes = notes
        self.calls = 0
        self.answers = 0
        """Instructions that were looked at with a host that set every bit."""
        self._found: dict[tuple[str, str], Finding] = {}
        self._lock = threading.Lock()
        self.system_call_entries: Counter[int] = Counter()
        """What MSR LSTAR was: where the guest's kernel is. See `entered_at`."""

    def add(self, call: Vmcall, hits: Iterable[Hit], instruction: Callable[[], str] = str) -> None:
        """Count a call and what is wrong with it; ``instruction`` is asked for its text when a kind is new."""
        place = call.cause.rip if call.cause is not None else call.rip
        for hit in hits:
            if table()["rules"][hit.rule][0] == "note" and not self.notes:
                continue
            with self._lock:
                found = self._found.get((hit.rule, hit.what))
                if found is None:
                    found = Finding(hit.rule, hit.what, hit.operand, hit.example, instruction(), call.rip)
                    self._found[hit.rule, hit.what] = found
                found.bits |= hit.bits
                found.count += 1
                if place in found.places or len(found.places) < _MOST_PLACES:
                    found.places[place] += 1

    def entered_at(self, address: int) -> None:
        """Note where the guest's kernel is entered."""
        if address in self.system_call_entries or len(self.system_call_entries) < _MOST_PLACES:
            self.system_call_entries[address] += 1

    def all(self) -> list[Finding]:
        """Return all kinds, leaks first, those that came often before others."""
        return sorted(self._found.values(), key=lambda found: (found.severity != "leak", -found.count, found.what))

    @property
    def leaks(self) -> int:
        """How many kinds are more than notes."""
        return sum(found.severity == "leak" for found in self._found.values())

    def as_json(self, symbol: Symbol) -> dict[str, Any]:
        """Ready for JSON."""
        found = [each.as_json(symbol) for each in self.all()]
        return {"calls": self.calls, "answers": self.answers, "leaks": self.leaks, "findings": found}

    def lines(self, symbol: Symbol) -> Iterator[str]:
        """Yield it for a person."""
        for found in self.all():
            yield f"{found.severity}: {found.what}: {table()['rules'][found.rule][1]}"
            if found.bits:
                right = f"; right is {found.operand:#x}" if found.operand else ""
                yield f"  bits   {found.bits:#x} (mask {found.bits | found.operand:#x}{right})"
            first = next(iter(found.places))
            text = f"{found.instruction} at " if found.instruction else ""
            yield f"  at     {text}{_named(first, symbol)}; TDCALL at {_named(found.tdcall, symbol)}"
            yield f"  e.g.   {found.example}"
            others = [
                f"{_named(place, symbol)} ({count:,})" for place, count in found.places.most_common(_SHOWN_PLACES)
            ]
            more = f", {len(found.places) - _SHOWN_PLACES} more" if len(found.places) > _SHOWN_PLACES else ""
            yield f"  count  {found.count:,}, from {', '.join(others)}{more}"
        looked = f"{self.calls:,} TDVMCALLs" + (
            f", {self.answers:,} answers with every bit set" if self.answers else ""
        )
        kinds = f"{self.leaks} kind{'s' if self.leaks != 1 else ''} of leak" if self._found else "nothing found"
        yield f"{looked}: {kinds}"


def _named(address: int, symbol: Symbol) -> str:
    name = symbol(address)
    return f"{address:#x} ({name})" if name else f"{address:#x}"
