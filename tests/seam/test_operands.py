# SPDX-License-Identifier: GPL-2.0-or-later
"""Operands that name no TD, no virtual CPU and no page; and checks that no other file has reason to meet."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam import report
from swtdx.seam.status import Operand, StatusCode
from swtdx.x86 import Gpr, Msr
from testing.seam.fake_host import GuestStep, Host
from tests.seam.test_contention import WITH_TDR_IN_RCX, WITH_TDR_IN_RDX, WITH_TDVPR

GPA = 0x8000_0000
OUTSIDE = 1 << 40
WRONG = [
    (8, StatusCode.OPERAND_INVALID),
    (1 << 46, StatusCode.OPERAND_INVALID),
    (OUTSIDE, StatusCode.OPERAND_ADDR_RANGE_ERROR),
    (0x3000_0000, StatusCode.PAGE_METADATA_INCORRECT),  # a free page
]


@pytest.mark.parametrize(("hpa", "status"), WRONG)
@pytest.mark.parametrize("name", WITH_TDR_IN_RCX + WITH_TDVPR)
def test_no_td_or_virtual_cpu_in_rcx(host: Host, name: str, hpa: int, status: int) -> None:
    host.build()
    before = host.snapshot()
    assert host.call(name, rcx=hpa, rdx=1)[0] == status | Operand.RCX
    assert host.snapshot() == before


@pytest.mark.parametrize(("hpa", "status"), WRONG)
@pytest.mark.parametrize("name", [*WITH_TDR_IN_RDX, "TDH.VP.ADDCX"])
def test_no_td_or_virtual_cpu_in_rdx(host: Host, name: Any, hpa: int, status: int) -> None:
    host.build()
    before = host.snapshot()
    assert host.call(name, rcx=GPA, rdx=hpa)[0] == status | Operand.RDX
    assert host.snapshot() == before


@pytest.mark.parametrize(("hpa", "status"), WRONG[:3])
@pytest.mark.parametrize("name", ["TDH.PHYMEM.PAGE.RDMD", "TDH.PHYMEM.PAGE.RECLAIM", "TDH.PHYMEM.PAGE.WBINVD"])
def test_no_page(host: Host, name: str, hpa: int, status: int) -> None:
    if hpa == 1 << 46 and name == "TDH.PHYMEM.PAGE.WBINVD":
        hpa = 1 << 52  # it takes a KeyID
    assert host.call(name, rcx=hpa)[0] == status | Operand.RCX


@pytest.mark.parametrize("name", ["TDH.PHYMEM.PAGE.RDMD", "TDH.PHYMEM.PAGE.WBINVD"])
def test_a_reader_minds_only_an_exclusive_holder(host: Host, name: str) -> None:
    page = host.page()
    with host.module.contention.hold_page(page):
        assert host.call(name, rcx=page)[0] == 0
    with host.module.contention.hold_page(page, exclusive=True):
        assert host.call(name, rcx=page)[0] == StatusCode.OPERAND_BUSY | Operand.RCX


@pytest.mark.parametrize(("name", "in_rcx"), [("TDH.MNG.ADDCX", False), ("TDH.MNG.KEY.CONFIG", True)])
def test_a_dead_td_grows_no_further(host: Host, name: str, in_rcx: bool) -> None:
    tdr = host.uninitialized()
    host.module.tds[tdr].die()
    page = host.page()
    status, _ = host.call(name, rcx=tdr if in_rcx else page, rdx=tdr)
    assert status == StatusCode.TD_FATAL


def test_sept_remove_waits_for_tracking(host: Host) -> None:
    tdr, *_ = host.runnable()
    host.tables(tdr, GPA)
    host.ok("TDH.MEM.RANGE.BLOCK", rcx=GPA | 1, rdx=tdr)
    assert host.call("TDH.MEM.SEPT.REMOVE", rcx=GPA | 1, rdx=tdr)[0] == StatusCode.TLB_TRACKING_NOT_DONE | Operand.RCX
    host.ok("TDH.MEM.TRACK", rcx=tdr)
    host.ok("TDH.MEM.SEPT.REMOVE", rcx=GPA | 1, rdx=tdr)


@pytest.mark.parametrize("name", ["TDH.VP.RD", "TDH.VP.WR"])
def test_a_virtual_cpu_that_is_not_ready_has_no_fields(host: Host, name: str) -> None:
    tdr, tdvpr = host.build(), host.page()
    host.ok("TDH.VP.CREATE", rcx=tdvpr, rdx=tdr)
    assert host.call(name, rcx=tdvpr, rdx=1)[0] == StatusCode.TDCX_NUM_INCORRECT
    for _ in range(5):
        host.ok("TDH.VP.ADDCX", rcx=host.page(), rdx=tdvpr)
    assert host.call(name, rcx=tdvpr, rdx=1)[0] == StatusCode.VCPU_STATE_INCORRECT


# --- the processor's registers ----------------------------------------------------------------------------------------


def test_cpuid_is_limited(host: Host) -> None:
    tdr = host.uninitialized()
    host.processor.msrs[0x1A0] |= 1 << 22
    assert host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.page())[0] == StatusCode.LIMIT_CPUID_MAXVAL_SET
    assert host.call("TDH.IMPORT.STATE.IMMUTABLE", rcx=1)[0] == StatusCode.LIMIT_CPUID_MAXVAL_SET


def test_somebody_adjusted_the_tsc(cold: Host) -> None:
    cold.ok("TDH.SYS.INIT")
    cold.processor.msrs[0x3B] = 5
    assert cold.call("TDH.SYS.LP.INIT")[0] == StatusCode.INCONSISTENT_MSR | Msr.TSC_ADJUST
    cold.processor.msrs[0x3B] = 0
    cold.ok("TDH.SYS.LP.INIT")


def test_somebody_adjusted_the_tsc_before_a_td_was_made(host: Host) -> None:
    tdr = host.uninitialized()
    host.processor.msrs[0x3B] = 5
    registers = {"rcx": tdr, "rdx": host.write(host.td_params())}
    assert host.call("TDH.MNG.INIT", **registers)[0] == StatusCode.INCONSISTENT_MSR | Msr.TSC_ADJUST
    host.processor.msrs[0x3B] = 0
    host.ok("TDH.MNG.INIT", **registers)


def test_somebody_adjusted_the_tsc_before_a_virtual_cpu_was_made(host: Host) -> None:
    tdr, tdvpr = host.build(), host.page()
    host.ok("TDH.VP.CREATE", rcx=tdvpr, rdx=tdr)
    for _ in range(5):
        host.ok("TDH.VP.ADDCX", rcx=host.page(), rdx=tdvpr)
    host.processor.msrs[0x3B] = 5
    assert host.call("TDH.VP.INIT", rcx=tdvpr)[0] == StatusCode.INCONSISTENT_MSR | Msr.TSC_ADJUST
    assert host.module.tds[tdr].num_vcpus == 1  # counted all the same, as on the real module


def test_no_memory_is_convertible(cold: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(cold.processor.platform), "cmrs", property(lambda _: ()))
    assert cold.call("TDH.SYS.INIT")[0] == StatusCode.CMR_LIST_INVALID


# --- guest ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leaf", [7, 8, 9, 10])
def test_a_guest_reads_and_writes_only_its_own_fields(host: Host, call: Callable[..., GuestStep], leaf: int) -> None:
    _, tdvpr, context = host.runnable()
    host.guest(tdvpr, context, call(leaf, rcx=1, rdx=1))
    assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.RCX


def test_verifyreport_of_another_security_version(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr, tdvpr, context = host.runnable(attributes=0)
    hpa = host.augment(tdr, GPA)
    host.guest(tdvpr, context, call(6, rcx=GPA), call(4, rcx=GPA, rdx=GPA + 1024, r8=0))
    head = bytearray(host.memory.raw[hpa : hpa + 224])
    head[16] ^= 1
    identity = host.module.identity
    host.memory.raw[hpa : hpa + 256] = bytes(head) + report.mac(identity, bytes(head))
    host.guest(tdvpr, context, call(22, rcx=GPA))
    assert context.gpr[Gpr.RAX] == StatusCode.INVALID_CPUSVN
    for gpa in (GPA + 8, 1 << 47):
        host.guest(tdvpr, context, call(22, rcx=gpa))
        assert context.gpr[Gpr.RAX] == StatusCode.OPERAND_INVALID | Operand.RCX
