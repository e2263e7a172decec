# SPDX-License-Identifier: GPL-2.0-or-later
"""Rings, and drivers that break them: nothing a guest writes there crashes, hangs or reaches beyond its memory."""

from __future__ import annotations

import random
import struct

import pytest

from swtdx.vmm.board.virtio.rng import VirtioRng
from tests.vmm.virtio_driver import DRIVER_OK, INDIRECT_FLAG, NEEDS_RESET, NEXT, RAM, WRITE, Bench, Driver, Queue

BUFFER = 0x8_0000


@pytest.fixture
def driver() -> Driver:
    return Driver(Bench(VirtioRng()))


@pytest.fixture
def queue(driver: Driver) -> Queue:
    return driver.queues[0]


def broken(driver: Driver, words: str) -> None:
    """The device said so once, wants a reset, told it by the configuration's vector, and touches nothing any more."""
    assert driver.status & NEEDS_RESET
    assert driver.bench.msis == [(0xFEE0_0000, 0x40)]
    (said,) = driver.bench.said
    assert said.startswith("virtio-rng: ")
    assert words in said
    queue = driver.queues[0]
    queue.completed()
    queue.submit((BUFFER, 16, WRITE), first=8)
    assert queue.completed() == []
    assert len(driver.bench.said) == 1


def test_a_chain_is_filled_and_given_back(driver: Driver, queue: Queue) -> None:
    queue.submit((BUFFER, 100, WRITE), (BUFFER + 0x1000, 28, WRITE), first=3)
    assert queue.completed() == [(3, 128)]
    filled = queue.memory.read(BUFFER, 101)
    assert any(filled[:100])
    assert filled[100] == 0
    assert any(queue.memory.read(BUFFER + 0x1000, 28))


def test_many_chains_at_one_notification_have_one_interrupt(driver: Driver, queue: Queue) -> None:
    for slot in range(16):
        queue.describe(slot, BUFFER + 16 * slot, 16, WRITE)
    queue.offer(*range(16))
    driver.notify(0)
    assert queue.completed() == [(slot, 16) for slot in range(16)]
    assert len(driver.bench.msis) == 1


def test_indices_wrap(driver: Driver, queue: Queue) -> None:
    for _ in range((1 << 16) // 16 + 3):
        queue.chain([(BUFFER, 1, WRITE)])
        queue.offer(*[0] * 16)
        driver.notify(0)
        assert queue.completed() == [(0, 1)] * 16
    assert driver.bench.said == []


def test_an_indirect_table(driver: Driver, queue: Queue) -> None:
    table = (
        struct.pack("<QIHH", BUFFER, 8, WRITE | NEXT, 2) + bytes(16) + struct.pack("<QIHH", BUFFER + 64, 8, WRITE, 0)
    )
    queue.memory.write(0x9_0000, table)
    queue.submit((0x9_0000, 48, INDIRECT_FLAG))
    assert queue.completed() == [(0, 16)]
    assert any(queue.memory.read(BUFFER + 64, 8))


def test_too_many_chains(driver: Driver, queue: Queue) -> None:
    queue.describe(0, BUFFER, 16, WRITE)
    queue.memory.write(queue.available + 2, struct.pack("<H", 17))
    driver.notify(0)
    broken(driver, "17 chains are offered in a ring of 16")


def test_a_head_beyond_the_table(driver: Driver, queue: Queue) -> None:
    queue.offer(16)
    driver.notify(0)
    broken(driver, "descriptor 16")


def test_a_link_beyond_the_table(driver: Driver, queue: Queue) -> None:
    queue.describe(0, BUFFER, 16, WRITE | NEXT, 0xFFFF)
    queue.offer(0)
    driver.notify(0)
    broken(driver, "descriptor 65535")


def test_a_loop(driver: Driver, queue: Queue) -> None:
    queue.describe(0, BUFFER, 16, WRITE | NEXT, 1)
    queue.describe(1, BUFFER, 16, WRITE | NEXT, 0)
    queue.offer(0)
    driver.notify(0)
    broken(driver, "no end")


def test_a_loop_in_an_indirect_table(driver: Driver, queue: Queue) -> None:
    queue.memory.write(0x9_0000, struct.pack("<QIHH", BUFFER, 16, WRITE | NEXT, 0))
    queue.submit((0x9_0000, 16, INDIRECT_FLAG))
    broken(driver, "no end")


def test_an_indirect_table_within_another(driver: Driver, queue: Queue) -> None:
    queue.memory.write(0x9_0000, struct.pack("<QIHH", 0x9_0000, 16, INDIRECT_FLAG, 0))
    queue.submit((0x9_0000, 16, INDIRECT_FLAG))
    broken(driver, "within another")


@pytest.mark.parametrize("length", [0, 8, 17])
def test_an_indirect_table_of_no_descriptors(driver: Driver, queue: Queue, length: int) -> None:
    queue.submit((0x9_0000, length, INDIRECT_FLAG))
    broken(driver, "not a whole number of descriptors")


def test_an_indirect_descriptor_with_a_next_one(driver: Driver, queue: Queue) -> None:
    queue.submit((0x9_0000, 16, INDIRECT_FLAG), (BUFFER, 16, WRITE))
    broken(driver, "continues")


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (RAM, 1),
        (RAM - 1, 2),
        (BUFFER, 0xFFFF_FFFF),
        (0xFEC0_0000, 4),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 0xFFFF_FFFF),
        (1 << 47 | BUFFER, 16),  # with the shared bit: not what a bus address is
    ],
)
def test_a_buffer_outside_memory(driver: Driver, queue: Queue, address: int, length: int) -> None:
    queue.submit((address, length, WRITE))
    broken(driver, "not in the guest's memory")


