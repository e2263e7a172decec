# SPDX-License-Identifier: GPL-2.0-or-later
"""CPUID of a TD: table values, configuration, what follows the running state, what raises #VE."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from swtdx.seam.cpuid import config_order, rows
from swtdx.seam.status import StatusCode
from testing.seam.fake_host import FakeContext, FakeProcessor, GuestStep, Host

VE = (20, 3, None)
TD_CTLS = 0x9110000300000017


@pytest.fixture
def ask(host: Host) -> Any:
    """Ask CPUID in a guest: registers (EAX, EBX, ECX, EDX), or None when #VE was raised."""

    def ask(tdvpr: int, context: FakeContext, leaf: int, subleaf: int = 0) -> Any:
        def step(guest: FakeContext) -> int:
            guest.gpr[0], guest.gpr[1], guest.gpr[2], guest.gpr[3] = leaf, subleaf, NOISE, NOISE
            return 10

        context.injected.clear()
        host.module.vcpus[tdvpr].ve.valid = False
        host.guest(tdvpr, context, step)
        if context.injected == [VE]:
            assert host.module.vcpus[tdvpr].ve.exit_reason == 10
            return None
        assert context.injected == []
        return context.gpr[0], context.gpr[3], context.gpr[1], context.gpr[2]

    return ask


NOISE = 0xDEAD_BEEF_0000_0001


def test_values_follow_the_published_formula(host: Host, processor: FakeProcessor, ask: Any) -> None:
    """Leaves without dynamic bits, recomputed from the table in its own words."""
    _, tdvpr, context = host.runnable()
    special = {0x1, 0x2, 0x4, 0x7, 0xA, 0xB, 0xD, 0x14, 0x15, 0x1C, 0x1D, 0x1E, 0x1F, 0x23, 0x80000001, 0x80000008}
    seen = 0
    for (leaf, subleaf), row in rows().items():
        if leaf in special or row.ve_always:
            continue
        native = processor.cpuid(leaf, subleaf or 0)
        wanted = tuple(
            (value & ~cleared) | fixed
            for value, cleared, fixed in zip(native, row.fixed0_or_dynamic, row.fixed1, strict=True)
        )
        assert ask(tdvpr, context, leaf, subleaf or 0) == wanted, hex(leaf)
        seen += 1
    assert seen == 15


def test_the_signature(host: Host, ask: Any) -> None:
    _, tdvpr, context = host.runnable()
    eax, ebx, ecx, edx = ask(tdvpr, context, 0x21)
    assert eax == 0
    assert b"".join(r.to_bytes(4, "little") for r in (ebx, edx, ecx)) == b"IntelTDX    "
    assert ask(tdvpr, context, 0x21, 1) is None


@pytest.mark.parametrize(
    ("leaf", "subleaf"),
    [(0x40000000, 0), (0x4FFFFFFF, 0), (6, 0), (0x80000006, 0), (0x80000002, 0), (4, 5), (7, 3), (0xD, 19), (2, 0),
     (0xB, 0), (0x1F, 0), (0x16, 0), (0x24, 4), (0x80000009, 9)],
)  # fmt: skip
def test_these_raise_ve(host: Host, ask: Any, leaf: int, subleaf: int) -> None:
    _, tdvpr, context = host.runnable()
    assert ask(tdvpr, context, leaf, subleaf) is None


@pytest.mark.parametrize("leaf", [0x24, 0x3FFFFFFF, 0x50000000, 0x80000009, 0xFFFFFFFF])
def test_out_of_range_leaves_read_as_the_highest(host: Host, ask: Any, leaf: int) -> None:
    _, tdvpr, context = host.runnable()
    for subleaf in range(4):
        assert ask(tdvpr, context, leaf, subleaf) == ask(tdvpr, context, 0x23, subleaf)
    assert ask(tdvpr, context, leaf, 4) is None


