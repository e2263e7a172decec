# SPDX-License-Identifier: GPL-2.0-or-later
"""Entering and leaving a TD: who is held, what the registers carry, how each exit looks to the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.cpu.vmx import ExitReason
from swtdx.seam.lifecycle import VcpuState
from swtdx.seam.status import Operand, StatusCode
from swtdx.x86 import Msr
from testing.seam.fake_host import POWER_ON_MSRS, FakeContext, FakeProcessor, GuestStep, Host

TDCALL = 77
INVALID = StatusCode.OPERAND_INVALID
OUT = ("rbx", "rsi", "rdi", "r10", "r11", "r12", "r13", "r14", "r15")


def exits(reason: Any, **info: Any) -> Any:
    """A guest step that exits with this reason and exit information."""

    def step(context: FakeContext) -> Any:
        for name, value in info.items():
            setattr(context, name, value)
        return reason

    return step


# --- checks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit", [0, 11, 54, 63])
def test_reserved_bits_of_rcx(host: Host, bit: int) -> None:
    _, tdvpr, _ = host.runnable()
    assert host.call("TDH.VP.ENTER", rcx=tdvpr | 1 << bit)[0] == INVALID | Operand.RCX


@pytest.mark.parametrize("bit", [52, 53])
def test_hints_need_their_occasion(host: Host, bit: int) -> None:
    _, tdvpr, _ = host.runnable()
    assert host.call("TDH.VP.ENTER", rcx=tdvpr | 1 << bit)[0] == INVALID | Operand.RCX


@pytest.mark.parametrize(
    ("msr", "value", "status", "rcx"),
    [
        (0x1A0, 1 | 1 << 22, StatusCode.LIMIT_CPUID_MAXVAL_SET, 1),  # before RCX is looked at
        (0x3B, 5, StatusCode.OPERAND_INVALID | Operand.RCX, 1 << 53),  # after RESUME_L1
        (0x3B, 5, StatusCode.INCONSISTENT_MSR | Msr.TSC_ADJUST, 0),
    ],
)
@pytest.mark.parametrize("entered", [False, True])
def test_msrs_that_the_host_has_changed(
    host: Host, processor: FakeProcessor, msr: int, value: int, status: int, rcx: int, entered: bool
) -> None:
    """Also when the virtual CPU has run on this logical processor before."""
    _, tdvpr, context = host.runnable()
    if entered:
        context.queue(1)
        assert host.enter(tdvpr)[0] == 1
    before = host.snapshot()
    processor.msrs[msr] = value
    assert host.call("TDH.VP.ENTER", rcx=tdvpr | rcx)[0] == status
    if entered or msr == 0x1A0:
        assert host.snapshot() == before
    else:  # the virtual CPU is associated by then, and stays so
        assert host.module.vcpus[tdvpr].lp == 0
    del processor.msrs[msr]
    processor.msrs |= POWER_ON_MSRS
    context.queue(1)
    assert host.enter(tdvpr)[0] == 1


def test_a_td_with_monitor_needs_it_enabled(host: Host, processor: FakeProcessor) -> None:
    tdr, tdvpr, context = host.runnable()
    eax, ebx, ecx, edx = host.module.tds[tdr].cpuid.values[1, None]
    host.module.tds[tdr].cpuid.values[1, None] = eax, ebx, ecx | 1 << 3, edx
    processor.msrs[0x1A0] &= ~(1 << 18)
    assert host.call("TDH.VP.ENTER", rcx=tdvpr)[0] == StatusCode.INCORRECT_MSR_VALUE | 0x1A0
    processor.msrs |= POWER_ON_MSRS
    context.queue(1)
    assert host.enter(tdvpr)[0] == 1


def test_before_finalize(host: Host) -> None:
    tdvpr = host.vcpu(host.build())
    assert host.enter(tdvpr)[0] == StatusCode.OP_STATE_INCORRECT


def test_a_vcpu_that_is_not_initialised(host: Host) -> None:
    tdr = host.build()
    tdvpr, bare = host.vcpu(tdr), host.page()
    host.ok("TDH.VP.CREATE", rcx=bare, rdx=tdr)
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    assert host.enter(bare)[0] == StatusCode.TDCX_NUM_INCORRECT
    assert tdvpr != bare


def test_a_running_vcpu_holds_itself_and_its_td(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()

    def inside(_: Any) -> Any:
        assert host.enter(tdvpr)[0] == StatusCode.VCPU_STATE_INCORRECT
        assert host.call("TDH.VP.FLUSH", rcx=tdvpr)[0] == StatusCode.OPERAND_BUSY | Operand.RCX
        assert host.call("TDH.MNG.VPFLUSHDONE", rcx=tdr)[0] == StatusCode.OPERAND_BUSY | Operand.RCX
        assert host.call("TDH.MNG.KEY.FREEID", rcx=tdr)[0] == StatusCode.OPERAND_BUSY | Operand.RCX
        assert host.call("TDH.PHYMEM.PAGE.RECLAIM", rcx=tdvpr)[0] == StatusCode.OPERAND_BUSY | Operand.RCX
        assert host.call("TDH.MNG.RD", rcx=tdr, rdx=0x9210000300000000)[0] == 0
        assert host.module.vcpus[tdvpr].state is VcpuState.ACTIVE
        assert host.module.tds[tdr].refcount == [0, 1]
        assert host.processor.on_lp == {0: context}
        return 1

    context.queue(inside)
    assert host.enter(tdvpr)[0] == 1
    assert host.module.tds[tdr].refcount == [0, 0]
    assert host.processor.on_lp == {}
    host.ok("TDH.VP.FLUSH", rcx=tdvpr)


def test_an_engine_that_fails_leaves_nothing_held(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()

    def broken(_: FakeContext) -> int:
        raise RuntimeError("engine")

    context.queue(broken)
    with pytest.raises(RuntimeError):
        host.enter(tdvpr)
    assert not host.module.lock.locked()
    assert host.module.tds[tdr].refcount == [0, 0]
    host.ok("TDH.VP.FLUSH", rcx=tdvpr)


# --- TDVMCALL ---------------------------------------------------------------------------------------------------------

NUMBER = {"rdx": 2, "rbx": 3, "rsi": 6, "rdi": 7} | {f"r{n}": n for n in range(8, 16)}


def fill(context: FakeContext) -> None:
    for number in range(1, 16):
        context.gpr[number] = 0x1000 + number


@pytest.mark.parametrize("mask", [0, 0xFC00, 0xFFCC, 0x000C, 0x8400, 0xFFFF_FC00])
def test_only_selected_registers_cross(host: Host, call: Callable[..., GuestStep], mask: int) -> None:
    _, tdvpr, context = host.runnable()

    def vmcall(guest: FakeContext) -> int:
        fill(guest)
        return call(0, rcx=mask)(guest)

    context.queue(vmcall)
    rip = context.rip
    status, args = host.enter(tdvpr, r9=77, rbx=88)
    assert status == TDCALL
    assert args.rcx == mask
    for name, number in NUMBER.items():
        assert getattr(args, name) == (0x1000 + number if mask >> number & 1 else 0), name
    assert context.rip == rip + context.instruction_length

    def look(guest: FakeContext) -> int:
        assert guest.gpr[0] == 0
        assert guest.gpr[1] == mask
        assert (guest.gpr[4], guest.gpr[5]) == (0x1004, 0x1005)
        for name, number in NUMBER.items():
            assert guest.gpr[number] == (0x2000 if mask >> number & 1 else 0x1000) + number, name
        return 1

    context.queue(look)
    host.enter(tdvpr, **{name: 0x2000 + number for name, number in NUMBER.items()})


def test_registers_come_back_only_after_a_tdvmcall(host: Host) -> None:
    _, tdvpr, context = host.runnable()
    fill(context)
    context.queue(1, 1)
    host.enter(tdvpr)
    host.enter(tdvpr, r10=5, rbx=6)
    assert context.gpr[10] == 0x100A
    assert context.gpr[3] == 0x1003


def test_a_tdvmcall_is_answered_once(host: Host, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = host.runnable()
    context.queue(call(0, rcx=0x400, r10=1), 1, 1)
    host.enter(tdvpr)
    host.enter(tdvpr, r10=2)
    context.gpr[0] = 99
    host.enter(tdvpr, r10=3)
    assert (context.gpr[0], context.gpr[10]) == (99, 2)


@pytest.mark.parametrize("mask", [1, 2, 0x10, 0x20, 1 << 32, 1 << 63])
def test_a_forbidden_mask_stays_with_the_guest(host: Host, call: Callable[..., GuestStep], mask: int) -> None:
    _, tdvpr, context = host.runnable(config_flags=4)  # NO_RBP_MOD
    status, _ = host.guest(tdvpr, context, call(0, rcx=mask))
    assert status == 1
    assert context.gpr[0] == INVALID | Operand.RCX


def test_rbp_may_be_selected_without_no_rbp_mod(host: Host, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = host.runnable(config_flags=0)
    context.queue(call(0, rcx=0x20))
    assert host.enter(tdvpr)[0] == TDCALL


def test_tdvmcall_with_version_or_reserved_bits_is_no_tdvmcall(host: Host, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = host.runnable()
    host.guest(tdvpr, context, call(0, version=1, rcx=0xFC00))
    assert context.gpr[0] == INVALID | Operand.RAX


# --- asynchronous exits -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "info", "status"),
    [
        (1, {"interruption_info": 0x800000EF}, 1),
        (0, {"interruption_info": 0x80000202}, 0),  # NMI
        (3, {}, 3),
        (9, {"exit_qualification": 5}, 9),
        (2, {}, StatusCode.NON_RECOVERABLE_VCPU | ExitReason.TRIPLE_FAULT),
    ],
)
def test_exits_to_the_host(host: Host, reason: int, info: dict[str, Any], status: int) -> None:
    _, tdvpr, context = host.runnable()
    fill(context)
    context.queue(exits(reason, **info))
    rip = context.rip
    result, args = host.enter(tdvpr, r15=1, rbx=2)
    assert result == status
    assert args.r9 == info.get("interruption_info", 0)
    assert args.rcx == info.get("exit_qualification", 0)
    assert (args.rdx, args.r8) == (0, 0)
    assert all(getattr(args, name) == 0 for name in OUT)
    assert context.rip == rip


def test_a_triple_fault_ends_the_virtual_cpu(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()
    context.queue(2)
    host.enter(tdvpr)
    assert host.enter(tdvpr)[0] == StatusCode.VCPU_STATE_INCORRECT
    assert host.call("TDH.VP.WR", rcx=tdvpr, rdx=0x2016, r9=0x40, r8=0)[0] == StatusCode.VCPU_STATE_INCORRECT
    host.ok("TDH.VP.RD", rcx=tdvpr, rdx=0x2016)  # a disabled one can be read
    host.ok("TDH.MEM.TRACK", rcx=tdr)  # and the TD lives


def test_a_machine_check_ends_the_td(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()
    context.queue(exits(0, interruption_info=0x80000312))
    status, args = host.enter(tdvpr)
    assert status == StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE
    assert args.r9 == 0x80000312
    assert host.enter(tdvpr)[0] == StatusCode.TD_FATAL
    assert host.call("TDH.MEM.TRACK", rcx=tdr)[0] == StatusCode.TD_FATAL
    host.tear_down(tdr, [tdvpr], [page for page in host.pages if owned(host, page, tdr)])


def owned(host: Host, page: int, tdr: int) -> Any:
    metadata, _ = host.module.pamt.index_of(page)
    return host.module.pamt.type_at(metadata) in (5, 6, 8, 3) and host.module.pamt.owner_at(metadata) == tdr


def test_a_machine_check_elsewhere_stops_the_others(host: Host) -> None:
    tdr = host.build()
    first, second = host.vcpu(tdr, x2apic_id=0, lp=0), host.vcpu(tdr, x2apic_id=1, lp=1)
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    contexts = host.processor.contexts

    def other_dies(_: Any) -> Any:
        contexts[1].queue(exits(0, interruption_info=0x80000312))
        host.enter(second, lp=1)
        return 10

    contexts[0].queue(other_dies)
    status, _ = host.enter(first)
    assert status == StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE | ExitReason.CPUID


@pytest.mark.parametrize(
    ("attributes", "status"), [(0, StatusCode.NON_RECOVERABLE_TD | ExitReason.MTF), (1, ExitReason.MTF)]
)
def test_an_unexpected_exit_is_fatal_except_to_a_debug_td(host: Host, attributes: int, status: int) -> None:
    tdr, tdvpr, context = host.runnable(attributes=attributes)
    context.queue(37)  # monitor trap flag
    assert host.enter(tdvpr)[0] == status
    assert host.module.tds[tdr].fatal == (attributes == 0)


# --- NMI --------------------------------------------------------------------------------------------------------------

PEND_NMI = 0x202000000000000B


def test_an_nmi_from_the_host_waits_for_its_window(host: Host) -> None:
    _, tdvpr, context = host.runnable()
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=PEND_NMI, r8=1, r9=0xFF)

    def window(guest: FakeContext) -> int:
        assert guest.nmi_window_exiting
        return 8

    host.guest(tdvpr, context, window)
    assert context.injected == [(2, 2, None)]
    assert not context.nmi_window_exiting
    assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=PEND_NMI).r8 == 0


def test_an_nmi_waits_until_ve_info_is_read(host: Host, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = host.runnable()
    host.guest(tdvpr, context, 12)  # HLT raises #VE
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=PEND_NMI, r8=1, r9=0xFF)

    def inhibited(guest: FakeContext) -> int:
        assert not guest.nmi_window_exiting
        return call(3)(guest)

    def window(guest: FakeContext) -> int:
        assert guest.nmi_window_exiting
        return 8

    host.guest(tdvpr, context, inhibited, window)
    assert context.injected[-1] == (2, 2, None)
