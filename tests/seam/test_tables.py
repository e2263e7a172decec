# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's tables say what the public ones say, and a damaged one is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from swtdx.seam import cpuid, dispatch, sept, tables
from swtdx.seam.lifecycle import LEAVES_ALLOWED, OpState
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS


def reference(directory: Any, name: str) -> Any:
    return json.loads((directory / "tdx-module" / f"{name}.json").read_text())


def test_leaf_numbers_are_the_published_ones(shared_reference: Path) -> None:
    published = reference(shared_reference, "leaves")
    assert {leaf["name"]: leaf["num"] for leaf in published["tdcall"]} == TDCALL_NUMBERS
    for leaf in published["seamcall"]:
        assert dispatch.SEAMCALL_NUMBERS[leaf["name"]] == leaf["num"]


def test_op_states_are_the_published_ones(shared_reference: Path) -> None:
    published = reference(shared_reference, "op_states")["1.5.06"]
    assert published["states"] == {state.name: state.value for state in OpState}
    for name, states in published["seamcall_allowed"].items():
        number = dispatch.SEAMCALL_NUMBERS[next(n for n in dispatch.SEAMCALL_NUMBERS if n.replace(".", "_") == name)]
        assert states == [state.name for state in OpState if number in LEAVES_ALLOWED[state]]


def test_sept_states_are_the_published_ones(shared_reference: Path) -> None:
    published = reference(shared_reference, "sept_transitions")["1.5.06"]
    for name, state in published["states"].items():
        assert sept.SeptState[name] == int(state["entry_bits"], 16)
        assert sept.ARCH_STATE[sept.SeptState[name]] == state["arch_state"]
    allowed = published["seamcall_allowed_entry_states"] | published["tdcall_allowed_entry_states"]
    assert {leaf: {sept.SeptState(s).name for s in states} for leaf, states in sept.ALLOWED.items()} == {
        leaf: set(states) for leaf, states in allowed.items()
    }
    for leaf, moves in sept.TRANSITIONS.items():
        for old, new in published["transitions"][leaf].items():
            new = old if new == "unchanged" else new.split()[0].rstrip(";")
            assert moves[sept.SeptState[old]] == sept.SeptState[new]


def test_cpuid_rows_are_the_published_ones(shared_reference: Path) -> None:
    published = reference(shared_reference, "cpuid_virtualization")["1.5.06"]
    assert len(cpuid.rows()) == len(published["leaves"])
    for leaf in published["leaves"]:
        row = cpuid.rows()[int(leaf["leaf"], 16), leaf["subleaf"]]
        assert (row.config_index, row.lookup_index, row.ve_always) == (
            leaf["config_index"], leaf["lookup_index"], leaf["ve_always"],
        )  # fmt: skip
        for column in ("fixed1", "fixed0_or_dynamic", "config_direct", "allow_direct", "verify_mask", "verify_value"):
            wanted = tuple(int(leaf[column][register], 16) for register in ("eax", "ebx", "ecx", "edx"))
            assert getattr(row, column) == wanted
    order = [(int(entry["leaf"], 16), entry["subleaf"]) for entry in published["cpuid_config_order"]]
    assert list(cpuid.config_order()) == order


def test_msr_rows_are_the_published_ones(shared_reference: Path) -> None:
    published = reference(shared_reference, "msr_virtualization")["1.5.06"]
    columns = ("name", "first", "last", "read", "write")
    assert tables.load("msr")["rows"] == [[row[column] for column in columns] for row in published]


@pytest.mark.parametrize("context", ["SYS", "TD", "VP", "VP_VMCS"])
def test_metadata_rows_are_the_published_ones(shared_reference: Path, context: str) -> None:
    published = reference(shared_reference, "metadata_fields")["1.5.06"][context]
    table = tables.load("metadata")
    columns = table[f"{context}_columns"]
    assert table[context] == [[row.get(column, "0x0") for column in columns] for row in published]


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
