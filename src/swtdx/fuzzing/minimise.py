# SPDX-License-Identifier: GPL-2.0-or-later
"""The few lies of many that are needed: delta debugging (Zeller, Hildebrandt 2002), for runs that differ a little."""

from __future__ import annotations

from collections.abc import Callable, Sequence

MOST_RUNS = 150


def minimised(lies: Sequence[str], holds: Callable[[Sequence[str]], bool], most: int = MOST_RUNS) -> tuple[str, ...]:
    """Return fewer lies for which ``holds`` is still true; it is asked ``most`` times at most."""
    kept = list(lies)
    runs, parts = 0, 2
    while len(kept) > 1 and runs < most:
        size = -(-len(kept) // parts)
        for start in range(0, len(kept), size):
            runs += 1
            without = kept[:start] + kept[start + size :]
            if without and holds(without):
                kept, parts = without, max(parts - 1, 2)
                break
            if runs >= most:
                return tuple(kept)
        else:
            if size == 1:
                break
            parts = min(parts * 2, len(kept))
    return tuple(kept)
