# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands replay, quote and report as a person calls them: how they exit."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.cli.conftest import Command

VALID_AT = 1750377600
EXPIRED_AT = VALID_AT + 366 * 86400


def test_the_commands_exit_as_documented(shared_reference: Path, command: Command, tmp_path: Path) -> None:
    vectors = shared_reference / "vectors"
    quotes, log = vectors / "quotes", vectors / "ccel/go-tdx-guest_cos113_ccel_data.dat"
    quote, collateral = quotes / "dcap-qvl_tdx_quote", vectors / "collateral/dcap-qvl_tdx_quote_collateral.json"
    dstack, forged = vectors / "dstack_quote-report.json", tmp_path / "forged"
    forged.write_bytes(log.read_bytes().replace(b"rootwait ro ", b"rootwait rw "))
    report = tmp_path / "report"
    tcb, info = (hashlib.sha384(bytes(size)).digest() for size in (239, 512))
    report.write_bytes(bytes([0x81]) + bytes(31) + tcb + info + bytes(1024 - 128))
    verify = ("quote", "verify", quote, "--collateral", collateral, "--quiet", "--at")
    for status, arguments in (
        (0, (*verify, str(VALID_AT))),
        (0, (*verify, "2025-06-20T00:00:00Z")),
        (1, (*verify, "yesterday")),
        (2, (*verify, str(EXPIRED_AT))),
        (4, (*verify, str(VALID_AT), "--mrtd", "00" * 48)),
        (1, (*verify, str(VALID_AT), "--mrtd", "00")),
        (3, ("quote", "verify", quote, "--collateral", tmp_path / "none")),
        (2, ("quote", "parse", quotes / "dcap-qvl_sgx_quote")),
        (0, ("replay", log, "--quote", quotes / "go-tdx-guest_cos113_quote.dat", "--quiet")),
        (5, ("replay", log, "--quote", quote, "--quiet")),
        (0, ("replay", dstack, "--quote", dstack, "--quiet")),
        (5, ("replay", forged, "--quiet")),
        (5, ("replay", log, "--table", quote)),
        (5, ("replay", quote)),
        (0, ("report", "parse", report, "--quiet")),
        (2, ("report", "parse", quote)),
    ):
        assert command(*arguments).status == status, arguments
