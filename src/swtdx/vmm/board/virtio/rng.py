# SPDX-License-Identifier: GPL-2.0-or-later
"""virtio-rng: the host's random bytes (virtio 1.2, 5.4)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar

from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.board.virtio.ring import Chain, RingError

MAXIMUM_PER_CHAIN = 64 << 10
"""Bytes. A driver gets at least one, and asks again if it wants more than it got."""


class VirtioRng(VirtioDevice):
    """An entropy source."""

    name: ClassVar[str] = "virtio-rng"
    device_id: ClassVar[int] = 4
    class_code: ClassVar[int] = 0x00FF00  # QEMU's: a device of no class
    queue_count: ClassVar[int] = 1

    def __init__(self, random: Callable[[int], bytes] = os.urandom) -> None:
        super().__init__()
        self._random = random

    def handle(self, number: int, chain: Chain) -> int:
        if chain.readable or not chain.writable:
            raise RingError("a request for random bytes must have only buffers to be written")
        written = 0
        for buffer in chain.writable:
            piece = buffer[: MAXIMUM_PER_CHAIN - written]
            piece[:] = self._random(len(piece))
            written += len(piece)
        return written
