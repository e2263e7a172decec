# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions and events with more than one item of memory, of which one faults: nothing has happened.

A fault leaves the processor as it was before the instruction (SDM volume 3, 6.5). The items lie on both sides of a page
boundary, and EPT maps one of the two pages only, so that the fault is seen from outside, whatever the guest's mode.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import GDT, IDT, SELECTOR_CODE, SELECTOR_DATA, Guest, assemble, ept_map

BOUNDARY = 0x1000_0000
LARGE = 2 << 20
CODE = 0x9000
POINTER = 0x2000
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
CODE_32, DATA_32, CODE_16, DATA_16 = 0xC09B, 0xC093, 0x9B, 0x93


@dataclass(frozen=True)
class Case:
    """``size`` bytes from where RDI and RSP point, or, ``down``, below RSP, which has multiples of ``step``."""

    code: str
    size: int
    bits: int = 64
    step: int = 1
    down: bool = False
    fill: int = 0x1F1F_1F1F_1F1F_1F1F

    def __str__(self) -> str:
        return f"{self.code.replace(chr(10), ';')}, {self.bits} bits"


STORES = (
    Case("fxsave [rdi]", 512, step=16),
    Case("fxsave64 [rdi]", 512, step=16),
    Case("fxsave [edi]", 512, 32, step=16),
    Case("xsave [rdi]", 576, step=64),
    Case("xsaveopt64 [rdi]", 576, step=64),
    Case("fnsave [rdi]", 108),
    Case("data16 fnsave [rdi]", 94),
    Case("fnstenv [rdi]", 28),
    Case("data16 fnstenv [rdi]", 14),
    Case("maskmovdqu xmm0, xmm1", 16),
    Case("maskmovq mm0, mm1", 8),
    Case("sgdt [rdi]", 10),
    Case("sidt [rdi]", 10),
    Case("sgdt [edi]", 6, 32),
    Case("sidt [di]", 6, 16),
    Case("mov [rdi], rax", 8),
    Case("movups [rdi], xmm0", 16),
    Case("fstp tbyte ptr [rdi]", 10),
    Case("xchg [rdi], rax", 8),
    Case("lock xadd [rdi], rax", 8),
)
PUSHES = (
    Case("pusha", 32, 32, down=True),
    Case("pushaw", 16, 32, down=True),
    Case("pusha", 16, 16, down=True),
    Case("enter 0, 3", 32, down=True),
    Case("enter 0, 5", 24, 32, down=True),
    Case("enter 0, 2", 6, 16, down=True),
    Case("rex.w call fword ptr [rsi]", 16, down=True),
    Case("call fword ptr [rsi]", 8, down=True),
    Case("call fword ptr [esi]", 8, 32, down=True),
    Case("call dword ptr [si]\n", 4, 16, down=True),
    Case("int 0x40", 40, step=16, down=True),
    Case("int 0x40", 12, 32, down=True),
    Case("int 0x40", 6, 16, down=True),
    Case("push rax", 8, down=True),
)
LOADS = (
    Case("popa", 32, 32),
    Case("popaw", 16, 32),
    Case("popa", 16, 16),
    Case("fxrstor [rdi]", 512, step=16),
    Case("xrstor [rdi]", 576, step=64, fill=0),
    Case("frstor [rdi]", 108),
    Case("fldenv [rdi]", 28),
    Case("lgdt [rdi]", 10),
    Case("lss eax, [rdi]", 6),
    Case("movups xmm0, [rdi]", 16),
    Case("iretq", 40, step=8, fill=SELECTOR_CODE),
    Case("retfq", 16),
)


def set_mode(guest: Guest, bits: int) -> None:
    """Legacy modes run without paging; the real mode's segments begin below the boundary."""
    context = guest.context
    if bits == 64:
        return
    context.cr0 = 0x11 if bits == 32 else 0x10
    context.efer = 0
    code, data = (CODE_32, DATA_32) if bits == 32 else (CODE_16, DATA_16)
    limit = 0xFFFFFFFF if bits == 32 else 0xFFFF
    context.set_segment(Segment.CS, SELECTOR_CODE if bits == 32 else CODE >> 4, 0 if bits == 32 else CODE, limit, code)
    base = 0 if bits == 32 else BOUNDARY - 0x8000
    for segment in (Segment.SS, Segment.DS, Segment.ES):
        context.set_segment(segment, SELECTOR_DATA if bits == 32 else base >> 4 & 0xFFFF, base, limit, data)


