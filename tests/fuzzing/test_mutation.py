# SPDX-License-Identifier: GPL-2.0-or-later
"""What is drawn is a lie: readable, about something that there is, and never the truth."""

from __future__ import annotations

import pytest

from swtdx.fuzzing.host import Host
from swtdx.fuzzing.mutation import changed
from swtdx.lying.lie import parse

PAGES = (0x1000, 0x2000)
OFFERED = {
    "interrupts": ("Interrupt", 0, {"vector": 0}, ()),
    "time": ("Clock", 0, {"skip": 0}, ()),
    "acpi": ("Acpi", 0x24, {"byte": 0xFF}, ()),
    "ve": ("Page", 0, {"take": 0x1000}, PAGES),
}
VALUES = [("special", n) for n in range(8)] + [("near", n) for n in range(-8, 9)] + [("small", 0), ("any", 0)]


@pytest.mark.parametrize("kind", OFFERED)
@pytest.mark.parametrize("value", VALUES, ids=str)
def test_the_truth_is_not_drawn(kind: str, value: tuple[str, int]) -> None:
    host = Host({kind})
    function, operand, honest, values = OFFERED[kind]
    host.offer(function, operand, honest, values)
    (text,) = changed((), [("add", 0, 0, 0, 0, value)], host, [])
    lie = parse(text)
    assert lie.function == function
    assert lie.register is not None
    assert lie.value != honest[lie.register]


def test_a_port_is_not_told_the_truth_either() -> None:
    host = Host()
    registers = {"r10": 0, "r11": 30, "r12": 1, "r13": 0, "r14": 0x700}
    host.begin((), 10, lambda: None)
    host.lie("Instruction.IO", registers, {"r10": 0, "r11": 0xFF})
    for register in range(2):
        for value in VALUES:
            (text,) = changed((), [("add", 0, 0, 0, register, value)], host, [])
            lie = parse(text)
            assert (lie.register, lie.value) not in {("r10", 0), ("r11", 0xFF)}


def test_each_kind_is_drawn_as_often_as_another_whatever_it_has() -> None:
    host = Host({"acpi", "time"})
    for offset in range(500):
        host.offer("Acpi", offset, {"byte": 0})
    host.offer("Clock", 0, {"skip": 0})
    drawn = [changed((), [("add", 0, site, 1, 0, ("any", 7))], host, [])[0].split()[0] for site in range(1000)]
    assert drawn.count("Clock:") == 500
