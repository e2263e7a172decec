# SPDX-License-Identifier: GPL-2.0-or-later
"""A processor whose time follows from the number of instructions that its guest has executed.

One virtual CPU and no other thread decide what happens: timers expire on the thread that runs the guest, at a count;
what comes from outside (typed bytes) enters there, too, and its moment is noted. So a run is repeated to the
instruction by the same inputs at the same moments: docs/explanation/replay.md.
"""

from __future__ import annotations

import hashlib
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

from swtdx.clock import Alarm, Clock
from swtdx.cpu import _engine
from swtdx.cpu._engine import GuestContext
from swtdx.cpu.platform import TSC_RATIO_BITS, Platform
from swtdx.cpu.processor import Processor

INSTRUCTION_NS: Final = 4
"""SWTDX_INSTRUCTION_NS: as much as TCG takes, about, so that a guest's time is not far from the host's."""
_CHECK_EVERY: Final = 1 << 21
"""Instructions. The guest leaves for the host so often, as for a tick of its timer, and the run is compared there."""


@dataclass(frozen=True)
class Moment:
    """Between two instructions. ``visit``: how often this count was seen before an entry; ``halted``: or in a HLT."""

    count: int
    visit: int
    halted: bool
    ns: int


@dataclass(frozen=True)
class Happening:
    """What is noted of a run: ``kind`` is typed, check or end."""

    moment: Moment
    kind: str
    data: str

    @property
    def key(self) -> tuple[int, int, bool]:
        """What names its place, but for the time in a HLT."""
        return self.moment.count, self.moment.visit, self.moment.halted


