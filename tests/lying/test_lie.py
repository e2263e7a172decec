# SPDX-License-Identifier: GPL-2.0-or-later
"""What a host may be asked to lie about, and one sentence for what cannot."""

from __future__ import annotations

import doctest

import pytest

from swtdx.inject.injection import When
from swtdx.lying import lie as lies
from swtdx.lying.lie import LieError, parse


def test_the_examples_of_the_docstring() -> None:
    assert doctest.testmod(lies).failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Instruction.IO 0x3fd: R11=0x61 @3", ("Instruction.IO", 0x3FD, "r11", 0x61, When(3, 3))),
        ("io 1021: r11=97", ("Instruction.IO", 1021, "r11", 97, When())),
        ("CPUID 0x40000000: R12=0x40000010", ("Instruction.CPUID", 0x40000000, "r12", 0x40000010, When())),
        ("MapGPA: RETRY every 2", ("MapGPA", None, "r10", 1, When(every=2))),
        ("wrmsr: INVALID_OPERAND", ("Instruction.WRMSR", None, "r10", 1 << 63, When())),
        ("any: random 1% seed 7", ("any", None, None, None, When(chance=0.01, seed=7))),
        ("Virtqueue 0x100: LENGTH=0xffff @2", ("Virtqueue", 0x100, "length", 0xFFFF, When(2, 2))),
        ("interrupt: vector=0x80 @3+", ("Interrupt", None, "vector", 0x80, When(3, None))),
        ("Clock: SKIP=0xffffffffffffffff", ("Clock", None, "skip", (1 << 64) - 1, When())),
        ("Page: TAKE=0x1000 @1", ("Page", None, "take", 0x1000, When(1, 1))),
        ("Acpi 0x24: BYTE=255", ("Acpi", 0x24, "byte", 255, When())),
        ("Virtqueue: random 10%", ("Virtqueue", None, None, None, When(chance=0.1))),
        ("HLT: random", ("Instruction.HLT", None, None, None, When())),
    ],
)
def test_a_lie(text: str, expected: tuple[object, ...]) -> None:
    found = parse(text)
    assert (found.function, found.operand, found.register, found.value, found.when) == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["as in Instruction.IO"]),
        ("any", ["as in Instruction.IO"]),
        ("any:", ["as in Instruction.IO"]),
        ("IO 1 2: random", ["as in Instruction.IO"]),
        ("MapGAP: RETRY", ["no call 'MapGAP'", "did you mean MapGPA?"]),
        ("frob: RETRY", ["no call 'frob'", "Instruction.RDMSR"]),
        ("any 1: random", ["any has no operand"]),
        ("HLT 1: random", ["no operand"]),
        ("RDMSR x: random", ["x is not a number"]),
        ("RDMSR: maybe", ["maybe is not an answer", "RETRY"]),
        ("RDMSR: R12=1", ["R10, R11, not in R12"]),
        ("RDMSR: R11=0x11112222333344445", ["not an answer"]),
        ("RDMSR: R11=99999999999999999999", ["more than 64 bits"]),
        ("RDMSR: R11=1 sometimes", ["sometimes does not say when"]),
        ("RDMSR: R11=1 gpa 0x1000", ["gpa does not say when"]),
        ("Virtqueue: RETRY", ["RETRY is not an answer: ID=0x61, random"]),
        ("Virtqueue: R10=1", ["answered in ID, LENGTH", "not in R10"]),
        ("Clock 1: SKIP=1", ["Clock has no operand"]),
        ("Interrupt: VECTOR=1 gpa 0x1000", ["gpa does not say when"]),
        ("RDMSR: R11=1 @0", ["counted from 1"]),
    ],
)
def test_one_sentence_for_what_is_not_a_lie(text: str, words: list[str]) -> None:
    with pytest.raises(LieError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
