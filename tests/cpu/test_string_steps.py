# SPDX-License-Identifier: GPL-2.0-or-later
"""REP STOS and REP MOVS do many elements in one step; nothing shows that they do not go element by element.

What is expected is computed here element by element, as the SDM's description of REP has it (volume 2, REP/REPE/REPZ).
"""

from __future__ import annotations

import itertools
import random

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import FLAT_DATA, PAGE_TABLES, SELECTOR_DATA, Guest, assemble

RAX, RCX, RSI, RDI = 0, 1, 6, 7
AREA = 0x1000_0000
LENGTH = 0x8000
VALUE = 0x1122_3344_5566_7788
SIZES = {"b": 1, "w": 2, "d": 4, "q": 8}
COUNTS = (0, 1, 2, 3, 7, 8, 63, 513, 1025)


def area(guest: Guest) -> memoryview:
    return guest.memory.raw[AREA : AREA + LENGTH]


def filled(guest: Guest) -> bytearray:
    contents = bytearray(random.Random(1).randbytes(LENGTH))
    area(guest)[:] = contents
    return contents


def stored(contents: bytearray, target: int, count: int, size: int, step: int = 1) -> None:
    """What STOS leaves, element by element; offsets into the area."""
    element = (VALUE & (1 << 8 * size) - 1).to_bytes(8, "little")[:size]
    for index in range(count):
        at = target + step * index * size
        contents[at : at + size] = element


def moved(contents: bytearray, source: int, target: int, count: int, size: int, step: int = 1) -> None:
    """What MOVS leaves, element by element."""
    for index in range(count):
        offset = step * index * size
        element = contents[source + offset : source + offset + size]
        contents[target + offset : target + offset + size] = element


def run(guest: Guest, count: int, target: int, source: int = 0) -> None:
    gpr = guest.context.gpr
    gpr[RAX], gpr[RCX], gpr[RSI], gpr[RDI] = VALUE, count, AREA + source, AREA + target
    assert guest.run() == ExitReason.HLT
    assert gpr[RCX] == 0


@pytest.mark.parametrize("suffix", SIZES)
@pytest.mark.parametrize("backwards", [False, True], ids=["up", "down"])
def test_stos_stores_each_element(suffix: str, backwards: bool) -> None:
    size, step = SIZES[suffix], -1 if backwards else 1
    guest = Guest(f"{'std' if backwards else 'cld'}\n rep stos{suffix}\n hlt")
    start = guest.context.rip
    for count, offset in itertools.product(COUNTS, (0, 1, 0xFF7, 0xFFD)):
        target = offset + (0x2000 if backwards else 0)
        if backwards and count * size > target:
            continue
        contents = filled(guest)
        stored(contents, target, count, size, step)
        guest.context.rip = start
        run(guest, count, target)
        assert guest.context.gpr[RDI] == AREA + target + step * count * size
        assert area(guest) == contents, (count, offset)


@pytest.mark.parametrize("suffix", SIZES)
@pytest.mark.parametrize("backwards", [False, True], ids=["up", "down"])
def test_movs_moves_each_element(suffix: str, backwards: bool) -> None:
    """Also where source and target overlap: an element that was stored is loaded again."""
    size, step = SIZES[suffix], -1 if backwards else 1
    guest = Guest(f"{'std' if backwards else 'cld'}\n rep movs{suffix}\n hlt")
    start = guest.context.rip
    distances = (-0x1001, -9, -8, -1, 0, 1, 3, 8, 9, 64, 0xFFF, 0x1000)
    for count, offset, distance in itertools.product(COUNTS[:-1], (0x3100, 0x3FFB), distances):
        contents = filled(guest)
        moved(contents, offset, offset + distance, count, size, step)
        guest.context.rip = start
        run(guest, count, offset + distance, offset)
        gpr = guest.context.gpr
        assert gpr[RSI] == AREA + offset + step * count * size
        assert gpr[RDI] == AREA + offset + distance + step * count * size
        assert area(guest) == contents, (count, offset, distance)


@pytest.mark.parametrize("suffix", SIZES)
def test_one_page_by_two_addresses(suffix: str) -> None:
    """Overlap is of physical memory: here the second 2 MiB are the first ones again."""
    size = SIZES[suffix]
    guest = Guest(f"cld\n rep movs{suffix}\n hlt")
    guest.put64(PAGE_TABLES + 0x2000 + 8 * ((AREA >> 21) + 1), AREA | 0x83)
    start = guest.context.rip
    for distance in (1, size, 5 * size, 100):
        contents = filled(guest)
        moved(contents, 0x40, 0x40 + distance, 200, size)
        guest.context.rip = start
        run(guest, 200, 0x40 + distance + (2 << 20), 0x40)
        assert area(guest) == contents, distance


