# SPDX-License-Identifier: GPL-2.0-or-later
"""Model-specific registers that KVM itself holds, for both kinds of VM (kvm_get_msr_common, kvm_set_msr_common, x86.c).

What the guest processor holds (segment bases, SYSCALL, SYSENTER, ...) is VMX's; here are the ones emulated in the
kernel. `Unsupported` says that there is no such MSR (user space may be asked), `Invalid` that the access is refused.
``host``: user space asks, by KVM_GET_MSRS or KVM_SET_MSRS; it may do more than the guest.

Left out, and unknown to the guest's CPUID: performance counters, Hyper-V's and Xen's MSRs. The MSRs of asynchronous
page faults and of paravirtual EOI keep what is written: no page is ever away, and with virtual interrupt delivery KVM
does not use the second. MSRs of features that the processor lacks are refused as by KVM (`_REFUSED`, `HOST_ONLY`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.cpuid import F7_EDX_ARCH_CAPABILITIES, F7_EDX_FLUSH_L1D, F7_EDX_SPEC_CTRL
from swtdx.linux.arch.x86.kvm.x86 import mce
from swtdx.linux.arch.x86.kvm.x86.steal_time import KVM_STEAL_RESERVED_MASK
from swtdx.linux.mm import PAGE_SHIFT
from swtdx.uapi.kvm import (
    KVM_MEM_READONLY,
    KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT,
    KVM_X86_QUIRK_STUFF_FEATURE_MSRS,
)
from swtdx.x86 import PAT_RESET as PAT_RESET
from swtdx.x86 import Msr

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

# Plain integers, as a guest's ECX is: comparing with members of an enumeration costs more, at each MSR exit.
IA32_TSC, IA32_APIC_BASE, IA32_FEAT_CTL = map(int, (Msr.TSC, Msr.APIC_BASE, Msr.FEATURE_CONTROL))
IA32_TSC_ADJUST, SMI_COUNT, IA32_SPEC_CTRL, IA32_PRED_CMD = map(
    int, (Msr.TSC_ADJUST, Msr.SMI_COUNT, Msr.SPEC_CTRL, Msr.PRED_CMD)
)
IA32_BIOS_UPDT_TRIG, IA32_UCODE_REV, IA32_SMBASE = map(int, (Msr.BIOS_UPDT_TRIG, Msr.BIOS_SIGN_ID, Msr.SMBASE))
PLATFORM_INFO, MTRRCAP, IA32_ARCH_CAPABILITIES = map(int, (Msr.PLATFORM_INFO, Msr.MTRRCAP, Msr.ARCH_CAPABILITIES))
IA32_FLUSH_CMD, BBL_CR_CTL3, MISC_FEATURES_ENABLES = map(
    int, (Msr.FLUSH_CMD, Msr.BBL_CR_CTL3, Msr.MISC_FEATURES_ENABLES)
)
IA32_MISC_ENABLE, IA32_DEBUGCTL, IA32_POWER_CTL = map(int, (Msr.MISC_ENABLE, Msr.DEBUGCTL, Msr.POWER_CTL))
IA32_PAT, MTRR_DEF_TYPE, IA32_TSC_DEADLINE, IA32_XSS = map(int, (Msr.PAT, Msr.MTRR_DEF_TYPE, Msr.TSC_DEADLINE, Msr.XSS))
UMWAIT_CONTROL, TSX_CTRL, IA32_PERF_CAPABILITIES = map(int, (Msr.UMWAIT_CONTROL, Msr.TSX_CTRL, Msr.PERF_CAPABILITIES))
XFD, XFD_ERR, SGXLEPUBKEYHASH0 = map(int, (Msr.XFD, Msr.XFD_ERR, Msr.SGXLEPUBKEYHASH0))
IA32_EFER, TSC_AUX, K7_HWCR = map(int, (Msr.EFER, Msr.TSC_AUX, Msr.HWCR))
FS_BASE, GS_BASE, KERNEL_GS_BASE = map(int, (Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE))
LSTAR, CSTAR, STAR, FMASK = map(int, (Msr.LSTAR, Msr.CSTAR, Msr.STAR, Msr.FMASK))
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = map(int, (Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP))
MTRR_PHYS, MTRR_FIXED = range(0x200, 0x210), (0x250, 0x258, 0x259, *range(0x268, 0x270))
MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME = 0x11, 0x12
MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW = 0x4B564D00, 0x4B564D01
MSR_KVM_STEAL_TIME, MSR_KVM_POLL_CONTROL = 0x4B564D03, 0x4B564D05
MSR_KVM_ASYNC_PF_EN, MSR_KVM_PV_EOI_EN = 0x4B564D02, 0x4B564D04
MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK = 0x4B564D06, 0x4B564D07
KVM_FEATURE_ASYNC_PF_VMEXIT, KVM_FEATURE_ASYNC_PF_INT = 10, 14
ASYNC_PF_ENABLED, ASYNC_PF_AS_PF_VMEXIT, ASYNC_PF_AS_INT, ASYNC_PF_RESERVED = 1 << 0, 1 << 2, 1 << 3, 0x30
WALL_CLOCKS = (MSR_KVM_WALL_CLOCK, MSR_KVM_WALL_CLOCK_NEW)
SYSTEM_TIMES = (MSR_KVM_SYSTEM_TIME, MSR_KVM_SYSTEM_TIME_NEW)
_PV_FEATURES = {  # the bit of CPUID 0x40000001 EAX that each paravirtual MSR needs, where that is enforced
    MSR_KVM_WALL_CLOCK: 0,
    MSR_KVM_SYSTEM_TIME: 0,
    MSR_KVM_WALL_CLOCK_NEW: 3,
    MSR_KVM_SYSTEM_TIME_NEW: 3,
    MSR_KVM_ASYNC_PF_EN: 4,
    MSR_KVM_STEAL_TIME: 5,
    MSR_KVM_PV_EOI_EN: 6,
    MSR_KVM_POLL_CONTROL: 12,
    MSR_KVM_ASYNC_PF_INT: KVM_FEATURE_ASYNC_PF_INT,
    MSR_KVM_ASYNC_PF_ACK: KVM_FEATURE_ASYNC_PF_INT,
}
FEAT_CTL_LOCKED, FEAT_CTL_VMX, FEAT_CTL_SGX, FEAT_CTL_LMCE = 1 << 0, 0x6, 1 << 17 | 1 << 18, 1 << 20
PLATFORM_INFO_CPUID_FAULT, CPUID_FAULT_ENABLE = 1 << 31, 1 << 0
MISC_ENABLE_MWAIT, F1_ECX_SSE3 = 1 << 18, 1 << 0
MISC_ENABLE_EMON, MISC_ENABLE_PMU = 1 << 7, 1 << 11 | 1 << 12  # the PMU's two: BTS and PEBS unavailable
HWCR_MC_STATUS_WR_EN = 1 << 18
HWCR_IGNORED, HWCR_WRITABLE = 1 << 3 | 1 << 6 | 1 << 8, 1 << 18 | 1 << 24
MCG_CAP_SUPPORTED, KVM_MAX_MCE_BANKS = mce.MCG_CAP_SUPPORTED, mce.KVM_MAX_MCE_BANKS

FEATURE_MSRS = (IA32_UCODE_REV, IA32_ARCH_CAPABILITIES, IA32_PERF_CAPABILITIES, PLATFORM_INFO)
IMMUTABLE = (IA32_ARCH_CAPABILITIES, IA32_PERF_CAPABILITIES, PLATFORM_INFO)
"""Feature MSRs that user space cannot change once the vCPU has run (kvm_is_immutable_feature_msr)."""

MSR_INDEX_LIST = (
    SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP, STAR, CSTAR, KERNEL_GS_BASE, FMASK, LSTAR,
    IA32_TSC, IA32_PAT, IA32_FEAT_CTL, TSC_AUX, IA32_SPEC_CTRL,
    MSR_KVM_SYSTEM_TIME, MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_ASYNC_PF_EN,
    MSR_KVM_STEAL_TIME, MSR_KVM_PV_EOI_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK, IA32_TSC_ADJUST,
    IA32_TSC_DEADLINE, IA32_ARCH_CAPABILITIES, IA32_PERF_CAPABILITIES, IA32_MISC_ENABLE, mce.IA32_MCG_STATUS,
    mce.IA32_MCG_CTL, mce.IA32_MCG_EXT_CTL, SMI_COUNT, PLATFORM_INFO, MISC_FEATURES_ENABLES, IA32_POWER_CTL,
    IA32_UCODE_REV, K7_HWCR, MSR_KVM_POLL_CONTROL,
)  # fmt: skip
"""KVM_GET_MSR_INDEX_LIST: what there is here of msrs_to_save and emulated_msrs_all. MTRRs are there and not listed."""
DEBUGCTL_LIST = (IA32_DEBUGCTL, 0x1DD, 0x1DE)
"""What newer kernels list, too: of the last branches and interrupts an Intel processor has the last two alone."""

HOST_ONLY = {
    UMWAIT_CONTROL: 0xFFFF_FFFD,  # WAITPKG
    XFD: 0,
    XFD_ERR: 0,
    **dict.fromkeys(range(SGXLEPUBKEYHASH0, SGXLEPUBKEYHASH0 + 4), (1 << 64) - 1),  # SGX_LC
}
"""MSRs of features that no guest has here, but that user space can save and restore: the bits that it may set."""
_REFUSED = frozenset(
    [
        IA32_SMBASE,  # CONFIG_KVM_SMM
        *range(Msr.VMX_BASIC, Msr.VMX_VMFUNC + 1),  # VMX
        *range(Msr.RTIT_OUTPUT_BASE, Msr.RTIT_OUTPUT_BASE + 2),  # Intel PT
        *range(Msr.RTIT_CTL, Msr.RTIT_CTL + 3),
        *range(Msr.RTIT_ADDR0_A, Msr.RTIT_ADDR0_A + 8),
        int(Msr.BNDCFGS),  # MPX
        0xC0010140,  # OSVW_ID_LENGTH of AMD
        0xC0010141,  # OSVW_STATUS
        *range(MTRR_PHYS.stop, MTRR_FIXED[-1] + 1),  # the gaps: those that exist are found before
    ]
)
"""MSRs that KVM knows, and refuses as invalid to the guest and to user space without the feature."""
ARCH_CAP_TSX_CTRL_MSR, TSX_CTRL_BITS = 1 << 7, 0b11
PERF_CAP_LBR_FMT, PERF_CAP_PEBS_FORMAT = 0x3F, 0xF00

_PLAIN_DEFAULTS = {
    IA32_UCODE_REV: 1 << 32,
    IA32_POWER_CTL: 0,
    MISC_FEATURES_ENABLES: 0,
    IA32_MISC_ENABLE: MISC_ENABLE_PMU,
    PLATFORM_INFO: PLATFORM_INFO_CPUID_FAULT,
    SMI_COUNT: 0,
    K7_HWCR: 0,
    **dict.fromkeys((MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_PV_EOI_EN), 0),
    **dict.fromkeys(HOST_ONLY, 0),
    MSR_KVM_POLL_CONTROL: 1,
    MTRR_DEF_TYPE: 0,
    IA32_PAT: PAT_RESET,
    **dict.fromkeys((*MTRR_PHYS, *MTRR_FIXED), 0),
}
READ_AS_CONSTANT = {
    0x2C: 1 << 24,  # EBC_FREQUENCY_ID: firmware and old guests derive a bus speed from it
    0xCD: 3,  # the frequency of the front-side bus
    0x198: 1000 | 4 << 40,  # PERF_STATUS: no P-states, a multiplier of 4
    BBL_CR_CTL3: 0xBE702111,  # the second-level cache of long ago
    0xC001001B: 0x20000000,  # K7_CLK_CTL
    **dict.fromkeys((0x17, 0x2A, 0x199), 0),  # PLATFORM_ID, EBL_CR_POWERON, PERF_CTL
    **dict.fromkeys((0x1DB, 0x1DC, 0x1DD, 0x1DE), 0),  # last branch and interrupt
    **dict.fromkeys((0xC1, 0xC2, 0x186, 0x187, *range(0xC0010000, 0xC0010008)), 0),  # counters of no PMU
    **dict.fromkeys((0x606, 0x611, 0x619, 0x639, 0x641), 0),  # RAPL: no energy to report
    **dict.fromkeys((0xC0010010, 0xC001001F, 0xC0010055, 0xC0010058, 0xC0010112, 0xC0010113, 0xC0010117), 0),  # AMD's
    **dict.fromkeys((0xC001102A, 0xC0011022, 0xC0011023, 0xC001102C), 0),
    MSR_KVM_ASYNC_PF_ACK: 0,
}
"""MSRs that a guest may read on any host, as kvm_get_msr_common answers them."""
WRITE_IGNORED = frozenset(
    [IA32_BIOS_UPDT_TRIG, BBL_CR_CTL3, 0xC1, 0xC2, 0x186, 0x187, *range(0xC0010000, 0xC0010008), 0xC001001B, 0xC001001F,
     0xC0010020, 0xC0010117, 0xC001102A, 0xC0011022, 0xC0011023, 0xC001102C]
)  # fmt: skip
FAM10H_MMIO_CONF_BASE = 0xC0010058


class Unsupported(Exception):
    """No such MSR (KVM_MSR_RET_UNSUPPORTED)."""


class Invalid(Exception):
    """The value, or the access, is refused: #GP in the guest."""


