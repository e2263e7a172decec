# SPDX-License-Identifier: GPL-2.0-or-later
"""Metadata of TDs and virtual CPUs for the host: identifiers, masks, special writes, iteration."""

from __future__ import annotations

from typing import Any

import pytest

from swtdx.seam import metadata
from swtdx.seam.metadata import Accessor
from swtdx.seam.status import StatusCode
from swtdx.seam.version import module_version
from testing.seam.fake_host import Host

CURRENT = module_version("1.5.06")
NONE = (1 << 64) - 1
FULL = NONE
POSTED_NV, POSTED_DESCRIPTOR, SHARED_EPTP, PIN = 0x0002, 0x2016, 0x203C, 0x4000
HP_LOCK_TIMEOUT = 0x9110000300000011


@pytest.fixture
def td(host: Host) -> Any:
    return host.runnable()


def context_of(context: int) -> int:
    return context << 52


def test_every_field_is_found_by_its_id_and_by_class_and_code() -> None:
    for table in (metadata.system_fields(), metadata.td_fields(CURRENT), metadata.vcpu_fields(CURRENT)):
        for field in table.fields:
            assert table.find(field.field_id) == (field, 0)
            short = field.field_id & 0x3F00000000FFFFFF
            assert table.find(short) == (field, 0)
            if field.name != metadata.CPUID_VALUES:
                last = field.field_id + (field.count - 1) * field.stride
                assert table.find(last) == (field, field.count - 1)


@pytest.mark.parametrize("debug", [False, True])
def test_td_fields_follow_their_masks(host: Host, debug: bool) -> None:
    """Each of the 86 fields, read: allowed by the table's mask, or METADATA_FIELD_NOT_READABLE."""
    tdr = host.build(attributes=int(debug))
    accessor = Accessor.DEBUG if debug else Accessor.PRODUCTION
    for field in metadata.td_fields(CURRENT).fields:
        if field.name == metadata.CPUID_VALUES:
            continue
        status, args = host.call("TDH.MNG.RD", rcx=tdr, rdx=field.field_id)
        mask = field.masks[accessor][0]
        assert status == (0 if mask else StatusCode.METADATA_FIELD_NOT_READABLE), field.name
        assert args.r8 & ~mask == 0


@pytest.mark.parametrize("debug", [False, True])
def test_vcpu_fields_follow_their_masks(host: Host, debug: bool) -> None:
    tdr = host.build(attributes=int(debug))
    tdvpr = host.vcpu(tdr)
    accessor = Accessor.DEBUG if debug else Accessor.PRODUCTION
    for field in metadata.vcpu_fields(CURRENT).fields:
        status, args = host.call("TDH.VP.RD", rcx=tdvpr, rdx=field.field_id)
        mask = field.masks[accessor][0]
        assert status == (0 if mask else StatusCode.METADATA_FIELD_NOT_READABLE), field.name
        assert args.r8 & ~mask == 0


def test_fields_kvm_reads(host: Host, td: Any) -> None:
    tdr, tdvpr, _ = td
    module_td = host.module.tds[tdr]
    assert host.ok("TDH.MNG.RD", rcx=tdr, rdx=0x110000000000000A).r8 == module_td.tsc_offset
    assert host.ok("TDH.MNG.RD", rcx=tdr, rdx=0x110000000000000B).r8 == module_td.tsc_multiplier
    assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=0x1100000000000100 | 1 << 63).r8 == 0  # VCPU_STATE_DETAILS


def test_vcpu_state_details_tell_of_a_pending_interrupt(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    details = 0x9120000300000100
    context.vapic[0x200 + 0x10 * 1] = 1 << 1  # vector 33 requested
    assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=details).r8 == 1
    context.vapic[0xA0] = 0x20  # processor priority at its class
    assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=details).r8 == 0


