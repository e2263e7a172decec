# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual CPUs before they run: CREATE, ADDCX, INIT and its architectural state, association, FLUSH."""

from __future__ import annotations

from typing import Any

import pytest

from swtdx.seam.lifecycle import VcpuState
from swtdx.seam.status import Operand, StatusCode
from testing.seam.fake_host import FakeProcessor, Host

INVALID = StatusCode.OPERAND_INVALID


@pytest.fixture
def td(host: Host) -> Any:
    return host.build()


def created(host: Host, td: Any, pages: int = 5) -> Any:
    tdvpr = host.page()
    host.ok("TDH.VP.CREATE", rcx=tdvpr, rdx=td)
    for _ in range(pages):
        host.ok("TDH.VP.ADDCX", rcx=host.page(), rdx=tdvpr)
    return tdvpr


def test_create_names_the_wrong_operand(host: Host, td: Any) -> None:
    assert (
        host.call("TDH.VP.CREATE", rcx=host.page(), rdx=host.page())[0]
        == StatusCode.PAGE_METADATA_INCORRECT | Operand.RDX
    )
    assert host.call("TDH.VP.CREATE", rcx=td, rdx=td)[0] == StatusCode.PAGE_METADATA_INCORRECT | Operand.RCX


def test_addcx_takes_fifteen_pages_in_all(host: Host, td: Any) -> None:
    tdvpr = created(host, td, pages=14)
    assert host.call("TDH.VP.ADDCX", rcx=host.page(), rdx=tdvpr)[0] == StatusCode.TDCX_NUM_INCORRECT


def test_addcx_after_init_is_refused(host: Host, td: Any) -> None:
    tdvpr = host.vcpu(td)
    assert host.call("TDH.VP.ADDCX", rcx=host.page(), rdx=tdvpr)[0] == StatusCode.VCPU_STATE_INCORRECT


def test_init_needs_all_pages_and_happens_once(host: Host, td: Any) -> None:
    tdvpr = created(host, td, pages=4)
    assert host.call("TDH.VP.INIT", rcx=tdvpr)[0] == StatusCode.TDCX_NUM_INCORRECT
    host.ok("TDH.VP.ADDCX", rcx=host.page(), rdx=tdvpr)
    host.ok("TDH.VP.INIT", rcx=tdvpr)
    assert host.call("TDH.VP.INIT", rcx=tdvpr)[0] == StatusCode.VCPU_STATE_INCORRECT


def test_init_stops_at_max_vcpus(host: Host) -> None:
    td = host.build(max_vcpus=1)
    host.vcpu(td)
    assert host.call("TDH.VP.INIT", rcx=created(host, td))[0] == StatusCode.MAX_VCPUS_EXCEEDED


def test_init_version_1_wants_a_32_bit_unique_id(host: Host, td: Any) -> None:
    first, second = created(host, td), created(host, td)
    assert host.call("TDH.VP.INIT", version=1, rcx=first, r8=1 << 32)[0] == INVALID | Operand.R8
    host.ok("TDH.VP.INIT", version=1, rcx=first, r8=7)
    assert host.module.tds[td].num_vcpus == 1
    assert host.call("TDH.VP.INIT", version=1, rcx=second, r8=7)[0] == StatusCode.X2APIC_ID_NOT_UNIQUE | 7
    assert host.module.tds[td].num_vcpus == 2  # counted, as on the real module
    host.ok("TDH.VP.INIT", version=1, rcx=second, r8=8)
    assert host.module.vcpus[second].index == 2


def test_one_init_of_version_0_ends_topology_enumeration(host: Host, td: Any) -> None:
    host.vcpu(td, x2apic_id=0)
    assert host.module.tds[td].topology_enum_configured
    host.vcpu(td)
    assert not host.module.tds[td].topology_enum_configured


