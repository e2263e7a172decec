# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of the paths that a program names are ours: /dev/kvm, and the files of `Settings.files`.

A relative name is one against the program's working directory or a descriptor of its. Links are followed where the
machine has no /dev/kvm for the program; where it has one, a program that gets to it by another name finds its
descriptor replaced at the first ioctl (`is_kvm`).
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Mapping

from swtdx.exec.notify.tasks import Task

DEV_KVM = "/dev/kvm"
_AT_FDCWD = -100
_MOST_LINKS = 40  # the kernel's limit, too
_MISC_KVM = os.makedev(10, 232)
_STAT = struct.Struct("<QQQIIIIQqqq6q24x")
_STATX = struct.Struct("<IIQIIIHHQQQQ")  # to stx_attributes_mask; four times and the device numbers follow


class Paths:
    """``files``: path -> content. ``usable``: the machine has a /dev/kvm, and gives it to the program."""

    def __init__(self, files: Mapping[str, str], *, usable: bool = False) -> None:
        self.files = dict(files)
        self.usable = usable
        self._last = {path.rpartition("/")[2].encode() for path in (DEV_KVM, *files)}

    def last_components(self) -> list[bytes]:
        """A path is ours only if its last component is one of these."""
        return sorted(self._last)

    def which(self, task: Task, directory: int, path: bytes, *, follow: bool = True) -> str | None:
        """The path of ours that the program means, or None. ``follow``: also a link that the path itself names."""
        name = self._absolute(task, directory, path)
        if not self._is_ours(name) and not self.usable:
            name = _resolved(task, name, follow=follow)
        return name if self._is_ours(name) else None

    def _is_ours(self, name: str) -> bool:
        return name == DEV_KVM or name in self.files

    @staticmethod
    def _absolute(task: Task, directory: int, path: bytes) -> str:
        if not path.startswith(b"/"):
            try:
                base = os.readlink(b"cwd" if directory == _AT_FDCWD else b"fd/%d" % directory, dir_fd=task.directory)
            except OSError:
                return ""
            path = base + b"/" + path
        return os.path.normpath(os.fsdecode(path)).replace("//", "/")

    def stat(self, name: str) -> tuple[int, int, int]:
        """Mode, device number and size of a path of ours, or of an open /dev/kvm."""
        if name == DEV_KVM:
            return stat.S_IFCHR | 0o666, _MISC_KVM, 0
        return stat.S_IFREG | 0o444, 0, len(self.files[name].encode())


def _resolved(task: Task, path: str, *, follow: bool) -> str:
    """Return the absolute ``path`` without symbolic links, as the program sees files."""
    root = f"/proc/{task.tid}/root"
    own = {"/proc/self": f"{task.tgid}", "/proc/thread-self": f"{task.tgid}/task/{task.tid}"}
    done: list[str] = []
    left = path.split("/")[::-1]
    links = 0
    while left:
        name = left.pop()
        if name in ("", ".", ".."):
            del done[len(done) - (name == "..") :]
            continue
        at = "/".join(["", *done, name])
        try:
            target = own[at] if at in own else os.readlink(root + at) if left or follow else ""
        except OSError:
            target = ""
        if not target:
            done.append(name)
            continue
        links += 1
        if links > _MOST_LINKS:
            return ""
        if target.startswith("/"):
            done = []
        left.extend(target.split("/")[::-1])
    return "/".join(["", *done])


def is_kvm(found: os.stat_result) -> bool:
    """Whether this is the machine's own /dev/kvm."""
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == _MISC_KVM


def stat_bytes(mode: int, device: int, size: int, number: int) -> bytes:
    """struct stat of x86-64. ``number``: its inode."""
    return _STAT.pack(5, number, 1, mode, 0, 0, 0, device, size, 4096, 0, *[0] * 6)


def statx_bytes(mode: int, device: int, size: int, number: int) -> bytes:
    """struct statx, the basic statistics alone."""
    head = _STATX.pack(0x7FF, 4096, 0, 1, 0, 0, mode, 0, number, size, 0, 0)
    times = bytes(64)
    devices = struct.pack("<IIII", os.major(device), os.minor(device), 0, 5)
    return (head + times + devices).ljust(256, b"\0")
