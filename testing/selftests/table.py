# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of tests and guests, for a terminal and as a page of the documentation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from testing.selftests.makefile import Test
from testing.selftests.outcome import Outcome, Status
from testing.selftests.reasons import reason_for

COLUMNS = (("VM", 64), ("VM", 32), ("TD", 64), ("TD", 32))
_REASON_LENGTH = 160


@dataclass(frozen=True)
class Cell:
    guest: str
    bits: int
    outcome: Outcome | None  # None: there is no such test


@dataclass(frozen=True)
class Row:
    name: str
    cells: tuple[Cell, ...]

    def notes(self) -> list[str]:
        """Return a sentence for each kind of outcome that is not a pass, with the guests it applies to."""
        found: dict[str, list[str]] = {}
        for cell in self.cells:
            if cell.outcome is None or cell.outcome.status is Status.PASS:
                continue
            why = reason_for(self.name, cell.outcome) or cell.outcome.reason or cell.outcome.status
            found.setdefault(why[:_REASON_LENGTH] if why == cell.outcome.reason else why, []).append(
                f"{cell.guest} {cell.bits}"
            )
        if len(found) == 1:
            return list(found)
        return [f"{', '.join(where)}: {why}" for why, where in found.items()]


def rows_of(tests: Sequence[Test], results: Mapping[tuple[str, str], Outcome], guests: Sequence[str]) -> list[Row]:
    """Return a row for each name; ``results`` is by (guest, program)."""
    rows = []
    for name, group in groupby(tests, key=lambda test: test.name):
        widths = {test.bits: test for test in group}
        cells = [
            Cell(guest, bits, results.get((guest, widths[bits].program)) if bits in widths else None)
            for guest, bits in COLUMNS
            if guest in guests
        ]
        rows.append(Row(name, tuple(cells)))
    return rows


def _shown(cell: Cell) -> str:
    return "-" if cell.outcome is None else str(cell.outcome.status)


def totals(rows: Sequence[Row]) -> str:
    """Return how many outcomes of each kind there are."""
    counted = Counter(cell.outcome.status for row in rows for cell in row.cells if cell.outcome is not None)
    return ", ".join(f"{counted[status]} {status}" for status in Status if counted[status]) or "no results"


def text(rows: Sequence[Row], guests: Sequence[str]) -> str:
    """Return the table for a terminal, with notes below the tests they belong to."""
    heads = [f"{guest} {bits}" for guest, bits in COLUMNS if guest in guests]
    width = max([len(row.name) for row in rows] + [4])
    lines = [f"{'test':<{width}}  " + "  ".join(f"{head:<9}" for head in heads).rstrip()]
    for row in rows:
        lines.append(f"{row.name:<{width}}  " + "  ".join(f"{_shown(cell):<9}" for cell in row.cells).rstrip())
        lines += [f"    {note}" for note in row.notes()]
    return "\n".join([*lines, "", totals(rows)])


def markdown(rows: Sequence[Row], guests: Sequence[str]) -> str:
    """Return the table as Markdown."""
    heads = [f"{guest} {bits}" for guest, bits in COLUMNS if guest in guests]
    lines = ["| test | " + " | ".join(heads) + " | reason |", "|---" * (len(heads) + 2) + "|"]
    for row in rows:
        note = "; ".join(row.notes()).replace("|", "\\|").replace("<", "&lt;")
        cells = " | ".join(_shown(cell) for cell in row.cells)
        lines.append(f"| `{row.name}` | {cells} | {note} |".replace("|  |", "| |"))
    return "\n".join([*lines, "", f"In all: {totals(rows)}."])
