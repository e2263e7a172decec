# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching a virtual CPU: each VM exit, how long the guest had run, how long its handling took, each injected event.

No overhead unless tracing is enabled: then virtual CPUs are made from a subclass of `GuestContext`
(`Processor.context_class`), in which ``run`` and ``inject`` report what they do.  An exit is reported when the guest is
entered again (or at `flush`), because only then is known how long it took and what a TDCALL left in RAX.

What the processor handles without an exit, here as on a real one, is not reported: EPT walks that succeed,
accesses to the virtual APIC page, delivery of posted interrupts, MSRs outside the bitmap.

Times are nanoseconds of ``time.perf_counter_ns``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol

from swtdx.cpu._engine import GuestContext

if TYPE_CHECKING:
    from swtdx.cpu.processor import Processor


@dataclass(slots=True)
class VmExit:
    """One exit. ``entered``, ``left`` and ``resumed`` are times; ``gpr`` is RAX..R15 then, ``after`` at re-entry.

    Where ``rip_after`` is ``rip``, the instruction has not been carried out yet: the guest executes it again.
    """

    context: int
    thread: int
    entered: int
    left: int
    resumed: int
    reason: int
    qualification: int
    gpa: int
    rip: int
    interruption: int
    gpr: tuple[int, ...]
    after: tuple[int, ...]
    rip_after: int


@dataclass(slots=True)
class Injection:
    """An event that software has the processor deliver at the next entry."""

    context: int
    thread: int
    time: int
    vector: int
    type: int
    error_code: int | None


class Watcher(Protocol):
    """What gets the reports."""

    def vm_exit(self, exit: VmExit) -> None:
        """Take an exit that has been handled."""
        ...

    def injection(self, injection: Injection) -> None:
        """Take an event that was injected."""
        ...


def watch(processor: Processor, watcher: Watcher) -> Callable[[], None]:
    """Report every virtual CPU that ``processor`` creates from now on to ``watcher``.

    Returns a function that reports what is still pending: the last exit of each virtual CPU.
    """
    contexts: list[_Watched] = []

    members = {"watcher": watcher, "contexts": contexts}
    processor.context_class = type("Watched", (_Watched, processor.context_class), members)

    def flush() -> None:
        for context in contexts:
            context.tell()

    return flush


class _Watched(GuestContext):
    watcher: Watcher
    contexts: list[_Watched]
    number: int

    def attach_views(self) -> None:
        self.number = len(self.contexts)
        self.pending: VmExit | None = None
        self.contexts.append(self)
        super().attach_views()

    def close(self) -> None:
        self.tell()
        super().close()

    def run(self) -> int:
        self.tell()
        entered = perf_counter_ns()
        reason = super().run()
        self.pending = VmExit(
            self.number,
            threading.get_native_id(),
            entered,
            perf_counter_ns(),
            0,
            reason,
            self.exit_qualification,
            self.guest_physical_address,
            self.rip,
            self.interruption_info,
            tuple(self.gpr),
            (),
            0,
        )
        return reason

    def inject(self, vector: int, kind: int, error_code: int | None = None, instruction_length: int = 0) -> None:
        super().inject(vector, kind, error_code, instruction_length)
        self.watcher.injection(
            Injection(self.number, threading.get_native_id(), perf_counter_ns(), vector, kind, error_code)
        )

    def tell(self) -> None:
        """Report the previous exit, which is over now."""
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.resumed = perf_counter_ns()
            pending.after, pending.rip_after = tuple(self.gpr), self.rip
            self.watcher.vm_exit(pending)
