# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's rotates and shifts, bit strings and what else works on one operand in memory
(group2, em_bt and its like, em_movbe, em_cmpxchg8b and XLAT of arch/x86/kvm/emulate.c; SDM vol. 2).

Each is a generator as in `emulate`. Flags that the manual leaves undefined stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.arithmetic import bit_test, sign_extend
from swtdx.linux.arch.x86.kvm.x86.guest_memory import GuestException
from swtdx.uapi.kvm import Vector
from swtdx.x86 import Gpr, Rflags

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.emulate import Instruction, Steps

_RAX, _RBX, _RCX, _RDX = int(Gpr.RAX), int(Gpr.RBX), int(Gpr.RCX), int(Gpr.RDX)
_CF, _PF, _ZF, _SF, _OF = (int(flag) for flag in (Rflags.CF, Rflags.PF, Rflags.ZF, Rflags.SF, Rflags.OF))
_F1_ECX_MOVBE = 1 << 22
_LOW = 0xFFFFFFFF


def _set_flags(instruction: Instruction, mask: int, value: int) -> None:
    instruction.context.rflags = instruction.context.rflags & ~mask | value


def rotate(instruction: Instruction) -> Steps:
    """ROL, ROR, RCL, RCR: RCL and RCR turn CF with the operand. OF is defined for a count of 1."""
    size = instruction.operand_size(0)
    bits, name = 8 * size, instruction.name
    value = yield from instruction.get(0)
    count = (yield from instruction.get(1)) & (63 if size == 8 else 31)
    carry = instruction.context.rflags & _CF
    width = bits
    if name in ("RCL", "RCR"):
        width, value = bits + 1, carry << bits | value
    turn = count % width
    if name in ("ROR", "RCR"):
        turn = -turn % width
    turned = (value << turn | value >> width - turn) & (1 << width) - 1
    result = turned & (1 << bits) - 1
    yield from instruction.put(0, result)
    if not count:
        return
    if width > bits:
        carry = turned >> bits
    else:
        carry = result & 1 if name == "ROL" else result >> bits - 1
    flags, mask = _CF * carry, _CF
    if count == 1:
        mask |= _OF
        other = carry if name in ("ROL", "RCL") else result >> bits - 2 & 1
        flags |= _OF if result >> bits - 1 ^ other else 0
    _set_flags(instruction, mask, flags)


def shift(instruction: Instruction) -> Steps:
    """SHL, SHR, SAR: CF is the last bit that went."""
    size = instruction.operand_size(0)
    bits, name = 8 * size, instruction.name
    value = yield from instruction.get(0)
    count = (yield from instruction.get(1)) & (63 if size == 8 else 31)
    if name == "SHR":
        wide, result = value, value >> count
    else:
        wide = sign_extend(value, size)
        result = (wide >> count if name == "SAR" else value << count) & (1 << bits) - 1
    yield from instruction.put(0, result)
    if not count:
        return
    carry = value << count >> bits & 1 if name in ("SHL", "SAL") else wide >> count - 1 & 1
    flags = _CF * carry | (0 if result else _ZF) | (_SF if result >> bits - 1 else 0)
    flags |= 0 if (result & 0xFF).bit_count() & 1 else _PF
    mask = _CF | _ZF | _SF | _PF
    if count == 1:
        mask |= _OF
        overflow = {"SHR": value >> bits - 1, "SAR": 0}.get(name, result >> bits - 1 ^ carry)
        flags |= _OF * overflow
    _set_flags(instruction, mask, flags)


def bit_string(instruction: Instruction) -> Steps:
    """BT, BTS, BTR, BTC: a number in a register may lie outside of the operand, and moves it (fetch_bit_operand)."""
    size = instruction.operand_size(0)
    number = yield from instruction.get(1)
    if not instruction.op_is_register(0) and instruction.op_is_register(1):
        instruction.moved = (sign_extend(number, size) & -(8 * size)) >> 3
    value = yield from instruction.get(0)
    result, flags = bit_test(instruction.name, value, number, size, instruction.context.rflags)
    if instruction.name != "BT":
        yield from instruction.put(0, result)
    instruction.context.rflags = flags


def move_big_endian(instruction: Instruction) -> Steps:
    """MOVBE; #UD for a guest whose CPUID lacks it."""
    features = instruction.vcpu.cpuid.find(1)
    if features is None or not features[2] & _F1_ECX_MOVBE:
        raise GuestException(Vector.UD, None)
    size = instruction.operand_size(0)
    value = yield from instruction.get(1)
    yield from instruction.put(0, int.from_bytes(value.to_bytes(size, "little"), "big"))


def compare_and_exchange_8(instruction: Instruction) -> Steps:
    """CMPXCHG8B: memory is written in any case."""
    gpr = instruction.gpr
    value = yield from instruction.get(0)
    equal = value == (gpr[_RDX] & _LOW) << 32 | gpr[_RAX] & _LOW
    yield from instruction.put(0, (gpr[_RCX] & _LOW) << 32 | gpr[_RBX] & _LOW if equal else value)
    if not equal:
        gpr[_RAX], gpr[_RDX] = value & _LOW, value >> 32
    _set_flags(instruction, _ZF, _ZF if equal else 0)


def translate_byte(instruction: Instruction) -> Steps:
    """XLAT."""
    gpr = instruction.gpr
    value = yield from instruction.read(instruction.table_address(gpr[_RBX], gpr[_RAX] & 0xFF), 1)
    gpr[_RAX] = gpr[_RAX] & ~0xFF | value


OPERATIONS: dict[str, Callable[[Instruction], Steps]] = {
    **dict.fromkeys(("ROL", "ROR", "RCL", "RCR"), rotate),
    **dict.fromkeys(("SHL", "SAL", "SHR", "SAR"), shift),
    **dict.fromkeys(("BT", "BTS", "BTR", "BTC"), bit_string),
    "MOVBE": move_big_endian,
    "CMPXCHG8B": compare_and_exchange_8,
    "XLATB": translate_byte,
}
"""By the name that iced-x86 has for the mnemonic."""
