# SPDX-License-Identifier: GPL-2.0-or-later
"""When a run has had its time, and whether it hangs: by what the machine had, not by the clock on the wall.

On a loaded machine a guest waits for a processor. That time does not count, so a run that is slow there is not called a
hang, and reaches as much as on an idle one. A guest that halts lets its time pass, as anywhere.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

LONGEST_STEP = 0.5
"""Seconds that count at most from one look to the next: the whole process was stopped, or waited itself."""
_BUSY = 0.25
"""Part of a silent time that a guest which hangs computes."""
_TASKS = Path("/proc/self/task")


@dataclass(frozen=True)
class Look:
    """At one moment, all in seconds: the host's clock, what this process computed, and what each thread waited.

    ``called_at`` is the guest's last call, by the same clock.
    """

    now: float
    computed: float
    waited: dict[str, float]
    called_at: float = 0.0


def look(called_at: float = 0.0) -> Look:
    """Return what there is to see now. Where the kernel does not say how long threads waited, none did."""
    return Look(time.monotonic(), time.process_time(), _waited(), called_at)


def _waited() -> dict[str, float]:
    """Documentation/scheduler/sched-stats.rst: the second number is nanoseconds spent waiting on a run queue."""
    found = {}
    try:
        for task in _TASKS.iterdir():
            try:
                found[task.name] = int((task / "schedstat").read_text().split()[1]) / 1e9
            except (OSError, IndexError, ValueError):
                continue  # it is gone, or there is nothing to read
    except OSError:
        return {}
    return found


class Patience:
    """The time of one run: ``seconds`` that it may have."""

    def __init__(self, seconds: float, begun: Look) -> None:
        self.seconds = seconds
        self.had = 0.0
        """Seconds that the guest had so far: it computed, or it slept."""
        self._last = begun
        self._called = 0.0
        self._computed_then = begun.computed

    def spend(self, now: Look) -> bool:
        """Take another look; returns whether time is up."""
        last, self._last = self._last, now
        waited = max((at - last.waited.get(task, at) for task, at in now.waited.items()), default=0.0)
        self.had += max(0.0, min(now.now - last.now, LONGEST_STEP) - waited)
        if now.called_at > last.called_at:
            self._called, self._computed_then = self.had, now.computed
        return self.had >= self.seconds

    @property
    def hangs(self) -> bool:
        """Whether, for half of the time, the guest has computed and asked for nothing."""
        silent = self.had - self._called
        return silent >= self.seconds / 2 and self._last.computed - self._computed_then >= _BUSY * silent
