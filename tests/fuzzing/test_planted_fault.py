# SPDX-License-Identifier: GPL-2.0-or-later
"""The fault of the planted guest is found, made short, and comes again."""

from __future__ import annotations

from pathlib import Path

import pytest

from swtdx.fuzzing.campaign import Campaign
from swtdx.fuzzing.folder import Folder
from swtdx.lying.lie import parse
from tests.fuzzing.planted import LENGTH, PRESENT, planted, replayed, until_found

FAULT = [parse(f"IO {PRESENT:#x}: R11=1 @1"), parse(f"IO {LENGTH:#x}: R11=0x40 @1")]


def test_each_run_begins_at_the_same_place_with_other_lies() -> None:
    with planted() as guest:
        assert guest.run([]).calls == 30
        assert ("Instruction.IO", PRESENT) in guest.host.sites
        assert ("Instruction.IO", LENGTH) not in guest.host.sites
        for _ in range(2):
            honest = guest.run([])
            assert (honest.outcome.kind, honest.told) == ("enough", [])
            harmless = guest.run([FAULT[0], parse(f"IO {LENGTH:#x}: R11=3 @1")])
            assert harmless.outcome.kind == "enough"
            fatal = guest.run(FAULT)
            assert fatal.outcome.kind == "triple fault"
            assert fatal.told == [
                f"Instruction.IO {PRESENT:#x}: R11=0x1 @1",
                f"Instruction.IO {LENGTH:#x}: R11=0x40 @1",
            ]


def test_code_that_only_a_lie_reaches_is_new() -> None:
    with planted() as guest:
        guest.run([])
        assert guest.run([]).new == set()
        assert guest.run(FAULT[:1]).new
        assert guest.run(FAULT[:1]).new == set()


@pytest.mark.slow
def test_the_fault_is_found_made_short_and_comes_again(tmp_path: Path) -> None:
    with planted() as guest:
        campaign, crash = until_found(guest, tmp_path / "campaign")
        assert len(crash.case) == 2
        assert crash.replayed == crash.replays
        ends = [each.outcome.kind for each in campaign.crashes.values()]
        assert sorted(replayed(guest, tmp_path / "campaign")) == sorted(ends)
    assert campaign.corpus
    assert Campaign(Folder(tmp_path / "campaign"), "a digest").corpus
