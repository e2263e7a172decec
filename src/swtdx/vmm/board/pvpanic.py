# SPDX-License-Identifier: GPL-2.0-or-later
"""pvpanic: a port by which a guest's kernel reports that it has panicked (QEMU, docs/specs/pvpanic, pvpanic-isa.c).

A read gives the events that the device takes, a write reports one.  Linux finds it by the ACPI id ``QEMU0001`` and
writes from its panic notifier (drivers/misc/pvpanic).  With a crash kernel loaded Linux continues with that one; it
reports `CRASH_LOADED` if it calls its notifiers at all.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntFlag

from swtdx.image.io_map import PVPANIC_PORT
from swtdx.vmm.board.bus import PortBus


class PanicEvent(IntFlag):
    """What a guest may report (include/uapi/misc/pvpanic.h)."""

    PANICKED = 1
    CRASH_LOADED = 2


EVENTS = PanicEvent.PANICKED | PanicEvent.CRASH_LOADED


class Pvpanic:
    """The port. ``report`` gets each event that the guest writes."""

    def __init__(self, ports: PortBus, report: Callable[[PanicEvent], object]) -> None:
        self._report = report
        ports.attach([PVPANIC_PORT], lambda port, size: int(EVENTS), self._write)

    def _write(self, port: int, size: int, value: int) -> None:
        event = PanicEvent(value & EVENTS)
        if event:
            self._report(event)
