# SPDX-License-Identifier: GPL-2.0-or-later
"""The KVM interface as linux/kvm.h gives it to x86: structures, flags and ioctl requests under the header's names.

The header is long; here it is laid out as `asm_kvm` (registers, MSRs, CPUID), `capability` (KVM_CAP_*), `kvm_run` (the
shared page and the exits) and this module (memory, interrupts, devices, and the requests themselves). All names can be
imported from here, as from the header.

Left out: other architectures, Xen, Hyper-V, SEV, legacy device assignment, and requests that no kernel serves any more.
Structures and numbers newer than Linux 6.1 (memory attributes, guest_memfd, region2, pre-fault) follow 6.18.

>>> hex(KVM_CREATE_VM), hex(KVM_SET_USER_MEMORY_REGION2), ioctl_name(0xAE80)
('0xae01', '0x40a0ae49', 'KVM_RUN')
"""

from __future__ import annotations

import ctypes
from enum import IntFlag

from swtdx.uapi.asm_kvm import *  # noqa: F403
from swtdx.uapi.asm_kvm import (
    kvm_cpuid,
    kvm_cpuid2,
    kvm_debugregs,
    kvm_fpu,
    kvm_guest_debug_arch,
    kvm_ioapic_state,
    kvm_lapic_state,
    kvm_msr_filter,
    kvm_msr_list,
    kvm_msrs,
    kvm_nested_state,
    kvm_pic_state,
    kvm_pit_state,
    kvm_pit_state2,
    kvm_pmu_event_filter,
    kvm_regs,
    kvm_sregs,
    kvm_sregs2,
    kvm_vcpu_events,
    kvm_x86_mce,
    kvm_xcrs,
    kvm_xsave,
)
from swtdx.uapi.capability import *  # noqa: F403
from swtdx.uapi.ioctl import IO, IOR, IOW, IOWR, Request
from swtdx.uapi.kvm_run import *  # noqa: F403
from swtdx.uapi.layout import s16, s32, u8, u16, u32, u64

KVM_API_VERSION = 12
KVMIO = 0xAE
DEV_KVM = "/dev/kvm"


# --- Memory -----------------------------------------------------------------------------------------------------------


class MemFlag(IntFlag):
    """``flags`` of a memory slot."""

    LOG_DIRTY_PAGES = 1 << 0
    READONLY = 1 << 1
    GUEST_MEMFD = 1 << 2


KVM_MEM_LOG_DIRTY_PAGES = MemFlag.LOG_DIRTY_PAGES
KVM_MEM_READONLY = MemFlag.READONLY
KVM_MEM_GUEST_MEMFD = MemFlag.GUEST_MEMFD


class kvm_userspace_memory_region(ctypes.Structure):
    """Bits 31:16 of ``slot`` are the address space (1 is SMM); sizes in bytes; size 0 deletes the slot."""

    _fields_ = [
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
    ]


class kvm_userspace_memory_region2(ctypes.Structure):
    _fields_ = [
        ("slot", u32),
        ("flags", u32),
        ("guest_phys_addr", u64),
        ("memory_size", u64),
        ("userspace_addr", u64),
        ("guest_memfd_offset", u64),
        ("guest_memfd", u32),
        ("pad1", u32),
        ("pad2", u64 * 14),
    ]


KVM_MEMORY_ATTRIBUTE_PRIVATE = 1 << 3


class kvm_memory_attributes(ctypes.Structure):
    _fields_ = [("address", u64), ("size", u64), ("attributes", u64), ("flags", u64)]


GUEST_MEMFD_FLAG_MMAP, GUEST_MEMFD_FLAG_INIT_SHARED = 1 << 0, 1 << 1


class kvm_create_guest_memfd(ctypes.Structure):
    _fields_ = [("size", u64), ("flags", u64), ("reserved", u64 * 6)]


class kvm_pre_fault_memory(ctypes.Structure):
    """Written back: ``gpa`` and ``size`` say what is left to do."""

    _fields_ = [("gpa", u64), ("size", u64), ("flags", u64), ("padding", u64 * 5)]


class kvm_dirty_log(ctypes.Structure):
    """``dirty_bitmap`` is a pointer: one bit a page, rounded up to 64."""

    _fields_ = [("slot", u32), ("padding1", u32), ("dirty_bitmap", u64)]


