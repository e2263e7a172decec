# SPDX-License-Identifier: GPL-2.0-or-later
"""The package's tables in the forms of `testing.published`, to be compared with the published ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swtdx.explain import table
from swtdx.seam import cpuid, dispatch, sept, tables
from swtdx.seam.lifecycle import LEAVES_ALLOWED, OpState
from swtdx.seam.sept import SeptState
from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from testing import published


def leaves() -> Any:
    """Of the SEAMCALLs those whose checks are published; Linux's headers name more numbers."""
    seamcalls = {name: number for name, number in dispatch.SEAMCALL_NUMBERS.items() if name in published.checks()}
    return {"seamcall": seamcalls, "tdcall": dict(TDCALL_NUMBERS)}


def op_states() -> Any:
    allowed: dict[str, list[str]] = {}
    for name, number in dispatch.SEAMCALL_NUMBERS.items():
        states = [state.name for state in OpState if number in LEAVES_ALLOWED[state]]
        if name.replace(".", "_") in tables.load("op_states")["seamcall_allowed"]:
            allowed[name.replace(".", "_")] = states
    return {"states": {state.name: state.value for state in OpState}, "allowed": allowed}


def sept_transitions() -> Any:
    def name(state: int) -> str:
        return SeptState(state).name

    return {
        "states": {state.name: [int(state), sept.ARCH_STATE[state]] for state in SeptState},
        "allowed": {leaf: sorted(map(name, states)) for leaf, states in sept.ALLOWED.items()},
        "transitions": {
            leaf: {name(old): name(new) for old, new in moves.items()} for leaf, moves in sept.TRANSITIONS.items()
        },
    }


def cpuid_table(version: str) -> Any:
    rows = []
    for (leaf, subleaf), row in cpuid.rows(version).items():
        indices = [] if version else [row.config_index, row.lookup_index, row.ve_always]
        rows.append([leaf, subleaf, indices, [list(getattr(row, column)) for column in published.CPUID_COLUMNS]])
    return {"rows": sorted(rows, key=repr), "order": [list(each) for each in cpuid.config_order(version)]}


def metadata() -> Any:
    content = tables.load("metadata")
    assert {context: tuple(content[f"{context}_columns"]) for context in published.METADATA_COLUMNS} == (
        published.METADATA_COLUMNS
    )
    return {context: content[context] for context in published.METADATA_COLUMNS}


def statuses() -> Any:
    return {
        "codes": {name: code.value for name, code in StatusCode.__members__.items()},
        "operands": {name: operand.value for name, operand in Operand.__members__.items()},
    }


def statuses_of_other_versions() -> Any:
    return sorted([row[0], int(code, 16)] for code, row in table("statuses")["other_versions"].items())


OWN: dict[str, Callable[[], Any]] = {
    "leaves": leaves,
    "op_states": op_states,
    "sept_transitions": sept_transitions,
    "cpuid": lambda: cpuid_table(""),
    "cpuid-1.0": lambda: cpuid_table("-1.0"),
    "msr": lambda: tables.load("msr")["rows"],
    "metadata": metadata,
    "statuses": statuses,
    "statuses of other versions": statuses_of_other_versions,
}
