# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-console with its one port, Linux's hvc0 (virtio 1.2, 5.3, without VIRTIO_CONSOLE_F_MULTIPORT).

Queue 0 takes to the guest what is typed, queue 1 brings what the guest prints.  What is typed before the driver offers
buffers waits.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import ClassVar

from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.board.virtio.ring import Chain, RingError

RECEIVE, TRANSMIT = 0, 1
VIRTIO_CONSOLE_F_SIZE = 1 << 0

MAXIMUM_PRINTED = 1 << 20
"""Bytes of one chain that are printed. Drivers send some KiB; a chain may name all of memory a thousand times."""


class VirtioConsole(VirtioDevice):
    """A console. ``put`` takes what the guest prints. ``size``: columns and rows of the terminal, if known."""

    name: ClassVar[str] = "virtio-console"
    device_id: ClassVar[int] = 3
    class_code: ClassVar[int] = 0x078000  # communication controller, other
    queue_count: ClassVar[int] = 2

    def __init__(self, put: Callable[[bytes], object], size: tuple[int, int] | None = None) -> None:
        self._put = put
        self._typed = bytearray()
        if size is not None:
            self.features = VIRTIO_CONSOLE_F_SIZE
        columns, rows = size or (0, 0)
        self.config = struct.pack("<HHII", columns, rows, 1, 0)

    @property
    def listening(self) -> bool:
        """Whether a driver is there that takes what is typed."""
        return self.transport.running and self.transport.queues[RECEIVE].enabled

    def receive(self, data: bytes) -> None:
        """Take typed bytes. The caller holds the lock of the board."""
        self._typed += data
        self.transport.serve(RECEIVE)

    def started(self) -> None:
        if self.features & VIRTIO_CONSOLE_F_SIZE:
            self.transport.config_changed()  # Linux looks at the size only when told that it has changed

    def ready(self, number: int) -> bool:
        return number == TRANSMIT or bool(self._typed)

    def handle(self, number: int, chain: Chain) -> int:
        return self._to_guest(chain) if number == RECEIVE else self._from_guest(chain)

    def _to_guest(self, chain: Chain) -> int:
        if chain.readable or not chain.writable:
            raise RingError("a buffer for what is typed must be one to be written")
        written = 0
        for buffer in chain.writable:
            piece = bytes(self._typed[: len(buffer)])
            buffer[: len(piece)] = piece
            del self._typed[: len(piece)]
            written += len(piece)
        return written

    def _from_guest(self, chain: Chain) -> int:
        if chain.writable:
            raise RingError("a buffer of what is printed must be one to be read")
        if sum(len(buffer) for buffer in chain.readable) > MAXIMUM_PRINTED:
            self.transport.report(f"the guest printed more than {MAXIMUM_PRINTED} bytes at once; the rest is lost")
        room = MAXIMUM_PRINTED
        for buffer in chain.readable:
            piece = bytes(buffer[:room])
            room -= len(piece)
            if piece:
                self._put(piece)
        return 0
