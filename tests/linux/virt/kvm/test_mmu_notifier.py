# SPDX-License-Identifier: GPL-2.0-or-later
"""Memory that is unmapped, replaced, protected and discarded under a live slot (Documentation/virt/kvm/api.rst, 4.35).

"Changes in the backing of the memory region are automatically reflected into the guest. For example, an mmap() that
affects the region will be made visible immediately. Another example is madvise(MADV_DROP)." What is not mapped, or may
not be written, ends KVM_RUN with EFAULT.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from swtdx.machine import MachineKernel, boot
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError, Vcpu
from swtdx.uapi.layout import address_of

SIZE, HOLE = 4 << 20, 2 << 20
PROT_NONE, READ, READ_WRITE = 0, 1, 3
MAP_SHARED, MAP_PRIVATE, MAP_FIXED, MAP_ANONYMOUS = 0x01, 0x02, 0x10, 0x20
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_size_t
libc.mmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
libc.munmap.argtypes = (ctypes.c_size_t, ctypes.c_size_t)
libc.mprotect.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
libc.madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)


class Machine:
    """4 MiB in so many slots, whose upper half changes; the guest reads or writes a byte there."""

    def __init__(self, device: Kvm, slots: int) -> None:
        assert isinstance(device.kernel, MachineKernel)
        self.kernel = device.kernel
        self.memory = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.base = address_of(self.memory)
        self.vm = device.create_vm()
        size = SIZE // slots
        for number in range(slots):
            self.vm.set_user_memory_region(number, number * size, size, self.base + number * size)
        self.vcpu: Vcpu = self.vm.create_vcpu(0)
        sregs = self.vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        sregs.ds.base, sregs.ds.limit = HOLE, 0xFFFF
        self.vcpu.set_sregs(sregs)
        self.memory[0x1000:0x1005] = bytes.fromhex("a00500e610")  # mov al, [5]; out 0x10, al
        self.memory[0x1100:0x1105] = bytes.fromhex("a20500e610")  # mov [5], al; out 0x10, al

    def run(self, at: int, al: int = 0) -> int:
        """AL at the OUT, or the errno of KVM_RUN, negative."""
        self.vcpu.set_regs(k.kvm_regs(rip=at, rflags=2, rax=al))
        try:
            self.vcpu.run()
        except KvmError as error:
            return -(error.errno or 0)
        assert self.vcpu.exit_reason == k.Exit.IO
        return int(self.vcpu.get_regs().rax & 0xFF)

    def read(self) -> int:
        return self.run(0x1000)

    def write(self, value: int) -> int:
        return self.run(0x1100, value)

    @contextmanager
    def changing(self, start: int = HOLE, size: int = HOLE) -> Iterator[int]:
        self.kernel.mmu_notifier_invalidate_range_start(self.base + start, self.base + start + size)
        try:
            yield self.base + start
        finally:
            self.kernel.mmu_notifier_invalidate_range_end(self.base + start, self.base + start + size)

    def map(self, protection: int, fd: int = -1, flags: int = MAP_PRIVATE | MAP_ANONYMOUS) -> None:
        with self.changing() as address:
            assert libc.mmap(address, HOLE, protection, flags | MAP_FIXED, fd, 0) == address

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()
        self.map(READ_WRITE)


@pytest.fixture(params=[1, 2, 1024], ids=["one slot", "two slots", "small slots"])
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    with Kvm(boot()) as device:
        machine = Machine(device, request.param)
        machine.memory[HOLE + 5] = 0x11
        assert machine.read() == 0x11
        yield machine
        machine.close()


def test_memory_that_is_unmapped_and_mapped_again(machine: Machine) -> None:
    with machine.changing() as address:
        assert libc.munmap(address, HOLE) == 0
    assert machine.read() == -errno.EFAULT
    assert machine.write(1) == -errno.EFAULT
    machine.map(READ_WRITE)
    assert machine.read() == 0
    assert machine.write(0x22) == 0x22
    assert machine.memory[HOLE + 5] == 0x22


def test_a_file_that_is_mapped_over_it(machine: Machine) -> None:
    fd = os.memfd_create("other")
    os.ftruncate(fd, HOLE)
    os.pwrite(fd, b"\x33", 5)
    machine.map(READ_WRITE, fd, MAP_SHARED)
    assert machine.read() == 0x33
    assert machine.write(0x44) == 0x44
    assert os.pread(fd, 1, 5) == b"\x44"
    os.close(fd)


def test_protection_that_changes(machine: Machine) -> None:
    for protection, read, write in (
        (READ, 0x11, -errno.EFAULT),
        (READ_WRITE, 0x11, 0x11),
        (PROT_NONE, -errno.EFAULT, -errno.EFAULT),
        (READ_WRITE, 0x11, 0x11),
    ):
        with machine.changing() as address:
            assert libc.mprotect(address, HOLE, protection) == 0
        assert (machine.read(), machine.write(0x11)) == (read, write), protection


def test_memory_that_was_read_only_at_first(machine: Machine) -> None:
    machine.map(READ)
    assert machine.read() == 0
    assert machine.write(1) == -errno.EFAULT
    machine.map(READ_WRITE)
    assert machine.write(1) == 1


def test_what_lies_beside_it_stays(machine: Machine) -> None:
    """One page goes; the rest of what was mapped with it is found again."""
    with machine.changing(HOLE + 0x4000, 0x1000) as address:
        assert libc.munmap(address, 0x1000) == 0
    assert machine.read() == 0x11
    assert machine.write(0x12) == 0x12
    with machine.changing(HOLE + 0x4000, 0x1000) as address:
        assert libc.mmap(address, 0x1000, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == address


def test_a_change_that_is_told_afterwards(machine: Machine) -> None:
    with machine.changing() as address:
        pass
    assert libc.mmap(address, HOLE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == address
    machine.kernel.mmu_notifier_invalidate_range(address, address + HOLE)
    assert machine.read() == 0
    assert libc.mprotect(address, HOLE, READ) == 0
    machine.kernel.mmu_notifier_invalidate_range(address, address + HOLE)
    assert machine.write(1) == -errno.EFAULT


def test_discarded_code_is_not_executed_any_more(machine: Machine) -> None:
    assert machine.read() == 0x11
    assert libc.madvise(machine.base, 0x10000, mmap.MADV_DONTNEED) == 0
    machine.memory[0x1000:0x1004] = bytes.fromhex("b077e610")  # mov al, 0x77; out 0x10, al
    machine.kernel.mmu_notifier_contents_changed(machine.base, machine.base + 0x10000)
    assert machine.read() == 0x77


def test_a_guest_that_runs_meanwhile_sees_one_or_the_other(machine: Machine) -> None:
    """It reads in a loop, and leaves when it sees anything but what is mapped there, now or before."""
    # 1: mov al, [5]; cmp al, 0xa0; je 1b; cmp al, 0xb0; je 1b; out 0x10, al
    machine.memory[0x1000:0x100D] = bytes.fromhex("a00500 3ca0 74f9 3cb0 74f5 e610")
    files = []
    for value in (0xA0, 0xB0):
        fd = os.memfd_create("values")
        os.ftruncate(fd, HOLE)
        os.pwrite(fd, bytes((value,)), 5)
        files.append(fd)
    machine.map(READ_WRITE, files[0], MAP_SHARED)
    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(machine.read()), daemon=True)
    thread.start()
    end = time.monotonic() + 1.0
    changes = 0
    while time.monotonic() < end and thread.is_alive():
        machine.map(READ_WRITE, files[changes % 2], MAP_SHARED)
        changes += 1
    assert thread.is_alive(), result
    machine.vcpu.kvm_run.immediate_exit = 1
    thread.join(20)
    machine.vcpu.kvm_run.immediate_exit = 0
    assert result == [-errno.EINTR]
    assert changes > 3
    for fd in files:
        os.close(fd)


def test_a_fault_during_the_change_waits_for_its_end(machine: Machine) -> None:
    result: list[int] = []
    with machine.changing() as address:
        thread = threading.Thread(target=lambda: result.append(machine.read()), daemon=True)
        thread.start()
        assert libc.munmap(address, HOLE) == 0
        time.sleep(0.2)
        assert not result
        assert libc.mmap(address, HOLE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == address
        machine.memory[HOLE + 5] = 0x55
    thread.join(20)
    assert result == [0x55]


def test_ranges_without_slots_and_ends_without_start(machine: Machine) -> None:
    kernel = machine.kernel
    calls: tuple[Callable[[int, int], None], ...] = (
        kernel.mmu_notifier_invalidate_range_end,
        kernel.mmu_notifier_contents_changed,
        kernel.mmu_notifier_invalidate_range_start,
        kernel.mmu_notifier_invalidate_range_end,
    )
    for call in calls:
        call(0x1000, 0x2001)
        call(0, 1 << 47)
    assert machine.read() == 0x11
