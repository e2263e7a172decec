# SPDX-License-Identifier: GPL-2.0-or-later
"""TDG.MR.REPORT from and to shared memory: the module walks the host's EPT, as the processor does for an access."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.status import Operand, StatusCode
from swtdx.x86 import Gpr
from testing.seam.fake_host import GuestStep, Host

GPA = 0x8000_0000
SHARED = 1 << 47
SHARED_EPTP = 0x203C
READ_ONLY, ALL, WRITE_BACK, LARGE, SUPPRESS = 1, 7, 6 << 3, 1 << 7, 1 << 63
VE, DF = (20, 3, None), (8, 3, 0)
VIOLATION, MISCONFIGURATION, INTERRUPT = 48, 49, 1


@pytest.fixture
def shared(host: Host, call: Callable[..., GuestStep]) -> Any:
    """(host, TDVPR, context, HPAs of the host's EPT tables from the root, HPA of the page at SHARED)."""
    tdr, tdvpr, context = host.runnable(attributes=0)
    tables, page = [host.page() for _ in range(4)], host.page()
    for level, table in enumerate(tables):
        target = tables[level + 1] | ALL if level < 3 else page | ALL | WRITE_BACK
        index = SHARED >> (12 + 9 * (3 - level)) & 511
        host.memory.write(table + 8 * index, target.to_bytes(8, "little"))
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=SHARED_EPTP, r8=tables[0], r9=0x000F_FFFF_FFFF_F000)
    host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(6, rcx=GPA))
    return host, tdvpr, context, tables, page


def report(shared: Any, call: Callable[..., GuestStep], rcx: int, rdx: int) -> Any:
    """(exit status, registers, RAX of the guest) of TDG.MR.REPORT."""
    host, tdvpr, context, _, _ = shared
    status, args = host.guest(tdvpr, context, call(4, rcx=rcx, rdx=rdx, r8=0))
    context.script.clear()
    return status, args, context.gpr[Gpr.RAX]


def test_a_report_goes_to_shared_memory(shared: Any, call: Callable[..., GuestStep]) -> None:
    host, _, _, _, page = shared
    assert report(shared, call, SHARED, GPA)[2] == 0
    assert host.memory.read(page, 1) == b"\x81"  # REPORTTYPE.TYPE


def entry(shared: Any, level: int, value: int) -> None:
    host, _, _, tables, _ = shared
    host.memory.write(tables[level] + 8 * (SHARED >> (12 + 9 * (3 - level)) & 511), value.to_bytes(8, "little"))


@pytest.mark.parametrize(
    ("level", "value", "write", "outcome", "qualification"),
    [
        (3, SUPPRESS, False, VIOLATION, 1),
        (3, SUPPRESS, True, VIOLATION, 3),
        (1, SUPPRESS, True, VIOLATION, 3),
        (3, READ_ONLY | WRITE_BACK | SUPPRESS, True, VIOLATION, 2 | 1 << 3),
        (3, READ_ONLY | WRITE_BACK, True, VE, 2 | 1 << 3),
        (3, 0, False, VE, 1),
        (1, 0, True, VE, 3),
        (3, 2 | WRITE_BACK, True, MISCONFIGURATION, 0),  # writable but not readable
        (3, ALL | 2 << 3, False, MISCONFIGURATION, 0),  # reserved memory types
        (3, ALL | 3 << 3, False, MISCONFIGURATION, 0),
        (3, ALL | 7 << 3, False, MISCONFIGURATION, 0),
        (2, ALL | 1 << 3, False, MISCONFIGURATION, 0),  # reserved bits of a table's entry
        (2, ALL | WRITE_BACK | LARGE | 1 << 12, False, MISCONFIGURATION, 0),  # of a page of 2 MiB
        (2, ALL | 1 << 51, False, MISCONFIGURATION, 0),  # beyond physical memory, or under a private key
        (3, ALL | WRITE_BACK | 1 << 51, False, MISCONFIGURATION, 0),
    ],
)
def test_entries_of_the_host(
    shared: Any, call: Callable[..., GuestStep], level: int, value: int, write: bool, outcome: Any, qualification: int
) -> None:
    entry(shared, level, value)
    _, tdvpr, context, _, _ = shared
    status, args, _ = report(shared, call, *((SHARED, GPA) if write else (GPA, SHARED)))
    if outcome == VE:
        assert (status, context.injected) == (INTERRUPT, [VE])
        shared[0].guest(tdvpr, context, call(3))
        assert [context.gpr[n] for n in (1, 2, 8, 9)] == [VIOLATION, qualification, 0, SHARED]
    else:
        assert (status, args.rcx, args.rdx, args.r8) == (outcome, qualification, 0, SHARED)
        assert context.injected == []


def test_rights_of_all_levels_count(shared: Any, call: Callable[..., GuestStep]) -> None:
    """A table's entry that forbids writes is where the walk ends; bit 63 of it does not matter, so that it exits."""
    tables = shared[3]
    entry(shared, 1, tables[2] | READ_ONLY)
    status, args, _ = report(shared, call, SHARED, GPA)
    assert (status, args.rcx) == (VIOLATION, 2 | 1 << 3)


def test_a_second_ve_is_a_double_fault(shared: Any, call: Callable[..., GuestStep]) -> None:
    entry(shared, 3, 0)
    report(shared, call, GPA, SHARED)
    report(shared, call, GPA, SHARED)
    assert shared[2].injected == [VE, DF]


def test_a_locked_tdinfo_does_not_mind_sharers(shared: Any, call: Callable[..., GuestStep]) -> None:
    host = shared[0]
    tdr = next(iter(host.module.tds))
    with host.module.contention.hold(Operand.RTMR, tdr, shared=True):
        assert report(shared, call, GPA, GPA)[2] == 0
    with host.module.contention.hold(Operand.RTMR, tdr):
        assert report(shared, call, 1 << 48, GPA)[2] == StatusCode.OPERAND_BUSY | Operand.RTMR


def test_an_interrupt_stops_the_first_report(shared: Any, call: Callable[..., GuestStep]) -> None:
    """The hash of TDINFO is kept, so that the next call continues; a change of an RTMR makes it invalid."""
    host, tdvpr, context, _, _ = shared
    rip = context.rip
    host.module.contention.interrupt(0)
    assert report(shared, call, GPA, GPA)[2] == 4  # RAX is as it was
    assert context.rip == rip
    host.module.contention.interrupt(0)
    assert report(shared, call, GPA, GPA)[2] == 0
    host.guest(tdvpr, context, call(2, rcx=GPA, rdx=0))
    assert report(shared, call, GPA, GPA)[2] == 4
