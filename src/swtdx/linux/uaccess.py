# SPDX-License-Identifier: GPL-2.0-or-later
"""User memory: copy_from_user and copy_to_user (linux/uaccess.h).

An ioctl's pointer is an address in the caller's memory and may be anything. It is never dereferenced here: the copies
go through process_vm_readv(2) and process_vm_writev(2) on our own process, for which a bad address is EFAULT and a
read-only page refuses a write. (Were the caller another process, only the pid would change.)

`current_mm` stands for ``current->mm``: fork() gives the child another one, by which KVM knows that a VM is not its.
"""

import ctypes
import errno
import os
import threading
from typing import Any, TypeVar

from swtdx.linux.err import err

_libc = ctypes.CDLL(None, use_errno=True)
_SCALAR = type["ctypes._SimpleCData[Any]"]
_PROTOTYPE: list[_SCALAR] = [
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
]
_readv, _writev = _libc.process_vm_readv, _libc.process_vm_writev
for _function in (_readv, _writev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = _PROTOTYPE

_SMALL = 4096  # bytes of the per-thread bounce buffer
TASK_SIZE = (1 << 47) - 4096
"""End of user addresses on x86-64 with 4-level paging; what access_ok() compares with."""

S = TypeVar("S", bound=ctypes.Structure)


class Mm:
    """An address space: who it belongs to."""

    def __init__(self) -> None:
        self.pid = os.getpid()


_mm = Mm()


def current_mm() -> Mm:
    """The caller's address space; another object in a child made by fork()."""
    return _mm


def _after_fork() -> None:
    global _mm  # noqa: PLW0603 - the child really has another address space
    _mm = Mm()


os.register_at_fork(after_in_child=_after_fork)


class _iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint64), ("length", ctypes.c_size_t)]


class _Bounce(threading.local):
    """Per thread: a buffer and the two vectors, so that a small copy allocates nothing."""

    def __init__(self) -> None:
        self.buffer = (ctypes.c_char * _SMALL)()
        self.view = memoryview(self.buffer).cast("B")
        self.local, self.remote = _iovec(ctypes.addressof(self.buffer), 0), _iovec()
        self.local_address, self.remote_address = ctypes.addressof(self.local), ctypes.addressof(self.remote)


_bounce = _Bounce()


def access_ok(address: int, length: int) -> bool:
    """Whether the range lies in the user half; says nothing about what is mapped there."""
    return address >= 0 and address + length <= TASK_SIZE


def copy_from_user(address: int, length: int) -> bytes:
    """``length`` bytes of user memory at ``address``. Raises OSError(EFAULT) if any of them cannot be read."""
    if length == 0:
        return b""
    if not access_ok(address, length):
        raise err(errno.EFAULT, f"address {address:#x}+{length:#x} is not a user address")
    bounce = _bounce
    if length <= _SMALL:
        bounce.local.length = length
        bounce.remote.base, bounce.remote.length = address, length
        if _readv(_mm.pid, bounce.local_address, 1, bounce.remote_address, 1, 0) != length:
            raise err(errno.EFAULT, f"cannot read {length} bytes at {address:#x}")
        return bytes(bounce.view[:length])
    buffer = (ctypes.c_char * length)()
    local, remote = _iovec(ctypes.addressof(buffer), length), _iovec(address, length)
    if _readv(_mm.pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0) != length:
        raise err(errno.EFAULT, f"cannot read {length} bytes at {address:#x}")
    return bytes(buffer)


def copy_to_user(address: int, data: bytes | bytearray | memoryview | ctypes.Structure) -> None:
    """Write ``data`` at the user address. Raises OSError(EFAULT); a part may have been written by then."""
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    length = len(view)
    if length == 0:
        return
    if not access_ok(address, length):
        raise err(errno.EFAULT, f"address {address:#x}+{length:#x} is not a user address")
    bounce = _bounce
    if length <= _SMALL:
        bounce.view[:length] = view
        bounce.local.length = length
        bounce.remote.base, bounce.remote.length = address, length
        if _writev(_mm.pid, bounce.local_address, 1, bounce.remote_address, 1, 0) != length:
            raise err(errno.EFAULT, f"cannot write {length} bytes at {address:#x}")
        return
    buffer = (ctypes.c_char * length).from_buffer_copy(view)
    local, remote = _iovec(ctypes.addressof(buffer), length), _iovec(address, length)
    if _writev(_mm.pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0) != length:
        raise err(errno.EFAULT, f"cannot write {length} bytes at {address:#x}")


def struct_from_user(structure: type[S], address: int) -> S:
    """A copy of the structure at the user address. Raises OSError(EFAULT)."""
    return structure.from_buffer_copy(copy_from_user(address, ctypes.sizeof(structure)))


def get_user(address: int, length: int) -> int:
    """A little-endian unsigned integer of ``length`` bytes. Raises OSError(EFAULT)."""
    return int.from_bytes(copy_from_user(address, length), "little")


def put_user(address: int, value: int, length: int) -> None:
    """Store a little-endian unsigned integer of ``length`` bytes. Raises OSError(EFAULT)."""
    copy_to_user(address, value.to_bytes(length, "little"))
