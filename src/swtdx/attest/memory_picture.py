# SPDX-License-Identifier: GPL-2.0-or-later
"""A picture of guest-physical memory with a firmware's sections in it, as text or as SVG.

High addresses are on top, as in the manuals.  The picture is not to scale: between a page and gigabytes no scale shows
both.  It shows what lies where and next to what, and by its colour what of it goes into MRTD.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise
from xml.sax.saxutils import escape

from swtdx.attest.inspection import Inspection, in_mrtd, type_name
from swtdx.image.memory_map import IOAPIC_BASE, LOCAL_APIC_BASE
from swtdx.units import PAGE_SIZE


class Kind(Enum):
    """What a block of the picture is: (legend, fill colour)."""

    CONTENTS = ("added, contents measured", "#f2a65a")
    ADDRESSES = ("added, only addresses measured", "#fbe3c0")
    NOTHING = ("left to the firmware, not measured", "#d7e8d4")
    RAM = ("RAM, added when the guest accepts it", "#dbe7f5")
    FIRMWARE = ("firmware window, not used by a section", "#e8e8e8")
    DEVICE = ("device", "#e2d6ee")
    HOLE = ("nothing", "#ffffff")

    @property
    def legend(self) -> str:
        return self.value[0]

    @property
    def colour(self) -> str:
        return self.value[1]


_BY_MEASUREMENT = {"contents": Kind.CONTENTS, "addresses": Kind.ADDRESSES, "nothing": Kind.NOTHING}


@dataclass(frozen=True)
class Block:
    """A range of guest-physical addresses that is one thing; ``end`` is the first address after it."""

    start: int
    end: int
    label: str
    kind: Kind


def blocks(inspection: Inspection) -> list[Block]:
    """Guest memory cut into blocks, ascending, without gaps. Where sections overlap, the later is shown."""
    layout = inspection.layout
    ranges = [Block(start, start + length, "RAM", Kind.RAM) for start, length in layout.ram if length]
    ranges.append(Block(IOAPIC_BASE, IOAPIC_BASE + PAGE_SIZE, "I/O APIC", Kind.DEVICE))
    ranges.append(Block(LOCAL_APIC_BASE, LOCAL_APIC_BASE + PAGE_SIZE, "local APIC", Kind.DEVICE))
    window = layout.firmware_address
    if window >= 0 and inspection.size:
        ranges.append(Block(window, window + inspection.size, "firmware", Kind.FIRMWARE))
    ranges += [
        Block(row.address, row.address + row.memory_size, f"{index} {type_name(row)}", _BY_MEASUREMENT[in_mrtd(row)])
        for index, row in enumerate(inspection.rows)
        if row.memory_size
    ]
    edges = sorted({0, *(edge for block in ranges for edge in (block.start, block.end))})
    cut: list[Block] = []
    for start, end in pairwise(edges):
        on_top = [block for block in ranges if block.start <= start and end <= block.end]
        label, kind = (on_top[-1].label, on_top[-1].kind) if on_top else ("", Kind.HOLE)
        if cut and (cut[-1].label, cut[-1].kind) == (label, kind):
            cut[-1] = Block(cut[-1].start, end, label, kind)
        else:
            cut.append(Block(start, end, label, kind))
    return cut


def size_text(length: int) -> str:
    """A length in the largest unit that divides it.

    >>> [size_text(length) for length in (0x1000, 0x1e0000, 1 << 31, 100)]
    ['4 KiB', '1920 KiB', '2 GiB', '100 bytes']
    """
    for shift, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if length and not length % (1 << shift):
            return f"{length >> shift} {unit}"
    return f"{length} bytes"


def text_picture(inspection: Inspection) -> str:
    """The picture as lines of text; sections that are measured are marked with ``#``, those only added with ``+``."""
    marks = {Kind.CONTENTS: "#", Kind.ADDRESSES: "+", Kind.NOTHING: "-"}
    shown = blocks(inspection)
    label_width = max(12, *(len(block.label) for block in shown))
    size_width = max(8, *(len(size_text(block.end - block.start)) for block in shown))
    rule = "+" + "-" * (label_width + size_width + 7) + "+"
    lines = []
    for block in reversed(shown):
        mark = marks.get(block.kind, " ")
        lines.append(f"{block.end:>#18x} {rule}")
        size = size_text(block.end - block.start)
        lines.append(f"{'':18} | {mark} {block.label:<{label_width}} {size:>{size_width}} {mark} |")
    lines.append(f"{0:>#18x} {rule}")
    kinds = {block.kind for block in shown}
    lines += [f"{'':18} {mark} {kind.legend}" for kind, mark in marks.items() if kind in kinds]
    return "\n".join(lines)


_WIDTH = 760
_LEFT = 190  # of the blocks; addresses stand to the left of it
_BOX_WIDTH = 540
_TOP = 64
_ROW = 34
_HOLE_ROW = 24
_LEGEND_ROW = 22


def svg_picture(inspection: Inspection) -> str:
    """The picture as an SVG document, in light colours on white, with a legend of what occurs in it."""
    return "\n".join(_svg_lines(inspection)) + "\n"


def _svg_lines(inspection: Inspection) -> Iterator[str]:
    shown = list(reversed(blocks(inspection)))
    heights = [_HOLE_ROW if block.kind is Kind.HOLE else _ROW for block in shown]
    kinds = [kind for kind in Kind if any(block.kind is kind for block in shown)]
    bottom = _TOP + sum(heights)
    height = bottom + 40 + _LEGEND_ROW * len(kinds)
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="DejaVu Sans, Verdana, sans-serif" font-size="13" fill="#222">'
    )
    name = _printable(inspection.name)
    yield f"<title>Guest memory at the start of a TD from {name}</title>"
    yield f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>'
    yield f'<text x="20" y="26" font-size="16" font-weight="bold">{name}</text>'
    verdict = "can start as a TD" if inspection.can_start else f"cannot start as a TD ({inspection.broken[0].rule})"
    memory = size_text(inspection.layout.memory_size)
    yield f'<text x="20" y="46" fill="#555">{verdict}; guest memory {memory}; not to scale</text>'
    y = _TOP
    for block, row in zip(shown, heights, strict=True):
        yield _address(y, block.end)
        dash = ' stroke-dasharray="3 4"' if block.kind is Kind.HOLE else ""
        yield (
            f'<rect x="{_LEFT}" y="{y}" width="{_BOX_WIDTH}" height="{row}" fill="{block.kind.colour}" '
            f'stroke="#888"{dash}/>'
        )
        middle = y + row // 2 + 5
        if block.label:
            yield f'<text x="{_LEFT + 14}" y="{middle}">{_printable(block.label)}</text>'
        size = size_text(block.end - block.start)
        yield f'<text x="{_LEFT + _BOX_WIDTH - 14}" y="{middle}" text-anchor="end" fill="#555">{size}</text>'
        y += row
    yield _address(bottom, 0)
    for line, kind in enumerate(kinds):
        y = bottom + 24 + _LEGEND_ROW * line
        yield f'<rect x="{_LEFT}" y="{y}" width="16" height="14" fill="{kind.colour}" stroke="#888"/>'
        yield f'<text x="{_LEFT + 26}" y="{y + 12}">{kind.legend}</text>'
    yield "</svg>"


def _address(y: int, address: int) -> str:
    return f'<text x="{_LEFT - 10}" y="{y + 4}" text-anchor="end" font-family="monospace">{address:#x}</text>'


def _printable(text: str) -> str:
    """XML text: what XML cannot hold (control characters, surrogates of odd file names) becomes a question mark."""
    return escape("".join(each if each.isprintable() else "?" for each in text))
