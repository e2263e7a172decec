# SPDX-License-Identifier: GPL-2.0-or-later
"""What happens to a guest without the host: #VE, #DF, #GP, #UD, control registers, XSETBV, EPT violations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.status import StatusCode
from testing.seam.fake_host import FakeContext, GuestStep, Host

GPA = 0x8000_0000
VE, DF, GP, UD, PF = (20, 3, None), (8, 3, 0), (13, 3, 0), (6, 3, None), 14


def exits(reason: Any, **info: Any) -> Any:
    def step(context: FakeContext) -> Any:
        for name, value in info.items():
            setattr(context, name, value)
        return reason

    return step


@pytest.fixture
def td(host: Host) -> Any:
    return host.runnable(attributes=0)


def ve_info(context: FakeContext) -> Any:
    return [context.gpr[n] for n in (1, 2, 8, 9, 10)]


# --- #VE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [30, 12, 13, 18, 54, 65, 56])
def test_instructions_that_raise_ve(host: Host, td: Any, call: Callable[..., GuestStep], reason: int) -> None:
    _, tdvpr, context = td
    info = {"exit_qualification": 0x5E0048, "instruction_length": 3, "instruction_info": 9}
    host.guest(tdvpr, context, exits(reason, **info), call(3))
    assert context.injected == [VE]
    assert context.gpr[0] == 0
    assert ve_info(context) == [reason, 0x5E0048, 0, 0, 3 | 9 << 32]


def test_ve_info_is_read_once(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, 12, call(3), call(3, rcx=1, rdx=2, r8=3, r9=4, r10=5))
    assert context.gpr[0] == StatusCode.NO_VALID_VE_INFO
    assert ve_info(context) == [0, 0, 0, 0, 0]


def test_a_second_ve_before_the_first_is_read_is_a_double_fault(
    host: Host, td: Any, call: Callable[..., GuestStep]
) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, exits(30, exit_qualification=7), 12, call(3))
    assert context.injected == [VE, DF]
    assert context.gpr[1] == 30  # the first stays
    host.guest(tdvpr, context, 12)
    assert context.injected[-1] == VE


@pytest.mark.parametrize("reason", [11, 17, *range(19, 28), 36, 39, 50, 53, 59, 60, 70, 73, 76])
def test_instructions_that_do_not_exist_in_a_td(host: Host, td: Any, reason: Any) -> None:
    _, tdvpr, context = td
    if reason == 18:
        return
    host.guest(tdvpr, context, reason)
    assert context.injected == [UD]


@pytest.mark.parametrize("reason", [15, 72])
def test_instructions_that_raise_gp(host: Host, td: Any, reason: int) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, reason)
    assert context.injected == [GP]


# --- control registers ------------------------------------------------------------------------------------------------

RCX = 1 << 8


def mov_to_cr(number: Any, value: int) -> Any:
    def step(context: FakeContext) -> Any:
        context.gpr[1] = value
        context.exit_qualification = number | RCX
        return 28

    return step


@pytest.mark.parametrize(
    ("number", "value", "event"),
    [
        (0, 0x80000020, GP),  # PG without PE
        (0, 0x20, VE),  # PE
        (0, 0x80000001, GP),  # NE
        (0, 0xC0000001, GP),  # NE before CD
        (0, 0xC0000021, VE),  # CD
        (0, 0xE0000021, VE),  # CD and NW
        (0, 1 << 32 | 0x21, GP),
        (4, 0x20, VE),  # MCE
        (4, 0x2060, VE),  # VMXE
        (4, 0x4060, VE),  # SMXE
        (4, 1 << 22 | 0x60, GP),  # PKE without XFAM[9]
        (4, 1 << 23 | 0x60, GP),  # CET without XFAM[12:11]
        (4, 1 << 24 | 0x60, GP),  # PKS without ATTRIBUTES.PKS
        (4, 1 << 25 | 0x60, GP),  # UINTR without XFAM[14]
        (4, 1 << 27 | 0x60, GP),  # LASS without ATTRIBUTES.LASS
        (4, 1 << 63 | 0x60, GP),
        (4, 1 << 26 | 0x60, GP),
        (4, 0x60, VE),  # nothing wrong with it: no such write exits on its own
    ],
)
def test_control_register_bits_that_are_not_the_guests(
    host: Host, td: Any, number: int, value: int, event: int
) -> None:
    _, tdvpr, context = td
    before = context.rip, context.cr0, context.cr4
    host.guest(tdvpr, context, mov_to_cr(number, value))
    assert context.injected == [event]
    assert (context.rip, context.cr0, context.cr4) == before


def test_owned_bits(host: Host) -> None:
    _, _, context = host.runnable(xfam=3 | 1 << 9)
    reserved = 0xFFFF_FFFF_1FFA_FFC0
    assert context.cr0_guest_host_mask == 1 | 1 << 5 | 1 << 29 | 1 << 30 | reserved
    assert context.cr4_guest_host_mask & 0xFFFF_FFFE_E400_8000 == 0xFFFF_FFFE_E400_8000
    assert context.cr4_guest_host_mask & (1 << 6 | 1 << 13 | 1 << 14) == 1 << 6 | 1 << 13 | 1 << 14
    assert not context.cr4_guest_host_mask >> 22 & 1  # PKU is the guest's with XFAM[9]
    assert context.cr4_guest_host_mask >> 23 & 1


def test_reserved_bits_of_cr0_stay(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    context.cr0 |= 1 << 20
    host.guest(tdvpr, context, mov_to_cr(0, 0x8000_0021 | 1 << 17 | 1 << 6 | 8))
    assert context.injected == []
    assert context.cr0 == 0x8000_0021 | 1 << 20 | 8


def test_cet_needs_write_protection(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    context.cr4 |= 1 << 23
    host.guest(tdvpr, context, mov_to_cr(0, 0x8000_0021))
    assert context.injected == [GP]


def test_lmsw_changes_three_bits(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    rip = context.rip
    host.guest(tdvpr, context, exits(28, exit_qualification=3 << 4 | 0xFFFE << 16))
    assert context.cr0 == 0x21 | 0xE
    assert context.rip == rip + context.instruction_length


# --- XSETBV -----------------------------------------------------------------------------------------------------------


def xsetbv(value: int, index: int = 0) -> Any:
    def step(context: FakeContext) -> Any:
        context.gpr[1], context.gpr[0], context.gpr[2] = index, value & 0xFFFFFFFF, value >> 32
        return 55

    return step


@pytest.mark.parametrize("value", [1, 3])
def test_xsetbv_within_xfam(host: Host, td: Any, value: int) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, xsetbv(value))
    assert context.xcr0 == value
    assert context.injected == []


@pytest.mark.parametrize(("value", "index"), [(2, 0), (0, 0), (7, 0), (3 | 1 << 9, 0), (3 | 1 << 63, 0), (3, 1)])
def test_xsetbv_outside(host: Host, td: Any, value: int, index: int) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, xsetbv(value, index))
    assert context.xcr0 == 1
    assert context.injected == [GP]


# --- EPT violations ---------------------------------------------------------------------------------------------------

QUALIFICATION = 1 << 8 | 1 << 7 | 2  # a write by a linear access
SHARED = 1 << 47


def touch(
    gpa: int, qualification: int = QUALIFICATION, gla: int = 0xFFFF8000_12345678, convertible: bool = False
) -> Any:
    return exits(
        48,
        exit_qualification=qualification,
        guest_physical_address=gpa,
        guest_linear_address=gla,
        ve_convertible=convertible,
    )


def test_unmapped_private_memory_is_the_hosts_business(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    context.queue(touch(GPA | 0x123))
    status, args = host.enter(tdvpr)
    assert status == 48
    assert (args.rcx, args.rdx, args.r8) == (2, 0, GPA)  # bits 12:7 are hidden


def test_shared_memory_exits_with_its_shared_bit(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    context.queue(touch(SHARED | 0x3F8))
    status, args = host.enter(tdvpr)
    assert status == 48
    assert args.r8 == SHARED
    assert args.rcx == 2  # bits 12:7 are hidden here, too


def test_a_convertible_violation_with_a_ve_to_read_exits(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    """The processor delivers #VE itself only while the information area is free, and knows no instruction length."""
    _, tdvpr, context = td
    shared = touch(SHARED | 0x3F8, convertible=True)
    host.guest(tdvpr, context, exits(12, instruction_length=3, instruction_info=9), call(3), exits(1))
    context.queue(exits(48), shared)
    context.queue(1)
    context.script.clear()
    host.guest(tdvpr, context, shared)
    assert context.injected == [VE, VE]
    context.instruction_length = 2
    context.queue(shared)
    status, args = host.enter(tdvpr)
    assert (status, args.rcx, args.r8) == (48, 2, SHARED)
    host.guest(tdvpr, context, call(3))
    assert ve_info(context) == [48, QUALIFICATION, 0xFFFF8000_12345678, SHARED | 0x3F8, 3 | 9 << 32]


