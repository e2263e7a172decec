# SPDX-License-Identifier: GPL-2.0-or-later
"""Diagrams of state machines as SVG.

Each state is a vertical line with its name on top, as in a sequence diagram, and each transition a labelled arrow from
one line to another, on a row of its own. The layout follows from the order of states and transitions alone, so that it
needs no tool and nothing can overlap. Colours are those of the page's text.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

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
