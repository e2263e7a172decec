# SPDX-License-Identifier: GPL-2.0-or-later
"""What of KVM's own devices and settings a snapshot holds: seen through the ioctls that read them."""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator

import pytest

from swtdx.clock import Clock
from swtdx.cpu.platform import Platform
from swtdx.machine import MachineKernel, boot
from swtdx.uapi import kvm
from swtdx.uapi.abilities import KeepError
from swtdx.uapi.client import Kvm, Vm

PIC_MASTER, PIC_SLAVE, IOAPIC = 0, 1, 2
SLOT_PAGES = 64


@pytest.fixture
def vm() -> Iterator[Vm]:
    """A VM with all of KVM's devices, and a slot whose dirty pages are logged."""
    kernel = boot(platform=Platform(memory_size=1 << 30, logical_processors=2))
    with Kvm(kernel) as device, device.create_vm() as made:
        made.create_irqchip()
        made.create_pit2()
        memory = mmap.mmap(-1, SLOT_PAGES * mmap.PAGESIZE)
        made.set_user_memory_region(0, 0, len(memory), memory, kvm.MemFlag.LOG_DIRTY_PAGES)
        made.register_coalesced_mmio(0xFEC0_1000, 0x1000)
        made.set_msr_filter([(1, 0x174, b"\xff")])
        with made.create_vcpu(0), made.create_vcpu(1):
            yield made


def kernel_of(vm: Vm) -> MachineKernel:
    assert isinstance(vm.kernel, MachineKernel)
    return vm.kernel


def seen(vm: Vm) -> list[object]:
    """What the ioctls give, without the passage of time."""
    pit = vm.get_pit2()
    channels = [(one.count, one.mode, one.rw_mode, one.gate, one.bcd) for one in pit.channels]
    vcpus = [
        (
            bytes(vcpu.get_regs()), bytes(vcpu.get_sregs()), bytes(vcpu.get_debugregs()), bytes(vcpu.get_lapic()),
            bytes(vcpu.get_vcpu_events()), vcpu.get_mp_state(), vcpu.get_msrs([0x277, 0x174, 0x1A0]),
        )
        for vcpu in vm.vcpus
    ]  # fmt: skip
    return [channels, [bytes(vm.get_irqchip(chip)) for chip in (PIC_MASTER, PIC_SLAVE, IOAPIC)], vcpus]


def change(vm: Vm) -> None:
    """Set everything that there is to something else."""
    for line in (3, 9, 20):
        vm.irq_line(line, 1)
    pit = vm.get_pit2()
    pit.channels[0].mode, pit.channels[0].count = 2, 0x1234
    vm.set_pit2(pit)
    for vcpu in vm.vcpus:
        registers = vcpu.get_regs()
        registers.rax, registers.rip = 0x1234, 0x8000
        vcpu.set_regs(registers)
        special = vcpu.get_sregs()
        special.cr3, special.ds.base = 0x5000, 0x7000
        vcpu.set_sregs(special)
        vcpu.set_msrs({0x174: 0x10, 0x277: 0x0606060606060606})
        vcpu.set_mp_state(kvm.KVM_MP_STATE_HALTED)


def test_all_that_was_set_since_is_undone(vm: Vm) -> None:
    kernel, clock = kernel_of(vm), Clock()
    before = seen(vm)
    snapshot = kernel.snapshot([], clock)
    for _ in range(2):
        change(vm)
        assert seen(vm) != before
        kernel.restore([], clock, snapshot)
        assert seen(vm) == before


def test_the_vms_clock_continues(vm: Vm) -> None:
    kernel, clock = kernel_of(vm), Clock()
    then = vm.get_clock().clock
    snapshot = kernel.snapshot([], clock)
    vm.set_clock(10**15)
    kernel.restore([], clock, snapshot)
    assert then <= vm.get_clock().clock < then + 10**10


def test_dirty_pages_are_logged_as_before(vm: Vm) -> None:
    kernel, clock = kernel_of(vm), Clock()
    (running,) = kernel.vms
    running.write_guest(0x3000, b"x")
    snapshot = kernel.snapshot([], clock)
    assert vm.dirty_log(0, SLOT_PAGES)[0] == 1 << 3
    running.write_guest(0x5000, b"x")
    kernel.restore([], clock, snapshot)
    assert vm.dirty_log(0, SLOT_PAGES)[0] == 1 << 3


@pytest.mark.parametrize(("what", "sentence"), [("irqfd", "the VM has irqfds"), ("ioeventfd", "the VM has ioeventfds")])
def test_what_belongs_to_the_process_is_refused(vm: Vm, what: str, sentence: str) -> None:
    fd = os.eventfd(0)
    try:
        if what == "irqfd":
            vm.irqfd(fd, 5)
        else:
            vm.ioeventfd(fd, 0xFEB0_0000, 4)
        with pytest.raises(KeepError, match=sentence):
            kernel_of(vm).snapshot([], Clock())
    finally:
        os.close(fd)
