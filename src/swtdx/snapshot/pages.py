# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is kept and given back page by page, in place.

`Region` is a private anonymous mapping of this process: the machine's RAM, or user memory behind a slot. To keep it,
what is in it is copied once into a memfd, which is then mapped over it, private: the first write to a page makes a copy
of that page, and nothing else. To give it back the copies are discarded (MADV_DONTNEED), so that the cost follows from
what was written since. Which pages these are the kernel says (PAGEMAP_SCAN of Linux 6.7, else /proc/self/pagemap): a
page of a private mapping that is no longer the file's. Addresses do not change, so what points into the memory
still does.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

PAGE_SIZE = 4096
_BLOCK = 2 << 20
"""What is mapped over the memory consists of such blocks: a process may have 65,530 mappings, and few are quick."""
_MAP_FIXED = 0x10
_MAP_NORESERVE = 0x4000

_libc = ctypes.CDLL(None, use_errno=True)
_mmap, _madvise = _libc.mmap, _libc.madvise
_mmap.restype = ctypes.c_size_t
_mmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)

# struct pm_scan_arg and enumeration of linux/fs.h
_SCAN_ARG = struct.Struct("<12Q")
_SCAN_REGION = struct.Struct("<3Q")
_PAGEMAP_SCAN = 3 << 30 | _SCAN_ARG.size << 16 | ord("f") << 8 | 16
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_SCAN_VECTOR = 4096
_READ_PAGES = 1 << 16
# bits of an entry of /proc/PID/pagemap
_PAGEMAP_FILE, _PAGEMAP_USED = 1 << 61, 3 << 62

Extent = tuple[int, int]
"""(offset, length) in bytes, whole pages."""


def _merged(extents: Iterable[Extent], unit: int = PAGE_SIZE) -> list[Extent]:
    """Return ascending extents rounded out to multiples of ``unit``, those that touch as one."""
    merged: list[Extent] = []
    for offset, length in extents:
        start, end = offset & -unit, offset + length + unit - 1 & -unit
        if merged and start <= merged[-1][0] + merged[-1][1]:
            start = merged[-1][0]
            end = max(end, start + merged[-1][1])
            merged[-1] = (start, end - start)
        else:
            merged.append((start, end - start))
    return merged


def _scan(pagemap: int, start: int, end: int) -> Iterator[Extent]:
    """Yield (address, length) of own pages in [start, end). Raises OSError where the kernel has no PAGEMAP_SCAN."""
    vector = (ctypes.c_char * (_SCAN_VECTOR * _SCAN_REGION.size))()
    own = _IS_FILE | _IS_ZERO  # neither: inverted, and both asked for
    while start < end:
        arg = bytearray(
            _SCAN_ARG.pack(
                _SCAN_ARG.size, 0, start, end, 0, ctypes.addressof(vector), _SCAN_VECTOR, 0, own, own,
                _IS_PRESENT | _IS_SWAPPED, 0,
            )
        )  # fmt: skip
        count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, arg)
        for index in range(count):
            first, last, _ = _SCAN_REGION.unpack_from(vector, index * _SCAN_REGION.size)
            yield first, last - first
        walked = _SCAN_ARG.unpack(arg)[4]
        if walked <= start:
            return
        start = walked


