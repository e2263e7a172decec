# SPDX-License-Identifier: GPL-2.0-or-later
"""The work of the TD quoting enclave (TDQE): check that a TDREPORT is of this machine, and sign what it says.

Steps and refusals follow Intel's TDQE: the form of the report, EVERIFYREPORT2 over REPORTMACSTRUCT, the two hashes, the
reserved fields.  The version of the quote is the one that TDQE chooses for a report, unless another one that can hold
the report is asked for.  Two slips of TDQE's source are not copied: body type 4 has the report's REPORTDATA, and where
a report has no TEE_TCB_SVN2 the quote has TEE_TCB_SVN in its place.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from enum import Enum, IntEnum
from functools import cached_property

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from swtdx.attest.quote import (
    BODY_SIZES,
    BODY_TDX_1_0,
    BODY_TDX_1_5,
    BODY_TDX_1_5_EX,
    CERTIFICATION_PCK_CHAIN,
    CERTIFICATION_QE_REPORT,
    KEY_ECDSA_P256,
    TEE_TDX,
)
from swtdx.attest.report import REPORT_SIZE
from swtdx.quoting.certificates import Role
from swtdx.quoting.pki import CPUSVN, Pki

VENDOR_INTEL = bytes.fromhex("939A7233F79C4CA9940A0DB3957F0607")
"""Verifiers refuse any other."""
QE_ISVPRODID = 2
QE_ISVSVN = 8
QE_MRSIGNER = hashlib.sha256(b"swtdx test TD quoting enclave, signer").digest()
QE_MRENCLAVE = hashlib.sha256(b"swtdx test TD quoting enclave, version 1").digest()
QE_ATTRIBUTES = struct.pack("<QQ", 0x15, 0xE7)
"""INIT, MODE64BIT, PROVISION_KEY; XFRM."""
AUTHENTICATION_DATA = bytes(range(32))
MACED_SIZE, MAC_STRUCT_SIZE = 224, 256

_VALID_1_0, _VALID_1_5 = 0x1FF, 0x301FF
_TCB_INFO = slice(256, 256 + 239)
_TD_INFO = slice(512, 1024)
_SVN, _SVN2 = slice(264, 280), slice(384, 400)
_RESERVED = {"REPORTTYPE": slice(3, 4), "bytes 4 to 15": slice(4, 16), "bytes 192 to 223": slice(192, 224)}
_TD_INFO_RESERVED = {0: slice(912, 1024), 1: slice(960, 1024), 3: slice(992, 1016)}
"""REPORTTYPE.version -> reserved bytes of TDINFO."""
_TD_ID_VALID, _VMID_VALID = 1 << 8, 1 << 9


class QeError(IntEnum):
    """TDQE's error codes."""

    INVALID_PARAMETER = 0x10002
    INVALID_REPORT = 0x10008
    INVALID_HASH = 0x1000A
    REPORT_FORMAT_NOT_SUPPORTED = 0x1000C


class QuotingError(Exception):
    """The quoting enclave signs no quote of this report; the text says why."""

    def __init__(self, code: QeError, text: str) -> None:
        super().__init__(text)
        self.code = code


class QuoteVersion(Enum):
    """Which quote to make: the one that TDQE chooses, or another."""

    DEFAULT = "default"
    V4 = "4"
    V5_TDX_1_0 = "5-1.0"
    V5_TDX_1_5 = "5-1.5"


_BODY_OF = {
    QuoteVersion.V4: (4, BODY_TDX_1_0),
    QuoteVersion.V5_TDX_1_0: (5, BODY_TDX_1_0),
    QuoteVersion.V5_TDX_1_5: (5, BODY_TDX_1_5),
}


class MacCheck:
    """EVERIFYREPORT2 on the machine of a report key: what an enclave of that processor hears of a REPORTMACSTRUCT."""

    def __init__(self, report_key: bytes) -> None:
        self._key = report_key

    def __call__(self, mac_struct: bytes) -> bool:
        """Return whether this machine made it."""
        return hmac.compare_digest(
            hmac.digest(self._key, mac_struct[:MACED_SIZE], "sha256"), mac_struct[MACED_SIZE:MAC_STRUCT_SIZE]
        )


