# SPDX-License-Identifier: GPL-2.0-or-later
"""The time of a machine: the host's, unless the machine was restored from a snapshot.

A machine that is restored continues at the time at which it was kept. Its clocks are then behind the host's by how long
it was away, and stay so.
"""

from __future__ import annotations

import time
from typing import Protocol


class Alarm(Protocol):
    """What happens at a time of a `Clock`, for one that has its alarms rung by itself."""

    def due_ns(self) -> int | None:
        """Return when, in terms of `Clock.monotonic_ns`; None: it is not set."""
        ...

    def ring(self) -> None:
        """Do what is due."""
        ...


class Clock:
    """What a machine's timers and devices take for time."""

    __slots__ = ("_behind_monotonic", "_behind_real")
    rings_alarms = False
    """Whether `serve` takes alarms."""

    def __init__(self) -> None:
        self._behind_monotonic = self._behind_real = 0

    def monotonic_ns(self) -> int:
        """Return nanoseconds of a clock that is never set."""
        return time.monotonic_ns() - self._behind_monotonic

    def monotonic(self) -> float:
        """Return the same in seconds."""
        return (time.monotonic_ns() - self._behind_monotonic) / 1e9

    def time(self) -> float:
        """Return seconds since 1970, UTC."""
        return (time.time_ns() - self._behind_real) / 1e9

    def real_ns(self) -> int:
        """Return nanoseconds since 1970, UTC, as the host has them."""
        return time.time_ns()

    def serve(self, alarm: Alarm) -> bool:
        """Ring ``alarm`` from now on whenever it is due; False: its holder must wait on a thread of its own."""
        return False

    def skip(self, nanoseconds: int) -> None:
        """Go so far forward, or back, as a host can have it."""
        self._behind_monotonic -= nanoseconds
        self._behind_real -= nanoseconds

    def kept(self) -> list[int]:
        """Return what `go_on` needs."""
        return [self.monotonic_ns(), time.time_ns() - self._behind_real]

    def go_on(self, kept: list[int]) -> None:
        """Go on from the moment at which `kept` was called."""
        monotonic, real = kept
        self._behind_monotonic = time.monotonic_ns() - monotonic
        self._behind_real = time.time_ns() - real
