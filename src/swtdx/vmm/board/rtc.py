# SPDX-License-Identifier: GPL-2.0-or-later
"""Real-time clock and CMOS memory: a Motorola MC146818 (data sheet) at ports 0x70/0x71, with a PC's memory-size bytes.

The time is the host's, in UTC.  A guest that sets the clock moves an offset, as a real chip would go on from there.
The alarm and the periodic interrupt are not wired: register C never reports an interrupt.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Callable
from enum import IntEnum

from swtdx.image.memory_map import MIB, MemoryMap
from swtdx.vmm.board.bus import PortBus

INDEX_PORT = 0x70
DATA_PORT = 0x71


class Register(IntEnum):
    """CMOS offsets."""

    SECONDS = 0x00
    MINUTES = 0x02
    HOURS = 0x04
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
_B_BINARY = 0x04
_B_24_HOURS = 0x02
_A_DEFAULT = 0x26  # 32.768 kHz time base, 1024 Hz periodic rate
_D_VALID = 0x80
_PM = 0x80
_TIME_REGISTERS = frozenset({0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09, 0x32})


class Rtc:
    """The clock. ``now`` gives seconds since 1970 (tests pass their own)."""

    def __init__(self, ports: PortBus, layout: MemoryMap, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._offset = 0.0
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
            return 0
        if index == Register.D:
            return _D_VALID
        return self._memory[index]

    def _write(self, port: int, size: int, value: int) -> None:
        index, value = self._index, value & 0xFF
        if index in (Register.C, Register.D):
            return
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

    def _latch_time(self) -> None:
        """Put the present time into the time registers."""
        now = time.gmtime(self._now() + self._offset)
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
        hour = self._memory[Register.HOURS]
        if self._memory[Register.B] & _B_24_HOURS:
            hour = self._decode(hour)
        else:
            hour = self._decode(hour & ~_PM) % 12 + (12 if hour & _PM else 0)
        decoded = [self._decode(self._memory[register]) for register in (
            Register.CENTURY, Register.YEAR, Register.MONTH, Register.DAY_OF_MONTH, Register.MINUTES, Register.SECONDS
        )]  # fmt: skip
        century, year, month, day, minute, second = decoded
        if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 60):
            return
        try:
            set_to = calendar.timegm((century * 100 + year, month, day, hour, minute, second, 0, 0, 0))
        except (ValueError, OverflowError):
            return
        self._offset = set_to - self._now()

    def _encode(self, value: int) -> int:
        return value if self._memory[Register.B] & _B_BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self._memory[Register.B] & _B_BINARY else (value >> 4) * 10 + (value & 15)
