# SPDX-License-Identifier: GPL-2.0-or-later
"""A snapshot as a file.

========  ====================================================================================================
preamble  text, four lines: what it is, by which version of swtdx and with which tables it was made, and length
          and SHA-256 of the header
header    JSON: what the machine is built from, the length and SHA-256 of each part that follows, where each
          memory has contents
parts     the state (JSON), long byte strings that state and header name by number, and each memory's contents
========  ====================================================================================================

A file is refused unless every byte of it is as it was written: its length first, then the hashes. These find damage; a
hostile file can have right ones. What it can do follows from how it is read: JSON makes no objects, and the tree is put
into a machine by `swtdx.snapshot.values`, which see. A pickle would not have been possible: to load one is to run it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from swtdx.snapshot.fields import CREATABLE, ENUMERATIONS, FIELDS, STRUCTURES
from swtdx.snapshot.pages import PAGE_SIZE, Extent, Image
from swtdx.snapshot.taken import Snapshot, Times
from swtdx.snapshot.values import NotKept, Plain, condensed

_FIRST_LINE = b"swtdx snapshot\n"
_LONGEST_LINE = 200
_LARGEST_HEADER = 64 << 20
_BLOB = "\0"
"""The only member of a JSON object that stands for a byte string: its number."""
_INLINE = "\1"
"""The same for a short one: it in hexadecimal."""
_SHORT = 64
_CHUNK = 1 << 20


class SnapshotError(Exception):
    """A file is not a snapshot that can be used; the text follows its name: "is cut short"."""


@dataclass(frozen=True)
class Saved:
    """What a file holds: what the machine is built from, the byte strings that go with it, its state and memory."""

    recipe: dict[str, Any]
    blobs: dict[str, bytes]
    snapshot: Snapshot


@dataclass(frozen=True)
class Maker:
    """Who makes or reads a file: a version of swtdx, and how its engine lays out a virtual CPU."""

    version: str
    engine: str

    @cached_property
    def layout(self) -> str:
        """What distinguishes the tables by which a snapshot is made and read."""
        tables = [
            sorted((name, fields.state) for name, fields in FIELDS.items()),
            *(sorted(names) for names in (CREATABLE, ENUMERATIONS, STRUCTURES)),
            self.engine,
        ]
        return hashlib.sha256(json.dumps(tables).encode()).hexdigest()[:16]


# --- writing ----------------------------------------------------------------------------------------------------------


class _Blobs:
    """Byte strings by number, each once."""

    def __init__(self) -> None:
        self.numbers: dict[bytes, int] = {}

    def number(self, data: bytes) -> int:
        return self.numbers.setdefault(data, len(self.numbers))

    def as_json(self, value: Any) -> Any:
        """Return what stands in JSON for what JSON does not have."""
        if isinstance(value, bytes):
            return {_INLINE: value.hex()} if len(value) <= _SHORT else {_BLOB: self.number(value)}
        if isinstance(value, Plain):
            container = value.container
            if isinstance(container, dict):
                return ["d", list(container), list(container.values())]
            return ["l" if isinstance(container, list) else "s" if isinstance(container, set) else "q", list(container)]
        raise NotKept("the machine has mappings of this process: a snapshot for a file is made without them")


class _Memories:
    """The contents of all images, without pages of zeros."""

    def __init__(self, images: dict[tuple[int, str], Image]) -> None:
        self.images = list(images.values())
        self.extents = [list(_used(image)) for image in self.images]

    def pieces(self) -> Iterator[bytes]:
        for image, extents in zip(self.images, self.extents, strict=True):
            for offset, length in extents:
                for start in range(offset, offset + length, _CHUNK):
                    yield os.pread(image.memfd, min(_CHUNK, offset + length - start), start)


def _used(image: Image) -> Iterator[Extent]:
    """Yield where an image has anything but zeros, in whole pages."""
    nothing = bytes(PAGE_SIZE)
    for offset, length in image.data():
        start = None
        for chunk in range(offset, offset + length, _CHUNK):
            data = memoryview(os.pread(image.memfd, min(_CHUNK, offset + length - chunk), chunk))
            for place in range(0, len(data), PAGE_SIZE):
                zero = data[place : place + PAGE_SIZE] == nothing[: len(data) - place]
                if not zero and start is None:
                    start = chunk + place
                elif zero and start is not None:
                    yield start, chunk + place - start
                    start = None
        if start is not None:
            yield start, offset + length - start


def pieces(saved: Saved, maker: Maker) -> Iterator[bytes]:
    """Yield the contents of a file that holds ``saved``. Raises NotKept, before the first piece."""
    blobs = _Blobs()
    snapshot = saved.snapshot
    state = json.dumps([snapshot.times, snapshot.trees], default=blobs.as_json, separators=(",", ":")).encode()
    names = {name: blobs.number(data) for name, data in saved.blobs.items()}
    memories = _Memories(snapshot.images)
    contents = hashlib.sha256()
    for piece in memories.pieces():
        contents.update(piece)
    header = {
        "recipe": saved.recipe,
        "blobs": names,
        "state": _part(state),
        "strings": [_part(data) for data in blobs.numbers],
        "memory": {
            "sha256": contents.hexdigest(),
            "images": [
                {"object": number, "name": name, "blocks": image.blocks, "extents": extents}
                for ((number, name), image), extents in zip(snapshot.images.items(), memories.extents, strict=True)
            ],
        },
    }
    encoded = json.dumps(header, separators=(",", ":")).encode()
    yield _FIRST_LINE
    yield f"version {maker.version}\nlayout {maker.layout}\n".encode()
    yield f"header {len(encoded)} {hashlib.sha256(encoded).hexdigest()}\n".encode()
    yield from (encoded, state, *blobs.numbers)
    yield from memories.pieces()


def _part(data: bytes) -> dict[str, Any]:
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest()}


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path, maker: Maker) -> Saved:
    """Read a file. Raises SnapshotError, OSError."""
    with path.open("rb") as file:
        header = _read_header(file, maker)
        try:
            return _read_parts(file, header)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError, IndexError):
            raise SnapshotError("is damaged: its header does not describe a machine") from None


def _line(file: BinaryIO, word: str) -> str:
    line = file.readline(_LONGEST_LINE).decode("ascii", "replace")
    name, _, rest = line.partition(" ")
    if name != word or not line.endswith("\n") or not line[:-1].isprintable():
        raise SnapshotError("is cut short or damaged: its first lines are not complete")
    return rest.rstrip("\n")


def _read_header(file: BinaryIO, maker: Maker) -> Any:
    if file.read(len(_FIRST_LINE)) != _FIRST_LINE:
        raise SnapshotError("is not a snapshot of swtdx")
    version, tables = _line(file, "version"), _line(file, "layout")
    if version != maker.version:
        raise SnapshotError(
            f"was made by swtdx {version}, and this is {maker.version}: make it again with this version"
        )
    if tables != maker.layout:
        raise SnapshotError(
            f"was made by another build of swtdx {version} (layout {tables}, here {maker.layout}): make it again"
        )
    length, _, digest = _line(file, "header").partition(" ")
    if not length.isascii() or not length.isdigit() or int(length) > _LARGEST_HEADER:
        raise SnapshotError("is damaged: the length of its header is not possible")
    encoded = file.read(int(length))
    if len(encoded) < int(length):
        raise SnapshotError("is cut short")
    if hashlib.sha256(encoded).hexdigest() != digest:
        raise SnapshotError("is damaged: its header is not what was written")
    try:
        return json.loads(encoded)
    except (ValueError, RecursionError):
        raise SnapshotError("is damaged: its header is not JSON") from None


def _read_parts(file: BinaryIO, header: Any) -> Saved:
    memory = header["memory"]
    lengths = [part["length"] for part in (header["state"], *header["strings"])]
    extents = [extent for image in memory["images"] for extent in image["extents"]]
    if any(type(number) is not int or number < 0 for number in [*lengths, *chain.from_iterable(extents)]):
        raise ValueError("a length is not a number")
    missing = sum(lengths) + sum(length for _, length in extents)
    missing -= os.fstat(file.fileno()).st_size - file.tell()
    if missing > 0:
        raise SnapshotError(f"is cut short: {missing:,} bytes are missing")
    if missing < 0:
        raise SnapshotError(f"is damaged: it has {-missing:,} bytes too many")
    state = _checked(file, header["state"])
    strings = [_checked(file, part) for part in header["strings"]]

    def value(found: dict[str, Any]) -> Any:
        if len(found) == 1:
            if _BLOB in found:
                return strings[found[_BLOB]]
            if _INLINE in found:
                return bytes.fromhex(found[_INLINE])
        return found

    times, trees = json.loads(state, object_hook=value)
    return Saved(
        header["recipe"],
        {name: strings[number] for name, number in header["blobs"].items()},
        Snapshot(_times(times), [condensed(tree) for tree in trees], _images(file, memory)),
    )


def _times(found: Any) -> Times:
    tsc, own, theirs = found
    if any(type(number) is not int for number in (tsc, *own, *theirs)) or len(own) != 2 or len(theirs) != 2:
        raise ValueError("times are three numbers and two pairs")
    return tsc, own, theirs


def _checked(file: BinaryIO, part: Any) -> bytes:
    data = file.read(part["length"])
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        raise SnapshotError("is damaged: a part of it is not what was written")
    return data


def _images(file: BinaryIO, memory: Any) -> dict[tuple[int, str], Image]:
    images = {}
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    for one in memory["images"]:
        blocks = [(int(offset), int(length)) for offset, length in one["blocks"]]
        if any(offset < 0 or length <= 0 or offset % PAGE_SIZE for offset, length in blocks):
            raise ValueError("a block is not possible")
        end = max((offset + length for offset, length in blocks), default=0)
        image = images[int(one["object"]), str(one["name"])] = Image.empty(end, blocks)
        for offset, length in one["extents"]:
            if offset + length > end:
                raise ValueError("an extent lies outside the memory")
            done = 0
            while done < length:
                view = memoryview(buffer)[: min(_CHUNK, length - done)]
                if file.readinto(view) != len(view):  # type: ignore[attr-defined]
                    raise SnapshotError("is cut short")
                digest.update(view)
                os.pwrite(image.memfd, view, offset + done)
                done += len(view)
    if digest.hexdigest() != memory["sha256"]:
        raise SnapshotError("is damaged: the memory in it is not what was written")
    return images
