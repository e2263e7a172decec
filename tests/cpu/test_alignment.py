# SPDX-License-Identifier: GPL-2.0-or-later
"""#AC: unaligned accesses of CPL 3 while CR0.AM and EFLAGS.AC are set (SDM volume 3, 6.15, interrupt 17, table 6-7)."""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.platform import host_features
from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import PAGE_TABLES, assemble
from tests.cpu.test_transfers import AC, RDI, RSP, USER_64, USER_CODE, USER_STACK, TwoLevels

AM, AC_VECTOR = 1 << 18, 17
PLACE = USER_STACK + 0x1000
RSI, RBX = 6, 3

ACCESSES = [
    ("mov ax, [rdi]", 2),
    ("mov eax, [rdi]", 4),
    ("mov rax, [rdi]", 8),
    ("mov [rdi], ax", 2),
    ("mov [rdi], eax", 4),
    ("mov [rdi], rax", 8),
    ("mov byte ptr [rdi], 1", 1),
    ("inc dword ptr [rdi]", 4),
    ("lock inc dword ptr [rdi]", 4),
    ("lock cmpxchg [rdi], rcx", 8),
    ("cmpxchg8b [rdi]", 8),
    ("xchg [rdi], eax", 4),
    ("lock xadd [rdi], rax", 8),
    ("lock btsw [rdi], 3", 2),
    ("movbe eax, [rdi]", 4),
    ("movzx eax, word ptr [rdi]", 2),
    ("stosd", 4),
    ("lodsq", 8),
    ("movsw", 2),
    ("push [rdi]", 8),
    ("pop [rdi]", 8),
    ("mov ds, [rdi]", 2),
    ("jmp [rdi]", 8),
    ("movq mm0, [rdi]", 8),
    ("movq [rdi], mm0", 8),
    ("paddb mm0, [rdi]", 8),
    ("movss xmm0, [rdi]", 4),
    ("movsd [rdi], xmm0", 8),
    ("movhps xmm0, [rdi]", 8),
    ("addsd xmm0, [rdi]", 8),
    ("addss xmm0, [rdi]", 4),
    ("cvtsi2sd xmm0, dword ptr [rdi]", 4),
    ("pinsrw xmm0, [rdi], 1", 2),
    ("pextrd [rdi], xmm0, 1", 4),
    ("movups xmm0, [rdi]", 1),
    ("movdqu [rdi], xmm0", 1),
    ("fld dword ptr [rdi]", 4),
    ("fld qword ptr [rdi]", 8),
    ("fld tbyte ptr [rdi]", 8),
    ("fstp tbyte ptr [rdi]", 8),
    ("fild word ptr [rdi]", 2),
    ("fistp qword ptr [rdi]", 8),
    ("fadd qword ptr [rdi]", 8),
    ("fnstcw [rdi]", 2),
    ("fnstsw [rdi]", 2),
    ("fnstenv [rdi]", 4),
    ("data16 fnstenv [rdi]", 2),
    ("fnsave [rdi]", 4),
    ("stmxcsr [rdi]", 4),
    ("sgdt [rdi]", 4),
    ("sidt [rdi]", 4),
]
AVX_ACCESSES = [
    ("vmovss xmm0, [rdi]", 4),
    ("vmovsd [rdi], xmm0", 8),
    ("vmovq xmm0, [rdi]", 8),
    ("vaddsd xmm0, xmm1, [rdi]", 8),
    ("vcvtsi2sd xmm0, xmm1, dword ptr [rdi]", 4),
    ("vpinsrw xmm0, xmm1, [rdi], 1", 2),
    ("vpextrd [rdi], xmm0, 1", 4),
    ("vbroadcastss ymm0, [rdi]", 4),
    ("vstmxcsr [rdi]", 4),
    ("vmovups ymm0, [rdi]", 1),
    ("vmaskmovps [rdi], ymm0, ymm1", 1),  # no #AC for any mask (SDM volume 2, VMASKMOV)
    ("andn eax, ecx, [rdi]", 4),
]
if "avx" in host_features():
    ACCESSES += AVX_ACCESSES
STACKS = [
    ("push rax", 8),
    ("pop rax", 8),
    ("pushw 1", 2),
    ("pushfq", 8),
    ("call next\n next:", 8),
    ("ret", 8),
    ("enter 8, 0", 8),
    ("retfq", 8),
    ("iretq", 8),
    ("rex.w call fword ptr [rbx]", 8),
    ("call fword ptr [rbx]", 4),
]


