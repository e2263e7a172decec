# SPDX-License-Identifier: GPL-2.0-or-later
"""An initial RAM disk by hand: cpio in the "newc" format (Linux, driver-api/early-userspace/buffer-format.rst)."""

from __future__ import annotations

from collections.abc import Iterable

DIRECTORY, FILE = 0o040755, 0o100755


def newc(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """An archive of (path, mode, contents)."""
    archive = bytearray()
    for number, (path, mode, contents) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(contents), 0, 0, 0, 0, len(name), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        archive += bytes(-len(archive) % 4) + contents
        archive += bytes(-len(archive) % 4)
    return bytes(archive)
