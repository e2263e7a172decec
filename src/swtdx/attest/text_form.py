# SPDX-License-Identifier: GPL-2.0-or-later
"""Quotes and reports as they travel: raw, in hexadecimal or in base64.

None of these structures is printable ASCII throughout when raw (each begins with small binary integers), so that text
can be told from them by its bytes alone.
"""

from __future__ import annotations

import base64
import binascii

_TEXT = frozenset(range(0x21, 0x7F)) | frozenset(b" \t\r\n")


def binary_of(data: bytes) -> bytes:
    """The bytes meant by ``data``, which may be raw, hexadecimal (with or without 0x) or base64 (either alphabet).

    Raises ValueError for text that is neither.

    >>> binary_of(b"0x0400\\n") == binary_of(b"BAA=") == binary_of(b"\\x04\\x00") == b"\\x04\\x00"
    True
    """
    if not data or not _TEXT.issuperset(data):
        return data
    text = b"".join(data.split())
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