class Chance:
    """Random bytes that follow from a seed."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        self._drawn = 0

    def __call__(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        self._drawn += 1
        return hashlib.shake_256(self._seed + self._drawn.to_bytes(8, "little")).digest(length)


class CountedClock(Clock):
    """Time by the count, and all that happens at a time.

    ``script`` is what happened in an earlier run, to happen again; without one, what comes by `post` is noted by
    ``note``. ``diverged`` is called with a sentence when the guest does not do what it did, ``ended`` at the end of the
    script. What the guest has `printed` is compared, too.
    """

    rings_alarms = True
    __slots__ = (
        "_alarms", "_console", "_context", "_halted", "_last_count", "_next_check", "_posted", "_real_start", "_script",
        "_sleeper", "_visits", "deliver", "diverged", "ended", "engine", "note", "replays",
    )  # fmt: skip

    def __init__(self, real_start: int, script: Iterable[Happening] | None = None) -> None:
        super().__init__()
        self.engine: _engine.Engine | None = None
        self._real_start = real_start
        self._alarms: list[Alarm] = []
        self._posted: deque[bytes] = deque()
        self.replays = script is not None
        self._script: deque[Happening] = deque(script or ())
        self._context: GuestContext | None = None
        self._sleeper: Callable[[], None] = lambda: None
        self._halted = False
        self._console = 0  # CRC of what it printed
        self._last_count, self._visits, self._next_check = -1, 0, _CHECK_EVERY
        self.deliver: Callable[[bytes], object] = lambda data: None
        self.note: Callable[[Happening], object] = lambda happening: None
        self.diverged: Callable[[str], object] = lambda text: None
        self.ended: Callable[[], object] = lambda: None

    # --- a clock ------------------------------------------------------------------------------------------------------

    def monotonic_ns(self) -> int:
        """Return the time since power-on."""
        return self.engine.counted_ns if self.engine is not None else 0

    def monotonic(self) -> float:
        """Return the same in seconds."""
        return self.monotonic_ns() / 1e9

    def real_ns(self) -> int:
        """Return UTC: from when the run was recorded."""
        return self._real_start + self.monotonic_ns()

    def time(self) -> float:
        """Return the same in seconds."""
        return self.real_ns() / 1e9

    def serve(self, alarm: Alarm) -> bool:
        """Have ``alarm`` rung by the thread of the virtual CPU."""
        if alarm not in self._alarms:
            self._alarms.append(alarm)
        return True

    # --- from other threads -------------------------------------------------------------------------------------------

    def post(self, data: bytes) -> None:
        """Let typed bytes reach the machine. What is typed during a replay is lost: all that was typed is recorded."""
        if not self.replays:
            self._posted.append(data)
            if self._context is not None:
                self._context.kick()
            self._sleeper()

    def printed(self, data: bytes) -> None:
        """Take what the guest prints."""
        self._console = zlib.crc32(data, self._console)

    @property
    def left(self) -> str | None:
        """Return what the recorded run had beyond this one, a sentence; None: nothing, or it has been told."""
        if not self._script or self._script[0].moment.count == self.count:
            return None
        return f"the replay diverged: it ended at instruction {self.count:,}, the recorded run went on"

    # --- on the thread of the virtual CPU -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many instructions have begun."""
        return self.engine.count if self.engine is not None else 0

    def before_entry(self, context: GuestContext) -> None:
        """Do what is due, and say when to come back."""
        engine = self.engine
        assert engine is not None
        self._context, self._halted = context, False
        count = engine.count
        self._visits = self._visits + 1 if count == self._last_count else 0
        self._last_count = count
        self._ring()
        if count == self._next_check:
            self._next_check += _CHECK_EVERY
            self._happen("check", self._state(context))
        self._inputs(halted=False)
        end = self._next_check
        if (due := self._due()) is not None:
            end = min(end, count + max(1, -(-(due - engine.counted_ns) // INSTRUCTION_NS)))
        if self._script:
            end = min(end, max(count, self._script[0].moment.count))
        elif self.replays:
            end = count  # not an instruction more
        engine.set_count_end(end)

    def idle(self, sleep: Callable[[float], bool], seconds: float, wake: Callable[[], None]) -> bool:
        """Pass the time of a HLT: until the next alarm or input, in a replay at once. True: a signal came."""
        engine = self.engine
        assert engine is not None
        self._sleeper, self._halted = wake, True
        if self._inputs(halted=True):
            return False
        due, now = self._due(), engine.counted_ns
        if self.replays:
            if self._script and self._is_here(halted=True) and self._comes_before(due):
                engine.jump(max(0, self._script[0].moment.ns - now))
                self._inputs(halted=True)
            elif due is not None:
                engine.jump(max(0, due - now))
                self._ring()
            else:
                return sleep(seconds)
            return False
        left = seconds if due is None else min(seconds, (due - now) / 1e9)
        began = time.monotonic_ns()
        interrupted = left > 0 and sleep(left)
        slept = time.monotonic_ns() - began
        engine.jump(slept if due is None else max(0, min(slept, due - now)))
        self._ring()
        return interrupted

    def finish(self) -> None:
        """Note the end of a recorded run, whose virtual CPU is home."""
        if not self.replays:
            self._happen("end", "", halted=self._halted)

    def _due(self) -> int | None:
        return min((due for alarm in self._alarms if (due := alarm.due_ns()) is not None), default=None)

    def _ring(self) -> None:
        """Ring what is due, the earliest first."""
        while True:
            now = self.monotonic_ns()
            due = [(at, number) for number, alarm in enumerate(self._alarms) if (at := alarm.due_ns()) is not None]
            if not due or min(due)[0] > now:
                return
            self._alarms[min(due)[1]].ring()

    def _moment(self, halted: bool) -> Moment:
        return Moment(self.count, self._visits, halted, self.monotonic_ns())

    def _is_here(self, halted: bool) -> bool:
        """Whether the next happening of the script is at this place. A debugger may have come by more often."""
        happening = self._script[0]
        count, visit, in_halt = happening.key
        if happening.kind == "end":  # what ended the recorded run may have come by as well
            return count == self.count and (halted or not in_halt)
        return count == self.count and visit <= self._visits and in_halt == halted

    def _comes_before(self, due: int | None) -> bool:
        """Whether the script's next is before an alarm. A recorded run may end at the moment when one was rung."""
        happening = self._script[0]
        return due is None or happening.moment.ns < due + (happening.kind == "end")

    def _inputs(self, *, halted: bool) -> bool:
        """Take what comes from outside now; whether there was something."""
        if not self.replays:
            came = bool(self._posted)
            while self._posted:
                data = self._posted.popleft()
                self._happen("typed", data.hex(), halted=halted)
                self.deliver(data)
            return came
        came = False
        while self._script and self._script[0].kind != "check":
            if self._script[0].moment.count < self.count:
                self._lost(f"is past {self._script[0].moment.count:,}, where the recorded run had its next event")
                break
            if not self._is_here(halted) or (halted and self._script[0].moment.ns > self.monotonic_ns()):
                break
            happening = self._script.popleft()
            came = True
            if happening.moment.ns != self.monotonic_ns():
                self._lost(f"has the time {self.monotonic_ns():,} ns; the recorded run had {happening.moment.ns:,} ns")
            elif happening.kind == "typed":
                self.deliver(bytes.fromhex(happening.data))
            else:
                self.ended()
        return came

    def _happen(self, kind: str, data: str, *, halted: bool = False) -> None:
        """Note it, or compare it with what was noted."""
        happening = Happening(self._moment(halted), kind, data)
        if not self.replays:
            self.note(happening)
            return
        if not self._script:
            return
        noted = self._script[0]
        if noted.kind == "end" and noted.moment.count == self.count:
            return  # it ended before it came to this
        if noted.kind != kind or noted.moment.count != happening.moment.count:
            self._lost(f"is at a {kind}; the recorded run had a {noted.kind} at {noted.moment.count:,} next")
            return
        self._script.popleft()
        if noted.moment.ns != happening.moment.ns:
            self._lost(f"has the time {happening.moment.ns:,} ns; the recorded run had {noted.moment.ns:,} ns")
        elif noted.data != data:
            pairs = zip(("RIP", "registers", "console"), noted.data.split(), data.split(), strict=False)
            differ = [f"{name} {now}, recorded {then}" for name, then, now in pairs if then != now]
            self._lost(f"has other contents: {'; '.join(differ) or 'it is not readable'}")

    def _lost(self, what: str) -> None:
        self._script.clear()
        self.diverged(f"the replay diverged: at instruction {self.count:,} it {what}")

    def _state(self, context: GuestContext) -> str:
        return f"{context.rip:#x} {zlib.crc32(bytes(context.gpr)):08x} {self._console:08x}"


class CountedProcessor(Processor):
    """A package with one virtual CPU, which is counted."""

    def __init__(self, platform: Platform, clock: CountedClock, chance: Chance) -> None:
        super().__init__(platform)
        self.clock: CountedClock = clock
        self.memory.random = self.random = chance
        self._per_ns = (platform.tsc_hz << TSC_RATIO_BITS) // 1_000_000_000
        members: dict[str, Any] = {"clock": clock}
        self.context_class = type("Counted", (_Counted, self.context_class), members)

    def _get_engine(self) -> _engine.Engine:
        with self._engine_lock:
            exists = self._engine is not None
        engine = super()._get_engine()
        if not exists:
            engine.start_counting(self._per_ns, int.from_bytes(self.random(8), "little"))
            self.clock.engine = engine
        return engine

    def rdtsc(self) -> int:
        """Return the time-stamp counter."""
        return (self.clock.monotonic_ns() * self._per_ns >> TSC_RATIO_BITS) + self._tsc_bias


class _Counted(GuestContext):
    clock: CountedClock

    def run(self) -> int:
        self.clock.before_entry(self)
        return super().run()
