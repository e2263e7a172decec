# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes of Trust Domains, versions 4 and 5, taken apart.  Nothing is verified here (see `swtdx.attest.verify`).

A quote is a header (48 bytes), a body, and signature data with its length before it.  Version 4 has the body of a TDX
1.0 report (584 bytes); version 5 says its body's type and size first: 2 is TDX 1.0, 3 is TDX 1.5 (648 bytes), 4 is TDX
1.5 with identities (885 bytes, from a TDREPORT of version 3), 1 is an SGX enclave.  The signature data hold the ECDSA
P-256 signature, the attestation key, and certification data: type 6 wraps the quoting enclave's own report, whose
certification data of type 5 is the PCK certificate chain in PEM.  Layout after Intel's DCAP quoting library
specification for TDX.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

from swtdx.attest.evidence_kind import SGX_QUOTE, TD_QUOTE, is_td_quote, kind_of, misplaced
from swtdx.attest.json_form import json_value
from swtdx.attest.text_form import binary_of, text_bytes

TEE_TDX = 0x81
TEE_SGX = 0
KEY_ECDSA_P256 = 2
CERTIFICATION_PCK_CHAIN = 5
CERTIFICATION_QE_REPORT = 6
BODY_SGX, BODY_TDX_1_0, BODY_TDX_1_5, BODY_TDX_1_5_EX = 1, 2, 3, 4
BODY_SIZES = {BODY_TDX_1_0: 584, BODY_TDX_1_5: 648, BODY_TDX_1_5_EX: 885}
QUOTE_MEMBERS = (
    "quote", "td_quote", "tdx_quote", "intel_quote", "quote_hex", "quote_b64", "rawQuote", "raw_quote", "tdQuote",
    "evidence.quote", "evidence.td_quote", "tdx.quote", "attestation.quote", "data.quote", "result.quote",
    "tee_attestation.quote", "quote.quote", "outblob",
)  # fmt: skip
"""Members of JSON in which agents have a quote: of dstack, near, trustee, Azure, Intel Trust Authority, tsm tools."""
ATTRIBUTES_DEBUG = 1
_HEADER_SIZE = 48
_GET_QUOTE = struct.Struct("<QQII")
_QGS_ANSWER = struct.Struct("<HHIIIII")
_QE_REPORT_SIZE = 384


class QuoteError(ValueError):
    """The data are not a quote of a TD; the text says why, with the offset where there is one."""


class QuoteHeader(NamedTuple):
    """The first 48 bytes."""

    version: int
    attestation_key_type: int
    tee_type: int
    reserved: bytes
    """4 bytes; version 3 had the security versions of QE and PCE here."""
    qe_vendor_id: bytes
    user_data: bytes


class QuoteBody(NamedTuple):
    """What is vouched for: the TD, and the module it runs under."""

    tee_tcb_svn: bytes
    mrseam: bytes
    mrsignerseam: bytes
    seam_attributes: int
    attributes: int
    xfam: int
    mrtd: bytes
    mrconfigid: bytes
    mrowner: bytes
    mrownerconfig: bytes
    rtmrs: tuple[bytes, bytes, bytes, bytes]
    reportdata: bytes
    tee_tcb_svn2: bytes | None
    """TDX 1.5 only, as the next."""
    mrservicetd: bytes | None
    identities: TdIdentities | None = None
    """Body type 4 only."""

    @property
    def debug(self) -> bool:
        """Whether the host can read and change this TD."""
        return bool(self.attributes & ATTRIBUTES_DEBUG)


class TdIdentities(NamedTuple):
    """What body type 4 adds: the TD's identity, and the service TDs and versions that it started with."""

    vmid: int
    td_id: bytes
    devinfo: bytes
    init_servtd_hash: bytes
    init_servtd_attributes: int
    init_cpusvn: bytes
    init_tee_tcb_svn: bytes
    init_tee_fmspc: bytes
    current_servtd_hash: bytes
    current_servtd_attributes: int


ATTRIBUTE_NAMES = {
    0: "DEBUG", 4: "HGS_PLUS_PROF", 5: "PERF_PROF", 6: "PMT_PROF", 16: "ICSSD", 17: "SERVTD_EXT", 27: "LASS",
    28: "SEPT_VE_DISABLE", 29: "MIGRATABLE", 30: "PKS", 31: "KL", 62: "TPA", 63: "PERFMON",
}  # fmt: skip
"""Bit -> name in TD ATTRIBUTES (TDX module ABI specification)."""


def attribute_names(attributes: int) -> list[str]:
    """Return the names of the bits that are set; ``bit N`` for one without a name.

    >>> attribute_names(0x10000001), attribute_names(1 << 9)
    (['DEBUG', 'SEPT_VE_DISABLE'], ['bit 9'])
    """
    return [ATTRIBUTE_NAMES.get(bit, f"bit {bit}") for bit in range(64) if attributes >> bit & 1]


class QeReport(NamedTuple):
    """The quoting enclave's own report, 384 bytes, and who signed it."""

    cpusvn: bytes
    miscselect: int
    attributes: bytes
    mrenclave: bytes
    mrsigner: bytes
    isvprodid: int
    isvsvn: int
    reportdata: bytes
    signature: bytes
    authentication_data: bytes


