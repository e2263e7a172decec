# SPDX-License-Identifier: GPL-2.0-or-later
"""Azure's HCL report: a TDREPORT, and the runtime claims that its REPORTDATA binds.

The paravisor of an Azure confidential VM leaves it in the NV index 0x01400001 of the virtual TPM.  Layout: a header of
32 bytes ("HCLA", version 2), the hardware's report in an area of 1184 bytes, then the runtime data: sizes and types in
20 bytes, and the claims as JSON.  REPORTDATA begins with the hash of the claims.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from swtdx.attest.report import REPORT_SIZE, ReportError, TdReport, parse_report
from swtdx.attest.text_form import JsonError, binary_of, json_of

SIGNATURE = b"HCLA"
HCL_MEMBERS = ("hcl_report", "hclReport", "tpm_report", "evidence.hcl_report")
"""Members of JSON in which tools have it: trustee's evidence of az-tdx-vtpm."""
_REPORT_AT = 32
_RUNTIME_AT = _REPORT_AT + 1184
_CLAIMS_AT = _RUNTIME_AT + 20
REPORT_TYPE_SNP, REPORT_TYPE_TDX = 2, 4
_HASHES = {1: "sha256", 2: "sha384", 3: "sha512"}


@dataclass(frozen=True)
class HclReport:
    """A TDREPORT with runtime claims."""

    report: TdReport
    hash_name: str
    claims: bytes
    """The JSON text, as it was hashed."""

    @property
    def claims_bound(self) -> bool:
        """Whether REPORTDATA begins with the hash of the claims, and has zeroes after it."""
        digest = hashlib.new(self.hash_name, self.claims).digest()
        return self.report.reportdata == digest.ljust(64, b"\0")

    def as_json(self) -> dict[str, Any]:
        """The report's fields, and the claims under ``runtime_claims``."""
        try:
            claims = json_of(self.claims)
        except JsonError:
            claims = self.claims.decode("ascii", "backslashreplace")
        return {
            **self.report.as_json(),
            "runtime_claims": claims,
            "runtime_claims_hash": self.hash_name,
            "runtime_claims_bound": self.claims_bound,
        }


def is_hcl_report(data: bytes) -> bool:
    """Whether ``data``, in any form that evidence has, are an HCL report."""
    try:
        return _raw(data)[:4] == SIGNATURE
    except ValueError:
        return False


def _raw(data: bytes) -> bytes:
    """The report's bytes, without the size that a TPM2B_MAX_NV_BUFFER has in front of it."""
    raw = binary_of(data, HCL_MEMBERS, lambda each: each[:4] == SIGNATURE)
    sized = raw[2:6] == SIGNATURE and int.from_bytes(raw[:2], "big") == len(raw) - 2
    return raw[2:] if sized else raw


def parse_hcl_report(data: bytes) -> HclReport:
    """Take an HCL report apart. Raises `ReportError`."""
    raw = _raw(data)
    if len(raw) < _CLAIMS_AT:
        raise ReportError(f"an HCL report has at least {_CLAIMS_AT} bytes, this has {len(raw)}")
    report_type, hash_type, size = (
        int.from_bytes(raw[_RUNTIME_AT + at : _RUNTIME_AT + at + 4], "little") for at in (8, 12, 16)
    )
    if report_type == REPORT_TYPE_SNP:
        raise ReportError("this HCL report contains an AMD SEV-SNP report, not a TDREPORT")
    if report_type != REPORT_TYPE_TDX:
        raise ReportError(f"unknown report type {report_type} at offset {_RUNTIME_AT + 8:#x}: TDX is {REPORT_TYPE_TDX}")
    if hash_type not in _HASHES:
        raise ReportError(f"unknown hash type {hash_type} at offset {_RUNTIME_AT + 12:#x}")
    claims = raw[_CLAIMS_AT : _CLAIMS_AT + size]
    if len(claims) != size:
        raise ReportError(f"the HCL report ends in its claims: {size} bytes wanted, {len(claims)} there")
    return HclReport(parse_report(raw[_REPORT_AT : _REPORT_AT + REPORT_SIZE]), _HASHES[hash_type], claims)