def whole_guest(case: Case, start: int, missing: int | None) -> Guest:
    guest = Guest(ept=True)
    for page in range(0, BOUNDARY + LARGE, LARGE):
        if missing is None or page != missing - missing % LARGE:
            ept_map(guest.processor, guest.root, page, page, level=1)
    set_mode(guest, case.bits)
    context = guest.context
    guest.memory.write(CODE, assemble(f"{case.code}\n hlt", CODE, case.bits))
    context.rip = CODE if case.bits != 16 else 0
    offset = start if case.bits != 16 else start - (BOUNDARY - 0x8000)
    for index in range(8):
        context.gpr[index] = 0x1234_5678_9A00 + index
    context.gpr[RAX], context.gpr[RDX], context.gpr[RDI], context.gpr[RBP] = 3, 0, offset, offset + 64
    context.gpr[RSP] = offset + (case.size if case.down else 0)
    context.gpr[RSI] = POINTER
    pointer = (
        struct.pack("<HH", 0x100, CODE >> 4) if case.bits == 16 else struct.pack("<IH", CODE + 0x100, SELECTOR_CODE)
    )
    guest.memory.write(POINTER, struct.pack("<QH", CODE + 0x100, SELECTOR_CODE) if "rex.w" in case.code else pointer)
    if case.bits == 16:
        context.set_segment(Segment.DS, 0, 0 if "[si]" in case.code else BOUNDARY - 0x8000, 0xFFFF, DATA_16)
    guest.memory.write(CODE + 0x100, b"\xf4")
    gates = {
        64: struct.pack("<HHBBHII", CODE + 0x100, SELECTOR_CODE, 0, 0x8E, 0, 0, 0),
        32: struct.pack("<HHBBH", CODE + 0x100, SELECTOR_CODE, 0, 0x8E, 0),
        16: struct.pack("<HH", 0x100, CODE >> 4),
    }
    guest.memory.write(IDT + 0x40 * len(gates[case.bits]), gates[case.bits])
    if case.bits == 32:
        guest.memory.write(GDT + SELECTOR_CODE, struct.pack("<Q", 0x00CF9B000000FFFF))
    context.cr4 = 0x40620 if case.bits == 64 else 0x600
    context.xcr0 = 3
    image = bytearray(context.get_fpu())
    image[:2] = struct.pack("<H", 0x37F)
    image[160:192] = b"\x55" * 16 + b"\xff" * 16  # XMM1: the masks
    image[32 + 16 : 32 + 24] = b"\xff" * 8  # MM1
    image[4] = 0xFF
    context.set_fpu(bytes(image))
    return guest


def state(guest: Guest) -> tuple[object, ...]:
    context = guest.context
    around = bytes(guest.memory.raw[BOUNDARY - 1024 : BOUNDARY + 1024])
    segments = [context.segment(index) for index in range(10)]
    return list(context.gpr), context.get_fpu(), segments, around, context.rip, context.rflags


def starts(case: Case) -> Iterator[int]:
    for before in range(1, case.size):
        if (BOUNDARY - before + case.size * case.down) % case.step == 0:
            yield BOUNDARY - before


@pytest.mark.parametrize("missing", [BOUNDARY - 1, BOUNDARY], ids=["lower page", "upper page"])
@pytest.mark.parametrize("case", STORES + PUSHES + LOADS, ids=str)
def test_a_fault_leaves_everything_as_it_was(case: Case, missing: int) -> None:
    tried = list(starts(case))
    assert tried
    for start in tried[:: max(1, len(tried) // 6)]:
        guest = whole_guest(case, start, missing)
        guest.memory.raw[BOUNDARY - 1024 : BOUNDARY + 1024] = struct.pack("<Q", case.fill) * 256
        before = state(guest)
        assert guest.run() == ExitReason.EPT_VIOLATION, hex(start)
        assert state(guest) == before, hex(start)


@pytest.mark.parametrize("case", STORES + PUSHES, ids=str)
def test_what_is_there_is_stored(case: Case) -> None:
    for start in list(starts(case))[::5]:
        guest = whole_guest(case, start, None)
        guest.memory.raw[BOUNDARY - 1024 : BOUNDARY + 1024] = b"\x1f" * 2048
        assert guest.run() == ExitReason.HLT, hex(start)
        around = guest.memory.raw
        assert bytes(around[BOUNDARY - 1024 : start]) == b"\x1f" * (start - BOUNDARY + 1024)
        assert bytes(around[start : start + case.size]) != b"\x1f" * case.size
        end = start + case.size
        assert bytes(around[end : BOUNDARY + 1024]) == b"\x1f" * (BOUNDARY + 1024 - end)