class QuoteSignature(NamedTuple):
    """The signature over header and body, and what certifies its key."""

    signature: bytes
    attestation_key: bytes
    qe_report: QeReport | None
    certification_type: int
    """Of the innermost certification data: 5 is a PCK certificate chain."""
    certification_data: bytes


class Quote(NamedTuple):
    """A quote of a TD."""

    header: QuoteHeader
    body_type: int
    """2: TDX 1.0, 3: TDX 1.5; what version 4 implies is filled in."""
    body: QuoteBody
    signature: QuoteSignature
    raw: bytes
    """The quote itself, without what followed it."""
    trailing_bytes: int
    """How many bytes followed the quote (configfs and some agents pad)."""

    def as_json(self) -> dict[str, Any]:
        """Every field; byte strings in lowercase hexadecimal, masks as 0x..., the certificate chain as text."""
        signature = _members(self.signature)
        signature["qe_report"] = None if self.signature.qe_report is None else _members(self.signature.qe_report)
        if self.signature.certification_type == CERTIFICATION_PCK_CHAIN:
            pem = self.signature.certification_data.rstrip(b"\0")
            signature["certification_data"] = pem.decode("ascii", "backslashreplace")
        return {
            "header": _members(self.header),
            "body_type": self.body_type,
            "body": self._body_members(),
            "signature": signature,
            "size": len(self.raw),
            "trailing_bytes": self.trailing_bytes,
        }

    def _body_members(self) -> dict[str, Any]:
        members = _members(self.body)
        members["identities"] = None if self.body.identities is None else _members(self.body.identities)
        members["attribute_names"] = attribute_names(self.body.attributes)
        members["debug"] = self.body.debug
        return members


def _members(record: Any) -> dict[str, Any]:
    return {name: json_value(name, getattr(record, name)) for name in record._fields}


class _Reader:
    """Take pieces from the front; keeps the offset in the quote for error messages."""

    def __init__(self, data: bytes, offset: int = 0, end: int | None = None) -> None:
        self.data, self.offset, self.end = data, offset, len(data) if end is None else end

    def take(self, length: int, what: str) -> bytes:
        if self.end - self.offset < length:
            raise QuoteError(
                f"the quote ends in its {what}: {length} bytes wanted at offset {self.offset:#x}, "
                f"{max(self.end - self.offset, 0)} there"
            )
        piece = self.data[self.offset : self.offset + length]
        self.offset += length
        return piece

    def number(self, length: int, what: str) -> int:
        return int.from_bytes(self.take(length, what), "little")

    def within(self, length: int, what: str) -> _Reader:
        start = self.offset
        self.take(length, what)
        return _Reader(self.data, start, start + length)


def parse_quote(data: bytes) -> Quote:
    """Take a quote apart; ``data`` are raw, text, or JSON with one of `QUOTE_MEMBERS`, and may have padding.

    Raises `QuoteError` for everything that is not a quote of a TD in version 4 or 5: SGX quotes, other versions and key
    types, truncation, sizes that contradict each other.

    >>> parse_quote(bytes.fromhex("0300020000000000") + bytes(600))
    Traceback (most recent call last):
    swtdx.attest.quote.QuoteError: this is an SGX quote (version 3), not one of a TD
    """
    try:
        raw = binary_of(data, QUOTE_MEMBERS, is_td_quote)
    except ValueError as error:
        raise QuoteError(f"not a quote: {error}{misplaced(text_bytes(data), 'swtdx quote parse')}") from None
    raw = unframed(raw)
    kind = kind_of(raw)
    if kind is not None and kind not in (TD_QUOTE, SGX_QUOTE):  # those are named below
        raise QuoteError(f"not a quote of a TD: {kind.sentence()}")
    if int.from_bytes(raw[:4], "little") == TEE_TDX and len(raw) > 600:
        raise QuoteError("not a quote: it begins with the TEE type, so its first 4 bytes are missing")
    reader = _Reader(raw)
    header = _header(reader.within(_HEADER_SIZE, "header"))
    body_type = BODY_TDX_1_0
    if header.version == 5:
        body_type = reader.number(2, "body type")
        size = reader.number(4, "body size")
        if body_type == BODY_SGX:
            raise QuoteError("this is an SGX quote (version 5, body type 1), not one of a TD")
        if body_type not in BODY_SIZES:
            raise QuoteError(f"unknown body type {body_type} at offset 0x30: 2 is TDX 1.0, 3 and 4 are TDX 1.5")
        if size != BODY_SIZES[body_type]:
            raise QuoteError(f"body type {body_type} has {BODY_SIZES[body_type]} bytes; offset 0x32 says {size}")
    body = _body(reader.within(BODY_SIZES[body_type], "body"), body_type)
    length = reader.number(4, "signature length")
    signature = _signature(reader.within(length, "signature data"))
    return Quote(header, body_type, body, signature, raw[: reader.offset], len(raw) - reader.offset)


