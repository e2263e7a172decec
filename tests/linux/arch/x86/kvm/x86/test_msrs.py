# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_MSRS and KVM_SET_MSRS: which values KVM takes. Expectations: arch/x86/kvm/x86.c and mtrr.c of Linux 6.16."""

from __future__ import annotations

import ctypes
import errno
from pathlib import Path

import pytest

from swtdx.linux.arch.x86.kvm.x86 import msrs
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from swtdx.uapi.host import HostKernel
from swtdx.uapi.layout import filled, u64
from testing.long_mode import GP, LongModeVm, rdmsr, split_irqchip, wrmsr
from tests.linux.conftest import Bench, ScriptedModule, refused

VCPU_CPUID = [k.kvm_cpuid_entry2(function=1, ecx=1 << 21), k.kvm_cpuid_entry2(function=7, flags=1, ebx=1 << 1)]
MC0_CTL, MC0_STATUS, MC0_CTL2 = 0x400, 0x401, 0x280

ACCEPTED = (
    # kvm_mtrr_valid: memory types 0, 1, 4, 5, 6; no bits above MAXPHYADDR, 36 where CPUID does not tell
    (0x2FF, 0xC06, True), (0x2FF, 0x806, True), (0x2FF, 2, False), (0x2FF, 0x1000, False),
    (0x250, 0x0606060606060606, True), (0x268, 0x0605040100000000, True), (0x26F, 3, False), (0x26F, 8, False),
    (0x200, 0xFFFFF0006, True), (0x200, 0x100, False), (0x200, 1 << 36, False), (0x201, 0xFFFFF0800, True),
    (0x201, 0x400, False), (0x20F, 1 << 40, False), (0x210, 0, False), (0x24F, 0, False),
    # kvm_set_msr_common: MISC_ENABLE is user space's, MISC_FEATURES_ENABLES has one bit, POLL_CONTROL one, HWCR two
    (0x1A0, 1, True), (0x1A0, 0x1801, True), (0xC0010015, 1 << 24 | 1 << 18, True), (0xC0010015, 0x148, True),
    (0xC0010015, 1, False), (0x4B564D05, 0, True), (0x4B564D05, 1, True), (0x4B564D05, 2, False),
    # set_msr_mce: 32 banks without MCG_CTL_P and MCG_CMCI_P
    (0x17A, 5, True), (0x17B, 0, True), (0x17B, (1 << 64) - 1, False), (0x179, 32, False),
    (MC0_CTL, (1 << 64) - 1, True), (MC0_CTL, (1 << 64) - 1 - 0x400, True), (MC0_CTL, (1 << 64) - 2, True),
    (MC0_CTL, 1, False), (MC0_STATUS, 1 << 63, True), (MC0_CTL2, 0, True), (MC0_CTL2, 1 << 30, False),
    # kvm_apic_set_base: a mode that exists, and no reserved bit
    (0x1B, 0xFEE00900, True), (0x1B, 0xFEE00D00, True), (0x1B, 0xFEE00400, False), (0x1B, 0xFEE00901, False),
    (0x1B, 1 << 36 | 0x800, False), (0x1B, 0x900, True),
    # values of feature MSRs before the first run, MSRs that are ignored, and some that are not there
    (0xCE, 0, True), (0x8B, 7 << 32, True), (0x11E, 9, True), (0xC001001F, 9, True), (0xC0010058, 0, True),
    (0xC0010058, 1, False), (0x1234, 0, False), (0x4B564D08, 0, False), (0x34, 3, True), (0x3B, 1 << 40, True),
    # __kvm_set_msr: canonical bases
    (0xC0000100, 1 << 46, True), (0xC0000100, 1 << 56, False), (0xC0000102, 0xFFFF800000000000, True),
    (0xC0000082, 0xFEFF800000000000, False), (0xC0000080, 1 << 1, False),
)  # fmt: skip


