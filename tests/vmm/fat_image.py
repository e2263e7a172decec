# SPDX-License-Identifier: GPL-2.0-or-later
"""A FAT12 floppy image of 1.44 MB with files in its root, by hand (Microsoft FAT specification 1.03)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

SECTOR = 512
SECTORS = 2880
ROOT_ENTRIES = 224
FAT_SECTORS = 9
DATA_START = 1 + 2 * FAT_SECTORS + ROOT_ENTRIES * 32 // SECTOR
END_OF_CHAIN = 0xFFF


def fat12_image(files: Mapping[str, bytes], label: str = "SWTDX") -> bytes:
    """``files``: names in 8.3 form, upper case, and contents."""
    boot = struct.pack("<3s8sHBHBHHBHHHII", b"\xeb\x3c\x90", b"swtdx   ", SECTOR, 1, 1, 2, ROOT_ENTRIES, SECTORS, 0xF0,
                       FAT_SECTORS, 18, 2, 0, 0)  # fmt: skip
    boot += struct.pack("<BBBI11s8s", 0, 0, 0x29, 0x1234ABCD, label.ljust(11).encode(), b"FAT12   ")
    chain = [0xFF0, END_OF_CHAIN]
    root = label.ljust(11).encode() + b"\x08" + bytes(20)
    data = b""
    for name, contents in files.items():
        stem, _, extension = name.partition(".")
        clusters = (len(contents) + SECTOR - 1) // SECTOR
        first = len(chain) if clusters else 0
        chain += [*range(first + 1, first + clusters), END_OF_CHAIN] if clusters else []
        short = f"{stem:<8}{extension:<3}".encode()
        root += short + b"\x20" + bytes(14) + struct.pack("<HI", first, len(contents))
        data += contents.ljust(clusters * SECTOR, b"\0")
    table = bytearray()
    for low, high in zip(chain[::2], [*chain[1::2], 0], strict=False):
        table += (low | high << 12).to_bytes(3, "little")
    fat = bytes(table).ljust(FAT_SECTORS * SECTOR, b"\0")
    root = root.ljust(ROOT_ENTRIES * 32, b"\0")
    image = boot.ljust(510, b"\0") + b"\x55\xaa" + fat + fat + root + data
    return image.ljust(SECTORS * SECTOR, b"\0")
