# SPDX-License-Identifier: GPL-2.0-or-later
"""Directed EOI, also called suppression of EOI broadcasts (arch/x86/kvm/lapic.c; SDM vol. 3, 10.8.5).

Offered by bit 24 of the version register to vCPUs with x2APIC, unless the I/O APIC is in the kernel; asked for by bit
12 of SVR. Before Linux 6.19 KVM then broadcasts nevertheless; since then user space can choose.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vm
from testing.long_mode import GP, LongModeVm, rdmsr, wrmsr

APIC_BASE, SIVR, EOI, LVR = 0x1B, 0x80F, 0x80B, 0x803
X2APIC = wrmsr(APIC_BASE, 0xFEE00000 | 1 << 8 | 1 << 10 | 1 << 11)
DIRECTED, OFFERED = 1 << 12, 1 << 24
VECTOR = 0x50
ENABLE, DISABLE = k.KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST, k.KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST


def setup(flags: int, split: bool = True) -> Callable[[Vm], None]:
    def make(vm: Vm) -> None:
        if split:
            vm.split_irqchip()
        else:
            vm.create_irqchip()
        if flags:
            vm.enable_cap(k.Cap.X2APIC_API, flags)

    return make


def broadcasts(guest: LongModeVm, spurious: int) -> bool:
    """Whether the EOI of a level-triggered interrupt exits for the I/O APIC in user space."""
    guest.start(X2APIC + wrmsr(SIVR, spurious) + b"\xfb\x90" + b"\xe6\xe3" + wrmsr(EOI, 0) + b"\xe6\xe4")
    assert guest.step() is k.Exit.IO
    assert guest.vcpu.kvm_run.io.port == 0xE3
    lapic = guest.vcpu.get_lapic()
    for register in (0x100, 0x180):  # in service, and level-triggered: as after its delivery
        lapic.regs[register + VECTOR // 32 * 16 + VECTOR % 32 // 8] = 1 << VECTOR % 8
    guest.vcpu.set_lapic(lapic)
    reason = guest.step()
    if reason is k.Exit.IOAPIC_EOI:
        assert guest.vcpu.kvm_run.eoi.vector == VECTOR
        reason = guest.step()
        assert reason is k.Exit.IO
        return True
    assert reason is k.Exit.IO
    return False


@pytest.mark.parametrize(
    ("release", "flags", "offered", "suppresses"),
    [("6.16", 0, True, False), ("7.2", 0, True, False), ("7.2", ENABLE, True, True), ("7.2", DISABLE, False, False)],
)
def test_split(release: str, flags: int, offered: bool, suppresses: bool) -> None:
    with Kvm(open_kernel("emulated", kernel_release=release)) as kvm, LongModeVm(kvm, setup=setup(flags)) as guest:
        assert guest.run(X2APIC + rdmsr(LVR)) is None
        assert bool(guest.vcpu.get_regs().rax & OFFERED) is offered
        assert broadcasts(guest, 0x1FF)
        assert broadcasts(guest, 0x1FF | DIRECTED) is not suppresses
        assert guest.run(rdmsr(SIVR)) is None
        assert bool(guest.vcpu.get_regs().rax & DIRECTED) is offered


def test_a_vcpu_without_x2apic_is_not_offered_it() -> None:
    with Kvm(open_kernel("emulated")) as kvm:
        entries = kvm.supported_cpuid()
        for entry in entries:
            if entry.function == 1:
                entry.ecx &= ~(1 << 21)
        with LongModeVm(kvm, entries, setup=setup(ENABLE)) as guest:
            assert guest.run(X2APIC) == GP
            assert not int.from_bytes(bytes(guest.vcpu.get_lapic().regs)[0x30:0x34], "little") & OFFERED


def test_with_the_io_apic_in_the_kernel() -> None:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=setup(0, split=False)) as guest:
        assert guest.run(X2APIC + rdmsr(LVR)) is None
        assert not guest.vcpu.get_regs().rax & OFFERED
        assert guest.run(wrmsr(SIVR, 0x1FF | DIRECTED) + rdmsr(SIVR)) is None
        assert not guest.vcpu.get_regs().rax & DIRECTED
