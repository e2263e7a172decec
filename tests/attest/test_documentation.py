# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/attestation.md: its Python examples do what they say."""

from __future__ import annotations

import doctest
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest

from swtdx.quoting.collateral import make_collateral
from testing.evidence import pki
from testing.places import REPOSITORY, firmware_image
from testing.uefi_image import efi_kernel
from tests.attest.test_attestation_formats import LOG, QUOTE

VERIFIED_AT = datetime.fromtimestamp(1750377600, UTC)


def test_the_examples_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_loudly: Callable[[str], NoReturn]
) -> None:
    if not firmware_image().is_file():
        skip_loudly("no firmware: install the package ovmf; not shown: the examples of docs/attestation.md")
    contents = {
        "OVMF.fd": firmware_image().read_bytes(),
        "vmlinuz": efi_kernel(),
        "initrd.img": b"an initrd",
        "ccel.bin": LOG,
        "quote.bin": QUOTE,
        "root-ca.der": pki().root,
        "collateral.json": json.dumps(make_collateral(pki(), at=VERIFIED_AT).as_json()).encode(),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(REPOSITORY / "docs" / "attestation.md"), module_relative=False, encoding="utf-8")
    assert result.attempted > 20
    assert result.failed == 0
