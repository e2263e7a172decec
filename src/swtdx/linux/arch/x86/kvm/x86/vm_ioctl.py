# SPDX-License-Identifier: GPL-2.0-or-later
"""ioctls on a VM's fd (kvm_vm_ioctl, kvm_arch_vm_ioctl).

First EIO for a caller in another address space or a dead VM, then the request; an unknown one is ENOTTY. Those of the
interrupt controllers are in `irqchip_ioctl`.
"""

from __future__ import annotations

import ctypes
import errno
import logging
from collections.abc import Callable

from swtdx.linux.arch.x86.kvm.irq_comm import KVM_MAX_IRQ_ROUTES
from swtdx.linux.arch.x86.kvm.x86 import irqchip_ioctl
from swtdx.linux.arch.x86.kvm.x86.capability import check_extension, enable_cap
from swtdx.linux.arch.x86.kvm.x86.msr_filter import msr_filter_from_user
from swtdx.linux.arch.x86.kvm.x86.pmu import kvm_vm_ioctl_set_pmu_event_filter
from swtdx.linux.arch.x86.kvm.x86.vcpu_ioctl import VcpuFile
from swtdx.linux.err import err
from swtdx.linux.files import File
from swtdx.linux.mm import PAGE_SIZE
from swtdx.linux.uaccess import copy_from_user, copy_to_user, current_mm, get_user, struct_from_user
from swtdx.linux.virt.kvm.coalesced_mmio import zone_of
from swtdx.linux.virt.kvm.guest_memfd import GuestMemfd
from swtdx.linux.virt.kvm.kvm_main import KVM_MAX_VCPU_IDS, MAX_TSC_KHZ, IrqchipMode, Kvm
from swtdx.linux.virt.kvm.memslots import KVM_USER_MEM_SLOTS
from swtdx.uapi.kvm import (
    KVM_CLOCK_HOST_TSC,
    KVM_CLOCK_REALTIME,
    KVM_CLOCK_TSC_STABLE,
    KVM_MSI_VALID_DEVID,
    REQUESTS,
    kvm_clear_dirty_log,
    kvm_clock_data,
    kvm_coalesced_mmio_zone,
    kvm_create_device,
    kvm_create_guest_memfd,
    kvm_dirty_log,
    kvm_enable_cap,
    kvm_enc_region,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irq_routing_entry,
    kvm_irqfd,
    kvm_memory_attributes,
    kvm_msi,
    kvm_msr_filter,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
)

log = logging.getLogger(__name__)

MIN_ALLOC_MMU_PAGES = 64


class VmFile(File):
    """An open VM."""

    name = "anon_inode:kvm-vm"
    kvm: Kvm | None = None

    def attach(self, kvm: Kvm) -> None:
        """The VM was made; the file holds its first reference."""
        self.kvm = kvm

    def ioctl(self, request: int, arg: int) -> int:
        self.enter()
        try:
            return self._ioctl(request, arg)
        finally:
            self.leave()

    def _ioctl(self, request: int, arg: int) -> int:
        kvm = self.kvm
        assert kvm is not None
        if kvm.mm is not current_mm():
            raise err(errno.EIO, "the VM belongs to another process")
        if kvm.dead:
            raise err(errno.EIO, "the VM is dead")
        handler = _HANDLERS.get(request)
        # v10: requests that came later must fail as unknown, for user space finds out by trying.
        if handler is None or request in kvm.kernel.release.absent_ioctls:
            raise err(errno.ENOTTY, f"{request:#010x} is not a request for a VM")
        return handler(kvm, arg)

    def bug(self, reason: str) -> None:
        if self.kvm is not None:
            self.kvm.bug(reason)

    def release(self) -> None:
        if self.kvm is not None:
            self.kvm.put()


Handler = Callable[[Kvm, int], int]