@pytest.mark.parametrize("identifier", [1 << 62, 1 << 55, 1 << 47, 1 << 34, 1 << 38, 1 << 24])
def test_reserved_and_list_bits(host: Host, identifier: int) -> None:
    tdr = host.build()
    status, _ = host.call("TDH.MNG.RD", rcx=tdr, rdx=0x1110000300000001 | identifier)
    assert status == StatusCode.METADATA_FIELD_ID_INCORRECT


def test_version_1_walks_all_readable_fields(host: Host) -> None:
    tdr = host.build()
    status, args = host.call("TDH.MNG.RD", version=1, rcx=tdr, rdx=NONE)
    assert status == StatusCode.METADATA_FIRST_FIELD_ID_IN_CONTEXT
    assert args.rdx == 0x8010000000000001
    field, seen = args.rdx, []
    while field != NONE:
        seen.append(field)
        field = host.ok("TDH.MNG.RD", version=1, rcx=tdr, rdx=field).rdx
    assert len(seen) == len(set(seen))
    readable = [f for f in metadata.td_fields(CURRENT).fields if f.masks[Accessor.PRODUCTION][0]]
    cpuid = 2 * len(host.module.tds[tdr].cpuid.values)
    assert len(seen) == cpuid + sum(f.count for f in readable if f.name != metadata.CPUID_VALUES)


def test_version_0_knows_no_first_field(host: Host) -> None:
    status, _ = host.call("TDH.MNG.RD", rcx=host.build(), rdx=NONE)
    assert status == StatusCode.METADATA_FIELD_ID_INCORRECT


def test_the_upper_half_of_a_vmcs_field_is_no_field(host: Host, td: Any) -> None:
    _, tdvpr, _ = td
    assert host.call("TDH.VP.RD", rcx=tdvpr, rdx=0x2011)[0] == StatusCode.METADATA_FIELD_ID_INCORRECT


# --- writes -----------------------------------------------------------------------------------------------------------


def test_hp_lock_timeout(host: Host, td: Any) -> None:
    tdr = td[0]
    write = {"rcx": tdr, "rdx": HP_LOCK_TIMEOUT, "r9": FULL}
    assert host.call("TDH.MNG.WR", **write, r8=9_999)[0] == StatusCode.METADATA_FIELD_VALUE_NOT_VALID
    assert host.call("TDH.MNG.WR", **write, r8=100_000_001)[0] == StatusCode.METADATA_FIELD_VALUE_NOT_VALID
    assert host.call("TDH.MNG.WR", **write | {"r9": 0xFF}, r8=0)[0] == StatusCode.METADATA_WR_MASK_NOT_VALID
    assert host.ok("TDH.MNG.WR", **write, r8=10_000).r8 == 1_000_000
    assert host.ok("TDH.MNG.RD", rcx=tdr, rdx=HP_LOCK_TIMEOUT).r8 == 10_000


def test_a_read_only_field_is_not_written(host: Host, td: Any) -> None:
    for field in (0x1110000300000000, 0x9210000300000000):
        status, _ = host.call("TDH.MNG.WR", rcx=td[0], rdx=field, r8=0, r9=FULL)
        assert status == StatusCode.METADATA_FIELD_NOT_WRITABLE


def test_posted_interrupts(host: Host, td: Any) -> None:
    """Vector and descriptor first, then the control; each with its own rule."""
    _, tdvpr, context = td
    descriptor = host.page()
    pin = {"rcx": tdvpr, "rdx": PIN, "r8": 0x80, "r9": 0x80}
    assert host.call("TDH.VP.WR", **pin)[0] == StatusCode.TD_VMCS_FIELD_NOT_INITIALIZED
    status, _ = host.call("TDH.VP.WR", rcx=tdvpr, rdx=POSTED_NV, r8=256, r9=0xFFFF)
    assert status == StatusCode.METADATA_FIELD_VALUE_NOT_VALID
    assert host.ok("TDH.VP.WR", rcx=tdvpr, rdx=POSTED_NV, r8=0xF2, r9=0xFFFF).r8 == 0xFFFF
    assert host.call("TDH.VP.WR", **pin)[0] == StatusCode.TD_VMCS_FIELD_NOT_INITIALIZED
    mask = 0xFFFFFFFFFFFFFFC0
    for bad in (33 << 46 | descriptor, 1 << 52):
        status, _ = host.call("TDH.VP.WR", rcx=tdvpr, rdx=POSTED_DESCRIPTOR, r8=bad, r9=mask)
        assert status == StatusCode.METADATA_FIELD_VALUE_NOT_VALID
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=POSTED_DESCRIPTOR, r8=descriptor, r9=FULL)  # a full mask, as KVM does it
    assert context.posted_interrupt_descriptor == 0
    host.ok("TDH.VP.WR", **pin)
    assert context.posted_interrupt_descriptor == descriptor
    host.ok("TDH.VP.WR", **pin | {"r8": 0})
    assert context.posted_interrupt_descriptor == 0


