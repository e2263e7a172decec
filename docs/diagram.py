# SPDX-License-Identifier: GPL-2.0-or-later
"""Diagrams as SVG: of state machines, and of the floors of the house.

In the diagram of a state machine each state is a vertical line with its name on top, as in a sequence diagram, and each
transition a labelled arrow from one line to another, on a row of its own. The layout follows from the order of states
and transitions alone, so that it needs no tool and nothing can overlap. Colours are those of the page's text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from statistics import mean

Move = tuple[str, str, str]
"""(state before, state after, event)."""

_CHARACTER = 7.3  # pixels of one character in the font of 12 px
_PADDING = 24
_ROW, _HEAD, _MARGIN = 26, 40, 12
_INK = 'stroke="currentColor" fill="none"'


def ladder(title: str, states: Sequence[str], moves: Sequence[Move]) -> str:
    """Return an SVG element of the machine; a transition to the same state is an arrow that turns back."""
    widths = _column_widths(states, moves)
    lefts = [_MARGIN + sum(widths[:number]) for number in range(len(widths) + 1)]
    at = {state: left + width / 2 for state, left, width in zip(states, lefts, widths, strict=False)}
    height = _HEAD + _ROW * len(moves) + _MARGIN
    parts = [_column(state, at[state], width, height) for state, width in zip(states, widths, strict=True)]
    for row, (old, new, event) in enumerate(moves):
        parts.append(_arrow(at[old], at[new], _HEAD + _ROW * (row + 0.75), event))
    width = lefts[-1] + _MARGIN
    size = f'width="{width:.0f}" height="{height:.0f}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size} style="font: 12px monospace; color: inherit">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _column_widths(states: Sequence[str], moves: Sequence[Move]) -> list[float]:
    """Make columns wide enough for their names, and for each label between the lines that its arrow joins."""
    widths = [_CHARACTER * len(state) + _PADDING for state in states]
    for old, new, event in moves:
        first, last = sorted((states.index(old), states.index(new)))
        needed = _CHARACTER * len(event) + _PADDING
        if first == last:  # the label stands to the right of the line
            widths[first] = max(widths[first], 2 * needed)
            continue
        between = sum(widths[first : last + 1]) - (widths[first] + widths[last]) / 2
        for number in range(first, last + 1):
            half = 0.5 if number in (first, last) else 1.0
            widths[number] += max(needed - between, 0) * half / (last - first) / (0.5 if half == 0.5 else 1.0)
    return widths


def _column(state: str, x: float, width: float, height: float) -> str:
    return (
        f'<rect x="{x - width / 2 + 5:.1f}" y="6" width="{width - 10:.1f}" height="22" rx="4" {_INK}/>'
        f'<text x="{x:.1f}" y="21" text-anchor="middle" fill="currentColor">{escape(state)}</text>'
        f'<line x1="{x:.1f}" y1="28" x2="{x:.1f}" y2="{height - 6:.1f}" stroke-dasharray="2 4" {_INK}/>'
    )


def _arrow(start: float, end: float, y: float, label: str) -> str:
    if start == end:
        side = 1
        line = f'<path d="M {start:.1f} {y - 8:.1f} h 14 v 8 h -9" {_INK}/>'
        text = f'<text x="{start + 20:.1f}" y="{y - 1:.1f}" fill="currentColor">{escape(label)}</text>'
    else:
        side = 1 if start > end else -1
        line = f'<line x1="{start:.1f}" y1="{y:.1f}" x2="{end + 5 * side:.1f}" y2="{y:.1f}" {_INK}/>'
        where = f'x="{(start + end) / 2:.1f}" y="{y - 4:.1f}" text-anchor="middle"'
        text = f'<text {where} fill="currentColor">{escape(label)}</text>'
    return f'{line}<path d="M {end:.1f} {y:.1f} l {7 * side} -4 v 8 z" fill="currentColor"/>{text}'


# --- floors -----------------------------------------------------------------------------------------------------------

_BOX_HEIGHT, _LEVEL, _GAP = 26, 72, 22


def floors(title: str, arrows: Mapping[str, Collection[str]]) -> str:
    """Return an SVG document of floors: each above all that it may import, with an arrow to what no other one leads to.

    An arrow that passes a level has a place of its own there, between the boxes.
    """
    levels: dict[str, int] = {}
    while len(levels) < len(arrows):
        for floor, below in arrows.items():
            if floor not in levels and all(other in levels for other in below):
                levels[floor] = 1 + max((levels[other] for other in below), default=-1)
    rows: list[list[str]] = [[floor for floor in arrows if levels[floor] == n] for n in range(max(levels.values()) + 1)]
    paths = []
    for floor, other in _direct(arrows):
        between = [f"{floor}>{other}@{level}" for level in range(levels[floor] - 1, levels[other], -1)]
        for number, name in enumerate(between, 1):
            rows[levels[floor] - number].append(name)
        paths.append([floor, *between, other])
    at = _columns(rows, paths)
    width = max(at[name] + _width(name) / 2 for row in rows for name in row) + _MARGIN
    height = _LEVEL * len(rows)
    parts = [f'<rect width="{width:.0f}" height="{height}" fill="white"/>']
    level = {name: number for number, row in enumerate(rows) for name in row}
    tops = {name: height - _LEVEL * (number + 1) + _MARGIN for name, number in level.items()}
    for path in paths:
        points = [(at[path[0]], tops[path[0]] + _BOX_HEIGHT)]
        for name in path[1:]:
            points += [(at[name], tops[name]), (at[name], tops[name] + _BOX_HEIGHT)]
        line = " ".join(f"{x:.0f},{y:.0f}" for x, y in points[:-1])
        x, y = points[-2]
        parts.append(f'<polyline points="{line}" fill="none" stroke="#777"/>')
        parts.append(f'<path d="M {x:.0f} {y:.0f} l -4 -7 h 8 z"/>')
    for name in arrows:
        left, wide = at[name] - _width(name) / 2, _width(name)
        box = f'x="{left:.0f}" y="{tops[name]}" width="{wide:.0f}" height="{_BOX_HEIGHT}" rx="4"'
        parts.append(f'<rect {box} fill="#eef3fa" stroke="#345"/>')
        parts.append(f'<text x="{at[name]:.0f}" y="{tops[name] + 17}" text-anchor="middle">{escape(name)}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" style="font: 12px monospace">\n'
        f"<title>{escape(title)}</title>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _direct(arrows: Mapping[str, Collection[str]]) -> list[tuple[str, str]]:
    """Return the arrows without those that a way through another floor implies."""
    reach: dict[str, set[str]] = {}

    def below(floor: str) -> set[str]:
        if floor not in reach:
            reach[floor] = set(arrows[floor]).union(*(below(other) for other in arrows[floor]))
        return reach[floor]

    return [
        (floor, other)
        for floor, others in arrows.items()
        for other in sorted(others)
        if not any(other in below(third) for third in others if third != other)
    ]


def _width(name: str) -> float:
    return 10 if ">" in name else _CHARACTER * len(name) + _PADDING


def _columns(rows: list[list[str]], paths: list[list[str]]) -> dict[str, float]:
    """Return an x for each name: rows are ordered, again and again, by where the neighbours of their names are."""
    neighbours: dict[str, list[str]] = {}
    for path in paths:
        for upper, lower in pairwise(path):
            neighbours.setdefault(upper, []).append(lower)
            neighbours.setdefault(lower, []).append(upper)

    def spread() -> dict[str, float]:
        widths = [sum(_width(name) + _GAP for name in row) for row in rows]
        at = {}
        for row, width in zip(rows, widths, strict=True):
            x = _MARGIN + (max(widths) - width) / 2
            for name in row:
                at[name] = x + _width(name) / 2
                x += _width(name) + _GAP
        return at

    for _ in range(12):
        for row in [*rows, *reversed(rows)]:
            at = spread()
            row.sort(key=lambda name: mean([at[other] for other in neighbours.get(name, [name])]))
    return spread()


def floors_of_the_page(page: str) -> dict[str, set[str]]:
    """Return the page's table of arrows: floor -> what it may import, a dotted name for one module of a floor."""
    section = page.partition("### The arrows")[2].partition("\n## ")[0]
    arrows: dict[str, set[str]] = {}
    for names, below in re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|$", section, re.MULTILINE):
        allowed = set(re.findall(r"`([\w.]+)`", below))
        for name in re.findall(r"`(\w+)`", names):
            arrows[name] = set(arrows) - allowed - {name} if below.startswith("everything") else allowed
    return arrows


def picture(page: str) -> str:
    """Return the picture of the page's table, in which a module of a floor counts as the floor."""
    arrows = floors_of_the_page(page)
    return floors("The floors", {name: {other.split(".")[0] for other in below} for name, below in arrows.items()})


def main() -> None:
    """Draw ``floors.svg`` from the table in ``architecture.md``."""
    here = Path(__file__).parent
    (here / "floors.svg").write_text(picture((here / "architecture.md").read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
