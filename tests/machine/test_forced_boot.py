# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/forced-statuses``: what it takes for an end with a name."""

from __future__ import annotations

from pathlib import Path

import pytest

from testing import forced_boot
from testing.forced_boot import Boot, usual

NO_TDS = "swtdx: --kvm emulated: the emulated kernel makes no TDs: KVM_CAP_VM_TYPES is 0x3"


@pytest.mark.parametrize(
    ("status", "outcome", "errors", "trouble"),
    [
        (0, "until", "", ""),
        (2, "not built", "  more    swtdx explain EINVAL --command KVM_TDX_INIT_VM", ""),
        (2, "not built", NO_TDS, ""),
        (2, "not built", "swtdx: something else", "exit status 2"),
        (4, "timeout", "", "exit status 4"),
        (1, "not built", "Traceback (most recent call last):", "an exception"),
    ],
)
def test_an_end_with_a_name(status: int, outcome: str, errors: str, trouble: str) -> None:
    assert Boot(status, outcome, "", (), errors, {}).trouble == trouble


def test_calls_are_counted_in_a_boot_that_came_to_its_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Boot(4, "timeout", "time was up", ({"injection": "TDH.VP.ENTER: TD_FATAL", "calls": 3},), "", {})
    monkeypatch.setattr(forced_boot, "boot", lambda *arguments: made)
    with pytest.raises(RuntimeError, match="time was up"):
        usual(Path())
