# SPDX-License-Identifier: GPL-2.0-or-later
"""Evidence of a TD that never ran: logs made from their formats, TDREPORTs of their registers, quotes of test keys."""

from __future__ import annotations

import hashlib
import json
import struct
from functools import cache
from typing import Any

from swtdx.attest.event_log import parse_event_log
from swtdx.attest.replay import replay
from swtdx.quoting.collateral import make_collateral
from swtdx.quoting.enclave import MacCheck, QuoteVersion, QuotingEnclave
from swtdx.quoting.pki import Pki
from testing.tdreport import TdReportFields, resealed

_KEY = TdReportFields().key
_MRTD_AT, _RTMRS_AT = 528, 720
DSTACK_EVENT = 0x08000001


def sha384(data: bytes) -> bytes:
    """48 bytes."""
    return hashlib.sha384(data).digest()


# --- event logs -------------------------------------------------------------------------------------------------------


def binary_log(*records: tuple[int, int, bytes, bytes]) -> bytes:
    """Return a CCEL area of (register, type, what is measured, data). Register 1 is RTMR0."""
    specification = b"Spec ID Event03\0" + struct.pack("<IBBBBIHHB", 0, 0, 2, 0, 2, 1, 0xC, 48, 0)
    log = struct.pack("<II20sI", 0, 3, bytes(20), len(specification)) + specification
    for register, event_type, measured, data in records:
        log += struct.pack("<IIIH", register, event_type, 1, 0xC) + sha384(measured)
        log += struct.pack("<I", len(data)) + data
    return log


def ccel_table(area: int) -> bytes:
    """Return the ACPI table CCEL of a log with this room (ACPI 6.5, 5.2.34): a header, type 2, length, address."""
    table = struct.pack("<4sIBB6s8sIII", b"CCEL", 56, 1, 0, b"swtdx", b"swtdx", 1, 0, 1)
    table += struct.pack("<BBHQQ", 2, 0, 0, area, 0x7F00_0000)
    return table[:9] + bytes([-sum(table) & 0xFF]) + table[10:]


def dstack_event(**members: Any) -> dict[str, Any]:
    """Return a run-time event as dstack's agent logs it; without a digest, which it then computes itself."""
    return {"imr": 3, "event_type": DSTACK_EVENT, "digest": "", "event": "app-id", "event_payload": "dead", **members}


def dstack_digest(name: str, payload: bytes) -> bytes:
    """Return the digest of a run-time event: of its type, name and payload with colons between."""
    return sha384(struct.pack("<I", DSTACK_EVENT) + b":" + name.encode() + b":" + payload)


# --- reports and quotes -----------------------------------------------------------------------------------------------


def report_with(log: bytes, mrtd: bytes = bytes(48), **fields: Any) -> bytes:
    """Return a TDREPORT whose registers are those of a log; ``fields`` are those of `TdReportFields`."""
    report = bytearray(TdReportFields(**fields).pack())
    report[_MRTD_AT : _MRTD_AT + 48] = mrtd
    report[_RTMRS_AT : _RTMRS_AT + 4 * 48] = b"".join(replay(parse_event_log(log)))
    return resealed(bytes(report), _KEY)


@cache
def pki() -> Pki:
    """Return the keys of all tests: the same each time."""
    return Pki.new("the tests of swtdx")


def quote_of(report: bytes, version: str = "default") -> bytes:
    """Return the quote that a quoting enclave with those keys makes of a TDREPORT."""
    return QuotingEnclave(pki(), MacCheck(_KEY), QuoteVersion(version)).quote(report)


@cache
def collateral(status: str = "UpToDate") -> str:
    """Return collateral under which quotes of those keys come to a status now."""
    return json.dumps(make_collateral(pki(), status).as_json())
