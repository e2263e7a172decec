# SPDX-License-Identifier: GPL-2.0-or-later
"""Migration, service TDs and partitioning, as a module answers that does not use them; and leaving the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.lifecycle import SysState
from swtdx.seam.status import Operand, StatusCode
from swtdx.x86 import Gpr
from testing.seam.fake_host import FakeContext, GuestStep, Host

GPA = 0x8000_0000
SERVTD_RD, SERVTD_WR, VP_ENTER, INVEPT, INVVPID, ATTR_RD, ATTR_WR = 18, 20, 25, 26, 27, 23, 24


@pytest.mark.parametrize(
    ("name", "registers", "migratable", "status"),
    [
        ("EXPORT.STATE.IMMUTABLE", "rcx", False, StatusCode.TD_NOT_MIGRATABLE),
        ("EXPORT.STATE.IMMUTABLE", "rcx", True, StatusCode.MIN_MIGS_NOT_CREATED),
        ("EXPORT.RESTORE", "rdx", False, StatusCode.TD_NOT_MIGRATABLE),
        ("EXPORT.RESTORE", "rdx", True, StatusCode.OPERAND_INVALID | Operand.RCX),
        ("MIG.STREAM.CREATE", "rdx", True, StatusCode.MAX_MIGS_NUM_EXCEEDED),
        ("SERVTD.BIND", "rcx", True, StatusCode.OPERAND_INVALID | Operand.R9),
        ("EXPORT.PAUSE", "rcx", True, StatusCode.OP_STATE_INCORRECT),
        ("IMPORT.MEM", "rdx", True, StatusCode.OP_STATE_INCORRECT),
    ],
)
def test_where_migration_would_begin(host: Host, name: str, registers: str, migratable: bool, status: int) -> None:
    tdr, *_ = host.runnable(attributes=1 << 29 if migratable else 0)
    before = host.snapshot()
    assert host.call(f"TDH.{name}", **{registers: tdr})[0] == status
    assert host.snapshot() == before


def test_import_and_prebinding_begin_before_the_td_does(host: Host) -> None:
    tdr = host.uninitialized()
    assert host.call("TDH.IMPORT.STATE.IMMUTABLE", rcx=tdr)[0] == StatusCode.MIN_MIGS_NOT_CREATED
    assert host.call("TDH.SERVTD.PREBIND", rcx=tdr)[0] == StatusCode.OPERAND_INVALID | Operand.R9
    assert host.call("TDH.SERVTD.PREBIND", rcx=tdr, r8=1)[0] == StatusCode.OPERAND_INVALID | Operand.R8


def test_no_entry_is_blocked_for_writing(host: Host) -> None:
    tdr, *_ = host.runnable()
    host.augment(tdr, GPA)
    status, args = host.call("TDH.EXPORT.UNBLOCKW", rcx=GPA, rdx=tdr)
    assert status == StatusCode.EPT_ENTRY_STATE_INCORRECT | Operand.RCX
    assert args.rdx == 2 << 8


@pytest.mark.parametrize(
    ("leaf", "registers", "status"),
    [
        (SERVTD_RD, {}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (SERVTD_WR, {}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (VP_ENTER, {"rcx": 1 << 52, "rdx": 8}, StatusCode.OPERAND_INVALID | Operand.RDX),
        (VP_ENTER, {"rcx": 1 << 52, "rdx": 1 << 47}, StatusCode.OPERAND_INVALID | Operand.RDX),
        (VP_ENTER, {"rcx": 1 << 52, "rdx": GPA}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (INVEPT, {"rcx": 0}, 0),
        (INVEPT, {"rcx": 1}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (INVEPT, {"rcx": 2}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (INVVPID, {"rcx": 0}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (INVVPID, {"rcx": 1 << 52}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (ATTR_RD, {"rcx": 1 << 47}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (ATTR_WR, {"rcx": GPA, "rdx": 1, "r8": 0}, StatusCode.OPERAND_INVALID | Operand.RDX),
        (ATTR_WR, {"rcx": GPA, "rdx": 0, "r8": 1 << 16}, StatusCode.OPERAND_INVALID | Operand.R8),
        (ATTR_WR, {"rcx": GPA | 3, "rdx": 0, "r8": 0}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (ATTR_WR, {"rcx": GPA + 4096 | 1, "rdx": 0, "r8": 0}, StatusCode.OPERAND_INVALID | Operand.RCX),
        (ATTR_WR, {"rcx": GPA | 1, "rdx": 0, "r8": 0}, 0),
    ],
)
def test_guest_leaf_functions(
    host: Host, call: Callable[..., GuestStep], leaf: int, registers: dict[str, Any], status: int
) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA, level=1)
    host.guest(tdvpr, context, call(leaf, **registers))
    assert context.gpr[Gpr.RAX] == status


def test_attributes_tell_size_and_acceptance(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA, level=1)
    host.guest(tdvpr, context, call(ATTR_RD, rcx=GPA + 0x5678, rdx=9))
    assert (context.gpr[Gpr.RCX], context.gpr[Gpr.RDX]) == (GPA | 1 | 1 << 62, 0)
    host.guest(tdvpr, context, call(6, rcx=GPA | 1), call(ATTR_RD, rcx=GPA, rdx=9))
    assert (context.gpr[Gpr.RCX], context.gpr[Gpr.RDX]) == (GPA | 1, 0)


def test_attributes_for_a_virtual_machine_without_tables(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr = host.build(pages=7, num_l2_vms=1, attributes=0)
    tdvpr = host.vcpu(tdr, x2apic_id=0, pages=8)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    host.augment(tdr, GPA)
    valid, mapped, mask = 1 << 31, 7 << 16, 0x7FFF << 16
    host.guest(tdvpr, context, call(ATTR_WR, rcx=GPA, rdx=valid | mapped, r8=mask))
    assert context.gpr[Gpr.RAX] == StatusCode.L2_SEPT_WALK_FAILED | 1 << 16 | 3
    host.guest(tdvpr, context, call(ATTR_WR, rcx=GPA, rdx=mapped, r8=mask))  # not valid
    assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.RDX
    host.guest(tdvpr, context, call(ATTR_WR, rcx=GPA, rdx=valid | mapped, r8=0))  # masked: nothing to set
    assert (context.gpr[Gpr.RAX], context.gpr[Gpr.RDX]) == (0, valid | mapped)
    for illegal in (
        1 << 17,
        1 << 16 | 1 << 23,
        1 << 16 | 1 << 24,
        1 << 18 | 1 << 21,
    ):  # W; SVE; reserved; PWA without R
        host.guest(tdvpr, context, call(ATTR_WR, rcx=GPA, rdx=valid | illegal, r8=mask))
        assert context.gpr[Gpr.RAX] == StatusCode.PAGE_ATTR_INVALID
        assert (context.gpr[Gpr.RCX], context.gpr[Gpr.RDX]) == (0, 0)
    host.module.tds[tdr].vm_ctls[1] = 1
    context.queue(call(ATTR_WR, rcx=GPA, rdx=valid | mapped, r8=mask))
    status, args = host.enter(tdvpr)
    assert (status, args.rcx, args.rdx, args.r8) == (48, 2, 2 | (3 << 3 | 1 << 20) << 32, GPA)
    host.guest(tdvpr, context, call(INVVPID, rcx=1 << 52, rdx=0), call(INVEPT, rcx=2))
    assert context.gpr[Gpr.RAX] == 0
    host.guest(tdvpr, context, call(VP_ENTER, rcx=1 << 52, rdx=GPA))
    assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.L2_VAPIC_GPA


def test_attributes_of_a_smaller_page_are_for_the_host_to_make(host: Host, call: Callable[..., GuestStep]) -> None:
    """ATTR.WR of 4 KiB in a page of 2 MiB exits, as the host has to split it; the walk never gets to the lock."""
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA, level=1)
    host.guest(tdvpr, context, call(6, rcx=GPA | 1))
    context.queue(call(ATTR_WR, rcx=GPA, rdx=0, r8=0))
    status, args = host.enter(tdvpr)
    assert (status, args.r8) == (48, GPA)
    assert args.rcx == 2 | 7 << 3  # a write; readable, writable, executable
    assert (args.rdx & 0xF, args.rdx >> 32 & 7, args.rdx >> 35 & 7) == (5, 0, 1)


@pytest.mark.parametrize("canonical", [True, False])
def test_a_list_of_addresses_to_flush(host: Host, call: Callable[..., GuestStep], canonical: bool) -> None:
    tdr = host.build(pages=7, num_l2_vms=1, attributes=0)
    tdvpr = host.vcpu(tdr, x2apic_id=0, pages=8)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    hpa = host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(6, rcx=GPA))
    vm, count = 1 << 52, 3 << 52
    host.memory.qwords[(hpa >> 3) + 7] = 0x7FFF_F000 if canonical else 1 << 62
    host.guest(tdvpr, context, call(INVVPID, rcx=vm | 1, rdx=GPA | 5 | count))
    assert context.gpr[Gpr.RAX] == (0 if canonical else StatusCode.GLA_NOT_CANONICAL)
    assert context.gpr[Gpr.RDX] == (GPA | 8 if canonical else GPA | 5 | count)
    for wrong in (GPA | 511 | 2 << 52, GPA | 1 << 9, 1 << 62, 1 << 47):
        host.guest(tdvpr, context, call(INVVPID, rcx=vm | 1, rdx=wrong))
        assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.RDX
    rip = context.rip
    host.module.contention.interrupt(0)
    host.guest(tdvpr, context, call(INVVPID, rcx=vm | 1, rdx=GPA | count))
    assert (context.gpr[Gpr.RDX], context.rip) == (GPA | 1 | 2 << 52, rip)
    host.guest(tdvpr, context, call(INVVPID, rcx=vm, rdx=0x7FFF_FFFF_F001 << 9))
    assert context.gpr[Gpr.RAX] == StatusCode.GLA_NOT_CANONICAL


def test_shutdown(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()
    assert host.call("TDH.SYS.SHUTDOWN", rcx=1)[0] == StatusCode.OPERAND_INVALID | Operand.RCX

    def inside(context: FakeContext) -> int:
        assert host.call("TDH.SYS.SHUTDOWN", lp=1)[0] == StatusCode.SYS_BUSY
        return 1

    context.queue(inside)
    host.enter(tdvpr)
    states = [host.module.state]
    host.ok("TDH.SYS.SHUTDOWN")
    assert [*states, host.module.state] == [SysState.SYS_READY, SysState.SHUTDOWN]
    assert host.call("TDH.MNG.RD", rcx=tdr)[0] == StatusCode.SYS_SHUTDOWN
    host.ok("TDH.SYS.LP.SHUTDOWN")


def test_update_finds_nothing_handed_over(cold: Host) -> None:
    assert cold.call("TDH.SYS.UPDATE")[0] == StatusCode.SYS_STATE_INCORRECT
    cold.start()
    assert cold.call("TDH.SYS.UPDATE")[0] == StatusCode.SYS_INVALID_HANDOFF
    cold.config(cold.default_tdmr())
    assert cold.call("TDH.SYS.UPDATE")[0] == StatusCode.SYS_STATE_INCORRECT
