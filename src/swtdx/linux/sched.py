# SPDX-License-Identifier: GPL-2.0-or-later
"""Which physical CPU a vCPU thread runs on, the timer tick, and timers.

The caller's threads are real; the CPUs on which they run are the processor's logical processors. A thread inside
KVM_RUN owns one of them, prefers the one it had (a TD's vCPU that moves costs a VP.FLUSH), and gives it up while it
sleeps. When there are more runnable vCPUs than CPUs, the tick makes one of them yield.

A signal ends KVM_RUN. While the vCPU sleeps, a handler that runs on its thread interrupts the sleep (`WaitQueue`).
While it is in the guest the thread is in native code: a handler that calls ``swtdx_signal`` makes it leave at once
(`EmulatedKernel.sees_signals`). A Python program's handlers do not; for them every 10 ms a CPU that is in a guest gets
an interrupt. From the first one on signals are held back (`HeldSignals`), and one that waits ends KVM_RUN before its
handler runs. immediate_exit, which handlers like QEMU's set, is looked at then, too. Blocked signals that
KVM_SET_SIGNAL_MASK unblocks are seen in both states.
"""

from __future__ import annotations

import ctypes
import errno
import heapq
import itertools
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from swtdx.clock import Clock

if TYPE_CHECKING:
    from swtdx.cpu.counted import CountedClock
    from swtdx.cpu.processor import Processor

TICK_SECONDS = 0.010
_NAP_TICKS = 5
"""A guest that naps, since it only polls for another vCPU, is interrupted at each tick of so many."""
SIGNAL_POLL_SECONDS = 0.001
"""How often a sleeping vCPU looks for blocked signals, where KVM_SET_SIGNAL_MASK lets them end KVM_RUN."""


class Task(Protocol):
    """What the scheduler knows of a vCPU."""

    cpu: int
    in_guest: bool


class HostCpus:
    """The logical processors, each owned by at most one running vCPU."""

    __slots__ = ("__dict__", "__weakref__", "waiters")  # PageRun reads them

    def __init__(self, processor: Processor) -> None:
        self.processor = processor
        self.count = processor.platform.logical_processors
        self.packages = processor.platform.packages
        self.running: list[Task | None] = [None] * self.count
        self.waiters = 0
        self._lock = threading.Lock()  # taken by itself: on the path of every KVM_RUN a Condition costs two calls more
        self._available = threading.Condition(self._lock)
        self._tick: threading.Thread | None = None
        self._ticking = False
        self._work = threading.Event()  # set as long as _ticking
        self._off = False

    def get_cpu(self, task: Task) -> int:
        """Take a CPU for ``task``, the one it had if that is free; waits for one to become free."""
        running = self.running
        with self._lock:
            cpu = task.cpu
            if running[cpu] is not None:
                cpu = self._any_free()
            running[cpu] = task
            if not self._ticking:
                self._start_tick()
            return cpu

    def _start_tick(self) -> None:
        self._ticking = True
        if self.processor.clock.rings_alarms:  # it has the guest leave as often, at a count
            return
        self._work.set()
        if self._tick is None:
            self._tick = threading.Thread(target=self._tick_loop, name="swtdx-tick", daemon=True)
            self._tick.start()

    def _any_free(self) -> int:
        while None not in self.running:
            self.waiters += 1
            try:
                self._available.wait(TICK_SECONDS)
            finally:
                self.waiters -= 1
        return self.running.index(None)

    def put_cpu(self, cpu: int) -> None:
        """Give the CPU up."""
        with self._lock:
            self.running[cpu] = None
            if self.waiters:
                self._available.notify()

    def smp_call(self, cpu: int) -> None:
        """Interrupt the CPU: whatever guest runs there exits soon."""
        self.processor.send_ipi(cpu)

    def stop(self) -> None:
        """Stop the ticks: the machine is switched off."""
        self._off = True
        self._work.set()

    def _tick_loop(self) -> None:
        ticks = 0
        while not self._off:
            self._work.wait()
            time.sleep(TICK_SECONDS)
            busy = False
            ticks += 1
            lets_nap = ticks % _NAP_TICKS and not self.waiters
            for cpu, task in enumerate(list(self.running)):
                if task is None:
                    continue
                busy = True
                if task.in_guest and not (lets_nap and self.processor.naps(cpu)):
                    self.processor.send_ipi(cpu)
                del task  # a vCPU that is closed while this thread waits must not stay alive for it
            if not busy:
                with self._lock:
                    if all(task is None for task in self.running):
                        self._ticking = False
                        self._work.clear()


