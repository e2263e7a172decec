# SPDX-License-Identifier: GPL-2.0-or-later
"""The forms in which people hold evidence: raw, hexadecimal, base64, armoured, an array of numbers, a member of JSON.

None of these structures is printable text throughout when raw (each begins with small binary integers), so that text
can be told from them by its bytes alone.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable
from typing import Any

MAXIMUM_JSON_SIZE = 4 << 20
_TEXT = frozenset(range(0x21, 0x7F)) | frozenset(b" \t\r\n")
_BOM = b"\xef\xbb\xbf"
_ARMOUR = re.compile(rb"-----BEGIN [^\r\n]*-----\s(.*?)-----END [^\r\n]*-----", re.DOTALL)
_DUMP = re.compile(rb"([0-9a-fA-F]{4,16})(:?)(?:\s+(.*))?$")
_C_ARRAY = re.compile(rb"\{((?:\s*0[xX][0-9a-fA-F]{1,2}\s*,?)+)\s*\}")
_MAXIMUM_DUMP = 16 << 20


class JsonError(ValueError):
    """Text that should be JSON is not; ``offset`` is the byte at which it goes wrong."""

    def __init__(self, text: str, offset: int) -> None:
        super().__init__(text)
        self.offset = offset


def json_of(data: bytes) -> Any:
    """Read JSON, with or without a byte order mark. Raises `JsonError`."""
    if len(data) > MAXIMUM_JSON_SIZE * 8:
        raise JsonError(f"JSON of more than {MAXIMUM_JSON_SIZE * 8 >> 20} MiB is not read", 0)
    try:
        return json.loads(data.removeprefix(_BOM))
    except json.JSONDecodeError as error:
        raise JsonError(error.msg, error.pos) from None
    except RecursionError:
        raise JsonError("it is nested too deeply", 0) from None
    except ValueError as error:
        raise JsonError(str(error), 0) from None


def member_of(content: dict[str, Any], names: Iterable[str]) -> Any:
    """Return the first of the named members; a dot leads into a member that is an object, or a string with one in JSON.

    >>> member_of({"tcb_info": '{"event_log": []}'}, ["event_log", "tcb_info.event_log"])
    []
    """
    for name in names:
        here: Any = content
        for part in name.split("."):
            if isinstance(here, str) and here.lstrip()[:1] == "{":
                try:
                    here = json_of(here.encode("utf-8", "replace"))
                except JsonError:
                    here = None
            here = here.get(part) if isinstance(here, dict) else None
        if here is not None:
            return here
    return None


def binary_of(data: bytes, members: Iterable[str] = ()) -> bytes:
    """Return the bytes that ``data`` stand for.

    Text may be hexadecimal (with 0x, colons, spaces or line breaks), a hex dump (xxd, hexdump -C, od), a C array,
    base64 (either alphabet), armoured, or an array of numbers, each with or without a byte order mark.  With
    ``members`` it may also be a JSON object in which one of them is such text.  Raises ValueError for text that is none
    of these.

    >>> binary_of(b"0x0400\\n") == binary_of(b"BAA=") == binary_of(b"04:00") == binary_of(b"[4, 0]") == b"\\x04\\x00"
    True
    >>> binary_of(b'{"quote": "0400"}', ["quote"])
    b'\\x04\\x00'
    """
    text = data.removeprefix(_BOM)
    if not text or not _TEXT.issuperset(text):
        return data
    if members and text.lstrip()[:1] == b"{":
        return _member(text, members)
    if text.lstrip()[:1] == b"[":
        return _array(text)
    armoured = _ARMOUR.search(text)
    if armoured:
        text = armoured[1]
    return _decoded(text)


def _decoded(text: bytes) -> bytes:
    dumped = _dump(text)
    if dumped is not None:
        return dumped
    array = _C_ARRAY.search(text)
    if array:
        return bytes(int(each, 16) for each in array[1].replace(b",", b" ").split())
    joined = b"".join(text.split()).strip(b"\"'")
    digits = joined.removeprefix(b"0x").removeprefix(b"0X").replace(b":", b"").replace(b",0x", b"").replace(b"\\x", b"")
    try:
        return binascii.unhexlify(digits)
    except binascii.Error:
        pass
    try:
        joined = joined.translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        return base64.b64decode(joined + b"=" * (-len(joined) % 4), validate=True)
    except binascii.Error:
        raise ValueError("this is text, but neither hexadecimal nor base64") from None


def _dump(text: bytes) -> bytes | None:
    """Return the bytes of a hex dump (xxd, hexdump -C, od -A x -t x1); None if ``text`` is not one.

    A line has an offset, bytes, and perhaps the same as text.  The offset must be the number of bytes so far, so that
    words of plain hexadecimal are not taken for one.
    """
    found, line_before, repeated = bytearray(), b"", False
    for line in text.strip().splitlines():
        if line.strip() == b"*":
            repeated = True
            continue
        matched = _DUMP.match(line.rstrip())
        if matched is None:
            return None
        offset, rest = int(matched[1], 16), matched[3] or b""
        if repeated and line_before and len(found) < offset <= _MAXIMUM_DUMP:
            found += line_before * ((offset - len(found)) // len(line_before))
        if offset != len(found):
            return None
        # hexdump -C has a gap after eight bytes, and the text between bars; the others have a gap before the text.
        barred = not matched[2] and rest.endswith(b"|")
        digits = rest.partition(b"|")[0] if barred else rest.partition(b"  ")[0]
        try:
            line_before = binascii.unhexlify(b"".join(digits.split()))
        except binascii.Error:
            return None
        found, repeated = found + line_before, False
    return bytes(found) or None


def _array(text: bytes) -> bytes:
    content = json_of(text)
    if not isinstance(content, list) or not all(type(each) is int and 0 <= each <= 255 for each in content):
        raise ValueError("this is a JSON array, but not one of bytes (numbers from 0 to 255)")
    return bytes(content)


def _member(text: bytes, members: Iterable[str]) -> bytes:
    if len(text) > MAXIMUM_JSON_SIZE:
        raise ValueError(f"JSON of more than {MAXIMUM_JSON_SIZE >> 20} MiB is not read")
    names = tuple(members)
    try:
        value = member_of(json_of(text), names)
    except JsonError as error:
        raise ValueError(f"this is not JSON: {error}") from None
    if isinstance(value, list):
        return _array(json.dumps(value).encode())
    if not isinstance(value, str) or not value.isascii():
        raise ValueError(f"this is JSON without one of the members {', '.join(names)}")
    return binary_of(value.encode())
