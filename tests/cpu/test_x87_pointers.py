# SPDX-License-Identifier: GPL-2.0-or-later
"""The x87 instruction and operand pointers and opcode in each image that has them.

Expectations: SDM volume 1, 8.1.8 (which instructions count), 8.1.9.1 (the opcode is kept for unmasked exceptions only),
figures 8-9 to 8-12 (FNSTENV), table 10-2 (FXSAVE). What figure 8-9 calls reserved is all ones on processors.
"""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import SELECTOR_CODE, SELECTOR_DATA, Guest, assemble

DATA, IMAGE, REAL_CODE = 0x12340, 0x14000, 0x9000
ONES = 0xFFFF0000


def executed(source: str, first: str = "") -> tuple[Guest, int]:
    """A guest that ran ``first``, then ``source``, and where the latter began."""
    guest = Guest(f"fninit\n {first}\n last: {source}\n hlt")
    guest.memory.raw[IMAGE : IMAGE + 512] = b"\xaa" * 512
    before = assemble(f"fninit\n {first}\n last:")
    assert guest.run() == ExitReason.HLT
    return guest, 0x100000 + len(before)


def words(guest: Guest, form: str, offset: int = 0) -> tuple[int, ...]:
    size = struct.calcsize(form)
    return struct.unpack(form, bytes(guest.memory.raw[IMAGE + offset : IMAGE + offset + size]))


def test_fnstenv_in_protected_mode() -> None:
    guest, last = executed(f"fld qword ptr [{DATA}]\n fnstenv [{IMAGE}]")
    pointers = last, SELECTOR_CODE, DATA, ONES | SELECTOR_DATA
    assert words(guest, "<7I") == (ONES | 0x37F, ONES | 7 << 11, ONES | 0x7FFF, *pointers)
    guest, last = executed(f"fld qword ptr [{DATA}]\n data16 fnstenv [{IMAGE}]")
    assert words(guest, "<7H")[3:] == (last & 0xFFFF, SELECTOR_CODE, DATA & 0xFFFF, SELECTOR_DATA)


@pytest.mark.parametrize("store", ["fxsave", "xsave"])
@pytest.mark.parametrize("whole", [False, True])
def test_fxsave_has_whole_pointers_or_segments(store: str, *, whole: bool) -> None:
    prepare = "fninit\n xor edx, edx\n mov eax, 3\n"
    guest = Guest(f"{prepare} fld dword ptr [{DATA}]\n {store}{'64' if whole else ''} [{IMAGE}]\n hlt")
    guest.context.cr4 |= 1 << 18
    guest.context.xcr0 = 3
    last = 0x100000 + len(assemble(prepare))
    assert guest.run() == ExitReason.HLT
    segments = (0, 0) if whole else (SELECTOR_CODE << 32, SELECTOR_DATA << 32)
    assert words(guest, "<QQ", 8) == (last | segments[0], DATA | segments[1])
    assert words(guest, "<H", 6) == (0,), "no exception, no opcode"


@pytest.mark.parametrize("control", ["fnstcw [rsp]", "fldcw [rsp]", "fnstsw ax", "fnclex", "fwait", "fnop"])
def test_control_instructions_leave_the_pointers(control: str) -> None:
    first = f"fnstcw [rsp]\n fld dword ptr [{DATA}]"
    guest, after = executed(f"{control}\n fnstenv [{IMAGE}]", first)
    length = len(assemble(f"fld dword ptr [{DATA}]"))
    assert words(guest, "<4I", 12)[::2] == (after - length, DATA)


def test_an_instruction_without_memory_leaves_the_operand_pointer() -> None:
    guest, last = executed(f"fld1\n fnstenv [{IMAGE}]", f"fld dword ptr [{DATA}]")
    assert words(guest, "<4I", 12)[::2] == (last, DATA)


@pytest.mark.parametrize("initial", ["fninit", "fnsave [0x16000]"])
def test_fninit_clears_them(initial: str) -> None:
    guest, _ = executed(f"{initial}\n fnstenv [{IMAGE}]", f"fld dword ptr [{DATA}]")
    assert words(guest, "<4I", 12) == (0, 0, 0, ONES)


