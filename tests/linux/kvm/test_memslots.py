# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_USER_MEMORY_REGION2, KVM_SET_MEMORY_ATTRIBUTES, guest_memfd: the rules of the ABI sheet, section 4.4."""

from __future__ import annotations

import errno
import mmap
from typing import Any

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from tests.linux.conftest import Bench, refused

SIZE = 0x10000
memory = mmap.mmap(-1, 4 * SIZE)


def user() -> int:
    import ctypes

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


def test_a_normal_vm_takes_no_guest_memfd(bench: Bench) -> None:
    vm = bench.vm(0)
    with refused(errno.EINVAL):
        region(bench, vm, flags=4, guest_memfd=bench.memfd(vm))


@pytest.mark.parametrize("members", [{"flags": 1}, {"size": 0}, {"size": 0x800}, {"size": 1 << 63}])
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


# KVM_PRE_FAULT_MEMORY


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
