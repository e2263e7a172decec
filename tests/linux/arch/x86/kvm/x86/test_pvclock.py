# SPDX-License-Identifier: GPL-2.0-or-later
"""kvmclock: KVM_GET_CLOCK, KVM_SET_CLOCK, the guest's page (Documentation/virt/kvm/x86/msr.rst, virt/kvm/api.rst)."""

from __future__ import annotations

import ctypes
import errno
import struct
import time

import pytest

from swtdx.linux.arch.x86.kvm.x86.pvclock import time_scale
from swtdx.uapi import kvm as k
from swtdx.uapi.layout import u64
from tests.linux.arch.x86.kvm.x86.test_msrs import get, put
from tests.linux.conftest import Bench, refused

SYSTEM_TIME, SYSTEM_TIME_OLD, WALL_CLOCK = 0x4B564D01, 0x12, 0x4B564D00
ALL_FLAGS = k.KVM_CLOCK_TSC_STABLE | k.KVM_CLOCK_REALTIME | k.KVM_CLOCK_HOST_TSC
SECOND = 1_000_000_000


class Guest:
    """A default VM with a page of memory at 0 and ``cpus`` vCPUs."""

    def __init__(self, bench: Bench, cpus: int = 1, flags: int = 0) -> None:
        self.bench, self.vm = bench, bench.vm(0)
        bench.enable(self.vm, k.Cap.SPLIT_IRQCHIP, 24)
        self.memory = (ctypes.c_char * 0x3000)()
        self.base = (ctypes.addressof(self.memory) + 4095) & -4096
        region = k.kvm_userspace_memory_region(flags=flags, memory_size=0x2000, userspace_addr=self.base)
        bench.ioctl(self.vm, k.KVM_SET_USER_MEMORY_REGION, region)
        self.vcpus = [bench.ioctl(self.vm, k.KVM_CREATE_VCPU, number) for number in range(cpus)]

    def page(self, address: int) -> tuple[int, ...]:
        """version, pad, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags"""
        return struct.unpack("<IIQQIbBxx", ctypes.string_at(self.base + address, 32))

    def clock(self) -> k.kvm_clock_data:
        data = k.kvm_clock_data()
        self.bench.ioctl(self.vm, k.KVM_GET_CLOCK, data)
        return data

    def now(self, vcpu: int, address: int) -> int:
        """As a guest computes it (pvclock.h) from its TSC and the page."""
        _, _, stamp, system_time, multiplier, shift, _ = self.page(address)
        (tsc,) = get(self.bench, vcpu, 0x10)
        delta = tsc - stamp
        return system_time + ((delta << shift if shift >= 0 else delta >> -shift) * multiplier >> 32)


@pytest.fixture
def guest(bench: Bench) -> Guest:
    return Guest(bench)


@pytest.mark.parametrize("hertz", [1_000_000, 25_000_000, 999_999_999, 1_000_000_000, 2_596_126_000, 10_000_000_000])
def test_time_scale(hertz: int) -> None:
    shift, multiplier = time_scale(hertz)
    assert -128 <= shift < 128
    assert 1 << 31 <= multiplier < 1 << 32
    ticks = 3 * hertz
    nanoseconds = (ticks << shift if shift >= 0 else ticks >> -shift) * multiplier >> 32
    assert abs(nanoseconds - 3 * SECOND) <= 8 * SECOND // hertz + 8


def test_the_guest_reads_the_vms_time_from_its_page(guest: Guest) -> None:
    (vcpu,) = guest.vcpus
    assert put(guest.bench, vcpu, (SYSTEM_TIME, 0x1041)) == 1
    assert get(guest.bench, vcpu, SYSTEM_TIME, SYSTEM_TIME_OLD) == [0x1041, 0x1041]
    version, pad, *_, flags = guest.page(0x1040)
    assert (version % 2, pad, flags) == (0, 0, 1)  # PVCLOCK_TSC_STABLE_BIT
    before, inside, after = guest.clock().clock, guest.now(vcpu, 0x1040), guest.clock().clock
    assert before - 100_000 <= inside <= after + 100_000


