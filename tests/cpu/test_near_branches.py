# SPDX-License-Identifier: GPL-2.0-or-later
"""Branches that lead nowhere fault before they begin: RIP is the branch's, and nothing is pushed, popped or counted.

SDM volume 2, CALL, JMP, Jcc, LOOP, RET: #GP(0) where the target is not canonical, in 64-bit mode, or beyond the code
segment's limit, in all others.
"""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import CODE, PAGE_TABLES, SELECTOR_CODE, SELECTOR_DATA, STACK, Guest, assemble

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
WRONG = 0x8000_0000_0000
LAST_PAGE = 0x7FFF_FFFF_F000
PLACE = 0x70000
GP, UD = 13, 6
TF = 1 << 8


def fault_of(guest: Guest) -> tuple[int, int]:
    """The vector of the exception that exits, and RIP."""
    guest.context.exception_bitmap = ~(1 << 1) & 0xFFFFFFFF
    reason = guest.run()
    assert reason == ExitReason.EXCEPTION_NMI, ExitReason(reason)
    return guest.context.interruption_info & 0xFF, guest.context.rip


def wrong_guest(code: str) -> Guest:
    guest = Guest(f"{code}\n ud2")
    for register in (RAX, RCX, RDX, RBX, RDI):
        guest.context.gpr[register] = WRONG
    guest.context.gpr[RSI] = PLACE
    guest.memory.write(PLACE, struct.pack("<Q", WRONG))
    guest.memory.write(STACK, struct.pack("<Q", WRONG))
    guest.memory.write(STACK - 8, b"\xee" * 8)
    return guest


INDIRECT = (
    "jmp rdi",
    "jmp [rsi]",
    "call rdi",
    "call [rsi]",
    "ret",
    "ret 8",
    "ret 0x8008",
    "data16 ret",
    "data16 call rdi",
)


@pytest.mark.parametrize("code", INDIRECT)
def test_an_indirect_branch_to_no_canonical_address_does_not_begin(code: str) -> None:
    guest = wrong_guest(code)
    assert fault_of(guest) == (GP, CODE)
    assert guest.context.gpr[RSP] == STACK
    assert guest.memory.read(STACK - 8, 8) == b"\xee" * 8


@pytest.mark.parametrize("code", INDIRECT)
@pytest.mark.parametrize("before", ["sti", "mov ss, r8d"])
def test_nor_behind_an_instruction_that_delays_interrupts(code: str, before: str) -> None:
    guest = wrong_guest(f"{before}\n {code}")
    guest.context.gpr[8] = SELECTOR_DATA
    assert fault_of(guest) == (GP, CODE + len(assemble(before)))
    assert guest.context.gpr[RSP] == STACK
    assert guest.memory.read(STACK - 8, 8) == b"\xee" * 8


@pytest.mark.parametrize("code", INDIRECT)
def test_nor_is_it_stepped_over(code: str) -> None:
    guest = wrong_guest(code)
    guest.context.rflags |= TF
    assert fault_of(guest) == (GP, CODE)
    assert guest.context.gpr[RSP] == STACK


@pytest.mark.parametrize("code", INDIRECT)
def test_a_target_that_is_seen_a_second_time(code: str) -> None:
    """The instruction faults each time, also when its block is translated already."""
    guest = wrong_guest(code)
    for _ in range(3):
        assert fault_of(guest) == (GP, CODE)
    assert guest.context.gpr[RSP] == STACK


def last_page_guest(code: str) -> tuple[Guest, int]:
    """A guest that runs ``code`` so that it ends 4 bytes before the lower half of the canonical addresses does."""
    size = len(assemble(code, LAST_PAGE))
    origin = LAST_PAGE + 0x1000 - size - 4
    guest = Guest()
    upper, directory, table = 0x38000, 0x39000, 0x3A000
    guest.put64(PAGE_TABLES + 8 * 255, upper | 3)
    guest.put64(upper + 8 * 511, directory | 3)
    guest.put64(directory + 8 * 511, table | 3)
    guest.put64(table + 8 * 511, 0x60003)
    guest.memory.write(0x60000 + origin % 4096, assemble(code, origin) + b"\x90" * 4)
    guest.context.rip = origin
    guest.memory.write(STACK - 8, b"\xee" * 8)
    return guest, origin


