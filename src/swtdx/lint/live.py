# SPDX-License-Identifier: GPL-2.0-or-later
"""The TDVMCALLs of a machine that runs, and what its guest does with answers.

Virtual CPUs are made from a subclass of what the processor makes otherwise (`Processor.context_class`), as for a trace.
An exit that the TDX module turns into #VE is remembered as the cause of the TDVMCALL that follows.

A host may answer with any 64 bits; of those beyond the operand a guest must take none. So for the first executions of
each IN (and CPUID) the answer gets all of them set, and a breakpoint of the processor stops the guest when the
instruction is over, to look at its registers. A guest that is right notices neither.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from swtdx.cpu._engine import GuestContext
from swtdx.cpu.vmx import ExitReason
from swtdx.lint.call import ALL, REGISTERS, Cause, Vmcall
from swtdx.lint.report import Findings
from swtdx.lint.rules import CPUID, GET_QUOTE, HEADER, IO, MAP_GPA, PAGE, answered, hits

if TYPE_CHECKING:
    from swtdx.cpu.processor import Processor

PROBES = 4
"""How often each instruction is looked at."""
_MOST_PROBED = 4096
"""Instructions: a guest may have as many as it likes."""
LSTAR = 0xC0000082
_VALID, _VECTOR, _DB = 1 << 31, 0xFF, 1
_BREAKPOINT, _ENABLED, _KIND = 0, 0x3, 0xF << 16
_RF = 1 << 16
_RSP = REGISTERS.index("rsp")
_CAUSES = {int(reason) for reason in (ExitReason.IO, ExitReason.CPUID, ExitReason.RDMSR, ExitReason.WRMSR)}
_TDCALL, _EXCEPTION = int(ExitReason.TDCALL), int(ExitReason.EXCEPTION_NMI)
_SHARED = (1 << 47, 1 << 51)


def watch(processor: Processor, findings: Findings) -> None:
    """Look at every TD's virtual CPU that ``processor`` creates from now on."""
    members = {"findings": findings, "processor": processor, "probed": Counter[int]()}
    processor.context_class = type("Linted", (_Linted, processor.context_class), members)


