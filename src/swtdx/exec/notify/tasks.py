# SPDX-License-Identifier: GPL-2.0-or-later
"""The threads whose calls arrive, and whose address space each of them has.

A thread is known by its number, and numbers are used again. What is kept of a thread is therefore a descriptor of its
directory in /proc, which answers ESRCH or ENOENT for a thread that has ended, whatever has its number now. Address
spaces are compared as kcmp(2) does: threads have one, vfork(2) shares one, fork(2) and execve(2) make another.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import weakref

from swtdx.exec.notify import _receiver
from swtdx.exec.notify.address_space import ProgramMm
from swtdx.exec.notify.signals import pending

_MOST_TASKS = 512
"""Threads that are remembered; each takes two descriptors."""


class Task:
    """A thread of a program."""

    def __init__(self, tid: int) -> None:
        """Raises OSError if it is gone, or not ours to look at."""
        self.tid = tid
        self.directory = self.status = -1
        self.directory = os.open(f"/proc/{tid}", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.status = os.open("status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.directory)
            status = os.pread(self.status, 4096, 0)
            at = status.index(b"Tgid:")
            self.tgid = int(status[at + 5 : status.index(b"\n", at)])
        except BaseException:
            self.close()
            raise
        self.mm: ProgramMm

    def close(self) -> None:
        """Forget it."""
        for fd in (self.directory, self.status):
            if fd >= 0:
                os.close(fd)
        self.directory = self.status = -1

    def __del__(self) -> None:
        with contextlib.suppress(OSError):
            self.close()

    def fstat(self, fd: int) -> os.stat_result:
        """Of one of its descriptors. Raises OSError if it has none of that number, or is gone."""
        return os.stat(f"fd/{fd}", dir_fd=self.directory)

    def alive(self) -> bool:
        """Whether it has not ended."""
        try:
            os.pread(self.status, 1, 0)
        except OSError:
            return False
        return True


class Tasks:
    """All threads that have called lately."""

    def __init__(self) -> None:
        self._tasks: dict[int, Task] = {}
        self._spaces: weakref.WeakSet[ProgramMm] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._serving = threading.local()

    def get(self, tid: int, *, fresh: bool = False) -> Task:
        """The thread ``tid``, whose call has arrived; from now on this thread of ours serves it.

        ``fresh``: do not rely on what is known of that number. Raises OSError if it is gone.
        """
        task = self._tasks.get(tid)
        if task is None or fresh or task.mm.suspect:
            task = self._find(tid)
        self._serving.task = task
        task.mm.pid = tid
        return task

    def _find(self, tid: int) -> Task:
        with self._lock:
            task = Task(tid)
            task.mm = self._space_of(task)
            if len(self._tasks) >= _MOST_TASKS:
                self.sweep()
                while len(self._tasks) >= _MOST_TASKS:
                    self._tasks.pop(next(iter(self._tasks)))
            self._tasks[tid] = task
            return task

    def _space_of(self, task: Task) -> ProgramMm:
        for mm in list(self._spaces):
            if mm.owner == task.tgid:
                if mm.alive():
                    mm.suspect = False
                    return mm
            elif mm.is_of(task.tid):
                return mm
        mm = ProgramMm(task.tid, task.tgid, self._pending, self.publish)
        self._spaces.add(mm)
        return mm

    def executes(self, tid: int) -> None:
        """The thread is about to call execve(2): its process will have another address space, if that succeeds."""
        with contextlib.suppress(OSError):
            task = self.get(tid)
            with self._lock:
                for other in [other for other in self._tasks.values() if other.tgid == task.tgid]:
                    self._tasks.pop(other.tid, None)
                if task.mm.owner == task.tgid:
                    task.mm.suspect = True

    def sweep(self) -> None:
        """Forget the threads that have ended."""
        for tid, task in list(self._tasks.items()):
            if not task.alive():
                self._tasks.pop(tid, None)

    def publish(self) -> None:
        """Tell the receiver which memory guests use."""
        pairs = [
            (window.start, window.end) for mm in list(self._spaces) for window in list(mm.windows) if window.current
        ]
        _receiver.set_memory(b"".join(struct.pack("<QQ", *pair) for pair in pairs))

    def _pending(self) -> set[int]:
        """Of the thread that is served: its pending signals."""
        try:
            waiting, _ = pending(self._serving.task.status)
        except OSError:
            return {9}
        return {number for number in range(1, 65) if waiting >> number - 1 & 1}
