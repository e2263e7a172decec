# SPDX-License-Identifier: GPL-2.0-or-later
"""The 8254 timer in the kernel (arch/x86/kvm/i8254.c; Intel 8254 data sheet).

Three channels of 1.193182 MHz at ports 40H..43H; channel 0 raises GSI 0, channel 2 is gated and read through port 61H.
Only what a channel counts from is stored; what it counts to is computed from the clock when it is read.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from swtdx.uapi.kvm import KVM_PIT_FLAGS_HPET_LEGACY, kvm_pit_channel_state, kvm_pit_state2

if TYPE_CHECKING:
    from swtdx.linux.virt.kvm.kvm_main import Kvm

PORTS = (0x40, 0x41, 0x42, 0x43, 0x61)
PIT_FREQUENCY = 1193182
_LSB, _MSB, _WORD = 1, 2, 3
_NOT_PROGRAMMED = 0xFF
_MIN_PERIOD_NS = 200_000


class Pit:
    """``state`` is what KVM_GET_PIT2 gives."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self._lock = threading.RLock()
        self._clock = kvm.processor.clock
        self._timer = kvm.kernel.timers.timer(self._fire)
        self._expires = 0
        self.speaker = 0
        self.state = kvm_pit_state2()
        for number in range(3):
            channel = self.state.channels[number]
            channel.mode, channel.gate, channel.rw_mode = _NOT_PROGRAMMED, number != 2, _WORD
            self._load(number, 0)

    def _channel(self, number: int) -> kvm_pit_channel_state:
        channel: kvm_pit_channel_state = self.state.channels[number]
        return channel

    def _elapsed(self, channel: kvm_pit_channel_state) -> int:
        return (self._clock.monotonic_ns() - int(channel.count_load_time)) * PIT_FREQUENCY // 1_000_000_000

    def _load(self, number: int, value: int) -> None:
        channel = self._channel(number)
        channel.count = value or 0x10000
        channel.count_load_time = self._clock.monotonic_ns()
        if number == 0:
            self._restart()

    def _restart(self) -> None:
        self._timer.cancel()
        channel, hpet = self._channel(0), self.state.flags & KVM_PIT_FLAGS_HPET_LEGACY  # then IRQ 0 is the HPET's
        if channel.mode in (0, 1, 2, 3, 4) and not hpet:
            self._expires = self._clock.monotonic_ns() + self._period(channel)
            self._timer.start(self._expires)

    @staticmethod
    def _period(channel: kvm_pit_channel_state) -> int:
        return max(_MIN_PERIOD_NS, int(channel.count) * 1_000_000_000 // PIT_FREQUENCY)

    def _fire(self) -> None:
        with self._lock:
            channel = self._channel(0)
            if channel.mode in (2, 3):
                # Ticks that the host was too late for are dropped: the next one is due now at the latest.
                self._expires = max(self._expires + self._period(channel), self._clock.monotonic_ns())
                self._timer.start(self._expires)
        # IRQ 0 is edge-triggered at both controllers.
        self._kvm.irq_routing.set_irq(0, 1)
        self._kvm.irq_routing.set_irq(0, 0)

    def _count(self, channel: kvm_pit_channel_state) -> int:
        elapsed, count = self._elapsed(channel), int(channel.count)
        if channel.mode in (0, 1, 4, 5):
            return count - elapsed & 0xFFFF
        if channel.mode == 3:
            return count - 2 * elapsed % count
        return count - elapsed % count

    def _output(self, channel: kvm_pit_channel_state) -> bool:
        elapsed, count = self._elapsed(channel), int(channel.count)
        if channel.mode in (0, 1, _NOT_PROGRAMMED):
            return (elapsed >= count) is (channel.mode != 1)
        if channel.mode == 2:
            return elapsed % count != 0 or not elapsed
        if channel.mode == 3:
            return elapsed % count < (count + 1) // 2
        return elapsed == count

    # --- Ports --------------------------------------------------------------------------------------------------------

    def write(self, port: int, size: int, value: int) -> None:
        """OUT."""
        value &= 0xFF
        with self._lock:
            if port == 0x61:
                self._set_gate(self._channel(2), value & 1)
                self.speaker = value >> 1 & 1
            elif port == 0x43:
                self._control(value)
            else:
                self._write_count(port & 3, value)

    def _set_gate(self, channel: kvm_pit_channel_state, gate: int) -> None:
        if gate and not channel.gate and channel.mode in (1, 2, 3, 5):
            channel.count_load_time = self._clock.monotonic_ns()
        channel.gate = gate

    def _control(self, value: int) -> None:
        number = value >> 6
        if number == 3:  # read-back
            for selected in range(3):
                if value & 2 << selected:
                    channel = self._channel(selected)
                    if not value & 0x20:
                        self._latch(channel)
                    if not value & 0x10 and not channel.status_latched:
                        output = self._output(channel) << 7
                        channel.status = output | channel.rw_mode << 4 | channel.mode << 1 | channel.bcd
                        channel.status_latched = 1
            return
        channel = self._channel(number)
        access = value >> 4 & 3
        if not access:
            self._latch(channel)
            return
        channel.rw_mode = channel.read_state = channel.write_state = access
        channel.mode = value >> 1 & 7
        if channel.mode > 5:
            channel.mode -= 4
        channel.bcd = value & 1

    def _latch(self, channel: kvm_pit_channel_state) -> None:
        if not channel.count_latched:
            channel.latched_count = self._count(channel)
            channel.count_latched = channel.rw_mode

    def _write_count(self, number: int, value: int) -> None:
        channel = self._channel(number)
        if channel.write_state == _LSB:
            self._load(number, value)
        elif channel.write_state == _MSB:
            self._load(number, value << 8)
        elif channel.write_state == _WORD:
            channel.write_latch = value
            channel.write_state = 4
        else:
            self._load(number, channel.write_latch | value << 8)
            channel.write_state = _WORD

    def read(self, port: int, size: int) -> int:
        """IN."""
        with self._lock:
            if port == 0x61:
                channel = self._channel(2)
                refresh = self._clock.monotonic_ns() // 15_000 & 1
                return int(channel.gate) | self.speaker << 1 | refresh << 4 | self._output(channel) << 5
            if port == 0x43:
                return 0
            return self._read_count(self._channel(port & 3))

    def _read_count(self, channel: kvm_pit_channel_state) -> int:
        if channel.status_latched:
            channel.status_latched = 0
            return int(channel.status)
        if channel.count_latched:
            count, access = int(channel.latched_count), int(channel.count_latched)
            if access == _WORD:
                channel.count_latched = _MSB
                return count & 0xFF
            channel.count_latched = 0
            return count >> 8 if access == _MSB else count & 0xFF
        count = self._count(channel)
        if channel.read_state == _WORD:
            channel.read_state = 4
            return count & 0xFF
        if channel.read_state == 4:
            channel.read_state = _WORD
            return count >> 8
        return count >> 8 & 0xFF if channel.read_state == _MSB else count & 0xFF

    # --- KVM_GET_PIT2, KVM_SET_PIT2 -----------------------------------------------------------------------------------

    def set_state(self, state: kvm_pit_state2) -> None:
        """Load channels and restart channel 0."""
        with self._lock:
            self.state = state
            for number in range(3):
                self._load(number, int(state.channels[number].count) & 0xFFFF)

    def release(self) -> None:
        """The VM ends."""
        self._timer.shutdown_sync()
