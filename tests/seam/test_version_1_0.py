# SPDX-License-Identifier: GPL-2.0-or-later
"""TDX module 1.0: what a host of its time sees that one of 1.5.06 does not.

Expectations are the differences that the published sources show (the facts sheet, sections 0-6 and 12). One line of it
has no test: a GPA that is not aligned to a page is OPERAND_ADDR_RANGE_ERROR to PAGE.ADD of 1.0, but its operand has no
bits in which a GPA could be unaligned.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.report import REPORT_SIZE
from swtdx.seam.status import FATAL, FormerStatus, Operand, StatusCode, describe
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from swtdx.seam.version import module_version
from testing import published
from testing.seam.fake_host import FakeContext, GuestStep, Host
from testing.seam.random_calls import campaign

INVALID = StatusCode.OPERAND_INVALID
GPA = 0x8000_0000
TDCALL = 77
MAPPED, PENDING, BLOCKED, PENDING_BLOCKED = 4, 2, 1, 3  # states as SEPT.RD of 1.0 numbers them
ABSENT = ["TDH.SYS.RD", "TDH.SYS.RDALL", "TDH.SYS.SHUTDOWN", "TDH.SYS.UPDATE"]


@pytest.fixture
def cold(make_host: Callable[..., Host]) -> Any:
    return make_host(module_version="1.0")


def read_entry(host: Host, tdr: int, gpa: int, level: int = 0) -> Any:
    """(entry, level, state) as SEPT.RD shows them."""
    args = host.ok("TDH.MEM.SEPT.RD", rcx=gpa | level, rdx=tdr)
    return args.rcx, args.rdx & 7, args.rdx >> 8 & 0xFF


def is_(status: int, code: Any, operand: int = 0) -> None:
    """A status has this name and operand, and no FATAL bit."""
    wanted = {**FormerStatus.__members__, **StatusCode.__members__}[code] & ~FATAL
    assert status == wanted | operand, describe(status)


# --- dispatch ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ABSENT)
def test_leaf_functions_that_came_later(cold: Host, name: str) -> None:
    is_(cold.call(name)[0], "SYS_NOT_READY")  # not one of those that may come early
    is_(cold.bring_up().call(name)[0], "OPERAND_INVALID")


@pytest.mark.parametrize("name", ["TDH.MNG.RD", "TDH.VP.RD", "TDH.VP.INIT", "TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.PROMOTE"])
def test_rax_has_no_version(host: Host, name: str) -> None:
    is_(host.call(name, version=1)[0], "OPERAND_INVALID")


def test_only_1_0_is_like_that(new_host: Callable[..., Host]) -> None:
    """The same calls, of the version that is not 1.0."""
    host = new_host().bring_up()
    tdr = host.build()
    assert host.call("TDH.SYS.RD", rdx=(1 << 64) - 1)[0] >> 63 == 0
    assert host.call("TDH.MNG.RD", version=1, rcx=tdr, rdx=(1 << 64) - 1)[0] >> 63 == 0


def test_lp_shutdown_is_for_good(host: Host) -> None:
    """SYS_STATE becomes SHUTDOWN; that logical processor cannot enter the module any more (VMfailInvalid)."""
    host.ok("TDH.SYS.LP.SHUTDOWN", lp=0)
    is_(host.call("TDH.SYS.INFO", lp=1)[0], "SYS_SHUTDOWN")
    assert host.call("TDH.SYS.LP.SHUTDOWN", lp=0)[0] == 0x8000FF00_FFFF0000
    host.ok("TDH.SYS.LP.SHUTDOWN", lp=1)


def test_versions_that_are_not_there() -> None:
    with pytest.raises(ValueError, match=r"1\.5\.06, 1\.0"):
        module_version("2.0")


# --- what it says of itself -------------------------------------------------------------------------------------------


def test_sys_info(host: Host) -> None:
    info, cmrs = host.page(), host.page()
    host.ok("TDH.SYS.INFO", rcx=info, rdx=1024, r8=cmrs, r9=32)
    data = host.memory.read(info, 1024)
    minor, major = struct.unpack_from("<HH", data, 14)
    assert (major, minor) == (1, 0)
    assert struct.unpack_from("<H", data, 48)[0] == 16384  # TDCS_BASE_SIZE
    assert struct.unpack_from("<2Q", data, 64) == (0x8000000050000001, 0)  # ATTRIBUTES
    assert struct.unpack_from("<I", data, 128)[0] == 6
    leaves = [struct.unpack_from("<2I", data, 132 + 24 * slot) for slot in range(6)]
    assert leaves == [(1, 0xFFFFFFFF), (4, 0), (4, 1), (4, 2), (4, 3), (7, 0)]


# --- life cycle -------------------------------------------------------------------------------------------------------


def test_flags_in_place_of_op_state(host: Host) -> None:
    tdr = host.uninitialized(pages=3)
    add = {"rcx": GPA, "rdx": tdr, "r8": host.page(), "r9": host.page()}
    params = host.write(host.td_params())
    is_(host.call("TDH.MEM.PAGE.ADD", **add)[0], "TD_NOT_INITIALIZED")
    is_(host.call("TDH.MNG.INIT", rcx=tdr, rdx=params)[0], "TDCX_NUM_INCORRECT")  # three of four
    host.ok("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)
    is_(host.call("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)[0], "TDCX_NUM_INCORRECT")  # there is no fifth
    host.ok("TDH.MNG.INIT", rcx=tdr, rdx=params)
    is_(host.call("TDH.MNG.INIT", rcx=tdr, rdx=params)[0], "TD_INITIALIZED")
    is_(host.enter(host.vcpu(tdr))[0], "TD_NOT_FINALIZED")
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    for name, registers in {"PAGE.ADD": add, "EXTEND": {"rcx": GPA, "rdx": tdr}, "FINALIZE": {"rcx": tdr}}.items():
        name = f"TDH.MEM.{name}" if name == "PAGE.ADD" else f"TDH.MR.{name}"
        is_(host.call(name, **registers)[0], "TD_FINALIZED")
    host.ok("TDH.MR.FINALIZE", rcx=host.build())  # with no virtual CPU: 1.0 does not mind


def test_init_and_finalized_are_metadata_fields(host: Host) -> None:
    """Non-architectural field 0 of classes 0 (TD management) and 16 (TDCS management)."""
    tdr = host.uninitialized()
    seen = []
    for leaf, registers in (("TDH.MNG.INIT", {"rdx": host.write(host.td_params())}), ("TDH.MR.FINALIZE", {})):
        host.ok(leaf, rcx=tdr, **registers)
        seen.append(tuple(host.ok("TDH.MNG.RD", rcx=tdr, rdx=1 << 63 | group << 56).r8 for group in (0, 16)))
    assert seen == [(1, 0), (1, 1)]


def test_pages_of_a_virtual_cpu_are_tdvpx(host: Host) -> None:
    tdr = host.build()
    tdvpr = host.page()
    host.ok("TDH.VP.CREATE", rcx=tdvpr, rdx=tdr)
    pages = [host.page() for _ in range(6)]
    host.ok("TDH.VP.ADDCX", rcx=pages[0], rdx=tdvpr)
    assert host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=pages[0]).rcx == 7  # PT_TDVPX
    assert host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=host.module.tds[tdr].tdcx[0]).rcx == 5  # PT_TDCX
    is_(host.call("TDH.VP.INIT", rcx=tdvpr)[0], "TDVPX_NUM_INCORRECT")
    for page in pages[1:5]:
        host.ok("TDH.VP.ADDCX", rcx=page, rdx=tdvpr)
    is_(host.call("TDH.VP.ADDCX", rcx=pages[5], rdx=tdvpr)[0], "TDVPX_NUM_INCORRECT")
    host.ok("TDH.VP.INIT", rcx=tdvpr)


def test_a_dead_td_is_dead_without_the_fatal_bit(host: Host) -> None:
    tdr = host.build()
    host.module.tds[tdr].die()
    is_(host.call("TDH.MEM.TRACK", rcx=tdr)[0], "TD_FATAL")


def test_a_metadata_field_that_is_not_there_or_closed(host: Host) -> None:
    tdr = host.build()
    is_(host.call("TDH.MNG.RD", rcx=tdr, rdx=0x11 << 56 | 0x777)[0], "OPERAND_INVALID", Operand.RDX)
    attributes, eptp = 0x11 << 56, 0x11 << 56 | 4
    assert host.ok("TDH.MNG.RD", rcx=tdr, rdx=attributes).r8 == 1 << 28
    is_(host.call("TDH.MNG.WR", rcx=tdr, rdx=eptp, r8=0, r9=(1 << 64) - 1)[0], "FIELD_NOT_WRITABLE")
    is_(host.call("TDH.MNG.RD", rcx=tdr, rdx=0x13 << 56 | 0x40)[0], "FIELD_NOT_READABLE")  # an RTMR


# --- TD_PARAMS --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "operand"),
    [
        ({}, None),
        ({"max_vcpus": 0xFFFF}, None),  # any but 0
        ({"max_vcpus": 0}, 68),
        ({"attributes": 1 << 29}, 64),  # MIGRATABLE came with 1.5
        ({"num_l2_vms": 1}, 2),  # reserved
        ({"arch_capabilities": 0x10}, 2),
        ({"config_flags": 2}, 66),  # FLEXIBLE_PENDING_VE came with 1.5
        ({"config_flags": 1}, 66),  # GPAW 52 on four levels
        ({"eptp_controls": 0x1D}, 67),
        ({"tsc_frequency": 3}, 70),
        ({"cpuid": {0: (1, 0, 0, 0)}}, 69),
        ({"max_vcpus": 0, "num_l2_vms": 1, "eptp_controls": 0, "config_flags": 2, "tsc_frequency": 3}, 68),
        ({"num_l2_vms": 1, "eptp_controls": 0, "config_flags": 2, "tsc_frequency": 3}, 2),
        ({"eptp_controls": 0, "config_flags": 2, "tsc_frequency": 3, "cpuid": {0: (1, 0, 0, 0)}}, 67),
        ({"config_flags": 2, "tsc_frequency": 3, "cpuid": {0: (1, 0, 0, 0)}}, 66),
        ({"tsc_frequency": 3, "cpuid": {0: (1, 0, 0, 0)}}, 70),
    ],
)
def test_rules_of_td_params_and_their_order(host: Host, change: dict[str, Any], operand: int | None) -> None:
    """ATTRIBUTES, XFAM, MAX_VCPUS, reserved, EPTP, EXEC_CONTROLS, TSC, CPUID."""
    tdr = host.uninitialized()
    status, _ = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(**change)))
    assert status == (0 if operand is None else INVALID | operand), describe(status)


# --- Secure EPT -------------------------------------------------------------------------------------------------------


@pytest.fixture
def mapped(host: Host) -> Any:
    """A TD that runs, with tables for GPA and one page there that its guest has accepted: TDR."""
    tdr, tdvpr, context = host.runnable(attributes=0)
    host.augment(tdr, GPA)

    def accept(guest: FakeContext) -> int:
        guest.gpr[0], guest.gpr[1] = 6, GPA
        return TDCALL

    host.guest(tdvpr, context, accept)
    assert context.gpr[0] == 0
    return tdr


def test_states_as_sept_rd_shows_them(host: Host, mapped: Any) -> None:
    assert read_entry(host, mapped, GPA + 4096)[1:] == (0, 0)
    assert read_entry(host, mapped, GPA)[1:] == (0, MAPPED)
    assert read_entry(host, mapped, GPA, 1)[1:] == (1, MAPPED)  # a table has no state of its own
    host.ok("TDH.MEM.PAGE.AUG", rcx=GPA + 8192, rdx=mapped, r8=host.page())
    assert read_entry(host, mapped, GPA + 8192)[2] == PENDING
    for gpa, state in ((GPA, BLOCKED), (GPA + 8192, PENDING_BLOCKED)):
        host.ok("TDH.MEM.RANGE.BLOCK", rcx=gpa, rdx=mapped)
        assert read_entry(host, mapped, gpa)[2] == state


def test_every_condition_has_a_status_of_its_own(host: Host, mapped: Any) -> None:
    free = GPA + 0x10_0000
    page, large = host.page(), GPA + (1 << 21)
    block = {"rcx": GPA, "rdx": mapped}
    is_(host.call("TDH.MEM.PAGE.AUG", **block, r8=page)[0], "EPT_ENTRY_NOT_FREE", 1)
    is_(host.call("TDH.MEM.SEPT.ADD", rcx=GPA | 1, rdx=mapped, r8=page)[0], "EPT_ENTRY_NOT_FREE", 1)
    is_(host.call("TDH.MEM.RANGE.BLOCK", rcx=free, rdx=mapped)[0], "EPT_ENTRY_FREE", 1)
    is_(host.call("TDH.MEM.RANGE.UNBLOCK", **block)[0], "GPA_RANGE_NOT_BLOCKED", 1)
    is_(host.call("TDH.MEM.PAGE.RELOCATE", **block, r8=page)[0], "GPA_RANGE_NOT_BLOCKED", 1)
    is_(host.call("TDH.MEM.PAGE.REMOVE", **block)[0], "GPA_RANGE_NOT_BLOCKED", 1)
    is_(host.call("TDH.MEM.PAGE.REMOVE", rcx=GPA | 1, rdx=mapped)[0], "EPT_ENTRY_NOT_LEAF", 1)
    is_(host.call("TDH.MEM.PAGE.DEMOTE", rcx=GPA | 1, rdx=mapped, r8=page)[0], "EPT_ENTRY_NOT_LEAF", 1)
    is_(host.call("TDH.MEM.SEPT.REMOVE", rcx=GPA | 1, rdx=mapped)[0], "GPA_RANGE_NOT_BLOCKED", 1)
    host.ok("TDH.MEM.RANGE.BLOCK", **block)
    is_(host.call("TDH.MEM.RANGE.BLOCK", **block)[0], "GPA_RANGE_ALREADY_BLOCKED", 1)
    is_(host.call("TDH.MEM.PAGE.REMOVE", **block)[0], "TLB_TRACKING_NOT_DONE", 1)
    is_(host.call("TDH.MEM.RANGE.UNBLOCK", **block)[0], "TLB_TRACKING_NOT_DONE", 146)  # the operand is the tree there
    host.ok("TDH.MEM.TRACK", rcx=mapped)
    host.ok("TDH.MEM.PAGE.REMOVE", **block)
    host.augment(mapped, large, level=1)
    is_(host.call("TDH.MEM.SEPT.REMOVE", rcx=large | 1, rdx=mapped)[0], "EPT_ENTRY_LEAF", 1)
    is_(host.call("TDH.MEM.PAGE.PROMOTE", rcx=large | 1, rdx=mapped)[0], "EPT_ENTRY_LEAF", 1)


def test_a_refused_entry_is_not_shown_but_one_where_a_walk_ended_is(host: Host, mapped: Any) -> None:
    _, args = host.call("TDH.MEM.PAGE.AUG", rcx=GPA, rdx=mapped, r8=host.page())
    assert (args.rcx, args.rdx) == (0, 0)
    status, args = host.call("TDH.MEM.PAGE.AUG", rcx=0, rdx=mapped, r8=host.page())
    is_(status, "EPT_WALK_FAILED", 1)
    assert (args.rcx, args.rdx) == (1 << 63 | 7, 2)  # free, at the level of 1 GiB


def test_a_table_that_is_not_empty_stays(host: Host, mapped: Any) -> None:
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA | 1, rdx=mapped)
    host.ok("TDH.MEM.TRACK", rcx=mapped)
    status, args = host.call("TDH.MEM.SEPT.REMOVE", rcx=GPA | 1, rdx=mapped)
    is_(status, "EPT_ENTRY_NOT_FREE", 1)
    assert (args.rcx, args.rdx) == (0, 0)


def test_pages_are_blocked_and_tracked_before_they_go_while_the_td_is_built_too(host: Host) -> None:
    tdr = host.build()
    hpa = host.add(tdr, GPA)
    is_(host.call("TDH.MEM.PAGE.REMOVE", rcx=GPA, rdx=tdr)[0], "GPA_RANGE_NOT_BLOCKED", 1)
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA, rdx=tdr)
    is_(host.call("TDH.MEM.PAGE.REMOVE", rcx=GPA, rdx=tdr)[0], "TLB_TRACKING_NOT_DONE", 1)
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    assert host.ok("TDH.MEM.PAGE.REMOVE", rcx=GPA, rdx=tdr).rcx == hpa


def test_a_free_entry_is_bit_63_alone(host: Host) -> None:
    tdr = host.build(attributes=1)
    assert host.ok("TDH.MNG.RD", rcx=tdr, rdx=0x21 << 56).r8 == 1 << 63  # SEPT_ROOT, of a debug TD
    is_(host.call("TDH.MEM.RD", rcx=GPA, rdx=tdr)[0], "EPT_WALK_FAILED", 1)
    host.tables(tdr, GPA)
    is_(host.call("TDH.MEM.RD", rcx=GPA, rdx=tdr)[0], "EPT_ENTRY_NOT_PRESENT", 1)


# --- guest ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def guest(host: Host) -> Any:
    """A TD that runs: run(step) -> context afterwards."""
    tdr = host.build(attributes=0)
    host.add(tdr, GPA, bytes(4096))
    tdvpr = host.vcpu(tdr)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)

    def run(step: Any) -> Any:
        host.guest(tdvpr, context, step)
        return context

    return run


@pytest.mark.parametrize("number", sorted({*TDCALL_NUMBERS.values(), 9} - set(range(9))))
def test_tdcalls_that_came_later(guest: Any, call: Callable[..., GuestStep], number: Any) -> None:
    assert guest(call(number)).gpr[0] == INVALID | Operand.RAX


@pytest.mark.parametrize("number", [1, 5, 7])
def test_tdcall_has_no_version(guest: Any, call: Callable[..., GuestStep], number: int) -> None:
    assert guest(call(number, version=1)).gpr[0] == INVALID | Operand.RAX


def test_vp_info_tells_of_no_sys_rd(guest: Any, call: Callable[..., GuestStep]) -> None:
    assert guest(call(1)).gpr[10] == 0


@pytest.mark.parametrize("leaf", [0x22, 0x23, 0x7FFF_FFFF, 0x8000_0009])
def test_cpuid_beyond_0x21_is_0x21(guest: Any, leaf: int) -> None:
    def step(number: Any) -> Any:
        def cpuid(context: FakeContext) -> int:
            context.gpr[0], context.gpr[1] = number, 0
            return 10

        return cpuid

    beyond = tuple(guest(step(leaf)).gpr[:4])
    assert beyond == tuple(guest(step(0x21)).gpr[:4])
    assert guest(step(0)).gpr[0] == 0x21
    assert (beyond[3] | beyond[2] << 32).to_bytes(8, "little") == b"IntelTDX"  # EBX, EDX; ECX are blanks


def test_a_report_of_former_days(host: Host, guest: Any, call: Callable[..., GuestStep]) -> None:
    """TEE_TCB_INFO.VALID 0x1FF, no second security version."""
    context = guest(call(4, rcx=GPA, rdx=GPA + REPORT_SIZE, r8=0))
    assert context.gpr[0] == 0
    (tdr,) = host.module.tds
    entry, _ = host.entry(tdr, GPA)
    report = bytes(host.memory.raw[entry & 0xFFFFFFFFFF000 :][:REPORT_SIZE])
    info = report[256:495]
    assert int.from_bytes(info[:8], "little") == 0x1FF
    assert info[8 + 16 + 48 + 48 + 8 :] == bytes(111)


# --- everything -------------------------------------------------------------------------------------------------------


KNOWN = {int(value, 16): name for value, name in published.facts()["statuses_1_0"].items()}
"""Status values of module 1.0, DETAILS_L2 zero."""


def test_former_codes_are_the_published_ones() -> None:
    now = {code.value & ~FATAL for code in StatusCode}
    former = {code.value: code.name for code in FormerStatus}
    assert {value: name for value, name in KNOWN.items() if value not in now} == {
        value: name for value, name in former.items() if value not in now
    }
    assert former.items() <= KNOWN.items()


def test_random_calls_find_none_but_its_own_statuses() -> None:
    result = campaign(2000, 10, version="1.0")
    assert not result.failures
    assert {answer.split()[1] for answer in result.answers} <= set(KNOWN.values())
    assert len(result.answers) > 100
