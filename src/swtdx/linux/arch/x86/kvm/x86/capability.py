# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CHECK_EXTENSION and KVM_ENABLE_CAP (kvm_vm_ioctl_check_extension, kvm_vm_ioctl_enable_cap).

On /dev/kvm a capability is asked without a VM (``kvm`` is None); several answer differently for a TD. What is not in
the table answers 0. SMM is not built in.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from swtdx.linux.arch.x86.kvm.cpuid import F1_ECX_MONITOR, F6_EAX_ARAT
from swtdx.linux.arch.x86.kvm.irq_comm import KVM_MAX_IRQ_ROUTES
from swtdx.linux.arch.x86.kvm.vmx.nested import NESTED_STATE_SIZE
from swtdx.linux.arch.x86.kvm.x86.guest_debug import KVM_GUESTDBG_VALID_MASK
from swtdx.linux.arch.x86.kvm.x86.msrs import KVM_MAX_MCE_BANKS
from swtdx.linux.err import err
from swtdx.linux.virt.kvm.coalesced_mmio import KVM_COALESCED_MMIO_PAGE_OFFSET
from swtdx.linux.virt.kvm.kvm_main import KVM_MAX_VCPU_IDS, KVM_MAX_VCPUS, IrqchipMode, Kvm, SuppressEoiBroadcast
from swtdx.linux.virt.kvm.memslots import KVM_USER_MEM_SLOTS
from swtdx.uapi.kvm import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_BUS_LOCK_DETECTION_EXIT,
    KVM_BUS_LOCK_DETECTION_OFF,
    KVM_CLOCK_HOST_TSC,
    KVM_CLOCK_REALTIME,
    KVM_CLOCK_TSC_STABLE,
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MSR_EXIT_REASON_VALID_MASK,
    KVM_SYNC_X86_VALID_FIELDS,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK,
    KVM_X2APIC_API_USE_32BIT_IDS,
    KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST,
    KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST,
    KVM_X86_DISABLE_EXITS_CSTATE,
    KVM_X86_DISABLE_EXITS_HLT,
    KVM_X86_DISABLE_EXITS_MWAIT,
    KVM_X86_DISABLE_EXITS_PAUSE,
    Cap,
    kvm_enable_cap,
)

if TYPE_CHECKING:
    from swtdx.cpu.processor import Processor
    from swtdx.linux.kernel import EmulatedKernel

