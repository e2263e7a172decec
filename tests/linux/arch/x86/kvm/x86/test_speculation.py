# SPDX-License-Identifier: GPL-2.0-or-later
"""Speculation control: what KVM offers under AMD's names on an Intel processor, and who may use the MSRs.

kvm_set_cpu_caps (arch/x86/kvm/cpuid.c): AMD has a bit of its own in CPUID 0x80000008 EBX for each of IBPB, IBRS, STIBP
and SSBD, and a guest may look there alone, so that each is set where the processor can do that, of either make.
guest_has_spec_ctrl_msr and guest_has_pred_cmd_msr (cpuid.h) take either name.
"""

from __future__ import annotations

import pytest

from swtdx.linux.config import KernelConfig
from swtdx.machine import MachineKernel, open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from swtdx.uapi.release import KernelRelease
from testing.long_mode import LongModeVm
from tests.cpu.guest import assemble

AMD_IBPB, AMD_IBRS, AMD_STIBP, AMD_SSBD, VIRT_SSBD, AMD_SSB_NO, IBPB_RET = (
    1 << n for n in (12, 14, 15, 24, 25, 26, 30)
)
SPEC_CTRL, STIBP, SSBD = 1 << 26, 1 << 27, 1 << 31  # leaf 7, EDX
IBRS_ALL, SSB_NO, PBRSB_NO = 1 << 1, 1 << 4, 1 << 24  # IA32_ARCH_CAPABILITIES
ALL = AMD_IBPB | AMD_IBRS | AMD_STIBP | AMD_SSBD | VIRT_SSBD | AMD_SSB_NO | IBPB_RET
GP = 13


@pytest.fixture(scope="module")
def device() -> Kvm:
    return Kvm(open_kernel("emulated"))


def entry(leaves: list[k.kvm_cpuid_entry2], function: int) -> k.kvm_cpuid_entry2:
    return next(each for each in leaves if each.function == function and not each.index)


def test_each_bit_follows_from_intels(device: Kvm) -> None:
    leaves = device.supported_cpuid()
    edx = entry(leaves, 7).edx
    capabilities = device.get_msrs([0x10A])[0x10A]
    expected = 0
    if edx & SPEC_CTRL:
        expected |= AMD_IBPB | AMD_IBRS | (IBPB_RET if capabilities & (PBRSB_NO | IBRS_ALL) != IBRS_ALL else 0)
    expected |= (AMD_STIBP if edx & STIBP else 0) | (AMD_SSBD if edx & SSBD else 0)
    expected |= AMD_SSB_NO if capabilities & SSB_NO else 0
    assert entry(leaves, 0x80000008).ebx & ALL == expected


ALWAYS = 1 << 3 | 1 << 6  # SKIP_VMENTRY_L1DFLUSH, PSCHANGE_MC_NO
PASSED_ON = sum(1 << bit for bit in (0, 1, 2, 4, 5, 7, 13, 14, 15, 17, 19, 20, 24, 28))
NEWER = (
    1 << 26 | 1 << 27 | 1 << 62
)  # GDS_NO, RFDS_NO, ITS_NO: Westmere's model is in none of the lists of those that have them


@pytest.mark.parametrize("release", list(KernelRelease))
def test_arch_capabilities_are_those_that_kvm_knows(release: KernelRelease) -> None:
    """kvm_get_arch_capabilities: without RTM there is no TAA_NO. v10 was before GDS, RFDS and ITS were known."""
    kernel = open_kernel("emulated", config=KernelConfig(kernel_release=release.value))
    assert isinstance(kernel, MachineKernel)
    newer, known = (0, PASSED_ON & ~(1 << 20 | 1 << 28)) if release is KernelRelease.V10 else (NEWER, PASSED_ON)
    with Kvm(kernel) as kvm:
        native = kernel.processor.rdmsr(0x10A)
        assert not kernel.processor.cpuid(7)[1] & 1 << 11, "RTM"
        assert kvm.get_msrs([0x10A]) == {0x10A: native & known | ALWAYS | newer}


@pytest.mark.parametrize(
    ("ebx", "spec_ctrl", "pred_cmd"),
    [
        (0, False, False),
        (AMD_IBPB, False, True),
        (AMD_IBRS, True, False),
        (AMD_SSBD, True, False),
        (AMD_STIBP, False, False),  # the processor has none: what user space says does not count
        (AMD_IBPB | AMD_SSBD, True, True),
        (AMD_SSB_NO, False, False),
    ],
)
def test_a_guest_with_amds_bits_alone(device: Kvm, ebx: int, spec_ctrl: bool, pred_cmd: bool) -> None:
    leaves = device.supported_cpuid()
    entry(leaves, 7).edx &= ~(SPEC_CTRL | STIBP | SSBD)
    sizes = entry(leaves, 0x80000008)
    sizes.ebx = sizes.ebx & ~ALL | ebx
    with LongModeVm(device) as guest:
        guest.vcpu.set_cpuid2(leaves)
        read, write = (0 if spec_ctrl else GP), (0 if spec_ctrl else GP)
        assert guest.run(assemble("mov ecx, 0x48; rdmsr")) == (read or None)
        assert guest.run(assemble("mov ecx, 0x48; xor eax, eax; xor edx, edx; wrmsr")) == (write or None)
        assert guest.run(assemble("mov ecx, 0x49; mov eax, 1; xor edx, edx; wrmsr")) == (None if pred_cmd else GP)
