# SPDX-License-Identifier: GPL-2.0-or-later
"""``docs/module-source.json`` has a row for everything that the module dispatches, and each row a verdict."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.hardware import ExitReason
from swtdx.seam.module import TdxModule
from swtdx.seam.tables import load
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from swtdx.seam.tdg.vm_exits import HANDLERS
from testing.places import REPOSITORY

assert TdxModule.seamcall is not None, "the leaf functions are registered with it"
READING = json.loads((REPOSITORY / "docs" / "module-source.json").read_text(encoding="utf-8"))


def expected() -> dict[str, list[str]]:
    cpuid, msr = load("cpuid")["leaves"], load("msr")["rows"]
    return {
        "leaves": [*SEAMCALL_NUMBERS, *TDCALL_NUMBERS],
        "exits": [ExitReason(reason).name for reason in sorted(HANDLERS)],
        "cpuid": [leaf if subleaf is None else f"{leaf}.{subleaf}" for leaf, subleaf, *_ in cpuid],
        "msrs": [first if first == last else f"{first}-{last}" for _, first, last, *_ in msr],
    }


@pytest.mark.parametrize("part", ["leaves", "exits", "cpuid", "msrs"])
def test_there_is_a_row_for_each(part: str) -> None:
    assert list(READING[part]) == expected()[part]


@pytest.mark.parametrize("part", ["leaves", "exits", "cpuid", "msrs", "kvm"])
def test_each_row_has_a_verdict_and_a_difference_its_words(part: str) -> None:
    rows: dict[str, Any] = READING[part]
    for key, (*_, verdict, words) in rows.items():
        assert verdict in ("equal", "differs", "not read"), key
        assert bool(words) or verdict == "equal", key


def test_what_is_not_reproduced_was_not_read() -> None:
    """Only leaf functions of features that the module reports as absent."""
    unread = {name for name, (_, verdict, _) in READING["leaves"].items() if verdict == "not read"}
    absent = ("TDH.EXPORT.", "TDH.IMPORT.", "TDH.MIG.", "TDH.SERVTD.")
    assert unread == {name for name in SEAMCALL_NUMBERS if name.startswith(absent)}
