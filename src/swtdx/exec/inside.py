# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel in a program's process: what the preloaded library calls, one function for each ``enum swtdx_call``.

Every function takes four integers and returns what the system call would: a result that is not negative, or -errno.
None raises. A process has one kernel, booted at its first open of /dev/kvm. A child made by fork() gets one of its own
when it opens /dev/kvm or uses the descriptor of it that it inherited; VMs and vCPUs are its parent's, and answer EIO as
they do on Linux to another process.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from swtdx.cpu import _engine
from swtdx.exec import _bridge
from swtdx.exec.procfs import without_proc
from swtdx.exec.record import Record
from swtdx.exec.settings import Settings
from swtdx.exec.telling import Telling
from swtdx.linux.arch.x86.kvm.x86.vcpu_ioctl import VcpuFile
from swtdx.linux.err import reason_of
from swtdx.linux.kept_file import more_descriptors
from swtdx.linux.uaccess import keep_maps, struct_from_user
from swtdx.linux.virt.kvm.device import KvmDevice
from swtdx.linux.virt.kvm.guest_memfd import GuestMemfd
from swtdx.uapi.kvm import (
    KVM_MEMORY_ENCRYPT_OP,
    KVM_PRE_FAULT_MEMORY,
    KVM_RUN,
    KVM_SET_USER_MEMORY_REGION,
    KVM_SET_USER_MEMORY_REGION2,
    kvm_userspace_memory_region,
)
from swtdx.uapi.layout import address_of

if TYPE_CHECKING:
    from swtdx.machine import MachineKernel
    from swtdx.uapi.kernel import Kernel

_KVM_RUN = int(KVM_RUN)
_SLOTS = {int(KVM_SET_USER_MEMORY_REGION), int(KVM_SET_USER_MEMORY_REGION2)}
_CHANGE_START, _CHANGE_END, _CHANGE_CONTENTS = range(3)
"""enum swtdx_change."""
_ENCRYPT_OP = int(KVM_MEMORY_ENCRYPT_OP)
_INTERRUPTIBLE = {_KVM_RUN, _ENCRYPT_OP, int(KVM_PRE_FAULT_MEMORY)}
"""Requests that a signal ends with EINTR."""
_LOADED_LATE = ("swtdx.linux.arch.x86.kvm.emulate", "iced_x86", "cryptography.hazmat.primitives.ciphers")
_DEVICE_LINK = "/memfd:" + KvmDevice.name
Call = Callable[[int, int, int, int], int]


def _signed(value: int, bits: int) -> int:
    return ctypes.c_int32(value).value if bits == 32 else ctypes.c_int64(value).value