def test_leaf_1_follows_the_virtual_cpu(host: Host, ask: Any) -> None:
    tdr = host.build(max_vcpus=4, cpuid={0: (0, 4 << 16, 0, 0)})
    host.vcpu(tdr)
    tdvpr = host.vcpu(tdr)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    eax, ebx, ecx, _ = ask(tdvpr, context, 1)
    assert eax == host.processor.cpuid(1)[0]
    assert ebx >> 24 == 1
    assert ebx >> 16 & 0xFF == 4
    assert ecx >> 31 & 1
    assert not ecx >> 27 & 1
    context.cr4 |= 1 << 18
    assert ask(tdvpr, context, 1)[2] >> 27 & 1


def test_topology_once_the_guest_wants_it(host: Host, ask: Any, call: Callable[..., GuestStep]) -> None:
    levels = {12: (1, 1, 1 << 8, 0), 13: (4, 4, 2 << 8 | 1, 0)}
    tdr = host.build(cpuid=levels)
    tdvpr = host.vcpu(tdr, x2apic_id=6)
    context = host.processor.contexts[-1]
    context.long_mode()
    host.ok("TDH.MR.FINALIZE", rcx=tdr)
    assert ask(tdvpr, context, 0x1F, 1) is None
    host.guest(tdvpr, context, call(8, rdx=TD_CTLS, r8=2, r9=2))
    assert ask(tdvpr, context, 0x1F, 0) == (1, 1, 1 << 8, 6)
    assert ask(tdvpr, context, 0xB, 1) == (4, 4, 2 << 8 | 1, 6)
    assert ask(tdvpr, context, 1)[1] >> 24 == 6


def test_leaf_2_once_the_guest_wants_it(host: Host, ask: Any, call: Callable[..., GuestStep]) -> None:
    _, tdvpr, context = host.runnable()
    host.guest(tdvpr, context, call(8, rdx=TD_CTLS, r8=4, r9=4))
    assert ask(tdvpr, context, 2) == (0x00FEFF01, 0, 0, 0)


def test_the_tsc_leaf(host: Host, ask: Any) -> None:
    _, tdvpr, context = host.runnable(tsc_frequency=60)
    assert ask(tdvpr, context, 0x15) == (1, 60, 25_000_000, 0)


@pytest.mark.parametrize(("flags", "eptp"), [(4, 0x1E), (5, 0x26)], ids=["gpaw 48", "gpaw 52"])
@pytest.mark.parametrize(("la57", "linear"), [(0, 48), (1 << 16, 57)])
def test_linear_address_width_follows_la57(host: Host, ask: Any, flags: int, eptp: int, la57: int, linear: int) -> None:
    """tdh_mng_init: CPUID 0x80000008 EAX[15:8] by the configured CPUID(7,0).ECX[16], not by GPAW."""
    place = config_order().index((7, 0))
    _, tdvpr, context = host.runnable(config_flags=flags, eptp_controls=eptp, cpuid={place: (0, 0, la57, 0)})
    assert ask(tdvpr, context, 7)[2] & 1 << 16 == la57
    assert ask(tdvpr, context, 0x80000008)[0] == linear << 8 | 52


def test_virtual_maxpa(host: Host, ask: Any) -> None:
    _, tdvpr, context = host.runnable(config_flags=0xC, cpuid={9: (46, 0, 0, 0)})
    assert ask(tdvpr, context, 0x80000008)[0] & 0xFF == 46


def test_syscall_shows_in_64_bit_mode_only(host: Host, ask: Any) -> None:
    _, tdvpr, context = host.runnable()
    assert ask(tdvpr, context, 0x80000001)[3] >> 11 & 1
    context.segments[1] = (8, 0, 0xFFFFFFFF, 0xC09B)
    assert not ask(tdvpr, context, 0x80000001)[3] >> 11 & 1


def test_allowed_bits_are_there_only_if_asked_for(host: Host, ask: Any) -> None:
    """CPUID.1 ECX bit 24 (TSC deadline), native and allowed; EBX 7.0 ERMS is not configurable."""
    tdr, tdvpr, context = host.runnable(cpuid={0: (0, 0, 1 << 24, 0)})
    assert ask(tdvpr, context, 1)[2] >> 24 & 1
    _, other, second = host.runnable()
    assert not ask(other, second, 1)[2] >> 24 & 1
    assert tdr in host.module.tds


