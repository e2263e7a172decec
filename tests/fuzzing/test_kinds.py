# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of lie: a guest has a fault that it reaches, which is found, made short, and comes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtdx.fuzzing.guest import Limits
from swtdx.lying.lie import CALLS, kinds, parse
from tests.fuzzing.planted import planted, replayed, until_found
from tests.fuzzing.sources import SOURCES

FATAL = {
    "virtio": "Virtqueue 0x100: LENGTH=0x40 @2",
    "interrupts": "Interrupt 0x0: VECTOR=0x80 @9",
    "time": "Clock: SKIP=0x7fffffffffffffff @9",
}
HARMLESS = {
    "virtio": ["Virtqueue 0x100: LENGTH=0x8 @2", "Virtqueue 0x100: ID=0x5 @1", "Virtqueue 0x100: DATA=0x1 @1+"],
    "interrupts": ["Interrupt 0x0: VECTOR=0x31 @1+", "Interrupt 0x1: VECTOR=0x80 @9"],
    "time": ["Clock: SKIP=0x1 @1+", "Clock: SKIP=0xffffffffffffffff @3"],
}
LIMITS = {kind: Limits(calls=180 if kind == "virtio" else 40, seconds=8) for kind in SOURCES}
"""The driver of virtio-rng makes 130 calls before its device works."""


def test_each_kind_has_a_guest() -> None:
    assert set(SOURCES) == set(kinds()) - {CALLS}


@pytest.mark.parametrize("kind", FATAL)
def test_a_lie_does_what_it_says(kind: str) -> None:
    with planted(LIMITS[kind], kind) as guest:
        for lies in ([], HARMLESS[kind]):
            result = guest.run([parse(text) for text in lies])
            assert result.outcome.kind == "enough", (lies, result.outcome)
        for _ in range(2):
            result = guest.run([parse(FATAL[kind])])
            assert result.outcome.kind == "triple fault"
            assert result.told == [FATAL[kind]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", SOURCES)
def test_the_fault_is_found_made_short_and_comes_again(kind: str, tmp_path: Path) -> None:
    with planted(LIMITS[kind], kind) as guest:
        campaign, crash = until_found(guest, tmp_path / "campaign")
        for dropped in range(len(crash.case)):  # one lie is enough, but two halves of a jump in time crash it, too
            left = [parse(text) for at, text in enumerate(crash.case) if at != dropped]
            assert guest.run(left).outcome.kind != "triple fault"
        assert {text.split()[0].rstrip(":") for text in crash.case} <= set(kinds()[kind])
        assert crash.replayed == crash.replays
        ends = [each.outcome.kind for each in campaign.crashes.values()]
        assert sorted(replayed(guest, tmp_path / "campaign")) == sorted(ends)
