# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's instructions that need no memory (the rest of opcode_table and twobyte_table of emulate.c).

They come here where each instruction does: the page tables of its code lie in a read-only slot, and the processor
cannot set their accessed bits. What would exit by itself, CPUID or IN for one, is handled as that exit
(x86_emulate_ops). As in Linux IRET and INT outside real mode are not emulated; INT of real mode, where there are no
page tables, is not either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import ExitReason
from swtdx.linux.arch.x86.kvm.emulate_segments import cpl
from swtdx.linux.arch.x86.kvm.emulate_stack import CONDITIONS, condition
from swtdx.linux.arch.x86.kvm.x86.guest_memory import GuestException, Unhandled
from swtdx.uapi.kvm import Vector
from swtdx.x86 import Cr0, Cr4, Gpr, Rflags

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.emulate import Instruction, Part, Steps

RAX, RCX, RDX = int(Gpr.RAX), int(Gpr.RCX), int(Gpr.RDX)
_CF, _PF, _AF, _ZF, _SF, _OF = (
    int(flag) for flag in (Rflags.CF, Rflags.PF, Rflags.AF, Rflags.ZF, Rflags.SF, Rflags.OF)
)
_BLOCKED_BY_STI = 1 << 0
_IO_IN, _IO_IMMEDIATE = 1 << 3, 1 << 6
_MSW = Cr0.PE | Cr0.MP | Cr0.EM | Cr0.TS


def _nothing(instruction: Instruction) -> Steps:
    yield from ()


def _gp() -> GuestException:
    return GuestException(Vector.GP, 0)


# --- Branches ---------------------------------------------------------------------------------------------------------


def _branch(instruction: Instruction) -> None:
    instruction.go_near(int(instruction.decoded.near_branch_target), 8)


def jump_on_condition(instruction: Instruction) -> Steps:
    """Jcc."""
    if condition(instruction.decoded.condition_code - 1, instruction.context.rflags):
        _branch(instruction)
    yield from ()


def _count(instruction: Instruction, by: int) -> int:
    """Add to CX, ECX or RCX, by the size of addresses. Return what is left."""
    mask, old = instruction.count_mask, instruction.gpr[RCX]
    left = old + by & mask
    instruction.gpr[RCX] = left if mask >= 0xFFFFFFFF else old & ~mask | left
    return left


def loop(instruction: Instruction) -> Steps:
    """LOOP, LOOPE and LOOPNE. RCX does not change if the branch faults."""
    name, flags = instruction.name, instruction.context.rflags
    left = (instruction.gpr[RCX] & instruction.count_mask) - 1
    if left and (name == "LOOP" or bool(flags & _ZF) == (name == "LOOPE")):
        _branch(instruction)
    _count(instruction, -1)
    yield from ()


def jump_without_count(instruction: Instruction) -> Steps:
    """JCXZ, JECXZ and JRCXZ."""
    if not instruction.gpr[RCX] & instruction.count_mask:
        _branch(instruction)
    yield from ()


# --- Registers and flags ----------------------------------------------------------------------------------------------


def load_address(instruction: Instruction) -> Steps:
    """LEA: the offset, without its segment."""
    instruction.set_register(instruction.decoded.op0_register, instruction.offset()[1])
    yield from ()