def unframed(data: bytes) -> bytes:
    """Return the quote in what carries it: the GetQuote buffer of a guest, or a quoting service's answer.

    GHCI, "TDG.VP.VMCALL<GetQuote>": version, status, two lengths, the quote.  Intel's QGS: a length in front (over a
    socket), a header of version 1 and type 1, an error, the sizes of an ID and of the quote, and these.  Other data are
    returned as they are.

    >>> unframed(b"text"), unframed(bytes.fromhex("01" + "00" * 15 + "0004000002000000") + b"q.")
    (b'text', b'q.')
    """
    if len(data) > _GET_QUOTE.size:
        version, status, _, size = _GET_QUOTE.unpack_from(data)
        if (version, status) == (1, 0) and 0 < size <= len(data) - _GET_QUOTE.size:
            return data[_GET_QUOTE.size : _GET_QUOTE.size + size]
    message = data[4:] if int.from_bytes(data[:4], "big") == len(data) - 4 else data
    if len(message) > _QGS_ANSWER.size:
        major, _, kind, size, error, identity, quote = _QGS_ANSWER.unpack_from(message)
        whole = _QGS_ANSWER.size + identity + quote
        if (major, kind, error) == (1, 1, 0) and size == whole == len(message) and quote:
            return message[-quote:]
    return data


def _header(reader: _Reader) -> QuoteHeader:
    version, key_type, tee = (reader.number(size, "header") for size in (2, 2, 4))
    if version == 3 or (version in (4, 5) and tee == TEE_SGX):
        raise QuoteError(f"this is an SGX quote (version {version}), not one of a TD")
    if version not in (4, 5):
        raise QuoteError(f"not a quote: its version at offset 0 is {version}; 4 and 5 are known")
    if tee != TEE_TDX:
        raise QuoteError(f"unknown TEE type {tee:#x} at offset 4: TDX is {TEE_TDX:#x}")
    if key_type != KEY_ECDSA_P256:
        raise QuoteError(f"unknown attestation key type {key_type} at offset 2: ECDSA P-256 is {KEY_ECDSA_P256}")
    reserved, vendor, user_data = (reader.take(size, "header") for size in (4, 16, 20))
    return QuoteHeader(version, key_type, tee, reserved, vendor, user_data)


def _body(reader: _Reader, body_type: int) -> QuoteBody:
    def digest() -> bytes:
        return reader.take(48, "body")

    def qword() -> int:
        return reader.number(8, "body")

    extended = body_type != BODY_TDX_1_0
    return QuoteBody(  # Python evaluates arguments from left to right: the order of the layout
        tee_tcb_svn=reader.take(16, "body"),
        mrseam=digest(),
        mrsignerseam=digest(),
        seam_attributes=qword(),
        attributes=qword(),
        xfam=qword(),
        mrtd=digest(),
        mrconfigid=digest(),
        mrowner=digest(),
        mrownerconfig=digest(),
        rtmrs=(digest(), digest(), digest(), digest()),
        reportdata=reader.take(64, "body"),
        tee_tcb_svn2=reader.take(16, "body") if extended else None,
        mrservicetd=digest() if extended else None,
        identities=_identities(reader) if body_type == BODY_TDX_1_5_EX else None,
    )


def _identities(reader: _Reader) -> TdIdentities:
    def take(size: int) -> bytes:
        return reader.take(size, "body")

    return TdIdentities(
        vmid=reader.number(1, "body"),
        td_id=take(32),
        devinfo=take(48),
        init_servtd_hash=take(48),
        init_servtd_attributes=reader.number(8, "body"),
        init_cpusvn=take(16),
        init_tee_tcb_svn=take(16),
        init_tee_fmspc=take(12),
        current_servtd_hash=take(48),
        current_servtd_attributes=reader.number(8, "body"),
    )


def _signature(reader: _Reader) -> QuoteSignature:
    signature = reader.take(64, "signature")
    key = reader.take(64, "attestation key")
    kind = reader.number(2, "certification type")
    inner = reader.within(reader.number(4, "certification size"), "certification data")
    qe_report = None
    if kind == CERTIFICATION_QE_REPORT:
        qe_report = _qe_report(inner)
        kind = inner.number(2, "inner certification type")
        inner = inner.within(inner.number(4, "inner certification size"), "inner certification data")
    return QuoteSignature(signature, key, qe_report, kind, inner.take(inner.end - inner.offset, "certification data"))


def _qe_report(reader: _Reader) -> QeReport:
    report = reader.take(_QE_REPORT_SIZE, "QE report")
    signature = reader.take(64, "QE report signature")
    authentication = reader.take(reader.number(2, "QE authentication size"), "QE authentication data")
    return QeReport(
        cpusvn=report[:16],
        miscselect=int.from_bytes(report[16:20], "little"),
        attributes=report[48:64],
        mrenclave=report[64:96],
        mrsigner=report[128:160],
        isvprodid=int.from_bytes(report[256:258], "little"),
        isvsvn=int.from_bytes(report[258:260], "little"),
        reportdata=report[320:384],
        signature=signature,
        authentication_data=authentication,
    )
