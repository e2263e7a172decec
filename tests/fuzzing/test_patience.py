# SPDX-License-Identifier: GPL-2.0-or-later
"""When a run of a fuzzed guest is over, and when it hangs: the same on a loaded machine as on an idle one."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from swtdx.fuzzing.patience import LONGEST_STEP, Look, Patience, look

SECONDS = 2.0
STEP = 0.1
MOST = 1000.0

Share = Callable[[float], float]
"""Of each second of the host's: how much of it."""


def lived(compute: Share, wait: Share, calls: Callable[[float], bool]) -> tuple[float, bool]:
    """How long a run lasts by the host's clock, and whether it hangs; its one thread computes and waits in turns."""
    now = computed = waited = called_at = 0.0
    patience = Patience(SECONDS, Look(0.0, 0.0, {"1": 0.0}))
    while now < MOST:
        now += STEP
        computed += STEP * compute(now)
        waited += STEP * wait(now)
        if calls(now):
            called_at = now
        if patience.spend(Look(now, computed, {"1": waited, "2": 0.0}, called_at)):
            break
    return now, patience.hangs


def always(part: float) -> Share:
    return lambda now: part


@pytest.mark.parametrize(
    ("name", "compute", "wait", "calls", "hangs"),
    [
        ("computes and calls", 1.0, 0.0, lambda now: True, False),
        ("computes and asks for nothing", 1.0, 0.0, lambda now: False, True),
        ("halts and asks for nothing", 0.02, 0.0, lambda now: False, False),
        ("stops calling in the first half", 1.0, 0.0, lambda now: now < 0.8, True),
        ("stops calling in the second half", 1.0, 0.0, lambda now: now < 1.2, False),
    ],
)
def test_an_idle_machine(name: str, compute: float, wait: float, calls: Callable[[float], bool], hangs: bool) -> None:
    lasted, verdict = lived(always(compute), always(wait), calls)
    assert lasted == pytest.approx(SECONDS, abs=2 * STEP), name
    assert verdict is hangs, name


@pytest.mark.parametrize("load", [2, 10])
def test_a_loaded_machine_gives_the_guest_as_much(load: int) -> None:
    """It waits for all but one of ``load`` seconds, and asks once in each half of what it has."""
    share = 1 / load
    for calls, hangs in ((lambda now: True, False), (lambda now: now * share < 1.2, False), (lambda now: False, True)):
        lasted, verdict = lived(always(share), always(1 - share), calls)
        assert lasted == pytest.approx(SECONDS * load, rel=0.1)
        assert verdict is hangs


def test_a_process_that_was_stopped_has_not_had_its_time() -> None:
    patience = Patience(SECONDS, Look(0.0, 0.0, {}))
    assert not patience.spend(Look(1000.0, 0.0, {}))
    assert patience.had == LONGEST_STEP
    assert not patience.hangs


def test_threads_that_come_and_go_and_a_kernel_that_says_nothing() -> None:
    patience = Patience(SECONDS, Look(0.0, 0.0, {"1": 5.0}))
    patience.spend(Look(0.4, 0.4, {"2": 70.0}))
    assert patience.had == pytest.approx(0.4), "what a new thread waited before is not of this step"
    patience.spend(Look(0.8, 0.8, {}))
    assert patience.had == pytest.approx(0.8)


def test_a_look_at_this_process() -> None:
    first = look()
    assert str(threading.get_native_id()) in first.waited or not first.waited
    second = look(first.now)
    assert second.now >= first.now
    assert second.computed >= first.computed
    assert all(second.waited[task] >= waited for task, waited in first.waited.items() if task in second.waited)
