# SPDX-License-Identifier: GPL-2.0-or-later
"""The check that `conftest` makes after each test: a status without a rule is noticed."""

from __future__ import annotations

from tests.seam.conftest import without_rule


def test_a_status_without_a_rule_is_noticed() -> None:
    assert without_rule("TDH.MNG.CREATE", 0xC0000100_00000001) == ""  # OPERAND_INVALID|RCX
    assert "no rule" in without_rule("TDH.MNG.CREATE", 0xC0000B00_00000000)  # EPT_WALK_FAILED: it walks no EPT
    assert "not a known status" in without_rule("TDH.MNG.CREATE", 0xC0FFEE00_00000000)
