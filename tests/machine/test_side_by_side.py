# SPDX-License-Identifier: GPL-2.0-or-later
"""Different code at equal addresses: VMs, TDs and memslots beside each other must each run their own."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Iterator
from random import Random

import pytest

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.uapi.client import Kvm, Vcpu, Vm
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import Exit, kvm_regs
from swtdx.vmm import bare_guest
from swtdx.vmm.bare_td import BareTd

SIZE, CODE = 0x10000, 0x1000


class RealMode:
    """An ordinary VM with a slot at 0; `port` has it run code that writes one port, and says which it wrote."""

    def __init__(self, device: Kvm, slots: int = 1, size: int = SIZE) -> None:
        self.stack = contextlib.ExitStack()
        self.vm: Vm = self.stack.enter_context(device.create_vm())
        self.size = size
        self.memory = [mmap.mmap(-1, size) for _ in range(slots)]
        for number in range(slots):
            self.plug(number)
        self.vcpu: Vcpu = self.stack.enter_context(self.vm.create_vcpu(0))

    def plug(self, number: int, memory: mmap.mmap | None = None) -> None:
        self.vm.set_user_memory_region(number, number * self.size, self.size, memory or self.memory[number])

    def unplug(self, number: int) -> None:
        self.vm.set_user_memory_region(number, number * self.size, 0, self.memory[number])

    def write(self, number: int, port: int, memory: mmap.mmap | None = None) -> None:
        (memory or self.memory[number])[CODE : CODE + 5] = bytes((0xB0, 0x41, 0xE6, port, 0xF4))

    def port(self, number: int = 0) -> int:
        sregs = self.vcpu.get_sregs()
        sregs.cs.base, sregs.cs.selector = number * self.size, number * self.size >> 4 & 0xFFFF
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(kvm_regs(rip=CODE, rflags=2))
        self.vcpu.run()
        assert self.vcpu.exit_reason == Exit.IO
        port = int(self.vcpu.kvm_run.io.port)
        self.vcpu.run()
        assert self.vcpu.exit_reason == Exit.HLT
        return port

    def close(self) -> None:
        self.stack.close()


@pytest.fixture
def device() -> Iterator[Kvm]:
    with Kvm(boot(Dialect.UPSTREAM, Platform(memory_size=2 << 30))) as device:
        yield device


@pytest.mark.parametrize("sizes", [(SIZE, SIZE), (SIZE, 0x4000), (0x4000, SIZE), (0x2000, 0x40000), (0x200000, SIZE)])
def test_two_vms_run_their_own_code(device: Kvm, sizes: tuple[int, int]) -> None:
    first, second = (RealMode(device, size=size) for size in sizes)
    first.write(0, 0x11)
    assert first.port() == 0x11
    second.write(0, 0x22)
    for _ in range(3):
        assert [first.port(), second.port()] == [0x11, 0x22]
    first.close()
    second.close()


def test_slots_of_one_vm_run_their_own_code(device: Kvm) -> None:
    machine = RealMode(device, slots=8)
    for number in range(8):
        machine.write(number, 0x30 + number)
    for _ in range(2):
        assert [machine.port(number) for number in range(8)] == [0x30 + number for number in range(8)]
    machine.close()


def test_memory_in_two_slots_is_one_memory(device: Kvm) -> None:
    """Code translated through one slot, changed by the guest through the other."""
    machine = RealMode(device, slots=2)
    machine.unplug(1)
    machine.plug(1, machine.memory[0])
    machine.write(0, 0x11)
    assert [machine.port(0), machine.port(1)] == [0x11, 0x11]
    # mov ax, 0x1000; mov ds, ax; mov byte [CODE + 3], 0x55 (through slot 1); jmp CODE (in slot 0)
    changer = (
        bytes.fromhex("b80010 8ed8 c60603 1055".replace(" ", ""))
        + b"\xe9"
        + (CODE - 0x2000 - 13).to_bytes(2, "little", signed=True)
    )
    machine.memory[0][0x2000 : 0x2000 + len(changer)] = changer
    sregs = machine.vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.set_regs(kvm_regs(rip=0x2000, rflags=2))
    machine.vcpu.run()
    assert (machine.vcpu.exit_reason, machine.vcpu.kvm_run.io.port) == (Exit.IO, 0x55)
    machine.close()


def test_a_slot_that_comes_back_over_other_memory(device: Kvm) -> None:
    machine, other = RealMode(device, slots=2), RealMode(device)
    other.write(0, 0x77)
    assert other.port() == 0x77
    for turn in range(20):
        memory = mmap.mmap(-1, SIZE)
        machine.write(0, 0x80 + turn, memory)
        machine.unplug(0)
        machine.plug(0, memory)
        machine.memory[0] = memory
        assert [machine.port(), other.port()] == [0x80 + turn, 0x77]
    machine.close()
    assert other.port() == 0x77
    other.close()


def test_tds_and_vms_beside_each_other(device: Kvm) -> None:
    """The TD's private memory is RAM of the machine, the VM's a window on this process's: at the same addresses."""
    tds = [BareTd(device, bare_guest.forever(bare_guest.io_out(0x60 + number, number))) for number in range(2)]
    flat = bytes((0xE6, 0x70, 0xEB, 0xFC))
    machine = RealMode(device, size=0x40000)
    machine.memory[0][bare_guest.CODE : bare_guest.CODE + 4] = flat
    for _ in range(5):
        for number, td in enumerate(tds):
            assert td.run() is Exit.IO
            assert td.vcpu.kvm_run.io.port == 0x60 + number
        sregs = machine.vcpu.get_sregs()
        sregs.cs.base, sregs.cs.selector = bare_guest.CODE, bare_guest.CODE >> 4
        machine.vcpu.set_sregs(sregs)
        machine.vcpu.set_regs(kvm_regs(rip=0, rflags=2))
        machine.vcpu.run()
        assert (machine.vcpu.exit_reason, machine.vcpu.kvm_run.io.port) == (Exit.IO, 0x70)
    for td in tds:
        td.close()
    machine.close()


