# SPDX-License-Identifier: GPL-2.0-or-later
"""The server: one emulated kernel for all programs below one ``swtdx exec``, and the threads that serve their calls.

Calls come from the receiver (native/notify). Each is served by one of several threads and answered by the same thread:
KVM_RUN takes as long as the guest runs, so another thread waits for the next call meanwhile. The kernel sees the
program that called as ``current`` (`use_mm`): it follows its pointers, knows its descriptors, and refuses it the VMs of
others.

What is not ours is left to the machine's kernel (SECCOMP_USER_NOTIF_FLAG_CONTINUE), which then looks at the arguments
again. A program that changes them in between deceives itself alone: it never gets more than it could open anyway.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from swtdx.exec.notify import _receiver
from swtdx.exec.notify.descriptors import Descriptors
from swtdx.exec.notify.ptrace import Borrowed, hold, thread_ids
from swtdx.exec.notify.seccomp import Listener, Notification, Sys
from swtdx.exec.notify.tasks import Task, Tasks

if TYPE_CHECKING:
    from swtdx.exec.notify.descriptors import Held
    from swtdx.linux.files import File
    from swtdx.machine import MachineKernel
    from swtdx.uapi.kernel import Kernel

log = logging.getLogger(__name__)

_SPARE_THREADS = 3


class Teller(Protocol):
    """Who tells a person."""

    def refused(self, request: int, argument: int, number: int, reason: str) -> tuple[str, str, str] | None:
        """An ioctl failed: its name, errno and reason, if that is not routine."""
        ...

    def failed(self, what: str, error: BaseException) -> None:
        """A fault of swtdx's own."""
        ...

    def say(self, text: str, *, always: bool = False) -> None:
        """One sentence."""
        ...


class Answered(Exception):
    """The call has been answered by other means than its result."""


Handler = Callable[[Notification], "int | None"]
"""Serves a call: its result, -errno or an OSError if it fails; None leaves it to the machine's kernel."""
Act = Callable[[Borrowed, int], None]
"""Makes calls in a thread's name; the number is that of a descriptor that the program has for the time."""
Boot = Callable[[], "tuple[MachineKernel, Kernel]"]


def signed(value: int, bits: int = 32) -> int:
    """The lowest ``bits`` of an argument as a signed number."""
    sign = 1 << bits - 1
    return (value & (sign << 1) - 1 ^ sign) - sign


