# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules: what of a TDVMCALL is more than the function needs.

What was looked at in memory is in ``Vmcall.memory``: of GetQuote ``in_len``, ``status``, ``out_len`` of the header and
``behind``, the number of bytes behind the data that are not zero; of MapGPA ``filled``, the number of private pages
that are not zero.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from swtdx.lint.call import XMM_SHIFT, Vmcall

PAGE = 0x1000
HEADER = 24
"""Bytes of a quote request's header."""
MAP_GPA, GET_QUOTE, IO, MMIO, CPUID = 0x10001, 0x10002, 30, 48, 10
_BY_PROTOCOL = ("r10", "r11")
_SIZES = {IO: (1, 2, 4), MMIO: (1, 2, 4, 8)}


@dataclass(frozen=True)
class Hit:
    """A rule is broken. Equal ``rule`` and ``what`` make one finding; ``bits`` are added up over its calls."""

    rule: str
    what: str
    bits: int = 0
    operand: int = 0
    """The bits that would have been right."""
    example: str = ""


def hits(call: Vmcall) -> Iterator[Hit]:
    """Yield what is wrong with a call."""
    row = call.row
    if call.mask >> XMM_SHIFT & 0xFFFF:
        yield Hit("xmm", call.name, call.mask >> XMM_SHIFT & 0xFFFF, example=f"RCX = {call.mask:#x}")
    if row and row["in"] != "all":
        yield from _registers(call, row["in"])
    if call.function == GET_QUOTE:
        yield from _quote(call)
    elif call.function == MAP_GPA:
        yield from _conversion(call)
    elif call.function in _SIZES and call.size not in _SIZES[call.function]:
        yield Hit("length", call.name, call.size, example=f"R12 = {call.size:#x}")


def _registers(call: Vmcall, defined: dict[str, int | str]) -> Iterator[Hit]:
    what = _what(call)
    for register, value in call.exposed.items():
        kind = defined.get(register)
        if kind is None:
            if register not in _BY_PROTOCOL and value:
                example = f"{register.upper()} = {value:#x}"
                yield Hit("unused-register", f"{what}: {register.upper()}", value, example=example)
            continue
        operand = call.bits(kind)
        beyond = value & ~operand
        if not beyond:
            continue
        rule = "operand-bits" if operand else "unused-register"
        yield Hit(rule, f"{what}: {register.upper()}", beyond, operand, f"{register.upper()} = {value:#x}{_port(call)}")


def _what(call: Vmcall) -> str:
    if call.size in _SIZES.get(call.function, ()):  # a guest may give any
        return f"{call.name}, {'write' if call.writes else 'read'} of {call.size} byte{'s' if call.size > 1 else ''}"
    return call.name


def _port(call: Vmcall) -> str:
    if call.function == IO:
        return f", port {call.exposed.get('r14', 0):#x}"
    return f", address {call.exposed.get('r14', 0):#x}" if call.function == MMIO else ""


def _quote(call: Vmcall) -> Iterator[Hit]:
    size = call.exposed.get("r13", 0)
    if not size or size % PAGE:
        yield Hit("length", f"{call.name}: R13", size, example=f"R13 = {size:#x}")
    if "in_len" not in call.memory:
        return
    length = call.memory["in_len"]
    if length > size - HEADER:
        yield Hit(
            "length", f"{call.name}: in_len", length, example=f"in_len {length:#x} in a buffer of {size:#x} bytes"
        )
    for name in ("status", "out_len"):
        if call.memory[name]:
            yield Hit(
                "quote-padding", f"{call.name}: {name}", call.memory[name], example=f"{name} {call.memory[name]:#x}"
            )
    if call.memory["behind"]:
        example = f"{call.memory['behind']:,} bytes behind {length:,} bytes of data are not zero"
        yield Hit("quote-padding", f"{call.name}: buffer", example=example)


def _conversion(call: Vmcall) -> Iterator[Hit]:
    size = call.exposed.get("r13", 0)
    if not size or size % PAGE:
        yield Hit("length", f"{call.name}: R13", size, example=f"R13 = {size:#x}")
    if call.memory.get("filled"):
        example = f"{call.memory['filled']:,} of {size // PAGE:,} pages at {call.exposed.get('r12', 0):#x}"
        yield Hit("private-contents", call.name, example=example)


def answered(call: Vmcall, before: tuple[int, ...], after: tuple[int, ...]) -> Iterator[Hit]:
    """Yield what an instruction took of an answer in which the host had set every bit beyond the operand.

    ``before`` and ``after`` are the guest's registers around the instruction that raised the #VE.
    """
    from swtdx.lint.call import REGISTERS

    for register, (target, kind) in call.row.get("reply", {}).items():
        number = REGISTERS.index(target)
        operand = call.answer_bits if kind == "data" else (1 << int(kind)) - 1
        taken = after[number] & ~before[number] & ~operand
        if taken:
            rule = "answer-half" if call.function == CPUID else "answer-bits"
            what = f"{_what(call)}: {register.upper()} to {target.upper()}"
            example = f"{target.upper()} {before[number]:#x} became {after[number]:#x}{_port(call)}"
            yield Hit(rule, what, taken, operand, example)
