# SPDX-License-Identifier: GPL-2.0-or-later
"""Files that the kernel has open for itself in a process whose descriptors are its clients' business.

A real kernel has no numbers in its clients' tables. One that is inside a client's process has, so it takes high ones,
and looks each time whether the number is still its own: a client closes what it does not know, as daemons do, and its
next file may get that number.
"""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_NUMBERS = (1000, 250)
"""What our numbers begin at, where there are so many."""
_ENOUGH = 2048


@contextmanager
def more_descriptors() -> Iterator[None]:
    """Raise RLIMIT_NOFILE for a moment, as far as this process may: a number that is in use stays so below it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    raised = soft != resource.RLIM_INFINITY and soft < wanted
    if raised:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    try:
        yield
    finally:
        if raised:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class KeptFile:
    """One of them. ``again``: the flags with which it is opened when the client has closed it, if they differ."""

    def __init__(self, path: str | os.PathLike[str], flags: int, *, again: int | None = None) -> None:
        """Raises OSError."""
        self.path = path
        self._again = flags if again is None else again
        self._open(flags)

    def fd(self) -> int:
        """Return the descriptor, which refers to the file. Raises OSError if it must be opened again and cannot."""
        with suppress(OSError):
            status = os.fstat(self._fd)
            if self._pid == os.getpid() and (status.st_dev, status.st_ino) == self._file:
                return self._fd
        self._open(self._again)
        return self._fd

    def _open(self, flags: int) -> None:
        with more_descriptors():
            fd = os.open(self.path, flags | os.O_CLOEXEC, 0o666)
            for least in _NUMBERS:
                with suppress(OSError):
                    other = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
                    os.close(fd)
                    fd = other
                    break
        status = os.fstat(fd)
        self._fd, self._file, self._pid = fd, (status.st_dev, status.st_ino), os.getpid()
