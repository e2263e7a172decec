# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio over PCI, modern only (virtio 1.2, 4.1), laid out as QEMU does.

======  =====================================================================================
BAR 1   MSI-X, 32 bits: one vector for the configuration and one for each queue
BAR 4   64 bits, prefetchable: common configuration, ISR, device configuration, notifications
======  =====================================================================================

Each part of BAR 4 has a page of its own and a vendor-specific capability that names it; a fifth capability gives access
to all of it through configuration space (4.1.4.9).  Without MSI-X the INTx line and the ISR register do.

A driver that breaks the rules of a ring finds DEVICE_NEEDS_RESET in the device status, and the first such mistake of
each device is reported to the person.  A driver may leave VIRTIO_F_ACCESS_PLATFORM alone: addresses on this board's bus
are guest-physical ones anyway.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntFlag

from swtdx.vmm.board.bus import MmioBus
from swtdx.vmm.board.ioapic import Msi
from swtdx.vmm.board.pci_function import BAR_64_BITS, BAR_PREFETCHABLE, Msix, PciFunction
from swtdx.vmm.board.virtio.device import TRANSPORT_FEATURES, VIRTIO_F_VERSION_1, VirtioDevice
from swtdx.vmm.board.virtio.ring import NO_VECTOR, DmaMemory, RingError, Virtqueue

VENDOR_VIRTIO = 0x1AF4
FIRST_DEVICE_ID = 0x1040
SUBSYSTEM_ID = 0x1100  # QEMU's; "any value above 0x40" in the specification
REVISION_MODERN = 1

MSIX_BAR = 1
VIRTIO_BAR = 4
COMMON, ISR, DEVICE, NOTIFY = 0x0000, 0x1000, 0x2000, 0x3000  # offsets in VIRTIO_BAR
PART_SIZE = 0x1000
VIRTIO_BAR_SIZE = 0x4000
NOTIFY_MULTIPLIER = 4
COMMON_SIZE = 0x38

CAPABILITY_VENDOR = 0x09
_CFG_COMMON, _CFG_NOTIFY, _CFG_ISR, _CFG_DEVICE, _CFG_PCI = 1, 2, 3, 4, 5
_CAPABILITY = struct.Struct("<BBBB2xII")  # length, type, BAR, id, offset, length
_PCI_CFG_BAR, _PCI_CFG_OFFSET, _PCI_CFG_LENGTH, _PCI_CFG_DATA = 4, 8, 12, 16  # from the capability's start