def test_shared_memory_whose_entry_allows_it_raises_ve(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, touch(SHARED | 0x3F8, convertible=True), call(3))
    assert context.injected == [VE]
    assert ve_info(context)[:4] == [48, QUALIFICATION, 0xFFFF8000_12345678, SHARED | 0x3F8]


def test_a_malformed_shared_table(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    context.queue(exits(49, guest_physical_address=SHARED | 0x1008))
    status, args = host.enter(tdvpr)
    assert (status, args.r8) == (49, SHARED | 0x1000)


def test_a_pending_page_raises_ve(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = td
    host.augment(tdr, GPA)
    host.guest(tdvpr, context, touch(GPA | 8), call(3))
    assert context.injected == [VE]
    assert ve_info(context)[:4] == [48, QUALIFICATION, 0xFFFF8000_12345678, GPA | 8]


def test_a_pending_page_exits_with_sept_ve_disable(host: Host) -> None:
    tdr, tdvpr, context = host.runnable(attributes=1 << 28)
    host.augment(tdr, GPA)
    context.queue(touch(GPA | 8))
    status, args = host.enter(tdvpr)
    assert status == 48
    assert (args.rdx, args.r8) == (6, GPA)
    assert context.injected == []


def test_a_blocked_page_exits(host: Host, td: Any) -> None:
    tdr, tdvpr, context = td
    host.augment(tdr, GPA)
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)
    context.queue(touch(GPA))
    status, args = host.enter(tdvpr)
    assert (status, args.rdx) == (48, 0)


def test_a_page_that_came_in_the_meantime_exits(host: Host, td: Any, call: Callable[..., GuestStep]) -> None:
    """The module looks at the entry only to tell pending pages from others."""
    tdr, tdvpr, context = td
    host.augment(tdr, GPA)
    context.queue(call(6, rcx=GPA), touch(GPA))
    status, args = host.enter(tdvpr)
    assert (status, args.rcx, args.rdx, args.r8) == (48, 2, 0, GPA)
    assert context.injected == []


@pytest.mark.parametrize("step", [exits(12), exits(15), exits(11), touch(1 << 50)])
def test_the_module_sets_rf_with_an_exception(host: Host, td: Any, step: Any) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, step)
    assert len(context.injected) == 1
    assert context.rflags & 1 << 16


