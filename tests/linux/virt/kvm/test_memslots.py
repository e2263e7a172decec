# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_USER_MEMORY_REGION2, KVM_SET_MEMORY_ATTRIBUTES, guest_memfd: the rules of the ABI sheet, section 4.4."""

from __future__ import annotations

import ctypes
import errno
import mmap
import random
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from swtdx.linux.virt.kvm.memslots import KVM_USER_MEM_SLOTS
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi.client import Kvm
from swtdx.uapi.layout import address_of
from tests.linux.conftest import Bench, refused

SIZE = 0x10000
memory = mmap.mmap(-1, 4 * SIZE)


def user() -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


def region(bench: Bench, vm: int, **members: Any) -> int:
    fields = {"memory_size": SIZE, "userspace_addr": user(), **members}
    return bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, k.kvm_userspace_memory_region2(**fields))


BAD = {
    "slot": {"slot": 32764},
    "flags": {"flags": 8},
    "readonly TD": {"flags": 2},
    "dirty log with guest_memfd": {"flags": 5},
    "size": {"memory_size": 0x800},
    "gpa": {"guest_phys_addr": 0x800},
    "hva": {"userspace_addr": 0x800},
    "kernel hva": {"userspace_addr": 0xFFFF800000000000},
    "address space": {"slot": 1 << 16},
    "wraps": {"guest_phys_addr": 0xFFFFFFFFFFFF0000},
    "delete nothing": {"memory_size": 0},
    "memfd offset": {"flags": 4, "guest_memfd_offset": 0x800},
    "shared bit": {"guest_phys_addr": 1 << 47},
    "into the shared half": {"guest_phys_addr": (1 << 47) - 0x1000},
}


@pytest.mark.parametrize("case", BAD)
def test_refused_regions(bench: Bench, case: str) -> None:
    with refused(errno.EINVAL):
        region(bench, bench.td(), **BAD[case])


def test_slots_live(bench: Bench) -> None:
    vm = bench.vm(0)
    region(bench, vm)
    region(bench, vm)  # the same again is nothing
    with refused(errno.EEXIST):
        region(bench, vm, slot=1, guest_phys_addr=SIZE - 0x1000)
    with refused(errno.EINVAL):
        region(bench, vm, memory_size=2 * SIZE)
    with refused(errno.EINVAL):
        region(bench, vm, userspace_addr=user() + SIZE)
    with refused(errno.EINVAL):
        region(bench, vm, flags=2)
    region(bench, vm, guest_phys_addr=SIZE)  # moved
    region(bench, vm, slot=1)
    region(bench, vm, memory_size=0)
    with refused(errno.EINVAL):
        region(bench, vm, memory_size=0)


def test_a_slot_with_guest_memfd_is_immutable(bench: Bench) -> None:
    vm = bench.td()
    gmem = bench.memfd(vm)
    region(bench, vm, flags=4, guest_memfd=gmem)
    for members in ({}, {"guest_phys_addr": SIZE}, {"flags": 0}):
        with refused(errno.EINVAL):
            region(bench, vm, **{"flags": 4, "guest_memfd": gmem, **members})
    region(bench, vm, memory_size=0)
    region(bench, vm, flags=4, guest_memfd=gmem)


def test_bindings(bench: Bench) -> None:
    vm, other = bench.td(), bench.td()
    gmem = bench.memfd(vm)
    with refused(errno.EBADF):
        region(bench, vm, flags=4, guest_memfd=9999)
    with refused(errno.EINVAL):
        region(bench, vm, flags=4, guest_memfd=vm)
    with refused(errno.EINVAL):
        region(bench, other, flags=4, guest_memfd=gmem)
    with refused(errno.EINVAL):
        region(bench, vm, flags=4, guest_memfd=gmem, guest_memfd_offset=0x1000)
    region(bench, vm, flags=4, guest_memfd=gmem, memory_size=0x8000)
    with refused(errno.EINVAL):
        region(bench, vm, slot=1, guest_phys_addr=SIZE, flags=4, guest_memfd=gmem, guest_memfd_offset=0x7000)


