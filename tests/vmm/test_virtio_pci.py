# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtio over PCI as a driver sees it: configuration space, BARs, capabilities, negotiation, interrupts."""

from __future__ import annotations

import pytest

from swtdx.vmm.board.bus import MmioBus
from swtdx.vmm.board.pci_function import PciFunction
from swtdx.vmm.board.virtio.rng import VirtioRng
from tests.vmm.virtio_driver import (
    ACCESS_PLATFORM,
    DRIVER_OK,
    FEATURES_OK,
    INDIRECT,
    MSIX_BAR,
    VERSION_1,
    VIRTIO_BAR,
    WRITE,
    Bench,
    Config,
    Driver,
)

BUFFER = 0x8_0000


def rng() -> Driver:
    return Driver(Bench(VirtioRng()))


# --- configuration space ----------------------------------------------------------------------------------------------


def test_a_modern_device_says_what_it_is() -> None:
    config = Config(Bench(VirtioRng()).board.ports, 1)
    assert config.read(0x00) == 0x1044_1AF4  # 0x1040 + 4: entropy source (virtio 4.1.2, 5.4)
    assert config.read(0x08, 1) >= 1  # revision of a modern device
    assert config.read(0x2E, 2) >= 0x40  # subsystem id, likewise
    assert config.read(0x06, 2) & 0x10  # it has capabilities
    assert config.read(0x3D, 1) == 1  # INTA
    assert config.read(0x04, 2) == 0  # and decodes nothing yet


def test_devices_take_slots_in_order() -> None:
    bench = Bench(VirtioRng(), VirtioRng())
    assert [Config(bench.board.ports, slot).read(0) for slot in (1, 2, 3)] == [0x1044_1AF4, 0x1044_1AF4, 0xFFFF_FFFF]


def test_bars_are_sized_by_writing_ones() -> None:
    config = Config(Bench(VirtioRng()).board.ports, 1)
    for register in range(0x10, 0x28, 4):
        config.write(register, 0xFFFF_FFFF)
    bars = [config.read(register) for register in range(0x10, 0x28, 4)]
    assert bars == [0, 0xFFFF_F000, 0, 0, 0xFFFF_C00C, 0xFFFF_FFFF]  # 4 KiB of 32 bits; 16 KiB of 64, prefetchable


def test_nothing_answers_before_decoding_is_on() -> None:
    bench = Bench(VirtioRng())
    config = Config(bench.board.ports, 1)
    config.write(0x14, MSIX_BAR)
    assert bench.board.mmio.read(MSIX_BAR + 12, 4) == 0xFFFF_FFFF
    config.write(0x04, 2, 2)
    assert bench.board.mmio.read(MSIX_BAR + 12, 4) == 1  # masked, as after reset
    config.write(0x14, MSIX_BAR + 0x1000)
    assert bench.board.mmio.read(MSIX_BAR + 12, 4) == 0xFFFF_FFFF
    assert bench.board.mmio.read(MSIX_BAR + 0x100C, 4) == 1
    config.write(0x04, 0, 2)
    assert bench.board.mmio.read(MSIX_BAR + 0x100C, 4) == 0xFFFF_FFFF


def test_all_structures_are_there() -> None:
    driver = rng()
    kinds = [kind for kind, _ in driver.config.capabilities()]
    assert kinds.count(0x11) == 1
    types = [driver.config.read(at + 3, 1) for kind, at in driver.config.capabilities() if kind == 0x09]
    assert sorted(types) == [1, 2, 3, 4, 5]
    for address, length in driver.parts.values():
        assert VIRTIO_BAR <= address < address + length <= VIRTIO_BAR + 0x4000
    assert driver.parts[1][1] >= 0x38
    assert driver.parts[1][0] % 4 == 0


def test_a_bar_that_cannot_be_is_a_bug() -> None:
    function = PciFunction(MmioBus(), 1, 1, 0, revision=0, subsystem=(1, 1))
    with pytest.raises(ValueError, match="BAR 5"):
        function.add_bar(5, 0x1000, VirtioDummy(), 4)  # 64 bits need two
    with pytest.raises(ValueError, match="no room"):
        function.add_capability(9, bytes(0xC0))


class VirtioDummy:
    def mmio_read(self, offset: int, size: int) -> int:
        return 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        return


