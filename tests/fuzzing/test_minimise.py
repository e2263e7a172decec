# SPDX-License-Identifier: GPL-2.0-or-later
"""Of many lies those stay that are needed, in few runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

from swtdx.fuzzing.minimise import minimised

LIES = [f"lie {number}" for number in range(40)]


def test_every_pair_is_found() -> None:
    for pair in combinations(LIES[::7], 2):
        asked = 0

        def holds(lies: Sequence[str], pair: tuple[str, ...] = pair) -> bool:
            nonlocal asked
            asked += 1
            return set(pair) <= set(lies)

        assert minimised(LIES, holds) == pair
        assert asked <= 150


def test_what_cannot_be_made_shorter_stays() -> None:
    assert minimised(LIES, lambda lies: len(lies) == len(LIES)) == tuple(LIES)
    assert minimised(LIES[:1], lambda lies: False) == tuple(LIES[:1])


def test_it_ends_when_it_has_asked_often_enough() -> None:
    asked = 0

    def holds(lies: Sequence[str]) -> bool:
        nonlocal asked
        asked += 1
        return len(lies) >= 39

    minimised(LIES, holds, 20)
    assert asked <= 20
