# SPDX-License-Identifier: GPL-2.0-or-later
"""Steal time (Documentation/virt/kvm/x86/msr.rst, MSR_KVM_STEAL_TIME; record_steal_time in arch/x86/kvm/x86.c)."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from swtdx.cpu.platform import Platform
from swtdx.linux.arch.x86.kvm.x86 import steal_time
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import DATA, GP, MMIO, LongModeVm, rdmsr, wrmsr
from testing.vm import SPIN, RealModeVm

MSR = 0x4B564D03
PREEMPTED = 16


@pytest.fixture
def guest() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as made:
        yield made


def area(guest: LongModeVm, at: int = DATA) -> tuple[int, int, int, int]:
    """(steal, version, flags, preempted)"""
    found: tuple[int, int, int, int] = struct.unpack_from("<QIIB", guest.memory, at)
    return found


def set_msr(guest: LongModeVm, value: int) -> bool:
    return guest.vcpu.set_msrs({MSR: value}) == 1


def test_the_register(guest: LongModeVm) -> None:
    assert guest.run(rdmsr(MSR)) is None
    assert guest.vcpu.get_regs().rax == 0
    for bit in range(1, 6):
        assert guest.run(wrmsr(MSR, DATA | 1 << bit)) == GP, bit
        assert not set_msr(guest, DATA | 1 << bit)
    assert guest.run(wrmsr(MSR, DATA | 1) + rdmsr(MSR)) is None
    assert guest.vcpu.get_regs().rax == DATA | 1
    assert guest.vcpu.get_msrs([MSR]) == {MSR: DATA | 1}


def test_the_guest_sees_it_at_once(guest: LongModeVm) -> None:
    """The request is met before the next instruction; the version is even, and has changed."""
    assert guest.run(wrmsr(MSR, DATA | 1) + b"\xa1" + struct.pack("<Q", DATA + 8)) is None  # mov eax, [version]
    assert guest.vcpu.get_regs().rax & 0xFFFFFFFF == 2
    assert area(guest)[1] % 2 == 0
    assert area(guest)[3] == 0, "that user space runs is not a preemption (kvm_arch_vcpu_put)"


def test_an_odd_version_is_made_even(guest: LongModeVm) -> None:
    struct.pack_into("<QI", guest.memory, DATA, 1000, 7)
    assert set_msr(guest, DATA | 1)
    assert area(guest)[:2] == (1000, 7), "nothing is written before the vCPU is loaded"
    assert guest.run(b"\x90") is None
    steal, version, flags, _ = area(guest)
    assert (version, flags) == (10, 0)
    assert steal >= 1000


def test_preempted_is_clear_while_the_guest_runs(guest: LongModeVm) -> None:
    assert set_msr(guest, DATA | 1)
    load = b"\x48\x31\xc0\xa0" + struct.pack("<Q", DATA + PREEMPTED)  # xor rax, rax; mov al, [preempted]
    for _ in range(3):
        guest.memory[DATA + PREEMPTED] = 1
        assert guest.run(load) is None
        assert guest.vcpu.get_regs().rax == 0
        assert area(guest)[3] == 0


def test_preempted_is_set_while_another_vcpu_has_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """kvm_sched_out: of a vCPU that could go on."""
    count_down = b"\xb9" + struct.pack("<I", 20_000_000) + b"\xff\xc9\x75\xfc"  # mov ecx; dec ecx; jnz
    seen = []
    set_preempted = steal_time.StealTime.set_preempted
    kernel = open_kernel("emulated", platform=Platform(logical_processors=1))
    with Kvm(kernel) as device, LongModeVm(device) as preempted, LongModeVm(device) as other:

        def looked_at(self: steal_time.StealTime) -> None:
            set_preempted(self)
            seen.append(area(preempted)[3])

        monkeypatch.setattr(steal_time.StealTime, "set_preempted", looked_at)
        assert set_msr(preempted, DATA | 1)
        ended = threading.Event()

        def compete() -> None:
            while not ended.is_set():
                other.run(b"\x90")

        thread = threading.Thread(target=compete, daemon=True)
        thread.start()
        until = time.monotonic() + 10
        while not seen and time.monotonic() < until:
            assert preempted.run(count_down) is None
        ended.set()
        thread.join()
        assert set(seen) == {1}
        assert area(preempted)[3] == 0


def test_each_load_adds_what_the_thread_has_waited(guest: LongModeVm, monkeypatch: pytest.MonkeyPatch) -> None:
    delays = [5_000]
    monkeypatch.setattr(steal_time, "run_delay", lambda: delays[-1])
    assert set_msr(guest, DATA | 1)
    seen = []
    for delay in (5_000, 5_000, 17_000, 3_000, 4_000):  # the fourth on a thread that has waited less
        delays.append(delay)
        assert guest.run(b"\x90") is None
        seen.append(area(guest)[0])
    steps = [after - before for before, after in pairwise(seen)]
    few = 3_000_000  # for a processor that was free
    assert [step // few for step in steps] == [0, 0, 0, 0]
    assert steps[1] >= 12_000


def test_a_vcpu_that_waits_for_a_processor_loses_time() -> None:
    kernel = open_kernel("emulated", platform=Platform(logical_processors=1))
    with Kvm(kernel) as device, LongModeVm(device) as guest, RealModeVm(device, SPIN) as other:
        assert set_msr(guest, DATA | 1)
        assert guest.run(b"\x90") is None
        before = area(guest)[0]
        thread = threading.Thread(target=lambda: other.seconds_to_leave(interrupt=False))
        thread.start()
        until = time.monotonic() + 10
        while area(guest)[0] - before < 100_000 and time.monotonic() < until:
            assert guest.run(b"\x90") is None
        thread.join()
        assert area(guest)[0] - before >= 100_000


@pytest.mark.parametrize("value", [DATA, 0])
def test_nothing_is_written_when_it_is_off(guest: LongModeVm, value: int) -> None:
    assert set_msr(guest, DATA | 1)
    assert guest.run(wrmsr(MSR, value)) is None
    guest.memory[DATA : DATA + 64] = bytes(64)
    assert guest.run(b"\x90") is None
    assert not any(guest.memory[DATA : DATA + 64])


@pytest.mark.parametrize("address", [MMIO, 0x40_0000_0000])
def test_an_address_without_memory(guest: LongModeVm, address: int) -> None:
    assert guest.run(wrmsr(MSR, address | 1)) is None
    assert guest.run(rdmsr(MSR)) is None
    assert guest.vcpu.get_regs().rax == address & 0xFFFFFFFF | 1


def test_it_needs_its_feature_where_features_are_enforced(guest: LongModeVm) -> None:
    entries = guest.vcpu.get_cpuid2()
    for entry in entries:
        if entry.function == 0x40000001:
            entry.eax &= ~(1 << 5)
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, entries) as bare:
        assert bare.run(wrmsr(MSR, DATA | 1)) is None
        bare.vcpu.enable_cap(k.Cap.ENFORCE_PV_FEATURE_CPUID, 1)
        assert bare.run(wrmsr(MSR, DATA | 1)) == GP
        assert bare.run(rdmsr(MSR)) == GP


def test_what_the_scheduler_says() -> None:
    if not Path("/proc/self/schedstat").exists():
        pytest.skip("the host does not count what threads wait")
    assert steal_time.run_delay() >= 0
