# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals at random moments for threads inside KVM's calls: each answers as Linux's, no kick is lost, all continue.

`programs/storm.c` has the rules. The long version is `script/fuzz signals`, for the front end notify, too.
"""

from __future__ import annotations

import pytest

from testing.fuzzing import signals


@pytest.mark.slow
def test_signals_at_random_moments() -> None:
    result = signals.campaign(120, 1, front_ends=["preload"], tds=2)
    assert result.failures == []
    assert result.cases == 120
