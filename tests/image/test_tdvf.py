# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDVF parser: good images, one broken rule at a time, and arbitrary damage."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.image.tdvf import SectionType, TdvfError, check_memory, parse
from testing.tdvf_image import BASE, BFV, CFV, GOOD, HOB, SIZE, TEMP, Image, Row, image_with
from tests.conftest import KnownFirmware

RAM = [(0, 256 << 20)]


def test_sections_come_in_the_order_of_the_metadata() -> None:
    tdvf = parse(image_with(), "good.fd")
    assert [section.type for section in tdvf.sections] == [
        SectionType.BFV, SectionType.CFV, SectionType.TEMP_MEM, SectionType.TD_HOB,
    ]  # fmt: skip
    assert [(s.data_offset, s.raw_size, s.address, s.memory_size) for s in tdvf.sections] == [r[:4] for r in GOOD]
    assert [section.measured for section in tdvf.sections] == [True, False, False, False]
    assert tdvf.hob.address == 0x80_9000
    assert tdvf.load_address == BASE
    check_memory(tdvf, RAM)


def test_contents_are_padded_with_zeroes_to_the_memory_size() -> None:
    rows = (*GOOD[:3], HOB, (0x100, 0x10, 0x90_0000, 0x1000, 5, 0))
    tdvf = parse(image_with(rows=rows, content=b"\x5a"), "payload.fd")
    contents = tdvf.contents(tdvf.sections[4])
    assert contents == b"\x5a" * 0x10 + bytes(0x1000 - 0x10)
    assert tdvf.contents(tdvf.sections[3]) == bytes(0x2000)


def with_row(position: int, row: Row) -> bytes:
    rows = list(GOOD)
    rows[position] = row
    return image_with(rows=rows)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", ["is empty"]),
        (bytes(17 << 20), ["17825792 bytes", "16 MiB below 4 GiB"]),
        (image_with()[:-100], ["not a multiple", "truncated"]),
        (image_with()[:0x8000], ["no GUID table", "truncated"]),
        (bytes(SIZE), ["no GUID table"]),
        (image_with(table_length=5), ["GUID table", "5 bytes"]),
        (image_with(table_length=0xFFFF), ["GUID table", "claims 65535 bytes"]),
        (image_with(entry_guid=bytes(16)), ["no TDX metadata", "TDX support"]),
        (image_with(entry_length=40), ["GUID table", "entry of 40 bytes"]),
        (image_with(distance=SIZE + 1), ["points outside the file"]),
        (image_with(distance=4), ["points outside the file"]),
        (image_with(signature=b"TDVX"), ["signature", "TDVX"]),
        (image_with(version=2), ["version 2"]),
        (image_with(count=0), ["0 sections"]),
        (image_with(count=1 << 30), ["1073741824 sections"]),
        (image_with(length=48), ["48 bytes", "4 sections"]),
        (with_row(0, (0x4000, 0xC000, BASE + 0x4000, 0xC000, 99, 1)), ["section 0", "unknown type 99"]),
        (with_row(0, (0x4000, 0xC000, BASE + 0x4000, 0xC000, 0, 9)), ["section 0 (BFV)", "attribute bits", "0x9"]),
        (with_row(2, (0, 0, 0x80_0000, 0x6000, 3, 2)), ["section 2 (TEMP_MEM)", "PAGE_AUG", "PERM_MEM"]),
        (with_row(2, (0, 0, 0x80_0000, 0x6000, 4, 3)), ["section 2 (PERM_MEM)", "exclude each other"]),
        (with_row(0, (0x4000, 0xC001, BASE + 0x4000, 0xD000, 0, 1)), ["section 0 (BFV)", "0x4000-0x10001", "file"]),
        (with_row(0, (0xFFFFF000, 0xC000, BASE + 0x4000, 0xC000, 0, 1)), ["section 0 (BFV)", "file"]),
        (with_row(0, (0x4000, 0xC000, BASE + 0x4000, 0xB000, 0, 1)), ["section 0 (BFV)", "more data", "than memory"]),
        (with_row(0, (0x4000, 0xC000, BASE + 0x4800, 0xC000, 0, 1)), ["section 0 (BFV)", "unaligned"]),
        (with_row(2, (0, 0, 0x80_0000, 0x6001, 3, 0)), ["section 2 (TEMP_MEM)", "unaligned"]),
        (with_row(2, (0, 0, 0x80_0000, 0, 3, 0)), ["section 2 (TEMP_MEM)", "no memory"]),
        (with_row(2, (0, 0, (1 << 64) - 0x1000, 0x2000, 3, 0)), ["section 2 (TEMP_MEM)", "outside guest memory"]),
        (with_row(3, (0, 0x100, 0x80_9000, 0x2000, 2, 0)), ["section 3 (TD_HOB)", "not loaded from the file"]),
        (with_row(0, (0, 0, BASE + 0x4000, 0xC000, 0, 1)), ["section 0 (BFV)", "no data in the file"]),
        (with_row(2, (0, 0, 0x80_8000, 0x2000, 3, 0)), ["section 2", "section 3", "overlap"]),
        (image_with(rows=(CFV, TEMP, HOB)), ["no BFV section"]),
        (image_with(rows=(BFV, CFV, TEMP)), ["no TD_HOB section"]),
        (image_with(rows=(*GOOD, (0, 0, 0x90_0000, 0x1000, 2, 0))), ["section 4 (TD_HOB)", "only one"]),
    ],
)  # fmt: skip
def test_a_broken_rule_is_one_sentence_that_names_it(image: bytes, words: list[str]) -> None:
    with pytest.raises(TdvfError) as caught:
        parse(image, "/some/broken.fd")
    text = str(caught.value)
    assert "/some/broken.fd" in text
    assert "\n" not in text
    for word in words:
        assert word in text


