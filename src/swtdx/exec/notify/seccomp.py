# SPDX-License-Identifier: GPL-2.0-or-later
"""Seccomp user notification: system calls of other processes that wait for our answer (seccomp_unotify(2)).

`FILTER` names the calls. Of ioctl(2) only requests of KVM's type are stopped, of madvise(2) and mmap(2) only those that
take memory away; what passes the filter costs the program the filter's few instructions and nothing else.

A call that was received waits killably (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, Linux 5.19): a signal does not tear the
program out of a call that the kernel has begun, and the kernel decides that it ends with EINTR, as Linux does.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from dataclasses import dataclass
from importlib.util import find_spec

from swtdx.exec.procfs import without_proc

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p)
_ioctl = _libc.ioctl
_ioctl.restype = ctypes.c_int
_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

_SYS_SECCOMP = 317
_SET_MODE_FILTER, _GET_ACTION_AVAIL, _GET_NOTIF_SIZES = 1, 2, 3
_FLAG_NEW_LISTENER, _FLAG_WAIT_KILLABLE_RECV = 1 << 3, 1 << 5
_RET_ALLOW, _RET_USER_NOTIF = 0x7FFF0000, 0x7FC00000
_NOTIF_SEND = 0xC0182101
_NOTIF_ADDFD, _NOTIF_SET_FLAGS = 0x40182103, 0x40082104
_RESPONSE_CONTINUE = 1
_ADDFD_SETFD, _ADDFD_SEND = 1, 2
_SYNC_WAKE_UP = 1
_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_SYSCALL_BIT = 0x40000000
_PR_SET_NO_NEW_PRIVS = 38


class Sys:
    """Numbers of the system calls of x86-64 that are looked at."""

    CLOSE = 3
    OPEN, STAT, FSTAT, LSTAT, MMAP, MPROTECT, MUNMAP = 2, 4, 5, 6, 9, 10, 11
    IOCTL, ACCESS, MREMAP, MADVISE, MLOCK2, EXECVE = 16, 21, 25, 28, 325, 59
    CREAT, OPENAT, NEWFSTATAT, FACCESSAT, FALLOCATE, EXECVEAT = 85, 257, 262, 269, 285, 322
    PKEY_MPROTECT, STATX, OPENAT2, FACCESSAT2 = 329, 332, 437, 439
    CLONE, FORK, CLONE3, USERFAULTFD = 56, 57, 435, 323
    FCNTL, FSYNC, FDATASYNC, FTRUNCATE, READAHEAD, SYNC_FILE_RANGE = 72, 74, 75, 77, 187, 277


@dataclass(frozen=True)
class Rule:
    """One call. With ``argument``, only where that argument AND ``mask`` is one of ``values``."""

    number: int
    argument: int = -1
    mask: int = 0xFFFFFFFF
    values: tuple[int, ...] = ()


_AT_EMPTY_PATH = 0x1000
_NO_DEVICE = 0x10000  # O_DIRECTORY
_SHARED, _FIXED, _ANONYMOUS = 0x01, 0x10, 0x20  # MAP_*
_MADV_DONTNEED, _MADV_FREE, _MADV_REMOVE, _MADV_DONTNEED_LOCKED = 4, 8, 9, 24
MADV_GUARD_INSTALL = 102
F_SETLEASE, F_ADD_SEALS, F_GET_SEALS = 1024, 1033, 1034
_CLONE_VM, _CLONE_VFORK = 0x100, 0x4000  # a thread or a child that shares the memory; one that has it until execve()

RULES: tuple[Rule, ...] = (
    Rule(Sys.IOCTL, 1, 0xFF00, (0xAE00,)),
    Rule(Sys.OPENAT, 2, _NO_DEVICE, (0,)),
    Rule(Sys.OPEN, 1, _NO_DEVICE, (0,)),
    Rule(Sys.OPENAT2),
    Rule(Sys.CREAT),
    Rule(Sys.FSTAT),
    Rule(Sys.NEWFSTATAT, 3, _AT_EMPTY_PATH, (_AT_EMPTY_PATH,)),
    Rule(Sys.STATX, 2, _AT_EMPTY_PATH, (_AT_EMPTY_PATH,)),
    Rule(Sys.EXECVE),
    Rule(Sys.EXECVEAT),
    Rule(Sys.FALLOCATE),
    Rule(Sys.FTRUNCATE),
    Rule(Sys.FSYNC),
    Rule(Sys.FDATASYNC),
    Rule(Sys.SYNC_FILE_RANGE),
    Rule(Sys.READAHEAD),
    Rule(Sys.FCNTL, 1, 0xFFFFFFFF, (F_SETLEASE, F_ADD_SEALS, F_GET_SEALS)),
    Rule(Sys.MUNMAP),
    Rule(Sys.MREMAP),
    Rule(Sys.MPROTECT),
    Rule(Sys.PKEY_MPROTECT),
    Rule(
        Sys.MMAP,
        3,
        _SHARED | _FIXED | _ANONYMOUS,
        (_FIXED, _FIXED | _SHARED, _FIXED | _ANONYMOUS, _FIXED | _SHARED | _ANONYMOUS, _SHARED),
    ),
    Rule(
        Sys.MADVISE,
        2,
        0xFFFFFFFF,
        (_MADV_DONTNEED, _MADV_FREE, _MADV_REMOVE, _MADV_DONTNEED_LOCKED, MADV_GUARD_INSTALL),
    ),
    Rule(Sys.CLONE, 0, _CLONE_VM | _CLONE_VFORK, (0,)),  # as the receiver does for clone3(), whose flags are in memory
    Rule(Sys.CLONE3),
    Rule(Sys.FORK),
    Rule(Sys.USERFAULTFD),
)
"""What is always stopped."""

LOOKING: tuple[Rule, ...] = tuple(
    Rule(number)
    for number in (Sys.STAT, Sys.LSTAT, Sys.ACCESS, Sys.NEWFSTATAT, Sys.FACCESSAT, Sys.FACCESSAT2, Sys.STATX)
)
"""Stopped too, whatever `RULES` says, where the machine's own answers about the paths that are ours would be wrong."""

