# SPDX-License-Identifier: GPL-2.0-or-later
"""The two buses of the board: 64 KiB of I/O ports, and memory-mapped registers.

A port access is the hottest thing a VMM does (firmware polls the PM timer hundreds of thousands of times), so the port
bus is two dictionaries from port number to handler, which the run loop uses directly. A handler gets the port and the
size in bytes and answers with an integer; a port without a device reads as all ones and drops writes, as on real
hardware. MMIO is rare on this board and is searched by range.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

PortRead = Callable[[int, int], int]  # port, size -> value
PortWrite = Callable[[int, int, int], None]  # port, size, value


class PortBus:
    """I/O ports. ``reads`` and ``writes`` are public for the run loop; ports not in them have no device."""

    def __init__(self) -> None:
        self.reads: dict[int, PortRead] = {}
        self.writes: dict[int, PortWrite] = {}

    def attach(self, ports: Iterable[int], read: PortRead | None = None, write: PortWrite | None = None) -> None:
        """Put handlers on ``ports``. Raises `ValueError` where there is one already, which is a bug."""
        for port in ports:
            if read is not None:
                if port in self.reads:
                    raise ValueError(f"port {port:#x} has a reader already")
                self.reads[port] = read
            if write is not None:
                if port in self.writes:
                    raise ValueError(f"port {port:#x} has a writer already")
                self.writes[port] = write

    def read(self, port: int, size: int) -> int:
        """What an IN of ``size`` bytes gives."""
        handler = self.reads.get(port)
        mask = (1 << 8 * size) - 1
        return mask if handler is None else handler(port, size) & mask

    def write(self, port: int, size: int, value: int) -> None:
        """An OUT of ``size`` bytes."""
        handler = self.writes.get(port)
        if handler is not None:
            handler(port, size, value)


class MmioDevice(Protocol):
    """Registers in memory; ``offset`` counts from the start of the range."""

    def mmio_read(self, offset: int, size: int) -> int: ...

    def mmio_write(self, offset: int, size: int, value: int) -> None: ...


@dataclass
class MmioRange:
    """Where a device's registers are at the moment (PCIEXBAR moves, so this is not frozen). ``length`` 0: nowhere."""

    start: int
    length: int
    device: MmioDevice


class MmioBus:
    """Memory-mapped registers."""

    def __init__(self) -> None:
        self._ranges: list[MmioRange] = []

    def attach(self, start: int, length: int, device: MmioDevice) -> MmioRange:
        """Add a device; the device that decodes the address may move it later."""
        added = MmioRange(start, length, device)
        self._ranges.append(added)
        return added

    def read(self, address: int, size: int) -> int:
        for one in self._ranges:
            if one.start <= address < one.start + one.length:
                return one.device.mmio_read(address - one.start, size) & ((1 << 8 * size) - 1)
        return (1 << 8 * size) - 1

    def write(self, address: int, size: int, value: int) -> None:
        for one in self._ranges:
            if one.start <= address < one.start + one.length:
                one.device.mmio_write(address - one.start, size, value)
                return
