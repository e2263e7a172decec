# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtio driver in Python: finds the device as firmware does, gives it addresses, and writes its rings by hand.

All numbers are those of the Virtual I/O Device specification 1.2 and of the PCI specifications, not the device's code.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from swtdx.image.memory_map import MIB, MemoryMap
from swtdx.vmm.board.bus import MmioBus, PortBus
from swtdx.vmm.board.ioapic import Msi
from swtdx.vmm.board.q35 import Board
from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.memory import GuestMemory

RAM = 2 * MIB
MSIX_BAR, VIRTIO_BAR = 0xC000_0000, 0x70_0000_0000
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET = 1, 2, 4, 8, 64
VERSION_1, ACCESS_PLATFORM, INDIRECT = 1 << 32, 1 << 33, 1 << 28
NEXT, WRITE, INDIRECT_FLAG = 1, 2, 4


class Config:
    """Configuration space of one function by ports 0xcf8 and 0xcfc."""

    def __init__(self, ports: PortBus, slot: int) -> None:
        self.ports, self.slot = ports, slot

    def read(self, register: int, size: int = 4) -> int:
        self.ports.write(0xCF8, 4, 0x8000_0000 | self.slot << 11 | register & 0xFC)
        return self.ports.read(0xCFC + (register & 3), size)

    def write(self, register: int, value: int, size: int = 4) -> None:
        self.ports.write(0xCF8, 4, 0x8000_0000 | self.slot << 11 | register & 0xFC)
        self.ports.write(0xCFC + (register & 3), size, value)

    def capabilities(self) -> list[tuple[int, int]]:
        """(id, offset), in the order of the list."""
        found, at = [], self.read(0x34, 1)
        while at:
            found.append((self.read(at, 1), at))
            at = self.read(at + 1, 1)
        return found


class Bench:
    """A board with one virtio device, memory, and what the device sends and says."""

    def __init__(self, *devices: VirtioDevice) -> None:
        self.memory = GuestMemory()
        self.memory.add(0, RAM)
        self.msis: list[Msi] = []
        self.said: list[str] = []
        self.serial = bytearray()
        self.board = Board(
            MemoryMap(RAM, MIB), self.memory, 1, serial=self.serial.extend, signal_msi=self.msis.append,
            route_msis=lambda routes: None,
        )  # fmt: skip
        for device in devices:
            self.board.plug(device, self.memory, self.said.append)


