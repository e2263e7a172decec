# SPDX-License-Identifier: GPL-2.0-or-later
"""swtdx seamcall: every leaf function, and what it checks."""

from __future__ import annotations

import json

import pytest

from swtdx.seam.tables import load
from tests.cli.conftest import Command


def test_every_leaf_is_listed_with_its_number(command: Command) -> None:
    """tests/seam/test_tables.py compares the numbers with the published ones."""
    table = load("leaves")
    wanted = {(kind, row[0], row[1]) for kind in ("seamcall", "tdcall") for row in table[kind]}
    listed = {
        (leaf["kind"], leaf["number"], leaf["name"]) for leaf in json.loads(command("seamcall", "list", "--json").out)
    }
    assert wanted == listed
    shown = {tuple(line.split()[:3]) for line in command("seamcall", "list").out.splitlines()}
    assert {(kind, str(number), name) for kind, number, name in listed} == shown


def test_a_word_and_a_kind_select(command: Command) -> None:
    names = [line.split()[2] for line in command("seamcall", "list", "mr_", "--tdcall").out.splitlines()]
    assert names == ["TDG.MR.RTMR.EXTEND", "TDG.MR.REPORT", "TDG.MR.VERIFYREPORT"]
    assert {line.split()[0] for line in command("seamcall", "list", "--seamcall").out.splitlines()} == {"seamcall"}


@pytest.mark.parametrize("name", ["TDH.MEM.PAGE.ADD", "tdh_mem_page_add", "mem.page.add", "2", "0x2"])
def test_a_leaf_by_any_of_its_names(name: str, command: Command) -> None:
    found = json.loads(command("seamcall", "show", name, "--json").out)
    assert (found["name"], found["number"]) == ("TDH.MEM.PAGE.ADD", 2)
    assert found["in"][3] == {"register": "R9", "meaning": "source", "version": None}
    assert (found["op_states"], found["entry_moves"]) == (["INITIALIZED"], {"FREE": "MAPPED"})


def test_rules_come_in_the_order_of_the_checks(command: Command) -> None:
    """TDR, then the TD's state, then the address, the walk, the entry, the source, the target."""
    answers = [rule["status"] for rule in json.loads(command("seamcall", "show", "2", "--json").out)["rules"]]
    in_order = ["PAGE_METADATA_INCORRECT|RDX", "TD_FATAL", "OP_STATE_INCORRECT", "EPT_WALK_FAILED|RCX"]
    in_order += ["EPT_ENTRY_STATE_INCORRECT|RCX", "OPERAND_INVALID|R9", "PAGE_METADATA_INCORRECT|R8"]
    assert [answer for answer in answers if answer in in_order] == in_order
    shown = command("seamcall", "show", "2").out
    assert shown.index("OPERAND_INVALID|R9") < shown.index("PAGE_METADATA_INCORRECT|R8")


def test_what_is_not_reproduced_and_what_module_1_0_lacks(command: Command) -> None:
    found = json.loads(command("seamcall", "show", "TDH.EXPORT.MEM", "--json").out)
    assert (found["reproduced"], found["module_versions"]) == (False, ["1.5.06"])
    assert json.loads(command("seamcall", "show", "TDH.SYS.INFO", "--json").out)["module_versions"] == ["1.5.06", "1.0"]
    assert "not reproduced" in command("seamcall", "show", "TDH.EXPORT.MEM").out


@pytest.mark.parametrize("arguments", [("show", "TDH.FOO"), ("show", "999"), ("list", "foo"), ("show",), ()])
def test_what_there_is_not(arguments: tuple[str, ...], command: Command) -> None:
    result = command("seamcall", *arguments)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
