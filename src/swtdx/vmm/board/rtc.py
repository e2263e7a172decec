# SPDX-License-Identifier: GPL-2.0-or-later
"""Real-time clock and CMOS memory: a Motorola MC146818 (data sheet) at ports 0x70/0x71, with a PC's memory-size bytes.

The time is the host's, in UTC.  A guest that sets the clock moves an offset, as a real chip would go on from there.

Three things interrupt, by IRQ 8: the end of an update (each second), the alarm, and a periodic tick.  Their flags in
register C are set whether or not register B lets them interrupt; reading C clears them.  Nothing ticks here: flags
follow from the time that has passed at the next access, and a timer is set only for the next moment at which a flag
that is clear and enabled would be set.  So a guest that does not acknowledge a tick gets no further ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import IntEnum

from swtdx.image.memory_map import MIB, MemoryMap
from swtdx.vmm.board.bus import PortBus

RTC_IRQ = 8
INDEX_PORT = 0x70
DATA_PORT = 0x71


class Register(IntEnum):
    """CMOS offsets."""

    SECONDS = 0x00
    SECONDS_ALARM = 0x01
    MINUTES = 0x02
    MINUTES_ALARM = 0x03
    HOURS = 0x04
    HOURS_ALARM = 0x05
    DAY_OF_WEEK = 0x06
    DAY_OF_MONTH = 0x07
    MONTH = 0x08
    YEAR = 0x09
    A = 0x0A
    B = 0x0B
    C = 0x0C
    D = 0x0D
    EXTENDED_MEMORY_LOW = 0x30  # KiB above 1 MiB, at most 64 MiB
    EXTENDED_MEMORY_HIGH = 0x31
    CENTURY = 0x32
    MEMORY_ABOVE_16M_LOW = 0x34  # 64 KiB units above 16 MiB, below 4 GiB
    MEMORY_ABOVE_16M_HIGH = 0x35
    MEMORY_ABOVE_4G = 0x5B  # 3 bytes, 64 KiB units


_B_SET = 0x80  # the guest is writing the time
_PERIODIC, _ALARM, _UPDATE = 0x40, 0x20, 0x10  # enabled in register B, flagged in register C
_INTERRUPTS = _PERIODIC | _ALARM | _UPDATE
_C_INTERRUPT = 0x80
_DO_NOT_CARE = 0xC0
_TIME_BASE = 32_768
_A_RATE = 0x0F
_DAY = 86_400
_B_BINARY = 0x04
_B_24_HOURS = 0x02
_A_DEFAULT = 0x26  # 32.768 kHz time base, 1024 Hz periodic rate
_D_VALID = 0x80
_PM = 0x80
_TIME_REGISTERS = frozenset({0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32})


class Rtc:
    """The clock. ``now`` gives seconds since 1970 (tests pass their own).

    ``set_irq`` gets the level of IRQ 8, ``alarm`` is called when the alarm interrupts, and ``set_timer`` with the
    seconds after which `tick` is to be called, or None.
    """

    def __init__(
        self,
        ports: PortBus,
        layout: MemoryMap,
        now: Callable[[], float] = time.time,
        *,
        set_irq: Callable[[bool], object] = lambda level: None,
        alarm: Callable[[], object] = lambda: None,
        set_timer: Callable[[float | None], object] = lambda delay: None,
    ) -> None:
        self._now = now
        self._set_irq = set_irq
        self._alarm = alarm
        self._set_timer = set_timer
        self._offset = 0.0
        self._flags = 0  # of register C
        self._irq = False
        self._seen = now()  # until when what has passed is in the flags
        self._index = 0
        self._memory = bytearray(128)
        self._memory[Register.A] = _A_DEFAULT
        self._memory[Register.B] = _B_24_HOURS
        extended = min(max(layout.low_size - MIB, 0) // 1024, 0xFFFF)
        above_16m = min(max(layout.low_size - 16 * MIB, 0) // 0x10000, 0xFFFF)
        self._memory[Register.EXTENDED_MEMORY_LOW : Register.EXTENDED_MEMORY_HIGH + 1] = extended.to_bytes(2, "little")
        self._memory[Register.MEMORY_ABOVE_16M_LOW : Register.MEMORY_ABOVE_16M_HIGH + 1] = above_16m.to_bytes(
            2, "little"
        )
        above_4g = min(layout.high_size // 0x10000, 0xFFFFFF)
        self._memory[Register.MEMORY_ABOVE_4G : Register.MEMORY_ABOVE_4G + 3] = above_4g.to_bytes(3, "little")
        ports.attach([INDEX_PORT], None, self._write_index)
        ports.attach([DATA_PORT], self._read, self._write)

    def _write_index(self, port: int, size: int, value: int) -> None:
        self._index = value & 0x7F  # bit 7 masks NMI, of which there is none

    def _read(self, port: int, size: int) -> int:
        index = self._index
        if index in _TIME_REGISTERS and not self._memory[Register.B] & _B_SET:
            self._latch_time()
        if index == Register.C:
            return self._acknowledge()
        if index == Register.D:
            return _D_VALID
        return self._memory[index]

    def _write(self, port: int, size: int, value: int) -> None:
        index, value = self._index, value & 0xFF
        if index in (Register.C, Register.D):
            return
        self._catch_up()
        self._change(index, value)
        self._seen = self._clock()
        self._settle()

    def _change(self, index: int, value: int) -> None:
        if index == Register.A:
            value &= 0x7F  # UIP is the chip's; an update takes no time here
        if index == Register.B:
            was_setting = self._memory[Register.B] & _B_SET
            if value & _B_SET and not was_setting:
                self._latch_time()
            self._memory[index] = value
            if was_setting and not value & _B_SET:
                self._take_time()
            return
        if index in _TIME_REGISTERS and not self._memory[Register.B] & _B_SET:
            self._latch_time()
            self._memory[index] = value
            self._take_time()
            return
        self._memory[index] = value

    # --- Interrupts ---------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """The time that was asked for has come."""
        self._catch_up()
        self._settle()

    def _clock(self) -> float:
        """The time that the chip shows, in seconds since 1970."""
        return self._now() + self._offset

    def _acknowledge(self) -> int:
        """Read register C."""
        self._catch_up()
        flags, enabled = self._flags, self._memory[Register.B] & _INTERRUPTS
        self._flags = 0
        self._settle()
        return flags | (_C_INTERRUPT if flags & enabled else 0)

    def _catch_up(self) -> None:
        """Set the flags of what has happened since the last look."""
        now, seen = self._clock(), self._seen
        if now <= seen:
            self._seen = now  # the host's clock went back
            return
        rate = self._periodic_rate
        if rate and int(now * rate) > int(seen * rate):
            self._flags |= _PERIODIC
        if not self._memory[Register.B] & _B_SET:
            if int(now) > int(seen):
                self._flags |= _UPDATE
            alarm = self._next_alarm(seen)
            if alarm is not None and alarm <= now and not self._flags & _ALARM:
                self._flags |= _ALARM
                if self._memory[Register.B] & _ALARM:
                    self._alarm()
        self._seen = now

    def _settle(self) -> None:
        """Drive the line, and ask to be called when it has to rise."""
        enabled = self._memory[Register.B] & _INTERRUPTS
        level = bool(self._flags & enabled)
        if level != self._irq:
            self._irq = level
            self._set_irq(level)
        now, due = self._seen, []
        missing = enabled & ~self._flags & (_ALARM if level else _INTERRUPTS)
        rate = self._periodic_rate
        if missing & _PERIODIC and rate:
            due.append((int(now * rate) + 1) / rate)
        if not self._memory[Register.B] & _B_SET:
            if missing & _UPDATE:
                due.append(int(now) + 1.0)
            if missing & _ALARM and (alarm := self._next_alarm(now)) is not None:
                due.append(alarm)
        self._set_timer(min(due) - self._clock() if due else None)

    @property
    def _periodic_rate(self) -> int:
        """Ticks a second as register A says, 0 for none (data sheet, table 5)."""
        select = self._memory[Register.A] & _A_RATE
        if not select:
            return 0
        return _TIME_BASE >> (select + 6 if select < 3 else select - 1)

    def _next_alarm(self, after: float) -> float | None:
        """The first full second after ``after`` at which the alarm's registers agree with the time."""
        memory = self._memory
        second, minute, hour = (
            None if memory[register] & _DO_NOT_CARE == _DO_NOT_CARE else memory[register]
            for register in (Register.SECONDS_ALARM, Register.MINUTES_ALARM, Register.HOURS_ALARM)
        )
        wanted_second = None if second is None else self._decode(second)
        wanted_minute = None if minute is None else self._decode(minute)
        wanted_hour = None if hour is None else self._decode_hour(hour)
        moment = int(after) + 1
        end = moment + _DAY
        while moment < end:
            if wanted_hour is not None and moment // 3600 % 24 != wanted_hour:
                moment = (moment // 3600 + 1) * 3600
            elif wanted_minute is not None and moment // 60 % 60 != wanted_minute:
                moment = (moment // 60 + 1) * 60
            elif wanted_second is not None and moment % 60 != wanted_second:
                moment += 1
            else:
                return float(moment)
        return None  # no time of day is so

    # --- The time -----------------------------------------------------------------------------------------------------

    def _latch_time(self) -> None:
        """Put the present time into the time registers."""
        now = time.gmtime(self._clock())
        hour, flag = now.tm_hour, 0
        if not self._memory[Register.B] & _B_24_HOURS:
            flag = _PM if hour >= 12 else 0
            hour = hour % 12 or 12
        self._memory[Register.SECONDS] = self._encode(min(now.tm_sec, 59))
        self._memory[Register.MINUTES] = self._encode(now.tm_min)
        self._memory[Register.HOURS] = self._encode(hour) | flag
        self._memory[Register.DAY_OF_WEEK] = self._encode((now.tm_wday + 1) % 7 + 1)  # 1 is Sunday
        self._memory[Register.DAY_OF_MONTH] = self._encode(now.tm_mday)
        self._memory[Register.MONTH] = self._encode(now.tm_mon)
        self._memory[Register.YEAR] = self._encode(now.tm_year % 100)
        self._memory[Register.CENTURY] = self._encode(now.tm_year // 100)

    def _take_time(self) -> None:
        """Continue from the time that the guest has set. What is not a valid date does not change the clock."""
        hour = self._decode_hour(self._memory[Register.HOURS])
        decoded = [self._decode(self._memory[register]) for register in (
            Register.CENTURY, Register.YEAR, Register.MONTH, Register.DAY_OF_MONTH, Register.MINUTES, Register.SECONDS
        )]  # fmt: skip
        century, year, month, day, minute, second = decoded
        if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60):
            return
        import calendar  # with datetime and locale: few guests set the clock

        try:
            set_to = calendar.timegm((century * 100 + year, month, day, hour, minute, second, 0, 0, 0))
        except (ValueError, OverflowError):
            return
        self._offset = set_to - self._now()

    def _decode_hour(self, value: int) -> int:
        if self._memory[Register.B] & _B_24_HOURS:
            return self._decode(value)
        return self._decode(value & ~_PM) % 12 + (12 if value & _PM else 0)

    def _encode(self, value: int) -> int:
        # A host can have the clock at any year; the chip has two digits for the century.
        return (value if self._memory[Register.B] & _B_BINARY else value // 10 << 4 | value % 10) & 0xFF

    def _decode(self, value: int) -> int:
        return value if self._memory[Register.B] & _B_BINARY else (value >> 4) * 10 + (value & 15)
