# SPDX-License-Identifier: GPL-2.0-or-later
"""How a SEAMCALL and a TDCALL are told: operands by the tables, statuses by the specification's names."""

from __future__ import annotations

import doctest
from typing import Any

import pytest

from swtdx.cpu.vmx import EventType, ExitReason
from swtdx.cpu.watched_context import Injection, VmExit
from swtdx.seam import traced_module
from swtdx.seam.dispatch import LEAVES, SEAMCALL_NUMBERS
from swtdx.seam.hardware import Args
from swtdx.seam.tables import load
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from swtdx.seam.traced_module import SeamTracer
from swtdx.trace.event import Event


class Answers:
    """A module that gives what it is told to."""

    def __init__(self, status: int, **outputs: int) -> None:
        self.status, self.outputs = status, outputs

    def seamcall(self, fn: int, args: Args, lp: int) -> int:
        for register, value in self.outputs.items():
            setattr(args, register, value)
        return self.status


def told(answers: Answers, fn: int, **operands: int) -> dict[str, Any]:
    from swtdx.cpu.processor import SeamArgs

    events: list[Event] = []
    tracer = SeamTracer(events.append)
    args = SeamArgs(**operands)
    assert tracer.module(answers).seamcall(fn, args, 2) == answers.status
    (event,) = events
    return event.as_json()


def test_a_refused_seamcall() -> None:
    """TDH.MEM.PAGE.AUG is leaf 6: RCX GPA and level, RDX TDR, R8 page; EPT_ENTRY_NOT_FREE|RCX; RCX, RDX say where."""
    busy = Answers(0xC0000B0200000001, rcx=0x8000000000000001, rdx=0x0400)
    event = told(busy, 6, rcx=0x20_0001, rdx=0x101000, r8=0x40_0000)
    assert event["kind"] == "seamcall"
    assert event["name"] == "TDH.MEM.PAGE.AUG"
    assert event["args"] == {"gpa": "0x200000", "level": 1, "tdr": "0x101000", "page": "0x400000"}
    assert event["text"] == "EPT_ENTRY_NOT_FREE|RCX"
    assert event["out"] == {"sept_entry": "0x8000000000000001", "sept_state": "0x400"}
    assert (event["lp"], "version" in event) == (2, False)


def test_an_operand_of_version_1_only() -> None:
    """TDH.VP.INIT, leaf 22: R8 is the x2APIC ID in version 1, and nothing in version 0."""
    assert "x2apic_id" not in told(Answers(0), 22, rcx=0x1000, r8=7)["args"]
    event = told(Answers(0), 22 | 1 << 16, rcx=0x1000, r8=7)
    assert (event["args"]["x2apic_id"], event["version"]) == ("0x7", 1)


def test_an_exit_to_the_host_is_named() -> None:
    assert told(Answers(48), 0, rcx=0x9000)["text"] == "exit EPT_VIOLATION"
    assert told(Answers(0x8000020000000092), 0)["text"] == "OPERAND_BUSY|SEPT_TREE"


def test_a_leaf_that_does_not_exist() -> None:
    event = told(Answers(0xC000010000000000), 0x3FF)
    assert (event["name"], event["text"], event["args"]) == ("leaf 0x3ff", "OPERAND_INVALID", {})


def exit_with(gpr: dict[int, int], after: dict[int, int], reason: int = 77, again: bool = False) -> VmExit:
    before = tuple(gpr.get(index, 0) for index in range(16))
    later = tuple(after.get(index, 0) for index in range(16))
    return VmExit(1, 99, 100, 250, 400, reason, 0, 0, 0x1000, 0, before, later, 0x1000 if again else 0x1004)


def exits(exit: VmExit) -> list[dict[str, Any]]:
    events: list[Event] = []
    SeamTracer(events.append).vm_exit(exit)
    return [event.as_json() for event in events]


def test_a_tdcall_is_the_exit_and_the_leaf() -> None:
    """TDG.VP.VMCALL<Instruction.IO> (GHCI 3.9): R12 size, R13 1 is out, R14 port, R15 data."""
    out = exit_with({1: 0xFC00, 11: 30, 12: 1, 13: 1, 14: 0x3F8, 15: 0x41}, {})
    left, call = exits(out)
    assert (left["kind"], left["name"], left["guest"], left["dur"], left["vcpu"]) == ("exit", "TDCALL", 0.15, 0.15, 1)
    assert call["name"] == "TDG.VP.VMCALL"
    assert call["args"] == {
        "mask": "0xfc00", "function": "Instruction.IO", "size": "0x1", "write": "0x1", "port": "0x3f8", "data": "0x41",
    }  # fmt: skip
    assert call["out"]["result"] == "0x0"


@pytest.mark.parametrize(
    ("function", "name"), [(0x10001, "MapGPA"), (0x10003, "ReportFatalError"), (0x99, "function 0x99")]
)
def test_functions_of_the_ghci(function: int, name: str) -> None:
    assert exits(exit_with({11: function, 12: 0x1000}, {}))[1]["args"]["function"] == name


def test_registers_that_are_passed_without_need_are_shown_if_they_are_not_zero() -> None:
    """HLT takes R12; the mask 0x1c0c passes RDX, RBX and R10 to R12, and not R13."""
    halt = exit_with({1: 0x1C0C, 11: 12, 12: 1, 3: 0x5EC, 13: 7}, {})
    _, call = exits(halt)
    assert call["args"] == {
        "mask": "0x1c0c", "function": "Instruction.HLT", "interrupts_blocked": "0x1", "others": {"rbx": "0x5ec"},
    }  # fmt: skip


def test_a_tdcall_that_the_host_must_help_with_has_no_status_yet() -> None:
    """TDG.MEM.PAGE.ACCEPT of a page that is not there leaves by an EPT violation, and is executed again."""
    call = exits(exit_with({0: 6, 1: 0x20_0001}, {0: 6}, again=True))[1]
    assert call["name"] == "TDG.MEM.PAGE.ACCEPT"
    assert call["args"] == {"gpa": "0x200000", "level": 1}
    assert "status" not in call
    assert "executed again" in call["text"]


def test_exit_details() -> None:
    (event,) = exits(exit_with({1: 0x1B}, {}, reason=ExitReason.RDMSR))
    assert event["args"] == {"rip": "0x1000", "msr": "0x1b"}


def test_an_injected_event() -> None:
    events: list[Event] = []
    SeamTracer(events.append).injection(Injection(0, 1, 2, 20, EventType.HARDWARE_EXCEPTION, None))
    SeamTracer(events.append).injection(Injection(0, 1, 2, 14, EventType.HARDWARE_EXCEPTION, 4))
    assert [event.name for event in events] == ["#VE", "#PF"]
    assert events[0].args == {"vector": 20, "type": "hardware exception"}
    assert events[1].args["error_code"] == 4


def test_every_leaf_that_is_reproduced_has_its_operands() -> None:
    names = {number: name for name, number in SEAMCALL_NUMBERS.items()}
    assert {names[number & 0xFFFF] for number in LEAVES} - set(load("operands")["seamcall"]) <= {
        name for name in names.values() if name.startswith(("TDH.EXPORT", "TDH.IMPORT", "TDH.SERVTD", "TDH.MIG"))
    }
    assert set(TDCALL_NUMBERS) == set(load("operands")["tdcall"])


def test_examples() -> None:
    assert doctest.testmod(traced_module).failed == 0
