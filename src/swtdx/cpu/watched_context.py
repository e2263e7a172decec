# SPDX-License-Identifier: GPL-2.0-or-later
"""Watching a virtual CPU: each VM exit, how long the guest had run, how long its handling took, each injected event.

No overhead unless tracing is enabled: then virtual CPUs are made from a subclass of `GuestContext`
(`Processor.context_class`), in which ``run`` and ``inject`` report what they do.  An exit is reported when the guest is
entered again (or at `flush`), because only then is known how long it took and what a TDCALL left in RAX.

Pages that a TD accepts are taken in one step each (`PageRun`), here too: of each is reported when.

What the processor handles without an exit, here as on a real one, is not reported: EPT walks that succeed,
accesses to the virtual APIC page, delivery of posted interrupts, MSRs outside the bitmap.

Times are nanoseconds of ``time.perf_counter_ns``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
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


@dataclass(slots=True)
class Entry:
    """How a thread has entered a TD's virtual CPU: when, on which logical processor, TDVPR and TDR."""

    began: int
    lp: int
    tdvpr: int
    tdr: int


@dataclass(slots=True)
class PagesTaken:
    """Pages that the processor has taken for a guest one after the other (`PageRun`), without an exit.

    Of each: when the guest was ``entered``, when it ``left``, when it was ``resumed``; ``rip`` is that of the TDCALL.
    """

    context: int
    thread: int
    entry: Entry
    entered: list[int]
    left: list[int]
    resumed: list[int]
    gpa: list[int]
    hpa: list[int]
    rip: list[int]


class Watcher(Protocol):
    """What gets the reports."""

    def vm_exit(self, exit: VmExit) -> None:
        """Take an exit that has been handled."""
        ...

    def injection(self, injection: Injection) -> None:
        """Take an event that was injected."""
        ...

    def entry(self, thread: int, again: int) -> Entry:
        """Return how ``thread`` has entered the guest; from now on that was at the time ``again``."""
        ...

    def page_added(self, exit: VmExit, hpa: int, entry: Entry) -> None:
        """Take a TDCALL for which the host has added a page in one step, and which is then executed again."""
        ...

    def pages_taken(self, pages: PagesTaken) -> None:
        """Take pages for which the same was done without an exit."""
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
        self.added: tuple[VmExit, int, Entry] | None = None
        """The TDCALL for which a page was added, the page, and how the guest was entered until then."""
        self.log = memoryview(bytearray(512 * 6 * 8)).cast("Q", (512, 6))
        self.contexts.append(self)
        super().attach_views()

    def close(self) -> None:
        self.tell()
        super().close()

    def run(self) -> int:
        self.tell()
        pages, thread = self.page_run, threading.get_native_id()
        if pages is not None:
            pages.note(self.log)
        entered = perf_counter_ns()
        reason = super().run()
        left = perf_counter_ns()
        if pages is not None and pages.noted:
            entered = self._tell_pages(pages.noted, thread)
        self.pending = VmExit(
            self.number,
            thread,
            entered,
            left,
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

    def page_added(self, hpa: int) -> None:
        """As if the TD had exited, and been entered again for the same TDCALL. Reported later: locks are held."""
        exit = self.pending
        if exit is None:
            return
        now = perf_counter_ns()
        not_done = replace(exit, resumed=now, after=exit.gpr, rip_after=exit.rip)
        self.added = not_done, hpa, self.watcher.entry(exit.thread, now)
        exit.entered = exit.left = now

    def _tell_pages(self, count: int, thread: int) -> int:
        """Report the pages that were taken since the last exit; returns when the guest was entered after them."""
        words = self.log.cast("B").cast("Q")[: count * 6].tolist()
        entered, left, resumed, gpa, hpa, rip = (words[number::6] for number in range(6))
        entry = self.watcher.entry(thread, resumed[-1])
        self.watcher.pages_taken(PagesTaken(self.number, thread, entry, entered, left, resumed, gpa, hpa, rip))
        return int(resumed[-1])

    def tell(self) -> None:
        """Report the previous exit, which is over now."""
        added, self.added = self.added, None
        if added is not None:
            self.watcher.page_added(*added)
        pending, self.pending = self.pending, None
        if pending is not None:
            pending.resumed = perf_counter_ns()
            pending.after, pending.rip_after = tuple(self.gpr), self.rip
            self.watcher.vm_exit(pending)
