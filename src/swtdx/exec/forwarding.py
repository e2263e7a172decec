# SPDX-License-Identifier: GPL-2.0-or-later
"""The signals of a process that waits for another one and passes them on."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType


class ForwardedSignals:
    """Signals that must not be missed, whenever they come. Made before the fork.

    Python runs a handler between two of its own instructions. A signal that comes after the last of these and before a
    system call that waits would be seen when that call returns, perhaps never. So they are blocked until there is a
    handler, and `wait` is a poll() that also looks at the descriptor to which Python's C handler writes.

    ``passed_on``: `wait` returns their numbers. ``kept``: they only end its poll().
    """

    def __init__(self, passed_on: Iterable[signal.Signals], kept: Iterable[signal.Signals]) -> None:
        self._passed_on = frozenset(passed_on)
        self._all = self._passed_on | frozenset(kept)
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._all)
        self._reading = -1

    def leave(self) -> None:
        """Of the child: take them as before."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Of the parent, in its main thread: `wait` may be called."""
        self._reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        previous = {number: signal.signal(number, _note) for number in self._all}
        self.leave()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            os.close(self._reading)
            os.close(writing)

    def wait(self, fd: int = -1) -> list[int]:
        """Until a signal has come or ``fd`` is readable: the signals to pass on, in the order in which they came."""
        poll = select.poll()
        poll.register(self._reading, select.POLLIN)
        if fd >= 0:
            poll.register(fd, select.POLLIN)
        if self._reading not in dict(poll.poll()):
            return []
        return [number for number in os.read(self._reading, 4096) if number in self._passed_on]


def _note(_number: int, _frame: FrameType | None) -> None:
    """Python's C handler has written the number."""


def pass_on(process: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    try:
        os.kill(process, number)
    except ProcessLookupError:
        return