@pytest.mark.parametrize("members", [{"flags": 2}, {"flags": 4}, {"size": 0}, {"size": 0x800}, {"size": 1 << 63}])
def test_guest_memfd_refusals(bench: Bench, members: dict[str, int]) -> None:
    with refused(errno.EINVAL):
        request = k.kvm_create_guest_memfd(**{"size": 0x1000, **members})
        bench.ioctl(bench.td(), k.KVM_CREATE_GUEST_MEMFD, request)


def test_guest_memfd_is_not_a_file_to_read_or_map(bench: Bench) -> None:
    gmem = bench.memfd(bench.td())
    with refused(errno.ENODEV):
        bench.kernel.mmap(gmem, 0x1000)
    with refused(errno.ENOTTY):
        bench.ioctl(gmem, k.KVM_CHECK_EXTENSION)


@pytest.mark.parametrize(
    ("mode", "offset", "length", "code"),
    [
        (0, 0, 0x1000, errno.EOPNOTSUPP),
        (2, 0, 0x1000, errno.EOPNOTSUPP),
        (0x11, 0, 0x1000, errno.EOPNOTSUPP),
        (3, 0x800, 0x1000, errno.EINVAL),
        (3, 0, 0x800, errno.EINVAL),
        (3, 0, 0, errno.EINVAL),
    ],
)
def test_fallocate_refusals(bench: Bench, mode: int, offset: int, length: int, code: int) -> None:
    with refused(code):
        bench.kernel.fallocate(bench.memfd(bench.td()), mode, offset, length)


def test_a_hole_loses_the_page_and_it_can_be_added_again(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0, 1))
    bench.module.names()
    bench.kernel.fallocate(bench.gmem, 3, 0, 0x1000)
    assert bench.module.names() == ["MEM_RANGE_BLOCK", "MEM_PAGE_REMOVE", "PHYMEM_PAGE_WBINVD"]  # nothing to track yet
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0, 1))
    assert bench.module.names() == ["MEM_PAGE_ADD"]
    bench.kernel.close(bench.gmem)
    assert bench.module.names() == ["MEM_RANGE_BLOCK", "MEM_PAGE_REMOVE", "PHYMEM_PAGE_WBINVD"]
    assert "guest_memfd" not in bench.kernel.pages.in_use
    with refused(errno.EFAULT):  # the slot is there, its memory is not
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0, 1))


@pytest.mark.parametrize(
    ("address", "size", "attributes", "flags"),
    [
        (0, 0x1000, 8, 1),
        (0, 0x1000, 1, 0),
        (0, 0, 8, 0),
        (0xFFFFFFFFFFFFF000, 0x2000, 8, 0),
        (1, 0x1000, 8, 0),
        (0, 1, 8, 0),
    ],
)
def test_attribute_refusals(bench: Bench, address: int, size: int, attributes: int, flags: int) -> None:
    with refused(errno.EINVAL):
        bench.attributes(bench.td(), address, size, attributes, flags)


def test_attributes_need_no_slot_but_a_vm_that_has_private_memory(bench: Bench) -> None:
    bench.attributes(bench.td(), 0x40000000, 0x1000, 8)
    plain = bench.vm(0)
    bench.attributes(plain, 0, 0x1000, 0)
    with refused(errno.EINVAL):
        bench.attributes(plain, 0, 0x1000, 8)


def test_v10_has_none_of_this(bench_v10: Bench) -> None:
    vm = bench_v10.td()
    for request in (k.KVM_SET_USER_MEMORY_REGION2, k.KVM_SET_MEMORY_ATTRIBUTES, k.KVM_CREATE_GUEST_MEMFD):
        with refused(errno.ENOTTY):
            bench_v10.ioctl(vm, request, 8)


# --- KVM_PRE_FAULT_MEMORY ---------------------------------------------------------------------------------------------


def pre_fault(bench: Bench, vcpu: int, gpa: int, size: int, flags: int = 0) -> k.kvm_pre_fault_memory:
    request = k.kvm_pre_fault_memory(gpa=gpa, size=size, flags=flags)
    bench.ioctl(vcpu, k.KVM_PRE_FAULT_MEMORY, request)
    return request


