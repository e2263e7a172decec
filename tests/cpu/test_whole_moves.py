# SPDX-License-Identifier: GPL-2.0-or-later
"""Moves of 16 aligned bytes: alone they are two accesses, beside another virtual CPU one; the guest sees no difference.

The faults and traps are those of SDM volume 2, MOVDQA and MOVAPS, and volume 3, table 6-7 and 17.2.4.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import CODE, PAGE_TABLES, Guest, assemble

DATA = 0x1000_0000
R8, R9 = 8, 9
MOVES = ("movdqa", "movaps", "vmovdqa", "vmovapd")
NUMBER = bytes(range(16, 32))


class Machine:
    """A processor with one virtual CPU, or with one more that does not run."""

    def __init__(self, cpus: int) -> None:
        self.processor = Processor(Platform(memory_size=1 << 30, parallel=True))
        self.others = [Guest(processor=self.processor) for _ in range(cpus - 1)]

    def guest(self, source: str) -> Guest:
        guest = Guest(f"mov r8d, 0\n {source}\n hlt", processor=self.processor)
        for vector in (1, 13, 14):
            guest.handler(vector, f"mov r8d, {vector}\n mov r9, cr2\n hlt", 0x112000 + vector * 0x100)
        guest.context.cr4 |= 1 << 18
        guest.context.xcr0 = 7
        return guest


@pytest.fixture(params=[1, 2], ids=["alone", "beside another one"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    machine = Machine(request.param)
    if "avx" not in machine.processor.platform.features:
        pytest.skip("the processor here has no AVX")
    yield machine
    machine.processor.close()


@pytest.mark.parametrize("move", MOVES)
def test_it_moves(machine: Machine, move: str) -> None:
    guest = machine.guest(f"mov edi, {DATA}; vpcmpeqd ymm1, ymm1, ymm1; {move} xmm1, [rdi]; {move} [rdi + 4096], xmm1")
    guest.memory.raw[DATA : DATA + 16] = NUMBER
    guest.memory.raw[DATA + 4088 : DATA + 4128] = bytes(40)
    assert guest.run() == ExitReason.HLT
    assert bytes(guest.memory.raw[DATA + 4088 : DATA + 4120]) == bytes(8) + NUMBER + bytes(8)
    upper = bytes(16) if move.startswith("v") else b"\xff" * 16
    assert guest.context.get_ymm_high()[16:32] == upper, "VEX clears the upper half, SSE keeps it"


@pytest.mark.parametrize("way", ["{} xmm1, [rdi]", "{} [rdi], xmm1"])
@pytest.mark.parametrize("move", MOVES)
def test_other_alignments_are_gp(machine: Machine, move: str, way: str) -> None:
    for odd in (1, 4, 8, 15):
        guest = machine.guest(f"mov edi, {DATA + odd}; {way.format(move)}")
        guest.memory.raw[DATA : DATA + 32] = NUMBER * 2
        assert guest.run() == ExitReason.HLT
        assert guest.context.gpr[R8] == 13
        assert bytes(guest.memory.raw[DATA : DATA + 32]) == NUMBER * 2


@pytest.mark.parametrize("way", ["{} xmm1, [rdi]", "{} [rdi], xmm1"])
@pytest.mark.parametrize("move", MOVES)
def test_a_page_that_is_not_there_is_pf(machine: Machine, move: str, way: str) -> None:
    guest = machine.guest(f"mov edi, {DATA + 32}; pcmpeqd xmm1, xmm1; {way.format(move)}")
    guest.put64(PAGE_TABLES + 0x2000 + 8 * (DATA >> 21), 0)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == 14
    assert guest.context.gpr[R9] == DATA + 32
    assert guest.context.get_fpu()[176:192] == b"\xff" * 16, "the register is as it was"


@pytest.mark.parametrize("move", MOVES)
def test_a_page_that_may_only_be_read(machine: Machine, move: str) -> None:
    guest = machine.guest(f"mov edi, {DATA}; {move} xmm1, [rdi]; {move} [rdi], xmm1")
    guest.put64(PAGE_TABLES + 0x2000 + 8 * (DATA >> 21), DATA | 0x81)
    guest.context.cr0 |= 1 << 16
    guest.memory.raw[DATA : DATA + 16] = NUMBER
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == 14
    assert guest.context.get_fpu()[176:192] == NUMBER


@pytest.mark.parametrize("move", MOVES)
def test_code_that_it_writes_is_not_stale(machine: Machine, move: str) -> None:
    """The first pass runs the old bytes, so that they are translated; the store is 16 bytes before them on the page."""
    patched = assemble("mov r9d, 2; ret; " + "nop; " * 9, CODE)[:16]
    source = f"""
        call subject
        mov r10d, r9d
        {move} xmm1, [{DATA}]
        {move} [subject], xmm1
        call subject
        jmp 9f
        .p2align 4
    subject:
        mov r9d, 1
        ret
        .p2align 4
    9:"""
    guest = machine.guest(source)
    guest.memory.raw[DATA : DATA + 16] = patched
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[10], guest.context.gpr[R9]) == (1, 2)


@pytest.mark.parametrize("at", [0, 7, 8, 15])
@pytest.mark.parametrize("move", MOVES)
def test_data_breakpoints_see_each_byte(machine: Machine, move: str, at: int) -> None:
    for way, kind in (("{} [rdi], xmm1", 1), ("{} xmm1, [rdi]", 3)):
        guest = machine.guest(f"mov edi, {DATA}; {way.format(move)}; nop")
        guest.context.set_dr(0, DATA + at)
        guest.context.set_dr(7, 2 | kind << 16)
        assert guest.run() == ExitReason.HLT
        assert guest.context.gpr[R8] == 1
        assert guest.context.get_dr(6) & 1
