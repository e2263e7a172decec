# SPDX-License-Identifier: GPL-2.0-or-later
"""The MRTD predictor against the specification's blocks, written out one by one, and against published digests."""

from __future__ import annotations

import hashlib

import pytest

from swtdx.image.mrtd import MrtdPredictor, Order, predict_mrtd
from swtdx.image.tdvf import parse
from testing.tdvf_image import GOOD, image_with
from tests.conftest import KnownFirmware
from tests.seam.test_measurement import MRTD_EXTENDED, MRTD_PAGE_0, MRTD_PAGE_TOP


def test_nothing_added_measures_as_the_hash_of_nothing() -> None:
    assert MrtdPredictor().digest() == hashlib.sha384(b"").digest()


Call = tuple[bytes, int, bytes]
"""(name of the block, GPA, chunk that follows it)."""


def hashed(calls: list[Call]) -> bytes:
    """SHA-384 over the blocks of the base specification: 128 bytes with the name at 0 and the GPA at 16, and chunks."""
    stream = hashlib.sha384()
    for name, gpa, chunk in calls:
        stream.update(name.ljust(16, b"\0") + gpa.to_bytes(8, "little") + bytes(104) + chunk)
    return stream.digest()


def extends(gpa: int, page: bytes) -> list[Call]:
    return [(b"MR.EXTEND", gpa + at, page[at : at + 256]) for at in range(0, 4096, 256)]


@pytest.mark.parametrize("gpa", [0, 0xF000, 0x80_9000, 0xFFFF_F000, (1 << 47) - 0x3000])
@pytest.mark.parametrize("order", list(Order))
def test_regions_follow_the_specification(gpa: int, order: Order) -> None:
    """Three pages that are measured, after one that is not; from 0xf000 on they cross a border of 64 KiB."""
    contents = [bytes((7 * at + at // 256 + page) & 255 for at in range(4096)) for page in range(3)]
    adds = [[(b"MEM.PAGE.ADD", gpa + 4096 * page, b"")] for page in range(3)]
    measured = [extends(gpa + 4096 * page, contents[page]) for page in range(3)]
    if order is Order.PER_PAGE:
        calls = [call for add, extend in zip(adds, measured, strict=True) for call in (*add, *extend)]
    else:
        calls = [call for each in (*adds, *measured) for call in each]
    predictor = MrtdPredictor(order)
    predictor.add_region(0x10_0000, bytes(4096), measured=False)
    predictor.add_region(gpa, b"".join(contents), measured=True)
    assert predictor.digest() == hashed([(b"MEM.PAGE.ADD", 0x10_0000, b""), *calls])


def test_a_firmware_image_is_measured_section_by_section() -> None:
    """The synthetic image: BFV measured from the file, CFV, temporary memory and TD HOB only added."""
    image = image_with()
    calls: list[Call] = []
    for at, size, gpa, length, _, attributes in GOOD:
        for offset in range(0, length, 4096):
            calls.append((b"MEM.PAGE.ADD", gpa + offset, b""))
            if attributes & 1:
                calls += extends(gpa + offset, image[at : at + size][offset : offset + 4096])
    assert predict_mrtd(parse(image, "x.fd")) == hashed(calls)


@pytest.mark.parametrize(
    ("gpa", "measured", "digest"),
    [(0, False, MRTD_PAGE_0), (0xFFFF_F000, False, MRTD_PAGE_TOP), (0xFFFF_F000, True, MRTD_EXTENDED)],
)
def test_published_vectors(gpa: int, measured: bool, digest: str) -> None:
    predictor = MrtdPredictor()
    predictor.add_region(gpa, bytes((7 * i + i // 256) & 255 for i in range(4096)), measured=measured)
    assert predictor.digest().hex() == digest


@pytest.mark.parametrize(("order", "name"), [(Order.PER_PAGE, "mrtd_per_page"), (Order.PER_REGION, "mrtd_per_region")])
def test_mrtd_of_debian_12s_firmware_in_both_orders(known_firmware: KnownFirmware, order: Order, name: str) -> None:
    image, known = known_firmware
    assert predict_mrtd(parse(image, "OVMF.fd"), order).hex() == known[name]


def test_the_order_does_not_matter_where_nothing_is_extended() -> None:
    digests = []
    for order in Order:
        predictor = MrtdPredictor(order)
        predictor.add_region(0x1000, bytes(8192), measured=False)
        digests.append(predictor.digest())
    assert digests[0] == digests[1]


def test_a_measured_hob_cannot_be_predicted_from_the_firmware_alone() -> None:
    rows = ((0x4000, 0xC000, 0xFFFF_4000, 0xC000, 0, 1), (0, 0, 0x80_9000, 0x2000, 2, 1))
    with pytest.raises(ValueError, match="depends on the machine"):
        predict_mrtd(parse(image_with(rows=rows), "x.fd"))


def test_regions_are_whole_pages() -> None:
    with pytest.raises(ValueError, match="whole pages"):
        MrtdPredictor().add_region(0x800, bytes(4096), measured=False)
