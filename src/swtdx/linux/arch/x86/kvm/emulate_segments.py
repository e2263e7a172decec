# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's instructions that load or store segments and descriptor tables, far transfers among them
(__load_segment_descriptor, em_call_far, em_jmp_far, em_ret_far, em_iret, em_mov_rm_sreg, em_lgdt, em_sgdt, em_lldt,
em_ltr of arch/x86/kvm/emulate.c; SDM vol. 3, chapter 5).

Each is a generator as in `emulate`. As in Linux there are no call gates, task switches and changes of privilege: those
are left to user space as instructions that the emulator does not know, and so is IRET outside real mode.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from enum import Enum
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import Segment
from swtdx.linux.arch.x86.kvm.emulate_stack import RSP, move_stack, pop_value, push_value
from swtdx.linux.arch.x86.kvm.x86.guest_memory import GuestException, Unhandled
from swtdx.uapi.kvm import Vector
from swtdx.x86 import Cr0, Efer, Rflags

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.emulate import Access, Instruction, Steps

_EXECUTABLE, _CONFORMING, _RW, _ACCESSED = 8, 4, 2, 1  # bits of a descriptor's type
_CODE_OR_DATA, _PRESENT, _LONG, _BIG, _GRANULAR, _UNUSABLE = 1 << 4, 1 << 7, 1 << 13, 1 << 14, 1 << 15, 1 << 16
_RF, _VM, _IF, _IOPL = (int(flag) for flag in (Rflags.RF, Rflags.VM, Rflags.IF, Rflags.IOPL))
_POPPED = 0x254DD5  # CF, PF, AF, ZF, SF, TF, DF, OF, NT, AC and ID: what any POPF changes
_REAL_IRET = 0x257FD5  # and IF and IOPL


class Transfer(Enum):
    """What loads CS (enum x86_transfer_type)."""

    NONE = "MOV, POP"
    CALL_JMP = "CALL, JMP"
    RET = "RET"


def cpl(instruction: Instruction) -> int:
    """The current privilege level: the DPL of SS."""
    return instruction.context.segment(Segment.SS)[3] >> 5 & 3


def _gp(selector: int = 0) -> GuestException:
    return GuestException(Vector.GP, selector & 0xFFFC)


def _base(descriptor: int, upper: int = 0) -> int:
    return descriptor >> 16 & 0xFFFFFF | descriptor >> 32 & 0xFF000000 | upper << 32


def _is_canonical_base(instruction: Instruction, base: int) -> bool:
    """Whether a table or system segment may lie there: the processor's width counts, whatever the guest's paging."""
    width = instruction.vcpu.kvm.processor.cpuid(0x80000008)[0] >> 8 & 0xFF
    return base >> width - 1 in (0, (1 << 65 - width) - 1)


def _set(instruction: Instruction, number: int, selector: int, descriptor: int, upper: int = 0) -> None:
    """Load a segment register from a descriptor of 8 bytes; ``upper``: the base's upper half in one of 16."""
    base = _base(descriptor, upper)
    limit = descriptor & 0xFFFF | descriptor >> 32 & 0xF0000
    rights = descriptor >> 40 & 0xF0FF
    if rights & _GRANULAR:
        limit = limit << 12 | 0xFFF
    instruction.context.set_segment(number, selector, base, limit, rights)


def _descriptor(instruction: Instruction, selector: int) -> Generator[Access, int, tuple[int, int]]:
    """Return (linear address, value) of a descriptor in GDT or LDT. Raises GuestException."""
    table = Segment.LDTR if selector & 4 else Segment.GDTR
    _, base, limit, rights = instruction.context.segment(table)
    if (table is Segment.LDTR and rights & _UNUSABLE) or (selector | 7) > limit:
        raise _gp(selector)
    address = base + (selector & 0xFFF8)
    return address, (yield from instruction.read(address, 8, implicit=True))


