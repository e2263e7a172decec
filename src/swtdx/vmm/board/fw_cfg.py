# SPDX-License-Identifier: GPL-2.0-or-later
"""fw_cfg: QEMU's channel from VMM to firmware, at I/O ports 0x510 to 0x51b (QEMU, docs/specs/fw_cfg.rst).

Firmware selects an item by a 16-bit key and reads it byte by byte at the data port, or has it copied by a DMA control
structure in (shared) guest memory whose address it writes big-endian to the DMA register.  Named files are listed in
the file directory item.  Nothing is writable here, which the interface answers by its error bit.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from enum import IntFlag
from typing import TYPE_CHECKING, Protocol

from swtdx.image.fw_cfg_items import Key, linux_items, standard_items
from swtdx.image.memory_map import MemoryMap
from swtdx.vmm.board.bus import PortBus

if TYPE_CHECKING:
    from swtdx.image.linux_image import LinuxBoot

SELECTOR_PORT = 0x510
DATA_PORT = 0x511
DMA_PORT = 0x514  # 8 bytes, big-endian

_DMA_SIGNATURE = b"QEMU CFG"
_DMA_ACCESS = struct.Struct(">IIQ")  # control, length, address
_DIRECTORY_ENTRY = struct.Struct(">IHH56s")  # size, key, reserved, name
_FIRST_FILE = 0x20
_WRITE_CHANNEL = 0x4000  # set in a key: the (obsolete) write side of the item


class DmaControl(IntFlag):
    """Bits of the control word; on SELECT the key is in the upper 16 bits."""

    ERROR = 1
    READ = 2
    SKIP = 4
    SELECT = 8
    WRITE = 16


class GuestMemoryAccess(Protocol):
    """Memory as a bus master of the board sees it: for a TD, only what the guest shares."""

    def read(self, gpa: int, length: int) -> bytes: ...

    def write(self, gpa: int, data: bytes) -> None: ...


class FwCfg:
    """The device. ``files`` maps names (at most 55 bytes) to contents. Memory accesses may raise `ValueError`."""

    def __init__(self, ports: PortBus, memory: GuestMemoryAccess, cpus: int, layout: MemoryMap,
                 files: Mapping[str, bytes], linux: LinuxBoot | None = None) -> None:  # fmt: skip
        self._memory = memory
        self._items = standard_items(layout, cpus)
        if linux is not None:
            self._items.update(linux_items(linux))
        self.set_files(files)
        self._current = self._items[Key.SIGNATURE]
        self._offset = 0
        self._dma_address = 0
        ports.attach([SELECTOR_PORT], None, self._write_selector)
        ports.attach([DATA_PORT], self._read_data, None)
        ports.attach(range(DMA_PORT, DMA_PORT + 8), self._read_dma, self._write_dma)

    def set_files(self, files: Mapping[str, bytes]) -> None:
        """Put other files in place of those that were there, under the same names: their keys follow from them."""
        directory = [len(files).to_bytes(4, "big")]
        for key, (name, contents) in enumerate(sorted(files.items()), _FIRST_FILE):
            if len(name.encode()) > 55:
                raise ValueError(f"fw_cfg file name {name!r} is longer than 55 bytes")
            self._items[key] = contents
            directory.append(_DIRECTORY_ENTRY.pack(len(contents), key, 0, name.encode()))
        self._items[Key.FILE_DIR] = b"".join(directory)

    def _select(self, key: int) -> None:
        # The writable side of an item holds nothing.
        self._current = b"" if key & _WRITE_CHANNEL else self._items.get(key, b"")
        self._offset = 0

    def _write_selector(self, port: int, size: int, value: int) -> None:
        if size == 2:
            self._select(value)

    def _read_data(self, port: int, size: int) -> int:
        offset = self._offset
        self._offset = offset + 1
        return self._current[offset] if offset < len(self._current) else 0

    def _read_dma(self, port: int, size: int) -> int:
        offset = port - DMA_PORT
        return int.from_bytes(_DMA_SIGNATURE[offset : offset + size], "little")

    def _write_dma(self, port: int, size: int, value: int) -> None:
        if size != 4 or port % 4:
            return
        value = int.from_bytes(value.to_bytes(4, "little"), "big")
        if port == DMA_PORT:
            self._dma_address = value << 32
            return
        address = self._dma_address | value
        self._dma_address = 0
        self._dma(address)

    def _dma(self, address: int) -> None:
        try:
            control, length, target = _DMA_ACCESS.unpack(self._memory.read(address, _DMA_ACCESS.size))
        except ValueError:
            return  # no memory there: there is no place to report it either
        if control & DmaControl.SELECT:
            self._select(control >> 16)
        result = 0
        try:
            if control & DmaControl.READ:
                piece = self._current[self._offset : self._offset + length]
                self._memory.write(target, piece)
                self._fill_with_zeroes(target + len(piece), length - len(piece))
                self._offset += length
            elif control & DmaControl.WRITE:
                result = int(DmaControl.ERROR)
            elif control & DmaControl.SKIP:
                self._offset += length
        except ValueError:
            result = int(DmaControl.ERROR)
        self._memory.write(address, result.to_bytes(4, "big"))

    def _fill_with_zeroes(self, address: int, length: int) -> None:
        """Reads beyond an item's end give zeroes; ``length`` is the guest's word, so do it in bounded pieces."""
        while length > 0:
            piece = min(length, 1 << 20)
            self._memory.write(address, bytes(piece))
            address += piece
            length -= piece
