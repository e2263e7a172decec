# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/forced-statuses``: what it takes for an end with a name."""

from __future__ import annotations

from typing import Any

import pytest

from testing.forced_boot import Boot, Calls, Case, judged, usual

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


@pytest.mark.parametrize(
    ("leaf", "expected", "outcome", "after", "trouble"),
    [
        ("TDH.MEM.TRACK", "repeated", "power-off", {}, ""),
        ("TDH.MEM.TRACK", "repeated", "crash", {}, "the guest did not come through"),
        ("TDH.MEM.TRACK", "0, dead", "crash", {}, ""),
        ("TDH.MEM.TRACK", "0, dead", "crash", {"lost": {"sept": 1}}, "lost sept, where Linux loses nothing"),
        ("TDH.PHYMEM.PAGE.RECLAIM", "0; lost: tdr", "power-off", {"lost": {"tdr": 1}}, ""),
        ("TDH.PHYMEM.PAGE.RECLAIM", "0; lost: tdr", "power-off", {"trouble": "lost, and"}, "lost, and"),
        ("TDH.PHYMEM.PAGE.WBINVD", "0; lost: tdr", "power-off", {"trouble": "lost, and", "lost": {"tdr": 1}}, ""),
        ("TDH.PHYMEM.PAGE.WBINVD", "0; lost: tdr", "power-off", {"trouble": "may use it"}, "may use it"),
        ("TDH.MNG.RD", "ignored", "timeout", {"no_tsc": True}, ""),
        ("TDH.MNG.RD", "ignored", "timeout", {"no_tsc": False}, "timers do not come, and KVM knows the guest's TSC"),
        ("TDH.VP.ENTER", "repeated", "timeout", {"no_tsc": True}, "exit status 4"),
        ("TDH.MEM.TRACK", "repeated", "power-off", {"struck": {"TDH.MEM.TRACK": 0}}, "the call was never made"),
    ],
)
def test_what_a_status_may_lead_to(leaf: str, expected: str, outcome: str, after: dict[str, Any], trouble: str) -> None:
    status = {"power-off": 0, "crash": 3, "timeout": 4}[outcome]
    seen = Boot(status, outcome, "", (), "", {}, {"struck": {leaf: 1}, **after})
    assert judged(Case(leaf, f"{leaf}: TD_FATAL @1", "KVM_RUN", expected), seen) == trouble


def test_calls_are_counted_in_a_boot_that_came_to_its_end_only() -> None:
    made = Boot(4, "timeout", "time was up", (), "", {}, {"calls": {"TDH.VP.ENTER": 3}})
    with pytest.raises(RuntimeError, match="time was up"):
        usual(made)


def test_calls_are_told_apart_by_whether_the_guest_was_alive() -> None:
    alive: tuple[dict[str, int | str], ...] = ({"injection": "TDH.MEM.TRACK: TD_FATAL @9", "calls": 3},)
    made = Boot(0, "power-off", "", alive, "", {}, {"calls": {"TDH.MEM.TRACK": 5}})
    assert usual(made) == {"TDH.MEM.TRACK": Calls(3, 5)}