def test_a_buffer_of_no_bytes(driver: Driver, queue: Queue) -> None:
    queue.submit((BUFFER, 0, WRITE))
    broken(driver, "no bytes")


def test_a_ring_in_memory_that_the_guest_keeps_private(driver: Driver, queue: Queue) -> None:
    """What the VMM sees there are zeros, but the driver's index, in a page that is shared: the first chain is empty."""
    queue.memory.write(queue.table, bytes(4096))
    queue.offer(0)
    driver.notify(0)
    broken(driver, "no bytes")


def test_reading_after_writing(driver: Driver, queue: Queue) -> None:
    queue.submit((BUFFER, 16, WRITE), (BUFFER, 16, 0))
    broken(driver, "to be read follows")


def test_a_buffer_that_the_device_has_no_use_for(driver: Driver, queue: Queue) -> None:
    queue.submit((BUFFER, 16, 0))
    broken(driver, "only buffers to be written")


@pytest.mark.parametrize("register", [0x20, 0x28, 0x30])
def test_rings_outside_memory(register: int) -> None:
    driver = Driver(Bench(VirtioRng()), start=False)
    driver.negotiate(1 << 32)
    driver.set_common(0x10, 2, 0)
    queue = Queue(driver, 0)
    driver.queues.append(queue)
    driver.set_common(0x14, 1, 0)  # Queue() enabled it: once more, with one address wrong
    driver.negotiate(1 << 32)
    driver.set_common(0x10, 2, 0)
    for place, address in ((0x20, queue.table), (0x28, queue.available), (0x30, queue.used)):
        driver.set_common(place, 4, 0xFFFF_F000 if place == register else address)
        driver.set_common(place + 4, 4, 0xFFFF_FFFF if place == register else 0)
    driver.set_common(0x18, 2, 16)
    driver.set_common(0x1C, 2, 1)
    driver.set_common(0x14, 1, 1 | 2 | 8 | DRIVER_OK)
    queue.submit((BUFFER, 16, WRITE))
    broken(driver, "not in the guest's memory")


def test_a_reset_mends_it(driver: Driver, queue: Queue) -> None:
    queue.submit((RAM, 16, WRITE))
    assert driver.status & NEEDS_RESET
    driver.set_common(0x14, 1, 15)
    assert driver.status & NEEDS_RESET  # which the driver cannot take away
    again = Driver(driver.bench)
    assert not again.status & NEEDS_RESET
    again.queues[0].submit((BUFFER, 16, WRITE))
    assert again.queues[0].completed() == [(0, 16)]


def test_a_notification_of_no_queue_is_nothing(driver: Driver) -> None:
    address, length = driver.parts[2]
    for offset in range(4, length, 4):
        driver.mmio.write(address + offset, 4, 0xFFFF_FFFF)
    assert driver.bench.said == []


def test_accesses_of_any_size_anywhere(driver: Driver) -> None:
    """Every register of both BARs and of configuration space, at every size the bus has."""
    chance = random.Random(5)
    for base, length in ((0x70_0000_0000, 0x4000), (0xC000_0000, 0x1000)):
        for offset in [*range(0x60), *(chance.randrange(length) for _ in range(400))]:
            for size in (1, 2, 4, 8):
                driver.mmio.write(base + offset, size, chance.getrandbits(8 * size))
                assert 0 <= driver.mmio.read(base + offset, size) < 1 << 8 * size
    for register in range(0x100):
        driver.config.write(register, chance.getrandbits(8), 1)
        driver.config.read(register, 1)


def test_random_rings_never_break_the_device_for_good() -> None:
    chance = random.Random(6)
    bench = Bench(VirtioRng())
    for _ in range(300):
        driver = Driver(bench)
        queue = driver.queues[0]
        for slot in range(16):
            address = chance.choice([BUFFER, 0x9_0000, queue.base, RAM - 8, 1 << 63])
            queue.describe(
                slot, address, chance.choice([0, 16, 48, 4096, 1 << 31]), chance.randrange(8), chance.randrange(17)
            )
        queue.memory.write(0x9_0000, queue.memory.read(queue.table, 256))
        queue.offer(*(chance.randrange(17) for _ in range(chance.randrange(1, 20))))
        driver.notify(0)
    good = Driver(bench)
    good.queues[0].submit((BUFFER, 16, WRITE))
    assert good.queues[0].completed() == [(0, 16)]
