# SPDX-License-Identifier: GPL-2.0-or-later
"""The 8254 interval timer (Intel 8254 data sheet, 231164) and port 0x61, as far as software measures time with them.

Three counters run at 1.193182 MHz from the moment they are loaded; their value, the latch command, the read-back
command and the output pin are derived from the clock, so that nothing ticks.  Counter 2's gate and output are bits of
port 0x61 (calibration loops use those).  What is left out: counter 0's interrupt. Guests of this board have the local
APIC timer.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from swtdx.vmm.board.bus import PortBus

BASE = 0x40
CONTROL_PORT = 0x43
NMI_STATUS_PORT = 0x61
CLOCK_HZ = 1_193_182

_MODE_RATE, _MODE_SQUARE = 2, 3
_LOW, _HIGH, _LOW_THEN_HIGH = 1, 2, 3
_GATE_2 = 0x01
_SPEAKER = 0x02
_REFRESH_TOGGLE = 0x10
_OUT_2 = 0x20


class _Counter:
    """One of the three counters."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._mode = 0
        self._access = _LOW_THEN_HIGH
        self._reload = 0x10000
        self._started = clock()
        self._gate = True
        self._elapsed_at_stop = 0
        self._latched: list[int] = []
        self._status: int | None = None
        self._high_next = False
        self._pending_low: int | None = None

    def control(self, access: int, mode: int) -> None:
        """A control word for this counter."""
        self._access, self._mode = access, mode if mode < 6 else mode - 4
        self._latched, self._high_next, self._pending_low, self._status = [], False, None, None

    def set_gate(self, gate: bool) -> None:
        """The gate input: counting stops while it is low and, in the reloading modes, restarts as it rises."""
        if gate == self._gate:
            return
        if not gate:
            self._elapsed_at_stop = self._elapsed()
        elif self._mode in (1, _MODE_RATE, _MODE_SQUARE, 5):
            self._started = self._clock()
        else:
            self._started = self._clock() - self._elapsed_at_stop * 1_000_000_000 // CLOCK_HZ
        self._gate = gate

    def write(self, value: int) -> None:
        """A byte of the count."""
        if self._access == _LOW:
            self._load(value)
        elif self._access == _HIGH:
            self._load(value << 8)
        elif self._pending_low is None:
            self._pending_low = value
        else:
            low, self._pending_low = self._pending_low, None
            self._load(value << 8 | low)

    def read(self) -> int:
        """A byte of the latched value, or of the running count."""
        if self._status is not None:
            status, self._status = self._status, None
            return status
        if self._latched:
            return self._latched.pop(0)
        value = self.value()
        if self._access == _LOW:
            return value & 0xFF
        if self._access == _HIGH:
            return value >> 8
        self._high_next = not self._high_next
        return value & 0xFF if self._high_next else value >> 8

    def latch(self) -> None:
        """The counter latch command: hold the present value until it is read."""
        if not self._latched:
            self._latched = self._as_bytes(self.value())

    def latch_status(self) -> None:
        """The status half of the read-back command: it is read before a latched count, and holds until it is read."""
        if self._status is None:
            self._status = self.output() << 7 | self._access << 4 | self._mode << 1

    def value(self) -> int:
        """The 16-bit count."""
        elapsed = self._elapsed()
        if self._mode in (_MODE_RATE, _MODE_SQUARE):
            step = 2 if self._mode == _MODE_SQUARE else 1
            return self._reload - elapsed * step % self._reload & 0xFFFF
        return self._reload - elapsed & 0xFFFF

    def output(self) -> int:
        """The OUT pin."""
        elapsed = self._elapsed()
        if self._mode == _MODE_RATE:
            return int(elapsed % self._reload != self._reload - 1)
        if self._mode == _MODE_SQUARE:
            return int(elapsed % self._reload < (self._reload + 1) // 2)
        return int(elapsed >= self._reload)

    def _load(self, value: int) -> None:
        self._reload = value or 0x10000
        self._started = self._clock()
        self._elapsed_at_stop = 0

    def _elapsed(self) -> int:
        if not self._gate:
            return self._elapsed_at_stop
        return (self._clock() - self._started) * CLOCK_HZ // 1_000_000_000

    def _as_bytes(self, value: int) -> list[int]:
        low, high = value & 0xFF, value >> 8
        return [low] if self._access == _LOW else [high] if self._access == _HIGH else [low, high]


class I8254:
    """The timer. ``clock`` gives nanoseconds (tests pass their own)."""

    def __init__(self, ports: PortBus, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._counters = [_Counter(clock) for _ in range(3)]
        self._port61 = 0
        self._counters[2].set_gate(False)
        ports.attach(range(BASE, BASE + 3), lambda port, size: self._counters[port - BASE].read(), self._write_count)
        ports.attach([CONTROL_PORT], None, self._write_control)
        ports.attach([NMI_STATUS_PORT], self._read_61, self._write_61)

    def _write_count(self, port: int, size: int, value: int) -> None:
        self._counters[port - BASE].write(value & 0xFF)

    def _write_control(self, port: int, size: int, value: int) -> None:
        select = value >> 6 & 3
        if select == 3:  # read-back: count and status of any counters, active low
            for index, counter in enumerate(self._counters):
                if value & 2 << index:
                    if not value & 0x20:
                        counter.latch()
                    if not value & 0x10:
                        counter.latch_status()
        elif not value >> 4 & 3:
            self._counters[select].latch()
        else:
            self._counters[select].control(value >> 4 & 3, value >> 1 & 7)

    def _read_61(self, port: int, size: int) -> int:
        # The refresh bit toggles every 15 microseconds or so; delay loops count its edges.
        refresh = _REFRESH_TOGGLE if self._clock() // 15_085 & 1 else 0
        return self._port61 | refresh | (_OUT_2 if self._counters[2].output() else 0)

    def _write_61(self, port: int, size: int, value: int) -> None:
        self._port61 = value & (_GATE_2 | _SPEAKER)
        self._counters[2].set_gate(bool(value & _GATE_2))
