# SPDX-License-Identifier: GPL-2.0-or-later
"""Calls that change a program's memory: mmap(2), munmap(2) and the rest; and how memory becomes the server's too.

Where guests use the memory, the call is made in the program's name, so that the kernel can be told before and after
(KVM's MMU notifier); it is left to the machine's kernel otherwise. Some calls are different: a mapping of a vCPU shows
the VM's ring, one of a guest_memfd without shared memory shows nothing, and MADV_DONTNEED of memory that was moved
makes zeros of it, since the program takes it for private.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from swtdx.exec.notify.seccomp import MADV_GUARD_INSTALL, Notification, Sys
from swtdx.exec.notify.server import Act, Answered, Server
from swtdx.exec.notify.tasks import Task
from swtdx.linux.arch.x86.kvm.x86.vcpu_ioctl import VcpuFile
from swtdx.linux.uaccess import use_mm
from swtdx.linux.virt.kvm.binary_stats import StatsFile
from swtdx.linux.virt.kvm.coalesced_mmio import RING_OFFSET
from swtdx.linux.virt.kvm.device import KvmDevice
from swtdx.linux.virt.kvm.guest_memfd import BEYOND_THE_END, GuestMemfd

if TYPE_CHECKING:
    from swtdx.exec.notify.ptrace import Borrowed

_PAGE = 4096
_PROT_WRITE, _PROT_EXEC = 2, 4
_MAP_SHARED, _MAP_FIXED, _MAP_ANONYMOUS = 0x01, 0x10, 0x20
_MREMAP_FIXED = 2
_MADV_REMOVE = 9


def call_again(its: Borrowed, notification: Notification) -> None:
    """Make the call that was stopped; its result is the call's."""
    try:
        its.result = its.call(notification.nr, *notification.args)
    except OSError as error:
        its.result = -(error.errno or errno.EIO)


def raise_if(answered: Answered | None) -> None:
    """Raise ``answered``, if it is."""
    if answered is not None:
        raise answered