def test_the_window_in_configuration_space_reaches_the_registers() -> None:
    """Virtio 4.1.4.9: for firmware that cannot map BARs."""
    driver = rng()
    window = next(at for kind, at in driver.config.capabilities() if kind == 9 and driver.config.read(at + 3, 1) == 5)
    driver.config.write(window + 4, 4, 1)
    driver.config.write(window + 8, 0x14)
    driver.config.write(window + 12, 1)
    assert driver.config.read(window + 16, 1) == driver.status
    driver.config.write(window + 16, 0, 1)
    assert driver.status == 0
    for offset, length in ((0x4000, 4), (0x3FFF, 2), (0x14, 3), (0x14, 0), (0xFFFF_FFFF, 1)):  # nowhere
        driver.config.write(window + 8, offset)
        driver.config.write(window + 12, length)
        driver.config.write(window + 16, 0xFFFF_FFFF)
        driver.config.read(window + 16)
    assert driver.status == 0
    driver.config.write(window + 8, 0x14)
    driver.config.write(window + 12, 1)
    driver.config.write(window + 16, 1, 1)
    assert driver.status == 1


# --- negotiation ------------------------------------------------------------------------------------------------------


def test_features_offered() -> None:
    assert rng().features == VERSION_1 | ACCESS_PLATFORM | INDIRECT


def test_only_what_was_offered_is_agreed_to_and_version_1_must_be_in_it() -> None:
    driver = rng()
    assert driver.negotiate(VERSION_1 | ACCESS_PLATFORM)
    assert driver.negotiate(VERSION_1)
    assert not driver.negotiate(ACCESS_PLATFORM)
    assert not driver.negotiate(VERSION_1 | 1 << 34)  # VIRTIO_F_RING_PACKED
    assert not driver.status & FEATURES_OK


def test_features_are_fixed_once_agreed() -> None:
    driver = Driver(Bench(VirtioRng()), start=False)
    driver.negotiate(VERSION_1)
    driver.set_common(0x08, 4, 0)
    driver.set_common(0x0C, 4, 0xFFFF_FFFF)
    assert driver.common(0x0C, 4) == 0


def test_a_queue_that_is_not_there_has_size_0() -> None:
    driver = rng()
    assert driver.common(0x12, 2) == 1
    driver.set_common(0x16, 2, 1)
    assert driver.common(0x18, 2) == 0
    driver.set_common(0x18, 2, 8)
    driver.set_common(0x16, 2, 0)
    assert driver.common(0x18, 2) == 16


@pytest.mark.parametrize("size", [0, 3, 512, 0xFFFF])
def test_a_queue_size_that_cannot_be_is_not_taken(size: int) -> None:
    driver = Driver(Bench(VirtioRng()), start=False)
    driver.set_common(0x16, 2, 0)
    before = driver.common(0x18, 2)
    driver.set_common(0x18, 2, size)
    assert driver.common(0x18, 2) == before


def test_queue_addresses_read_back() -> None:
    driver = rng()
    driver.set_common(0x16, 2, 0)
    (queue,) = driver.queues
    assert [driver.common(register, 4) for register in (0x20, 0x28, 0x30)] == [queue.table, queue.available, queue.used]
    assert driver.common(0x20, 8) == queue.table
    assert driver.common(0x1C, 2) == 1


def test_an_enabled_queue_stays_as_it_is_until_the_reset() -> None:
    driver = rng()
    driver.set_common(0x16, 2, 0)
    driver.set_common(0x20, 4, 0x5000)
    driver.set_common(0x1C, 2, 0)
    assert driver.common(0x20, 4) == driver.queues[0].table
    assert driver.common(0x1C, 2) == 1
    driver.set_common(0x14, 1, 0)
    assert (driver.common(0x1C, 2), driver.common(0x20, 4), driver.common(0x18, 2)) == (0, 0, 256)
    assert driver.common(0x10, 2) == driver.common(0x1A, 2) == 0xFFFF


def test_a_vector_that_is_not_there_is_refused() -> None:
    driver = rng()
    driver.set_common(0x10, 2, 7)
    assert driver.common(0x10, 2) == 0xFFFF
    driver.set_common(0x16, 2, 0)
    driver.set_common(0x1A, 2, 2)
    assert driver.common(0x1A, 2) == 0xFFFF


def test_nothing_is_done_before_the_driver_is_ready() -> None:
    driver = rng()
    driver.set_common(0x14, 1, 0)
    driver.negotiate(VERSION_1)
    queue = driver.queues[0]
    queue.__init__(driver, 0)  # type: ignore[misc]
    queue.submit((BUFFER, 16, WRITE))
    assert queue.completed() == []
    driver.set_common(0x14, 1, 1 | 2 | FEATURES_OK | DRIVER_OK)
    assert queue.completed() == [(0, 16)]


def test_nothing_is_done_without_bus_mastering() -> None:
    driver = rng()
    driver.config.write(0x04, 2, 2)
    driver.queues[0].submit((BUFFER, 16, WRITE))
    assert driver.queues[0].completed() == []
    driver.config.write(0x04, 6, 2)
    driver.notify(0)
    assert driver.queues[0].completed() == [(0, 16)]


# --- interrupts -------------------------------------------------------------------------------------------------------