def _check(instruction: Instruction, number: int, selector: int, descriptor: int, transfer: Transfer) -> None:
    """Check a descriptor for a segment register. Raises GuestException, Unhandled."""
    kind, dpl, rpl, current = descriptor >> 40 & 0xF, descriptor >> 45 & 3, selector & 3, cpl(instruction)
    if not descriptor >> 40 & _CODE_OR_DATA:
        if transfer is Transfer.CALL_JMP:
            raise Unhandled  # a gate or a task
        raise _gp(selector)
    if number == Segment.SS:
        if rpl != current or kind & (_EXECUTABLE | _RW) != _RW or dpl != current:
            raise _gp(selector)
    elif number == Segment.CS:
        if not kind & _EXECUTABLE or (transfer is Transfer.RET and rpl < current):
            raise _gp(selector)
        if transfer is Transfer.RET and rpl > current:
            raise Unhandled  # to an outer level
        if dpl > current if kind & _CONFORMING else rpl > current or dpl != current:
            raise _gp(selector)
        if descriptor >> 40 & _BIG and descriptor >> 40 & _LONG and instruction.context.efer & Efer.LMA:
            raise _gp(selector)
    elif kind & (_EXECUTABLE | _RW) == _EXECUTABLE or (
        kind & (_EXECUTABLE | _CONFORMING) != _EXECUTABLE | _CONFORMING and max(rpl, current) > dpl
    ):
        raise _gp(selector)
    if not descriptor >> 40 & _PRESENT:
        raise GuestException(Vector.SS if number == Segment.SS else Vector.NP, selector & 0xFFFC)


def load(instruction: Instruction, number: int, selector: int, transfer: Transfer = Transfer.NONE) -> Steps:
    """Load a segment register (ES to GS). Raises GuestException, Unhandled."""
    context = instruction.context
    if not context.cr0 & Cr0.PE or context.rflags & _VM:
        _, _, limit, rights = context.segment(number)  # unreal mode: what is not named stays
        context.set_segment(number, selector, selector << 4, limit, rights)
        return
    if not selector & 0xFFFC:
        current = cpl(instruction)
        if number == Segment.CS or (
            number == Segment.SS and (not instruction.wide or selector & 3 != current or current == 3)
        ):
            raise _gp()
        context.set_segment(number, selector, 0, 0, _UNUSABLE | (current << 5 if number == Segment.SS else 0))
        return
    address, descriptor = yield from _descriptor(instruction, selector)
    _check(instruction, number, selector, descriptor, transfer)
    if number == Segment.CS:
        selector = selector & 0xFFFC | cpl(instruction)
    if not descriptor >> 40 & _ACCESSED:
        descriptor |= _ACCESSED << 40
        yield from instruction.write(address + 5, 1, descriptor >> 40 & 0xFF, implicit=True)
    _set(instruction, number, selector, descriptor)


def _go(instruction: Instruction, target: int, size: int) -> None:
    """Let RIP be ``target`` in the code segment that is loaded now (assign_eip_far)."""
    _, _, limit, rights = instruction.context.segment(Segment.CS)
    target &= (1 << 8 * size) - 1
    if instruction.context.efer & Efer.LMA and rights & _LONG:
        if target >> 47 not in (0, (1 << 17) - 1):
            raise _gp()
    elif target > limit:
        raise _gp()
    instruction.next_rip = target


def _transfer(
    instruction: Instruction, selector: int, target: int, size: int, kind: Transfer, frame: Callable[[], Steps] | None
) -> Steps:
    """Load CS and RIP, and push the way back in between; a fault leaves CS as it was."""
    context = instruction.context
    old, next_rip = context.segment(Segment.CS), instruction.next_rip
    try:
        yield from load(instruction, Segment.CS, selector, kind)
        _go(instruction, target, size)
        if frame is not None:
            yield from frame()
    except Exception:
        context.set_segment(Segment.CS, *old)
        instruction.next_rip = next_rip
        raise


def _far_pointer(instruction: Instruction) -> Generator[Access, int, tuple[int, int, int]]:
    """Return (selector, offset, operand size) of a far CALL or JMP."""
    decoded = instruction.decoded
    if decoded.is_call_far or decoded.is_jmp_far:
        return instruction.far_branch()
    size = instruction.operand_size(0) - 2
    pointer = yield from instruction.read(instruction.address(size + 2), size + 2)
    return pointer >> 8 * size, pointer & (1 << 8 * size) - 1, size


