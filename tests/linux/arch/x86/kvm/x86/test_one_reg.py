# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_ONE_REG and KVM_SET_ONE_REG of x86: MSRs by a register's identifier (Linux 6.18, kvm_get_set_one_reg).

Documentation/virt/kvm/api.rst: bits 63:56 are 0x20, 55:52 log2 of the bytes, 39:32 the type (2: MSR, 3: KVM's own),
31:0 the index. Refused in this order: the identifier's architecture, reserved bits, type, size; then the value.
"""

from __future__ import annotations

import ctypes
import errno

import pytest

from swtdx.uapi import kvm as k
from tests.linux.arch.x86.kvm.x86.test_msrs import get, put
from tests.linux.conftest import Bench, refused

MSR, TSC_AUX, PAT, UNKNOWN = 0x2030_0002_0000_0000, 0xC0000103, 0x277, 0xDEAD


@pytest.fixture
def vcpu(bench: Bench) -> int:
    return bench.ioctl(bench.vm(0), k.KVM_CREATE_VCPU, 0)


def request(bench: Bench, vcpu: int, call: int, register: int, value: int = 0) -> int:
    holder = ctypes.c_uint64(value)
    bench.ioctl(vcpu, call, k.kvm_one_reg(id=register, addr=ctypes.addressof(holder)))
    return holder.value


@pytest.mark.parametrize(("index", "value"), [(TSC_AUX, 0x12345678), (PAT, 0x0606060606060606), (0xC0000102, 1 << 46)])
def test_a_register_is_the_msr(bench: Bench, vcpu: int, index: int, value: int) -> None:
    request(bench, vcpu, k.KVM_SET_ONE_REG, MSR | index, value)
    assert get(bench, vcpu, index) == [value]
    put(bench, vcpu, (index, 0))
    assert request(bench, vcpu, k.KVM_GET_ONE_REG, MSR | index, 77) == 0


WRONG = {
    "another architecture": MSR ^ 0x60 << 56,
    "no architecture": MSR & ~(0xFF << 56),
    **{f"reserved bit {bit}": MSR | 1 << bit for bit in range(40, 52)},
    "type 0": MSR & ~(0xFF << 32),
    "type 1": MSR ^ 3 << 32,
    "KVM's register 0, without shadow stacks": MSR ^ 1 << 32,
    "KVM's register 1": (MSR ^ 1 << 32) | 1,
    **{f"size {1 << size}": MSR & ~(0xF << 52) | size << 52 for size in (0, 1, 2, 4, 5, 8)},
}


@pytest.mark.parametrize("call", [k.KVM_GET_ONE_REG, k.KVM_SET_ONE_REG], ids=["get", "set"])
@pytest.mark.parametrize("what", WRONG)
def test_identifiers_that_are_refused(bench: Bench, vcpu: int, call: int, what: str) -> None:
    register = WRONG[what] | (0 if "KVM's" in what else TSC_AUX)
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, call, k.kvm_one_reg(id=register, addr=8))  # before the value is looked at


@pytest.mark.parametrize("call", [k.KVM_GET_ONE_REG, k.KVM_SET_ONE_REG], ids=["get", "set"])
def test_msrs_that_are_not_there_and_values_that_are_not_taken(bench: Bench, vcpu: int, call: int) -> None:
    with refused(errno.EINVAL):
        request(bench, vcpu, call, MSR | UNKNOWN, 1)
    if call == k.KVM_SET_ONE_REG:
        with refused(errno.EINVAL):
            request(bench, vcpu, call, MSR | PAT, 2)  # memory type 2 is reserved
        assert get(bench, vcpu, PAT) == [0x0007040600070406]


@pytest.mark.parametrize("call", [k.KVM_GET_ONE_REG, k.KVM_SET_ONE_REG], ids=["get", "set"])
def test_wild_pointers(bench: Bench, vcpu: int, call: int) -> None:
    with refused(errno.EFAULT):
        bench.ioctl(vcpu, call, 8)
    with refused(errno.EFAULT):
        bench.ioctl(vcpu, call, k.kvm_one_reg(id=MSR | TSC_AUX, addr=8))


def test_the_list_is_empty(bench: Bench, vcpu: int) -> None:
    """KVM's own registers are the guest's shadow stack pointer alone; MSRs have a list of their own."""
    request = k.kvm_reg_list(n=5)
    bench.ioctl(vcpu, k.KVM_GET_REG_LIST, request)
    assert request.n == 0
    with refused(errno.EFAULT):
        bench.ioctl(vcpu, k.KVM_GET_REG_LIST, 8)
