# SPDX-License-Identifier: GPL-2.0-or-later
"""Each rule with calls that break it and calls that do not. What a function takes is the GHCI specification's."""

from __future__ import annotations

import pytest

from swtdx.lint.call import Vmcall, table
from swtdx.lint.report import Findings
from swtdx.lint.rules import Hit, answered, hits
from swtdx.lint.symbols import none

CPUID, HLT, IO, RDMSR, WRMSR, MMIO = 10, 12, 30, 31, 32, 48
MAP_GPA, GET_QUOTE, FATAL, EVENT = 0x10001, 0x10002, 0x10003, 0x10004
QUOTE = {"in_len": 1024, "status": 0, "out_len": 0, "behind": 0}


def call(function: int, *, mask: int = 0xFC00, memory: dict[str, int] | None = None, **registers: int) -> Vmcall:
    return Vmcall(function, mask, {"r10": 0, "r11": function & 0xFFFFFFFF, **registers}, 0x1000, None, memory or {})


RIGHT = [
    call(CPUID, r12=0x40000000, r13=0),
    call(HLT, r12=1),
    call(IO, r12=1, r13=1, r14=0x80, r15=0xFF),
    call(IO, r12=2, r13=1, r14=0xFFFF, r15=0xFFFF),
    call(IO, r12=4, r13=1, r14=0xCF8, r15=0xFFFFFFFF),
    call(IO, r12=1, r13=0, r14=0x3FD, r15=0),
    call(RDMSR, r12=0xC0000080),
    call(WRMSR, r12=0x6E0, r13=(1 << 64) - 1),
    call(MMIO, r12=8, r13=1, r14=0xFEC00000 | 1 << 47, r15=(1 << 64) - 1),
    call(MMIO, r12=4, r13=0, r14=0xFEC00000 | 1 << 47),
    call(MAP_GPA, r12=0x200000 | 1 << 47, r13=0x200000),
    call(GET_QUOTE, r12=0x200000 | 1 << 47, r13=0x2000, memory=QUOTE),
    call(FATAL, r12=1, r13=2, r14=3, r15=4, rbx=5, rdx=6, r8=7),
    call(EVENT, r12=0x20),
    call(-1, r11=1, r12=2, r13=3, r14=4),
    call(0x12345, rbx=1),  # not a function that the specification has: the host refuses it
]
WRONG = [
    (call(CPUID, r12=0x1_40000000, r13=0), "operand-bits", "Instruction.CPUID: R12", 1 << 32),
    (call(CPUID, r12=0, r13=0, r14=7), "unused-register", "Instruction.CPUID: R14", 7),
    (call(HLT, r12=0x10), "operand-bits", "Instruction.HLT: R12", 0x10),
    (call(IO, r12=1, r13=1, r14=0x80, r15=0x1FF), "operand-bits", "Instruction.IO, write of 1 byte: R15", 0x100),
    (call(IO, r12=2, r13=1, r14=0x80, r15=1 << 16), "operand-bits", "Instruction.IO, write of 2 bytes: R15", 1 << 16),
    (call(IO, r12=4, r13=1, r14=0x80, r15=-1 & (1 << 33) - 1), "operand-bits", "Instruction.IO, write of 4 bytes: R15",
     1 << 32),
    (call(IO, r12=1, r13=0, r14=0x80, r15=5), "unused-register", "Instruction.IO, read of 1 byte: R15", 5),
    (call(IO, r12=1, r13=0, r14=0x10080), "operand-bits", "Instruction.IO, read of 1 byte: R14", 0x10000),
    (call(IO, r12=3, r13=0, r14=0x80), "length", "Instruction.IO", 3),
    (call(MMIO, r12=16, r13=0, r14=1 << 47), "length", "VE.RequestMMIO", 16),
    (call(RDMSR, r12=0xFFFFFFFF00000010), "operand-bits", "Instruction.RDMSR: R12", 0xFFFFFFFF << 32),
    (call(RDMSR, r12=0x10, r13=9), "unused-register", "Instruction.RDMSR: R13", 9),
    (call(MMIO, r12=4, r13=1, r14=1 << 47, r15=1 << 40), "operand-bits", "VE.RequestMMIO, write of 4 bytes: R15",
     1 << 40),
    (call(MMIO, r12=4, r13=0, r14=1 << 47, r15=1), "unused-register", "VE.RequestMMIO, read of 4 bytes: R15", 1),
    (call(HLT, r12=0, rbx=0xFFFF8880), "unused-register", "Instruction.HLT: RBX", 0xFFFF8880),
    (call(HLT, r12=0, rdi=1), "unused-register", "Instruction.HLT: RDI", 1),
    (call(HLT, mask=0x3FC00, r12=0), "xmm", "Instruction.HLT", 3),
    (call(MAP_GPA, r12=1 << 47, r13=0x1234), "length", "MapGPA: R13", 0x1234),
    (call(MAP_GPA, r12=1 << 47, r13=0), "length", "MapGPA: R13", 0),
    (call(MAP_GPA, r12=1 << 47, r13=0x1000, r14=1), "unused-register", "MapGPA: R14", 1),
    (call(MAP_GPA, r12=1 << 47, r13=0x1000, memory={"filled": 1}), "private-contents", "MapGPA", 0),
    (call(GET_QUOTE, r12=1 << 47, r13=0x1000, memory=QUOTE | {"behind": 3}), "quote-padding", "GetQuote: buffer", 0),
    (call(GET_QUOTE, r12=1 << 47, r13=0x1000, memory=QUOTE | {"out_len": 9}), "quote-padding", "GetQuote: out_len", 9),
    (call(GET_QUOTE, r12=1 << 47, r13=0x1000, memory=QUOTE | {"status": 1}), "quote-padding", "GetQuote: status", 1),
    (call(GET_QUOTE, r12=1 << 47, r13=0x1000, memory=QUOTE | {"in_len": 4073}), "length", "GetQuote: in_len", 4073),
    (call(-1, r11=1, r12=2, r13=3, r14=4, r15=5), "unused-register", "KVM hypercall: R15", 5),
]  # fmt: skip


