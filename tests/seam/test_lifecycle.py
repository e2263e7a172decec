# SPDX-License-Identifier: GPL-2.0-or-later
"""The state machines: one table each, one function that applies it, and no other way to change a state."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

import swtdx.seam
from swtdx.seam import lifecycle, sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.lifecycle import Event, IllegalTransition, Machine, OpState, VcpuState
from swtdx.seam.tdh import mem_build

MACHINES: list[Machine[Any]] = [each for each in vars(lifecycle).values() if isinstance(each, Machine)]
STATES = {"state", "_state", "op_state", "_op_state", "lifecycle", "_lifecycle"}
HOLDERS = {
    ("keys.py", "__init__"),
    ("keys.py", "advance"),
    ("module.py", "restore"),
    ("td.py", "__init__"),
    ("td.py", "restore"),
    ("vcpu.py", "__init__"),
    ("vcpu.py", "advance"),
    ("vp_enter.py", "tdh_vp_enter"),  # both states come from the table, looked up once
}
GUEST_EVENTS = {Event.TD_EXIT, Event.TRIPLE_FAULT}


def assignments() -> set[tuple[str, str]]:
    """(file, function) of every assignment to a state in the module."""
    found = set()
    for file in Path(swtdx.seam.__path__[0]).rglob("*.py"):
        for function in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(function, ast.FunctionDef):
                continue
            for node in ast.walk(function):
                targets = node.targets if isinstance(node, ast.Assign) else []
                for target in [part for each in targets for part in getattr(each, "elts", [each])]:
                    inner = target.value if isinstance(target, ast.Subscript) else target
                    if isinstance(inner, ast.Attribute) and inner.attr in STATES:
                        found.add((file.name, function.name))
    return found


def test_states_change_in_their_holders_only() -> None:
    assert assignments() == HOLDERS


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_each_pair_leads_where_the_table_says_and_the_others_raise(machine: Machine[Any]) -> None:
    for event in Event:
        for state in type(machine.initial):
            new = machine.transitions.get(event, {}).get(state)
            if new is not None:
                assert machine.after(state, event) is new
            else:
                with pytest.raises(IllegalTransition, match=machine.name):
                    machine.after(state, event)


@pytest.mark.parametrize("machine", MACHINES, ids=lambda machine: machine.name)
def test_each_transition_starts_from_a_state_that_can_be_reached(machine: Machine[Any]) -> None:
    reached = {machine.initial}
    for _ in type(machine.initial):
        reached |= {new for moves in machine.transitions.values() for old, new in moves.items() if old in reached}
    assert {old for moves in machine.transitions.values() for old in moves} <= reached


def test_events_are_leaf_functions_or_happen_to_a_guest() -> None:
    assert {event.value for event in set(Event) - GUEST_EVENTS} <= set(SEAMCALL_NUMBERS)


def test_an_illegal_transition_changes_nothing(host: Any) -> None:
    td = host.module.tds[host.build()]
    before = host.snapshot()
    with pytest.raises(IllegalTransition, match=r"OP_STATE: TDH\.MNG\.INIT in INITIALIZED"):
        td.advance(Event.MNG_INIT)
    with pytest.raises(IllegalTransition, match="LIFECYCLE_STATE"):
        td.advance(Event.MNG_KEY_CONFIG)
    with pytest.raises(IllegalTransition, match="SYS_STATE"):
        host.module.advance(Event.SYS_INIT)
    assert td.op_state is OpState.INITIALIZED
    assert host.snapshot() == before


def test_a_triple_fault_disables_a_virtual_cpu_for_good() -> None:
    machine = lifecycle.VCPU_STATE
    assert machine.after(VcpuState.ACTIVE, Event.TRIPLE_FAULT) is VcpuState.DISABLED
    assert all(VcpuState.DISABLED not in moves for moves in machine.transitions.values())


# --- Secure EPT -------------------------------------------------------------------------------------------------------


def test_entries_made_by_the_thousand_are_those_of_the_table() -> None:
    """0x80000000000000F7 and so on: suppress #VE, write-back, leaf, and the state's bits."""
    assert mem_build.TABLE_ADDED == 0x8000_0000_0000_0007
    assert mem_build.PAGE_ADDED == 0x8000_0000_0000_00F7
    assert mem_build.PAGE_AUGMENTED == 0x8100_0000_0000_00F0


@pytest.mark.parametrize("leaf", sept.TRANSITIONS)
def test_a_page_keeps_its_place_as_long_as_it_is_one(leaf: str) -> None:
    hpa = 0x1234_5000
    for old, new in sept.TRANSITIONS[leaf].items():
        entry = sept.after(leaf, sept.SUPPRESS_VE | old | sept.WRITE_BACK | hpa)
        assert entry & sept.STATE_MASK == new
        both_pages = bool(old & new & sept.LEAF)
        both_tables = {old, new} <= {sept.SeptState.NL_MAPPED, sept.SeptState.NL_BLOCKED}
        assert entry & sept.HPA_MASK == (hpa if both_pages or both_tables else 0)


def test_only_a_leaf_function_with_one_result_is_looked_up_once() -> None:
    with pytest.raises(ValueError, match="TDH_MEM_RANGE_BLOCK"):
        sept.made_by("TDH_MEM_RANGE_BLOCK")


def test_an_entry_without_a_transition_raises() -> None:
    with pytest.raises(IllegalTransition, match="TDH_MEM_PAGE_ADD"):
        sept.after("TDH_MEM_PAGE_ADD", sept.MAPPED_LEAF)
