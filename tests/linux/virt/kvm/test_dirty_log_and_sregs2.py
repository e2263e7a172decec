# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CLEAR_DIRTY_LOG under manual protection; KVM_GET_SREGS2 and KVM_SET_SREGS2; the first KVM_SET_CPUID."""

from __future__ import annotations

import ctypes
import errno
import mmap

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi.layout import filled
from tests.linux.conftest import Bench, refused

PAGES = 200
memory = mmap.mmap(-1, PAGES << 12)


@pytest.fixture
def logged(bench: Bench) -> int:
    """A default VM whose slot 0 keeps a dirty log; pages 1, 70 and 199 are dirty."""
    vm = bench.vm(0)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    slot = k.kvm_userspace_memory_region(flags=1, memory_size=PAGES << 12, userspace_addr=address)
    bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, slot)
    kvm = bench.vm_object()
    for gfn in (1, 70, 199):
        kvm.mark_page_dirty_in_slot(kvm.memslots.by_id[0], gfn)
    return vm


def dirty(bench: Bench, vm: int) -> set[int]:
    bitmap = (ctypes.c_uint8 * 32)()
    bench.ioctl(vm, k.KVM_GET_DIRTY_LOG, k.kvm_dirty_log(dirty_bitmap=ctypes.addressof(bitmap)))
    return {page for page in range(256) if bitmap[page >> 3] >> (page & 7) & 1}


def clear(bench: Bench, vm: int, first: int, count: int, bits: bytes) -> int:
    buffer = ctypes.create_string_buffer(bits, 32)
    request = k.kvm_clear_dirty_log(num_pages=count, first_page=first, dirty_bitmap=ctypes.addressof(buffer))
    return bench.ioctl(vm, k.KVM_CLEAR_DIRTY_LOG, request)


def test_reading_clears_unless_protection_is_manual(bench: Bench, logged: int) -> None:
    assert dirty(bench, logged) == {1, 70, 199}
    assert dirty(bench, logged) == set()


def test_manual_protection(bench: Bench, logged: int) -> None:
    bench.enable(logged, k.Cap.MANUAL_DIRTY_LOG_PROTECT2, 1)
    assert dirty(bench, logged) == dirty(bench, logged) == {1, 70, 199}
    clear(bench, logged, 64, 64, b"\xff" * 8)
    assert dirty(bench, logged) == {1, 199}
    clear(bench, logged, 0, 64, b"\x01")  # page 1's bit is not given
    assert dirty(bench, logged) == {1, 199}
    clear(bench, logged, 192, 8, b"\xff")  # the slot's end may be no multiple of 64
    assert dirty(bench, logged) == {1}


@pytest.mark.parametrize(("first", "count"), [(1, 64), (256, 0), (128, 128), (0, 32)])
def test_ranges_that_are_refused(bench: Bench, logged: int, first: int, count: int) -> None:
    with refused(errno.EINVAL):
        clear(bench, logged, first, count, b"")


def test_a_bitmap_from_nowhere(bench: Bench, logged: int) -> None:
    request = k.kvm_clear_dirty_log(num_pages=64, dirty_bitmap=8)
    with refused(errno.EFAULT):
        bench.ioctl(logged, k.KVM_CLEAR_DIRTY_LOG, request)


def test_sregs2_is_sregs_without_pending_interrupts(bench: Bench) -> None:
    vcpu = bench.ioctl(bench.vm(0), k.KVM_CREATE_VCPU, 0)
    old, new = k.kvm_sregs(), k.kvm_sregs2()
    bench.ioctl(vcpu, k.KVM_GET_SREGS, old)
    bench.ioctl(vcpu, k.KVM_GET_SREGS2, new)
    size = k.kvm_sregs2.flags.offset
    assert bytes(old)[:size] == bytes(new)[:size]
    assert new.flags == 0
    new.cr3, new.fs.base = 0x5000, 0x1234
    bench.ioctl(vcpu, k.KVM_SET_SREGS2, new)
    bench.ioctl(vcpu, k.KVM_GET_SREGS, old)
    assert (old.cr3, old.fs.base) == (0x5000, 0x1234)


def test_sregs2_under_pae_paging_tells_the_pdptrs(bench: Bench, logged: int) -> None:
    vcpu = bench.ioctl(logged, k.KVM_CREATE_VCPU, 0)
    memory[0x5000:0x5008] = (0x6001).to_bytes(8, "little")
    sregs = k.kvm_sregs2()
    bench.ioctl(vcpu, k.KVM_GET_SREGS2, sregs)
    sregs.cr0, sregs.cr4, sregs.cr3 = 0x80000011, 1 << 5, 0x5000
    sregs.flags = k.KVM_SREGS2_FLAGS_PDPTRS_VALID
    bench.ioctl(vcpu, k.KVM_SET_SREGS2, sregs)
    bench.ioctl(vcpu, k.KVM_GET_SREGS2, sregs)
    assert sregs.flags == k.KVM_SREGS2_FLAGS_PDPTRS_VALID
    assert sregs.pdptrs[0] == 0x6001


def test_cpuid_of_old_has_no_sub_leaves(bench: Bench) -> None:
    vcpu = bench.ioctl(bench.vm(0), k.KVM_CREATE_VCPU, 0)
    entry = k.kvm_cpuid_entry(function=0x40000000, eax=1, ebx=2, ecx=3, edx=4)
    bench.ioctl(vcpu, k.KVM_SET_CPUID, filled(k.kvm_cpuid, [entry], nent=1))
    answer = filled(k.kvm_cpuid2, [k.kvm_cpuid_entry2()] * 4, nent=4)
    bench.ioctl(vcpu, k.KVM_GET_CPUID2, answer)
    got = answer.entries[0]
    assert (answer.nent, got.function, got.index, got.flags) == (1, 0x40000000, 0, 0)
    assert (got.eax, got.ebx, got.ecx, got.edx) == (1, 2, 3, 4)
