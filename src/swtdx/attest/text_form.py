# SPDX-License-Identifier: GPL-2.0-or-later
"""The forms in which people hold evidence: raw, hexadecimal, base64, armoured, an array of numbers, a member of JSON.

None of these structures is printable text throughout when raw (each begins with small binary integers), so that text
can be told from them by its bytes alone.  Text may be in UTF-8 or UTF-16 (what PowerShell's ``>`` writes), and what it
stands for may be text again: base64 of hexadecimal, say.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MAXIMUM_JSON_SIZE = 4 << 20
_TEXT = frozenset(range(0x21, 0x7F)) | frozenset(b" \t\r\n")
_BOM = b"\xef\xbb\xbf"
_ARMOUR = re.compile(rb"-----BEGIN [^\r\n]*-----\s(.*?)-----END [^\r\n]*-----", re.DOTALL)
_ARMOUR_HEADERS = re.compile(rb"\s*(?:[A-Za-z-]+: [^\r\n]*\r?\n)+\r?\n")
_DATA_URL = re.compile(rb"data:[\w./+;=-]*,")
_BYTES_LITERAL = re.compile(rb"b(['\"])((?:\\.|[^\\])*)\1\Z", re.DOTALL)
_WORDS = re.compile(rb"([0-9a-fA-F]{7,8})((?: +[0-9a-fA-F]{4})*)\Z")
_GO_SLICE = re.compile(rb"\s*\d{1,3}(?:\s+\d{1,3})+\s*")
_MAXIMUM_NESTING = 3
_SHORTEST_SOUGHT = 600
"""Characters; no quote, report or log is shorter."""
_MAXIMUM_SEARCH = 1 << 16
_DUMP = re.compile(rb"([0-9a-fA-F]{4,16})(:?)(?:\s+(.*))?$")
_C_ARRAY = re.compile(rb"\{((?:\s*0[xX][0-9a-fA-F]{1,2}\s*,?)+)\s*\}")
_CODE_ARRAY = re.compile(rb"[\w\s:<>=&*.!\[\]]*[\[({]\s*(\d{1,3}(?:\s*,\s*\d{1,3}){15,})\s*,?\s*[\])}]+\s*;?\s*\Z")
_COMMAS = re.compile(rb"\s*[0-9a-fA-F]{1,3}(?:\s*,\s*[0-9a-fA-F]{1,3}){15,}\s*,?\s*\Z")
_ASSIGNED = re.compile(
    rb"(?:(?:export|set|let|const|var)\s+)?[\w.-]{1,64}\s*(?::=|:|=)\s*(?:!!binary\s+)?(?:[|>][-+]?\s+)?"
)
"""``NAME=VALUE`` and ``name: value``, as shells, YAML and TOML have them."""
_ESCAPED = re.compile(rb"%(?:2[BbFf]|3[Dd])")
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
        return json.loads(text_bytes(data))
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


def binary_of(
    data: bytes, members: Iterable[str] = (), wanted: Callable[[bytes], bool] | None = None, depth: int = 0
) -> bytes:
    """Return the bytes that ``data`` stand for.

    Text may be hexadecimal (with 0x, colons, spaces or line breaks), a hex dump (xxd, hexdump, hexdump -C, od), a
    C array, base64 (either alphabet), a data URL, armoured, or an array of numbers, each with or without a byte order
    mark; also behind ``NAME=`` or ``name:``, and as the body of an HTTP response.  With ``members`` it may also be a
    JSON object in which one of them is such text; if none is there, and ``wanted`` is given, the only member at any
    depth whose bytes are ``wanted``.  Raises ValueError for text that is none of these.

    >>> binary_of(b"0x0400\\n") == binary_of(b"BAA=") == binary_of(b"04:00") == binary_of(b"[4, 0]") == b"\\x04\\x00"
    True
    >>> binary_of(b'{"quote": "0400"}', ["quote"])
    b'\\x04\\x00'
    """
    text = text_bytes(data)
    if not text or not _TEXT.issuperset(text):
        return data
    if text.startswith(b"HTTP/1."):
        text = text.replace(b"\r\n", b"\n").partition(b"\n\n")[2]
    start = text.lstrip()[:1]
    if members and start == b"{":
        found = _member(text, tuple(members), wanted)
    elif start == b"[" and (listed := _listed(text)) is None:
        return _array(text, wanted)
    elif start == b"[":
        return listed or b""
    else:
        armoured = _ARMOUR.findall(text)
        if len(armoured) > 1:
            raise ValueError(f"this is text with {len(armoured)} armoured blocks, and which one is meant is not known")
        found = _decoded(_ARMOUR_HEADERS.sub(b"", armoured[0], count=1) if armoured else text)
    again = depth < _MAXIMUM_NESTING and len(found) > 16 and _TEXT.issuperset(text_bytes(found))
    try:
        return binary_of(found, members, wanted, depth + 1) if again else found
    except ValueError:
        return found


def text_bytes(data: bytes) -> bytes:
    """Return text in UTF-8 without a byte order mark, of text that may be in UTF-16 with one; other data as they are.

    >>> text_bytes("{}".encode("utf-16")), text_bytes(b"\\xff\\xfe\\x00")
    (b'{}', b'\\xff\\xfe\\x00')
    """
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return data.decode("utf-16").encode()
        except UnicodeError:
            return data
    return data.removeprefix(_BOM)


def _decoded(text: bytes) -> bytes:
    for read in (_word_dump, _dump, _literal):
        found = read(text)
        if found is not None:
            return found
    text = _DATA_URL.sub(b"", text.strip(), count=1)
    listed = _listed(text)
    if listed is not None:
        return listed
    if _ESCAPED.search(text):
        from urllib.parse import unquote_to_bytes  # only here: the library behind it takes long to load

        text = unquote_to_bytes(text)
    try:
        return _digits(text)
    except ValueError:
        assigned = _ASSIGNED.match(text)
        value = b"" if assigned is None else text[assigned.end() :].rstrip(b" \t\r\n;")
        if len(value) < _SHORTEST_SOUGHT:
            raise
    return _decoded(value)


def _listed(text: bytes) -> bytes | None:
    """Return the bytes of numbers between brackets of a program, or separated by commas; None for other text."""
    array = _C_ARRAY.search(text) or _CODE_ARRAY.match(text)
    numbers = array[1] if array else text if _COMMAS.match(text) else None
    if numbers is None:
        return None
    words = numbers.replace(b",", b" ").split()
    hexadecimal = not array and all(len(word) == 2 for word in words)
    if array and words[0][:2] in (b"0x", b"0X"):
        hexadecimal = True
    try:
        return bytes(int(word, 16 if hexadecimal else 10) for word in words)
    except ValueError:
        return None


def _digits(text: bytes) -> bytes:
    """Hexadecimal or base64, with what may be between and around the digits. Raises ValueError for other text."""
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


def _word_dump(text: bytes) -> bytes | None:
    """Return the bytes of words of 16 bits (hexdump without options, od -x), little-endian; None if it is not that.

    hexdump counts in hexadecimal, od in octal; a line of the offset alone ends both, and tells an odd length.
    """
    matched = [_WORDS.match(line.rstrip()) for line in text.strip().splitlines()]
    if len(matched) < 2 or None in matched:
        return None
    for base in (16, 8):
        found = bytearray()
        for line in matched:
            assert line is not None
            try:
                offset = int(line[1], base)
            except ValueError:
                break
            if offset != len(found) and not (line is matched[-1] and offset == len(found) - 1 and not line[2]):
                break
            del found[offset:]
            for word in line[2].split():
                found += bytes.fromhex(word.decode())[::-1]
        else:
            return bytes(found)
    return None


def _literal(text: bytes) -> bytes | None:
    """Return the bytes of a Python literal, ``b'\\x04...'``; None if it is not one."""
    matched = _BYTES_LITERAL.match(text.strip())
    if matched is None:
        return None
    try:
        return matched[2].decode("unicode_escape").encode("latin-1")
    except UnicodeError:
        return None


def _array(text: bytes, wanted: Callable[[bytes], bool] | None) -> bytes:
    inner = text.strip()[1:-1]
    if _GO_SLICE.fullmatch(inner):  # as Go prints a []byte: [4 0 2 0]
        return _bytes_of_numbers([int(each) for each in inner.split()])
    content = json_of(text)
    if wanted is not None and isinstance(content, list) and any(isinstance(each, dict) for each in content):
        found = _only(_fitting(content, wanted))
        if found is not None:
            return found
    return _bytes_of_numbers(content)


def _bytes_of_numbers(content: Any) -> bytes:
    if not isinstance(content, list) or not all(type(each) is int and 0 <= each <= 255 for each in content):
        raise ValueError("this is a JSON array, but not one of bytes (numbers from 0 to 255)")
    return bytes(content)


def _member(text: bytes, members: tuple[str, ...], wanted: Callable[[bytes], bool] | None) -> bytes:
    if len(text) > MAXIMUM_JSON_SIZE:
        raise ValueError(f"JSON of more than {MAXIMUM_JSON_SIZE >> 20} MiB is not read")
    try:
        content = json_of(text)
    except JsonError as error:
        raise ValueError(f"this is not JSON: {error}") from None
    value = member_of(content, members)
    found = _member_bytes(content if value is None else value)
    if found is not None:
        return found
    found = None if wanted is None else _only(_fitting(content, wanted))
    if found is not None:
        return found
    raise ValueError(f"this is JSON without one of the members {', '.join(members)}")


def _member_bytes(value: Any) -> bytes | None:
    """Return the bytes of a member: text, an array of numbers, or JavaScript's forms of one; None for another thing."""
    if isinstance(value, dict):
        if value.get("type") == "Buffer":  # Node's Buffer
            value = value.get("data")
        elif value and list(value) == [str(at) for at in range(len(value))]:  # a Uint8Array
            value = list(value.values())
    if isinstance(value, list):
        return _bytes_of_numbers(value)
    return binary_of(value.encode()) if isinstance(value, str) and value.isascii() and value else None


