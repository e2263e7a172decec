# SPDX-License-Identifier: GPL-2.0-or-later
"""The board: which device is where, and what is wired to what.

Everything that vCPU threads and the console do to devices happens under `Board.lock`, the one lock of the board (QEMU's
"big lock"): a device is then plain sequential code.  KVM itself has the local APICs; the rest is here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from swtdx.clock import Clock
from swtdx.image import acpi_tables
from swtdx.image.fw_cfg_items import standard_files
from swtdx.image.io_map import FIRMWARE_PMBASE
from swtdx.image.memory_map import ECAM_BASE, ECAM_SIZE, IOAPIC_BASE, MemoryMap
from swtdx.vmm.board.acpi_pm import AcpiPm, PowerEvent
from swtdx.vmm.board.bus import MmioBus, PortBus
from swtdx.vmm.board.debug_exit import DebugExit
from swtdx.vmm.board.debugcon import DebugConsole
from swtdx.vmm.board.fw_cfg import FwCfg, GuestMemoryAccess
from swtdx.vmm.board.i8042 import ResetLine
from swtdx.vmm.board.i8254 import I8254
from swtdx.vmm.board.i8259 import I8259Pair
from swtdx.vmm.board.ioapic import LENGTH as IOAPIC_LENGTH
from swtdx.vmm.board.ioapic import IoApic, Msi
from swtdx.vmm.board.pci import (
    ACPI_CNTL,
    ACPI_ENABLE,
    HOST_BRIDGE,
    LPC_BRIDGE,
    PCIEXBAR,
    PCIEXBAR_ENABLE,
    PMBASE,
    PciBus,
    host_bridge,
    lpc_bridge,
)
from swtdx.vmm.board.pvpanic import PanicEvent, Pvpanic
from swtdx.vmm.board.rtc import RTC_IRQ, Rtc
from swtdx.vmm.board.timer import BoardTimer
from swtdx.vmm.board.uart16550 import COM1_IRQ, Uart16550
from swtdx.vmm.board.virtio.console import VirtioConsole
from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.board.virtio.pci import VirtioPci
from swtdx.vmm.board.virtio.ring import DmaMemory

if TYPE_CHECKING:
    from swtdx.image.linux_image import LinuxBoot
    from swtdx.image.smbios import SmbiosFields

FIRST_FREE_SLOT = 1
LAST_FREE_SLOT = 24  # those above are the chipset's own

# Where ECAM can be described, all 256 MiB of it: in the hole between RAM and the I/O APIC.
ECAM_LOWEST, ECAM_HIGHEST = 0x8000_0000, 0xE000_0000


class Board:
    """A q35 with a serial port, and whatever is plugged into it.

    ``serial`` and ``debug`` take what the guest prints there, byte by byte; without ``debug`` there is no debug port.
    ``linux`` is what the firmware is to start, ``smbios`` what it is to say of the machine.  ``level_interrupts``:
    whether ends of interrupt reach the I/O APIC.  ``panicked`` gets what a panicking kernel reports.
    ``signal_msi`` and ``route_msis`` are KVM's side of interrupts.  After each device access the run loop looks at
    ``power_event``: None, or what the guest has asked for.
    """

    def __init__(
        self,
        layout: MemoryMap,
        memory: GuestMemoryAccess,
        cpus: int,
        *,
        serial: Callable[[bytes], object],
        debug: Callable[[bytes], object] | None = None,
        linux: LinuxBoot | None = None,
        smbios: SmbiosFields | None = None,
        level_interrupts: bool = True,
        clock: Clock | None = None,
        debug_exit: int | None = None,
        panicked: Callable[[PanicEvent], object] = lambda event: None,
        signal_msi: Callable[[Msi], object],
        route_msis: Callable[[Sequence[Msi | None]], object],
    ) -> None:
        self.lock = threading.Lock()
        self.ports = PortBus()
        self.mmio = MmioBus()
        self.power_event: PowerEvent | None = None
        self.debug_exit_value = 0

        self._signal_msi = signal_msi
        self.ioapic = IoApic(self.signal_msi, partial(self._route, route_msis))
        self.mmio.attach(IOAPIC_BASE, IOAPIC_LENGTH, self.ioapic)
        self.pic = I8259Pair(self.ports)
        self.clock = clock or Clock()
        self.timer = I8254(self.ports, self.clock.monotonic_ns)
        self.pm = AcpiPm(
            self.ports, self._request, set_sci=lambda level: self._set_isa_irq(acpi_tables.SCI_LINE, level)
        )
        if clock is not None:
            self.pm.use_clock(clock.monotonic)
        self._rtc_timer = BoardTimer(self.lock, self.clock)
        self.rtc = Rtc(
            self.ports,
            layout,
            self.clock.time,
            set_irq=lambda level: self._set_isa_irq(RTC_IRQ, level),
            alarm=self.pm.rtc_alarm,
            set_timer=self._rtc_timer.set,
        )
        self._rtc_timer.function = self.rtc.tick
        self._build_acpi = partial(acpi_tables.build, layout, cpus, level_interrupts=level_interrupts)
        self.acpi = self._build_acpi()
        self._alter_acpi: Callable[[acpi_tables.AcpiTables], acpi_tables.AcpiTables] = lambda tables: tables
        self._other_files = standard_files(layout)
        if smbios is not None:
            self._other_files |= smbios.files(layout, cpus)
        self.fw_cfg = FwCfg(self.ports, memory, cpus, layout, {**self._other_files, **self.acpi.files()}, linux)
        self.debug_console = DebugConsole(self.ports, debug)
        self.com1 = Uart16550(self.ports, serial, lambda level: self._set_isa_irq(COM1_IRQ, level))
        self.reset_line = ResetLine(self.ports, self._request)
        self.pci = PciBus(self.ports, self.mmio)
        self.pci.attach(HOST_BRIDGE, host_bridge(self.pci, self._ecam_moved))
        self.pci.attach(LPC_BRIDGE, lpc_bridge(self.pm.move))

        self.pvpanic = Pvpanic(self.ports, panicked)
        if debug_exit is not None:
            DebugExit(self.ports, debug_exit, self._leave)

        self._virtio: list[VirtioDevice] = []
        self._asserted_intx: set[int] = set()  # slots

    def plug(self, device: VirtioDevice, memory: DmaMemory, say: Callable[[str], object] = lambda text: None) -> None:
        """Put a virtio device into the next free PCI slot. ``say`` gets what a person should know, a sentence."""
        slot = FIRST_FREE_SLOT + len(self._virtio)
        if slot > LAST_FREE_SLOT:
            raise ValueError("all PCI slots are taken")
        function = VirtioPci(device, memory, self.mmio, self.signal_msi, say)
        function.set_intx = lambda level: self._set_intx(slot, level)
        self.pci.attach((slot, 0), function)
        self._virtio.append(device)

    def signal_msi(self, message: Msi) -> None:
        """Send a message. One that KVM cannot deliver, to no APIC or with reserved bits, is lost as it is on a bus."""
        with suppress(OSError):
            self._signal_msi(message)

    @staticmethod
    def _route(route_msis: Callable[[Sequence[Msi | None]], object], routes: Sequence[Msi | None]) -> None:
        """What a guest writes into a redirection entry is not always a route that KVM takes."""
        with suppress(OSError):
            route_msis(routes)

    def program_chipset(self) -> None:
        """Do what firmware does to the chipset, where there is none: registers are where the ACPI tables say."""
        self.pci.functions[HOST_BRIDGE].write(PCIEXBAR, 8, ECAM_BASE | PCIEXBAR_ENABLE)
        self.pci.functions[LPC_BRIDGE].write(PMBASE, 4, FIRMWARE_PMBASE)
        self.pci.functions[LPC_BRIDGE].write(ACPI_CNTL, 1, ACPI_ENABLE)

    def type(self, data: bytes) -> None:
        """Take typed bytes: for the virtio console once its driver runs, for the serial port before. Takes the lock."""
        with self.lock:
            for device in self._virtio:
                if isinstance(device, VirtioConsole) and device.listening:
                    device.receive(data)
                    return
            self.com1.receive(data)

    def stop(self) -> None:
        """The run is over: no device begins anything long any more. From any thread, without the lock."""
        self._rtc_timer.stop()
        for device in self._virtio:
            device.stopping = True

    def alter_acpi(self, alter: Callable[[acpi_tables.AcpiTables], acpi_tables.AcpiTables]) -> None:
        """Give the firmware other tables from now on, for a host that is not to be trusted."""
        self._alter_acpi = alter
        self._hand_over()

    def _hand_over(self) -> None:
        self.fw_cfg.set_files({**self._other_files, **self._alter_acpi(self.acpi).files()})

    def go_on(self, kept: None) -> None:
        """The board was given the state of a snapshot: it works again, by a clock that is behind the host's."""
        self.pm.use_clock(self.clock.monotonic)
        for device in self._virtio:
            device.stopping = False

    def _set_intx(self, slot: int, level: bool) -> None:
        """INTA of a device. Slots share lines, which are asserted while any of their devices wants it."""
        if level:
            self._asserted_intx.add(slot)
        else:
            self._asserted_intx.discard(slot)
        line = acpi_tables.intx_gsi(slot, 0)
        self.ioapic.set_irq(line, any(acpi_tables.intx_gsi(other, 0) == line for other in self._asserted_intx))

    def _ecam_moved(self, base: int) -> None:
        """Builds of OVMF differ in where they put it, and read the tables that say where it is only afterwards."""
        if ECAM_LOWEST <= base <= ECAM_HIGHEST and self.pci.ecam.length == ECAM_SIZE:
            self.acpi = self._build_acpi(ecam_base=base)
            self._hand_over()

    def _set_isa_irq(self, line: int, level: bool) -> None:
        self.pic.set_irq(line, level)
        self.ioapic.set_irq(line, level)

    def _leave(self, value: int) -> None:
        self.debug_exit_value = value
        self._request(PowerEvent.DEBUG_EXIT)

    def _request(self, event: PowerEvent) -> None:
        self.power_event = event
