# SPDX-License-Identifier: GPL-2.0-or-later
"""A timer of the board, for a device that interrupts by itself: one thread, which starts when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Callable

from swtdx.clock import Clock


class BoardTimer:
    """Calls ``function``, with ``lock`` held, when the time set last is over."""

    def __init__(self, lock: threading.Lock, clock: Clock | None = None) -> None:
        self._lock = lock
        self._clock = clock or Clock()
        self.function: Callable[[], object] = lambda: None
        self._deadline: float | None = None
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._off = False
        self._generation = 0  # of the thread; one that was stopped may still be on its way out

    def set(self, delay: float | None) -> None:
        """Call the function ``delay`` seconds from now, and not when it was set before; None: not at all."""
        with self._changed:
            self._deadline = None if delay is None else self._clock.monotonic() + max(0.0, delay)
            if self._thread is not None:
                self._changed.notify_all()
            elif self._deadline is not None and not self._off and not self._clock.serve(self):
                self._generation += 1
                self._thread = threading.Thread(
                    target=self._loop, args=(self._generation,), name="board-timer", daemon=True
                )
                self._thread.start()

    def due_ns(self) -> int | None:
        """As `swtdx.clock.Alarm`."""
        return None if self._deadline is None or self._off else int(self._deadline * 1e9)

    def ring(self) -> None:
        """As `swtdx.clock.Alarm`."""
        self._deadline = None
        with self._lock:
            self.function()

    def kept(self) -> float | None:
        """Return when the function is to be called."""
        return self._deadline

    def go_on(self, kept: float | None) -> None:
        """Call the function then, also if the timer was stopped since."""
        with self._changed:
            if self._off:
                self._off, self._thread = False, None
                self._generation += 1
        self.set(None if kept is None else kept - self._clock.monotonic())

    def stop(self) -> None:
        """Call nothing any more. From any thread; the function may be running."""
        with self._changed:
            self._off = True
            self._changed.notify_all()

    def _loop(self, generation: int) -> None:
        while self._wait(generation):
            with self._lock:
                self.function()

    def _wait(self, generation: int) -> bool:
        """Whether the time has come; False: it is over for good."""
        with self._changed:
            while not self._off and generation == self._generation:
                left = None if self._deadline is None else self._deadline - self._clock.monotonic()
                if left is not None and left <= 0:
                    self._deadline = None
                    return True
                self._changed.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            return False
