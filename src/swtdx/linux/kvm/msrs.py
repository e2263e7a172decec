# SPDX-License-Identifier: GPL-2.0-or-later
"""Model-specific registers that KVM itself holds, for both kinds of VM (arch/x86/kvm/x86.c).

What the guest processor holds (segment bases, SYSCALL, SYSENTER, ...) is VMX's; here are the ones emulated in the
kernel. `Unsupported` says that there is no such MSR (user space may be asked), `Invalid` that the value is refused.
"""

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_from_user
from swtdx.uapi.kvm import (
    KVM_MSR_FILTER_DEFAULT_DENY,
    KVM_MSR_FILTER_MAX_BITMAP_SIZE,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
    kvm_msr_filter,
)

if TYPE_CHECKING:
    from swtdx.linux.kvm.vcpu import Vcpu

IA32_TSC, IA32_APIC_BASE, IA32_FEAT_CTL, IA32_TSC_ADJUST, IA32_UCODE_REV = 0x10, 0x1B, 0x3A, 0x3B, 0x8B
PLATFORM_INFO, MTRRCAP, IA32_ARCH_CAPABILITIES, MISC_FEATURES_ENABLES = 0xCE, 0xFE, 0x10A, 0x140
IA32_MCG_CAP, IA32_MCG_STATUS, IA32_MCG_CTL, IA32_MISC_ENABLE = 0x179, 0x17A, 0x17B, 0x1A0
IA32_POWER_CTL, IA32_PAT, MTRR_DEF_TYPE, IA32_MCG_EXT_CTL = 0x1FC, 0x277, 0x2FF, 0x4D0
IA32_MC0_CTL2, IA32_MC0_CTL, IA32_TSC_DEADLINE, IA32_XSS, IA32_EFER = 0x280, 0x400, 0x6E0, 0xDA0, 0xC0000080
IA32_SMBASE, IA32_SPEC_CTRL, IA32_PRED_CMD, IA32_BIOS_UPDT_TRIG, IA32_BIOS_SIGN_ID = 0x9E, 0x48, 0x49, 0x79, 0x8B
MTRR_PHYS, MTRR_FIXED = range(0x200, 0x210), (0x250, 0x258, 0x259, *range(0x268, 0x270))
MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_POLL_CONTROL = 0x4B564D00, 0x4B564D01, 0x4B564D05
KVM_MAX_MCE_BANKS = 32
MCG_CAP_SUPPORTED = 0x100 | 1 << 24 | 1 << 27  # MCG_CTL_P, MCG_SER_P, MCG_LMCE_P
FEAT_CTL_LOCKED, FEAT_CTL_LMCE = 1 << 0, 1 << 20
PAT_RESET = 0x0007040600070406
MISC_ENABLE_RESET = 0x1800  # BTS and PEBS unavailable
LMCE_ENABLED = MCG_CAP_SUPPORTED & 1 << 27

FEATURE_MSRS = (IA32_ARCH_CAPABILITIES, IA32_UCODE_REV, PLATFORM_INFO)
_PLAIN_DEFAULTS = {
    IA32_UCODE_REV: 1 << 32,
    IA32_POWER_CTL: 0,
    MISC_FEATURES_ENABLES: 0,
    IA32_MISC_ENABLE: MISC_ENABLE_RESET,
    PLATFORM_INFO: 1 << 31,
    MTRR_DEF_TYPE: 0,
    IA32_MCG_STATUS: 0,
    IA32_MCG_CTL: 0,
    IA32_MCG_EXT_CTL: 0,
    MSR_KVM_POLL_CONTROL: 1,
    IA32_PAT: PAT_RESET,
    **dict.fromkeys((*MTRR_PHYS, *MTRR_FIXED), 0),
}
READ_AS_CONSTANT = {
    0x2C: 1 << 24,  # EBC_FREQUENCY_ID: firmware and old guests derive a bus speed from it
    0x198: 1000 | 4 << 40,  # PERF_STATUS: no P-states, a multiplier of 4
    0x17: 0,  # PLATFORM_ID, read before a microcode update
    **dict.fromkeys(
        (0x2A, 0x199, 0x1DB, 0x1DC, 0x1DD, 0x1DE), 0
    ),  # EBL_CR_POWERON, PERF_CTL, last branch and interrupt
    **dict.fromkeys((0x606, 0x611, 0x619, 0x639, 0x641), 0),  # RAPL: no energy to report
    **dict.fromkeys((0xC0010010, 0xC001001F, 0xC0010055, 0xC0010058, 0xC0010112, 0xC0010113, 0xC0010117), 0),  # AMD's
}
"""MSRs that a guest may read on any host, as kvm_get_msr_common answers them; writing one is #GP."""
WRITE_IGNORED = (IA32_BIOS_UPDT_TRIG, 0x11E)  # BBL_CR_CTL3
EMULATED = (
    *_PLAIN_DEFAULTS,
    MTRRCAP,
    IA32_ARCH_CAPABILITIES,
    IA32_APIC_BASE,
    IA32_FEAT_CTL,
    IA32_TSC_DEADLINE,
    IA32_MCG_CAP,
)


class Unsupported(Exception):
    """No such MSR (KVM_MSR_RET_UNSUPPORTED)."""


class Invalid(Exception):
    """The value, or the access, is refused: #GP in the guest."""


