# SPDX-License-Identifier: GPL-2.0-or-later
"""MSRs that KVM emulates for a TD: KVM_GET/SET_MSRS and TDVMCALL RDMSR/WRMSR (tdx_has_emulated_msr).

All others are the module's, or do not exist. x2APIC registers are KVM's but for those that the processor virtualises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.x86 import mce, msrs
from swtdx.linux.arch.x86.kvm.x86.msrs import Invalid
from swtdx.x86 import Efer

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

_EMULATED = frozenset(
    [
        msrs.IA32_UCODE_REV,
        msrs.IA32_ARCH_CAPABILITIES,
        msrs.IA32_POWER_CTL,
        msrs.IA32_PAT,
        msrs.MTRRCAP,
        *msrs.MTRR_PHYS,
        *msrs.MTRR_FIXED,
        msrs.MTRR_DEF_TYPE,
        msrs.IA32_TSC_DEADLINE,
        msrs.IA32_MISC_ENABLE,
        msrs.PLATFORM_INFO,
        msrs.MISC_FEATURES_ENABLES,
        msrs.IA32_APIC_BASE,
        msrs.IA32_EFER,
        msrs.IA32_FEAT_CTL,
        msrs.MSR_KVM_POLL_CONTROL,
        *mce.MSRS,
    ]
) - {mce.IA32_P5_MC_ADDR, mce.IA32_P5_MC_TYPE}
_READ_ONLY = frozenset([msrs.IA32_APIC_BASE, msrs.IA32_EFER, msrs.IA32_FEAT_CTL])
_X2APIC_REGISTERS = frozenset([0x802, 0x803, 0x80D, 0x80F, 0x828, 0x82F, 0x830, *range(0x832, 0x83A), 0x83E])
_X2APIC_PROCESSOR = frozenset([0x808, 0x80A, 0x80B, 0x810, 0x818, 0x820])  # TPR, PPR, EOI, ISR0, TMR0, IRR0
EFER_OF_A_TD = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE


def has_emulated_msr(index: int, *, by_register: bool) -> bool:
    """Return whether KVM emulates the MSR for a TD; ``by_register``: `Release.x2apic_by_register`.

    Kernels without that list mean to leave out all of ISR, TMR and IRR. Their range ends after the first register of
    each, because APIC_ISR_NR counts registers and the offsets are 0x10 apart.
    """
    if 0x800 <= index < 0x900:
        return index in _X2APIC_REGISTERS if by_register else index not in _X2APIC_PROCESSOR
    return index in _EMULATED


def get_msr(vcpu: Vcpu, index: int, host: bool) -> int:
    """Raises Invalid, also for what is not emulated; Unsupported for what the vCPU's CPUID does not have."""
    if not has_emulated_msr(index, by_register=vcpu.kvm.kernel.release.x2apic_by_register):
        raise Invalid
    if index == msrs.IA32_FEAT_CTL:
        return msrs.FEAT_CTL_LOCKED | (msrs.FEAT_CTL_LMCE if vcpu.msrs.mce.lmce else 0)
    if index == msrs.IA32_EFER:
        return EFER_OF_A_TD
    return vcpu.msrs.get(index, host)


def set_msr(vcpu: Vcpu, index: int, value: int, host: bool) -> None:
    """Raises Invalid, also for what is not emulated; Unsupported for what the vCPU's CPUID does not have."""
    by_register = vcpu.kvm.kernel.release.x2apic_by_register
    if index in _READ_ONLY or not has_emulated_msr(index, by_register=by_register):
        raise Invalid
    vcpu.msrs.set(index, value, host=host)
