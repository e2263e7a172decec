# SPDX-License-Identifier: GPL-2.0-or-later
"""SEAMCALLs, TDCALLs, VM exits and injected events as they happen, with their operands decoded, for a trace.

A `TracedModule` stands in the processor where the TDX module would stand, and hands each SEAMCALL on.  So a machine
that is not traced has nothing of this in its way.  Which register means what is a table (``tables/operands.json``);
a row is ``"register:name ..."`` for the inputs and for the outputs, ``gpa+level`` is an address with a level in its low
bits, ``@1`` means: in version 1 of the leaf only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from swtdx.cpu.vmx import ExitReason, event_type_name, reason_name
from swtdx.cpu.watched_context import Entry, Injection, PagesTaken, VmExit
from swtdx.seam.dispatch import LEAF_MASK, SEAMCALL_NUMBERS, VERSION_SHIFT
from swtdx.seam.hardware import Args, SeamModule
from swtdx.seam.operands import LEVEL_MASK
from swtdx.seam.status import DETAILS_L2_MASK, ERROR, Operand, StatusCode
from swtdx.seam.tables import load
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from swtdx.trace.batch import Repeated, takers
from swtdx.trace.event import Column, Count, Emit, Exit, Injected, Seamcall, Tdcall, Values

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule

Operands = tuple[tuple[str, str], ...]

_REGISTERS = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
_INDEX = {name: number for number, name in enumerate(_REGISTERS)}
_VP_ENTER = SEAMCALL_NUMBERS["TDH.VP.ENTER"]
_VP_VMCALL = TDCALL_NUMBERS["TDG.VP.VMCALL"]
_SEAMCALLS = {number: name for name, number in SEAMCALL_NUMBERS.items()}
_TDCALLS = {number: name for name, number in TDCALL_NUMBERS.items()}
_VECTORS = {0: "#DE", 1: "#DB", 2: "NMI", 3: "#BP", 6: "#UD", 7: "#NM", 8: "#DF", 13: "#GP", 14: "#PF", 18: "#MC"}
_VECTORS[20] = "#VE"


NOT_DONE = "not done: the host's turn, or an event, comes first; executed again after it"
_PAGE_ACCEPT = "TDG.MEM.PAGE.ACCEPT"
_OF_PAGE, _LEFT = (("gpa", "gpa"), ("level", "level"), ("tdr", "tdr")), (("sept_entry", "sept"), ("sept_state", "sept"))
_REMOVAL = (
    ("TDH.MEM.RANGE.BLOCK", _OF_PAGE, _LEFT),
    ("TDH.MEM.TRACK", (("tdr", "tdr"),), ()),
    ("TDH.MEM.PAGE.REMOVE", _OF_PAGE, (("page", "page"), ("sept_state", "sept"))),
    ("TDH.PHYMEM.PAGE.WBINVD", (("page", "keyed"),), ()),
)
"""What removes a page: calls with their operands in and out, each with the name of its value."""
_Seamcall: Any = Seamcall
_Exit: Any = Exit
_Tdcall: Any = Tdcall
"""The same classes, with a `Column` in place of a number."""


@cache
def _row(kind: str, key: str, version: int) -> tuple[Operands, Operands]:
    """Return (inputs, outputs) of a leaf, each as (register, name)."""
    inputs, outputs = load("operands")[kind].get(key, ["", ""])[-2:]
    return _parsed(inputs, version), _parsed(outputs, version)


_KVM_HYPERCALLS = {
    1: "KVM_HC_VAPIC_POLL_IRQ", 3: "KVM_HC_FEATURES", 5: "KVM_HC_KICK_CPU", 9: "KVM_HC_CLOCK_PAIRING",
    10: "KVM_HC_SEND_IPI", 11: "KVM_HC_SCHED_YIELD", 12: "KVM_HC_MAP_GPA_RANGE",
}  # fmt: skip
"""Linux, include/uapi/linux/kvm_para.h: those that x86 has."""


def _parsed(text: str, version: int) -> Operands:
    found = []
    for operand in text.split():
        register, _, name = operand.partition(":")
        name, _, only = name.partition("@")
        if not only or int(only) == version:
            found.append((register, name))
    return tuple(found)


@lru_cache(256)
def status_text(status: int) -> str:
    """Return a completion status in words.

    >>> status_text(0), status_text(0xC000010000000008), status_text(0x8000020000000092)
    ('SUCCESS', 'OPERAND_INVALID|R8', 'OPERAND_BUSY|SEPT_TREE')
    >>> status_text(0xC0000B0D00000000), status_text(0x1234567800000000)
    ('EPT_ENTRY_STATE_INCORRECT', '0x1234567800000000')
    """
    try:
        name = StatusCode(status & ~DETAILS_L2_MASK).name
    except ValueError:
        return f"{status:#x}"
    detail = status & DETAILS_L2_MASK
    if not status & ERROR or not detail:
        return name
    try:
        return f"{name}|{Operand(detail).name}"
    except ValueError:
        return f"{name}|{detail:#x}"


class SeamTracer:
    """Turns what happens in and around the module into events for ``emit``; a `cpu.watched_context.Watcher`."""

    def __init__(self, emit: Emit, module: TdxModule | None = None) -> None:
        """``module`` is the one whose virtual CPUs are watched."""
        self._module = module
        self._emit, self._emit_all = takers(emit)
        self.entries: dict[int, Entry] = {}
        """By thread: how it has entered the guest in which it is."""

    def module(self, module: SeamModule) -> TracedModule:
        """Return what to load into the processor in place of ``module``."""
        return TracedModule(module, self._emit, self._emit_all, self.entries, self._module)

    def entry(self, thread: int, again: int) -> Entry:
        """As `cpu.watched_context.Watcher.entry`."""
        entry = self.entries[thread]
        self.entries[thread] = replace(entry, began=again)
        return entry

    def page_added(self, exit: VmExit, hpa: int, entry: Entry) -> None:
        """Tell what the host has done in one step: TD exit, TDH.MEM.PAGE.AUG, entry."""
        gpa = exit.gpr[_INDEX["rcx"]] & ~LEVEL_MASK
        self._emit(_left_for_page(entry, exit.thread, entry.began, exit.left - entry.began))
        self._emit(_page_aug(entry, exit.thread, exit.left, exit.resumed - exit.left, gpa, hpa))
        self.vm_exit(exit)

    def pages_taken(self, pages: PagesTaken) -> None:
        """Tell for each page what `page_added` tells, and the TDCALL that succeeds."""
        entry, thread, vcpu, count = pages.entry, pages.thread, pages.context, len(pages.gpa)
        left, resumed, gpa = Column(pages.left), Column(pages.resumed), Column(pages.gpa)
        began = Column([entry.began, *pages.resumed[:-1]])
        handled, ran, where = resumed - left, left - Column(pages.entered), {"rip": Column(pages.rip)}
        name, done, args = reason_name(ExitReason.TDCALL), status_text(0), {"gpa": gpa, "level": Count(0)}
        events: tuple[Any, ...] = (
            _left_for_page(entry, thread, began, left - began),
            _page_aug(entry, thread, left, handled, gpa, Column(pages.hpa)),
            _Exit(name, left, handled, thread, where, vcpu, ran),
            _Tdcall(_PAGE_ACCEPT, left, handled, thread, args, text=NOT_DONE, vcpu=vcpu),
            _Exit(name, resumed, 0, thread, where, vcpu, 0),
            _Tdcall(_PAGE_ACCEPT, resumed, 0, thread, args, status=0, text=done, vcpu=vcpu),
        )
        self._emit_all(Repeated(events, count))

    def vm_exit(self, exit: VmExit) -> None:
        """An exit; of a TDCALL two events, for the exit and for the leaf function that it reached."""
        times = exit.left, exit.resumed - exit.left
        ran = exit.left - exit.entered
        self._emit(Exit(reason_name(exit.reason), *times, exit.thread, _exit_details(exit), exit.context, ran))
        if exit.reason == _TDCALL:
            self._emit(_tdcall(exit))

    def injection(self, injection: Injection) -> None:
        """An event put in by software: an exception, a #VE, an NMI, an interrupt of a normal VM."""
        vector = injection.vector
        args: Values = {"vector": vector, "type": event_type_name(injection.type)}
        if injection.error_code is not None:
            args["error_code"] = injection.error_code
        name = _VECTORS.get(vector, f"vector {vector:#x}")
        self._emit(Injected(name, injection.time, 0, injection.thread, args, injection.context))


