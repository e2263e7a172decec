# SPDX-License-Identifier: GPL-2.0-or-later
"""The keyboard controller's two remaining jobs on a machine without keyboard: the reset line, and reporting
that no keyboard is attached.

An Intel 8042 whose status register reads as all ones is what firmware takes for an absent controller (EDK2,
Ps2KeyboardDxe); command 0xfe to port 0x64 pulses the CPU's reset line, as every PC since the AT does.
"""

from __future__ import annotations

from collections.abc import Callable

from swtdx.vmm.board.acpi_pm import PowerEvent
from swtdx.vmm.board.bus import PortBus

COMMAND_PORT = 0x64
PULSE_RESET = 0xFE


class ResetLine:
    """Port 0x64, write only. Reads find no device."""

    def __init__(self, ports: PortBus, request: Callable[[PowerEvent], object]) -> None:
        self._request = request
        ports.attach([COMMAND_PORT], None, self._command)

    def _command(self, port: int, size: int, value: int) -> None:
        if value & 0xFF == PULSE_RESET:
            self._request(PowerEvent.RESET)