def call_far(instruction: Instruction) -> Steps:
    """CALL to another segment, at the same privilege."""
    selector, target, size = yield from _far_pointer(instruction)
    old_cs, old_rip, old_rsp = instruction.context.segment(Segment.CS)[0], instruction.next_rip, instruction.gpr[RSP]

    def frame() -> Steps:
        try:
            yield from push_value(instruction, size, old_cs)
            yield from push_value(instruction, size, old_rip)
        except Exception:
            instruction.gpr[RSP] = old_rsp
            raise

    yield from _transfer(instruction, selector, target, size, Transfer.CALL_JMP, frame)


def jump_far(instruction: Instruction) -> Steps:
    """JMP to another segment, at the same privilege."""
    selector, target, size = yield from _far_pointer(instruction)
    yield from _transfer(instruction, selector, target, size, Transfer.CALL_JMP, None)


def ret_far(instruction: Instruction) -> Steps:
    """RETF, with or without dropping arguments, to the same privilege."""
    decoded, old_rsp = instruction.decoded, instruction.gpr[RSP]
    dropped = int(decoded.immediate(0)) if decoded.op_count else 0
    size = (decoded.stack_pointer_increment - dropped) // 2
    try:
        target = yield from pop_value(instruction, size)
        selector = yield from pop_value(instruction, size)
        yield from _transfer(instruction, selector & 0xFFFF, target, size, Transfer.RET, None)
    except Exception:
        instruction.gpr[RSP] = old_rsp
        raise
    move_stack(instruction, dropped)


def iret(instruction: Instruction) -> Steps:
    """IRET of real mode; in any other it is not emulated."""
    context, old_rsp = instruction.context, instruction.gpr[RSP]
    if context.cr0 & Cr0.PE:
        raise Unhandled
    size = instruction.decoded.stack_pointer_increment // 3
    try:
        target = yield from pop_value(instruction, size)
        selector = yield from pop_value(instruction, size)
        flags = yield from pop_value(instruction, size)
        if target >> 16:
            raise _gp()
        yield from _transfer(instruction, selector & 0xFFFF, target, size, Transfer.NONE, None)
    except Exception:
        instruction.gpr[RSP] = old_rsp
        raise
    mask = _REAL_IRET & (1 << 8 * size) - 1
    context.rflags = context.rflags & ~mask & ~_RF | flags & mask


def load_far_pointer(number: int) -> Callable[[Instruction], Steps]:
    """LDS, LES, LSS, LFS or LGS: a register and a segment register from memory."""

    def load_both(instruction: Instruction) -> Steps:
        size = instruction.operand_size(1) - 2
        pointer = yield from instruction.read(instruction.address(size + 2), size + 2)
        yield from load(instruction, number, pointer >> 8 * size)
        instruction.set_register(instruction.decoded.op0_register, pointer & (1 << 8 * size) - 1)

    return load_both


def push_flags(instruction: Instruction) -> Steps:
    """PUSHF. In virtual-8086 mode it needs IOPL 3."""
    flags = instruction.context.rflags
    if flags & _VM and flags & _IOPL != _IOPL:
        raise _gp()
    yield from push_value(instruction, -instruction.decoded.stack_pointer_increment, flags & ~(_VM | _RF))


def pop_flags(instruction: Instruction) -> Steps:
    """POPF, which changes IOPL at privilege level 0 and IF at one that IOPL allows (emulate_popf)."""
    context, size = instruction.context, instruction.decoded.stack_pointer_increment
    flags, mask = context.rflags, _POPPED
    if not context.cr0 & Cr0.PE:
        mask |= _IOPL | _IF
    elif flags & _VM:
        if flags & _IOPL != _IOPL:
            raise _gp()
        mask |= _IF
    else:
        current = cpl(instruction)
        mask |= (0 if current else _IOPL) | (_IF if current <= flags >> 12 & 3 else 0)
    mask &= (1 << 8 * size) - 1
    value = yield from pop_value(instruction, size)
    context.rflags = flags & ~mask | value & mask


