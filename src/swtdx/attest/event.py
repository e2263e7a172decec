# SPDX-License-Identifier: GPL-2.0-or-later
"""One record of an event log of any format: register, type, digest, data, and what the digest vouches for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from swtdx.attest.event_digest import Vouched, vouched
from swtdx.attest.event_words import EV_NO_ACTION, type_name, words
from swtdx.attest.printable import printable

MAXIMUM_EVENTS = 1 << 16
SHA384_SIZE = 48


class EventLogError(ValueError):
    """The log cannot be read; ``offset`` is the byte at which it goes wrong (in a JSON log: the event's number)."""

    def __init__(self, text: str, offset: int) -> None:
        super().__init__(text)
        self.offset = offset


@dataclass(frozen=True)
class Event:
    """One record of a log."""

    number: int
    offset: int
    """Where the record starts, bytes; in a JSON log the record's number."""
    rtmr: int | None
    """0-3; None is MRTD, which a log does not extend."""
    event_type: int
    digest: bytes
    """SHA-384; empty where the record has none."""
    data: bytes
    name: str = ""
    """dstack's name for an event of its own, IMA's name of a file."""
    version: int = 1
    """How dstack's agent computed the digest of an event of its own."""
    digest_in_log: bool = True
    """False: the log left the digest out, and it was computed from name and payload."""

    @property
    def extends(self) -> bool:
        """Whether the register was extended with the digest."""
        return self.rtmr is not None and self.event_type != EV_NO_ACTION

    def as_json(self) -> dict[str, Any]:
        register = "MRTD" if self.rtmr is None else f"RTMR{self.rtmr}"
        return {
            "number": self.number,
            "offset": self.offset,
            "register": register,
            "event_type": f"{self.event_type:#x}",
            "event_type_name": type_name(self.event_type),
            "digest": self.digest.hex(),
            "words": self.words,
            "data": self.data.hex(),
            "data_measured": self.data_measured,
            "vouched": None if self.vouched is None else self.vouched.value,
            "digest_in_log": self.digest_in_log,
        }

    @property
    def vouched(self) -> Vouched | None:
        """What of `words` and `data` the digest vouches for; None for a record that extends nothing."""
        return vouched(self.event_type, self.data, self.digest, self.name, self.version) if self.extends else None

    @property
    def data_measured(self) -> bool | None:
        """Whether the digest is that of the data; None if the digest is of something else, or does not cover a name."""
        return None if self.vouched is None else self.vouched.data_measured

    @property
    def words(self) -> str:
        """What was measured, as the log describes it, in printable characters; `vouched` says how far to trust it."""
        text = ": ".join(part for part in (printable(self.name), words(self.event_type, self.data)) if part)
        if self.vouched is Vouched.ABSENT:
            return f"{text}: payload not in the log" if text else "payload not in the log"
        return text
