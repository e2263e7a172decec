# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's bit scans, double shifts, multiplications and divisions (BSF, BSR, SHLD, SHRD, MUL, IMUL, DIV, IDIV of
arch/x86/kvm/emulate.c; SDM vol. 2). Each is a generator as in `emulate`. Flags that the manual leaves undefined stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.arithmetic import sign_extend
from swtdx.linux.arch.x86.kvm.x86.guest_memory import GuestException
from swtdx.uapi.kvm import Vector
from swtdx.x86 import Gpr, Rflags

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.emulate import Instruction, Steps

_RAX, _RDX = int(Gpr.RAX), int(Gpr.RDX)
_CF, _PF, _ZF, _SF, _OF = (int(flag) for flag in (Rflags.CF, Rflags.PF, Rflags.ZF, Rflags.SF, Rflags.OF))


def _signed(value: int, size: int) -> int:
    value = sign_extend(value, size) & (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _flags(instruction: Instruction, mask: int, value: int) -> None:
    instruction.context.rflags = instruction.context.rflags & ~mask | value


def bit_scan(instruction: Instruction) -> Steps:
    """BSF and BSR: of 0 the destination stays, and ZF is set."""
    value = yield from instruction.get(1)
    _flags(instruction, _ZF, 0 if value else _ZF)
    if value:
        lowest = (value & -value).bit_length() - 1
        forward = instruction.name == "BSF"
        instruction.set_register(instruction.decoded.op0_register, lowest if forward else value.bit_length() - 1)


def double_shift(instruction: Instruction) -> Steps:
    """SHLD and SHRD: the second operand fills what the shift empties."""
    size = instruction.operand_size(0)
    bits = 8 * size
    left = yield from instruction.get(0)
    filler = yield from instruction.get(1)
    count = (yield from instruction.get(2)) & (63 if size == 8 else 31)
    if not count:
        return
    if instruction.name == "SHLD":
        both = left << bits | filler
        carry, result = both >> 2 * bits - count & 1, both << count >> bits & (1 << bits) - 1
    else:
        both = filler << bits | left
        carry, result = both >> count - 1 & 1, both >> count & (1 << bits) - 1
    yield from instruction.put(0, result)
    value = _CF * carry | (_ZF if not result else 0) | (_SF if result >> bits - 1 else 0)
    value |= 0 if (result & 0xFF).bit_count() & 1 else _PF
    mask = _CF | _ZF | _SF | _PF
    if count == 1:
        mask |= _OF
        value |= _OF if (left ^ result) >> bits - 1 & 1 else 0
    _flags(instruction, mask, value)


def _pair(instruction: Instruction, size: int) -> int:
    """Return the dividend: AX, or (R)DX:(R)AX."""
    gpr, mask = instruction.gpr, (1 << 8 * size) - 1
    return gpr[_RAX] & 0xFFFF if size == 1 else (gpr[_RDX] & mask) << 8 * size | gpr[_RAX] & mask


def _set_pair(instruction: Instruction, size: int, low: int, high: int) -> None:
    gpr, mask = instruction.gpr, (1 << 8 * size) - 1
    if size == 1:
        gpr[_RAX] = gpr[_RAX] & ~0xFFFF | (high & 0xFF) << 8 | low & 0xFF
        return
    for register, value in ((_RAX, low), (_RDX, high)):
        gpr[register] = value & mask if size >= 4 else gpr[register] & ~mask | value & mask


def multiply(instruction: Instruction) -> Steps:
    """MUL and IMUL: CF and OF say that the upper half counts."""
    size = instruction.operand_size(0)
    bits, operands = 8 * size, instruction.decoded.op_count
    right = yield from instruction.get(operands - 1)
    left = (yield from instruction.get(operands - 2)) if operands > 1 else instruction.gpr[_RAX] & (1 << bits) - 1
    if instruction.name == "IMUL":
        product = _signed(left, size) * _signed(right, size)
        overflow = product != _signed(product & (1 << bits) - 1, size)
    else:
        product = left * right
        overflow = bool(product >> bits)
    if operands == 1:
        _set_pair(instruction, size, product & (1 << bits) - 1, product >> bits & (1 << bits) - 1)
    else:
        instruction.set_register(instruction.decoded.op0_register, product & (1 << bits) - 1)
    _flags(instruction, _CF | _OF, _CF | _OF if overflow else 0)


def divide(instruction: Instruction) -> Steps:
    """DIV and IDIV: #DE for 0, and for a quotient that does not fit."""
    size = instruction.operand_size(0)
    bits = 8 * size
    divisor = yield from instruction.get(0)
    dividend = _pair(instruction, size)
    if not divisor:
        raise GuestException(Vector.DE, None)
    if instruction.name == "IDIV":
        dividend -= (1 << 2 * bits) if dividend >> 2 * bits - 1 else 0
        divisor = _signed(divisor, size)
        quotient = abs(dividend) // abs(divisor) * (1 if (dividend < 0) == (divisor < 0) else -1)
        fits = -(1 << bits - 1) <= quotient < 1 << bits - 1
    else:
        quotient = dividend // divisor
        fits = not quotient >> bits
    if not fits:
        raise GuestException(Vector.DE, None)
    _set_pair(instruction, size, quotient & (1 << bits) - 1, dividend - quotient * divisor & (1 << bits) - 1)


OPERATIONS: dict[str, Callable[[Instruction], Steps]] = {
    **dict.fromkeys(("BSF", "BSR"), bit_scan),
    **dict.fromkeys(("SHLD", "SHRD"), double_shift),
    **dict.fromkeys(("MUL", "IMUL"), multiply),
    **dict.fromkeys(("DIV", "IDIV"), divide),
}
"""By the name that iced-x86 has for the mnemonic."""
