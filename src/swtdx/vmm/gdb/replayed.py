# SPDX-License-Identifier: GPL-2.0-or-later
"""A replay under the debugger: it stops without a trace in the guest, and goes back.

Breakpoints and steps are the engine's, at addresses and counts of instructions: no INT3, no trap flag, no debug
register. Watchpoints are debug registers, as in any run. Nothing of the guest can be changed: what followed would not
be what was recorded.

To go back, the machine is restored from the last snapshot before, and runs forward to the place. Snapshots are made
while it runs, every so many instructions; when there are many, every second one is given up and the distance doubles.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

from swtdx.uapi.abilities import KeepError
from swtdx.vmm.execution import Execution, Hit
from swtdx.vmm.gdb.breakpoints import Breakpoints, Kind
from swtdx.vmm.gdb.stub import SIGTRAP, Reply, Stop, Stub, breakpoint_of
from swtdx.vmm.gdb.target import AccessError, Target
from swtdx.vmm.launch import Machine
from swtdx.vmm.run import Run
from swtdx.x86 import Vector

FIRST_DISTANCE = 1 << 24
"""Instructions between two snapshots, at first."""
_MOST_MARKS = 24
_POLL_SECONDS = 0.0005
_VECTORS = {"break": -2, "step": -3, "count": -4, "end": -5}
"""In place of vectors: why a replay stands. ``count``: only the stub wanted it."""
_BREAK, _COUNT, _END = _VECTORS["break"], _VECTORS["count"], _VECTORS["end"]
_FINAL = Stop(SIGTRAP, 0, b"replaylog:end;")
_INITIAL = Stop(SIGTRAP, 0, b"replaylog:begin;")


class Timeline(Protocol):
    """The clock of a replay, by which it is stopped (`swtdx.cpu.counted.CountedClock`)."""

    debugged: bool
    steps: bool
    stop_at: int | None
    stopped: Callable[[str], object]
    ended: Callable[[], object]

    @property
    def count(self) -> int:
        """How many instructions have begun."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether the replay is at its end."""
        ...

    @property
    def last_stop(self) -> int | None:
        """The count at the last stop that was passed."""
        ...

    def set_stops(self, addresses: Collection[int], *, passes: bool = False) -> None:
        """Stop before the instructions there."""
        ...

    def hold(self, why: str) -> None:
        """Let nothing execute."""
        ...

    def release(self) -> None:
        """Let the guest go on."""
        ...


class ReplayedTarget:
    """A machine that is only looked at."""

    gives_back: frozenset[int] = frozenset()

    def __init__(self, target: Target, timeline: Timeline) -> None:
        self._target = target
        self._timeline = timeline
        self._watches = False
        self.extensions = target.extensions

    def registers(self, vcpu: int) -> dict[str, int]:
        """Raises AccessError."""
        return self._target.registers(vcpu)

    def set_register(self, vcpu: int, name: str, value: int) -> None:
        """Raises AccessError, always."""
        raise AccessError("a replay cannot be changed")

    def translate(self, vcpu: int, address: int) -> int:
        """Raises AccessError."""
        return self._target.translate(vcpu, address)

    def read(self, gpa: int, length: int) -> bytes:
        """Raises AccessError."""
        return self._target.read(gpa, length)

    def write(self, gpa: int, data: bytes) -> None:
        """Raises AccessError, always."""
        raise AccessError("a replay cannot be changed")

    def reasons(self, vcpu: int) -> int:
        """Raises AccessError."""
        return self._target.reasons(vcpu)

    def linear_pc(self, vcpu: int) -> int:
        """Raises AccessError."""
        return self._target.linear_pc(vcpu)

    def arm(self, vcpu: int, breakpoints: Breakpoints, *, step: bool, give_back: int | None) -> None:
        """Raises AccessError."""
        timeline = self._timeline
        if step:
            timeline.steps, timeline.stop_at = True, timeline.count + 1
        if breakpoints.hardware:
            self._watches = True
            self._target.arm(vcpu, breakpoints, step=False, give_back=None)

    def disarm(self, vcpu: int) -> None:
        """Raises AccessError."""
        if self._watches:
            self._watches = False
            self._target.disarm(vcpu)


@dataclass
class Mark:
    """A place to go back to."""

    count: int
    snapshot: object


