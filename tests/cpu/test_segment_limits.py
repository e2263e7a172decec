# SPDX-License-Identifier: GPL-2.0-or-later
"""Limits and types of data segments in 16- and 32-bit code: #GP(0), for the stack #SS(0) (SDM volume 3, 5.3 to 5.5)."""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import SELECTOR_CODE, Guest, assemble

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
CODE, BASE, LIMIT, TSS = 0x9000, 0x20000, 0xFFF, 0x2000
SS, GP = 12, 13
DATA, READ_ONLY, EXPAND_DOWN, EXECUTE_ONLY, NULL = 0x4093, 0x4091, 0x4097, 0x4099, 0x10000
SEGMENTS = {"ds": Segment.DS, "es": Segment.ES, "ss": Segment.SS, "fs": Segment.FS, "gs": Segment.GS}


def guest_of(code: str, *, bits: int = 32) -> Guest:
    """Protected mode without paging, or, with 8 bits, real mode; registers point at the segments' limit."""
    guest = Guest()
    context = guest.context
    context.efer = 0
    context.cr4 = 0x600
    context.cr0 = 0x10 if bits == 8 else 0x11
    context.set_segment(Segment.CS, SELECTOR_CODE, 0, 0xFFFFFFFF, 0xC09B if bits == 32 else 0x809B)
    for segment in SEGMENTS.values():
        context.set_segment(segment, 0x18, 0, 0xFFFFFFFF, 0xC093)
    guest.memory.write(CODE, assemble(f"{code}\n hlt", CODE, 32 if bits == 32 else 16))
    context.rip = CODE
    for register in range(8):
        context.gpr[register] = 0x8000
    context.exception_bitmap = 0xFFFFFFFF
    return guest


def outcome(guest: Guest) -> int | None:
    """The vector of the exception at the first instruction; None for none."""
    reason = guest.run()
    if reason == ExitReason.HLT:
        return None
    assert reason == ExitReason.EXCEPTION_NMI, ExitReason(reason)
    assert guest.context.rip == CODE
    return guest.context.interruption_info & 0xFF


# an instruction, the bytes of its operand, the register that points at it, the segment
ACCESSES = (
    ("mov al, [ebx]", 1, RBX, "ds"),
    ("mov [ebx], ax", 2, RBX, "ds"),
    ("mov eax, [ebx]", 4, RBX, "ds"),
    ("add [ebx], eax", 4, RBX, "ds"),
    ("lock add [ebx], eax", 4, RBX, "ds"),
    ("lock cmpxchg [ebx], ecx", 4, RBX, "ds"),
    ("lock bts dword ptr [ebx], 3", 4, RBX, "ds"),
    ("lock not word ptr [ebx]", 2, RBX, "ds"),
    ("xchg [ebx], ax", 2, RBX, "ds"),
    ("lock xadd [ebx], eax", 4, RBX, "ds"),
    ("cmpxchg8b [ebx]", 8, RBX, "ds"),
    ("lock cmpxchg8b [ebx]", 8, RBX, "ds"),
    ("mov eax, ds:[ebp]", 4, RBP, "ds"),
    ("mov eax, [ebp]", 4, RBP, "ss"),
    ("mov [esp], eax", 4, RSP, "ss"),
    ("pop eax", 4, RSP, "ss"),
    ("ret", 4, RSP, "ss"),
    ("popa", 32, RSP, "ss"),
    ("leave", 4, RBP, "ss"),
    ("mov eax, es:[ebx]", 4, RBX, "es"),
    ("mov eax, fs:[ebx]", 4, RBX, "fs"),
    ("mov gs:[ebx], eax", 4, RBX, "gs"),
    ("stosd", 4, RDI, "es"),
    ("lodsw", 2, RSI, "ds"),
    ("movsd", 4, RDI, "es"),
    ("movsd", 4, RSI, "ds"),
    ("cmpsb", 1, RDI, "es"),
    ("scasd", 4, RDI, "es"),
    ("xlatb", 1, RBX, "ds"),
    ("push dword ptr [ebx]", 4, RBX, "ds"),
    ("pop dword ptr [ebx]", 4, RBX, "ds"),
    ("call dword ptr [ebx]", 4, RBX, "ds"),
    ("les eax, [ebx]", 6, RBX, "ds"),
    ("bound eax, [ebx]", 8, RBX, "ds"),
    ("sgdt [ebx]", 6, RBX, "ds"),
    ("fld dword ptr [ebx]", 4, RBX, "ds"),
    ("fst qword ptr [ebx]", 8, RBX, "ds"),
    ("fstp tbyte ptr [ebx]", 10, RBX, "ds"),
    ("fild word ptr [ebx]", 2, RBX, "ds"),
    ("fistp qword ptr [ebx]", 8, RBX, "ds"),
    ("fnstcw [ebx]", 2, RBX, "ds"),
    ("fnstenv [ebx]", 28, RBX, "ds"),
    ("data16 fnstenv [ebx]", 14, RBX, "ds"),
    ("fnsave [ebx]", 108, RBX, "ds"),
    ("frstor [ebx]", 108, RBX, "ds"),
    ("fxsave [ebx]", 512, RBX, "ds"),
    ("movups xmm0, [ebx]", 16, RBX, "ds"),
    ("movups [ebx], xmm0", 16, RBX, "ds"),
    ("movq [ebx], xmm0", 8, RBX, "ds"),
    ("addsd xmm0, [ebx]", 8, RBX, "ds"),
    ("movd xmm0, [ebx]", 4, RBX, "ds"),
    ("pextrb [ebx], xmm0, 3", 1, RBX, "ds"),
    ("pinsrw xmm0, [ebx], 3", 2, RBX, "ds"),
    ("movq mm0, [ebx]", 8, RBX, "ds"),
    ("mov ax, [0x8000]", 2, -1, "ds"),
)