@pytest.mark.parametrize(
    ("ram", "words"),
    [
        ([(0, 8 << 20)], ["section 3 (TD_HOB)", "RAM"]),
        ([(0, 0x80_0000), (0x80_9000, 0x2000)], ["section 2 (TEMP_MEM)", "outside guest memory"]),
        ([(0, 0x80_9000)], ["section 3 (TD_HOB)", "RAM", "more memory"]),
        ([(0, 0x80_A000)], ["section 3 (TD_HOB)", "RAM"]),
    ],
)
def test_sections_must_lie_in_guest_memory(ram: list[tuple[int, int]], words: list[str]) -> None:
    tdvf = parse(image_with(), "good.fd")
    with pytest.raises(TdvfError) as caught:
        check_memory(tdvf, ram)
    for word in ["good.fd", *words]:
        assert word in str(caught.value)


def test_the_td_hob_needs_ram_even_where_the_firmware_window_is() -> None:
    rows = ((0x6000, 0xA000, BASE + 0x6000, 0xA000, 0, 1), TEMP, (0, 0, BASE, 0x2000, 2, 0))
    with pytest.raises(TdvfError, match="needs RAM"):
        check_memory(parse(image_with(rows=rows), "odd.fd"), RAM)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.one_of(st.integers(SIZE - 0x1000, SIZE - 0xF00), st.integers(SIZE - 120, SIZE - 1)), st.integers(0, 255)
        ),
        max_size=12,
    ),
    st.one_of(st.just(SIZE), st.integers(0, SIZE)),
)
def test_damage_never_raises_anything_but_tdvf_error(changes: list[tuple[int, int]], size: int) -> None:
    image = bytearray(image_with())
    for offset, value in changes:
        image[offset] = value
    try:
        tdvf = parse(bytes(image[:size]), "damaged.fd")
        check_memory(tdvf, RAM)
        for section in tdvf.sections:
            if section.memory_size <= 1 << 24:
                assert len(tdvf.contents(section)) == section.memory_size
    except TdvfError:
        pass


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, (1 << 32) - 1)] * 2, *[st.integers(0, (1 << 64) - 1)] * 2,
                          st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=8))  # fmt: skip
def test_arbitrary_sections_never_raise_anything_but_tdvf_error(rows: list[Row]) -> None:
    try:
        check_memory(parse(Image(rows=rows).build(), "random.fd"), RAM)
    except TdvfError:
        pass


def test_the_published_section_table_of_debian_12s_firmware(known_firmware: KnownFirmware) -> None:
    image, known = known_firmware
    tdvf = parse(image, "OVMF.fd")
    assert [
        {
            "data_offset": s.data_offset, "raw_size": s.raw_size, "gpa": s.address, "mem_size": s.memory_size,
            "type": int(s.type), "attributes": int(s.attributes),
        }
        for s in tdvf.sections
    ] == known["sections"]  # fmt: skip


@pytest.mark.parametrize("name", ["OVMF_CODE_4M.fd", "OVMF_CODE.fd"])
def test_debian_12s_split_images_are_no_tdvf(name: str) -> None:
    path = Path("/usr/share/OVMF") / name
    if not path.exists():
        pytest.skip(f"{path} is not installed (package ovmf)")
    with pytest.raises(TdvfError):
        parse(path.read_bytes(), str(path))
