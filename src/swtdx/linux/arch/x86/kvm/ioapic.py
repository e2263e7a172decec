# SPDX-License-Identifier: GPL-2.0-or-later
"""The I/O APIC in the kernel (arch/x86/kvm/ioapic.c; Intel 82093AA data sheet).

24 pins, registers behind IOREGSEL (offset 0) and IOWIN (10H) at FEC00000H. Edge pins deliver on a rising edge; level
pins while the line is high and the last interrupt was acknowledged (remote IRR clear).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.irq_comm import APIC_DM_LOWEST, irq_delivery_to_apic
from swtdx.uapi.kvm import KVM_IOAPIC_NUM_PINS, KVM_IRQCHIP_IOAPIC, kvm_ioapic_state

if TYPE_CHECKING:
    from swtdx.linux.virt.kvm.kvm_main import Kvm

IOAPIC_DEFAULT_BASE_ADDRESS, IOAPIC_MEM_LENGTH = 0xFEC00000, 0x100
IOAPIC_VERSION_ID = 0x11
REGSEL, WINDOW = 0x00, 0x10
REDIR_REMOTE_IRR, REDIR_LEVEL, REDIR_MASKED = 1 << 14, 1 << 15, 1 << 16
_READ_ONLY = REDIR_REMOTE_IRR | 1 << 12  # and delivery status


class IoApic:
    """``state`` is what KVM_GET_IRQCHIP gives; ``irr`` there holds the lines' levels."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self.state = kvm_ioapic_state(base_address=IOAPIC_DEFAULT_BASE_ADDRESS)
        for pin in range(KVM_IOAPIC_NUM_PINS):
            self.state.redirtbl[pin] = REDIR_MASKED
        self._lock = threading.RLock()

    def covers(self, gpa: int) -> bool:
        """Return whether the address is one of its registers."""
        base = int(self.state.base_address)
        return base <= gpa < base + IOAPIC_MEM_LENGTH

    def set_irq(self, pin: int, level: int) -> int:
        """Raise or lower a pin. As kvm_ioapic_set_irq: vCPUs reached, 0 coalesced, -1 masked, 1 when lowered."""
        with self._lock:
            mask = 1 << pin
            old = self.state.irr & mask
            if not level:
                self.state.irr &= ~mask
                return 1
            self.state.irr |= mask
            if old and not self.state.redirtbl[pin] & REDIR_LEVEL:
                return 0
            return self._service(pin)

    def _service(self, pin: int) -> int:
        entry = int(self.state.redirtbl[pin])
        if entry & REDIR_MASKED or (entry & REDIR_LEVEL and entry & REDIR_REMOTE_IRR):
            return -1
        delivered = irq_delivery_to_apic(
            self._kvm,
            None,
            destination=entry >> 56,
            logical=bool(entry & 1 << 11),
            shorthand=0,
            delivery_mode=entry >> 8 & 7,
            vector=entry & 0xFF,
            level_triggered=bool(entry & REDIR_LEVEL),
            lowest=entry >> 8 & 7 == APIC_DM_LOWEST,
        )
        if delivered > 0 and entry & REDIR_LEVEL:
            self.state.redirtbl[pin] = entry | REDIR_REMOTE_IRR
        return max(0, delivered)

    def update_eoi(self, vector: int) -> None:
        """A local APIC ended ``vector``, which was level-triggered."""
        for pin in range(KVM_IOAPIC_NUM_PINS):
            if int(self.state.redirtbl[pin]) & 0xFF == vector:
                self._kvm.irq_routing.acked(KVM_IRQCHIP_IOAPIC, pin)  # before the level is looked at again
        with self._lock:
            for pin in range(KVM_IOAPIC_NUM_PINS):
                entry = int(self.state.redirtbl[pin])
                if entry & 0xFF == vector and entry & REDIR_LEVEL:
                    self.state.redirtbl[pin] = entry & ~REDIR_REMOTE_IRR
                    if self.state.irr & 1 << pin:
                        self._service(pin)

    # --- Registers ----------------------------------------------------------------------------------------------------

    def read(self, gpa: int, size: int) -> int:
        """Read a register for the guest."""
        offset = gpa & 0xF0
        with self._lock:
            if offset == REGSEL:
                return int(self.state.ioregsel)
            if offset != WINDOW:
                return 0
            select = self.state.ioregsel
            if select in (0, 2):
                return int(self.state.id & 0xF) << 24
            if select == 1:
                return (KVM_IOAPIC_NUM_PINS - 1) << 16 | IOAPIC_VERSION_ID
            pin = select - 0x10 >> 1
            if not 0 <= pin < KVM_IOAPIC_NUM_PINS:
                return 0xFFFFFFFF
            return int(self.state.redirtbl[pin]) >> (32 if select & 1 else 0) & 0xFFFFFFFF

    def write(self, gpa: int, size: int, value: int) -> None:
        """Write a register for the guest."""
        offset = gpa & 0xF0
        with self._lock:
            if offset == REGSEL:
                self.state.ioregsel = value & 0xFF
            elif offset == WINDOW:
                self._write_register(int(self.state.ioregsel), value & 0xFFFFFFFF)

    def _write_register(self, select: int, value: int) -> None:
        if select == 0:
            self.state.id = value >> 24 & 0xF
            return
        pin = select - 0x10 >> 1
        if not 0 <= pin < KVM_IOAPIC_NUM_PINS:
            return
        entry = int(self.state.redirtbl[pin])
        if select & 1:
            entry = entry & 0xFFFFFFFF | value << 32
        else:
            entry = entry & (0xFFFFFFFF << 32 | _READ_ONLY) | value & ~_READ_ONLY
            if not entry & REDIR_LEVEL:
                entry &= ~REDIR_REMOTE_IRR
        self.state.redirtbl[pin] = entry
        if entry & REDIR_LEVEL and self.state.irr & 1 << pin:
            self._service(pin)