class TracedModule:
    """The TDX module, each of its SEAMCALLs told. A `cpu.processor.SeamModule`."""

    def __init__(
        self,
        module: SeamModule,
        emit: Emit,
        emit_all: Callable[[Repeated], None],
        entries: dict[int, Entry],
        inner: TdxModule | None = None,
    ) -> None:
        self._seamcall = module.seamcall
        self._emit, self._emit_all = emit, emit_all
        self._entries, self._inner = entries, inner
        if inner is not None and hasattr(module, "remove_pages"):  # one whose calls are made to fail has not
            self._removed = module.remove_pages
            self.remove_pages = self._remove_pages

    def seamcall(self, fn: int, args: Args, lp: int) -> int:
        """As `TdxModule.seamcall`."""
        number, version = fn & LEAF_MASK, fn >> VERSION_SHIFT & 0xFF
        name = _SEAMCALLS.get(number, f"leaf {number:#x}")
        inputs, outputs = _row("seamcall", name, version)
        given = _values(inputs, args)
        tid = threading.get_native_id()
        began = perf_counter_ns()
        if number == _VP_ENTER:
            self._entries[tid] = Entry(began, lp, args.rcx, self._tdr_of(args.rcx))
        status = self._seamcall(fn, args, lp)
        ended = perf_counter_ns()
        if number == _VP_ENTER:
            began = self._entries.pop(tid).began  # of the last entry, where there were others meanwhile
            text = status_text(status) if status & ERROR else f"exit {reason_name(status & 0xFFFF)}"
            out: Values = {}
        else:
            text, out = status_text(status), _values(outputs, args)
        self._emit(Seamcall(name, began, ended - began, tid, given, version, status, text, out, lp))
        return status

    def _tdr_of(self, tdvpr: int) -> int:
        vcpu = self._inner.vcpus.get(tdvpr) if self._inner is not None else None
        return 0 if vcpu is None else vcpu.td.hpa

    def _remove_pages(self, tdr: int, gpa: int, indices: Sequence[int], pages: Sequence[int]) -> bool:
        """As `TdxModule.remove_pages`; its time is divided among the calls for which the step stands."""
        assert self._inner is not None
        td = self._inner.tds.get(tdr)
        began = perf_counter_ns()
        done = bool(self._removed(tdr, gpa, indices, pages))
        if not done or td is None or not pages:
            return done
        calls = len(pages) * len(_REMOVAL)
        each, tid = (perf_counter_ns() - began) // calls, threading.get_native_id()
        pages_removed = Column([gpa + (index << 12) for index in indices])
        values: dict[str, Any] = {
            "gpa": pages_removed,
            "level": Count(0),
            "tdr": tdr,
            "page": Column(pages),
            "sept": 0,
            "keyed": Column([page | td.hkid << self._inner.host.hkid_shift for page in pages]),
        }
        events = tuple(
            _Seamcall(
                name,
                Column([began + (row * len(_REMOVAL) + number) * each for row in range(len(pages))]),
                each,
                tid,
                {operand: values[value] for operand, value in given},
                status=0,
                text=status_text(0),
                out={operand: values[value] for operand, value in out},
            )
            for number, (name, given, out) in enumerate(_REMOVAL)
        )
        self._emit_all(Repeated(events, len(pages)))
        return True