class _Linted(GuestContext):
    findings: Findings
    processor: Processor
    probed: Counter[int]

    def attach_views(self) -> None:
        self.cause: Cause | None = None
        self.asked: Vmcall | None = None
        """The call that the host answers at the moment, if the answer is to be looked at."""
        self.waits: Vmcall | None = None
        """The call behind whose instruction there is a breakpoint."""
        self.raised = False
        """The last exit is likely to be a #VE."""
        self.noted = (0, 0, 0)
        super().attach_views()

    def run(self) -> int:
        if self.asked is not None:
            self._answer(self.asked)
        elif self.raised and self.event_pending:
            # A fault pushes RF, and with it the breakpoint behind the instruction would not be met after IRET.
            self.rflags &= ~_RF
        self.raised = False
        while True:
            reason = super().run()
            if self.waits is None or reason != _EXCEPTION or not self._breakpoint():
                break
        if reason == _TDCALL:
            if not self.gpr[0]:
                self._call()
        elif reason in _CAUSES and self.tdx_mode:
            if self.waits is not None:
                self._disarm()  # the thread that was to come back may be on another virtual CPU
            gpr = tuple(self.gpr)
            self.raised = True
            self.cause = Cause(self.rip, self.instruction_length, reason, self.exit_qualification, gpr)
        return reason

    def _call(self) -> None:
        gpr = self.gpr.tolist()
        mask, function = gpr[1], gpr[11] if not gpr[10] else -1
        exposed = {name: gpr[number] for number, name in enumerate(REGISTERS) if mask >> number & 1}
        cause = self._cause_of(function, exposed)
        memory = self._memory(function, exposed)
        call = Vmcall(function, mask, exposed, self.rip, cause, memory)
        self.findings.calls += 1
        self._report(call, hits(call))
        reads = function == IO and not call.writes
        if cause is not None and (reads or (function == CPUID and self.findings.notes)):
            probed = self.probed.get(cause.rip, 0)
            if probed < PROBES and (probed or len(self.probed) < _MOST_PROBED):
                self.probed[cause.rip] = probed + 1
                self.asked = call

    def _report(self, call: Vmcall, found: Any) -> None:
        found = list(found)
        if found:
            self.findings.entered_at(self.rdmsr(LSTAR))
            place = call.cause.rip if call.cause is not None else call.rip
            self.findings.add(call, found, lambda: instruction(self.read_linear(place, 15), place))

    def _cause_of(self, function: int, exposed: dict[str, int]) -> Cause | None:
        """Return the cause of a call, if the last #VE was for the same thing; early code calls by itself."""
        cause = self.cause
        if cause is None or cause.reason != function:
            return None
        if function == IO:
            size, reads, port = (cause.qualification & 7) + 1, cause.qualification >> 3 & 1, cause.qualification >> 16
            if (size, 1 - reads, port & 0xFFFF) != tuple(exposed.get(name, -1) for name in ("r12", "r13", "r14")):
                return None
        return cause

    # --- Answers ------------------------------------------------------------------------------------------------------

    def _answer(self, call: Vmcall) -> None:
        """Set what the guest must not take of the answer with which it is entered; wait for the instruction's end."""
        self.asked = None
        gpr, cause = self.gpr, call.cause
        if gpr[10] or cause is None or self.waits is not None:
            return
        for name, (_, kind) in call.row["reply"].items():
            number = REGISTERS.index(name)
            operand = call.answer_bits if kind == "data" else (1 << int(kind)) - 1
            if call.mask >> number & 1:
                gpr[number] = gpr[number] & operand | ALL & ~operand
        self.noted = self.get_dr(_BREAKPOINT), self.get_dr(7), self.exception_bitmap
        self.set_dr(_BREAKPOINT, cause.rip + cause.length)
        self.set_dr(7, self.noted[1] & ~_KIND | _ENABLED)
        self.exception_bitmap |= 1 << _DB
        self.waits = call

    def _disarm(self) -> None:
        address, control, bitmap = self.noted
        self.waits = None
        self.set_dr(_BREAKPOINT, address)
        self.set_dr(7, control)
        self.exception_bitmap = bitmap

    def _breakpoint(self) -> bool:
        """Return whether an exception is the breakpoint; then it is over, and the guest is to continue."""
        information = self.interruption_info
        if not information & _VALID or information & _VECTOR != _DB:
            return False
        call = self.waits
        assert call is not None
        assert call.cause is not None
        cause = call.cause
        if self.rip != cause.rip + cause.length:
            self._disarm()  # the guest debugs itself: its exception is given back, in the state that it expects
            self.set_dr(6, self.get_dr(6) | self.exit_qualification & 0xE00F)
            self.inject(_DB, information >> 8 & 7, None, self.instruction_length)
            return True
        if self.gpr[_RSP] != cause.registers[_RSP]:
            self.rflags |= _RF  # another thread is here
            return True
        self._disarm()
        self.findings.answers += 1
        self._report(call, answered(call, cause.registers, tuple(self.gpr)))
        return True

    # --- Memory -------------------------------------------------------------------------------------------------------

    def _memory(self, function: int, exposed: dict[str, int]) -> dict[str, int]:
        gpa, size = exposed.get("r12", 0), exposed.get("r13", 0)
        if function == MAP_GPA and self.findings.notes and any(gpa & bit for bit in _SHARED):
            private = gpa & ~sum(_SHARED)
            pages = range(private, private + min(size, 1 << 30), PAGE)
            return {"filled": sum(any(self._page(page)) for page in pages)}
        if function == GET_QUOTE and 0 < size <= 1 << 20 and not gpa % PAGE and not size % PAGE:
            buffer = b"".join(self._page(gpa + offset) for offset in range(0, size, PAGE))
            if len(buffer) == size:
                in_len = int.from_bytes(buffer[16:20], "little")
                return {
                    "in_len": in_len,
                    "status": int.from_bytes(buffer[8:16], "little"),
                    "out_len": int.from_bytes(buffer[20:24], "little"),
                    "behind": len(buffer[HEADER + in_len :]) - buffer[HEADER + in_len :].count(0),
                }
        return {}

    def _page(self, gpa: int) -> bytes:
        """Return a page of the guest's, empty where there is none."""
        found = self.translate_gpa(gpa)
        if found is None:
            return b""
        memory, hpa = self.processor.memory, found[0] & ~(PAGE - 1)
        window = memory.read_window(hpa, PAGE)
        if window is not None:
            return window
        return bytes(memory.raw[hpa : hpa + PAGE]) if hpa + PAGE <= memory.size else b""


def instruction(code: bytes, address: int) -> str:
    """Return the text of the instruction that begins so; empty if it cannot be read."""
    import iced_x86

    if not code:
        return ""
    formatter = iced_x86.Formatter(iced_x86.FormatterSyntax.INTEL)
    return str(formatter.format(iced_x86.Decoder(64, code, ip=address).decode()))
