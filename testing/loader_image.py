# SPDX-License-Identifier: GPL-2.0-or-later
"""Builds boot loaders as far as predictions look at them, and the partition table of a disk, from their sources.

None of the executables can run. GRUB: include/grub/kernel.h; shim: cert.S, sbat_var.S, data.ident; UEFI: 5.3.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from uuid import UUID

from testing.uefi_image import executable

SECTOR = 512


def module(name: str) -> bytes:
    """An ELF object whose section .modname has the name of a GRUB module."""
    strings = b"\0.shstrtab\0.modname\0"
    contents = name.encode() + b"\0"
    table = 64 + len(strings) + len(contents)
    header = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    header += struct.pack("<HHIQQQIHHHHHH", 1, 62, 1, 0, 0, table, 0, 64, 0, 0, 64, 3, 1)
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 1, 3, 0, 0, 64, len(strings), 0, 0, 1, 0)
    sections += struct.pack("<IIQQQQIIQQ", 11, 1, 0, 0, 64 + len(strings), len(contents), 0, 0, 1, 0)
    return header + strings + contents + sections


def grub(
    prefix: str = "/EFI/debian", modules: Sequence[str] = ("tpm", "part_gpt"), version: str = "2.14", config: str = ""
) -> bytes:
    """GRUB's EFI executable: modules, the prefix, a configuration of its own, SBAT entries."""

    def made(kind: int, contents: bytes) -> bytes:
        contents += bytes(-len(contents) % 8)
        return struct.pack("<II", kind, 8 + len(contents)) + contents

    objects = b"".join(made(0, module(name)) for name in modules) + made(3, prefix.encode() + b"\0")
    if config:
        objects += made(2, config.encode() + b"\0")
    mods = struct.pack("<4s4xQQ", b"mimg", 24, 24 + len(objects)) + objects
    sbat = f"sbat,1,SBAT Version,sbat,1,https://example.com\ngrub,5,Free Software Foundation,grub,{version},https://e.com\n"
    return executable([(".text", b"grub"), ("mods", mods), (".sbat", sbat.encode())])


def shim(vendor: bytes = b"\x30certificate", revoked: bytes = b"", level: bytes = b"sbat,1,2025\nshim,4\n") -> bytes:
    """Shim with a vendor's certificate and revocations, and the level that it sets by itself."""
    table = struct.pack("<4I", len(vendor), len(revoked), 16, 16 + len(vendor)) + vendor + revoked
    levels = struct.pack("<III", 0, 8, 8 + len(level) + 1) + level + b"\0" + b"sbat,1,2099\n\0"
    ident = b"UEFI SHIM\n$Version: 16.1 $\n"
    names = b"\0\0\0\0.data.ident\0.sbatlevel\0.vendor_cert\0"
    image = executable([(".text", b"shim"), ("/4", ident), ("/16", levels), ("/27", table)])
    pe = struct.unpack_from("<I", image, 0x3C)[0]
    return image[: pe + 12] + struct.pack("<II", len(image), 0) + image[pe + 20 :] + names


def partitioned(*partitions: UUID, disk: int = 7) -> bytes:
    """The first sectors of a disk with these partitions in a table of 128 entries."""
    entries = b"".join(
        UUID(int=1).bytes_le
        + each.bytes_le
        + struct.pack("<QQQ", 2048, 4095, 0)
        + "esp".encode("utf-16-le").ljust(72, b"\0")
        for each in partitions
    ).ljust(128 * 128, b"\0")
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII", b"EFI PART", 0x10000, 92, 0, 0, 1, 9999, 34, 9000, UUID(int=disk).bytes_le, 2, 128, 128, 0
    )
    return bytes(SECTOR) + header.ljust(SECTOR, b"\0") + entries
