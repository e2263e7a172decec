# SPDX-License-Identifier: GPL-2.0-or-later
"""The disk, the console and the source of random numbers, each behind a driver that writes its rings by hand."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from swtdx.vmm.board.virtio.blk import VirtioBlk
from swtdx.vmm.board.virtio.console import MAXIMUM_PRINTED, VirtioConsole
from swtdx.vmm.board.virtio.rng import MAXIMUM_PER_CHAIN, VirtioRng
from swtdx.vmm.disk_image import DiskImage, DiskSpec, open_disk
from tests.vmm.virtio_driver import NEEDS_RESET, RAM, WRITE, Bench, Driver

HEADER, DATA, STATUS = 0x8_0000, 0x9_0000, 0xA_0000
IN, OUT, FLUSH, GET_ID, DISCARD = 0, 1, 4, 8, 11
OK, IOERR, UNSUPP = 0, 1, 2
SECTORS = 64


# --- disk -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(b"".join(bytes((sector,)) * 512 for sector in range(SECTORS)))
    return path


@pytest.fixture
def disk(image: Path) -> Iterator[DiskImage]:
    with open_disk(DiskSpec(image)) as opened:
        yield opened


@pytest.fixture
def driver(disk: DiskImage) -> Driver:
    return Driver(Bench(VirtioBlk(disk)))


def request(driver: Driver, kind: int, sector: int, *data: tuple[int, int, int]) -> tuple[int, int]:
    """(status, bytes written) of a request with header, data and status in buffers of their own."""
    memory, queue = driver.bench.memory, driver.queues[0]
    memory.write(HEADER, struct.pack("<IIQ", kind, 0, sector))
    memory.write(STATUS, b"\xee")
    queue.submit((HEADER, 16, 0), *data, (STATUS, 1, WRITE))
    ((head, written),) = queue.completed()
    assert head == 0
    return memory.read(STATUS, 1)[0], written


def test_disk_configuration(driver: Driver) -> None:
    assert driver.config.read(0) == 0x1042_1AF4
    assert driver.config.read(0x08) >> 24 == 1  # mass storage
    assert driver.device_config(0, 4) == SECTORS
    assert driver.device_config(4, 4) == 0
    assert driver.device_config(0, 8) == SECTORS
    assert driver.device_config(12, 4) == 254  # seg_max
    assert driver.device_config(20, 4) == 512  # blk_size
    offered = driver.features & 0xFFFF
    assert offered == 1 << 2 | 1 << 6 | 1 << 9  # SEG_MAX, BLK_SIZE, FLUSH


def test_disk_read(driver: Driver) -> None:
    assert request(driver, IN, 3, (DATA, 1024, WRITE)) == (OK, 1025)
    assert driver.bench.memory.read(DATA, 1025) == b"\3" * 512 + b"\4" * 512 + b"\0"
    assert driver.bench.msis == [(0xFEE0_0000, 0x41)]


def test_disk_read_into_many_buffers(driver: Driver) -> None:
    pieces = [(DATA, 1, WRITE), (DATA + 0x1000, 700, WRITE), (DATA + 0x2000, 323, WRITE)]
    assert request(driver, IN, 0, *pieces) == (OK, 1025)
    read = driver.bench.memory.read
    assert read(DATA + 0x1000, 700) == bytes(511) + b"\1" * 189
    assert read(DATA + 0x2000, 323) == b"\1" * 323


def test_disk_write(driver: Driver, image: Path) -> None:
    driver.bench.memory.write(DATA, b"A" * 300 + b"B" * 212)
    assert request(driver, OUT, 63, (DATA, 300, 0), (DATA + 300, 212, 0)) == (OK, 1)
    assert request(driver, FLUSH, 0) == (OK, 1)
    assert image.read_bytes()[62 * 512 :] == b"\x3e" * 512 + b"A" * 300 + b"B" * 212


def test_disk_framing_is_the_drivers_own_affair(driver: Driver) -> None:
    """Virtio 2.7.4: header and data in one buffer, data and status in one buffer, or cut anywhere."""
    memory, queue = driver.bench.memory, driver.queues[0]
    memory.write(HEADER, struct.pack("<IIQ", OUT, 0, 5) + b"Z" * 512)
    queue.submit((HEADER, 3, 0), (HEADER + 3, 525, 0), (STATUS, 1, WRITE))
    assert queue.completed() == [(0, 1)]
    assert memory.read(STATUS, 1) == b"\0"
    memory.write(HEADER, struct.pack("<IIQ", IN, 0, 5))
    queue.submit((HEADER, 16, 0), (DATA, 513, WRITE))
    assert queue.completed() == [(0, 513)]
    assert memory.read(DATA, 513) == b"Z" * 512 + b"\0"


def test_disk_identity(driver: Driver) -> None:
    assert request(driver, GET_ID, 0, (DATA, 20, WRITE)) == (OK, 21)
    assert driver.bench.memory.read(DATA, 20) == b"disk.img".ljust(20, b"\0")
    assert request(driver, GET_ID, 0, (DATA, 4, WRITE)) == (OK, 5)


@pytest.mark.parametrize(
    ("kind", "sector", "length"),
    [
        (IN, SECTORS, 512),
        (IN, SECTORS - 1, 1024),
        (IN, (1 << 64) - 1, 512),
        (IN, 1 << 55, 512),
        (IN, 0, 511),
        (OUT, SECTORS, 512),
        (OUT, (1 << 64) - 1, 1024),
        (OUT, 0, 100),
    ],
)
def test_disk_refuses_what_is_not_on_it(driver: Driver, image: Path, kind: int, sector: int, length: int) -> None:
    before = image.read_bytes()
    assert request(driver, kind, sector, (DATA, length, WRITE if kind == IN else 0)) == (IOERR, 1)
    assert image.read_bytes() == before
    assert not driver.status & NEEDS_RESET


@pytest.mark.parametrize("kind", [2, DISCARD, 0xFFFF_FFFF])
def test_disk_requests_that_there_are_not(driver: Driver, kind: int) -> None:
    assert request(driver, kind, 0, (DATA, 512, WRITE)) == (UNSUPP, 1)


@pytest.mark.parametrize(
    "buffers",
    [
        [(HEADER, 16, 0)],
        [(HEADER, 15, 0), (STATUS, 1, WRITE)],
        [(STATUS, 1, WRITE)],
    ],
)
def test_disk_requests_without_header_or_status_break_the_device(
    driver: Driver, buffers: list[tuple[int, int, int]]
) -> None:
    driver.queues[0].submit(*buffers)
    assert driver.status & NEEDS_RESET
    assert "lacks its header or its status byte" in driver.bench.said[0]


def test_disk_request_larger_than_any_disk_should_move(tmp_path: Path) -> None:
    """A chain may name the same memory over and over."""
    path = tmp_path / "sparse.img"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with open_disk(DiskSpec(path, read_only=True)) as disk:
        bench = Bench(VirtioBlk(disk))
        driver = Driver(bench)
        table = b"".join(struct.pack("<QIHH", 0, RAM, 1 | WRITE, number + 2) for number in range(1000))
        bench.memory.write(0x10_0000, struct.pack("<QIHH", HEADER, 16, 1, 1) + table)
        bench.memory.write(0x10_0000 + 16 * 1001, struct.pack("<QIHH", STATUS, 1, WRITE, 0))
        bench.memory.write(HEADER, struct.pack("<IIQ", IN, 0, 0))
        bench.memory.write(STATUS, b"\xee")
        driver.queues[0].submit((0x10_0000, 16 * 1002, 4))
        assert driver.queues[0].completed() == [(0, 1)]
        assert bench.memory.read(STATUS, 1)[0] == IOERR


def test_a_read_only_disk_says_so_and_means_it(image: Path) -> None:
    image.chmod(0o444)
    before = image.read_bytes()
    with open_disk(DiskSpec(image, read_only=True)) as disk:
        driver = Driver(Bench(VirtioBlk(disk)))
        assert driver.features & 1 << 5
        assert request(driver, OUT, 0, (DATA, 512, 0)) == (IOERR, 1)
        assert request(driver, FLUSH, 0) == (OK, 1)
        assert request(driver, IN, 1, (DATA, 512, WRITE)) == (OK, 513)
    assert image.read_bytes() == before


def test_an_image_that_shrinks_is_an_io_error_and_told_once(driver: Driver, image: Path) -> None:
    os.truncate(image, 512 * 10 + 100)
    assert request(driver, IN, 20, (DATA, 512, WRITE)) == (IOERR, 1)
    assert request(driver, IN, 10, (DATA, 512, WRITE)) == (IOERR, 1)
    assert request(driver, IN, 9, (DATA, 512, WRITE)) == (OK, 513)
    (said,) = driver.bench.said
    assert "disk.img: the image file has become shorter" in said


def test_disk_requests_at_random_against_a_model(driver: Driver, image: Path) -> None:
    chance = random.Random(7)
    model = bytearray(image.read_bytes())
    memory = driver.bench.memory
    for _ in range(300):
        sector, count = chance.randrange(SECTORS), chance.randrange(1, 9)
        fits = sector + count <= SECTORS
        start, end = sector * 512, (sector + count) * 512
        if chance.random() < 0.5:
            contents = chance.randbytes(count * 512)
            memory.write(DATA, contents)
            assert request(driver, OUT, sector, (DATA, count * 512, 0))[0] == (OK if fits else IOERR)
            if fits:
                model[start:end] = contents
        else:
            status, _ = request(driver, IN, sector, (DATA, count * 512, WRITE))
            assert status == (OK if fits else IOERR)
            if fits:
                assert memory.read(DATA, count * 512) == model[start:end]
    assert image.read_bytes() == model


def test_a_disk_stops_with_the_run(driver: Driver) -> None:
    driver.bench.board.stop()
    driver.bench.memory.write(HEADER, struct.pack("<IIQ", IN, 0, 0))
    driver.queues[0].submit((HEADER, 16, 0), (DATA, 512, WRITE), (STATUS, 1, WRITE))
    assert driver.queues[0].completed() == []


# --- console ----------------------------------------------------------------------------------------------------------


class Terminal:
    """A console's driver, and what the guest printed."""

    def __init__(self, size: tuple[int, int] | None = None) -> None:
        self.printed = bytearray()
        self.bench = Bench(VirtioConsole(self.printed.extend, size))
        self.driver: Driver | None = None

    def start(self) -> Driver:
        self.driver = Driver(self.bench)
        return self.driver


