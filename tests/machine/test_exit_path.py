# SPDX-License-Identifier: GPL-2.0-or-later
"""What stands between a guest's exit and user space: Python calls, counted, since times depend on the machine.

The bounds are what the version before the front ends of `swtdx exec` needed (30 and 37), to which nothing may add.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from swtdx.linux.sched import HeldSignals
from swtdx.uapi.client import Kvm
from testing.guest import Workload
from testing.td import MeasuredTd
from testing.vm import OUT_FOR_EVER, RealModeVm

EXITS = 200


def _calls(work: Callable[[], object]) -> float:
    """Calls of Python functions for each exit of ``work``; a tick of the machine in between is spread over all."""
    calls = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls
        calls += event == "call"

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls / EXITS


def test_an_out_of_an_ordinary_vm(kvm: Kvm) -> None:
    with RealModeVm(kvm, OUT_FOR_EVER) as vm:
        vm.seconds_an_exit(EXITS)
        assert min(_calls(lambda: vm.seconds_an_exit(EXITS)) for _ in range(3)) < 30


def test_port_output_of_a_td(kvm: Kvm) -> None:
    with MeasuredTd(kvm) as td:
        td.seconds(Workload.IO_EXIT, EXITS)
        assert min(_calls(lambda: td.seconds(Workload.IO_EXIT, EXITS)) for _ in range(3)) < 37


def test_an_interrupt_of_the_host_makes_no_object_of_each_signal() -> None:
    """Latency is what such an interrupt is about. `signal` makes an Enum member of each of sixty numbers."""
    held = HeldSignals()
    assert _calls(lambda: (held.look(), held.let_go())) * EXITS < 10


def test_held_signals_come_when_they_are_let_go() -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: came.append(number))
    try:
        held = HeldSignals()
        assert held.look() is False
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        time.sleep(0)
        assert came == []
        assert held.look() is True
        assert held.let_go() is True
        assert came == [signal.SIGUSR1]
        assert held.let_go() is False
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
        assert held.look() is False, "the thread itself blocks it: it is nothing to leave for"
        assert held.let_go() is False
        assert signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1}) == {signal.SIGUSR1}
        assert len(came) == 2
    finally:
        signal.signal(signal.SIGUSR1, before)