_SYS_FUTEX = 202
_FUTEX_WAIT_PRIVATE, _FUTEX_WAKE_PRIVATE = 128, 129
_ALL = (1 << 31) - 1
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = (ctypes.c_long, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint32, ctypes.c_size_t)


class _timespec(ctypes.Structure):
    _fields_ = [("tv_sec", ctypes.c_long), ("tv_nsec", ctypes.c_long)]


class WaitQueue:
    """Where one thread sleeps until it is woken (struct swait_queue_head).

    Python's own locks go on waiting when a signal has come; this does not. The sleeper takes a ticket, looks once more
    whether it must sleep, and waits: a wake-up after the ticket was taken is not lost.
    """

    def __init__(self) -> None:
        self._word = ctypes.c_uint32()
        self._timeout = _timespec()
        self._address, self._timeout_address = ctypes.addressof(self._word), ctypes.addressof(self._timeout)

    def ticket(self) -> int:
        """To be taken before the last look."""
        return self._word.value

    def wake_up(self) -> None:
        """End the sleep, from any thread."""
        self._word.value = self._word.value + 1 & 0xFFFFFFFF
        _syscall(_SYS_FUTEX, self._address, _FUTEX_WAKE_PRIVATE, _ALL, 0)

    def wait(self, ticket: int, seconds: float) -> bool:
        """Sleep. True if a signal handler ran on this thread and ended it; else it was woken, or the time is over."""
        timeout = self._timeout
        timeout.tv_sec = int(seconds)
        timeout.tv_nsec = int(seconds % 1 * 1e9)
        if _syscall(_SYS_FUTEX, self._address, _FUTEX_WAIT_PRIVATE, ticket, self._timeout_address) == 0:
            return False
        return ctypes.get_errno() == errno.EINTR


class CountedWait(WaitQueue):
    """The same where time follows from what the guest executes: it passes in the sleep by being set forward."""

    def __init__(self, clock: CountedClock) -> None:
        super().__init__()
        self._clock = clock

    def wait(self, ticket: int, seconds: float) -> bool:
        """As `WaitQueue.wait`."""
        return self._clock.idle(lambda left: super(CountedWait, self).wait(ticket, left), seconds, self.wake_up)


_NEVER_HELD = {
    signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS, signal.SIGABRT,
    signal.SIGKILL, signal.SIGSTOP,
}  # fmt: skip
_HELD = sum(1 << number - 1 for number in signal.valid_signals() - _NEVER_HELD)


class _sigset_t(ctypes.Structure):
    _fields_ = [("word", ctypes.c_uint64), ("rest", ctypes.c_uint64 * 15)]


# Not by `signal`: it makes an Enum member of each number, which took longer than the interrupt that led here.
_libc = ctypes.PyDLL(None)
_pthread_sigmask, _sigpending = _libc.pthread_sigmask, _libc.sigpending
_pthread_sigmask.argtypes = (ctypes.c_int, ctypes.POINTER(_sigset_t), ctypes.POINTER(_sigset_t))
_sigpending.argtypes = (ctypes.POINTER(_sigset_t),)
_SIG_BLOCK, _SIG_SETMASK = int(signal.SIG_BLOCK), int(signal.SIG_SETMASK)
_held = _sigset_t(_HELD)


class HeldSignals:
    """Signals of one thread, blocked while it runs a guest, so that a call can see them before their handlers run."""

    def __init__(self) -> None:
        self.holding = False
        self._mask = _sigset_t()  # of the thread, before
        self._pending = _sigset_t()

    def look(self) -> bool:
        """Hold signals back from now on; whether one waits that the thread would take."""
        if not self.holding:
            self.holding = True
            _pthread_sigmask(_SIG_BLOCK, _held, self._mask)
        _sigpending(self._pending)
        return bool(self._pending.word & ~self._mask.word)

    def let_go(self) -> bool:
        """Let their handlers run; whether there was one."""
        if not self.holding:
            return False
        waited = self.look()
        self.holding = False
        _pthread_sigmask(_SIG_SETMASK, self._mask, None)
        return waited


class Timer:
    """A one-shot high resolution timer (hrtimer). Times are those of the machine's clock, `Clock.monotonic_ns`."""

    __slots__ = ("_queue", "_ticket", "expires", "function", "shut_down")

    def __init__(self, queue: TimerQueue, function: Callable[[], None]) -> None:
        self._queue = queue
        self.function = function
        self.expires = 0
        self._ticket = 0
        self.shut_down = False

    def start(self, expires: int) -> None:
        """(Re)arm: ``function`` is called from the timer thread at ``expires`` ns."""
        self._queue.add(self, expires)

    def cancel(self) -> None:
        """Disarm. The function may be running just now."""
        self._queue.remove(self)

    def shutdown_sync(self) -> None:
        """Disarm for good and wait for the function to return (timer_shutdown_sync). Not from the function itself."""
        self.shut_down = True  # a periodic one would arm itself again
        self._queue.remove(self)
        self._queue.wait_for(self)