def test_machines_come_and_go_for_long(device: Kvm) -> None:
    """Any order of making, changing, running and closing VMs, over memory that comes back at the same addresses."""
    chance = Random(13)
    machines: dict[RealMode, list[int]] = {}
    for _ in range(600):
        what = chance.random()
        if what < 0.15 and len(machines) < 12:
            machine = RealMode(device, slots=chance.randrange(1, 5), size=chance.choice((0x4000, SIZE)))
            machines[machine] = [chance.randrange(256) for _ in machine.memory]
            for number, port in enumerate(machines[machine]):
                machine.write(number, port)
        elif machines:
            machine = chance.choice(list(machines))
            number = chance.randrange(len(machine.memory))
            if what < 0.22:
                machines.pop(machine)
                machine.close()
                continue
            if what < 0.4:
                machines[machine][number] = chance.randrange(256)
                memory = mmap.mmap(-1, machine.size) if chance.random() < 0.5 else machine.memory[number]
                machine.unplug(number)
                machine.write(number, machines[machine][number], memory)
                machine.memory[number] = memory
                machine.plug(number)
            elif what < 0.5:  # user space's own store: seen at the next entry, since it is the next instruction's page
                machines[machine][number] = chance.randrange(256)
                machine.write(number, machines[machine][number])
            assert machine.port(number) == machines[machine][number]
    for machine in machines:
        machine.close()


def test_kernels_beside_each_other() -> None:
    """Engines of two kernels in one process have nothing in common."""
    with contextlib.ExitStack() as stack:
        devices = [stack.enter_context(Kvm(boot(Dialect.UPSTREAM, Platform(memory_size=1 << 30)))) for _ in range(2)]
        machines = [RealMode(device) for device in devices for _ in range(2)]
        for number, machine in enumerate(machines):
            machine.write(0, 0x40 + number)
        for _ in range(3):
            assert [machine.port() for machine in machines] == [0x40, 0x41, 0x42, 0x43]
        for machine in machines:
            machine.close()
