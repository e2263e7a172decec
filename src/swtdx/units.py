# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes: as people write them (``512M``, ``2G``), and that of a page."""

from __future__ import annotations

PAGE_SIZE = 4096
"""Of the smallest page; here, for commands that need no other name of the architecture."""
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def readable_size(size: int) -> str:
    """Write a size with the largest unit that divides it.

    >>> readable_size(3 << 20), readable_size(4097)
    ('3M', '4097')
    """
    for unit in ("T", "G", "M", "K"):
        if size % UNITS[unit] == 0:
            return f"{size // UNITS[unit]}{unit}"
    return str(size)
