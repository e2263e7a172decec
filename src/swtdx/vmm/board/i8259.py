# SPDX-License-Identifier: GPL-2.0-or-later
"""The pair of 8259A interrupt controllers (Intel 8259A data sheet, 231468), as far as guests program them.

Initialization words, mask, request and in-service registers and both kinds of EOI are there, so that software can find
the chips, remap and mask them.  What is left out: the INTR line to the CPU.  On this board interrupts go through the
I/O APIC; a TD could not take an interrupt from an 8259 anyway, since KVM only posts interrupts into it.
"""

from __future__ import annotations

from swtdx.vmm.board.bus import PortBus

MASTER_BASE = 0x20
SLAVE_BASE = 0xA0
EDGE_LEVEL_PORTS = (0x4D0, 0x4D1)

_ICW1 = 0x10
_ICW1_NEEDS_ICW4 = 0x01
_ICW1_SINGLE = 0x02
_OCW3 = 0x08
_OCW3_READ_REGISTER = 0x02
_OCW3_IN_SERVICE = 0x01
_OCW2_EOI = 0x20
_OCW2_SPECIFIC = 0x40


class _Chip:
    """One 8259A."""

    def __init__(self) -> None:
        self.request = 0
        self.in_service = 0
        self.mask = 0xFF
        self.vector_base = 0
        self._expecting: list[str] = []
        self._read_in_service = False

    def read_command(self, port: int, size: int) -> int:
        return self.in_service if self._read_in_service else self.request

    def write_command(self, port: int, size: int, value: int) -> None:
        if value & _ICW1:
            self.request = self.in_service = self.mask = 0
            self._read_in_service = False
            self._expecting = ["ICW2"]
            if not value & _ICW1_SINGLE:
                self._expecting.append("ICW3")
            if value & _ICW1_NEEDS_ICW4:
                self._expecting.append("ICW4")
        elif value & _OCW3:
            if value & _OCW3_READ_REGISTER:
                self._read_in_service = bool(value & _OCW3_IN_SERVICE)
        elif value & _OCW2_EOI:
            if value & _OCW2_SPECIFIC:
                self.in_service &= ~(1 << (value & 7))
            else:
                self.in_service &= self.in_service - 1  # the highest priority is the lowest bit

    def read_mask(self, port: int, size: int) -> int:
        return self.mask

    def write_mask(self, port: int, size: int, value: int) -> None:
        if not self._expecting:
            self.mask = value & 0xFF
        elif self._expecting.pop(0) == "ICW2":
            self.vector_base = value & 0xF8


class I8259Pair:
    """Master and slave with their edge/level control registers (ICH9 13.7.3)."""

    def __init__(self, ports: PortBus) -> None:
        self.master = _Chip()
        self.slave = _Chip()
        for base, chip in ((MASTER_BASE, self.master), (SLAVE_BASE, self.slave)):
            ports.attach([base], chip.read_command, chip.write_command)
            ports.attach([base + 1], chip.read_mask, chip.write_mask)
        self._level = [0, 0]
        ports.attach(EDGE_LEVEL_PORTS, lambda port, size: self._level[port & 1], self._write_level)

    def set_irq(self, line: int, level: bool) -> None:
        """Follow an interrupt line (0-15) in the request register."""
        chip = self.slave if line >= 8 else self.master
        bit = 1 << (line & 7)
        chip.request = chip.request | bit if level else chip.request & ~bit

    def _write_level(self, port: int, size: int, value: int) -> None:
        self._level[port & 1] = value & 0xFF
