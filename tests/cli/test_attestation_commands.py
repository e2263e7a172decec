# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands replay, quote and report as a person calls them: how they exit."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

from testing.evidence import binary_log, collateral, dstack_event, pki, quote_of, report_with
from testing.tdreport import TdReportFields
from tests.attest.test_attestation_formats import LOG, QUOTE, sgx_quote
from tests.cli.conftest import Command


def test_the_commands_exit_as_documented(command: Command, tmp_path: Path) -> None:
    runtime = [dstack_event(), dstack_event(event="compose-hash", event_payload="c0ffee")]
    dstack = json.dumps({"event_log": runtime}).encode()
    with_quote = {"event_log": runtime, "quote": quote_of(report_with(dstack)).hex()}
    tcb, info = (hashlib.sha384(bytes(size)).digest() for size in (239, 512))
    contents = {
        "quote": QUOTE,
        "other quote": quote_of(TdReportFields().pack()),
        "sgx quote": sgx_quote(),
        "collateral": collateral().encode(),
        "root": pki().root,
        "log": LOG,
        "forged": LOG.replace(b"init=/bin/sh", b"init=/bin/zh"),
        "dstack": json.dumps(with_quote).encode(),
        "two starts": binary_log((1, 4, bytes(4), bytes(4)), (1, 4, bytes(4), bytes(4))),
        "report": bytes([0x81]) + bytes(31) + tcb + info + bytes(1024 - 128),
    }
    files = {name: tmp_path / name.replace(" ", "-") for name in (*contents, "none")}
    for name, content in contents.items():
        files[name].write_bytes(content)
    now = int(time.time())
    today, later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)), str(now + 366 * 86400)
    verify = (
        "quote",
        "verify",
        files["quote"],
        "--collateral",
        files["collateral"],
        "--root",
        files["root"],
        "--quiet",
    )
    for status, arguments in (
        (0, verify),
        (0, (*verify, "--at", str(now))),
        (0, (*verify, "--at", today)),
        (1, (*verify, "--at", "yesterday")),
        (2, (*verify, "--at", later)),
        (4, (*verify, "--mrtd", "11" * 48)),
        (1, (*verify, "--mrtd", "00")),
        (3, ("quote", "verify", files["quote"], "--collateral", files["none"])),
        (2, ("quote", "parse", files["sgx quote"])),
        (0, ("replay", files["log"], "--quote", files["quote"], "--quiet")),
        (5, ("replay", files["log"], "--quote", files["other quote"], "--quiet")),
        (0, ("replay", files["dstack"], "--quote", files["dstack"], "--quiet")),
        (5, ("replay", files["forged"], "--quiet")),
        (0, ("replay", files["two starts"], "--quiet")),
        (5, ("replay", files["log"], "--table", files["quote"])),
        (5, ("replay", files["quote"])),
        (0, ("report", "parse", files["report"], "--quiet")),
        (2, ("report", "parse", files["quote"])),
        (2, ("quote", "parse", files["report"])),
    ):
        assert command(*arguments).status == status, arguments
