# SPDX-License-Identifier: GPL-2.0-or-later
"""The device's side of a split virtqueue (virtio 1.2, 2.7).

Three areas in guest memory: the table of descriptors, the driver's ring of chains that it offers, the device's ring of
chains that it has used.  What stands there is an adversary's word.  So every index is checked against the size, a chain
has a maximum of links (which also ends loops), each descriptor is read once, and each buffer must be memory.  What
breaks these rules is a `RingError`, after which the queue is not touched until the driver has reset the device.

Device and driver never run at the same time here: a device does its work within the driver's notification.  So
VIRTIO_F_EVENT_IDX, which saves notifications between two that do run at the same time, would save nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

_DESCRIPTOR = struct.Struct("<QIHH")  # address, length, flags, next
_USED_ELEMENT = struct.Struct("<II")  # head of the chain, bytes written
_NEXT, _WRITE, _INDIRECT = 1, 2, 4
_AVAIL_NO_INTERRUPT = 1
_RING_HEADER = 4  # flags and index, before the entries of both rings

MAXIMUM_QUEUE_SIZE = 256
MAXIMUM_CHAIN = 1024
"""Links in one chain, also with an indirect table; as many pieces as one preadv() takes, and QEMU's limit too."""

NO_VECTOR = 0xFFFF


class RingError(Exception):
    """What the driver wrote into a ring breaks the specification; the text says what, for a person."""


class DmaMemory(Protocol):
    """Memory as a bus master sees it: for a TD, what the guest shares."""

    def view(self, gpa: int, length: int) -> memoryview: ...


@dataclass(frozen=True)
class Chain:
    """Buffers that the driver offers: what the device reads, then what it writes. ``head`` names it when it is used."""

    head: int
    readable: list[memoryview]
    writable: list[memoryview]


Altered = Callable[["Virtqueue", Chain, int, int], tuple[int, int, int]]
"""Takes a chain that was used, the bytes written, the new index; returns the id, length and index that are told."""


class Virtqueue:
    """One queue. The driver sets ``size``, the addresses and ``vector``; then ``enabled``."""

    def __init__(self, memory: DmaMemory, maximum_size: int = MAXIMUM_QUEUE_SIZE) -> None:
        self._memory = memory
        self.maximum_size = maximum_size
        self.altered: Altered | None = None
        """Who says otherwise, of a device that is not to be trusted."""
        self.reset()

    def reset(self) -> None:
        """As after power-on."""
        self.size = self.maximum_size
        self.enabled = False
        self.vector = NO_VECTOR
        self.descriptors = self.driver_area = self.device_area = 0
        self._next_available = 0
        self._used = 0

    @property
    def wants_interrupt(self) -> bool:
        """Whether the driver asks to be told of used chains. Raises RingError."""
        flags, _ = struct.unpack("<HH", self._at(self.driver_area, _RING_HEADER))
        return not flags & _AVAIL_NO_INTERRUPT

    def pop(self) -> Chain | None:
        """The next chain, None if there is none. Raises RingError."""
        _, available = struct.unpack("<HH", self._at(self.driver_area, _RING_HEADER))
        waiting = available - self._next_available & 0xFFFF
        if not waiting:
            return None
        if waiting > self.size:
            raise RingError(f"{waiting} chains are offered in a ring of {self.size}")
        slot = self.driver_area + _RING_HEADER + 2 * (self._next_available % self.size)
        head = int.from_bytes(self._at(slot, 2), "little")
        chain = self._follow(head)
        self._next_available = self._next_available + 1 & 0xFFFF
        return chain

    def push(self, chain: Chain, written: int) -> None:
        """Give a chain back, ``written`` bytes of it having been written. Raises RingError."""
        slot = self.device_area + _RING_HEADER + _USED_ELEMENT.size * (self._used % self.size)
        self._used = self._used + 1 & 0xFFFF
        head, index = chain.head, self._used
        if self.altered is not None:
            head, written, index = self.altered(self, chain, written, index)
        self._at(slot, _USED_ELEMENT.size)[:] = _USED_ELEMENT.pack(head, written & 0xFFFF_FFFF)
        self._at(self.device_area + 2, 2)[:] = index.to_bytes(2, "little")

    def descriptor(self, number: int) -> memoryview:
        """Where a descriptor is that the driver has offered. Raises RingError."""
        return self._at(self.descriptors + _DESCRIPTOR.size * number, _DESCRIPTOR.size)

    def _follow(self, head: int) -> Chain:
        chain = Chain(head, [], [])
        table, entries, number, links, indirect = self.descriptors, self.size, head, 0, False
        while True:
            if number >= entries:
                raise RingError(f"descriptor {number} is named, where there are {entries}")
            address, length, flags, following = _DESCRIPTOR.unpack(self._at(table + 16 * number, 16))
            if flags & _INDIRECT:
                if indirect or flags & _NEXT:
                    raise RingError("an indirect table is within another, or continues after its end")
                if not length or length % 16:
                    raise RingError(f"an indirect table has {length} bytes, which is not a whole number of descriptors")
                table, entries, number, indirect = address, length // 16, 0, True
                continue
            links += 1
            if links > (MAXIMUM_CHAIN if indirect else self.size):
                raise RingError("a chain of descriptors has no end")
            if not length:
                raise RingError("a buffer has no bytes")
            if flags & _WRITE:
                chain.writable.append(self._at(address, length))
            elif chain.writable:
                raise RingError("a buffer to be read follows one to be written")
            else:
                chain.readable.append(self._at(address, length))
            if not flags & _NEXT:
                return chain
            number = following

    def _at(self, address: int, length: int) -> memoryview:
        try:
            return self._memory.view(address, length)
        except ValueError:
            raise RingError(f"{length} bytes at {address:#x} are not in the guest's memory") from None