def limited(code: str, size: int, register: int, segment: str, beyond: int) -> Guest:
    """A guest whose operand ends this many bytes beyond the limit."""
    guest = guest_of(code)
    limit = LIMIT if register >= 0 else 0x8000 + size - 1 - beyond
    guest.context.set_segment(SEGMENTS[segment], 0x18, BASE, limit, DATA)
    if register >= 0:
        guest.context.gpr[register] = LIMIT + 1 - size + beyond
    for place in (BASE + LIMIT + 1 - size, 0x8000):
        if code == "ret" or "call" in code:
            guest.memory.write(place, struct.pack("<I", CODE + 0x10))
            guest.memory.write(CODE + 0x10, b"\xf4")
        if "les" in code:
            guest.memory.write(place, struct.pack("<IH", 0, 0x18))
    if "bound" in code:
        guest.memory.write(BASE + LIMIT + 1 - size, struct.pack("<ii", 0, 0x10000))
    return guest


@pytest.mark.parametrize(("code", "size", "register", "segment"), ACCESSES)
def test_an_access_ends_at_the_limit(code: str, size: int, register: int, segment: str) -> None:
    if code == "fxsave [ebx]":
        assert outcome(limited(code, size, register, segment, 16)) == GP
    else:
        assert outcome(limited(code, size, register, segment, 1)) == (SS if segment == "ss" else GP)
    assert outcome(limited(code, size, register, segment, 0)) is None


@pytest.mark.parametrize("code", ["push eax", "pusha", "call . + 5", "enter 0, 0", "pushf", "push dword ptr [ebx]"])
def test_the_stack_ends_at_its_limit(code: str) -> None:
    """An expand-down segment has its bytes above the limit: pushes run into it."""
    size = 32 if code == "pusha" else 4
    for room, expected in ((size - 1, SS), (size, None)):
        guest = guest_of(code)
        guest.context.set_segment(Segment.SS, 0x18, BASE, LIMIT, EXPAND_DOWN)
        guest.context.gpr[RSP] = LIMIT + 1 + room
        guest.memory.write(BASE + LIMIT - 64, b"\xee" * 96)
        assert outcome(guest) == expected, room
        if expected:
            assert guest.memory.read(BASE + LIMIT - 64, 96) == b"\xee" * 96
            assert guest.context.gpr[RSP] == LIMIT + 1 + room


