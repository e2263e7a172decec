# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals of the program's threads, as far as KVM_RUN must end for them.

While its KVM_RUN is under way, a thread waits in the kernel and only its death ends the wait. /proc says which signals
are pending for it; one thread of ours looks, every millisecond while any vCPU runs, and makes the thread that executes
the guest leave it. KVM_RUN then is EINTR, and the program's handler runs after it has returned, as in Linux.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

_POLL_SECONDS = 0.001
_SHARED, _OWN, _BLOCKED = b"ShdPnd:", b"SigPnd:", b"SigBlk:"


def _mask(status: bytes, name: bytes) -> int:
    at = status.find(name)
    return int(status[at + 8 : at + 24], 16) if at >= 0 else 0


def pending(status_fd: int) -> tuple[int, int]:
    """Of /proc/TID/status: signals that are pending, and those blocked, bit n-1 for signal n. Raises OSError: gone."""
    status = os.pread(status_fd, 4096, 0)
    return _mask(status, _OWN) | _mask(status, _SHARED), _mask(status, _BLOCKED)


@dataclass(eq=False)
class Run:
    """A KVM_RUN that is under way for a program's thread."""

    status_fd: int
    sigset: Callable[[], int | None]
    """What the vCPU blocks instead of the thread's own mask (KVM_SET_SIGNAL_MASK), if anything."""
    kick: Callable[[], None]

    def interrupted(self) -> bool:
        """Whether a signal is pending that is not blocked, or the thread is dying."""
        try:
            waiting, blocked = pending(self.status_fd)
        except OSError:
            return True
        own = self.sigset()
        return waiting & ~(blocked if own is None else own) != 0


class Watch:
    """The thread that looks."""

    def __init__(self) -> None:
        self._runs: set[Run] = set()
        self._lock = threading.Lock()
        self._some = threading.Event()
        threading.Thread(target=self._loop, name="swtdx-signals", daemon=True).start()

    def begin(self, run: Run) -> None:
        """``run`` is under way from now on."""
        self._runs.add(run)
        if not self._some.is_set():
            self._some.set()

    def end(self, run: Run) -> None:
        """It is over: no kick comes any more."""
        with self._lock:
            self._runs.discard(run)

    def _loop(self) -> None:
        while True:
            self._some.wait()
            time.sleep(_POLL_SECONDS)
            for run in list(self._runs):
                if run.interrupted():
                    with self._lock:
                        if run in self._runs:
                            run.kick()
            if not self._runs:
                self._some.clear()
                if self._runs:
                    self._some.set()