class TimerQueue:
    """One thread that calls timers back; it starts with the first timer."""

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._heap: list[tuple[int, int]] = []  # expiry, ticket; what is disarmed stays until its time
        self._armed: dict[int, Timer] = {}  # by ticket
        self._tickets = itertools.count(1)
        self._changed = threading.Condition(threading.Lock())
        self._thread: threading.Thread | None = None
        self._running: Timer | None = None
        self._returned = threading.Condition(threading.Lock())
        self._off = False

    def stop(self) -> None:
        """Let nothing expire any more: the machine is switched off."""
        with self._changed:
            self._off = True
            self._heap.clear()
            self._armed.clear()
            self._changed.notify()

    def timer(self, function: Callable[[], None]) -> Timer:
        """Return a timer that is not armed."""
        return Timer(self, function)

    def add(self, timer: Timer, expires: int) -> None:
        """Arm ``timer``; an earlier arming of it is forgotten."""
        with self._changed:
            self._armed.pop(timer._ticket, None)
            if timer.shut_down:
                return
            ticket = next(self._tickets)
            timer._ticket = ticket
            timer.expires = expires
            self._armed[ticket] = timer
            heapq.heappush(self._heap, (expires, ticket))
            if len(self._heap) > 2 * len(self._armed) + 64:
                self._heap = [entry for entry in self._heap if entry[1] in self._armed]
                heapq.heapify(self._heap)
            if self._thread is None:
                self._start()
            elif self._heap[0][1] == ticket:
                self._changed.notify()

    def _start(self) -> None:
        if self._clock.serve(self):
            return
        self._thread = threading.Thread(target=self._loop, name="swtdx-hrtimer", daemon=True)
        self._thread.start()

    def due_ns(self) -> int | None:
        """As `swtdx.clock.Alarm`."""
        with self._changed:
            while self._heap and self._heap[0][1] not in self._armed:
                heapq.heappop(self._heap)
            return self._heap[0][0] if self._heap and not self._off else None

    def ring(self) -> None:
        """As `swtdx.clock.Alarm`: call the function of the timer that is first."""
        with self._changed:
            timer = self._armed.pop(heapq.heappop(self._heap)[1], None)
            if timer is not None:
                timer._ticket = 0
        if timer is not None:
            timer.function()

    def remove(self, timer: Timer) -> None:
        """Disarm ``timer``; the queue knows it no longer."""
        with self._changed:
            self._armed.pop(timer._ticket, None)
            timer._ticket = 0
            timer.expires = 0

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Let no timer expire, and none be running; those that are due expire afterwards."""
        while True:
            self._changed.acquire()
            running = self._running
            if running is None:
                break
            self._changed.release()
            self.wait_for(running)
        try:
            yield
        finally:
            if self._armed and self._thread is None:
                self._start()
            self._changed.notify()
            self._changed.release()

    def kept(self) -> list[list[object]]:
        """Return which timers are armed, and for when. While it is `quiet`."""
        return [[timer.expires, timer] for timer in self._armed.values()]

    def go_on(self, kept: list[tuple[int, Timer]]) -> None:
        """Have those timers armed, and no others. While it is `quiet`."""
        for timer in self._armed.values():
            timer._ticket = timer.expires = 0
        self._armed.clear()
        self._heap.clear()
        for expires, timer in kept:
            timer._ticket, timer.expires = next(self._tickets), expires
            self._armed[timer._ticket] = timer
            self._heap.append((expires, timer._ticket))
        heapq.heapify(self._heap)

    def wait_for(self, timer: Timer) -> None:
        """Return when the function of ``timer``, which is disarmed, is not running."""
        with self._returned:
            while self._running is timer:
                self._returned.wait()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not self._off and (
                    not self._heap or (delay := self._heap[0][0] - self._clock.monotonic_ns()) > 0
                ):
                    self._changed.wait(min(delay / 1e9, threading.TIMEOUT_MAX) if self._heap else None)
                if self._off:
                    return
                timer = self._running = self._armed.pop(heapq.heappop(self._heap)[1], None)
                if timer is not None:
                    timer._ticket = 0
            if timer is not None:
                timer.function()
                with self._returned:
                    self._running = None
                    self._returned.notify_all()
            del timer  # or a vCPU that is closed while this thread waits would stay alive
