# SPDX-License-Identifier: GPL-2.0-or-later
"""A timer of the board, for a device that interrupts by itself: one thread, which starts when it is first needed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class BoardTimer:
    """Calls ``function``, with ``lock`` held, when the time set last is over."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock
        self.function: Callable[[], object] = lambda: None
        self._deadline: float | None = None
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._off = False

    def set(self, delay: float | None) -> None:
        """Call the function ``delay`` seconds from now, and not when it was set before; None: not at all."""
        with self._changed:
            self._deadline = None if delay is None else time.monotonic() + max(0.0, delay)
            if self._thread is not None:
                self._changed.notify()
            elif self._deadline is not None and not self._off:
                self._thread = threading.Thread(target=self._loop, name="board-timer", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Call nothing any more. From any thread; the function may be running."""
        with self._changed:
            self._off = True
            self._changed.notify()

    def _loop(self) -> None:
        while self._wait():
            with self._lock:
                self.function()

    def _wait(self) -> bool:
        """Whether the time has come; False: it is over for good."""
        with self._changed:
            while not self._off:
                left = None if self._deadline is None else self._deadline - time.monotonic()
                if left is not None and left <= 0:
                    self._deadline = None
                    return True
                self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            return False