class kvm_clear_dirty_log(ctypes.Structure):
    _fields_ = [("slot", u32), ("num_pages", u32), ("first_page", u64), ("dirty_bitmap", u64)]


KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_INITIALLY_SET = 1 << 0, 1 << 1


class kvm_enc_region(ctypes.Structure):
    _fields_ = [("addr", u64), ("size", u64)]


class kvm_coalesced_mmio_zone(ctypes.Structure):
    """``pio`` is called ``pad`` where it does not matter."""

    _fields_ = [("addr", u64), ("size", u32), ("pio", u32)]


class kvm_coalesced_mmio(ctypes.Structure):
    _fields_ = [("phys_addr", u64), ("len", u32), ("pio", u32), ("data", u8 * 8)]


class kvm_coalesced_mmio_ring(ctypes.Structure):
    _fields_ = [("first", u32), ("last", u32), ("coalesced_mmio", kvm_coalesced_mmio * 0)]


class kvm_translation(ctypes.Structure):
    _fields_ = [
        ("linear_address", u64),
        ("physical_address", u64),
        ("valid", u8),
        ("writeable", u8),
        ("usermode", u8),
        ("pad", u8 * 5),
    ]


# --- Interrupts -------------------------------------------------------------------------------------------------------


class kvm_irq_level(ctypes.Structure):
    """``irq`` is the GSI; KVM_IRQ_LINE_STATUS answers in the same place (``status``)."""

    class _line(ctypes.Union):
        _fields_ = [("irq", u32), ("status", s32)]

    _anonymous_ = ("line",)
    _fields_ = [("line", _line), ("level", u32)]


class kvm_irqchip(ctypes.Structure):
    class _chip(ctypes.Union):
        _fields_ = [("dummy", u8 * 512), ("pic", kvm_pic_state), ("ioapic", kvm_ioapic_state)]

    _fields_ = [("chip_id", u32), ("pad", u32), ("chip", _chip)]


KVM_PIT_SPEAKER_DUMMY = 1


class kvm_pit_config(ctypes.Structure):
    _fields_ = [("flags", u32), ("pad", u32 * 15)]


KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI = 1, 2
KVM_IRQ_ROUTING_HV_SINT, KVM_IRQ_ROUTING_XEN_EVTCHN = 4, 5


class kvm_irq_routing_irqchip(ctypes.Structure):
    _fields_ = [("irqchip", u32), ("pin", u32)]


class kvm_irq_routing_msi(ctypes.Structure):
    """With KVM_MSI_VALID_DEVID in the entry's flags ``devid`` counts; it is called ``pad`` otherwise."""

    _fields_ = [("address_lo", u32), ("address_hi", u32), ("data", u32), ("devid", u32)]


class kvm_irq_routing_entry(ctypes.Structure):
    """The union's 8-byte alignment comes from the s390 member, which is kept as ``_align`` for that reason alone."""

    class _route(ctypes.Union):
        _fields_ = [
            ("irqchip", kvm_irq_routing_irqchip),
            ("msi", kvm_irq_routing_msi),
            ("pad", u32 * 8),
            ("_align", u64),
        ]

    _fields_ = [("gsi", u32), ("type", u32), ("flags", u32), ("pad", u32), ("u", _route)]


class kvm_irq_routing(ctypes.Structure):
    _fields_ = [("nr", u32), ("flags", u32), ("entries", kvm_irq_routing_entry * 0)]


KVM_MSI_VALID_DEVID = 1 << 0


class kvm_msi(ctypes.Structure):
    _fields_ = [
        ("address_lo", u32),
        ("address_hi", u32),
        ("data", u32),
        ("flags", u32),
        ("devid", u32),
        ("pad", u8 * 12),
    ]


KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE = 1 << 0, 1 << 1


class kvm_irqfd(ctypes.Structure):
    _fields_ = [("fd", u32), ("gsi", u32), ("flags", u32), ("resamplefd", u32), ("pad", u8 * 16)]


class IoeventfdFlag(IntFlag):
    """``flags`` of an ioeventfd."""

    DATAMATCH = 1 << 0
    PIO = 1 << 1
    DEASSIGN = 1 << 2
    VIRTIO_CCW_NOTIFY = 1 << 3
    FAST_MMIO = 1 << 4


