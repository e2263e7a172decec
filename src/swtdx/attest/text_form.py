# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes and reports as they travel: raw, in hexadecimal, in base64, or as a member of an agent's JSON answer.

None of these structures is printable ASCII throughout when raw (each begins with small binary integers), so that text
can be told from them by its bytes alone.
"""

from __future__ import annotations

import base64
import binascii
import json

MAXIMUM_JSON_SIZE = 4 << 20
_TEXT = frozenset(range(0x21, 0x7F)) | frozenset(b" \t\r\n")


def binary_of(data: bytes, member: str = "") -> bytes:
    """The bytes meant by ``data``, which may be raw, hexadecimal (with or without 0x) or base64 (either alphabet).

    With ``member`` it may also be a JSON object in which that member is one of the two: so dstack's agent answers.
    Raises ValueError for text that is none of these.

    >>> binary_of(b"0x0400\\n") == binary_of(b"BAA=") == binary_of(b"\\x04\\x00") == b"\\x04\\x00"
    True
    >>> binary_of(b'{"quote": "0400"}', "quote")
    b'\\x04\\x00'
    """
    if not data or not _TEXT.issuperset(data):
        return data
    text = b"".join(_member(data, member).split())
    digits = text[2:] if text[:2].lower() == b"0x" else text
    try:
        return binascii.unhexlify(digits)
    except binascii.Error:
        pass
    try:
        text = text.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        return base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except binascii.Error:
        raise ValueError("this is text, but neither hexadecimal nor base64") from None


def _member(data: bytes, member: str) -> bytes:
    """The text in a JSON object's member; ``data`` itself if it is no JSON object, or none is looked for."""
    if not member or data.lstrip()[:1] != b"{":
        return data
    if len(data) > MAXIMUM_JSON_SIZE:
        raise ValueError(f"JSON of more than {MAXIMUM_JSON_SIZE >> 20} MiB is not read")
    try:
        text = json.loads(data).get(member)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"this is not JSON: {error}") from None
    if not isinstance(text, str) or not text.isascii():
        raise ValueError(f"this is JSON without a member {member!r} of text")
    return text.encode()
