# SPDX-License-Identifier: GPL-2.0-or-later
"""docs/attestation.md: its Python examples do what they say."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest

from testing.places import REPOSITORY, firmware_image
from testing.uefi_image import efi_kernel

FILES = {
    "ccel.bin": "ccel/go-tdx-guest_cos113_ccel_data.dat",
    "quote.bin": "quotes/go-tdx-guest_cos113_quote.dat",
    "genuine.bin": "quotes/dcap-qvl_tdx_quote",
    "collateral.json": "collateral/dcap-qvl_tdx_quote_collateral.json",
}


def test_the_examples_of_the_page_run(
    shared_reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skip_loudly: Callable[[str], NoReturn]
) -> None:
    if not firmware_image().is_file():
        skip_loudly("no firmware: install the package ovmf; not shown: the examples of docs/attestation.md")
    for name, vector in FILES.items():
        (tmp_path / name).symlink_to(shared_reference / "vectors" / vector)
    (tmp_path / "OVMF.fd").symlink_to(firmware_image())
    (tmp_path / "vmlinuz").write_bytes(efi_kernel())
    (tmp_path / "initrd.img").write_bytes(b"an initrd")
    monkeypatch.chdir(tmp_path)
    result = doctest.testfile(str(REPOSITORY / "docs" / "attestation.md"), module_relative=False, encoding="utf-8")
    assert result.attempted > 20
    assert result.failed == 0