KVM_IOEVENTFD_FLAG_DATAMATCH = IoeventfdFlag.DATAMATCH
KVM_IOEVENTFD_FLAG_PIO = IoeventfdFlag.PIO
KVM_IOEVENTFD_FLAG_DEASSIGN = IoeventfdFlag.DEASSIGN
KVM_IOEVENTFD_VALID_FLAG_MASK = 0x1F


class kvm_ioeventfd(ctypes.Structure):
    """``len`` is 1, 2, 4 or 8, or 0 for any length."""

    _fields_ = [
        ("datamatch", u64),
        ("addr", u64),
        ("len", u32),
        ("fd", s32),
        ("flags", u32),
        ("pad", u8 * 36),
    ]


class kvm_interrupt(ctypes.Structure):
    """``irq`` is the vector."""

    _fields_ = [("irq", u32)]


# --- vCPU state -------------------------------------------------------------------------------------------------------

KVM_MP_STATE_RUNNABLE = 0
KVM_MP_STATE_UNINITIALIZED = 1
KVM_MP_STATE_INIT_RECEIVED = 2
KVM_MP_STATE_HALTED = 3
KVM_MP_STATE_SIPI_RECEIVED = 4
KVM_MP_STATE_AP_RESET_HOLD = 9


class kvm_mp_state(ctypes.Structure):
    _fields_ = [("mp_state", u32)]


class kvm_signal_mask(ctypes.Structure):
    """``len`` is the kernel's sigset size, 8."""

    _fields_ = [("len", u32), ("sigset", u8 * 0)]


class kvm_tpr_access_ctl(ctypes.Structure):
    _fields_ = [("enabled", u32), ("flags", u32), ("reserved", u32 * 8)]


class kvm_vapic_addr(ctypes.Structure):
    _fields_ = [("vapic_addr", u64)]


KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP = 0x1, 0x2


class kvm_guest_debug(ctypes.Structure):
    _fields_ = [("control", u32), ("pad", u32), ("arch", kvm_guest_debug_arch)]


# --- VM-wide ----------------------------------------------------------------------------------------------------------


class kvm_enable_cap(ctypes.Structure):
    _fields_ = [("cap", u32), ("flags", u32), ("args", u64 * 4), ("pad", u8 * 64)]


KVM_REG_ARCH_MASK, KVM_REG_X86 = 0xFF << 56, 0x20 << 56
KVM_REG_SIZE_MASK, KVM_REG_SIZE_U64 = 0xF << 52, 3 << 52
KVM_X86_REG_TYPE_MSR, KVM_X86_REG_TYPE_KVM = 2, 3  # bits 39:32 of a register's identifier
KVM_X2APIC_API_USE_32BIT_IDS, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK = 1 << 0, 1 << 1
KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST, KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST = 1 << 2, 1 << 3
KVM_X86_DISABLE_EXITS_MWAIT, KVM_X86_DISABLE_EXITS_HLT = 1 << 0, 1 << 1
KVM_X86_DISABLE_EXITS_PAUSE, KVM_X86_DISABLE_EXITS_CSTATE = 1 << 2, 1 << 3
KVM_BUS_LOCK_DETECTION_OFF, KVM_BUS_LOCK_DETECTION_EXIT = 1 << 0, 1 << 1
KVM_X86_NOTIFY_VMEXIT_ENABLED, KVM_X86_NOTIFY_VMEXIT_USER = 1 << 0, 1 << 1
KVM_PMU_CAP_DISABLE = 1 << 0
KVM_CLOCK_TSC_STABLE, KVM_CLOCK_REALTIME, KVM_CLOCK_HOST_TSC = 1 << 1, 1 << 2, 1 << 3


class kvm_clock_data(ctypes.Structure):
    """``clock`` and ``realtime`` in nanoseconds; ``flags`` KVM_CLOCK_* say which of the rest counts."""

    _fields_ = [
        ("clock", u64),
        ("flags", u32),
        ("pad0", u32),
        ("realtime", u64),
        ("host_tsc", u64),
        ("pad", u32 * 4),
    ]


class kvm_create_device(ctypes.Structure):
    _fields_ = [("type", u32), ("fd", u32), ("flags", u32)]


KVM_CREATE_DEVICE_TEST = 1
KVM_DEV_TYPE_VFIO = 4


class kvm_device_attr(ctypes.Structure):
    """``addr`` is a pointer to the attribute's value."""

    _fields_ = [("flags", u32), ("group", u32), ("attr", u64), ("addr", u64)]