class DeviceStatus(IntFlag):
    """Virtio 1.2, 2.1."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


ISR_QUEUE, ISR_CONFIG = 1, 2

# Registers of the common configuration (4.1.4.3).
DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE = 0x00, 0x04, 0x08, 0x0C
CONFIG_MSIX_VECTOR, NUM_QUEUES, DEVICE_STATUS, CONFIG_GENERATION = 0x10, 0x12, 0x14, 0x15
QUEUE_SELECT, QUEUE_SIZE, QUEUE_MSIX_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF = 0x16, 0x18, 0x1A, 0x1C, 0x1E
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30

_QUEUE_ADDRESSES = {QUEUE_DESC: "descriptors", QUEUE_DRIVER: "driver_area", QUEUE_DEVICE: "device_area"}
_LOW, _HIGH = 0xFFFF_FFFF, 0xFFFF_FFFF << 32


class VirtioPci(PciFunction):
    """A virtio device as a PCI function. ``say`` is told, once, what the driver did wrong."""

    _window: int | None = None  # the fifth capability's offset

    def __init__(
        self,
        device: VirtioDevice,
        memory: DmaMemory,
        mmio: MmioBus,
        signal_msi: Callable[[Msi], object],
        say: Callable[[str], object],
    ) -> None:
        super().__init__(
            mmio,
            VENDOR_VIRTIO,
            FIRST_DEVICE_ID + device.device_id,
            device.class_code,
            revision=REVISION_MODERN,
            subsystem=(VENDOR_VIRTIO, SUBSYSTEM_ID),
        )
        self.device = device
        self.queues = [Virtqueue(memory) for _ in range(device.queue_count)]
        self._say: Callable[[str], object] | None = say
        self._offered = device.features | TRANSPORT_FEATURES
        self.msix = Msix(self, MSIX_BAR, device.queue_count + 1, signal_msi)
        self.add_bar(VIRTIO_BAR, VIRTIO_BAR_SIZE, self, BAR_64_BITS | BAR_PREFETCHABLE)
        self._add_virtio_capability(_CFG_COMMON, COMMON, PART_SIZE)
        self._add_virtio_capability(_CFG_ISR, ISR, PART_SIZE)
        self._add_virtio_capability(_CFG_DEVICE, DEVICE, PART_SIZE)
        self._add_virtio_capability(_CFG_NOTIFY, NOTIFY, PART_SIZE, NOTIFY_MULTIPLIER.to_bytes(4, "little"))
        window = self._add_virtio_capability(_CFG_PCI, 0, 0, bytes(4), bar=0)
        self.allow_writes(window + _PCI_CFG_BAR, b"\xff")
        self.allow_writes(window + _PCI_CFG_OFFSET, b"\xff" * 12)
        self._window = window
        device.transport = self
        self._reset()

    def _add_virtio_capability(
        self, kind: int, offset: int, length: int, more: bytes = b"", bar: int = VIRTIO_BAR
    ) -> int:
        size = 2 + _CAPABILITY.size + len(more)
        return self.add_capability(CAPABILITY_VENDOR, _CAPABILITY.pack(size, kind, bar, 0, offset, length) + more)

    def _reset(self) -> None:
        self._status = 0
        self._accepted = 0
        self._device_feature_select = self._driver_feature_select = 0
        self._queue_select = 0
        self._config_vector = NO_VECTOR
        self._isr = 0
        for queue in self.queues:
            queue.reset()
        self.device.reset()
        self.raise_intx(False)

    # --- What the device asks for -------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the driver has finished setting up, and has not spoilt it."""
        ready = self._status & (DeviceStatus.DRIVER_OK | DeviceStatus.NEEDS_RESET) == DeviceStatus.DRIVER_OK
        return ready and self.bus_master

    def serve(self, number: int) -> None:
        """Let the device handle what the driver has put into a queue, and tell the driver."""
        queue, device = self.queues[number], self.device
        if not self.running or not queue.enabled:
            return
        used = False
        try:
            while device.ready(number) and not device.stopping and (chain := queue.pop()) is not None:
                queue.push(chain, device.handle(number, chain))
                used = True
            if used and queue.wants_interrupt:
                self._interrupt(queue.vector, ISR_QUEUE)
        except RingError as error:
            self._break(number, str(error))

    def config_changed(self) -> None:
        """Tell the driver to look at the device-specific configuration again."""
        self._interrupt(self._config_vector, ISR_CONFIG)

    def report(self, text: str) -> None:
        """Report something about the device; only the first time, since a guest could repeat it without end."""
        if self._say is not None:
            self._say(f"{self.device.name}: {text}")
            self._say = None

    def _break(self, number: int, why: str) -> None:
        self.report(f"the guest's driver broke queue {number}: {why}; the device waits to be reset")
        self._status |= DeviceStatus.NEEDS_RESET
        self.config_changed()

    def _interrupt(self, vector: int, cause: int) -> None:
        if self.msix.enabled:
            self.msix.notify(vector)
            return
        self._isr |= cause
        self.raise_intx(True)

    # --- Configuration space: the window of 4.1.4.9 -------------------------------------------------------------------

    def value(self, offset: int, size: int) -> int:
        access = self._window_access(offset)
        if access is not None:
            return self.mmio_read(*access) >> 8 * (offset & 3)
        return super().value(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        super().write(offset, size, value)
        access = self._window_access(offset)
        if access is not None:
            start, length = access
            self.mmio_write(start, length, value << 8 * (offset & 3) & ((1 << 8 * length) - 1))

    def _window_access(self, offset: int) -> tuple[int, int] | None:
        """(offset in VIRTIO_BAR, size) of an access to the window's data register; None for any other access."""
        window = self._window
        if window is None or not window + _PCI_CFG_DATA <= offset < window + _PCI_CFG_DATA + 4:
            return None
        start, length = super().value(window + _PCI_CFG_OFFSET, 4), super().value(window + _PCI_CFG_LENGTH, 4)
        if self.registers[window + _PCI_CFG_BAR] != VIRTIO_BAR or length not in (1, 2, 4):
            return None
        return (start, length) if start % length == 0 and start + length <= VIRTIO_BAR_SIZE else None

    # --- VIRTIO_BAR ---------------------------------------------------------------------------------------------------

    def mmio_read(self, offset: int, size: int) -> int:
        part, register = offset & ~(PART_SIZE - 1), offset & (PART_SIZE - 1)
        if part == COMMON:
            if size == 8:  # two accesses of 32 bits, as the specification has them
                return self._read_common(register) & _LOW | self._read_common(register + 4) << 32
            return self._read_common(register)
        if part == ISR and register == 0:
            isr, self._isr = self._isr, 0
            self.raise_intx(False)
            return isr
        if part == DEVICE:
            return int.from_bytes(self.device.config[register : register + size].ljust(size, b"\0"), "little")
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        part, register = offset & ~(PART_SIZE - 1), offset & (PART_SIZE - 1)
        if part == NOTIFY:
            number = register // NOTIFY_MULTIPLIER
            if number < len(self.queues):
                self.serve(number)
        elif part == COMMON:
            if size == 8:
                self._write_common(register, value & _LOW)
                self._write_common(register + 4, value >> 32)
            else:
                self._write_common(register, value)

    def _read_common(self, register: int) -> int:
        if register == DEVICE_FEATURE_SELECT:
            return self._device_feature_select
        if register == DEVICE_FEATURE:
            return self._feature_word(self._offered, self._device_feature_select)
        if register == DRIVER_FEATURE_SELECT:
            return self._driver_feature_select
        if register == DRIVER_FEATURE:
            return self._feature_word(self._accepted, self._driver_feature_select)
        if register == CONFIG_MSIX_VECTOR:
            return self._config_vector
        if register == NUM_QUEUES:
            return len(self.queues)
        if register == DEVICE_STATUS:
            return self._status
        if register == QUEUE_SELECT:
            return self._queue_select
        if self._queue_select < len(self.queues):
            return self._read_queue(self.queues[self._queue_select], register)
        return 0  # the queue does not exist: its size is 0; and there is only one generation of the configuration

    def _read_queue(self, queue: Virtqueue, register: int) -> int:
        if register == QUEUE_SIZE:
            return queue.size
        if register == QUEUE_MSIX_VECTOR:
            return queue.vector
        if register == QUEUE_ENABLE:
            return int(queue.enabled)
        if register == QUEUE_NOTIFY_OFF:
            return self._queue_select
        name = _QUEUE_ADDRESSES.get(register & ~4)
        if name is None:
            return 0
        address: int = getattr(queue, name)
        return address >> 32 if register & 4 else address & _LOW

    def _write_common(self, register: int, value: int) -> None:
        if register == DEVICE_FEATURE_SELECT:
            self._device_feature_select = value
        elif register == DRIVER_FEATURE_SELECT:
            self._driver_feature_select = value
        elif register == DRIVER_FEATURE:
            shift = 32 * self._driver_feature_select
            if self._driver_feature_select < 2 and not self._status & DeviceStatus.FEATURES_OK:
                self._accepted = self._accepted & ~(_LOW << shift) | (value & _LOW) << shift
        elif register == CONFIG_MSIX_VECTOR:
            self._config_vector = self._vector(value)
        elif register == DEVICE_STATUS:
            self._write_status(value & 0xFF)
        elif register == QUEUE_SELECT:
            self._queue_select = value & 0xFFFF
        elif self._queue_select < len(self.queues):
            self._write_queue(self.queues[self._queue_select], register, value)

    def _write_queue(self, queue: Virtqueue, register: int, value: int) -> None:
        if register == QUEUE_MSIX_VECTOR:
            queue.vector = self._vector(value)
        elif queue.enabled:
            return  # it may be changed only by a reset
        elif register == QUEUE_SIZE:
            if 0 < value <= queue.maximum_size and not value & (value - 1):
                queue.size = value
        elif register == QUEUE_ENABLE:
            queue.enabled = value == 1
        else:
            name = _QUEUE_ADDRESSES.get(register & ~4)
            if name is not None:
                address: int = getattr(queue, name)
                high = register & 4
                setattr(queue, name, address & _LOW | value << 32 if high else address & _HIGH | value & _LOW)

    def _write_status(self, value: int) -> None:
        if not value:
            self._reset()
            return
        kept = self._status & DeviceStatus.NEEDS_RESET
        if value & DeviceStatus.FEATURES_OK and not self._status & DeviceStatus.FEATURES_OK:
            acceptable = self._accepted & ~self._offered == 0 and self._accepted & VIRTIO_F_VERSION_1
            if not acceptable:
                value &= ~DeviceStatus.FEATURES_OK
        starts = value & ~self._status & DeviceStatus.DRIVER_OK
        self._status = value & ~DeviceStatus.NEEDS_RESET | kept
        if starts:  # what was notified before this moment had to wait for it
            for number in range(len(self.queues)):
                self.serve(number)
            self.device.started()

    def _vector(self, value: int) -> int:
        """A vector that there is, else NO_VECTOR, by which the driver sees that it failed (4.1.5.1.2)."""
        return value if value < self.msix.vectors else NO_VECTOR

    @staticmethod
    def _feature_word(features: int, select: int) -> int:
        return features >> 32 * select & _LOW if select < 2 else 0
