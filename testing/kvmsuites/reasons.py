# SPDX-License-Identifier: GPL-2.0-or-later
"""Why a test does not pass, as analysed by hand: test -> (a part of what it printed, a sentence).

Only an outcome that has that part gets the sentence, so that an old reason does not hide a new failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from testing.kvmsuites.running import Outcome

Reasons = Mapping[str, Sequence[tuple[str, str]]]

SELFTESTS: dict[str, list[tuple[str, str]]] = {}
UNIT_TESTS: dict[str, list[tuple[str, str]]] = {}


def _reason(reasons: Reasons, name: str, outcome: Outcome) -> str:
    printed = f"{outcome.reason}\n{outcome.output}"
    return next((sentence for part, sentence in reasons.get(name, ()) if part in printed), "")


def selftest_reason(name: str, outcome: Outcome) -> str:
    """Return the sentence for a selftest of the kernel, or "" if it has not been analysed."""
    return _reason(SELFTESTS, name, outcome)


def unit_test_reason(name: str, outcome: Outcome) -> str:
    """Return the sentence for a kvm-unit-test, or "" if it has not been analysed."""
    return _reason(UNIT_TESTS, name, outcome)
