# SPDX-License-Identifier: GPL-2.0-or-later
"""Each MSR that Linux's KVM names, read and written by the guest and by user space, with and without its feature.

The rows follow msrs_to_save_base, msrs_to_save_pmu, emulated_msrs_all and msr_based_features_all_except_vmx of Linux
6.16.1 (arch/x86/kvm/x86.c) and the cases of kvm_get_msr_common, kvm_set_msr_common, vmx_get_msr and vmx_set_msr. A
build without CONFIG_KVM_HYPERV, CONFIG_KVM_XEN, CONFIG_KVM_SMM and CONFIG_X86_SGX_KVM, with kvm.enable_pmu=N and
kvm_intel.nested=0, on a processor without WAITPKG, TSX, Intel PT, MPX, XFD, CET, FLUSH_L1D and bus lock detection.

A cell has three letters for a read, a write of 0 and a write of the row's value: "+" is done, "i" refused as invalid,
"u" as an MSR that KVM does not know (KVM_MSR_EXIT_REASON_INVAL and _UNKNOWN), "g" refused by the processor itself; of
user space's calls "-" is refused; "." is not tried.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vm
from swtdx.uapi.release import KernelRelease
from testing.long_mode import DATA, GP, LongModeVm, rdmsr, wrmsr

NO_MEMORY, NOT_CANONICAL, ALL = 0x4000_0000, 1 << 62, (1 << 64) - 1
OF_BARE_GUEST = {0x80000001: 0x2010_0800}  # SYSCALL, NX, LM
FEATURES = (1, 7, 0xD, 0x80000001)


class Row(NamedTuple):
    """``guest`` and ``host``: with the CPUID that KVM offers. ``bare_guest``, ``bare_host``: without features."""

    indices: tuple[int, ...]
    value: int
    guest: str
    host: str
    bare_guest: str
    bare_host: str


def row(
    indices: int | Iterable[int], value: int, guest: str, host: str, bare_guest: str | None = None,
    bare_host: str | None = None,
) -> Row:  # fmt: skip
    """Without features an MSR is the same, unless its row says otherwise."""
    numbers = (indices,) if isinstance(indices, int) else tuple(indices)
    return Row(numbers, value, guest, host, bare_guest or guest, bare_host or host)


ROWS = (
    # msrs_to_save_base
    row(0x174, 8, "+++", "+++"),  # SYSENTER_CS
    row((0x175, 0x176), NOT_CANONICAL, "++g", "+++"),  # SYSENTER_ESP and _EIP: user space's are made canonical
    row(0xC0000081, ALL, "+++", "+++"),  # STAR
    row((0xC0000082, 0xC0000083), NOT_CANONICAL, "++i", "++-"),  # LSTAR, CSTAR: writes exit
    row(0xC0000084, 0x700, "+++", "+++"),  # SYSCALL_MASK
    row((0xC0000100, 0xC0000101, 0xC0000102), NOT_CANONICAL, "++g", "++-"),  # FS_BASE, GS_BASE, KERNEL_GS_BASE
    row(0x10, 5, "+++", "+++"),  # TSC
    row(0x277, 2, "++i", "++-"),  # PAT: memory type 2
    row(0x277, 0x0007040600070406, "+++", "+++"),
    row(0xC0010117, 1, "+++", "+++"),  # VM_HSAVE_PA
    row(0x3A, 4, "++i", "+++"),  # FEAT_CTL: VMX is user space's to enable
    row(0xD90, 1, "iii", "---"),  # BNDCFGS: no MPX
    row(0xC0000103, 1 << 32, "++i", "++-", "iii", "++-"),  # TSC_AUX: RDTSCP or RDPID
    row(0x48, 1 << 20, "++i", "++-", "iii", "++-"),  # SPEC_CTRL
    row(0x122, 1, "iii", "---"),  # TSX_CTRL
    row((0x570, 0x571, 0x572, 0x560, 0x561, *range(0x580, 0x588)), 1, "iii", "---"),  # RTIT_*: Intel PT
    row(0xE1, 2, "iii", "++-"),  # UMWAIT_CONTROL: bit 1 is reserved
    row(0xE1, 1 << 32, "iii", "++-"),
    row(0xE1, 5, "iii", "+++"),
    row((0x1C4, 0x1C5), 1 << 18, "iii", "++-"),  # XFD, XFD_ERR: no state component can be disabled
    # msrs_to_save_pmu: no counters but those that kvm_get_msr_common lets everybody read as 0
    row((0x309, 0x30A, 0x30B, 0x38D, 0x38E, 0x38F, 0x390, 0x3F1, 0x600, 0x3F2), 1, "uuu", "---"),
    row((0xC1, 0xC2, 0x186, 0x187, *range(0xC0010000, 0xC0010008)), 5, "+++", "+++"),
    row((*range(0xC3, 0xC9), *range(0x188, 0x18E), *range(0x4C1, 0x4C9)), 5, "uuu", "---"),
    row((*range(0xC0010200, 0xC001020C), 0xC0000300, 0xC0000301, 0xC0000302), 5, "uuu", "---"),  # AMD's
    # emulated_msrs_all
    row((0x11, 0x4B564D00), DATA, "+++", "+++"),  # KVM_WALL_CLOCK and _NEW
    row((0x12, 0x4B564D01), DATA | 1, "+++", "+++"),  # KVM_SYSTEM_TIME and _NEW
    row((0x40000000, 0x40000001, 0x40000020, 0x40000022, 0x40000073, 0x400000B0, 0x40000118), 1, "uuu", "---"),  # HV_*
    row(0x4B564D02, 0x10, "++i", "++-"),  # KVM_ASYNC_PF_EN: bits 4 and 5 are reserved
    row(0x4B564D02, 0x20, "++i", "++-"),
    row(0x4B564D02, DATA & ~0x3F | 0xD, "+++", "+++"),
    row(0x4B564D02, NO_MEMORY | 1, "+++", "+++"),  # enabled, but not as an interrupt: the address is not looked at
    row(0x4B564D02, NO_MEMORY | 9, "++i", "++-"),
    row(0x4B564D03, 2, "++i", "++-"),  # KVM_STEAL_TIME: bits 1 to 5 are reserved
    row(0x4B564D03, DATA & ~0x3F | 1, "+++", "+++"),
    row(0x4B564D04, 2, "++i", "++-"),  # KVM_PV_EOI_EN: an address of four bytes
    row(0x4B564D04, DATA | 1, "+++", "+++"),
    row(0x4B564D04, NO_MEMORY | 1, "++i", "++-"),
    row(0x4B564D04, NO_MEMORY, "+++", "+++"),
    row(0x4B564D06, 0x100, "++i", "++-"),  # KVM_ASYNC_PF_INT: a vector
    row(0x4B564D06, 0xFF, "+++", "+++"),
    row(0x4B564D07, 1, "+++", "+++"),  # KVM_ASYNC_PF_ACK
    row(0x3B, 5, "+++", "+++"),  # TSC_ADJUST: ignored without the feature
    row(0x6E0, 5, "+++", "+++"),  # TSC_DEADLINE
    row(0x10A, 0x40000000_0C00E07B, "+uu", "+-+", "uuu", "++-"),  # ARCH_CAPABILITIES: no other, once the vCPU has run
    row(0x345, 1, "uui", "++-"),  # PERF_CAPABILITIES: LBR format
    row(0x345, 0x100, "uui", "++-"),  # PEBS format
    row(0x345, 0x2000, "uuu", "++-"),
    row(0x1A0, 0x1801, "+i+", "+++"),  # MISC_ENABLE: BTS_UNAVAIL and PEBS_UNAVAIL are read-only for the guest
    row(0x17A, 5, "+++", "+++"),  # MCG_STATUS
    row(0x17B, 1, "iii", "++-"),  # MCG_CTL without MCG_CTL_P
    row(0x4D0, 1, "iii", "+++"),  # MCG_EXT_CTL: the guest's only with LMCE
    row(0x4D0, 2, "iii", "++-"),
    row(0x9E, 0x30000, "iii", "---"),  # SMBASE
    row(0x34, 1, "+ii", "+++"),  # SMI_COUNT
    row(0xCE, 1 << 31, "+ii", "+-+"),  # PLATFORM_INFO: the same
    row(0x140, 2, "++i", "++-"),  # MISC_FEATURES_ENABLES: CPUID faulting alone
    row(0x140, 1, "+++", "+++"),
    row((0xC001011F, 0xC0000104), 1, "uuu", "---"),  # AMD64_VIRT_SPEC_CTRL, AMD64_TSC_RATIO
    row(0x1FC, ALL, "+++", "+++"),  # POWER_CTL
    row(0x8B, 1, "+++", "+++"),  # UCODE_REV
    row(range(0x480, 0x492), 1, "iii", "---"),  # IA32_VMX_*
    row(0xC0010015, 1, "++i", "++-"),  # K7_HWCR
    row(0xC0010015, 1 << 18 | 1 << 24 | 0x148, "+++", "+++"),
    row(0x4B564D05, 2, "++i", "++-"),  # KVM_POLL_CONTROL
    # msr_based_features_all_except_vmx: what is not above
    row(0xC0011029, 1, "uuu", "---"),  # AMD64_DE_CFG
    # the other cases of kvm_get_msr_common, kvm_set_msr_common, vmx_get_msr, vmx_set_msr
    row((0xC001001F, 0xC001102A, 0xC0011022, 0xC0011023, 0xC001102C), 1, "+++", "+++"),  # AMD's configuration
    row((0x79, 0xC0010020), 1, "u++", "-++"),  # UCODE_WRITE, AMD64_PATCH_LOADER
    row(0x49, 2, "u+i", "-+-", "uii", "-+-"),  # PRED_CMD: SPEC_CTRL
    row(0x49, 1, "u++", "-++", "uii", "-++"),
    row(0x10B, 1, "uii", "---"),  # FLUSH_CMD
    row(0xC0010058, 1, "++i", "++-"),  # FAM10H_MMIO_CONF_BASE
    row(0xFE, 1, "+uu", "+--"),  # MTRRcap
    row((*range(0x200, 0x210, 2), 0x250, 0x258, 0x259, *range(0x268, 0x270), 0x2FF), 2, "++i", "++-"),  # type 2
    row(range(0x201, 0x210, 2), 0x400, "++i", "++-"),  # MTRRphysMask: bits 0 to 10 are reserved
    row((0x210, 0x24F, 0x251, 0x257, 0x25A, 0x267), 0, "iii", "---"),  # between the MTRRs
    row(0x1B, 1, "+.i", "+.-"),  # APICBASE
    row((0x800, 0x802, 0x808, 0x83F, 0x8FF), 0, "iii", "---"),  # x2APIC registers of an APIC in xAPIC mode
    row(0x1D9, 4, "++i", "++-"),  # DEBUGCTL: LBR and BTF are dropped
    row(0x1D9, 3, "+++", "+++"),
    row(0xDA0, 1 << 8, "++i", "++-", "iuu", "+--"),  # XSS
    row((0, 1, 0x179), 1, "+uu", "+--"),  # P5_MC_ADDR, P5_MC_TYPE, MCG_CAP
    row((0x400, 0x47C), 1 << 5, "++i", "++-"),  # MC0_CTL, MC31_CTL: 0 or ones
    row((0x401, 0x47D), 1, "++i", "+++"),  # MCi_STATUS
    row((0x402, 0x403, 0x47E, 0x47F), 1, "+++", "+++"),  # MCi_ADDR, MCi_MISC
    row((0x280, 0x29F), 1, "iii", "++-"),  # MCi_CTL2 without MCG_CMCI_P
    row((0xC001001B, 0x11E), 1, "+++", "+++"),  # K7_CLK_CTL, BBL_CR_CTL3
    row((0xC0010140, 0xC0010141), 1, "iii", "---"),  # AMD64_OSVW_*
    row((0x17, 0x2A, 0x1DB, 0x1DC, 0xC0010010, 0xC0010112, 0xC0010113, 0xC0010055, 0x199), 1, "+uu", "+--"),
    row((0x606, 0x639, 0x641, 0x611, 0x619, 0xCD, 0x2C, 0x198), 1, "+uu", "+--"),  # RAPL, frequencies, PERF_STATUS
    row((0x1DD, 0x1DE), 1, "+uu", "++-"),  # LASTINTFROMIP and _TOIP: in the list since 7.1
    row(range(0x8C, 0x90), ALL, "iii", "+++"),  # SGXLEPUBKEYHASH0 to 3
    row((0x6A0, 0x6A2, *range(0x6A4, 0x6A9)), 0, "uuu", "---"),  # CET
    row((0x3FC, 0x3FD, 0x3FE, 0x660), 1, "uuu", "---"),  # CORE_C*_RESIDENCY
    row((0x2, 0x1234, 0x4B564D08, 0xC0000085), 1, "uuu", "---"),
)  # fmt: skip

LISTED = {
    0x174, 0x175, 0x176, 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084, 0xC0000102, 0x10, 0x277, 0x3A, 0xC0000103,
    0x48, 0x11, 0x12, *range(0x4B564D00, 0x4B564D08), 0x3B, 0x6E0, 0x10A, 0x345, 0x1A0, 0x17A, 0x17B, 0x4D0, 0x34,
    0xCE, 0x140, 0x1FC, 0x8B, 0xC0010015,
}  # fmt: skip
LISTED_SINCE_7_1 = {0x1D9, 0x1DD, 0x1DE}


def split_and_ask(vm: Vm) -> None:
    """Make a local APIC, and let errors of RDMSR and WRMSR go to user space."""
    vm.enable_cap(k.Cap.SPLIT_IRQCHIP, 24)
    vm.enable_cap(k.Cap.X86_USER_SPACE_MSR, k.KVM_MSR_EXIT_REASON_INVAL | k.KVM_MSR_EXIT_REASON_UNKNOWN)


def bare_cpuid(kvm: Kvm) -> list[k.kvm_cpuid_entry2]:
    """Return what KVM offers without features."""
    entries = kvm.supported_cpuid()
    for entry in entries:
        if entry.function in FEATURES:
            entry.ebx = entry.ecx = 0
            entry.edx = OF_BARE_GUEST.get(entry.function, 0)
            entry.eax = entry.eax if entry.function == 1 else 0
        elif entry.function == 0x80000008:
            entry.ebx = 0  # AMD's bits of SPEC_CTRL and PRED_CMD
    return entries


@pytest.fixture(scope="module", params=["full", "bare"])
def guest(request: pytest.FixtureRequest) -> Iterator[tuple[str, LongModeVm]]:
    with Kvm(open_kernel("emulated")) as kvm:
        cpuid = kvm.supported_cpuid() if request.param == "full" else bare_cpuid(kvm)
        with LongModeVm(kvm, cpuid, split_and_ask) as vm:
            yield request.param, vm


def by_guest(vm: LongModeVm, code: bytes) -> str:
    vm.start(code)
    run = vm.vcpu.kvm_run
    exit_reason = vm.step()
    if exit_reason in (k.Exit.X86_RDMSR, k.Exit.X86_WRMSR):
        letter = {k.KVM_MSR_EXIT_REASON_INVAL: "i", k.KVM_MSR_EXIT_REASON_UNKNOWN: "u"}[run.msr.reason]
        run.msr.error = 1
        assert vm.outcome() == GP
        return letter
    assert exit_reason is k.Exit.IO
    return {0xE1: "+", 0xE0: "g"}[run.io.port]


def by_host(vm: LongModeVm, index: int, value: int | None) -> str:
    """Read, or write a value."""
    done = len(vm.vcpu.get_msrs([index])) if value is None else vm.vcpu.set_msrs({index: value})
    return "-+"[done]


@pytest.mark.parametrize("each", ROWS, ids=lambda each: f"{each.indices[0]:x}-{each.value:x}")
def test_each_msr(guest: tuple[str, LongModeVm], each: Row) -> None:
    kind, vm = guest
    wanted_guest, wanted_host = (each.guest, each.host) if kind == "full" else (each.bare_guest, each.bare_host)
    vcpu = vm.vcpu
    for index in each.indices:
        before = vcpu.get_msrs([index])
        vm.reset()
        codes = (rdmsr(index), wrmsr(index, 0), wrmsr(index, each.value))
        got = "".join(
            by_guest(vm, code) if wanted != "." else "." for code, wanted in zip(codes, wanted_guest, strict=True)
        )
        host = "".join(
            by_host(vm, index, value) if wanted != "." else "."
            for value, wanted in zip((None, 0, each.value), wanted_host, strict=True)
        )
        vcpu.set_msrs(before)
        assert (got, host) == (wanted_guest, wanted_host), f"MSR {index:#x}"


@pytest.mark.parametrize("release", [name for name in KernelRelease if name is not KernelRelease.V10])
def test_the_lists(release: KernelRelease) -> None:
    """kvm_init_msr_lists; IA32_DEBUGCTL and the last interrupt since 7.1."""
    newer = list(KernelRelease).index(release) >= list(KernelRelease).index(KernelRelease.V7_1)
    with Kvm(open_kernel("emulated", kernel_release=release.value)) as kvm:
        listed = kvm.msr_index_list()
        assert set(listed) == LISTED | (LISTED_SINCE_7_1 if newer else set())
        assert len(listed) == len(set(listed))
        assert kvm.msr_feature_index_list() == [0x8B, 0x10A, 0x345, 0xCE]
        assert kvm.get_msrs([0x345, 0xC0000102, 0x4B564D02]) == {0x345: 0, 0xC0000102: 0, 0x4B564D02: 0}
        assert kvm.get_msrs([0x480]) == {}, "KVM offers no VMX"


PV = {0x11: 0, 0x12: 0, 0x4B564D00: 3, 0x4B564D01: 3, 0x4B564D02: 4, 0x4B564D03: 5, 0x4B564D04: 6, 0x4B564D05: 12,
      0x4B564D06: 14, 0x4B564D07: 14}  # fmt: skip


@pytest.mark.parametrize("release", ["6.16", "6.18", "7.2"])
def test_paravirtual_msrs_that_the_guest_lacks(release: str) -> None:
    """KVM_MSR_RET_UNSUPPORTED since 6.18.y: what is advertised reads as 0 for user space, and takes 0."""
    with Kvm(open_kernel("emulated", kernel_release=release)) as kvm:
        entries = kvm.supported_cpuid()
        for entry in entries:
            if entry.function == 0x40000001:
                entry.eax = 0
        with LongModeVm(kvm, entries, split_and_ask) as vm:
            vm.vcpu.enable_cap(k.Cap.ENFORCE_PV_FEATURE_CPUID, 1)
            for index in PV:
                letter = "i" if release == "6.16" else "u"
                assert by_guest(vm, rdmsr(index)) == by_guest(vm, wrmsr(index, 0)) == letter
                done = 0 if release == "6.16" else 1
                assert (len(vm.vcpu.get_msrs([index])), vm.vcpu.set_msrs({index: 0})) == (done, done)
                assert vm.vcpu.set_msrs({index: 1}) == 0


@pytest.mark.parametrize(("release", "guest_writes", "done"), [("6.16", "i", 1), ("6.18", "u", 0), ("7.2", "u", 0)])
def test_xss_without_xsaves(release: str, guest_writes: str, done: int) -> None:
    with Kvm(open_kernel("emulated", kernel_release=release)) as kvm, LongModeVm(kvm, bare_cpuid(kvm)) as vm:
        vm.vm.enable_cap(k.Cap.X86_USER_SPACE_MSR, k.KVM_MSR_EXIT_REASON_INVAL | k.KVM_MSR_EXIT_REASON_UNKNOWN)
        assert by_guest(vm, wrmsr(0xDA0, 0)) == guest_writes
        assert vm.vcpu.set_msrs({0xDA0: 0}) == done
        assert vm.vcpu.get_msrs([0xDA0]) == {0xDA0: 0}


@pytest.mark.parametrize(("vendor", "status", "aux"), [("intel", "i", "i"), ("amd", "+", "+")])
def test_what_only_amds_processors_take(vendor: str, status: str, aux: str) -> None:
    """can_set_mci_status: HWCR's McStatusWrEn; __kvm_set_msr: bits 63:32 of TSC_AUX are dropped."""
    with Kvm(open_kernel("emulated")) as kvm:
        entries = kvm.supported_cpuid()
        if vendor == "amd":
            for entry in entries:
                if entry.function == 0:
                    entry.ebx, entry.edx, entry.ecx = 0x68747541, 0x69746E65, 0x444D4163
        with LongModeVm(kvm, entries, split_and_ask) as vm:
            assert by_guest(vm, wrmsr(0x401, 1)) == "i"
            assert by_guest(vm, wrmsr(0xC0010015, 1 << 18)) == "+"
            assert by_guest(vm, wrmsr(0x401, 1)) == status
            assert by_guest(vm, wrmsr(0xC0000103, 1 << 32 | 7)) == aux
            assert vm.vcpu.get_msrs([0xC0000103]) == {0xC0000103: 7 if vendor == "amd" else 0}


