# SPDX-License-Identifier: GPL-2.0-or-later
"""Coverage: which blocks a guest reaches for the first time, and nothing for who does not ask."""

from __future__ import annotations

import pytest

from swtdx.cpu.vmx import ExitReason
from testing.bare_processor import CODE, Guest

TWO_WAYS = """
    test rcx, rcx
    jz elsewhere
    mov rbx, 1
    hlt
elsewhere:
    mov rbx, 2
    hlt
"""
TAKEN, NOT_TAKEN = CODE + 5, CODE + 13  # of the assembled code: test 3, jz 2, mov 7, hlt 1 bytes


def went(guest: Guest, rcx: int) -> int:
    """Run from the start: RBX."""
    context = guest.context
    context.rip = CODE
    context.gpr[1] = rcx
    assert guest.run() == ExitReason.HLT
    return context.gpr[3]


@pytest.fixture
def guest() -> Guest:
    return Guest(TWO_WAYS)


def test_each_block_is_told_once(guest: Guest) -> None:
    processor = guest.processor
    processor.cover()
    assert went(guest, 1) == 1
    assert TAKEN in processor.covered()  # the first block of all is not told: it follows none
    assert went(guest, 1) == 1
    assert processor.covered() == set()
    assert went(guest, 0) == 2
    assert processor.covered() == {NOT_TAKEN}


def test_nothing_is_noted_before_it_is_asked_for(guest: Guest) -> None:
    assert went(guest, 1) == 1
    assert guest.processor.covered() == set()
    guest.processor.cover()
    guest.processor.cover()  # once is enough
    assert went(guest, 0) == 2
    assert guest.processor.covered() == {NOT_TAKEN}


def test_code_that_changed_is_told_again(guest: Guest) -> None:
    processor = guest.processor
    processor.cover()
    went(guest, 1)
    processor.covered()
    guest.load(TWO_WAYS)
    went(guest, 1)
    assert {CODE, TAKEN} <= processor.covered()
