# SPDX-License-Identifier: GPL-2.0-or-later
"""Other people's evidence on the command line: exit statuses and words."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import sys
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from testing.evidence import binary_log, collateral, dstack_digest, dstack_event, pki, quote_of, report_with
from testing.tdreport import SEPT_VE_DISABLE, TdReportFields
from tests.cli.conftest import Command


def wide(text: str) -> bytes:
    return (text + "\0").encode("utf-16-le")


def variable(name: str, contents: bytes) -> bytes:
    """An EFI variable as EV_EFI_VARIABLE_BOOT logs it."""
    head = UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c").bytes_le + struct.pack("<QQ", len(name), len(contents))
    return head + name.encode("utf-16-le") + contents


def as_json(*events: dict[str, Any]) -> bytes:
    return json.dumps(list(events)).encode()


def tagged(tag: int, contents: bytes) -> bytes:
    return struct.pack("<II", tag, len(contents)) + contents


COMPOSE = dstack_event(event="compose-hash", event_payload="c0ffee")
HONEST = as_json(dstack_event(), COMPOSE)
FORGED = as_json(dstack_event(), {**COMPOSE, "event_payload": "bad0"})
DIGESTS = [dstack_digest("app-id", b"\xde\xad").hex(), dstack_digest("compose-hash", b"\xc0\xff\xee").hex()]
STRIPPED = as_json({**dstack_event(digest=DIGESTS[0]), "event_payload": ""}, {**COMPOSE, "digest": DIGESTS[1]})
AAEL = tagged(0x4141454C, b"example.com load image")
IMA_LINE = f"10 {'00' * 20} ima-ng sha256:{'cd' * 32} boot_aggregate"  # a violation: the register gets ones
BINARY = binary_log((1, 4, bytes(4), bytes(4)))
PLAIN = quote_of(TdReportFields().pack())
FILES = {
    "honest.json": HONEST,
    "forged.json": FORGED,
    "no-payload.json": STRIPPED,
    "v2.json": as_json(dstack_event(version=2)),
    "honest.bin": quote_of(report_with(HONEST)),
    "lie-aael.bin": binary_log((3, 0x06, b"another", AAEL)),
    "lie-boot2.bin": binary_log((2, 0x8000000C, b"another", variable("BootOrder", b"\1\0"))),
    "renamed.bin": binary_log((2, 0x80000002, b"\1\0", variable("BootOther", b"\1\0"))),
    "uki.bin": binary_log(
        (3, 0x0D, b"a kernel", wide(".linux")), (3, 0x06, b"x", tagged(0xF5BC582A, wide("loader.conf")))
    ),
    "post-code.bin": binary_log((1, 0x01, b"tables", b"ACPI DATA")),
    "td-shim.bin": binary_log(
        (1, 0x0A, b"root=/", b"td_payload_info".ljust(16, b"\0") + struct.pack("<I", 6) + b"root=/")
    ),
    "grub.bin": binary_log((3, 0x0D, b"set timeout=1\0", b"grub_cmd set timeout=1\0t")),
    "separators.bin": binary_log((1, 4, bytes(4), bytes(4)), (1, 4, bytes(4), bytes(4))),
    "debug.bin": quote_of(TdReportFields(attributes=SEPT_VE_DISABLE | 1).pack()),
    "plain.bin": PLAIN,
    "up-to-date.json": collateral().encode(),
    "no-level.json": collateral("NoLevel").encode(),
    "root.der": pki().root,
    "armoured.pem": b"-----BEGIN QUOTE-----\n" + base64.encodebytes(PLAIN) + b"-----END QUOTE-----\n",
    "array.json": json.dumps(list(PLAIN)).encode(),
    "bom.txt": b"\xef\xbb\xbf" + PLAIN.hex().encode(),
    "td_quote.json": json.dumps({"td_quote": base64.b64encode(PLAIN).decode()}).encode(),
    "first4missing.bin": PLAIN[4:],
    "ccel.bin": BINARY,
    "ima.txt": IMA_LINE.encode() + b"\n",
    "report.bin": TdReportFields().pack(),
}
DEBUG = "quote verify debug.bin --collateral up-to-date.json --root root.der"


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("replay honest.json --quote honest.bin", 0, "RTMR3"),
        ("replay forged.json --quote honest.bin", 5, "does not lead to RTMR3"),
        ("replay honest.json --quote honest.bin", 0, "compose-hash"),
        ("replay no-payload.json --quote honest.bin", 0, "payload not in the log"),
        ("replay v2.json", 0, "[measured]"),
        ("replay lie-aael.bin", 5, "NOT what was measured"),
        ("replay lie-boot2.bin", 5, "NOT what was measured"),
        ("replay renamed.bin", 0, "contents only, not the name"),
        ("replay uki.bin", 0, ".linux"),
        ("replay uki.bin", 0, "loader.conf"),
        ("replay post-code.bin", 0, "ACPI DATA"),
        ("replay td-shim.bin", 0, "td_payload_info: root="),
        ("replay grub.bin", 0, "grub_cmd set timeout=1"),
        (DEBUG, 4, "debugged (DEBUG)"),
        (f"{DEBUG} --allow-debug", 0, "genuine"),
        ("quote verify plain.bin --collateral no-level.json --root root.der", 2, b"swtdx\0".hex().upper()),
        ("quote parse armoured.pem", 0, "mrtd"),
        ("quote parse array.json", 0, "mrtd"),
        ("quote parse bom.txt", 0, "mrtd"),
        ("quote parse td_quote.json", 0, "mrtd"),
        ("quote parse first4missing.bin", 2, "first 4 bytes are missing"),
        ("replay ccel.bin --ima ima.txt", 0, "boot_aggregate"),
        ("replay separators.bin", 0, "2 separators"),
        ("quote parse report.bin", 2, "this is a TDREPORT: read it with swtdx report parse"),
    ],
)
def test_evidence_of_many_tools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, line: str, status: int, said: str
) -> None:
    """In the forms in which agents, boot loaders and other tools write it; tests/published has files of theirs."""
    monkeypatch.chdir(tmp_path)
    for word in line.split():
        if word in FILES:
            Path(word).write_bytes(FILES[word])
    result = command(*line.split())
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
