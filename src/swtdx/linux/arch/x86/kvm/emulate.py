# SPDX-License-Identifier: GPL-2.0-or-later
"""The instruction emulator, for a normal VM's accesses to memory that is not there: MMIO (arch/x86/kvm/emulate.c).

The processor reports an EPT violation and has executed nothing. The instruction is fetched, decoded (by iced-x86, which
is loaded at the first need) and carried out here. Carrying out is a generator that yields an `Access` whenever it
needs MMIO; the driver answers from the kernel's own devices (local APIC, ioeventfds) or leaves with KVM_EXIT_MMIO and
continues at the next KVM_RUN. Only the generator knows how far an instruction has come.

What can be emulated is what KVM's tables have: moves, string instructions, exchanges, the arithmetic and bit operations
with their flags (here, `emulate_numbers`, `emulate_shifts`), vector moves (`emulate_vectors`); the stack and transfers
within a segment (`emulate_stack`), for stacks there; what loads segments and tables (`emulate_segments`); system calls
and the state of x87 (`emulate_system`); and what needs no memory (`emulate_control`). Anything else is
KVM_INTERNAL_ERROR_EMULATION, with the bytes, or #UD if it is a user program's. The emulator is also what runs a guest
whose page tables lie in a read-only slot: the processor cannot set accessed and dirty bits there, the emulator drops
them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from swtdx.cpu.vmx import EventType, ExitReason, Segment
from swtdx.linux.arch.x86.kvm import (
    arithmetic,
    emulate_control,
    emulate_numbers,
    emulate_segments,
    emulate_shifts,
    emulate_stack,
    emulate_system,
    emulate_vectors,
)
from swtdx.linux.arch.x86.kvm.lapic import APICBASE_ENABLE, APICBASE_X2APIC
from swtdx.linux.arch.x86.kvm.mmu.spte import EPT_VIOLATION_ACC_WRITE
from swtdx.linux.arch.x86.kvm.x86.guest_debug import do_singlestep
from swtdx.linux.arch.x86.kvm.x86.guest_memory import (
    GuestException,
    GuestPageFault,
    Mmio,
    Unhandled,
    fetch,
    inject_page_fault,
    translate,
    user_address,
)
from swtdx.linux.mm import PAGE_SHIFT
from swtdx.linux.uaccess import copy_from_user, copy_to_user
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import INSN_EMULATION, INSN_EMULATION_FAIL, MMIO_EXITS
from swtdx.uapi.kvm import (
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_MMIO,
    KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_MEM_READONLY,
    KVM_X86_QUIRK_LAPIC_MMIO_HOLE,
    Vector,
)
from swtdx.x86 import PAGE_SIZE, Cr0, Cr4, Gpr, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

RAX, RCX, RSI, RDI = int(Gpr.RAX), int(Gpr.RCX), int(Gpr.RSI), int(Gpr.RDI)
_MAX_INSTRUCTION = 15
RFLAGS_DF = Rflags.DF
_TRANSLATED = 3 << 7  # EPT violation: the linear address is valid, and the access was to what it leads to
_BLOCKED_BY_MOV_SS, _BLOCKED = 1 << 1, 3  # 3: by STI, too
_MASK, _LOWER_HALF_ENDS = (1 << 64) - 1, (1 << 47) - 64  # less than an operand
_TYPE = 1 << 16 | 0xE  # unusable, and the type but for accessed
_EXECUTABLE, _EXPANDS_DOWN, _READ_OR_WRITE, _BIG, _UNUSABLE = 1 << 3, 1 << 2, 1 << 1, 1 << 14, 1 << 16


@dataclass(frozen=True)
class Access:
    """MMIO that the instruction needs; ``value`` is None for a read. The answer to a read is sent back."""

    gpa: int
    size: int
    value: int | None = None


Steps = Generator[Access, int, None]
Part = Generator[Access, int, Callable[[], int]]
"""A part of an instruction, and what is called after it: 1 or 0 as for an exit."""
Read = Generator[Access, int, int]
_Whole = Steps | Part | Generator[Access, int, Callable[[], int] | None]
Exits = Callable[["Vcpu", "GuestContext", int, int, int], int]
"""What handles an instruction as the exit that it is by itself: reason, qualification, length."""


@cache
def _iced() -> Any:
    import iced_x86

    return iced_x86


@cache
def _registers() -> dict[int, tuple[int, int, int]]:
    """iced register number -> (index in gpr, bytes, shift)."""
    register = _iced().Register
    names = ("AX", "CX", "DX", "BX", "SP", "BP", "SI", "DI")
    table: dict[int, tuple[int, int, int]] = {}
    for number, name in enumerate(names):
        table[getattr(register, name)] = (number, 2, 0)
        table[getattr(register, f"E{name}")] = (number, 4, 0)
        table[getattr(register, f"R{name}")] = (number, 8, 0)
        table[getattr(register, f"{name}L" if number >= 4 else f"{name[0]}L")] = (number, 1, 0)
        if number < 4:
            table[getattr(register, f"{name[0]}H")] = (number, 1, 8)
    for number in range(8, 16):
        for suffix, size in (("", 8), ("D", 4), ("W", 2), ("L", 1)):
            table[getattr(register, f"R{number}{suffix}")] = (number, size, 0)
    return table


@cache
def _loops() -> dict[int, int]:
    """Code of iced-x86 -> bytes of the register that LOOP and JCXZ count with."""
    code = _iced().Code
    sizes = {"CX": 2, "ECX": 4, "RCX": 8}
    loops = {
        getattr(code, f"{name}_REL8_{bits}_{register}"): size
        for name in ("LOOP", "LOOPE", "LOOPNE")
        for bits in (16, 32, 64)
        for register, size in sizes.items()
        if hasattr(code, f"{name}_REL8_{bits}_{register}")
    }
    jumps = {
        getattr(code, f"J{register}Z_REL8_{bits}"): size
        for register, size in sizes.items()
        for bits in (16, 32, 64)
        if hasattr(code, f"J{register}Z_REL8_{bits}")
    }
    return loops | jumps


@cache
def _segments() -> dict[int, int]:
    register = _iced().Register
    return {getattr(register, name): int(Segment[name]) for name in ("ES", "CS", "SS", "DS", "FS", "GS")}


def _outside(number: int) -> GuestException:
    return GuestException(Vector.SS if number == Segment.SS else Vector.GP, 0)


def _is_in_segment(limit: int, rights: int, offset: int, size: int) -> bool:
    if rights & (_EXECUTABLE | _EXPANDS_DOWN) == _EXPANDS_DOWN:
        return limit < offset and offset + size - 1 <= (0xFFFFFFFF if rights & _BIG else 0xFFFF)
    return offset + size - 1 <= limit


def _may_access(rights: int, *, write: bool, protected: bool) -> bool:
    """Whether a segment of this type may be read or written."""
    if rights & _UNUSABLE:
        return False
    if rights & _EXECUTABLE:
        return bool(rights & _READ_OR_WRITE) and not (write and protected)
    return not write or bool(rights & _READ_OR_WRITE)


class Instruction:
    """One instruction being carried out on one vCPU."""

    def __init__(self, vcpu: Vcpu, context: GuestContext, exits: Exits | None = None) -> None:
        self.vcpu = vcpu
        self._exits = exits
        self.context = context
        self.gpr = context.gpr
        _, base, _, rights = context.segment(Segment.CS)
        self.wide = bool(context.efer & 1 << 10 and rights & 1 << 13)
        self.bits = 64 if self.wide else 32 if rights & 1 << 14 else 16
        rip = context.rip
        self.bytes = fetch(vcpu, context, rip if self.wide else base + rip & 0xFFFFFFFF, _MAX_INSTRUCTION)
        self.decoded = _iced().Decoder(self.bits, self.bytes, ip=rip).decode()
        self.next_rip = rip + self.decoded.len
        self.trap_flag = bool(context.rflags & Rflags.TF)
        self.name = ""
        """The mnemonic, once it is known to be emulated."""
        self.moved = 0
        """Bytes by which a bit number moves the operand."""
        self.shadow = 0
        """What blocks interrupts during the next instruction."""
        self.known: tuple[int, int, bool] = -1, 0, False
        """Linear address that the processor has translated, its GPA, and whether it has found it writable."""

    # --- Operands -----------------------------------------------------------------------------------------------------

    def get_register(self, register: int) -> int:
        try:
            number, size, shift = _registers()[register]
        except KeyError:
            raise Unhandled from None
        return self.gpr[number] >> shift & (1 << 8 * size) - 1

    def set_register(self, register: int, value: int) -> None:
        number, size, shift = _registers()[register]
        if size >= 4:
            self.gpr[number] = value & (1 << 8 * size) - 1
        else:
            mask = (1 << 8 * size) - 1 << shift
            self.gpr[number] = self.gpr[number] & ~mask | value << shift & mask

    def linear(self, segment_register: int, offset: int, size: int, *, write: bool = False) -> int:
        """Linear address of ``size`` bytes in a segment. Raises GuestException."""
        return self.in_segment(_segments()[segment_register], offset, size, write=write)

    def in_segment(self, number: int, offset: int, size: int, *, write: bool = False) -> int:
        """The same by the number of the segment (__linearize)."""
        if self.wide:
            base = self.context.segment(number)[1] if number >= Segment.FS else 0
            linear = base + offset & _MASK
            if linear < _LOWER_HALF_ENDS or (self.is_canonical(linear) and self.is_canonical(linear + size - 1)):
                return linear
            raise _outside(number)
        _, base, limit, rights = self.context.segment(number)
        flat = limit == 0xFFFFFFFF and rights & _TYPE == _READ_OR_WRITE  # and data
        if not flat and not (
            _is_in_segment(limit, rights, offset, size)
            and _may_access(rights, write=write, protected=bool(self.context.cr0 & Cr0.PE))
        ):
            raise _outside(number)
        return base + offset & 0xFFFFFFFF

    def is_canonical(self, address: int) -> bool:
        """Whether a linear address is canonical at the width of the guest's paging."""
        shift = 56 if self.context.cr4 & Cr4.LA57 else 47
        return address >> shift in (0, (1 << 64 - shift) - 1)

    def go_near(self, target: int, size: int) -> None:
        """Let RIP be ``target`` in the same code segment (assign_eip_near). Raises GuestException."""
        target &= (1 << 8 * size) - 1
        if not self.is_canonical(target) if self.wide else target > self.context.segment(Segment.CS)[2]:
            raise GuestException(Vector.GP, 0)
        self.next_rip = target

    @property
    def count_mask(self) -> int:
        """The bits of RCX that LOOP and JCXZ count with."""
        codes = _loops()
        return (1 << 8 * codes[self.decoded.code]) - 1

    def control_register(self, register: int) -> tuple[ExitReason, int] | None:
        """Return what a control or debug register exits by, and its number; None for any other."""
        names = _iced().Register
        if 0 <= register - names.CR0 < 16:
            return ExitReason.CR_ACCESS, int(register - names.CR0)
        return (ExitReason.DR_ACCESS, int(register - names.DR0)) if 0 <= register - names.DR0 < 8 else None

    def register_number(self, register: int) -> int:
        """Return the number of a general register."""
        return _registers()[register][0]

    def exit_as(self, reason: ExitReason, qualification: int) -> int:
        """Handle the instruction as the exit that it is where it does not need the emulator. Raises Unhandled."""
        if self._exits is None:
            raise Unhandled
        return self._exits(self.vcpu, self.context, int(reason), qualification, self.decoded.len)

    def move_cr2(self, register: int, *, reads: bool) -> int:
        """MOV from and to CR2, which never exits. 1."""
        if reads:
            self.gpr[register] = self.context.cr2
        else:
            self.context.cr2 = self.gpr[register]
        self.context.rip = self.next_rip
        return 1

    def address(self, length: int, *, write: bool = False) -> int:
        """Linear address of the memory operand. Raises GuestException."""
        segment, offset = self.offset()
        return self.linear(segment, offset, length, write=write)

    def offset(self) -> tuple[int, int]:
        """Return (segment register, offset) of the memory operand."""
        instruction, none = self.decoded, _iced().Register.NONE
        if instruction.is_ip_rel_memory_operand:
            return instruction.memory_segment, instruction.ip_rel_memory_address + self.moved & (1 << 64) - 1
        offset = instruction.memory_displacement + self.moved
        base, index = instruction.memory_base, instruction.memory_index
        size = self.bits // 8
        if base != none:
            size = _registers()[base][1]
            offset += self.get_register(base)
        if index != none:
            size = _registers()[index][1]
            offset += self.get_register(index) * instruction.memory_index_scale
        elif base == none and instruction.memory_displ_size:
            size = instruction.memory_displ_size
        return instruction.memory_segment, offset & (1 << 8 * size) - 1

    def table_address(self, base: int, index: int) -> int:
        """Linear address of a byte of a table (XLAT)."""
        size = _registers()[self.decoded.memory_base][1]
        return self.linear(self.decoded.memory_segment, base + index & (1 << 8 * size) - 1, 1)

    def op_is_register(self, number: int) -> bool:
        return bool(self.decoded.op_kind(number) == _iced().OpKind.REGISTER)

    def vector_register(self, operand: int) -> tuple[int, int]:
        """Return (number, bytes) of an XMM or YMM register. Raises Unhandled."""
        if not self.op_is_register(operand):
            raise Unhandled
        register, names = self.decoded.op_register(operand), _iced().Register
        for first, size in ((names.XMM0, 16), (names.YMM0, 32)):
            if 0 <= register - first < 16:
                return int(register - first), size
        raise Unhandled

    def mmx_register(self, operand: int) -> int:
        """Return the number of an MMX register. Raises Unhandled."""
        number = self.decoded.op_register(operand) - _iced().Register.MM0 if self.op_is_register(operand) else -1
        if not 0 <= number < 8:
            raise Unhandled
        return int(number)

    # --- Memory: a slot's if there is one, else MMIO, in pieces of at most 8 bytes ------------------------------------

    def read(self, linear: int, size: int, *, implicit: bool = False) -> Read:
        value, done = 0, 0
        while done < size:
            gpa = self._translate(linear + done, False, implicit)
            take = min(8, size - done, PAGE_SIZE - gpa % PAGE_SIZE)
            here = self._read_slot(gpa, take)
            value |= ((yield Access(gpa, take)) if here is None else here) << 8 * done
            done += take
        return value

    def write(self, linear: int, size: int, value: int, *, implicit: bool = False) -> Steps:
        done = 0
        while done < size:
            gpa = self._translate(linear + done, True, implicit)
            take = min(8, size - done, PAGE_SIZE - gpa % PAGE_SIZE)
            piece = value >> 8 * done & (1 << 8 * take) - 1
            if not self._write_slot(gpa, piece.to_bytes(take, "little")):
                yield Access(gpa, take, piece)
            done += take

    def _translate(self, linear: int, write: bool, implicit: bool) -> int:
        known, gpa, writable = self.known
        if linear == known and (writable or not write):
            return gpa
        return translate(self.vcpu, self.context, linear, write=write, implicit=implicit)

    def _read_slot(self, gpa: int, size: int) -> int | None:
        """Read a slot's memory; None where there is none, or none behind it any more: another thread may delete it."""
        hva = user_address(self.vcpu.kvm, gpa)
        if hva is None:
            return None
        try:
            return int.from_bytes(copy_from_user(hva, size, self.vcpu.kvm.mm), "little")
        except OSError:
            return None

    def _write_slot(self, gpa: int, data: bytes) -> bool:
        slot = self.vcpu.kvm.memslots.gfn_to_memslot(gpa >> PAGE_SHIFT)
        if slot is None or slot.flags & int(KVM_MEM_READONLY):
            return False
        try:
            copy_to_user(slot.userspace_addr + gpa - (slot.base_gfn << PAGE_SHIFT), data, self.vcpu.kvm.mm)
        except OSError:
            return False
        self.vcpu.kvm.mark_page_dirty_in_slot(slot, gpa >> PAGE_SHIFT)
        return True

    def operand_size(self, number: int) -> int:
        kind = self.decoded.op_kind(number)
        kinds = _iced().OpKind
        if kind == kinds.REGISTER:
            register = self.decoded.op_register(number)
            if register in _segments():
                return 2
            if register not in _registers():
                return 16
            return _registers()[register][1]
        if kind == kinds.MEMORY:
            return int(_iced().MemorySizeExt.size(self.decoded.memory_size))
        return self.operand_size(0)

    def far_branch(self) -> tuple[int, int, int]:
        """Return (selector, offset, operand size) of a far CALL or JMP that names its target."""
        wide = self.decoded.op0_kind == _iced().OpKind.FAR_BRANCH32
        offset = self.decoded.far_branch32 if wide else self.decoded.far_branch16
        return int(self.decoded.far_branch_selector), int(offset), 4 if wide else 2

    @property
    def leave_size(self) -> int:
        """Bytes that LEAVE pops."""
        code = _iced().Code
        return {code.LEAVEW: 2, code.LEAVED: 4}.get(self.decoded.code, 8)

    @property
    def enter_size(self) -> int:
        """Bytes that ENTER pushes."""
        code = _iced().Code
        return {code.ENTERW_IMM16_IMM8: 2, code.ENTERD_IMM16_IMM8: 4}.get(self.decoded.code, 8)

    @property
    def has_24_bit_base(self) -> bool:
        """Whether LGDT or LIDT has 16 bits of operand, and takes three bytes of the base."""
        code = _iced().Code
        return self.decoded.code in (code.LGDT_M1632_16, code.LIDT_M1632_16)

    @property
    def branch_size(self) -> int:
        """Bytes of RIP that a near JMP keeps."""
        code = _iced().Code
        return {code.JMP_RM16: 2, code.JMP_RM32: 4}.get(self.decoded.code, 8)

    def branch_target(self) -> Read:
        """Where a near CALL or JMP goes."""
        decoded, kinds = self.decoded, _iced().OpKind
        if decoded.op0_kind in (kinds.NEAR_BRANCH16, kinds.NEAR_BRANCH32, kinds.NEAR_BRANCH64):
            return int(decoded.near_branch_target)
        if not (decoded.is_call_near_indirect or decoded.is_jmp_near_indirect):
            raise Unhandled  # a far one
        return (yield from self.get(0))

    def get(self, number: int) -> Read:
        """Value of an operand, zero-extended (immediates sign-extended to the size of the first operand)."""
        kind, kinds = self.decoded.op_kind(number), _iced().OpKind
        if kind == kinds.REGISTER:
            register = self.decoded.op_register(number)
            if register in _segments():
                return self.context.segment(_segments()[register])[0]
            if register not in _registers():
                return self._xmm(register)
            return self.get_register(register)
        if kind == kinds.MEMORY:
            size = self.operand_size(number)
            return (yield from self.read(self.address(size), size))
        if not number:  # PUSH
            return int(self.decoded.immediate(0)) & (1 << 64) - 1
        return int(self.decoded.immediate(number)) & (1 << 8 * self.operand_size(0)) - 1

    def put(self, number: int, value: int) -> Steps:
        """Store to an operand."""
        if self.decoded.op_kind(number) == _iced().OpKind.REGISTER:
            register = self.decoded.op_register(number)
            if register in _segments():
                yield from emulate_segments.load(self, _segments()[register], value & 0xFFFF)
                if _segments()[register] == Segment.SS:
                    self.shadow = _BLOCKED_BY_MOV_SS
            elif register not in _registers():
                self.context.set_xmm(self._xmm_number(register), value)
            else:
                self.set_register(register, value)
        else:
            size = self.operand_size(number)
            yield from self.write(self.address(size, write=True), size, value)

    def _xmm_number(self, register: int) -> int:
        number = register - _iced().Register.XMM0
        if not 0 <= number < 16:
            raise Unhandled
        return int(number)

    def _xmm(self, register: int) -> int:
        return self.context.get_xmm(self._xmm_number(register))

    # --- Execution ----------------------------------------------------------------------------------------------------

    def execute(self) -> Generator[Access, int, Callable[[], int] | None]:
        """Everything the instruction does, RIP included; or what does the rest."""
        mnemonic = self.decoded.mnemonic
        names = _names()
        name = names.get(mnemonic)
        if name is None:
            raise Unhandled
        self.name = name
        if name in _STRINGS:
            if not self.decoded.is_string_instruction:
                raise Unhandled  # MOVSD of SSE
            finished = yield from self._string(name[:4], {"B": 1, "W": 2, "D": 4, "Q": 8}[name[4]])
            if not finished:
                return None
        elif name in _MOVES:
            if self.op_is_register(0) and self.op_is_register(1) and self.is_control_move():
                return (yield from emulate_control.move_control(self))
            yield from self._move(name)
        elif name in arithmetic.BINARY or name in arithmetic.UNARY:
            yield from self._arithmetic(name)
        elif name in ("XCHG", "XADD", "CMPXCHG"):
            yield from self._exchange(name)
        elif self.decoded.is_call_far or self.decoded.is_call_far_indirect:
            yield from emulate_segments.call_far(self)
        elif self.decoded.is_jmp_far or self.decoded.is_jmp_far_indirect:
            yield from emulate_segments.jump_far(self)
        elif name in _OPERATIONS:
            rest = yield from _OPERATIONS[name](self)
            if rest is not None:
                return rest
        else:
            raise Unhandled
        self.context.rip = self.next_rip
        if self.context.interruptibility & _BLOCKED or self.shadow:
            self.context.interruptibility = self.context.interruptibility & ~_BLOCKED | self.shadow
        return None

    def is_control_move(self) -> bool:
        """Whether one of the two registers is a control or debug register."""
        return any(self.control_register(self.decoded.op_register(n)) for n in range(2))

    def _move(self, name: str) -> Steps:
        size = self.operand_size(1)
        value = yield from self.get(1)
        if name in ("MOVSX", "MOVSXD"):
            value = arithmetic.sign_extend(value, size) & (1 << 8 * self.operand_size(0)) - 1
        yield from self.put(0, value & (1 << 8 * self.operand_size(0)) - 1)

    def _arithmetic(self, name: str) -> Steps:
        size = self.operand_size(0)
        left = yield from self.get(0)
        flags = self.context.rflags
        if name in arithmetic.UNARY:
            result, flags = arithmetic.unary(name, left, size, flags)
        else:
            right = yield from self.get(1)
            result, flags = arithmetic.binary(name, left, right, size, flags)
        if name not in arithmetic.READ_ONLY:
            yield from self.put(0, result)
        self.context.rflags = flags

    def _exchange(self, name: str) -> Steps:
        size = self.operand_size(0)
        left = yield from self.get(0)
        right = yield from self.get(1)
        if name == "XCHG":
            yield from self.put(0, right)
            yield from self.put(1, left)
        elif name == "XADD":
            result, flags = arithmetic.binary("ADD", left, right, size, self.context.rflags)
            yield from self.put(0, result)
            yield from self.put(1, left)
            self.context.rflags = flags
        else:
            mask = (1 << 8 * size) - 1
            accumulator = self.gpr[RAX] & mask
            _, flags = arithmetic.binary("CMP", accumulator, left, size, self.context.rflags)
            if accumulator == left:
                yield from self.put(0, right)
            else:
                yield from self.put(0, left)
                self.gpr[RAX] = left if size >= 4 else self.gpr[RAX] & ~mask | left
            self.context.rflags = flags

    def _string(self, name: str, size: int) -> Generator[Access, int, bool]:
        """One iteration of a string instruction; False if REP asks for more."""
        instruction, context = self.decoded, self.context
        kinds, register = _iced().OpKind, _iced().Register
        address_kinds = {
            kinds.MEMORY_ESDI: 2, kinds.MEMORY_ESEDI: 4, kinds.MEMORY_ESRDI: 8,
            kinds.MEMORY_SEG_SI: 2, kinds.MEMORY_SEG_ESI: 4, kinds.MEMORY_SEG_RSI: 8,
        }  # fmt: skip
        width = next(address_kinds[kind] for n in range(2) if (kind := instruction.op_kind(n)) in address_kinds)
        mask = (1 << 8 * width) - 1
        rep = instruction.has_rep_prefix or instruction.has_repne_prefix
        if rep and not self.gpr[RCX] & mask:
            return True
        step = -size if context.rflags & RFLAGS_DF else size
        value = self.gpr[RAX] & (1 << 8 * size) - 1
        if name in ("MOVS", "LODS", "CMPS"):
            value = yield from self.read(self.linear(instruction.memory_segment, self.gpr[RSI] & mask, size), size)
        if name in ("MOVS", "STOS"):
            yield from self.write(self.linear(register.ES, self.gpr[RDI] & mask, size, write=True), size, value)
        elif name in ("CMPS", "SCAS"):
            other = yield from self.read(self.linear(register.ES, self.gpr[RDI] & mask, size), size)
            _, context.rflags = arithmetic.binary("CMP", value, other, size, context.rflags)
        else:
            self.gpr[RAX] = value if size >= 4 else self.gpr[RAX] & ~((1 << 8 * size) - 1) | value
        # Only now: an access that faulted has changed nothing.
        if name in ("MOVS", "LODS", "CMPS"):
            self._advance(RSI, step, mask)
        if name != "LODS":
            self._advance(RDI, step, mask)
        if not rep:
            return True
        self._advance(RCX, -1, mask)
        if name in ("CMPS", "SCAS") and bool(context.rflags & Rflags.ZF) == instruction.has_repne_prefix:
            return True
        return not self.gpr[RCX] & mask

    def _advance(self, number: int, step: int, mask: int) -> None:
        value = self.gpr[number] + step & mask
        self.gpr[number] = value if mask >= 0xFFFFFFFF else self.gpr[number] & ~mask | value


