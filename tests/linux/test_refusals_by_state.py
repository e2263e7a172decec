# SPDX-License-Identifier: GPL-2.0-or-later
"""Refusals that depend on what was done to the VM before: irqchips, vCPUs, the dialect of 2022."""

from __future__ import annotations

import errno
import os
import selectors
from typing import NoReturn

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi.layout import filled
from tests.linux.conftest import Bench, refused


def test_irqchips_come_before_vcpus(bench: Bench) -> None:
    vm = bench.vm(0)
    bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    with refused(errno.EINVAL):
        bench.ioctl(vm, k.KVM_CREATE_IRQCHIP)
    with refused(errno.EEXIST):
        bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    with refused(errno.EBUSY):
        bench.ioctl(vm, k.KVM_SET_BOOT_CPU_ID, 1)


def test_apic_bus_cycles_need_an_irqchip_and_a_number(bench: Bench) -> None:
    vm = bench.vm(0)
    with refused(errno.EINVAL):  # the number first
        bench.enable(vm, k.Cap.X86_APIC_BUS_CYCLES_NS, 0)
    with refused(errno.ENXIO):
        bench.enable(vm, k.Cap.X86_APIC_BUS_CYCLES_NS, 40)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    bench.enable(vm, k.Cap.X86_APIC_BUS_CYCLES_NS, 40)
    bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    with refused(errno.EINVAL):
        bench.enable(vm, k.Cap.X86_APIC_BUS_CYCLES_NS, 40)


def test_max_vcpu_id_is_set_once_and_bounds_the_ids(bench: Bench) -> None:
    vm = bench.vm(0)
    bench.enable(vm, k.Cap.MAX_VCPU_ID, 2)
    with refused(errno.EINVAL):
        bench.enable(vm, k.Cap.MAX_VCPU_ID, 3)
    with refused(errno.EINVAL):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 2)
    assert bench.ioctl(vm, k.KVM_CREATE_VCPU, 1) > 0


def test_user_space_apic(bench: Bench) -> None:
    vm = bench.vm(0)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    for request in (k.KVM_GET_LAPIC, k.KVM_SET_LAPIC, k.KVM_SET_VAPIC_ADDR):  # before the pointer
        with refused(errno.EINVAL):
            bench.ioctl(vcpu, request, 8)
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=3))
    with refused(errno.ENXIO):
        bench.ioctl(vm, k.KVM_IRQ_LINE, k.kvm_irq_level())


def test_interrupts_with_the_pic_in_the_kernel(bench: Bench) -> None:
    vm = bench.vm(0)
    bench.ioctl(vm, k.KVM_CREATE_IRQCHIP)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    with refused(errno.EINVAL):  # the vector first
        bench.ioctl(vcpu, k.KVM_INTERRUPT, k.kvm_interrupt(irq=256))
    with refused(errno.ENXIO):
        bench.ioctl(vcpu, k.KVM_INTERRUPT, k.kvm_interrupt(irq=32))
    bench.ioctl(vm, k.KVM_CREATE_PIT2, k.kvm_pit_config())
    with refused(errno.EEXIST):
        bench.ioctl(vm, k.KVM_CREATE_PIT2, k.kvm_pit_config())
    chip = k.kvm_irqchip(chip_id=3)
    for request in (k.KVM_GET_IRQCHIP, k.KVM_SET_IRQCHIP):
        with refused(errno.EINVAL):
            bench.ioctl(vm, request, chip)


def test_an_eventfd_is_one_irqfd_and_one_listener(bench: Bench) -> None:
    vm = bench.vm(0)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    eventfd = bench.kernel.eventfd()
    bench.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=eventfd, gsi=5))
    with refused(errno.EBUSY):
        bench.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=eventfd, gsi=6))
    bench.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=eventfd, gsi=5, flags=1))
    bench.ioctl(vm, k.KVM_IOEVENTFD, k.kvm_ioeventfd(fd=eventfd, addr=0x1000, len=4))
    with refused(errno.EEXIST):
        bench.ioctl(vm, k.KVM_IOEVENTFD, k.kvm_ioeventfd(fd=eventfd, addr=0x1000, len=4))


def test_an_irqfd_that_nobody_can_wait_for_leaves_nothing_behind(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that waits needs an epoll instance, of which the first irqfd may find none left."""
    vm = bench.vm(0)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    eventfd = bench.kernel.eventfd()
    request = k.kvm_irqfd(fd=eventfd, gsi=5)
    before = len(os.listdir("/proc/self/fd"))

    def none_left() -> NoReturn:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch, refused(errno.EMFILE):
        patch.setattr(selectors, "DefaultSelector", none_left)
        bench.ioctl(vm, k.KVM_IRQFD, request)
    assert len(os.listdir("/proc/self/fd")) == before
    bench.ioctl(vm, k.KVM_IRQFD, request)  # it is not taken for an irqfd already


def test_cpuid_is_fixed_by_the_first_run(bench: Bench) -> None:
    vm = bench.vm(0)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    bench.vm_object().vcpus[0].has_run = True
    same, other = k.kvm_cpuid2(), k.kvm_cpuid2(nent=257)
    bench.ioctl(vcpu, k.KVM_SET_CPUID2, same)
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, k.KVM_SET_CPUID2, filled(k.kvm_cpuid2, [k.kvm_cpuid_entry2(function=1)], nent=1))
    with refused(errno.E2BIG):  # the count first
        bench.ioctl(vcpu, k.KVM_SET_CPUID2, other)


def test_v10_a_td_with_vcpus_cannot_be_initialised(bench_v10: Bench) -> None:
    bench = bench_v10
    vm = bench.td(init=False)
    bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    with refused(errno.EBUSY):
        bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
