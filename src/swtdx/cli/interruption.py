# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals that ask ``swtdx run`` to end: it takes down what it has built, and leaves the terminal as it was.

Before the guest runs they raise KeyboardInterrupt, so that what is half built is undone. While it runs they are only
noted, and the loop that waits for the run looks: a handler runs between any two instructions of the main thread, which
may hold the locks that ending a run takes, or have started half of its threads. A signal that the caller ignores, as
nohup(1) does with SIGHUP, stays ignored.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGXCPU)


class Interruption:
    """Handlers of these signals, as a context manager. ``deferred``: note the signal in place of KeyboardInterrupt."""

    def __init__(self) -> None:
        self.deferred = False
        self.arrived: str | None = None
        """The first signal that came while ``deferred``."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in _ENDING:
                before = signal.getsignal(number)
                if before is not signal.SIG_IGN:
                    self._before[number] = before
                    signal.signal(number, self._arrived)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before if before is not None else signal.SIG_DFL)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if not self.deferred:
            raise KeyboardInterrupt
        self.arrived = self.arrived or signal.Signals(number).name