def _fitting(content: Any, wanted: Callable[[bytes], bool]) -> Iterator[tuple[str, bytes]]:
    """Names and bytes of the members, at any depth, that are ``wanted``."""
    waiting = [("", content)]
    for _ in range(_MAXIMUM_SEARCH):
        if not waiting:
            return
        name, value = waiting.pop()
        if isinstance(value, str) and value.lstrip()[:1] == "{":
            try:
                value = json_of(value.encode("utf-8", "replace"))
            except JsonError:
                continue
        try:
            found = _member_bytes(value) if not isinstance(value, str) or len(value) > _SHORTEST_SOUGHT else None
        except ValueError:
            found = None
        if found is not None and wanted(found):
            yield name.lstrip("."), found
        elif isinstance(value, dict):
            waiting += [(f"{name}.{key}", each) for key, each in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(f"{name}[{at}]", each) for at, each in enumerate(value) if isinstance(each, (dict, list, str))]


def _only(fitting: Iterable[tuple[str, bytes]]) -> bytes | None:
    """Return the one thing that fits, under whatever names; None if nothing does. Raises ValueError if they differ."""
    found = dict(fitting)
    if len(set(found.values())) > 1:
        raise ValueError(f"this is JSON in which several members would do, and differ: {', '.join(found)}")
    return next(iter(found.values()), None)