@pytest.mark.parametrize(
    ("offset", "rights", "expected"),
    [
        (LIMIT, EXPAND_DOWN, GP),
        (LIMIT + 1, EXPAND_DOWN, None),
        (0xFFFC, EXPAND_DOWN, None),
        (0x1_0000, EXPAND_DOWN, None),
        (0xFFFC, EXPAND_DOWN & ~0x4000, None),
        (0xFFFD, EXPAND_DOWN & ~0x4000, GP),
        (0x1_0000, EXPAND_DOWN & ~0x4000, GP),
        (0, EXPAND_DOWN, GP),
    ],
)
def test_an_expand_down_segment_lies_above_its_limit(offset: int, rights: int, expected: int | None) -> None:
    guest = guest_of("mov eax, [ebx]")
    guest.context.set_segment(Segment.DS, 0x18, BASE, LIMIT, rights)
    guest.context.gpr[RBX] = offset
    assert outcome(guest) == expected


@pytest.mark.parametrize(
    ("code", "segment", "rights", "expected"),
    [
        ("mov eax, [ebx]", "ds", NULL, GP),
        ("mov [ebx], eax", "ds", NULL, GP),
        ("mov eax, fs:[ebx]", "fs", NULL, GP),
        ("mov gs:[ebx], eax", "gs", NULL, GP),
        ("stosb", "es", NULL, GP),
        ("mov eax, [ebx]", "ds", READ_ONLY, None),
        ("mov [ebx], eax", "ds", READ_ONLY, GP),
        ("add [ebx], eax", "ds", READ_ONLY, GP),
        ("lock add [ebx], eax", "ds", READ_ONLY, GP),
        ("cmp [ebx], eax", "ds", READ_ONLY, None),
        ("mov eax, gs:[ebx]", "gs", READ_ONLY, None),
        ("mov gs:[ebx], eax", "gs", READ_ONLY, GP),
        ("fstp qword ptr [ebx]", "ds", READ_ONLY, GP),
        ("fld qword ptr [ebx]", "ds", READ_ONLY, None),
        ("mov eax, [ebx]", "ds", 0x409B, None),
        ("mov [ebx], eax", "ds", 0x409B, GP),
    ],
)
def test_a_segment_has_rights(code: str, segment: str, rights: int, expected: int | None) -> None:
    guest = guest_of(code)
    guest.context.set_segment(SEGMENTS[segment], 0 if rights == NULL else 0x18, 0, 0xFFFFFFFF, rights | 0x8000)
    assert outcome(guest) == expected


@pytest.mark.parametrize(
    ("code", "rights", "expected"),
    [
        ("mov eax, cs:[ebx]", 0xC09B, None),
        ("mov cs:[ebx], eax", 0xC09B, GP),
        ("lock inc dword ptr cs:[ebx]", 0xC09B, GP),
        ("mov eax, cs:[ebx]", 0xC099, GP),
        ("mov eax, cs:[ebx]", 0x409B, GP),
    ],
)
def test_code_is_read_but_not_written(code: str, rights: int, expected: int | None) -> None:
    guest = guest_of(code)
    limit = 0xFFFFFFFF if rights & 0x8000 else 0xFFFF
    guest.context.set_segment(Segment.CS, SELECTOR_CODE, 0, limit, rights)
    guest.context.gpr[RBX] = 0x10_0000
    assert outcome(guest) == expected


