# SPDX-License-Identifier: GPL-2.0-or-later
"""SSE, MMX and x87 instructions beside the host's processor. ``script/fuzz instructions`` makes a campaign of it."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import pytest

from swtdx.cpu.vmx import ExitReason
from testing.fuzzing import arithmetic
from tests.cpu.guest import Guest

ROOT = Path(__file__).resolve().parents[2]
XM, UD, NM, GP, PF, MF = 19, 6, 7, 13, 14, 16
R8, R9 = 8, 9
EM, TS, OSFXSR, OSXMMEXCPT = 1 << 2, 1 << 3, 1 << 9, 1 << 10


def test_sse_and_mmx_instructions_do_what_the_host_does() -> None:
    """AVX, FMA, F16C, BMI and SHA, too, where the host has them."""
    count, found = arithmetic.sweep(1, 2, x87=False, immediates=1)
    assert count > 2000
    assert not found, "\n".join([str(len(found)), *found[:20]])


def test_unmasked_exceptions_of_sse_instructions_are_raised_as_the_host_raises_them() -> None:
    count, found = arithmetic.unmasked(1, 2)
    assert count > 1000
    assert not found, "\n".join([str(len(found)), *found[:20]])


def test_x87_instructions_do_what_the_host_does() -> None:
    count, found = arithmetic.sweep(1, 8, x87=True, immediates=1)
    assert count > 3000
    assert not found, "\n".join([str(len(found)), *found[:20]])


def test_unmasked_x87_exceptions_leave_what_they_leave_on_the_host() -> None:
    count, found = arithmetic.unmasked_x87(1, 6)
    assert count > 2000
    assert not found, "\n".join([str(len(found)), *found[:20]])


_DIVIDE_BY_ZERO = "push 0x37b\n fldcw [rsp]\n fld1\n fldz\n fdivp st(1), st\n"


@pytest.mark.parametrize("waiting", ["fld1", "fwait", "fstp qword ptr [rsp]", "fldcw [rsp]", "emms", "paddb mm0, mm1"])
def test_an_unmasked_x87_exception_arrives_at_the_next_waiting_instruction(waiting: str) -> None:
    guest = Guest(f"{_DIVIDE_BY_ZERO} fnstsw ax\n mov r8d, eax\n fnstcw [rsp]\n mov r9d, 1\n {waiting}\n hlt")
    guest.context.cr0 |= 1 << 5
    assert exception(guest) == MF
    assert guest.context.gpr[R9] == 1
    assert guest.context.gpr[R8] & 0x8084 == 0x8084


def test_unmasking_a_pending_x87_exception_raises_it() -> None:
    guest = Guest("fninit\n fld1\n fldz\n fdivp st(1), st\n push 0x37b\n fldcw [rsp]\n mov r9d, 1\n fwait\n hlt")
    guest.context.cr0 |= 1 << 5
    assert exception(guest) == MF
    assert guest.context.gpr[R9] == 1


def test_an_x87_store_that_faults_leaves_the_stack_alone() -> None:
    guest = Guest("fninit\n fldpi\n fstp qword ptr [rsi]\n hlt")
    guest.context.gpr[6] = 0x4000_0000 - 4
    assert exception(guest) == PF
    image = guest.context.get_fpu()
    assert (image[2] | image[3] << 8) >> 11 & 7 == 7
    assert image[4] == 0x80
    assert not image[2] & 0x20  # no inexact result yet


def test_the_table_of_instructions_is_what_its_generator_writes() -> None:
    spec = importlib.util.spec_from_file_location("host_table", ROOT / "native/host_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.table() == module.TARGET.read_text()


def exception(guest: Guest) -> int | None:
    guest.context.exception_bitmap = 0xFFFFFFFF
    reason = guest.run()
    return guest.context.interruption_info & 0xFF if reason == ExitReason.EXCEPTION_NMI else None


@pytest.mark.parametrize(
    ("source", "vector"),
    [
        ("addps xmm0, [rsi + 4]", GP),
        ("movaps xmm0, [rsi + 8]", GP),
        ("movdqa [rsi + 1], xmm0", GP),
        ("movntps [rsi + 8], xmm0", GP),
        ("movntdqa xmm0, [rsi + 8]", GP),
        ("pshufb xmm0, [rsi + 8]", GP),
        ("aesenc xmm0, [rsi + 8]", GP),
        ("movups xmm0, [rsi + 1]", None),
        ("movdqu [rsi + 1], xmm0", None),
        ("lddqu xmm0, [rsi + 1]", None),
        ("pcmpistri xmm0, [rsi + 1], 12", None),
        ("addss xmm0, dword ptr [rsi + 1]", None),
        ("cvtdq2pd xmm0, [rsi + 1]", None),
        ("addps xmm0, [rdi + 8]", GP),  # before the page fault
        ("addps xmm0, [rdi]", PF),
    ],
)
def test_128_bits_of_memory_are_aligned_unless_the_instruction_says_otherwise(source: str, vector: int | None) -> None:
    guest = Guest(f"mov esi, 0x90000\n mov edi, 0x80000000\n {source}\n hlt")
    assert exception(guest) == vector


@pytest.mark.parametrize(
    "source", ["addps xmm0, xmm1", "pcmpestri xmm0, xmm1, 0", "movaps xmm0, xmm1", "pshufb xmm0, xmm1"]
)
def test_control_registers_take_sse_away(source: str) -> None:
    for cr0, cr4, vector in (
        (0, 0, None),
        (TS, 0, NM),
        (EM, 0, UD),
        (EM | TS, 0, UD),
        (0, OSFXSR, UD),
        (TS, OSFXSR, UD),
    ):
        guest = Guest(f"{source}\n hlt")
        guest.context.cr0 |= cr0
        guest.context.cr4 &= ~cr4
        assert exception(guest) == vector, (cr0, cr4)


def test_without_osxmmexcpt_a_floating_point_exception_is_an_undefined_opcode() -> None:
    source = "push 0x1d80\n ldmxcsr [rsp]\n mov eax, 1\n cvtsi2sd xmm0, eax\n xorps xmm1, xmm1\n"
    source += "divsd xmm0, xmm1\n hlt"
    guest = Guest(source)
    assert exception(guest) == XM
    guest = Guest(source)
    guest.context.cr4 &= ~OSXMMEXCPT
    assert exception(guest) == UD


def test_an_unaligned_load_over_two_pages_changes_nothing_when_the_second_faults() -> None:
    guest = Guest("movups xmm3, [rsi]\n hlt")
    guest.context.gpr[6] = 0x4000_0000 - 8
    guest.context.set_xmm(3, 0x1234)
    assert exception(guest) == PF
    assert guest.context.get_xmm(3) == 0x1234


@pytest.mark.parametrize("source", ["ldmxcsr [rsi]", "fxrstor [rsi]"])
def test_mxcsr_takes_no_reserved_bits(source: str) -> None:
    guest = Guest(f"mov esi, 0x90000\n {source}\n hlt")
    guest.memory.write(0x90000, struct.pack("<I", 1 << 16) * 128)
    assert exception(guest) == GP
