# SPDX-License-Identifier: GPL-2.0-or-later
"""COM1: a 16550A UART (National Semiconductor PC16550D data sheet), without the passage of time on the wire.

A byte that is written has been sent when the write returns, so the transmitter is always empty.  Received bytes wait in
a 16-byte FIFO and, behind it, in the queue of typed bytes.  Interrupts follow the data sheet's priorities: line
status (an overrun), received data or character timeout, transmitter empty.  Loopback mode (by which drivers find out
whether a chip is there) returns what is sent, as far as the FIFO has room, and reflects the modem control lines into
the modem status.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntFlag

from swtdx.vmm.board.bus import PortBus

COM1_BASE = 0x3F8
COM1_IRQ = 4
FIFO_SIZE = 16

# Register offsets; 0 and 1 are the divisor latch while LCR.DLAB is set.
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)


class InterruptEnable(IntFlag):
    RECEIVED_DATA = 1
    TRANSMITTER_EMPTY = 2
    LINE_STATUS = 4
    MODEM_STATUS = 8


class LineStatus(IntFlag):
    DATA_READY = 0x01
    OVERRUN = 0x02
    TRANSMITTER_HOLDING_EMPTY = 0x20
    TRANSMITTER_EMPTY = 0x40


_IIR_NONE = 0x01
_IIR_TRANSMITTER = 0x02
_IIR_RECEIVED = 0x04
_IIR_LINE_STATUS = 0x06
_IIR_TIMEOUT = 0x0C
_IIR_FIFOS_ON = 0xC0
_FCR_ENABLE = 0x01
_FCR_CLEAR_RECEIVER = 0x02
_TRIGGER_LEVELS = (1, 4, 8, 14)
_LCR_DLAB = 0x80
_MCR_DTR, _MCR_RTS, _MCR_OUT1, _MCR_OUT2, _MCR_LOOP = 1, 2, 4, 8, 16
_MSR_CTS, _MSR_DSR, _MSR_RI, _MSR_DCD = 0x10, 0x20, 0x40, 0x80
_LSR_IDLE = int(LineStatus.TRANSMITTER_HOLDING_EMPTY | LineStatus.TRANSMITTER_EMPTY)
_LSR_IDLE_WITH_DATA = _LSR_IDLE | int(LineStatus.DATA_READY)


class Uart16550:
    """One UART. ``send`` takes each transmitted byte; ``set_irq`` gets the level of the interrupt line."""

    def __init__(
        self,
        ports: PortBus,
        send: Callable[[bytes], object],
        set_irq: Callable[[bool], object] = lambda level: None,
        base: int = COM1_BASE,
    ) -> None:
        self._send = send
        self._set_irq = set_irq
        self._base = base
        self._received: deque[int] = deque()
        self._divisor = 12  # 9600 baud, what a PC BIOS would leave
        self._ier = 0
        self._fcr = 0
        self._lcr = 3
        self._mcr = 0
        self._scratch = 0
        self._transmitter_interrupt = False
        self._overrun = False
        self._irq = False
        readers = (self._read_data, self._read_ier, self._read_iir, lambda p, s: self._lcr, lambda p, s: self._mcr,
                   self._read_lsr, self._read_msr, lambda p, s: self._scratch)  # fmt: skip
        writers = (self._write_data, self._write_ier, self._write_fcr, self._write_lcr, self._write_mcr,
                   self._ignore, self._ignore, self._write_scratch)  # fmt: skip
        for offset in range(8):
            ports.attach([base + offset], readers[offset], writers[offset])

    def receive(self, data: bytes) -> None:
        """Bytes arrive from outside. The caller holds the lock of the board."""
        self._received.extend(data)
        self._update_irq()

    def _read_data(self, port: int, size: int) -> int:
        if self._lcr & _LCR_DLAB:
            return self._divisor & 0xFF
        value = self._received.popleft() if self._received else 0
        self._update_irq()
        return value

    def _write_data(self, port: int, size: int, value: int) -> None:
        if self._lcr & _LCR_DLAB:
            self._divisor = self._divisor & 0xFF00 | value & 0xFF
            return
        if self._mcr & _MCR_LOOP:
            self._receive_own(value & 0xFF)
        else:
            self._send(bytes((value & 0xFF,)))
        self._transmitter_interrupt = True
        if self._ier or self._mcr & _MCR_LOOP:
            self._update_irq()

    def _receive_own(self, byte: int) -> None:
        """In loopback. What finds the FIFO full is lost, and what finds the lone register full takes its place."""
        room = FIFO_SIZE if self._fcr & _FCR_ENABLE else 1
        if len(self._received) < room:
            self._received.append(byte)
            return
        self._overrun = True
        if room == 1:
            self._received[-1] = byte

    def _read_ier(self, port: int, size: int) -> int:
        return self._divisor >> 8 if self._lcr & _LCR_DLAB else self._ier

    def _write_ier(self, port: int, size: int, value: int) -> None:
        if self._lcr & _LCR_DLAB:
            self._divisor = self._divisor & 0xFF | (value & 0xFF) << 8
            return
        # Enabling the transmitter interrupt while the transmitter is empty raises it at once.
        if value & InterruptEnable.TRANSMITTER_EMPTY and not self._ier & InterruptEnable.TRANSMITTER_EMPTY:
            self._transmitter_interrupt = True
        self._ier = value & 0x0F
        self._update_irq()

    def _read_iir(self, port: int, size: int) -> int:
        cause = self._cause()
        if cause == _IIR_TRANSMITTER:  # reading it is what acknowledges it
            self._transmitter_interrupt = False
            self._update_irq()
        return cause | (_IIR_FIFOS_ON if self._fcr & _FCR_ENABLE else 0)

    def _write_fcr(self, port: int, size: int, value: int) -> None:
        if value & _FCR_CLEAR_RECEIVER or (value ^ self._fcr) & _FCR_ENABLE:
            self._received.clear()
        self._fcr = value & 0xC9
        self._update_irq()

    def _write_lcr(self, port: int, size: int, value: int) -> None:
        self._lcr = value & 0xFF

    def _write_mcr(self, port: int, size: int, value: int) -> None:
        self._mcr = value & 0x1F
        self._update_irq()

    def _read_lsr(self, port: int, size: int) -> int:
        status = _LSR_IDLE_WITH_DATA if self._received else _LSR_IDLE
        if self._overrun:  # told once
            status |= LineStatus.OVERRUN
            self._overrun = False
            self._update_irq()
        return status

    def _read_msr(self, port: int, size: int) -> int:
        if not self._mcr & _MCR_LOOP:
            return _MSR_DCD | _MSR_DSR | _MSR_CTS  # a terminal is connected
        mcr = self._mcr
        return (
            (_MSR_CTS if mcr & _MCR_RTS else 0)
            | (_MSR_DSR if mcr & _MCR_DTR else 0)
            | (_MSR_RI if mcr & _MCR_OUT1 else 0)
            | (_MSR_DCD if mcr & _MCR_OUT2 else 0)
        )

    def _write_scratch(self, port: int, size: int, value: int) -> None:
        self._scratch = value & 0xFF

    def _ignore(self, port: int, size: int, value: int) -> None:
        """LSR and MSR are read only."""

    def _cause(self) -> int:
        if self._overrun and self._ier & InterruptEnable.LINE_STATUS:
            return _IIR_LINE_STATUS
        if self._ier & InterruptEnable.RECEIVED_DATA and self._received:
            if not self._fcr & _FCR_ENABLE or len(self._received) >= _TRIGGER_LEVELS[self._fcr >> 6]:
                return _IIR_RECEIVED
            return _IIR_TIMEOUT  # below the trigger level, and nothing more is on the wire
        if self._ier & InterruptEnable.TRANSMITTER_EMPTY and self._transmitter_interrupt:
            return _IIR_TRANSMITTER
        return _IIR_NONE

    def _update_irq(self) -> None:
        # OUT2 gates the line on a PC; in loopback the outputs are disconnected.
        level = self._cause() != _IIR_NONE and self._mcr & (_MCR_OUT2 | _MCR_LOOP) == _MCR_OUT2
        if level != self._irq:
            self._irq = level
            self._set_irq(level)
