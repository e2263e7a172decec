# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux's IMA log (``ascii_runtime_measurements``), as events that extend an RTMR.

A line has the register, the template's hash, the template's name and its fields (Documentation/security/IMA-templates).
Kernels that measure into RTMRs write the RTMR's number and a SHA-384 hash; others write PCR 10 and a SHA-1 hash, and
extend a SHA-384 register with the hash of the same fields, which is computed here.  A violation has a hash of zeroes
and extends with ones.
"""

from __future__ import annotations

import hashlib
import struct

from swtdx.attest.event_digest import EV_IMA
from swtdx.attest.event_log import MAXIMUM_EVENTS, Event, EventLogError

SHA384_SIZE = 48
IMA_PCR = 10
RTMRS = (2, 3)
"""The RTMRs that software after the firmware extends."""


def parse_ima_log(data: bytes, rtmr: int = 2, first_number: int = 0) -> list[Event]:
    """Return the events of an IMA log; ``rtmr`` is the register for lines of PCR 10.

    Raises `EventLogError`, whose ``offset`` is the number of the line.

    >>> parse_ima_log(b"2 " + b"00" * 48 + b" ima-ng sha256:" + b"00" * 32 + b" /etc/x")[0].digest.hex()[:4]
    'ffff'
    """
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


def _template_data(template: str, fields: str) -> bytes | None:
    """What the kernel hashes for a line: each field with its length in front; None for a template not known."""
    algorithm, _, rest = fields.partition(":")
    digest, _, rest = rest.partition(" ")
    if template not in ("ima-ng", "ima-sig", "ima-buf") or not digest:
        return None
    name, extra = rest, b""
    if template in ("ima-sig", "ima-buf"):
        head, _, last = rest.rpartition(" ")
        if head and _is_hex(last):
            name, extra = head, bytes.fromhex(last)
    pieces = [f"{algorithm}:".encode() + b"\0" + bytes.fromhex(digest), name.rstrip(" ").encode() + b"\0"]
    if template != "ima-ng":
        pieces.append(extra)
    return b"".join(struct.pack("<I", len(piece)) + piece for piece in pieces)


def _is_hex(text: str) -> bool:
    try:
        return bool(bytes.fromhex(text))
    except ValueError:
        return False
