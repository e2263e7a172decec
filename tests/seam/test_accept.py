# SPDX-License-Identifier: GPL-2.0-or-later
"""TDG.MEM.PAGE.ACCEPT: what the guest gets for each entry, and what the host learns when a page is missing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam import sept
from swtdx.seam.sept import SeptState
from swtdx.seam.status import Operand, StatusCode
from testing.seam.fake_host import GuestStep, Host

GPA = 0x8000_0000
ACCEPT = 6
INVALID = StatusCode.OPERAND_INVALID


@pytest.fixture
def td(host: Host) -> Any:
    return host.runnable()


def test_a_pending_page_becomes_zero_private_and_mapped(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = td
    host.tables(tdr, GPA)
    hpa = host.write(b"secrets of the host")
    host.ok("TDH.MEM.PAGE.AUG", rcx=GPA, rdx=tdr, r8=hpa)
    rip = context.rip
    host.guest(tdvpr, context, call(ACCEPT, rcx=GPA))
    assert context.gpr[0] == 0
    assert context.rip == rip + context.instruction_length
    assert host.entry(tdr, GPA)[0] == hpa | 0x80000000000000F7
    assert host.memory.raw[hpa : hpa + 4096].tobytes() == bytes(4096)
    assert host.memory.key_of(hpa) == host.module.tds[tdr].hkid


def test_two_mebibytes(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = td
    hpa = host.augment(tdr, GPA, level=1)
    host.memory.write(hpa + 0x10_0000, b"x")
    host.guest(tdvpr, context, call(ACCEPT, rcx=GPA | 1))
    assert context.gpr[0] == 0
    assert host.entry(tdr, GPA, level=1) == (hpa | 0x80000000000000F7, 1)
    assert host.memory.raw[hpa : hpa + (1 << 21)].tobytes() == bytes(1 << 21)
    assert {host.memory.key_of(hpa + 4096 * n) for n in range(512)} == {host.module.tds[tdr].hkid}


@pytest.mark.parametrize("rcx", [GPA | 2, GPA | 8, GPA | 1 << 52, GPA | 1 << 63, GPA + 4096 | 1, 1 << 47, 1 << 51])
def test_operand(host: Host, td: Any, call: Callable[..., GuestStep], rcx: int) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, call(ACCEPT, rcx=rcx))
    assert context.gpr[0] == INVALID | Operand.RCX


def test_twice_is_no_error(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = td
    host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(ACCEPT, rcx=GPA), call(ACCEPT, rcx=GPA))
    assert context.gpr[0] == StatusCode.PAGE_ALREADY_ACCEPTED | 0


def test_a_small_page_inside_an_accepted_large_one(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = td
    host.augment(tdr, GPA, level=1)
    host.guest(tdvpr, context, call(ACCEPT, rcx=GPA | 1), call(ACCEPT, rcx=GPA + 4096))
    assert context.gpr[0] == StatusCode.PAGE_ALREADY_ACCEPTED | 1


def test_a_large_page_where_small_ones_are(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = td
    host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(ACCEPT, rcx=GPA | 1))
    assert context.gpr[0] == StatusCode.PAGE_SIZE_MISMATCH | 1


def details(rdx: int) -> Any:
    """(type, required level, level where it ended, state, leaf) of an extended exit qualification."""
    info = rdx >> 32
    return rdx & 0xF, info & 7, info >> 3 & 7, info >> 6 & 0xFF, info >> 14 & 1


def test_a_page_that_is_not_there_is_asked_of_the_host(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = td
    rip = context.rip
    context.queue(call(ACCEPT, rcx=GPA | 1))
    status, args = host.enter(tdvpr)
    assert status == 48
    assert args.rcx == 2  # a write
    assert args.r8 == GPA
    assert details(args.rdx) == (1, 1, 3, 0, 0)
    assert context.rip == rip  # to be executed again


def test_a_small_page_inside_a_pending_large_one_is_asked_of_the_host(
    host: Host, td: Any, call: Callable[..., GuestStep]
) -> None:
    tdr, tdvpr, context = td
    host.augment(tdr, GPA, level=1)
    context.queue(call(ACCEPT, rcx=GPA + 4096))
    status, args = host.enter(tdvpr)
    assert (status, args.r8) == (48, GPA + 4096)
    assert details(args.rdx) == (1, 0, 1, sept.ARCH_STATE[SeptState.PENDING], 1)


def test_a_blocked_page_is_asked_of_the_host(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = td
    host.augment(tdr, GPA)
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)
    context.queue(call(ACCEPT, rcx=GPA))
    status, args = host.enter(tdvpr)
    assert status == 48
    assert details(args.rdx) == (1, 0, 0, sept.ARCH_STATE[SeptState.PENDING_BLOCKED], 1)


@pytest.mark.parametrize("state", [state.name for state in SeptState])
def test_entry_states(host: Host, td: Any, call: Callable[..., GuestStep], state: Any) -> None:
    """Pending states are accepted, accessible ones are already, all else is the host's business."""
    tdr, tdvpr, context = td
    hpa = host.augment(tdr, GPA)
    index, _, _ = host.module.tds[tdr].sept.walk(GPA, 0)
    value = SeptState[state]
    host.memory.qwords[index] = 1 << 63 | value | (hpa if value & sept.LEAF else 0) | sept._PERMISSIONS[value]
    context.queue(call(ACCEPT, rcx=GPA), 1)
    status, _ = host.enter(tdvpr)
    if value in sept.ALLOWED["TDG_MEM_PAGE_ACCEPT"]:
        assert (status, context.gpr[0]) == (1, 0)
        new = host.memory.qwords[index]
        assert new & sept.STATE_MASK == sept.TRANSITIONS["TDG_MEM_PAGE_ACCEPT"][value]
        assert new & 7 == 7
    elif value in sept.GUEST_ACCESSIBLE:
        assert (status, context.gpr[0]) == (1, StatusCode.PAGE_ALREADY_ACCEPTED)
    elif state in ("NL_MAPPED", "NL_BLOCKED", "REMOVED"):
        assert (status, context.gpr[0]) == (1, StatusCode.PAGE_SIZE_MISMATCH)
    else:
        assert status == 48
