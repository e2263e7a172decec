# SPDX-License-Identifier: GPL-2.0-or-later
"""User memory: copy_from_user and copy_to_user (linux/uaccess.h).

An ioctl's pointer is an address in the caller's memory and may be anything. The copies go through process_vm_readv(2)
and process_vm_writev(2) on the caller's process, for which a bad address is EFAULT and a read-only page refuses a
write. Where a sandbox forbids these two, a copy within our own process goes through a pipe: read(2) and write(2) check
their buffer's address just so (`_through_pipe`).

Within our own process the processor's core copies first, as long as it would catch a fault: that takes a fifth of the
time (`read_user`, `write_user`). What it does not copy is left to the system calls, which say why.

`current_mm` stands for ``current->mm``: fork() gives the child another one, by which KVM knows that a VM is not its. It
is our own process's, unless a front end serves other processes: then each thread that serves a call sets the caller's
first (`use_mm`).
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from swtdx.cpu._engine import read_user, write_user
from swtdx.linux.err import err
from swtdx.linux.kept_file import KeptFile

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

_read, _write = _libc.read, _libc.write
for _function in (_read, _write):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]

_PIPE_BYTES = 4096  # what a pipe takes at once, however small its limit
_SMALL = 4096  # bytes of the per-thread bounce buffer
TASK_SIZE = (1 << 47) - 4096
"""End of user addresses on x86-64 with 4-level paging; what access_ok() compares with."""

S = TypeVar("S", bound=ctypes.Structure)


class Mm:
    """An address space, and what else of its process the kernel looks at. This one is our own.

    A front end that serves other processes derives from it.
    """

    def __init__(self, pid: int | None = None) -> None:
        self.pid = os.getpid() if pid is None else pid
        self.kept_maps: KeptFile | None = None
        self._maps_lock = threading.Lock()

    def find_vma(self, address: int) -> tuple[int, int, bool, bool] | None:
        """Return (start, end, readable, writable) of the mapping that holds ``address``."""
        if self.kept_maps is None:
            with open(f"/proc/{self.pid}/maps", "rb") as maps:
                return self._find_in(maps, address)
        with self._maps_lock:
            return self._find_in(self._kept_lines(self.kept_maps.fd()), address)

    @staticmethod
    def _find_in(lines: Iterable[bytes], address: int) -> tuple[int, int, bool, bool] | None:
        for line in lines:
            extent, permissions = line.split(b" ", 2)[:2]
            start, _, end = extent.partition(b"-")
            if int(end, 16) > address:
                if int(start, 16) > address:
                    return None
                return int(start, 16), int(end, 16), permissions[:1] == b"r", permissions[1:2] == b"w"
        return None

    @staticmethod
    def _kept_lines(fd: int) -> Iterator[bytes]:
        """Yield the lines of /proc/PID/maps, from its begin.

        By the position that the open file has, so that each piece continues after the mapping before. A read at an
        offset would count bytes again in a list that other threads change, and find half a line, or miss one.
        """
        os.lseek(fd, 0, os.SEEK_SET)
        rest = b""
        while piece := os.read(fd, 1 << 16):
            *lines, rest = (rest + piece).split(b"\n")
            yield from lines

    def reach(self, start: int, end: int) -> int:
        """Return where in our own process the memory [start, end) of one mapping is. Raises OSError(EFAULT)."""
        return start

    def leave(self, start: int, end: int) -> None:
        """What `reach` gave is not used any more."""

    def fstat(self, fd: int) -> os.stat_result:
        """fstat(2) of one of its descriptors. Raises OSError(EBADF)."""
        try:
            return os.fstat(fd)
        except OverflowError as error:
            raise err(errno.EBADF, f"fd {fd}") from error

    def dup(self, fd: int) -> int:
        """Return a descriptor of ours for what its descriptor ``fd`` refers to. Raises OSError(EBADF, EMFILE)."""
        try:
            return os.dup(fd)
        except OverflowError as error:
            raise err(errno.EBADF, f"fd {fd}") from error

    def find_thread(self) -> bool:
        """The thread by whose number memory was reached has ended. Return whether `pid` is that of another one now."""
        self.pid = threading.get_native_id()
        return True

    def pending_signals(self) -> Iterable[int]:
        """Signals that wait for the calling thread, or for its process, since it blocks them."""
        pending: set[int] = signal.sigpending()
        return pending


class _iovec(ctypes.Structure):
    _fields_ = [("base", ctypes.c_uint64), ("length", ctypes.c_size_t)]


_own_mm = Mm()


class _Bounce(threading.local):
    """Per thread: the caller, and a buffer and the two vectors, so that a small copy allocates nothing."""

    def __init__(self) -> None:
        self.mm = _own_mm
        self.buffer = (ctypes.c_char * _SMALL)()
        self.view = memoryview(self.buffer).cast("B")
        self.local, self.remote = _iovec(ctypes.addressof(self.buffer), 0), _iovec()
        self.local_address, self.remote_address = ctypes.addressof(self.local), ctypes.addressof(self.remote)


_bounce = _Bounce()


def current_mm() -> Mm:
    """Return the caller's address space; another object in a child made by fork()."""
    return _bounce.mm


def own_mm() -> Mm:
    """Return the address space of the process that the kernel is in."""
    return _own_mm


