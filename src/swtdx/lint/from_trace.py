# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDVMCALLs of a trace file (``swtdx run --trace``).

A trace has the registers that a function uses, those beside it that are not zero, and the addresses of the TDCALL and
of the instruction that raised the #VE. It has neither the guest's memory nor its registers around an instruction: the
rules about buffers and about the host's answers need a run (``swtdx run --lint``).
"""

from __future__ import annotations

from collections.abc import Iterable

from swtdx.cpu.vmx import reason_name
from swtdx.lint.call import Cause, Vmcall
from swtdx.lint.report import Findings
from swtdx.lint.rules import IO, hits
from swtdx.seam.tables import load
from swtdx.trace.event import Event, Exit, Tdcall

VMCALL = "TDG.VP.VMCALL"
_CAUSES = {reason_name(number): number for number in (10, 30, 31, 32)}
_FUNCTIONS = {row[0]: int(number, 0) for number, row in load("operands")["vmcall"].items()}
_INPUTS = {
    row[0]: [operand.partition(":")[::2] for operand in row[1].split()] for row in load("operands")["vmcall"].values()
}


def lint(events: Iterable[Event], findings: Findings) -> None:
    """Look at the calls of a trace."""
    tdcalls: dict[int, int] = {}
    causes: dict[int, Cause] = {}
    for event in events:
        if isinstance(event, Exit):
            rip = int(event.args.get("rip", 0))
            if event.name == "TDCALL":
                tdcalls[event.vcpu] = rip
            elif event.name in _CAUSES:
                qualification = int(event.args.get("qualification", 0))
                causes[event.vcpu] = Cause(rip, 0, _CAUSES[event.name], qualification)
        elif isinstance(event, Tdcall) and event.name == VMCALL:
            call = _call(event, tdcalls.get(event.vcpu, 0), causes.get(event.vcpu))
            if call is not None:
                findings.calls += 1
                findings.add(call, hits(call))


def _call(event: Tdcall, rip: int, cause: Cause | None) -> Vmcall | None:
    name = str(event.args.get("function", ""))
    function = _FUNCTIONS.get(name)
    if function is None:
        return None
    exposed = {register: int(event.args[meaning]) for register, meaning in _INPUTS[name] if meaning in event.args}
    others = event.args.get("others", {})
    exposed |= {register: int(value) for register, value in others.items()} if isinstance(others, dict) else {}
    if cause is not None and cause.reason != function:
        cause = None
    if cause is not None and function == IO and cause.qualification >> 16 & 0xFFFF != exposed.get("r14"):
        cause = None
    return Vmcall(function, int(event.args.get("mask", 0)), exposed, rip, cause)
