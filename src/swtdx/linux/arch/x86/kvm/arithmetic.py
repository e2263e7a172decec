# SPDX-License-Identifier: GPL-2.0-or-later
"""Integer instructions and their flags, for the emulator (Intel SDM vol. 2).

Operands and results are unsigned integers of ``size`` bytes; flags are RFLAGS before and after.

>>> binary("ADD", 0xFF, 1, 1, 2) == (0, 2 | CF | PF | AF | ZF)
True
"""

from __future__ import annotations

CF, PF, AF, ZF, SF, OF = 1 << 0, 1 << 2, 1 << 4, 1 << 6, 1 << 7, 1 << 11
_STATUS = CF | PF | AF | ZF | SF | OF

BINARY = frozenset(["ADD", "ADC", "SUB", "SBB", "CMP", "AND", "OR", "XOR", "TEST"])
UNARY = frozenset(["INC", "DEC", "NOT", "NEG"])
READ_ONLY = frozenset(["CMP", "TEST"])
_LOGIC = {"AND": int.__and__, "TEST": int.__and__, "OR": int.__or__, "XOR": int.__xor__}


def sign_extend(value: int, size: int) -> int:
    """``value`` of ``size`` bytes as a signed integer."""
    sign = 1 << 8 * size - 1
    return (value & (1 << 8 * size) - 1 ^ sign) - sign


def _result_flags(result: int, size: int) -> int:
    flags = PF if (result & 0xFF).bit_count() % 2 == 0 else 0
    if not result:
        flags |= ZF
    if result >> 8 * size - 1:
        flags |= SF
    return flags


def binary(name: str, left: int, right: int, size: int, flags: int) -> tuple[int, int]:
    """Return (result, flags) of a two-operand instruction; for CMP and TEST the result is not stored."""
    mask, sign = (1 << 8 * size) - 1, 1 << 8 * size - 1
    kept = flags & ~_STATUS
    if name in _LOGIC:
        result = _LOGIC[name](left, right) & mask
        return result, kept | _result_flags(result, size)
    carry = flags & CF if name in ("ADC", "SBB") else 0
    if name in ("ADD", "ADC"):
        full = left + right + carry
        result = full & mask
        overflow = ~(left ^ right) & (left ^ result) & sign
        carried = full > mask
    else:
        full = left - right - carry
        result = full & mask
        overflow = (left ^ right) & (left ^ result) & sign
        carried = full < 0
    status = _result_flags(result, size) | (CF if carried else 0) | (OF if overflow else 0)
    status |= (left ^ right ^ result) & AF
    return result, kept | status


def unary(name: str, value: int, size: int, flags: int) -> tuple[int, int]:
    """Return (result, flags) of INC, DEC, NOT, NEG."""
    mask = (1 << 8 * size) - 1
    if name == "NOT":
        return value ^ mask, flags
    if name == "NEG":
        return binary("SUB", 0, value, size, flags)
    result, after = binary("ADD" if name == "INC" else "SUB", value, 1, size, flags)
    return result, after & ~CF | flags & CF


def bit_test(name: str, value: int, bit: int, size: int, flags: int) -> tuple[int, int]:
    """Return (result, flags) of BT, BTS, BTR, BTC with the bit number taken modulo the operand size."""
    selected = 1 << (bit & 8 * size - 1)
    result = {"BT": value, "BTS": value | selected, "BTR": value & ~selected, "BTC": value ^ selected}[name]
    return result, flags & ~CF | (CF if value & selected else 0)
