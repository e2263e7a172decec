# SPDX-License-Identifier: GPL-2.0-or-later
"""What the translator runs out of: long blocks, every instruction, code in odd places. A child tries, and must live.

``script/fuzz cpu`` makes many more streams than the short run here.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from random import Random

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from testing.fuzzing import instructions
from testing.fuzzing.cpu import CODE, ROOM, Stream, Target, campaign, stream
from tests.cpu.guest import FLAT_CODE, FLAT_DATA, Guest

# Each left constants behind in its intercept, I/O, x87, segment, SSE or control-register path.
LEAKS = {
    "pushf": "9c",
    "popf": "9d",
    "in": "ec",
    "out with a number": "e680",
    "ins": "6c",
    "fadd st, st1": "d8c1",
    "fxch": "d9c9",
    "ffree": "ddc0",
    "fucomp": "dde9",
    "fldenv": "d920",
    "mov rax, cr0": "0f20c0",
    "mov cr3, rax": "0f22d8",
    "aam": "d40a",
    "mov ds, ax": "8ed8",
    "pshufd": "660f70c100",
    "pcmpistri": "660f3a63c108",
    "movd": "660f6ec0",
    "rdtsc": "0f31",
    "cpuid": "0fa2",
    "int 0x80": "cd80",
    "lock bts": "f00fba2800",
    "bndmov": "660f1ac1",
    "cmovz": "0f44c1",
    "rcl": "c1d003",
}


def in_child(what: Callable[[], None]) -> int:
    """Do it in a child: its wait status. A signal that ends the child does not end the tests."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            what()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not go on with the parent's tests
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("mode", instructions.MODES)
@pytest.mark.parametrize("code", LEAKS.values(), ids=LEAKS.keys())
def test_a_page_of_one_instruction(code: str, mode: int) -> None:
    piece = bytes.fromhex(code)

    def play() -> None:
        assert list(Target().play(Stream(mode, "one", piece * (ROOM // len(piece))), Random(1)))

    assert in_child(play) == 0


@pytest.mark.parametrize("mode", instructions.MODES)
def test_pages_of_every_eighth_instruction(mode: int) -> None:
    """The others are left to script/fuzz cpu; which eighth follows from the mode."""
    rows = list(instructions.every_instruction(mode, "rows"))[mode // 16 :: 8]
    assert len(rows) > 400

    def play() -> None:
        target = Target()
        for _, piece in rows:
            code = piece * (ROOM // len(piece))
            assert list(target.play(Stream(mode, "one", code), Random(2)))

    assert in_child(play) == 0


def test_random_streams() -> None:
    result = campaign(600, 20261129)
    assert result.failures == []
    assert result.cases == 600
    assert len(result.answers) > 5


def test_the_same_seed_makes_the_same_streams() -> None:
    first = stream(7, 3)
    assert first == stream(7, 3)
    assert first != stream(7, 4)


# SDM volume 2, LOCK: #UD if the destination is not memory, or the instruction is another one.
@pytest.mark.parametrize(
    ("code", "allowed"),
    [
        ("f00fba2b00", True),  # lock bts [rbx], 0
        ("f00fba3b00", True),
        ("f00fbaeb00", False),  # a register
        ("f00fbafb00", False),
        ("660fbafba8", None),  # without LOCK it is fine
        ("f00fba2300", False),  # bt writes nothing
        ("f0833b00", False),  # cmp
        ("f0830300", True),
        ("f083c300", False),
        ("f00fa303", False),
        ("f00fab03", True),
        ("f00fabc3", False),
        ("f0f703ffff0000", False),  # test
        ("f0f713", True),  # not
        ("f0f7d3", False),
        ("f0f723", False),  # mul
        ("f0ff03", True),
        ("f0ff33", False),  # push
        ("f08703", True),
        ("f087c3", False),
        ("f08803", False),  # mov
        ("f00fc10b", True),
        ("f00fc1cb", False),
        ("f00fb10b", True),
        ("f00fc70b", True),
        ("f00fc7f3", False),  # rdrand
        ("f090", False),
        ("f00fafc3", False),
        ("f0a5", False),
        ("f0f30fb8c0", False),
    ],
)
def test_lock_is_undefined_but_for_some_instructions_that_write_memory(code: str, allowed: bool | None) -> None:
    guest = Guest()
    guest.memory.write(CODE, bytes.fromhex(code) + b"\xf4")
    guest.context.rip, guest.context.gpr[3], guest.context.exception_bitmap = CODE, 0x80000, 1 << 6
    reason = guest.run()
    assert reason == (ExitReason.EXCEPTION_NMI if allowed is False else ExitReason.HLT)


# AMD's SSE4a, which Intel's processors do not have; beside each what has the same opcode.
@pytest.mark.parametrize(
    ("code", "defined"),
    [
        ("660f79c1", False),  # extrq xmm0, xmm1
        ("660f78c00408", False),  # extrq xmm0, 4, 8
        ("f20f79c1", False),  # insertq
        ("f20f78c10408", False),
        ("0f79c1", False),  # vmwrite, which no guest has
        ("f30f2b03", False),  # movntss [rbx], xmm0
        ("f20f2b03", False),  # movntsd
        ("0f2b03", True),  # movntps
        ("660f2b03", True),  # movntpd
    ],
)
def test_sse4a_is_undefined(code: str, defined: bool) -> None:
    guest = Guest()
    guest.memory.write(CODE, bytes.fromhex(code) + b"\xf4")
    guest.context.rip, guest.context.gpr[3], guest.context.exception_bitmap = CODE, 0x80000, 1 << 6
    assert guest.run() == (ExitReason.HLT if defined else ExitReason.EXCEPTION_NMI)


def at_zero(guest: Guest, bits: int) -> None:
    """The mode's code segment, so that RIP 0 is linear address 0."""
    context = guest.context
    if bits != 64:
        context.efer = 0x801
        context.cr0 = 0x30 if bits == 16 else 0x21
        for segment in (Segment.ES, Segment.SS, Segment.DS):
            context.set_segment(segment, 0x18, 0, 0xFFFFFFFF, FLAT_DATA if bits == 32 else 0x93)
        context.set_segment(Segment.CS, 0x10, 0, 0xFFFFFFFF if bits == 32 else 0xFFFF, 0xC09B if bits == 32 else 0x9B)
    else:
        context.set_segment(Segment.CS, 0x10, 0, 0xFFFFFFFF, FLAT_CODE)


# After `at`: what runs, and where OUT exits. All of it passes linear address 0, or begins or ends there.
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize(
    "code",
    ["e610", "90e610", "9090e610", "0f20c0e610", "90e90000e610", "eb00e610", "31c0e610"],
    ids=["out", "nop", "two", "mov-cr0", "jump-16", "jump", "xor"],
)
def test_code_at_linear_address_zero_runs(bits: int, code: str) -> None:
    if code.startswith("90e9"):
        code = "90e90000e610" if bits == 16 else "90e900000000e610"
    guest = Guest()
    at_zero(guest, bits)
    guest.memory.write(0, bytes.fromhex(code) + b"\xf4")
    guest.context.rip = 0
    assert guest.run() == ExitReason.IO
    assert guest.context.rip == len(code) // 2 - 2


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_jump_to_linear_address_zero_goes_on_there(bits: int) -> None:
    guest = Guest()
    at_zero(guest, bits)
    guest.memory.write(0, bytes.fromhex("90e610f4"))
    guest.memory.write(0x1000, bytes.fromhex("31c0ffe0"))  # xor eax, eax; jmp rax
    guest.context.rip = 0x1000
    assert guest.run() == ExitReason.IO
    assert guest.context.rip == 1


@pytest.mark.parametrize("base", [0xFFFF0000, 0xFFFFF000, 0xFFFFFFF0])
def test_linear_addresses_of_code_wrap_at_4_gib(base: int) -> None:
    """In protected mode, base plus EIP is taken modulo 2**32 (SDM volume 1, 3.3.7.1 in legacy mode)."""
    guest = Guest()
    at_zero(guest, 32)
    guest.context.set_segment(Segment.CS, 0x10, base, 0xFFFFFFFF, 0xC09B)
    guest.memory.write(0, bytes.fromhex("90e610f4"))
    guest.context.rip = (1 << 32) - base
    assert guest.run() == ExitReason.IO
    assert guest.context.rip == (1 << 32) - base + 1
