# SPDX-License-Identifier: GPL-2.0-or-later
"""The x86 half of the KVM interface (arch/x86/include/uapi/asm/kvm.h), without its TDX part.

The TDX part has two incompatible dialects, each in a module of its own: `tdx_upstream` and `tdx_v10`. Members are named
as in the header and explained there and in Documentation/virt/kvm/api.rst; docstrings here say only what surprises.
`kvm` exports everything again, as linux/kvm.h includes asm/kvm.h.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum

from swtdx.uapi.layout import s64, u8, u16, u32, u64

KVM_PIO_PAGE_OFFSET = 1
KVM_COALESCED_MMIO_PAGE_OFFSET = 2
KVM_DIRTY_LOG_PAGE_OFFSET = 64
KVM_NR_INTERRUPTS = 256


class Vector(IntEnum):
    """Exception vectors, as the header names them (``DE_VECTOR``...)."""

    DE, DB, BP, OF, BR, UD, NM, DF = 0, 1, 3, 4, 5, 6, 7, 8
    TS, NP, SS, GP, PF, MF, AC, MC, XM, VE = 10, 11, 12, 13, 14, 16, 17, 18, 19, 20


class VmType(IntEnum):
    """Argument of KVM_CREATE_VM on x86, upstream numbering. In the v10 dialect a TD is type 1: see `dialect`."""

    DEFAULT = 0
    SW_PROTECTED = 1
    SEV = 2
    SEV_ES = 3
    SNP = 4
    TDX = 5


KVM_X86_DEFAULT_VM = VmType.DEFAULT
KVM_X86_SW_PROTECTED_VM = VmType.SW_PROTECTED
KVM_X86_SEV_VM = VmType.SEV
KVM_X86_SEV_ES_VM = VmType.SEV_ES
KVM_X86_SNP_VM = VmType.SNP
KVM_X86_TDX_VM = VmType.TDX


# --- Interrupt controllers and timer ----------------------------------------------------------------------------------

KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC, KVM_NR_IRQCHIPS = 0, 1, 2, 3
KVM_IOAPIC_NUM_PINS = 24
KVM_APIC_REG_SIZE = 0x400
KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON = 0x1, 0x2


class kvm_pic_state(ctypes.Structure):
    """One i8259."""

    _fields_ = [
        ("last_irr", u8),
        ("irr", u8),
        ("imr", u8),
        ("isr", u8),
        ("priority_add", u8),
        ("irq_base", u8),
        ("read_reg_select", u8),
        ("poll", u8),
        ("special_mask", u8),
        ("init_state", u8),
        ("auto_eoi", u8),
        ("rotate_on_auto_eoi", u8),
        ("special_fully_nested_mode", u8),
        ("init4", u8),
        ("elcr", u8),
        ("elcr_mask", u8),
    ]


class kvm_ioapic_state(ctypes.Structure):
    """``redirtbl`` holds the 64-bit entries in the I/O APIC's own format (the header's union member ``bits``)."""

    _fields_ = [
        ("base_address", u64),
        ("ioregsel", u32),
        ("id", u32),
        ("irr", u32),
        ("pad", u32),
        ("redirtbl", u64 * KVM_IOAPIC_NUM_PINS),
    ]


class kvm_lapic_state(ctypes.Structure):
    """The first KiB of the xAPIC page: the 32-bit register N stands at byte 16*N."""

    _fields_ = [("regs", u8 * KVM_APIC_REG_SIZE)]


class kvm_pit_channel_state(ctypes.Structure):
    _fields_ = [
        ("count", u32),
        ("latched_count", u16),
        ("count_latched", u8),
        ("status_latched", u8),
        ("status", u8),
        ("read_state", u8),
        ("write_state", u8),
        ("write_latch", u8),
        ("rw_mode", u8),
        ("mode", u8),
        ("bcd", u8),
        ("gate", u8),
        ("count_load_time", s64),
    ]


class kvm_pit_state(ctypes.Structure):
    _fields_ = [("channels", kvm_pit_channel_state * 3)]


class kvm_pit_state2(ctypes.Structure):
    _fields_ = [("channels", kvm_pit_channel_state * 3), ("flags", u32), ("reserved", u32 * 9)]


class kvm_reinject_control(ctypes.Structure):
    _fields_ = [("pit_reinject", u8), ("reserved", u8 * 31)]


# --- Registers --------------------------------------------------------------------------------------------------------


class kvm_regs(ctypes.Structure):
    """General registers. The order is the header's, not the processor's numbering."""

    _fields_ = [
        ("rax", u64),
        ("rbx", u64),
        ("rcx", u64),
        ("rdx", u64),
        ("rsi", u64),
        ("rdi", u64),
        ("rsp", u64),
        ("rbp", u64),
        ("r8", u64),
        ("r9", u64),
        ("r10", u64),
        ("r11", u64),
        ("r12", u64),
        ("r13", u64),
        ("r14", u64),
        ("r15", u64),
        ("rip", u64),
        ("rflags", u64),
    ]


class kvm_segment(ctypes.Structure):
    """``limit`` is in bytes whatever ``g`` says; ``type`` includes the accessed bit."""

    _fields_ = [
        ("base", u64),
        ("limit", u32),
        ("selector", u16),
        ("type", u8),
        ("present", u8),
        ("dpl", u8),
        ("db", u8),
        ("s", u8),
        ("l", u8),
        ("g", u8),
        ("avl", u8),
        ("unusable", u8),
        ("padding", u8),
    ]


class kvm_dtable(ctypes.Structure):
    _fields_ = [("base", u64), ("limit", u16), ("padding", u16 * 3)]


class _system_registers(ctypes.Structure):
    """What kvm_sregs and kvm_sregs2 have in common."""

    _fields_ = [
        ("cs", kvm_segment),
        ("ds", kvm_segment),
        ("es", kvm_segment),
        ("fs", kvm_segment),
        ("gs", kvm_segment),
        ("ss", kvm_segment),
        ("tr", kvm_segment),
        ("ldt", kvm_segment),
        ("gdt", kvm_dtable),
        ("idt", kvm_dtable),
        ("cr0", u64),
        ("cr2", u64),
        ("cr3", u64),
        ("cr4", u64),
        ("cr8", u64),
        ("efer", u64),
        ("apic_base", u64),
    ]


class kvm_sregs(_system_registers):
    """``interrupt_bitmap`` has at most one bit set: the vector that is queued for delivery."""

    _fields_ = [("interrupt_bitmap", u64 * ((KVM_NR_INTERRUPTS + 63) // 64))]


KVM_SREGS2_FLAGS_PDPTRS_VALID = 1


class kvm_sregs2(_system_registers):
    _fields_ = [("flags", u64), ("pdptrs", u64 * 4)]


class kvm_fpu(ctypes.Structure):
    _fields_ = [
        ("fpr", u8 * 16 * 8),
        ("fcw", u16),
        ("fsw", u16),
        ("ftwx", u8),
        ("pad1", u8),
        ("last_opcode", u16),
        ("last_ip", u64),
        ("last_dp", u64),
        ("xmm", u8 * 16 * 16),
        ("mxcsr", u32),
        ("pad2", u32),
    ]


class kvm_xsave(ctypes.Structure):
    """The XSAVE area, standard format; KVM_GET_XSAVE2 gives KVM_CAP_XSAVE2 bytes, at least the 4096 of ``region``."""

    _fields_ = [("region", u32 * 1024), ("extra", u32 * 0)]


KVM_MAX_XCRS = 16


class kvm_xcr(ctypes.Structure):
    _fields_ = [("xcr", u32), ("reserved", u32), ("value", u64)]


class kvm_xcrs(ctypes.Structure):
    _fields_ = [("nr_xcrs", u32), ("flags", u32), ("xcrs", kvm_xcr * KVM_MAX_XCRS), ("padding", u64 * 16)]


class kvm_debugregs(ctypes.Structure):
    _fields_ = [("db", u64 * 4), ("dr6", u64), ("dr7", u64), ("flags", u64), ("reserved", u64 * 9)]


# --- MSRs and CPUID ---------------------------------------------------------------------------------------------------


class kvm_msr_entry(ctypes.Structure):
    _fields_ = [("index", u32), ("reserved", u32), ("data", u64)]


class kvm_msrs(ctypes.Structure):
    _fields_ = [("nmsrs", u32), ("pad", u32), ("entries", kvm_msr_entry * 0)]


class kvm_msr_list(ctypes.Structure):
    _fields_ = [("nmsrs", u32), ("indices", u32 * 0)]


KVM_MSR_FILTER_MAX_BITMAP_SIZE = 0x600
KVM_MSR_FILTER_MAX_RANGES = 16
KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE = 1 << 0, 1 << 1
KVM_MSR_FILTER_DEFAULT_ALLOW, KVM_MSR_FILTER_DEFAULT_DENY = 0, 1


class kvm_msr_filter_range(ctypes.Structure):
    """``bitmap`` is a pointer; a set bit allows what ``flags`` names for MSR ``base`` + bit number."""

    _fields_ = [("flags", u32), ("nmsrs", u32), ("base", u32), ("bitmap", ctypes.c_void_p)]


class kvm_msr_filter(ctypes.Structure):
    _fields_ = [("flags", u32), ("ranges", kvm_msr_filter_range * KVM_MSR_FILTER_MAX_RANGES)]


KVM_CPUID_FLAG_SIGNIFCANT_INDEX = 1 << 0  # the header's spelling
KVM_CPUID_FLAG_STATEFUL_FUNC = 1 << 1
KVM_CPUID_FLAG_STATE_READ_NEXT = 1 << 2


class kvm_cpuid_entry(ctypes.Structure):
    _fields_ = [("function", u32), ("eax", u32), ("ebx", u32), ("ecx", u32), ("edx", u32), ("padding", u32)]


class kvm_cpuid(ctypes.Structure):
    _fields_ = [("nent", u32), ("padding", u32), ("entries", kvm_cpuid_entry * 0)]


class kvm_cpuid_entry2(ctypes.Structure):
    """``index`` counts only if ``flags`` has KVM_CPUID_FLAG_SIGNIFCANT_INDEX."""

    _fields_ = [
        ("function", u32),
        ("index", u32),
        ("flags", u32),
        ("eax", u32),
        ("ebx", u32),
        ("ecx", u32),
        ("edx", u32),
        ("padding", u32 * 3),
    ]


class kvm_cpuid2(ctypes.Structure):
    """``nent`` is the room on the way in and the count on the way out; too little room is E2BIG."""

    _fields_ = [("nent", u32), ("padding", u32), ("entries", kvm_cpuid_entry2 * 0)]


KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY = 0, 1


class kvm_pmu_event_filter(ctypes.Structure):
    _fields_ = [
        ("action", u32),
        ("nevents", u32),
        ("fixed_counter_bitmap", u32),
        ("flags", u32),
        ("pad", u32 * 4),
        ("events", u64 * 0),
    ]


# --- Events and debugging ---------------------------------------------------------------------------------------------

KVM_VCPUEVENT_VALID_NMI_PENDING = 0x01
KVM_VCPUEVENT_VALID_SIPI_VECTOR = 0x02
KVM_VCPUEVENT_VALID_SHADOW = 0x04
KVM_VCPUEVENT_VALID_SMM = 0x08
KVM_VCPUEVENT_VALID_PAYLOAD = 0x10
KVM_VCPUEVENT_VALID_TRIPLE_FAULT = 0x20
KVM_X86_SHADOW_INT_MOV_SS, KVM_X86_SHADOW_INT_STI = 0x01, 0x02


class kvm_vcpu_events(ctypes.Structure):
    class _exception(ctypes.Structure):
        _fields_ = [("injected", u8), ("nr", u8), ("has_error_code", u8), ("pending", u8), ("error_code", u32)]

    class _interrupt(ctypes.Structure):
        _fields_ = [("injected", u8), ("nr", u8), ("soft", u8), ("shadow", u8)]

    class _nmi(ctypes.Structure):
        _fields_ = [("injected", u8), ("pending", u8), ("masked", u8), ("pad", u8)]

    class _smi(ctypes.Structure):
        _fields_ = [("smm", u8), ("pending", u8), ("smm_inside_nmi", u8), ("latched_init", u8)]

    class _triple_fault(ctypes.Structure):
        _fields_ = [("pending", u8)]

    _fields_ = [
        ("exception", _exception),
        ("interrupt", _interrupt),
        ("nmi", _nmi),
        ("sipi_vector", u32),
        ("flags", u32),
        ("smi", _smi),
        ("triple_fault", _triple_fault),
        ("reserved", u8 * 26),
        ("exception_has_payload", u8),
        ("exception_payload", u64),
    ]


KVM_GUESTDBG_USE_SW_BP = 0x00010000
KVM_GUESTDBG_USE_HW_BP = 0x00020000
KVM_GUESTDBG_INJECT_DB = 0x00040000
KVM_GUESTDBG_INJECT_BP = 0x00080000
KVM_GUESTDBG_BLOCKIRQ = 0x00100000


class kvm_debug_exit_arch(ctypes.Structure):
    _fields_ = [("exception", u32), ("pad", u32), ("pc", u64), ("dr6", u64), ("dr7", u64)]


class kvm_guest_debug_arch(ctypes.Structure):
    _fields_ = [("debugreg", u64 * 8)]


KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS, KVM_SYNC_X86_EVENTS = 1 << 0, 1 << 1, 1 << 2
KVM_SYNC_X86_VALID_FIELDS = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS


class kvm_sync_regs(ctypes.Structure):
    _fields_ = [("regs", kvm_regs), ("sregs", kvm_sregs), ("events", kvm_vcpu_events)]


KVM_X86_QUIRK_LINT0_REENABLED = 1 << 0
KVM_X86_QUIRK_CD_NW_CLEARED = 1 << 1
KVM_X86_QUIRK_LAPIC_MMIO_HOLE = 1 << 2
KVM_X86_QUIRK_OUT_7E_INC_RIP = 1 << 3
KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT = 1 << 4
KVM_X86_QUIRK_FIX_HYPERCALL_INSN = 1 << 5
KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS = 1 << 6
KVM_X86_QUIRK_SLOT_ZAP_ALL = 1 << 7
KVM_X86_QUIRK_STUFF_FEATURE_MSRS = 1 << 8
KVM_X86_QUIRK_IGNORE_GUEST_PAT = 1 << 9
KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM = 1 << 10
KVM_X86_QUIRK_NESTED_SVM_SHARED_PAT = 1 << 11


# --- Nested state (header only: the VMCS images behind it are opaque here) --------------------------------------------

KVM_STATE_NESTED_FORMAT_VMX, KVM_STATE_NESTED_FORMAT_SVM = 0, 1
KVM_STATE_NESTED_GUEST_MODE, KVM_STATE_NESTED_RUN_PENDING = 0x1, 0x2


class kvm_nested_state(ctypes.Structure):
    """128 bytes of header (``hdr`` untyped) and ``size`` - 128 bytes of data."""

    _fields_ = [("flags", u16), ("format", u16), ("size", u32), ("hdr", u64 * 15), ("data", u8 * 0)]


class kvm_x86_mce(ctypes.Structure):
    """Declared in linux/kvm.h, although x86 alone has it."""

    _fields_ = [
        ("status", u64),
        ("addr", u64),
        ("misc", u64),
        ("mcg_status", u64),
        ("bank", u8),
        ("pad1", u8 * 7),
        ("pad2", u64 * 3),
    ]


# --- Device attributes of /dev/kvm and of a vCPU ----------------------------------------------------------------------

KVM_X86_GRP_SYSTEM = 0
KVM_X86_XCOMP_GUEST_SUPP = 0  # group 0 of /dev/kvm: u64 mask of XCR0 bits a guest may use
KVM_VCPU_TSC_CTRL = 0
KVM_VCPU_TSC_OFFSET = 0
