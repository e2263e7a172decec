# SPDX-License-Identifier: GPL-2.0-or-later
"""guest_memfd that user space maps: GUEST_MEMFD_FLAG_MMAP and GUEST_MEMFD_FLAG_INIT_SHARED, from Linux 6.18 on.

virt/kvm/guest_memfd.c (kvm_gmem_mmap, kvm_gmem_fault_user_mapping, kvm_gmem_bind), include/linux/kvm_host.h
(kvm_gmem_get_supported_flags, kvm_memslot_is_gmem_only) and arch/x86/kvm/mmu/mmu.c (__kvm_mmu_faultin_pfn).
"""

from __future__ import annotations

import errno
import gc
import mmap
from collections.abc import Iterator

import pytest

from swtdx.linux.uaccess import copy_from_user
from swtdx.machine import MachineKernel, boot, open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.layout import address_of
from swtdx.uapi.release import KernelRelease
from testing.long_mode import LongModeVm

GPA, PAGES, PAGE = 0x40_0000, 16, 4096
SIZE = PAGES * PAGE
MMAP, SHARED = k.GUEST_MEMFD_FLAG_MMAP, k.GUEST_MEMFD_FLAG_INIT_SHARED
READ, WRITE = bytes.fromhex("488b06"), bytes.fromhex("488906")  # mov rax, [rsi]; mov [rsi], rax
PRIVATE = k.KVM_MEMORY_ATTRIBUTE_PRIVATE
NEWER = [name for name in KernelRelease if name.value not in ("v10", "6.16")]


class Mapped(LongModeVm):
    """16 pages at `GPA` of a guest_memfd with these flags; ``other`` stands at their user addresses."""

    def __init__(self, kvm: Kvm, flags: int, vm_type: int = k.VmType.DEFAULT) -> None:
        super().__init__(kvm, vm_type=vm_type)
        self.kernel = kvm.kernel
        self.other = mmap.mmap(-1, SIZE)
        self.memfd = self.vm.create_guest_memfd(SIZE, flags)
        self.bind(1, GPA, 0)

    def bind(self, slot: int, gpa: int, offset: int, size: int = SIZE) -> None:
        self.vm.set_user_memory_region2(slot, gpa, size, self.other, k.MemFlag.GUEST_MEMFD, self.memfd, offset)

    def unbind(self, slot: int) -> None:
        self.vm.set_user_memory_region2(slot, GPA, 0, self.other, k.MemFlag.GUEST_MEMFD, self.memfd, 0)

    def read(self, page: int = 0) -> int:
        assert self.run(READ, rsi=GPA + PAGE * page) is None
        return int(self.vcpu.get_regs().rax)

    def write(self, value: int, page: int = 0) -> None:
        assert self.run(WRITE, rsi=GPA + PAGE * page, rax=value) is None

    def map(self, length: int = SIZE, offset: int = 0) -> mmap.mmap:
        return self.kernel.mmap(self.memfd, length, offset)


def kernel_of(release: KernelRelease) -> Kernel:
    return boot(kernel_release=release.value)


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


@pytest.fixture
def guest(kvm: Kvm) -> Iterator[Mapped]:
    with Mapped(kvm, MMAP | SHARED) as made:
        yield made


def unreachable(mapping: mmap.mmap, page: int) -> bool:
    """Whether an access to a page of the mapping is a fault (SIGBUS for who makes it by an instruction)."""
    try:
        copy_from_user(address_of(mapping) + PAGE * page, 8)
    except OSError as error:
        return error.errno == errno.EFAULT
    return False


KINDS = [(release, kind) for release in KernelRelease for kind in ("default", "sw_protected", "td")]
KINDS.remove((KernelRelease.V10, "sw_protected"))  # v10 has no such VMs


@pytest.mark.parametrize(("release", "kind"), KINDS)
def test_flags_by_release_and_type(release: KernelRelease, kind: str) -> None:
    with Kvm(kernel_of(release)) as kvm:
        vm = kvm.create_td() if kind == "td" else kvm.create_vm(k.VmType[kind.upper()])
        with vm:
            old = release not in NEWER
            wanted = 0 if old else MMAP | (SHARED if kind == "default" else 0)
            assert vm.check_extension(k.Cap.GUEST_MEMFD_FLAGS) == wanted
            assert kvm.check_extension(k.Cap.GUEST_MEMFD_FLAGS) == (0 if old else MMAP | SHARED)
            if release is KernelRelease.V10:
                return
            assert vm.check_extension(k.Cap.GUEST_MEMFD) == (kind != "default" or not old)
            for bit in range(64):
                if wanted >> bit & 1:
                    kvm.kernel.close(vm.create_guest_memfd(PAGE, 1 << bit))
                    continue
                with pytest.raises(KvmError) as caught:
                    vm.create_guest_memfd(PAGE, 1 << bit)
                assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("release", [KernelRelease.V6_16, KernelRelease.V6_18])
