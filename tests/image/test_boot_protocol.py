# SPDX-License-Identifier: GPL-2.0-or-later
"""What a kernel finds in memory by the 64-bit boot protocol (Documentation/arch/x86/boot.rst, zero-page.rst)."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise

import pytest

from swtdx.image.boot_protocol import DirectBoot, lay_out, memory_map
from swtdx.image.linux_image import LinuxBoot, LinuxImageError, parse
from swtdx.image.memory_map import MemoryMap
from tests.image.test_linux_image import bzimage

MIB = 1 << 20
INITRD = b"070701" * 1000
ACPI, NVS = 3, 4  # E820 types (ACPI 6.5, 15.1)


def entered(memory: int = 256 * MIB, *, td: bool = True, cpus: int = 1) -> DirectBoot:
    image = bytearray(bzimage(kernel=b"k" * 0x1_2340))
    image[0x201] = 0x66  # the jump at 0x200: the header ends at 0x268, and what follows is code
    image[0x268:0x300] = b"\x90" * 0x98
    linux = LinuxBoot(parse(bytes(image), "the kernel"), INITRD, "root=/dev/vda")
    return lay_out(linux, MemoryMap(memory, 0x1000 if td else 0), cpus, td=td)


def field(boot: DirectBoot, layout: str, offset: int) -> int:
    return int(struct.unpack_from(layout, boot.parameters.contents, offset)[0])


def at(boot: DirectBoot, address: int, length: int) -> bytes:
    offset = address - boot.parameters.address
    assert 0 <= offset <= len(boot.parameters.contents) - length
    return boot.parameters.contents[offset : offset + length]


def e820(boot: DirectBoot) -> list[tuple[int, int, int]]:
    """(start, end, type) as they stand in the zero page."""
    entries = [
        struct.unpack_from("<QQI", boot.parameters.contents, 0x2D0 + 20 * n) for n in range(field(boot, "B", 0x1E8))
    ]
    return [(start, start + length, kind) for start, length, kind in entries]


def test_the_zero_page_has_the_setup_header_and_what_a_boot_loader_must_write() -> None:
    boot = entered()
    image = boot.linux.kernel.image
    for start, end in ((0x1F1, 0x210), (0x22C, 0x268)):
        assert boot.parameters.contents[start:end] == image[start:end]
    assert boot.parameters.contents[0x268:0x2D0] == bytes(0x68)
    assert field(boot, "B", 0x210) == 0xFF  # type_of_loader: none of those with a number
    assert field(boot, "B", 0x1EF) == 0  # sentinel: the page was not filled with what happened to lie there
    assert field(boot, "<I", 0x214) == boot.kernel.address == 0x100_0000
    assert boot.entry == boot.kernel.address + 0x200
    assert boot.kernel.contents == image[boot.linux.kernel.setup_size :]
    assert boot.initrd is not None
    assert (field(boot, "<I", 0x218), field(boot, "<I", 0x21C)) == (boot.initrd.address, len(INITRD))
    assert boot.initrd.contents == INITRD
    assert at(boot, field(boot, "<I", 0x228), 14) == b"root=/dev/vda\0"
    assert all(piece.address % 4096 == 0 for piece in boot.pieces())


@pytest.mark.parametrize("memory", [128 * MIB, 3 << 30, 5 << 30])
@pytest.mark.parametrize("td", [True, False])
def test_the_memory_map_names_all_ram_once_and_what_is_in_use(memory: int, td: bool) -> None:
    boot, layout = entered(memory, td=td), MemoryMap(memory, 0x1000 if td else 0)
    entries = e820(boot)
    assert entries == sorted(entries)
    assert all(one[1] <= other[0] for one, other in pairwise(entries))
    usable = sum(end - start for start, end, kind in entries if kind == 1)
    other = sum(end - start for start, end, kind in entries if kind in (ACPI, NVS))
    assert usable + other + (0x10_0000 - 0xA_0000) == memory
    (parameters,) = [(start, end) for start, end, kind in entries if kind == ACPI]
    assert parameters == (boot.parameters.address, boot.parameters.address + len(boot.parameters.contents))
    assert any(
        start <= boot.kernel.address and boot.kernel.address + 40 * MIB <= end for start, end, k in entries if k == 1
    )
    assert ((0xFFFF_F000, 1 << 32, 2) in entries) is td
    assert memory_map(layout, parameters[1]) == [(start, end - start, kind) for start, end, kind in entries]


@pytest.mark.parametrize(("td", "cpus"), [(True, 4), (True, 1), (False, 4)])
def test_the_acpi_tables_are_placed_and_a_td_has_its_mailbox_in_them(td: bool, cpus: int) -> None:
    boot = entered(td=td, cpus=cpus)
    rsdp = at(boot, field(boot, "<Q", 0x70), 36)
    assert rsdp[:8] == b"RSD PTR "
    assert sum(rsdp[:20]) % 256 == sum(rsdp) % 256 == 0
    tables = {}
    xsdt = at(boot, struct.unpack_from("<Q", rsdp, 24)[0], 36)
    xsdt = at(boot, struct.unpack_from("<Q", rsdp, 24)[0], struct.unpack_from("<I", xsdt, 4)[0])
    for (address,) in struct.iter_unpack("<Q", xsdt[36:]):
        length = struct.unpack("<I", at(boot, address + 4, 4))[0]
        table = at(boot, address, length)
        assert sum(table) % 256 == 0
        tables[table[:4]] = table
    madt, structures = tables[b"APIC"], []
    position = 44
    while position < len(madt):
        structures.append(madt[position : position + madt[position + 1]])
        position += madt[position + 1]
    assert [one[3] for one in structures if one[0] == 0] == list(range(cpus))  # local APIC ids
    wakeups = [one for one in structures if one[0] == 0x10]  # ACPI 6.6, 5.2.12.19
    assert len(wakeups) == (1 if td else 0)
    for wakeup in wakeups:
        length, version, mailbox, reset_vector = struct.unpack("<xBHxxxxQQ", wakeup)
        assert (length, version, mailbox % 4096) == (24, 1, 0)
        assert any(start <= reset_vector < end for start, end, kind in e820(boot) if kind == 2)
        assert any(start <= mailbox and mailbox + 4096 <= end for start, end, kind in e820(boot) if kind == NVS)


def test_without_an_initrd_there_is_none() -> None:
    linux = LinuxBoot(parse(bzimage(), "x"))
    boot = lay_out(linux, MemoryMap(64 * MIB, 0), 1, td=False)
    assert boot.initrd is None
    assert (field(boot, "<I", 0x218), field(boot, "<I", 0x21C)) == (0, 0)


def test_the_initrd_stays_below_what_the_kernel_can_use() -> None:
    linux = LinuxBoot(replace(parse(bzimage(), "x"), initrd_maximum=0x07FF_FFFF), INITRD)
    boot = lay_out(linux, MemoryMap(1 << 30, 0), 1, td=False)
    assert boot.initrd is not None
    assert boot.kernel.address + 40 * MIB <= boot.initrd.address <= 128 * MIB - len(INITRD)


@pytest.mark.parametrize(
    ("memory", "changes", "words"),
    [
        (256 * MIB, {"entry_64": False}, "no 64-bit entry point"),
        (48 * MIB, {}, "need 57 MiB to start without firmware, and the guest has 48 MiB: give it more memory"),
        (56 * MIB, {}, "give it more memory"),
        (1 << 30, {"initrd_maximum": 56 * MIB - 1}, "of which an initrd may use 56 MiB"),
        (1 << 30, {"preferred_address": 0x10_0000}, "where its own parameters are"),
    ],
)
def test_what_cannot_be_entered_is_refused_in_one_sentence(memory: int, changes: dict[str, int], words: str) -> None:
    linux = LinuxBoot(replace(parse(bzimage(), "the kernel"), **changes), INITRD)  # type: ignore[arg-type]
    with pytest.raises(LinuxImageError, match=words) as refused:
        lay_out(linux, MemoryMap(memory, 0), 1, td=False)
    assert "the kernel" in str(refused.value)
