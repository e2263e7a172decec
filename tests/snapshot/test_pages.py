# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory is given back as it was, and what is discarded is zero, not what the snapshot has there."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest

from swtdx.cpu.memory import PhysicalMemory
from swtdx.snapshot import pages
from swtdx.snapshot.pages import PAGE_SIZE, Region, address_of
from swtdx.vmm.memory import UserMemory

LENGTH = 64 << 20


@pytest.fixture
def memory() -> Iterator[mmap.mmap]:
    mapping = mmap.mmap(-1, LENGTH, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    yield mapping
    mapping.close()


def old_kernel(*arguments: object) -> Iterator[tuple[int, int]]:
    """A kernel before 6.7 has no PAGEMAP_SCAN."""
    yield from ()
    raise OSError


@pytest.mark.parametrize("scan", [pages._scan, old_kernel], ids=["PAGEMAP_SCAN", "pagemap"])
def test_what_was_written_since_is_undone(memory: mmap.mmap, scan: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_scan", scan)
    memory[0:3] = b"abc"
    memory[LENGTH - 1] = 7
    region = Region(address_of(memory), LENGTH)
    image = region.keep()
    for _ in range(3):
        memory[1] = 0
        memory[PAGE_SIZE : PAGE_SIZE + 2] = b"xy"  # in a block that has contents
        memory[30 << 20] = 1  # in one that has none
        changed = region.give_back(image)
        assert changed is not None
        assert {offset for offset, _ in changed} >= {0, 30 << 20}
        assert memory[:3] == b"abc"
        assert memory[PAGE_SIZE : PAGE_SIZE + 2] == bytes(2)
        assert memory[30 << 20] == 0
        assert memory[LENGTH - 1] == 7


def test_work_follows_what_was_written(memory: mmap.mmap) -> None:
    memory[:] = b"\1" * LENGTH
    region = Region(address_of(memory), LENGTH)
    image = region.keep()
    assert region.give_back(image) == []
    assert memory[5 << 20] == 1  # reading is not writing
    memory[3 << 20] = 9
    assert region.give_back(image) == [(3 << 20, PAGE_SIZE)]


def test_of_several_images_each_can_be_given_back(memory: mmap.mmap) -> None:
    region = Region(address_of(memory), LENGTH)
    images = []
    for step in range(3):
        memory[step << 20] = step + 1
        images.append(region.keep())
    for step in (0, 2, 1, 1, 2, 0):
        region.give_back(images[step])
        assert [memory[other << 20] for other in range(3)] == [other + 1 if other <= step else 0 for other in range(3)]


def test_memory_that_is_given_up_is_zero_although_a_snapshot_has_contents_there() -> None:
    memory = PhysicalMemory(1 << 30)
    for hpa in (0x20_0000, 0x20_1000):
        memory.raw[hpa : hpa + 4] = b"abcd"
    image = memory.regions["ram"].keep()
    memory.discard_page(0x20_0000, 0)
    memory.clear_range(0x20_1000, PAGE_SIZE, 0)
    assert not any(memory.raw[0x20_0000:0x20_2000])
    memory.regions["ram"].give_back(image)
    assert bytes(memory.raw[0x20_1000:0x20_1004]) == b"abcd"


def test_user_memory_that_the_guest_made_private_is_zero_although_a_snapshot_has_contents_there() -> None:
    memory = UserMemory(1 << 20)
    memory.view[:4] = b"abcd"
    memory.regions["memory"].keep()
    memory.discard(0, PAGE_SIZE)
    assert not any(memory.view[:PAGE_SIZE])
    memory.close()