def keep_maps() -> None:
    """Open the list of our own mappings while it can be opened: a client may change its root directory."""
    _own_mm.kept_maps = KeptFile(f"/proc/{os.getpid()}/maps", os.O_RDONLY)


def use_mm(mm: Mm) -> None:
    """From now on this thread serves ``mm`` (kthread_use_mm)."""
    _bounce.mm = mm


def _after_fork() -> None:
    global _own_mm  # noqa: PLW0603 - the child really has another address space
    _own_mm = _bounce.mm = Mm()


os.register_at_fork(after_in_child=_after_fork)


def access_ok(address: int, length: int) -> bool:
    """Return whether the range lies in the user half; says nothing about what is mapped there."""
    return address >= 0 and address + length <= TASK_SIZE


def copy_from_user(address: int, length: int, mm: Mm | None = None) -> bytes:
    """``length`` bytes of the caller's memory, or of ``mm``'s. Raises OSError(EFAULT) if any of them cannot be read."""
    if length == 0:
        return b""
    if not access_ok(address, length):
        raise err(errno.EFAULT, f"address {address:#x}+{length:#x} is not a user address")
    bounce = _bounce
    if (mm or bounce.mm) is _own_mm:
        data = read_user(address, length)
        if data is not None:
            return data
    if length <= _SMALL:
        bounce.local.length = length
        bounce.remote.base, bounce.remote.length = address, length
        if _readv((mm or bounce.mm).pid, bounce.local_address, 1, bounce.remote_address, 1, 0) != length:
            _otherwise(mm or bounce.mm, "read", address, length, address, bounce.local.base)
        return bytes(bounce.view[:length])
    buffer = (ctypes.c_char * length)()
    local, remote = _iovec(ctypes.addressof(buffer), length), _iovec(address, length)
    if _readv((mm or bounce.mm).pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0) != length:
        _otherwise(mm or bounce.mm, "read", address, length, address, local.base)
    return bytes(buffer)


def copy_to_user(address: int, data: bytes | bytearray | memoryview | ctypes.Structure, mm: Mm | None = None) -> None:
    """Write ``data`` at the user address (as `copy_from_user`). Raises OSError(EFAULT); a part may be written then."""
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else memoryview(data)
    length = len(view)
    if length == 0:
        return
    if not access_ok(address, length):
        raise err(errno.EFAULT, f"address {address:#x}+{length:#x} is not a user address")
    bounce = _bounce
    if (mm or bounce.mm) is _own_mm and write_user(address, view):
        return
    if length <= _SMALL:
        bounce.view[:length] = view
        bounce.local.length = length
        bounce.remote.base, bounce.remote.length = address, length
        if _writev((mm or bounce.mm).pid, bounce.local_address, 1, bounce.remote_address, 1, 0) != length:
            _otherwise(mm or bounce.mm, "write", address, length, bounce.local.base, address)
        return
    buffer = (ctypes.c_char * length).from_buffer_copy(view)
    local, remote = _iovec(ctypes.addressof(buffer), length), _iovec(address, length)
    if _writev((mm or bounce.mm).pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0) != length:
        _otherwise(mm or bounce.mm, "write", address, length, local.base, address)


def _otherwise(mm: Mm, access: str, address: int, length: int, source: int, target: int) -> None:
    """A copy by process_vm_readv or process_vm_writev has failed: raise OSError(EFAULT), or copy in another way."""
    number = ctypes.get_errno()
    if number == errno.ESRCH and mm.find_thread():
        ours, copy = (source, _writev) if access == "write" else (target, _readv)
        local, remote = _iovec(ours, length), _iovec(address, length)
        if copy(mm.pid, ctypes.addressof(local), 1, ctypes.addressof(remote), 1, 0) == length:
            return
        number = ctypes.get_errno()
    forbidden = number in (errno.EPERM, errno.ENOSYS)
    if forbidden and mm is not _own_mm:
        raise err(errno.EFAULT, f"process_vm_{access}v is forbidden here (a sandbox, or another user's process)")
    if not forbidden or not _through_pipe(source, target, length):
        raise err(errno.EFAULT, f"cannot {access} {length} bytes at {address:#x}")


def _through_pipe(source: int, target: int, length: int) -> bool:
    """Copy memory within our process; False if any of it is not mapped so that it can be."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        done = 0
        while done < length:
            taken = _write(write_end, source + done, min(length - done, _PIPE_BYTES))
            if taken <= 0:
                return False
            given = 0
            while given < taken:
                step = _read(read_end, target + done + given, taken - given)
                if step <= 0:
                    return False
                given += step
            done += taken
    finally:
        os.close(read_end)
        os.close(write_end)
    return True


def struct_from_user(structure: type[S], address: int) -> S:
    """Return a copy of the structure at the user address. Raises OSError(EFAULT)."""
    return structure.from_buffer_copy(copy_from_user(address, ctypes.sizeof(structure)))


def get_user(address: int, length: int) -> int:
    """Return a little-endian unsigned integer of ``length`` bytes. Raises OSError(EFAULT)."""
    return int.from_bytes(copy_from_user(address, length), "little")


def put_user(address: int, value: int, length: int) -> None:
    """Store a little-endian unsigned integer of ``length`` bytes. Raises OSError(EFAULT)."""
    copy_to_user(address, value.to_bytes(length, "little"))
