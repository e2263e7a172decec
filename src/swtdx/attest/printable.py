# SPDX-License-Identifier: GPL-2.0-or-later
"""Text that comes from a guest or an agent, as it can be printed."""

from __future__ import annotations

LONGEST = 160


def printable(text: str) -> str:
    """Text of a guest's, cut short, with a dot for each character that does not print.

    >>> printable("a\\x1b[2J")
    'a.[2J'
    """
    text = "".join(character if character.isprintable() else "." for character in text[: LONGEST + 1])
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
