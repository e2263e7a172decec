# SPDX-License-Identifier: GPL-2.0-or-later
"""Each device of the board, by its data sheet."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import Any

import pytest

from swtdx.image.fw_cfg_items import standard_files
from swtdx.image.memory_map import FOUR_GIB, MIB, MemoryMap
from swtdx.vmm.board.acpi_pm import AcpiPm, PowerEvent
from swtdx.vmm.board.bus import MmioBus, PortBus
from swtdx.vmm.board.debug_exit import DebugExit, exit_status
from swtdx.vmm.board.debugcon import DebugConsole
from swtdx.vmm.board.fw_cfg import FwCfg
from swtdx.vmm.board.i8042 import ResetLine
from swtdx.vmm.board.i8254 import CLOCK_HZ, I8254
from swtdx.vmm.board.i8259 import I8259Pair
from swtdx.vmm.board.ioapic import IoApic, Msi
from swtdx.vmm.board.pci import HOST_BRIDGE, LPC_BRIDGE, PciBus, host_bridge, lpc_bridge
from swtdx.vmm.board.pvpanic import Pvpanic
from swtdx.vmm.board.q35 import Board
from swtdx.vmm.board.rtc import Rtc
from swtdx.vmm.board.uart16550 import Uart16550
from swtdx.vmm.memory import GuestMemory

LAYOUT = MemoryMap(256 * MIB, 2 * MIB)


class Clock:
    """Nanoseconds that a test moves."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


# --- buses ------------------------------------------------------------------------------------------------------------


