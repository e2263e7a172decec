# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether two names mean the same file, however they were written, and whether a file is in use.

A file is its device and inode, so that symbolic links, hard links and ``/dev/fd/3`` are seen through.  A block device
is its device number, and covers what lies below it: the partitions of a disk, the file behind a loop device, the
devices below a device mapper's.
"""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_SYS_BLOCK = Path("/sys/dev/block")

# struct flock of x86-64 Linux: l_type, l_whence, l_start, l_len, l_pid; a length of 0 means to the end of the file.
_FLOCK = struct.Struct("@hhqqi4x")

_Key = tuple[str, int, int]


@dataclass(frozen=True)
class FileIdentity:
    """What a name or descriptor stands for."""

    own: _Key
    covers: frozenset[_Key]
    stores: bool
    """Whether it keeps what is written at a place of its own: two writers would overwrite each other."""
    is_pipe: bool

    @classmethod
    def of(cls, file: Path | int) -> FileIdentity:
        """Of a path or an open descriptor. Raises OSError."""
        status = os.stat(file)
        if stat.S_ISBLK(status.st_mode):
            own = _block(status.st_rdev)
            return cls(own, frozenset({own, *_below(status.st_rdev)}), True, False)
        if stat.S_ISCHR(status.st_mode):
            own = ("character device", os.major(status.st_rdev), os.minor(status.st_rdev))
        else:
            own = ("file", status.st_dev, status.st_ino)
        return cls(own, frozenset({own}), stat.S_ISREG(status.st_mode), stat.S_ISFIFO(status.st_mode))

    def overlaps(self, other: FileIdentity) -> bool:
        """Return whether both are the same file, or one lies within the other."""
        return self.own in other.covers or other.own in self.covers


def _block(device: int) -> _Key:
    return ("block device", os.major(device), os.minor(device))


def _below(device: int) -> set[_Key]:
    """Return what a block device covers beside itself, as far as sysfs tells."""
    found: set[_Key] = set()
    folder = Path(os.path.realpath(_SYS_BLOCK / f"{os.major(device)}:{os.minor(device)}"))
    with suppress(OSError):
        for partition in folder.glob("*/partition"):
            found.add(_block(_number(partition.parent)))
        for slave in folder.glob("slaves/*"):
            found |= {_block(_number(slave)), *_below(_number(slave))}
    for backing in (folder / "loop/backing_file", folder.parent / "loop/backing_file"):  # the latter of a partition
        with suppress(OSError):
            status = os.stat(backing.read_text().rstrip("\n"))
            found.add(("file", status.st_dev, status.st_ino))
    return found


def _number(folder: Path) -> int:
    """Return the device number of a device's folder in sysfs. Raises OSError."""
    major, _, minor = (folder / "dev").read_text().strip().partition(":")
    return os.makedev(int(major), int(minor))


def in_use(descriptor: int) -> bool:
    """Return whether a process holds a lock on the file, as swtdx (flock) and QEMU (OFD locks) do on disk images.

    Otherwise the caller has the flock until it closes the descriptor.
    """
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        if _FLOCK.unpack(answer)[0] != fcntl.F_UNLCK:
            return True
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    return False
