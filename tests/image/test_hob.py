# SPDX-License-Identifier: GPL-2.0-or-later
"""The TD HOB against the structures of the PI specification, volume 3, section 5 (written out here as ctypes)."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.image import hob
from swtdx.image.hob import HobError, ResourceType, memory_resources
from swtdx.image.memory_map import MemoryMap


class Header(ctypes.LittleEndianStructure):
    """EFI_HOB_GENERIC_HEADER."""

    _fields_ = [("HobType", ctypes.c_uint16), ("HobLength", ctypes.c_uint16), ("Reserved", ctypes.c_uint32)]


class Handoff(ctypes.LittleEndianStructure):
    """EFI_HOB_HANDOFF_INFO_TABLE."""

    _fields_ = [
        ("Header", Header), ("Version", ctypes.c_uint32), ("BootMode", ctypes.c_uint32),
        ("EfiMemoryTop", ctypes.c_uint64), ("EfiMemoryBottom", ctypes.c_uint64),
        ("EfiFreeMemoryTop", ctypes.c_uint64), ("EfiFreeMemoryBottom", ctypes.c_uint64),
        ("EfiEndOfHobList", ctypes.c_uint64),
    ]  # fmt: skip


class Resource(ctypes.LittleEndianStructure):
    """EFI_HOB_RESOURCE_DESCRIPTOR."""

    _fields_ = [
        ("Header", Header), ("Owner", ctypes.c_uint8 * 16), ("ResourceType", ctypes.c_uint32),
        ("ResourceAttribute", ctypes.c_uint32), ("PhysicalStart", ctypes.c_uint64), ("ResourceLength", ctypes.c_uint64),
    ]  # fmt: skip


RAM = MemoryMap(3 << 30, 2 << 20).ram
ACCEPTED = [
    (0x81_0000, 0x1_0000),
    (0x80_B000, 0x2000),
    (0x80_9000, 0x2000),
    (0x80_0000, 0x6000),
    (0xFFE0_0000, 0x20_0000),
]


def test_the_list_is_a_handoff_then_ram_then_the_end() -> None:
    address = 0x80_9000
    built = hob.build(address, 0x2000, RAM, ACCEPTED)
    handoff = Handoff.from_buffer_copy(built)
    assert (handoff.Header.HobType, handoff.Header.HobLength) == (1, ctypes.sizeof(Handoff))
    assert (handoff.Version, handoff.BootMode) == (9, 0)
    assert handoff.EfiEndOfHobList == address + len(built)
    offset = ctypes.sizeof(Handoff)
    found = []
    while (header := Header.from_buffer_copy(built, offset)).HobType != 0xFFFF:
        resource = Resource.from_buffer_copy(built, offset)
        assert (header.HobType, header.HobLength) == (3, ctypes.sizeof(Resource))
        assert resource.ResourceAttribute == 7
        found.append((resource.ResourceType, resource.PhysicalStart, resource.ResourceLength))
        offset += header.HobLength
    assert (header.HobLength, offset + ctypes.sizeof(Header)) == (8, len(built))
    # What the VMM added is system memory; all else is unaccepted; RAM continues above 4 GiB after the PCI hole.
    assert found == [
        (7, 0, 0x80_0000), (0, 0x80_0000, 0x6000), (7, 0x80_6000, 0x3000), (0, 0x80_9000, 0x2000),
        (0, 0x80_B000, 0x2000), (7, 0x80_D000, 0x3000),
        (0, 0x81_0000, 0x1_0000), (7, 0x82_0000, 0x8000_0000 - 0x82_0000),
        (7, 1 << 32, (3 << 30) - 0x8000_0000),
    ]  # fmt: skip


def test_firmware_below_4_gib_is_not_ram() -> None:
    assert all(start + length <= 1 << 30 for _, start, length in memory_resources([(0, 1 << 30)], ACCEPTED))


def test_a_list_that_does_not_fit_is_refused() -> None:
    with pytest.raises(HobError, match="its section has 64"):
        hob.build(0x1000, 64, RAM, [])


@given(st.lists(st.integers(0, 63), unique=True), st.integers(64, 100))
def test_resources_cover_ram_exactly_once(pages: list[int], total: int) -> None:
    resources = memory_resources([(0, total)], [(page, 1) for page in pages])
    position = 0
    for kind, start, length in resources:
        assert start == position
        assert length > 0
        if kind is ResourceType.SYSTEM_MEMORY:
            assert start in pages
        position += length
    assert position == total
    assert sum(length for kind, _, length in resources if kind is ResourceType.SYSTEM_MEMORY) == len(pages)