def _extend(size: int, to_rdx: bool) -> Callable[[Instruction], Steps]:
    """CBW, CWDE, CDQE: within RAX, from half of ``size``. CWD, CDQ, CQO: into RDX."""

    def extend(instruction: Instruction) -> Steps:
        gpr, bits = instruction.gpr, 8 * size
        if to_rdx:
            register, value = RDX, -(gpr[RAX] >> bits - 1 & 1) & (1 << bits) - 1
        else:
            half = gpr[RAX] & (1 << bits // 2) - 1
            register, value = RAX, half - ((half >> bits // 2 - 1) << bits // 2) & (1 << bits) - 1
        gpr[register] = value if size >= 4 else gpr[register] & ~0xFFFF | value
        yield from ()

    return extend


def swap_bytes(instruction: Instruction) -> Steps:
    """BSWAP."""
    size = instruction.operand_size(0)
    value = yield from instruction.get(0)
    yield from instruction.put(0, int.from_bytes(value.to_bytes(size, "little"), "big"))


def _set_flags(clear: int, put: int, flip: int = 0) -> Callable[[Instruction], Steps]:
    def change(instruction: Instruction) -> Steps:
        instruction.context.rflags = (instruction.context.rflags & ~clear | put) ^ flip
        yield from ()

    return change


def store_flags(instruction: Instruction) -> Steps:
    """SAHF."""
    kept = _SF | _ZF | _AF | _PF | _CF
    flags = instruction.context.rflags & ~kept | instruction.gpr[RAX] >> 8 & kept
    instruction.context.rflags = flags
    yield from ()


def load_flags(instruction: Instruction) -> Steps:
    """LAHF."""
    flags = instruction.context.rflags & (_SF | _ZF | _AF | _PF | _CF) | Rflags.FIXED_1
    instruction.gpr[RAX] = instruction.gpr[RAX] & ~0xFF00 | flags << 8
    yield from ()


def interrupt_flag(instruction: Instruction) -> Steps:
    """CLI and STI; the latter opens its shadow."""
    context = instruction.context
    if context.cr0 & Cr0.PE and cpl(instruction) > (context.rflags >> 12 & 3):
        raise _gp()
    if instruction.name == "CLI":
        context.rflags &= ~Rflags.IF
    else:
        if not context.rflags & Rflags.IF:
            instruction.shadow = _BLOCKED_BY_STI
        context.rflags |= Rflags.IF
    yield from ()


def _result_flags(instruction: Instruction, value: int, flags: int = 0) -> None:
    """SF, ZF and PF by a byte."""
    parity = 0 if (value & 0xFF).bit_count() & 1 else _PF
    kept = instruction.context.rflags & ~(_SF | _ZF | _PF | _CF | _AF)
    instruction.context.rflags = kept | (value & _SF) | (0 if value else _ZF) | parity | flags


def adjust(instruction: Instruction) -> Steps:
    """AAM, AAD and DAS (em_aam, em_aad, em_das)."""
    gpr, name = instruction.gpr, instruction.name
    low, high = gpr[RAX] & 0xFF, gpr[RAX] >> 8 & 0xFF
    if name == "DAS":
        flags, old = instruction.context.rflags, low
        borrow, carry = bool(flags & _AF) or low & 0xF > 9, bool(flags & _CF) or old > 0x99
        low -= (6 if borrow else 0) + (0x60 if carry else 0)
        carry = carry or (borrow and old < 6)
        result = high << 8 | low & 0xFF
        marks = (_CF if carry else 0) | (_AF if borrow else 0)
    else:
        base, marks = int(instruction.decoded.immediate8), 0
        if name == "AAM":
            if not base:
                raise GuestException(Vector.DE, None)
            result = low // base << 8 | low % base
        else:
            result = low + high * base & 0xFF
    gpr[RAX] = gpr[RAX] & ~0xFFFF | result
    _result_flags(instruction, result & 0xFF, marks)
    yield from ()


def set_al_on_carry(instruction: Instruction) -> Steps:
    """SALC."""
    carry = instruction.context.rflags & _CF
    instruction.gpr[RAX] = instruction.gpr[RAX] & ~0xFF | (0xFF if carry else 0)
    yield from ()


# --- The system -------------------------------------------------------------------------------------------------------


def _privileged(operation: Callable[[Instruction], Steps]) -> Callable[[Instruction], Steps]:
    def checked(instruction: Instruction) -> Steps:
        if instruction.context.cr0 & Cr0.PE and cpl(instruction):
            raise _gp()
        return operation(instruction)

    return checked


def clear_task_switched(instruction: Instruction) -> Steps:
    """CLTS."""
    instruction.context.cr0 &= ~Cr0.TS
    yield from ()


def load_machine_status(instruction: Instruction) -> Steps:
    """LMSW, which sets PE and does not clear it."""
    value, cr0 = (yield from instruction.get(0)) & _MSW, instruction.context.cr0
    instruction.context.cr0 = cr0 & ~(_MSW & ~Cr0.PE) | value


def invalidate_page(instruction: Instruction) -> Steps:
    """INVLPG."""
    instruction.context.invept()
    yield from ()


def read_time(instruction: Instruction) -> Steps:
    """RDTSC."""
    context, gpr = instruction.context, instruction.gpr
    if context.cr4 & Cr4.TSD and context.cr0 & Cr0.PE and cpl(instruction):
        raise _gp()
    now = instruction.vcpu.guest_tsc()
    gpr[RAX], gpr[RDX] = now & 0xFFFFFFFF, now >> 32
    yield from ()


def _exits(reason: ExitReason, qualification: int = 0) -> Callable[[Instruction], Part]:
    def leave(instruction: Instruction) -> Part:
        yield from ()
        return lambda: instruction.exit_as(reason, qualification)

    return leave


def _privileged_exit(reason: ExitReason) -> Callable[[Instruction], Part]:
    def leave(instruction: Instruction) -> Part:
        if instruction.context.cr0 & Cr0.PE and cpl(instruction):
            raise _gp()
        return _exits(reason)(instruction)

    return leave


def set_extended_control(instruction: Instruction) -> Part:
    """XSETBV."""
    if not instruction.context.cr4 & Cr4.OSXSAVE:
        raise GuestException(Vector.UD, None)
    return _privileged_exit(ExitReason.XSETBV)(instruction)


def port(instruction: Instruction) -> Part:
    """IN and OUT. The bitmap of the TSS is not looked at: without I/O privilege they are left to user space."""
    context, decoded = instruction.context, instruction.decoded
    if context.cr0 & Cr0.PE and cpl(instruction) > (context.rflags >> 12 & 3):
        raise Unhandled
    data, number = (0, 1) if instruction.name == "IN" else (1, 0)
    where = (yield from instruction.get(number)) if instruction.op_is_register(number) else int(decoded.immediate8)
    qualification = instruction.operand_size(data) - 1 | where << 16 | (_IO_IN if data == 0 else 0)
    return lambda: instruction.exit_as(ExitReason.IO, qualification)


def move_control(instruction: Instruction) -> Part:
    """MOV from and to control and debug registers. Raises Unhandled for any other MOV."""
    decoded, wide = instruction.decoded, instruction.control_register
    to_register = wide(decoded.op1_register)
    kind, number = to_register or wide(decoded.op0_register) or (None, 0)
    if kind is None:
        raise Unhandled
    if instruction.context.cr0 & Cr0.PE and cpl(instruction):
        raise _gp()
    other = instruction.register_number(decoded.op0_register if to_register else decoded.op1_register)
    yield from ()
    if kind is ExitReason.CR_ACCESS and number == 2:
        return lambda: instruction.move_cr2(other, reads=bool(to_register))
    qualification = number | other << 8 | ((1 << 4) if to_register else 0)
    return lambda: instruction.exit_as(kind, qualification)


OPERATIONS: dict[str, Callable[[Instruction], Steps | Part]] = {
    **{f"J{name}": jump_on_condition for name in CONDITIONS},
    **dict.fromkeys(("LOOP", "LOOPE", "LOOPNE"), loop),
    **dict.fromkeys(("JCXZ", "JECXZ", "JRCXZ"), jump_without_count),
    "LEA": load_address,
    **dict.fromkeys(("NOP", "PAUSE", "PREFETCHNTA", "PREFETCHT0", "PREFETCHT1", "PREFETCHT2", "PREFETCHW"), _nothing),
    **dict.fromkeys(("CLFLUSH", "CLFLUSHOPT"), _nothing),
    **dict.fromkeys(("INVD", "WBINVD"), _privileged(_nothing)),
    "INVLPG": _privileged(invalidate_page),
    "CLTS": _privileged(clear_task_switched),
    "LMSW": _privileged(load_machine_status),
    **{name: _extend(size, False) for name, size in (("CBW", 2), ("CWDE", 4), ("CDQE", 8))},
    **{name: _extend(size, True) for name, size in (("CWD", 2), ("CDQ", 4), ("CQO", 8))},
    "BSWAP": swap_bytes,
    "SAHF": store_flags,
    "LAHF": load_flags,
    "CMC": _set_flags(0, 0, _CF),
    "CLC": _set_flags(_CF, 0),
    "STC": _set_flags(0, _CF),
    "CLD": _set_flags(Rflags.DF, 0),
    "STD": _set_flags(0, Rflags.DF),
    **dict.fromkeys(("CLI", "STI"), interrupt_flag),
    **dict.fromkeys(("AAM", "AAD", "DAS"), adjust),
    "SALC": set_al_on_carry,
    "RDTSC": read_time,
    "RDPMC": _exits(ExitReason.RDPMC),
    "CPUID": _exits(ExitReason.CPUID),
    "VMCALL": _exits(ExitReason.VMCALL),
    "HLT": _privileged_exit(ExitReason.HLT),
    "RDMSR": _privileged_exit(ExitReason.RDMSR),
    "WRMSR": _privileged_exit(ExitReason.WRMSR),
    "XSETBV": set_extended_control,
    **dict.fromkeys(("IN", "OUT"), port),
}
"""By the name that iced-x86 has for the mnemonic."""
