# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds TDVF images from scratch, rule by rule, for tests that need good ones and bad ones."""

from __future__ import annotations

import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
TDX_OFFSET = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
OTHER = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e").bytes_le

SIZE = 0x10000
BASE = (1 << 32) - SIZE
DESCRIPTOR_AT = SIZE - 0x1000

Row = tuple[int, int, int, int, int, int]  # data offset, raw size, address, memory size, type, attributes

BFV: Row = (0x4000, 0xC000, BASE + 0x4000, 0xC000, 0, 1)
CFV: Row = (0, 0x4000, BASE, 0x4000, 1, 0)
TEMP: Row = (0, 0, 0x80_0000, 0x6000, 3, 0)
HOB: Row = (0, 0, 0x80_9000, 0x2000, 2, 0)
GOOD: tuple[Row, ...] = (BFV, CFV, TEMP, HOB)


@dataclass(frozen=True)
class Image:
    """A description that `build` turns into bytes; `replace` a member to break one rule."""

    rows: Sequence[Row] = GOOD
    size: int = SIZE
    signature: bytes = b"TDVF"
    version: int = 1
    count: int | None = None
    length: int | None = None
    distance: int | None = None
    footer: bytes = FOOTER
    entry_guid: bytes = TDX_OFFSET
    entry_length: int = 22
    table_length: int | None = None
    content: bytes = field(default=b"\x90")

    def build(self) -> bytes:
        """The image's bytes."""
        image = bytearray(self.content * self.size)[: self.size]
        count = len(self.rows) if self.count is None else self.count
        length = 16 + 32 * len(self.rows) if self.length is None else self.length
        table = struct.pack("<4sIII", self.signature, length, self.version, count)
        table += b"".join(struct.pack("<IIQQII", *row) for row in self.rows)
        at = self.size - 0x1000
        image[at : at + len(table)] = table
        distance = 0x1000 if self.distance is None else self.distance
        entries = struct.pack("<I", distance) + struct.pack("<H", self.entry_length) + self.entry_guid
        entries += struct.pack("<I", 0xDEAD) + struct.pack("<H", 22) + OTHER
        total = len(entries) + 18 if self.table_length is None else self.table_length
        tail = entries + struct.pack("<H", total) + self.footer
        image[self.size - 32 - len(tail) : self.size - 32] = tail
        return bytes(image)


def image_with(**changes: object) -> bytes:
    """`Image` with some members replaced."""
    return replace(Image(), **changes).build()  # type: ignore[arg-type]