class EmulatedMsrs:
    """The MSRs of one vCPU that are plain storage or belong to other parts of KVM."""

    def __init__(self, vcpu: "Vcpu") -> None:
        self.vcpu = vcpu
        self.values = dict(_PLAIN_DEFAULTS)
        self.arch_capabilities: int = vcpu.kvm.kernel.arch_capabilities
        self.feat_ctl = 0
        self.mcg_cap = KVM_MAX_MCE_BANKS
        self.banks: dict[int, int] = {}

    def get(self, index: int) -> int:
        """Raises Unsupported or Invalid."""
        vcpu = self.vcpu
        value: int | None = self.values.get(index)
        if value is not None:
            return value
        if index == IA32_TSC_DEADLINE:
            return vcpu.apic.tsc_deadline if vcpu.apic is not None else 0
        if index == IA32_APIC_BASE:
            return vcpu.apic_base
        if 0x800 <= index < 0x900:
            result = vcpu.apic.x2apic_read(index) if vcpu.apic is not None else None
            if result is None:
                raise Invalid
            return result
        if index == IA32_ARCH_CAPABILITIES:
            return self.arch_capabilities
        if index == MTRRCAP:
            return 0x508  # 8 variable ranges, fixed ranges, WC
        if index == IA32_FEAT_CTL:
            return self.feat_ctl
        if index == IA32_MCG_CAP:
            return self.mcg_cap
        if self._is_bank(index):
            return self.banks.get(index, 0)
        value = READ_AS_CONSTANT.get(index)
        if value is not None:
            return value
        raise Unsupported

    def set(self, index: int, value: int, *, host: bool) -> None:
        """``host``: user space writes, not the guest. Raises Unsupported or Invalid."""
        vcpu = self.vcpu
        if index == IA32_TSC_DEADLINE:
            if vcpu.apic is not None:
                vcpu.apic.set_tsc_deadline(value)
        elif 0x800 <= index < 0x900:
            if vcpu.apic is None or not vcpu.apic.x2apic_write(index, value):
                raise Invalid
        elif index in self.values:
            if index == IA32_UCODE_REV and not host:
                return  # the guest's write before it reads the revision
            if index in (PLATFORM_INFO, MISC_FEATURES_ENABLES) and not host:
                raise Invalid
            if index == IA32_PAT and any(value >> shift & 0xFF not in (0, 1, 4, 5, 6, 7) for shift in range(0, 64, 8)):
                raise Invalid
            self.values[index] = value
        elif index == IA32_APIC_BASE:
            try:
                vcpu.set_apic_base(value)
            except OSError as error:
                raise Invalid from error
        elif index == IA32_ARCH_CAPABILITIES:
            if not host:
                raise Invalid
            self.arch_capabilities = value
        elif index == IA32_FEAT_CTL:
            if value & ~(FEAT_CTL_LOCKED | FEAT_CTL_LMCE | 0x6) or (not host and self.feat_ctl & FEAT_CTL_LOCKED):
                raise Invalid
            self.feat_ctl = value
        elif self._is_bank(index):
            self.banks[index] = value
        elif index in (MTRRCAP, IA32_MCG_CAP):
            raise Invalid
        elif index in WRITE_IGNORED:
            return
        else:
            raise Unsupported

    @staticmethod
    def _is_bank(index: int) -> bool:
        return (
            IA32_MC0_CTL <= index < IA32_MC0_CTL + 4 * KVM_MAX_MCE_BANKS
            or IA32_MC0_CTL2 <= index < IA32_MC0_CTL2 + KVM_MAX_MCE_BANKS
        )


@dataclass(frozen=True)
class MsrFilter:
    """KVM_X86_SET_MSR_FILTER: which MSRs the guest may touch. x2APIC's are never filtered."""

    default_allow: bool
    ranges: tuple[tuple[int, int, int, bytes], ...]  # flags, base, count, bitmap

    def allows(self, index: int, *, write: bool) -> bool:
        """Whether KVM handles the guest's access."""
        if 0x800 <= index < 0x900:
            return True
        wanted = KVM_MSR_FILTER_WRITE if write else KVM_MSR_FILTER_READ
        for flags, base, count, bitmap in self.ranges:
            if flags & wanted and base <= index < base + count:
                bit = index - base
                return bool(bitmap[bit >> 3] & 1 << (bit & 7))
        return self.default_allow


def msr_filter_from_user(request: kvm_msr_filter) -> MsrFilter | None:
    """The filter that the structure describes, None for no filter. Raises OSError(EINVAL, EFAULT)."""
    if request.flags & ~KVM_MSR_FILTER_DEFAULT_DENY:
        raise err(errno.EINVAL, f"flags {request.flags:#x}")
    ranges = []
    for item in request.ranges:
        if not item.nmsrs:
            continue
        if item.flags & ~(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE) or not item.flags:
            raise err(errno.EINVAL, f"range flags {item.flags:#x}")
        size = (item.nmsrs + 63) // 64 * 8
        if size > KVM_MSR_FILTER_MAX_BITMAP_SIZE:
            raise err(errno.EINVAL, f"a range of {item.nmsrs} MSRs is too large")
        ranges.append((item.flags, item.base, item.nmsrs, copy_from_user(item.bitmap or 0, size)))
    default_allow = not request.flags & KVM_MSR_FILTER_DEFAULT_DENY
    if not ranges:
        if not default_allow:
            raise err(errno.EINVAL, "a filter that denies by default needs a range")
        return None
    return MsrFilter(default_allow, tuple(ranges))
