# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_SW_PROTECTED_VM: an ordinary VM whose attributes choose between guest_memfd and user memory.

Documentation/virt/kvm/api.rst (KVM_CREATE_VM, KVM_CREATE_GUEST_MEMFD, KVM_SET_MEMORY_ATTRIBUTES), kvm_mmu_faultin_pfn
of arch/x86/kvm/mmu/mmu.c and check_memory_region_flags of virt/kvm/kvm_main.c, Linux 6.16.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError, Vm
from swtdx.uapi.dialect import Dialect
from testing.long_mode import LongModeVm

GPA, PAGES = 0x40_0000, 16
PRIVATE = k.KVM_MEMORY_ATTRIBUTE_PRIVATE
SIZE = PAGES * 4096
READ, WRITE = bytes.fromhex("488b06"), bytes.fromhex("488906")  # mov rax, [rsi]; mov [rsi], rax


class Protected(LongModeVm):
    """Code, page tables and stack in user memory; 16 pages at `GPA` that can be either."""

    def __init__(self, kvm: Kvm) -> None:
        super().__init__(kvm, vm_type=k.VmType.SW_PROTECTED)
        self.kvm = kvm
        self.shared = mmap.mmap(-1, SIZE)
        self.memfd = self.vm.create_guest_memfd(SIZE)
        self.vm.set_user_memory_region2(1, GPA, SIZE, self.shared, k.MemFlag.GUEST_MEMFD, self.memfd, 0)

    def close(self) -> None:
        super().close()
        self.kvm.kernel.close(self.memfd)

    def private(self, first: int = 0, pages: int = PAGES) -> None:
        self.vm.set_memory_attributes(GPA + 4096 * first, 4096 * pages, PRIVATE)

    def public(self, first: int = 0, pages: int = PAGES) -> None:
        self.vm.set_memory_attributes(GPA + 4096 * first, 4096 * pages, 0)

    def read(self, page: int = 0) -> int:
        assert self.run(READ, rsi=GPA + 4096 * page) is None
        return int(self.vcpu.get_regs().rax)

    def write(self, value: int, page: int = 0) -> None:
        assert self.run(WRITE, rsi=GPA + 4096 * page, rax=value) is None

    def fault(self, code: bytes, page: int = 0) -> tuple[int, int, int, int]:
        """(errno, flags, GPA, size) of the memory-fault exit with which an access ends."""
        self.start(code, rsi=GPA + 4096 * page)
        with pytest.raises(KvmError) as caught:
            self.vcpu.run()
        run = self.vcpu.kvm_run
        assert run.exit_reason == k.Exit.MEMORY_FAULT
        return caught.value.errno or 0, run.memory_fault.flags, run.memory_fault.gpa, run.memory_fault.size


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


@pytest.fixture
def guest(kvm: Kvm) -> Iterator[Protected]:
    with Protected(kvm) as made:
        yield made


def test_the_capabilities(kvm: Kvm) -> None:
    assert kvm.vm_types() & 1 << k.VmType.SW_PROTECTED
    for kind, attributes, memfd in ((k.VmType.DEFAULT, 0, 0), (k.VmType.SW_PROTECTED, PRIVATE, 1)):
        with kvm.create_vm(kind) as vm:
            assert vm.check_extension(k.Cap.MEMORY_ATTRIBUTES) == attributes
            assert vm.check_extension(k.Cap.READONLY_MEM) == 1
            if memfd:
                assert vm.check_extension(k.Cap.GUEST_MEMFD) == 1


def test_a_kernel_without_tdx_makes_them_too() -> None:
    with Kvm(open_kernel("emulated", enable_tdx=False)) as device:
        assert device.vm_types() == 0b11
        with Protected(device) as guest:
            guest.private()
            guest.write(0x1234)
            assert guest.read() == 0x1234


def test_the_v10_series_had_none() -> None:
    kernel = open_kernel("emulated", dialect=Dialect.V10)
    with Kvm(kernel) as device:
        # There the number is that of a TD.
        assert device.check_extension(k.Cap.MEMORY_ATTRIBUTES) == 0


def test_attributes_choose_what_the_guest_sees(guest: Protected) -> None:
    guest.shared[:8] = b"\x11" * 8
    assert guest.read() == 0x1111111111111111
    guest.private()
    assert guest.read() == 0, "a guest_memfd starts with zeros"
    guest.write(0x2222)
    assert (guest.read(), guest.shared[:8]) == (0x2222, b"\x11" * 8)
    guest.public()
    assert guest.read() == 0x1111111111111111
    guest.private()
    assert guest.read() == 0x2222, "a conversion alone destroys nothing"
    guest.public(3, 1)
    guest.write(0x3333, page=3)
    assert guest.shared[3 * 4096 : 3 * 4096 + 2] == b"\x33\x33"
    guest.write(0x4444, page=4)
    assert guest.shared[4 * 4096 : 4 * 4096 + 2] == bytes(2)


