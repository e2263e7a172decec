# SPDX-License-Identifier: GPL-2.0-or-later
"""The real kernel of this machine behind the system-call line, and what its /dev/kvm offers.

Calls go to libc by ctypes and not through `fcntl.ioctl`, which takes an integer argument as a C int (no room for an
address) and copies buffers. ctypes releases the interpreter lock during the call, so one thread per vCPU works; EINTR
comes up as OSError, because KVM_RUN means something by it.
"""

from __future__ import annotations

import ctypes
import mmap as _mmap
import os
from dataclasses import dataclass

from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.kvm import DEV_KVM, KVM_CHECK_EXTENSION, KVM_GET_API_VERSION

_libc = ctypes.CDLL(None, use_errno=True)
_ioctl = _libc.ioctl
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong)
_ioctl.restype = ctypes.c_int
_fallocate = _libc.fallocate
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int


def _error() -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


class HostKernel:
    """The kernel that runs this process. Has no state: all instances are alike."""

    name = "host"

    def open(self, path: str, flags: int = os.O_RDWR | os.O_CLOEXEC) -> int:
        """open(2)."""
        return os.open(path, flags)

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """ioctl(2); ``arg`` is an integer or an address."""
        result: int = _ioctl(fd, request, arg)
        if result < 0:
            raise _error()
        return result

    def mmap(self, fd: int, length: int, offset: int = 0) -> _mmap.mmap:
        """mmap(2), shared, readable and writable."""
        return _mmap.mmap(fd, length, _mmap.MAP_SHARED, _mmap.PROT_READ | _mmap.PROT_WRITE, offset=offset)

    def close(self, fd: int) -> None:
        """close(2)."""
        os.close(fd)

    def eventfd(self, initval: int = 0, flags: int = os.EFD_CLOEXEC | os.EFD_NONBLOCK) -> int:
        """eventfd(2)."""
        return os.eventfd(initval, flags)

    def fallocate(self, fd: int, mode: int, offset: int, length: int) -> None:
        """fallocate(2)."""
        if _fallocate(fd, mode, offset, length) < 0:
            raise _error()


@dataclass(frozen=True)
class KvmOffer:
    """What a kernel's /dev/kvm offers; `survey` finds out."""

    path: str
    errno: int | None
    """Why it did not open or answer; None if it did."""
    api_version: int | None
    vm_types: int
    """Bitmap answered to KVM_CAP_VM_TYPES under its upstream number: bit n = KVM_CREATE_VM takes type n. Kernels that
    do not know the capability (before 6.8) answer 0 and make default VMs all the same."""
    dialect: Dialect | None
    """The TDX dialect spoken; None if TDs cannot be made."""

    @property
    def usable(self) -> bool:
        """Default VMs can be asked for."""
        return self.errno is None and self.api_version == 12

    @property
    def tdx(self) -> bool:
        """TDs can be asked for."""
        return self.dialect is not None

    def __str__(self) -> str:
        """One sentence for a person, naming what is missing.

        >>> str(KvmOffer("/dev/kvm", None, 12, 0x1, None))
        '/dev/kvm makes VMs but no TDs: KVM_CAP_VM_TYPES is 0x1, without bit 5 (KVM_X86_TDX_VM)'
        >>> str(KvmOffer("/dev/kvm", 13, None, 0, None))
        '/dev/kvm cannot be used: Permission denied'
        """
        if self.errno is not None:
            return f"{self.path} cannot be used: {os.strerror(self.errno)}"
        if self.api_version != 12:
            return f"{self.path} cannot be used: its API version is {self.api_version}, not 12"
        if self.dialect is not None:
            return (
                f"{self.path} makes VMs and TDs ({self.dialect.value} dialect, KVM_CAP_VM_TYPES is {self.vm_types:#x})"
            )
        return (
            f"{self.path} makes VMs but no TDs: KVM_CAP_VM_TYPES is {self.vm_types:#x}, "
            f"without bit {Dialect.UPSTREAM.vm_type_tdx} (KVM_X86_TDX_VM)"
        )


def survey(kernel: Kernel | None = None, path: str = DEV_KVM) -> KvmOffer:
    """Ask a kernel (the host's unless told) what its /dev/kvm offers. Never raises for an errno; creates no VM."""
    kernel = kernel or HostKernel()
    try:
        fd = kernel.open(path)
    except OSError as error:
        return KvmOffer(path, error.errno, None, 0, None)
    try:
        version = kernel.ioctl(fd, KVM_GET_API_VERSION, 0)
        vm_types = kernel.ioctl(fd, KVM_CHECK_EXTENSION, Dialect.UPSTREAM.cap_vm_types)
        return KvmOffer(path, None, version, vm_types, dialect_spoken(kernel, fd))
    except OSError as error:
        return KvmOffer(path, error.errno, None, 0, None)
    finally:
        kernel.close(fd)


def dialect_spoken(kernel: Kernel, fd: int) -> Dialect | None:
    """The TDX dialect of the /dev/kvm opened as ``fd``; None if it makes no TDs.

    Upstream is asked first: the number that v10 uses for KVM_CAP_VM_TYPES means a dirty-ring capability upstream, which
    answers 0 or 1 and so never has the bit of a v10 TD (bit 1). Raises OSError.
    """
    for dialect in (Dialect.UPSTREAM, Dialect.V10):
        if kernel.ioctl(fd, KVM_CHECK_EXTENSION, dialect.cap_vm_types) >> dialect.vm_type_tdx & 1:
            return dialect
    return None
