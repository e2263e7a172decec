# SPDX-License-Identifier: GPL-2.0-or-later
"""Drivers that do anything at all: the devices neither raise nor hang, and a good driver finds them working afterwards.

``SWTDX_RANDOM_DRIVERS=100000 pytest tests/vmm/test_virtio_random.py`` makes a campaign of it (``SWTDX_RANDOM_SEED`` for
another one each time).
"""

from __future__ import annotations

import os
import random
import struct
from pathlib import Path

from swtdx.vmm.board.virtio.blk import VirtioBlk
from swtdx.vmm.board.virtio.console import VirtioConsole
from swtdx.vmm.board.virtio.rng import VirtioRng
from swtdx.vmm.disk_image import DiskSpec, open_disk
from tests.vmm.virtio_driver import (
    INDIRECT_FLAG,
    MSIX_BAR,
    NEEDS_RESET,
    NEXT,
    RAM,
    VIRTIO_BAR,
    WRITE,
    Bench,
    Driver,
    Queue,
)

DRIVERS = int(os.environ.get("SWTDX_RANDOM_DRIVERS", "600"))
SEED = int(os.environ.get("SWTDX_RANDOM_SEED", "1"))
BUFFERS = (0x8_0000, 0x9_0000, 0xA_0000, 0x10_0000)
SECTORS = 32


def random_address(chance: random.Random, queue: Queue) -> int:
    """Mostly memory: buffers, the ring itself; at times its end, or nowhere."""
    place = chance.random()
    if place < 0.7:
        return chance.choice(BUFFERS) + chance.choice((0, 1, 512))
    if place < 0.85:
        return queue.base + chance.randrange(0x3000)
    return chance.choice((RAM - 1, RAM - 512, RAM, 0xFEC0_0000, 0xFFFF_FFFF, 1 << 47, (1 << 64) - 1))


def random_ring(chance: random.Random, queue: Queue) -> None:
    """Five chains of three descriptors, right for one of the queues, and an indirect table; then a few faults."""
    for address in (*(BUFFERS[0] + 32 * slot for slot in (0, 3, 6)), BUFFERS[3]):
        kind = chance.choice((0, 0, 1, 1, 4, 8, 11, chance.getrandbits(32)))
        sector = chance.choice((0, 1, 5, SECTORS - 1, SECTORS, chance.getrandbits(64)))
        queue.memory.write(address, struct.pack("<IIQ", kind, 0, sector))
    shape = chance.choice(((0, WRITE, WRITE), (0, 0, WRITE), (WRITE, WRITE, WRITE), (0, 0, 0)))
    entries = []
    for slot in range(16):
        position = slot % 3
        length = (16, chance.choice((512, 1024, 20, 513)), 1)[position]
        entries.append(
            [BUFFERS[position] + 32 * slot, length, shape[position] | (NEXT if position < 2 else 0), slot + 1]
        )
    table = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
    queue.memory.write(BUFFERS[3] + 0x1000, table)
    if chance.random() < 0.3:
        entries[chance.choice((0, 3, 6))] = [
            BUFFERS[3] + 0x1000,
            chance.choice((16, 48, 48, 256, 17)),
            INDIRECT_FLAG,
            0,
        ]
    for _ in range(chance.choice((0, 0, 1, 4, 16))):
        entry = entries[chance.randrange(16)]
        fault = chance.randrange(4)
        entry[fault] = (
            random_address(chance, queue),
            chance.choice((0, 1, 16, 0xFFFF_FFFF, chance.getrandbits(20))),
            chance.choice((0, NEXT, WRITE, NEXT | WRITE, INDIRECT_FLAG, chance.getrandbits(16))),
            chance.choice((chance.randrange(16), chance.getrandbits(16))),
        )[fault]
    for slot, (address, length, flags, following) in enumerate(entries):
        queue.describe(slot, address, length, flags, following)
    if chance.random() < 0.2:
        chance.shuffle(entries)
        queue.memory.write(BUFFERS[3] + 0x1000, b"".join(struct.pack("<QIHH", *entry) for entry in entries))


def misbehave(chance: random.Random, driver: Driver) -> None:
    """One thing that a driver does."""
    queue = chance.choice(driver.queues)
    action = chance.random()
    if action < 0.35:
        random_ring(chance, queue)
    elif action < 0.75:
        queue.offer(*(chance.choice((0, 3, 6, chance.randrange(18))) for _ in range(chance.randrange(1, 4))))
        driver.notify(queue.number)
    elif action < 0.80:
        queue.memory.write(queue.available + 2, struct.pack("<H", chance.getrandbits(16)))
        driver.notify(queue.number)
    elif action < 0.85:
        driver.bench.board.type(chance.randbytes(chance.randrange(1, 40)))
    elif action < 0.95:
        size = chance.choice((1, 2, 4, 8))
        base, length = chance.choice(((VIRTIO_BAR, 0x4000), (VIRTIO_BAR, 0x40), (MSIX_BAR, 0x1000)))
        at = base + chance.randrange(length)
        assert 0 <= driver.mmio.read(at, size) < 1 << 8 * size
        driver.mmio.write(at, size, chance.getrandbits(chance.choice((3, 8 * size))) & (1 << 8 * size) - 1)
    else:
        register = chance.randrange(0x40, 0x100)
        driver.config.write(register, chance.getrandbits(8), 1)
        driver.config.read(register, 1)


def used(queue: Queue) -> int:
    """How many chains the device has given back, if the ring was not overwritten."""
    (index,) = struct.unpack("<H", queue.memory.read(queue.used + 2, 2))
    return int(index) if index <= queue.index else 0


def test_random_drivers(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(SECTORS * 512))
    printed = bytearray()
    with open_disk(DiskSpec(image)) as disk:
        bench = Bench(VirtioBlk(disk), VirtioConsole(printed.extend), VirtioRng())
        completed = 0
        for number in range(DRIVERS):
            chance = random.Random(f"{SEED}/{number}")
            driver = Driver(bench, chance.randrange(1, 4), msix=chance.random() < 0.7)
            for queue in driver.queues:
                random_ring(chance, queue)
            for _ in range(chance.randrange(1, 30)):
                misbehave(chance, driver)
                bench.msis.clear()
                printed.clear()
                if driver.status & NEEDS_RESET:
                    break
            completed += sum(used(queue) for queue in driver.queues)
            driver.set_common(0x14, 1, 0)
            driver.config.write(0x04, 0, 2)
        assert completed > DRIVERS // 3  # they do get as far as the devices' own work
        assert len(bench.said) <= 3  # each device once
        assert image.stat().st_size == SECTORS * 512
        good = Driver(bench, 3)
        good.queues[0].submit((BUFFERS[0], 16, WRITE))
        assert good.queues[0].completed() == [(0, 16)]