XSAVE_SIZE = 4096
KVM_DIRTY_LOG_MANUAL_CAPS = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET
_BUS_LOCK_MODES = KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT
X2APIC_API_VALID = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
_SUPPRESS_EOI = KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST | KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST
_ALWAYS_1 = (
    Cap.IRQCHIP, Cap.HLT, Cap.USER_MEMORY, Cap.SET_TSS_ADDR, Cap.EXT_CPUID, Cap.NOP_IO_DELAY, Cap.MP_STATE,
    Cap.SYNC_MMU, Cap.DESTROY_MEMORY_REGION_WORKS, Cap.USER_NMI, Cap.JOIN_MEMORY_REGIONS_WORKS, Cap.IRQFD,
    Cap.SET_BOOT_CPU_ID, Cap.PIT, Cap.PIT2, Cap.PIT_STATE2, Cap.REINJECT_CONTROL, Cap.IRQ_INJECT_STATUS,
    Cap.IOEVENTFD, Cap.SET_IDENTITY_MAP_ADDR, Cap.INTERNAL_ERROR_DATA, Cap.VCPU_EVENTS,
    Cap.DEBUGREGS, Cap.X86_ROBUST_SINGLESTEP, Cap.ENABLE_CAP, Cap.XSAVE, Cap.XCRS, Cap.TSC_CONTROL, Cap.GET_TSC_KHZ,
    Cap.TSC_DEADLINE_TIMER, Cap.KVMCLOCK_CTRL, Cap.SIGNAL_MSI, Cap.IOEVENTFD_NO_LENGTH, Cap.CHECK_EXTENSION_VM,
    Cap.ENABLE_CAP_VM, Cap.SPLIT_IRQCHIP, Cap.IOEVENTFD_ANY_LENGTH, Cap.IMMEDIATE_EXIT, Cap.GET_MSR_FEATURES,
    Cap.MSR_PLATFORM_INFO, Cap.EXCEPTION_PAYLOAD, Cap.X86_MSR_FILTER, Cap.SYS_ATTRIBUTES, Cap.VM_TSC_CONTROL,
    Cap.SYSTEM_EVENT_DATA, Cap.USER_MEMORY2, Cap.MEMORY_FAULT_INFO, Cap.PRE_FAULT_MEMORY, Cap.VCPU_ATTRIBUTES,
    Cap.CLOCKSOURCE, Cap.SREGS2, Cap.SET_GUEST_DEBUG, Cap.DISABLE_QUIRKS, Cap.X86_USER_SPACE_MSR,
    Cap.BINARY_STATS_FD, Cap.IRQFD_RESAMPLE, Cap.HALT_POLL, Cap.X86_TRIPLE_FAULT_EVENT,
    Cap.EXIT_ON_EMULATION_FAILURE, Cap.ENFORCE_PV_FEATURE_CPUID, Cap.EXT_EMUL_CPUID, Cap.PCI_SEGMENT, Cap.VAPIC,
    Cap.IOAPIC_POLARITY_IGNORED, Cap.MMU_SHADOW_CACHE_CONTROL, Cap.LAST_CPU, Cap.DEVICE_CTRL, Cap.X86_GUEST_MODE,
    Cap.ASYNC_PF, Cap.ASYNC_PF_INT, Cap.PMU_EVENT_FILTER, Cap.PMU_EVENT_MASKED_EVENTS,
)  # fmt: skip


def check_extension(kernel: EmulatedKernel, kvm: Kvm | None, cap: int) -> int:
    """Return the answer for capability number ``cap``; 0 if it is unknown."""
    dialect = kernel.dialect
    is_td = kvm is not None and kvm.is_td
    if cap == dialect.cap_vm_types:
        return kernel.supported_vm_types
    if cap in kernel.release.absent_capabilities:
        return 0
    value = kernel.capabilities.get(cap)
    if value is None:
        return 0
    if cap in _ZERO_FOR_TD and is_td:
        return 0
    if cap == Cap.MAX_VCPUS and kvm is not None:
        return kvm.max_vcpus
    if cap == Cap.MEMORY_ATTRIBUTES and kvm is not None:
        return kvm.supported_attributes()
    if cap == Cap.GUEST_MEMFD and kvm is not None:
        return int(kvm.has_attributes or kernel.release.guest_memfd_for_all)
    if cap == Cap.GUEST_MEMFD_FLAGS and kvm is not None:
        return kvm.guest_memfd_flags()
    if cap == Cap.X86_APIC_BUS_CYCLES_NS and kvm is not None and kernel.release.shows_apic_bus_cycles:
        return kvm.apic_bus_cycle_ns
    if cap == Cap.X2APIC_API and kvm is not None and kvm.irqchip_mode is not IrqchipMode.SPLIT:
        return value & ~KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST
    return value


_ZERO_FOR_TD = frozenset([Cap.READONLY_MEM, Cap.SYNC_REGS])


