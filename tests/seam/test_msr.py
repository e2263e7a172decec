# SPDX-License-Identifier: GPL-2.0-or-later
"""MSRs of a TD: every table row read and written, the bitmap, the accesses the module carries out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam import tables
from swtdx.seam.msr import HELD_BY_CONTEXT, X2APIC_NATIVE
from testing.seam.fake_host import FakeContext, FakeProcessor, GuestStep, Host

GP, VE = (13, 3, 0), (20, 3, None)
RDMSR, WRMSR = 31, 32


def rdmsr(index: int) -> Any:
    def step(context: FakeContext) -> Any:
        context.gpr[1], context.gpr[0], context.gpr[2] = index, 0xAAAA, 0xBBBB
        return RDMSR

    return step


def wrmsr(index: int, value: int) -> Any:
    def step(context: FakeContext) -> Any:
        context.gpr[1], context.gpr[0], context.gpr[2] = index, value & 0xFFFFFFFF, value >> 32
        return WRMSR

    return step


@pytest.fixture
def td(host: Host) -> Any:
    return host.runnable()


def value(context: FakeContext) -> Any:
    return context.gpr[0] | context.gpr[2] << 32


def outcome(host: Host, td: Any, step: Any) -> Any:
    """The exception of an access, or None."""
    _, tdvpr, context = td
    context.injected.clear()
    host.module.vcpus[tdvpr].ve.valid = False
    host.guest(tdvpr, context, step)
    return context.injected[0] if context.injected else None


WITHOUT = {"PERFMON", "XFAM_CET", "XFAM_PT", "XFAM_ULI", "XFAM_LBR", "PKS", "TSX", "OTHER", "UMWAIT", "XFD"}
"""Conditions that do not hold for a TD with XFAM 3 and no attributes on the emulated processor."""


def expected(rule: Any) -> Any:
    if rule.startswith("native if"):
        rule = rule.split(" else ")[1]
    return {"#GP(0)": GP, "#VE": VE}.get(rule)


def test_every_row(host: Host, td: Any) -> None:
    """tests/seam/test_tables.py compares the rows with the published ones."""
    rows = tables.load("msr")["rows"]
    assert len(rows) > 100
    for name, first, last, *rules in rows:
        for index in {int(first, 16), int(last, 16)}:
            for rule, step in zip(rules, (rdmsr(index), wrmsr(index, 0)), strict=True):
                if "feature dependent" in rule:
                    assert outcome(host, td, step) in (GP, VE)
                elif expected(rule) is not None:
                    assert outcome(host, td, step) == expected(rule), (name, rule)


@pytest.mark.parametrize("index", [0x1B, 0x830, 0x832, 0x838, 0x1FFF, 0x2000, 0xC0000083, 0xC0002000, 0xFFFFFFFF])
def test_what_the_table_does_not_list_raises_ve(host: Host, td: Any, index: int) -> None:
    assert outcome(host, td, rdmsr(index)) == VE
    assert outcome(host, td, wrmsr(index, 1)) == VE
    assert host.module.vcpus[td[1]].ve.exit_reason == WRMSR


def bit(bitmap: Any, index: int, write: Any) -> Any:
    quarter = (2 if write else 0) + (1 if index >= 0xC0000000 else 0)
    return bitmap[1024 * quarter + ((index & 0x1FFF) >> 3)] >> (index & 7) & 1


def test_the_bitmap_lets_native_msrs_of_the_processor_pass(host: Host, td: Any) -> None:
    _, _, context = td
    bitmap = context.bitmap
    assert len(bitmap) == 4096
    for index in (0x174, 0x277, 0xC0000081, 0xC0000082, 0xC0000100, 0xC0000102, 0xC0000103, *X2APIC_NATIVE):
        assert not bit(bitmap, index, write=False), hex(index)
        assert not bit(bitmap, index, write=True), hex(index)
    assert not bit(bitmap, 0x10, write=False)
    assert bit(bitmap, 0x10, write=True)
    assert not bit(bitmap, 0xC0000080, write=False)
    assert bit(bitmap, 0xC0000080, write=True)  # EFER
    for index in (0x10A, 0x802, 0x830, 0x1B, 0x6E0, 0xDA0, 0xC0000083):
        assert bit(bitmap, index, write=False), hex(index)
    passing = sum(8 - byte.bit_count() for byte in bitmap[:2048])
    assert passing <= len(HELD_BY_CONTEXT)


def test_the_bitmap_is_in_the_tdcs(host: Host, td: Any) -> None:
    tdr, _, context = td
    page = host.module.tds[tdr].tdcx[2]
    assert host.memory.raw[page : page + 4096].tobytes() == context.bitmap


@pytest.mark.parametrize(
    ("old", "new", "raised"),
    [
        (0xD01, 0xD01, None),
        (0xD01, 0xD00, None),  # SCE is free
        (0xD01, 0x901, None),  # LMA is read-only and ignored
        (0xD01, 0x501, VE),  # NXE
        (0xD01, 0xC01, VE),  # LME
        (0x901, 0xD01, None),
        (0xD01, 0x1D01, VE),
    ],
)
def test_efer(host: Host, td: Any, old: int, new: int, raised: int | None) -> None:
    context = td[2]
    context.efer = old
    rip = context.rip
    assert outcome(host, td, wrmsr(0xC0000080, new)) == raised
    assert context.efer == (old if raised else new & ~0x400 | old & 0x400)
    assert context.rip == rip + (0 if raised else context.instruction_length)


def test_arch_capabilities_and_their_configuration(host: Host, processor: FakeProcessor) -> None:
    """Bits 4, 20 and 24 need processor and configuration, bit 19 either; bit 7 needs TSX; 21 is 1, and no other."""
    always = 0x20F16B
    assert processor.rdmsr(0x10A) & always == always
    plain = host.runnable()
    host.guest(plain[1], plain[2], rdmsr(0x10A))
    assert value(plain[2]) == always | processor.rdmsr(0x10A) & 1 << 19
    assert outcome(host, plain, wrmsr(0x10A, 0)) == GP


@pytest.mark.parametrize(
    ("native", "configured", "seen"),
    [
        (0, 0, 0),
        (0, 0x118_0010, 1 << 19),
        (0x118_0010, 0, 1 << 19),
        (0x118_0010, 0x110_0010, 0x118_0010),
        (1 << 4, 1 << 20 | 1 << 4, 1 << 4),
        (1 << 7, 0, 0),
        (1 << 9 | 1 << 16 | 1 << 17 | 1 << 22 | 1 << 23, 0, 0),
        (0xFFFF_FFFF_FE00_0000, 0, 0),
    ],
)
def test_arch_capabilities_that_differ(
    cold: Host, processor: FakeProcessor, native: int, configured: int, seen: int
) -> None:
    processor.msrs[0x10A] = 0x20FD6B | native
    host = cold.bring_up()
    td = host.runnable(msr_config_ctls=1, arch_capabilities=configured)
    host.guest(td[1], td[2], rdmsr(0x10A))
    assert value(td[2]) == 0x20F16B | seen


def test_xss_within_xfam(host: Host, td: Any) -> None:
    assert outcome(host, td, wrmsr(0xDA0, 0)) is None
    assert outcome(host, td, wrmsr(0xDA0, 1 << 8)) == GP
    assert outcome(host, td, rdmsr(0xDA0)) is None
    assert value(td[2]) == 0


@pytest.mark.parametrize(
    ("wanted", "raised"),
    [
        (1, None),
        (1 << 63, GP),
        (1 << 63 | 1 << 6, GP),
        (1 << 6, VE),
        (1 << 7 | 1 << 6, None),
        (1 << 14, GP),
        (1 << 15, GP),
        (1 << 14 | 1 << 6, VE),
        (1 << 15 | 1 << 6, VE),
    ],
)
def test_debugctl(host: Host, td: Any, wanted: int, raised: int | None) -> None:
    assert outcome(host, td, wrmsr(0x1D9, wanted)) == raised
    outcome(host, td, rdmsr(0x1D9))
    assert value(td[2]) == (0 if raised else wanted)


def test_x2apic_id_needs_topology(host: Host, call: Callable[..., GuestStep]) -> None:
    tdr = host.build()
    tdvpr = host.vcpu(tdr, x2apic_id=5)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    td = tdr, tdvpr, context
    assert outcome(host, td, rdmsr(0x802)) == VE
    host.guest(tdvpr, context, call(8, rdx=0x9110000300000017, r8=2, r9=2))
    assert outcome(host, td, rdmsr(0x802)) is None
    assert value(context) == 5


def test_predictor_commands_are_write_only(host: Host, td: Any) -> None:
    assert outcome(host, td, wrmsr(0x49, 1)) is None
    assert outcome(host, td, wrmsr(0x49, 2)) == GP
    assert outcome(host, td, rdmsr(0x49)) == GP


def test_misc_enable_is_emulated(host: Host, td: Any) -> None:
    assert outcome(host, td, rdmsr(0x1A0)) is None
    assert value(td[2]) == 0x850089 & ~(1 << 7) | 1 << 12  # no perfmon, no PEBS; the rest is native
    assert outcome(host, td, wrmsr(0x1A0, 1)) == VE


def test_msrs_that_no_context_holds_keep_their_value(host: Host, td: Any) -> None:
    assert outcome(host, td, wrmsr(0x600, 0x1234_5678_9ABC)) is None  # DS_AREA
    outcome(host, td, rdmsr(0x600))
    assert value(td[2]) == 0x1234_5678_9ABC


@pytest.mark.parametrize(("deadline", "raised"), [(0, GP), (1 << 24, VE)])
def test_tsc_deadline_follows_its_feature(host: Host, deadline: int, raised: int) -> None:
    td = host.runnable(cpuid={0: (0, 0, deadline, 0)})
    assert outcome(host, td, wrmsr(0x6E0, 1)) == raised
