# SPDX-License-Identifier: GPL-2.0-or-later
"""The first call where two measurements diverge, for predictions and for recorded launches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swtdx.attest.build_calls import Build, Leaf, RecordError, predicted_build, recorded_build
from swtdx.attest.divergence import compare
from swtdx.image.initial_memory import AddedRegion
from swtdx.image.mrtd import Order
from swtdx.image.tdvf import parse
from testing.tdvf_image import BASE, CFV, HOB, TEMP, image_with

IMAGE = image_with()
SHORT_BFV = (0x4000, 0xB000, BASE + 0x4000, 0xB000, 0, 1)
"""Without the last page, which has the metadata: so two images can differ in their sections and in nothing else."""


def with_byte(at: int) -> bytes:
    """The image with one byte of its file changed."""
    image = bytearray(IMAGE)
    image[at] ^= 0xFF
    return bytes(image)


def a_record(image: bytes, path: Path, **changes: Any) -> bytes:
    """What ``swtdx run --json`` keeps, as far as measurements go."""
    tdvf = parse(image, str(path))
    build = predicted_build(image)
    kept = {
        "vm_type": "tdx",
        "firmware": {"path": str(path), "sha256": hashlib.sha256(image).hexdigest()},
        "memory": 256 << 20,
        "mrtd": build.mrtd.hex(),
        "mrtd_order": "page by page",
        "rtmr": [bytes([number] * 48).hex() for number in range(4)],
        "added": [AddedRegion.of(one, tdvf.contents(one)).as_json() for one in tdvf.sections if one.added],
    }
    return json.dumps({**kept, **changes}).encode()


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], Path]:
    def write(image: bytes) -> Path:
        path = tmp_path / f"{hashlib.sha256(image).hexdigest()[:8]}.fd"
        path.write_bytes(image)
        return path

    return write


def test_equal_images_do_not_part() -> None:
    comparison = compare(predicted_build(IMAGE), predicted_build(IMAGE))
    assert comparison.equal
    assert comparison.divergence is None
    assert comparison.rtmrs is None


def test_a_byte_that_is_not_measured_does_not_count() -> None:
    assert compare(predicted_build(IMAGE), predicted_build(with_byte(0x123))).equal


@given(st.integers(0x4000, 0xEFFF))
def test_the_first_byte_that_differs_is_found(at: int) -> None:
    """The last page holds the metadata, which a changed byte would break."""
    comparison = compare(predicted_build(IMAGE), predicted_build(with_byte(at)))
    assert not comparison.mrtd_equal
    found = comparison.divergence
    assert found is not None
    call = found.calls[0]
    assert call is not None
    assert (call.leaf, call.section, call.type, call.page) == (Leaf.MR_EXTEND, 0, "BFV", (at - 0x4000) // 4096)
    assert call.gpa == BASE + at // 4096 * 4096
    assert (found.offset, found.values) == (at % 4096, (IMAGE[at], IMAGE[at] ^ 0xFF))
    assert found.number == 2 * call.page + 1
    kept = found.as_json()
    assert kept["gpa"] == BASE + at
    assert f"{BASE + at:#x}" in str(found)


def test_orders_part_at_the_second_call() -> None:
    found = compare(predicted_build(IMAGE), predicted_build(IMAGE, order=Order.PER_REGION)).divergence
    assert found is not None
    assert found.number == 1
    first, second = found.calls
    assert first is not None
    assert second is not None
    assert (first.leaf, second.leaf) == (Leaf.MR_EXTEND, Leaf.PAGE_ADD)
    assert (first.gpa, second.gpa) == (BASE + 0x4000, BASE + 0x5000)


def test_another_place_parts_at_the_page_add() -> None:
    image = image_with(rows=(SHORT_BFV, CFV, TEMP, HOB))
    moved = image_with(rows=(SHORT_BFV, CFV, (0, 0, 0x81_0000, 0x6000, 3, 0), HOB))
    found = compare(predicted_build(image), predicted_build(moved)).divergence
    assert found is not None
    assert found.number == 11 * 2 + 4
    assert [call and call.gpa for call in found.calls] == [TEMP[2], 0x81_0000]


def test_one_that_ends_first() -> None:
    image = image_with(rows=(SHORT_BFV, CFV, TEMP, HOB))
    longer = image_with(rows=(SHORT_BFV, CFV, TEMP, HOB, (0, 0, 0x10_0000, 0x1000, 3, 0)))
    found = compare(predicted_build(image), predicted_build(longer)).divergence
    assert found is not None
    assert found.calls[0] is None
    assert "one has ended" in str(found)


def test_a_launch_is_its_prediction(file: Callable[[bytes], Path]) -> None:
    launch = recorded_build(a_record(IMAGE, file(IMAGE)))
    assert launch.launched
    assert compare(launch, predicted_build(IMAGE)).equal


def test_of_a_launch_the_byte_is_known_while_its_firmware_is_there(file: Callable[[bytes], Path]) -> None:
    path = file(IMAGE)
    record = a_record(IMAGE, path)
    other = predicted_build(with_byte(0x4567))
    found = compare(recorded_build(record), other).divergence
    assert found is not None
    assert found.offset == 0x567
    path.write_bytes(with_byte(0x9000))  # it is another firmware now
    found = compare(recorded_build(record), other).divergence
    assert found is not None
    assert found.number == 1
    assert found.offset is None
    assert "not at hand" in str(found)


def test_rtmrs_of_two_launches(file: Callable[[bytes], Path]) -> None:
    path = file(IMAGE)
    one = recorded_build(a_record(IMAGE, path))
    other = recorded_build(a_record(IMAGE, path, rtmr=["00" * 48, "01" * 48, "77" * 48, "03" * 48]))
    comparison = compare(one, other)
    assert comparison.rtmrs == (2,)
    assert comparison.mrtd_equal
    assert not comparison.equal
    assert json.loads(json.dumps(comparison.as_json()))["rtmr_different"] == [2]


def test_the_first_rtmr_event_that_differs(file: Callable[[bytes], Path]) -> None:
    path = file(IMAGE)
    same, first, second = ("aa" * 48, "bb" * 48, "cc" * 48)
    registers = ["00" * 48, "01" * 48, "77" * 48, "03" * 48]
    one = recorded_build(a_record(IMAGE, path, rtmr_events=[[0, same], [2, first]]))
    other = recorded_build(a_record(IMAGE, path, rtmr=registers, rtmr_events=[[0, same], [2, second], [2, same]]))
    assert compare(one, other).first_event == 1
    assert compare(other, recorded_build(a_record(IMAGE, path, rtmr_events=[[0, same]]))).first_event == 1
    assert compare(one, one).first_event is None
    assert compare(one, recorded_build(a_record(IMAGE, path))).first_event is None


def test_a_launch_of_unknown_order_is_compared_in_the_others(file: Callable[[bytes], Path]) -> None:
    launch = recorded_build(a_record(IMAGE, file(IMAGE), mrtd_order=None, mrtd="00" * 48))
    comparison = compare(launch, predicted_build(IMAGE, order=Order.PER_REGION))
    assert comparison.divergence is None
    assert not comparison.mrtd_equal


def _region(**changes: Any) -> list[dict[str, Any]]:
    good = {"section": 0, "type": "BFV", "gpa": 0, "pages": 1, "measured": True, "sha384": ["00" * 48]}
    return [{**good, **changes}]


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (b"{", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe{", "not JSON"),
        (b"{}", "no 'mrtd'"),
        (b'{"vm_type": "default"}', "ordinary VM"),
        ({"mrtd": "zz"}, "hexadecimal"),
        ({"mrtd": 5}, "not a record"),
        ({"mrtd": "00"}, "1 bytes"),
        ({"mrtd_order": "at random"}, "at random"),
        ({"rtmr": ["00" * 48]}, "four RTMRs"),
        ({"rtmr_events": [[7, "00" * 48]]}, "not the number of an RTMR"),
        ({"rtmr_events": [3]}, ""),
        ({"added": {}}, "not a list"),
        ({"added": [5]}, "not a record"),
        ({"added": [{}]}, "no 'section'"),
        ({"added": _region(pages=-1)}, "numbers"),
        ({"added": _region(gpa="0")}, "numbers"),
        ({"added": _region(pages=1 << 60)}, "more than"),
        ({"added": _region(pages=2)}, "2 pages and 1 digests"),
        ({"added": _region(measured=False)}, "1 pages and 1 digests"),
        ({"added": _region(sha384=["00"])}, "1 bytes"),
        ({"added": _region(sha384=None)}, "not a record"),
    ],
)
def test_what_is_no_record_is_refused(record: bytes | dict[str, Any], words: str) -> None:
    text = record if isinstance(record, bytes) else a_record(IMAGE, Path("absent.fd"), **record)
    with pytest.raises(RecordError, match="record") as caught:
        recorded_build(text, "x.json")
    assert str(caught.value).startswith("x.json")
    assert words in str(caught.value) or words == "not a record"
    if words == "not a record":
        assert "is not a record of a launch" in str(caught.value)


@given(st.binary(max_size=8), st.integers(0, 3000), st.integers(0, 5000))
def test_mutated_records_are_records_or_refused(data: bytes, at: int, cut: int) -> None:
    record = a_record(IMAGE, Path("absent.fd"))
    mutated = record[:at] + data + record[at + len(data) :]
    mutated = mutated[: len(mutated) - cut] if cut < 1000 else mutated
    try:
        build: Build | None = recorded_build(mutated)
    except RecordError:
        build = None
    if build is not None:
        compare(build, predicted_build(IMAGE)).as_json()