def system_capabilities(kernel: EmulatedKernel) -> dict[int, int]:
    """Number to answer, for /dev/kvm."""
    table: dict[int, int] = dict.fromkeys(map(int, _ALWAYS_1), 1)
    answers: dict[Cap, int] = {
        Cap.COALESCED_MMIO: KVM_COALESCED_MMIO_PAGE_OFFSET,
        Cap.COALESCED_PIO: 1,
        Cap.NR_VCPUS: kernel.cpus.count,
        Cap.MAX_VCPUS: KVM_MAX_VCPUS,
        Cap.MAX_VCPU_ID: KVM_MAX_VCPU_IDS,
        Cap.NR_MEMSLOTS: KVM_USER_MEM_SLOTS,
        Cap.IRQ_ROUTING: KVM_MAX_IRQ_ROUTES,
        Cap.MCE: KVM_MAX_MCE_BANKS,
        Cap.ADJUST_CLOCK: KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC,
        Cap.READONLY_MEM: 1,
        Cap.SYNC_REGS: KVM_SYNC_X86_VALID_FIELDS,
        Cap.MULTI_ADDRESS_SPACE: 1,
        Cap.X2APIC_API: x2apic_api_flags(kernel),
        Cap.ONE_REG: 1,
        Cap.EXIT_HYPERCALL: 1 << KVM_HC_MAP_GPA_RANGE,
        Cap.SET_GUEST_DEBUG2: KVM_GUESTDBG_VALID_MASK,
        Cap.DISABLE_QUIRKS2: kernel.release.quirks,
        Cap.XSAVE2: XSAVE_SIZE,
        Cap.NESTED_STATE: NESTED_STATE_SIZE,
        Cap.MANUAL_DIRTY_LOG_PROTECT2: KVM_DIRTY_LOG_MANUAL_CAPS,
        Cap.MEMORY_ATTRIBUTES: KVM_MEMORY_ATTRIBUTE_PRIVATE,
        Cap.GUEST_MEMFD: 1,
        Cap.GUEST_MEMFD_FLAGS: GUEST_MEMFD_FLAG_MMAP | GUEST_MEMFD_FLAG_INIT_SHARED,
        Cap.X86_APIC_BUS_CYCLES_NS: 1,
        Cap.X86_BUS_LOCK_EXIT: _BUS_LOCK_MODES,
        Cap.X86_DISABLE_EXITS: allowed_disable_exits(kernel.processor),
    }
    table.update({int(cap): value for cap, value in answers.items()})
    return table


def x2apic_api_flags(kernel: EmulatedKernel) -> int:
    """KVM_X2APIC_API_VALID_FLAGS."""
    return X2APIC_API_VALID | (_SUPPRESS_EOI if kernel.release.directed_eoi_is_chosen else 0)


def allowed_disable_exits(processor: Processor) -> int:
    """kvm_get_allowed_disable_exits: MWAIT only where the processor has it, and a timer that C-states do not stop."""
    allowed = KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_CSTATE
    if processor.cpuid(1)[2] & F1_ECX_MONITOR and processor.cpuid(6)[0] & F6_EAX_ARAT:
        allowed |= KVM_X86_DISABLE_EXITS_MWAIT
    return allowed


def enable_cap(kvm: Kvm, request: kvm_enable_cap) -> int:
    """KVM_ENABLE_CAP on a VM. Raises OSError(EINVAL, EEXIST, ENXIO)."""
    if request.flags:
        raise err(errno.EINVAL, "flags must be 0")
    function = _ENABLE.get(request.cap)
    if function is None or request.cap in kvm.kernel.release.absent_capabilities:
        raise err(errno.EINVAL, f"capability {request.cap} cannot be enabled on a VM")
    # upstream: kvm->lock. A vCPU takes over what a capability sets when it is created, so none is created meanwhile.
    with kvm.lock:
        function(kvm, request.args)
    return 0


def _split_irqchip(kvm: Kvm, args: Any) -> None:
    if args[0] > KVM_MAX_IRQ_ROUTES:
        raise err(errno.EINVAL, f"{args[0]} reserved GSIs")
    if kvm.irqchip_mode is not IrqchipMode.NONE:
        raise err(errno.EEXIST, "an irqchip exists")
    if kvm.created_vcpus:
        raise err(errno.EEXIST, "vCPUs exist")
    kvm.irqchip_mode = IrqchipMode.SPLIT
    kvm.nr_reserved_ioapic_pins = args[0]


