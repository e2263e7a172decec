# SPDX-License-Identifier: GPL-2.0-or-later
"""File descriptors of the emulated kernel, and what stands behind them.

Every descriptor is a real one: a memfd of the calling process holds the number, so that it clashes with nothing, can be
polled, duplicated and inherited, and EMFILE comes when it should. For a vCPU the memfd is also the memory that mmap(2)
gives. What the descriptor means is a `File`, found by number; one made by dup(2) behind our back is recognised by the
memfd's inode. The last close releases the File, as ``fput`` does; a descriptor closed with `os.close` instead of
`Kernel.close` is noticed only when its number comes back. The kernel keeps no descriptor for itself.

A call in progress holds its file as ``fget`` does: what another thread closes meanwhile is released when the call ends.
The hold is an entry in a list, put there and taken away in one step each and without a lock, since it is on the path of
every KVM_RUN. Who enters notes the call first and then looks whether the file is still open; who closes takes the
reference away first and then looks for calls. So one of them sees the other.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Protocol

from swtdx.linux.err import err
from swtdx.linux.uaccess import current_mm, own_mm
from swtdx.uapi.layout import address_of

_MAP_FIXED = 0x10
_mmap = ctypes.CDLL(None, use_errno=True).mmap
_mmap.restype = ctypes.c_size_t
_mmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_FLOCK = struct.Struct("hhqqi4x")
_LAST_BYTE = (1 << 63) - 2
_F_ADD_SEALS, _SEALS = 1033, 0x0001 | 0x0002 | 0x0004  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW


def show_file(
    mapping: mmap.mmap, fd: int, at: int = 0, length: int | None = None, offset: int = 0, *, apart: bool = False
) -> None:
    """Let ``length`` bytes (None: all) of an anonymous ``mapping`` show ``fd`` from ``offset`` on, shared.

    `mmap.mmap` of a descriptor keeps a duplicate of it: a number that the program may close or replace, and the program
    would lose a file of its own to it when the mapping ends. ``apart``: the mapping keeps an open file description that
    is not that of ``fd``, which then ends with its descriptors (`_ends_with`). Raises OSError(ENOMEM).
    """
    size = len(mapping) if length is None else length
    address = address_of(mapping) + at
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    own = _opened_again(fd, os.O_RDWR) if apart else -1
    try:
        if _mmap(address, size, protection, mmap.MAP_SHARED | _MAP_FIXED, fd if own < 0 else own, offset) != address:
            raise err(errno.ENOMEM, f"{size:,} bytes cannot be mapped")
    finally:
        if own >= 0:
            os.close(own)


def _opened_again(fd: int, access: int) -> int:
    """Return another open file description of the same memory; -1 if there can be none."""
    try:
        return os.open(f"/proc/thread-self/fd/{fd}", access | os.O_CLOEXEC)
    except OSError:
        return -1


def _lock(kind: int) -> bytes:
    """Return a struct flock for the last byte that one can be about, which no program locks."""
    return _FLOCK.pack(kind, os.SEEK_SET, _LAST_BYTE, 1, 0)


def _ends_with(fd: int) -> bool:
    """close(2); return whether the open file description ended with it: no other descriptor, of any process, has it.

    A lock of the description lasts as long as that. False also where this cannot be found out. Raises OSError.
    """
    other = _opened_again(fd, os.O_RDONLY)
    try:
        if other >= 0:
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK))
            except OSError:
                os.close(other)
                other = -1
        os.close(fd)
        if other < 0:
            return False
        try:
            found = fcntl.fcntl(other, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK))
        except OSError:
            return False
        return bool(_FLOCK.unpack(found)[0] == fcntl.F_UNLCK)
    finally:
        if other >= 0:
            os.close(other)


def seal(fd: int) -> None:
    """Fix the length of a memfd: a client that shortened it would take mapped memory from under us. Raises OSError."""
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)


class File:
    """What a descriptor refers to (struct file with its f_op). Subclasses answer; the default is refusal."""

    name = "anon_inode:[kvm]"
    size = 0
    """Bytes of the memory behind the descriptor."""
    close_on_exec = True
    """Whether a new descriptor is closed where the process executes another program."""

    def __init__(self) -> None:
        self.references = 0
        self.descriptors = 0
        """Those of its references that are numbers of this process."""
        self.inode = (0, 0)
        self.opened_again = False
        """There is, or was, more than one open file description."""
        self.unnamed = False
        """No descriptor is left, not even one that no call has named."""
        self.inside: list[int] = []
        """Calls in progress."""
        self.table: FileTable | None = None
        self.mm = own_mm()

    def enter(self) -> None:
        """A call begins (fget). Raises OSError(EBADF) if the file was closed since its number was looked up."""
        self.inside.append(0)
        if not self.references:
            self.leave()
            raise err(errno.EBADF, f"{self.name} was closed")

    def leave(self) -> None:
        """The call is over (fput)."""
        self.inside.pop()
        if not self.references and self.table is not None:
            self.table.release_if_idle(self)

    def descriptor(self) -> int:
        """A number of this process for it; -1 if none is left."""
        table = self.table
        return -1 if table is None else table.number_of(self)

    def ioctl(self, request: int, arg: int) -> int:
        """ioctl(2) with the whole 32-bit request. Raises OSError."""
        raise err(errno.ENOTTY, f"{self.name} takes no ioctl")

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        """mmap(2), shared, of ``fd``, which refers to this. Raises OSError(ENODEV) where there is nothing to map."""
        raise err(errno.ENODEV, f"{self.name} cannot be mapped")

    def fallocate(self, mode: int, offset: int, length: int) -> None:
        """fallocate(2), after `vfs_fallocate`. Raises OSError."""
        raise err(errno.ENODEV, f"{self.name} is not a regular file")

    def bug(self, reason: str) -> None:
        """Mark what is behind the file as dead, if it can be: an internal error happened in a call on it."""

    def release(self) -> None:
        """The last reference is gone."""


_FALLOCATE_MODES = frozenset((0x00, 0x01, 0x03, 0x08, 0x10, 0x11, 0x20, 0x40, 0x41))
"""FALLOC_FL_*: ALLOCATE, ZERO, UNSHARE_RANGE, each also with KEEP_SIZE; PUNCH_HOLE with it; COLLAPSE, INSERT_RANGE."""


def vfs_fallocate(file: File, mode: int, offset: int, length: int) -> None:
    """What Linux looks at before the file is asked. Raises OSError."""
    if offset < 0 or length <= 0:
        raise err(errno.EINVAL, "negative offset or empty range")
    if mode not in _FALLOCATE_MODES:
        raise err(errno.EOPNOTSUPP, f"fallocate mode {mode:#x}")
    file.fallocate(mode, offset, length)


class Mapping(Protocol):
    """A mapping that keeps its file."""

    @property
    def release(self) -> Callable[[], object]:
        """To be called to keep it no longer."""
        ...


class FileMapping(mmap.mmap):
    """What mmap(2) gives of a file that is open while it is mapped (vm_area_struct.vm_file)."""

    def hold(self, files: FileTable, file: File) -> None:
        """Keep ``file`` until the mapping is closed or forgotten."""
        files.hold(file)
        self.release = weakref.finalize(self, files.put, file)
        self.release.atexit = False
        files.mappings.add(self)

    def show(self, fd: int, at: int, length: int, offset: int, *, apart: bool = False) -> None:
        """Let ``length`` bytes from ``at`` on show ``fd`` from ``offset`` on, shared. Raises OSError(ENOMEM)."""
        show_file(self, fd, at, length, offset, apart=apart)

    def close(self) -> None:
        """munmap(2)."""
        super().close()
        self.release()


class FileTable:
    """Descriptor numbers of this process that are ours."""

    def __init__(self) -> None:
        self.by_fd: dict[int, File] = {}
        self._inodes: dict[tuple[int, int], File] = {}
        self.mappings: weakref.WeakSet[Mapping] = weakref.WeakSet()
        """What is mapped and keeps its file (`File.mmap`)."""
        self.of_clients = True
        """Descriptors of this process are its clients'. Not where the clients are other processes: there inotify says
        when the last open file description of a memfd is closed (`swtdx.exec.notify`), so there may be no other."""
        self.powered_off = False
        """The machine is switched off (`EmulatedKernel.power_off`): nothing is released any more."""
        self._lock = threading.RLock()

    def install(self, file: File, fd: int | None = None) -> int:
        """Return a new descriptor for ``file`` (anon_inode_getfd). Raises OSError(EMFILE) when there are too many.

        ``fd``: a memfd that there is already, and that is the table's from now on.
        """
        if fd is None:
            fd = self.reserve(file)
        stat = os.fstat(fd)
        with contextlib.suppress(OSError):  # a read-only one was sealed by who made it
            seal(fd)
        os.set_inheritable(fd, not file.close_on_exec)
        with self._lock:
            stale = self._unname(fd)
            file.references = 0
            file.table = self
            file.inode = stat.st_dev, stat.st_ino
            self._name(fd, file)
            self._inodes[file.inode] = file
        if stale is not None:
            self.put(stale)
        return fd

    def _name(self, fd: int, file: File) -> None:
        """Count a descriptor."""
        self.by_fd[fd] = file
        file.references += 1
        file.descriptors += 1

    def _unname(self, fd: int) -> File | None:
        """Forget a descriptor; the reference is the caller's to put. Return its file, if it was one of ours."""
        file = self.by_fd.pop(fd, None)
        if file is not None:
            file.descriptors -= 1
        return file

    @staticmethod
    def reserve(file: File) -> int:
        """Return a number and memory for ``file``, not yet installed (get_unused_fd_flags). Raises OSError(EMFILE)."""
        fd = os.memfd_create(file.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.fchmod(fd, 0o666)  # not a program
        if file.size:
            try:
                os.ftruncate(fd, file.size)
            except OSError as error:  # a memfd is a file to RLIMIT_FSIZE; the kernel's own pages are not
                os.close(fd)
                reason = f"ulimit -f does not allow the {file.size:,} bytes of {file.name}"
                raise err(errno.ENOMEM if error.errno == errno.EFBIG else error.errno or errno.EIO, reason) from error
        return fd

    def number_of(self, file: File) -> int:
        """A descriptor of ``file``; -1 if none is left."""
        with self._lock:
            return next((fd for fd, other in self.by_fd.items() if other is file), -1)

    def open_again(self, file: File) -> int:
        """One more descriptor, read-only, its position its own; -1 if none is left. Raises OSError(EMFILE)."""
        with self._lock:
            known = self.number_of(file)
            if known < 0:
                return -1
            fd = os.open(f"/proc/thread-self/fd/{known}", os.O_RDONLY | os.O_CLOEXEC)
            stale = self._unname(fd)
            self._name(fd, file)
            file.opened_again = True
        if stale is not None:
            self.put(stale)
        return fd

    def get(self, fd: int) -> File | None:
        """Return the File behind ``fd``, or None if it is not ours.

        Descriptors made by dup(2) are found and counted.
        """
        file = self.by_fd.get(fd)
        if file is not None:
            return file
        with self._lock:  # from the look at the number on: after a close in between it may be another file's
            try:
                stat = os.fstat(fd)
            except (OSError, OverflowError):
                return None
            file = self._inodes.get((stat.st_dev, stat.st_ino))
            if file is not None:
                self._name(fd, file)
        return file

    def fget(self, fd: int) -> File | None:
        """Return the File behind a descriptor that the caller names in a structure, or None if it is not ours (fget).

        The caller may be another process, whose numbers are its own. Raises OSError(EBADF) if there is none.
        """
        stat = current_mm().fstat(fd)
        with self._lock:
            return self._inodes.get((stat.st_dev, stat.st_ino))

    def settle(self, fd: int) -> File | None:
        """As `get`, for a number that may have been closed behind our back and be another file's by now."""
        known = self.by_fd.get(fd)
        if known is not None:
            try:
                stat = os.fstat(fd)
                same = self._inodes.get((stat.st_dev, stat.st_ino)) is known
            except OSError:
                same = False
            if not same:
                self._unname(fd)
                self.put(known)
        return self.get(fd)

    def close(self, fd: int) -> None:
        """close(2) of one of ours. Raises OSError(EBADF) like the real one."""
        file = None
        try:
            with self._lock:
                file = self.get(fd)
                if file is not None:
                    self._unname(fd)
                if file is not None and self._may_be_last(fd, file):
                    file.unnamed = _ends_with(fd)
                else:
                    os.close(fd)
        finally:
            if file is not None:
                self.put(file)

    def hold(self, file: File) -> None:
        """One more reference (get_file)."""
        with self._lock:
            file.references += 1

    def put(self, file: File) -> None:
        """One reference less; the last one releases (fput).

        Not in a child made by fork(): its parent has the file still.
        """
        if file.mm is not own_mm():
            return
        with self._lock:
            file.references -= 1
            if not file.references and self.of_clients and not file.unnamed:
                self._count_others(file)
            if file.references or self.powered_off:
                return
            if self._inodes.get(file.inode) is file:
                del self._inodes[file.inode]
        self.release_if_idle(file)

    def _may_be_last(self, fd: int, file: File) -> bool:
        """Return whether ``fd``, which is about to be closed, may be the last descriptor of ``file``."""
        if not self.of_clients or file.descriptors or file.opened_again or file.mm is not own_mm():
            return False
        try:
            stat = os.fstat(fd)
        except OSError:
            return False
        return (stat.st_dev, stat.st_ino) == file.inode  # else the program has closed it, and has another file there

    def _count_others(self, file: File) -> None:
        """Count the descriptors that dup(2) has made of ``file`` and that no call has named yet.

        It takes as long as there are descriptors; so only where `_ends_with` could not tell that there is none.
        """
        for name in os.listdir("/proc/thread-self/fd"):
            fd = int(name)
            if fd in self.by_fd:
                continue
            try:
                stat = os.fstat(fd)
            except OSError:  # closed meanwhile
                continue
            if (stat.st_dev, stat.st_ino) == file.inode:
                self._name(fd, file)

    def release_if_idle(self, file: File) -> None:
        """Release ``file`` if no reference is left and no call is in progress."""
        with self._lock:
            if file.references or file.inside or file.table is None:
                return
            file.table = None
        file.release()

    def __iter__(self) -> Iterator[File]:
        return iter(set(self.by_fd.values()))