def _left_for_page(entry: Entry, thread: int, began: int | Column, dur: int | Column) -> Any:
    """Return the TDH.VP.ENTER that ends where the guest asks for a page that is not there."""
    text = f"exit {reason_name(ExitReason.EPT_VIOLATION)}"
    status = int(ExitReason.EPT_VIOLATION)
    return _Seamcall("TDH.VP.ENTER", began, dur, thread, {"tdvpr": entry.tdvpr}, status=status, text=text, lp=entry.lp)


def _page_aug(
    entry: Entry, thread: int, began: int | Column, dur: int | Column, gpa: int | Column, hpa: int | Column
) -> Any:
    args = {"gpa": gpa, "level": Count(0), "tdr": entry.tdr, "page": hpa}
    out = {"sept_entry": 0, "sept_state": 0}
    return _Seamcall("TDH.MEM.PAGE.AUG", began, dur, thread, args, status=0, text=status_text(0), out=out)


def _values(operands: Operands, args: Args) -> Values:
    found: Values = {}
    for register, name in operands:
        _put(found, name, getattr(args, register))
    return found


def _put(into: Values, name: str, value: int) -> None:
    if name == "gpa+level":
        into["gpa"], into["level"] = value & ~LEVEL_MASK, Count(value & LEVEL_MASK)
    else:
        into[name] = value


