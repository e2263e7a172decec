# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU's isa-debug-exit: a test in the guest ends the run and says how it went (QEMU, hw/misc/debugexit.c).

A write of ``value`` to the port ends the run with exit status ``value * 2 + 1``, modulo 256, as QEMU's own would: never
0, which a clean power-off has.  There is no such port unless it is asked for; kvm-unit-tests and kernels written for
QEMU use 0xf4, QEMU's default is 0x501.
"""

from __future__ import annotations

from collections.abc import Callable

from swtdx.vmm.board.bus import PortBus

PORTS = 4


class DebugExit:
    """The port, 1 to 4 bytes wide. ``leave`` gets the value; reads give 0. Raises ValueError if the port is taken."""

    def __init__(self, ports: PortBus, port: int, leave: Callable[[int], object]) -> None:
        self._leave = leave
        ports.attach(range(port, port + PORTS), lambda port, size: 0, self._write)

    def _write(self, port: int, size: int, value: int) -> None:
        self._leave(value)


def exit_status(value: int) -> int:
    """The exit status that a written value asks for."""
    return (value << 1 | 1) & 0xFF
