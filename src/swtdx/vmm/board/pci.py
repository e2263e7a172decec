# SPDX-License-Identifier: GPL-2.0-or-later
"""PCI configuration space: bus 0 with the two functions that a q35 cannot be without.

- 00:00.0, the Q35 host bridge (8086:29c0; Intel 3 Series Express Chipset Family data sheet, 316966), by whose device id
  firmware knows the board, and whose PCIEXBAR (0x60) says where configuration space is mapped into memory (ECAM);
- 00:1f.0, the ICH9 LPC bridge (8086:2918; Intel ICH9 data sheet, 316972) with PMBASE (0x40) and ACPI_CNTL (0x44), which
  put the ACPI registers into port space.

Configuration is reached by mechanism #1 (ports 0xcf8 and 0xcfc, PCI Local Bus specification 3.2.2.3) and by ECAM (PCI
Express base specification 7.2.2).  A function that is not there reads as all ones.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from swtdx.vmm.board.bus import MmioBus, MmioRange, PortBus

CONFIG_ADDRESS = 0xCF8
CONFIG_DATA = 0xCFC
_ENABLE = 0x8000_0000
CONFIG_SPACE_SIZE = 4096

HOST_BRIDGE = (0x00, 0)  # (device, function) on bus 0
LPC_BRIDGE = (0x1F, 0)

VENDOR_INTEL = 0x8086
Q35_HOST_BRIDGE = 0x29C0
ICH9_LPC_BRIDGE = 0x2918

PCIEXBAR = 0x60  # host bridge, 64 bits
PCIEXBAR_ENABLE = 1
_PCIEXBAR_SIZES = {0: 256 << 20, 1: 128 << 20, 2: 64 << 20}  # bits 2:1
_PCIEXBAR_ADDRESS_BITS = ((1 << 36) - 1) & ~((64 << 20) - 1)
PMBASE = 0x40  # LPC bridge
_PMBASE_ADDRESS_BITS = 0xFF80
_PMBASE_IS_IO = 1
ACPI_CNTL = 0x44
ACPI_ENABLE = 0x80

_HEADER = struct.Struct("<HHHHBBBBBBBB")
_COMMAND_IO_MEMORY_MASTER = 7


class ConfigSpace:
    """Configuration registers of one function: 4 KiB, writable where ``writable`` has bits set."""

    def __init__(self, vendor: int, device: int, class_code: int, revision: int = 0, header_type: int = 0) -> None:
        self.registers = bytearray(CONFIG_SPACE_SIZE)
        self.writable = bytearray(CONFIG_SPACE_SIZE)
        _HEADER.pack_into(
            self.registers, 0, vendor, device, _COMMAND_IO_MEMORY_MASTER, 0,
            revision, class_code & 0xFF, class_code >> 8 & 0xFF, class_code >> 16, 0, 0, header_type, 0,
        )  # fmt: skip
        self.allow_writes(0x04, (_COMMAND_IO_MEMORY_MASTER | 0x540).to_bytes(2, "little"))
        self.allow_writes(0x3C, b"\xff")  # interrupt line: a note of the firmware to the system
        self._observers: list[tuple[range, Callable[[], None]]] = []

    def allow_writes(self, offset: int, mask: bytes) -> None:
        """Make the bits of ``mask`` writable from ``offset`` on."""
        self.writable[offset : offset + len(mask)] = mask

    def observe(self, offset: int, length: int, changed: Callable[[], None]) -> None:
        """Call ``changed`` after a write that touches these registers."""
        self._observers.append((range(offset, offset + length), changed))

    def value(self, offset: int, size: int) -> int:
        return int.from_bytes(self.registers[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        """A configuration write, as far as the bits are writable."""
        for position, byte in enumerate(value.to_bytes(size, "little"), offset):
            mask = self.writable[position]
            self.registers[position] = self.registers[position] & ~mask & 0xFF | byte & mask
        for registers, changed in self._observers:
            if offset < registers.stop and registers.start < offset + size:
                changed()


class PciBus:
    """Bus 0 behind both access mechanisms."""

    def __init__(self, ports: PortBus, mmio: MmioBus) -> None:
        self._address = 0
        self.functions: dict[tuple[int, int], ConfigSpace] = {}
        self.ecam: MmioRange = mmio.attach(0, 0, self)
        ports.attach([CONFIG_ADDRESS], self._read_address, self._write_address)
        ports.attach(range(CONFIG_DATA, CONFIG_DATA + 4), self._read_data, self._write_data)

    def attach(self, place: tuple[int, int], function: ConfigSpace) -> None:
        """Put a function at (device, function)."""
        self.functions[place] = function

    def mmio_read(self, offset: int, size: int) -> int:
        function = self._decode(offset >> 12)
        return -1 if function is None else function.value(offset & 0xFFF, size)

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        function = self._decode(offset >> 12)
        if function is not None and (offset & 0xFFF) + size <= CONFIG_SPACE_SIZE:
            function.write(offset & 0xFFF, size, value)

    def _decode(self, bus_device_function: int) -> ConfigSpace | None:
        if bus_device_function >> 8:
            return None
        return self.functions.get((bus_device_function >> 3, bus_device_function & 7))

    def _read_address(self, port: int, size: int) -> int:
        return self._address if size == 4 else -1

    def _write_address(self, port: int, size: int, value: int) -> None:
        if size == 4:  # narrower accesses pass through to the bus (0xcf9 is a device of its own)
            self._address = value & 0x80FF_FFFC

    def _read_data(self, port: int, size: int) -> int:
        function = self._selected()
        return -1 if function is None else function.value((self._address & 0xFC) + (port & 3), size)

    def _write_data(self, port: int, size: int, value: int) -> None:
        function = self._selected()
        if function is not None:
            function.write((self._address & 0xFC) + (port & 3), size, value)

    def _selected(self) -> ConfigSpace | None:
        if not self._address & _ENABLE:
            return None
        return self._decode(self._address >> 8 & 0xFFFF)


def host_bridge(bus: PciBus, ecam_moved: Callable[[int], None] = lambda base: None) -> ConfigSpace:
    """The Q35 host bridge; its PCIEXBAR moves the bus's ECAM window, and ``ecam_moved`` is told where to."""
    bridge = ConfigSpace(VENDOR_INTEL, Q35_HOST_BRIDGE, 0x060000)
    bridge.allow_writes(PCIEXBAR, (_PCIEXBAR_ADDRESS_BITS | 7).to_bytes(8, "little"))
    bridge.allow_writes(0x90, b"\x30" + b"\x33" * 6)  # PAM0-PAM6: remembered; RAM is RAM on this board
    bridge.allow_writes(0x9D, b"\x40")  # SMRAM: there is no SMM, D_OPN has nothing to open

    def pciexbar_changed() -> None:
        value = bridge.value(PCIEXBAR, 8)
        size = _PCIEXBAR_SIZES.get(value >> 1 & 3, 0)
        bus.ecam.length = size if value & PCIEXBAR_ENABLE else 0
        bus.ecam.start = value & _PCIEXBAR_ADDRESS_BITS & ~(size - 1) if size else 0
        if bus.ecam.length:
            ecam_moved(bus.ecam.start)

    bridge.observe(PCIEXBAR, 8, pciexbar_changed)
    return bridge


