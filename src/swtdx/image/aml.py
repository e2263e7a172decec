# SPDX-License-Identifier: GPL-2.0-or-later
"""ACPI Machine Language, as much of it as a description of fixed devices takes (ACPI 6.5, chapters 20 and 6.4).

Each function returns the bytes of one term, so that a definition block reads from the outside in::

    scope("\\\\_SB", device("COM1", name("_HID", eisa_id("PNP0501")), name("_CRS", resources(io(0x3F8, 8), irq(4)))))

There are no methods with control flow here: what this board has does not move.
"""

from __future__ import annotations

import struct

_NAME_OP, _SCOPE_OP, _BUFFER_OP, _PACKAGE_OP = b"\x08", b"\x10", b"\x11", b"\x12"
_DEVICE_OP = b"\x5b\x82"
_STRING_PREFIX = b"\x0d"
_END_TAG = b"\x79\x00"  # checksum 0: not to be verified


def integer(value: int) -> bytes:
    """The shortest encoding of a number (20.2.3)."""
    if value in (0, 1):
        return bytes([value])
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4), (0x0E, 8)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    raise ValueError(f"{value:#x} does not fit into 64 bits")


def string(text: str) -> bytes:
    """A string (20.2.3)."""
    return _STRING_PREFIX + text.encode("ascii") + b"\0"


def eisa_id(text: str) -> bytes:
    """A compressed EISA id such as ``PNP0A08``, as a number (19.3.4)."""
    value = 0
    for letter in text[:3]:
        value = value << 5 | ord(letter) - 0x40
    value = value << 16 | int(text[3:], 16)
    return integer(int.from_bytes(value.to_bytes(4, "big"), "little"))


def package(*elements: bytes) -> bytes:
    """A package of terms (20.2.5.4)."""
    return _PACKAGE_OP + _with_length(bytes([len(elements)]) + b"".join(elements))


def name(path: str, value: bytes) -> bytes:
    """``Name (path, value)``."""
    return _NAME_OP + _path(path) + value


def scope(path: str, *terms: bytes) -> bytes:
    """``Scope (path) { terms }``."""
    return _SCOPE_OP + _with_length(_path(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """``Device (path) { terms }``."""
    return _DEVICE_OP + _with_length(_path(path) + b"".join(terms))


def resources(*descriptors: bytes) -> bytes:
    """A resource template: a buffer of descriptors with its end tag (6.4)."""
    contents = b"".join(descriptors) + _END_TAG
    return _BUFFER_OP + _with_length(integer(len(contents)) + contents)


def io(start: int, length: int) -> bytes:
    """Fixed ports, all 16 address lines decoded (6.4.2.5)."""
    return struct.pack("<BBHHBB", 0x47, 1, start, start, 1, length)


def irq(line: int) -> bytes:
    """An ISA interrupt: edge-triggered, active high, not shared (6.4.2.1)."""
    return struct.pack("<BH", 0x22, 1 << line)


def memory32(start: int, length: int) -> bytes:
    """Fixed memory below 4 GiB, writable (6.4.3.4)."""
    return struct.pack("<BHBII", 0x86, 9, 1, start, length)


def bus_numbers(first: int, last: int) -> bytes:
    """A window of PCI bus numbers (6.4.3.5.3), produced, fixed."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, 0x0C, 0, 0, first, last, 0, last - first + 1)


def io_window(first: int, last: int) -> bytes:
    """A window of ports that the bridge passes on (6.4.3.5.3): entire range."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 1, 0x0C, 3, 0, first, last, 0, last - first + 1)


def memory_window(first: int, last: int) -> bytes:
    """A window of memory that the bridge passes on, not cacheable, writable (6.4.3.5.2; above 4 GiB 6.4.3.5.1)."""
    if last < 1 << 32:
        return struct.pack("<BHBBBIIIII", 0x87, 23, 0, 0x0C, 1, 0, first, last, 0, last - first + 1)
    return struct.pack("<BHBBBQQQQQ", 0x8A, 43, 0, 0x0C, 1, 0, first, last, 0, last - first + 1)


def _with_length(contents: bytes) -> bytes:
    """PkgLength, which counts itself, and what it counts (20.2.4)."""
    if len(contents) + 1 < 64:
        return bytes([len(contents) + 1]) + contents
    for following in (1, 2, 3):
        length = len(contents) + 1 + following
        if length < 1 << 4 + 8 * following:
            lead = following << 6 | length & 0xF
            return bytes([lead]) + (length >> 4).to_bytes(following, "little") + contents
    raise ValueError(f"a package of {len(contents)} bytes is too long")


def _path(path: str) -> bytes:
    """A name string (20.2.2): an optional root, and name segments of four characters."""
    prefix = b""
    if path.startswith("\\"):
        prefix, path = b"\\", path[1:]
    segments = [segment.ljust(4, "_").encode("ascii") for segment in path.split(".")] if path else []
    if any(len(segment) != 4 for segment in segments):
        raise ValueError(f"{path!r} has a segment of more than four characters")
    if not segments:
        return prefix + b"\0"
    if len(segments) == 1:
        return prefix + segments[0]
    if len(segments) == 2:
        return prefix + b"\x2e" + b"".join(segments)
    return prefix + b"\x2f" + bytes([len(segments)]) + b"".join(segments)
