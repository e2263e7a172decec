# SPDX-License-Identifier: GPL-2.0-or-later
"""The system-call line: the few calls by which a VMM reaches a kernel.

Everything above it (client, VMM, command) holds a `Kernel` and cannot tell a real one (`host.HostKernel`) from the
emulated one but by asking KVM. Arguments are what they are in reality: an ioctl's third argument is an integer or an
address in the caller's memory, never a Python object. Failures are `OSError` with ``errno``, as from the system.
"""

from __future__ import annotations

import mmap as _mmap
import os
from typing import Protocol


class Kernel(Protocol):
    """A kernel is what answers these calls. All raise OSError; file descriptors are plain integers."""

    name: str
    """For messages: "host", "emulated"."""

    def open(self, path: str, flags: int = os.O_RDWR | os.O_CLOEXEC) -> int:
        """open(2)."""
        ...

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """ioctl(2): ``arg`` is an integer or a user address. Returns the non-negative result. EINTR is not retried."""
        ...

    def mmap(self, fd: int, length: int, offset: int = 0) -> _mmap.mmap:
        """mmap(2), shared, readable and writable; ``length`` and ``offset`` in bytes."""
        ...

    def close(self, fd: int) -> None:
        """close(2)."""
        ...

    def eventfd(self, initval: int = 0, flags: int = os.EFD_CLOEXEC | os.EFD_NONBLOCK) -> int:
        """eventfd(2)."""
        ...

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2), with which pages are punched out of a guest_memfd (``mode`` FALLOC_FL_*)."""
        ...


FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h