class ReplayedStub(Stub):
    """A client's session with a replay."""

    features = Stub.features + b";ReverseStep+;ReverseContinue+"

    def __init__(self, machine: Machine, run: Run, execution: Execution, target: Target, timeline: Timeline) -> None:
        super().__init__(machine, run, execution, ReplayedTarget(target, timeline))
        self._timeline = timeline
        self._stops: set[tuple[Kind, int]] = set()
        self._marks: list[Mark] = []
        self._distance = FIRST_DISTANCE
        self._ended = timeline.ended
        timeline.ended = lambda: timeline.hold("end")
        timeline.stopped = self._held
        timeline.debugged = True

    def _held(self, why: str) -> None:
        """The guest is to stop; called by the vCPU's thread, in KVM_RUN."""
        self.execution.hits.append(Hit(0, _VECTORS[why]))
        self.execution.hold()
        self.execution.wake()

    def attach(self) -> None:
        """As of any machine; going back ends here."""
        super().attach()
        self._mark()

    def detach(self) -> None:
        """Let the replay go on to its end."""
        timeline = self._timeline
        self.execution.stop()
        if not self.execution.over:
            timeline.set_stops(())
        timeline.debugged, timeline.steps, timeline.stop_at = False, False, None
        timeline.ended, timeline.stopped = self._ended, lambda why: None
        self._marks.clear()
        over = timeline.is_over
        timeline.release()
        super().detach()
        if over:
            self._ended()

    def event(self) -> Reply:
        """As of any machine; where only a snapshot was due, the guest continues."""
        hits = self.execution.hits
        if self.waiting and not self.execution.over and hits and hits[0].vector == _COUNT:
            self.execution.stop()
            others = [hit for hit in hits if hit.vector != _COUNT]  # a watchpoint of the last instruction
            hits.clear()
            self._mark()
            if not others:
                return self._run(self._steps)
            hits.extend(others)
        return super().event()

    def _dispatch(self, packet: bytes) -> Reply:
        if packet in (b"bs", b"bc"):
            return [self._stopped(self._backwards(step=packet == b"bs"))]
        if packet[:1] in (b"Z", b"z"):
            return self._set_stop(packet[1:], wanted=packet[:1] == b"Z") or super()._dispatch(packet)
        return super()._dispatch(packet)

    def _stop_of(self, hit: Hit) -> Stop | None:
        if hit.vector == _BREAK:
            hardware = (Kind.EXECUTE, self.target.linear_pc(0)) in self._stops
            return Stop(SIGTRAP, 0, b"hwbreak:;" if hardware else b"swbreak:;")
        if hit.vector == _END:
            return _FINAL
        return super()._stop_of(hit) if hit.vector in (Vector.DB, Vector.BP) or hit.vector == -1 else Stop(SIGTRAP, 0)

    def _run(self, steps: dict[int, bool]) -> Reply:
        timeline = self._timeline
        if timeline.is_over:
            if self._stop is not _FINAL:
                return [self._stopped(_FINAL)]
            self.waiting = True
            self._ended()
            return []
        timeline.set_stops({address for _, address in self._stops})
        if not any(steps.values()):
            timeline.stop_at = self._marks[-1].count + self._distance if self._marks else None
            if timeline.stop_at is not None and timeline.stop_at <= timeline.count:
                timeline.stop_at = timeline.count + self._distance
        timeline.release()
        return super()._run(steps)

    def _set_stop(self, rest: bytes, *, wanted: bool) -> Reply:
        """Set or remove a breakpoint on an instruction; an empty answer: it is on data."""
        kind, address, _ = breakpoint_of(rest)
        if kind not in (Kind.SOFTWARE, Kind.EXECUTE):
            return []
        change = self._stops.add if wanted else self._stops.discard
        change((kind, address))
        return [b"OK"]

    # --- back ---------------------------------------------------------------------------------------------------------

    def _mark(self) -> None:
        """Make a snapshot here, if there is none."""
        count = self._timeline.count
        if self.execution.over or (self._marks and self._marks[-1].count >= count):
            return
        try:
            self._marks.append(Mark(count, self.machine.snapshot()))
        except KeepError:
            return  # there is one before: it takes longer to go back
        if len(self._marks) > _MOST_MARKS:
            self._distance *= 2
            del self._marks[1::2]

    def _backwards(self, *, step: bool) -> Stop:
        """Go back by an instruction, or to the last breakpoint or watchpoint."""
        here = self._timeline.count
        if not self._marks or here <= self._marks[0].count:
            return _INITIAL
        if step:
            self._go_to(here - 1)
            return Stop(SIGTRAP, 0)
        end = here
        for mark in reversed([mark for mark in self._marks if mark.count < here]):
            self._restore(mark)
            found = self._last_before(end)
            if found is not None:
                self._go_to(found[0])
                return found[1]
            end = mark.count
        self._go_to(self._marks[0].count)
        return _INITIAL

    def _last_before(self, end: int) -> tuple[int, Stop] | None:
        """Run to ``end``: the count of the last breakpoint or watchpoint before it."""
        timeline = self._timeline
        addresses = {address for _, address in self._stops}
        timeline.set_stops(addresses, passes=True)
        watched: tuple[int, Stop] | None = None
        while (hit := self._advance(end)) is not None:
            stop = super()._stop_of(hit)
            if stop is not None:
                watched = (
                    max(timeline.count - 1, 0),
                    stop,
                )  # a watchpoint follows its instruction; backwards it is before
        passed = timeline.last_stop
        if passed is not None and (watched is None or passed > watched[0]):
            self._go_to(passed)
            return passed, self._stop_of(Hit(0, _BREAK)) or Stop(SIGTRAP, 0)
        return watched

    def _go_to(self, count: int) -> None:
        """Be at this count, whichever way."""
        self._restore(next(mark for mark in reversed(self._marks) if mark.count <= count))
        self._timeline.set_stops(())
        while self._timeline.count < count and self._advance(count, watching=False) is not None:
            continue

    def _restore(self, mark: Mark) -> None:
        if self._timeline.count != mark.count:
            self.target.disarm(0)
            self.machine.restore(mark.snapshot)

    def _advance(self, end: int, *, watching: bool = True) -> Hit | None:
        """Run to this count; None: it is there, or at the end of the replay. Else what came first."""
        timeline, execution = self._timeline, self.execution
        if timeline.count >= end or timeline.is_over or execution.over:
            return None
        self.target.disarm(0)
        if watching:
            self.target.arm(0, self.breakpoints, step=False, give_back=None)
        timeline.stop_at = end
        execution.hits.clear()
        timeline.release()
        execution.resume((0,))
        while not execution.hits and not execution.over:
            time.sleep(_POLL_SECONDS)
        execution.stop()
        hits = list(execution.hits)
        execution.hits.clear()
        return next((hit for hit in hits if hit.vector not in (_COUNT, _END)), None)  # a watchpoint of the last, too
