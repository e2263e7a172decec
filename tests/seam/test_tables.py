# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's tables say what the public ones say, and a damaged one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from swtdx.seam import dispatch, tables
from testing import published
from tests.seam.own_tables import OWN


@pytest.mark.parametrize("name", published.TABLES)
def test_a_table_has_the_digest_of_the_published_one(name: str) -> None:
    """Where the material is, tests/published shows the row that differs."""
    assert published.digest(OWN[name]()) == published.facts()["digests"][name]


def test_every_registered_leaf_is_in_the_table() -> None:
    numbers = {number & 0xFFFF for number in dispatch.LEAVES}
    assert numbers <= set(dispatch.SEAMCALL_NUMBERS.values())


@pytest.mark.parametrize(
    ("table", "change", "complaint"),
    [
        ("msr", {"version": "1.0"}, "module version"),
        ("msr", {"rows": [["A", "0x20", "0x20", "native", "native"], ["B", "0x10", "0x10", "#VE", "#VE"]]}, "order"),
        ("leaves", {"seamcall": [[1, "A", [0]], [1, "B", [0]]]}, "twice"),
        ("leaves", {"seamcall": [[1, "A"]]}, "columns"),
        ("op_states", {"seamcall_allowed": {"TDH_VP_ENTER": ["NO_SUCH_STATE"]}}, "unknown"),
        ("sept_transitions", {"transitions": {"TDH_MEM_PAGE_ADD": {"MAPPED": "FREE"}}}, "not allowed"),
    ],
)
def test_a_damaged_table_is_refused(
    monkeypatch: pytest.MonkeyPatch, table: str, change: dict[str, Any], complaint: str
) -> None:
    damaged = tables.load(table) | change
    monkeypatch.setattr(json, "loads", lambda _: damaged)
    with pytest.raises(tables.TableError, match=complaint):
        tables.load.__wrapped__(table)