@pytest.mark.parametrize("right", RIGHT, ids=lambda right: f"{right.name}-{right.exposed}")
def test_a_call_that_passes_what_its_function_takes_is_right(right: Vmcall) -> None:
    assert list(hits(right)) == []


@pytest.mark.parametrize(("wrong", "rule", "what", "bits"), WRONG, ids=[f"{rule}-{what}" for _, rule, what, _ in WRONG])
def test_a_call_that_passes_more(wrong: Vmcall, rule: str, what: str, bits: int) -> None:
    (hit,) = hits(wrong)
    assert (hit.rule, hit.what, hit.bits) == (rule, what, bits)


def test_each_rule_is_tried() -> None:
    answers = {"answer-bits", "answer-half"}  # below
    assert {rule for _, rule, _, _ in WRONG} | answers == set(table()["rules"])


def registers(**named: int) -> tuple[int, ...]:
    order = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{number}" for number in range(8, 16)))
    return tuple(named.get(name, 0) for name in order)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_an_instruction_takes_its_operand_and_no_more(size: int) -> None:
    mask = (1 << 8 * size) - 1
    reads = call(IO, r12=size, r13=0, r14=0x80)
    before = registers(rax=0x1234 << 40)
    assert list(answered(reads, before, registers(rax=0x1234 << 40 | mask))) == []
    assert list(answered(reads, before, registers(rax=mask))) == []  # a processor clears the upper half for 4 bytes
    (hit,) = answered(reads, before, registers(rax=0x1234 << 40 | 2 * mask + 1))
    assert (hit.rule, hit.bits, hit.operand) == ("answer-bits", mask + 1, mask)


def test_the_upper_half_of_cpuid_is_a_note() -> None:
    asks = call(CPUID, r12=0x40000000, r13=0)
    found = list(answered(asks, registers(), registers(rax=1, rbx=1 << 32 | 5, rdx=0xFFFFFFFF)))
    assert [(hit.rule, hit.what) for hit in found] == [("answer-half", "Instruction.CPUID: R13 to RBX")]
    findings = Findings()
    findings.add(asks, found)
    assert findings.all() == []
    findings = Findings(notes=True)
    findings.add(asks, found)
    assert (len(findings.all()), findings.leaks) == (1, 0)


def test_each_kind_is_reported_once_with_count_places_and_all_bits() -> None:
    findings = Findings()
    for place, bits in ((0x10, 0x100), (0x20, 0x100), (0x20, 0x300)):
        wrong = Vmcall(IO, 0xFC00, {}, place)
        findings.add(wrong, [Hit("operand-bits", "x", bits, 0xFF, f"R15 = {bits:#x}")], lambda: "out 80h,al")
    (found,) = findings.as_json(lambda address: f"name{address:x}")["findings"]
    assert (found["count"], found["bits"], found["mask"], found["example"]) == (3, "0x300", "0x3ff", "R15 = 0x100")
    assert found["instruction"] == "out 80h,al"
    assert found["places"] == [
        {"address": "0x20", "symbol": "name20", "count": 2},
        {"address": "0x10", "symbol": "name10", "count": 1},
    ]
    assert any("out 80h,al at 0x10" in line for line in findings.lines(none))


def test_a_guest_that_makes_endless_kinds_of_calls_does_not_grow_the_report() -> None:
    findings = Findings(notes=True)
    for number in range(5000):
        for function in (number + 0x20000, IO, MMIO, GET_QUOTE):
            wrong = call(function, mask=0xFFFFFFFF, r12=number * 0x1001, r13=number, r14=number << 20, rbx=number + 1)
            findings.add(wrong, hits(wrong))
            findings.entered_at(number)
    assert len(findings.all()) < 60
    assert len(findings.system_call_entries) == 64


def test_a_guest_that_makes_endless_kinds_of_places_does_not_grow_the_report() -> None:
    findings = Findings()
    for place in range(10_000):
        findings.add(Vmcall(IO, 0xFC00, {}, place), [Hit("operand-bits", "x", 1)])
    (found,) = findings.all()
    assert (found.count, len(found.places)) == (10_000, 64)
