# SPDX-License-Identifier: GPL-2.0-or-later
"""Formats in which an image may be wrapped, by what their files begin with, and the command that unwraps it.

A wrapped firmware has the metadata of the one inside somewhere, and its MRTD would be that of the wrapping.
"""

from __future__ import annotations

from typing import NamedTuple

LONGEST_HEAD = 0x8006
"""Bytes at the start of a file that decide."""


class Container(NamedTuple):
    """One format; ``unwrap`` has ``{name}`` for the file and ``{stem}`` for its name without the last suffix."""

    offset: int
    magic: bytes
    name: str
    unwrap: str
    of_disks: bool = False
    """A format of disk images, which QEMU opens."""


_CONVERT = "qemu-img convert -O raw {name} {stem}.raw"
_UNPACK = "unpack it first"
CONTAINERS = (
    Container(0, b"QFI\xfb", "qcow2", _CONVERT, True),
    Container(0, b"QED\0", "QED", _CONVERT, True),
    Container(0, b"KDMV", "VMDK", _CONVERT, True),
    Container(0, b"# Disk DescriptorFile", "VMDK", _CONVERT, True),
    Container(0, b"vhdxfile", "VHDX", _CONVERT, True),
    Container(0, b"conectix", "VHD", _CONVERT, True),
    Container(0x40, b"\x7f\x10\xda\xbe", "VDI", _CONVERT, True),
    Container(0, b"\x1f\x8b", "gzip", "gzip -dc {name} >{stem}"),
    Container(0, b"\xfd7zXZ\0", "xz", "xz -dc {name} >{stem}"),
    Container(0, b"\x28\xb5\x2f\xfd", "zstd", "zstd -dc {name} >{stem}"),
    Container(0, b"BZh", "bzip2", "bzip2 -dc {name} >{stem}"),
    Container(0, b"\x04\x22\x4d\x18", "lz4", "lz4 -dc {name} >{stem}"),
    Container(0, b"PK\x03\x04", "zip", "unzip {name}"),
    Container(0, b"7z\xbc\xaf\x27\x1c", "7z", _UNPACK),
    Container(0, b"!<arch>\n", "a Debian package", "dpkg-deb -x {name} FOLDER"),
    Container(0, b"\xed\xab\xee\xdb", "an RPM package", "rpm2cpio {name} | cpio -id"),
    Container(257, b"ustar", "tar", "tar -xf {name}"),
    Container(0x8001, b"CD001", "ISO 9660", _UNPACK),
    Container(0, bytes.fromhex("bd86663b760d3040b70eb5519e2fc5a0"), "a UEFI capsule", _UNPACK),
    Container(0, b"\x7fELF", "ELF", "a firmware image is not a program"),
    Container(0, b"MZ", "PE (an EFI application)", "a firmware image is not a program"),
)


def container_of(head: bytes, *, of_disks: bool = False) -> Container | None:
    """Return the format of a file with this ``head``; None for a plain image. ``of_disks``: only those of QEMU's disks.

    >>> container_of(b"QFI\\xfb" + bytes(60)).name
    'qcow2'
    >>> container_of(bytes(64)) is None
    True
    """
    for each in CONTAINERS:
        if (each.of_disks or not of_disks) and head[each.offset : each.offset + len(each.magic)] == each.magic:
            return each
    return None


def unwrapping(container: Container, name: str) -> str:
    """Return the command that unwraps a file.

    >>> unwrapping(CONTAINERS[0], "fw.qcow2")
    'qemu-img convert -O raw fw.qcow2 fw.raw'
    """
    stem = name.rpartition(".")[0] or f"{name}.unpacked"
    return container.unwrap.format(name=name, stem=stem)