@pytest.mark.parametrize(("flags", "eptp", "gpaw"), [(4, 0x1E, 48), (5, 0x26, 52)])
def test_initial_state(host: Host, processor: FakeProcessor, flags: int, eptp: int, gpaw: int) -> None:
    """Section "vCPU initial state" of the module's facts: every register by value."""
    td = host.build(config_flags=flags, eptp_controls=eptp)
    host.vcpu(td, x2apic_id=0)
    host.vcpu(td, x2apic_id=9, rcx=0xABCD)
    context = processor.contexts[-1]
    gpr = list(context.gpr)
    assert gpr[3] == gpaw
    assert gpr[1] == gpr[8] == 0xABCD
    assert gpr[2] == processor.cpuid(1)[0]
    assert gpr[6] == 1
    assert all(gpr[number] == 0 for number in (0, 4, 5, 7, *range(9, 16)))
    assert (context.rip, context.rflags) == (0xFFFFFFF0, 2)
    assert (context.cr0, context.cr4, context.cr3, context.cr2) == (0x21, 0x2040, 0, 0)
    assert (context.efer, context.xcr0) == (0x901, 1)
    assert context.segment(1) == (0, 0, 0xFFFFFFFF, 0xC09B)
    assert all(context.segment(s) == (0, 0, 0xFFFFFFFF, 0xC093) for s in (0, 2, 3, 4, 5))
    assert context.segment(6) == (0, 0, 0xFFFF, 0x10082)
    assert context.segment(7) == (0, 0, 0xFFFF, 0x8B)
    assert context.segment(8)[1:3] == (0, 0xFFFF)
    assert context.segment(9)[1:3] == (0, 0)
    assert context.msrs[0x277] == 0x0007040600070406
    assert context.msrs[0xC0000084] == 0x20200
    assert (context.dr[6], context.dr[7]) == (0xFFFF0FF0, 0x400)
    assert context.exception_bitmap == 1 << 18
    assert (context.cr4_read_shadow, context.cr0_read_shadow) == (0x40, 0x21)
    assert context.tdx_mode is True
    assert context.apicv is True
    module_td = host.module.tds[td]
    assert context.ept == module_td.tdcx[3] | eptp
    assert context.shared_ept == (0, 1 << gpaw - 1)


def test_init_associates_with_the_logical_processor(host: Host, td: Any) -> None:
    tdvpr = host.vcpu(td, lp=1)
    assert host.module.tds[td].num_associated == 1
    assert host.call("TDH.VP.FLUSH", rcx=tdvpr, lp=0)[0] == StatusCode.VCPU_NOT_ASSOCIATED
    host.ok("TDH.VP.FLUSH", rcx=tdvpr, lp=1)
    assert host.module.tds[td].num_associated == 0
    assert host.call("TDH.VP.FLUSH", rcx=tdvpr, lp=1)[0] == StatusCode.VCPU_NOT_ASSOCIATED


def test_flush_wants_a_virtual_cpu_with_all_its_pages(host: Host, td: Any) -> None:
    assert host.call("TDH.VP.FLUSH", rcx=created(host, td, pages=0))[0] == StatusCode.TDCX_NUM_INCORRECT


def test_flush_of_a_td_without_keys(host: Host, td: Any) -> None:
    tdvpr = host.vcpu(td)
    host.ok("TDH.VP.FLUSH", rcx=tdvpr)
    host.ok("TDH.MNG.VPFLUSHDONE", rcx=td)
    assert host.call("TDH.VP.FLUSH", rcx=tdvpr)[0] == StatusCode.TD_KEYS_NOT_CONFIGURED


def test_flush_does_not_ask_for_fatal(host: Host, td: Any) -> None:
    tdvpr = host.vcpu(td)
    host.module.tds[td].die()
    host.ok("TDH.VP.FLUSH", rcx=tdvpr)


def test_a_virtual_cpu_on_another_processor_is_not_reached(host: Host) -> None:
    tdr, tdvpr, context = host.runnable()
    assert host.enter(tdvpr, lp=1)[0] == StatusCode.VCPU_ASSOCIATED
    assert host.call("TDH.VP.RD", rcx=tdvpr, rdx=0x2010, lp=1)[0] == StatusCode.VCPU_ASSOCIATED
    host.ok("TDH.VP.FLUSH", rcx=tdvpr)
    host.ok("TDH.VP.RD", rcx=tdvpr, rdx=0x2010, lp=1)
    assert host.enter(tdvpr, lp=0)[0] == StatusCode.VCPU_ASSOCIATED
    context.queue(1)
    assert host.enter(tdvpr, lp=1)[0] == 1
    assert host.module.vcpus[tdvpr].state is VcpuState.READY
    assert tdr in host.module.tds
