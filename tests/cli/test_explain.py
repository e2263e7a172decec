# SPDX-License-Identifier: GPL-2.0-or-later
"""swtdx explain as a command: what it takes, what it says, and what it refuses."""

from __future__ import annotations

import json

import pytest

from tests.cli.conftest import Command


def test_an_operand_and_what_it_is_to_the_leaf(command: Command) -> None:
    result = command("explain", "0xc000010000000001", "--leaf", "TDH.MEM.PAGE.ADD", "--json")
    found = json.loads(result.out)
    assert (result.status, found["name"], found["operand"]) == (0, "OPERAND_INVALID", "RCX")
    assert (found["operand_of_leaf"], found["recoverable"]) == ("gpa+level", False)


def test_a_failed_ioctl_leads_to_the_rule_of_its_seamcall(command: Command) -> None:
    given = ("EINVAL", "--command", "KVM_TDX_INIT_VM", "--hw-error", "0xc000010000000041")
    result = command("explain", *given, "--json")
    found = json.loads(result.out)
    assert (found["command"], found["errno"]) == ("KVM_TDX_INIT_VM", "EINVAL")
    assert (found["status"]["leaf"], found["status"]["operand"]) == ("TDH.MNG.INIT", "XFAM")
    assert "bits 0 and 1" in found["status"]["rules"][0]
    shown = command("explain", *given).out
    for words in ("KVM_TDX_INIT_VM: EINVAL (Invalid argument)", "TDH.MNG.INIT", "AVX-512", "Ask KVM_TDX_CAPABILITIES"):
        assert words in shown


def test_an_errno_of_kvms_own_names_rule_and_remedy(command: Command) -> None:
    found = json.loads(command("explain", "--errno", "E2BIG", "--command", "capabilities", "--json").out)
    assert found["command"] == "KVM_TDX_CAPABILITIES"
    assert [(rule["errno"], "cpuid.nent" in rule["rule"]) for rule in found["rules"]] == [("E2BIG", True)]


def test_the_dialects_differ(command: Command) -> None:
    arguments = ("explain", "EOPNOTSUPP", "--command", "KVM_TDX_INIT_VM")
    assert "PERFMON" in command(*arguments, "--dialect", "v10").out
    assert command(*arguments).status == 1
    assert command("explain", "EINVAL", "--command", "KVM_TDX_GET_CPUID", "--dialect", "v10").status == 1


@pytest.mark.parametrize(
    ("line", "command_name", "leaf", "name"),
    [
        (
            "KVM_TDX_INIT_VM: EINVAL (Invalid argument), SEAMCALL status 0xc000010000000045",
            "KVM_TDX_INIT_VM", "TDH.MNG.INIT", "OPERAND_INVALID",
        ),
        (
            "qemu-system-x86_64: TDX ioctl TDX_INIT_VM failed, hw_errors: 0xc000010000000046: Invalid argument",
            "KVM_TDX_INIT_VM", "TDH.MNG.INIT", "OPERAND_INVALID",
        ),
        (
            "kvm_intel: SEAMCALL TDH_MEM_PAGE_ADD failed: 0xc0000b0d00000001",
            None, "TDH.MEM.PAGE.ADD", "EPT_ENTRY_STATE_INCORRECT",
        ),
    ],
)  # fmt: skip
def test_lines_that_people_have(line: str, command_name: str | None, leaf: str, name: str, command: Command) -> None:
    found = json.loads(command("explain", line, "--json").out)
    assert found.get("command") == command_name
    status = found["status"] if command_name else found
    assert (status["leaf"], status["name"]) == (leaf, name)


def test_what_rcx_and_rdx_tell_beside_an_error(command: Command) -> None:
    """As Linux logs them: a Secure-EPT entry (level 2:0, state 15:8, 4 is MAPPED), or a CPUID leaf and sub-leaf."""
    line = "SEAMCALL TDH_MEM_PAGE_AUG failed: 0xc0000b0d00000001, rcx 0x8000000012345000, rdx 0x401"
    entry = json.loads(command("explain", line, "--json").out)["entry"]
    assert entry == {"value": "0x8000000012345000", "level": 1, "size": "2 MiB", "state": "MAPPED"}
    line = "SEAMCALL TDH_MNG_INIT failed: 0xc000010000000045, rcx 0x100000004"
    assert json.loads(command("explain", line, "--json").out)["cpuid"] == {"leaf": "0x4", "subleaf": 1}
    assert "leaf 0x4, sub-leaf 0x1" in command("explain", line).out
    found = json.loads(command("explain", "EPT_WALK_FAILED|RCX", "--extended", "0x2", "--json").out)
    assert (found["entry"]["level"], found["entry"]["state"]) == (2, "FREE")


