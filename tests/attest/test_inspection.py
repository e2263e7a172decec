# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rule that keeps an image from being a TD is named, and the pictures show what is there."""

from __future__ import annotations

import json
import uuid
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

import swtdx.attest
from swtdx.attest.firmware_traits import FirmwareTraits
from swtdx.attest.inspection import inspect_image
from swtdx.attest.measure import MeasureError, measure_image
from swtdx.attest.memory_picture import Kind, blocks, svg_picture, text_picture
from swtdx.image.tdvf import SectionType, TdvfError, TdvfRule
from testing.tdvf_image import BASE, BFV, CFV, GOOD, HOB, TEMP, Row, image_with
from testing.uefi_image import GLOBAL, edk2_like

CODE_VOLUME = uuid.UUID("8c8ce578-8a3d-4f1c-9935-896185c32dd3")  # EFI_FIRMWARE_FILE_SYSTEM2_GUID
VARIABLE_STORE = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50")


def beginning_with_volume(image: bytes, kind: uuid.UUID) -> bytes:
    """The same image with a firmware volume header at its start."""
    header = bytes(16) + kind.bytes_le + len(image).to_bytes(8, "little") + b"_FVH"
    return header + image[len(header) :]


def rows(*more: Row, without: Row | None = None) -> bytes:
    return image_with(rows=tuple(row for row in GOOD if row is not without) + more)


WHOLE = beginning_with_volume(image_with(), VARIABLE_STORE)

BROKEN = [
    (b"", TdvfRule.IMAGE_SIZE),
    (bytes(4097), TdvfRule.IMAGE_SIZE),
    (bytes(32 << 20), TdvfRule.IMAGE_SIZE),
    (b"QFI\xfb" + bytes(65532), TdvfRule.CONTAINER),
    (bytes(0x101) + b"ustar" + bytes(65536 - 0x106), TdvfRule.CONTAINER),
    (bytes(65536), TdvfRule.GUID_TABLE),
    (image_with(table_length=0xFFFF), TdvfRule.GUID_TABLE),
    (image_with(entry_guid=bytes(16)), TdvfRule.NO_METADATA),
    (beginning_with_volume(image_with(entry_guid=bytes(16)), CODE_VOLUME), TdvfRule.SPLIT_IMAGE),
    (beginning_with_volume(rows((0x4000, 0xD000, 0x100000, 0xD000, 5, 0)), CODE_VOLUME), TdvfRule.SPLIT_IMAGE),
    (beginning_with_volume(bytes(65536), VARIABLE_STORE), TdvfRule.SPLIT_IMAGE),
    (image_with(signature=b"VDFT"), TdvfRule.METADATA),
    (image_with(version=2), TdvfRule.METADATA),
    (image_with(distance=8), TdvfRule.METADATA),
    (rows((0, 0, 0x100000, 0x1000, 77, 0)), TdvfRule.UNKNOWN_TYPE),
    (rows((0, 0, 0x100000, 0x1000, 3, 8)), TdvfRule.BAD_ATTRIBUTES),
    (rows((0, 0, 0x100000, 0x1000, 3, 2)), TdvfRule.BAD_ATTRIBUTES),
    (rows((0, 0, 0x100000, 0x1000, 4, 3)), TdvfRule.BAD_ATTRIBUTES),
    (rows((0x8000, 0x9000, 0x100000, 0x9000, 5, 0)), TdvfRule.DATA_OUTSIDE),
    (rows((0, 0, 0x100000, 0, 3, 0)), TdvfRule.SECTION_SIZE),
    (rows((0, 0, 0x100800, 0x1000, 3, 0)), TdvfRule.SECTION_SIZE),
    (rows((0, 0x1000, 0x100000, 0x1000, 3, 0)), TdvfRule.SECTION_DATA),
    (rows((0, 0, 1 << 60, 0x1000, 3, 0)), TdvfRule.SECTION_OUTSIDE),
    (rows((0, 0, 0x4000_0000, 0x1000, 3, 0)), TdvfRule.SECTION_OUTSIDE),
    (rows(without=BFV), TdvfRule.MISSING_BFV),
    (rows(without=HOB), TdvfRule.MISSING_TD_HOB),
    (rows((0, 0, 0x100000, 0x1000, 2, 0)), TdvfRule.DUPLICATE),
    (rows((0, 0, TEMP[2], 0x1000, 3, 0)), TdvfRule.OVERLAP),
    (rows((0, 0, 0x100000, 0x1000, 8, 0)), TdvfRule.NOT_FILLED),
    (rows((0, 0, 0x100000, 0x1000, 5, 0)), TdvfRule.NOT_FILLED),
    (edk2_like(tdx=uuid.UUID(int=9)), TdvfRule.NOT_FOR_TDS),
]


@pytest.mark.parametrize(("image", "rule"), BROKEN, ids=[f"{at}-{rule}" for at, (_, rule) in enumerate(BROKEN)])
def test_a_broken_rule_is_named(image: bytes, rule: TdvfRule) -> None:
    inspection = inspect_image(image, "bad.fd")
    assert not inspection.can_start
    assert [fault.rule for fault in inspection.broken] == [rule]
    assert str(inspection.broken[0]).startswith("bad.fd")


def test_every_rule_has_its_image() -> None:
    assert {rule for _, rule in BROKEN} == set(TdvfRule)


def test_a_good_image_can_start() -> None:
    for image in (image_with(), WHOLE):
        assert inspect_image(image).can_start