class Process:
    """One process under ``swtdx exec``."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.telling = Telling(settings)
        self.record = Record(settings)
        self.machine: MachineKernel | None = None
        self.kernel: Kernel | None = None
        self.mappings: dict[int, mmap.mmap] = {}
        self._parents: list[object] = []
        self._watched, self._watching = (0, 0), threading.Lock()
        os.register_at_fork(after_in_child=self._after_fork)

    def calls(self) -> list[Call]:
        """In the order of ``enum swtdx_call``."""
        plain: list[Call] = [self.open, self.ioctl, self.mmap, self.unmap, self.close, self.fallocate, self.adopt]
        return [*plain, self.changed, self.prepare, self.settle, self.finish]

    def boot(self) -> Kernel:
        """The kernel, from the first call on that needs one. Raises OSError, ValueError."""
        if self.kernel is None:
            with more_descriptors():
                from swtdx.exec.machine import boot

                self.record.begin()
                self.machine, self.kernel = boot(self.settings, self.record.sink if self.record.wanted else None)
                keep_maps()
            self.machine.sees_signals = True
            _bridge.set_interrupt(_engine.signal_entry())
        return self.kernel

    def _after_fork(self) -> None:
        """The parent's kernel must not be touched, nor let go of: its threads are not here."""
        self._parents += [self.kernel, self.machine, self.mappings, self.record]
        self.kernel = self.machine = None
        self.mappings = {}
        self._watched, self._watching = (0, 0), threading.Lock()
        self.record = Record(self.settings)

    # --- Calls --------------------------------------------------------------------------------------------------------

    def open(self, flags: int, _b: int, _c: int, _d: int) -> int:
        """/dev/kvm."""
        if self.kernel is None and (cannot := without_proc()):
            self.telling.say(f"process {os.getpid()}: open of /dev/kvm: {cannot}", always=True)
            return -errno.EIO
        try:
            fd = self.boot().open("/dev/kvm", flags)
            if not flags & os.O_CLOEXEC:
                os.set_inheritable(fd, True)
        except OSError as error:
            return -(error.errno or errno.EIO)
        except Exception as error:  # noqa: BLE001 - nothing may cross the line but a number
            self.telling.failed("open of /dev/kvm", error)
            return -errno.EIO
        return fd

    def ioctl(self, fd: int, request: int, argument: int, _d: int) -> int:
        """Any request."""
        kernel = self.kernel
        if kernel is None:  # inherited by fork(): the device, or a thing of the parent's
            result = self.adopt(fd, 0, 0, 0)
            if result < 0 or (kernel := self.kernel) is None:
                return result
        try:
            if request in _INTERRUPTIBLE:
                return self._interruptible(kernel, fd, request, argument)
            result = kernel.ioctl(fd, request, argument)
            if request in _SLOTS and self.machine is not None:
                self._watch(self.machine, argument)
            return result
        except OSError as error:
            number = error.errno or errno.EIO
            if number != errno.EINTR:
                facts = self.telling.refused(request, argument, number, reason_of(error).text)
                if facts is not None:
                    self.record.refused(*facts)
            return -number
        except Exception as error:  # noqa: BLE001 - nothing may cross the line but a number
            self.telling.failed(f"ioctl {request:#010x}", error)
            return -errno.EIO

    def _interruptible(self, kernel: Kernel, fd: int, request: int, argument: int) -> int:
        """A request that a signal ends."""
        machine = self.machine
        file = machine.files.by_fd.get(fd) if machine is not None else None
        _engine.clear_signal()
        _bridge.open_signals(file.vcpu.sigset if request == _KVM_RUN and isinstance(file, VcpuFile) else None)
        try:
            return kernel.ioctl(fd, request, argument)
        finally:
            _bridge.close_signals()
            if request == _ENCRYPT_OP and machine is not None and self.record.wanted:
                self.record.settle(machine)

    def mmap(self, fd: int, length: int, offset: int, flags: int) -> int:
        """The address; ENOTTY for a descriptor that is not ours after all."""
        kernel, machine = self.kernel, self.machine
        if kernel is None or machine is None:
            return -errno.ENOTTY
        file = machine.files.settle(fd)
        if file is None:
            return -errno.ENOTTY
        if isinstance(file, GuestMemfd) and file.supports_mmap and not flags & mmap.MAP_SHARED:
            return -errno.EINVAL  # no copy on write
        try:
            mapping = kernel.mmap(fd, length, _signed(offset, 64))
        except OSError as error:
            return -(error.errno or errno.EIO)
        address = address_of(mapping)
        self.mappings[address] = mapping
        return address

    def unmap(self, address: int, _b: int, _c: int, _d: int) -> int:
        """The program uses no byte of the mapping any more."""
        mapping = self.mappings.pop(address, None)
        if mapping is not None:
            with contextlib.suppress(BufferError):
                mapping.close()
        return 0

    def close(self, fd: int, _b: int, _c: int, _d: int) -> int:
        """A descriptor of ours, or one that was."""
        try:
            if self.kernel is None:
                os.close(fd)
            else:
                if self.machine is not None and self.record.wanted:
                    self.record.settle(self.machine)
                self.kernel.close(fd)
        except OSError as error:
            return -(error.errno or errno.EIO)
        return 0

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> int:
        """Of a guest_memfd."""
        if self.kernel is None:
            return -errno.EIO
        try:
            self.kernel.fallocate(fd, _signed(mode, 32), _signed(offset, 64), _signed(length, 64))
        except OSError as error:
            return -(error.errno or errno.EIO)
        return 0

    def adopt(self, fd: int, _b: int, _c: int, _d: int) -> int:
        """A descriptor that came by execve(), a socket or fork(): /dev/kvm is opened again in its place."""
        try:
            if self.machine is not None and self.machine.files.get(fd) is not None:
                return 0
            if not _is_device(fd):
                self.telling.say(f"descriptor {fd} is a VM or vCPU of another process: EIO")
                return -errno.EIO
            kernel = self.boot()
            ours = kernel.open("/dev/kvm")
            os.dup2(ours, fd, inheritable=os.get_inheritable(fd))
            if self.machine is not None:
                self.machine.files.get(fd)  # counted before the other goes
            kernel.close(ours)
        except OSError as error:
            return -(error.errno or errno.EIO)
        except Exception as error:  # noqa: BLE001 - nothing may cross the line but a number
            self.telling.failed("open of /dev/kvm", error)
            return -errno.EIO
        return 0

    def changed(self, address: int, length: int, change: int, _d: int) -> int:
        """Tell the kernel that the program unmaps, replaces, protects or discards memory."""
        machine, end = self.machine, address + length
        if machine is None:
            return 0
        try:
            if change == _CHANGE_START:
                machine.mmu_notifier_invalidate_range_start(address, end)
            elif change == _CHANGE_END:
                machine.mmu_notifier_invalidate_range_end(address, end)
            else:
                machine.mmu_notifier_contents_changed(address, end)
        except Exception as error:  # noqa: BLE001 - nothing may cross the line but a number
            self.telling.failed("a change of guest memory", error)
            return -errno.EIO
        return 0

    def _watch(self, machine: MachineKernel, argument: int) -> None:
        """Ask for changes between the lowest and the highest address of a slot, the region at ``argument`` included.

        The range does not shrink while there is a slot: to find its new ends is to look at each, for each that goes.
        """
        region = struct_from_user(kvm_userspace_memory_region, argument)
        with self._watching:
            start, end = self._watched
            if region.memory_size:
                first, last = region.userspace_addr, region.userspace_addr + region.memory_size
                watched = (min(start, first), max(end, last)) if end else (first, last)
            else:
                watched = (start, end) if any(kvm.memslots.by_id for kvm in list(machine.vms)) else (0, 0)
            if watched != (start, end):
                self._watched = watched
                _bridge.watch(*watched)

    def prepare(self, _a: int, _b: int, _c: int, _d: int) -> int:
        """Load what is loaded late: the program changes its root directory or its user, and may not find it then."""
        for name in _LOADED_LATE:
            with contextlib.suppress(ImportError):
                import_module(name)
        return 0

    def settle(self, _a: int, _b: int, _c: int, _d: int) -> int:
        """Keep what there is to be kept: the program may be replaced by another one."""
        if self.machine is not None and self.record.wanted:
            self.machine.flush_trace()
            self.record.settle(self.machine)
        return 0

    def finish(self, _a: int, _b: int, _c: int, _d: int) -> int:
        """The process exits."""
        if self.machine is not None:
            self.machine.flush_trace()
            self.record.settle(self.machine)
            self.record.finish()
            self.telling.injected(self.machine)
        return 0


def _is_device(fd: int) -> bool:
    """Whether it is /dev/kvm: the machine's, or that of an emulated kernel elsewhere."""
    target = os.readlink(f"/proc/thread-self/fd/{fd}")
    return target.startswith(_DEVICE_LINK) or not target.startswith("/memfd:")


def start(directory: str) -> list[Call]:
    """Called by the bridge, once in a process."""
    sys.setswitchinterval(0.0005)  # a vCPU that computes in the kernel must not keep the others waiting
    return Process(Settings.read(directory)).calls()
