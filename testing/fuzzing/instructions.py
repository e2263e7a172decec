# SPDX-License-Identifier: GPL-2.0-or-later
"""Every instruction of x86, by iced-x86's tables, as bytes: with each operand size, random operands and prefixes.

A *form* is one row of the tables (an opcode with its operand sizes) in one mode. Its bytes are composed from the row,
completed by random ModRM, SIB, displacement and immediate bytes, and accepted when the decoder reads that row in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any, cast

import iced_x86 as iced

MODES = (64, 32, 16)
LONGEST = 15
_PREFIXES = (0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3)
_TRIES = 40
_ROWS = 1 + sum(name.isupper() for name in vars(iced.Code)) - 1
_ENDS = {
    iced.FlowControl.UNCONDITIONAL_BRANCH,
    iced.FlowControl.INDIRECT_BRANCH,
    iced.FlowControl.CONDITIONAL_BRANCH,
    iced.FlowControl.RETURN,
    iced.FlowControl.CALL,
    iced.FlowControl.INDIRECT_CALL,
    iced.FlowControl.INTERRUPT,
}


def _row(code: int) -> iced.OpCodeInfo:
    return iced.OpCodeInfo(cast(Any, code))


@dataclass(frozen=True)
class Form:
    """One row of the tables in one mode."""

    code: int
    mode: int

    @property
    def name(self) -> str:
        return f"{_row(self.code).instruction_string} ({self.mode}-bit)"


@cache
def forms(mode: int) -> tuple[Form, ...]:
    """All rows that exist in a mode, those of vector extensions too."""
    rows = (_row(code) for code in range(1, _ROWS))
    return tuple(
        Form(row.code, mode)
        for row in rows
        if row.is_instruction and row.is_available_in_mode(mode) and row.op_code_len
    )


@cache
def _plain(mode: int) -> tuple[Form, ...]:
    legacy = iced.EncodingKind.LEGACY
    return tuple(form for form in forms(mode) if _row(form.code).encoding == legacy)


def some_form(mode: int, chance: Random) -> Form:
    """A form; seldom one of the vector extensions, which have most rows and are mostly undefined."""
    return chance.choice(_plain(mode) if chance.random() < 0.9 else forms(mode))


def _legacy(row: iced.OpCodeInfo, mode: int, chance: Random) -> bytes:
    prefixes, rex = bytearray(), 0
    size, address = row.operand_size, row.address_size
    if size == 64 and mode == 64:
        rex = 0x48
    elif size and (size == 16) != (mode == 16) and size != 64:
        prefixes.append(0x66)
    if address and address != mode:
        prefixes.append(0x67)
    mandatory = {iced.MandatoryPrefix.P66: 0x66, iced.MandatoryPrefix.PF3: 0xF3, iced.MandatoryPrefix.PF2: 0xF2}
    if row.mandatory_prefix in mandatory:
        prefixes.append(mandatory[row.mandatory_prefix])
    if mode == 64 and (rex or chance.random() < 0.3):
        rex |= 0x40 | chance.choice((0, 0, 1, 2, 4, chance.randrange(8)))
    return bytes(prefixes) + (bytes((rex,)) if rex else b"") + _opcode(row)


def _opcode(row: iced.OpCodeInfo) -> bytes:
    escape = {
        iced.OpCodeTableKind.NORMAL: b"",
        iced.OpCodeTableKind.T0F: b"\x0f",
        iced.OpCodeTableKind.T0F38: b"\x0f\x38",
        iced.OpCodeTableKind.T0F3A: b"\x0f\x3a",
    }
    return escape.get(row.table, b"") + row.op_code.to_bytes(row.op_code_len, "big")


def _vector(row: iced.OpCodeInfo, chance: Random) -> bytes:
    """A VEX, XOP or EVEX prefix of the row's map, and its opcode; the other fields are random."""
    pp = {iced.MandatoryPrefix.P66: 1, iced.MandatoryPrefix.PF3: 2, iced.MandatoryPrefix.PF2: 3}
    prefix = pp.get(row.mandatory_prefix, 0)
    maps = {iced.OpCodeTableKind.T0F: 1, iced.OpCodeTableKind.T0F38: 2, iced.OpCodeTableKind.T0F3A: 3}
    xop = {iced.OpCodeTableKind.MAP8: 8, iced.OpCodeTableKind.MAP9: 9, iced.OpCodeTableKind.MAP10: 10}
    opcode = row.op_code.to_bytes(row.op_code_len, "big")
    width = row.w << 7
    fields = chance.choice((0xE0, 0xC0, chance.randrange(8) << 5))
    vvvv = chance.choice((0x78, chance.randrange(16) << 3))
    if row.encoding == iced.EncodingKind.EVEX:
        tail = bytes((fields | 0x10 | maps.get(row.table, 1), width | vvvv | 4 | prefix, chance.randrange(256)))
        return b"\x62" + tail + opcode
    lead = b"\x8f" if row.table in xop else b"\xc4"
    number = xop.get(row.table, maps.get(row.table, 1))
    return lead + bytes((fields | number, width | vvvv | chance.choice((0, 4)) | prefix)) + opcode


def _modrm(row: iced.OpCodeInfo, chance: Random) -> int:
    """A ModRM byte, if the row has one: registers as often as memory, and the row's own number in a group."""
    modrm = chance.randrange(256) if chance.random() < 0.5 else 0xC0 | chance.randrange(64)
    if row.group_index >= 0:
        modrm = modrm & 0xC7 | row.group_index << 3
    if row.rm_group_index >= 0:
        modrm = modrm & 0xF8 | row.rm_group_index
    return modrm


def decode(data: bytes, mode: int) -> iced.Instruction:
    """The first instruction of ``data``."""
    return iced.Decoder(mode, data, iced.DecoderOptions.MPX).decode()


def encoded(form: Form, chance: Random) -> bytes | None:
    """The form with random operands, or None if none of some random tries was it."""
    row = _row(form.code)
    legacy = row.encoding in (iced.EncodingKind.LEGACY, iced.EncodingKind.D3NOW)
    for _ in range(_TRIES):
        head = _legacy(row, form.mode, chance) if legacy else _vector(row, chance)
        if row.encoding == iced.EncodingKind.D3NOW:
            head = b"\x0f\x0f"
        tail = bytes((_modrm(row, chance),)) + chance.randbytes(LONGEST)
        if row.encoding == iced.EncodingKind.D3NOW:
            tail = bytes((tail[0] | 0xC0, row.op_code))
        found = decode(head + tail, form.mode)
        if found.code == form.code:
            return (head + tail)[: found.len]
    return None


def prefixed(instruction: bytes, chance: Random) -> bytes:
    """The instruction behind some prefixes that may or may not make sense there."""
    prefixes = bytes(chance.choices(_PREFIXES, k=chance.choice((1, 1, 2, 3))))
    return (prefixes + instruction)[:LONGEST]


def goes_on(instruction: bytes, mode: int) -> bool:
    """Whether the next instruction in memory can belong to the same translated block."""
    return decode(instruction, mode).flow_control not in _ENDS


def every_instruction(mode: int, seed: str) -> Iterator[tuple[Form, bytes]]:
    """Each form of a mode that can be composed, once."""
    for form in forms(mode):
        instruction = encoded(form, Random(f"{seed}/{form.code}/{mode}"))
        if instruction is not None:
            yield form, instruction
