# SPDX-License-Identifier: GPL-2.0-or-later
"""A predicted boot compared with what a launch has extended, one extension after the other.

A launch may be looked at before it is through, and a guest may extend further once it runs: neither contradicts the
prediction.  The first extension that is another one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from swtdx.attest.boot_prediction import BootPrediction
from swtdx.attest.event_log import Event
from swtdx.attest.event_words import type_name

Extension = tuple[int, bytes]
"""Number of the RTMR, digest."""


@dataclass(frozen=True)
class Agreement:
    """How far a launch went as predicted."""

    equal: int
    """Extensions that are as predicted, counted from the first."""
    expected: int
    """Extensions that were predicted."""
    seen: int
    """Extensions that the launch made."""
    next_event: Event | None
    """What was predicted to come next; None where all has come."""
    registers: tuple[int, ...] = (0, 1, 2)
    """The RTMRs that were predicted; extensions of others are not counted."""

    @property
    def contradicted(self) -> bool:
        """Whether an extension was another one than predicted, or came where none was expected."""
        return self.equal < min(self.seen, self.expected) or (not self.expected and self.seen > 0)

    @property
    def complete(self) -> bool:
        """Whether everything that was predicted has come, in its order."""
        return self.equal == self.expected and not self.contradicted

    def __str__(self) -> str:
        if self.contradicted:
            if self.next_event is None:
                return f"NOT as predicted: {self.seen} extensions, where none were expected"
            event = self.next_event
            return (
                f"NOT as predicted: extension {self.equal} is not the expected one, of RTMR{event.rtmr} with "
                f"{type_name(event.event_type)} ({event.words})"
            )
        if not self.complete:
            assert self.next_event is not None
            return (
                f"as predicted, as far as the boot went: {self.equal} of {self.expected} extensions; to come is "
                f"{type_name(self.next_event.event_type)} ({self.next_event.words})"
            )
        more = self.seen - self.expected
        own = f", then {more} extension{'s' if more > 1 else ''} of the guest's own" if more else ""
        listed = ", ".join(f"RTMR{number}" for number in self.registers) or "no RTMR"
        named = {(0, 1, 2): "RTMR0-2", (1, 2): "RTMR1-2"}.get(self.registers, listed)
        return f"{named} as predicted ({self.expected} extensions){own}"


def agreement(prediction: BootPrediction, seen: Sequence[Extension]) -> Agreement:
    """Compare a launch's extensions, in their order, with a prediction.

    >>> nothing = BootPrediction((), (bytes(48),) * 4, firmware_measures=False, kernel_measures=True)
    >>> print(agreement(nothing, []))
    RTMR0-2 as predicted (0 extensions)
    >>> agreement(nothing, [(0, bytes(48))]).contradicted
    True
    """
    expected = [event for event in prediction.events if event.rtmr in prediction.registers]
    seen = [each for each in seen if each[0] in prediction.registers or (each[0] == 3 and not prediction.unknown)]
    equal = 0
    for (rtmr, digest), event in zip(seen, expected, strict=False):
        if (rtmr, digest) != (event.rtmr, event.digest):
            break
        equal += 1
    next_event = expected[equal] if equal < len(expected) else None
    return Agreement(equal, len(expected), len(seen), next_event, prediction.registers)
