# SPDX-License-Identifier: GPL-2.0-or-later
"""The I/O APIC, in user space over KVM's split irqchip (Intel 82093AA data sheet, 290566; ICH9 13.5).

With a split irqchip the local APICs are KVM's and the I/O APIC is the VMM's: an interrupt leaves here as the MSI that
the redirection entry spells out.  KVM is told the same entries as GSI routes, from which it knows whose EOI to report
(``KVM_EXIT_IOAPIC_EOI``, level-triggered interrupts of ordinary VMs; for TDs there are none).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum

PINS = 24
LENGTH = 0x1000
_VERSION = 0x20 | (PINS - 1) << 16

_SELECT = 0x00
_WINDOW = 0x10
_EOI = 0x40

_MASKED = 1 << 16
_LEVEL = 1 << 15
_REMOTE_IRR = 1 << 14
_DELIVERY_STATUS = 1 << 12
_LOGICAL = 1 << 11
_READ_ONLY = _REMOTE_IRR | _DELIVERY_STATUS

MSI_ADDRESS_BASE = 0xFEE0_0000
Msi = tuple[int, int]  # (address, data) as a device would write it


class _Register(IntEnum):
    ID = 0x00
    VERSION = 0x01
    ARBITRATION = 0x02
    REDIRECTION = 0x10  # two registers for each pin


class IoApic:
    """24 pins. ``signal`` sends an MSI; ``route`` is told all routes whenever one changes (None: the pin is masked)."""

    def __init__(
        self, signal: Callable[[Msi], object], route: Callable[[Sequence[Msi | None]], object] = lambda routes: None
    ) -> None:
        self._signal = signal
        self._route = route
        self._select = 0
        self._id = 0
        self._entries = [_MASKED] * PINS
        self._level = [False] * PINS

    def set_irq(self, pin: int, level: bool) -> None:
        """The level of a pin. An edge, or a level that is not in service yet, sends the interrupt."""
        rising = level and not self._level[pin]
        self._level[pin] = level
        if rising or (level and self._entries[pin] & _LEVEL):
            self._deliver(pin)

    def end_of_interrupt(self, vector: int) -> None:
        """A local APIC has finished ``vector``: level-triggered pins that still are asserted fire again."""
        for pin, entry in enumerate(self._entries):
            if entry & 0xFF == vector and entry & _LEVEL and entry & _REMOTE_IRR:
                self._entries[pin] &= ~_REMOTE_IRR
                if self._level[pin]:
                    self._deliver(pin)

    def mmio_read(self, offset: int, size: int) -> int:
        if offset == _SELECT:
            return self._select
        if offset != _WINDOW:
            return 0
        register = self._select
        if register in (_Register.ID, _Register.ARBITRATION):
            return self._id << 24
        if register == _Register.VERSION:
            return _VERSION
        pin, high = divmod(register - _Register.REDIRECTION, 2)
        if not 0 <= pin < PINS:
            return 0
        return self._entries[pin] >> 32 if high else self._entries[pin] & 0xFFFF_FFFF

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        if offset == _SELECT:
            self._select = value & 0xFF
        elif offset == _WINDOW:
            self._write_register(value & 0xFFFF_FFFF)
        elif offset == _EOI:
            self.end_of_interrupt(value & 0xFF)

    def _write_register(self, value: int) -> None:
        register = self._select
        if register == _Register.ID:
            self._id = value >> 24 & 0x0F
            return
        pin, high = divmod(register - _Register.REDIRECTION, 2)
        if not 0 <= pin < PINS:
            return
        entry = self._entries[pin]
        if high:
            entry = entry & 0xFFFF_FFFF | value << 32
        else:
            entry = entry & ~0xFFFF_FFFF | entry & _READ_ONLY | value & 0x1_FFFF & ~_READ_ONLY
            if not entry & _LEVEL:
                entry &= ~_REMOTE_IRR
        self._entries[pin] = entry
        self._route([None if one & _MASKED else _message(one) for one in self._entries])
        if self._level[pin] and entry & _LEVEL:
            self._deliver(pin)

    def _deliver(self, pin: int) -> None:
        entry = self._entries[pin]
        if entry & _MASKED or entry & _REMOTE_IRR:
            return
        if entry & _LEVEL:
            self._entries[pin] |= _REMOTE_IRR
        self._signal(_message(entry))


def _message(entry: int) -> Msi:
    """The MSI of a redirection entry (SDM volume 3, 11.11): destination, its mode; vector, delivery, trigger."""
    destination = entry >> 56
    address = MSI_ADDRESS_BASE | destination << 12 | (4 if entry & _LOGICAL else 0)
    data = entry & 0x7FF | (1 << 14 | 1 << 15 if entry & _LEVEL else 0)
    return address, data
