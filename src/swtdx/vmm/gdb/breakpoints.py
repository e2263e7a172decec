# SPDX-License-Identifier: GPL-2.0-or-later
"""Breakpoints: INT3 put into memory, and the debug registers DR0-3 with DR7 (SDM volume 3, 18.2)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from swtdx.x86 import Dr7

INT3 = b"\xcc"
DEBUG_REGISTERS = 4
DR7_EXACT = Dr7.FIXED_1 | Dr7.GE  # GE is ignored by all processors since the P6
_LENGTH_CODES = {1: 0, 2: 1, 4: 3, 8: 2}


class Kind(IntEnum):
    """What `Z` and `z` packets number."""

    SOFTWARE = 0
    EXECUTE = 1
    WRITE = 2
    READ = 3  # x86 has no such thing
    ACCESS = 4


_DR7_TYPES = {Kind.EXECUTE: 0, Kind.WRITE: 1, Kind.ACCESS: 3}


class NoRoom(Exception):
    """All four debug registers are in use."""


@dataclass(frozen=True)
class Hardware:
    """One debug register's worth: ``length`` bytes at a linear address."""

    kind: Kind
    address: int
    length: int


@dataclass(frozen=True)
class Planted:
    """An INT3 in memory: where, and the byte that belongs there."""

    gpa: int
    original: int


class Breakpoints:
    """What the client has set. ``software`` by linear address; ``hardware`` by debug register."""

    def __init__(self) -> None:
        self.software: dict[int, Planted] = {}
        self.hardware: list[Hardware] = []

    def add_hardware(self, kind: Kind, address: int, length: int) -> None:
        """Raises `NoRoom`, or ValueError for what no debug register can express."""
        length = 1 if kind is Kind.EXECUTE else length
        if kind not in _DR7_TYPES or length not in _LENGTH_CODES or address % length:
            raise ValueError("a data breakpoint is 1, 2, 4 or 8 bytes at an address that is a multiple of that")
        new = Hardware(kind, address, length)
        if new in self.hardware:
            return
        if len(self.hardware) == DEBUG_REGISTERS:
            raise NoRoom
        self.hardware.append(new)

    def remove_hardware(self, kind: Kind, address: int, length: int) -> None:
        """Remove it, if it is set."""
        gone = Hardware(kind, address, 1 if kind is Kind.EXECUTE else length)
        if gone in self.hardware:
            self.hardware.remove(gone)

    def debug_registers(self) -> list[int]:
        """DR0 up to DR7, as KVM_SET_GUEST_DEBUG takes them."""
        registers = [0] * 8
        registers[7] = DR7_EXACT
        for number, breakpoint in enumerate(self.hardware):
            registers[number] = breakpoint.address
            nature = _DR7_TYPES[breakpoint.kind] | _LENGTH_CODES[breakpoint.length] << 2
            registers[7] |= 2 << 2 * number | nature << 16 + 4 * number
        return registers

    def met(self, reasons: int) -> Hardware | None:
        """The hardware breakpoint that bits 3:0 of a #DB's reasons speak of."""
        for number, breakpoint in enumerate(self.hardware):
            if reasons >> number & 1:
                return breakpoint
        return None

    def hide(self, gpa: int, data: bytes) -> bytes:
        """Memory read at ``gpa`` as the guest's owner wrote it, without our INT3s."""
        if not self.software:
            return data
        shown = bytearray(data)
        for planted in self.software.values():
            if 0 <= planted.gpa - gpa < len(shown) and shown[planted.gpa - gpa] == INT3[0]:
                shown[planted.gpa - gpa] = planted.original
        return bytes(shown)

    def keep(self, gpa: int, data: bytes) -> bytes:
        """``data`` is to be written at ``gpa``: what to write, so that the INT3s stay; they now hide the new bytes."""
        kept = bytearray(data)
        for address, planted in self.software.items():
            offset = planted.gpa - gpa
            if 0 <= offset < len(kept):
                self.software[address] = Planted(planted.gpa, kept[offset])
                kept[offset] = INT3[0]
        return bytes(kept)