_BPF = struct.Struct("<HBBI")
_LD, _JEQ, _JGE, _AND, _RET = 0x20, 0x15, 0x35, 0x54, 0x06


_OTHER_ABIS = (
    (_LD, 0, 0, 0),
    (_AND, 0, 0, ~_X32_SYSCALL_BIT & 0xFFFFFFFF),
    (_JEQ, 1, 0, 54),  # ioctl of i386
    (_JEQ, 0, 4, 514),  # ioctl of x32
    (_LD, 0, 0, 16 + 8),
    (_AND, 0, 0, 0xFF00),
    (_JEQ, 0, 1, 0xAE00),
    (_RET, 0, 0, _RET_USER_NOTIF),
    (_RET, 0, 0, _RET_ALLOW),
)


def program(rules: tuple[Rule, ...]) -> bytes:
    """The classic BPF program (struct sock_filter) that stops these calls and allows all others; the first rule counts.

    Of the 32-bit ABIs only ioctls of KVM's type are stopped, so that they can be refused: such programs open the
    machine's own files.
    """
    code = [(_LD, 0, 0, 4), (_JEQ, 0, 2, _AUDIT_ARCH_X86_64)]
    code += [(_LD, 0, 0, 0), (_JGE, 0, len(_OTHER_ABIS), _X32_SYSCALL_BIT), *_OTHER_ABIS]
    for rule in rules:
        if rule.argument < 0:
            body = [(_RET, 0, 0, _RET_USER_NOTIF)]
        else:
            body = [(_LD, 0, 0, 16 + 8 * rule.argument), (_AND, 0, 0, rule.mask)]
            left = len(rule.values)
            for value in rule.values:  # the last one decides between the two returns
                body.append((_JEQ, left, 0, value))
                left -= 1
            body += [(_RET, 0, 0, _RET_ALLOW), (_RET, 0, 0, _RET_USER_NOTIF)]
        code += [(_JEQ, 0, len(body), rule.number), *body]
    code.append((_RET, 0, 0, _RET_ALLOW))
    return b"".join(_BPF.pack(*instruction) for instruction in code)


_NOTIFICATION = struct.Struct("<QIIiIQ6Q")  # struct seccomp_notif with its seccomp_data
_RESPONSE = struct.Struct("<QqiI")  # struct seccomp_notif_resp


