# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory attributes of guest frames (kvm->mem_attr_array, KVM_SET_MEMORY_ATTRIBUTES).

The kernel keeps an xarray with an entry per gfn. Here only the runs of frames with non-zero attributes are kept, sorted
and disjoint, so that making a whole VM private is one entry, and a lookup is a binary search.

>>> attributes = MemoryAttributes()
>>> attributes.store(0x100, 0x300, 8)
>>> attributes.store(0x180, 0x200, 0)
>>> attributes.load(0x17f), attributes.load(0x180), attributes.load(0x200)
(8, 0, 8)
>>> attributes.range_has(0x100, 0x200, 8), attributes.range_has(0x100, 0x180, 8)
(False, True)
"""

from __future__ import annotations

from bisect import bisect_right


class MemoryAttributes:
    """Map of gfn to attributes; ranges are [start, end) in frames."""

    __slots__ = ("__dict__", "__weakref__", "generation")  # PageRun reads them

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._values: list[int] = []
        self.generation = 0
        """Another number after each change."""

    def load(self, gfn: int) -> int:
        """Return attributes of ``gfn``; 0 if none were set."""
        position = bisect_right(self._starts, gfn) - 1
        if position >= 0 and gfn < self._ends[position]:
            return self._values[position]
        return 0

    def range_has(self, start: int, end: int, value: int) -> bool:
        """Return whether every frame of the range has exactly ``value`` (kvm_range_has_memory_attributes)."""
        position = bisect_right(self._starts, start) - 1
        if not value:
            if position >= 0 and self._ends[position] > start:
                return False
            return position + 1 >= len(self._starts) or self._starts[position + 1] >= end
        while start < end:
            if position < 0 or not self._starts[position] <= start < self._ends[position]:
                return False
            if self._values[position] != value:
                return False
            start = self._ends[position]
            position += 1
            if position == len(self._starts):
                return start >= end
        return True

    def store(self, start: int, end: int, value: int) -> None:
        """Give every frame of the range ``value``."""
        self.generation += 1
        starts, ends, values = self._starts, self._ends, self._values
        first = bisect_right(starts, start) - 1
        if first < 0 or ends[first] < start:  # a run that merely touches may merge
            first += 1
        last = bisect_right(starts, end)
        pieces: list[tuple[int, int, int]] = []
        if first < last and starts[first] < start:
            pieces.append((starts[first], start, values[first]))
        if value:
            pieces.append((start, end, value))
        if first < last and ends[last - 1] > end:
            pieces.append((max(end, starts[last - 1]), ends[last - 1], values[last - 1]))
        merged: list[tuple[int, int, int]] = []
        for piece in pieces:
            if merged and merged[-1][1] == piece[0] and merged[-1][2] == piece[2]:
                merged[-1] = (merged[-1][0], piece[1], piece[2])
            else:
                merged.append(piece)
        starts[first:last] = [piece[0] for piece in merged]
        ends[first:last] = [piece[1] for piece in merged]
        values[first:last] = [piece[2] for piece in merged]

    def __len__(self) -> int:
        return len(self._starts)
