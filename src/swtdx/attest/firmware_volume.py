# SPDX-License-Identifier: GPL-2.0-or-later
"""The files in a firmware image: which drivers a TDVF carries tells what it measures.

UEFI Platform Initialization specification, volume 3: a firmware volume is a header and files; a file is a header and
sections; a section may hold another volume, or be an LZMA-compressed sequence of sections, in which edk2 keeps all that
runs after its first phase.

The image is anybody's: every length is checked, what does not fit ends the walk there, and no more is decompressed than
`MAXIMUM_DECOMPRESSED` in all.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from uuid import UUID

MAXIMUM_DECOMPRESSED = 128 << 20
_MAXIMUM_DEPTH = 8
_SIGNATURE = b"_FVH"
_SIGNATURE_AT = 40
_VOLUME = struct.Struct("<16s16sQ4sIHHHBB")  # zero, file system, length, signature, attributes, header length, ...
_FILE = struct.Struct("<16sHBB3sB")  # name, check, type, attributes, size, state
_FILE_LARGE = 1  # attribute: a 64-bit size follows
_FILE_PAD = 0xF0
_FILE_FREE = 0xFF  # erased flash
_SECTION_GUID_DEFINED = 0x02
_SECTION_PE32 = 0x10
_SECTION_USER_INTERFACE = 0x15
_SECTION_VOLUME = 0x17
_LZMA = UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf")
_NEEDS_PROCESSING = 1  # attribute of a GUID-defined section: its contents are not plain sections


@dataclass(frozen=True)
class FirmwareFile:
    """One file of a volume."""

    name: UUID
    volume: UUID | None
    """Name of the volume it is in, if that has one."""
    title: str
    """What its user interface section calls it; may be empty."""
    executable: bytes
    """Its PE32 section; may be empty."""


class _Budget:
    def __init__(self) -> None:
        self.left = MAXIMUM_DECOMPRESSED


def volumes(image: bytes) -> Iterator[memoryview]:
    """The firmware volumes that lie bare in ``image``, as (header and all) pieces of it."""
    at = image.find(_SIGNATURE)
    end = 0
    while at >= 0:
        start = at - _SIGNATURE_AT
        if start >= end and start % 8 == 0 and (length := _volume_length(image, start)):
            yield memoryview(image)[start : start + length]
            end = start + length
            at = image.find(_SIGNATURE, end)
        else:
            at = image.find(_SIGNATURE, at + 1)


def files(image: bytes) -> Iterator[FirmwareFile]:
    """All files of all volumes, those in compressed volumes too; pad files left out.

    >>> list(files(b"no firmware"))
    []
    """
    budget = _Budget()
    for volume in volumes(image):
        yield from _volume_files(volume, budget, 0)


def _volume_length(image: bytes | memoryview, start: int) -> int:
    """Of the volume at ``start``, or 0 if there is none."""
    if start < 0 or start + _VOLUME.size > len(image):
        return 0
    _, _, length, signature, _, header, *_ = _VOLUME.unpack_from(image, start)
    if signature != _SIGNATURE or not _VOLUME.size <= header <= length <= len(image) - start or header % 2:
        return 0
    checksum = sum(struct.unpack_from(f"<{header // 2}H", image, start)) & 0xFFFF
    return int(length) if checksum == 0 else 0


def _volume_files(volume: memoryview, budget: _Budget, depth: int) -> Iterator[FirmwareFile]:
    header, extension = struct.unpack_from("<H2xH", volume, 48)
    name, at = None, header
    if extension and extension + 20 <= len(volume):
        name = UUID(bytes_le=bytes(volume[extension : extension + 16]))
        at = extension + int.from_bytes(volume[extension + 16 : extension + 20], "little")
    while (at := -(-at // 8) * 8) + _FILE.size <= len(volume):
        raw_name, _, kind, attributes, size, _ = _FILE.unpack_from(volume, at)
        length, head = int.from_bytes(size, "little"), _FILE.size
        if attributes & _FILE_LARGE and at + 32 <= len(volume):
            length, head = int.from_bytes(volume[at + 24 : at + 32], "little"), 32
        if kind == _FILE_FREE or not head <= length <= len(volume) - at:
            return
        if kind != _FILE_PAD:
            yield from _file(UUID(bytes_le=raw_name), name, volume[at + head : at + length], budget, depth)
        at += length


def _file(name: UUID, volume: UUID | None, body: memoryview, budget: _Budget, depth: int) -> Iterator[FirmwareFile]:
    title, executable = "", b""
    for kind, contents in _sections(body, budget, depth):
        if kind == _SECTION_USER_INTERFACE:
            title = bytes(contents).decode("utf-16-le", "replace").rstrip("\0")
        elif kind == _SECTION_PE32:
            executable = bytes(contents)
        elif kind == _SECTION_VOLUME and depth < _MAXIMUM_DEPTH and _volume_length(contents, 0):
            yield from _volume_files(contents[: _volume_length(contents, 0)], budget, depth + 1)
    yield FirmwareFile(name, volume, title, executable)


def _sections(body: memoryview, budget: _Budget, depth: int) -> Iterator[tuple[int, memoryview]]:
    """(type, contents) of each section; those inside GUID-defined sections in the place of these."""
    at = 0
    while (at := -(-at // 4) * 4) + 4 <= len(body):
        length, kind, head = int.from_bytes(body[at : at + 3], "little"), body[at + 3], 4
        if length == 0xFF_FFFF and at + 8 <= len(body):
            length, head = int.from_bytes(body[at + 4 : at + 8], "little"), 8
        if not head <= length <= len(body) - at:
            return
        section = body[at : at + length]
        if kind == _SECTION_GUID_DEFINED and length >= head + 20 and depth < _MAXIMUM_DEPTH:
            data, attributes = struct.unpack_from("<HH", section, head + 16)
            if UUID(bytes_le=bytes(section[head : head + 16])) == _LZMA:
                inner = _decompressed(section[data:], budget)
                yield from _sections(memoryview(inner), budget, depth + 1)
            elif not attributes & _NEEDS_PROCESSING and data >= head + 20:
                yield from _sections(section[data:], budget, depth + 1)
        else:
            yield kind, section[head:]
        at += length


def _decompressed(data: memoryview, budget: _Budget) -> bytes:
    """What an LZMA section holds; empty if it is damaged or larger than there is budget for."""
    try:
        contents = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAXIMUM_DECOMPRESSED).decompress(
            data, max_length=budget.left
        )
    except (lzma.LZMAError, EOFError, MemoryError):
        return b""
    budget.left -= len(contents)
    return contents