def _read_pagemap(pagemap: int, start: int, end: int) -> Iterator[Extent]:
    """As `_scan`, and pages of zeros that were only read, by what every kernel has."""
    nothing = bytes(PAGE_SIZE)
    step = _READ_PAGES * PAGE_SIZE
    for address in range(start, end, step):
        data = os.pread(pagemap, 8 * (min(step, end - address) // PAGE_SIZE), address // PAGE_SIZE * 8)
        for place in range(0, len(data), PAGE_SIZE):
            piece = data[place : place + PAGE_SIZE]
            if piece == nothing[: len(piece)]:
                continue
            for index, entry in enumerate(array("Q", piece), place // 8):
                if entry & _PAGEMAP_USED and not entry & _PAGEMAP_FILE:
                    yield address + index * PAGE_SIZE, PAGE_SIZE


def own_pages(start: int, end: int) -> list[Extent]:
    """Return (address, length) of the pages of a private mapping that this process has written, ascending."""
    pagemap = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            return _merged(_scan(pagemap, start, end))
        except OSError:
            return _merged(_read_pagemap(pagemap, start, end))
    finally:
        os.close(pagemap)


def address_of(mapping: mmap.mmap) -> int:
    """Return where a mapping is. The ctypes object holds the buffer only here, so that it can be closed later."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


@dataclass(eq=False)
class Image:
    """What was in a region: the blocks that had anything, in a memfd at the same offsets. All else was zero."""

    memfd: int
    blocks: list[Extent]

    @classmethod
    def empty(cls, length: int, blocks: list[Extent]) -> Image:
        """Return an image of ``length`` bytes in which nothing is written yet. Raises OSError."""
        memfd = os.memfd_create("swtdx-snapshot", os.MFD_CLOEXEC)
        try:
            os.ftruncate(memfd, length)
        except OSError:
            os.close(memfd)
            raise
        return cls(memfd, blocks)

    def data(self) -> list[Extent]:
        """Return where something was written."""
        extents = []
        offset = 0
        with contextlib.suppress(OSError):  # ENXIO: no data behind offset
            while True:
                start = os.lseek(self.memfd, offset, os.SEEK_DATA)
                offset = os.lseek(self.memfd, start, os.SEEK_HOLE)
                extents.append((start, offset - start))
        return extents

    def close(self) -> None:
        """Give the memory up. A region that shows it keeps it."""
        if self.memfd >= 0:
            os.close(self.memfd)
            self.memfd = -1

    def __del__(self) -> None:
        self.close()


class Region:
    """``length`` bytes at ``address``: a mapping of this process that is private and was anonymous."""

    def __init__(self, address: int, length: int) -> None:
        self.address = address
        self.length = length
        self.shown: Image | None = None
        """What is mapped there; None: nothing, the memory is anonymous."""

    def keep(self) -> Image:
        """Return an image of what is in the memory, which from now on is written beside it."""
        contents = self.contents()
        blocks = [(offset, min(length, self.length - offset)) for offset, length in _merged(contents, _BLOCK)]
        image = Image.empty(self.length, blocks)
        for offset, length in contents:
            self._write(image.memfd, offset, length)
        self._show(image)
        return image

    def contents(self) -> list[Extent]:
        """Return the parts of the memory that may be anything but zero."""
        own = [(address - self.address, length) for address, length in own_pages(self.address, self._end)]
        if self.shown is not None:
            own = _merged(sorted([*own, *self.shown.data()]))
        return own

    def read(self, offset: int, length: int) -> bytes:
        """Return bytes of the memory."""
        return ctypes.string_at(self.address + offset, length)

    def written(self) -> list[Extent]:
        """Return the parts that differ from what is shown, or may."""
        return [(address - self.address, length) for address, length in own_pages(self.address, self._end)]

    def give_back(self, image: Image) -> list[Extent] | None:
        """Have in the memory what was in it; the parts that changed by that, or None: anything may have."""
        if self.shown is not image:
            self._show(image)
            return None
        changed = self.written()
        for offset, length in changed:
            if _madvise(self.address + offset, length, mmap.MADV_DONTNEED):
                raise OSError(ctypes.get_errno(), "memory cannot be discarded")
        return changed

    def clear(self) -> None:
        """Have nothing in the memory but zeros."""
        self.shown = None
        self._map(0, self.length, -1)

    @property
    def _end(self) -> int:
        return self.address + self.length

    def _write(self, memfd: int, offset: int, length: int) -> None:
        view = memoryview((ctypes.c_char * length).from_address(self.address + offset)).cast("B")
        done = 0
        while done < length:
            done += os.pwrite(memfd, view[done:], offset + done)

    def _show(self, image: Image) -> None:
        self.clear()
        for offset, length in image.blocks:
            self._map(offset, length, image.memfd)
        self.shown = image

    def _map(self, offset: int, length: int, memfd: int) -> None:
        flags = mmap.MAP_PRIVATE | _MAP_FIXED | _MAP_NORESERVE | (mmap.MAP_ANONYMOUS if memfd < 0 else 0)
        address, place = self.address + offset, offset if memfd >= 0 else 0
        if _mmap(address, length, mmap.PROT_READ | mmap.PROT_WRITE, flags, memfd, place) != address:
            raise OSError(ctypes.get_errno(), "memory cannot be mapped")