def test_slots_of_ordinary_vms(release: KernelRelease) -> None:
    """Until 6.18 only a VM with private memory had slots with a guest_memfd."""
    with Kvm(kernel_of(release)) as kvm, kvm.create_vm() as vm:
        memfd, memory = vm.create_guest_memfd(SIZE), mmap.mmap(-1, SIZE)
        if release is KernelRelease.V6_16:
            with pytest.raises(KvmError) as caught:
                vm.set_user_memory_region2(1, GPA, SIZE, memory, k.MemFlag.GUEST_MEMFD, memfd, 0)
            assert caught.value.errno == errno.EINVAL
        else:
            vm.set_user_memory_region2(1, GPA, SIZE, memory, k.MemFlag.GUEST_MEMFD, memfd, 0)
        kvm.kernel.close(memfd)


def test_guest_and_user_space_share_the_pages(guest: Mapped) -> None:
    mapping = guest.map()
    guest.other[:8] = b"\xee" * 8
    assert guest.read() == 0, "what stands at the slot's user address is not what the guest has"
    for page in range(PAGES):
        mapping[PAGE * page : PAGE * page + 2] = bytes([page, 1])
        assert guest.read(page) == 0x100 | page
        guest.write(0x2200 | page, page)
        assert mapping[PAGE * page : PAGE * page + 2] == bytes([page, 0x22])
    part = guest.map(PAGE, 3 * PAGE)
    assert part[:2] == b"\x03\x22"
    assert bytes(guest.other[:8]) == b"\xee" * 8


def test_a_mapping_may_reach_beyond_the_file(guest: Mapped) -> None:
    """As of any file: the pages behind its end are SIGBUS."""
    mapping = guest.map(4 * SIZE)
    assert not unreachable(mapping, PAGES - 1)
    assert unreachable(mapping, PAGES)
    assert unreachable(mapping, 4 * PAGES - 1)
    assert unreachable(guest.map(PAGE, 2 * SIZE), 0)
    with pytest.raises(OSError) as caught:
        guest.map(PAGE, 5)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("flags", [0, SHARED])
def test_no_mapping_without_the_flag(kvm: Kvm, flags: int) -> None:
    """The slot's user memory is the guest's then."""
    with Mapped(kvm, flags) as guest:
        with pytest.raises(OSError) as caught:
            guest.map()
        assert caught.value.errno == errno.ENODEV
        guest.other[:2] = b"\x11\x22"
        assert guest.read() == 0x2211


@pytest.mark.parametrize("kind", [k.VmType.DEFAULT, k.VmType.SW_PROTECTED])
def test_memory_that_is_not_shared_first(kvm: Kvm, kind: k.VmType) -> None:
    """It can be mapped and not touched; the guest has it, whatever its attribute."""
    with Mapped(kvm, MMAP, kind) as guest:
        mapping = guest.map()
        assert unreachable(mapping, 0)
        assert unreachable(mapping, PAGES - 1)
        guest.other[:8] = b"\xee" * 8
        guest.write(0x1234)
        assert guest.read() == 0x1234
        if kind is k.VmType.SW_PROTECTED:
            guest.vm.set_memory_attributes(GPA, SIZE, PRIVATE)
            assert guest.read() == 0x1234
            guest.vm.set_memory_attributes(GPA, SIZE, 0)
            assert guest.read() == 0x1234
        assert unreachable(mapping, 0)


