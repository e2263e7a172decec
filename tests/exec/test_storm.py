# SPDX-License-Identifier: GPL-2.0-or-later
"""Signals at random moments for threads inside KVM's calls: each answers as Linux's, no kick is lost, all continue.

`programs/storm.c` has the rules. The long version is `script/fuzz signals`.
"""

from __future__ import annotations

import pytest

from swtdx.exec.notify import available
from testing.fuzzing import signals
from tests.conftest import skip


@pytest.mark.slow
@pytest.mark.parametrize("front_end", signals.FRONT_ENDS)
def test_signals_at_random_moments(front_end: str) -> None:
    if front_end == "notify" and (cannot := available()):
        skip(cannot)
    result = signals.campaign(60, 1, front_ends=[front_end], tds=2)
    assert result.failures == []
    assert result.cases == 60