def test_a_hole_takes_the_contents(guest: Protected) -> None:
    guest.private()
    for page in range(PAGES):
        guest.write(page + 1, page)
    guest.kvm.kernel.fallocate(guest.memfd, 3, 4096, 2 * 4096)  # KEEP_SIZE, PUNCH_HOLE
    assert [guest.read(page) for page in range(4)] == [1, 0, 0, 4]


def test_memory_of_one_vm_is_not_found_by_the_next(kvm: Kvm) -> None:
    for _ in range(2):
        with Protected(kvm) as guest:
            guest.private()
            assert [guest.read(page) for page in range(PAGES)] == [0] * PAGES
            for page in range(PAGES):
                guest.write(0x5555, page)


def test_code_in_a_page_that_changed_hands(guest: Protected) -> None:
    """A conversion back and forth, and a hole, under code that the guest has executed."""
    call = bytes.fromhex("ffd6")  # call rsi
    guest.shared[:6] = bytes.fromhex("b801000000c3")  # mov eax, 1; ret
    assert guest.run(call, rsi=GPA) is None
    assert guest.vcpu.get_regs().rax == 1
    guest.private()
    guest.write(0x90C300000002B8)  # mov eax, 2; ret
    for turn in (2, 1, 2):
        (guest.private if turn == 2 else guest.public)()
        assert guest.run(call, rsi=GPA) is None
        assert guest.vcpu.get_regs().rax == turn
    guest.kvm.kernel.fallocate(guest.memfd, 3, 0, 4096)
    guest.write(0x90C300000003B8)
    assert guest.run(call, rsi=GPA) is None
    assert guest.vcpu.get_regs().rax == 3


@pytest.mark.parametrize("code", [READ, WRITE], ids=["read", "write"])
def test_private_memory_of_a_slot_that_is_gone(guest: Protected, code: bytes) -> None:
    guest.private()
    guest.read(2)
    guest.vm.set_user_memory_region2(1, GPA, 0, guest.shared, k.MemFlag.GUEST_MEMFD, guest.memfd, 0)
    assert guest.fault(code, 2) == (errno.EFAULT, k.KVM_MEMORY_EXIT_FLAG_PRIVATE, GPA + 2 * 4096, 4096)


@pytest.mark.parametrize("code", [READ, WRITE], ids=["read", "write"])
def test_private_memory_of_a_slot_without_guest_memfd(guest: Protected, code: bytes) -> None:
    other = mmap.mmap(-1, SIZE)
    guest.vm.set_user_memory_region2(1, GPA, 0, guest.shared, k.MemFlag.GUEST_MEMFD, guest.memfd, 0)
    guest.vm.set_user_memory_region(2, GPA, SIZE, other)
    guest.read()
    guest.private()
    assert guest.fault(code) == (errno.EFAULT, k.KVM_MEMORY_EXIT_FLAG_PRIVATE, GPA, 4096)


def test_mmio_is_shared(guest: Protected) -> None:
    """An address without slot exits as MMIO, unless its attribute says that it is private."""
    gpa = 0x80_0000
    guest.start(READ, rsi=gpa)
    assert guest.step() is k.Exit.MMIO
    guest.vm.set_memory_attributes(gpa, 4096, PRIVATE)
    guest.vcpu.kvm_run.mmio.data[:] = bytes(8)
    assert guest.outcome() is None
    assert guest.fault(READ, (gpa - GPA) // 4096)[1:] == (k.KVM_MEMORY_EXIT_FLAG_PRIVATE, gpa, 4096)


@pytest.mark.parametrize("private", [False, True])
def test_pre_fault(guest: Protected, private: bool) -> None:
    if private:
        guest.private()
    guest.vcpu.pre_fault_memory(GPA, SIZE)
    guest.write(7)
    assert (guest.shared[0] == 7) is not private


def slot_errno(vm: Vm, flags: int, memfd: int) -> int:
    memory = mmap.mmap(-1, SIZE)
    try:
        vm.set_user_memory_region2(3, 0x100_0000, SIZE, memory, flags, memfd, 0)
    except OSError as error:
        return error.errno or 0
    vm.set_user_memory_region2(3, 0x100_0000, 0, memory, flags, memfd, 0)
    return 0


def test_flags_of_slots(guest: Protected) -> None:
    memfd = guest.vm.create_guest_memfd(SIZE)
    dirty, readonly, with_memfd = 1, 2, 4
    wrong = {with_memfd | dirty, with_memfd | readonly, with_memfd | dirty | readonly}
    for flags in range(8):
        assert slot_errno(guest.vm, flags, memfd) == (errno.EINVAL if flags in wrong else 0), flags
    guest.kvm.kernel.close(memfd)


def test_its_registers_are_open(guest: Protected) -> None:
    assert guest.vcpu.get_regs().rip
    with pytest.raises(KvmError) as caught:
        guest.vm.tdx_capabilities()
    assert caught.value.errno == errno.ENOTTY
