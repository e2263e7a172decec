# SPDX-License-Identifier: GPL-2.0-or-later
"""Building a TD: CREATE, KEY.CONFIG, ADDCX, and every rule of INIT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.status import Operand, StatusCode
from testing.seam.fake_host import FakeProcessor, Host

INVALID = StatusCode.OPERAND_INVALID
PERFMON, MIGRATABLE, ICSSD, PKS, KL = 1 << 63, 1 << 29, 1 << 16, 1 << 30, 1 << 31


# --- CREATE -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hkid", [0, 31, 64, 0x10021])
def test_create_wants_a_private_hkid(host: Host, hkid: int) -> None:
    assert host.call("TDH.MNG.CREATE", rcx=host.page(), rdx=hkid)[0] == INVALID | Operand.RDX


def test_create_checks_the_hkid_before_the_page(host: Host) -> None:
    assert host.call("TDH.MNG.CREATE", rcx=1, rdx=0)[0] == INVALID | Operand.RDX


@pytest.mark.parametrize(
    ("rcx", "status"),
    [
        (0x1000001, INVALID | Operand.RCX),
        (0x1000000 | 33 << 46, INVALID | Operand.RCX),
        (1 << 52, INVALID | Operand.RCX),
        (1 << 30, StatusCode.OPERAND_ADDR_RANGE_ERROR | Operand.RCX),
        (0, StatusCode.PAGE_METADATA_INCORRECT | Operand.RCX),  # reserved area
    ],
)
def test_create_page_operand(host: Host, rcx: int, status: int) -> None:
    assert host.call("TDH.MNG.CREATE", rcx=rcx, rdx=33)[0] == status


def test_create_wants_a_free_hkid_and_a_free_page(host: Host) -> None:
    tdr = host.create(hkid=33)
    assert host.call("TDH.MNG.CREATE", rcx=host.page(), rdx=33)[0] == StatusCode.HKID_NOT_FREE
    assert host.call("TDH.MNG.CREATE", rcx=host.page(), rdx=32)[0] == StatusCode.HKID_NOT_FREE  # the module's own
    assert host.call("TDH.MNG.CREATE", rcx=tdr, rdx=34)[0] == StatusCode.PAGE_METADATA_INCORRECT | Operand.RCX


def test_a_tdr_page_belongs_to_the_module(host: Host) -> None:
    tdr = host.page()
    host.memory.write(tdr, b"host data")
    host.ok("TDH.MNG.CREATE", rcx=tdr, rdx=33)
    assert host.memory.key_of(tdr) == 32
    assert host.memory.raw[tdr : tdr + 4096].tobytes() == bytes(4096)
    metadata = host.ok("TDH.PHYMEM.PAGE.RDMD", rcx=tdr)
    assert (metadata.rcx, metadata.rdx, metadata.r8) == (4, 0, 0)


# --- KEY.CONFIG, ADDCX ------------------------------------------------------------------------------------------------


def test_key_config_for_each_package(make_host: Callable[..., Host]) -> None:
    host = make_host(logical_processors=4, packages=2).bring_up()
    tdr = host.page()
    host.ok("TDH.MNG.CREATE", rcx=tdr, rdx=33)
    host.ok("TDH.MNG.KEY.CONFIG", rcx=tdr, lp=0)
    assert host.call("TDH.MNG.KEY.CONFIG", rcx=tdr, lp=1)[0] == StatusCode.KEY_CONFIGURED
    assert host.call("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)[0] == StatusCode.TD_KEYS_NOT_CONFIGURED
    host.ok("TDH.MNG.KEY.CONFIG", rcx=tdr, lp=2)
    assert host.call("TDH.MNG.KEY.CONFIG", rcx=tdr, lp=3)[0] == StatusCode.LIFECYCLE_STATE_INCORRECT


def test_addcx_takes_nine_pages_at_most(host: Host) -> None:
    tdr = host.uninitialized(pages=9)
    assert host.call("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)[0] == StatusCode.TDCX_NUM_INCORRECT
    assert host.module.tds[tdr].child_count == 9


def test_addcx_prepares_msr_bitmaps_and_the_sept_root(host: Host) -> None:
    tdr = host.uninitialized()
    pages = host.module.tds[tdr].tdcx
    raw = host.memory.raw
    assert raw[pages[2] : pages[2] + 4096].tobytes() == b"\xff" * 4096
    assert raw[pages[3] : pages[3] + 4096].tobytes() == (0x80E0 << 48).to_bytes(8, "little") * 512
    assert raw[pages[0] : pages[0] + 4096].tobytes() == bytes(4096)
    assert all(host.memory.key_of(page) == host.module.tds[tdr].hkid for page in pages)


def test_addcx_after_init_is_refused(host: Host) -> None:
    tdr = host.build()
    assert host.call("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)[0] == StatusCode.OP_STATE_INCORRECT


def test_operands_name_the_wrong_register(host: Host) -> None:
    tdr, page = host.create(), host.page()
    assert host.call("TDH.MNG.ADDCX", rcx=page, rdx=page)[0] == StatusCode.PAGE_METADATA_INCORRECT | Operand.RDX
    assert host.call("TDH.MNG.ADDCX", rcx=tdr, rdx=tdr)[0] == StatusCode.PAGE_METADATA_INCORRECT | Operand.RCX


# --- INIT -------------------------------------------------------------------------------------------------------------


def test_init_needs_keys_then_pages_then_its_state(host: Host) -> None:
    tdr = host.page()
    host.ok("TDH.MNG.CREATE", rcx=tdr, rdx=33)
    params = host.write(host.td_params())
    assert host.call("TDH.MNG.INIT", rcx=tdr, rdx=params)[0] == StatusCode.TD_KEYS_NOT_CONFIGURED
    host.ok("TDH.MNG.KEY.CONFIG", rcx=tdr)
    for _ in range(5):
        host.ok("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)
    assert host.call("TDH.MNG.INIT", rcx=tdr, rdx=params)[0] == StatusCode.TDCS_NOT_ALLOCATED
    host.ok("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)
    host.ok("TDH.MNG.INIT", rcx=tdr, rdx=params)
    assert host.call("TDH.MNG.INIT", rcx=tdr, rdx=params)[0] == StatusCode.OP_STATE_INCORRECT


@pytest.mark.parametrize("rdx", [0x1000200, 33 << 46 | 0x1000000, 1 << 52])
def test_init_params_must_be_a_shared_aligned_hpa(host: Host, rdx: int) -> None:
    assert host.call("TDH.MNG.INIT", rcx=host.uninitialized(), rdx=rdx)[0] == INVALID | Operand.RDX


RULES: dict[str, tuple[dict[str, Any], int]] = {
    "ATTRIBUTES outside FIXED0": ({"attributes": KL}, 64),
    "ATTRIBUTES reserved": ({"attributes": 2}, 64),
    "LASS is not native": ({"attributes": 1 << 27}, 64),
    "MIGRATABLE and DEBUG": ({"attributes": MIGRATABLE | 1}, 64),
    "MIGRATABLE and PERFMON": ({"attributes": MIGRATABLE | PERFMON}, 64),
    "PERFMON and ICSSD": ({"attributes": PERFMON | ICSSD}, 64),
    "XFAM without SSE": ({"xfam": 1}, 65),
    "XFAM not native": ({"xfam": 7}, 65),
    "XFAM PASID": ({"xfam": 3 | 1 << 10}, 65),
    "MAX_VCPUS 0": ({"max_vcpus": 0}, 68),
    "MAX_VCPUS 577": ({"max_vcpus": 577}, 68),
    "NUM_L2_VMS 4": ({"num_l2_vms": 4}, 71),
    "RESERVED_0": ({"reserved_0": b"\0\0\0\1"}, 2),
    "CONFIG_FLAGS": ({"config_flags": 0x10}, 66),
    "EPTP memory type": ({"eptp_controls": 0x18}, 67),
    "EPTP three levels": ({"eptp_controls": 0x16}, 67),
    "EPTP six levels": ({"eptp_controls": 0x2E}, 67),
    "EPTP accessed and dirty": ({"eptp_controls": 0x5E}, 67),
    "GPAW 52 with four levels": ({"config_flags": 5}, 67),
    "TSC 75 MHz": ({"tsc_frequency": 3}, 70),
    "TSC 10.025 GHz": ({"tsc_frequency": 401}, 70),
    "RESERVED_1": ({"reserved_1": b"\1"}, 2),
    "MSR_CONFIG_CTLS": ({"msr_config_ctls": 2}, 2),
    "RESERVED_2": ({"reserved_2": b"\1"}, 2),
    "RESERVED_3": ({"reserved_3": b"\1"}, 2),
    "ARCH_CAPABILITIES outside": ({"arch_capabilities": 1, "msr_config_ctls": 1}, 72),
    "ARCH_CAPABILITIES without control": ({"arch_capabilities": 0x10}, 72),
}


@pytest.mark.parametrize("case", RULES)
def test_init_rules(host: Host, case: str) -> None:
    change, operand = RULES[case]
    tdr = host.uninitialized()
    params = host.write(host.td_params(**change))
    before = host.snapshot()
    assert host.call("TDH.MNG.INIT", rcx=tdr, rdx=params)[0] == INVALID | operand
    assert host.snapshot() == before


FEATURES = {(0xD, 0): (0x602E7, 0, 0, 0), (0xD, 1): (0x1F, 0, 0xD900, 0)}


@pytest.mark.parametrize(
    ("xfam", "good"),
    [
        (3 | 4, True),
        (3 | 4 | 0xE0, True),
        (3 | 0xE0, False),
        (3 | 4 | 0x60, False),
        (3 | 3 << 11, True),
        (3 | 1 << 11, False),
        (3 | 3 << 17, True),
        (3 | 1 << 17, False),
        (3 | 1 << 8 | 1 << 9 | 1 << 14 | 1 << 15, True),
    ],
)
def test_xfam_combinations_on_a_processor_that_has_them(
    host: Host, processor: FakeProcessor, xfam: int, good: bool
) -> None:
    processor.cpuid_overrides |= FEATURES
    host.module.td_rules = type(host.module.td_rules)(processor, host.module.version)
    tdr = host.uninitialized()
    status, _ = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(xfam=xfam)))
    assert status == (0 if good else INVALID | Operand.XFAM)


def test_init_rules_come_in_order(host: Host) -> None:
    """Each later fault stays hidden behind an earlier one."""
    order = ["ATTRIBUTES reserved", "XFAM not native", "MAX_VCPUS 0", "NUM_L2_VMS 4", "RESERVED_0", "CONFIG_FLAGS",
             "EPTP memory type", "TSC 75 MHz", "RESERVED_1", "RESERVED_3"]  # fmt: skip
    tdr = host.uninitialized()
    for position, case in enumerate(order):
        change: dict[str, Any] = {}
        for later in reversed(order[position:]):
            change |= RULES[later][0]
        status, _ = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(**change)))
        assert status == INVALID | RULES[case][1], case


@pytest.mark.parametrize("l2_vms", [1, 3])
def test_l2_vms_need_pages(host: Host, l2_vms: int) -> None:
    tdr = host.uninitialized(pages=6)
    params = host.write(host.td_params(num_l2_vms=l2_vms))
    assert host.call("TDH.MNG.INIT", rcx=tdr, rdx=params)[0] == StatusCode.TDCS_NOT_ALLOCATED
    for _ in range(l2_vms):
        host.ok("TDH.MNG.ADDCX", rcx=host.page(), rdx=tdr)
    host.ok("TDH.MNG.INIT", rcx=tdr, rdx=params)


def test_a_migratable_td_has_no_l2_vms(host: Host) -> None:
    tdr = host.uninitialized(pages=7)
    params = host.write(host.td_params(attributes=MIGRATABLE, num_l2_vms=1))
    assert host.call("TDH.MNG.INIT", rcx=tdr, rdx=params)[0] == INVALID | Operand.RDX


# --- CPUID configuration ----------------------------------------------------------------------------------------------

NO_SUBLEAF = 0xFFFFFFFF << 32


@pytest.mark.parametrize(
    ("slot", "value", "where"),
    [
        (0, (0, 1, 0, 0), 1 | NO_SUBLEAF),  # EBX brand index is not configurable
        (0, (0, 0, 1 << 12, 0), 1 | NO_SUBLEAF),  # FMA is not configurable
        (1, (1 << 11, 0, 0, 0), 4),
        (2, (1 << 11, 0, 0, 0), 4 | 1 << 32),
        (5, (0, 1, 0, 0), 7),
        (9, (1 << 8, 0, 0, 0), 0x80000008 | NO_SUBLEAF),
        (0, (0x00050000, 0, 0, 0), 1 | NO_SUBLEAF),  # a foreign family, model, stepping
    ],
)
def test_cpuid_config_faults_report_their_leaf(host: Host, slot: int, value: Any, where: int) -> None:
    tdr = host.uninitialized()
    status, args = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(cpuid={slot: value})))
    assert status == INVALID | Operand.CPUID_CONFIG
    assert args.rcx == where


def test_a_bit_that_the_processor_lacks_may_be_asked_for(host: Host) -> None:
    tdr = host.build(cpuid={5: (0, 1 << 3, 0, 0)})  # BMI1
    assert not host.module.tds[tdr].cpuid.values[7, 0][1] & 1 << 3


def test_cpuid_is_checked_leaf_by_leaf(host: Host) -> None:
    """The model of leaf 1 comes before the bits of leaf 4, and TSX of leaf 7 before those of leaf 0x80000008."""
    tdr = host.uninitialized()
    for cpuid, where in (
        ({0: (0x00050000, 0, 0, 0), 1: (1 << 11, 0, 0, 0)}, 1 | NO_SUBLEAF),
        ({5: (0, 1 << 4, 0, 0), 9: (1 << 8, 0, 0, 0)}, 0x80000008 | NO_SUBLEAF),
    ):
        _, args = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(cpuid=cpuid)))
        assert args.rcx == where


def test_a_success_leaves_rcx_zero(host: Host) -> None:
    tdr = host.uninitialized()
    assert host.ok("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params())).rcx == 0


@pytest.mark.parametrize(("maxpa", "good"), [(44, False), (45, True), (48, True), (49, False), (0, True)])
def test_virtual_maxpa(host: Host, maxpa: int, good: bool) -> None:
    tdr = host.uninitialized()
    params = host.td_params(config_flags=0xC, cpuid={9: (maxpa, 0, 0, 0)})
    status, args = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(params))
    assert status == (0 if good else INVALID | Operand.CPUID_CONFIG)
    if good:
        assert host.module.tds[tdr].gpa_limit == 1 << min(maxpa or 48, 47)
        assert host.module.tds[tdr].virt_maxpa == (maxpa or min(host.processor.platform.physical_address_bits, 48))
    else:
        assert args.rcx == 0


SMT, CORE, DIE = 1 << 8, 2 << 8, 5 << 8


@pytest.mark.parametrize(
    ("levels", "good"),
    [
        ([SMT, CORE | 1], True),
        ([SMT, CORE | 1, DIE | 2], True),
        ([CORE], True),
        ([SMT], False),  # no core level
        ([CORE, SMT | 1], False),  # SMT not first
        ([SMT, CORE], False),  # level number
        ([SMT, 0, CORE | 2], False),  # a gap
        ([SMT, DIE | 1, CORE | 2], False),  # types fall
    ],
)
def test_topology_leaf(host: Host, levels: Any, good: bool) -> None:
    tdr = host.uninitialized()
    cpuid = {12 + number: (1, 1, level, 0) for number, level in enumerate(levels)}
    status, _ = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(cpuid=cpuid)))
    assert status == (0 if good else StatusCode.CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)


# --- what follows from the parameters ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "eptp", "gpaw", "levels", "shared_bit"),
    [(4, 0x1E, 48, 4, 47), (4, 0x26, 48, 5, 47), (5, 0x26, 52, 5, 51)],
)
def test_gpa_width_and_levels(host: Host, flags: int, eptp: int, gpaw: int, levels: int, shared_bit: int) -> None:
    td = host.module.tds[host.build(config_flags=flags, eptp_controls=eptp)]
    assert (td.gpaw, td.sept.levels, td.shared_bit) == (gpaw, levels, 1 << shared_bit)
    assert td.sept.eptp == td.tdcx[3] | eptp


def test_virtual_tsc_starts_at_zero_with_the_frequency_asked_for(host: Host, processor: FakeProcessor) -> None:
    td = host.module.tds[host.build(tsc_frequency=40)]
    assert td.tsc_multiplier == 1 << 47  # 1 GHz of 2 GHz
    virtual = (processor.tsc * td.tsc_multiplier >> 48) + td.tsc_offset & (1 << 64) - 1
    assert virtual == 0


def test_sept_ve_disable_sets_pending_ve_disable(host: Host) -> None:
    assert host.module.tds[host.build(attributes=1 << 28)].pending_ve_disable
    assert not host.module.tds[host.build(attributes=0)].pending_ve_disable
