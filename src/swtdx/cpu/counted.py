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
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

from swtdx.clock import Alarm, Clock
from swtdx.cpu import _engine
from swtdx.cpu._engine import GuestContext
from swtdx.cpu.platform import TSC_RATIO_BITS, Platform
from swtdx.cpu.processor import Processor
from swtdx.cpu.vmx import ExitReason

INSTRUCTION_NS: Final = 4
"""SWTDX_INSTRUCTION_NS: as much as TCG takes, about, so that a guest's time is not far from the host's."""
_EXIT_NS: Final = 8_000
"""What port I/O adds to a guest's time, about what it takes: who waits by polling a timer there would take minutes."""
_IO: Final = (ExitReason.IO, ExitReason.TDCALL)
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
        self.drawn = 0
        """How often bytes were taken: where it is."""

    def __call__(self, length: int) -> bytes:
        """Return the next ``length`` bytes."""
        self.drawn += 1
        return hashlib.shake_256(self._seed + self.drawn.to_bytes(8, "little")).digest(length)


class Follower(Protocol):
    """What else decides by what came before: it goes back with the clock."""

    def kept(self) -> object:
        """Return where it is."""
        ...

    def go_on(self, kept: Any) -> None:
        """Be there again."""
        ...


class CountedClock(Clock):
    """Time by the count, and all that happens at a time.

    ``script`` is what happened in an earlier run, to happen again; without one, what comes by `post` is noted by
    ``note``. ``diverged`` is called with a sentence when the guest does not do what it did, ``ended`` at the end of the
    script. What the guest has `printed` is compared, too.

    A debugger of a replay stops it without a trace in the guest: at a count (``stop_at``), or before instructions
    (`set_stops`). ``stopped`` is called then, with ``step``, ``count`` or ``break``; nothing executes until `release`.
    It goes back by a snapshot of the machine, of which this clock is a part (`kept`, `go_on`).
    """

    rings_alarms = True
    __slots__ = (
        "_alarms", "_at", "_console", "_context", "_count_end", "_halted", "_held", "_last_count", "_next_check",
        "_posted", "_printed", "_real_start", "_script", "_shown", "_sleeper", "_visits", "chance", "debugged",
        "deliver", "diverged", "ended", "engine", "followers", "note", "replays", "steps", "stop_at", "stopped",
    )  # fmt: skip

    def __init__(self, real_start: int, script: Iterable[Happening] | None = None) -> None:
        super().__init__()
        self.engine: _engine.Engine | None = None
        self._real_start = real_start
        self._alarms: list[Alarm] = []
        self._posted: deque[bytes] = deque()
        self.replays = script is not None
        self._script = list(script or ())
        self._at = 0  # which of them is next
        self.chance: Chance | None = None
        self.followers: list[Follower] = []
        self._context: GuestContext | None = None
        self._sleeper: Callable[[], None] = lambda: None
        self._halted = False
        self._console = 0  # CRC of what it printed
        self._printed = self._shown = 0  # bytes, by now and at most
        self._last_count, self._visits, self._next_check = -1, 0, _CHECK_EVERY
        self._count_end = 0
        self.deliver: Callable[[bytes], object] = lambda data: None
        self.note: Callable[[Happening], object] = lambda happening: None
        self.diverged: Callable[[str], object] = lambda text: None
        self.ended: Callable[[], object] = lambda: None
        self.debugged = self._held = self.steps = False
        self.stop_at: int | None = None
        self.stopped: Callable[[str], object] = lambda why: None

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

    def kept(self) -> list[Any]:
        """Return where it is, for this process only."""
        assert self.engine is not None
        drawn = 0 if self.chance is None else self.chance.drawn
        own = [self._at, self._visits, self._last_count, self._next_check, self._console, self._printed, self._halted]
        return [[each.kept() for each in self.followers], *self.engine.counted_state, drawn, *own]

    def go_on(self, kept: list[Any]) -> None:
        """Be there again."""
        assert self.engine is not None
        others, count, jumped, random, drawn, *own = kept
        for follower, then in zip(self.followers, others, strict=True):
            follower.go_on(then)
        self.engine.counted_state = count, jumped, random
        if self.chance is not None:
            self.chance.drawn = drawn
        self._at, self._visits, self._last_count, self._next_check, self._console, self._printed, halted = own
        self._halted = bool(halted)

    # --- from other threads -------------------------------------------------------------------------------------------

    def post(self, data: bytes) -> None:
        """Let typed bytes reach the machine. What is typed during a replay is lost: all that was typed is recorded."""
        if not self.replays:
            self._posted.append(data)
            if self._context is not None:
                self._context.kick()
            self._sleeper()

    def printed(self, data: bytes) -> bytes:
        """Take what the guest prints, and return what of it is new: not what it printed before it went back."""
        self._console = zlib.crc32(data, self._console)
        new = data[max(0, self._shown - self._printed) :]
        self._printed += len(data)
        self._shown = max(self._shown, self._printed)
        return new

    @property
    def left(self) -> str | None:
        """Return what the recorded run had beyond this one, a sentence; None: nothing, or it has been told."""
        happening = self._next
        if happening is None or happening.moment.count == self.count:
            return None
        return f"the replay diverged: it ended at instruction {self.count:,}, the recorded run went on"

    # --- for a debugger, while nothing executes -----------------------------------------------------------------------

    @property
    def is_over(self) -> bool:
        """Whether a replay is where the recorded run ended, or diverged."""
        return self.replays and self._at >= len(self._script)

    @property
    def last_stop(self) -> int | None:
        """The count at the last stop that was made or passed since the machine went back."""
        return self.engine.last_stop if self.engine is not None else None

    def set_stops(self, addresses: Collection[int], *, passes: bool = False) -> None:
        """Stop before each instruction there; ``passes``: only have `last_stop` say where it was."""
        assert self.engine is not None
        self.engine.set_stops(sorted(addresses))
        self.engine.pass_stops(passes)

    def hold(self, why: str) -> None:
        """Let nothing execute until `release`."""
        if not self._held:
            self._held, self.stop_at, self.steps = True, None, False
            self.stopped(why)

    def release(self) -> None:
        """Let the guest go on."""
        self._held = False

    # --- on the thread of the virtual CPU -----------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many instructions have begun."""
        return self.engine.count if self.engine is not None else 0

    def before_entry(self, context: GuestContext) -> None:
        """Do what is due, and say when to come back."""
        engine = self.engine
        assert engine is not None
        self._context, count = context, engine.count
        if self.debugged and self._is_at_its_stop:
            self.hold("step" if self.steps else "count")
        if self._held:
            engine.set_count_end(count)
            return
        self._halted = False
        self._visits = self._visits + 1 if count == self._last_count else 0
        self._last_count = count
        self._ring()
        if count == self._next_check:
            self._next_check += _CHECK_EVERY
            self._happen("check", self._state(context))
        self._inputs(halted=False)
        self._count_end = self._end(engine, count)
        engine.set_count_end(self._count_end)

    def _end(self, engine: _engine.Engine, count: int) -> int:
        """Return at which count the guest comes back at the latest."""
        if self._held:
            return count
        end = self._next_check
        if (due := self._due()) is not None:
            end = min(end, count + max(1, -(-(due - engine.counted_ns) // INSTRUCTION_NS)))
        if (happening := self._next) is not None:
            end = min(end, max(count, happening.moment.count))
        elif self.replays:
            end = count  # not an instruction more
        if self.stop_at is not None:
            end = min(end, max(count, self.stop_at))
        return end

    @property
    def is_before_its_end(self) -> bool:
        """Whether a replay has come less far than it was let, and not for a debugger."""
        return self.replays and not self.debugged and self.count < self._count_end

    def left_for_io(self) -> None:
        """Let the time of an exit pass: the same in a recording and in each replay."""
        assert self.engine is not None
        self.engine.jump(_EXIT_NS)

    def after_exit(self, reason: int) -> None:
        """Stop for a debugger."""
        engine = self.engine
        assert engine is not None
        if engine.take_stop():
            self.hold("break")
        elif self._is_at_its_stop:
            if self.steps and reason == ExitReason.EPT_VIOLATION:
                assert self.stop_at is not None
                self.stop_at += 1  # the instruction begins again
            elif reason == ExitReason.EXTERNAL_INTERRUPT:
                self.hold("step" if self.steps else "count")
            # After any other exit the host has still to answer: it stops at the next entry, where it has.

    @property
    def _is_at_its_stop(self) -> bool:
        return self.stop_at is not None and self.count >= self.stop_at

    def idle(self, sleep: Callable[[float], bool], seconds: float, wake: Callable[[], None]) -> bool:
        """Pass the time of a HLT: until the next alarm or input, in a replay at once. True: a signal came."""
        engine = self.engine
        assert engine is not None
        self._sleeper, self._halted = wake, True
        if self._held or (not self.is_over and self._inputs(halted=True)):
            return self._held and sleep(seconds)
        due, now = self._due(), engine.counted_ns
        if self.replays:
            happening = self._next
            if happening is None:
                return sleep(seconds)
            if self._is_here(happening, halted=True) and self._comes_before(happening, due):
                engine.jump(max(0, happening.moment.ns - now))
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

    @property
    def _next(self) -> Happening | None:
        return self._script[self._at] if self._at < len(self._script) else None

    def _is_here(self, happening: Happening, halted: bool) -> bool:
        """Whether a happening of the script is at this place. A debugger may have come by more often."""
        count, visit, in_halt = happening.key
        if happening.kind == "end":  # what ended the recorded run may have come by as well
            return count == self.count and (halted or not in_halt)
        return count == self.count and visit <= self._visits and in_halt == halted

    @staticmethod
    def _comes_before(happening: Happening, due: int | None) -> bool:
        """Whether it is before an alarm. A recorded run may end at the moment when one was rung."""
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
        while (happening := self._next) is not None and happening.kind != "check":
            if happening.moment.count < self.count:
                self._lost(f"is past {happening.moment.count:,}, where the recorded run had its next event")
                break
            if not self._is_here(happening, halted) or (halted and happening.moment.ns > self.monotonic_ns()):
                break
            self._at += 1
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
        noted = self._next
        if noted is None:
            return
        if noted.kind == "end" and noted.moment.count == self.count:
            return  # it ended before it came to this
        if noted.kind != kind or noted.moment.count != happening.moment.count:
            self._lost(f"is at a {kind}; the recorded run had a {noted.kind} at {noted.moment.count:,} next")
            return
        self._at += 1
        if noted.moment.ns != happening.moment.ns:
            self._lost(f"has the time {happening.moment.ns:,} ns; the recorded run had {noted.moment.ns:,} ns")
        elif noted.data != data:
            pairs = zip(("RIP", "registers", "console"), noted.data.split(), data.split(), strict=False)
            differ = [f"{name} {now}, recorded {then}" for name, then, now in pairs if then != now]
            self._lost(f"has other contents: {'; '.join(differ) or 'it is not readable'}")

    def _lost(self, what: str) -> None:
        self._at = len(self._script)
        self.diverged(f"the replay diverged: at instruction {self.count:,} it {what}")

    def _state(self, context: GuestContext) -> str:
        return f"{context.rip:#x} {zlib.crc32(bytes(context.gpr)):08x} {self._console:08x}"


class BoardClock(Clock):
    """The board's clock of a counted machine: a host that lies about time sets it, at the same call each time."""

    rings_alarms = True
    __slots__ = ("_alarms", "_clock")

    def __init__(self, clock: CountedClock) -> None:
        super().__init__()
        self._clock = clock
        self._alarms: dict[int, _BoardAlarm] = {}

    def monotonic_ns(self) -> int:
        """As of any clock."""
        return self._clock.monotonic_ns() - self._behind_monotonic

    def monotonic(self) -> float:
        """The same in seconds."""
        return self.monotonic_ns() / 1e9

    def real_ns(self) -> int:
        """Return UTC, as the host has it."""
        return self._clock.real_ns()

    def time(self) -> float:
        """Return seconds since 1970, UTC, as the board has them."""
        return (self._clock.real_ns() - self._behind_real) / 1e9

    def serve(self, alarm: Alarm) -> bool:
        """Have ``alarm`` rung by the thread of the virtual CPU."""
        ours = self._alarms.setdefault(id(alarm), _BoardAlarm(alarm, self))
        return self._clock.serve(ours)

    @property
    def ahead_ns(self) -> int:
        """How far it is ahead of the machine's."""
        return -self._behind_monotonic

    def kept(self) -> list[Any]:
        """Return where it is."""
        return [self.monotonic_ns(), self._clock.real_ns() - self._behind_real]

    def go_on(self, kept: list[Any]) -> None:
        """Be there again; the machine's clock is already."""
        monotonic, real = kept
        self._behind_monotonic = self._clock.monotonic_ns() - monotonic
        self._behind_real = self._clock.real_ns() - real


@dataclass(frozen=True)
class _BoardAlarm:
    """An alarm by the board's clock, in terms of the machine's."""

    alarm: Alarm
    clock: BoardClock

    def due_ns(self) -> int | None:
        due = self.alarm.due_ns()
        return None if due is None else due - self.clock.ahead_ns

    def ring(self) -> None:
        self.alarm.ring()


class CountedProcessor(Processor):
    """A package with one virtual CPU, which is counted."""

    def __init__(self, platform: Platform, clock: CountedClock, chance: Chance) -> None:
        super().__init__(replace(platform, parallel=False))
        self.clock: CountedClock = clock
        clock.chance = chance
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
    _asked = False

    def kick(self) -> None:
        self._asked = True
        super().kick()

    def run(self) -> int:
        clock = self.clock
        clock.before_entry(self)
        reason: int = super().run()
        while reason == ExitReason.EXTERNAL_INTERRUPT and clock.is_before_its_end and not self._asked:
            reason = super().run()  # the host had reasons of its own, which no other replay has
        self._asked = False
        if reason in _IO:
            clock.left_for_io()
        if clock.debugged:
            clock.after_exit(reason)
        return reason