def test_all_broken_rules_are_told_and_the_table_is_shown() -> None:
    image = image_with(rows=(CFV, (0, 0, 0x100800, 0x1000, 77, 9), (0, 0, 0x200000, 0x1000, 3, 4)))
    inspection = inspect_image(image)
    told = [fault.rule for fault in inspection.broken]
    assert told == [TdvfRule.UNKNOWN_TYPE, TdvfRule.BAD_ATTRIBUTES, TdvfRule.MISSING_BFV, TdvfRule.MISSING_TD_HOB]
    assert [row["type"] for row in inspection.as_json()["sections"]] == ["CFV", "unknown (77)", "TEMP_MEM"]


def test_too_little_memory_is_a_section_outside() -> None:
    (fault,) = inspect_image(image_with(), memory_size=0x80_7000).broken
    assert fault.rule is TdvfRule.SECTION_OUTSIDE
    assert "needs RAM" in str(fault)


def test_debians_code_half_is_refused_as_such(ovmf_image: Path) -> None:
    code = ovmf_image.parent.parent / "OVMF" / "OVMF_CODE_4M.fd"
    if not code.is_file():
        pytest.skip(f"no {code}: a real split image is not shown")
    (fault,) = inspect_image(code.read_bytes(), code.name).broken
    assert fault.rule is TdvfRule.SPLIT_IMAGE
    assert "no TDX metadata" in str(fault)


def test_what_is_measured_and_all_of_it_is_json() -> None:
    kept = json.loads(json.dumps(inspect_image(image_with(), "x.fd").as_json()))
    assert [row["in_mrtd"] for row in kept["sections"]] == ["contents", "addresses", "addresses", "addresses"]
    assert (kept["can_start"], kept["broken"]) == (True, [])


def test_the_blocks_are_all_of_guest_memory_without_gaps() -> None:
    shown = blocks(inspect_image(image_with(), memory_size=5 << 30))
    assert shown[0].start == 0
    assert shown[-1].end == (1 << 32) + (3 << 30)
    assert all(one.end == other.start for one, other in pairwise(shown))
    by_label = {block.label: block for block in shown}
    assert (by_label["0 BFV"].start, by_label["0 BFV"].kind) == (BASE + 0x4000, Kind.CONTENTS)


@pytest.mark.parametrize("image", [image_with(), WHOLE, *(image for image, _ in BROKEN)])
def test_the_pictures_are_whole(image: bytes) -> None:
    inspection = inspect_image(image, "a<b>&\"c'\x01.fd")
    root = ElementTree.fromstring(svg_picture(inspection))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    words = {element.text for element in root.iter("{http://www.w3.org/2000/svg}text")}
    assert "a<b>&\"c'?.fd" in words
    for index, row in enumerate(inspection.rows):
        if row.memory_size and TdvfRule.OVERLAP not in [fault.rule for fault in inspection.broken]:
            assert any(word and word.startswith(f"{index} ") for word in words)
            assert f" {index} " in text_picture(inspection)


@given(
    st.lists(st.tuples(st.integers(0, 0x10000), st.binary(min_size=1, max_size=8)), max_size=6),
    st.lists(st.tuples(st.integers(0xF000, 0xF000 + 160), st.binary(min_size=1, max_size=8)), max_size=6),
    st.integers(0, 0x10000),
)
def test_a_mutated_image_is_explained_and_never_measured_unless_it_can_start(
    anywhere: list[tuple[int, bytes]], in_metadata: list[tuple[int, bytes]], cut: int
) -> None:
    image = bytearray(image_with())
    for at, data in [*anywhere, *in_metadata]:
        image[at : at + len(data)] = data
    if cut % 4 == 0:
        del image[cut:]
    mutated = bytes(image)
    inspection = inspect_image(mutated, "mutated.fd")
    text_picture(inspection)
    ElementTree.fromstring(svg_picture(inspection))
    json.dumps(inspection.as_json())
    rules = {fault.rule for fault in inspection.broken}
    if rules - {TdvfRule.SECTION_OUTSIDE}:
        with pytest.raises(TdvfError):
            measure_image(mutated, "mutated.fd")
    elif not rules and not any(row.type == SectionType.TD_HOB and row.attributes & 1 for row in inspection.rows):
        assert len(measure_image(mutated, "mutated.fd").mrtd) == 48
    else:  # where sections lie depends on the machine, and so may the contents of one of them
        with suppress(TdvfError, MeasureError):
            measure_image(mutated, "mutated.fd")


def test_the_public_names_are_all_there() -> None:
    for name in swtdx.attest._HOMES:
        assert getattr(swtdx.attest, name).__name__ == name
        assert name in dir(swtdx.attest)
    with pytest.raises(AttributeError, match="nothing"):
        _ = swtdx.attest.nothing


def test_what_the_firmware_will_do_shows_in_its_files() -> None:
    measuring = edk2_like({("PK", GLOBAL): b"key"})
    silent = edk2_like(tcg=uuid.UUID(int=7), sec=b"")
    assert inspect_image(measuring).traits == FirmwareTraits(extends_rtmrs=True, secure_boot=True, for_tds=True)
    assert inspect_image(silent).traits == FirmwareTraits(extends_rtmrs=False, secure_boot=False, for_tds=True)
    assert inspect_image(image_with()).traits == FirmwareTraits(extends_rtmrs=None, secure_boot=None)


def test_a_build_of_edk2_for_another_use_is_no_td() -> None:
    """OVMF's build for AMD SEV: the metadata are right, and a TD built from it dies at its first page."""
    (fault,) = inspect_image(edk2_like(tdx=uuid.UUID(int=9)), "OVMF.amdsev.fd").broken
    assert "TdxDxe" in str(fault)
    assert inspect_image(edk2_like()).can_start