def test_console_configuration() -> None:
    driver = Terminal((132, 43)).start()
    assert driver.config.read(0) == 0x1043_1AF4
    assert driver.features & 0xFFFF == 1  # VIRTIO_CONSOLE_F_SIZE
    assert (driver.device_config(0, 2), driver.device_config(2, 2)) == (132, 43)
    assert Terminal().start().features & 0xFFFF == 0


def test_console_tells_its_size_when_the_driver_is_ready() -> None:
    """Linux reads the size only on a configuration change."""
    terminal = Terminal((80, 25))
    terminal.start()
    assert terminal.bench.msis == [(0xFEE0_0000, 0x40)]
    without = Terminal()
    without.start()
    assert without.bench.msis == []


def test_console_prints() -> None:
    terminal = Terminal()
    transmit = terminal.start().queues[1]
    transmit.memory.write(DATA, b"hello, world\n")
    transmit.submit((DATA, 5, 0), (DATA + 5, 8, 0))
    assert transmit.completed() == [(0, 0)]
    assert terminal.printed == b"hello, world\n"
    assert terminal.bench.msis == [(0xFEE0_0000, 0x42)]


def test_console_keys_go_to_the_serial_port_until_the_driver_listens() -> None:
    terminal = Terminal()
    board = terminal.bench.board
    board.type(b"s")
    assert board.ports.read(0x3F8, 1) == ord("s")
    driver = terminal.start()
    receive = driver.queues[0]
    board.type(b"ab")
    assert board.ports.read(0x3FD, 1) & 1 == 0
    assert receive.completed() == []
    receive.submit((DATA, 64, WRITE))
    assert receive.completed() == [(0, 2)]
    assert receive.memory.read(DATA, 3) == b"ab\0"
    receive.submit((DATA, 64, WRITE))
    assert receive.completed() == []
    terminal.bench.msis.clear()
    board.type(b"c")
    assert receive.completed() == [(0, 1)]
    assert terminal.bench.msis == [(0xFEE0_0000, 0x41)]
    driver.set_common(0x14, 1, 0)
    board.type(b"t")
    assert board.ports.read(0x3F8, 1) == ord("t")