_MOVES = frozenset(("MOV", "MOVZX", "MOVSX", "MOVSXD", "MOVNTI"))
_OPERATIONS = {
    **emulate_control.OPERATIONS,
    **emulate_numbers.OPERATIONS,
    **emulate_segments.OPERATIONS,
    **emulate_shifts.OPERATIONS,
    **emulate_stack.OPERATIONS,
    **emulate_system.OPERATIONS,
    **emulate_vectors.OPERATIONS,
}
_STRINGS = frozenset(name + size for name in ("MOVS", "STOS", "LODS", "CMPS", "SCAS") for size in "BWDQ")


@cache
def _names() -> dict[int, str]:
    mnemonic = _iced().Mnemonic
    wanted = {
        *_MOVES, *arithmetic.BINARY, *arithmetic.UNARY, "XCHG", "XADD", "CMPXCHG", *_STRINGS, *_OPERATIONS,
    }  # fmt: skip
    return {getattr(mnemonic, name): name for name in wanted}


# --- Driving ----------------------------------------------------------------------------------------------------------


def emulate_instruction(vcpu: Vcpu, context: GuestContext, exits: Exits | None = None) -> int:
    """Carry out the instruction at RIP. 1: done; 0: to user space, for MMIO or because the emulator is at its end."""
    vcpu.stat.values[INSN_EMULATION] += 1
    try:
        instruction = Instruction(vcpu, context, exits)
    except GuestPageFault as fault:
        return inject_page_fault(context, fault)
    except Mmio:
        return handle_emulation_failure(vcpu, b"")  # code runs from where no memory is
    qualification = context.exit_qualification
    if qualification & _TRANSLATED == _TRANSLATED:
        write = bool(qualification & EPT_VIOLATION_ACC_WRITE)
        instruction.known = context.guest_linear_address, context.guest_physical_address, write
    return _drive(vcpu, instruction, instruction.execute(), None)


