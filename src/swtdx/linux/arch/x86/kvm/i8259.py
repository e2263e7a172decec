# SPDX-License-Identifier: GPL-2.0-or-later
"""The pair of 8259A interrupt controllers in the kernel (arch/x86/kvm/i8259.c; Intel 8259A data sheet).

Ports 20H, 21H (master), A0H, A1H (slave), 4D0H, 4D1H (edge/level). The output reaches vCPUs whose LINT0 takes ExtINT.
State is kept in the layout of KVM_GET_IRQCHIP (`kvm_pic_state`).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from swtdx.uapi.kvm import kvm_pic_state

if TYPE_CHECKING:
    from swtdx.linux.virt.kvm.kvm_main import Kvm

PORTS = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)
_CASCADE = 2


class Pic:
    """Both chips. Lines 0..15."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self.chips = (kvm_pic_state(elcr_mask=0xF8), kvm_pic_state(elcr_mask=0xDE))
        self.output = False
        self._lock = threading.RLock()

    # --- Lines --------------------------------------------------------------------------------------------------------

    def set_irq(self, line: int, level: int) -> int:
        """Raise or lower a line. As pic_set_irq1: 1 taken (or lowered), 0 it was pending already, -1 masked."""
        with self._lock:
            result = self._set_line(self.chips[line >> 3], line & 7, bool(level))
            self.update()
        return result

    @staticmethod
    def _set_line(chip: kvm_pic_state, line: int, level: bool) -> int:
        mask = 1 << line
        taken = 1
        if chip.elcr & mask:
            taken = int(not level or not chip.irr & mask)
            chip.irr = chip.irr | mask if level else chip.irr & ~mask
        elif level and not chip.last_irr & mask:
            taken = int(not chip.irr & mask)
            chip.irr |= mask
        chip.last_irr = chip.last_irr | mask if level else chip.last_irr & ~mask
        return -1 if chip.imr & mask else taken

    @staticmethod
    def _priority(chip: kvm_pic_state, mask: int) -> int:
        """0 is the highest; 8 if nothing is set."""
        for priority in range(8):
            if mask & 1 << (priority + chip.priority_add & 7):
                return priority
        return 8

    def _request(self, number: int) -> int:
        """Return the line that a chip would interrupt with, -1 if none."""
        chip = self.chips[number]
        priority = self._priority(chip, chip.irr & ~chip.imr)
        if priority == 8:
            return -1
        in_service = chip.isr & ~chip.imr if chip.special_mask else chip.isr
        if chip.special_fully_nested_mode and number == 0:
            in_service &= ~(1 << _CASCADE)
        if priority < self._priority(chip, in_service):
            return int(priority + chip.priority_add & 7)
        return -1

    def update(self) -> None:
        """Recompute the output; wake the vCPUs when it rises."""
        if self._request(1) >= 0:
            self._set_line(self.chips[0], _CASCADE, True)
            self._set_line(self.chips[0], _CASCADE, False)
        output = self._request(0) >= 0
        risen, self.output = output and not self.output, output
        if risen:
            self._kvm.kick_all()

    def _acknowledge(self, number: int, line: int) -> None:
        chip = self.chips[number]
        chip.isr |= 1 << line
        if not chip.elcr & 1 << line:
            chip.irr &= ~(1 << line)
        if chip.auto_eoi:
            if chip.rotate_on_auto_eoi:
                chip.priority_add = line + 1 & 7
            chip.isr &= ~(1 << line)
            self._kvm.irq_routing.acked(number, line)

    def read_irq(self) -> int:
        """The processor acknowledges: the vector."""
        with self._lock:
            line = self._request(0)
            if line < 0:
                vector = self.chips[0].irq_base + 7  # spurious
            else:
                self._acknowledge(0, line)
                vector = self.chips[0].irq_base + line
                if line == _CASCADE:
                    slave = self._request(1)
                    if slave >= 0:
                        self._acknowledge(1, slave)
                    vector = self.chips[1].irq_base + (slave if slave >= 0 else 7)
            self.update()
            return int(vector & 0xFF)

    # --- Ports --------------------------------------------------------------------------------------------------------

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        value &= 0xFF
        with self._lock:
            if port >= 0x4D0:
                chip = self.chips[port & 1]
                chip.elcr = value & chip.elcr_mask
            else:
                number = port >> 7
                if port & 1:
                    self._write_data(number, value)
                else:
                    self._write_command(number, value)
            self.update()

    def _write_command(self, number: int, value: int) -> None:
        chip = self.chips[number]
        if value & 0x10:  # ICW1
            elcr = chip.elcr
            for name, _ in kvm_pic_state._fields_:  # type: ignore[misc]
                if name != "elcr_mask":
                    setattr(chip, name, 0)
            chip.elcr = elcr
            chip.init_state, chip.init4 = 1, value & 1
        elif value & 0x08:  # OCW3
            if value & 0x04:
                chip.poll = 1
            if value & 0x02:
                chip.read_reg_select = value & 1
            if value & 0x40:
                chip.special_mask = value >> 5 & 1
        else:
            served = chip.isr
            self._end_of_interrupt(chip, value >> 5, value & 7)
            for line in range(8):
                if served & ~chip.isr & 1 << line:
                    self._kvm.irq_routing.acked(number, line)

    def _end_of_interrupt(self, chip: kvm_pic_state, command: int, line: int) -> None:
        if command in (0, 4):
            chip.rotate_on_auto_eoi = command >> 2
        elif command in (1, 5):
            priority = self._priority(chip, chip.isr)
            if priority != 8:
                served = priority + chip.priority_add & 7
                chip.isr &= ~(1 << served)
                if command == 5:
                    chip.priority_add = served + 1 & 7
        elif command == 3:
            chip.isr &= ~(1 << line)
        elif command == 6:
            chip.priority_add = line + 1 & 7
        elif command == 7:
            chip.isr &= ~(1 << line)
            chip.priority_add = line + 1 & 7

    def _write_data(self, number: int, value: int) -> None:
        chip = self.chips[number]
        if chip.init_state == 0:
            chip.imr = value
        elif chip.init_state == 1:
            chip.irq_base = value & 0xF8
            chip.init_state = 2
        elif chip.init_state == 2:
            chip.init_state = 3 if chip.init4 else 0
        else:
            chip.special_fully_nested_mode = value >> 4 & 1
            chip.auto_eoi = value >> 1 & 1
            chip.init_state = 0

    def read(self, port: int, size: int) -> int:
        """IN."""
        with self._lock:
            if port >= 0x4D0:
                return int(self.chips[port & 1].elcr)
            number = port >> 7
            chip = self.chips[number]
            if chip.poll:
                chip.poll = 0
                line = self._request(number)
                if line < 0:
                    return 0
                self._acknowledge(number, line)
                self.update()
                return line | 0x80
            if port & 1:
                return int(chip.imr)
            return int(chip.isr if chip.read_reg_select else chip.irr)