@pytest.mark.parametrize("flags", [MMAP, MMAP | SHARED])
def test_a_hole(kvm: Kvm, flags: int) -> None:
    with Mapped(kvm, flags) as guest:
        mapping = guest.map()
        for page in range(PAGES):
            guest.write(page + 1, page)
        guest.kernel.fallocate(guest.memfd, 3, PAGE, 2 * PAGE)
        assert [guest.read(page) for page in range(4)] == [1, 0, 0, 4]
        if flags & SHARED:
            assert [mapping[PAGE * page] for page in range(4)] == [1, 0, 0, 4]
        guest.kernel.fallocate(guest.memfd, 3, SIZE, PAGE)  # behind the end: nothing
        guest.kernel.fallocate(guest.memfd, 1, 0, SIZE)


def test_code_that_changes(guest: Mapped) -> None:
    """User space writes code, the guest runs it; a hole and new code."""
    mapping = guest.map()
    call = bytes.fromhex("ffd6")  # call rsi
    for turn in range(1, 4):
        mapping[:6] = b"\xb8" + bytes([turn]) + bytes.fromhex("000000c3")  # mov eax, turn; ret
        assert guest.run(call, rsi=GPA) is None
        assert guest.vcpu.get_regs().rax == turn
        guest.kernel.fallocate(guest.memfd, 3, 0, PAGE)


def test_two_slots_of_one_file_and_one_moved(kvm: Kvm) -> None:
    with Mapped(kvm, MMAP | SHARED) as guest:
        mapping = guest.map()
        for page in range(PAGES):
            mapping[PAGE * page] = page + 1
        guest.unbind(1)
        guest.bind(1, GPA, 8 * PAGE, 4 * PAGE)
        guest.bind(2, GPA + 4 * PAGE, 0, 4 * PAGE)
        assert [guest.read(page) for page in range(8)] == [9, 10, 11, 12, 1, 2, 3, 4]
        for release_errno, offset in ((errno.EEXIST, 9 * PAGE), (errno.EINVAL, 13 * PAGE)):
            with pytest.raises(KvmError) as caught:
                guest.bind(3, 0x100_0000, offset, 4 * PAGE)
            assert caught.value.errno == release_errno


def test_a_mapping_keeps_the_file(kvm: Kvm) -> None:
    """vm_file: the guest has its memory until the last page is unmapped."""
    with Mapped(kvm, MMAP | SHARED) as guest:
        mapping = guest.map()
        guest.write(5)
        guest.kernel.close(guest.memfd)
        assert (guest.read(), mapping[0]) == (5, 5)
        mapping.close()
        guest.start(READ, rsi=GPA)
        with pytest.raises(KvmError) as caught:
            guest.vcpu.run()
        run = guest.vcpu.kvm_run
        assert (caught.value.errno, run.exit_reason) == (errno.EFAULT, k.Exit.MEMORY_FAULT)
        assert (run.memory_fault.flags, run.memory_fault.gpa) == (0, GPA)


def test_nothing_is_left(kvm: Kvm) -> None:
    kernel = kvm.kernel
    assert isinstance(kernel, MachineKernel)
    memory = kernel.processor.memory
    with Mapped(kvm, MMAP | SHARED) as guest:
        assert len(memory._windows) == 1, "the slot's; that of user memory comes with the first access"
        guest.write(1)
        guest.unbind(1)
        guest.bind(1, GPA, 0)
        guest.read()
        guest.kernel.close(guest.memfd)
    del guest
    gc.collect()
    assert not memory._windows
    assert kernel.pages.in_use["guest_memfd"] == 0


def test_a_file_larger_than_any_memory(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        memfd, memory = vm.create_guest_memfd(1 << 46, MMAP | SHARED), mmap.mmap(-1, SIZE)
        vm.set_user_memory_region2(1, GPA, SIZE, memory, k.MemFlag.GUEST_MEMFD, memfd, (1 << 46) - SIZE)
        assert kvm.kernel.mmap(memfd, SIZE, (1 << 46) - SIZE)[0] == 0
        kvm.kernel.close(memfd)


def test_kvm_reads_and_writes_by_the_user_address(kvm: Kvm) -> None:
    """kvm_read_guest and kvm_write_guest go by the slot's user address, where a VMM has its mapping: a clock's page."""
    with Mapped(kvm, MMAP | SHARED) as guest:
        guest.unbind(1)
        guest.other = mapping = guest.map()
        guest.bind(1, GPA, 0)
        guest.vcpu.set_msrs({0x4B564D01: GPA | 1})  # MSR_KVM_SYSTEM_TIME_NEW
        version = guest.read()
        assert any(mapping[8:32])
        assert int.from_bytes(mapping[:8], "little") == version
