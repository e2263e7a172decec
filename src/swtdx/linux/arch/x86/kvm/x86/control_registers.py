# SPDX-License-Identifier: GPL-2.0-or-later
"""Which bits of CR0, CR4, EFER and XCR0 a vCPU has: tables, and the checks of kvm_set_cr0, kvm_set_cr4, set_efer,
__kvm_set_xcr and kvm_is_valid_sregs (arch/x86/kvm/x86.c; SDM volume 3, 2.5 "Control Registers").

A bit of CR4 is reserved unless KVM knows it and, where a feature stands behind it, both the processor and the guest's
CPUID have the feature (__cr4_reserved_bits). Reserved bits of CR4 are in the guest/host mask: setting one exits, and
nothing else does.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.x86 import Cr0, Cr4, Efer

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.uapi.kvm import kvm_sregs

Feature = tuple[int, int, int, int]
"""CPUID leaf, sub-leaf, register (0 EAX to 3 EDX), bit."""

CR4_ALWAYS = (
    Cr4.VME | Cr4.PVI | Cr4.TSD | Cr4.DE | Cr4.PSE | Cr4.PAE | Cr4.MCE | Cr4.PGE | Cr4.PCE | Cr4.OSFXSR | Cr4.OSXMMEXCPT
)
CR4_FEATURES: dict[int, Feature] = {
    Cr4.OSXSAVE: (1, 0, 2, 26),
    Cr4.SMEP: (7, 0, 1, 7),
    Cr4.SMAP: (7, 0, 1, 20),
    Cr4.FSGSBASE: (7, 0, 1, 0),
    Cr4.PKE: (7, 0, 2, 3),
    Cr4.LA57: (7, 0, 2, 16),
    Cr4.UMIP: (7, 0, 2, 2),
    Cr4.VMXE: (1, 0, 2, 5),
    Cr4.PCIDE: (1, 0, 2, 17),
    Cr4.LAM_SUP: (7, 1, 0, 26),
}
"""__cr4_reserved_bits: what each bit needs. Bits that are neither here nor in `CR4_ALWAYS` are reserved."""

EFER_FEATURES: dict[int, Feature] = {
    Efer.LME: (0x80000001, 0, 3, 29),
    Efer.LMA: (0x80000001, 0, 3, 29),
    Efer.NXE: (0x80000001, 0, 3, 20),
}
"""__kvm_valid_efer: what the guest's CPUID must have for the guest to set the bit; user space may without."""
EFER_VALID, EFER_LMA, EFER_LME = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE, Efer.LMA, Efer.LME

TSC_AUX_FEATURES: tuple[Feature, ...] = ((0x80000001, 0, 3, 27), (7, 0, 2, 22))
"""IA32_TSC_AUX: a guest needs RDTSCP or RDPID."""

CR0_DEFINED = sum(Cr0)
_CR0_PG, _CR0_PE, _CR0_NW, _CR0_CD = Cr0.PG, Cr0.PE, Cr0.NW, Cr0.CD
_MASK64 = (1 << 64) - 1


def guest_has(vcpu: Vcpu, feature: Feature) -> bool:
    """Whether the guest's CPUID has a feature that the processor has (guest_cpu_cap_has)."""
    leaf, index, register, bit = feature
    guest = vcpu.cpuid.find(leaf, index)
    return bool(guest and guest[register] >> bit & 1 and vcpu.kvm.processor.cpuid(leaf, index)[register] >> bit & 1)


def cr4_guest_rsvd_bits(vcpu: Vcpu) -> int:
    """Return the bits of CR4 that this vCPU must leave 0."""
    valid = CR4_ALWAYS
    for bit, feature in CR4_FEATURES.items():
        if guest_has(vcpu, feature):
            valid |= bit
    return ~valid & _MASK64


def kvm_is_valid_cr0(cr0: int) -> bool:
    """Whether a value of CR0 is one that a processor can hold. Reserved bits of the lower half are ignored."""
    return not (cr0 >> 32 or (cr0 & _CR0_NW and not cr0 & _CR0_CD) or (cr0 & _CR0_PG and not cr0 & _CR0_PE))


def kvm_is_valid_cr4(vcpu: Vcpu, cr4: int) -> bool:
    """Whether a value of CR4 has only bits that the vCPU has."""
    return not cr4 & vcpu.cr4_guest_rsvd_bits


def kvm_valid_efer(vcpu: Vcpu, efer: int, *, host: bool) -> bool:
    """Whether WRMSR takes a value of EFER."""
    if efer & ~EFER_VALID:
        return False
    return host or all(guest_has(vcpu, feature) for bit, feature in EFER_FEATURES.items() if efer & bit)


def kvm_vcpu_is_legal_cr3(vcpu: Vcpu, cr3: int) -> bool:
    """Whether CR3 has no bit beyond the guest's physical address width."""
    return not cr3 & vcpu.cpuid.reserved_gpa_bits


def guest_supported_xcr0(vcpu: Vcpu) -> int:
    """Return the state components that the guest may enable: those of its CPUID that the kernel has."""
    leaf = vcpu.cpuid.find(0xD)
    return (leaf[0] | leaf[3] << 32) & vcpu.kvm.kernel.supported_xcr0 if leaf else 0


def xcr0_valid(vcpu: Vcpu, value: int) -> bool:
    """Whether XSETBV would accept ``value``. Bit 0 is valid also without XSAVE."""
    return bool(value & 1) and not value & ~(guest_supported_xcr0(vcpu) | 1) and not (value & 4 and not value & 2)


def kvm_is_valid_sregs(vcpu: Vcpu, sregs: kvm_sregs) -> None:
    """Raise OSError(EINVAL) for control registers that KVM_SET_SREGS refuses."""
    efer, cr0, cr4 = sregs.efer, sregs.cr0, sregs.cr4
    if efer & EFER_LME and cr0 & _CR0_PG:
        if not cr4 & Cr4.PAE or not efer & EFER_LMA:
            raise err(errno.EINVAL, "long mode needs CR4.PAE and EFER.LMA")
        if not kvm_vcpu_is_legal_cr3(vcpu, sregs.cr3):
            raise err(errno.EINVAL, f"cr3 {sregs.cr3:#x}")
    elif efer & EFER_LMA or sregs.cs.l:
        raise err(errno.EINVAL, "EFER.LMA or CS.L without long mode")
    if not kvm_is_valid_cr4(vcpu, cr4):
        raise err(errno.EINVAL, f"cr4 {cr4:#x}: the vCPU lacks {cr4 & vcpu.cr4_guest_rsvd_bits:#x}")
    if not kvm_is_valid_cr0(cr0):
        raise err(errno.EINVAL, f"cr0 {cr0:#x}")
    if vcpu.kvm.kernel.release.sregs_check_efer and not kvm_valid_efer(vcpu, efer, host=False):
        raise err(errno.EINVAL, f"efer {efer:#x}")