def kvm_vm_ioctl_create_vcpu(kvm: Kvm, vcpu_id: int) -> int:
    if vcpu_id >= kvm.kernel.max_vcpu_ids:
        raise err(errno.EINVAL, f"vCPU id {vcpu_id}")
    with kvm.lock:
        if kvm.created_vcpus >= kvm.max_vcpus:
            raise err(errno.EINVAL, f"the VM has {kvm.max_vcpus} vCPUs already")
        if kvm.kernel.release.vcpu_id_is_looked_up_first:
            VcpuFile.refuse_second(kvm, vcpu_id)
        kvm.max_vcpu_ids = kvm.max_vcpu_ids or KVM_MAX_VCPU_IDS  # settled by the first try
        if vcpu_id >= kvm.max_vcpu_ids:
            raise err(errno.EINVAL, f"vCPU id {vcpu_id}")
        kvm.ops.vcpu_precreate(kvm)
        return VcpuFile.create(kvm, vcpu_id)


def _set_user_memory_region(kvm: Kvm, arg: int) -> int:
    old = struct_from_user(kvm_userspace_memory_region, arg)
    if old.flags & ~0x3:
        raise err(errno.EINVAL, f"flags {old.flags:#x}")
    region = kvm_userspace_memory_region2()
    ctypes.memmove(ctypes.addressof(region), ctypes.addressof(old), ctypes.sizeof(old))
    kvm.kvm_set_memory_region(region)
    return 0


def _set_user_memory_region2(kvm: Kvm, arg: int) -> int:
    kvm.kvm_set_memory_region(struct_from_user(kvm_userspace_memory_region2, arg))
    return 0


def _set_memory_attributes(kvm: Kvm, arg: int) -> int:
    kvm.kvm_vm_ioctl_set_mem_attributes(struct_from_user(kvm_memory_attributes, arg))
    return 0


def kvm_gmem_create(kvm: Kvm, arg: int) -> int:
    """KVM_CREATE_GUEST_MEMFD. Raises OSError: EFAULT, EINVAL, EMFILE."""
    request = struct_from_user(kvm_create_guest_memfd, arg)
    if request.flags & ~kvm.guest_memfd_flags():
        raise err(errno.EINVAL, f"flags {request.flags:#x}")
    if not request.size or request.size >> 63 or request.size % PAGE_SIZE:
        raise err(errno.EINVAL, f"size {request.size:#x}")
    file = GuestMemfd(kvm, request.size, request.flags)
    try:
        return kvm.kernel.files.install(file)
    except OSError:
        kvm.put()
        raise


def kvm_vm_ioctl_get_dirty_log(kvm: Kvm, arg: int) -> int:
    request = struct_from_user(kvm_dirty_log, arg)
    with kvm.slots_lock:
        slot = kvm.memslots.by_id.get(request.slot & 0xFFFF)
        if request.slot >> 16 or request.slot & 0xFFFF >= KVM_USER_MEM_SLOTS:
            raise err(errno.EINVAL, f"slot {request.slot:#x}")
        if slot is None or slot.dirty_bitmap is None:
            raise err(errno.ENOENT, f"slot {request.slot} keeps no dirty log")
        if kvm.manual_dirty_log_protect:
            copy_to_user(request.dirty_bitmap, bytes(slot.dirty_bitmap))  # KVM_CLEAR_DIRTY_LOG starts the next round
            return 0
        # A page that is mapped writable is in the bitmap taken here, so a write before the zap belongs to this round.
        bitmap, slot.dirty_bitmap = slot.dirty_bitmap, bytearray(len(slot.dirty_bitmap))
        kvm.mmu.zap_direct(slot.base_gfn, slot.end_gfn)
    copy_to_user(request.dirty_bitmap, bytes(bitmap))
    return 0


