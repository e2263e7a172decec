# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI power management registers of the ICH9: the PM timer, PM1 event and control blocks, and the reset port.

The block sits where the LPC bridge's PMBASE says; firmware puts it at 0x600 (ICH9 data sheet 13.8.3; ACPI 4.8.3).
The timer counts 3.579545 MHz in 24 bits; polling it is most of what firmware asks of a VMM, so its read is the shortest
function here.  Writing SLP_EN with the S5 type to PM1_CNT powers off.  Port 0xcf9 resets (ICH9 13.7.5).

Power-off and reset only note that they happened: the run loop sees it after the exit.

The one event that there is, is the alarm of the real-time clock (RTC_STS, RTC_EN): with it Linux wakes from suspend to
idle.  It interrupts by the SCI while it is enabled and not cleared.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum

from swtdx.image.io_map import FIRMWARE_PMBASE, PM1_CNT, PM1_EN, PM1_STS, PM_TIMER, RESET_PORT, SLEEP_TYPE_S5
from swtdx.vmm.board.bus import PortBus

_BLOCK_LENGTH = 0x80
TIMER_HZ = 3_579_545
_TIMER_MASK = (1 << 24) - 1

_RESET_CPU = 0x04

SLEEP_ENABLE = 0x2000
_SLEEP_TYPE_SHIFT = 10
_SCI_ENABLE = 1
RTC_EVENT = 1 << 10  # in PM1_STS and PM1_EN (ACPI 4.8.3.1)


class PowerEvent(Enum):
    """What the guest asked the board for."""

    POWER_OFF = "power off"
    RESET = "reset"
    DEBUG_EXIT = "debug exit"


class AcpiPm:
    """The register block and the reset port.

    ``request`` gets what the guest asks for, ``set_sci`` the level of the system control interrupt; ``clock`` gives
    seconds.
    """

    def __init__(
        self,
        ports: PortBus,
        request: Callable[[PowerEvent], object],
        clock: Callable[[], float] = time.monotonic,
        set_sci: Callable[[bool], object] = lambda level: None,
    ) -> None:
        self._ports = ports
        self._request = request
        self._clock = clock
        self._set_sci = set_sci
        self._sci = False
        self._events = 0
        self._enabled_events = 0
        self._control = _SCI_ENABLE  # there is no SMM to switch ACPI mode on: it is on
        self._base: int | None = None
        self._reset_control = 0
        ports.attach([RESET_PORT], lambda port, size: self._reset_control, self._write_reset)
        self.move(FIRMWARE_PMBASE)

    def move(self, base: int | None) -> None:
        """Put the block at port ``base``, or nowhere."""
        if base == self._base:
            return
        if self._base is not None:
            for port in range(self._base, self._base + _BLOCK_LENGTH):
                self._ports.reads.pop(port, None)
                self._ports.writes.pop(port, None)
        self._base = base
        if base is None:
            return
        # The firmware programs this address; it may put it onto other devices, whose handlers then give way.
        reads, writes = self._ports.reads, self._ports.writes
        reads[base + PM_TIMER] = self._timer_reader()
        reads[base + PM1_STS] = lambda port, size: self._events | self._enabled_events << 16
        writes[base + PM1_STS] = self._write_status
        reads[base + PM1_EN] = lambda port, size: self._enabled_events
        writes[base + PM1_EN] = self._write_enable
        reads[base + PM1_CNT] = lambda port, size: self._control
        writes[base + PM1_CNT] = self._write_control

    def _timer_reader(self) -> Callable[[int, int], int]:
        clock = self._clock

        def read_timer(port: int, size: int) -> int:
            return int(clock() * TIMER_HZ) & _TIMER_MASK

        return read_timer

    def kept(self) -> int | None:
        """Return where the block is."""
        return self._base

    def go_on(self, kept: int | None) -> None:
        """Put the block there."""
        self.move(kept)

    def use_clock(self, clock: Callable[[], float]) -> None:
        """Count by another clock from now on: the machine was restored, and its time is no longer the host's."""
        self._clock = clock
        if self._base is not None:
            self._ports.reads[self._base + PM_TIMER] = self._timer_reader()

    def rtc_alarm(self) -> None:
        """The alarm of the real-time clock interrupts."""
        self._events |= RTC_EVENT
        self._update_sci()

    def _update_sci(self) -> None:
        level = bool(self._events & self._enabled_events)
        if level != self._sci:
            self._sci = level
            self._set_sci(level)

    def _write_status(self, port: int, size: int, value: int) -> None:
        """Ones clear. An access of 32 bits reaches PM1_EN too."""
        self._events &= ~value
        if size == 4:
            self._enabled_events = value >> 16
        self._update_sci()

    def _write_enable(self, port: int, size: int, value: int) -> None:
        self._enabled_events = value & 0xFFFF
        self._update_sci()

    def _write_control(self, port: int, size: int, value: int) -> None:
        self._control = value & 0x1C06 | _SCI_ENABLE
        if value & SLEEP_ENABLE and value >> _SLEEP_TYPE_SHIFT & 7 == SLEEP_TYPE_S5:
            self._request(PowerEvent.POWER_OFF)

    def _write_reset(self, port: int, size: int, value: int) -> None:
        self._reset_control = value & 0x0E & ~_RESET_CPU
        if value & _RESET_CPU:
            self._request(PowerEvent.RESET)
