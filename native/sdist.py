# SPDX-License-Identifier: GPL-2.0-or-later
"""Pack a source archive again so that equal files make an equal archive.

``python native/sdist.py ARCHIVE SECONDS``: setuptools writes the times, owners and rights that files have in the
checkout, and the time of the packing. Here all have the time that is given (since 1970, as in $SOURCE_DATE_EPOCH), no
owner, two kinds of rights, and the order of their names.
"""

from __future__ import annotations

import gzip
import io
import sys
import tarfile
from pathlib import Path


def packed_again(archive: bytes, seconds: int) -> bytes:
    """Return the archive (tar.gz) with nothing in it that differs from checkout to checkout."""
    result = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as given,
        gzip.GzipFile(filename="", mode="wb", fileobj=result, mtime=seconds) as stream,
        tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as made,
    ):
        for member in sorted(given.getmembers(), key=lambda each: each.name):
            clean = tarfile.TarInfo(member.name)
            clean.type, clean.size, clean.linkname, clean.mtime = member.type, member.size, member.linkname, seconds
            clean.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            made.addfile(clean, given.extractfile(member) if member.isfile() else None)
    return result.getvalue()


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_bytes(packed_again(path.read_bytes(), int(sys.argv[2])))