def vcpu_of(bench: Bench, vm: int) -> int:
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    bench.ioctl(vcpu, k.KVM_SET_CPUID2, filled(k.kvm_cpuid2, VCPU_CPUID, nent=len(VCPU_CPUID)))
    return vcpu


@pytest.fixture
def vcpu(bench: Bench) -> int:
    return vcpu_of(bench, bench.vm(0))


def get(bench: Bench, vcpu: int, *indices: int) -> list[int]:
    """Values of as many as there are."""
    entries = [k.kvm_msr_entry(index=index) for index in indices]
    request = filled(k.kvm_msrs, entries, nmsrs=len(entries))
    done = bench.ioctl(vcpu, k.KVM_GET_MSRS, request)
    return [k.kvm_msr_entry.from_buffer(request, 8 + 16 * number).data for number in range(done)]


def put(bench: Bench, vcpu: int, *pairs: tuple[int, int]) -> int:
    """How many were taken."""
    entries = [k.kvm_msr_entry(index=index, data=data) for index, data in pairs]
    return bench.ioctl(vcpu, k.KVM_SET_MSRS, filled(k.kvm_msrs, entries, nmsrs=len(entries)))


@pytest.mark.parametrize(("index", "value", "taken"), ACCEPTED, ids=lambda value: f"{value:#x}")
def test_values(bench: Bench, vcpu: int, index: int, value: int, taken: bool) -> None:
    assert put(bench, vcpu, (index, value)) == int(taken)
    if taken and index not in (*msrs.WRITE_IGNORED, 0xC0010015):
        assert get(bench, vcpu, index) == [value]


@pytest.mark.parametrize(("index", "value", "taken"), ACCEPTED, ids=lambda value: f"{value:#x}")
def test_values_on_real_kvm(host_kvm: Path, index: int, value: int, taken: bool) -> None:
    kernel = HostKernel()
    bench = Bench(kernel, ScriptedModule())  # type: ignore[arg-type]  # it asks only system calls of it
    device = kernel.open("/dev/kvm")
    vm = kernel.ioctl(device, k.KVM_CREATE_VM, 0)
    vcpu = vcpu_of(bench, vm)
    assert put(bench, vcpu, (index, value)) == int(taken)
    for fd in (vcpu, vm, device):
        kernel.close(fd)


def test_it_stops_at_the_first_that_is_refused(bench: Bench, vcpu: int) -> None:
    assert put(bench, vcpu, (0x1A0, 1), (0x1234, 0), (0x1A0, 3)) == 1
    assert get(bench, vcpu, 0x1A0, 0x1234, 0x1A0) == [1]
    with refused(errno.E2BIG):
        bench.ioctl(vcpu, k.KVM_SET_MSRS, filled(k.kvm_msrs, [], nmsrs=256))


def test_what_is_advertised_and_not_there_is_0_for_user_space(bench: Bench, vcpu: int) -> None:
    """kvm_do_msr_access: ARCH_CAPABILITIES is in the index list; the vCPU's CPUID does not have it."""
    assert get(bench, vcpu, 0x10A) == [0]
    assert put(bench, vcpu, (0x10A, 0)) == 1
    assert put(bench, vcpu, (0x10A, 1)) == 0


def test_the_model_of_a_vcpu_that_has_run_stays(bench: Bench, vcpu: int) -> None:
    """do_set_msr: an immutable feature MSR may be written again, but not changed."""
    assert put(bench, vcpu, (0xCE, 1 << 31)) == 1
    bench.ioctl(vcpu, k.KVM_RUN)  # without memory it does not come far
    assert put(bench, vcpu, (0xCE, 1 << 31)) == 1
    assert put(bench, vcpu, (0xCE, 0)) == 0
    assert put(bench, vcpu, (0x8B, 5 << 32)) == 1  # the model does not have the microcode's revision


def test_the_index_list_is_readable(bench: Bench, vcpu: int) -> None:
    assert len(get(bench, vcpu, *msrs.MSR_INDEX_LIST)) == len(msrs.MSR_INDEX_LIST)
    assert len(set(msrs.MSR_INDEX_LIST)) == len(msrs.MSR_INDEX_LIST)