class Driver:
    """The driver of the device in ``slot``; brings the device up with MSI-X, queues of ``size`` at fixed places."""

    def __init__(self, bench: Bench, slot: int = 1, *, size: int = 16, msix: bool = True, start: bool = True) -> None:
        self.bench, self.size = bench, size
        self.mmio: MmioBus = bench.board.mmio
        self.config = Config(bench.board.ports, slot)
        self.config.write(0x14, MSIX_BAR)
        self.config.write(0x20, VIRTIO_BAR & 0xFFFF_FFFF)
        self.config.write(0x24, VIRTIO_BAR >> 32)
        self.config.write(0x04, 0x6, 2)  # memory, bus master
        self.parts = self._find_parts()
        self.msix = next(at for kind, at in self.config.capabilities() if kind == 0x11)
        self.queues: list[Queue] = []
        if msix:
            for vector in range(self.common(0x12, 2) + 1):
                self.mmio.write(MSIX_BAR + 16 * vector, 8, 0xFEE0_0000)
                self.mmio.write(MSIX_BAR + 16 * vector + 8, 4, 0x40 + vector)
                self.mmio.write(MSIX_BAR + 16 * vector + 12, 4, 0)
            self.config.write(self.msix + 2, 0x8000, 2)
        if start:
            self.negotiate(VERSION_1 | ACCESS_PLATFORM)
            self.set_common(0x10, 2, 0)
            for number in range(self.common(0x12, 2)):
                self.queues.append(Queue(self, number))
            self.set_common(0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK)

    def _find_parts(self) -> dict[int, tuple[int, int]]:
        """cfg_type -> (address, length) of each virtio structure; also the multiplier of notifications."""
        parts = {}
        for kind, at in self.config.capabilities():
            if kind == 0x09 and self.config.read(at + 3, 1) != 5:
                assert self.config.read(at + 4, 1) == 4
                place = VIRTIO_BAR + self.config.read(at + 8), self.config.read(at + 12)
                parts[self.config.read(at + 3, 1)] = place
                if self.config.read(at + 3, 1) == 2:
                    self.multiplier = self.config.read(at + 16)
        return parts

    def common(self, register: int, size: int) -> int:
        return self.mmio.read(self.parts[1][0] + register, size)

    def set_common(self, register: int, size: int, value: int) -> None:
        self.mmio.write(self.parts[1][0] + register, size, value)

    @property
    def status(self) -> int:
        return self.common(0x14, 1)

    @property
    def isr(self) -> int:
        return self.mmio.read(self.parts[3][0], 1)

    def device_config(self, offset: int, size: int) -> int:
        return self.mmio.read(self.parts[4][0] + offset, size)

    @property
    def features(self) -> int:
        value = 0
        for word in (0, 1):
            self.set_common(0x00, 4, word)
            value |= self.common(0x04, 4) << 32 * word
        return value

    def negotiate(self, features: int) -> bool:
        """Reset and accept ``features``; whether the device agrees."""
        self.set_common(0x14, 1, 0)
        assert self.status == 0
        self.set_common(0x14, 1, ACKNOWLEDGE)
        self.set_common(0x14, 1, ACKNOWLEDGE | DRIVER)
        for word in (0, 1):
            self.set_common(0x08, 4, word)
            self.set_common(0x0C, 4, features >> 32 * word & 0xFFFF_FFFF)
        self.set_common(0x14, 1, ACKNOWLEDGE | DRIVER | FEATURES_OK)
        return bool(self.status & FEATURES_OK)

    def notify(self, number: int) -> None:
        self.set_common(0x16, 2, number)
        offset = self.common(0x1E, 2)
        self.mmio.write(self.parts[2][0] + offset * self.multiplier, 2, number)


class Queue:
    """A split virtqueue. Buffers are (address, bytes to write or length to read)."""

    def __init__(self, driver: Driver, number: int) -> None:
        self.driver, self.number, self.memory = driver, number, driver.bench.memory
        self.base = 0x1_0000 * (number + 1)
        self.table, self.available, self.used = self.base, self.base + 0x1000, self.base + 0x2000
        self.index = self.seen = 0
        self.memory.write(self.base, bytes(0x3000))
        driver.set_common(0x16, 2, number)
        driver.set_common(0x18, 2, driver.size)
        driver.set_common(0x1A, 2, number + 1)
        for register, address in ((0x20, self.table), (0x28, self.available), (0x30, self.used)):
            driver.set_common(register, 4, address & 0xFFFF_FFFF)
            driver.set_common(register + 4, 4, address >> 32)
        driver.set_common(0x1C, 2, 1)

    def describe(self, slot: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.memory.write(self.table + 16 * slot, struct.pack("<QIHH", address, length, flags, following))

    def chain(self, buffers: Sequence[tuple[int, int, int]], first: int = 0) -> None:
        """Descriptors from ``first`` on: (address, length, WRITE or 0)."""
        for position, (address, length, flags) in enumerate(buffers):
            last = position == len(buffers) - 1
            number = first + position
            self.describe(number, address, length, flags | (0 if last else NEXT), 0 if last else number + 1)

    def offer(self, *heads: int) -> None:
        for head in heads:
            self.memory.write(self.available + 4 + 2 * (self.index % self.driver.size), struct.pack("<H", head))
            self.index = self.index + 1 & 0xFFFF
        self.memory.write(self.available + 2, struct.pack("<H", self.index))

    def submit(self, *buffers: tuple[int, int, int], first: int = 0) -> None:
        """One chain, offered and notified."""
        self.chain(buffers, first)
        self.offer(first)
        self.driver.notify(self.number)

    def completed(self) -> list[tuple[int, int]]:
        """(head, bytes written) of what has been used since the last call."""
        (index,) = struct.unpack("<H", self.memory.read(self.used + 2, 2))
        found = []
        while self.seen != index:
            place = self.used + 4 + 8 * (self.seen % self.driver.size)
            found.append(struct.unpack("<II", self.memory.read(place, 8)))
            self.seen = self.seen + 1 & 0xFFFF
        return found
