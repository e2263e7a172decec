# SPDX-License-Identifier: GPL-2.0-or-later
"""TDREPORT_STRUCT, 1024 bytes: the output of TDG.MR.REPORT, taken apart and checked.

REPORTMACSTRUCT (256) vouches for the rest by two SHA-384 hashes: of TEE_TCB_INFO (239 bytes) and of TDINFO (512).  Both
are recomputed here.  The MAC cannot be: its key never leaves the processor that made the report.  Fields and offsets
are those of Intel's TDX module ABI specification.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields
from typing import Any

from swtdx.attest.evidence_kind import is_tdreport, misplaced
from swtdx.attest.json_form import json_value
from swtdx.attest.text_form import binary_of, text_bytes

REPORT_SIZE = 1024
TYPE_TDX = 0x81
REPORT_MEMBERS = ("tdreport", "td_report", "report", "td_report_b64")
"""Members of JSON in which tools have a TDREPORT."""
_TCB_INFO = slice(256, 256 + 239)
_TD_INFO = slice(512, 1024)


class ReportError(ValueError):
    """The data are not a TDREPORT; the text says why."""


@dataclass(frozen=True)
class TdReport:
    """All fields of a TDREPORT; byte strings as in memory, masks as integers."""

    report_type: int
    report_subtype: int
    report_version: int
    cpusvn: bytes
    tee_tcb_info_hash: bytes
    tee_info_hash: bytes
    reportdata: bytes
    mac: bytes
    valid: int
    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: int
    tee_tcb_svn2: bytes
    attributes: int
    xfam: int
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    servtd_hash: bytes
    tee_tcb_info_hash_matches: bool
    """Whether TEE_TCB_INFO_HASH is the hash of this report's TEE_TCB_INFO."""
    tee_info_hash_matches: bool
    """Whether TEE_INFO_HASH is the hash of this report's TDINFO."""

    @property
    def consistent(self) -> bool:
        """Whether both hashes are right."""
        return self.tee_tcb_info_hash_matches and self.tee_info_hash_matches

    def as_json(self) -> dict[str, Any]:
        """Every field; byte strings in lowercase hexadecimal, masks as 0x..."""
        return {field.name: json_value(field.name, getattr(self, field.name)) for field in fields(self)}


def parse_report(data: bytes) -> TdReport:
    """Take a TDREPORT apart; ``data`` are raw, text, or JSON with one of `REPORT_MEMBERS`.

    A report whose hashes are wrong is parsed too: ask `TdReport.consistent`.  Raises `ReportError` if ``data`` is not
    1024 bytes long or not of type TDX.

    >>> report = parse_report(bytes([0x81]) + bytes(1023))
    >>> report.mrtd == bytes(48), report.consistent
    (True, False)
    """
    try:
        raw = binary_of(data, REPORT_MEMBERS, is_tdreport)
    except ValueError as error:
        raise ReportError(f"not a TDREPORT: {error}{misplaced(text_bytes(data), 'swtdx report parse')}") from None
    if len(raw) != REPORT_SIZE:
        other = misplaced(raw, "swtdx report parse")
        raise ReportError(f"a TDREPORT has {REPORT_SIZE} bytes, this has {len(raw)}{other}")
    if raw[0] != TYPE_TDX:
        text = f"not a TDREPORT: its type at offset 0 is {raw[0]:#x}, TDX is {TYPE_TDX:#x}"
        raise ReportError(text + misplaced(raw, "swtdx report parse"))

    def digest(offset: int) -> bytes:
        return raw[offset : offset + 48]

    def qword(offset: int) -> int:
        return int.from_bytes(raw[offset : offset + 8], "little")

    return TdReport(
        report_type=raw[0],
        report_subtype=raw[1],
        report_version=raw[2],
        cpusvn=raw[16:32],
        tee_tcb_info_hash=digest(32),
        tee_info_hash=digest(80),
        reportdata=raw[128:192],
        mac=raw[224:256],
        valid=qword(256),
        tee_tcb_svn=raw[264:280],
        mrseam=digest(280),
        mrsignerseam=digest(328),
        seam_attributes=qword(376),
        tee_tcb_svn2=raw[384:400],
        attributes=qword(512),
        xfam=qword(520),
        mrtd=digest(528),
        mrconfigid=digest(576),
        mrowner=digest(624),
        mrownerconfig=digest(672),
        rtmrs=(digest(720), digest(768), digest(816), digest(864)),
        servtd_hash=digest(912),
        tee_tcb_info_hash_matches=hashlib.sha384(raw[_TCB_INFO]).digest() == digest(32),
        tee_info_hash_matches=hashlib.sha384(raw[_TD_INFO]).digest() == digest(80),
    )