# --- Machine checks: kvm_vcpu_ioctl_x86_setup_mce and _set_mce --------------------------------------------------------


ALL, VALID, UNCORRECTED, PCC = (1 << 64) - 1, 1 << 63, 1 << 61, 1 << 57


def setup_mce(bench: Bench, vcpu: int, mcg_cap: int = 10 | 1 << 8) -> None:
    bench.ioctl(vcpu, k.KVM_X86_SETUP_MCE, u64(mcg_cap))


def test_setup_mce_enables_reporting(bench: Bench, vcpu: int) -> None:
    setup_mce(bench, vcpu)
    assert get(bench, vcpu, 0x179, 0x17B, MC0_CTL, MC0_CTL + 36) == [10 | 1 << 8, ALL, ALL, ALL]
    assert put(bench, vcpu, (MC0_CTL + 40, 0)) == 0  # an eleventh bank


def test_a_corrected_error_is_kept_and_an_uncorrected_one_is_not_overwritten(bench: Bench, vcpu: int) -> None:
    setup_mce(bench, vcpu)
    bench.ioctl(vcpu, k.KVM_X86_SET_MCE, k.kvm_x86_mce(bank=2, status=VALID | 5, addr=0x1000, misc=7))
    assert get(bench, vcpu, *range(MC0_CTL + 9, MC0_CTL + 12)) == [VALID | 5, 0x1000, 7]
    bench.ioctl(vcpu, k.KVM_X86_SET_MCE, k.kvm_x86_mce(bank=2, status=VALID | 6))
    assert get(bench, vcpu, MC0_CTL + 9) == [VALID | 6 | 1 << 62]  # OVER
    worse = VALID | UNCORRECTED
    bench.ioctl(vcpu, k.KVM_X86_SET_MCE, k.kvm_x86_mce(bank=2, status=worse))
    bench.ioctl(vcpu, k.KVM_X86_SET_MCE, k.kvm_x86_mce(bank=2, status=VALID | 6))
    assert get(bench, vcpu, MC0_CTL + 9) == [worse | 1 << 62]


def test_an_error_that_a_guest_cannot_take_shuts_it_down(bench: Bench, vcpu: int) -> None:
    setup_mce(bench, vcpu)
    run = bench.run_page(vcpu)
    fatal = k.kvm_x86_mce(bank=0, status=VALID | UNCORRECTED | PCC, mcg_status=4)
    bench.ioctl(vcpu, k.KVM_X86_SET_MCE, fatal)  # CR4.MCE is clear
    bench.ioctl(vcpu, k.KVM_RUN)
    assert run.exit_reason == k.Exit.SHUTDOWN


def test_the_guest_gets_a_machine_check(bench: Bench, vcpu: int) -> None:
    setup_mce(bench, vcpu)
    sregs = k.kvm_sregs()
    bench.ioctl(vcpu, k.KVM_GET_SREGS, sregs)
    sregs.cr4 |= 1 << 6
    bench.ioctl(vcpu, k.KVM_SET_SREGS, sregs)
    fatal = k.kvm_x86_mce(bank=1, status=VALID | UNCORRECTED | PCC, mcg_status=4, addr=0x2000)
    bench.ioctl(vcpu, k.KVM_X86_SET_MCE, fatal)
    events = k.kvm_vcpu_events()
    bench.ioctl(vcpu, k.KVM_GET_VCPU_EVENTS, events)
    assert (events.exception.injected, events.exception.nr) == (1, 18)
    assert get(bench, vcpu, 0x17A, MC0_CTL + 5, MC0_CTL + 6) == [4, fatal.status, 0x2000]


def test_set_mce_refusals(bench: Bench, vcpu: int) -> None:
    setup_mce(bench, vcpu)
    for bad in (k.kvm_x86_mce(bank=10, status=VALID), k.kvm_x86_mce(bank=0, status=1)):
        with refused(errno.EINVAL):
            bench.ioctl(vcpu, k.KVM_X86_SET_MCE, bad)


