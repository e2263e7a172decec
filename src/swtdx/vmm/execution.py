# SPDX-License-Identifier: GPL-2.0-or-later
"""Which vCPUs may run: asked by their threads, decided by the debugger's.

A vCPU stops between two KVM_RUNs, when an exit that user space had to complete has been completed: who wants it stopped
takes the permission away and kicks it, KVM_RUN ends with EINTR, and the thread waits at the `gate`.  A vCPU that meets
a breakpoint takes all permissions away itself.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_PATIENCE_SECONDS = 0.02
CRASHED = -1
"""In place of a vector: the vCPU cannot go on."""


@dataclass(frozen=True)
class Hit:
    """KVM_RUN ended for the debugger: a #DB or #BP of ``vcpu``, or `CRASHED`."""

    vcpu: int
    vector: int


class Execution:
    """The permissions of ``count`` vCPUs; ``stopped``: no vCPU runs until `resume`."""

    def __init__(self, count: int, *, stopped: bool = False) -> None:
        self.count = count
        self.kick: Callable[[], None] = lambda: None
        """Make all vCPUs leave KVM_RUN; set by the run."""
        self.wake: Callable[[], None] = lambda: None
        """Tell the debugger's thread to look at `hits` and `over`; set by the server."""
        self.over = False
        self.attached = False
        """Whether there is a debugger just now."""
        self.hits: deque[Hit] = deque()
        self._allowed: frozenset[int] = frozenset() if stopped else frozenset(range(count))
        self._parked: set[int] = set()
        self._changed = threading.Condition()

    # --- The vCPUs' threads -------------------------------------------------------------------------------------------

    def gate(self, vcpu: int) -> None:
        """Returns when this vCPU may run, or the run is over."""
        if vcpu in self._allowed:
            return
        with self._changed:
            self._parked.add(vcpu)
            self._changed.notify_all()
            while vcpu not in self._allowed and not self.over:
                self._changed.wait()
            self._parked.discard(vcpu)

    def hit(self, vcpu: int, vector: int) -> None:
        """This vCPU met a debug event: everybody stops, and the debugger hears of it."""
        with self._changed:
            self.hits.append(Hit(vcpu, vector))
            self._allowed = frozenset()
        self.kick()
        self.wake()
        self.gate(vcpu)

    def crash(self, vcpu: int) -> None:
        """This vCPU cannot go on; if there is a debugger, return only when it has seen enough."""
        if self.attached:
            self.hit(vcpu, CRASHED)

    def finish(self) -> None:
        """End the run: release the threads that wait."""
        with self._changed:
            self.over = True
            self._changed.notify_all()
        self.wake()

    # --- The debugger's thread ----------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return bool(self._allowed) and not self.over

    def stop(self) -> None:
        """Stop all vCPUs, and wait until they stand."""
        with self._changed:
            self._allowed = frozenset()
            while len(self._parked) < self.count and not self.over:
                self.kick()
                self._changed.wait(_PATIENCE_SECONDS)

    def hold(self) -> None:
        """Let no vCPU begin another KVM_RUN, without waiting for them. From any thread."""
        with self._changed:
            self._allowed = frozenset()
        self.kick()

    def resume(self, vcpus: Iterable[int]) -> None:
        """Let these run."""
        with self._changed:
            self._allowed = frozenset(vcpus)
            self._changed.notify_all()