def test_setting_the_clock_shows_in_the_page(guest: Guest) -> None:
    (vcpu,) = guest.vcpus
    put(guest.bench, vcpu, (SYSTEM_TIME, 0x1001))
    old_version = guest.page(0x1000)[0]
    guest.bench.ioctl(guest.vm, k.KVM_SET_CLOCK, k.kvm_clock_data(clock=500 * SECOND))
    assert 500 * SECOND <= guest.now(vcpu, 0x1000) < 600 * SECOND
    assert 500 * SECOND <= guest.clock().clock < 600 * SECOND
    version = guest.page(0x1000)[0]
    assert version > old_version
    assert version % 2 == 0


def test_real_time_that_has_gone_by_is_added_and_never_taken_away(guest: Guest) -> None:
    now = time.time_ns()
    data = k.kvm_clock_data(clock=SECOND, flags=k.KVM_CLOCK_REALTIME, realtime=now - 50 * SECOND)
    guest.bench.ioctl(guest.vm, k.KVM_SET_CLOCK, data)
    assert 51 * SECOND <= guest.clock().clock < 150 * SECOND
    data.realtime = now + 5000 * SECOND
    guest.bench.ioctl(guest.vm, k.KVM_SET_CLOCK, data)
    assert SECOND <= guest.clock().clock < 100 * SECOND


def test_flags(bench: Bench) -> None:
    """kvm_arch_ops: KVM_CAP_ADJUST_CLOCK reports KVM_CLOCK_VALID_FLAGS; stable once vCPUs share one TSC."""
    assert bench.ioctl(bench.device(), k.KVM_CHECK_EXTENSION, k.Cap.ADJUST_CLOCK) == ALL_FLAGS
    guest = Guest(bench, 0)
    assert guest.clock().flags == 0  # pvclock_update_vm_gtod_copy: no vCPU matches
    guest = Guest(bench, 2)
    clock = guest.clock()
    assert clock.flags == ALL_FLAGS
    assert clock.host_tsc
    assert abs(clock.realtime - time.time_ns()) < 100 * SECOND
    with refused(errno.EINVAL):
        bench.ioctl(guest.vm, k.KVM_SET_CLOCK, k.kvm_clock_data(flags=1))
    guest.bench.ioctl(guest.vm, k.KVM_SET_CLOCK, clock)  # what was got may be set


def test_vcpus_with_tscs_of_their_own_have_no_stable_clock(bench: Bench) -> None:
    guest = Guest(bench, 2)
    first, second = guest.vcpus
    put(bench, first, (SYSTEM_TIME, 0x1001))
    put(bench, second, (SYSTEM_TIME, 0x1041))
    assert guest.page(0x1000)[6] == guest.page(0x1040)[6] == 1
    offset = u64(1 << 40)
    attribute = k.kvm_device_attr(group=k.KVM_VCPU_TSC_CTRL, attr=k.KVM_VCPU_TSC_OFFSET, addr=ctypes.addressof(offset))
    bench.ioctl(second, k.KVM_SET_DEVICE_ATTR, attribute)
    assert guest.clock().flags == 0
    assert guest.page(0x1000)[6] == guest.page(0x1040)[6] == 0
    assert abs(guest.now(first, 0x1000) - guest.now(second, 0x1040)) < SECOND  # the same time all the same


def test_wall_clock(guest: Guest) -> None:
    (vcpu,) = guest.vcpus
    put(guest.bench, vcpu, (WALL_CLOCK, 0x1100))
    version, seconds, nanoseconds = struct.unpack("<3I", ctypes.string_at(guest.base + 0x1100, 12))
    assert version % 2 == 0
    assert nanoseconds < SECOND
    assert abs(seconds * SECOND + nanoseconds + guest.clock().clock - time.time_ns()) < SECOND
    assert get(guest.bench, vcpu, WALL_CLOCK, 0x11) == [0x1100, 0x1100]


def test_a_guest_is_told_that_it_was_stopped(guest: Guest) -> None:
    """KVM_KVMCLOCK_CTRL; the flag stays until the guest takes it away."""
    (vcpu,) = guest.vcpus
    with refused(errno.EINVAL):
        guest.bench.ioctl(vcpu, k.KVM_KVMCLOCK_CTRL)
    put(guest.bench, vcpu, (SYSTEM_TIME, 0x1001))
    guest.bench.ioctl(vcpu, k.KVM_KVMCLOCK_CTRL)
    assert guest.page(0x1000)[6] == 3  # PVCLOCK_GUEST_STOPPED
    guest.bench.ioctl(guest.vm, k.KVM_SET_CLOCK, k.kvm_clock_data())
    assert guest.page(0x1000)[6] == 3
    ctypes.memset(guest.base + 0x1000 + 29, 0, 1)
    guest.bench.ioctl(guest.vm, k.KVM_SET_CLOCK, k.kvm_clock_data())
    assert guest.page(0x1000)[6] == 1