def test_init_resets_what_kvm_resets() -> None:
    """kvm_vcpu_reset and vmx_vcpu_reset; the MSRs of SYSCALL, PAT and MISC_ENABLE stay."""
    kept = {0xC0000082: 0x1234, 0x277: 0x0606060606060606, 0x1A0: 0x1801, 0xC0000102: 0x5000, 0x1FC: 5}
    lost = {0x174: 8, 0x175: 0x1000, 0x176: 0x2000, 0x48: 1, 0x34: 3, 0x12: DATA | 1, 0x4B564D03: DATA & ~0x3F | 1,
            0x4B564D02: DATA & ~0x3F | 9, 0x4B564D06: 0x40, 0x4B564D04: DATA | 1, 0xE1: 4}  # fmt: skip
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=split_and_ask) as vm:
        vcpu = vm.vcpu
        debug = k.kvm_debugregs(dr6=0xFFFF0FF0, dr7=0x400)
        debug.db[:] = (0x1000, 0x2000, 0x3000, 0x4000)
        vcpu.ioctl(k.KVM_SET_DEBUGREGS, ctypes.addressof(debug))
        assert vcpu.set_msrs(kept | lost) == len(kept | lost)
        vcpu.set_msrs({0x1B: 0xFEE00D00})
        vm.start(wrmsr(0x830, 1 << 18 | 1 << 14 | 5 << 8), rbx=7)  # INIT to itself
        vm.step()
        assert vcpu.get_regs().rip & 0xFFFF == 0xFFF0
        assert vcpu.get_msrs(kept) == kept
        assert vcpu.get_msrs(lost) == dict.fromkeys(lost, 0)
        vcpu.ioctl(k.KVM_GET_DEBUGREGS, ctypes.addressof(debug))
        assert list(debug.db) == [0] * 4
        assert (vcpu.get_regs().rbx, vcpu.get_regs().rdx) == (0, kvm.supported_cpuid()[1].eax)