@pytest.mark.parametrize(
    ("code", "rcx", "rflags"),
    [
        (".byte 0xeb, 0x10", 5, 2),
        (".byte 0xe9, 0x10, 1, 0, 0", 5, 2),
        (".byte 0xe8, 0x10, 1, 0, 0", 5, 2),
        (".byte 0x74, 0x10", 5, 0x42),
        (".byte 0x0f, 0x84, 0, 0x10, 0, 0", 5, 0x42),
        (".byte 0xe2, 0x10", 5, 2),
        (".byte 0xe1, 0x10", 5, 0x42),
        (".byte 0xe0, 0x10", 5, 2),
        (".byte 0xe3, 0x10", 0, 2),
        (".byte 0x67, 0xe2, 0x10", 1 << 40, 2),
        (".byte 0x67, 0xe3, 0x10", 1 << 40, 2),
        (".byte 0x66, 0xe9, 0x10, 1, 0, 0", 5, 2),
    ],
)
def test_a_direct_branch_out_of_the_canonical_addresses_does_not_begin(code: str, rcx: int, rflags: int) -> None:
    guest, origin = last_page_guest(code)
    guest.context.gpr[RCX] = rcx
    guest.context.rflags = rflags
    assert fault_of(guest) == (GP, origin)
    assert (guest.context.gpr[RCX], guest.context.gpr[RSP]) == (rcx, STACK)
    assert guest.memory.read(STACK - 8, 8) == b"\xee" * 8


@pytest.mark.parametrize(
    ("code", "rcx", "rflags"),
    [
        ("nop", 5, 2),
        (".byte 0x74, 0x10", 5, 2),
        (".byte 0xe2, 0x10", 1, 2),
        (".byte 0xe1, 0x10", 5, 2),
        (".byte 0xe0, 0x10", 5, 0x42),
        (".byte 0xe0, 0x10", 1, 2),
        (".byte 0xe3, 0x10", 5, 2),
        (".byte 0x74, 0x02", 5, 2),
    ],
)
def test_code_that_goes_on_there_faults_there(code: str, rcx: int, rflags: int) -> None:
    """A branch that is not taken does nothing wrong: the fault is the next instruction's."""
    guest, _ = last_page_guest(code)
    guest.context.gpr[RCX] = rcx
    guest.context.rflags = rflags
    assert fault_of(guest) == (GP, LAST_PAGE + 0x1000)


def test_an_interrupt_gate_to_no_canonical_address_is_not_entered() -> None:
    guest = Guest("int 0x40")
    guest.handler(0x40, "hlt", 0x110000)
    gate = 0x200000 + 16 * 0x40
    guest.memory.write(gate + 8, struct.pack("<I", WRONG >> 32))
    assert fault_of(guest) == (GP, CODE)
    assert guest.context.gpr[RSP] == STACK


@pytest.mark.parametrize("code", ["jmp near", "ret", "jz near", "call near", "jmp rdi"])
def test_an_operand_size_prefix_changes_nothing_in_64_bit_mode(code: str) -> None:
    """Near branches have operands of 64 bits there (SDM volume 2, 2.2.1.6); Intel's processors ignore 66."""
    branch = {
        "jmp near": ".byte 0x66, 0xe9, 2, 0, 0, 0",
        "call near": ".byte 0x66, 0xe8, 2, 0, 0, 0",
        "jz near": ".byte 0x66, 0x0f, 0x84, 2, 0, 0, 0",
        "ret": ".byte 0x66, 0xc3",
        "jmp rdi": ".byte 0x66, 0xff, 0xe7",
    }[code]
    guest = Guest(f"{branch}\n ud2\n hlt")
    guest.context.rflags = 0x42
    there = CODE + len(assemble(branch)) + 2
    guest.context.gpr[RDI] = there
    guest.memory.write(STACK, struct.pack("<Q", there))
    assert guest.run() == ExitReason.HLT
    assert guest.context.rip == there
    assert guest.context.gpr[RSP] == STACK + {"ret": 8, "call near": -8}.get(code, 0)


@pytest.mark.parametrize(("code", "size"), [("ret 0x8000", 8), ("retfq 0x9000", 16)])
def test_a_return_releases_up_to_65535_bytes(code: str, size: int) -> None:
    guest = Guest(code)
    guest.memory.write(STACK, struct.pack("<QQ", 0x110000, SELECTOR_CODE))
    guest.memory.write(0x110000, b"\xf4")
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RSP] == STACK + size + int(code.split()[1], 16)


# --- The limit of the code segment ------------------------------------------------------------------------------------

BASE = 0x10000
LIMIT = 0x7FFF


def legacy_guest(code: str, at: int, *, bits: int, limit: int = LIMIT) -> Guest:
    """Protected mode of 16 or 32 bits (or, ``bits`` 8, real mode), with ``code`` at this offset of its segment."""
    guest = Guest()
    context = guest.context
    context.efer = 0
    context.cr0 = 0x10 if bits == 8 else 0x11
    context.set_segment(Segment.CS, BASE >> 4 if bits == 8 else 8, BASE, limit, 0x409B if bits == 32 else 0x9B)
    for segment in (Segment.SS, Segment.DS, Segment.ES, Segment.FS, Segment.GS):
        context.set_segment(segment, 0x10, 0, 0xFFFFFFFF, 0xC093)
    guest.memory.write(BASE + at, assemble(code, at, 32 if bits == 32 else 16))
    context.rip = at
    context.gpr[RAX], context.gpr[RCX], context.gpr[RSP], context.gpr[RSI] = LIMIT + 1, 3, STACK, PLACE
    guest.memory.write(PLACE, struct.pack("<I", LIMIT + 1))
    guest.memory.write(STACK, struct.pack("<IIII", LIMIT + 1, LIMIT + 1, 0, 0))
    guest.memory.write(STACK - 8, b"\xee" * 8)
    context.rflags = 0x42
    return guest


