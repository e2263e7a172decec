# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_NESTED_STATE, KVM_SET_NESTED_STATE of a vCPU without VMX (x86.c and vmx/nested.c of Linux 6.16)."""

from __future__ import annotations

import errno

import pytest

from swtdx.uapi import kvm as k
from tests.linux.conftest import Bench, refused

NOWHERE = (1 << 64) - 1


@pytest.fixture(params=["VM", "TD"])
def vcpu(request: pytest.FixtureRequest, bench: Bench) -> int:
    if request.param == "TD":
        return bench.vcpu(bench.td())
    vm = bench.vm(0)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    return bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)


def state_of(bench: Bench, vcpu: int) -> k.kvm_nested_state:
    state = k.kvm_nested_state(size=4096)
    bench.ioctl(vcpu, k.KVM_GET_NESTED_STATE, state)
    return state


def test_there_is_a_header_that_says_no_vmxon(bench: Bench, vcpu: int) -> None:
    state = state_of(bench, vcpu)
    assert (state.flags, state.format, state.size) == (0, 0, 128)
    assert list(state.hdr)[:3] == [NOWHERE, NOWHERE, 0]
    bench.ioctl(vcpu, k.KVM_SET_NESTED_STATE, state)  # what was got may be set
    assert bench.ioctl(bench.device(), k.KVM_CHECK_EXTENSION, k.Cap.NESTED_STATE) == 128 + 2 * 4096


def test_too_little_room_is_e2big_and_tells_the_size(bench: Bench, vcpu: int) -> None:
    state = k.kvm_nested_state(size=127)
    with refused(errno.E2BIG):
        bench.ioctl(vcpu, k.KVM_GET_NESTED_STATE, state)
    assert state.size == 128


@pytest.mark.parametrize(
    "change",
    [{"size": 127}, {"flags": 1 << 9}, {"flags": 2}, {"flags": 1}, {"format": 1}, {"vmxon": 0x1000}, {"vmcs12": 0}],
)
def test_no_other_state_can_be_set(bench: Bench, vcpu: int, change: dict[str, int]) -> None:
    state = state_of(bench, vcpu)
    for name, value in change.items():
        if name in ("vmxon", "vmcs12"):
            state.hdr[int(name == "vmcs12")] = value
        else:
            setattr(state, name, value)
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, k.KVM_SET_NESTED_STATE, state)