def test_nobody_on_a_port_reads_as_ones_and_swallows() -> None:
    ports = PortBus()
    assert [ports.read(0x99, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFF_FFFF]
    ports.write(0x99, 1, 0)


def test_two_devices_on_one_port_are_a_bug() -> None:
    ports = PortBus()
    ports.attach([1], lambda port, size: 0)
    with pytest.raises(ValueError, match="0x1"):
        ports.attach([1], lambda port, size: 0)


# --- debug console ----------------------------------------------------------------------------------------------------


def test_debug_console_takes_bytes_and_shows_that_it_is_there() -> None:
    ports, log = PortBus(), bytearray()
    DebugConsole(ports, log.extend)
    assert ports.read(0x402, 1) == 0xE9
    ports.write(0x402, 1, ord("x"))
    assert log == b"x"


def test_debug_console_without_a_listener_is_absent() -> None:
    ports = PortBus()
    DebugConsole(ports, None)
    assert ports.read(0x402, 1) == 0xFF


# --- UART -------------------------------------------------------------------------------------------------------------


class Serial:
    """A UART with what comes out of it."""

    def __init__(self) -> None:
        self.ports, self.sent = PortBus(), bytearray()
        self.irqs: list[bool] = []
        self.uart = Uart16550(self.ports, self.sent.extend, self.irqs.append)

    def read(self, register: int) -> int:
        return self.ports.read(0x3F8 + register, 1)

    def write(self, register: int, value: int) -> None:
        self.ports.write(0x3F8 + register, 1, value)


def test_uart_is_always_ready_to_send() -> None:
    serial = Serial()
    assert serial.read(5) == 0x60
    serial.write(0, ord("A"))
    assert serial.sent == b"A"
    assert serial.read(5) == 0x60


def test_uart_receives_in_order_and_says_so() -> None:
    serial = Serial()
    serial.uart.receive(b"ab")
    assert serial.read(5) & 1
    assert bytes([serial.read(0), serial.read(0)]) == b"ab"
    assert not serial.read(5) & 1


def test_uart_scratch_register_and_divisor_latch_keep_values() -> None:
    serial = Serial()
    for value in (0xAA, 0x55):
        serial.write(7, value)
        assert serial.read(7) == value
    serial.write(3, 0x83)
    serial.write(0, 0x01)
    serial.write(1, 0x02)
    assert (serial.read(0), serial.read(1)) == (1, 2)
    serial.write(3, 0x03)
    assert serial.read(1) == 0
    assert serial.sent == b""


def test_uart_loopback_returns_what_is_sent_and_the_modem_lines() -> None:
    serial = Serial()
    serial.write(4, 0x10 | 0x0A)  # loop, OUT2, RTS
    serial.write(0, 0x5A)
    assert serial.read(0) == 0x5A
    assert serial.sent == b""
    assert serial.read(6) & 0xF0 == 0x90  # OUT2 -> DCD, RTS -> CTS


@pytest.mark.parametrize(("fifo", "kept"), [(0x01, bytes(range(16))), (0x00, b"\x63")], ids=["FIFO", "no FIFO"])
def test_uart_loopback_overruns(fifo: int, kept: bytes) -> None:
    """A full FIFO keeps what it has, the lone register has the newest; LSR bit 1 reports it once (PC16550D, 8.6.4)."""
    serial = Serial()
    serial.write(2, fifo)
    serial.write(4, 0x10)
    for value in range(100):
        serial.write(0, value)
    assert serial.read(5) & 0x03 == 0x03
    assert serial.read(5) & 0x03 == 0x01
    assert bytes(serial.read(0) for _ in kept) == kept
    assert not serial.read(5) & 0x01


def test_uart_overrun_interrupt_comes_first() -> None:
    serial = Serial()
    serial.write(1, 0x07)
    serial.write(4, 0x18)
    serial.write(0, 1)
    serial.write(0, 2)
    assert serial.read(2) & 0x0F == 0x06
    serial.read(5)
    assert serial.read(2) & 0x0F == 0x04


def test_uart_keeps_what_was_typed_behind_the_fifo() -> None:
    serial = Serial()
    serial.write(2, 0x01)
    serial.uart.receive(bytes(range(200)))
    assert bytes(serial.read(0) for _ in range(200)) == bytes(range(200))


def test_uart_received_data_interrupt() -> None:
    serial = Serial()
    serial.write(4, 0x08)
    serial.write(1, 0x01)
    serial.uart.receive(b"x")
    assert serial.irqs == [True]
    assert serial.read(2) == 0x04
    serial.read(0)
    assert serial.irqs == [True, False]
    assert serial.read(2) == 0x01


def test_uart_fifo_below_its_trigger_level_reports_a_timeout() -> None:
    serial = Serial()
    serial.write(2, 0xC1)  # FIFOs on, trigger at 14
    serial.write(1, 0x01)
    serial.uart.receive(b"x")
    assert serial.read(2) == 0xCC
    serial.uart.receive(b"x" * 13)
    assert serial.read(2) == 0xC4


def test_uart_transmitter_interrupt_is_acknowledged_by_reading_its_cause() -> None:
    serial = Serial()
    serial.write(4, 0x08)
    serial.write(1, 0x02)
    assert serial.irqs == [True]
    assert serial.read(2) == 0x02
    assert serial.irqs == [True, False]
    serial.write(0, ord("x"))
    assert serial.irqs == [True, False, True]


def test_uart_interrupts_need_out2() -> None:
    serial = Serial()
    serial.write(1, 0x01)
    serial.uart.receive(b"x")
    assert serial.irqs == []


# --- fw_cfg -----------------------------------------------------------------------------------------------------------


def fw_cfg(files: dict[str, bytes] | None = None) -> tuple[PortBus, GuestMemory]:
    ports, memory = PortBus(), GuestMemory()
    memory.add(0, MIB)
    FwCfg(ports, memory, 3, LAYOUT, standard_files(LAYOUT) if files is None else files)
    return ports, memory


def item(ports: PortBus, key: int, length: int) -> bytes:
    ports.write(0x510, 2, key)
    return bytes(ports.read(0x511, 1) for _ in range(length))


def test_fw_cfg_fixed_items() -> None:
    ports, _ = fw_cfg()
    assert item(ports, 0, 6) == b"QEMU\0\0"
    assert item(ports, 1, 4) == struct.pack("<I", 3)
    assert item(ports, 5, 2) == item(ports, 15, 2) == struct.pack("<H", 3)
    assert item(ports, 0x1234, 4) == bytes(4)


def test_fw_cfg_directory_leads_to_the_files() -> None:
    ports, _ = fw_cfg({"b": b"second", "a": b"first"})
    assert item(ports, 0x19, 4) == struct.pack(">I", 2)
    directory = item(ports, 0x19, 4 + 2 * 64)[4:]
    entries = [struct.unpack_from(">IHH56s", directory, 64 * number) for number in range(2)]
    assert [(size, name.rstrip(b"\0")) for size, _, _, name in entries] == [(5, b"a"), (6, b"b")]
    assert item(ports, entries[1][1], 6) == b"second"


def test_fw_cfg_e820_describes_the_ram() -> None:
    files = standard_files(MemoryMap(3 << 30, 2 * MIB))
    entries = list(struct.iter_unpack("<QQI", files["etc/e820"]))
    assert entries[0] == (0, 0x8000_0000, 1)
    assert entries[1] == (FOUR_GIB, 0x4000_0000, 1)
    assert all(kind == 2 for _, _, kind in entries[2:])


def dma(ports: PortBus, memory: GuestMemory, control: int, length: int, address: int) -> int:
    memory.write(0x800, struct.pack(">IIQ", control, length, address))
    ports.write(0x514, 4, 0)
    ports.write(0x518, 4, int.from_bytes((0x800).to_bytes(4, "big"), "little"))
    return int(struct.unpack(">I", memory.read(0x800, 4))[0])


def test_fw_cfg_dma_reads_skips_and_pads() -> None:
    ports, memory = fw_cfg({"a": b"0123456789"})
    assert bytes(ports.read(0x514 + n, 1) for n in range(8)) == b"QEMU CFG"
    memory.write(0x1000, b"\xff" * 16)
    assert dma(ports, memory, 0x20 << 16 | 8 | 4, 4, 0) == 0  # select, skip 4
    assert dma(ports, memory, 2, 8, 0x1000) == 0
    assert memory.read(0x1000, 9) == b"456789\0\0\xff"


def test_fw_cfg_dma_answers_errors() -> None:
    ports, memory = fw_cfg({"a": b"0123456789"})
    assert dma(ports, memory, 0x20 << 16 | 8 | 2, 4, 0xFFFF_0000) == 1  # no memory there
    assert dma(ports, memory, 0x20 << 16 | 8 | 16, 4, 0x1000) == 1  # nothing is writable
    ports.write(0x518, 4, 0xFFFF_FFFF)  # a control structure where there is no memory


# --- RTC --------------------------------------------------------------------------------------------------------------


def cmos(ports: PortBus, register: int) -> int:
    ports.write(0x70, 1, register)
    return ports.read(0x71, 1)


def set_cmos(ports: PortBus, register: int, value: int) -> None:
    ports.write(0x70, 1, register)
    ports.write(0x71, 1, value)


def test_rtc_tells_the_time_in_bcd() -> None:
    ports = PortBus()
    Rtc(ports, LAYOUT, now=lambda: 1_700_000_000)  # 2023-11-14 22:13:20 UTC, a Tuesday
    assert [cmos(ports, register) for register in (0x32, 9, 8, 7, 6, 4, 2, 0)] == [
        0x20, 0x23, 0x11, 0x14, 3, 0x22, 0x13, 0x20,
    ]  # fmt: skip
    assert cmos(ports, 0xD) == 0x80
    assert not cmos(ports, 0xA) & 0x80


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("years", [-30_000, -292, 292, 20_000, 600_000])
def test_rtc_tells_any_time_that_a_host_can_have_it_at(years: int, binary: bool) -> None:
    ports = PortBus()
    Rtc(ports, LAYOUT, now=lambda: 1_700_000_000 + years * 31_556_952)
    set_cmos(ports, 0xB, 0x06 if binary else 0x02)
    assert all(0 <= cmos(ports, register) < 0x100 for register in (0x32, 9, 8, 7, 6, 4, 2, 0))


def test_rtc_in_binary_and_12_hours() -> None:
    ports = PortBus()
    Rtc(ports, LAYOUT, now=lambda: 1_700_000_000)
    set_cmos(ports, 0xB, 0x04)
    assert cmos(ports, 4) == 0x80 | 10
    assert cmos(ports, 2) == 13


def test_rtc_goes_on_from_the_time_that_the_guest_sets() -> None:
    ports, now = PortBus(), [1_700_000_000.0]
    Rtc(ports, LAYOUT, now=lambda: now[0])
    set_cmos(ports, 0xB, 0x82)
    for register, value in ((0x32, 0x20), (9, 0x30), (8, 0x01), (7, 0x02), (4, 0x03), (2, 0x04), (0, 0x05)):
        set_cmos(ports, register, value)
    set_cmos(ports, 0xB, 0x02)
    now[0] += 61
    assert [cmos(ports, register) for register in (9, 8, 7, 4, 2, 0)] == [0x30, 0x01, 0x02, 0x03, 0x05, 0x06]


def test_rtc_ignores_what_is_no_date() -> None:
    ports = PortBus()
    Rtc(ports, LAYOUT, now=lambda: 1_700_000_000)
    for value in range(256):
        set_cmos(ports, 8, value)
        assert 1 <= cmos(ports, 8) <= 0x12


def test_cmos_tells_memory_sizes() -> None:
    ports = PortBus()
    Rtc(ports, MemoryMap(5 << 30, 2 * MIB))
    assert (cmos(ports, 0x34) | cmos(ports, 0x35) << 8) * 0x10000 + 16 * MIB == 0x8000_0000
    assert (cmos(ports, 0x5B) | cmos(ports, 0x5C) << 8 | cmos(ports, 0x5D) << 16) * 0x10000 == 3 << 30


# --- PCI --------------------------------------------------------------------------------------------------------------


def pci() -> tuple[PortBus, MmioBus, list[int | None]]:
    ports, mmio = PortBus(), MmioBus()
    moves: list[int | None] = []
    bus = PciBus(ports, mmio)
    bus.attach(HOST_BRIDGE, host_bridge(bus))
    bus.attach(LPC_BRIDGE, lpc_bridge(moves.append))
    return ports, mmio, moves


def config(ports: PortBus, device: int, register: int, size: int = 4) -> int:
    ports.write(0xCF8, 4, 0x8000_0000 | device << 11 | register & 0xFC)
    return ports.read(0xCFC + (register & 3), size)


def set_config(ports: PortBus, device: int, register: int, value: int, size: int = 4) -> None:
    ports.write(0xCF8, 4, 0x8000_0000 | device << 11 | register & 0xFC)
    ports.write(0xCFC + (register & 3), size, value)


def test_pci_functions_of_a_q35() -> None:
    ports, _, _ = pci()
    assert config(ports, 0, 0) == 0x29C0_8086
    assert config(ports, 0x1F, 0) == 0x2918_8086
    assert config(ports, 0x1F, 0xB, 1) == 0x06
    assert config(ports, 0x1F, 0xA, 1) == 0x01
    assert config(ports, 3, 0) == 0xFFFF_FFFF
    ports.write(0xCF8, 4, 0)
    assert ports.read(0xCFC, 4) == 0xFFFF_FFFF


def test_pci_identity_is_read_only() -> None:
    ports, _, _ = pci()
    set_config(ports, 0, 0, 0)
    assert config(ports, 0, 0) == 0x29C0_8086


def test_pciexbar_maps_configuration_space() -> None:
    ports, mmio, _ = pci()
    assert mmio.read(0xB000_0000, 4) == 0xFFFF_FFFF
    set_config(ports, 0, 0x64, 0)
    set_config(ports, 0, 0x60, 0xB000_0001)
    assert mmio.read(0xB000_0000, 4) == 0x29C0_8086
    assert mmio.read(0xB000_0000 + (0x1F << 15), 4) == 0x2918_8086
    assert mmio.read(0xB000_0000 + (1 << 20), 4) == 0xFFFF_FFFF  # bus 1
    mmio.write(0xB000_0000 + 0x3C, 1, 0x0B)
    assert config(ports, 0, 0x3C, 1) == 0x0B
    set_config(ports, 0, 0x60, 0xE000_0001)
    assert mmio.read(0xE000_0000, 4) == 0x29C0_8086
    assert mmio.read(0xB000_0000, 4) == 0xFFFF_FFFF


def test_pmbase_moves_only_while_acpi_is_enabled() -> None:
    ports, _, moves = pci()
    set_config(ports, 0x1F, 0x40, 0x600)
    set_config(ports, 0x1F, 0x44, 0x80, 1)
    assert moves == [None, 0x600]
    assert config(ports, 0x1F, 0x40) == 0x601


# --- ACPI PM ----------------------------------------------------------------------------------------------------------


def test_pm_timer_counts_at_its_frequency_in_24_bits() -> None:
    ports, clock = PortBus(), [0.0]
    AcpiPm(ports, lambda event: None, lambda: clock[0])
    assert ports.read(0x608, 4) == 0
    clock[0] = 1
    assert ports.read(0x608, 4) == 3_579_545
    clock[0] = 5
    assert ports.read(0x608, 4) == 5 * 3_579_545 % (1 << 24)


def test_pm_block_moves() -> None:
    ports, clock = PortBus(), [0.0]
    pm = AcpiPm(ports, lambda event: None, lambda: clock[0])
    pm.move(0xB000)
    clock[0] = 1
    assert ports.read(0x608, 4) == 0xFFFF_FFFF
    assert ports.read(0xB008, 4) == 3_579_545
    pm.move(None)
    assert ports.read(0xB008, 4) == 0xFFFF_FFFF


def test_s5_and_the_reset_ports() -> None:
    ports = PortBus()
    events: list[Any] = []
    AcpiPm(ports, events.append)
    ResetLine(ports, events.append)
    ports.write(0x604, 2, 0x2000 | 1 << 10)  # S1: not offered
    ports.write(0xCF9, 1, 0x02)
    ports.write(0x64, 1, 0xAA)
    assert events == []
    ports.write(0x604, 2, 0x2000)
    ports.write(0xCF9, 1, 0x06)
    ports.write(0x64, 1, 0xFE)
    assert events == [PowerEvent.POWER_OFF, PowerEvent.RESET, PowerEvent.RESET]


# --- 8259, 8254 -------------------------------------------------------------------------------------------------------


def test_8259_is_remapped_and_masked() -> None:
    ports = PortBus()
    pair = I8259Pair(ports)
    for port, value in ((0x20, 0x11), (0x21, 0x68), (0x21, 4), (0x21, 1), (0x21, 0xFE)):
        ports.write(port, 1, value)
    assert ports.read(0x21, 1) == 0xFE
    assert pair.master.vector_base == 0x68
    pair.set_irq(4, True)
    pair.set_irq(12, True)
    assert (ports.read(0x20, 1), ports.read(0xA0, 1)) == (0x10, 0x10)
    ports.write(0x20, 1, 0x0B)  # OCW3: read in-service
    assert ports.read(0x20, 1) == 0


def test_8254_counts_down_and_latches() -> None:
    ports, clock = PortBus(), Clock()
    I8254(ports, clock)
    ports.write(0x43, 1, 0x34)  # counter 0, low then high, mode 2
    ports.write(0x40, 1, 0x00)
    ports.write(0x40, 1, 0x80)
    clock.now = 10_000_000
    elapsed = 10_000_000 * CLOCK_HZ // 1_000_000_000
    ports.write(0x43, 1, 0x00)
    clock.now = 20_000_000
    assert ports.read(0x40, 1) | ports.read(0x40, 1) << 8 == 0x8000 - elapsed


def test_8254_status_is_latched_once_and_read_before_the_count() -> None:
    """Read-back command (data sheet, "Read-Back Command"): only the first of several latches holds."""
    ports, clock = PortBus(), Clock()
    I8254(ports, clock)
    ports.write(0x43, 1, 0x34)
    ports.write(0x40, 1, 0x00)
    ports.write(0x40, 1, 0x80)
    ports.write(0x43, 1, 0xC2)  # status and count of counter 0
    for _ in range(1000):
        ports.write(0x43, 1, 0xE2)  # status alone
    clock.now = 5_000_000
    assert ports.read(0x40, 1) & 0x3F == 0x34
    assert ports.read(0x40, 1) | ports.read(0x40, 1) << 8 == 0x8000
    assert ports.read(0x40, 1) | ports.read(0x40, 1) << 8 == 0x8000 - 5_000_000 * CLOCK_HZ // 1_000_000_000


def test_8254_counter_2_measures_time_through_port_61() -> None:
    ports, clock = PortBus(), Clock()
    I8254(ports, clock)
    ports.write(0x61, 1, 0x01)
    ports.write(0x43, 1, 0xB0)  # counter 2, mode 0
    ports.write(0x42, 1, 11932 & 0xFF)
    ports.write(0x42, 1, 11932 >> 8)
    assert not ports.read(0x61, 1) & 0x20
    clock.now = 10_100_000
    assert ports.read(0x61, 1) & 0x20


# --- I/O APIC ---------------------------------------------------------------------------------------------------------


class Apic:
    """An I/O APIC with what it sends."""

    def __init__(self) -> None:
        self.sent: list[Msi] = []
        self.routes: Sequence[Msi | None] = []
        self.apic = IoApic(self.sent.append, self._route)

    def _route(self, routes: Sequence[Msi | None]) -> None:
        self.routes = routes

    def write(self, register: int, value: int) -> None:
        self.apic.mmio_write(0, 4, register)
        self.apic.mmio_write(0x10, 4, value)

    def read(self, register: int) -> int:
        self.apic.mmio_write(0, 4, register)
        return self.apic.mmio_read(0x10, 4)


def test_ioapic_version_and_masked_entries() -> None:
    apic = Apic()
    assert apic.read(1) == 0x0017_0020
    assert apic.read(0x10) == 0x1_0000
    apic.apic.set_irq(0, True)
    assert apic.sent == []


def test_ioapic_edge_becomes_the_msi_of_its_entry() -> None:
    apic = Apic()
    apic.write(0x19, 0x0200_0000)
    apic.write(0x18, 0x0000_0931)  # vector 0x31, lowest priority, logical
    assert apic.routes[4] == (0xFEE0_2004, 0x131)
    apic.apic.set_irq(4, True)
    apic.apic.set_irq(4, True)
    apic.apic.set_irq(4, False)
    apic.apic.set_irq(4, True)
    assert apic.sent == [(0xFEE0_2004, 0x131)] * 2


def test_ioapic_level_waits_for_end_of_interrupt() -> None:
    apic = Apic()
    apic.write(0x10 + 2 * 9, 0x8041)
    apic.apic.set_irq(9, True)
    apic.apic.set_irq(9, True)
    assert apic.sent == [(0xFEE0_0000, 0xC041)]
    assert apic.read(0x10 + 2 * 9) & 1 << 14
    apic.apic.end_of_interrupt(0x41)
    assert len(apic.sent) == 2
    apic.apic.set_irq(9, False)
    apic.apic.end_of_interrupt(0x41)
    assert len(apic.sent) == 2


# --- the board --------------------------------------------------------------------------------------------------------


def board(sent: bytearray) -> tuple[Board, list[Msi]]:
    msis: list[Msi] = []
    memory = GuestMemory()
    memory.add(0, MIB)
    made = Board(
        LAYOUT, memory, 1, serial=sent.extend, signal_msi=msis.append, route_msis=lambda routes: None
    )  # fmt: skip
    return made, msis


def test_without_firmware_the_chipset_is_where_the_tables_say() -> None:
    made, _ = board(bytearray())
    assert made.mmio.read(0xE000_0000, 4) == 0xFFFF_FFFF  # ECAM is off
    made.program_chipset()
    assert made.mmio.read(0xE000_0000, 4) == 0x29C0_8086
    assert made.mmio.read(0xE000_0000 + (0x1F << 15), 4) == 0x2918_8086
    assert made.mmio.read(0xE000_0000 + (0x1F << 15) + 0x40, 4) == 0x601  # PMBASE, in port space
    assert made.ports.read(0x604, 2) == 1  # PM1_CNT: ACPI is on


def test_typing_raises_com1s_interrupt_through_the_io_apic() -> None:
    made, msis = board(bytearray())
    made.mmio.write(0xFEC0_0000, 4, 0x18)
    made.mmio.write(0xFEC0_0010, 4, 0x24)
    made.ports.write(0x3FC, 1, 0x08)
    made.ports.write(0x3F9, 1, 0x01)
    made.type(b"x")
    assert msis == [(0xFEE0_0000, 0x24)]


# --- debug exit -------------------------------------------------------------------------------------------------------


def test_debug_exit_ends_with_twice_the_value_plus_one_as_qemus_does() -> None:
    left: list[int] = []
    ports = PortBus()
    DebugExit(ports, 0xF4, left.append)
    ports.write(0xF4, 4, 0x10)
    ports.write(0xF4, 1, 0)
    assert left == [0x10, 0]
    assert ports.read(0xF4, 4) == 0
    # QEMU: exit((val << 1) | 1), of which the caller sees eight bits.
    assert [exit_status(value) for value in (0, 1, 0x10, 0x7F, 0x80)] == [1, 3, 33, 255, 1]


def test_debug_exit_does_not_take_another_devices_port() -> None:
    ports = PortBus()
    ports.attach([0x402], lambda port, size: 0xE9)
    with pytest.raises(ValueError, match="0x402"):
        DebugExit(ports, 0x400, lambda value: None)


# --- pvpanic ----------------------------------------------------------------------------------------------------------


def test_pvpanic_takes_the_two_events_of_its_specification_and_reports_them() -> None:
    """QEMU, docs/specs/pvpanic: bit 0 panicked, bit 1 crash kernel loaded; a read tells which are taken."""
    ports = PortBus()
    reported: list[Any] = []
    Pvpanic(ports, reported.append)
    assert ports.read(0x505, 1) == 3
    for value in (1, 2, 3, 0x80, 0, 0xFD):
        ports.write(0x505, 1, value)
    assert reported == [1, 2, 3, 1]


# --- interrupts of the real-time clock --------------------------------------------------------------------------------
#
# Motorola MC146818A data sheet: registers A, B and C, "Interrupts". ACPI 6.5, 4.8.3.1: PM1 status and enable registers.


class Alarmed:
    """A real-time clock whose time a test moves; ``fire`` lets the timer expire if its time has come."""

    def __init__(self, now: float = 1_700_000_000.25) -> None:
        self.now = now
        self.ports, self.level, self.edges, self.alarms = PortBus(), False, 0, 0
        self.due: float | None = None
        self.rtc = Rtc(
            self.ports, LAYOUT, lambda: self.now, set_irq=self._irq, alarm=self._alarm, set_timer=self._timer
        )

    def _irq(self, level: bool) -> None:
        assert level != self.level
        self.level = level
        self.edges += level

    def _alarm(self) -> None:
        self.alarms += 1

    def _timer(self, delay: float | None) -> None:
        self.due = None if delay is None else self.now + delay

    def read(self, register: int) -> int:
        self.ports.write(0x70, 1, register)
        return self.ports.read(0x71, 1)

    def write(self, register: int, value: int) -> None:
        self.ports.write(0x70, 1, register)
        self.ports.write(0x71, 1, value)

    def pass_time(self, seconds: float) -> None:
        """As the board's timer does it: time advances to each moment that was asked for."""
        end = self.now + seconds
        while self.due is not None and self.due <= end:
            self.now, self.due = max(self.now, self.due), None
            self.rtc.tick()
        self.now = end

    def set_alarm(self, seconds: int) -> None:
        at = time.gmtime(int(self.now) + seconds)
        for register, value in ((1, at.tm_sec), (3, at.tm_min), (5, at.tm_hour)):
            self.write(register, value // 10 << 4 | value % 10)


def test_rtc_alarm_interrupts_once_and_register_c_acknowledges() -> None:
    clock = Alarmed()
    clock.set_alarm(5)
    clock.write(0x0B, 0x22)
    clock.pass_time(4.5)
    assert (clock.level, clock.alarms) == (False, 0)
    clock.pass_time(0.5)
    assert (clock.level, clock.edges, clock.alarms) == (True, 1, 1)
    assert clock.read(0x0C) & 0xB0 == 0xB0  # IRQF, AF, and UF, which is not enabled
    assert not clock.level
    assert clock.read(0x0C) == 0
    clock.pass_time(86_400)
    assert (clock.level, clock.alarms) == (True, 2), "the next day"


@pytest.mark.parametrize(
    ("registers", "seconds"),
    [
        ((0xFF, 0xFF, 0xFF), [1, 2, 3]),  # each second
        ((0x00, 0xFF, 0xC0), [40, 100, 160]),  # each minute
        ((0x30, 0x15, 0xFF), [130, 3730]),  # each hour at 15:30 past
        ((0x61, 0xFF, 0xFF), []),  # there is no such second
        ((0x00, 0x00, 0x24), []),
    ],
)
def test_rtc_alarm_does_not_care(registers: tuple[int, int, int], seconds: list[int]) -> None:
    clock = Alarmed(1_700_000_000.0)  # 22:13:20
    for register, value in zip((1, 3, 5), registers, strict=True):
        clock.write(register, value)
    clock.write(0x0B, 0x22)
    start = clock.now
    seen: list[object] = []
    for _ in seconds or [0]:
        clock.pass_time((seconds[len(seen)] if seconds else 90_000) - (clock.now - start))
        if clock.level:
            seen.append(round(clock.now - start))
            clock.read(0x0C)
    assert seen == seconds


@pytest.mark.parametrize(("b", "hour"), [(0x22, 0x23), (0x26, 23), (0x20, 0x91), (0x24, 0x8B)])
def test_rtc_alarm_in_every_format(b: int, hour: int) -> None:
    """BCD and binary, 24 hours and 12 with the PM bit: 22:13:20 and 23:00:00."""
    clock = Alarmed(1_700_000_000.0)
    clock.write(0x0B, b & ~0x20)
    for register, value in ((1, 0), (3, 0), (5, hour)):
        clock.write(register, value)
    clock.write(0x0B, b)
    clock.pass_time(46 * 60 + 39)
    assert not clock.level
    clock.pass_time(1)
    assert clock.level


def test_rtc_update_interrupt_comes_each_second() -> None:
    clock = Alarmed()
    clock.write(0x0B, 0x12)
    for count in range(1, 4):
        clock.pass_time(1)
        assert clock.edges == count
        assert clock.read(0x0C) & 0x90 == 0x90
    clock.write(0x0B, 0x92)  # SET: no updates, and SET clears nothing that waits
    clock.pass_time(5)
    assert clock.edges == 3


@pytest.mark.parametrize(("select", "rate"), [(1, 256), (2, 128), (3, 8192), (6, 1024), (15, 2)])
def test_rtc_periodic_interrupt(select: int, rate: int) -> None:
    clock = Alarmed()
    clock.write(0x0A, 0x20 | select)
    clock.write(0x0B, 0x42)
    count, end = 0, clock.now + 2
    while clock.due is not None and clock.due <= end:
        clock.pass_time(clock.due - clock.now)
        count += clock.level
        assert clock.read(0x0C) & 0x40 or not clock.level
    assert abs(count - 2 * rate) <= 2


def test_rtc_that_nobody_acknowledges_costs_nothing() -> None:
    clock = Alarmed()
    clock.write(0x0A, 0x23)
    clock.write(0x0B, 0x52)
    clock.pass_time(10)
    assert clock.edges == 1
    assert clock.due is None


def test_rtc_flags_are_set_without_interrupts() -> None:
    clock = Alarmed()
    clock.pass_time(2)
    assert clock.read(0x0C) & 0xD0 == 0x50
    assert not clock.edges
    clock.pass_time(2)
    clock.write(0x0B, 0x12)  # what is flagged already interrupts at once
    assert clock.level


def test_rtc_time_that_is_set_moves_the_alarm() -> None:
    clock = Alarmed(1_700_000_000.0)  # 22:13:20
    for register, value in ((1, 0), (3, 0), (5, 0x23)):
        clock.write(register, value)
    clock.write(0x0B, 0x22)
    clock.write(0x04, 0x22)
    clock.write(0x02, 0x59)  # 22:59:20
    clock.read(0x0C)
    clock.pass_time(39)
    assert not clock.level
    clock.pass_time(1)
    assert clock.level


def test_the_alarm_is_an_acpi_event() -> None:
    ports = PortBus()
    levels: list[object] = []
    pm = AcpiPm(ports, lambda event: None, set_sci=levels.append)
    pm.rtc_alarm()
    assert (ports.read(0x600, 2), levels) == (1 << 10, [])
    ports.write(0x602, 2, 1 << 10)
    assert (ports.read(0x600, 4), levels) == (1 << 26 | 1 << 10, [True])
    ports.write(0x600, 2, 1 << 8)
    assert levels == [True]
    ports.write(0x600, 2, 1 << 10)
    assert (ports.read(0x600, 2), levels) == (0, [True, False])


def test_the_alarm_reaches_the_i_o_apic_by_itself() -> None:
    """With the real timer: nothing touches the board meanwhile."""
    sent: list[Msi] = []
    board = Board(LAYOUT, GuestMemory(), 1, serial=lambda data: None, signal_msi=sent.append, route_msis=lambda r: None)
    for pin, vector in ((8, 0x28), (9, 0x29)):
        for register, value in ((0x10 + 2 * pin, vector),):
            board.mmio.write(0xFEC00000, 4, register)
            board.mmio.write(0xFEC00010, 4, value)
    board.ports.write(0x602, 2, 1 << 10)
    for register, value in ((1, 0xFF), (3, 0xFF), (5, 0xFF), (0x0B, 0x22)):
        board.ports.write(0x70, 1, register)
        board.ports.write(0x71, 1, value)
    end = time.monotonic() + 10
    while len(sent) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    assert sorted(data & 0xFF for _, data in sent[:2]) == [0x28, 0x29]
    board.stop()
