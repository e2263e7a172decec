# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS, beside the host's own KVM; and that what is put in is delivered."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import KvmError, Vcpu
from swtdx.uapi.kernel import Kernel
from tests.linux.arch.x86.kvm.vmx.test_vmx import CODE, HLT, Machine, flat
from tests.linux.conftest import Bench, refused

STEPS: list[dict[str, int]] = [
    {"nmi.pending": 1, "flags": 1},
    {"nmi.masked": 1, "flags": 1},
    {"nmi.pending": 1},  # without the flag it stays as it is
    {"interrupt.shadow": 2, "flags": 4},
    {"interrupt.shadow": 1, "flags": 4},
    {"exception.injected": 1, "exception.nr": 13, "exception.has_error_code": 1, "exception.error_code": 5},
    {"exception.injected": 1, "exception.nr": 6},
    {"exception.injected": 1, "exception.nr": 2},  # an NMI is not an exception
    {"exception.injected": 1, "exception.nr": 32},
    {"interrupt.injected": 1, "interrupt.nr": 0x30},
    {"nmi.injected": 1},
    {"flags": 0x40},
    {"flags": 0x20},  # the triple fault event was not enabled
    {"flags": 0x10},  # nor the payload
    {"sipi_vector": 5, "flags": 2},
    {},
]


def events(**members: int) -> k.kvm_vcpu_events:
    made = k.kvm_vcpu_events()
    for path, value in members.items():
        target: Any = made
        *where, name = path.split(".")
        for part in where:
            target = getattr(target, part)
        setattr(target, name, value)
    return made


def answers(vcpu: Vcpu) -> list[str]:
    """What is read back after each step, or the errno."""
    seen = [bytes(vcpu.fetch(k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events)).hex()]
    for step in STEPS:
        try:
            vcpu.put(k.KVM_SET_VCPU_EVENTS, events(**step))
        except KvmError as error:
            seen.append(errno.errorcode[error.errno or 0])
            continue
        seen.append(bytes(vcpu.fetch(k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events)).hex())
    return seen


def test_what_is_set_is_got_as_on_the_host(host_kvm: Path) -> None:
    both = [answers(Machine(open_kernel(name), lambda vm: vm.split_irqchip()).vcpu) for name in ("host", "emulated")]
    for step, real, ours in zip([None, *STEPS], *both, strict=True):
        assert ours == real, step


@pytest.fixture(params=["emulated", "host"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    if request.param == "host":
        request.getfixturevalue("host_kvm")
    return open_kernel(request.param)


def test_an_exception_is_delivered_with_its_error_code(kernel: Kernel) -> None:
    machine = Machine(kernel)
    machine.load(HLT)
    machine.gate(13, f"58e780{HLT}")  # pop eax; out 0x80, eax
    flat(machine.vcpu)
    machine.vcpu.put(
        k.KVM_SET_VCPU_EVENTS,
        events(
            **{"exception.injected": 1, "exception.nr": 13, "exception.has_error_code": 1, "exception.error_code": 0x58}
        ),
    )
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.Exit.IO
    assert machine.vcpu.io_data() == b"\x58\0\0\0"
    left = machine.vcpu.fetch(k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events)
    assert (left.exception.injected, left.nmi.injected, left.interrupt.injected) == (0, 0, 0)


def test_an_interrupt_is_delivered_where_the_guest_is(kernel: Kernel) -> None:
    machine = Machine(kernel)
    machine.load(HLT)
    machine.gate(0x30, f"58e780{HLT}")  # the return address
    flat(machine.vcpu)
    machine.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=0x202, rsp=0xF00))  # VMX injects none without RFLAGS.IF
    machine.vcpu.put(k.KVM_SET_VCPU_EVENTS, events(**{"interrupt.injected": 1, "interrupt.nr": 0x30}))
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.Exit.IO
    assert machine.vcpu.io_data() == CODE.to_bytes(4, "little")


def test_a_td_shows_nothing_and_takes_nmis(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.ioctl(
        vcpu,
        k.KVM_SET_VCPU_EVENTS,
        events(**{"exception.injected": 1, "exception.nr": 6, "nmi.pending": 1, "flags": 1}),
    )
    seen = k.kvm_vcpu_events()
    bench.ioctl(vcpu, k.KVM_GET_VCPU_EVENTS, seen)
    assert bytes(seen) == bytes(events(**{"nmi.pending": 1, "flags": 0xD}))
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, k.KVM_SET_VCPU_EVENTS, events(**{"exception.injected": 1, "exception.nr": 2}))
