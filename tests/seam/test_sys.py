# SPDX-License-Identifier: GPL-2.0-or-later
"""Bringing the module up: order, every TDMR rule of SYS.CONFIG, what SYS.INFO and SYS.RD say."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.cpuid import rows
from swtdx.seam.status import Operand, StatusCode
from testing.seam.fake_host import FakeProcessor, Host

MIB, GIB = 1 << 20, 1 << 30


def invalid(operand: Any) -> Any:
    return StatusCode.OPERAND_INVALID | operand


# --- order ------------------------------------------------------------------------------------------------------------


def test_sys_init_wants_rcx_zero_and_happens_once(cold: Host) -> None:
    assert cold.call("TDH.SYS.INIT", rcx=1)[0] == invalid(1)
    cold.ok("TDH.SYS.INIT")
    assert cold.call("TDH.SYS.INIT")[0] == StatusCode.SYS_INIT_NOT_PENDING


def test_sys_init_refuses_a_processor_without_its_features(processor: FakeProcessor, cold: Host) -> None:
    processor.cpuid_overrides[0, 0] = (0x23, 0, 0, 0)
    status, args = cold.call("TDH.SYS.INIT")
    assert status == StatusCode.INCORRECT_CPUID_VALUE
    assert args.rcx == 0 | 0xFFFFFFFF << 32
    assert args.r9 == 0x756E6547 << 32  # EBX "Genu" wanted
    processor.cpuid_overrides.clear()
    cold.ok("TDH.SYS.INIT")


@pytest.mark.parametrize(
    ("leaf", "registers", "status"),
    [
        ((0, 0), (0x1E, 0x756E6547, 0x6C65746E, 0x49656E69), StatusCode.CPUID_LEAF_NOT_SUPPORTED | 0x1F),
        ((0x8000_0000, 0), (0x8000_0007, 0, 0, 0), StatusCode.CPUID_LEAF_NOT_SUPPORTED | 0x8000_0008),
        ((0x15, 0), (1, 0, 25_000_000, 0), StatusCode.CPUID_LEAF_NOT_SUPPORTED | 0x15),  # no TSC frequency
        ((0x8000_0008, 0), (46 | 48 << 8, 1 << 9, 0, 0), StatusCode.INCORRECT_CPUID_VALUE),  # but LA57
        ((7, 2), (0, 0, 0, 7), StatusCode.INCORRECT_CPUID_VALUE),  # no BHI_CTRL
        ((0x1F, 0), (0, 0, 0, 0), StatusCode.CPUID_LEAF_NOT_SUPPORTED),
        ((0x1F, 1), (0, 0, 1, 0), StatusCode.CPUID_LEAF_NOT_SUPPORTED),  # threads, and no cores
        ((0x1F, 0), (0, 1, 2 << 8, 0), StatusCode.CPUID_LEAF_1F_FORMAT_UNRECOGNIZED),  # then cores come twice
        ((4, 3), (0x04000163, 0x0380003F, 0x6FFF, 4), StatusCode.INVALID_WBINVD_SCOPE),  # a cache for each processor
        ((0x1F, 2), (0, 1, 6 << 8 | 2, 0), StatusCode.CPUID_LEAF_1F_FORMAT_UNRECOGNIZED),  # a level without a meaning
    ],
)
def test_sys_init_refuses_a_processor_that_it_cannot_describe(
    processor: FakeProcessor, cold: Host, leaf: Any, registers: Any, status: int
) -> None:
    processor.cpuid_overrides[leaf] = registers
    assert cold.call("TDH.SYS.INIT")[0] == status
    processor.cpuid_overrides.clear()
    cold.ok("TDH.SYS.INIT")


def test_sys_init_looks_at_cpuid_in_the_order_of_its_table(processor: FakeProcessor, cold: Host) -> None:
    """The leaves that TD_PARAMS configures come first there."""
    assert rows()[1, None].lookup_index < rows()[0, None].lookup_index
    processor.cpuid_overrides |= {(0, 0): (0x23, 0, 0, 0), (1, 0): (0, 0, 0, 0)}
    status, args = cold.call("TDH.SYS.INIT")
    assert (status, args.rcx & 0xFFFFFFFF) == (StatusCode.INCORRECT_CPUID_VALUE, 1)


@pytest.mark.parametrize(("version", "most"), [("1.5.06", 2048), ("1.0", 128)])
def test_sys_init_knows_so_many_keyids(make_host: Callable[..., Host], version: str, most: int) -> None:
    for private, status in ((most - 1 - 60, 0), (most - 60, StatusCode.NUM_ACTIVATED_HKIDS_NOT_SUPPORTED | most)):
        platform = {"keyid_bits": 12, "mktme_keyids": 60, "tdx_keyids": private, "module_version": version}
        assert make_host(**platform).call("TDH.SYS.INIT")[0] == status


def test_sys_init_refuses_a_limited_cpuid(processor: FakeProcessor, cold: Host) -> None:
    processor.msrs[0x1A0] = 1 << 22
    assert cold.call("TDH.SYS.INIT")[0] == StatusCode.LIMIT_CPUID_MAXVAL_SET


@pytest.mark.parametrize(
    ("msr", "bits"),
    [
        (0x10A, [0, 1, 2, 3, 5, 6, 8, 10, 11, 12, 13, 14, 15, 18, 21]),
        (0xBD, [0, 1, 63]),
        (0xBC, [0]),
        (0x345, [12, 13]),
        (0x1A0, [7, 11]),
    ],
)
def test_sys_init_demands_msrs_of_the_processor(
    processor: FakeProcessor, cold: Host, msr: int, bits: list[int]
) -> None:
    good = processor.msrs[msr]
    for bit in bits:
        processor.msrs[msr] = good ^ 1 << bit
        assert cold.call("TDH.SYS.INIT")[0] == StatusCode.INCORRECT_MSR_VALUE | msr
    processor.msrs[msr] = good
    cold.ok("TDH.SYS.INIT")


def test_sys_init_checks_msrs_in_order(processor: FakeProcessor, cold: Host) -> None:
    """Those of vulnerabilities and mitigations, then the limit of CPUID, then performance monitoring, then CPUID."""
    good = dict(processor.msrs)
    processor.msrs |= {0x10A: 0, 0xBD: 0, 0xBC: 0, 0x345: 0, 0x1A0: 1 << 22}
    processor.cpuid_overrides[0, 0] = (0, 0, 0, 0)
    for msr in (0x10A, 0xBD, 0xBC, 0x345):
        assert cold.call("TDH.SYS.INIT")[0] == StatusCode.INCORRECT_MSR_VALUE | msr
        processor.msrs[msr] = good[msr]
    assert cold.call("TDH.SYS.INIT")[0] == StatusCode.LIMIT_CPUID_MAXVAL_SET
    processor.msrs[0x1A0] = 0
    assert cold.call("TDH.SYS.INIT")[0] == StatusCode.INCORRECT_MSR_VALUE | 0x1A0
    processor.msrs[0x1A0] = good[0x1A0]
    assert cold.call("TDH.SYS.INIT")[0] == StatusCode.CPUID_LEAF_NOT_SUPPORTED | 0x1F


def test_lp_init_follows_sys_init_and_happens_once_each(cold: Host) -> None:
    assert cold.call("TDH.SYS.LP.INIT")[0] == StatusCode.SYS_LP_INIT_NOT_PENDING
    cold.ok("TDH.SYS.INIT")
    cold.ok("TDH.SYS.LP.INIT", lp=0)
    assert cold.call("TDH.SYS.LP.INIT", lp=0)[0] == StatusCode.SYS_LP_INIT_DONE
    cold.ok("TDH.SYS.LP.INIT", lp=1)


def test_lp_init_knows_eight_packages(make_host: Callable[..., Host]) -> None:
    host = make_host(packages=9, logical_processors=9)
    host.ok("TDH.SYS.INIT")
    for lp in range(8):
        host.ok("TDH.SYS.LP.INIT", lp=lp)
    assert host.call("TDH.SYS.LP.INIT", lp=8)[0] == StatusCode.INVALID_PKG_ID | 8


def test_config_needs_every_logical_processor(cold: Host) -> None:
    cold.ok("TDH.SYS.INIT")
    cold.ok("TDH.SYS.LP.INIT", lp=0)
    assert cold.config(cold.default_tdmr())[0] == StatusCode.SYS_CONFIG_NOT_PENDING
    cold.ok("TDH.SYS.LP.INIT", lp=1)
    assert cold.config(cold.default_tdmr())[0] == 0
    assert cold.config(cold.default_tdmr())[0] == StatusCode.SYS_CONFIG_NOT_PENDING


def test_key_config_once_for_each_package(make_host: Callable[..., Host]) -> None:
    host = make_host(logical_processors=4, packages=2)
    host.start()
    assert host.call("TDH.SYS.KEY.CONFIG")[0] == StatusCode.SYS_KEY_CONFIG_NOT_PENDING
    assert host.config(host.default_tdmr())[0] == 0
    host.ok("TDH.SYS.KEY.CONFIG", lp=0)
    assert host.call("TDH.SYS.KEY.CONFIG", lp=1)[0] == StatusCode.KEY_CONFIGURED
    assert host.call("TDH.MNG.CREATE")[0] == StatusCode.SYS_NOT_READY
    host.ok("TDH.SYS.KEY.CONFIG", lp=2)
    assert host.call("TDH.SYS.KEY.CONFIG", lp=3)[0] == StatusCode.SYS_KEY_CONFIG_NOT_PENDING


def test_tdmr_init_reports_progress_in_gib_and_ends(cold: Host) -> None:
    cold.start()
    cold.config(cold.default_tdmr())
    cold.ok("TDH.SYS.KEY.CONFIG")
    calls = 0
    while True:
        status, args = cold.call("TDH.SYS.TDMR.INIT", rcx=0)
        assert status == 0
        calls += 1
        if args.rdx == GIB:
            break
        assert args.rdx == 0
    assert calls > 1  # a host must call again and again
    assert cold.call("TDH.SYS.TDMR.INIT", rcx=0)[0] == StatusCode.TDMR_ALREADY_INITIALIZED


@pytest.mark.parametrize("base", [4096, GIB, 1 << 46, 1 << 52, 1 << 63])
def test_tdmr_init_wants_the_base_of_a_tdmr(host: Host, base: int) -> None:
    status, args = host.call("TDH.SYS.TDMR.INIT", rcx=base, rdx=77)
    assert status == invalid(1)
    assert args.rdx == 0


def test_no_page_of_a_block_that_is_not_wholly_initialised_is_usable(cold: Host) -> None:
    cold.start()
    cold.config(cold.default_tdmr())
    cold.ok("TDH.SYS.KEY.CONFIG")
    cold.ok("TDH.SYS.TDMR.INIT", rcx=0)
    page = cold.page()
    assert cold.call("TDH.MNG.CREATE", rcx=page, rdx=33)[0] == StatusCode.OPERAND_ADDR_RANGE_ERROR | Operand.RCX
    assert cold.call("TDH.PHYMEM.PAGE.RDMD", rcx=page)[0] == StatusCode.OPERAND_ADDR_RANGE_ERROR | Operand.RCX


# --- SYS.CONFIG operands ----------------------------------------------------------------------------------------------


@pytest.fixture
def started(cold: Host) -> Any:
    cold.start()
    return cold


@pytest.mark.parametrize("rcx", [0x1000200 | 1, 0x1000100, 1 << 52, 32 << 46])
def test_config_array_must_be_a_shared_aligned_hpa(started: Any, rcx: int) -> None:
    assert started.call("TDH.SYS.CONFIG", rcx=rcx, rdx=1, r8=32)[0] == invalid(1)


@pytest.mark.parametrize("count", [0, 65])
def test_config_count(started: Any, count: int) -> None:
    assert started.config(started.default_tdmr(), count=count)[0] == invalid(2)


@pytest.mark.parametrize("hkid", [0, 31, 64, 1 << 16 | 32])
def test_config_hkid_must_be_private(started: Any, hkid: int) -> None:
    assert started.config(started.default_tdmr(), hkid=hkid)[0] == invalid(8)


def test_config_pointer_must_be_aligned(started: Any) -> None:
    array = started.write(struct.pack("<Q", started.page() + 64))
    assert started.call("TDH.SYS.CONFIG", rcx=array, rdx=1, r8=32)[0] == invalid(1)


def test_a_refused_tdmr_leaves_the_hkid_reserved_and_the_state(started: Any) -> None:
    assert started.config(started.tdmr(size=0))[0] == StatusCode.INVALID_TDMR
    assert started.module.kot.state(32).name == "RESERVED"
    assert started.config(started.default_tdmr(), hkid=33)[0] == 0


# --- TDMR rules -------------------------------------------------------------------------------------------------------


@pytest.fixture
def two_gib(make_host: Callable[..., Host]) -> Any:
    """A started host with 2 GiB."""
    host = make_host(memory_size=2 * GIB)
    host.start()
    return host


def pamt_sizes(size: int = GIB) -> Any:
    return [max(4096, size >> shift << 4) for shift in (30, 21, 12)]


RESERVED = [(0, 16 * MIB)]
BASE_RULES = {
    "size zero": ({"size": 0}, StatusCode.INVALID_TDMR),
    "base not aligned": ({"base": MIB}, StatusCode.INVALID_TDMR),
    "size not aligned": ({"size": GIB + MIB}, StatusCode.INVALID_TDMR),
    "base overflows": ({"base": (1 << 64) - GIB, "size": GIB}, StatusCode.INVALID_TDMR),
    "KeyID bits": ({"base": 1 << 46}, StatusCode.INVALID_TDMR),
    "outside CMRs": ({"base": 2 * GIB}, StatusCode.TDMR_OUTSIDE_CMRS),
}


@pytest.mark.parametrize("case", BASE_RULES)
def test_region_rules(two_gib: Any, case: Any) -> None:
    change, status = BASE_RULES[case]
    assert two_gib.config(two_gib.tdmr(**{"reserved": RESERVED} | change))[0] == status


def test_a_tdmr_must_follow_the_one_before(two_gib: Any) -> None:
    first = two_gib.tdmr(base=GIB, pamt=0x10_0000)
    second = two_gib.tdmr(base=0, pamt=0x80_0000, reserved=RESERVED)
    assert two_gib.config(first, second)[0] == StatusCode.NON_ORDERED_TDMR | 1
    assert two_gib.config(first, first)[0] == StatusCode.NON_ORDERED_TDMR | 1


@pytest.mark.parametrize(
    ("reserved", "status"),
    [
        ([(0, 16 * MIB), (8 * MIB, 16 * MIB)], StatusCode.NON_ORDERED_RESERVED_IN_TDMR | 1 << 8),
        ([(64 * MIB, MIB), (0, 16 * MIB)], StatusCode.NON_ORDERED_RESERVED_IN_TDMR | 1 << 8),
        ([(0, 16 * MIB), (0, 0), (64 * MIB, MIB)], StatusCode.NON_ORDERED_RESERVED_IN_TDMR | 1 << 8),
        ([(0, 16 * MIB), (64 * MIB + 1, MIB)], StatusCode.INVALID_RESERVED_IN_TDMR | 1 << 8),
        ([(0, 16 * MIB + 8)], StatusCode.INVALID_RESERVED_IN_TDMR),
        ([(0, 16 * MIB), (GIB, 4096)], StatusCode.INVALID_RESERVED_IN_TDMR | 1 << 8),
        ([(0, 16 * MIB), ((1 << 64) - 4096, 8192)], StatusCode.INVALID_RESERVED_IN_TDMR | 1 << 8),
    ],
)
def test_reserved_area_rules(two_gib: Any, reserved: Any, status: int) -> None:
    assert two_gib.config(two_gib.tdmr(reserved=reserved))[0] == status


def with_pamt(host: Host, index: int, base: Any = None, length: Any = None) -> Any:
    """A good TDMR with one metadata array (0: 1 GiB, 1: 2 MiB, 2: 4 KiB entries) changed."""
    words = list(struct.unpack("<40Q", host.tdmr(reserved=RESERVED)))
    if base is not None:
        words[2 + 2 * index] = base
    if length is not None:
        words[3 + 2 * index] = length
    return struct.pack("<40Q", *words)


@pytest.mark.parametrize(("index", "code"), [(0, 2), (1, 1), (2, 0)])
@pytest.mark.parametrize("fault", [{"base": 0x10_0008}, {"length": 0}, {"base": (1 << 64) - 4096}, {"base": 1 << 46}])
def test_pamt_form_rules(two_gib: Any, index: int, code: int, fault: dict[str, Any]) -> None:
    assert two_gib.config(with_pamt(two_gib, index, **fault))[0] == StatusCode.INVALID_PAMT | code << 8


def test_pamt_must_be_large_enough(two_gib: Any) -> None:
    short = with_pamt(two_gib, 2, length=(GIB >> 12 << 4) - 4096)
    assert two_gib.config(short)[0] == StatusCode.INVALID_PAMT


def test_pamt_must_not_lie_in_memory_that_it_describes(two_gib: Any) -> None:
    assert two_gib.config(with_pamt(two_gib, 2, base=512 * MIB))[0] == StatusCode.PAMT_OVERLAP


def test_pamts_must_not_overlap(two_gib: Any) -> None:
    assert two_gib.config(with_pamt(two_gib, 1, base=0x10_0000))[0] == StatusCode.PAMT_OVERLAP | 1 << 8


def test_pamt_of_one_tdmr_in_another(two_gib: Any) -> None:
    first = two_gib.tdmr(reserved=RESERVED, pamt=GIB + MIB)
    second = two_gib.tdmr(base=GIB, pamt=0x10_0000)
    status, _ = two_gib.config(first, second)
    assert status & ~0xFFFFFFFF == StatusCode.PAMT_OVERLAP


def test_pamt_must_be_convertible_memory(two_gib: Any) -> None:
    assert two_gib.config(with_pamt(two_gib, 2, base=4 * GIB))[0] == StatusCode.PAMT_OUTSIDE_CMRS


def test_two_tdmrs_are_accepted_and_initialised_independently(two_gib: Any) -> None:
    first = two_gib.tdmr(reserved=RESERVED, pamt=0x10_0000)
    second = two_gib.tdmr(base=GIB, pamt=0x80_0000)
    assert two_gib.config(first, second)[0] == 0
    two_gib.ok("TDH.SYS.KEY.CONFIG")
    while two_gib.ok("TDH.SYS.TDMR.INIT", rcx=GIB).rdx < 2 * GIB:
        pass
    assert two_gib.call("TDH.MNG.CREATE", rcx=GIB + MIB, rdx=33)[0] == 0
    assert two_gib.call("TDH.MNG.CREATE", rcx=512 * MIB, rdx=34)[0] == StatusCode.OPERAND_ADDR_RANGE_ERROR | Operand.RCX


# --- SYS.INFO and SYS.RD ----------------------------------------------------------------------------------------------


def test_sys_info_fills_both_structures(host: Host) -> None:
    info, cmrs = host.page(), host.page()
    args = host.ok("TDH.SYS.INFO", rcx=info, rdx=1024, r8=cmrs, r9=32)
    assert (args.rdx, args.r9) == (1024, 32)
    data = host.memory.read(info, 1024)
    assert struct.unpack_from("<I", data, 4) == (0x8086,)
    assert struct.unpack_from("<HHB", data, 14) == (5, 1, 1)  # 1.5, SYS.RD available
    assert struct.unpack_from("<HHH", data, 32) == (64, 16, 16)
    assert struct.unpack_from("<H", data, 48) == (24576,)
    assert struct.unpack_from("<H", data, 52) == (24576,)
    # the emulated processor has no LASS; its XFAM is x87, SSE, PKRU
    assert struct.unpack_from("<QQQQ", data, 64) == (0x8000000070010001, 0, 0x203 & 0x6DBE7, 3)
    assert struct.unpack_from("<I", data, 128) == (18,)
    leaves = [struct.unpack_from("<II", data, 132 + 24 * slot) for slot in range(18)]
    assert leaves[:3] == [(1, 0xFFFFFFFF), (4, 0), (4, 1)]
    assert leaves[9] == (0x80000008, 0xFFFFFFFF)
    assert leaves[17] == (0x1F, 5)
    assert struct.unpack_from("<QQQ", host.memory.read(cmrs, 512), 0) == (0, GIB, 0)


@pytest.mark.parametrize(
    ("change", "operand"), [({"rcx": 0x1000200}, 1), ({"rdx": 1023}, 2), ({"r8": 0x1000100}, 8), ({"r9": 31}, 9)]
)
def test_sys_info_operands(host: Host, change: dict[str, Any], operand: int) -> None:
    operands = {"rcx": host.page(), "rdx": 1024, "r8": host.page(), "r9": 32} | change
    status, args = host.call("TDH.SYS.INFO", **operands)
    assert status == invalid(operand)
    assert (args.rdx, args.r9) == (0, 0)


def test_sys_info_and_rd_need_an_initialised_lp(cold: Host) -> None:
    for name in ("TDH.SYS.INFO", "TDH.SYS.RD"):
        assert cold.call(name)[0] == StatusCode.SYS_LP_INIT_NOT_DONE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (0x0800000200000000, 0x8086),
        (0x0800000100000003, 5),
        (0x0800000100000004, 1),
        (0x0800000100000005, 6),
        (0x9100000100000008, 64),
        (0x9800000100000100, 24576),
        (0x9900000100000004, 18),
        (0x9900000100000008, 576),
        (0x9900000000000009, 45),
        (0x9900000300000006, 0xF),
        (0x9000000100000000, 32),  # of which the second is empty
        (0x9000000300000100, GIB),
        (0x9900000300000600, 0x1180010),
        (0x9900000300000400, 0xFFFFFFFF00000001),
        (0x9900000300000412, (1 << 64) - 1),
    ],
)
@pytest.mark.parametrize("form", ["whole", "class and code", "other context"])
def test_sys_rd_values(host: Host, field: int, value: int, form: str) -> None:
    if form == "class and code":  # what KVM passes
        field &= 0x3F00000000FFFFFF
    elif form == "other context":
        field |= 2 << 52
    assert host.ok("TDH.SYS.RD", rdx=field).r8 == value


def test_sys_rd_walks_all_fields(host: Host) -> None:
    status, args = host.call("TDH.SYS.RD", rdx=(1 << 64) - 1)
    assert status == StatusCode.METADATA_FIRST_FIELD_ID_IN_CONTEXT
    assert args.rdx == 0x0000000200000000
    field, count = args.rdx, 0
    while field != (1 << 64) - 1:
        field = host.ok("TDH.SYS.RD", rdx=field).rdx
        count += 1
    # 67 fields; those with several elements: 8 FMS, 2 x 32 CMRs, 32 leaves, 64 values, 2 x 64 FMS lists
    assert count == 67 - 7 + 8 + 64 + 32 + 64 + 128


@pytest.mark.parametrize("field", [0x7F << 56, 0x0800000200000099, 1 << 34 | 0x0800000200000000, 1 << 38, 1 << 24])
def test_sys_rd_of_a_wrong_id(host: Host, field: int) -> None:
    status, args = host.call("TDH.SYS.RD", rdx=field, r8=5)
    assert status == StatusCode.METADATA_FIELD_ID_INCORRECT
    assert (args.rdx, args.r8) == ((1 << 64) - 1, 0)


def test_features_that_are_not_there_are_not_offered(host: Host) -> None:
    features = host.ok("TDH.SYS.RD", rdx=0x0A00000300000008).r8
    assert features & ~0x2E1F0FBF == 0
    assert not features & (1 << 0 | 1 << 7)  # migration, partitioning
    assert features >> 18 & 1  # NO_RBP_MOD, without which KVM refuses the module
    assert features >> 20 & 1  # topology enumeration


def test_faults_of_a_tdmr_are_found_in_the_order_of_the_module(cold: Host) -> None:
    """An empty reserved area before another is the one that is named; all sizes of metadata before any overlap."""
    cold.start()
    empty_first = cold.tdmr(reserved=[(0, 0x100_0000), (0, 0), (0x200_0000, 0x1000)])
    assert cold.config(empty_first)[0] == StatusCode.NON_ORDERED_RESERVED_IN_TDMR | 1 << 8
    unordered = cold.tdmr(reserved=[(0, 0x100_0000), (0x800, 0x1000)])  # not aligned either
    assert cold.config(unordered, hkid=33)[0] == StatusCode.NON_ORDERED_RESERVED_IN_TDMR | 1 << 8
    good = bytearray(cold.default_tdmr())
    good[16:24], good[48:56] = good[32:40], (0x123).to_bytes(8, "little")  # 1G lies on 2M; 4K is not aligned
    assert cold.config(bytes(good), hkid=34)[0] == StatusCode.INVALID_PAMT