def emulate_by(vcpu: Vcpu, context: GuestContext, part: Callable[[Instruction], Part]) -> int:
    """Carry out ``part`` of the instruction at RIP, and then what it returns."""
    try:
        instruction = Instruction(vcpu, context)
    except GuestPageFault as fault:
        return inject_page_fault(context, fault)
    except Mmio:
        return handle_emulation_failure(vcpu, b"")
    return _drive(vcpu, instruction, part(instruction), None)


def skip_instruction(vcpu: Vcpu, context: GuestContext) -> int:
    """Move RIP past the instruction without executing it. 1."""
    try:
        context.rip = Instruction(vcpu, context).next_rip
    except GuestPageFault as fault:
        return inject_page_fault(context, fault)
    return 1


def _drive(vcpu: Vcpu, instruction: Instruction, steps: _Whole, answer: int | None) -> int:
    try:
        while True:
            access = next(steps) if answer is None else steps.send(answer)
            answer = _in_kernel(vcpu, access)
            if answer is None:
                return _mmio_exit(vcpu, instruction, steps, access)
    except StopIteration as end:
        if end.value is not None:
            return int(end.value())
        finished = instruction.context.rip == instruction.next_rip
        return do_singlestep(vcpu, instruction.context) if finished and instruction.trap_flag else 1
    except GuestPageFault as fault:
        return inject_page_fault(instruction.context, fault)
    except GuestException as exception:
        instruction.context.inject(exception.vector, EventType.HARDWARE_EXCEPTION, exception.error_code)
        return 1
    except Unhandled:
        return handle_emulation_failure(vcpu, instruction.bytes)