STATES = {
    (0xD, 0): (0x602E7, 0x2B00, 0x2B00, 0),
    (0xD, 2): (256, 576, 0, 0),
    (0xD, 5): (64, 1088, 0, 0),
    (0xD, 6): (512, 1152, 0, 0),
    (0xD, 7): (1024, 1664, 0, 0),
    (0xD, 9): (8, 2688, 0, 0),
}


def test_save_areas_follow_xfam_and_xcr0(host: Host, processor: FakeProcessor, ask: Any) -> None:
    processor.cpuid_overrides |= STATES
    host.module.td_rules = type(host.module.td_rules)(processor, host.module.version)
    _, tdvpr, context = host.runnable(xfam=3 | 4 | 1 << 9)
    eax, ebx, ecx, edx = ask(tdvpr, context, 0xD, 0)
    assert (eax, ecx, edx) == (0x207, 2696, 0)
    assert ebx == 576
    context.xcr0 = 7
    assert ask(tdvpr, context, 0xD, 0)[1] == 576 + 256
    assert ask(tdvpr, context, 0xD, 2) == (256, 576, 0, 0)
    assert ask(tdvpr, context, 0xD, 5) == (0, 0, 0, 0)


def test_features_without_their_state_are_hidden(host: Host, processor: FakeProcessor, ask: Any) -> None:
    processor.cpuid_overrides[7, 0] = (2, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF)
    _, tdvpr, context = host.runnable()
    _, ebx, ecx, edx = ask(tdvpr, context, 7, 0)
    assert not ebx & (1 << 5 | 1 << 16)  # AVX2, AVX512F
    assert not ecx & (1 << 3 | 1 << 7)  # PKU, CET shadow stacks
    assert not edx & (1 << 24 | 1 << 20)  # AMX tiles, CET branch tracking
    assert not ecx >> 31  # PKS without the attribute


def test_perfmon_leaves_are_zero_without_the_attribute(host: Host, processor: FakeProcessor, ask: Any) -> None:
    processor.cpuid_overrides[0xA, 0] = (0x07300805, 0, 0, 0x8604)
    _, tdvpr, context = host.runnable()
    assert ask(tdvpr, context, 0xA) == (0, 0, 0, 0)
    assert ask(tdvpr, context, 0x23, 0) == (0, 0, 0, 0)


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_cpuid_values_are_metadata(host: Host, ask: Any) -> None:
    """Field codes as KVM makes them: leaf bit 31 at 16, leaf 15:9, sub-leaf 7:1 (0x1FE: none), half 0."""
    tdr, tdvpr, context = host.runnable()
    for leaf, subleaf in ((0, None), (0x15, None), (4, 1), (0x80000008, None), (7, 0)):
        code = leaf >> 31 << 16 | (leaf & 0x7F) << 9 | (0x1FE if subleaf is None else subleaf << 1)
        low = host.ok("TDH.MNG.RD", rcx=tdr, rdx=0x9410000300000000 | code).r8
        high = host.ok("TDH.MNG.RD", rcx=tdr, rdx=0x9410000300000000 | code | 1).r8
        eax, ebx, ecx, edx = ask(tdvpr, context, leaf, subleaf or 0)
        assert (low, high) == (eax | ebx << 32, ecx | edx << 32)


@pytest.mark.parametrize("code", [3 << 9 | 1 << 1, 0x16 << 9 | 0x1FE, 4 << 9 | 0x1FE, 4 << 9 | 7 << 1])
def test_leaves_that_are_not_there_are_no_fields(host: Host, code: int) -> None:
    tdr = host.build()
    status, _ = host.call("TDH.MNG.RD", rcx=tdr, rdx=0x9410000300000000 | code)
    assert status == 0xC0000C0000000000


