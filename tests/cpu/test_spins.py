# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual CPUs that only poll for another one sleep meanwhile; those that work are never taken for them.

KVM has pause-loop exiting (SDM volume 3, 25.6.13) for the first kind. A loop without PAUSE is the second.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import CODE, Guest, assemble

WORD = 0x300000
TICK_SECONDS = 0.01
WAYS = {"in turns": False, "in parallel": True}
WORKS = "again: inc rax; jmp again"
POLLS = {
    "a load and a branch": f"wait: cmp dword ptr [{WORD}], 0; je wait; hlt",
    "several blocks": f"wait: mov eax, [{WORD}]; test eax, eax; jne 2f; jmp 1f; nop; 1: jmp wait; 2: hlt",
    "a call": f"mov rsi, {WORD}; wait: cmp dword ptr [rsi], 0; je 1f; hlt; 1: lea rdi, [rip + wait]; jmp rdi",
    "PAUSE": f"wait: pause; cmp dword ptr [{WORD}], 0; je wait; hlt",
    "PAUSE, and it counts": f"wait: inc rbx; pause; cmp dword ptr [{WORD}], 0; je wait; hlt",
    "PAUSE, and a locked instruction": f"wait: pause; xor eax, eax; lock cmpxchg [{WORD}], ebx; je wait; hlt",
}
BUSY = {
    "it counts in memory, and nowhere else": "1: inc qword ptr [0x300010]; jmp 2f; nop; 2: mov eax, [{end}]; "
    "test eax, eax; je 1b; hlt",
    "it counts in memory by x87": "fninit; 1: fild qword ptr [0x300010]; fld1; faddp; fistp qword ptr [0x300010]; "
    "cmp dword ptr [{end}], 0; je 1b; hlt",
    "it adds in a vector register": "mov eax, 1; movd xmm1, eax; pxor xmm0, xmm0; xor eax, eax; "
    "1: paddq xmm0, xmm1; cmp dword ptr [{end}], 0; je 1b; hlt",
    "it adds in an x87 register": "fninit; fldz; 1: fld1; faddp; cmp dword ptr [{end}], 0; je 1b; hlt",
    "it counts under a lock": "1: lock inc qword ptr [0x300010]; cmp dword ptr [{end}], 0; je 1b; hlt",
    "it looks at the clock": "1: rdtsc; xor eax, eax; xor edx, edx; cmp dword ptr [{end}], 0; je 1b; hlt",
    "it executes PAUSE from time to time": "1: mov ecx, 200000; 2: dec ecx; jnz 2b; pause; "
    "cmp dword ptr [{end}], 0; je 1b; hlt",
}


def neighbour(source: str, processor: Processor, address: int) -> Guest:
    """A second virtual CPU with code of its own; the first one's stays where it is."""
    kept = processor.memory.read(CODE, 256)
    guest = Guest(processor=processor)
    processor.memory.write(CODE, kept)
    processor.memory.write(address, assemble(source, address))
    guest.context.rip = address
    return guest


class Thread:
    """Runs a guest until it halts, whatever kicks come in between."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self._ends = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while self.guest.run() == ExitReason.EXTERNAL_INTERRUPT and not self._ends:
            pass

    def joined(self, seconds: float = 10) -> bool:
        """Return whether it came to its HLT."""
        self._thread.join(seconds)
        done = not self._thread.is_alive()
        self._ends = True
        self.guest.context.kick()
        self._thread.join()
        return done


@contextmanager
def running(*guests: Guest) -> Iterator[list[Thread]]:
    """Run each in a thread of its own, and end those that are not over."""
    threads = [Thread(guest) for guest in guests]
    try:
        yield threads
    finally:
        for thread in threads:
            thread.joined(0)


@contextmanager
def ticking(*guests: Guest) -> Iterator[None]:
    """Kick those guests again and again, as the kernel's tick does."""
    over = threading.Event()

    def tick() -> None:
        while not over.wait(TICK_SECONDS):
            for guest in guests:
                guest.context.kick()

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        over.set()
    thread.join()


@contextmanager
def company(source: str, way: str) -> Iterator[tuple[Guest, Guest]]:
    """A guest with this code, and one that works."""
    processor = Processor(Platform(memory_size=1 << 30, parallel=WAYS[way]))
    guest = Guest(source, processor=processor)
    worker = neighbour(WORKS, processor, 0x140000)
    guest.memory.raw[WORD : WORD + 64] = bytes(64)
    try:
        yield guest, worker
    finally:
        for each in (guest, worker):
            each.context.close()
        processor.close()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("poll", POLLS)
def test_one_that_polls_sleeps_until_what_it_waits_for_is_there(poll: str, way: str) -> None:
    with company(POLLS[poll], way) as (poller, worker), running(poller, worker) as threads:
        with ticking(poller, worker):
            deadline, slept = time.monotonic() + 20, 0
            # In turns PAUSE gives the turn away at once, so that it need not be found.
            while slept < 10 and not (way == "in turns" and "PAUSE" in poll):
                assert time.monotonic() < deadline, "it was not found, or does not sleep again"
                time.sleep(0.003)  # it looks only for a moment between two naps
                slept += poller.context.naps
        assert not worker.context.polls
        poller.memory.raw[WORD] = 1
        assert threads[0].joined()


@pytest.mark.parametrize("way", WAYS)
def test_a_kick_ends_the_sleep_at_once(way: str) -> None:
    with company(POLLS["a load and a branch"], way) as (poller, worker), running(worker):
        with ticking(poller):
            deadline = time.monotonic() + 20
            while not poller.context.polls and time.monotonic() < deadline:
                assert poller.run() == ExitReason.EXTERNAL_INTERRUPT
        for _ in range(20):
            timer = threading.Timer(0.02, poller.context.kick)
            timer.start()
            assert poller.run() == ExitReason.EXTERNAL_INTERRUPT
            timer.join()
        assert poller.context.polls  # and a kick does not count as work


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("work", BUSY)
def test_one_that_works_is_never_taken_for_it(work: str, way: str) -> None:
    with company(BUSY[work].format(end=WORD), way) as (guest, worker), running(guest, worker) as threads:
        with ticking(guest, worker):
            for _ in range(40):
                time.sleep(0.01)
                assert not guest.context.polls
                assert not worker.context.polls
        guest.memory.raw[WORD] = 1
        assert threads[0].joined()


def test_one_that_polls_alone_is_left_alone() -> None:
    """Nothing else can run, and what it waits for, of a device or another process, is to be seen at once."""
    for poll in ("a load and a branch", "PAUSE"):
        guest = Guest(POLLS[poll], processor=Processor(Platform(memory_size=1 << 30, parallel=True)))
        guest.memory.raw[WORD : WORD + 4] = bytes(4)
        with running(guest) as (thread,):
            with ticking(guest):
                for _ in range(20):
                    time.sleep(0.01)
                    assert not guest.context.polls
            guest.memory.raw[WORD] = 1
            assert thread.joined()


def test_it_is_found_also_where_the_host_has_one_processor() -> None:
    available = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(available)})  # of this thread, and of those that it starts
    try:
        with company(POLLS["a load and a branch"], "in parallel") as (poller, worker), running(poller, worker):
            deadline = time.monotonic() + 20
            while not poller.context.polls and time.monotonic() < deadline:
                time.sleep(0.01)  # no kick is sent
            assert poller.context.polls
    finally:
        os.sched_setaffinity(0, available)
