# SPDX-License-Identifier: GPL-2.0-or-later
"""TDREPORTs made from the specification, with any MAC key: what the module under test makes is not asked."""

from __future__ import annotations

import hashlib
import hmac
import struct
from dataclasses import dataclass

SVN = bytes.fromhex("06010400000000000000000000000000")
UPDATED_SVN = bytes.fromhex("07010400000000000000000000000000")
SVN_1_0 = bytes.fromhex("01000400000000000000000000000000")
SEPT_VE_DISABLE = 1 << 28


def digest(label: str) -> bytes:
    """48 bytes that are not zero."""
    return hashlib.sha384(label.encode()).digest()


@dataclass(frozen=True)
class TdReportFields:
    """Fields of a TDREPORT; the rest is zero. ``version`` is REPORTTYPE's."""

    key: bytes = b"k" * 32
    version: int = 0
    valid: int = 0x301FF
    svn: bytes = SVN
    svn2: bytes = SVN
    attributes: int = SEPT_VE_DISABLE
    reportdata: bytes = b"report data".ljust(64, b"\0")
    servtd: bytes = bytes(48)
    td_id: bytes = b"T" * 32
    vmid: int = 7
    identity_valid: int = 0x300

    def pack(self) -> bytes:
        """1024 bytes."""
        tcb = struct.pack("<Q16s48s48sQ16s95x", self.valid, self.svn, digest("seam"), bytes(48), 0, self.svn2)
        info = struct.pack(
            "<QQ48s48s48s48s48s48s48s48s48s64x",
            self.attributes,
            0x3,
            digest("mrtd"),
            digest("config id"),
            digest("owner"),
            digest("owner config"),
            *(digest(f"rtmr{index}") for index in range(4)),
            self.servtd,
        )
        if self.version == 3:
            identity = self.td_id + bytes(24) + bytes([self.vmid, 0, 0, 0]) + struct.pack("<I", self.identity_valid)
            info = info[:448] + identity
        return sealed(
            struct.pack(
                "<BBBB12x16s48s48s64s32x",
                0x81,
                0,
                self.version,
                0,
                bytes([3, *bytes(15)]),
                hashlib.sha384(tcb).digest(),
                hashlib.sha384(info).digest(),
                self.reportdata,
            ),
            tcb + bytes(17) + info,
            self.key,
        )


def sealed(head: bytes, rest: bytes, key: bytes) -> bytes:
    """The 224 bytes of REPORTMACSTRUCT with their MAC, and the rest."""
    return head + hmac.digest(key, head, "sha256") + rest


def resealed(report: bytes, key: bytes) -> bytes:
    """A changed report with both hashes and the MAC made right again."""
    tcb, info = hashlib.sha384(report[256:495]).digest(), hashlib.sha384(report[512:1024]).digest()
    return sealed(report[:32] + tcb + info + report[128:224], report[256:], key)
