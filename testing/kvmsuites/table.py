# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of tests, for a terminal, as a page of the documentation, and for programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping

from testing.kvmsuites.running import Outcome, Status

Reason = Callable[[str, Outcome], str]
_SHOWN_REASON = 200


def totals(results: Mapping[str, Outcome]) -> str:
    """Return how many outcomes of each kind there are."""
    counted = Counter(outcome.status for outcome in results.values())
    return ", ".join(f"{counted[status]} {status}" for status in Status if counted[status]) or "no tests"


def _why(name: str, outcome: Outcome, reason: Reason) -> str:
    if outcome.status is Status.PASS:
        return ""
    return reason(name, outcome) or outcome.reason[:_SHOWN_REASON]


def text(results: Mapping[str, Outcome], reason: Reason) -> str:
    """Return the table for a terminal, each reason below its test."""
    width = max((len(name) for name in results), default=0)
    lines = []
    for name, outcome in results.items():
        lines.append(f"{name:<{width}}  {outcome.status:<9} {outcome.seconds:6.1f} s")
        if why := _why(name, outcome, reason):
            lines.append(f"    {why}")
    return "\n".join([*lines, "", totals(results)])


def markdown(results: Mapping[str, Outcome], reason: Reason) -> str:
    """Return the table as Markdown."""
    lines = ["| test | result | reason |", "|---|---|---|"]
    for name, outcome in results.items():
        why = _why(name, outcome, reason).replace("|", "\\|").replace("<", "&lt;")
        lines.append(f"| `{name}` | {outcome.status} | {why} |".replace("|  |", "| |"))
    return "\n".join([*lines, "", f"In all: {totals(results)}.", ""])


def as_json(suite: str, version: str, results: Mapping[str, Outcome], reason: Reason) -> str:
    """Return the results for programs."""
    tests = [
        {
            "name": name,
            "result": str(outcome.status),
            "reason": _why(name, outcome, reason),
            "seconds": round(outcome.seconds, 2),
        }
        for name, outcome in results.items()
    ]
    return json.dumps({"suite": suite, "version": version, "tests": tests}, indent=1)
