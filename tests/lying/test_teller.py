# SPDX-License-Identifier: GPL-2.0-or-later
"""Which answers become lies: the same for the same calls, whatever happens between them, and again from a record."""

from __future__ import annotations

import pytest

from swtdx.lying.lie import parse, statuses
from swtdx.lying.teller import Teller

IO, RDMSR, MAP_GPA = "Instruction.IO", "Instruction.RDMSR", "MapGPA"
Call = tuple[str, dict[str, int], dict[str, int]]


def read(port: int, honest: int = 0x60, size: int = 1) -> Call:
    return IO, {"r12": size, "r13": 0, "r14": port}, {"r10": 0, "r11": honest}


def rdmsr(index: int, honest: int = 5) -> Call:
    return RDMSR, {"r12": index}, {"r10": 0, "r11": honest}


CALLS = [call for number in range(300) for call in (read(0x3FD), read(0xCFC, number, 4), rdmsr(number % 7))]


def told(*texts: str, calls: list[Call] = CALLS) -> tuple[list[str], list[dict[str, int]]]:
    lines: list[str] = []
    teller = Teller([parse(text) for text in texts], lines.append)
    return lines, [teller.lie(*call) for call in calls]


def test_one_call_of_one_port() -> None:
    lines, answers = told("IO 0x3fd: R11=0x61 @3", calls=[read(0x3FD), read(0x80), read(0x3FD), read(0x3FD)])
    assert lines == ["Instruction.IO 0x3fd: R11=0x61 @3"]
    assert answers == [{}, {}, {}, {"r11": 0x61}]


def test_lies_about_the_same_call_are_counted_each() -> None:
    _, answers = told("RDMSR 1: R11=0 @1", "RDMSR 1: R11=7 @2", "RDMSR: R11=9 @3", calls=[rdmsr(1)] * 4)
    assert answers == [{"r11": 0}, {"r11": 7}, {"r11": 9}, {}]


def test_a_status() -> None:
    call = (MAP_GPA, {"r12": 1 << 47, "r13": 0x1000}, {"r10": 0, "r11": 0})
    _, answers = told("MapGPA: RETRY every 2", calls=[call] * 4)
    assert answers == [{}, {"r10": 1}, {}, {"r10": 1}]


def test_the_same_seed_tells_the_same_lies_and_another_one_others() -> None:
    first = told("any: random 10% seed 1")
    assert first == told("any: random 10% seed 1")
    assert first[0] != told("any: random 10% seed 2")[0]
    assert 50 < len(first[0]) < 140  # of 900 calls


def test_a_lie_does_not_depend_on_other_calls() -> None:
    """As the calls of two virtual CPUs come in another order each time."""
    mixed, _ = told("any: random 10% seed 1")
    apart, _ = told("any: random 10% seed 1", calls=sorted(CALLS, key=lambda call: call[0]))
    assert sorted(mixed) == sorted(apart)


def test_a_record_repeats_the_run() -> None:
    lines, answers = told("any: random 10% seed 1")
    again, repeated = told(*lines)
    assert (again, repeated) == (lines, answers)


def test_only_what_the_guest_takes_becomes_a_lie() -> None:
    write = (IO, {"r12": 1, "r13": 1, "r14": 0x80, "r15": 7}, {"r10": 0, "r11": 30})
    _, answers = told("any: random", calls=[write] * 50)
    assert all(set(answer) == {"r10"} for answer in answers)
    _, answers = told("any: random", calls=[(RDMSR, {"r12": 1}, {"r11": 5})] * 50)  # the mask does not pass R10
    assert all(set(answer) == {"r11"} for answer in answers)
    _, answers = told("any: random", calls=[(RDMSR, {"r12": 1}, {})])
    assert answers == [{}]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_random_data_has_the_size_of_the_operand_and_statuses_are_those_of_the_specification(size: int) -> None:
    _, answers = told("any: random", calls=[read(0x80, size=size)] * 400)
    data = {answer["r11"] for answer in answers if "r11" in answer}
    assert max(data) == (1 << 8 * size) - 1
    assert 0 in data
    assert {answer["r10"] for answer in answers if "r10" in answer} == set(statuses().values()) - {0}
    assert 0x60 not in data  # the truth is not a lie


def test_a_guest_that_asks_for_endless_operands_does_not_grow_the_host() -> None:
    teller = Teller([parse("any: random 1% seed 1")])
    for index in range(70_000):
        teller.lie(*rdmsr(index))
    assert len(teller._nth) <= 65_537