def test_a_fault_in_iret_blocks_nmis_again(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    host.guest(tdvpr, context, touch(1 << 50, qualification=1 << 13 | 1 << 12 | 1 << 8 | 1 << 7 | 1))
    assert context.injected == [(PF, 3, 1 | 8 | 64)]  # present, reserved bit, shadow stack
    assert context.interruptibility == 8


# --- exits for the host -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", [1, 6, 42])
def test_interrupts_carry_all_there_is(host: Host, td: Any, reason: Any) -> None:
    _, tdvpr, context = td
    context.queue(exits(reason, exit_qualification=6, interruption_info=0x800000EC))
    status, args = host.enter(tdvpr)
    assert (status, args.rcx, args.r9) == (reason, 6, 0x800000EC)


def test_a_triple_fault_has_its_qualification(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    context.queue(exits(2, exit_qualification=6))
    status, args = host.enter(tdvpr)
    assert (status, args.rcx) == (StatusCode.NON_RECOVERABLE_VCPU | 2, 6)


@pytest.mark.parametrize(
    ("reason", "dead"), [(6, StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE), (75, StatusCode.NON_RECOVERABLE_TD)]
)
def test_exits_that_kill_the_td(host: Host, td: Any, reason: Any, dead: int) -> None:
    """A machine check in system-management mode, and a notification without a valid context: qualification bit 0."""
    _, tdvpr, context = td
    context.queue(exits(reason, exit_qualification=2))
    assert host.enter(tdvpr)[0] == reason
    context.queue(exits(reason, exit_qualification=1))
    status, args = host.enter(tdvpr)
    assert (status, args.rcx) == (dead | reason, 1)
    assert host.enter(tdvpr)[0] == StatusCode.TD_FATAL


def test_a_debugger_sees_exceptions_of_the_module(host: Host) -> None:
    """An exception that the module raises in a debug TD exits if the host intercepts it, and is still pending then."""
    _, tdvpr, context = host.runnable(attributes=1)
    context.exception_bitmap |= 1 << 13
    context.queue(exits(15))
    status, args = host.enter(tdvpr)
    assert (status, args.rcx, args.r9) == (0, 0, 1 << 31 | 1 << 11 | 3 << 8 | 13)
    assert context.injected == [GP]
    host.guest(tdvpr, context, exits(12))  # #VE is not intercepted
    assert context.injected == [GP, VE]


@pytest.mark.parametrize(
    ("flags", "eptp", "maxpa", "bad", "good"),
    [
        (4, 0x1E, 0, 48, 47),
        (4, 0x1E, 0, 51, 46),
        (0xC, 0x1E, 46, 46, 47),
        (0xC, 0x1E, 46, 51, 45),
    ],
)
def test_guest_page_tables_must_not_name_addresses_beyond_the_guests_width(
    host: Host, flags: int, eptp: int, maxpa: int, bad: int, good: int
) -> None:
    _, tdvpr, context = host.runnable(attributes=0, config_flags=flags, eptp_controls=eptp, cpuid={9: (maxpa, 0, 0, 0)})
    host.guest(tdvpr, context, touch(1 << bad, gla=0xABC000))
    assert context.injected == [(PF, 3, 1 | 2 | 8)]  # present, write, reserved bit
    assert context.cr2 == 0xABC000
    context.queue(touch(1 << good))
    assert host.enter(tdvpr)[0] == 48


def test_the_page_fault_tells_user_fetches(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    context.segments[2] = (0, 0, 0xFFFFFFFF, 0xC0F3)  # SS with DPL 3
    host.guest(tdvpr, context, touch(1 << 50, qualification=1 << 8 | 1 << 7 | 4))
    assert context.injected == [(PF, 3, 1 | 4 | 8 | 16)]


def test_memory_that_left_the_host_program_is_an_ept_violation(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    context.queue(exits(0x10000, guest_physical_address=SHARED | 0x5000))
    status, args = host.enter(tdvpr)
    assert (status, args.r8) == (48, SHARED | 0x5000)
