# SPDX-License-Identifier: GPL-2.0-or-later
"""The ioctls of each kind of descriptor, their structures, and values that are worth trying in them."""

from __future__ import annotations

import ctypes

from swtdx.uapi import kvm as k

DEVICE = ("KVM_GET_API_VERSION", "KVM_CREATE_VM", "KVM_CHECK_EXTENSION", "KVM_GET_VCPU_MMAP_SIZE", "KVM_GET_MSRS",
          "KVM_GET_SUPPORTED_CPUID", "KVM_GET_EMULATED_CPUID", "KVM_GET_MSR_INDEX_LIST", "KVM_HAS_DEVICE_ATTR",
          "KVM_GET_MSR_FEATURE_INDEX_LIST", "KVM_X86_GET_MCE_CAP_SUPPORTED", "KVM_GET_DEVICE_ATTR")  # fmt: skip
_FIRST_VCPU = list(k.REQUESTS).index("KVM_RUN")
_FIRST_VM = list(k.REQUESTS).index("KVM_CREATE_VCPU")
VM = (*list(k.REQUESTS)[_FIRST_VM:_FIRST_VCPU], "KVM_CHECK_EXTENSION", *("KVM_MEMORY_ENCRYPT_OP",) * 6,
      *("KVM_SET_USER_MEMORY_REGION", "KVM_SET_USER_MEMORY_REGION2", "KVM_SET_MEMORY_ATTRIBUTES") * 3)  # fmt: skip
VCPU = (*list(k.REQUESTS)[_FIRST_VCPU:], *("KVM_MEMORY_ENCRYPT_OP",) * 6, *("KVM_RUN",) * 8, "KVM_SET_TSC_KHZ",
        "KVM_GET_TSC_KHZ", "KVM_ENABLE_CAP", "KVM_GET_STATS_FD", "KVM_GET_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR",
        "KVM_HAS_DEVICE_ATTR", *("KVM_PRE_FAULT_MEMORY",) * 2)  # fmt: skip
ARRAYS = {  # requests whose structure ends in an array: what it is, and the member that counts
    "KVM_GET_SUPPORTED_CPUID": (k.kvm_cpuid2, "nent"), "KVM_GET_EMULATED_CPUID": (k.kvm_cpuid2, "nent"),
    "KVM_SET_CPUID2": (k.kvm_cpuid2, "nent"), "KVM_GET_CPUID2": (k.kvm_cpuid2, "nent"),
    "KVM_SET_CPUID": (k.kvm_cpuid, "nent"), "KVM_GET_MSRS": (k.kvm_msrs, "nmsrs"),
    "KVM_SET_MSRS": (k.kvm_msrs, "nmsrs"), "KVM_GET_MSR_INDEX_LIST": (k.kvm_msr_list, "nmsrs"),
    "KVM_GET_MSR_FEATURE_INDEX_LIST": (k.kvm_msr_list, "nmsrs"), "KVM_SET_GSI_ROUTING": (k.kvm_irq_routing, "nr"),
}  # fmt: skip
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "KVM_SET_USER_MEMORY_REGION": k.kvm_userspace_memory_region, "KVM_IRQFD": k.kvm_irqfd, "KVM_MSI": k.kvm_msi,
    "KVM_SET_USER_MEMORY_REGION2": k.kvm_userspace_memory_region2, "KVM_IOEVENTFD": k.kvm_ioeventfd,
    "KVM_SET_MEMORY_ATTRIBUTES": k.kvm_memory_attributes, "KVM_CREATE_GUEST_MEMFD": k.kvm_create_guest_memfd,
    "KVM_GET_DIRTY_LOG": k.kvm_dirty_log, "KVM_CLEAR_DIRTY_LOG": k.kvm_clear_dirty_log,
    "KVM_ENABLE_CAP": k.kvm_enable_cap, "KVM_IRQ_LINE": k.kvm_irq_level, "KVM_IRQ_LINE_STATUS": k.kvm_irq_level,
    "KVM_SIGNAL_MSI": k.kvm_msi, "KVM_GET_IRQCHIP": k.kvm_irqchip, "KVM_SET_IRQCHIP": k.kvm_irqchip,
    "KVM_SET_PIT2": k.kvm_pit_state2, "KVM_SET_PIT": k.kvm_pit_state, "KVM_CREATE_PIT2": k.kvm_pit_config,
    "KVM_SET_CLOCK": k.kvm_clock_data, "KVM_X86_SET_MSR_FILTER": k.kvm_msr_filter,
    "KVM_REGISTER_COALESCED_MMIO": k.kvm_coalesced_mmio_zone,
    "KVM_UNREGISTER_COALESCED_MMIO": k.kvm_coalesced_mmio_zone, "KVM_CREATE_DEVICE": k.kvm_create_device,
    "KVM_GET_DEVICE_ATTR": k.kvm_device_attr, "KVM_SET_DEVICE_ATTR": k.kvm_device_attr,
    "KVM_HAS_DEVICE_ATTR": k.kvm_device_attr, "KVM_SET_REGS": k.kvm_regs, "KVM_SET_SREGS": k.kvm_sregs,
    "KVM_SET_SREGS2": k.kvm_sregs2, "KVM_TRANSLATE": k.kvm_translation, "KVM_INTERRUPT": k.kvm_interrupt,
    "KVM_SET_MP_STATE": k.kvm_mp_state, "KVM_SET_GUEST_DEBUG": k.kvm_guest_debug,
    "KVM_SET_VCPU_EVENTS": k.kvm_vcpu_events, "KVM_SET_DEBUGREGS": k.kvm_debugregs, "KVM_SET_FPU": k.kvm_fpu,
    "KVM_SET_XCRS": k.kvm_xcrs, "KVM_SET_XSAVE": k.kvm_xsave, "KVM_SET_LAPIC": k.kvm_lapic_state,
    "KVM_PRE_FAULT_MEMORY": k.kvm_pre_fault_memory, "KVM_TPR_ACCESS_REPORTING": k.kvm_tpr_access_ctl,
    "KVM_X86_SET_MCE": k.kvm_x86_mce, "KVM_GET_NESTED_STATE": k.kvm_nested_state,
    "KVM_SET_NESTED_STATE": k.kvm_nested_state,
}  # fmt: skip
MSRS = (
    0x10, 0x12, 0x1B, 0x3A, 0x3B, 0x48, 0x8B, 0xCE, 0xE1, 0x140, 0x174, 0x17B, 0x1A0, 0x201, 0x277, 0x2FF, 0x400, 0x402,
    0x6E0, 0x830, 0xC0000080, 0xC0000100, 0xC0010015, 0x4B564D00, 0x4B564D01, 0x4B564D05,
)  # fmt: skip
CAPS = (66, 116, 121, 128, 129, 143, 159, 164, 168, 182, 188, 190, 193, 201, 204, 213, 218, 237)
SETS_WHAT_IT_GOT = ("REGS", "SREGS", "SREGS2", "FPU", "XSAVE", "XCRS", "DEBUGREGS", "LAPIC", "VCPU_EVENTS", "MP_STATE")
SCALARS = (0, 1, 2, 3, 4, 5, 7, 8, 16, 24, 25, 31, 32, 63, 64, 255, 256, 257, 0x1000, 0x2000, 0x10000, 0x40000,
            0xFEC00000, 0xFEE00000, 0xFEE00D00, 0xFFFFF000, 1 << 31, (1 << 32) - 1, 1 << 35, 1 << 47, 1 << 51, 1 << 52,
            1 << 62, 1 << 63, (1 << 64) - 4096, (1 << 64) - 1)  # fmt: skip