@pytest.mark.parametrize("suffix", SIZES)
@pytest.mark.parametrize("missing", [RSI, RDI])
def test_a_fault_is_that_of_its_element(suffix: str, missing: int) -> None:
    """#PF with the registers of the first element that does not fit; all before it is stored."""
    size = SIZES[suffix]
    boundary = AREA + (2 << 20)
    guest = Guest(f"cld\n rep movs{suffix}\n hlt")
    guest.handler(14, "mov r8d, 14\n mov r9, cr2\n hlt", 0x112000)
    guest.put64(PAGE_TABLES + 0x2000 + 8 * (boundary >> 21), 0)
    gpr, start = guest.context.gpr, guest.context.rip
    for fitting, rest in itertools.product((0, 1, 5, 700), range(size)):
        guest.context.rip = start
        gpr[8] = 0
        near, far = boundary - fitting * size - rest, AREA + 0x1003
        gpr[RCX], gpr[RSI], gpr[RDI] = 1000, *((near, far) if missing == RSI else (far, near))
        guest.memory.write(gpr[RSI], bytes(range(1, 251)) * 8 if missing == RDI else bytes(fitting * size))
        source = bytes(guest.memory.raw[gpr[RSI] : gpr[RSI] + fitting * size])
        was = gpr[RDI]
        assert guest.run() == ExitReason.HLT
        assert gpr[8] == 14
        assert gpr[9] == boundary, "the first byte that is not there"
        assert gpr[RCX] == 1000 - fitting
        assert gpr[missing] == near + fitting * size
        assert bytes(guest.memory.raw[was : was + fitting * size]) == source


def test_code_that_is_stored_is_executed() -> None:
    """Each page of code is written by REP, after what was there has run: NOPs become INCs."""
    guest = Guest(f"""
        mov r12d, 3
    again:
        mov rdi, {AREA}
        mov ecx, 64
        cld
        rep stosb
        mov byte ptr [rdi], 0xc3
        mov rbx, {AREA}
        call rbx
        xor al, 0x90 ^ 0xf8
        dec r12d
        jnz again
        pushfq
        pop r13
        hlt
    """)
    guest.context.gpr[RAX] = 0x90  # NOP, CLC, NOP
    guest.memory.write(AREA, b"\xf9" * 64 + b"\xc3")  # STC
    assert guest.run() == ExitReason.HLT
    assert guest.memory.raw[AREA] == 0x90

    guest.load(f"""
        mov rbx, {AREA}
        call rbx
        mov r10d, edx
        mov rdi, {AREA}
        lea rsi, [rip + better]
        mov ecx, 3
        cld
        rep movsb
        call rbx
        hlt
    better:
        mov dl, 2
        ret
    """)
    guest.memory.write(AREA, assemble("mov dl, 1\n ret", AREA))
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[10] & 0xFF, guest.context.gpr[2] & 0xFF) == (1, 2)


@pytest.mark.parametrize("what", ["stosb", "movsq"])
def test_a_data_breakpoint_is_met_at_its_element(what: str) -> None:
    """A trap behind the element that stores there (SDM volume 3, 18.2.5): RCX says how many are left."""
    size = SIZES[what[-1]]
    guest = Guest(f"cld\n rep {what}\n hlt")
    guest.handler(1, "hlt", 0x112000)
    guest.context.set_dr(0, AREA + 100 * size)
    guest.context.set_dr(7, 0x400 | 1 << 16 | 1)
    gpr = guest.context.gpr
    gpr[RCX], gpr[RSI], gpr[RDI] = 300, AREA + 0x2000, AREA
    assert guest.run() == ExitReason.HLT
    assert gpr[RCX] == 300 - 101
    assert gpr[RDI] == AREA + 101 * size


def test_the_trap_flag_traps_behind_each_element() -> None:
    guest = Guest("cld\n pushfq\n or qword ptr [rsp], 0x100\n popfq\n rep stosb\n hlt")
    guest.handler(1, "inc r8\n cmp r8, 20\n je 1f\n iretq\n 1: hlt", 0x112000)
    gpr = guest.context.gpr
    gpr[8], gpr[RCX], gpr[RDI] = 0, 100, AREA
    assert guest.run() == ExitReason.HLT
    assert gpr[RCX] == 80


@pytest.mark.parametrize("what", ["rep stosb", "rep movsb"])
def test_a_32_bit_address_is_32_bits(what: str) -> None:
    guest = Guest(f"cld\n addr32 {what}\n hlt")
    contents = filled(guest)
    gpr = guest.context.gpr
    gpr[RAX], gpr[RCX], gpr[RSI], gpr[RDI] = VALUE, 5 << 32 | 20, 7 << 32 | AREA + 100, 9 << 32 | AREA
    (stored if "stos" in what else moved)(*((contents, 0, 20, 1) if "stos" in what else (contents, 100, 0, 20, 1)))
    assert guest.run() == ExitReason.HLT
    assert (gpr[RCX], gpr[RDI]) == (0, AREA + 20)
    assert area(guest) == contents


def test_the_source_may_have_a_segment() -> None:
    guest = Guest("cld\n rep movsb byte ptr [rdi], byte ptr fs:[rsi]\n hlt")
    guest.context.set_segment(Segment.FS, SELECTOR_DATA, 0x1000, 0xFFFFFFFF, FLAT_DATA)
    contents = filled(guest)
    moved(contents, 0x1000, 0x2000, 100, 1)
    run(guest, 100, 0x2000, 0)
    assert area(guest) == contents
