# SPDX-License-Identifier: GPL-2.0-or-later
"""One machine that is restored before each run, and run with other lies."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from swtdx.fuzzing import outcome
from swtdx.fuzzing.host import Host
from swtdx.fuzzing.hostile import ACPI, CLOCK, INTERRUPT, PAGE, Hostile
from swtdx.fuzzing.outcome import Outcome
from swtdx.fuzzing.patience import Patience, look
from swtdx.lying.lie import Lie
from swtdx.vmm.launch import Machine
from swtdx.vmm.outcome import End
from swtdx.vmm.outcome import Outcome as Ended
from swtdx.vmm.run import Run
from swtdx.x86 import PAGE_SIZE

_ENOUGH = Ended(End.INTERRUPTED, "enough calls")
_TIME = Ended(End.TIMEOUT, "time was up")
_UNTIL = Ended(End.UNTIL, "the text was seen")
_DOOMED = Ended(End.PANIC, "the kernel said what is wrong")
_LAST_WORDS_SECONDS = 0.5
"""So long a kernel prints nothing after it has said what is wrong, then that was all; but not longer than the next."""
_LONGEST_WORDS_SECONDS = 8.0
_LOOK_SECONDS = 0.1
_LONGEST_CONSOLE = 1 << 20

Checker = Callable[["Guest"], str | None]
"""Looks at a guest that has ended well; what is wrong with it, in words, or None."""


class Covering(Protocol):
    """A processor that tells which blocks of code are new."""

    def cover(self) -> None:
        """Begin."""
        ...

    def covered(self) -> set[int]:
        """Return the addresses of the blocks that were reached for the first time."""
        ...


@dataclass(frozen=True)
class Limits:
    """When a run ends: after so many calls or seconds, or when the console shows ``until``.

    Seconds are those that the guest had (`swtdx.fuzzing.patience`).
    """

    calls: int = 2000
    seconds: float = 2.0
    until: str | None = None


@dataclass(frozen=True)
class Code:
    """Which addresses count as coverage; all by default."""

    ranges: tuple[tuple[int, int], ...] = ()

    def of(self, blocks: set[int]) -> set[int]:
        """Return those of the blocks that count."""
        if not self.ranges:
            return blocks
        return {each for each in blocks if any(start <= each < end for start, end in self.ranges)}


@dataclass
class Result:
    """One run."""

    outcome: Outcome
    new: set[int] = field(default_factory=set)
    told: list[str] = field(default_factory=list)
    calls: int = 0


class Guest:
    """``host`` is what the machine's kernel was made with; ``feed`` is the machine's serial port."""

    def __init__(
        self,
        host: Host,
        processor: Covering,
        limits: Limits,
        *,
        typed: bytes = b"",
        code: Code | None = None,
        checker: Checker | None = None,
    ) -> None:
        self.host = host
        self.console = bytearray()
        self.limits = limits
        self.runs = 0
        self._processor = processor
        self._typed = typed
        self._code = code or Code()
        self._checker = checker
        self._run: Run | None = None
        self._until = (limits.until or "").encode()
        self._looked_at = 0
        self._doomed_at = self._spoke_at = 0.0
        self.machine: Machine | None = None
        self._snapshot: object = None

    @property
    def looks_at_a_part(self) -> bool:
        """Whether only some addresses count as coverage."""
        return bool(self._code.ranges)

    def feed(self, data: bytes) -> None:
        """Take what the guest prints."""
        if len(self.console) < _LONGEST_CONSOLE:
            self.console += data
        if self._doomed_at:
            self._spoke_at = time.monotonic()
        run = self._run
        if run is None:
            return
        until = self._until
        if until and until in self.console[-len(until) - len(data) :]:
            run.finish(_UNTIL)
        if b"\n" in data:
            end = self.console.rfind(b"\n") + 1
            lines, self._looked_at = bytes(self.console[self._looked_at : end]), end
            if outcome.is_over(lines):
                run.finish(_DOOMED)
            elif not self._doomed_at and (found := outcome.said(lines)) is not None and found.is_crash:
                self._doomed_at = self._spoke_at = time.monotonic()

    def attach(self, machine: Machine, snapshot: object) -> None:
        """Take the machine, and what it is restored from."""
        self.machine, self._snapshot = machine, snapshot
        for vcpu in range(len(machine.vcpus)):
            self.host.offer(INTERRUPT, vcpu, {"vector": 0})
        self.host.offer(CLOCK, 0, {"skip": 0})
        plan = machine.plan
        memory = [(at, len(held)) for at, held in plan.direct.pieces()] if plan.direct is not None else plan.layout.ram
        pages = [page for at, length in memory for page in range(at, at + length, PAGE_SIZE)]
        self.host.offer(PAGE, 0, {"take": 0}, pages)
        tables = plan.direct.acpi if plan.direct is not None else machine.board.acpi
        for offset, byte in enumerate(tables.tables):
            self.host.offer(ACPI, offset, {"byte": byte})
        self._processor.cover()

    def run(self, lies: Iterable[Lie]) -> Result:
        """Restore, run, and say what came of it. Raises KeepError."""
        machine = self.machine
        assert machine is not None
        machine.restore(self._snapshot)
        self.console.clear()
        self._doomed_at, self._looked_at = 0.0, 0

        def enough() -> None:
            if not self._doomed_at:
                run.finish(_ENOUGH)

        self.host.begin(lies, self.limits.calls, enough)
        run = self._run = Run(machine, Hostile(machine, self.host))
        patience = Patience(self.limits.seconds, look(self.host.called_at))
        run.start()
        try:
            if self._typed:
                machine.board.type(self._typed)
            hangs = self._wait(run, patience)
        finally:
            run.stop()
            self._run = None
        self.runs += 1
        assert run.outcome is not None
        found = outcome.ended(run.outcome, bytes(self.console), self.host.rip)
        spoken = outcome.said(bytes(self.console))
        if spoken is not None and (found is None or found.kind in ("fatal", "triple fault")) and spoken.is_crash:
            found = spoken
        if found is None:
            found = self._harmless(run.outcome, hangs, spoken)
        new = self._code.of(self._processor.covered())
        return Result(found, new, list(self.host.told), self.host.calls)

    def _wait(self, run: Run, patience: Patience) -> bool:
        """Wait for the end; whether the guest computes and asks for nothing any more."""
        while True:
            if run.wait(max(min(patience.seconds - patience.had, _LOOK_SECONDS), 0.01)) is not None:
                return False
            over = patience.spend(look(self.host.called_at))
            if self._doomed_at:
                now = time.monotonic()
                if now >= min(self._spoke_at + _LAST_WORDS_SECONDS, self._doomed_at + _LONGEST_WORDS_SECONDS):
                    run.finish(_DOOMED)
            elif over:
                run.finish(_TIME)
                return patience.hangs

    def _harmless(self, end: Ended, hangs: bool, spoken: Outcome | None) -> Outcome:
        if hangs:
            return Outcome("hang", "the guest computes and asks its host for nothing")
        if self._checker is not None and (wrong := self._checker(self)):
            return Outcome("checker", wrong)
        if spoken is not None:
            return spoken
        kind = "enough" if end is _ENOUGH else "time" if end is _TIME else "ended"
        return Outcome(kind, end.text)