def _memory_types(value: int, types: int) -> bool:
    """Return whether each of the eight bytes is a memory type of the bit mask."""
    return all(value >> shift & 0xFF < 8 and types >> (value >> shift & 0xFF) & 1 for shift in range(0, 64, 8))


class EmulatedMsrs:
    """The MSRs of one vCPU that are plain storage or belong to other parts of KVM."""

    def __init__(self, vcpu: Vcpu) -> None:
        self.vcpu = vcpu
        self.values = dict(_PLAIN_DEFAULTS)
        self.arch_capabilities: int = vcpu.kvm.kernel.arch_capabilities
        if vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_STUFF_FEATURE_MSRS:
            self.arch_capabilities = self.values[PLATFORM_INFO] = self.values[IA32_UCODE_REV] = 0
        self.feat_ctl = 0
        self.mce = mce.MachineCheck()
        self.tsc_adjust = 0

    @property
    def cpuid_fault(self) -> bool:
        """Whether CPUID outside ring 0 is #GP for the guest."""
        return bool(self.values[MISC_FEATURES_ENABLES] & CPUID_FAULT_ENABLE)

    @property
    def mwait_enabled(self) -> bool:
        """Whether IA32_MISC_ENABLE has MONITOR and MWAIT on."""
        return bool(self.values[IA32_MISC_ENABLE] & MISC_ENABLE_MWAIT)

    def get(self, index: int, host: bool) -> int:
        """Raises Unsupported or Invalid."""
        vcpu = self.vcpu
        self._check_pv_feature(index)
        if not host and self._is_hidden(index):
            raise Invalid
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
            if not vcpu.cpuid.has_7_edx(F7_EDX_ARCH_CAPABILITIES):
                raise Unsupported
            return self.arch_capabilities
        if index == MTRRCAP:
            return 0x508  # 8 variable ranges, fixed ranges, WC
        if index == IA32_FEAT_CTL:
            return self.feat_ctl
        if index == IA32_TSC_ADJUST:
            return self.tsc_adjust
        if index in mce.MSRS:
            return self._get_mce(index, host)
        if index in WALL_CLOCKS:
            return vcpu.kvm.clock.wall_clock
        if index in SYSTEM_TIMES:
            return vcpu.pv_time.msr
        if index == MSR_KVM_STEAL_TIME:
            return vcpu.steal_time.msr
        value = READ_AS_CONSTANT.get(index)
        if value is not None:
            return value
        raise Invalid if index in _REFUSED else Unsupported

    def _is_hidden(self, index: int) -> bool:
        """Return whether the guest must not read an MSR that user space can."""
        if index == PLATFORM_INFO:
            return not self.vcpu.kvm.guest_can_read_platform_info
        return index in HOST_ONLY or (index == TSX_CTRL and not self.arch_capabilities & ARCH_CAP_TSX_CTRL_MSR)

    def _check_pv_feature(self, index: int) -> None:
        """Raises an error for a paravirtual MSR that the guest's CPUID lacks, where that is enforced."""
        feature = _PV_FEATURES.get(index)
        if feature is not None and not self.vcpu.guest_pv_has(feature):
            raise Unsupported if self.vcpu.kvm.kernel.release.advertised_pv_msrs_read_as_0 else Invalid

    def _get_mce(self, index: int, host: bool) -> int:
        if index == mce.IA32_MCG_EXT_CTL:
            if not host and not self._lmce_enabled():
                raise Invalid
            return self.mce.mcg_ext_ctl
        value = self.mce.read(index, host=host)
        if value is None:
            raise Invalid
        return value

    def _lmce_enabled(self) -> bool:
        """A TD's IA32_FEAT_CTL says always what MCG_CAP allows."""
        return self.mce.lmce if self.vcpu.is_td else bool(self.feat_ctl & FEAT_CTL_LMCE)

    def set(self, index: int, value: int, *, host: bool) -> None:
        """Raises Unsupported or Invalid."""
        vcpu = self.vcpu
        self._check_pv_feature(index)
        if index == IA32_TSC_DEADLINE:
            if vcpu.apic is not None:
                vcpu.apic.set_tsc_deadline(value)
        elif 0x800 <= index < 0x900:
            if vcpu.apic is None or not vcpu.apic.x2apic_write(index, value):
                raise Invalid
        elif index in self.values:
            self._set_plain(index, value, host=host)
        elif index == IA32_APIC_BASE:
            try:
                vcpu.set_apic_base(value, host=host)
            except OSError as error:
                raise Invalid from error
        elif index in mce.MSRS:
            self._set_mce(index, value, host=host)
        elif index in WALL_CLOCKS:
            vcpu.kvm.clock.set_wall_clock(value)
        elif index in SYSTEM_TIMES:
            vcpu.pv_time.set(value, old_msr=index == MSR_KVM_SYSTEM_TIME, host=host)
        elif index == MSR_KVM_STEAL_TIME:
            self._set_steal_time(value, host=host)
        elif index == MSR_KVM_ASYNC_PF_ACK:
            if value & 1:
                vcpu.async_pf.check_completion()
        else:
            self._set_feature(index, value, host=host)

    def _set_steal_time(self, value: int, *, host: bool) -> None:
        if value & KVM_STEAL_RESERVED_MASK:
            raise Invalid
        steal_time = self.vcpu.steal_time
        steal_time.msr = value
        if steal_time.enabled and not host:  # KVM_REQ_STEAL_UPDATE; user space's is met when the vCPU is loaded
            steal_time.record()

    def _set_plain(self, index: int, value: int, *, host: bool) -> None:
        if index == IA32_UCODE_REV:
            if not host:
                return  # the guest's write before it reads the revision
        elif index == IA32_MISC_ENABLE:
            if not host:
                old = self.values[index]
                if (old ^ value) & MISC_ENABLE_PMU:
                    raise Invalid
                value = value & ~MISC_ENABLE_EMON | old & MISC_ENABLE_EMON
            if self.vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT:
                features = self.vcpu.cpuid.find(1)
                if (self.values[index] ^ value) & MISC_ENABLE_MWAIT and not (features and features[2] & F1_ECX_SSE3):
                    raise Invalid
        elif index == K7_HWCR:
            value &= ~HWCR_IGNORED
            if value & ~HWCR_WRITABLE:
                raise Invalid
        elif index in (MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_PV_EOI_EN):
            self._check_pv_value(index, value)
        elif not self._plain_is_valid(index, value, host=host):
            raise Invalid
        self.values[index] = value
        if index == MSR_KVM_ASYNC_PF_EN:
            self.vcpu.async_pf.set(host=host)

    def _is_command(self, value: int, feature: int, *, needed_for_0: bool) -> bool:
        """Return whether no bit but 0 is written, and that only where the processor has the feature of leaf 7, EDX."""
        if value & ~1:
            return False
        return bool(self.vcpu.kvm.processor.cpuid(7)[3] & feature) or not (value or needed_for_0)

    def _check_pv_value(self, index: int, value: int) -> None:
        """kvm_pv_enable_async_pf, kvm_pv_enable_async_pf_int, kvm_lapic_set_pv_eoi. Raises Invalid."""
        vcpu = self.vcpu
        if index == MSR_KVM_PV_EOI_EN:
            if value & 0b10 or (value & 1 and not self._is_writable(value)):
                raise Invalid
        elif index == MSR_KVM_ASYNC_PF_INT:
            if value >> 8 or vcpu.apic is None:
                raise Invalid
        else:
            refused = ASYNC_PF_RESERVED
            if not vcpu.guest_pv_has(KVM_FEATURE_ASYNC_PF_VMEXIT):
                refused |= ASYNC_PF_AS_PF_VMEXIT
            if not vcpu.guest_pv_has(KVM_FEATURE_ASYNC_PF_INT):
                refused |= ASYNC_PF_AS_INT
            if value & refused or (value and vcpu.apic is None):
                raise Invalid
            on = ASYNC_PF_ENABLED | ASYNC_PF_AS_INT
            if value & on == on and not self._is_writable(value):
                self.values[index] = value  # kept, although refused, as KVM does
                raise Invalid

    def _is_writable(self, address: int) -> bool:
        """Return whether a slot has the guest-physical address, and not for reading only."""
        slot = self.vcpu.kvm.memslots.gfn_to_memslot(address >> PAGE_SHIFT)
        return slot is not None and not slot.flags & KVM_MEM_READONLY

    def reset(self) -> None:
        """INIT (kvm_vcpu_reset)."""
        for index in (SMI_COUNT, UMWAIT_CONTROL, MSR_KVM_ASYNC_PF_EN, MSR_KVM_ASYNC_PF_INT, MSR_KVM_PV_EOI_EN):
            self.values[index] = 0
        self.vcpu.async_pf.wakes_all = self.vcpu.async_pf.requested = False

    def _plain_is_valid(self, index: int, value: int, *, host: bool) -> bool:
        if index in HOST_ONLY:
            return host and not value & ~HOST_ONLY[index]
        if index in (PLATFORM_INFO, SMI_COUNT):
            return host
        if index == MISC_FEATURES_ENABLES:
            may_fault = self.values[PLATFORM_INFO] & PLATFORM_INFO_CPUID_FAULT
            return not value & ~CPUID_FAULT_ENABLE and (not value or bool(may_fault))
        if index == MSR_KVM_POLL_CONTROL:
            return not value & ~1
        if index == IA32_PAT:
            return _memory_types(value, 0b11110011)
        if index == MTRR_DEF_TYPE:
            return not value & ~0xCFF and _memory_types(value & 0xFF, 0b1110011)
        if index in MTRR_FIXED:
            return _memory_types(value, 0b1110011)
        if index in MTRR_PHYS:
            if index & 1:
                return not value & (self.vcpu.cpuid.reserved_gpa_bits | 0x7FF)
            return not value & (self.vcpu.cpuid.reserved_gpa_bits | 0xF00) and _memory_types(value & 0xFF, 0b1110011)
        return True

    def _set_mce(self, index: int, value: int, *, host: bool) -> None:
        if index == mce.IA32_MCG_EXT_CTL:
            if (not host and not self._lmce_enabled()) or value & ~mce.MCG_EXT_CTL_LMCE_EN:
                raise Invalid
            self.mce.mcg_ext_ctl = value
        elif index in mce.READ_ONLY:
            raise Unsupported
        elif not self.mce.write(index, value, any_status=host or self._can_set_mci_status(), host=host):
            raise Invalid

    def _can_set_mci_status(self) -> bool:
        """Return whether the guest's processor is AMD's, and HWCR lets it write what a bank reports."""
        return self.vcpu.cpuid.is_amd_compatible and bool(self.values[K7_HWCR] & HWCR_MC_STATUS_WR_EN)

    def _set_feature(self, index: int, value: int, *, host: bool) -> None:
        """What the guest's CPUID has a say in, and what is ignored."""
        cpuid = self.vcpu.cpuid
        if index == IA32_ARCH_CAPABILITIES:
            if not host or not cpuid.has_7_edx(F7_EDX_ARCH_CAPABILITIES):
                raise Unsupported
            self.arch_capabilities = value
        elif index == IA32_FEAT_CTL:
            valid = FEAT_CTL_LOCKED | (FEAT_CTL_LMCE if host or self.mce.lmce else 0)
            valid |= FEAT_CTL_VMX | FEAT_CTL_SGX if host else 0
            if value & ~valid or (not host and self.feat_ctl & FEAT_CTL_LOCKED):
                raise Invalid
            self.feat_ctl = value
        elif index == IA32_PRED_CMD:
            there = host or cpuid.has_pred_cmd(self.vcpu.kvm.processor)
            if not there or not self._is_command(value, F7_EDX_SPEC_CTRL, needed_for_0=False):
                raise Invalid  # otherwise: a command that means nothing to an emulated processor
        elif index == IA32_FLUSH_CMD:
            there = host or cpuid.has_7_edx(F7_EDX_FLUSH_L1D)
            if not there or not self._is_command(value, F7_EDX_FLUSH_L1D, needed_for_0=True):
                raise Invalid
        elif index == FAM10H_MMIO_CONF_BASE:
            if value:
                raise Invalid
        elif index == TSX_CTRL:  # the processor has none
            raise Invalid if value & ~TSX_CTRL_BITS or (not host and self._is_hidden(index)) else Unsupported
        elif index == IA32_PERF_CAPABILITIES:  # without a PMU there is none
            raise Invalid if value & (PERF_CAP_LBR_FMT | PERF_CAP_PEBS_FORMAT) else Unsupported
        elif index not in WRITE_IGNORED:
            raise Invalid if index in _REFUSED else Unsupported