def _x2apic_api(kvm: Kvm, args: Any) -> None:
    flags = args[0]
    if flags & ~x2apic_api_flags(kvm.kernel) or flags & _SUPPRESS_EOI == _SUPPRESS_EOI:
        raise err(errno.EINVAL, f"x2APIC API flags {flags:#x}")
    if flags & KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST and kvm.irqchip_mode is not IrqchipMode.SPLIT:
        raise err(errno.EINVAL, "the kernel's own I/O APIC has no EOI register, and needs the broadcasts")
    if args[0] & KVM_X2APIC_API_USE_32BIT_IDS:
        kvm.x2apic_format = True
    if args[0] & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK:
        kvm.x2apic_broadcast_quirk_disabled = True
    if flags & KVM_X2APIC_ENABLE_SUPPRESS_EOI_BROADCAST:
        kvm.suppress_eoi_broadcast = SuppressEoiBroadcast.ENABLED
    if flags & KVM_X2APIC_DISABLE_SUPPRESS_EOI_BROADCAST:
        kvm.suppress_eoi_broadcast = SuppressEoiBroadcast.DISABLED


def _exit_hypercall(kvm: Kvm, args: Any) -> None:
    if args[0] & ~(1 << KVM_HC_MAP_GPA_RANGE):
        raise err(errno.EINVAL, f"hypercalls {args[0]:#x} cannot exit")
    kvm.hypercall_exit_enabled = args[0]


def _apic_bus_cycles_ns(kvm: Kvm, args: Any) -> None:
    if not args[0] or args[0] * 128 * 0xFFFFFFFF >= 1 << 64:
        raise err(errno.EINVAL, f"{args[0]} ns")
    if kvm.irqchip_mode is IrqchipMode.NONE:
        raise err(errno.ENXIO, "no irqchip in the kernel")
    if kvm.created_vcpus:
        raise err(errno.EINVAL, "vCPUs exist")
    kvm.apic_bus_cycle_ns = args[0]


def _user_space_msr(kvm: Kvm, args: Any) -> None:
    if args[0] & ~KVM_MSR_EXIT_REASON_VALID_MASK:
        raise err(errno.EINVAL, f"reasons {args[0]:#x}")
    kvm.user_space_msr_mask = args[0]


def _disable_quirks(kvm: Kvm, args: Any) -> None:
    kvm.disabled_quirks |= args[0] & kvm.kernel.release.quirks


def _disable_quirks2(kvm: Kvm, args: Any) -> None:
    if args[0] & ~kvm.kernel.release.quirks:
        raise err(errno.EINVAL, f"quirks {args[0]:#x}")
    kvm.disabled_quirks |= args[0]


def _msr_platform_info(kvm: Kvm, args: Any) -> None:
    kvm.guest_can_read_platform_info = bool(args[0])


def _exception_payload(kvm: Kvm, args: Any) -> None:
    kvm.exception_payload_enabled = bool(args[0])


def _manual_dirty_log_protect2(kvm: Kvm, args: Any) -> None:
    protect = args[0] & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
    if args[0] & ~(KVM_DIRTY_LOG_MANUAL_CAPS if protect else KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE):
        raise err(errno.EINVAL, f"dirty log modes {args[0]:#x}")
    kvm.manual_dirty_log_protect = bool(protect)
    kvm.dirty_log_initially_set = bool(args[0] & KVM_DIRTY_LOG_INITIALLY_SET)


def _disable_exits(kvm: Kvm, args: Any) -> None:
    """Of a TD only the CPUID of its vCPUs changes: the TDX module decides what exits. PAUSE exits nowhere."""
    if args[0] & ~kvm.kernel.capabilities[int(Cap.X86_DISABLE_EXITS)]:
        raise err(errno.EINVAL, f"exits {args[0]:#x} cannot be disabled")
    if kvm.created_vcpus:
        raise err(errno.EINVAL, "vCPUs exist")
    kvm.disabled_exits |= args[0]


