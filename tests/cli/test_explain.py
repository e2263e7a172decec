# SPDX-License-Identifier: GPL-2.0-or-later
"""swtdx explain: names and operands from the specification's status codes."""

from __future__ import annotations

import json

from tests.cli.conftest import Command


def test_an_operand_and_what_it_is_to_the_leaf(command: Command) -> None:
    result = command("explain", "0xc000010000000001", "--leaf", "TDH.MEM.PAGE.ADD", "--json")
    found = json.loads(result.out)
    assert (result.status, found["name"], found["operand"]) == (0, "OPERAND_INVALID", "RCX")
    assert (found["operand_of_leaf"], found["recoverable"]) == ("gpa+level", False)


def test_what_is_no_status_is_refused(command: Command) -> None:
    assert command("explain", "nonsense").status == 1
    assert command("explain", "0x1" + "0" * 16).status == 1


def test_a_status_of_module_1_0(command: Command) -> None:
    """Values without the FATAL bit, and names that 1.5 has no more."""
    for value, name in (("0xc000060200000000", "TD_NOT_FINALIZED"), ("0xc000060400000000", "TD_FATAL")):
        assert json.loads(command("explain", value, "--json").out)["name"] == name
