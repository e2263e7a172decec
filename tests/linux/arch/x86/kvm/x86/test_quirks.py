# SPDX-License-Identifier: GPL-2.0-or-later
"""Every quirk of KVM_CAP_DISABLE_QUIRKS2 (Documentation/virt/kvm/api.rst), on and off.

Those with tests of their own: LINT0_REENABLED (test_order_of_checks), LAPIC_MMIO_HOLE (test_x2apic_registers),
MISC_ENABLE_NO_MWAIT (test_cpuid_runtime), FIX_HYPERCALL_INSN (test_hypercall_insn). CD_NW_CLEARED is AMD's; the two
newest concern nested guests; SLOT_ZAP_ALL and IGNORE_GUEST_PAT change nothing that a guest or a VMM can see here, where
the whole memory of a guest is cached.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vm
from swtdx.uapi.release import KernelRelease
from testing.long_mode import CODE, UD, LongModeVm

OUT = bytes.fromhex("e67e")  # out 0x7e, al
OUT_DX = bytes.fromhex("ee")  # out dx, al


def without(quirk: int) -> Callable[[Vm], None]:
    def setup(vm: Vm) -> None:
        if quirk:
            vm.enable_cap(k.Cap.DISABLE_QUIRKS2, quirk)

    return setup


@pytest.mark.parametrize("code", [OUT, OUT_DX], ids=["out imm8", "out dx"])
@pytest.mark.parametrize("port", [0x7E, 0x7F])
@pytest.mark.parametrize("quirk", [0, k.KVM_X86_QUIRK_OUT_7E_INC_RIP])
def test_rip_at_the_exit_of_an_out_to_port_7e(code: bytes, port: int, quirk: int) -> None:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=without(quirk)) as guest:
        guest.start(code.replace(b"\x7e", bytes([port])), rdx=port)
        assert guest.step() is k.Exit.IO
        assert guest.vcpu.kvm_run.io.port == port
        moved = port == 0x7E and not quirk
        assert guest.vcpu.get_regs().rip == CODE + (len(code) if moved else 0)
        assert guest.outcome() is None, "the instruction is executed once"


@pytest.mark.parametrize("quirk", [0, k.KVM_X86_QUIRK_OUT_7E_INC_RIP])
def test_a_vmm_that_repeats_an_out(quirk: int) -> None:
    """RIP that the VMM sets itself at the exit stays, in both cases."""
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=without(quirk)) as guest:
        guest.start(b"\x90" + OUT)
        assert guest.step() is k.Exit.IO
        regs = guest.vcpu.get_regs()
        regs.rip = CODE
        guest.vcpu.set_regs(regs)
        assert guest.step() is k.Exit.IO
        assert guest.vcpu.kvm_run.io.port == 0x7E
        assert guest.outcome() is None


@pytest.mark.parametrize("release", KernelRelease)
def test_what_is_offered_and_refused(release: KernelRelease) -> None:
    """KVM_X86_VALID_QUIRKS; of 6.18 as 6.18.44 answers."""
    newest = {
        KernelRelease.V10: 0x7F,
        KernelRelease.V6_16: 0x3FF,
        KernelRelease.V6_18: 0x7FF,
        KernelRelease.V6_19: 0x7FF,
    }
    every = newest.get(release, 0x7FF if release is KernelRelease.V7_1 else 0xFFF)
    with Kvm(open_kernel("emulated", kernel_release=release.value)) as kvm, kvm.create_vm() as vm:
        assert vm.check_extension(k.Cap.DISABLE_QUIRKS2) == every
        assert vm.check_extension(k.Cap.DISABLE_QUIRKS) == 1
        for bit in range(64):
            if every >> bit & 1:
                vm.enable_cap(k.Cap.DISABLE_QUIRKS2, 1 << bit)
            else:
                with pytest.raises(OSError, match="EINVAL"):
                    vm.enable_cap(k.Cap.DISABLE_QUIRKS2, 1 << bit)
                vm.enable_cap(k.Cap.DISABLE_QUIRKS, 1 << bit)  # which ignores what it does not know


FEATURE_MSRS = {0x8B: 1 << 32, 0x10A: None, 0x345: 0, 0xCE: 1 << 31}


@pytest.mark.parametrize("quirk", [0, k.KVM_X86_QUIRK_STUFF_FEATURE_MSRS])
def test_feature_msrs_begin_with_all_that_kvm_has(quirk: int) -> None:
    """kvm_arch_vcpu_create, __vmx_vcpu_reset: without the quirk all are 0, as user space should set them itself."""
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=without(quirk)) as guest:
        assert kvm.msr_feature_index_list() == list(FEATURE_MSRS)
        offered = kvm.get_msrs(FEATURE_MSRS)
        wanted = {index: offered[index] if value is None else value for index, value in FEATURE_MSRS.items()}
        assert guest.vcpu.get_msrs(FEATURE_MSRS) == (dict.fromkeys(FEATURE_MSRS, 0) if quirk else wanted)


@pytest.mark.parametrize("code", [bytes.fromhex("0f01c8"), bytes.fromhex("0f01c9")], ids=["MONITOR", "MWAIT"])
@pytest.mark.parametrize("in_cpuid", [False, True])
@pytest.mark.parametrize("misc_enable", [False, True])
@pytest.mark.parametrize("no_mwait", [0, k.KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT])
@pytest.mark.parametrize("never_ud", [0, k.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS])
def test_monitor_and_mwait(code: bytes, in_cpuid: bool, misc_enable: bool, no_mwait: int, never_ud: int) -> None:
    """kvm_emulate_monitor_mwait: nothing is done, or #UD by CPUID or by IA32_MISC_ENABLE."""
    with Kvm(open_kernel("emulated")) as kvm:
        entries = kvm.supported_cpuid()
        for entry in entries:
            if entry.function == 1:
                entry.ecx |= in_cpuid << 3
        with LongModeVm(kvm, entries, without(no_mwait | never_ud)) as guest:
            guest.vcpu.set_msrs({0x1A0: 0x1800 | misc_enable << 18})
            exists = misc_enable if no_mwait else in_cpuid
            assert guest.run(code) == (UD if never_ud and not exists else None)