def lpc_bridge(pm_moved: Callable[[int | None], None]) -> ConfigSpace:
    """The ICH9 LPC bridge. ``pm_moved`` gets the port base of the ACPI registers, None when they are off."""
    bridge = ConfigSpace(VENDOR_INTEL, ICH9_LPC_BRIDGE, 0x060100, revision=2, header_type=0x80)
    bridge.registers[PMBASE] = _PMBASE_IS_IO
    bridge.allow_writes(PMBASE, _PMBASE_ADDRESS_BITS.to_bytes(2, "little"))
    bridge.allow_writes(ACPI_CNTL, b"\x87")
    bridge.allow_writes(0x60, b"\x8f" * 4)  # PIRQA-D routing: remembered, no device has an INTx line here
    bridge.allow_writes(0x68, b"\x8f" * 4)  # PIRQE-H
    bridge.allow_writes(0xDC, b"\x03")  # BIOS_CNTL
    bridge.allow_writes(0xF0, (0xFFFF_C001).to_bytes(4, "little"))  # RCBA: remembered

    def changed() -> None:
        enabled = bridge.registers[ACPI_CNTL] & ACPI_ENABLE
        base = bridge.value(PMBASE, 2) & _PMBASE_ADDRESS_BITS
        pm_moved(base if enabled and base else None)

    bridge.observe(PMBASE, ACPI_CNTL + 1 - PMBASE, changed)
    return bridge