def _in_kernel(vcpu: Vcpu, access: Access) -> int | None:
    """Return the answer of a device in the kernel (0 for a write), or None."""
    apic = vcpu.apic
    if apic is not None and access.gpa >> 12 == apic.base >> 12 & (1 << 40) - 1:
        if apic.base & (APICBASE_ENABLE | APICBASE_X2APIC) != APICBASE_ENABLE:
            if vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_LAPIC_MMIO_HOLE:
                return None
            return 0 if access.value is not None else (1 << 8 * access.size) - 1  # a hole, not MMIO of user space
        offset = access.gpa % PAGE_SIZE
        if access.value is not None:
            if access.size == 4 and not offset & 0xF:
                apic.write(offset, access.value)
            return 0
        word = apic.read(offset & 0xFF0)
        return word >> 8 * (offset & 3) & (1 << 8 * access.size) - 1
    ioapic = vcpu.kvm.ioapic
    if ioapic is not None and ioapic.covers(access.gpa):
        if access.value is None:
            return ioapic.read(access.gpa, access.size) & (1 << 8 * access.size) - 1
        ioapic.write(access.gpa, access.size, access.value)
        return 0
    if access.value is not None and vcpu.kvm.buses.mmio.active:
        if vcpu.kvm.buses.mmio.write(access.gpa, access.size, access.value):
            return 0
    return None


