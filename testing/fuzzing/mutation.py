# SPDX-License-Identifier: GPL-2.0-or-later
"""Good inputs damaged, the way that finds mistakes in parsers: sizes, counts and offsets changed, pieces cut and moved.

A seed knows where its structure is (`Seed.hot`), so that most of the damage goes where a parser looks and not into
megabytes of code.  The same random generator gives the same case.
"""

from __future__ import annotations

from dataclasses import dataclass
from json import dumps, loads
from random import Random
from typing import Any

_VALUES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0xFFF, 0x1000, 0x7FFF, 0xFFFF, 0x1_0000, 0x10_0000, 0x7FFF_FFFF,
           0x8000_0000, 0xFFFF_F000, 0xFFFF_FFFF, 1 << 32, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 4096,
           (1 << 64) - 1)  # fmt: skip
_SIZES = (1, 2, 4, 8)
_MOST_CHANGES = 6
_LONGEST_PIECE = 64


@dataclass(frozen=True)
class Seed:
    """An input that parses. ``hot``: (start, end) where its structure is; empty: all of it."""

    name: str
    data: bytes
    hot: tuple[tuple[int, int], ...] = ()
    json: bool = False
    """It is JSON, and is better damaged in its values than in its letters."""


def mutated(seed: Seed, others: tuple[Seed, ...], random: Random) -> bytes:
    """``seed`` with one to six changes; once in a while it is spliced with another of its kind."""
    if seed.json and random.random() < 0.8:
        return dumps(_with_other_values(loads(seed.data), random)).encode()
    data = bytearray(seed.data)
    for _ in range(random.randint(1, _MOST_CHANGES)):
        at = _position(seed, len(data), random)
        change = random.randrange(10)
        if change < 3:
            data[at : at + 1] = bytes([random.randrange(256)])
        elif change < 7:
            size = random.choice(_SIZES)
            at -= at % size if random.random() < 0.7 else 0
            value = random.choice(_VALUES) + random.choice((-1, 0, 0, 1))
            written = (value & ((1 << 8 * size) - 1)).to_bytes(size, random.choice(("little", "little", "big")))
            data[at : at + size] = written[: len(data) - at]
        elif change == 7:
            del data[at : at + random.randint(1, _LONGEST_PIECE)]
        elif change == 8:
            start = _position(seed, len(data), random)
            data[at:at] = data[start : start + random.randint(1, _LONGEST_PIECE)]
        else:
            data = _cut(data, at, others, random)
    return bytes(data)


def _with_other_values(value: Any, random: Random) -> Any:
    """The same JSON, in which a member here and there is gone or something else."""
    if random.random() < 0.04:
        return random.choice((None, True, -1, 1 << 70, 0.5, "", "zz", "ab" * 48, [], {}, random.choice(_VALUES)))
    if isinstance(value, dict):
        kept = {name: each for name, each in value.items() if random.random() > 0.02}
        return {name: _with_other_values(each, random) for name, each in kept.items()}
    if isinstance(value, list):
        kept_items = [each for each in value if random.random() > 0.02]
        return [_with_other_values(each, random) for each in kept_items]
    if isinstance(value, int):
        return value if random.random() > 0.1 else random.choice(_VALUES)
    return value


def _position(seed: Seed, length: int, random: Random) -> int:
    if seed.hot and random.random() < 0.9:
        start, end = random.choice(seed.hot)
        return min(random.randrange(start, end), length)
    return random.randrange(length + 1)


def _cut(data: bytearray, at: int, others: tuple[Seed, ...], random: Random) -> bytearray:
    if random.random() < 0.5:
        return data[:at]
    other = random.choice(others).data
    return data[:at] + bytearray(other[random.randrange(len(other) + 1) :])
