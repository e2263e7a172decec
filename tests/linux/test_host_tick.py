# SPDX-License-Identifier: GPL-2.0-or-later
"""The tick of the host's CPUs: who is interrupted by it, and how often."""

from __future__ import annotations

import time
from collections import Counter

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.linux.sched import HostCpus


class _Task:
    in_guest = True

    def __init__(self, cpu: int) -> None:
        self.cpu = cpu


class _Napping(Processor):
    """Notes interrupts; the guest on CPU 1 naps."""

    def __init__(self) -> None:
        super().__init__(Platform(memory_size=1 << 30, logical_processors=2))
        self.sent: Counter[int] = Counter()

    def naps(self, lp: int) -> bool:
        return lp == 1

    def send_ipi(self, lp: int) -> None:
        self.sent[lp] += 1


def _sent(waiters: int) -> Counter[int]:
    processor = _Napping()
    cpus = HostCpus(processor)
    cpus.waiters = waiters
    for cpu in (0, 1):
        assert cpus.get_cpu(_Task(cpu)) == cpu
    deadline = time.monotonic() + 20
    while processor.sent[0] < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    cpus.stop()
    processor.close()
    return processor.sent


def test_a_guest_that_naps_is_let_sleep_but_not_for_ever() -> None:
    sent = _sent(waiters=0)
    assert 3 <= sent[1] <= sent[0] // 4


def test_it_is_interrupted_as_often_as_others_while_somebody_waits_for_a_cpu() -> None:
    sent = _sent(waiters=1)
    assert sent[1] >= sent[0] - 1
