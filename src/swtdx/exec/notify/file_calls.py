# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls on files: open(2), stat(2) and access(2) with their kin, and what KVM's files refuse."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from swtdx.exec.notify import _receiver
from swtdx.exec.notify.paths import DEV_KVM, Paths, stat_bytes, statx_bytes
from swtdx.exec.notify.seccomp import F_ADD_SEALS, F_SETLEASE, Notification, Sys
from swtdx.exec.notify.server import Handler, Server, signed
from swtdx.exec.notify.tasks import Task
from swtdx.linux.uaccess import copy_from_user, copy_to_user
from swtdx.linux.virt.kvm.binary_stats import StatsFile
from swtdx.linux.virt.kvm.device import KvmDevice
from swtdx.linux.virt.kvm.guest_memfd import GuestMemfd

if TYPE_CHECKING:
    from swtdx.exec.notify.address_space import ProgramMm
    from swtdx.linux.files import File

_AT_FDCWD = -100
_PATH_MAX = 4096
_W_OK, _X_OK = 2, 1
_AT_SYMLINK_NOFOLLOW = 0x100
_O_PATH = 0x200000
_ANONYMOUS = 0o600
"""The mode of KVM's inodes, which have no type."""


class FileCalls:
    """Serves them for ``server``; what is ours is what ``paths`` says."""

    def __init__(self, server: Server, paths: Paths) -> None:
        self._server, self._paths = server, paths
        server.handlers |= self._handlers()
        _receiver.set_names(paths.last_components())
        _receiver.follow_links(not paths.usable)

    def _handlers(self) -> dict[int, Handler]:
        return {
            Sys.OPEN: lambda n: self._open(n, _AT_FDCWD, n.args[0], n.args[1]),
            Sys.CREAT: lambda n: self._open(n, _AT_FDCWD, n.args[0], os.O_WRONLY | os.O_CREAT),
            Sys.OPENAT: lambda n: self._open(n, signed(n.args[0]), n.args[1], n.args[2]),
            Sys.OPENAT2: self._openat2,
            Sys.STAT: lambda n: self._stat(n, _AT_FDCWD, n.args[0], n.args[1]),
            Sys.LSTAT: lambda n: self._stat(n, _AT_FDCWD, n.args[0], n.args[1], _AT_SYMLINK_NOFOLLOW),
            Sys.FSTAT: lambda n: self._fstat(n, n.args[1]),
            Sys.NEWFSTATAT: lambda n: self._stat(n, signed(n.args[0]), n.args[1], n.args[2], n.args[3]),
            Sys.STATX: lambda n: self._stat(n, signed(n.args[0]), n.args[1], n.args[4], n.args[2]),
            Sys.ACCESS: lambda n: self._access(n, _AT_FDCWD, n.args[0], n.args[1]),
            Sys.FACCESSAT: lambda n: self._access(n, signed(n.args[0]), n.args[1], n.args[2]),
            Sys.FACCESSAT2: lambda n: self._access(n, signed(n.args[0]), n.args[1], n.args[2]),
            **dict.fromkeys((Sys.FTRUNCATE, Sys.FSYNC, Sys.FDATASYNC, Sys.READAHEAD), self._invalid),
            Sys.SYNC_FILE_RANGE: self._sync_file_range,
            Sys.FCNTL: self._fcntl,
        }

    def _find(
        self, notification: Notification, directory: int, address: int, *, follow: bool = True
    ) -> tuple[Task, str] | None:
        """The thread, and the path of ours that its call names; None if it names none.

        Raises OSError(ENOTDIR) where such a path is named as a folder.
        """
        try:
            task = self._server.tasks.get(notification.pid)
            path = string_from_user(task.mm, address)
            name = self._paths.which(task, directory, path, follow=follow) if path else None
        except OSError:
            return None
        if name is None or path is None:
            return None
        if path.endswith(b"/"):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return task, name

    # --- open ---------------------------------------------------------------------------------------------------------

    def _open(self, notification: Notification, directory: int, address: int, flags: int) -> int | None:
        if flags & _O_PATH and self._paths.usable:
            return None  # what is opened by it is the machine's own until its first ioctl
        found = self._find(notification, directory, address, follow=not flags & os.O_NOFOLLOW)
        if found is None:
            return None
        _, name = found
        if flags & os.O_CREAT and flags & os.O_EXCL:
            return -errno.EEXIST
        if flags & os.O_DIRECTORY:
            return -errno.ENOTDIR
        if name == DEV_KVM:
            kernel, descriptors = self._server.power_on()
            descriptors.collect()
            # O_PATH: a descriptor of it as good as any is a name below /proc/self/fd, too, and can be handed over.
            theirs = self._server.give(kernel.open(DEV_KVM, os.O_RDWR if flags & _O_PATH else flags))
        elif flags & os.O_ACCMODE != os.O_RDONLY:
            return -errno.EACCES
        else:
            theirs = _read_only(name, self._paths.files[name].encode())
        raise self._server.hand_over(notification, theirs, cloexec=bool(flags & os.O_CLOEXEC))

    def _openat2(self, notification: Notification) -> int | None:
        try:
            task = self._server.tasks.get(notification.pid)
            flags = int.from_bytes(copy_from_user(notification.args[2], 8, task.mm), "little")
        except OSError:
            return None
        return self._open(notification, signed(notification.args[0]), notification.args[1], flags)

    # --- stat and access ----------------------------------------------------------------------------------------------

    def _stat(self, notification: Notification, directory: int, path: int, buffer: int, flags: int = 0) -> int | None:
        found = self._find(notification, directory, path, follow=not flags & _AT_SYMLINK_NOFOLLOW)
        if found is not None:
            return self._tell(notification, found[0], found[1], buffer)
        if notification.nr in (Sys.NEWFSTATAT, Sys.STATX) and self._is_empty(notification, path):
            return self._fstat(notification, buffer)
        return None

    def _is_empty(self, notification: Notification, path: int) -> bool:
        """Whether the call is about a descriptor (AT_EMPTY_PATH)."""
        try:
            return not path or copy_from_user(path, 1, self._server.tasks.get(notification.pid).mm) == b"\0"
        except OSError:
            return False

    def _file(self, notification: Notification) -> tuple[Task, os.stat_result, File] | None:
        """The thread, and the kernel's file that its descriptor refers to; None if that is not ours."""
        found = self._server.find(notification)
        if found is None or found[2] is None:
            return None
        task, status, held = found
        assert held is not None
        assert self._server.descriptors is not None
        self._server.descriptors.end(held)
        return task, status, held.file

    def _fstat(self, notification: Notification, buffer: int) -> int | None:
        found = self._file(notification)
        if found is None:
            return None
        task, status, file = found
        if isinstance(file, KvmDevice):
            return self._tell(notification, task, DEV_KVM, buffer)
        about = (stat.S_IFREG | _ANONYMOUS, 0, file.length) if isinstance(file, GuestMemfd) else (_ANONYMOUS, 0, 0)
        return self._write(notification, task, about, status.st_ino, buffer)

    def _tell(self, notification: Notification, task: Task, name: str, buffer: int) -> int:
        return self._write(notification, task, self._paths.stat(name), hash(name) & 0xFFFFFFFF, buffer)

    @staticmethod
    def _write(notification: Notification, task: Task, about: tuple[int, int, int], number: int, buffer: int) -> int:
        make = statx_bytes if notification.nr == Sys.STATX else stat_bytes
        copy_to_user(buffer, make(*about, number), task.mm)
        return 0

    def _access(self, notification: Notification, directory: int, path: int, mode: int) -> int | None:
        found = self._find(notification, directory, path)
        if found is None:
            return None
        refused = _X_OK if found[1] == DEV_KVM else _X_OK | _W_OK
        return -errno.EACCES if mode & refused else 0

    # --- what KVM's files refuse (native/preload/ordinary.c has the rest) ---------------------------------------------

    def _invalid(self, notification: Notification) -> int | None:
        return None if self._file(notification) is None else -errno.EINVAL

    def _sync_file_range(self, notification: Notification) -> int | None:
        found = self._file(notification)
        return None if found is None or isinstance(found[2], GuestMemfd) else -errno.ESPIPE

    def _fcntl(self, notification: Notification) -> int | None:
        """Leases and seals, which are the server's own business; a guest_memfd counts as a regular file for leases."""
        found, command = self._file(notification), notification.args[1] & 0xFFFFFFFF
        if found is None or (command == F_SETLEASE and isinstance(found[2], GuestMemfd)):
            return None
        return -errno.EPERM if command == F_ADD_SEALS and isinstance(found[2], StatsFile) else -errno.EINVAL


def string_from_user(mm: ProgramMm, address: int) -> bytes | None:
    """A path (strncpy_from_user); None if it is not one."""
    data = b""
    while len(data) < _PATH_MAX:
        at = address + len(data)
        try:
            piece = copy_from_user(at, 256 - at % 256, mm)
        except OSError:
            return None
        end = piece.find(b"\0")
        if end >= 0:
            return data + piece[:end]
        data += piece
    return None


def _read_only(name: str, content: bytes) -> int:
    """A file with ``content``."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        os.write(fd, content)
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(fd)
