# SPDX-License-Identifier: GPL-2.0-or-later
"""A PCI device's function: base address registers, the list of capabilities, MSI-X, and the INTx line.

Base address registers (PCI Local Bus specification 3.0, 6.2.5.1) are what firmware makes of them: it writes ones, reads
back which bits stick and so learns the size, writes an address, and turns decoding on in the command register.  Nothing
is mapped before that.

MSI-X (6.8.2) is a capability that points to a table of messages and to an array of pending bits, both in a BAR.  A
masked vector stays pending until it is unmasked.  A message is a write by the device, so it takes bus mastering; one to
an address where no local APIC listens would land in memory on a real machine, and is dropped here.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress

from swtdx.vmm.board.bus import MmioBus, MmioDevice, MmioRange
from swtdx.vmm.board.ioapic import MSI_ADDRESS_BASE, Msi
from swtdx.vmm.board.pci import ConfigSpace

COMMAND = 0x04
COMMAND_MEMORY = 1 << 1
COMMAND_MASTER = 1 << 2
COMMAND_INTX_DISABLE = 1 << 10
STATUS = 0x06
STATUS_INTERRUPT = 1 << 3
STATUS_CAPABILITIES = 1 << 4
BAR0 = 0x10
BARS = 6
SUBSYSTEM_VENDOR = 0x2C
CAPABILITIES_POINTER = 0x34
INTERRUPT_PIN = 0x3D
_INTA = 1
_FIRST_CAPABILITY = 0x40
_STANDARD_HEADER_END = 0x100

BAR_64_BITS = 0x4
BAR_PREFETCHABLE = 0x8

CAPABILITY_MSIX = 0x11
MSIX_CONTROL = 2  # offset in the capability
MSIX_ENABLE = 1 << 15
MSIX_FUNCTION_MASK = 1 << 14
MSIX_ENTRY_SIZE = 16
MSIX_PENDING_OFFSET = 0x800  # of the pending bits in their BAR; the table is at 0
MSIX_BAR_SIZE = 0x1000
MSIX_MAXIMUM_VECTORS = MSIX_PENDING_OFFSET // MSIX_ENTRY_SIZE
_ENTRY = struct.Struct("<QII")  # address, data, vector control
_ENTRY_MASKED = 1
_APIC_ADDRESS_MASK = 0xFFF0_0000


class PciFunction(ConfigSpace):
    """Configuration registers of a device. ``set_intx`` gets the level of its INTA line."""

    def __init__(
        self, mmio: MmioBus, vendor: int, device: int, class_code: int, *, revision: int, subsystem: tuple[int, int]
    ) -> None:
        super().__init__(vendor, device, class_code, revision)
        self._mmio = mmio
        self._bars: list[tuple[int, int, MmioRange]] = []  # register, its writable bits, where it decodes
        self._last_capability = CAPABILITIES_POINTER
        self._next_capability = _FIRST_CAPABILITY
        self._intx = False
        self._intx_line = False
        self.set_intx: Callable[[bool], object] = lambda level: None
        self.registers[COMMAND : COMMAND + 2] = bytes(2)  # off, until the firmware has given it addresses
        struct.pack_into("<HH", self.registers, SUBSYSTEM_VENDOR, *subsystem)
        self.registers[INTERRUPT_PIN] = _INTA
        self.observe(COMMAND, 2, self._command_changed)

    @property
    def bus_master(self) -> bool:
        """Whether the function may access memory by itself."""
        return bool(self.registers[COMMAND] & COMMAND_MASTER)

    def add_bar(self, number: int, size: int, device: MmioDevice, flags: int = 0) -> None:
        """Registers of ``size`` bytes (a power of two, at least 16) behind BAR ``number``; two BARs if of 64 bits."""
        width = 8 if flags & BAR_64_BITS else 4
        if size < 16 or size & (size - 1) or number + width // 4 > BARS:
            raise ValueError(f"BAR {number} of {size:#x} bytes does not exist")
        register = BAR0 + 4 * number
        address_bits = (1 << 8 * width) - size
        self.registers[register] = flags
        self.allow_writes(register, address_bits.to_bytes(width, "little"))
        self._bars.append((register, address_bits, self._mmio.attach(0, 0, device)))
        self.observe(register, width, self._decode)

    def add_capability(self, kind: int, body: bytes) -> int:
        """Append a capability, ``body`` beginning after its two-byte header. Returns its offset."""
        offset = self._next_capability
        if offset + 2 + len(body) > _STANDARD_HEADER_END:
            raise ValueError(f"no room is left for capability {kind:#x}")
        pointer = self._last_capability if self._last_capability == CAPABILITIES_POINTER else self._last_capability + 1
        self.registers[pointer] = offset
        self.registers[STATUS] |= STATUS_CAPABILITIES
        self.registers[offset : offset + 2 + len(body)] = bytes((kind, 0)) + body
        self._last_capability = offset
        self._next_capability = (offset + 2 + len(body) + 3) & ~3
        return offset

    def raise_intx(self, level: bool) -> None:
        """The device wants (no longer wants) an interrupt by its line."""
        self._intx = level
        self._update_intx()

    def _command_changed(self) -> None:
        self._decode()
        self._update_intx()

    def _decode(self) -> None:
        enabled = self.registers[COMMAND] & COMMAND_MEMORY
        for register, address_bits, decoded in self._bars:
            address = self.value(register, 8) & address_bits
            decoded.start = address
            decoded.length = (address_bits & -address_bits) if enabled and address else 0

    def _update_intx(self) -> None:
        status = self.registers[STATUS] & ~STATUS_INTERRUPT
        self.registers[STATUS] = status | (STATUS_INTERRUPT if self._intx else 0)
        level = self._intx and not self.value(COMMAND, 2) & COMMAND_INTX_DISABLE
        if level != self._intx_line:
            self._intx_line = level
            self.set_intx(level)


class Msix:
    """MSI-X of a function: adds the capability and ``bar`` with the table. ``signal`` sends a message."""

    def __init__(self, function: PciFunction, bar: int, vectors: int, signal: Callable[[Msi], object]) -> None:
        if not 0 < vectors <= MSIX_MAXIMUM_VECTORS:
            raise ValueError(f"{vectors} vectors do not fit the table")
        self.vectors = vectors
        self._function = function
        self._signal = signal
        self._table = bytearray(_ENTRY.pack(0, 0, _ENTRY_MASKED) * vectors)
        self._pending = 0
        function.add_bar(bar, MSIX_BAR_SIZE, self)
        body = struct.pack("<HII", vectors - 1, bar, MSIX_PENDING_OFFSET | bar)
        capability = function.add_capability(CAPABILITY_MSIX, body)
        self._control = capability + MSIX_CONTROL
        function.allow_writes(self._control, (MSIX_ENABLE | MSIX_FUNCTION_MASK).to_bytes(2, "little"))
        function.observe(self._control, 2, self._deliver_pending)

    @property
    def enabled(self) -> bool:
        """Whether messages take the place of the INTx line."""
        return bool(self._function.value(self._control, 2) & MSIX_ENABLE)

    def notify(self, vector: int) -> None:
        """Send the message of ``vector``, or keep it pending while it is masked."""
        if vector < self.vectors:
            self._pending |= 1 << vector
            self._deliver_pending()

    def mmio_read(self, offset: int, size: int) -> int:
        if offset < len(self._table):
            return int.from_bytes(self._table[offset : offset + size], "little")
        if offset >= MSIX_PENDING_OFFSET:
            return self._pending >> 8 * (offset - MSIX_PENDING_OFFSET)
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        if size not in (4, 8) or offset % size or offset + size > len(self._table):
            return  # anything else is undefined, says the specification
        self._table[offset : offset + size] = value.to_bytes(size, "little")
        self._deliver_pending()

    def _deliver_pending(self) -> None:
        if not self._pending or not self._function.bus_master:
            return
        if self._function.value(self._control, 2) & (MSIX_ENABLE | MSIX_FUNCTION_MASK) != MSIX_ENABLE:
            return
        for vector in range(self.vectors):
            address, data, control = _ENTRY.unpack_from(self._table, vector * MSIX_ENTRY_SIZE)
            if self._pending >> vector & 1 and not control & _ENTRY_MASKED:
                self._pending &= ~(1 << vector)
                self._send(address, data)

    def _send(self, address: int, data: int) -> None:
        if address & _APIC_ADDRESS_MASK != MSI_ADDRESS_BASE:
            return
        with suppress(OSError):  # a message that KVM cannot deliver, such as one with reserved bits, is lost
            self._signal((address, data))
