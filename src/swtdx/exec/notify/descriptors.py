# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's files in the hands of programs.

A program gets a descriptor of its own for the memfd behind each of the kernel's descriptors (`linux.files`), and the
file is recognised by that memfd's inode, whatever number it has and however it got to a process: dup(2), fork(2),
SCM_RIGHTS. The program's open file description holds a shared lock (flock(2)). The last close, the last munmap(2) and
the end of the last process release that lock, as they call ``fput`` in Linux. The server sees the close by inotify(7)
and then gets the exclusive lock.

A program that opens such a descriptor again by its name below /proc/PID/fd makes a description without a lock. Where
there is one the server gets no write lease (fcntl(2), F_SETLEASE): Linux grants it for the only description of a file.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import signal
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from swtdx.exec.notify import _receiver

if TYPE_CHECKING:
    from swtdx.linux.files import File
    from swtdx.machine import MachineKernel
    from swtdx.uapi.kernel import Kernel

_libc = ctypes.CDLL(None, use_errno=True)
_IN_CLOSE = 0x08 | 0x10
_EVENT = struct.Struct("=iIII")


@dataclass(eq=False)
class Held:
    """A descriptor of the kernel that programs have."""

    fd: int
    file: File
    inode: tuple[int, int]
    watch: int
    calls: int = 0
    """ioctls that are under way; the file does not go meanwhile."""
    more: list[int] = field(default_factory=list)
    """Other descriptors of the kernel for the same file."""


class Descriptors:
    """All that programs have of ``machine``; calls reach it by ``kernel``. ``released``: called before a file goes."""

    def __init__(self, machine: MachineKernel, kernel: Kernel, released: Callable[[File], None]) -> None:
        self.machine, self.kernel = machine, kernel
        self._released = released
        self.by_inode: dict[tuple[int, int], Held] = {}
        self._by_watch: dict[int, Held] = {}
        self._lock = threading.Lock()
        self._collecting = threading.RLock()
        self.inotify = int(_libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._closed: set[Held] = set()

    def give(self, fd: int) -> int:
        """A descriptor to be given to a program, and closed here, for the kernel's ``fd``. Raises OSError."""
        stat = os.fstat(fd)
        inode = stat.st_dev, stat.st_ino
        file = self.machine.files.by_fd[fd]
        mode = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        theirs = os.open(f"/proc/self/fd/{fd}", mode | os.O_CLOEXEC)
        try:
            fcntl.flock(theirs, fcntl.LOCK_SH | fcntl.LOCK_NB)
            with self._lock:
                held = self.by_inode.get(inode)
                if held is None:
                    _receiver.set_device(stat.st_dev)  # the same for all memfds
                    watch = int(_libc.inotify_add_watch(self.inotify, f"/proc/self/fd/{fd}".encode(), _IN_CLOSE))
                    held = self.by_inode[inode] = Held(fd, file, inode, watch)
                    self._by_watch[watch] = held
                else:
                    held.more.append(fd)
        except BaseException:
            os.close(theirs)
            raise
        return theirs

    def begin(self, inode: tuple[int, int]) -> Held | None:
        """What a program means by its descriptor, kept until `end`; None if it is not ours."""
        with self._lock:
            held = self.by_inode.get(inode)
            if held is not None:
                held.calls += 1
            return held

    def end(self, held: Held) -> None:
        """The call is over."""
        with self._lock:
            held.calls -= 1
            last = held in self._closed and not held.calls
        if last:
            self._release(held)

    def collect(self) -> None:
        """Close what programs have closed. It is closed when this returns, whichever thread did it."""
        with self._collecting:
            try:
                data = os.read(self.inotify, 1 << 16)
            except OSError:
                return
            position, seen = 0, set()
            while position < len(data):
                watch, _, _, length = _EVENT.unpack_from(data, position)
                position += _EVENT.size + length
                held = self._by_watch.get(watch)
                if held is not None:
                    seen.add(held)
            for held in seen:
                self._look(held)

    def collect_all(self) -> None:
        """As `collect`, whatever inotify has seen or lost."""
        with self._collecting:
            self.collect()
            for held in list(self.by_inode.values()):
                self._look(held)

    def _look(self, held: Held) -> None:
        if self.by_inode.get(held.inode) is not held:
            return
        try:
            fcntl.flock(held.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            return  # the end of a call has released it in this instant
        with contextlib.suppress(OSError):
            fcntl.flock(held.fd, fcntl.LOCK_UN)
        if self._is_open_again(held):
            return
        with self._lock:
            if held.calls:
                self._closed.add(held)
                return
        self._release(held)

    @staticmethod
    def _is_open_again(held: Held) -> bool:
        """Whether there is a description that holds no lock."""
        if held.more:
            return False  # the kernel's own descriptions
        try:
            ours = os.open(f"/proc/self/fd/{held.fd}", os.O_RDWR | os.O_CLOEXEC)  # memfd_create's own does not count
        except OSError:
            return False
        try:
            fcntl.fcntl(ours, fcntl.F_SETSIG, signal.SIGURG)  # an open in this instant: SIGIO would end the server
            fcntl.fcntl(ours, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        except OSError as error:
            return error.errno == errno.EAGAIN
        finally:
            os.close(ours)
        return False

    def _release(self, held: Held) -> None:
        with self._lock:
            self._closed.discard(held)
            if self.by_inode.pop(held.inode, None) is None:
                return
            self._by_watch.pop(held.watch, None)
        _libc.inotify_rm_watch(self.inotify, held.watch)
        self._released(held.file)
        for fd in (*held.more, held.fd):
            with contextlib.suppress(OSError):
                self.kernel.close(fd)
