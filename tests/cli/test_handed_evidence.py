# SPDX-License-Identifier: GPL-2.0-or-later
"""Other people's evidence on the command line: exit statuses and words, for the handed cases and for made ones."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Command


@pytest.fixture(scope="session")
def cases(shared_reference: Path) -> Path:
    folder = shared_reference.parent / "cases" / "attestation"
    if not folder.is_dir():
        pytest.skip("NO HANDED CASES of attestation: not shown that the command judges other people's evidence right")
    return folder


VERIFY_DEBUG = "quote verify 05_debug_quote.dat --collateral 05_collateral.json --at 2023-07-01T01:00:00Z"


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("replay 01_honest.json --quote 01_quote.bin", 0, "RTMR3"),
        ("replay 01_forged_compose_hash.json --quote 01_quote.bin", 5, "does not lead to RTMR3"),
        ("replay 02_digest_stripped.json --quote 01_quote.bin", 0, "compose-hash"),
        ("replay 02_payload_stripped.json --quote 01_quote.bin", 0, "payload not in the log"),
        ("replay 02_dstack_v2.json", 0, "[measured]"),
        ("replay 03_lie_aael.bin", 5, "NOT what was measured"),
        ("replay 03_lie_boot2.bin", 5, "NOT what was measured"),
        ("replay 03_boot_renamed.bin", 0, "contents only, not the name"),
        ("replay 03_boot_honest.bin", 0, "contents only, not the name"),
        ("replay 04_uki_utf16.bin", 0, ".linux"),
        ("replay 04_uki_utf16.bin", 0, "loader.conf"),
        ("replay 04_uki_utf16.bin", 0, "kernel_cmdl"),
        ("replay 04_post_code.bin", 0, "ACPI DATA"),
        ("replay 04_tdshim.bin", 0, "td_payload_info: root="),
        ("replay 04_grub_nul.bin", 0, "grub_cmd set timeout=1"),
        (VERIFY_DEBUG, 4, "debugged (DEBUG)"),
        (f"{VERIFY_DEBUG} --allow-debug", 0, "genuine"),
        ("quote verify 06_no_level_quote.dat --collateral 06_collateral.json --at 1771500000", 2, "90C06F000000"),
        ("quote parse 07_armoured.pem", 0, "mrtd"),
        ("quote parse 07_array.json", 0, "mrtd"),
        ("quote parse 07_bom.txt", 0, "mrtd"),
        ("quote parse 07_td_quote.json", 0, "mrtd"),
        ("quote parse 07_first4missing.bin", 2, "first 4 bytes are missing"),
        ("report parse 08_hcl-report.bin", 0, "runtime_claims_bound: True"),
        ("replay 09_ccel.bin --ima 09_ima.txt --quote 09_quote.bin", 0, "boot_aggregate"),
        ("replay 09_dup_separator.bin", 0, "2 separators"),
        ("quote parse 10_tdreport.bin", 2, "this is a TDREPORT: read it with swtdx report parse"),
    ],
)
def test_the_handed_cases(cases: Path, command: Command, line: str, status: int, said: str) -> None:
    words = [str(cases / word) if (cases / word).exists() else word for word in line.split()]
    result = command(*words)
    assert result.status == status, result.err
    assert said in result.out + result.err


def hcl_report(claims: bytes, bound: bool = True) -> bytes:
    """An Azure HCL report around a TDREPORT of zeroes with right hashes."""
    tcb, info = (hashlib.sha384(bytes(size)).digest() for size in (239, 512))
    reportdata = hashlib.sha256(claims).digest() + bytes(32) if bound else bytes(64)
    report = bytes([0x81]) + bytes(31) + tcb + info + reportdata + bytes(1024 - 192)
    runtime = struct.pack("<IIIII", 20 + len(claims), 1, 4, 1, len(claims)) + claims
    return b"HCLA" + struct.pack("<III", 2, 2437, 2) + bytes(16) + report.ljust(1184, b"\0") + runtime


@pytest.mark.parametrize(("bound", "status"), [(True, 0), (False, 2)])
def test_runtime_claims_are_bound_by_reportdata(tmp_path: Path, command: Command, bound: bool, status: int) -> None:
    file = tmp_path / "hcl"
    file.write_bytes(hcl_report(b'{"keys": []}', bound))
    result = command("report", "parse", file, "--json")
    assert result.status == status
    content = json.loads(result.out)
    assert content["runtime_claims_bound"] is bound
    assert (content["error"] is None) is bound


@pytest.mark.parametrize(
    "words",
    [
        ("quote", "parse"),
        ("report", "parse"),
        ("replay",),
        ("measure",),
        ("inspect",),
        ("quote", "verify", "--collateral", "none", "--at", "0"),
    ],
)
@pytest.mark.parametrize("contents", [b"", b"\x7fELF" + bytes(3000), None])
def test_a_refusal_is_a_json_object_too(
    tmp_path: Path, command: Command, words: tuple[str, ...], contents: bytes | None
) -> None:
    file = tmp_path / "file"
    if contents is not None:
        file.write_bytes(contents)
    result = command(*words, file, "--json")
    assert result.status != 0
    content = json.loads(result.out)
    assert isinstance(content, dict)
    assert content.get("error") or content.get("broken")


def test_a_dash_is_standard_input(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(hcl_report(b"{}"))))
    assert command("report", "parse", "-", "--quiet").status == 0


def test_quote_and_collateral_cannot_share_standard_input(command: Command) -> None:
    result = command("quote", "verify", "-", "--collateral", "-")
    assert (result.status, "cannot both be standard input" in result.err) == (1, True)