SMT, CORE, MODULE, DIE = 1 << 8, 2 << 8, 3 << 8, 5 << 8


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        ([(1, 2, SMT), (3, 8, CORE | 1), (5, 32, DIE | 2)], [(1, 2, SMT), (5, 32, CORE | 1), (0, 0, 0)]),
        ([(1, 2, SMT), (3, 8, CORE | 1)], [(1, 2, SMT), (3, 8, CORE | 1), (0, 0, 0)]),
        ([(3, 8, CORE), (5, 32, DIE | 1)], [(5, 32, CORE), (0, 0, 0), (0, 0, 0)]),
        ([(3, 8, CORE), (5, 32, DIE | 1), (6, 64, 0), (7, 128, DIE | 3)], [(7, 128, CORE), (0, 0, 0), (0, 0, 0)]),
    ],
)
def test_leaf_0b_counts_all_above_threads_as_cores(host: Host, levels: Any, expected: Any) -> None:
    """EAX and EBX of the core level are those of the last level; after it all is zero, the level's number, too."""
    slots = {12 + number: (*level, 0) for number, level in enumerate(levels)}
    order = config_order()
    assert order[12:18] == tuple((0x1F, level) for level in range(6))
    tdr = host.build(cpuid=slots)
    values = host.module.tds[tdr].cpuid.values
    assert [values[0xB, level][:3] for level in range(3)] == expected


@pytest.mark.parametrize(
    ("levels", "good"),
    [
        ([(0, 0, 0), (3, 8, CORE | 1)], False),  # sub-leaf 0 asks for the native topology: the others have to, too
        ([(0, 1, 0), (3, 8, CORE | 1)], False),  # ends before the first level
        ([(1, 2, SMT), (0, 0, 0), (3, 8, CORE | 2)], False),  # ends before the cores
        ([(1, 2, SMT), (3, 8, CORE | 1), (0, 0, 0), (5, 32, DIE | 3)], True),  # what comes after is not looked at
        ([(3, 8, CORE), (1, 2, SMT | 1)], False),
        ([(1, 2, SMT), (3, 8, CORE | 2)], False),  # a wrong number
        ([(1, 2, SMT), (3, 8, CORE | 1), (4, 9, 6 << 8 | 2)], False),  # a level without a meaning
    ],
)
def test_topologies(host: Host, levels: Any, good: bool) -> None:
    tdr = host.uninitialized()
    slots = {12 + number: (*level, 0) for number, level in enumerate(levels)}
    status, _ = host.call("TDH.MNG.INIT", rcx=tdr, rdx=host.write(host.td_params(cpuid=slots)))
    assert status == (0 if good else StatusCode.CPUID_LEAF_1F_FORMAT_UNRECOGNIZED)


def test_the_guest_can_hide_tsx_from_cpuid(host: Host, processor: FakeProcessor, ask: Any) -> None:
    eax, ebx, ecx, edx = processor.cpuid(7)
    tsx = 1 << 4 | 1 << 11
    processor.cpuid_overrides[7, 0] = eax, ebx | tsx, ecx, edx
    module = host.module
    processor.msrs[0x10A] |= 1 << 7
    _, tdvpr, context = host.runnable(cpuid={5: (0, tsx, 0, 0)})
    assert ask(tdvpr, context, 7)[1] & tsx == tsx
    assert module.vcpus[tdvpr].td.arch_capabilities & 1 << 7
    module.vcpus[tdvpr].msrs[0x122] = 2  # TSX_CPUID_CLEAR
    assert not ask(tdvpr, context, 7)[1] & tsx


@pytest.mark.parametrize(
    ("leaf", "params", "there"),
    [
        ((5, None), {}, False),  # without MONITOR
        ((0x1A, None), {"attributes": 1 << 28}, True),
        ((0x1A, None), {"attributes": 1 << 28 | 1 << 29}, False),  # a migratable TD
        ((0x23, 0), {"attributes": 1 << 63}, False),  # without leaf 7's word that it is there
        ((0x1D, 0), {}, False),
    ],
)
def test_leaves_that_need_something_else(
    host: Host, processor: FakeProcessor, leaf: Any, params: dict[str, Any], there: bool
) -> None:
    processor.cpuid_overrides[leaf[0], leaf[1] or 0] = (1, 1, 1, 1)
    tdr = host.build(**params)
    value = host.module.tds[tdr].cpuid.values.get(leaf)
    assert value is None or any(value) == there
