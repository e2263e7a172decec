# SPDX-License-Identifier: GPL-2.0-or-later
"""Every kind of lie: a guest has a fault that it reaches, which is found, made short, and comes again."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from swtdx.fuzzing.campaign import Campaign, Known, work
from swtdx.fuzzing.folder import Folder, lies_of
from swtdx.fuzzing.guest import Limits
from swtdx.lying.lie import CALLS, kinds, parse
from tests.fuzzing.planted import planted
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
    campaign = Campaign(Folder(tmp_path / "campaign"), "a digest")
    deadline = time.monotonic() + 120
    with planted(LIMITS[kind], kind) as guest:
        seed = 1
        while not campaign.crashes and time.monotonic() < deadline:
            campaign.add(work(guest, campaign.known() if seed > 1 else Known(), seed, 5.0))
            seed += 1
        (crash,) = campaign.crashes.values()
        assert crash.outcome.kind == "triple fault"
        assert len(crash.case) == 1
        assert crash.case[0].split()[0].rstrip(":") in kinds()[kind]
        assert crash.replayed == crash.replays
        (file,) = (tmp_path / "campaign" / "crashes").iterdir()
        assert guest.run([parse(text) for text in lies_of(file.read_text())]).outcome.kind == "triple fault"
