# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether the console's words "Kernel panic - not syncing" are a panic, and not a log that is printed.

Linux writes them at the beginning of a line, behind its time stamp at most.  If it has no crash kernel and is not told
to reboot, it ends its report with ``---[ end Kernel panic``, prints nothing any more, and spins without ever halting.
So the words count when nothing is printed after them for a while, in which the vCPUs compute and none halts.  A guest
that only shows the words prints more, or waits for its next event in HLT.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

_LONGEST_LINE = 1024
_CONTROL_SEQUENCE = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|[ -/]*[0-Z\\-~])")
_PANIC = re.compile(
    rb"(?:<\d+>)?(?:\[ *\d+\.\d+\] ?)?(?:\[ *[TC]\d+\] ?)?(---\[ end )?Kernel panic - not syncing(?:: ?)?(.*)"
)
_END = re.compile(rb" \]---$")


@dataclass(frozen=True)
class Activity:
    """What all vCPUs have done since the run began: how often one halted, and the processor time they took."""

    halts: int
    seconds: float


@dataclass(frozen=True)
class _Patience:
    """How long a guest must be silent, and compute meanwhile, before its words count. In seconds."""

    silence: float
    computing: float


# Before the report's last line the kernel may still load a crash kernel, which checks and unpacks itself in silence.
_REPORT_ENDED = _Patience(2.0, 1.0)
_REPORT_BEGAN = _Patience(30.0, 10.0)


class PanicWatch:
    """Is fed what the console shows, and asked now and then (`panicked`)."""

    def __init__(self, activity: Callable[[], Activity], clock: Callable[[], float] = time.monotonic) -> None:
        self._activity = activity
        self._clock = clock
        self._line = bytearray()
        self._patience: _Patience | None = None
        self._since: tuple[float, Activity] | None = None
        self.reason = ""
        """What stood behind the words, the last time that they were seen."""

    def feed(self, data: bytes) -> None:
        """Take more of what the console shows."""
        self._since = None
        for number, piece in enumerate(data.split(b"\n")):
            if number:
                self._line_ended()
            self._line += piece[: _LONGEST_LINE - len(self._line)]

    def panicked(self) -> bool:
        """Whether the guest has panicked, by what is known now."""
        if self._patience is None:
            return False
        now, activity = self._clock(), self._activity()
        if self._since is None:
            self._since = now, activity
            return False
        then, before = self._since
        if activity.halts != before.halts:
            self._patience = None  # it stays alive
            return False
        return now - then >= self._patience.silence and activity.seconds - before.seconds >= self._patience.computing

    def _line_ended(self) -> None:
        line = _CONTROL_SEQUENCE.sub(b"", bytes(self._line)).strip(b"\r ")
        self._line.clear()
        match = _PANIC.match(line)
        if match is None:
            return
        self._patience = _REPORT_ENDED if match[1] else _REPORT_BEGAN
        self.reason = _END.sub(b"", match[2]).decode("utf-8", "replace").strip()