def _table(number: int) -> Callable[[Instruction], Steps]:
    def load_table(instruction: Instruction) -> Steps:
        if cpl(instruction) and instruction.context.cr0 & Cr0.PE:
            raise _gp()
        size = 8 if instruction.wide else 4
        value = yield from instruction.read(instruction.address(2 + size), 2 + size)
        base = value >> 16
        if instruction.has_24_bit_base:
            base &= 0xFFFFFF
        if instruction.wide and not _is_canonical_base(instruction, base):
            raise _gp()
        instruction.context.set_segment(number, 0, base, value & 0xFFFF, 0)

    return load_table


_SYSTEM_TYPES = {Segment.LDTR: (2,), Segment.TR: (1, 9)}  # an LDT; a TSS of 16 bits, of 32 or 64 bits, not busy
_BUSY = 2


def _load_system(segment: Segment) -> Callable[[Instruction], Steps]:
    """LLDT and LTR. A null selector makes LDTR unusable, and is not for TR. LTR makes the TSS busy."""

    def load_system(instruction: Instruction) -> Steps:
        context = instruction.context
        if not context.cr0 & Cr0.PE or context.rflags & _VM:
            raise GuestException(Vector.UD, None)
        if cpl(instruction):
            raise _gp()
        selector = (yield from instruction.get(0)) & 0xFFFF
        if segment is Segment.TR and (selector & 4 or not selector & 0xFFFC):
            raise _gp()
        if not selector & 0xFFFC:
            context.set_segment(segment, selector, 0, 0, _UNUSABLE)
            return
        address, descriptor = yield from _descriptor(instruction, selector)
        if descriptor >> 40 & 0x1F not in _SYSTEM_TYPES[segment]:
            raise _gp(selector)
        if not descriptor >> 40 & _PRESENT:
            raise GuestException(Vector.NP, selector & 0xFFFC)
        upper = 0
        if instruction.wide:
            upper = yield from instruction.read(address + 8, 4, implicit=True)
            if not _is_canonical_base(instruction, _base(descriptor, upper)):
                raise _gp(selector)
        if segment is Segment.TR:
            descriptor |= _BUSY << 40
            yield from instruction.write(address + 5, 1, descriptor >> 40 & 0xFF, implicit=True)
        _set(instruction, segment, selector, descriptor, upper)

    return load_system


def _store_table(number: int) -> Callable[[Instruction], Steps]:
    def store_table(instruction: Instruction) -> Steps:
        _, base, limit, _ = instruction.context.segment(number)
        size = 8 if instruction.wide else 4
        address = instruction.address(2 + size, write=True)
        yield from instruction.write(address, 2 + size, limit & 0xFFFF | base << 16)

    return store_table


def _store_selector(segment: Segment) -> Callable[[Instruction], Steps]:
    """SLDT and STR: 2 bytes."""

    def store(instruction: Instruction) -> Steps:
        yield from instruction.put(0, instruction.context.segment(segment)[0])

    return store


OPERATIONS: dict[str, Callable[[Instruction], Steps]] = {
    "RETF": ret_far,
    "IRET": iret,
    "IRETD": iret,
    "LDS": load_far_pointer(Segment.DS),
    "LES": load_far_pointer(Segment.ES),
    "LSS": load_far_pointer(Segment.SS),
    "LFS": load_far_pointer(Segment.FS),
    "LGS": load_far_pointer(Segment.GS),
    **dict.fromkeys(("PUSHF", "PUSHFD", "PUSHFQ"), push_flags),
    **dict.fromkeys(("POPF", "POPFD", "POPFQ"), pop_flags),
    "LGDT": _table(Segment.GDTR),
    "LIDT": _table(Segment.IDTR),
    "LLDT": _load_system(Segment.LDTR),
    "LTR": _load_system(Segment.TR),
    "SLDT": _store_selector(Segment.LDTR),
    "STR": _store_selector(Segment.TR),
    "SGDT": _store_table(Segment.GDTR),
    "SIDT": _store_table(Segment.IDTR),
}
"""By the name that iced-x86 has for the mnemonic."""
