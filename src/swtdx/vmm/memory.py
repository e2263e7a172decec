# SPDX-License-Identifier: GPL-2.0-or-later
"""User memory that stands behind guest RAM, and the devices' view of it.

For an ordinary VM this is the guest's memory.  For a TD with guest_memfd it is the *shared* half only: what the guest
has not converted to shared is not here, and reads as old contents.  Pages are private anonymous memory, so
that ``MADV_DONTNEED`` gives them back when the guest converts them to private.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterable

from swtdx.snapshot.pages import Region, address_of
from swtdx.x86 import PAGE_SIZE

_MAP_NORESERVE = 0x4000  # linux/mman.h; the mmap module of Python 3.11 does not name it


class UserMemory:
    """Zeroed anonymous pages of this process at a fixed address. ``length``: bytes, a multiple of the page size."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._mapping = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
        self.address = address_of(self._mapping)
        self.regions = {"memory": Region(self.address, length)}
        self.view = memoryview(self._mapping)

    def discard(self, offset: int, length: int) -> None:
        """Give pages back; they read as zero afterwards. Raises OSError."""
        if self.regions["memory"].shown is None:
            self._mapping.madvise(mmap.MADV_DONTNEED, offset, length)
        else:  # what would appear is what the snapshot has there
            self.view[offset : offset + length] = bytes(length)

    def close(self) -> None:
        """Unmap. No user of the address (a VM's slot) may be left."""
        self.view.release()
        self._mapping.close()


class GuestMemory:
    """Guest-physical ranges with user memory behind them."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, UserMemory]] = []

    def add(self, gpa: int, length: int) -> UserMemory:
        """Put ``length`` zeroed bytes at ``gpa``; both multiples of the page size."""
        memory = UserMemory(length)
        self._ranges.append((gpa, memory))
        return memory

    def read(self, gpa: int, length: int) -> bytes:
        """Bytes as a device sees them. Raises ValueError where there is no memory."""
        memory, offset = self._find(gpa, length)
        return bytes(memory.view[offset : offset + length])

    def view(self, gpa: int, length: int) -> memoryview:
        """The range itself, writable, without a copy. To be let go of soon: while it exists nothing can be unmapped.

        Raises ValueError where there is no memory.
        """
        memory, offset = self._find(gpa, length)
        return memory.view[offset : offset + length]

    def write(self, gpa: int, data: bytes) -> None:
        """Store bytes as a device does. Raises ValueError where there is no memory."""
        memory, offset = self._find(gpa, len(data))
        memory.view[offset : offset + len(data)] = data

    def address(self, gpa: int, length: int) -> int:
        """The user address of a range. Raises ValueError where there is no memory."""
        memory, offset = self._find(gpa, length)
        return memory.address + offset

    def contains(self, gpa: int, length: int) -> bool:
        """Whether the whole range is memory of one piece."""
        return any(start <= gpa and gpa + length <= start + memory.length for start, memory in self._ranges)

    def discard(self, gpa: int, length: int) -> None:
        """Give the user pages of a range back. Raises ValueError where there is no memory."""
        if gpa % PAGE_SIZE or length % PAGE_SIZE:
            raise ValueError("only whole pages can be given back")
        memory, offset = self._find(gpa, length)
        memory.discard(offset, length)

    def close(self) -> None:
        """Unmap all of it."""
        while self._ranges:
            self._ranges.pop()[1].close()

    def _find(self, gpa: int, length: int) -> tuple[UserMemory, int]:
        for start, memory in self._ranges:
            if start <= gpa and gpa + length <= start + memory.length:
                return memory, gpa - start
        raise ValueError(f"no guest memory at {gpa:#x}-{gpa + length:#x}")


def staged(pieces: Iterable[bytes]) -> UserMemory:
    """Whole pages of user memory that hold ``pieces`` one after the other."""
    contents = b"".join(pieces)
    memory = UserMemory(max(PAGE_SIZE, (len(contents) + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE))
    memory.view[: len(contents)] = contents
    return memory
