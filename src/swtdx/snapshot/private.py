# SPDX-License-Identifier: GPL-2.0-or-later
"""What a snapshot in memory can hold, and a file cannot."""

from __future__ import annotations

from typing import Any


class Private:
    """What only this process can use, such as addresses."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value