def test_an_address_in_a_line_is_no_status(command: Command) -> None:
    line = "KVM_TDX_INIT_MEM_REGION: EINVAL (Invalid argument): no slot with private memory at 0x100000000"
    found = json.loads(command("explain", line, "--json").out)
    assert "status" not in found
    assert any("guest_memfd" in rule["rule"] for rule in found["rules"])
    line = "SEAMCALL TDH_MEM_PAGE_ADD failed: 0xc0000b0d00000001 entry 0x8000000123456000"
    assert json.loads(command("explain", line, "--json").out)["name"] == "EPT_ENTRY_STATE_INCORRECT"


def test_a_td_exit_with_its_qualification(command: Command) -> None:
    """A write to a page that the guest has not accepted, with SEPT_VE_DISABLE: extended type 6."""
    arguments = ("0x30", "--qualification", "0x2", "--extended", "0x6", "--gpa", "0x80001000")
    found = json.loads(command("explain", *arguments, "--json").out)
    assert found["exit_reason"] == {"number": 48, "name": "EPT_VIOLATION"}
    assert (found["qualification"]["access"], found["qualification"]["entry_allows"]) == (["write"], [])
    assert found["extended"]["type"] == "PENDING_EPT_VIOLATION"
    assert found["gpa"] == {"page": "0x80001000", "nature": "private"}
    assert "TDG.MEM.PAGE.ACCEPT" in command("explain", *arguments).out


def test_an_accept_that_met_no_page(command: Command) -> None:
    """Extended type 1: required level 5:3... in bits 63:32, level 0 wanted, stopped at 1, entry FREE (0), no leaf."""
    information = 0 | 1 << 3
    found = json.loads(command("explain", "0x30", "--extended", hex(1 | information << 32), "--json").out)
    extended = found["extended"]
    assert (extended["type"], extended["required_level"], extended["level"]) == ("ACCEPT", 0, 1)
    assert (extended["entry_state"], extended["leaf_entry"]) == ("FREE", False)


def test_shared_addresses_events_and_dead_tds(command: Command) -> None:
    found = json.loads(command("explain", "0x6000000200000000", "--interruption", "0x80000202", "--json").out)
    assert (found["name"], found["fatal"], found["exit_reason"]["name"]) == (
        "NON_RECOVERABLE_TD",
        True,
        "EXCEPTION_NMI",
    )
    assert found["interruption"]["name"] == "NMI"
    found = json.loads(command("explain", "48", "--gpa", hex(1 << 47 | 0x1000), "--json").out)
    assert found["gpa"]["nature"].startswith("shared")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["a status, an errno with --command"]),
        (["nonsense"], ["nonsense", "neither a status nor an errno"]),
        (["0x1" + "0" * 16], ["64 bits"]),
        (["EINVAL"], ["--command", "KVM_TDX_INIT_VM"]),
        (["EFOO"], ["EFOO", "neither"]),
        (["0xc000010000000001", "--leaf", "TDH.FOO"], ["--leaf", "TDH.FOO"]),
        (["EINVAL", "--command", "KVM_FOO"], ["--command", "KVM_FOO"]),
        (["EINVAL", "--command", "KVM_TDX_INIT_VM", "--hw-error", "many"], ["--hw-error", "many"]),
        (["EINVAL", "--command", "KVM_RUN", "--gpa", "1"], ["--gpa", "status"]),
        (["ENOSPC", "--command", "KVM_RUN"], ["KVM_RUN", "ENOSPC"]),
    ],
)
def test_what_is_refused(arguments: list[str], words: list[str], command: Command) -> None:
    result = command("explain", *arguments)
    assert (result.status, result.out) == (1, "")
    assert result.err.startswith("swtdx: ")
    assert result.err.count("\n") == 1
    for word in words:
        assert word in result.err


def test_a_status_of_module_1_0(command: Command) -> None:
    """Values without the FATAL bit, and names that 1.5 has no more, lead to the rule that 1.5 names otherwise."""
    for value, name in (("0xc000060200000000", "TD_NOT_FINALIZED"), ("0xc000060400000000", "TD_FATAL")):
        assert json.loads(command("explain", value, "--json").out)["name"] == name
    found = json.loads(command("explain", "TD_NOT_FINALIZED", "--leaf", "TDH.VP.ENTER", "--json").out)
    assert (found["module_version"], len(found["rules"])) == ("1.0", 1)
    assert "OP_STATE" in found["rules"][0]