def test_pre_fault(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.memory(vm)
    for gpa, size, flags in ((0, 0x1000, 1), (1, 0x1000, 0), (0, 0, 0), (0xFFFFFFFFFFFFF000, 0x2000, 0)):
        with refused(errno.EINVAL):
            pre_fault(bench, vcpu, gpa, size, flags)
    with refused(errno.EOPNOTSUPP):
        pre_fault(bench, vcpu, 0, 0x1000)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    bench.module.names()
    request = pre_fault(bench, vcpu, 0xE000, 0x4000)  # runs off the slot's end: what was done counts
    assert (request.gpa, request.size) == (0x10000, 0x2000)
    assert bench.module.names() == [*["MEM_SEPT_ADD"] * 3, "MEM_PAGE_AUG", "MEM_PAGE_AUG"]
    with refused(errno.ENOENT):
        pre_fault(bench, vcpu, 0x10000, 0x1000)
    with refused(errno.EINVAL):
        pre_fault(bench, vcpu, 1 << 47, 0x1000)


# How much a slot costs: the kernel keeps slots in trees, so that one costs the same whether there are ten or all
# KVM_CAP_NR_MEMSLOTS of them.


def lines_run(work: Callable[[], object]) -> int:
    """How many lines of Python ``work`` runs: its cost, whatever else the machine does."""
    count = 0

    def local(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal count
        count += event == "line"
        return local

    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: local)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def _set_slots(bench: Bench, vm: int, base: int, numbers: range | list[int]) -> None:
    requests = [
        k.kvm_userspace_memory_region(
            slot=n, guest_phys_addr=n * 0x2000, memory_size=0x1000, userspace_addr=base + n * 0x1000
        )
        for n in numbers
    ]
    for request in requests:
        bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, request)


@pytest.mark.parametrize(
    ("order", "count"), [("ascending", 6000), ("descending", 6000), ("shuffled", KVM_USER_MEM_SLOTS)]
)
def test_the_last_slots_cost_what_the_first_ones_did(bench: Bench, order: str, count: int) -> None:
    vm, memory = bench.vm(0), mmap.mmap(-1, count << 12)
    base = address_of(memory)
    numbers = list(range(count))
    if order == "descending":
        numbers.reverse()
    elif order == "shuffled":
        random.Random(1).shuffle(numbers)
    first = lines_run(lambda: _set_slots(bench, vm, base, numbers[:500]))
    _set_slots(bench, vm, base, numbers[500:-500])
    last = lines_run(lambda: _set_slots(bench, vm, base, numbers[-500:]))
    assert last < 2 * first, (first, last)  # it was 100 times
    slots = bench.vm_object().memslots
    assert [slot.base_gfn for slot in slots] == [2 * n for n in range(count)]
    for n in (0, 1, count // 2, count - 1):
        assert slots.gfn_to_memslot(2 * n).slot_id == n
        assert slots.gfn_to_memslot(2 * n + 1) is None
    with refused(errno.EEXIST):
        moved = k.kvm_userspace_memory_region(
            slot=5, guest_phys_addr=7 * 0x2000, memory_size=0x1000, userspace_addr=base + 5 * 0x1000
        )
        bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, moved)


def test_deleting_costs_the_same_however_many_there_are(bench: Bench) -> None:
    vm, memory = bench.vm(0), mmap.mmap(-1, 8000 << 12)
    _set_slots(bench, vm, address_of(memory), range(8000))

    def delete(numbers: range) -> None:
        for n in numbers:
            bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, k.kvm_userspace_memory_region(slot=n))

    many = lines_run(lambda: delete(range(250)))
    delete(range(250, 7750))
    few = lines_run(lambda: delete(range(7750, 8000)))
    assert many < 2 * few, (many, few)
    assert not list(bench.vm_object().memslots)


