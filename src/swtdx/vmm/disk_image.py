# SPDX-License-Identifier: GPL-2.0-or-later
"""A raw disk image: a file, or a block device, whose bytes are the disk's.

The file is locked while it is in use, as QEMU does it, so that two machines cannot both write to it: readers share it,
a writer has it alone.  What only looks like a raw image, because it is the container of another program, is refused;
to the guest it would be a disk of garbage.  ``format=raw`` insists.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from swtdx.image.container import LONGEST_HEAD, container_of, unwrapping

SECTOR_SIZE = 512


_AS_HERE = ("if=virtio", "if=none", "media=disk", "readonly=off", "read-only=off", "index=0")
"""What QEMU's -drive may say beside that, and is so here anyway."""


class DiskError(Exception):
    """An image cannot be used; the text is one sentence for a person."""


@dataclass(frozen=True)
class DiskSpec:
    """What was asked for. ``raw``: the format was named, so the contents are not looked at.

    ``serial``: what the guest reads as the disk's serial number; None: the file's name.
    """

    path: Path
    read_only: bool = False
    raw: bool = False
    serial: str | None = None


def parse_disk(text: str) -> DiskSpec:
    """Return what ``FILE[,ro][,format=raw][,serial=TEXT]`` says. Raises DiskError.

    A comma in a name is written twice, as for QEMU. QEMU's spelling is taken too:
    ``file=FILE,readonly=on,format=raw,if=virtio``.
    """
    name, *words = text.replace(",,", "\0").split(",")
    named = [each for each in (name, *words) if each.startswith("file=")]
    if named:
        words = [each for each in (name, *words) if each is not named[0]]
        name = named[0].removeprefix("file=")
    if not name:
        raise DiskError(f"--disk {text!r} names no file: write it as in --disk disk.img,ro")
    read_only = raw = False
    serial = None
    for word in words:
        if word in ("ro", "readonly=on", "readonly", "read-only=on"):
            read_only = True
        elif word in _AS_HERE:
            continue
        elif word == "format=raw":
            raw = True
        elif word.startswith("serial="):
            serial = word.removeprefix("serial=").replace("\0", ",")
        elif word.startswith("format="):
            raise DiskError(f"--disk {text}: the only format there is is raw (qemu-img convert -O raw makes one)")
        else:
            raise DiskError(f"--disk {text}: {word!r} is neither ro, format=raw, serial=TEXT, nor file=FILE")
    return DiskSpec(Path(name.replace("\0", ",")), read_only, raw, serial)


class DiskImage:
    """An image that is open. ``size`` in bytes; ``label``: its serial number. A context manager."""

    def __init__(self, descriptor: int, size: int, read_only: bool, path: Path, serial: str | None = None) -> None:
        self.descriptor = descriptor
        self.size = size
        self.read_only = read_only
        self.path = str(path)
        self.label = path.name if serial is None else serial

    def __enter__(self) -> DiskImage:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file, and of the lock on it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def read_into(self, buffers: list[memoryview], offset: int) -> None:
        """Fill ``buffers`` from ``offset`` (bytes) on. Raises OSError, also if the file has become shorter."""
        while buffers:
            done = os.preadv(self.descriptor, buffers, offset)
            if not done:
                raise OSError(errno.EIO, "the image file has become shorter than it was")
            offset += done
            buffers = _after(buffers, done)

    def write_from(self, buffers: list[memoryview], offset: int) -> None:
        """Store ``buffers`` from ``offset`` on. Raises OSError."""
        while buffers:
            done = os.pwritev(self.descriptor, buffers, offset)
            if not done:
                raise OSError(errno.EIO, "the image file takes no more")
            offset += done
            buffers = _after(buffers, done)

    def flush(self) -> None:
        """Have all that was written reach the medium. Raises OSError."""
        if not self.read_only:
            os.fdatasync(self.descriptor)


def open_disk(spec: DiskSpec) -> DiskImage:
    """Open and lock an image. Raises DiskError for a file that cannot be used as a raw image."""
    path = spec.path
    access = os.O_RDONLY if spec.read_only else os.O_RDWR
    try:
        if path.is_dir():
            raise DiskError(f"the disk image {path} is a folder")
        descriptor = os.open(path, access | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO would wait for its other end
    except OSError as error:
        raise DiskError(_why_not_open(spec, error)) from None
    try:
        return DiskImage(descriptor, _checked_size(descriptor, spec), spec.read_only, path, spec.serial)
    except BaseException:
        os.close(descriptor)
        raise


def _why_not_open(spec: DiskSpec, error: OSError) -> str:
    if not spec.read_only and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and os.access(spec.path, os.R_OK):
        return f"the disk image {spec.path} is read-only: write --disk {spec.path},ro"
    return f"the disk image {spec.path} cannot be opened: {error.strerror}"


def _checked_size(descriptor: int, spec: DiskSpec) -> int:
    path = spec.path
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
        raise DiskError(f"the disk image {path} is neither a file nor a block device")
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if spec.read_only else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise DiskError(f"the disk image {path} is in use by another machine") from None
    except OSError:
        pass  # a file system without locks
    size = os.lseek(descriptor, 0, os.SEEK_END)
    if not size:
        raise DiskError(f"the disk image {path} is empty")
    try:
        start = b"" if spec.raw else os.pread(descriptor, LONGEST_HEAD, 0)
    except OSError as error:
        raise DiskError(f"the disk image {path} cannot be read: {error.strerror}") from None
    container = container_of(start, of_disks=True)
    if container is not None:
        raise DiskError(
            f"the disk image {path} is in the format {container.name}: {unwrapping(container, str(path))} makes a raw "
            f"image of it (--disk {path},format=raw takes it as it is)"
        )
    if size % SECTOR_SIZE:
        raise DiskError(f"the disk image {path} is truncated: {size} bytes is not a multiple of {SECTOR_SIZE}")
    return size


def _after(buffers: list[memoryview], done: int) -> list[memoryview]:
    """What is left of ``buffers`` when ``done`` bytes of them are dealt with."""
    for number, buffer in enumerate(buffers):
        if done < len(buffer):
            return [buffer[done:], *buffers[number + 1 :]]
        done -= len(buffer)
    return []
