# SPDX-License-Identifier: GPL-2.0-or-later
"""BMI1 and BMI2 at the edges of their operands, by the operation sections of the SDM (volume 2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.cpu.guest import Guest

RAX, RCX, RDX, RBX = 0, 1, 2, 3
CARRY, ZERO, SIGN, OVERFLOW = 1, 1 << 6, 1 << 7, 1 << 11
SOURCES = (0, 1, 1 << 31, 1 << 32, 1 << 63, 0xFFFF_FFFF, 0xFFFF_FFFF_0000_0000, 0x8765_4321_9ABC_DEF0, (1 << 64) - 1)
INDICES = (0, 1, 30, 31, 32, 33, 62, 63, 64, 65, 255)

Outcome = tuple[int, int, int]
"""The destination, the flags that are defined, and those of them that are set."""


def flags_of(value: int, bits: int) -> int:
    return (ZERO if not value else 0) | (SIGN if value >> bits - 1 & 1 else 0)


def bextr(source: int, control: int, bits: int) -> Outcome:
    start, length = control & 0xFF, control >> 8 & 0xFF
    value = source >> start & (1 << length) - 1 if start < bits else 0
    return value, CARRY | ZERO | OVERFLOW, ZERO if not value else 0


def bzhi(source: int, control: int, bits: int) -> Outcome:
    index = control & 0xFF
    value = source & (1 << index) - 1 if index < bits else source
    flags = flags_of(value, bits) | (CARRY if index > bits - 1 else 0)
    return value, CARRY | ZERO | SIGN | OVERFLOW, flags


def blsi(source: int, control: int, bits: int) -> Outcome:
    value = source & -source
    return value, CARRY | ZERO | SIGN | OVERFLOW, flags_of(value, bits) | (CARRY if source else 0)


def blsr(source: int, control: int, bits: int) -> Outcome:
    value = source & source - 1 & (1 << bits) - 1
    return value, CARRY | ZERO | SIGN | OVERFLOW, flags_of(value, bits) | (CARRY if not source else 0)


def pdep(source: int, control: int, bits: int) -> Outcome:
    """The bits of the control to where the source, which is the mask, has ones."""
    value = taken = 0
    for at in range(bits):
        if source >> at & 1:
            value |= (control >> taken & 1) << at
            taken += 1
    return value, 0, 0


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize(
    ("text", "model"),
    [
        ("bextr {a}, {d}, {c}", bextr),
        ("bzhi {a}, {d}, {c}", bzhi),
        ("blsi {a}, {d}", blsi),
        ("blsr {a}, {d}", blsr),
        ("pdep {a}, {c}, {d}", pdep),
    ],
)
def test_a_field_at_the_edge_of_its_operand(text: str, model: Callable[[int, int, int], Outcome], bits: int) -> None:
    names = {32: ("eax", "ecx", "edx"), 64: ("rax", "rcx", "rdx")}[bits]
    guest = Guest()
    guest.load(text.format(a=names[0], c=names[1], d=names[2]) + "\n pushfq\n pop rbx\n hlt")
    start = guest.context.rip
    wrong = []
    for source in SOURCES:
        for control in {index | length << 8 for index in INDICES for length in INDICES}:
            guest.context.rip, guest.context.rflags = start, 2 | OVERFLOW
            guest.context.gpr[RDX], guest.context.gpr[RCX] = source, control
            guest.run()
            mask = (1 << bits) - 1
            value, defined, flags = model(source & mask, control & mask, bits)
            seen = guest.context.gpr[RAX], guest.context.gpr[RBX] & defined
            if seen != (value, flags):
                wrong.append(f"{source:#x}, {control:#x}: {seen[0]:#x} {seen[1]:#x}, not {value:#x} {flags:#x}")
    assert not wrong, "\n".join([str(len(wrong)), *wrong[:20]])