def kvm_vm_ioctl_clear_dirty_log(kvm: Kvm, arg: int) -> int:
    request = struct_from_user(kvm_clear_dirty_log, arg)
    first, count = request.first_page, request.num_pages
    with kvm.slots_lock:
        if request.slot >> 16 or request.slot & 0xFFFF >= KVM_USER_MEM_SLOTS:
            raise err(errno.EINVAL, f"slot {request.slot:#x}")
        if first % 64:
            raise err(errno.EINVAL, f"first_page {first} is not a multiple of 64")
        slot = kvm.memslots.by_id.get(request.slot & 0xFFFF)
        if slot is None or slot.dirty_bitmap is None:
            raise err(errno.ENOENT, f"slot {request.slot} keeps no dirty log")
        if first > slot.npages or count > slot.npages - first or (count < slot.npages - first and count % 64):
            raise err(errno.EINVAL, f"pages {first} to {first + count} of {slot.npages}")
        mask = copy_from_user(request.dirty_bitmap, (count + 63) // 64 * 8)
        with kvm.mmu.lock:  # a fault on another vCPU sets bits of the same bytes
            for number, bits in enumerate(mask, first // 8):
                slot.dirty_bitmap[number] &= ~bits & 0xFF
        kvm.mmu.zap_direct(slot.base_gfn + first, slot.base_gfn + first + count)
    return 0


def kvm_vm_ioctl_set_nr_mmu_pages(kvm: Kvm, arg: int) -> int:
    if arg < MIN_ALLOC_MMU_PAGES:
        raise err(errno.EINVAL, f"{arg} pages of page tables; at least {MIN_ALLOC_MMU_PAGES}")
    return 0  # a limit of the shadow MMU; the TDP MMU has none


def kvm_ioctl_create_device(kvm: Kvm, arg: int) -> int:
    kind = struct_from_user(kvm_create_device, arg).type
    raise err(errno.ENODEV, f"no device of type {kind}: x86 has VFIO's alone, and that is not built in")


def kvm_vm_ioctl_reset_dirty_pages(kvm: Kvm, arg: int) -> int:
    raise err(errno.EINVAL, "the VM has no dirty rings")


def kvm_vm_ioctl_enable_cap(kvm: Kvm, arg: int) -> int:
    return enable_cap(kvm, struct_from_user(kvm_enable_cap, arg))


def kvm_vm_ioctl_irq_line(kvm: Kvm, arg: int) -> int:
    _set_line(kvm, arg)
    return 0


def _irq_line_status(kvm: Kvm, arg: int) -> int:
    """As KVM_IRQ_LINE; ``status`` says how many vCPUs the interrupt reached, -1 if the GSI leads nowhere."""
    request = _set_line(kvm, arg)
    copy_to_user(arg, request)
    return 0


def _set_line(kvm: Kvm, arg: int) -> kvm_irq_level:
    request = struct_from_user(kvm_irq_level, arg)
    if kvm.irqchip_mode is IrqchipMode.NONE:
        raise err(errno.ENXIO, "no irqchip in the kernel")
    request.line.status = kvm.irq_routing.set_irq(request.line.irq, request.level)
    return request


def _set_gsi_routing(kvm: Kvm, arg: int) -> int:
    header = copy_from_user(arg, 8)
    count, flags = int.from_bytes(header[:4], "little"), int.from_bytes(header[4:], "little")
    if kvm.irqchip_mode is IrqchipMode.NONE:
        raise err(errno.EINVAL, "no irqchip in the kernel")
    if count > KVM_MAX_IRQ_ROUTES:
        raise err(errno.EINVAL, f"{count} routes")
    if flags:
        raise err(errno.EINVAL, f"flags {flags:#x}")
    size = ctypes.sizeof(kvm_irq_routing_entry)
    data = copy_from_user(arg + 8, size * count)
    entries = [kvm_irq_routing_entry.from_buffer_copy(data, size * number) for number in range(count)]
    kvm.irq_routing.set_routes(entries)
    return 0


def kvm_send_userspace_msi(kvm: Kvm, arg: int) -> int:
    message = struct_from_user(kvm_msi, arg)
    if kvm.irqchip_mode is IrqchipMode.NONE or message.flags & ~KVM_MSI_VALID_DEVID:
        raise err(errno.EINVAL, "no irqchip in the kernel, or flags")
    if kvm.x2apic_format and message.address_hi & 0xFF:
        raise err(errno.EINVAL, "the low byte of address_hi must be 0 with 32-bit APIC ids")
    delivered = kvm.irq_routing.send_msi(message.address_lo, message.address_hi, message.data)
    if delivered < 0:
        raise err(errno.EPERM, "no local APIC accepts the message")  # the bare -1 that the kernel returns
    return delivered


def _irqfd(kvm: Kvm, arg: int) -> int:
    request = struct_from_user(kvm_irqfd, arg)
    with kvm.lock:
        kvm.irq_routing.irqfds.irqfd(request)
    return 0


def _ioeventfd(kvm: Kvm, arg: int) -> int:
    request = struct_from_user(kvm_ioeventfd, arg)
    # upstream: slots_lock also guards changes of the I/O buses, which vCPUs read without a lock.
    with kvm.slots_lock:
        kvm.buses.ioeventfd(request)
    return 0


def kvm_vm_ioctl_register_coalesced_mmio(kvm: Kvm, arg: int) -> int:
    zone = zone_of(struct_from_user(kvm_coalesced_mmio_zone, arg))
    with kvm.slots_lock:
        kvm.buses.register_zone(zone)
    return 0


def kvm_vm_ioctl_unregister_coalesced_mmio(kvm: Kvm, arg: int) -> int:
    zone = zone_of(struct_from_user(kvm_coalesced_mmio_zone, arg))
    with kvm.slots_lock:
        kvm.buses.unregister_zone(zone)
    return 0


def kvm_vm_ioctl_set_tss_addr(kvm: Kvm, arg: int) -> int:
    if arg > (1 << 32) - 3 * PAGE_SIZE:
        raise err(errno.EINVAL, f"address {arg:#x}")
    kvm.ops.set_tss_addr(kvm, arg)
    return 0


def kvm_vm_ioctl_set_identity_map_addr(kvm: Kvm, arg: int) -> int:
    with kvm.lock:
        if kvm.created_vcpus:
            raise err(errno.EINVAL, "vCPUs exist")
        kvm.ops.set_identity_map_addr(kvm, get_user(arg, 8))
    return 0


def _set_boot_cpu_id(kvm: Kvm, arg: int) -> int:
    with kvm.lock:
        if kvm.created_vcpus:
            raise err(errno.EBUSY, "vCPUs exist")
        if arg > (kvm.max_vcpu_ids or KVM_MAX_VCPU_IDS):
            raise err(errno.EINVAL, f"vCPU id {arg}")
        kvm.bsp_vcpu_id = arg
    return 0


def _set_tsc_khz(kvm: Kvm, arg: int) -> int:
    khz = arg & 0xFFFFFFFF
    if khz >= MAX_TSC_KHZ:
        raise err(errno.EINVAL, f"{khz} kHz")
    with kvm.lock:
        if kvm.created_vcpus and kvm.kernel.release.fixes_tsc_frequency:
            raise err(errno.EINVAL, "vCPUs exist, whose TSC has its frequency")
        kvm.default_tsc_khz = khz or kvm.processor.platform.tsc_hz // 1000
    return 0


def kvm_vm_ioctl_get_clock(kvm: Kvm, arg: int) -> int:
    copy_to_user(arg, kvm.clock.read())
    return 0


def kvm_vm_ioctl_set_clock(kvm: Kvm, arg: int) -> int:
    clock = struct_from_user(kvm_clock_data, arg)
    if clock.flags & ~(KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC):
        raise err(errno.EINVAL, f"flags {clock.flags:#x}")
    kvm.clock.set(clock)
    return 0


def kvm_vm_ioctl_get_stats_fd(kvm: Kvm, arg: int) -> int:
    with kvm.lock:
        return kvm.stat.open(kvm.kernel.files, "anon_inode:kvm-vm-stats", kvm.get, kvm.put)


def _mem_enc_op(kvm: Kvm, arg: int) -> int:
    return kvm.ops.mem_enc_ioctl(kvm, arg)


def _mem_enc_region(kvm: Kvm, arg: int) -> int:
    struct_from_user(kvm_enc_region, arg)
    raise err(errno.ENOTTY, "Intel has no encrypted regions to register")


def kvm_vm_ioctl_set_msr_filter(kvm: Kvm, arg: int) -> int:
    kvm.msr_filter = msr_filter_from_user(struct_from_user(kvm_msr_filter, arg))
    for vcpu in list(kvm.vcpus):  # KVM_REQ_MSR_FILTER_CHANGED
        kvm.ops.msr_filter_changed(vcpu)
    return 0


_HANDLERS: dict[int, Handler] = {
    int(REQUESTS[name]): handler
    for name, handler in {
        "KVM_CREATE_VCPU": kvm_vm_ioctl_create_vcpu,
        "KVM_SET_USER_MEMORY_REGION": _set_user_memory_region,
        "KVM_SET_USER_MEMORY_REGION2": _set_user_memory_region2,
        "KVM_SET_MEMORY_ATTRIBUTES": _set_memory_attributes,
        "KVM_CREATE_GUEST_MEMFD": kvm_gmem_create,
        "KVM_GET_DIRTY_LOG": kvm_vm_ioctl_get_dirty_log,
        "KVM_CLEAR_DIRTY_LOG": kvm_vm_ioctl_clear_dirty_log,
        "KVM_RESET_DIRTY_RINGS": kvm_vm_ioctl_reset_dirty_pages,
        "KVM_SET_NR_MMU_PAGES": kvm_vm_ioctl_set_nr_mmu_pages,
        "KVM_CREATE_DEVICE": kvm_ioctl_create_device,
        "KVM_ENABLE_CAP": kvm_vm_ioctl_enable_cap,
        "KVM_CHECK_EXTENSION": lambda kvm, arg: check_extension(kvm.kernel, kvm, arg),
        **irqchip_ioctl.HANDLERS,
        "KVM_IRQ_LINE": kvm_vm_ioctl_irq_line,
        "KVM_IRQ_LINE_STATUS": _irq_line_status,
        "KVM_SET_GSI_ROUTING": _set_gsi_routing,
        "KVM_SIGNAL_MSI": kvm_send_userspace_msi,
        "KVM_IRQFD": _irqfd,
        "KVM_IOEVENTFD": _ioeventfd,
        "KVM_REGISTER_COALESCED_MMIO": kvm_vm_ioctl_register_coalesced_mmio,
        "KVM_UNREGISTER_COALESCED_MMIO": kvm_vm_ioctl_unregister_coalesced_mmio,
        "KVM_SET_TSS_ADDR": kvm_vm_ioctl_set_tss_addr,
        "KVM_SET_IDENTITY_MAP_ADDR": kvm_vm_ioctl_set_identity_map_addr,
        "KVM_SET_BOOT_CPU_ID": _set_boot_cpu_id,
        "KVM_SET_TSC_KHZ": _set_tsc_khz,
        "KVM_GET_TSC_KHZ": lambda kvm, arg: kvm.default_tsc_khz,
        "KVM_GET_STATS_FD": kvm_vm_ioctl_get_stats_fd,
        "KVM_GET_CLOCK": kvm_vm_ioctl_get_clock,
        "KVM_SET_CLOCK": kvm_vm_ioctl_set_clock,
        "KVM_MEMORY_ENCRYPT_OP": _mem_enc_op,
        "KVM_MEMORY_ENCRYPT_REG_REGION": _mem_enc_region,
        "KVM_MEMORY_ENCRYPT_UNREG_REGION": _mem_enc_region,
        "KVM_X86_SET_MSR_FILTER": kvm_vm_ioctl_set_msr_filter,
        "KVM_SET_PMU_EVENT_FILTER": kvm_vm_ioctl_set_pmu_event_filter,
    }.items()
}