@pytest.mark.parametrize("address", [0x1FF1, 0x9001, 0xFFFFFFFFFFFFF001])
def test_pages_that_cannot_be_written(guest: Guest, address: int) -> None:
    """Over the end of a page, where there is no slot, nowhere at all: accepted, and nothing is written."""
    before = ctypes.string_at(guest.base, 0x2000)
    assert put(guest.bench, guest.vcpus[0], (SYSTEM_TIME, address), (WALL_CLOCK, address)) == 2
    assert ctypes.string_at(guest.base, 0x1F00) == before[:0x1F00]


def test_read_only_memory_is_not_written(bench: Bench) -> None:
    guest = Guest(bench, flags=int(k.KVM_MEM_READONLY))
    put(bench, guest.vcpus[0], (SYSTEM_TIME, 0x1001), (WALL_CLOCK, 0x1100))
    assert ctypes.string_at(guest.base, 0x2000) == bytes(0x2000)


def test_the_page_is_in_the_dirty_log(bench: Bench) -> None:
    guest = Guest(bench, flags=int(k.KVM_MEM_LOG_DIRTY_PAGES))
    put(bench, guest.vcpus[0], (SYSTEM_TIME, 0x1001))
    bitmap = (ctypes.c_uint64 * 1)()
    log = k.kvm_dirty_log(slot=0)
    log.dirty_bitmap = ctypes.addressof(bitmap)
    bench.ioctl(guest.vm, k.KVM_GET_DIRTY_LOG, log)
    assert bitmap[0] == 2


@pytest.mark.parametrize("rate", [0.5, 0.999, 1.001, 2.0])
@pytest.mark.parametrize("cpus", [1, 3])
@pytest.mark.parametrize("one_tsc", [True, False])
def test_time_never_goes_back(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, rate: float, cpus: int, one_tsc: bool
) -> None:
    """Whatever the host's clocks do beside its TSC, and whichever vCPU looks: each page that is written again."""
    start, real = time.monotonic_ns(), time.monotonic_ns
    monkeypatch.setattr(time, "monotonic_ns", lambda: start + int((real() - start) * rate))
    guest = Guest(bench, cpus)
    for number, vcpu in enumerate(guest.vcpus):
        if not one_tsc:
            put(bench, vcpu, (0x10, 1 << 40 + number))
        put(bench, vcpu, (SYSTEM_TIME, 0x1001 + 0x40 * number))
    latest = 0
    for turn in range(12):
        for number, vcpu in enumerate(guest.vcpus):
            now = guest.now(vcpu, 0x1000 + 0x40 * number)
            assert now >= latest - 2, (turn, number)  # two roundings of a nanosecond
            latest = max(latest, now)
        time.sleep(0.002)
        changed = turn % cpus
        put(bench, guest.vcpus[changed], (SYSTEM_TIME, 0x1001 + 0x40 * changed))
        if turn == 6:
            put(bench, guest.vcpus[changed], (0x10, 1 << 41))  # another TSC: the end of a master clock
        clock = guest.clock().clock
        assert clock >= latest - 2
        latest = max(latest, clock)


def test_cpuid_offers_what_there_is(bench: Bench) -> None:
    request = filled_cpuid()
    bench.ioctl(bench.device(), k.KVM_GET_SUPPORTED_CPUID, request)
    entries = (k.kvm_cpuid_entry2 * request.nent).from_buffer(request, 8)
    (features,) = [entry.eax for entry in entries if entry.function == 0x40000001]
    assert features & 1
    assert features & 1 << 3
    assert features & 1 << 24
    assert features & 1 << 5
    device = bench.device()
    for capability in (k.Cap.STEAL_TIME, k.Cap.X86_SMM):
        assert bench.ioctl(device, k.KVM_CHECK_EXTENSION, capability) == 0


def filled_cpuid() -> k.kvm_cpuid2:
    from swtdx.uapi.layout import with_entries

    filled: k.kvm_cpuid2 = with_entries(k.kvm_cpuid2, 200)(nent=200)
    return filled
