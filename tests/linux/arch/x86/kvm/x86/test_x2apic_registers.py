# SPDX-License-Identifier: GPL-2.0-or-later
"""Reserved bits and registers of x2APIC mode: #GP (SDM volume 3, table 11-6; kvm_x2apic_msr_write of Linux 6.16)."""

from __future__ import annotations

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vm
from testing.long_mode import GP, LongModeVm, rdmsr, wrmsr

ID, VERSION, TPR, PPR, EOI, LDR, SPIV, ESR, ICR = 0x802, 0x803, 0x808, 0x80A, 0x80B, 0x80D, 0x80F, 0x828, 0x830
LVT_CMCI, TIMER_COUNT, CURRENT_COUNT, DIVIDE, SELF_IPI = 0x82F, 0x838, 0x839, 0x83E, 0x83F
LVTS = range(0x832, 0x838)
BANKS = range(0x810, 0x828)  # ISR, TMR, IRR
READABLE = {ID, VERSION, TPR, PPR, LDR, SPIV, ESR, ICR, TIMER_COUNT, CURRENT_COUNT, DIVIDE, *LVTS, *BANKS}
WRITABLE = {TPR, EOI, SPIV, ESR, ICR, TIMER_COUNT, DIVIDE, SELF_IPI, *LVTS}
MCG_CMCI_P = 1 << 10


def outcome(guest: LongModeVm, code: bytes) -> int | None:
    regs = guest.vcpu.get_sregs()
    assert regs.apic_base & 0x400
    return guest.run(code)


def test_which_can_be_read(guest: LongModeVm) -> None:
    for msr in range(0x800, 0x840):
        assert outcome(guest, rdmsr(msr)) == (None if msr in READABLE else GP), hex(msr)


def test_which_can_be_written(guest: LongModeVm) -> None:
    """A value that is valid everywhere where one is: 0, and a vector for SELF IPI."""
    for msr in range(0x800, 0x840):
        value = 0x40 if msr == SELF_IPI else 0
        assert outcome(guest, wrmsr(msr, value)) == (None if msr in WRITABLE else GP), hex(msr)


@pytest.mark.parametrize("msr", sorted(WRITABLE), ids=hex)
def test_reserved_bits(guest: LongModeVm, msr: int) -> None:
    """Of the lower half KVM checks those of ICR, ESR and SELF IPI; the processor virtualises TPR and EOI and does."""
    reserved = {
        ICR: {13, 16, 17, *range(20, 32)}, ESR: {*range(64)}, EOI: {*range(64)},
        TPR: {*range(8, 64)}, SELF_IPI: {*range(8, 64)},
    }.get(msr, {*range(32, 64)})  # fmt: skip
    base = 0x40 if msr == SELF_IPI else 0xC0000 if msr == ICR else 0  # ICR: to all but itself
    for bit in range(64):
        if bit in reserved or bit > 8:
            code = wrmsr(msr, base | 1 << bit)
            assert outcome(guest, code) == (GP if bit in reserved else None), f"{msr:#x} bit {bit}"


@pytest.mark.parametrize("msr", sorted(WRITABLE), ids=hex)
def test_reserved_bits_from_user_space(guest: LongModeVm, msr: int) -> None:
    """KVM_SET_MSRS has no processor in front of it: kvm_lapic_reg_write takes TPR's low byte, and any value of EOI."""
    reserved = {ICR: {13, 16, 17, *range(20, 32)}, ESR: {*range(64)}, SELF_IPI: {*range(8, 64)}}
    base = 0x40 if msr == SELF_IPI else 0xC0000 if msr == ICR else 0
    for bit in range(64):
        taken = set_by_user_space(guest, msr, base | 1 << bit)
        assert taken == (bit not in reserved.get(msr, {*range(32, 64)})), f"{msr:#x} bit {bit}"


def test_which_user_space_can_write(guest: LongModeVm) -> None:
    for msr in range(0x800, 0x900):
        assert set_by_user_space(guest, msr, 0x40 if msr == SELF_IPI else 0) == (msr in WRITABLE), hex(msr)


def set_by_user_space(guest: LongModeVm, msr: int, value: int) -> bool:
    """Whether KVM_SET_MSRS takes the value: it returns how many registers it has set."""
    return guest.vcpu.set_msrs({msr: value}) == 1


def test_the_delivery_status_of_the_icr_is_ignored(guest: LongModeVm) -> None:
    assert outcome(guest, wrmsr(ICR, 0xC0000 | 1 << 12) + rdmsr(ICR)) is None
    assert guest.vcpu.get_regs().rax & 1 << 12 == 0


def test_lvt_cmci_is_there_with_mcg_cmci_p(guest: LongModeVm) -> None:
    assert outcome(guest, rdmsr(LVT_CMCI)) == GP
    guest.vcpu.setup_mce(10 | MCG_CMCI_P)
    assert outcome(guest, rdmsr(VERSION)) is None
    guest.start(rdmsr(VERSION))
    guest.step()
    assert outcome(guest, wrmsr(LVT_CMCI, 0x10040)) is None
    assert outcome(guest, rdmsr(LVT_CMCI)) is None


def test_outside_x2apic_mode_there_are_none(guest: LongModeVm) -> None:
    guest.vcpu.set_msrs({0x1B: 0xFEE00800})
    guest.vcpu.set_msrs({0x1B: 0xFEE00900})
    for msr in (TPR, EOI, ICR, ID):
        assert guest.run(rdmsr(msr)) == GP
        assert guest.run(wrmsr(msr, 0)) == GP


@pytest.mark.parametrize("disabled", [False, True], ids=["with the quirk", "without it"])
def test_the_xapic_page_is_a_hole_in_x2apic_mode(disabled: bool) -> None:
    """KVM_X86_QUIRK_LAPIC_MMIO_HOLE: reads are all ones and writes are dropped; without it they are user space's."""

    def setup(vm: Vm) -> None:
        vm.enable_cap(k.Cap.SPLIT_IRQCHIP, 24)
        if disabled:
            vm.enable_cap(k.Cap.DISABLE_QUIRKS2, k.KVM_X86_QUIRK_LAPIC_MMIO_HOLE)

    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=setup) as guest:
        guest.vcpu.set_msrs({0x1B: 0xFEE00D00})
        guest.start(bytes.fromhex("8906 8b1e"), rsi=0xFEE00080, rax=0)  # mov [rsi], eax; mov ebx, [rsi]
        if disabled:
            assert guest.step() is k.Exit.MMIO
        else:
            assert guest.outcome() is None
            assert guest.vcpu.get_regs().rbx == 0xFFFFFFFF