class QuotingEnclave:
    """Makes quotes of TDREPORTs. ``everifyreport2`` says whether a REPORTMACSTRUCT is of this machine."""

    def __init__(
        self, pki: Pki, everifyreport2: Callable[[bytes], bool], version: QuoteVersion = QuoteVersion.DEFAULT
    ) -> None:
        self.pki = pki
        self.version = version
        self._everifyreport2 = everifyreport2
        self._key = pki.key("attestation key")

    def quote(self, report: bytes) -> bytes:
        """Return the quote of a TDREPORT. Raises `QuotingError`."""
        self._check(report)
        version, body_type = self._form(report)
        header = struct.pack("<HHII", version, KEY_ECDSA_P256, TEE_TDX, 0) + VENDOR_INTEL + self._user_data
        descriptor = struct.pack("<HI", body_type, BODY_SIZES[body_type]) if version == 5 else b""
        signed = header + descriptor + _body(report, body_type)
        data = signature(self._key, signed) + self._signature_data
        return signed + struct.pack("<I", len(data)) + data

    def _check(self, report: bytes) -> None:
        if len(report) != REPORT_SIZE:
            raise QuotingError(
                QeError.INVALID_PARAMETER, f"a TDREPORT has {REPORT_SIZE} bytes, this one has {len(report)}"
            )
        kind, subtype, version = report[:3]
        if kind != TEE_TDX or subtype not in (0, 1) or version not in _TD_INFO_RESERVED:
            raise _unsupported(f"REPORTTYPE is {kind:#x}, {subtype}, {version}: not a TDREPORT that can be quoted")
        for name, reserved in {**_RESERVED, "TDINFO": _TD_INFO_RESERVED[version]}.items():
            if any(report[reserved]):
                raise _unsupported(f"reserved bytes of the TDREPORT are not zero ({name})")
        valid = int.from_bytes(report[256:264], "little")
        if valid not in (_VALID_1_0, _VALID_1_5):
            raise _unsupported(f"TEE_TCB_INFO.VALID is {valid:#x}: {_VALID_1_0:#x} and {_VALID_1_5:#x} are known")
        if not self._everifyreport2(report[:MAC_STRUCT_SIZE]):
            raise QuotingError(
                QeError.INVALID_REPORT, "the MAC is not that of this machine's report key: a forged TDREPORT"
            )
        if hashlib.sha384(report[_TCB_INFO]).digest() != report[32:80]:
            raise QuotingError(QeError.INVALID_HASH, "TEE_TCB_INFO_HASH is not the hash of TEE_TCB_INFO")
        if hashlib.sha384(report[_TD_INFO]).digest() != report[80:128]:
            raise QuotingError(QeError.INVALID_HASH, "TEE_INFO_HASH is not the hash of TDINFO")

    def _form(self, report: bytes) -> tuple[int, int]:
        """Version of the quote and type of its body."""
        if report[2] == 3:
            valid = int.from_bytes(report[1020:1024], "little")
            if not valid & (_TD_ID_VALID | _VMID_VALID):
                raise _unsupported("a TDREPORT of version 3 without a TD's identity")
            if self.version is QuoteVersion.DEFAULT:
                return 5, BODY_TDX_1_5_EX
        if self.version is not QuoteVersion.DEFAULT:
            return _BODY_OF[self.version]
        if report[2] == 1 or _svn2(report) != report[_SVN]:
            return 5, BODY_TDX_1_5
        return 4, BODY_TDX_1_0

    @cached_property
    def _user_data(self) -> bytes:
        """20 bytes: the QE's identity, and zeros."""
        return self.pki.secret("QE identity", 16) + bytes(4)

    @cached_property
    def _signature_data(self) -> bytes:
        """All of the signature data behind the signature. It is the same for each quote."""
        numbers = self._key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)[1:]
        report_data = hashlib.sha256(numbers + AUTHENTICATION_DATA).digest() + bytes(32)
        qe_report = _qe_report(report_data)
        chain = self.pki.pck_chain + b"\0"
        certification = (
            qe_report
            + signature(self.pki.key(Role.PCK.value), qe_report)
            + struct.pack("<H", len(AUTHENTICATION_DATA))
            + AUTHENTICATION_DATA
            + struct.pack("<HI", CERTIFICATION_PCK_CHAIN, len(chain))
            + chain
        )
        return numbers + struct.pack("<HI", CERTIFICATION_QE_REPORT, len(certification)) + certification


def _unsupported(text: str) -> QuotingError:
    return QuotingError(QeError.REPORT_FORMAT_NOT_SUPPORTED, text)


def _svn2(report: bytes) -> bytes:
    """TEE_TCB_SVN2, or TEE_TCB_SVN in a report that has none."""
    has_svn2 = int.from_bytes(report[256:264], "little") == _VALID_1_5
    return report[_SVN2] if has_svn2 else report[_SVN]


def _body(report: bytes, body_type: int) -> bytes:
    """The TD as a quote shows it. MRSIGNERSEAM and SEAM attributes are not copied: they are zero in each quote."""
    body = report[_SVN] + report[280:328] + bytes(48 + 8) + report[512:912] + report[128:192]
    if body_type == BODY_TDX_1_0:
        return body
    body += _svn2(report) + (report[912:960] if report[2] in (1, 3) else bytes(48))
    if body_type == BODY_TDX_1_5:
        return body
    valid = int.from_bytes(report[1020:1024], "little")
    vmid = report[1016:1017] if valid & _VMID_VALID else bytes(1)
    td_id = report[960:992] if valid & _TD_ID_VALID else bytes(32)
    return (body + vmid + td_id).ljust(BODY_SIZES[BODY_TDX_1_5_EX], b"\0")


def _qe_report(report_data: bytes) -> bytes:
    report = bytearray(384)
    report[:16] = CPUSVN
    report[48:64] = QE_ATTRIBUTES
    report[64:96] = QE_MRENCLAVE
    report[128:160] = QE_MRSIGNER
    struct.pack_into("<HH", report, 256, QE_ISVPRODID, QE_ISVSVN)
    report[320:384] = report_data
    return bytes(report)


def signature(key: ec.EllipticCurvePrivateKey, data: bytes) -> bytes:
    """Return r and s of an ECDSA signature with SHA-256, 32 bytes each, big-endian."""
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(hashes.SHA256())))
    return r.to_bytes(32) + s.to_bytes(32)
