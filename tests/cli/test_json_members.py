# SPDX-License-Identifier: GPL-2.0-or-later
"""What programs read: the members of each command's JSON. One may be added here; none may go or be called otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from testing.evidence import collateral, pki
from testing.uefi_image import edk2_like, efi_kernel
from tests.attest.test_attestation_formats import LOG, QUOTE
from tests.cli.conftest import Command

SECTION = {"section", "type", "gpa", "pages", "added", "measured"}
EVENT = {"number", "register", "event_type", "event_type_name", "digest", "words", "data", "data_measured"}
MEASURE = {
    *{"image", "size", "sha256", "mrtd", "order", "order_matters", "memory", "depends_on_memory", "pages_added"},
    *{"pages_measured", "sections"},
}
DIRECT_BOOT = {
    *{"kernel", "kernel_sha256", "initrd_sha256", "append", "cpus", "rtmrs", "firmware_measures", "kernel_measures"},
    *{"notes", "events"},
}
INSPECT = {"image", "size", "sha256", "memory", "can_start", "extends_rtmrs", "secure_boot", "broken", "sections"}
DIFF = {
    *{"equal", "mrtd_equal", "mrtd", "names", "kinds", "orders", "divergence", "rtmr_different", "first_event"},
    *{"first_event_words"},
}
QUOTE_MEMBERS = {"header", "body_type", "body", "signature", "size", "trailing_bytes"}
BODY = {
    *{
        "tee_tcb_svn",
        "mrseam",
        "mrsignerseam",
        "seam_attributes",
        "attributes",
        "xfam",
        "mrtd",
        "mrconfigid",
        "mrowner",
    },
    *{"mrowner", "mrownerconfig", "rtmrs", "reportdata", "tee_tcb_svn2", "mrservicetd"},
}
REPORT = {
    *{"valid", "mrseam", "mrsignerseam", "seam_attributes", "attributes", "xfam", "mrtd", "mrconfigid"},
    *{"mrowner", "mrownerconfig", "rtmrs", "reportdata", "servtd_hash", "tee_tcb_info_hash_matches"},
    "tee_info_hash_matches",
}


@pytest.fixture
def said(command: Command) -> Any:
    def call(*arguments: str | Path) -> Any:
        return json.loads(command(*arguments, "--json").out)

    return call


def test_images(said: Any, tmp_path: Path) -> None:
    image, kernel = tmp_path / "edk2.fd", tmp_path / "vmlinuz"
    image.write_bytes(edk2_like())
    kernel.write_bytes(efi_kernel())
    measured = said("measure", image, "--kernel", kernel)
    assert set(measured) >= {*MEASURE, "direct_boot"}
    assert set(measured["sections"][0]) >= SECTION
    assert set(measured["direct_boot"]) >= DIRECT_BOOT
    assert set(measured["direct_boot"]["events"][0]) >= EVENT
    assert set(said("inspect", image)) >= INSPECT
    assert set(said("diff", image, image)) >= DIFF


def test_evidence(said: Any, tmp_path: Path) -> None:
    contents = {"quote": QUOTE, "collateral": collateral().encode(), "root": pki().root, "log": LOG}
    files = {name: tmp_path / name for name in (*contents, "report")}
    for name, content in contents.items():
        files[name].write_bytes(content)
    parsed = said("quote", "parse", files["quote"])
    assert set(parsed) >= QUOTE_MEMBERS
    assert set(parsed["body"]) >= BODY
    given = ("--collateral", files["collateral"], "--root", files["root"])
    verified = said("quote", "verify", files["quote"], *given)
    assert set(verified) >= {*QUOTE_MEMBERS, "verified", "violations"}
    assert set(verified["verified"]) >= {"tcb_status", "advisory_ids", "ppid", "at"}
    replayed = said("replay", files["log"])
    assert set(replayed) >= {"events", "rtmrs", "reported", "equal"}
    assert set(replayed["events"][0]) >= {*EVENT, "offset"}
    files["report"].write_bytes(b"\x81" + bytes(1023))
    assert set(said("report", "parse", files["report"])) >= REPORT
