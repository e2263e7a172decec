# SPDX-License-Identifier: GPL-2.0-or-later
"""The debug console of Bochs and QEMU: every byte written to port 0x402 is a character of the firmware's debug log.

Reading the port gives 0xe9, by which software detects the port (QEMU, hw/char/debugcon.c).
"""

from __future__ import annotations

from collections.abc import Callable

from swtdx.vmm.board.bus import PortBus

PORT = 0x402
PRESENT = 0xE9


class DebugConsole:
    """Hands each byte to ``sink`` as ``bytes`` of length 1. Without a sink it is absent, and firmware skips it."""

    def __init__(self, ports: PortBus, sink: Callable[[bytes], object] | None) -> None:
        if sink is None:
            return
        self._sink = sink
        ports.attach([PORT], lambda port, size: PRESENT, self._write)

    def _write(self, port: int, size: int, value: int) -> None:
        self._sink(bytes((value & 0xFF,)))