def user_guest(code: str, offset: int, *, stack: int = 0, am: bool = True, ac: bool = True) -> TwoLevels:
    """The code runs between ``first`` and ``last``, which is UD2; #AC leaves 17 in R8 and its error code in R9."""
    guest = TwoLevels(f"{code}\n last: ud2")
    guest.handler(AC_VECTOR, "pop r9\n pop r10\n mov r8d, 17\n hlt", 0x113000)
    context = guest.context
    context.cr4 |= 0x4_0600
    context.xcr0 = 7
    context.cr0 |= AM if am else 0
    context.rflags |= AC if ac else 0
    for index in (RDI, RSI, RBX):
        context.gpr[index] = PLACE + offset
    context.gpr[RBX] = PLACE + 0x800
    pointer = struct.pack("<QH" if "rex.w" in code else "<IH", USER_CODE + len(assemble(code)), USER_64)
    guest.memory.write(PLACE + 0x800, pointer)
    context.gpr[RSP] = USER_STACK + stack
    guest.memory.raw[PLACE - 64 : PLACE + 1024] = b"\0" * 1088
    return guest


def vector(guest: TwoLevels) -> int:
    assert guest.run() == ExitReason.HLT
    return guest.context.gpr[8]


@pytest.mark.parametrize(("code", "alignment"), ACCESSES)
def test_an_unaligned_access_is_ac(code: str, alignment: int) -> None:
    for offset in range(1, 16):
        if offset % alignment:
            guest = user_guest(code, offset)
            assert vector(guest) == AC_VECTOR, offset
            assert (guest.context.gpr[9], guest.context.gpr[10]) == (0, USER_CODE)
            assert guest.context.gpr[RDI] == PLACE + offset
        elif code not in ("jmp [rdi]", "mov ds, [rdi]"):
            assert vector(user_guest(code, offset)) == 6, offset


@pytest.mark.parametrize(("code", "alignment"), STACKS)
def test_an_unaligned_stack_is_ac(code: str, alignment: int) -> None:
    for offset in range(1, 8):
        guest = user_guest(code, 0, stack=offset)
        found = vector(guest)
        assert (found == AC_VECTOR) == bool(offset % alignment), offset
        if found == AC_VECTOR:
            assert guest.context.gpr[9] == 0


@pytest.mark.parametrize("code", ["mov rax, [rdi]", "lock inc dword ptr [rdi]", "fld qword ptr [rdi]", "push [rdi]"])
def test_both_flags_and_the_user_are_needed(code: str) -> None:
    assert vector(user_guest(code, 1, stack=1, am=False)) == 6
    assert vector(user_guest(code, 1, stack=1, ac=False)) == 6
    kernel = TwoLevels(f"{code}\n ud2", user=False)
    kernel.context.cr0 |= AM
    kernel.context.rflags |= AC
    kernel.context.gpr[RDI] = 0x14001
    kernel.context.gpr[RSP] = 0x80001
    assert vector(kernel) == 6


def test_the_guest_turns_it_on_and_off() -> None:
    flip = "pushfq\n xor dword ptr [rsp], 0x40000\n popfq\n"
    guest = user_guest(f"mov rax, [rdi]\n {flip} {flip} mov rax, [rdi]\n {flip} here: mov rax, [rdi]", 1, ac=False)
    assert vector(guest) == AC_VECTOR
    before = len(assemble(f"mov rax, [rdi]\n {flip} {flip} mov rax, [rdi]\n {flip}"))
    assert guest.context.gpr[10] == USER_CODE + before


@pytest.mark.parametrize("code", ["movaps xmm0, [rdi]", "addps xmm0, [rdi]", "fxsave [rdi]", "cmpxchg16b [rdi]"])
def test_16_bytes_stay_a_general_protection_fault(code: str) -> None:
    assert vector(user_guest(code, 1)) == vector(user_guest(code, 8)) == 13


@pytest.mark.parametrize(
    "code", ["mov rax, [rdi]", "mov [rdi], rax", "fld qword ptr [rdi]", "lock inc qword ptr [rdi]"]
)
def test_a_page_fault_comes_first(code: str) -> None:
    guest = user_guest(code, 1)
    guest.put64(PAGE_TABLES + 0x2000 + 8 * 200, 0)
    guest.context.gpr[RDI] = (200 << 21) + 1
    assert vector(guest) == 14


@pytest.mark.parametrize("offset", [1, 2, 4])
def test_compatibility_mode_too(offset: int) -> None:
    guest = TwoLevels("pusha\n ud2", mode=32)
    guest.handler(AC_VECTOR, "mov r8d, 17\n hlt", 0x113000)
    guest.context.cr0 |= AM
    guest.context.rflags |= AC
    guest.context.gpr[RSP] = USER_STACK + offset
    assert vector(guest) == (AC_VECTOR if offset % 4 else 6)
