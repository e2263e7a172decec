# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's timers: those disarmed are forgotten at once, and no time is too far away."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from swtdx.linux.sched import TimerQueue


class Owner:
    """What a timer calls back: a local APIC in real life, and behind it a vCPU and a VM."""

    def __init__(self, queue: TimerQueue) -> None:
        self.rang = threading.Event()
        self.timer = queue.timer(self.ring)

    def ring(self) -> None:
        self.rang.set()


@pytest.fixture
def queue() -> Iterator[TimerQueue]:
    queue = TimerQueue()
    yield queue
    queue.stop()


def test_a_timer_that_is_disarmed_keeps_nothing_alive(queue: TimerQueue) -> None:
    owner = Owner(queue)
    owner.timer.start(time.monotonic_ns() + 3600 * 10**9)
    owner.timer.cancel()
    seen = weakref.ref(owner)
    del owner
    gc.collect()
    assert seen() is None


def test_nor_does_one_that_has_rung(queue: TimerQueue) -> None:
    owner = Owner(queue)
    owner.timer.start(time.monotonic_ns())
    assert owner.rang.wait(10)
    seen = weakref.ref(owner)
    del owner
    limit = time.monotonic() + 10
    while seen() is not None and time.monotonic() < limit:
        gc.collect()
        time.sleep(0.01)
    assert seen() is None


def test_a_deadline_beyond_all_time_does_not_end_the_thread(queue: TimerQueue) -> None:
    """A guest may write any 64 bits into IA32_TSC_DEADLINE."""
    far, near = Owner(queue), Owner(queue)
    far.timer.start(1 << 64)
    time.sleep(0.05)
    near.timer.start(time.monotonic_ns())
    assert near.rang.wait(10)
    assert not far.rang.is_set()


def test_rearming_for_ever_takes_no_more_room(queue: TimerQueue) -> None:
    owner = Owner(queue)
    for number in range(1000):
        owner.timer.start(time.monotonic_ns() + (3600 + number) * 10**9)
    assert len(queue._heap) < 100
