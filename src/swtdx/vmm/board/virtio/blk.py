# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-blk: a disk in a file (virtio 1.2, 5.2).

A request is a header, data, and a status byte, in however many buffers the driver likes.  Data goes between the file
and guest memory without a copy.  The file's page cache is the disk's write cache: a driver that accepts
VIRTIO_BLK_F_FLUSH says when it must reach the medium.
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import ClassVar, Protocol

from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.board.virtio.ring import MAXIMUM_QUEUE_SIZE, Chain, RingError

SECTOR_SIZE = 512
VIRTIO_BLK_F_SEG_MAX = 1 << 2
VIRTIO_BLK_F_RO = 1 << 5
VIRTIO_BLK_F_BLK_SIZE = 1 << 6
VIRTIO_BLK_F_FLUSH = 1 << 9

MAXIMUM_REQUEST = 1 << 30
"""Bytes. UEFI's driver asks for at most that; a chain may name all of memory a thousand times."""

ID_SIZE = 20
_HEADER = struct.Struct("<I4xQ")  # type, sector
_CONFIG = struct.Struct("<QII4xI")  # capacity in sectors, size_max, seg_max, geometry, block size
_CONFIG_SIZE = 60


class Request(IntEnum):
    IN = 0
    OUT = 1
    FLUSH = 4
    GET_ID = 8


class BlkStatus(IntEnum):
    OK = 0
    IOERR = 1
    UNSUPP = 2


class Disk(Protocol):
    """What the device stores its sectors in. ``size`` in bytes, a multiple of 512; ``label`` is its serial number.

    The methods may raise OSError.
    """

    path: str
    size: int
    read_only: bool
    label: str

    def read_into(self, buffers: list[memoryview], offset: int) -> None: ...

    def write_from(self, buffers: list[memoryview], offset: int) -> None: ...

    def flush(self) -> None: ...


class VirtioBlk(VirtioDevice):
    """A disk."""

    name: ClassVar[str] = "virtio-blk"
    device_id: ClassVar[int] = 2
    class_code: ClassVar[int] = 0x010000  # mass storage, SCSI: QEMU's
    queue_count: ClassVar[int] = 1

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._capacity = disk.size // SECTOR_SIZE
        self.features = VIRTIO_BLK_F_SEG_MAX | VIRTIO_BLK_F_BLK_SIZE | VIRTIO_BLK_F_FLUSH
        if disk.read_only:
            self.features |= VIRTIO_BLK_F_RO
        segments = MAXIMUM_QUEUE_SIZE - 2  # a chain has a header and a status too
        self.config = _CONFIG.pack(self._capacity, 0, segments, SECTOR_SIZE).ljust(_CONFIG_SIZE, b"\0")

    def as_json(self) -> dict[str, object]:
        return {
            **super().as_json(),
            "image": self._disk.path,
            "size": self._disk.size,
            "read_only": self._disk.read_only,
        }

    def handle(self, number: int, chain: Chain) -> int:
        header, data_out = _split_front(chain.readable, _HEADER.size)
        if len(header) < _HEADER.size or not chain.writable:
            raise RingError("a disk request lacks its header or its status byte")
        last = chain.writable[-1]
        data_in, status = [*chain.writable[:-1], last[:-1]], last[-1:]
        if not len(data_in[-1]):
            del data_in[-1]
        kind, sector = _HEADER.unpack(header)
        result, written = self._carry_out(kind, sector, data_out, data_in)
        status[0] = result
        return written + 1

    def _carry_out(
        self, kind: int, sector: int, data_out: list[memoryview], data_in: list[memoryview]
    ) -> tuple[BlkStatus, int]:
        """Returns the status, and how many bytes of ``data_in`` were filled."""
        try:
            if kind == Request.IN:
                length = self._length(sector, data_in)
                if length is None:
                    return BlkStatus.IOERR, 0
                self._disk.read_into(data_in, sector * SECTOR_SIZE)
                return BlkStatus.OK, length
            if kind == Request.OUT:
                if self._disk.read_only or self._length(sector, data_out) is None:
                    return BlkStatus.IOERR, 0
                self._disk.write_from(data_out, sector * SECTOR_SIZE)
                return BlkStatus.OK, 0
            if kind == Request.FLUSH:
                self._disk.flush()
                return BlkStatus.OK, 0
        except OSError as error:
            self.transport.report(f"{self._disk.label}: {error.strerror or error}; the guest sees an I/O error")
            return BlkStatus.IOERR, 0
        if kind == Request.GET_ID:
            text = self._disk.label.encode()[:ID_SIZE].ljust(ID_SIZE, b"\0")
            return BlkStatus.OK, _fill(data_in, text)
        return BlkStatus.UNSUPP, 0

    def _length(self, sector: int, buffers: list[memoryview]) -> int | None:
        """How many bytes a transfer has; None if it is not whole sectors of this disk, or too much at once."""
        length = sum(len(buffer) for buffer in buffers)
        if length % SECTOR_SIZE or length > MAXIMUM_REQUEST or sector + length // SECTOR_SIZE > self._capacity:
            return None
        return length


def _split_front(buffers: list[memoryview], length: int) -> tuple[bytes, list[memoryview]]:
    """The first ``length`` bytes (fewer if there are not so many), and what follows them."""
    front, rest = bytearray(), []
    for buffer in buffers:
        wanted = length - len(front)
        front += buffer[:wanted]
        if len(buffer) > wanted:
            rest.append(buffer[wanted:])
    return bytes(front), rest


def _fill(buffers: list[memoryview], text: bytes) -> int:
    """Put ``text`` into the buffers, as far as they reach. Returns how much that was."""
    done = 0
    for buffer in buffers:
        piece = text[done : done + len(buffer)]
        buffer[: len(piece)] = piece
        done += len(piece)
    return done