class kvm_one_reg(ctypes.Structure):
    _fields_ = [("id", u64), ("addr", u64)]


class kvm_reg_list(ctypes.Structure):
    _fields_ = [("n", u64), ("reg", u64 * 0)]


KVM_STATS_TYPE_CUMULATIVE, KVM_STATS_TYPE_INSTANT, KVM_STATS_TYPE_PEAK = 0x0, 0x1, 0x2
KVM_STATS_TYPE_LINEAR_HIST, KVM_STATS_TYPE_LOG_HIST = 0x3, 0x4
KVM_STATS_UNIT_NONE, KVM_STATS_UNIT_BYTES, KVM_STATS_UNIT_SECONDS = 0x0 << 4, 0x1 << 4, 0x2 << 4
KVM_STATS_UNIT_CYCLES, KVM_STATS_UNIT_BOOLEAN = 0x3 << 4, 0x4 << 4
KVM_STATS_BASE_POW10, KVM_STATS_BASE_POW2 = 0x0 << 8, 0x1 << 8


class kvm_stats_header(ctypes.Structure):
    """What one reads first from a KVM_GET_STATS_FD descriptor; offsets in bytes from its beginning."""

    _fields_ = [
        ("flags", u32),
        ("name_size", u32),
        ("num_desc", u32),
        ("id_offset", u32),
        ("desc_offset", u32),
        ("data_offset", u32),
    ]


class kvm_stats_desc(ctypes.Structure):
    """``name`` has ``kvm_stats_header.name_size`` bytes; values are 64 bits, ``size`` of them."""

    _fields_ = [
        ("flags", u32),
        ("exponent", s16),
        ("size", u16),
        ("offset", u32),
        ("bucket_size", u32),
        ("name", ctypes.c_char * 0),
    ]


# --- Requests on /dev/kvm ---------------------------------------------------------------------------------------------

KVM_GET_API_VERSION = IO(KVMIO, 0x00)
KVM_CREATE_VM = IO(KVMIO, 0x01)
KVM_GET_MSR_INDEX_LIST = IOWR(KVMIO, 0x02, kvm_msr_list)
KVM_CHECK_EXTENSION = IO(KVMIO, 0x03)  # also on a VM
KVM_GET_VCPU_MMAP_SIZE = IO(KVMIO, 0x04)
KVM_GET_SUPPORTED_CPUID = IOWR(KVMIO, 0x05, kvm_cpuid2)
KVM_GET_EMULATED_CPUID = IOWR(KVMIO, 0x09, kvm_cpuid2)
KVM_GET_MSR_FEATURE_INDEX_LIST = IOWR(KVMIO, 0x0A, kvm_msr_list)
KVM_X86_GET_MCE_CAP_SUPPORTED = IOR(KVMIO, 0x9D, u64)
KVM_GET_SUPPORTED_HV_CPUID = IOWR(KVMIO, 0xC1, kvm_cpuid2)  # also on a vCPU

# --- Requests on a VM -------------------------------------------------------------------------------------------------

