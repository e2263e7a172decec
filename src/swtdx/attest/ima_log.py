# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's IMA log (``ascii_runtime_measurements`` or the binary one), as events that extend an RTMR.

A line has the register, the template's hash, the template's name and its fields (Documentation/security/IMA-templates).
Kernels that measure into RTMRs write the RTMR's number and a SHA-384 hash; others write PCR 10 and a SHA-1 hash, and
extend a SHA-384 register with the hash of the same fields, which is computed here.  A violation has a hash of zeroes
and extends with ones.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator

from swtdx.attest.event_digest import EV_IMA
from swtdx.attest.event_log import MAXIMUM_EVENTS, Event, EventLogError
from swtdx.attest.printable import printable

SHA384_SIZE = 48
IMA_PCR = 10
_WITHOUT_SIGNATURE = ("ima-ng", "ima-ngv2")
_WITH_SIGNATURE = ("ima-sig", "ima-sigv2", "ima-buf")
_HASH_SIZES = (20, 32, 48, 64)
_LONGEST_NAME = 64
RTMRS = (2, 3)
"""The RTMRs that software after the firmware extends."""


def parse_ima_log(data: bytes, rtmr: int = 2, first_number: int = 0) -> list[Event]:
    """Return the events of an IMA log; ``rtmr`` is the register for lines of PCR 10.

    ``data`` are ``ascii_runtime_measurements`` or ``binary_runtime_measurements``, of any hash algorithm.

    Raises `EventLogError`, whose ``offset`` is the number of the line, or the byte of the binary form.

    >>> parse_ima_log(b"2 " + b"00" * 48 + b" ima-ng sha256:" + b"00" * 32 + b" /etc/x")[0].digest.hex()[:4]
    'ffff'
    """
    if _u32(data, 0) in (*RTMRS, IMA_PCR):  # small binary integers, as no text begins with
        return list(_binary_events(data, rtmr, first_number))
    try:
        lines = [line for line in data.decode().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise EventLogError(f"the IMA log is not text at offset {error.start:#x}", error.start) from None
    if len(lines) > MAXIMUM_EVENTS:
        raise EventLogError(f"the IMA log has more than {MAXIMUM_EVENTS} lines", MAXIMUM_EVENTS)
    return [_event(number, line, rtmr, first_number + number) for number, line in enumerate(lines)]


def _event(number: int, line: str, rtmr: int, event_number: int) -> Event:
    def wrong(what: str) -> EventLogError:
        return EventLogError(f"line {number + 1} of the IMA log: {what}", number)

    parts = line.split(maxsplit=3)
    if len(parts) < 4 or not parts[0].isdigit():
        raise wrong("it has not the form: register, hash, template, fields")
    register, template, fields = int(parts[0]), parts[2], parts[3]
    if register == IMA_PCR:
        register = rtmr
    if register not in RTMRS:
        raise wrong(f"register {register} is neither PCR {IMA_PCR} nor RTMR2 or RTMR3")
    try:
        stated = bytes.fromhex(parts[1])
        measured = _template_data(template, fields)
    except ValueError as error:
        raise wrong(str(error)) from None
    if not any(stated):
        digest = b"\xff" * SHA384_SIZE
    elif len(stated) == SHA384_SIZE:
        digest = stated
    elif measured is None:
        raise wrong(f"its hash has {len(stated)} bytes, and the fields of template {template} cannot be hashed here")
    else:
        digest = hashlib.sha384(measured).digest()
    # The data are what the digest should be of: `Event.vouched` tells a line that the digest covers from others.
    return Event(event_number, number, register, EV_IMA, digest, measured or fields.encode(), f"{template} {fields}")


def _binary_events(data: bytes, rtmr: int, first_number: int) -> Iterator[Event]:
    """Yield the events of a log in binary: register, hash, template's name, its data, each of these with its size."""
    size = next((size for size in _HASH_SIZES if _is_name(data, 4 + size)), None)
    at = number = 0
    while at < len(data):
        name_at = at + 4 + (size or 0)
        length = _u32(data, name_at)
        data_at = name_at + 4 + length
        end = data_at + 4 + _u32(data, data_at)
        if size is None or not _is_name(data, name_at) or not data_at + 4 <= end <= len(data):
            raise EventLogError(f"the binary IMA log is damaged at offset {at:#x}", at)
        if number == MAXIMUM_EVENTS:
            raise EventLogError(f"the IMA log has more than {MAXIMUM_EVENTS} entries", at)
        register = rtmr if _u32(data, at) == IMA_PCR else _u32(data, at)
        if register not in RTMRS:
            raise EventLogError(
                f"register {register} at offset {at:#x} is neither PCR {IMA_PCR} nor RTMR2 or RTMR3", at
            )
        stated, template, measured = data[at + 4 : name_at], data[name_at + 4 : data_at], data[data_at + 4 : end]
        digest = stated if size == SHA384_SIZE else hashlib.sha384(measured).digest()
        digest = digest if any(stated) else b"\xff" * SHA384_SIZE
        text = printable(" ".join([template.decode("ascii", "replace"), *_fields(measured)]))
        yield Event(first_number + number, at, register, EV_IMA, digest, measured, text)
        at, number = end, number + 1


def _is_name(data: bytes, at: int) -> bool:
    """Whether a template's name with its size is there."""
    length = _u32(data, at)
    name = data[at + 4 : at + 4 + length]
    return 0 < length <= _LONGEST_NAME and len(name) == length and name.isascii() and name.decode().isprintable()


def _fields(measured: bytes) -> Iterator[str]:
    """Yield the fields of a template's data: a hash in hexadecimal after its algorithm, text, or hexadecimal."""
    at = 0
    while at + 4 <= len(measured):
        field = measured[at + 4 : at + 4 + _u32(measured, at)]
        at += 4 + _u32(measured, at)
        head, colon, digest = field.partition(b":\0")
        text = field.rstrip(b"\0")
        if colon and head.isascii():
            yield f"{head.decode()}:{digest.hex()}"
        elif text.isascii() and text.decode().isprintable():
            yield text.decode()
        else:
            yield field.hex()


def _u32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def _template_data(template: str, fields: str) -> bytes | None:
    """What the kernel hashes for a line: each field with its length in front; None for a template not known."""
    first, _, rest = fields.partition(" ")
    algorithm, _, digest = first.rpartition(":")  # of the templates ending in v2 with "ima:" or "verity:" before it
    if template not in (*_WITHOUT_SIGNATURE, *_WITH_SIGNATURE) or not digest:
        return None
    name, extra = rest, b""
    if template in _WITH_SIGNATURE:
        head, _, last = rest.rpartition(" ")
        if head and _is_hex(last):
            name, extra = head, bytes.fromhex(last)
    pieces = [f"{algorithm}:".encode() + b"\0" + bytes.fromhex(digest), name.rstrip(" ").encode() + b"\0"]
    if template in _WITH_SIGNATURE:
        pieces.append(extra)
    return b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)


def _is_hex(text: str) -> bool:
    try:
        return bool(bytes.fromhex(text))
    except ValueError:
        return False
