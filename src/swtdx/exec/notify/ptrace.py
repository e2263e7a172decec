# SPDX-License-Identifier: GPL-2.0-or-later
"""Another process held still, and system calls made in its name (ptrace(2)).

`hold` stops every thread of a process for as long as its memory is being moved. One thread, whose call we were about
to answer, then makes calls for us: the ``syscall`` instruction that brought it here is executed again, step by step,
with other registers. Threads that wait for an answer of ours, or sleep in the kernel where no stop reaches them, do not
execute the program meanwhile, and stop before they do.

A tracer is a thread, so all of it happens on one. That thread should end afterwards: the kernel then lets go of threads
that never stopped (PTRACE_DETACH is for those that did).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator

_ptrace = ctypes.CDLL(None, use_errno=True).ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)

_SINGLESTEP, _GETREGS, _SETREGS, _DETACH = 9, 12, 13, 17
_SETOPTIONS, _GETEVENTMSG = 0x4200, 0x4201
_OPTIONS_FORKS = 0x02 | 0x08  # PTRACE_O_TRACEFORK, PTRACE_O_TRACECLONE
_EVENTS_FORK = (1, 3)  # PTRACE_EVENT_FORK, PTRACE_EVENT_CLONE
_SEIZE, _INTERRUPT, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x420A, 0x420B
_EVENT_STOP = 128
_WALL, _WNOTHREAD = 0x40000000, 0x20000000
_SIGTRAP, _SIGSET_SIZE = 5, 8
_PATIENCE = 5.0
"""Seconds for a thread to stop; one that takes longer is stuck in the machine's kernel."""