KVM_CREATE_VCPU = IO(KVMIO, 0x41)
KVM_GET_DIRTY_LOG = IOW(KVMIO, 0x42, kvm_dirty_log)
KVM_SET_NR_MMU_PAGES = IO(KVMIO, 0x44)
KVM_GET_NR_MMU_PAGES = IO(KVMIO, 0x45)
KVM_SET_USER_MEMORY_REGION = IOW(KVMIO, 0x46, kvm_userspace_memory_region)
KVM_SET_TSS_ADDR = IO(KVMIO, 0x47)
KVM_SET_IDENTITY_MAP_ADDR = IOW(KVMIO, 0x48, u64)
KVM_SET_USER_MEMORY_REGION2 = IOW(KVMIO, 0x49, kvm_userspace_memory_region2)
KVM_CREATE_IRQCHIP = IO(KVMIO, 0x60)
KVM_IRQ_LINE = IOW(KVMIO, 0x61, kvm_irq_level)
KVM_GET_IRQCHIP = IOWR(KVMIO, 0x62, kvm_irqchip)
KVM_SET_IRQCHIP = IOR(KVMIO, 0x63, kvm_irqchip)
KVM_CREATE_PIT = IO(KVMIO, 0x64)
KVM_GET_PIT = IOWR(KVMIO, 0x65, kvm_pit_state)
KVM_SET_PIT = IOR(KVMIO, 0x66, kvm_pit_state)
KVM_IRQ_LINE_STATUS = IOWR(KVMIO, 0x67, kvm_irq_level)
KVM_REGISTER_COALESCED_MMIO = IOW(KVMIO, 0x67, kvm_coalesced_mmio_zone)
KVM_UNREGISTER_COALESCED_MMIO = IOW(KVMIO, 0x68, kvm_coalesced_mmio_zone)
KVM_SET_GSI_ROUTING = IOW(KVMIO, 0x6A, kvm_irq_routing)
KVM_REINJECT_CONTROL = IO(KVMIO, 0x71)
KVM_IRQFD = IOW(KVMIO, 0x76, kvm_irqfd)
KVM_CREATE_PIT2 = IOW(KVMIO, 0x77, kvm_pit_config)
KVM_SET_BOOT_CPU_ID = IO(KVMIO, 0x78)
KVM_IOEVENTFD = IOW(KVMIO, 0x79, kvm_ioeventfd)
KVM_SET_CLOCK = IOW(KVMIO, 0x7B, kvm_clock_data)
KVM_GET_CLOCK = IOR(KVMIO, 0x7C, kvm_clock_data)
KVM_GET_PIT2 = IOR(KVMIO, 0x9F, kvm_pit_state2)
KVM_SET_PIT2 = IOW(KVMIO, 0xA0, kvm_pit_state2)
KVM_SET_TSC_KHZ = IO(KVMIO, 0xA2)  # also on a vCPU
KVM_GET_TSC_KHZ = IO(KVMIO, 0xA3)  # also on a vCPU
KVM_ENABLE_CAP = IOW(KVMIO, 0xA3, kvm_enable_cap)  # also on a vCPU
KVM_SIGNAL_MSI = IOW(KVMIO, 0xA5, kvm_msi)
KVM_SET_PMU_EVENT_FILTER = IOW(KVMIO, 0xB2, kvm_pmu_event_filter)
KVM_MEMORY_ENCRYPT_OP = IOWR(KVMIO, 0xBA, ctypes.c_ulong)  # also on a vCPU; the pointer leads to a kvm_tdx_cmd
KVM_MEMORY_ENCRYPT_REG_REGION = IOR(KVMIO, 0xBB, kvm_enc_region)
KVM_MEMORY_ENCRYPT_UNREG_REGION = IOR(KVMIO, 0xBC, kvm_enc_region)
KVM_CLEAR_DIRTY_LOG = IOWR(KVMIO, 0xC0, kvm_clear_dirty_log)
KVM_X86_SET_MSR_FILTER = IOW(KVMIO, 0xC6, kvm_msr_filter)
KVM_RESET_DIRTY_RINGS = IO(KVMIO, 0xC7)
KVM_GET_STATS_FD = IO(KVMIO, 0xCE)  # also on a vCPU
KVM_SET_MEMORY_ATTRIBUTES = IOW(KVMIO, 0xD2, kvm_memory_attributes)
KVM_CREATE_GUEST_MEMFD = IOWR(KVMIO, 0xD4, kvm_create_guest_memfd)
KVM_CREATE_DEVICE = IOWR(KVMIO, 0xE0, kvm_create_device)
KVM_SET_DEVICE_ATTR = IOW(KVMIO, 0xE1, kvm_device_attr)  # these three on /dev/kvm, VM, vCPU and device
KVM_GET_DEVICE_ATTR = IOW(KVMIO, 0xE2, kvm_device_attr)
KVM_HAS_DEVICE_ATTR = IOW(KVMIO, 0xE3, kvm_device_attr)

# --- Requests on a vCPU -----------------------------------------------------------------------------------------------