def _max_vcpu_id(kvm: Kvm, args: Any) -> None:
    """Once, unless it is what it is; the first vCPU settles it, too."""
    wanted = args[0]
    if wanted > KVM_MAX_VCPU_IDS or kvm.bsp_vcpu_id > wanted:
        raise err(errno.EINVAL, f"{wanted} vCPU ids")
    if wanted != kvm.max_vcpu_ids:
        if kvm.max_vcpu_ids:
            raise err(errno.EINVAL, "the number of vCPU ids is settled")
        kvm.max_vcpu_ids = wanted


def _halt_poll(kvm: Kvm, args: Any) -> None:
    """How long at most a vCPU may poll before it sleeps: none does."""
    if args[0] >> 32:
        raise err(errno.EINVAL, f"{args[0]} ns")


def _triple_fault_event(kvm: Kvm, args: Any) -> None:
    kvm.triple_fault_event = bool(args[0])


def _exit_on_emulation_failure(kvm: Kvm, args: Any) -> None:
    if args[0] & ~1:
        raise err(errno.EINVAL, f"{args[0]:#x}")
    kvm.exit_on_emulation_error = bool(args[0])


def _bus_lock_exit(kvm: Kvm, args: Any) -> None:
    """vCPUs that are created later exit for each bus lock. Nothing switches that off again."""
    if args[0] & ~_BUS_LOCK_MODES or args[0] == _BUS_LOCK_MODES:
        raise err(errno.EINVAL, f"bus lock detection {args[0]:#x}")
    if args[0] & KVM_BUS_LOCK_DETECTION_EXIT:
        kvm.bus_lock_detection = True


def _max_vcpus(kvm: Kvm, args: Any) -> None:
    """v10-era trees let the number of vCPUs be enabled; kept for that dialect only."""
    if not kvm.kernel.release.max_vcpus_can_be_enabled:
        raise err(errno.EINVAL, "KVM_CAP_MAX_VCPUS cannot be enabled")
    if not args[0]:
        raise err(errno.EINVAL, "0 vCPUs")
    if args[0] > kvm.max_vcpus:
        raise err(errno.E2BIG, f"{args[0]} vCPUs")
    if kvm.created_vcpus:
        raise err(errno.EBUSY, "vCPUs exist")
    kvm.max_vcpus = args[0]


_ENABLE = {
    int(Cap.SPLIT_IRQCHIP): _split_irqchip,
    int(Cap.X2APIC_API): _x2apic_api,
    int(Cap.EXIT_HYPERCALL): _exit_hypercall,
    int(Cap.X86_APIC_BUS_CYCLES_NS): _apic_bus_cycles_ns,
    int(Cap.X86_USER_SPACE_MSR): _user_space_msr,
    int(Cap.DISABLE_QUIRKS): _disable_quirks,
    int(Cap.DISABLE_QUIRKS2): _disable_quirks2,
    int(Cap.EXCEPTION_PAYLOAD): _exception_payload,
    int(Cap.MSR_PLATFORM_INFO): _msr_platform_info,
    int(Cap.HALT_POLL): _halt_poll,
    int(Cap.X86_TRIPLE_FAULT_EVENT): _triple_fault_event,
    int(Cap.EXIT_ON_EMULATION_FAILURE): _exit_on_emulation_failure,
    int(Cap.X86_BUS_LOCK_EXIT): _bus_lock_exit,
    int(Cap.X86_DISABLE_EXITS): _disable_exits,
    int(Cap.MANUAL_DIRTY_LOG_PROTECT2): _manual_dirty_log_protect2,
    int(Cap.MAX_VCPU_ID): _max_vcpu_id,
    int(Cap.MAX_VCPUS): _max_vcpus,
}