def _from_gpr(operands: Operands, gpr: tuple[int, ...]) -> Values:
    found: Values = {}
    for register, name in operands:
        _put(found, name, gpr[_INDEX[register]])
    return found


_DETAILED = frozenset(
    int(reason)
    for reason in (
        *(ExitReason.EPT_VIOLATION, ExitReason.EPT_MISCONFIG, ExitReason.EXCEPTION_NMI),
        *(ExitReason.RDMSR, ExitReason.WRMSR, ExitReason.CPUID),
    )
)
_TDCALL = int(ExitReason.TDCALL)


def _exit_details(exit: VmExit) -> Values:
    details: Values = {"rip": exit.rip}
    if exit.qualification:
        details["qualification"] = exit.qualification
    if exit.reason not in _DETAILED:
        return details
    if exit.reason in (ExitReason.EPT_VIOLATION, ExitReason.EPT_MISCONFIG):
        details["gpa"] = exit.gpa
    elif exit.reason == ExitReason.EXCEPTION_NMI:
        details["interruption"] = exit.interruption
    elif exit.reason in (ExitReason.RDMSR, ExitReason.WRMSR):
        details["msr"] = exit.gpr[1] & 0xFFFFFFFF
    elif exit.reason == ExitReason.CPUID:
        details["leaf"], details["subleaf"] = (exit.gpr[index] & 0xFFFFFFFF for index in (0, 1))
    return details


def _tdcall(exit: VmExit) -> Tdcall:
    rax = exit.gpr[0]
    number, version = rax & LEAF_MASK, rax >> VERSION_SHIFT & 0xFF
    name = _TDCALLS.get(number, f"leaf {number:#x}")
    inputs, outputs = _row("tdcall", name, version)
    args, out = _from_gpr(inputs, exit.gpr), _from_gpr(outputs, exit.after)
    if number == _VP_VMCALL:
        function, inputs, outputs = _vmcall(exit.gpr)
        args = {"mask": exit.gpr[1], "function": function, **_from_gpr(inputs, exit.gpr)}
        if others := _others(exit.gpr, inputs):
            args["others"] = others
        out.update(_from_gpr(outputs, exit.after))
    times = exit.left, exit.resumed - exit.left
    event = Tdcall(name, *times, exit.thread, args, version, vcpu=exit.context)
    if exit.rip_after == exit.rip:
        event.text = NOT_DONE
        return event
    event.status, event.text, event.out = exit.after[0], status_text(exit.after[0]), out
    return event


def _others(gpr: tuple[int, ...], inputs: Operands) -> Values:
    """Return the registers that the mask in RCX passes to the host, that are no operands, and that are not zero."""
    return {name: gpr[number] for number, name in _passed(gpr[1] & 0xFFFF, inputs) if gpr[number]}


@lru_cache(256)
def _passed(mask: int, inputs: Operands) -> tuple[tuple[int, str], ...]:
    known = {"r10", "r11", *(register for register, _ in inputs)}
    return tuple((number, name) for number, name in enumerate(_REGISTERS) if mask >> number & 1 and name not in known)


def _vmcall(gpr: tuple[int, ...]) -> tuple[str, Operands, Operands]:
    """Return what a TDG.VP.VMCALL requests: (function, inputs, outputs) by the GHCI, or a KVM hypercall."""
    if gpr[10]:
        return f"hypercall {_KVM_HYPERCALLS.get(gpr[10], f'{gpr[10]:#x}')}", (), ()
    return _vmcall_of_ghci(gpr[11])


@lru_cache(256)
def _vmcall_of_ghci(function: int) -> tuple[str, Operands, Operands]:
    key = f"{function:#x}" if function >= 0x10000 else str(function)
    row = load("operands")["vmcall"].get(key)
    inputs, outputs = _row("vmcall", key, 0)
    return (row[0] if row else f"function {function:#x}"), inputs, outputs