def test_console_input_is_cut_to_the_buffers() -> None:
    terminal = Terminal()
    receive = terminal.start().queues[0]
    receive.describe(0, DATA, 3, WRITE)
    receive.describe(1, DATA + 16, 2, WRITE)
    receive.describe(2, DATA + 32, 100, WRITE)
    receive.offer(0, 1)
    terminal.bench.board.type(b"0123456789")
    assert receive.completed() == [(0, 3), (1, 2)]
    receive.offer(2)
    terminal.driver.notify(0)  # type: ignore[union-attr]
    assert receive.completed() == [(2, 5)]
    assert receive.memory.read(DATA + 32, 5) == b"56789"


def test_console_output_without_measure_is_cut() -> None:
    terminal = Terminal()
    driver = terminal.start()
    transmit = driver.queues[1]
    transmit.submit(*[(0x10_0000, 0x8_0000, 0)] * 4)
    assert transmit.completed() == [(0, 0)]
    assert len(terminal.printed) == MAXIMUM_PRINTED
    assert len(terminal.bench.said) == 1
    transmit.submit((DATA, 1, 0))
    assert len(terminal.printed) == MAXIMUM_PRINTED + 1


@pytest.mark.parametrize(("queue", "flags"), [(0, 0), (1, WRITE)])
def test_console_buffers_of_the_wrong_kind(queue: int, flags: int) -> None:
    terminal = Terminal()
    driver = terminal.start()
    driver.queues[queue].submit((DATA, 16, flags))
    terminal.bench.board.type(b"x")
    assert driver.status & NEEDS_RESET
    terminal.bench.board.type(b"y")
    assert len(terminal.bench.said) == 1


# --- random numbers ---------------------------------------------------------------------------------------------------


def test_random_numbers_are_the_hosts_and_bounded() -> None:
    driver = Driver(Bench(VirtioRng()))
    queue = driver.queues[0]
    queue.submit((0x10_0000, 0x8_0000, WRITE), (DATA, 16, WRITE))
    assert queue.completed() == [(0, MAXIMUM_PER_CHAIN)]
    filled = queue.memory.read(0x10_0000, MAXIMUM_PER_CHAIN + 64)
    assert filled[MAXIMUM_PER_CHAIN:] == bytes(64)
    assert len(set(filled[:MAXIMUM_PER_CHAIN])) == 256
    assert queue.memory.read(DATA, 16) == bytes(16)