def test_a_used_buffer_sends_the_queues_message() -> None:
    driver = rng()
    driver.queues[0].submit((BUFFER, 16, WRITE))
    assert driver.bench.msis == [(0xFEE0_0000, 0x41)]
    assert driver.isr == 0


def test_the_driver_may_do_without_interrupts() -> None:
    driver = rng()
    queue = driver.queues[0]
    queue.memory.write(queue.available, b"\1\0")  # VIRTQ_AVAIL_F_NO_INTERRUPT
    queue.submit((BUFFER, 16, WRITE))
    assert queue.completed() == [(0, 16)]
    assert driver.bench.msis == []


def test_a_masked_vector_waits_and_shows_as_pending() -> None:
    driver = rng()
    driver.mmio.write(MSIX_BAR + 16 + 12, 4, 1)
    driver.queues[0].submit((BUFFER, 16, WRITE))
    pending = driver.config.read(driver.msix + 8)
    assert pending & 7 == 1  # the BAR
    place = MSIX_BAR + (pending & ~7)
    assert driver.mmio.read(place, 4) == 2
    assert driver.bench.msis == []
    driver.mmio.write(MSIX_BAR + 16 + 12, 4, 0)
    assert driver.bench.msis == [(0xFEE0_0000, 0x41)]
    assert driver.mmio.read(place, 4) == 0


def test_the_function_mask_masks_all() -> None:
    driver = rng()
    driver.config.write(driver.msix + 2, 0xC000, 2)
    driver.queues[0].submit((BUFFER, 16, WRITE))
    assert driver.bench.msis == []
    driver.config.write(driver.msix + 2, 0x8000, 2)
    assert len(driver.bench.msis) == 1


def test_msix_table_size_and_read_only_bits() -> None:
    driver = rng()
    assert driver.config.read(driver.msix + 2, 2) & 0x7FF == 1  # two vectors
    driver.config.write(driver.msix + 2, 0x87FF, 2)
    assert driver.config.read(driver.msix + 2, 2) == 0x8001


def test_a_message_to_no_apic_goes_nowhere() -> None:
    driver = rng()
    driver.mmio.write(MSIX_BAR + 16, 4, 0x1000)
    driver.queues[0].submit((BUFFER, 16, WRITE))
    assert driver.bench.msis == []
    assert driver.bench.memory.read(0x1000, 4) == bytes(4)


def test_a_message_that_the_kernel_refuses_is_lost_and_no_more() -> None:
    bench = Bench(VirtioRng())
    function = bench.board.pci.functions[1, 0]

    def refuse(message: tuple[int, int]) -> None:
        raise OSError(22, "Invalid argument")

    function.msix._signal = refuse  # type: ignore[attr-defined]
    driver = Driver(bench)
    driver.queues[0].submit((BUFFER, 16, WRITE))
    assert driver.queues[0].completed() == [(0, 16)]


def test_without_msix_the_line_and_isr() -> None:
    """Slot 1 is on PIRQF, GSI 21, in QEMU's q35."""
    bench = Bench(VirtioRng())
    bench.board.mmio.write(0xFEC0_0000, 4, 0x10 + 2 * 21)
    bench.board.mmio.write(0xFEC0_0010, 4, 0xA051)  # level, active low, vector 0x51
    driver = Driver(bench, msix=False)
    driver.queues[0].submit((BUFFER, 16, WRITE))
    assert [data & 0xFF for _, data in bench.msis] == [0x51]
    assert driver.config.read(0x06, 2) & 0x8  # interrupt status
    assert driver.isr == 1
    assert driver.isr == 0
    assert not driver.config.read(0x06, 2) & 0x8
    bench.board.ioapic.end_of_interrupt(0x51)
    assert len(bench.msis) == 1  # the line has fallen


def test_intx_can_be_disabled() -> None:
    bench = Bench(VirtioRng())
    lines: list[tuple[int, bool]] = []
    bench.board.ioapic.set_irq = lambda pin, level: lines.append((pin, level))  # type: ignore[method-assign]
    driver = Driver(bench, msix=False)
    driver.config.write(0x04, 0x406, 2)
    driver.queues[0].submit((BUFFER, 16, WRITE))
    assert lines == []
    driver.config.write(0x04, 0x006, 2)
    assert lines == [(21, True)]
    driver.set_common(0x14, 1, 0)
    assert lines == [(21, True), (21, False)]


def test_slots_that_share_a_line_are_or_ed() -> None:
    bench = Bench(*(VirtioRng() for _ in range(5)))
    lines: list[tuple[int, bool]] = []
    bench.board.ioapic.set_irq = lambda pin, level: lines.append((pin, level))  # type: ignore[method-assign]
    board = bench.board
    for slot, level in ((1, True), (5, True), (1, False), (5, False)):
        board._set_intx(slot, level)
    assert lines == [(21, True), (21, True), (21, True), (21, False)]