class Server:
    """``boot`` is called at the first open of /dev/kvm, ``released`` before a file goes."""

    def __init__(
        self, listener: Listener, boot: Boot, teller: Teller, released: Callable[[File], None] = lambda _: None
    ) -> None:
        self.listener = listener
        self.teller = teller
        self.tasks = Tasks()
        self.machine: MachineKernel | None = None
        self.kernel: Kernel | None = None
        self.descriptors: Descriptors | None = None
        self.handlers: dict[int, Handler] = {Sys.EXECVE: self._execve, Sys.EXECVEAT: self._execve}
        self.other_abi: Handler = lambda _: None
        """Serves the ioctls of 32-bit programs."""
        self.borrowed: set[int] = set()
        """Threads in whose name we make calls, which are not to be served."""
        self._boot, self._released = boot, released
        self._booting = threading.Lock()
        self._lock = threading.Lock()
        self._idle = 0
        self._waiting: set[int] = set()
        """Threads whose calls are ours to answer."""

    def power_on(self) -> tuple[Kernel, Descriptors]:
        """The kernel, booted if need be. Raises OSError(EIO)."""
        with self._booting:
            if self.kernel is None or self.descriptors is None:
                try:
                    machine, kernel = self._boot()
                except Exception as error:
                    self.teller.failed("open of /dev/kvm", error)
                    raise OSError(errno.EIO, "the emulated machine does not start") from error
                machine.sees_signals = True
                machine.files.of_clients = False
                self.descriptors = Descriptors(machine, kernel, self._released)
                self.machine, self.kernel = machine, kernel
            return self.kernel, self.descriptors

    # --- threads ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Serve from now on, on threads of our own."""
        _receiver.start(self.listener.fd)
        self._spawn()

    def _spawn(self) -> None:
        threading.Thread(target=self._serve, name="swtdx-server", daemon=True).start()

    def _serve(self) -> None:
        """There is always one thread more that waits for calls than there are calls that are served."""
        notification = Notification()
        while True:
            with self._lock:
                if self._idle >= _SPARE_THREADS:
                    return
                self._idle += 1
            if not _receiver.take(notification.buffer):
                return
            notification.parse()
            with self._lock:
                self._idle -= 1
                alone = not self._idle
            if alone:
                self._spawn()
            self._answer(notification)

    def _answer(self, notification: Notification) -> None:
        tid = notification.pid
        if tid in self.borrowed:
            self.listener.proceed(notification)
            return
        self._waiting.add(tid)
        try:
            handler = self.handlers[notification.nr] if notification.native else self.other_abi
            result = handler(notification)
        except Answered:
            return
        except OSError as error:
            result = -(error.errno or errno.EIO)
        except Exception as error:  # noqa: BLE001 - the program gets an errno, whatever happens
            self.teller.failed(f"system call {notification.nr}", error)
            result = -errno.EIO
        finally:
            self._waiting.discard(tid)
        if result is None:
            self.listener.proceed(notification)
        else:
            self.listener.answer(notification, result)

    # --- for those who serve ------------------------------------------------------------------------------------------

    def give(self, fd: int) -> int:
        """A descriptor to hand over for the kernel's ``fd``, which is closed if there can be none. Raises OSError."""
        kernel, descriptors = self.power_on()
        try:
            return descriptors.give(fd)
        except OSError:
            kernel.close(fd)
            raise

    def hand_over(self, notification: Notification, fd: int, *, cloexec: bool) -> Answered:
        """Let the call return a descriptor for ``fd``, which is closed here. To be raised. Raises OSError."""
        self._waiting.discard(notification.pid)
        try:
            self.listener.add_fd(notification, fd, cloexec=cloexec, answer=True)
        finally:
            os.close(fd)
        return Answered()

    def find(self, notification: Notification, argument: int = 0) -> tuple[Task, os.stat_result, Held | None] | None:
        """The thread, what its descriptor in that argument refers to, and the kernel's file if it is one.

        None if there is no such descriptor. The file is kept until `Descriptors.end`.
        """
        fd = signed(notification.args[argument])
        for fresh in (False, True):
            try:
                task = self.tasks.get(notification.pid, fresh=fresh)
                found = task.fstat(fd)
            except OSError:
                continue
            held = self.descriptors.begin((found.st_dev, found.st_ino)) if self.descriptors is not None else None
            return task, found, held
        return None

    def in_its_name(self, notification: Notification, task: Task, fd: int, act: Act, *, alone: bool) -> Answered:
        """Answer the call by what ``act`` does in the name of the thread that made it, and with the result it sets.

        The program gets a descriptor for our ``fd`` (-1: none) for that time, which ``act`` is told. ``alone``: no
        thread of the process executes anything meanwhile. To be raised. Raises OSError before anything was done.
        """
        tid, outcome = task.tid, list[BaseException | None]()

        def tids() -> set[int]:
            return thread_ids(task.tgid) if alone else {tid}

        def work() -> None:
            task.mm.pid = tid
            try:
                with hold(tids, self._waiting.__contains__) as threads:
                    thread = threads[tid]
                    theirs = self.listener.add_fd(notification, fd, cloexec=True) if fd >= 0 else -1
                    self.borrowed.add(tid)
                    try:
                        self.listener.answer(notification, 0)
                        outcome.append(None)
                        if thread.wait():
                            with thread.borrowed() as borrowed:
                                act(borrowed, theirs)
                                if theirs >= 0:
                                    borrowed.call(Sys.CLOSE, theirs)
                    finally:
                        self.borrowed.discard(tid)  # before it runs again, and its calls are its own
            except (OSError, KeyError) as error:
                log.debug("calls in the name of %d: %s", tid, error)
                outcome.append(error)

        worker = threading.Thread(target=work, name="swtdx-ptrace")  # its end lets go of what it traces
        worker.start()
        worker.join()
        error = outcome[0] if outcome else None
        if isinstance(error, KeyError):
            raise OSError(errno.ESRCH, "the program was killed") from error
        if error is not None:
            raise error
        return Answered()

    def _execve(self, notification: Notification) -> int | None:
        self.tasks.executes(notification.pid)
        return None
