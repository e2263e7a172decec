# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's instructions on the stack, transfers within a segment, and those that look at flags (em_push, em_pop,
em_call_near_abs, em_ret_near_imm, em_jmp_abs, em_smsw and test_cc of arch/x86/kvm/emulate.c).

Each is a generator as in `emulate`. RSP moves when memory has been accessed, so that a page fault changes nothing. What
loads segments is in `emulate_segments`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import Segment
from swtdx.linux.arch.x86.kvm.x86.guest_memory import GuestException, GuestPageFault, Unhandled
from swtdx.x86 import Gpr, Rflags

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.emulate import Instruction, Read, Steps

RSP, RBP = int(Gpr.RSP), int(Gpr.RBP)
_SS_BIG = 1 << 14
_CF, _PF, _ZF, _SF, _OF = (int(flag) for flag in (Rflags.CF, Rflags.PF, Rflags.ZF, Rflags.SF, Rflags.OF))


def condition(number: int, flags: int) -> bool:
    """Whether condition code ``number`` holds: O, B, E, BE, S, P, L, LE, each followed by its opposite (test_cc)."""
    sign_is_not_overflow = bool(flags & _SF) != bool(flags & _OF)
    holds = (
        flags & _OF, flags & _CF, flags & _ZF, flags & (_CF | _ZF), flags & _SF, flags & _PF,
        sign_is_not_overflow, sign_is_not_overflow or flags & _ZF,
    )[number >> 1]  # fmt: skip
    return bool(holds) != bool(number & 1)


def _mask(instruction: Instruction) -> int:
    if instruction.wide:
        return (1 << 64) - 1
    return 0xFFFFFFFF if instruction.context.segment(Segment.SS)[3] & _SS_BIG else 0xFFFF


def move_stack(instruction: Instruction, by: int) -> None:
    """Add to RSP, SP or ESP."""
    mask, pointer = _mask(instruction), instruction.gpr[RSP]
    instruction.gpr[RSP] = pointer & ~mask | pointer + by & mask


def push_value(instruction: Instruction, size: int, value: int) -> Steps:
    """Push ``size`` bytes."""
    pointer = instruction.gpr[RSP] - size & _mask(instruction)
    linear = instruction.in_segment(Segment.SS, pointer, size, write=True)
    yield from instruction.write(linear, size, value & (1 << 8 * size) - 1)
    move_stack(instruction, -size)


def _top(instruction: Instruction, size: int) -> Read:
    pointer = instruction.gpr[RSP] & _mask(instruction)
    return (yield from instruction.read(instruction.in_segment(Segment.SS, pointer, size), size))


def pop_value(instruction: Instruction, size: int) -> Read:
    """Pop ``size`` bytes."""
    value = yield from _top(instruction, size)
    move_stack(instruction, size)
    return value


def push(instruction: Instruction) -> Steps:
    """PUSH of a register, memory or an immediate."""
    decoded = instruction.decoded
    value = yield from instruction.get(0)
    yield from push_value(instruction, -decoded.stack_pointer_increment, value)


def pop(instruction: Instruction) -> Steps:
    """POP into a register or memory, whose address counts with RSP moved already."""
    size = instruction.decoded.stack_pointer_increment
    value = yield from _top(instruction, size)
    move_stack(instruction, size)
    try:
        yield from instruction.put(0, value)
    except (GuestPageFault, GuestException, Unhandled):
        move_stack(instruction, -size)
        raise


def call(instruction: Instruction) -> Steps:
    """CALL within the segment."""
    size, behind = -instruction.decoded.stack_pointer_increment, instruction.next_rip
    instruction.go_near((yield from instruction.branch_target()), size)
    yield from push_value(instruction, size, behind)


def jump(instruction: Instruction) -> Steps:
    """JMP within the segment, by way of memory or not."""
    instruction.go_near((yield from instruction.branch_target()), instruction.branch_size)


