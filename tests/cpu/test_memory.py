# SPDX-License-Identifier: GPL-2.0-or-later
"""Physical memory under several keys."""

from __future__ import annotations

import ctypes
import mmap
import random

import pytest

from swtdx.cpu.memory import PhysicalMemory
from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import TDX_SEAMCALL_VMFAILINVALID, Processor, SeamArgs
from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import PAGE_TABLES, Guest, ept_map

PAGE = 0x5000
PRIVATE, OTHER = 40, 41
SECRET = bytes(range(256)) * 16


@pytest.fixture
def memory() -> PhysicalMemory:
    memory = PhysicalMemory(1 << 30)
    for hkid in (PRIVATE, OTHER):
        memory.create_key(hkid)
    memory.write(PAGE | PRIVATE << 46, SECRET)
    memory.set_key(PAGE, PRIVATE)
    return memory


def test_its_own_key_reads_the_data(memory: PhysicalMemory) -> None:
    assert memory.read(PAGE | PRIVATE << 46, 4096) == SECRET


def test_any_other_key_reads_noise(memory: PhysicalMemory) -> None:
    plain, other = memory.read(PAGE, 4096), memory.read(PAGE | OTHER << 46, 4096)
    assert SECRET not in (plain, other)
    assert plain != other
    assert len({plain[i : i + 16] for i in range(0, 4096, 16)}) > 250  # ciphertext, not a pattern


def test_equal_pages_have_different_ciphertexts_at_different_places(memory: PhysicalMemory) -> None:
    memory.write(PAGE + 4096 | PRIVATE << 46, SECRET)
    memory.set_key(PAGE + 4096, PRIVATE)
    assert memory.read(PAGE, 4096) != memory.read(PAGE + 4096, 4096)


def test_reads_across_pages_and_of_parts_agree(memory: PhysicalMemory) -> None:
    whole = memory.read(PAGE - 100, 4096 + 200)
    assert memory.read(PAGE + 32, 64) == whole[132:196]
    assert whole[:100] == bytes(100)


def test_a_foreign_write_breaks_integrity_and_a_full_overwrite_heals_it(memory: PhysicalMemory) -> None:
    memory.write(PAGE + 64, b"x")
    assert memory.poison[PAGE >> 12]
    assert (
        memory.read(PAGE | PRIVATE << 46, 64) != SECRET[:64]
        or memory.read(PAGE + 64 | PRIVATE << 46, 16) != SECRET[64:80]
    )
    memory.clear_page(PAGE | PRIVATE << 46)
    assert not memory.poison[PAGE >> 12]
    assert memory.read(PAGE | PRIVATE << 46, 4096) == bytes(4096)


def test_a_dropped_key_is_gone(memory: PhysicalMemory) -> None:
    memory.drop_key(PRIVATE)
    memory.create_key(PRIVATE)  # the next TD's
    before = memory.read(PAGE, 4096)
    memory.create_key(PRIVATE)
    assert memory.read(PAGE, 4096) != before


def test_addresses_outside_ram_are_refused(memory: PhysicalMemory) -> None:
    with pytest.raises(ValueError, match="not RAM"):
        memory.read(memory.size - 1, 2)
    with pytest.raises(ValueError, match="window"):
        memory.unmap_user(1 << 45, 4096)


@pytest.mark.parametrize(
    "change", [{"memory_size": 123}, {"keyid_bits": 5}, {"module_version": "9"}, {"logical_processors": 0}]
)
def test_a_platform_that_cannot_be_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        Platform(**change)  # type: ignore[arg-type]


def test_seamcall_without_a_module_cannot_enter() -> None:
    """Linux's TDX_SEAMCALL_VMFAILINVALID."""
    processor = Processor(Platform(memory_size=1 << 30))
    assert processor.seamcall(33, SeamArgs()) == TDX_SEAMCALL_VMFAILINVALID == 0x8000FF00FFFF0000


def test_windows_go_and_come_back(memory: PhysicalMemory) -> None:
    first = memory.map_user(0x7000_0000, 0x3000)
    second = memory.map_user(0x7100_0000, 0x1000)
    assert not memory.is_ram(first)
    assert second - first == 2 << 20
    memory.unmap_user(first, 0x3000)
    memory.unmap_user(second, 0x1000)
    assert memory.map_user(0x7000_0000, 0x1000) == first


