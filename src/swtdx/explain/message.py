# SPDX-License-Identifier: GPL-2.0-or-later
"""Messages without a status or an errno that says enough: of the host's kernel, of QEMU, of a guest's kernel.

They stand in ``messages.json``, each with a regular expression; the first row that matches counts. A row may name the
ioctl that the message is about, the status that it stands for, and what it means with a certain errno.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache

from swtdx.explain import table


@dataclass(frozen=True)
class Message:
    """A known message."""

    pattern: re.Pattern[str]
    source: str
    meaning: str
    remedy: str
    command: str = ""
    status: int = 0
    errnos: dict[str, list[str]] = field(default_factory=dict)

    def as_json(self, errno: str = "") -> dict[str, str]:
        """What it means, with ``errno`` if that makes a difference."""
        meaning, remedy = self.errnos.get(errno, (self.meaning, self.remedy))
        found = {"from": self.source, "meaning": meaning}
        return found | {"remedy": remedy} if remedy else found


@cache
def messages() -> tuple[Message, ...]:
    """All rows."""
    return tuple(
        Message(
            re.compile(pattern),
            source,
            meaning,
            remedy,
            more.get("command", ""),
            int(more.get("status", "0"), 16),
            more.get("errnos", {}),
        )
        for pattern, source, meaning, remedy, more in table("messages")["messages"]
    )


def find_message(text: str) -> Message | None:
    """The row that a line matches, if any."""
    return next((each for each in messages() if each.pattern.search(text)), None)
