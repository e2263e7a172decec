# SPDX-License-Identifier: GPL-2.0-or-later
"""The time-stamp counter counts at a multiple of 25 MHz, as on every processor with TDX, and at the rate that is told.

TD_PARAMS.TSC_FREQUENCY is in units of 25 MHz (TDX module ABI). QEMU reads KVM_GET_TSC_KHZ of a TD's vCPU and refuses to
build a TD with a frequency that is not a multiple.
"""

from __future__ import annotations

import time

import pytest

from swtdx.cpu import platform
from swtdx.machine import MachineKernel, boot
from swtdx.uapi.client import Kvm
from swtdx.vmm.bare_td import BareTd
from tests.linux.arch.x86.kvm.x86.test_signals import vm_of

RDTSC_OUT = bytes.fromhex("0f31e610ebfa")  # 1: rdtsc; out 0x10, al; jmp 1b
HOSTS = [2_445_424_000, 2_596_126_000, 3_187_654_321, 2_399_990_000, 2_400_000_000, 2_100_300_000, 101_000_000]


@pytest.mark.parametrize("host", HOSTS)
def test_any_host_gives_a_multiple_and_the_ratio_that_makes_it_true(host: int) -> None:
    frequency, ratio = platform.scaled_tsc(host)
    assert frequency % 25_000_000 == 0
    assert abs(frequency - host) <= 12_500_000
    assert abs((host * ratio >> 48) - frequency) <= host * 100e-6


@pytest.fixture(params=[None, 2_445_424_000, 1_013_000_000], ids=lambda hertz: f"{hertz or 'this host'}")
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> MachineKernel:
    """A machine on this host, and on one whose counter is taken to count at another rate."""
    if request.param is not None:
        monkeypatch.setattr(platform, "_measure_tsc", lambda: request.param)
    return boot()


def test_what_is_told_is_a_multiple(kernel: MachineKernel) -> None:
    with Kvm(kernel) as device:
        vcpu, _memory = vm_of(device, RDTSC_OUT)
        assert vcpu.get_tsc_khz() % 25_000 == 0
        leaf = kernel.processor.cpuid(0x15)
        assert leaf[2] * leaf[1] // leaf[0] == vcpu.get_tsc_khz() * 1000
        with BareTd(device, b"\xf4") as td:
            assert td.vcpu.get_tsc_khz() == vcpu.get_tsc_khz()


def rate_of(kernel: MachineKernel, khz: int | None) -> tuple[float, float]:
    """(ticks a second that the guest counts, KVM_GET_TSC_KHZ in Hz)."""
    with Kvm(kernel) as device:
        vcpu, _memory = vm_of(device, RDTSC_OUT)
        if khz is not None:
            vcpu.set_tsc_khz(khz)

        def sample() -> tuple[int, int]:
            vcpu.run()
            registers = vcpu.get_regs()
            return time.monotonic_ns(), registers.rax & 0xFFFFFFFF | (registers.rdx & 0xFFFFFFFF) << 32

        sample()
        pairs = []
        for _ in range(2):
            pairs.append(sample())
            time.sleep(0.5)
        (t0, c0), (t1, c1) = pairs
        return (c1 - c0) * 1e9 / (t1 - t0), vcpu.get_tsc_khz() * 1e3


@pytest.mark.parametrize("khz", [None, 1_000_000, 3_000_000])
def test_the_guest_counts_at_the_rate_that_is_told(khz: int | None) -> None:
    rate, told = rate_of(boot(), khz)
    assert abs(rate / told - 1) < 0.01


def test_the_kernel_and_the_guest_read_the_same_counter(kernel: MachineKernel) -> None:
    """IA32_TSC by KVM_GET_MSRS before and after the guest's RDTSC bounds it."""
    with Kvm(kernel) as device:
        vcpu, _memory = vm_of(device, RDTSC_OUT)

        def from_outside() -> int:
            return vcpu.get_msrs([0x10])[0x10]

        for _ in range(3):
            before = from_outside()
            vcpu.run()
            after = from_outside()
            registers = vcpu.get_regs()
            inside = registers.rax & 0xFFFFFFFF | (registers.rdx & 0xFFFFFFFF) << 32
            assert before - 64 <= inside <= after + 64
