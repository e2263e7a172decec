# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_STATS_FD (Documentation/virt/kvm/api.rst, 4.133; virt/kvm/binary_stats.c), read as a client would."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.kernel import Kernel
from tests.linux.arch.x86.kvm.vmx.test_vmx import MMIO, Machine, address, flat
from tests.linux.conftest import Bench, ept_violation, exits, refused, tdvmcall

Described = dict[str, tuple[int, int, int, int]]


def describe(fd: int) -> tuple[k.kvm_stats_header, str, Described]:
    """Header, id, and by name: flags, exponent, size, offset."""
    header = k.kvm_stats_header.from_buffer_copy(os.pread(fd, ctypes.sizeof(k.kvm_stats_header), 0))
    described: Described = {}
    stride = ctypes.sizeof(k.kvm_stats_desc) + header.name_size
    for number in range(header.num_desc):
        data = os.pread(fd, stride, header.desc_offset + stride * number)
        item = k.kvm_stats_desc.from_buffer_copy(data)
        name = data[ctypes.sizeof(k.kvm_stats_desc) :].rstrip(b"\0").decode()
        described[name] = (item.flags, item.exponent, item.size, item.offset)
    return header, os.pread(fd, header.name_size, header.id_offset).rstrip(b"\0").decode(), described


def read(fd: int, *names: str) -> list[int]:
    header, _, described = describe(fd)
    return [
        int.from_bytes(os.pread(fd, 8, header.data_offset + described[name][3]), "little", signed=True)
        for name in names
    ]


@pytest.fixture
def kernel() -> Kernel:
    return open_kernel("emulated")


def test_the_file_of_a_vm_and_of_a_vcpu(kernel: Kernel) -> None:
    machine = Machine(kernel)
    for owner, id_ in ((machine.vm, f"kvm-{os.getpid()}"), (machine.vcpu, f"kvm-{os.getpid()}/vcpu-0")):
        fd = owner.stats_fd()
        header, name, described = describe(fd)
        assert (header.flags, header.name_size, header.id_offset, header.desc_offset) == (0, 48, 24, 72)
        assert header.data_offset == 72 + 64 * header.num_desc
        assert name == id_
        ends = [0]
        for _, _, size, offset in described.values():
            assert offset == ends[-1]
            ends.append(offset + 8 * size)
        assert len(os.read(fd, 1 << 20)) == header.data_offset + ends[-1]
        assert os.read(fd, 8) == b""  # the position moves, the end is the end
        kernel.close(fd)
    machine.close()


def test_descriptions_are_the_real_kernels(kernel: Kernel, host_kvm: Path) -> None:
    """What is described is so there, too: flags, exponent and size of every name."""
    machines = Machine(kernel), Machine(open_kernel("host"))
    for owner in ("vm", "vcpu"):
        fds = [getattr(machine, owner).stats_fd() for machine in machines]
        ours, theirs = (describe(fd)[2] for fd in fds)
        assert {name: ours[name][:3] for name in ours} == {name: theirs[name][:3] for name in ours}
        for machine, fd in zip(machines, fds, strict=True):
            machine.vm.kernel.close(fd)
    for machine in machines:
        machine.close()


def test_a_guests_exits_are_counted(kernel: Kernel) -> None:
    machine = Machine(kernel)
    machine.load("e680 e680 a1" + address(MMIO) + "0f01c1 f4")  # out; out; mov eax, [mmio]; vmcall; hlt
    flat(machine.vcpu)
    fd = machine.vcpu.stats_fd()
    machine.trace()
    names = ("io_exits", "mmio_exits", "halt_exits", "hypercalls", "insn_emulation", "insn_emulation_fail")
    assert read(fd, *names) == [2, 1, 1, 1, 1, 0]
    taken, fixed, emulate, all_exits = read(fd, "pf_taken", "pf_fixed", "pf_emulate", "exits")
    assert taken == fixed + emulate
    assert emulate == 1
    assert fixed >= 1
    assert all_exits >= 2 + 1 + 1 + fixed + emulate
    vm = machine.vm.stats_fd()
    small, large, flushes = read(vm, "pages_4k", "pages_2m", "remote_tlb_flush")
    assert small + 512 * large >= 1
    machine.vm.set_user_memory_region(0, 0, 0, machine.memory)
    assert read(vm, "pages_4k", "pages_2m") == [0, 0]
    assert read(vm, "remote_tlb_flush") > [flushes]
    for one in (fd, vm):
        kernel.close(one)
    machine.close()


def test_every_descriptor_has_a_position_of_its_own_and_the_counts_survive(kernel: Kernel) -> None:
    machine = Machine(kernel)
    machine.load("e680 ebfc")
    flat(machine.vcpu)
    first = machine.vcpu.stats_fd()
    machine.vcpu.run()
    second = machine.vcpu.stats_fd()
    os.read(first, 100)
    assert os.lseek(second, 0, os.SEEK_CUR) == 0
    kernel.close(first)
    machine.vcpu.run()
    assert read(second, "io_exits") == [2]
    kernel.close(second)
    machine.vcpu.run()
    third = machine.vcpu.stats_fd()
    assert read(third, "io_exits") == [3]
    kernel.close(third)
    machine.close()


def test_what_the_descriptor_refuses(bench: Bench) -> None:
    vm = bench.vm(0)
    fd = bench.ioctl(vm, k.KVM_GET_STATS_FD)
    with refused(errno.ENOTTY):
        bench.ioctl(fd, k.KVM_CHECK_EXTENSION, 0)
    with refused(errno.ENODEV):
        bench.kernel.mmap(fd, 4096)
    with refused(errno.EBADF):
        os.write(fd, b"x")
    assert os.get_inheritable(fd) is False


def test_an_open_descriptor_keeps_the_vm(bench: Bench) -> None:
    """kvm_vm_ioctl_get_stats_fd takes a reference of the VM, kvm_vm_stats_release gives it back."""
    vm = bench.vm(0)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    of_vm, of_vcpu = bench.ioctl(vm, k.KVM_GET_STATS_FD), bench.ioctl(vcpu, k.KVM_GET_STATS_FD)
    bench.kernel.close(vm)
    bench.kernel.close(vcpu)
    assert bench.kernel.vms
    assert read(of_vcpu, "exits") == [0]
    bench.kernel.close(of_vm)
    assert bench.kernel.vms
    bench.kernel.close(of_vcpu)
    assert not bench.kernel.vms


def test_a_tds_statistics(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.memory(vm)
    bench.command(vm, 4)
    of_vm, of_vcpu = bench.ioctl(vm, k.KVM_GET_STATS_FD), bench.ioctl(vcpu, k.KVM_GET_STATS_FD)
    bench.module.answers["VP_ENTER"] = exits(
        ept_violation(0x3000), ept_violation(0x4000), tdvmcall(r11=30, r12=1, r13=1)
    )
    bench.ioctl(vcpu, k.KVM_RUN)
    assert read(of_vcpu, "exits", "pf_taken", "pf_fixed", "io_exits") == [3, 2, 2, 1]
    assert read(of_vm, "pages_4k", "pages_2m") == [2, 0]
    bench.attributes(vm, 0x3000, 0x1000, 0)
    assert read(of_vm, "pages_4k") == [1]