@pytest.mark.parametrize("loaded", ["none", "loaded", "loaded and gone"])
def test_windows_go_whoever_is_loaded(loaded: str) -> None:
    user = mmap.mmap(-1, 1 << 20)
    address = ctypes.addressof(ctypes.c_char.from_buffer(user))
    processor = Processor(Platform(memory_size=1 << 30))
    context = processor.new_context()
    window = processor.memory.map_user(address, 1 << 20)
    if loaded != "none":
        assert context.cr0 == 0x60000010
    if loaded == "loaded and gone":
        context.close()
        del context
    processor.memory.unmap_user(window, 1 << 20)
    assert processor.memory.map_user(address, 1 << 20) == window


def test_windows_come_and_go_without_end() -> None:
    """A long-lived VM makes and deletes slots for as long as it lives; one window stays all the time."""
    memory = PhysicalMemory(1 << 20)
    pages = mmap.mmap(-1, 1 << 24)
    address = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    stays = memory.map_user(address, 0x1000)
    chance = random.Random(1)
    live: list[tuple[int, int, int]] = []
    for _ in range(80_000):  # more than there are of 1 GiB
        length = chance.choice((0x1000, 0x5000, 0x200000, 0x201000, 0x800000))
        start = chance.randrange(0, (1 << 24) - length + 1, 0x1000)
        hpa = memory.map_user(address + start, length)
        assert hpa % (2 << 20) == 0
        assert all(hpa + length <= other or other + size <= hpa for other, size, _ in live)
        live.append((hpa, length, start))
        while len(live) > chance.randrange(20):
            other, size, _ = live.pop(chance.randrange(len(live)))
            memory.unmap_user(other, size)
    for hpa, length, start in live:
        pages[start] = 0x5A
        assert memory.read_window(hpa, 1) == b"\x5a"
        assert memory.read_window(hpa + length - 1, 2) is None
    assert memory.read_window(stays, 0x1000) is not None


def test_the_largest_slots_fit() -> None:
    """KVM_MEM_MAX_NR_PAGES is 2^31 - 1: 8 TiB."""
    memory = PhysicalMemory(1 << 20)
    sizes = [(1 << 43) - 0x1000] * 3
    windows = [memory.map_user(0x10000, size) for size in sizes]
    with pytest.raises(MemoryError):
        _ = [memory.map_user(0x10000, sizes[0]) for _ in range(4)]
    memory.unmap_user(windows[1], sizes[1])
    small = [memory.map_user(0x10000, 1 << 40) for _ in range(8)]
    assert len(set(small)) == 8


@pytest.mark.parametrize("sizes", [(0x10000, 0x10000), (0x10000, 0x4000), (0x4000, 0x10000)])
def test_windows_have_translated_code_of_their_own(sizes: tuple[int, int]) -> None:
    """The same linear and guest-physical address, first in one window, then in the other."""
    guest = Guest(ept=True)
    windows, kept = [], []
    for port, size in zip((0x11, 0x22), sizes, strict=True):
        user = mmap.mmap(-1, size)
        user[:3] = bytes((0xE6, port, 0xF4))  # out port, al; hlt
        address = ctypes.addressof(ctypes.c_char.from_buffer(user))
        kept.append(user)
        windows.append((guest.memory.map_user(address, size), port))
    ept_map(guest.processor, guest.root, 0, 0, level=1)  # 2 MiB: page tables and the like
    for window, port in windows * 3:
        ept_map(guest.processor, guest.root, 0x200000, window)
        guest.processor.invept()
        guest.context.rip = 0x200000
        assert guest.run() == ExitReason.IO
        assert guest.context.exit_qualification >> 16 == port


def test_reading_what_its_owner_has_unmapped_does_not_crash() -> None:
    guest = Guest(ept=True)
    pages = mmap.mmap(-1, 0x2000)
    start = ctypes.addressof(ctypes.c_char.from_buffer(pages))
    window = guest.memory.map_user(start, 0x2000)
    for table in range(PAGE_TABLES, PAGE_TABLES + 0x3000, 0x1000):
        ept_map(guest.processor, guest.root, table, table)
    for offset in (0, 0x1000):
        ept_map(guest.processor, guest.root, 0x40_0000 + offset, window + offset)
    pages[0xFFE:0x1000] = b"ab"
    assert guest.context.read_linear(0x40_0FFE, 4) == b"ab\0\0"
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(start + 0x1000), ctypes.c_size_t(0x1000), 0) == 0
    assert guest.context.read_linear(0x40_0FFE, 4) == b"ab"
