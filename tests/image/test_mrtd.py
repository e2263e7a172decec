# SPDX-License-Identifier: GPL-2.0-or-later
"""The MRTD predictor against published digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from swtdx.image.mrtd import MrtdPredictor, Order, predict_mrtd
from swtdx.image.tdvf import parse
from testing.tdvf_image import image_with

DEBIAN_OVMF = Path("/usr/share/ovmf/OVMF.fd")


def test_nothing_added_measures_as_the_hash_of_nothing() -> None:
    assert MrtdPredictor().digest() == hashlib.sha384(b"").digest()


def test_published_vectors(shared_reference: Path) -> None:
    vectors = {v["name"]: v for v in json.loads((shared_reference / "tdx-module" / "test_vectors.json").read_text())}
    predictor = MrtdPredictor()
    predictor.add_region(0, bytes(4096), measured=False)
    assert predictor.digest().hex() == vectors["MRTD one PAGE.ADD gpa=0"]["sha384"]
    predictor = MrtdPredictor()
    predictor.add_region(0xFFFF_F000, bytes(4096), measured=False)
    assert predictor.digest().hex() == vectors["MRTD one PAGE.ADD gpa=0xFFFFF000"]["sha384"]
    predictor = MrtdPredictor()
    predictor.add_region(0xFFFF_F000, bytes((7 * i + i // 256) & 255 for i in range(4096)), measured=True)
    assert predictor.digest().hex() in {v["sha384"] for name, v in vectors.items() if "16 MR.EXTEND" in name}


@pytest.mark.skipif(not DEBIAN_OVMF.exists(), reason=f"{DEBIAN_OVMF} is not installed (package ovmf)")
@pytest.mark.parametrize(("order", "name"), [(Order.PER_PAGE, "mrtd_per_page"), (Order.PER_REGION, "mrtd_per_region")])
def test_mrtd_of_debian_12s_firmware_in_both_orders(shared_reference: Path, order: Order, name: str) -> None:
    vectors = json.loads((shared_reference / "vectors" / "tdvf_metadata_and_mrtd.json").read_text())
    image = DEBIAN_OVMF.read_bytes()
    known = {vector["sha256"]: vector for vector in vectors.values()}.get(hashlib.sha256(image).hexdigest())
    if known is None:
        pytest.skip(f"{DEBIAN_OVMF} is another build than the published ones")
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