def test_shared_eptp(host: Host, td: Any) -> None:
    _, tdvpr, context = td
    root = host.page()
    mask = 0xFFFFFFFFFF000
    status, _ = host.call("TDH.VP.WR", rcx=tdvpr, rdx=SHARED_EPTP, r8=33 << 46, r9=mask)
    assert status == StatusCode.METADATA_FIELD_VALUE_NOT_VALID
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=SHARED_EPTP, r8=root, r9=mask)
    assert context.shared_ept == (root | 0x1E, 1 << 47)
    assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=SHARED_EPTP).r8 == root


def test_guest_state_of_a_production_td_is_out_of_reach(host: Host, td: Any) -> None:
    _, tdvpr, _ = td
    for field in (0x681E, 0x6800, 0x800, 0x1020000300000000):
        assert host.call("TDH.VP.RD", rcx=tdvpr, rdx=field)[0] == StatusCode.METADATA_FIELD_NOT_READABLE
        status, _ = host.call("TDH.VP.WR", rcx=tdvpr, rdx=field, r8=0, r9=FULL)
        assert status == StatusCode.METADATA_FIELD_NOT_WRITABLE


def test_guest_state_of_a_debug_td(host: Host) -> None:
    _, tdvpr, context = host.runnable(attributes=1)
    assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=0x681E).r8 == context.rip
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=0x681E, r8=0x1000, r9=FULL)
    assert context.rip == 0x1000
    assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=0x4816).r8 == context.segment(1)[3]  # CS access rights
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=0x6808, r8=0x5000, r9=FULL)  # CS base
    assert context.segment(1)[1] == 0x5000
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=0x1020000300000002, r8=0x77, r9=0xFF)  # RDX
    assert context.gpr[2] & 0xFF == 0x77
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=0x1020000300000002, r8=0x1100, r9=0xFF00)
    assert context.gpr[2] & 0xFFFF == 0x1177


def test_the_host_of_a_debug_td_learns_why_it_left_and_sees_its_registers(host: Host) -> None:
    tdr = host.build(attributes=1)
    tdvpr = host.vcpu(tdr)
    context = host.processor.contexts[-1]
    context.exit_qualification, context.exit_reason, context.interruption_info = 0x4001, 0, 0x80000301
    for code, value in ((0x6400, 0x4001), (0x4402, 0), (0x4404, 0x80000301)):
        assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=code).r8 == value
        status, _ = host.call("TDH.VP.WR", rcx=tdvpr, rdx=code, r8=0, r9=0xFFFF)
        assert status == StatusCode.METADATA_FIELD_NOT_WRITABLE
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=0x4824, r8=1, r9=0xFFFFFFFF)
    assert context.interruptibility == 1
    host.ok("TDH.VP.WR", rcx=tdvpr, rdx=0x4004, r8=0xA, r9=0xA)
    assert context.exception_bitmap == 1 << 18 | 0xA
    assert host.ok("TDH.VP.RD", rcx=tdvpr, rdx=0x1220000300000000 + 3).r8 == 0x1F1E1D1C1B1A1918  # MXCSR and its mask
