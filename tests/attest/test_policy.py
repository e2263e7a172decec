# SPDX-License-Identifier: GPL-2.0-or-later
"""Policy is not genuineness: what a relying party refuses, and what it may allow."""

from __future__ import annotations

from typing import Any

import pytest

from swtdx.attest.policy import Policy, violations
from swtdx.attest.quote import QuoteBody
from swtdx.attest.tcb_levels import converged, relaunched

ZERO, ONE = bytes(48), bytes([1]) * 48
SEPT_VE_DISABLE = 1 << 28
BODY = QuoteBody(
    bytes(16), ZERO, ZERO, 0, SEPT_VE_DISABLE, 0, ZERO, ZERO, ZERO, ZERO, (ZERO,) * 4, bytes(64), bytes(16), ZERO
)


@pytest.mark.parametrize(
    ("change", "text", "option"),
    [
        ({"attributes": SEPT_VE_DISABLE | 1}, "DEBUG", "allow_debug"),
        ({"attributes": SEPT_VE_DISABLE | 1 << 5}, "PERF_PROF", "allow_debug"),
        ({"attributes": SEPT_VE_DISABLE | 1 << 29}, "MIGRATABLE", "allow_migratable"),
        ({"attributes": 0}, "SEPT_VE_DISABLE", "allow_sept_ve"),
        ({"mrservicetd": ONE}, "service TD", "allow_service_td"),
    ],
)
def test_what_is_refused_unless_it_is_allowed(change: dict[str, Any], text: str, option: str) -> None:
    allowed: dict[str, Any] = {option: True}
    body = BODY._replace(**change)
    (found,) = violations(Policy(), body)
    assert text in found
    assert violations(Policy(**allowed), body) == []


def test_reserved_attributes_are_refused() -> None:
    (found,) = violations(Policy(), BODY._replace(attributes=SEPT_VE_DISABLE | 1 << 40))
    assert "bit 40" in found


def test_a_named_service_td_is_accepted() -> None:
    body = BODY._replace(mrservicetd=ONE)
    assert violations(Policy(mrservicetd=ONE), body) == []
    assert "MRSERVICETD" in violations(Policy(mrservicetd=ZERO), body)[0]


def test_several_values_mean_one_of_these() -> None:
    assert violations(Policy(mrtd=(ONE, ZERO), attributes=(1, SEPT_VE_DISABLE)), BODY) == []
    (found,) = violations(Policy(mrtd=(ONE, bytes([2]) * 48)), BODY)
    assert found.startswith("MRTD: one of 0101")
    assert violations(Policy(rtmrs=(None, (ONE,), None, None)), BODY)[0].startswith("RTMR1: 0101")


def test_a_component_that_is_too_low_is_named() -> None:
    minimum = bytes([0, 5]) + bytes(14)
    (found,) = violations(Policy(minimum_tee_tcb_svn=minimum), BODY)
    assert "component 2 is 0, 5 wanted" in found


@pytest.mark.parametrize(
    "member", [{"mrtd": b"1"}, {"rtmrs": (b"1", None, None, None)}, {"minimum_tee_tcb_svn": b"\0\0"}]
)
def test_a_value_of_the_wrong_size_is_refused(member: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="bytes, it must have"):
        Policy(**member)


@pytest.mark.parametrize(
    ("platform", "components", "result"),
    [
        ("UpToDate", ["UpToDate"], "UpToDate"),
        ("SWHardeningNeeded", ["OutOfDate"], "OutOfDate"),
        ("ConfigurationAndSWHardeningNeeded", ["OutOfDate", "UpToDate"], "OutOfDateConfigurationNeeded"),
        ("OutOfDateConfigurationNeeded", ["OutOfDate"], "OutOfDateConfigurationNeeded"),
        ("UpToDate", ["Revoked"], "Revoked"),
    ],
)
def test_statuses_converge_as_in_intels_library(platform: str, components: list[str], result: str) -> None:
    assert converged(platform, components) == result


@pytest.mark.parametrize(
    ("launch", "current", "result"),
    [
        ("OutOfDate", "UpToDate", "TDRelaunchAdvised"),
        ("OutOfDateConfigurationNeeded", "UpToDate", "TDRelaunchAdvisedConfigurationNeeded"),
        ("OutOfDate", "ConfigurationNeeded", "TDRelaunchAdvisedConfigurationNeeded"),
        ("OutOfDate", "OutOfDate", "OutOfDate"),
        ("SWHardeningNeeded", "UpToDate", "SWHardeningNeeded"),
    ],
)
def test_a_relaunch_is_advised_as_in_intels_library(launch: str, current: str, result: str) -> None:
    assert relaunched(launch, current) == result
