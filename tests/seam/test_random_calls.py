# SPDX-License-Identifier: GPL-2.0-or-later
"""Random SEAMCALLs and TDCALLs: what must hold after each, whatever they were (`random_calls`, `invariants`).

Each run has a seed that hypothesis chooses, and keeps if it fails. ``script/fuzz seam`` makes many more calls;
SWTDX_RANDOM_CALLS sets how many are made here (3,000 of each version of the module unless told).
"""

from __future__ import annotations

import os
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.cpu.platform import MODULE_VERSIONS
from swtdx.seam.dispatch import SEAMCALL_NUMBERS, Entry
from swtdx.seam.status import Operand, Status, StatusCode
from testing.seam.fake_host import Args
from testing.seam.random_calls import LIKELY, campaign, new_world

CALLS = int(os.environ.get("SWTDX_RANDOM_CALLS", "3000"))
PER_RUN = 500


@pytest.mark.parametrize("version", MODULE_VERSIONS)
@settings(max_examples=max(1, CALLS // PER_RUN), deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_random_calls(version: str, seed: int) -> None:
    result = campaign(PER_RUN, seed, version=version)
    assert result.calls == PER_RUN or result.failures
    assert not result.failures, "\n".join(result.failures)


def test_the_same_seed_makes_the_same_calls() -> None:
    first, second = (campaign(300, 5) for _ in range(2))
    assert first.answers == second.answers
    assert first.answers != campaign(300, 6).answers


def test_most_leaf_functions_pass_and_fail_somewhere() -> None:
    result = campaign(4000, 1)
    passed = {answer.split()[0] for answer in result.answers if answer.endswith(" SUCCESS")}
    failed = {answer.split()[0] for answer in result.answers if not answer.endswith(" SUCCESS")}
    assert len(passed & set(LIKELY)) >= len(LIKELY) - 4
    assert set(LIKELY) <= failed


def wrong_count(module: Any, args: Args) -> None:
    """It passes, and forgets to count."""
    td = module.tds.get(args.rdx)
    if td is not None:
        td.child_count += 1


def early_write(module: Any, args: Args) -> None:
    """It fails late: a page has been written already."""
    module.memory.raw[0x100_2000] ^= 1
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


def lost_key(module: Any, args: Args) -> None:
    """A page of the TD lies under another key."""
    td = module.tds.get(args.rdx)
    if td is not None and td.tdcx:
        module.memory.set_key(td.tdcx[0], 5)


def held(module: Any, args: Args) -> None:
    """A lock is not given back."""
    for td in module.tds.values():
        module.pamt.lock_shared(td.pamt_index)


@pytest.mark.parametrize(
    ("fault", "words"),
    [(wrong_count, "counts"), (early_write, "changed"), (lost_key, "KeyID"), (held, "locked"), (None, "RAX 0x1234")],
)
def test_a_planted_fault_is_found(monkeypatch: pytest.MonkeyPatch, fault: Any, words: str) -> None:
    """One leaf function goes wrong: TDH.MNG.ADDCX, after (or before) it has done its work."""
    number = SEAMCALL_NUMBERS["TDH.MNG.ADDCX"]

    def faulty(seed: int, version: str) -> Any:
        world = new_world(seed, version)
        handler, clears = world.module.leaves[number]

        def leaf(module: Any, args: Args, lp: int) -> Any:
            if fault is None:
                return 0x1234 << 32
            if fault is early_write:
                fault(module, args)
            status = handler(module, args, lp)
            fault(module, args)
            return status

        world.module.leaves = world.module.leaves | {number: Entry(cast(Any, leaf), clears)}
        world.module.restore(world.module.state)
        return world

    monkeypatch.setattr("testing.seam.random_calls.new_world", faulty)
    result = campaign(500, 3)
    assert result.failures
    assert words in result.failures[0]
