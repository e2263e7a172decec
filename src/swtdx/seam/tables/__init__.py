# SPDX-License-Identifier: GPL-2.0-or-later
"""The tables that drive the module, and the loader that refuses a damaged one.

Facts restated from the public TDX module 1.5.06: leaf functions (``leaves``), which leaf is allowed in which OP_STATE
(``op_states``), Secure-EPT entry states and transitions (``sept_transitions``), metadata fields (``metadata``), CPUID
and MSR virtualization (``cpuid``, ``msr``), what each register means to each leaf (``operands``). Where module 1.0
differs is in ``versions``; its own CPUID rows and metadata fields are ``cpuid-1.0`` and ``metadata-1.0``. Numbers that
do not fit a JSON reader's habits are hexadecimal strings; four-register values are ``"eax ebx ecx edx"``, no prefix.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

MODULE_VERSION = "1.5.06"


class TableError(ValueError):
    """A table of the package is damaged: reinstall swtdx."""


@cache
def load(name: str) -> dict[str, Any]:
    """Return the table ``name`` as parsed JSON, checked: its version, its rows' shape and the names it refers to.

    Raises TableError with the first thing found wrong.
    """
    table: dict[str, Any] = json.loads(Path(__file__).with_name(f"{name}.json").read_text("ascii"))
    wanted = name.partition("-")[2] or MODULE_VERSION
    if table.get("version") != wanted:
        raise TableError(f"{name}.json is for module version {table.get('version')}, not {wanted}")
    for key, rows in table.items():
        columns = table.get(f"{key}_columns", table.get("columns") if isinstance(rows, list) else None)
        if key in ("columns", "config_order", "conditions") or not isinstance(rows, list) or columns is None:
            continue
        for row in rows:
            if isinstance(row, list) and len(row) != len(columns):
                raise TableError(f"{name}.json: {key}: row {row[:2]} has {len(row)} columns, not {len(columns)}")
    _CHECKS.get(name.partition("-")[0], _nothing)(table)
    return table


def registers(text: str) -> tuple[int, int, int, int]:
    """Return ``"eax ebx ecx edx"`` in hexadecimal as four integers."""
    eax, ebx, ecx, edx = (int(part, 16) for part in text.split())
    return eax, ebx, ecx, edx


def _nothing(table: dict[str, Any]) -> None:
    del table


def _known(name: str, used: set[str], defined: set[str]) -> None:
    if unknown := sorted(used - defined):
        raise TableError(f"{name}.json refers to unknown {unknown}")


def _check_leaves(table: dict[str, Any]) -> None:
    for key in ("seamcall", "tdcall"):
        numbers = [row[0] for row in table[key]]
        if len(set(numbers)) != len(numbers):
            raise TableError(f"leaves.json: {key}: a leaf number is there twice")


def _check_operands(table: dict[str, Any]) -> None:
    registers = {"rcx", "rdx", *(f"r{number}" for number in range(8, 16))}
    for key in ("seamcall", "tdcall"):
        _known("operands", set(table[key]), {row[1] for row in load("leaves")[key]})
    for row in (*table["seamcall"].values(), *table["tdcall"].values(), *table["vmcall"].values()):
        for operand in " ".join(row[-2:]).split():
            _known("operands", {operand.partition(":")[0]}, registers)


def _check_op_states(table: dict[str, Any]) -> None:
    states = set(table["states"])
    _known("op_states", {state for row in table["seamcall_allowed"].values() for state in row}, states)
    leaves = {row[1].replace(".", "_") for row in load("leaves")["seamcall"]}
    _known("op_states", set(table["seamcall_allowed"]), leaves)


def _check_sept(table: dict[str, Any]) -> None:
    states = set(table["states"])
    _known("sept_transitions", {state for row in table["allowed"].values() for state in row}, states)
    for leaf, moves in table["transitions"].items():
        _known("sept_transitions", set(moves) | set(moves.values()), states)
        if set(moves) - set(table["allowed"][leaf]):
            raise TableError(f"sept_transitions.json: {leaf} moves from a state in which it is not allowed")
    for leaf, conditions in table["conditional_transitions"].items():
        for moves in conditions.values():
            _known("sept_transitions", set(moves) | set(moves.values()), states)
            if set(moves) - set(table["allowed"][leaf]):
                raise TableError(f"sept_transitions.json: {leaf} moves from a state in which it is not allowed")


def _check_cpuid(table: dict[str, Any]) -> None:
    for row in table["leaves"]:
        for text in row[5:]:
            if any(value >> 32 for value in registers(text)):
                raise TableError(f"cpuid.json: leaf {row[0]}: a register is wider than 32 bits")


def _check_msr(table: dict[str, Any]) -> None:
    end = -1
    for name, first, last, _, _ in table["rows"]:
        if not end < int(first, 16) <= int(last, 16):
            raise TableError(f"msr.json: {name} is out of order")
        end = int(last, 16)


_CHECKS = {
    "leaves": _check_leaves,
    "op_states": _check_op_states,
    "sept_transitions": _check_sept,
    "cpuid": _check_cpuid,
    "msr": _check_msr,
    "operands": _check_operands,
}
