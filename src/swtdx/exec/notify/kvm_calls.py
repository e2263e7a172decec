# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls on descriptors of the kernel: ioctl(2) and fallocate(2)."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from typing import TYPE_CHECKING

from swtdx.cpu import _engine
from swtdx.exec.notify.paths import DEV_KVM, is_kvm
from swtdx.exec.notify.seccomp import Notification, Sys
from swtdx.exec.notify.server import Server, signed
from swtdx.exec.notify.signals import Run, Watch
from swtdx.exec.notify.tasks import Task
from swtdx.linux.arch.x86.kvm.x86.vcpu_ioctl import VcpuFile
from swtdx.linux.err import reason_of
from swtdx.linux.uaccess import struct_from_user, use_mm
from swtdx.uapi.kvm import KVM_MEMORY_ENCRYPT_OP, KVM_RUN, REQUESTS, kvm_userspace_memory_region

if TYPE_CHECKING:
    from swtdx.exec.notify.descriptors import Held
    from swtdx.exec.notify.memory_calls import MemoryCalls
    from swtdx.exec.record import Record

_KVM_RUN, _ENCRYPT_OP = int(KVM_RUN), int(KVM_MEMORY_ENCRYPT_OP)
_CREATE_GUEST_MEMFD = int(REQUESTS["KVM_CREATE_GUEST_MEMFD"])
_MAKES_FILES = frozenset(
    int(REQUESTS[name]) for name in ("KVM_CREATE_VM", "KVM_CREATE_VCPU", "KVM_CREATE_GUEST_MEMFD", "KVM_GET_STATS_FD")
)
_MAKES_SLOTS = frozenset(int(REQUESTS[name]) for name in ("KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2"))
_TAKES_ROOM = _MAKES_FILES | _MAKES_SLOTS | {int(REQUESTS["KVM_MEMORY_ENCRYPT_OP"])}
"""Requests before which everything that programs have closed must really be closed."""
_KICK = signal.SIGUSR1
"""What makes a thread of ours leave the guest."""
_MOST_TRIES = 4


class KvmCalls:
    """Serves them for ``server``.

    ``record``: what keeps what happens. ``host``: 32-bit programs may use the machine's own /dev/kvm.
    """

    def __init__(self, server: Server, memory: MemoryCalls, record: Record, *, host: bool = False) -> None:
        self._server, self._memory, self._record, self._host = server, memory, record, host
        self._watch = Watch()
        server.handlers |= {Sys.IOCTL: self._ioctl, Sys.FALLOCATE: self._fallocate}
        server.other_abi = self._refuse
        libc = ctypes.CDLL(None)
        libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        libc.signal.restype = ctypes.c_void_p
        libc.signal(_KICK, _engine.signal_entry())
        libc.siginterrupt(int(_KICK), 1)

    def _ioctl(self, notification: Notification) -> int | None:
        server = self._server
        found = server.find(notification)
        if found is None:
            return None
        task, status, held = found
        if held is None:
            if not is_kvm(status):
                return None
            held = self._replace(notification)
        kernel, descriptors = server.kernel, server.descriptors
        assert kernel is not None
        assert descriptors is not None
        request, argument = notification.args[1] & 0xFFFFFFFF, notification.args[2]
        try:
            use_mm(task.mm)
            if request == _KVM_RUN:
                return self._run(notification, task, held, argument)
            if request in _TAKES_ROOM:
                descriptors.collect()
            result = kernel.ioctl(held.fd, request, argument)
            if request in _MAKES_FILES:
                cloexec = request != _CREATE_GUEST_MEMFD
                raise server.hand_over(notification, server.give(result), cloexec=cloexec)
            if request in _MAKES_SLOTS:
                region = struct_from_user(kvm_userspace_memory_region, argument)
                start = region.userspace_addr
                if region.memory_size:
                    self._memory.share(notification, task, start, start + region.memory_size, 0)
            return result
        except OSError as error:
            number = error.errno or errno.EIO
            if number not in (errno.EINTR, errno.EAGAIN):
                facts = server.teller.refused(request, argument, number, reason_of(error).text)
                if facts is not None:
                    self._record.refused(*facts)
            return -number
        finally:
            if request == _ENCRYPT_OP and server.machine is not None and self._record.wanted:
                self._record.settle(server.machine)
            descriptors.end(held)

    def _refuse(self, notification: Notification) -> int | None:
        """An ioctl of KVM's type by a 32-bit ABI, whose structures are other ones: never the machine's own device."""
        found = None if self._host else self._server.find(notification)
        if found is None:
            return None
        _, status, held = found
        if held is not None and self._server.descriptors is not None:
            self._server.descriptors.end(held)
        if held is None and not is_kvm(status):
            return None
        self._server.teller.say(
            f"process {notification.pid}: KVM calls by a 32-bit ABI are not served and fail: build the program for 64 "
            "bits, or use --allow-host-kvm",
            always=True,
        )
        return -errno.ENODEV

    def _replace(self, notification: Notification) -> Held:
        """The machine's own /dev/kvm came to the program by another name, or from outside: ours takes its place."""
        kernel, descriptors = self._server.power_on()
        theirs = self._server.give(kernel.open(DEV_KVM))
        try:
            found = os.fstat(theirs)
            fd = signed(notification.args[0])
            self._server.listener.add_fd(notification, theirs, cloexec=True, number=fd)
        finally:
            os.close(theirs)
        held = descriptors.begin((found.st_dev, found.st_ino))
        if held is None:
            raise OSError(errno.EBADF, "the program has closed it")
        return held

    def _run(self, notification: Notification, task: Task, held: Held, argument: int) -> int:
        kernel = self._server.kernel
        assert kernel is not None
        if not isinstance(held.file, VcpuFile):
            return kernel.ioctl(held.fd, _KVM_RUN, argument)
        vcpu, us = held.file.vcpu, threading.get_ident()
        run = Run(task.status, lambda: vcpu.sigset, lambda: signal.pthread_kill(us, _KICK))
        for left in reversed(range(_MOST_TRIES)):
            _engine.clear_signal()
            if vcpu.sigset is not None and run.interrupted():
                run.kick()
            try:
                self._watch.begin(run)
                return kernel.ioctl(held.fd, _KVM_RUN, argument)
            except OSError as error:
                if error.errno != errno.EFAULT or task.mm.wanted is None or not left:
                    raise
            finally:
                self._watch.end(run)
            start, end = task.mm.wanted
            task.mm.wanted = None
            self._memory.share(notification, task, start, end, None)
        return -errno.EFAULT

    def _fallocate(self, notification: Notification) -> int | None:
        server = self._server
        found = server.find(notification)
        if found is None or found[2] is None:
            return None
        task, _, held = found
        assert held is not None
        assert server.kernel is not None
        assert server.descriptors is not None
        try:
            use_mm(task.mm)
            _, mode, offset, length = notification.args[:4]
            server.kernel.fallocate(held.fd, signed(mode), signed(offset, 64), signed(length, 64))
            return 0
        finally:
            server.descriptors.end(held)