@pytest.mark.parametrize(
    ("source", "opcode"),
    [
        ("fdiv dword ptr [rbx]", 0x033),
        ("fdiv dword ptr [rbx + 8]", 0x073),
        ("fdiv qword ptr [rsp + rcx]", 0x434),
        ("fdiv st(0), st(1)", 0x0F1),
        ("fdivp st(1), st(0)", 0x6F9),
        ("fidiv word ptr [rbx]", 0x633),
    ],
)
@pytest.mark.parametrize("masked", [True, False])
def test_the_opcode_is_that_of_the_last_unmasked_exception(source: str, opcode: int, masked: bool) -> None:
    zeros = f"mov ebx, {DATA}\n mov qword ptr [rbx], 0\n mov qword ptr [rbx + 8], 0\n xor ecx, ecx\n push 0\n"
    first = zeros + ("" if masked else "push 0x37b\n fldcw [rsp]\n add rsp, 8\n")
    first += "fld1\n fldz\n" if "fdivp" in source else "fldz\n fld1\n"
    guest, last = executed(f"{source}\n fnstenv [{IMAGE}]", first)
    expected = 0 if masked else opcode
    assert words(guest, "<II", 12) == (last, SELECTOR_CODE | expected << 16)
    assert struct.unpack_from("<H", guest.context.get_fpu(), 6) == (expected,)


@pytest.mark.parametrize(
    ("load", "store", "form"),
    [
        ("fldenv [{0}]", "fnstenv [{1}]", "<4I"),
        ("data16 fldenv [{0}]", "data16 fnstenv [{1}]", "<4H"),
        ("frstor [{0}]", "fnsave [{1}]", "<4I"),
        ("fxrstor [{0}]", "fxsave [{1}]", "<HIIII"),
        ("fxrstor64 [{0}]", "fxsave64 [{1}]", "<HQQ"),
    ],
)
def test_what_is_restored_is_saved_again(load: str, store: str, form: str) -> None:
    source = 0x15000
    guest = Guest(f"fninit\n fnsave [{source}]\n fxsave [{source + 1024}]\n cpuid\n hlt")
    assert guest.run() == ExitReason.CPUID
    guest.skip()
    offset = {"fx": 6, "da": 6}.get(load[:2], 12)
    base = source + 1024 * load.startswith("fx")
    values = tuple((0x1111_2222_3333_4444 * (i + 1)) for i in range(5))
    sizes = {"<4I": (32, 27, 32, 16), "<4H": (16,) * 4, "<HIIII": (11, 32, 16, 32, 16), "<HQQ": (11, 64, 64)}[form]
    given = tuple(value & (1 << size) - 1 for value, size in zip(values, sizes, strict=False))
    guest.memory.write(base + offset, struct.pack(form, *given))
    guest.load(f"{load.format(base)}\n {store.format(base, IMAGE)}\n hlt")
    assert guest.run() == ExitReason.HLT
    expected = (*given[:3], given[3] | ONES) if form == "<4I" else given
    assert words(guest, form, offset) == expected


def test_the_state_that_is_exchanged_has_them() -> None:
    guest, last = executed(f"fld dword ptr [{DATA}]")
    image = guest.context.get_fpu()
    assert struct.unpack_from("<HQQ", image, 6) == (0, last, DATA)
    changed = bytearray(image)
    changed[6:24] = struct.pack("<HQQ", 0x123, 0xFFFF_8000_0000_1234, 0xFFFF_8000_0000_5678)
    guest.context.set_fpu(bytes(changed))
    assert guest.context.get_fpu() == bytes(changed)


@pytest.mark.parametrize("wide", [False, True])
def test_fnstenv_in_real_mode_has_linear_addresses(wide: bool) -> None:
    guest = Guest()
    context = guest.context
    prefix = "data32 " if wide else ""
    source = f"fninit\n last: fld dword ptr [0x2340]\n {prefix}fnstenv [0x3000]\n hlt"
    guest.memory.write(REAL_CODE, assemble(source, 0, 16))
    context.cr0, context.efer, context.rip = 0x10, 0, 0
    context.set_segment(Segment.CS, REAL_CODE >> 4, REAL_CODE, 0xFFFF, 0x9B)
    context.set_segment(Segment.DS, IMAGE - 0x3000 >> 4, IMAGE - 0x3000, 0xFFFF, 0x93)
    assert guest.run() == ExitReason.HLT
    last, operand = REAL_CODE + 2, IMAGE - 0x3000 + 0x2340
    if wide:
        reserved = ONES
        expected = reserved | last & 0xFFFF, last >> 16 << 12, reserved | operand & 0xFFFF, operand >> 16 << 12
        assert words(guest, "<4I", 12) == expected
    else:
        assert words(guest, "<4H", 6) == (last & 0xFFFF, last >> 16 << 12, operand & 0xFFFF, operand >> 16 << 12)