def ret(instruction: Instruction) -> Steps:
    """RET within the segment, with or without dropping arguments."""
    decoded = instruction.decoded
    dropped = int(decoded.immediate(0)) if decoded.op_count else 0
    size = decoded.stack_pointer_increment - dropped
    instruction.go_near((yield from _top(instruction, size)), size)
    move_stack(instruction, decoded.stack_pointer_increment)


def leave(instruction: Instruction) -> Steps:
    """LEAVE: the stack of the caller, whose RBP is on top."""
    old = instruction.gpr[RSP]
    instruction.gpr[RSP] = old & ~_mask(instruction) | instruction.gpr[RBP] & _mask(instruction)
    size = instruction.leave_size
    try:
        value = yield from pop_value(instruction, size)
    except GuestPageFault:
        instruction.gpr[RSP] = old
        raise
    kept = 0 if size >= 4 else instruction.gpr[RBP] & ~0xFFFF
    instruction.gpr[RBP] = kept | value


def push_all(instruction: Instruction) -> Steps:
    """PUSHA: AX, CX, DX, BX, SP as it was, BP, SI, DI."""
    size, old = -instruction.decoded.stack_pointer_increment // 8, instruction.gpr[RSP]
    try:
        for number in range(8):
            yield from push_value(instruction, size, old if number == RSP else instruction.gpr[number])
    except GuestPageFault:
        instruction.gpr[RSP] = old
        raise


def pop_all(instruction: Instruction) -> Steps:
    """POPA: what PUSHA has pushed, but SP."""
    size, old, values = instruction.decoded.stack_pointer_increment // 8, instruction.gpr[RSP], []
    try:
        for _ in range(8):
            values.append((yield from pop_value(instruction, size)))
    except GuestPageFault:
        instruction.gpr[RSP] = old
        raise
    for number, value in zip(reversed(range(8)), values, strict=True):
        if number != RSP:
            instruction.gpr[number] = value if size == 4 else instruction.gpr[number] & ~0xFFFF | value


def enter(instruction: Instruction) -> Steps:
    """ENTER without nesting. As in Linux, a nested one is left to user space. Raises Unhandled."""
    decoded, gpr = instruction.decoded, instruction.gpr
    if decoded.immediate8_2nd & 31:
        raise Unhandled
    yield from push_value(instruction, instruction.enter_size, gpr[RBP])
    mask = _mask(instruction)
    gpr[RBP] = gpr[RBP] & ~mask | gpr[RSP] & mask
    move_stack(instruction, -decoded.immediate16)


def smsw(instruction: Instruction) -> Steps:
    """SMSW: the low 16 bits of CR0 to memory; a wider register gets more of it."""
    size = instruction.operand_size(0)
    yield from instruction.put(0, instruction.context.cr0 & (1 << 8 * size) - 1)


def set_on_condition(instruction: Instruction) -> Steps:
    """SETcc."""
    yield from instruction.put(0, int(condition(instruction.decoded.condition_code - 1, instruction.context.rflags)))


def move_on_condition(instruction: Instruction) -> Steps:
    """CMOVcc: memory is read, and the upper half of a 32-bit register cleared, also if the condition does not hold."""
    value = yield from instruction.get(1)
    if not condition(instruction.decoded.condition_code - 1, instruction.context.rflags):
        value = yield from instruction.get(0)
    yield from instruction.put(0, value)


CONDITIONS = ("O", "NO", "B", "AE", "E", "NE", "BE", "A", "S", "NS", "P", "NP", "L", "GE", "LE", "G")
OPERATIONS: dict[str, Callable[[Instruction], Steps]] = {
    "PUSH": push,
    "POP": pop,
    "CALL": call,
    "JMP": jump,
    "RET": ret,
    "ENTER": enter,
    "LEAVE": leave,
    **dict.fromkeys(("PUSHA", "PUSHAD"), push_all),
    **dict.fromkeys(("POPA", "POPAD"), pop_all),
    "SMSW": smsw,
    **{f"SET{name}": set_on_condition for name in CONDITIONS},
    **{f"CMOV{name}": move_on_condition for name in CONDITIONS},
}
"""By the name that iced-x86 has for the mnemonic."""
