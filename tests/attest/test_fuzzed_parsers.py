# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of ``script/fuzz parsers``, in a process of its own, since it limits its address space."""

from __future__ import annotations

import subprocess
import sys

from testing.fuzzing.mutation import Seed, mutated
from testing.fuzzing.parsers import KINDS
from testing.places import REPOSITORY

CASES = 2000


def test_damaged_inputs_end_in_a_result_or_in_the_documented_exception() -> None:
    code = f"""
from testing.fuzzing.parsers import KINDS, campaign
result = campaign({CASES}, seed=6)
print("\\n".join(result.lines()))
assert not result.failures
assert sum(result.accepted.values()) + sum(result.refused.values()) == {CASES}
assert all(result.refused[kind.name] for kind in KINDS), "a kind of which nothing was refused was not damaged"
assert sum(map(bool, result.accepted.values())) > len(KINDS) // 2, "damaged beyond recognition"
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_undamaged_inputs_are_accepted() -> None:
    """The seeds are good ones: what is refused later is refused for its damage. Quotes made here are not genuine."""
    for kind in KINDS:
        if kind.name not in ("verify", "collateral"):
            for seed in kind.seeds():
                if "sgx" not in seed.name:
                    kind.feed(seed.data)


def test_the_same_numbers_give_the_same_case() -> None:
    from random import Random

    seed = Seed("x", bytes(range(256)))
    cases = [mutated(seed, (seed,), Random(number)) for number in range(50)]
    assert cases == [mutated(seed, (seed,), Random(number)) for number in range(50)]
    assert sum(case != seed.data for case in cases) > 45
