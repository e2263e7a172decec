# SPDX-License-Identifier: GPL-2.0-or-later
"""Paravirtual features: asynchronous page faults, EOI and TLB flushes (Documentation/virt/kvm/x86/msr.rst).

A page of an emulated machine is always there, so that no page fault is ever asynchronous. What is left is the event
with which KVM wakes all that wait, when the guest names its memory: kvm_pv_enable_async_pf and
kvm_arch_async_page_present of arch/x86/kvm/x86.c, and record_steal_time for the TLB.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from swtdx.linux.kernel import EmulatedKernel
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import DATA, GP, PML4, LongModeVm, move, rdmsr, split_irqchip, wrmsr

ASYNC_PF_EN, STEAL_TIME, PV_EOI_EN, _, ASYNC_PF_INT, ASYNC_PF_ACK = range(0x4B564D02, 0x4B564D08)
ENABLED, SEND_ALWAYS, AS_VMEXIT, AS_INT = 1 << 0, 1 << 1, 1 << 2, 1 << 3
VECTOR, TOKEN, ALL = 0x60, 4, 0xFFFFFFFF
PREEMPTED, FLUSH_TLB = 16, 1 << 1
SPIV, IRR, APIC_ON = 0x80F, 0x200, wrmsr(0x1B, 0xFEE00D00)
FEATURES = 0x40000001
OFFERED = {  # kvm_cpuid.c: __do_cpuid_func, KVM_CPUID_FEATURES; STEAL_TIME where the host's scheduler counts
    "CLOCKSOURCE": 0, "NOP_IO_DELAY": 1, "CLOCKSOURCE2": 3, "ASYNC_PF": 4, "STEAL_TIME": 5, "PV_EOI": 6, "PV_UNHALT": 7,
    "PV_TLB_FLUSH": 9, "ASYNC_PF_VMEXIT": 10, "PV_SEND_IPI": 11, "POLL_CONTROL": 12, "PV_SCHED_YIELD": 13,
    "ASYNC_PF_INT": 14, "CLOCKSOURCE_STABLE": 24,
}  # fmt: skip


@pytest.fixture
def guest() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=split_irqchip) as made:
        yield made


def requested(guest: LongModeVm) -> bool:
    """Whether the vector is in IRR."""
    at = IRR + VECTOR // 32 * 16 + VECTOR % 32 // 8
    return bool(bytes(guest.vcpu.get_lapic().regs)[at] & 1 << VECTOR % 8)


def token(guest: LongModeVm) -> int:
    return int(struct.unpack_from("<I", guest.memory, DATA + TOKEN)[0])


def enable(value: int = DATA | ENABLED | AS_INT) -> bytes:
    return wrmsr(ASYNC_PF_INT, VECTOR) + wrmsr(ASYNC_PF_EN, value)


@pytest.mark.parametrize("release", ["v10", "6.16", "6.18", "7.2"])
def test_what_is_offered(release: str) -> None:
    with Kvm(open_kernel("emulated", kernel_release=release)) as kvm:
        (features,) = [entry for entry in kvm.supported_cpuid() if entry.function == FEATURES]
        assert features.eax == sum(1 << bit for bit in OFFERED.values())
        assert (features.ebx, features.ecx, features.edx) == (0, 0, 0)
        for capability in (k.Cap.ASYNC_PF, k.Cap.ASYNC_PF_INT):
            assert kvm.check_extension(capability) == 1


def test_all_that_wait_are_woken_when_the_guest_enables_it(guest: LongModeVm) -> None:
    assert guest.run(APIC_ON + wrmsr(SPIV, 0x1FF) + enable()) is None
    assert token(guest) == ALL
    assert requested(guest)


def test_the_guest_takes_the_interrupt(guest: LongModeVm) -> None:
    assert guest.run(APIC_ON + wrmsr(SPIV, 0x1FF) + enable() + b"\xfb\x90\x90") == VECTOR


@pytest.mark.parametrize("value", [0, DATA, DATA | ENABLED, DATA | AS_INT, DATA | ENABLED | SEND_ALWAYS])
def test_nothing_comes_unless_it_is_enabled_with_interrupts(guest: LongModeVm, value: int) -> None:
    assert guest.run(APIC_ON + wrmsr(SPIV, 0x1FF) + enable(value)) is None
    assert token(guest) == 0
    assert not requested(guest)


def test_it_waits_for_a_local_apic_that_is_enabled(guest: LongModeVm) -> None:
    """kvm_lapic_enabled; apic_set_spiv asks again."""
    assert guest.run(APIC_ON + enable()) is None
    assert (token(guest), requested(guest)) == (0, False)
    assert guest.run(wrmsr(SPIV, 0x1FF)) is None
    assert (token(guest), requested(guest)) == (ALL, True)


def test_it_waits_for_a_free_slot_and_the_guests_acknowledgement(guest: LongModeVm) -> None:
    """apf_pageready_slot_free; MSR_KVM_ASYNC_PF_ACK."""
    guest.memory[DATA + TOKEN] = 1
    assert guest.run(APIC_ON + wrmsr(SPIV, 0x1FF) + enable()) is None
    assert (token(guest), requested(guest)) == (1, False)
    guest.memory[DATA + TOKEN] = 0
    assert guest.run(wrmsr(ASYNC_PF_ACK, 2)) is None
    assert (token(guest), requested(guest)) == (0, False)
    assert guest.run(wrmsr(ASYNC_PF_ACK, 1)) is None
    assert (token(guest), requested(guest)) == (ALL, True)
    assert guest.run(rdmsr(ASYNC_PF_ACK)) is None
    assert guest.vcpu.get_regs().rax == 0


def test_user_space_that_restores_the_registers_causes_it_at_the_next_run(guest: LongModeVm) -> None:
    assert guest.run(APIC_ON + wrmsr(SPIV, 0x1FF)) is None
    assert guest.vcpu.set_msrs({ASYNC_PF_INT: VECTOR, ASYNC_PF_EN: DATA | ENABLED | AS_INT}) == 2
    assert (token(guest), requested(guest)) == (0, False)
    assert guest.run(b"\x90") is None
    assert (token(guest), requested(guest)) == (ALL, True)


def test_disabling_drops_what_waits(guest: LongModeVm) -> None:
    """kvm_clear_async_pf_completion_queue."""
    assert guest.run(APIC_ON + enable() + wrmsr(ASYNC_PF_EN, 0) + wrmsr(SPIV, 0x1FF)) is None
    assert (token(guest), requested(guest)) == (0, False)


def test_a_halted_vcpu_wakes(guest: LongModeVm) -> None:
    """kvm_vcpu_has_events looks at what is done; kvm_arch_async_page_present makes the vCPU runnable."""
    assert guest.run(APIC_ON + wrmsr(SPIV, 0x1FF)) is None
    assert guest.vcpu.set_msrs({ASYNC_PF_INT: VECTOR, ASYNC_PF_EN: DATA | ENABLED | AS_INT}) == 2
    guest.vcpu.set_mp_state(k.KVM_MP_STATE_HALTED)
    assert guest.run(b"\x90") is None
    assert guest.vcpu.get_mp_state() == k.KVM_MP_STATE_RUNNABLE


@pytest.mark.parametrize("missing", [10, 14])
def test_its_bits_need_their_features_where_that_is_enforced(missing: int) -> None:
    with Kvm(open_kernel("emulated")) as kvm:
        entries = kvm.supported_cpuid()
        for entry in entries:
            if entry.function == FEATURES:
                entry.eax &= ~(1 << missing)
        with LongModeVm(kvm, entries, setup=split_irqchip) as guest:
            guest.vcpu.enable_cap(k.Cap.ENFORCE_PV_FEATURE_CPUID, 1)
            value = DATA | {10: AS_VMEXIT, 14: AS_INT}[missing]
            assert guest.run(APIC_ON + wrmsr(ASYNC_PF_EN, value)) == GP


def test_paravirtual_eoi_leaves_the_flag_alone(guest: LongModeVm) -> None:
    """As with APICv, where an EOI does not exit: irr_pending is always set, and no EOI is ever spared."""
    guest.memory[DATA] = 0
    assert (
        guest.run(APIC_ON + wrmsr(SPIV, 0x1FF) + wrmsr(PV_EOI_EN, DATA | 1) + wrmsr(0x83F, VECTOR) + b"\xfb\x90")
        == VECTOR
    )
    assert guest.memory[DATA] == 0


@pytest.mark.parametrize("asked", [0, FLUSH_TLB])
def test_a_vcpu_that_was_preempted_drops_its_translations(asked: int) -> None:
    """Another vCPU has changed a page table and set KVM_VCPU_FLUSH_TLB instead of sending an interrupt.

    Without the request it may keep them, which is not tested: it does where no other vCPU has run.
    """
    kernel = open_kernel("emulated")
    assert isinstance(kernel, EmulatedKernel)
    with Kvm(kernel) as kvm, LongModeVm(kvm, setup=split_irqchip) as guest:
        tables, pages = 0x11000, (0x14000, 0x15000)
        for table in (PML4 + 0x1000 + 8, tables, tables + 0x1000):
            struct.pack_into("<Q", guest.memory, table, (tables if table < tables else table + 0x1000) | 3)
        for page in pages:
            guest.memory[page] = page >> 12
        entry, read = tables + 0x1000, move(3, 1 << 30) + b"\x8a\x03"  # mov al, [rbx]
        struct.pack_into("<Q", guest.memory, entry, pages[0] | 3)
        assert guest.run(wrmsr(STEAL_TIME, DATA | 1) + read) is None
        assert guest.vcpu.get_regs().rax & 0xFF == pages[0] >> 12
        (vm,) = kernel.vms
        vm.vcpus[0].steal_time.set_preempted()
        assert guest.memory[DATA + PREEMPTED] == 1
        if asked:
            guest.memory[DATA + PREEMPTED] |= asked
            struct.pack_into("<Q", guest.memory, entry, pages[1] | 3)
        assert guest.run(read) is None
        assert guest.vcpu.get_regs().rax & 0xFF == pages[bool(asked)] >> 12
        assert guest.memory[DATA + PREEMPTED] == 0