BEYOND = (
    "jmp ax",
    "call ax",
    "jmp [esi]",
    "call [esi]",
    "ret",
    "ret 4",
    "jmp . + 0x100",
    "call . + 0x100",
    "jz . + 0x100",
    "jz . + 0x20",
    "jmp . + 0x20",
    "loop . + 0x20",
    "loope . + 0x20",
    "jecxz . + 0x20",
)


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("code", BEYOND)
def test_a_branch_beyond_the_limit_does_not_begin(code: str, bits: int) -> None:
    if bits == 32:
        code = code.replace(" ax", " eax").replace("[esi]", "dword ptr [esi]")
    else:
        code = code.replace("[esi]", "word ptr [esi]")
    at = LIMIT - 0x10
    guest = legacy_guest(code, at, bits=bits)
    counter = 0 if "cxz" in code else 3
    guest.context.gpr[RCX] = counter
    assert fault_of(guest) == (GP, at)
    assert (guest.context.gpr[RSP], guest.context.gpr[RCX]) == (STACK, counter)
    assert guest.memory.read(STACK - 8, 8) == b"\xee" * 8


@pytest.mark.parametrize("bits", [8, 16, 32])
def test_a_branch_to_the_limit_is_taken(bits: int) -> None:
    guest = legacy_guest("jmp . + 0x10", LIMIT - 0x10, bits=bits)
    guest.memory.write(BASE + LIMIT, b"\xf4")
    assert guest.run() == ExitReason.HLT
    assert guest.context.rip == LIMIT


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("length", [1, 2, 4])
def test_code_is_executed_up_to_the_limit(bits: int, length: int) -> None:
    """The instructions before the one that is not wholly in the segment are executed."""
    instruction = {1: b"\x43", 2: b"\xfe\xc3", 4: b"\x83\x43\x08\x01"}[length]
    at = LIMIT + 1 - 2 * length + length // 2
    guest = legacy_guest("nop", at - 3, bits=bits)
    guest.memory.write(BASE + at - 3, b"\x43\x43\x43" + instruction * 4)
    guest.context.gpr[RBX] = 0
    assert fault_of(guest) == (GP, at + length * (2 if length == 1 else 1))
    assert guest.context.gpr[RBX] == {1: 5, 2: 4, 4: 3}[length]


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("code", ["far_jump", "far_return", "far_call", "iret"])
def test_a_far_transfer_beyond_the_limit_does_not_begin(code: str, bits: int) -> None:
    selector = BASE >> 4 if bits == 8 else SELECTOR_CODE
    guest = legacy_guest("nop", 0, bits=bits)
    guest.memory.write(0x1000 + SELECTOR_CODE, struct.pack("<HHBBBB", LIMIT, BASE & 0xFFFF, BASE >> 16, 0x9B, 0x40, 0))
    wide = "<HH" if bits == 8 else "<IH"
    pointer = struct.pack(wide, LIMIT + 1, selector)
    source = {
        "far_jump": "jmp {} ptr [esi]",
        "far_call": "call {} ptr [esi]",
        "far_return": "retf",
        "iret": "iret",
    }[code].format("dword" if bits == 8 else "fword")
    guest.memory.write(BASE, assemble(source, 0, 16 if bits == 8 else 32))
    guest.memory.write(PLACE, pointer)
    flags = struct.pack("<H" if bits == 8 else "<I", 2)
    guest.memory.write(STACK, struct.pack("<HH" if bits == 8 else "<II", LIMIT + 1, selector) + flags)
    assert fault_of(guest) == (GP, 0)
    assert guest.context.gpr[RSP] == STACK
    assert guest.memory.read(STACK - 8, 8) == b"\xee" * 8


@pytest.mark.parametrize("straddles", [False, True])
@pytest.mark.parametrize("before", [1, 3])
def test_code_up_to_the_end_of_a_page_is_executed(straddles: bool, before: int) -> None:
    """A page fault of the next page is the next instruction's: RIP, CR2, and what was executed (SDM volume 3, 6.5)."""
    guest = Guest()
    table = 0x39000
    guest.put64(PAGE_TABLES + 0x2000 + 8 * 4, table | 3)
    guest.put64(table, 0x60003)  # 0x800000, and nothing behind it
    instruction = b"\x48\xff\xc3"  # inc rbx
    code = instruction * before + (b"\x83\xc3" if straddles else b"")
    origin = 0x801000 - len(code)
    guest.memory.write(0x61000 - len(code), code)
    guest.context.rip = origin
    guest.context.gpr[RBX] = 0
    assert fault_of(guest) == (14, origin + 3 * before)
    assert guest.context.gpr[RBX] == before
    assert guest.context.exit_qualification == 0x801000
