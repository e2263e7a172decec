# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_SET_MSR_FILTER holds also for MSRs that the guest reaches without an exit (vmx_msr_filter_changed).

linux/Documentation/virt/kvm/api.rst, 4.97: a filtered access is #GP, or KVM_EXIT_X86_RDMSR and WRMSR where the VMM
asked for it by KVM_CAP_X86_USER_SPACE_MSR. x2APIC MSRs are never filtered.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

import pytest

from swtdx.linux.arch.x86.kvm.vmx.vmx import IN_CONTEXT
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vm
from testing.long_mode import GP, LongModeVm, rdmsr, split_irqchip, wrmsr

READ, WRITE = k.KVM_MSR_FILTER_READ, k.KVM_MSR_FILTER_WRITE
VALUES = {0xC0000080: 0x500, 0x277: 0x0007040600070406, 0xC0000103: 1}  # what may be written; any address elsewhere


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


def deny(guest: LongModeVm, index: int | None, flags: int = READ | WRITE) -> None:
    """Filter one MSR, or none any more."""
    bitmap = (ctypes.c_uint8 * 8)()
    request = k.kvm_msr_filter()
    if index is not None:
        item = request.ranges[0]
        item.flags, item.nmsrs, item.base = flags, 1, index
        item.bitmap = ctypes.addressof(bitmap)
    guest.vm.ioctl(k.KVM_X86_SET_MSR_FILTER, ctypes.addressof(request))


@pytest.mark.parametrize("index", [int(index) for index in IN_CONTEXT], ids=hex)
def test_an_msr_that_the_processor_holds(kvm: Kvm, index: int) -> None:
    write, read = wrmsr(index, VALUES.get(index, 0x1000)), rdmsr(index)
    with LongModeVm(kvm) as guest:

        def outcomes() -> tuple[int | None, int | None]:
            guest.reset()
            first = guest.run(read)
            guest.reset()
            return first, guest.run(write)

        assert outcomes() == (None, None)
        deny(guest, index)
        assert outcomes() == (GP, GP)
        deny(guest, index, READ)
        assert outcomes() == (GP, None)
        deny(guest, index, WRITE)
        assert outcomes() == (None, GP)
        deny(guest, None)
        assert outcomes() == (None, None)


def test_user_space_answers(kvm: Kvm) -> None:
    def ask(vm: Vm) -> None:
        vm.enable_cap(k.Cap.X86_USER_SPACE_MSR, k.KVM_MSR_EXIT_REASON_FILTER)

    with LongModeVm(kvm, setup=ask) as guest:
        deny(guest, 0xC0000100)
        guest.start(wrmsr(0xC0000100, 0x1234) + rdmsr(0xC0000100))
        run = guest.vcpu.kvm_run
        assert guest.step() is k.Exit.X86_WRMSR
        assert (run.msr.index, run.msr.data, run.msr.reason) == (0xC0000100, 0x1234, k.KVM_MSR_EXIT_REASON_FILTER)
        assert guest.step() is k.Exit.X86_RDMSR
        run.msr.data = 0x5678
        assert guest.outcome() is None
        assert guest.vcpu.get_regs().rax & 0xFFFF == 0x5678


def test_a_filter_that_denies_all_leaves_x2apic(kvm: Kvm) -> None:
    with LongModeVm(kvm, setup=split_irqchip) as guest:
        bitmap = (ctypes.c_uint8 * 8)()
        request = k.kvm_msr_filter(flags=k.KVM_MSR_FILTER_DEFAULT_DENY)
        item = request.ranges[0]
        item.flags, item.nmsrs, item.base, item.bitmap = READ | WRITE, 1, 0x10, ctypes.addressof(bitmap)
        guest.vcpu.set_msrs({0x1B: 0xFEE00D00})
        guest.vm.ioctl(k.KVM_X86_SET_MSR_FILTER, ctypes.addressof(request))
        for access, expected in ((rdmsr(0x808), None), (wrmsr(0x808, 0x10), None), (rdmsr(0xC0000100), GP)):
            guest.reset()
            assert guest.run(access) == expected