class MemoryCalls:
    """Serves them for ``server``."""

    def __init__(self, server: Server) -> None:
        self._server = server
        server.handlers |= {
            Sys.MUNMAP: lambda n: self._changes(n, [(n.args[0], n.args[1])]),
            Sys.MPROTECT: lambda n: self._changes(n, [(n.args[0], n.args[1])]),
            Sys.PKEY_MPROTECT: lambda n: self._changes(n, [(n.args[0], n.args[1])]),
            Sys.MREMAP: self._mremap,
            Sys.MADVISE: self._madvise,
            Sys.USERFAULTFD: self._userfaultfd,
            Sys.MMAP: self._mmap,
        }

    def _used(self, notification: Notification, ranges: list[tuple[int, int]]) -> Task | None:
        """The thread, if guests use a part of the ranges (start, length)."""
        if self._server.machine is None:
            return None
        try:
            task = self._server.tasks.get(notification.pid)
        except OSError:
            return None
        used = task.mm.windows and any(task.mm.touches(start, start + length) for start, length in ranges)
        return task if used else None

    def _changes(self, notification: Notification, ranges: list[tuple[int, int]]) -> None:
        """The call changes what is mapped in the ranges. It is made in the program's name where guests use them."""
        task = self._used(notification, ranges)
        if task is not None:
            raise_if(self._made(notification, task, ranges, -1, lambda its, _: call_again(its, notification)))

    def _made(
        self, notification: Notification, task: Task, ranges: list[tuple[int, int]], fd: int, act: Act
    ) -> Answered | None:
        """Make the call by ``act``, with the kernel told before and after; None: under a debugger, it is left alone."""
        machine, mm = self._server.machine, task.mm
        assert machine is not None
        use_mm(mm)
        for start, length in ranges:
            machine.mmu_notifier_invalidate_range_start(start, start + length)

        left = list(ranges)

        def over() -> None:
            while left:
                start, length = left.pop()
                mm.forget(start, start + length)
                machine.mmu_notifier_invalidate_range_end(start, start + length)

        def act_and_tell(its: Borrowed, theirs: int) -> None:
            use_mm(mm)
            act(its, theirs)
            over()  # before the program runs again

        try:
            return self._server.in_its_name(notification, task, fd, act_and_tell, alone=False)
        except OSError:
            return None
        finally:
            over()

    def _mremap(self, notification: Notification) -> None:
        old, old_size, new_size, flags, new = notification.args[:5]
        ranges = [(old, max(old_size, new_size)), *([(new, new_size)] if flags & _MREMAP_FIXED else [])]
        self._changes(notification, ranges)

    def _userfaultfd(self, notification: Notification) -> None:
        """Guests touch memory by mappings of the server's, whose faults are not the program's."""
        self._server.teller.say(
            f"process {notification.pid}: userfaultfd sees no fault of a guest with '--front-end notify', and the "
            "guest reads zeros: use 'preload'"
        )

    def _madvise(self, notification: Notification) -> int | None:
        """Contents alone change."""
        start, length, advice = notification.args[:3]
        task = self._used(notification, [(start, length)])
        machine = self._server.machine
        if task is None or machine is None or start % _PAGE:
            return None
        if advice == MADV_GUARD_INSTALL:
            self._server.teller.say(
                f"process {notification.pid}: MADV_GUARD_INSTALL of a guest's memory fails: use '--front-end preload'"
            )
            return -errno.EINVAL
        end = start + (length + _PAGE - 1 & -_PAGE)
        use_mm(task.mm)
        if advice != _MADV_REMOVE:
            task.mm.discard(start, end)
            machine.mmu_notifier_contents_changed(start, end)
            return None

        def remove(its: Borrowed, _: int) -> None:
            use_mm(task.mm)
            call_again(its, notification)
            machine.mmu_notifier_contents_changed(start, end)

        try:
            answered = self._server.in_its_name(notification, task, -1, remove, alone=False)
        except OSError:
            return None
        raise answered

    # --- mmap ---------------------------------------------------------------------------------------------------------

    def _mmap(self, notification: Notification) -> int | None:
        address, length, protection, flags, _, offset = notification.args
        replaced = [(address, length)] if flags & _MAP_FIXED else []
        descriptors = self._server.descriptors
        found = None
        if descriptors is not None and flags & _MAP_SHARED and not flags & _MAP_ANONYMOUS:
            found = self._server.find(notification, 4)
        if descriptors is None or found is None or found[2] is None:
            self._changes(notification, replaced)
            return None
        task, _, held = found
        assert held is not None
        try:
            if isinstance(held.file, StatsFile) and protection & _PROT_WRITE:
                return -errno.EACCES
            if protection & _PROT_EXEC and not isinstance(held.file, KvmDevice):
                return -errno.EPERM  # anonymous inodes hold no code
            if isinstance(held.file, GuestMemfd) and held.file.supports_mmap:
                self._map_guest_memfd(notification, task, replaced, held.file)
                return None
            if not isinstance(held.file, VcpuFile):
                return -errno.ENODEV
            vcpu = held.file.vcpu
            ring = vcpu.kvm.buses.ring.descriptor
            if not vcpu.vcpu_idx or not offset <= RING_OFFSET < offset + length or ring < 0:
                self._changes(notification, replaced)
                return None
            made = self._made(
                notification, task, replaced, ring, lambda its, fd: self._map_with_ring(notification, its, fd)
            )
            raise_if(made)
            return None  # under a debugger: the page is there, and shows nothing
        finally:
            descriptors.end(held)

    def _map_guest_memfd(
        self, notification: Notification, task: Task, replaced: list[tuple[int, int]], file: GuestMemfd
    ) -> None:
        """The memfd's own pages, where user space may have them; else a mapping of what lies beyond them."""
        if file.init_shared:
            self._changes(notification, replaced)
            return

        def beyond(its: Borrowed, _: int) -> None:
            *arguments, offset = notification.args
            try:
                its.result = its.call(Sys.MMAP, *arguments, BEYOND_THE_END + offset % _PAGE)
            except OSError as error:
                its.result = -(error.errno or errno.EIO)

        raise_if(self._made(notification, task, replaced, -1, beyond))

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