@pytest.mark.parametrize(
    ("code", "register", "value", "expected"),
    [
        ("mov ax, [bx]", RBX, 0xFFFF, GP),
        ("mov al, [bx]", RBX, 0xFFFF, None),
        ("mov ax, [bp]", RBP, 0xFFFF, SS),
        ("mov ax, [ebx]", RBX, 0x10000, GP),
        ("mov eax, [ebx]", RBX, 0xFFFD, GP),
        ("mov cs:[ebx], al", RBX, 0x8000, None),
        ("mov cs:[ebx], al", RBX, 0x10000, GP),
        ("pop ax", RSP, 0xFFFF, SS),
        ("push ax", RSP, 1, SS),
        ("movsw", RSI, 0xFFFF, GP),
    ],
)
def test_real_mode_has_limits(code: str, register: int, value: int, expected: int | None) -> None:
    guest = guest_of(code, bits=8)
    guest.context.set_segment(Segment.CS, 0, 0, 0xFFFF, 0x9B)
    for segment in SEGMENTS.values():
        guest.context.set_segment(segment, BASE >> 4, BASE, 0xFFFF, 0x93)
    guest.context.gpr[register] = value
    assert outcome(guest) == expected


def test_real_mode_with_a_large_limit_has_none() -> None:
    """What boot loaders call unreal mode: the limit stays when PE is cleared."""
    guest = guest_of("mov eax, [ebx]", bits=8)
    guest.context.gpr[RBX] = 0x10_0000
    assert outcome(guest) is None


def test_64_bit_code_has_none() -> None:
    guest = Guest("mov rax, [rbx]\n mov rax, gs:[rbx]\n mov [rbp], rax\n mov cs:[rbx], rax\n hlt")
    for segment in (Segment.DS, Segment.ES, Segment.FS, Segment.GS):
        guest.context.set_segment(segment, 0, 0, 0, NULL)
    guest.context.gpr[RBX] = guest.context.gpr[RBP] = 0x8000
    guest.context.exception_bitmap = 0xFFFFFFFF
    assert guest.run() == ExitReason.HLT


def test_a_segment_register_that_is_loaded_counts_at_once() -> None:
    """The limit is looked at from the next instruction on, and no longer when a flat segment is back."""
    guest = guest_of(
        "mov eax, [ebx]\n mov ds, cx\n mov eax, [esi]\n mov ds, dx\n mov eax, [ebx]\n mov ds, cx\n mov eax, [ebx]"
    )
    descriptors = [0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x0040930000000FFF]
    guest.memory.write(0x1000, struct.pack("<5Q", *descriptors))
    guest.context.set_segment(Segment.GDTR, 0, 0x1000, 39, 0)
    guest.context.gpr[RBX], guest.context.gpr[RSI] = 0x8000, 0xFF0
    guest.context.gpr[RCX], guest.context.gpr[RDX] = 0x20, 0x18
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.interruption_info & 0xFF == GP
    assert guest.context.rip == CODE + 2 + 2 + 2 + 2 + 2 + 2


@pytest.mark.parametrize(("room", "expected"), [(19, SS), (20, None)])
def test_an_event_needs_room_on_the_inner_stack(room: int, expected: int | None) -> None:
    """Five items for a change of privilege: #SS with the stack's selector (SDM volume 3, 6.12.1)."""
    guest = guest_of("int 0x40")
    descriptors = [0, 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFFB000000FFFF, 0x00CFF3000000FFFF]
    descriptors.append(0x0040_9702_0000_0FFF)  # expand-down at BASE
    guest.memory.write(0x1000, struct.pack("<7Q", *descriptors))
    context = guest.context
    context.set_segment(Segment.GDTR, 0, 0x1000, 55, 0)
    context.set_segment(Segment.TR, 0x40, TSS, 0x67, 0x8B)
    guest.memory.write(TSS + 4, struct.pack("<IH", LIMIT + 1 + room, 0x30))
    guest.memory.write(CODE + 0x100, b"\xf4")
    guest.memory.write(0x200000 + 8 * 0x40, struct.pack("<HHBBH", CODE + 0x100, SELECTOR_CODE, 0, 0xEE, 0))
    context.set_segment(Segment.CS, 0x23, 0, 0xFFFFFFFF, 0xC0FB)
    for segment in SEGMENTS.values():
        context.set_segment(segment, 0x2B, 0, 0xFFFFFFFF, 0xC0F3)
    assert outcome(guest) == expected