def _mmio_exit(vcpu: Vcpu, instruction: Instruction, steps: _Whole, access: Access) -> int:
    write = access.value is not None
    data = (access.value or 0).to_bytes(8, "little")
    vcpu.stat.values[MMIO_EXITS] += 1
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_MMIO))
    run_struct.MMIO.pack_into(vcpu.run, run_struct.UNION, access.gpa, data, access.size, write)

    def complete() -> int:
        at = run_struct.UNION + 8
        answer = 0 if write else int.from_bytes(vcpu.run[at : at + access.size], "little")
        return _drive(vcpu, instruction, steps, answer)

    vcpu.complete_userspace_io = complete
    return 0


def handle_emulation_failure(vcpu: Vcpu, code: bytes) -> int:
    """Inject #UD; leave also, if the guest's kernel did it. Only leave, if user space asked for every failure."""
    vcpu.stat.values[INSN_EMULATION_FAIL] += 1
    context = vcpu.vmx.context
    if not vcpu.kvm.exit_on_emulation_error:
        context.inject(Vector.UD, EventType.HARDWARE_EXCEPTION)
        if context.segment(Segment.SS)[3] >> 5 & 3:
            return 1
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_INTERNAL_ERROR))
    run_struct.INTERNAL.pack_into(
        vcpu.run, run_struct.UNION, KVM_INTERNAL_ERROR_EMULATION, 4,
        KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, 0,
    )  # fmt: skip
    at = run_struct.UNION + 16
    vcpu.run[at] = len(code)
    vcpu.run[at + 1 : at + 1 + len(code)] = code
    return 0
