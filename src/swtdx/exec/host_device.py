# SPDX-License-Identifier: GPL-2.0-or-later
"""A watch on the machine's own /dev/kvm: a program below the command that gets past the preloaded library is ended.

The library sees what goes through the C library. It does not see a system-call instruction of the program's own, an
open by io_uring, a C library that was loaded a second time, or a static program that is executed by any of these. A
filter on system calls (seccomp) would see them, but costs every system call of every program something, needs
no_new_privs, and stays in force below it, where the second front end has a filter of its own. So the launcher looks:
inotify reports each open of the device at once, and the processes below the command are searched for it; for an open by
another node of the same device, which inotify does not report, they are searched every few seconds. A program that has
the device and closes it again within a millisecond is not found.

A process that has only opened the device may keep it for a while: its first ioctl through the C library starts the
emulated kernel and puts the emulated device in its place.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import stat
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

DEVICE = "/dev/kvm"
_KVM = os.makedev(10, 232)
_REAL_FILES = ("anon_inode:kvm-vm", "anon_inode:kvm-vcpu")
_IN_OPEN, _IN_CLOEXEC = 0x20, 0o2000000
_EVENT = struct.Struct("iIII")
_PAUSES, _PAUSE = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05), 0.2
"""Seconds between the looks after an open, and from then on while a process has the device."""
_SELDOM = 3.0
"""Seconds between the looks when nothing is known."""
_PATIENCE = 15.0
"""How long a process may have the device and not use it: the emulated kernel starts at its first ioctl."""


class HostDeviceWatch(threading.Thread):
    """``library``: what the environment of the command's descendants names. Made before the command starts."""

    def __init__(self, library: Path) -> None:
        super().__init__(name="swtdx-host-device", daemon=True)
        self._root = 0
        self._library = bytes(library)
        self._fd = -1
        self._ended: set[int] = set()  # killed, and perhaps not gone yet
        if os.access(DEVICE, os.R_OK | os.W_OK):  # else no program here can use it
            libc = ctypes.CDLL(None, use_errno=True)
            self._fd = libc.inotify_init1(_IN_CLOEXEC)
            if self._fd >= 0 and libc.inotify_add_watch(self._fd, DEVICE.encode(), _IN_OPEN) < 0:
                os.close(self._fd)
                self._fd = -1

    def begin(self, root: int) -> None:
        """Watch the command, whose process id is ``root``."""
        self._root = root
        if self._fd >= 0:
            self.start()

    def run(self) -> None:
        """Look when a process of this machine has opened the device, and again while a process below has it."""
        holders: dict[int, float] = {}
        looks = len(_PAUSES)
        while True:
            pause = _PAUSES[looks] if looks < len(_PAUSES) else (_PAUSE if holders else _SELDOM)
            if select.select([self._fd], [], [], pause)[0]:
                os.read(self._fd, 64 * _EVENT.size)
                looks = 0
            looks += 1
            found = self._look(holders)
            holders = {pid: holders.get(pid, time.monotonic()) for pid in found}

    def _look(self, holders: dict[int, float]) -> set[int]:
        """End the processes that use the device, or have had it for too long. The others that have it."""
        found = set()
        below = set(self._below())
        self._ended &= below
        for pid in below - self._ended:
            has, uses = _of_device(pid)
            if uses or (has and time.monotonic() - holders.get(pid, time.monotonic()) > _PATIENCE):
                _end(pid)
                self._ended.add(pid)
            elif has:
                found.add(pid)
        return found

    def _below(self) -> Iterator[int]:
        """The command's process and its descendants, those that it has left behind included."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError, IndexError):
                    parents[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
        for pid in parents:
            at = pid
            while at not in (0, self._root):
                at = parents.get(at, 0)
            if at == self._root or self._inherits(pid):
                yield pid

    def _inherits(self, pid: int) -> bool:
        try:
            return self._library in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False


def _of_device(pid: int) -> tuple[bool, bool]:
    """Whether the process has the machine's /dev/kvm open; whether it has made a VM by it."""
    has = uses = False
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                status = os.stat(entry.path)
                has = has or (stat.S_ISCHR(status.st_mode) and status.st_rdev == _KVM)
                untyped = not stat.S_IFMT(status.st_mode)  # that of an emulated kernel is a memfd
                uses = uses or (untyped and os.readlink(entry.path).startswith(_REAL_FILES))
    return has, uses


def _end(pid: int) -> None:
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
        os.kill(pid, 0)
        text = (
            f"swtdx: exec: process {pid} ({name}) has opened the machine's own {DEVICE}, past the preloaded library, "
            "and was killed: use '--front-end notify', or '--allow-host-kvm' to let it\n"
        )
        os.write(2, text.encode())  # before it dies: when the command's last process has ended, this one may end, too
        os.kill(pid, signal.SIGKILL)
