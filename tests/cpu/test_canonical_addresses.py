# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses that are not canonical: #SS(0) for the stack, #GP(0) for all else, and far transfers that do not begin.

SDM volume 1, 3.3.7.1: which references are to the stack; volume 2, IRET, RET, CALL, JMP: #GP(0) for a target that is
not canonical.
"""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import assemble
from tests.cpu.test_transfers import R8, R9, RDI, RSP, USER_64, USER_CODE, USER_DATA_64, USER_STACK, TwoLevels

WRONG = 0x8000_0000_0000
RBP, R12, R13, RSI = 5, 12, 13, 6
SS, GP = 12, 13


def fault(code: str, **registers: int) -> tuple[int, int, int]:
    """The vector, the error code and how far into ``code`` the saved RIP is."""
    guest = TwoLevels(f"{code}\n ud2")
    guest.handler(SS, "pop r9\n pop r10\n mov r8d, 12\n hlt", 0x114000)
    guest.handler(GP, "pop r9\n pop r10\n mov r8d, 13\n hlt", 0x115000)
    numbers = {"rsp": RSP, "rbp": RBP, "rdi": RDI, "rsi": RSI, "r12": R12, "r13": R13}
    for name in ("rbp", "rdi", "rsi", "r12", "r13"):
        guest.context.gpr[numbers[name]] = USER_STACK - 0x400
    for name, value in registers.items():
        guest.context.gpr[numbers[name]] = value
    guest.context.cr4 |= 0x600
    assert guest.run() == ExitReason.HLT
    return guest.context.gpr[R8], guest.context.gpr[R9], guest.context.gpr[10] - USER_CODE


@pytest.mark.parametrize(
    ("code", "register"),
    [
        ("push rax", "rsp"),
        ("push 1", "rsp"),
        ("pop rax", "rsp"),
        ("pushfq", "rsp"),
        ("popfq", "rsp"),
        ("ret", "rsp"),
        ("ret 8", "rsp"),
        ("retfq", "rsp"),
        ("iretq", "rsp"),
        ("call next\n next:", "rsp"),
        ("call [rdi]", "rsp"),
        ("push [rdi]", "rsp"),
        ("pop [rdi]", "rsp"),
        ("push fs", "rsp"),
        ("enter 16, 0", "rsp"),
        ("leave", "rbp"),
        ("mov rax, [rsp + 8]", "rsp"),
        ("mov [rsp + rcx * 8], eax", "rsp"),
        ("mov rax, [rbp]", "rbp"),
        ("mov rax, [rbp + rcx * 2 + 0x400]", "rbp"),
        ("mov [rbp + 8], ax", "rbp"),
        ("lock inc dword ptr [rbp]", "rbp"),
        ("movzx eax, byte ptr [rbp]", "rbp"),
        ("imul eax, [rbp], 3", "rbp"),
        ("fld qword ptr [rbp]", "rbp"),
        ("movups xmm0, [rsp]", "rsp"),
        ("addsd xmm0, [rbp]", "rbp"),
        ("pshufb mm0, [rbp]", "rbp"),
        ("pextrd [rbp], xmm0, 1", "rbp"),
        ("call [rbp]", "rbp"),
        ("movbe eax, [rbp]", "rbp"),
        (".byte 0x3e\n mov rax, [rbp]", "rbp"),
    ],
)
def test_a_reference_to_the_stack_is_ss(code: str, register: str) -> None:
    assert fault(code, **{register: WRONG + 0x1000}) == (SS, 0, 0)


@pytest.mark.parametrize(
    ("code", "register"),
    [
        ("mov rax, [rdi]", "rdi"),
        ("mov rax, [r12]", "r12"),
        ("mov rax, [r13]", "r13"),
        ("mov rax, [rdi + rbp]", "rbp"),
        ("mov rax, [rbp * 2 + 0x10]", "rbp"),
        ("mov rax, fs:[rbp]", "rbp"),
        ("mov rax, gs:[rsp]", "rsp"),
        (".byte 0x36\n mov rax, [rdi]", "rdi"),
        ("push [rdi]", "rdi"),
        ("pop [rdi]", "rdi"),
        ("call [rdi]", "rdi"),
        ("jmp [rdi]", "rdi"),
        ("movsq", "rsi"),
        ("movsq", "rdi"),
        ("stosb", "rdi"),
        ("lodsd", "rsi"),
        ("movabs al, [0x800000000000]", "rdi"),
        ("fld qword ptr [rdi]", "rdi"),
        ("movups [rdi], xmm0", "rdi"),
        ("movups xmm0, [r13]", "r13"),
        ("inc dword ptr [rdi]", "rdi"),
    ],
)
def test_another_reference_is_gp(code: str, register: str) -> None:
    assert fault(code, **{register: WRONG}) == (GP, 0, 0)


@pytest.mark.parametrize("transfer", ["retfq", "iretq", "rex.w call fword ptr [rdi]", "rex.w jmp fword ptr [rdi]"])
def test_a_far_transfer_does_not_begin(transfer: str) -> None:
    place = USER_STACK - 0x400
    pushes = f"mov rax, {WRONG}\n push {USER_DATA_64}\n push {USER_STACK}\n pushfq\n push {USER_64}\n push rax\n"
    pushes += f"mov [rdi], rax\n mov word ptr [rdi + 8], {USER_64}\n"
    before = len(assemble(pushes))
    vector, error, at = fault(pushes + transfer, rdi=place)
    assert (vector, error, at) == (GP, 0, before)


def test_the_stack_is_left_alone_by_a_far_call_that_does_not_begin() -> None:
    guest = TwoLevels("rex.w call fword ptr [rdi]")
    guest.handler(GP, "mov r8d, 13\n hlt", 0x115000)
    guest.context.gpr[RDI] = USER_STACK + 0x100
    guest.memory.write(USER_STACK + 0x100, struct.pack("<QH", WRONG, USER_64))
    guest.memory.raw[USER_STACK - 16 : USER_STACK] = b"\xee" * 16
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == GP
    assert bytes(guest.memory.raw[USER_STACK - 16 : USER_STACK]) == b"\xee" * 16