class Registers(ctypes.Structure):
    """struct user_regs_struct."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            *("r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"),
            *("orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"),
        )
    ]


def _call(request: int, tid: int, address: object = None, data: object = None) -> None:
    if _ptrace(request, tid, address, data) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _state(tid: int) -> str:
    """The letter of proc(5); empty if the thread is gone."""
    try:
        with open(f"/proc/{tid}/stat", "rb") as file:
            return chr(file.read().rpartition(b")")[2].split(None, 1)[0][0])
    except (OSError, IndexError):
        return ""


class Thread:
    """A thread that we trace."""

    def __init__(self, tid: int, *, seized: bool = False) -> None:
        """Seize it and ask it to stop, if it is not ``seized`` yet. Raises OSError: EPERM if it is traced, ESRCH."""
        self.tid = tid
        self.stopped = False
        self._signal = 0  # one that it was about to get
        self._child = 0  # that it has made, until the next step
        if not seized:
            _call(_SEIZE, tid)
            _call(_INTERRUPT, tid)

    def wait(self, *, asleep: bool = False, patience: float = _PATIENCE) -> bool:
        """Until it stops. False if it will not: it is gone, or, where ``asleep`` is enough, it sleeps in the kernel."""
        deadline = time.monotonic() + patience
        pause = 0.00002
        while not self.stopped:
            try:
                pid, status = os.waitpid(self.tid, _WALL | _WNOTHREAD | os.WNOHANG)
            except ChildProcessError:
                return False
            if pid:
                if not os.WIFSTOPPED(status):
                    return False
                self.stopped = True
                if status >> 16 in _EVENTS_FORK:
                    self._child = self._event_message()
                elif status >> 16 != _EVENT_STOP and os.WSTOPSIG(status) != _SIGTRAP:
                    self._signal = os.WSTOPSIG(status)
                break
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(2 * pause, 0.001)
            if asleep and pause > 0.0005 and _state(self.tid) in ("D", "Z", "X", ""):
                return False
        return self.stopped

    def _event_message(self) -> int:
        message = ctypes.c_ulong()
        with contextlib.suppress(OSError):
            _call(_GETEVENTMSG, self.tid, None, ctypes.byref(message))
        return message.value

    def follow_forks(self, *, follow: bool) -> None:
        """Whether its children are seized, too, before they execute anything. Raises OSError(ESRCH)."""
        _call(_SETOPTIONS, self.tid, None, _OPTIONS_FORKS if follow else 0)

    def take_child(self) -> Thread | None:
        """Return the child that it has made since `follow_forks`, stopped where its call returns, if any."""
        if not self._child:
            return None
        child, self._child = Thread(self._child, seized=True), 0
        return child if child.wait() else None

    def detach(self) -> None:
        """Let it run."""
        if self.stopped:
            with contextlib.suppress(OSError):
                _call(_DETACH, self.tid, None, self._signal)

    def registers(self) -> Registers:
        """Raises OSError(ESRCH) if it was killed."""
        registers = Registers()
        _call(_GETREGS, self.tid, None, ctypes.byref(registers))
        return registers

    def set_registers(self, registers: Registers) -> None:
        """Raises OSError(ESRCH)."""
        _call(_SETREGS, self.tid, None, ctypes.byref(registers))

    @contextlib.contextmanager
    def borrowed(self, mask: int | None = None) -> Iterator[Borrowed]:
        """While it is stopped behind a ``syscall`` instruction: what makes system calls in its name.

        Afterwards its own call has returned `Borrowed.result`, or is made again. Signals wait meanwhile.
        It blocks those of ``mask`` afterwards, or what it blocks now.
        """
        saved = self.registers()
        blocked, all_signals = ctypes.c_uint64(), ctypes.c_uint64((1 << 64) - 1)
        _call(_GETSIGMASK, self.tid, _SIGSET_SIZE, ctypes.byref(blocked))
        if mask is not None:
            blocked.value = mask
        _call(_SETSIGMASK, self.tid, _SIGSET_SIZE, ctypes.byref(all_signals))
        borrowed = Borrowed(self, saved, blocked.value)
        try:
            yield borrowed
        finally:
            with contextlib.suppress(OSError):  # it was killed
                after = Registers.from_buffer_copy(saved)
                after.orig_rax = (1 << 64) - 1
                if borrowed.result is None:
                    after.rip, after.rax = saved.rip - 2, saved.orig_rax
                else:
                    after.rax = borrowed.result & (1 << 64) - 1
                self.set_registers(after)
                _call(_SETSIGMASK, self.tid, _SIGSET_SIZE, ctypes.byref(blocked))

    def step(self, behind: int) -> int:
        """Execute one instruction; RAX once RIP is ``behind`` it. Raises OSError(ESRCH) if it was killed."""
        for _ in range(100):  # SIGSTOP and group stops cannot be blocked and come between
            self.stopped = False
            _call(_SINGLESTEP, self.tid)
            before = self._child
            if not self.wait():
                raise OSError(errno.ESRCH, "the program was killed")
            if self._child != before:
                continue  # in the middle of the call, RIP is behind it
            registers = self.registers()
            if registers.rip == behind:
                return int(registers.rax)
        raise OSError(errno.EIO, "the program does not execute what it is asked to")


class Borrowed:
    """A thread in whose name calls are made."""

    def __init__(self, thread: Thread, saved: Registers, mask: int) -> None:
        self.thread, self._saved = thread, saved
        self.mask = mask
        """The signals that the thread blocks, of its own."""
        self.result: int | None = None
        """What its own call shall return; None: the thread makes it again."""

    def call(self, number: int, *arguments: int) -> int:
        """A system call; its result. Raises OSError, ESRCH if the thread was killed."""
        registers = Registers.from_buffer_copy(self._saved)
        registers.rip = self._saved.rip - 2
        registers.rax, registers.orig_rax = number, (1 << 64) - 1
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        for name, value in zip(names, (*arguments, *[0] * (6 - len(arguments))), strict=True):
            setattr(registers, name, value & (1 << 64) - 1)
        self.thread.set_registers(registers)
        result = self.thread.step(self._saved.rip)
        if result >= (1 << 64) - 4095:
            raise OSError((1 << 64) - result, os.strerror((1 << 64) - result))
        return result


def thread_ids(pid: int) -> set[int]:
    """All threads of the process of ``pid``."""
    try:
        return {int(name) for name in os.listdir(f"/proc/{pid}/task")}
    except OSError:
        return set()


@contextlib.contextmanager
def hold(tids: Callable[[], set[int]], waits_for_us: Callable[[int], bool]) -> Iterator[dict[int, Thread]]:
    """Every thread that ``tids`` names is stopped, or executes nothing, until this ends.

    ``waits_for_us`` says of a thread whether its call is ours to answer; it is seized but not waited for. Raises
    OSError(EPERM) if the process must not be traced, or a debugger traces it.
    """
    threads: dict[int, Thread] = {}
    gone: set[int] = set()
    try:
        while new := tids() - threads.keys() - gone:
            for tid in new:
                try:
                    threads[tid] = Thread(tid)
                except OSError as error:
                    if error.errno != errno.ESRCH and _state(tid) not in ("Z", "X", ""):
                        raise
                    gone.add(tid)
            for tid in new - gone:
                if not waits_for_us(tid):
                    threads[tid].wait(asleep=True)
        yield threads
    finally:
        for thread in threads.values():
            thread.detach()
