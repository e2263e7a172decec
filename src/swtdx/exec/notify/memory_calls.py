# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that change a program's memory: mmap(2), munmap(2) and the rest; and how memory becomes the server's too.

The machine's kernel executes them after we have looked. What guests used of the range is forgotten first, so that their
next access looks again (KVM's MMU notifier). Two calls are not left alone: a mapping of a vCPU shows the VM's ring, and
MADV_DONTNEED of memory that was moved makes zeros of it, since the program believes that it is private.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from swtdx.exec.notify.seccomp import Notification, Sys
from swtdx.exec.notify.server import Server
from swtdx.exec.notify.tasks import Task
from swtdx.linux.arch.x86.kvm.x86.vcpu_ioctl import VcpuFile
from swtdx.linux.uaccess import use_mm
from swtdx.linux.virt.kvm.coalesced_mmio import RING_OFFSET

if TYPE_CHECKING:
    from swtdx.exec.notify.ptrace import Borrowed

_PAGE = 4096
_MAP_SHARED, _MAP_FIXED, _MAP_ANONYMOUS = 0x01, 0x10, 0x20


class MemoryCalls:
    """Serves them for ``server``."""

    def __init__(self, server: Server) -> None:
        self._server = server
        server.handlers |= {
            Sys.MUNMAP: lambda n: self._changes(n, n.args[0], n.args[1]),
            Sys.MPROTECT: lambda n: self._changes(n, n.args[0], n.args[1]),
            Sys.PKEY_MPROTECT: lambda n: self._changes(n, n.args[0], n.args[1]),
            Sys.MREMAP: self._mremap,
            Sys.MADVISE: self._madvise,
            Sys.MMAP: self._mmap,
        }

    def _used(self, notification: Notification, start: int, length: int) -> Task | None:
        """The thread, if guests use a part of the range."""
        if self._server.machine is None:
            return None
        try:
            task = self._server.tasks.get(notification.pid)
        except OSError:
            return None
        return task if task.mm.windows and task.mm.touches(start, start + length) else None

    def _changes(self, notification: Notification, start: int, length: int) -> None:
        task = self._used(notification, start, length)
        if task is not None:
            self._invalidate(task, start, start + length)
            task.mm.forget(start, start + length)

    def _invalidate(self, task: Task, start: int, end: int) -> None:
        use_mm(task.mm)
        invalidate = getattr(self._server.machine, "mmu_notifier_invalidate_range", None)
        if invalidate is not None:
            invalidate(start, end)

    def _mremap(self, notification: Notification) -> None:
        old, old_size, new_size, _, new = notification.args[:5]
        self._changes(notification, old, max(old_size, new_size))
        self._changes(notification, new, new_size)

    def _madvise(self, notification: Notification) -> None:
        start, length, _ = notification.args[:3]
        task = self._used(notification, start, length)
        if task is not None and not start % _PAGE:
            task.mm.discard(start, start + (length + _PAGE - 1 & -_PAGE))

    # --- mmap ---------------------------------------------------------------------------------------------------------

    def _mmap(self, notification: Notification) -> int | None:
        address, length, _, flags, _, offset = notification.args
        if flags & _MAP_FIXED:
            self._changes(notification, address, length)
        descriptors = self._server.descriptors
        if descriptors is None or flags & _MAP_ANONYMOUS or not flags & _MAP_SHARED:
            return None
        found = self._server.find(notification, 4)
        if found is None or found[2] is None:
            return None
        task, _, held = found
        assert held is not None
        try:
            if not isinstance(held.file, VcpuFile):
                return -errno.ENODEV
            vcpu = held.file.vcpu
            ring = vcpu.kvm.buses.ring.descriptor
            if not vcpu.vcpu_idx or not offset <= RING_OFFSET < offset + length or ring < 0:
                return None
            try:
                answered = self._server.in_its_name(
                    notification, task, ring, lambda its, fd: self._map_with_ring(notification, its, fd), alone=False
                )
            except OSError:  # under a debugger: the page is there, and shows nothing
                return None
            raise answered
        finally:
            descriptors.end(held)

    @staticmethod
    def _map_with_ring(notification: Notification, its: Borrowed, ring: int) -> None:
        """A later vCPU's memory, with the ring of the VM's first as its third page."""
        protection, offset = notification.args[2], notification.args[5]
        try:
            its.result = address = its.call(Sys.MMAP, *notification.args)
            at = address + RING_OFFSET - offset
            its.call(Sys.MMAP, at, _PAGE, protection, _MAP_SHARED | _MAP_FIXED, ring, RING_OFFSET)
        except OSError as error:
            its.result = -(error.errno or errno.EIO)

    # --- sharing ------------------------------------------------------------------------------------------------------

    def share(self, notification: Notification, task: Task, start: int, end: int, result: int | None) -> None:
        """Make the program's memory in the range ours too, as far as there is any.

        If that takes moving it, the call has returned ``result`` afterwards (None: it is made again), and `Answered` is
        raised. What cannot be shared is EFAULT to the guest that touches it.
        """
        mm = task.mm

        def move(its: Borrowed, theirs: int) -> None:
            its.result = result
            left = mm.share_files(mm.unshared(start, end))
            try:
                mm.place(theirs, mm.move(left, fd), its.call)
            except OSError as error:
                its.result = -(error.errno or errno.EIO) if result is None else result
                self._cannot(mm.owner, start, error)

        with mm.sharing:
            if not mm.share_files(mm.unshared(start, end)):
                return
            fd = os.memfd_create("swtdx guest memory", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                answered = self._server.in_its_name(notification, task, fd, move, alone=True)
            except OSError as error:
                os.close(fd)
                self._cannot(mm.owner, start, error)
                return
        raise answered

    def _cannot(self, pid: int, start: int, error: OSError) -> None:
        why = "a debugger traces it, or it may not be traced" if error.errno == errno.EPERM else str(error)
        self._server.teller.say(f"process {pid}: guest memory at {start:#x} cannot be shared with the server: {why}")
