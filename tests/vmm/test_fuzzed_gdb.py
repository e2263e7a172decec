# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of ``script/fuzz gdb``."""

from __future__ import annotations

from testing.fuzzing.gdb import campaign

CASES = 3000


def test_damaged_packets_and_noise_are_answered_or_dropped() -> None:
    result = campaign(CASES, seed=1)
    assert not result.failures, result.failures[0]
    assert result.cases == CASES
    assert min(result.answers[kind] for kind in ("unknown", "error", "OK or output", "data", "stop")) > 20