PV_MSRS = {  # linux/Documentation/virt/kvm/x86/msr.rst: MSR, bit of CPUID 0x40000001 EAX, a value it takes
    0x11: (0, 0x9000), 0x12: (0, 0x9001), 0x4B564D00: (3, 0x9000), 0x4B564D01: (3, 0x9001), 0x4B564D05: (12, 1),
    0x4B564D02: (4, 0x9001), 0x4B564D03: (5, 0x9001), 0x4B564D04: (6, 0x9001), 0x4B564D06: (14, 0x60),
    0x4B564D07: (14, 1),
}  # fmt: skip


@pytest.mark.parametrize("index", PV_MSRS, ids=hex)
def test_a_paravirtual_msr_needs_its_feature_where_that_is_enforced(index: int) -> None:
    with Kvm(open_kernel("emulated")) as device:
        for features in (None, 0):
            entries = device.supported_cpuid()
            for entry in entries:
                if entry.function == 0x40000001 and features is not None:
                    entry.eax = features
            with LongModeVm(device, entries, setup=split_irqchip) as guest:
                guest.vcpu.enable_cap(k.Cap.ENFORCE_PV_FEATURE_CPUID, 1)
                expected = None if features is None else GP
                assert guest.run(rdmsr(index)) == expected
                assert guest.run(wrmsr(index, PV_MSRS[index][1])) == expected


@pytest.mark.parametrize(("count", "becomes", "read"), [(2, 1, 1), (3, 8192, 8192), (3, 0, 0), (5, 5, 5)])
def test_user_space_changes_the_count_of_an_ins(count: int, becomes: int, read: int) -> None:
    """KVM carries on with the RCX that it finds (emulator_pio_in_emulated)."""
    with Kvm(open_kernel("emulated")) as device, LongModeVm(device) as guest:
        guest.start(bytes.fromhex("f36c"), rcx=count, rdi=0x9000, rdx=0x80)
        run = guest.vcpu.kvm_run
        changed = False
        while guest.step() is k.Exit.IO and run.io.port == 0x80:
            guest.vcpu.set_io_data(b"\xaa" * (run.io.size * run.io.count))
            if not changed:
                regs = guest.vcpu.get_regs()
                assert regs.rcx == count
                regs.rcx, changed = becomes, True
                guest.vcpu.set_regs(regs)
        regs = guest.vcpu.get_regs()
        assert (regs.rcx, regs.rdi) == (0, 0x9000 + read)
        assert guest.memory[0x9000 : 0x9000 + read + 1] == b"\xaa" * read + b"\0"


def test_a_corrected_error_interrupts_through_lvt_cmci() -> None:
    """kvm_vcpu_x86_set_ucna: only with MCG_CMCI_P, and where the bank's CTL2 enables it."""

    ctl2, enabled, cmci_p = 0x280 + 3, 1 << 30, 1 << 10
    with Kvm(open_kernel("emulated")) as device, LongModeVm(device, setup=split_irqchip) as guest:
        vcpu = guest.vcpu
        assert vcpu.set_msrs({ctl2: enabled}) == 0
        vcpu.setup_mce(10 | cmci_p)
        vcpu.set_msrs({0x1B: 0xFEE00D00})
        assert vcpu.set_msrs({ctl2: 1 << 31}) == 0, "a reserved bit"
        assert guest.run(wrmsr(ctl2, 1 << 15)) == GP
        for enable, expected in ((0, None), (enabled, 0x45)):
            assert guest.run(wrmsr(0x80F, 0x1FF) + wrmsr(0x82F, 0x45) + wrmsr(ctl2, enable)) is None
            error = k.kvm_x86_mce(status=1 << 63 | 1 << 61, addr=0x1234, misc=5, bank=3)
            vcpu.ioctl(k.KVM_X86_SET_MCE, ctypes.addressof(error))
            assert guest.run(rdmsr(0x401 + 4 * 3) + bytes.fromhex("fb9090")) == expected
