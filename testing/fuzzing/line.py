# SPDX-License-Identifier: GPL-2.0-or-later
"""The system-call line of an emulated kernel, on which every answer is judged and no call may hang."""

from __future__ import annotations

import ctypes
import errno
import faulthandler
import mmap
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from swtdx.linux.uaccess import copy_from_user
from swtdx.machine import MachineKernel
from swtdx.uapi import kvm as k

PATIENCE = 20.0
"""Seconds after which a call is taken to hang."""
ERRNOS = frozenset(
    {
        errno.EPERM, errno.ENOENT, errno.EINTR, errno.EIO, errno.ENXIO, errno.E2BIG, errno.EBADF, errno.EAGAIN,
        errno.ENOMEM, errno.EFAULT, errno.EBUSY, errno.EEXIST, errno.ENODEV, errno.EINVAL, errno.EMFILE, errno.ENOTTY,
        errno.ENOSPC, errno.EOPNOTSUPP,
    }
)  # fmt: skip
_SLOT_REQUESTS = (int(k.KVM_SET_USER_MEMORY_REGION), int(k.KVM_SET_USER_MEMORY_REGION2))
_REGION_SIZE = ctypes.sizeof(k.kvm_userspace_memory_region)
T = TypeVar("T")


class Failure(Exception):
    """Something that must not happen, did."""


class Line:
    """The system-call line of ``kernel``, watched: a Kernel itself. Counts calls and what they answer."""

    name = "emulated"

    def __init__(self, kernel: MachineKernel) -> None:
        self.kernel = kernel
        self.calls = 0
        self.answers: Counter[str] = Counter()
        self.lent: list[tuple[int, int]] = []
        """What slots may name: start and end of user memory."""
        self._trusts = False
        self._running: dict[int, tuple[float, str, Any]] = {}  # by thread: since when, what, kvm_run to interrupt
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def stop(self) -> None:
        self._stop.set()
        self._watcher.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            now = time.monotonic()
            for since, what, run in list(self._running.values()):
                if run is not None and now - since > 0.004:
                    run.immediate_exit = 1
                if now - since > PATIENCE:
                    sys.stderr.write(f"{what} does not come back\n")
                    faulthandler.dump_traceback(all_threads=True)
                    os._exit(1)
            run = None  # or it would keep a vCPU's mapping

    def _call(self, what: str, function: Callable[..., T], *args: Any, run: Any = None) -> T:
        self.calls += 1
        thread = threading.get_ident()
        self._running[thread] = (time.monotonic(), what, run)
        try:
            answer = function(*args)
        except OSError as error:
            if error.errno not in ERRNOS:
                raise Failure(f"{what}: errno {error.errno}") from error
            self.answers[errno.errorcode[error.errno]] += 1
            raise
        except BaseException as error:
            raise Failure(f"{what}: {error!r} crosses the system-call line") from error
        finally:
            del self._running[thread]
        self.answers["0"] += 1
        return answer

    def open(self, path: str, flags: int = os.O_RDWR) -> int:
        return self._call(f"open({path!r})", self.kernel.open, path, flags)

    def ioctl(self, fd: int, request: int, arg: int = 0, run: Any = None) -> int:
        answer = self._call(f"{k.ioctl_name(request)}({arg:#x})", self.kernel.ioctl, fd, request, arg, run=run)
        if request in _SLOT_REQUESTS and not self._trusts:
            self._check_slot(arg)
        if not 0 <= answer < 1 << 32:
            raise Failure(f"{k.ioctl_name(request)} returns {answer!r}")
        return answer

    def trusted(self, function: Callable[[], T]) -> T:
        """Call what makes slots of memory that it keeps itself."""
        self._trusts = True
        try:
            return function()
        finally:
            self._trusts = False

    def _check_slot(self, arg: int) -> None:
        """A slot that was accepted. Guests and KVM write to it: it must be memory that was meant for that."""
        region = k.kvm_userspace_memory_region.from_buffer_copy(copy_from_user(arg, _REGION_SIZE))
        start, end = region.userspace_addr, region.userspace_addr + region.memory_size
        if region.memory_size and not any(first <= start and end <= last for first, last in self.lent):
            raise Failure(f"the fuzzer gave a slot {start:#x} to {end:#x}, which is not its own memory")

    def mmap(self, fd: int, length: int, offset: int = 0) -> mmap.mmap:
        return self._call(f"mmap of {length:#x} at {offset:#x}", self.kernel.mmap, fd, length, offset)

    def close(self, fd: int) -> None:
        self._call("close", self.kernel.close, fd)

    def eventfd(self, initval: int = 0, flags: int = os.EFD_CLOEXEC | os.EFD_NONBLOCK) -> int:
        return self._call("eventfd", self.kernel.eventfd, initval, flags)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        self._call("fallocate", self.kernel.fallocate, fd, mode, offset, length)