class Notification:
    """A call that waits. One object for each thread that serves."""

    __slots__ = ("_response", "_response_address", "args", "buffer", "id", "native", "nr", "pid")

    def __init__(self) -> None:
        self.buffer = bytearray(_NOTIFICATION.size)
        self._response = bytearray(_RESPONSE.size)
        self._response_address = ctypes.addressof(ctypes.c_char.from_buffer(self._response))
        self.id = self.pid = self.nr = 0
        self.native = True
        """Not of a 32-bit ABI."""
        self.args: tuple[int, ...] = ()
        """The six arguments, 64 bits each."""

    def parse(self) -> None:
        """What was received into `buffer`."""
        self.id, self.pid, _, self.nr, architecture, _, *args = _NOTIFICATION.unpack(self.buffer)
        self.native = architecture == _AUDIT_ARCH_X86_64 and not self.nr & _X32_SYSCALL_BIT
        self.args = tuple(args)

    def response(self, value: int, error: int, flags: int) -> int:
        """The address of the answer to it."""
        _RESPONSE.pack_into(self._response, 0, self.id, value, error, flags)
        return self._response_address


class _AddFd(ctypes.Structure):
    _fields_ = [
        ("id", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("srcfd", ctypes.c_uint32),
        ("newfd", ctypes.c_uint32),
        ("newfd_flags", ctypes.c_uint32),
    ]


class _Program(ctypes.Structure):
    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_void_p)]


def install(rules: tuple[Rule, ...]) -> int:
    """Stop these calls of the calling thread and all that it forks, to their end. The listener's descriptor.

    Raises OSError: EBUSY if the caller's calls are listened to already, EINVAL before Linux 5.19, EACCES.
    """
    code = ctypes.create_string_buffer(program(rules))
    packed = _Program(len(code) // _BPF.size, ctypes.addressof(code))
    flags = _FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV
    listener = int(_syscall(_SYS_SECCOMP, _SET_MODE_FILTER, flags, ctypes.byref(packed)))
    if listener < 0 and ctypes.get_errno() == errno.EACCES:  # without CAP_SYS_ADMIN: no program gains rights any more
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        listener = int(_syscall(_SYS_SECCOMP, _SET_MODE_FILTER, flags, ctypes.byref(packed)))
    if listener < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return listener


def available() -> str:
    """Empty, or why it cannot be done here, as a sentence."""
    if find_spec("swtdx.exec.notify._receiver") is None:
        return "swtdx.exec.notify._receiver is missing: install swtdx again (from a checkout: script/setup)"
    if cannot := without_proc():
        return cannot
    action = ctypes.c_uint32(_RET_USER_NOTIF)
    if _syscall(_SYS_SECCOMP, _GET_ACTION_AVAIL, 0, ctypes.byref(action)) < 0:
        return "this kernel has no seccomp user notification (CONFIG_SECCOMP_FILTER, Linux 5.0)"
    # A null filter: EFAULT once the flags are accepted, EINVAL where they are not known.
    _syscall(_SYS_SECCOMP, _SET_MODE_FILTER, _FLAG_NEW_LISTENER | _FLAG_WAIT_KILLABLE_RECV, None)
    if ctypes.get_errno() == errno.EINVAL:
        return "seccomp user notification needs Linux 5.19 or later (SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)"
    return ""


class Listener:
    """The server's end. The receiver (native/notify) receives; the thread that serves a call answers it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        # Linux 6.6: the answer wakes the program on this processor, at once. Otherwise it is slower and the same.
        _ioctl(fd, _NOTIF_SET_FLAGS, _SYNC_WAKE_UP)

    def finished(self) -> bool:
        """Whether no program is left that could call."""
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(event & select.POLLHUP for _, event in poll.poll(0))

    def answer(self, to: Notification, result: int) -> bool:
        """Let the call return ``result``, -errno if it failed. False if the caller does not wait any more."""
        response = to.response(result, 0, 0) if result >= 0 else to.response(0, result, 0)
        return bool(_ioctl(self.fd, _NOTIF_SEND, response) == 0)

    def proceed(self, to: Notification) -> None:
        """Let the machine's kernel do the call."""
        _ioctl(self.fd, _NOTIF_SEND, to.response(0, 0, _RESPONSE_CONTINUE))

    def add_fd(self, to: Notification, fd: int, *, cloexec: bool, answer: bool = False, number: int = -1) -> int:
        """Give the caller a descriptor for our ``fd``: its number there, also the call's result if ``answer``.

        ``number``: the one that is to be replaced.

        Raises OSError: EMFILE if the caller has no number left, ENOENT if it is gone.
        """
        flags = (_ADDFD_SEND if answer else 0) | (_ADDFD_SETFD if number >= 0 else 0)
        request = _AddFd(to.id, flags, fd, max(number, 0), os.O_CLOEXEC if cloexec else 0)
        number = _ioctl(self.fd, _NOTIF_ADDFD, ctypes.addressof(request))
        if number < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return int(number)
