# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot in memory: the state of objects, and images of the memory that some of them have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self

from swtdx.snapshot.pages import Extent, Image, Region
from swtdx.snapshot.values import Decoder, Encoder, Misfit, Node

Times = tuple[int, list[int], list[int]]
"""Of what moment it is: time-stamp counter, the kernel's clock, the VMM's."""


class HasMemory(Protocol):
    """An object with memory that is kept page by page."""

    regions: dict[str, Region]


class Snapshot:
    """``times`` is for who took it: when that was."""

    def __init__(self, times: Times, trees: list[Node], images: dict[tuple[int, str], Image]) -> None:
        self.times = times
        self.trees = trees
        self.images = images
        """By the number of the object that has the memory, and its name there."""

    @classmethod
    def take(cls, roots: Sequence[object], times: Times) -> Self:
        """Keep everything that is reached from ``roots``. Nothing of it may change meanwhile. Raises NotKept."""
        encoder = Encoder()
        trees = [encoder.encode(root) for root in roots]
        images = {
            (number, name): region.keep()
            for number, owner in enumerate(encoder.objects)
            for name, region in getattr(owner, "regions", {}).items()
        }
        return cls(times, trees, images)

    def give_back(self, roots: Sequence[object]) -> None:
        """Put all of it back. Raises Misfit: then the machine is neither as it was nor as it should be."""
        decoder = Decoder()
        for tree, root in zip(self.trees, roots, strict=True):
            decoder.decode(tree, root)
        changed = [
            (decoder.objects[number], name, region, region.give_back(self.images[number, name]))
            for number, name, region in self._regions(decoder.objects)
        ]
        memory = [owner for owner, *_ in changed if hasattr(owner, "user_memory_changed")]
        for owner, name, region, extents in changed:
            if hasattr(owner, "changed"):
                owner.changed(name, extents)
                continue
            for offset, length in extents if extents is not None else [(0, region.length)]:
                for processor in memory:
                    processor.user_memory_changed(region.address + offset, length)

    def _regions(self, objects: dict[int, Any]) -> Iterator[tuple[int, str, Region]]:
        for number, name in self.images:
            region = getattr(objects.get(number), "regions", {}).get(name)
            if region is None:
                raise Misfit(f"there is no memory called {name!r:.40} here")
            if any(offset + length > region.length for offset, length in self.images[number, name].blocks):
                raise Misfit(f"the memory called {name!r:.40} is smaller here")
            yield number, name, region


def total(extents: list[Extent]) -> int:
    """Return how many bytes that is."""
    return sum(length for _, length in extents)
