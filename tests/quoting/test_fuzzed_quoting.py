# SPDX-License-Identifier: GPL-2.0-or-later
"""A short run of ``script/fuzz quoting``."""

from __future__ import annotations

from testing.fuzzing.quoting import KINDS, campaign


def test_damaged_input_is_answered_refused_or_not_genuine() -> None:
    result = campaign(1500, seed=16)
    assert result.failures == []
    assert {answer.partition(":")[0] for answer in result.answers} == set(KINDS)
    assert result.answers["quote: not genuine"]
    assert result.answers["message: no answer"]
    assert any(name.startswith("message: answer 1, error") for name in result.answers)