def test_slots_of_one_guest_memfd_cost_the_same(bench: Bench) -> None:
    count = 6000
    vm = bench.td()
    fd, memory = bench.memfd(vm, count << 12), mmap.mmap(-1, count << 12)

    def bind(numbers: range) -> None:
        for n in numbers:
            region = k.kvm_userspace_memory_region2(
                slot=n, flags=4, guest_phys_addr=n * 0x2000, memory_size=0x1000,
                userspace_addr=address_of(memory) + n * 0x1000, guest_memfd=fd, guest_memfd_offset=n * 0x1000,
            )  # fmt: skip
            bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, region)

    def punch() -> None:
        for n in range(250):
            bench.kernel.fallocate(fd, 3, n << 12, 0x1000)

    def close_all() -> None:
        for descriptor in list(bench.kernel.files.by_fd):
            bench.kernel.close(descriptor)

    first = lines_run(lambda: bind(range(250)))
    bind(range(250, count - 250))
    last = lines_run(lambda: bind(range(count - 250, count)))
    assert last < 2 * first, (first, last)
    punched = lines_run(punch)
    assert punched < 5 * first, (first, punched)
    kvm = bench.vm_object()
    assert lines_run(close_all) < count / 250 * 5 * first
    assert kvm not in bench.kernel.vms


def test_faults_in_many_slots_cost_the_same() -> None:
    """Small slots over one mapping share a window."""
    count = 4000
    with Kvm(open_kernel("emulated")) as device, device.create_vm() as vm:
        memory = mmap.mmap(-1, count << 12)
        base = address_of(memory)
        vcpu = vm.create_vcpu(0)
        for n in range(count):
            vm.set_user_memory_region(n, n * 0x2000, 0x1000, base + n * 0x1000)

        def fault(numbers: range) -> None:
            for n in numbers:
                request = k.kvm_pre_fault_memory(gpa=n * 0x2000, size=0x1000)
                vcpu.kernel.ioctl(vcpu.fd, k.REQUESTS["KVM_PRE_FAULT_MEMORY"], ctypes.addressof(request))

        first = lines_run(lambda: fault(range(250)))
        fault(range(250, count - 250))
        last = lines_run(lambda: fault(range(count - 250, count)))
        assert last < 2 * first, (first, last)
        vcpu.close()


def test_small_slots_reach_their_own_memory() -> None:
    """Shared windows, at offsets, also where the mapping changes under way and slots come and go."""
    with Kvm(open_kernel("emulated")) as device, device.create_vm() as vm:
        memory = mmap.mmap(-1, 64 << 12)
        base = address_of(memory)
        libc = ctypes.CDLL(None)
        libc.mprotect.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)
        assert libc.mprotect(base + (40 << 12), 4 << 12, 1) == 0  # splits the mapping
        for n in range(64):
            if not 40 <= n < 44:
                memory[n << 12] = n
            vm.set_user_memory_region(n, 0x10000 + ((63 - n) << 12), 0x1000, base + (n << 12))
        code = memory_of_code()
        vm.set_user_memory_region(100, 0, 0x1000, code)
        vcpu = vm.create_vcpu(0)
        for round_ in range(2):
            for n in [n for n in range(64) if not 40 <= n < 44]:
                sregs = vcpu.get_sregs()
                sregs.cs.base = sregs.cs.selector = 0
                sregs.ds.base, sregs.ds.selector = 0x10000 + ((63 - n) << 12), 0x1000 + (63 - n << 8) & 0xFFFF
                vcpu.set_sregs(sregs)
                vcpu.set_regs(k.kvm_regs(rip=0, rflags=2, rbx=round_ + 1))
                vcpu.run()
                assert vcpu.exit_reason == k.Exit.IO
                assert vcpu.get_regs().rax & 0xFF == n
                assert memory[(n << 12) + 2] == round_ + 1
            for n in range(0, 64, 2):
                vm.set_user_memory_region(n, 0, 0, 0)
                vm.set_user_memory_region(n, 0x10000 + ((63 - n) << 12), 0x1000, base + (n << 12))
        vcpu.close()


def memory_of_code() -> mmap.mmap:
    code = mmap.mmap(-1, 0x1000)
    code[:9] = bytes.fromhex("a00000 881e0200 e610")  # mov al, [0]; mov [2], bl; out 0x10, al
    return code
