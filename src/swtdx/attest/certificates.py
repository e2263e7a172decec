# SPDX-License-Identifier: GPL-2.0-or-later
"""What messages say about certificates and CRLs (RFC 5280): names, serial numbers, dates, whether one is of a CA.

Nothing is verified here: ``dcap-qvl`` does that.  ``cryptography.x509`` reads the same, and takes as long to load as
all else that ``swtdx quote verify`` loads.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

_BOOLEAN, _INTEGER, _BIT_STRING, _SEQUENCE = 0x01, 0x02, 0x03, 0x30
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_VERSION, _EXTENSIONS = 0xA0, 0xA3
_ENCODINGS = {0x0C: "utf-8", 0x13: "ascii", 0x16: "ascii", 0x1C: "utf-32-be", 0x1E: "utf-16-be"}
"""Of the kinds of strings; others are one byte a character."""
_COMMON_NAME, _ORGANIZATION_NAME, _BASIC_CONSTRAINTS = (bytes.fromhex(oid) for oid in ("550403", "55040a", "551d13"))
_PEM = rb"-----BEGIN (X509 )?CERTIFICATE-----\s([A-Za-z0-9+/=\s]*)-----END \1?CERTIFICATE-----"
"""Not compiled here: most commands that load this read no certificate."""

Element = tuple[int, bytes]
"""Tag and contents."""


class Name(NamedTuple):
    """A distinguished name: (object identifier as it is encoded, value) of each attribute."""

    attributes: tuple[tuple[bytes, str], ...]

    @property
    def common_name(self) -> str | None:
        """The first one."""
        return next((value for oid, value in self.attributes if oid == _COMMON_NAME), None)

    @property
    def organizations(self) -> list[str]:
        return [value for oid, value in self.attributes if oid == _ORGANIZATION_NAME]


class Certificate(NamedTuple):
    """One certificate, and the DER that it was read from."""

    der: bytes
    serial_number: int
    issuer: Name
    subject: Name
    is_ca: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.der).hexdigest()


class RevocationList(NamedTuple):
    """One CRL."""

    issuer: Name
    next_update: datetime | None
    revoked: dict[int, datetime]
    """Serial number -> since when."""


def certificates_of_pem(text: bytes) -> list[Certificate]:
    """Return the certificates in a text, in its order. Raises ValueError if there is none, or one cannot be read.

    >>> certificates_of_pem(b"")
    Traceback (most recent call last):
    ValueError: no certificate
    """
    found = [parse_certificate(b64decode(b"".join(body.split()), validate=True)) for _, body in re.findall(_PEM, text)]
    if not found or len(found) != sum(text.count(b"-----BEGIN %sCERTIFICATE-----" % kind) for kind in (b"", b"X509 ")):
        raise ValueError("no certificate")
    return found


def parse_certificate(der: bytes) -> Certificate:
    """Read a certificate. Raises ValueError.

    >>> parse_certificate(b"0\\0")
    Traceback (most recent call last):
    ValueError: not a certificate
    """
    first, *rest = _elements(_signed(der))
    fields = rest if first[0] == _VERSION else [first, *rest]
    if [tag for tag, _ in fields[:6]] != [_INTEGER, *[_SEQUENCE] * 5]:
        raise ValueError("not a certificate")
    (_, serial), _, (_, issuer), (_, validity), (_, subject), _, *optional = fields
    if len([_time(each) for each in _elements(validity)]) != 2:
        raise ValueError("not a certificate")
    extensions = b"".join(contents for tag, contents in optional if tag == _EXTENSIONS)
    return Certificate(der, int.from_bytes(serial, signed=True), _name(issuer), _name(subject), _is_ca(extensions))


def parse_revocation_list(der: bytes) -> RevocationList:
    """Read a CRL. Raises ValueError."""
    fields = [each for each in _elements(_signed(der)) if each[0] != _INTEGER]  # the version
    if [tag for tag, _ in fields[:2]] != [_SEQUENCE, _SEQUENCE]:
        raise ValueError("not a CRL")
    times = [_time(each) for each in fields if each[0] in (_UTC_TIME, _GENERALIZED_TIME)]
    entries = [contents for tag, contents in fields[2:] if tag == _SEQUENCE]
    revoked = {}
    for _, entry in _elements(b"".join(entries)):
        (_, serial), since, *_ = [*_elements(entry), (0, b""), (0, b"")]
        revoked[int.from_bytes(serial, signed=True)] = _time(since)
    return RevocationList(_name(fields[1][1]), times[1] if len(times) > 1 else None, revoked)


def _signed(der: bytes) -> bytes:
    """Return what is signed: a signed thing is that, an algorithm and a signature."""
    outer = list(_elements(der))
    inner = list(_elements(outer[0][1])) if [tag for tag, _ in outer] == [_SEQUENCE] else []
    if [tag for tag, _ in inner] != [_SEQUENCE, _SEQUENCE, _BIT_STRING] or not inner[0][1]:
        raise ValueError("not a certificate")
    return inner[0][1]


def _name(contents: bytes) -> Name:
    found = []
    for _, relative in _elements(contents):
        for _, attribute in _elements(relative):
            (_, oid), (tag, value) = _elements(attribute)
            found.append((oid, value.decode(_ENCODINGS.get(tag, "latin-1"), "replace")))
    return Name(tuple(found))


def _is_ca(extensions: bytes) -> bool:
    """What the basic constraints say (section 4.2.1.9): a sequence of a boolean, false by default, and a length."""
    for _, sequence in _elements(extensions):
        for _, extension in _elements(sequence):
            (_, oid), *_, (_, value) = _elements(extension)
            if oid == _BASIC_CONSTRAINTS:
                ((_, constraints),) = _elements(value)
                return (_BOOLEAN, b"\xff") in _elements(constraints)
    return False


def _time(element: Element) -> datetime:
    """Return a time, in UTC: with two digits of the year, which are of 1950 to 2049, or four."""
    tag, contents = element
    text = contents.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if text < "50" else "19") + text
    if tag not in (_UTC_TIME, _GENERALIZED_TIME) or not re.fullmatch(r"\d{14}Z", text):
        raise ValueError("not a time")
    return datetime.fromisoformat(f"{text[:8]}T{text[8:]}")


def _elements(contents: bytes) -> Iterator[Element]:
    """Yield the elements that follow one another in DER (X.690). Raises ValueError."""
    at = 0
    while at < len(contents):
        tag, length = contents[at], int.from_bytes(contents[at + 1 : at + 2])
        at += 2
        if length >= 0x80:
            size = length - 0x80
            length = int.from_bytes(contents[at : at + size])
            at += size
            if not 1 <= size <= 4 or length < max(0x80, 1 << 8 * (size - 1)):
                raise ValueError("not DER: a length is not in its shortest form")
        if tag & 0x1F == 0x1F or at + length > len(contents) or at > len(contents):
            raise ValueError("not DER: an element is cut off")
        yield tag, contents[at : at + length]
        at += length