KVM_RUN = IO(KVMIO, 0x80)
KVM_GET_REGS = IOR(KVMIO, 0x81, kvm_regs)
KVM_SET_REGS = IOW(KVMIO, 0x82, kvm_regs)
KVM_GET_SREGS = IOR(KVMIO, 0x83, kvm_sregs)
KVM_SET_SREGS = IOW(KVMIO, 0x84, kvm_sregs)
KVM_TRANSLATE = IOWR(KVMIO, 0x85, kvm_translation)
KVM_INTERRUPT = IOW(KVMIO, 0x86, kvm_interrupt)
KVM_GET_MSRS = IOWR(KVMIO, 0x88, kvm_msrs)  # also on /dev/kvm: feature MSRs
KVM_SET_MSRS = IOW(KVMIO, 0x89, kvm_msrs)
KVM_SET_CPUID = IOW(KVMIO, 0x8A, kvm_cpuid)
KVM_SET_SIGNAL_MASK = IOW(KVMIO, 0x8B, kvm_signal_mask)
KVM_GET_FPU = IOR(KVMIO, 0x8C, kvm_fpu)
KVM_SET_FPU = IOW(KVMIO, 0x8D, kvm_fpu)
KVM_GET_LAPIC = IOR(KVMIO, 0x8E, kvm_lapic_state)
KVM_SET_LAPIC = IOW(KVMIO, 0x8F, kvm_lapic_state)
KVM_SET_CPUID2 = IOW(KVMIO, 0x90, kvm_cpuid2)
KVM_GET_CPUID2 = IOWR(KVMIO, 0x91, kvm_cpuid2)
KVM_TPR_ACCESS_REPORTING = IOWR(KVMIO, 0x92, kvm_tpr_access_ctl)
KVM_SET_VAPIC_ADDR = IOW(KVMIO, 0x93, kvm_vapic_addr)
KVM_GET_MP_STATE = IOR(KVMIO, 0x98, kvm_mp_state)
KVM_SET_MP_STATE = IOW(KVMIO, 0x99, kvm_mp_state)
KVM_NMI = IO(KVMIO, 0x9A)
KVM_SET_GUEST_DEBUG = IOW(KVMIO, 0x9B, kvm_guest_debug)
KVM_X86_SETUP_MCE = IOW(KVMIO, 0x9C, u64)
KVM_X86_SET_MCE = IOW(KVMIO, 0x9E, kvm_x86_mce)
KVM_GET_VCPU_EVENTS = IOR(KVMIO, 0x9F, kvm_vcpu_events)
KVM_SET_VCPU_EVENTS = IOW(KVMIO, 0xA0, kvm_vcpu_events)
KVM_GET_DEBUGREGS = IOR(KVMIO, 0xA1, kvm_debugregs)
KVM_SET_DEBUGREGS = IOW(KVMIO, 0xA2, kvm_debugregs)
KVM_GET_XSAVE = IOR(KVMIO, 0xA4, kvm_xsave)
KVM_SET_XSAVE = IOW(KVMIO, 0xA5, kvm_xsave)
KVM_GET_XCRS = IOR(KVMIO, 0xA6, kvm_xcrs)
KVM_SET_XCRS = IOW(KVMIO, 0xA7, kvm_xcrs)
KVM_GET_ONE_REG = IOW(KVMIO, 0xAB, kvm_one_reg)
KVM_SET_ONE_REG = IOW(KVMIO, 0xAC, kvm_one_reg)
KVM_KVMCLOCK_CTRL = IO(KVMIO, 0xAD)
KVM_GET_REG_LIST = IOWR(KVMIO, 0xB0, kvm_reg_list)
KVM_SMI = IO(KVMIO, 0xB7)
KVM_GET_NESTED_STATE = IOWR(KVMIO, 0xBE, kvm_nested_state)
KVM_SET_NESTED_STATE = IOW(KVMIO, 0xBF, kvm_nested_state)
KVM_GET_SREGS2 = IOR(KVMIO, 0xCC, kvm_sregs2)
KVM_SET_SREGS2 = IOW(KVMIO, 0xCD, kvm_sregs2)
KVM_GET_XSAVE2 = IOR(KVMIO, 0xCF, kvm_xsave)
KVM_PRE_FAULT_MEMORY = IOWR(KVMIO, 0xD5, kvm_pre_fault_memory)

REQUESTS: dict[str, Request] = {name: value for name, value in globals().items() if isinstance(value, Request)}
"""Every request above, by its name in the header."""

_NAMES: dict[int, str] = {int(request): name for name, request in REQUESTS.items()}


def ioctl_name(request: int) -> str:
    """The header's name of a request number, for messages and traces; an unknown one in hexadecimal.

    >>> ioctl_name(0xC008AEBA), ioctl_name(0xAEFF)
    ('KVM_MEMORY_ENCRYPT_OP', 'ioctl 0x0000AEFF')
    """
    return _NAMES.get(request & 0xFFFFFFFF) or f"ioctl 0x{request & 0xFFFFFFFF:08X}"
