# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual machine (struct kvm): its memory, its vCPUs, its life (virt/kvm/kvm_main.c, arch/x86/kvm/x86.c).

Locks, outermost first, as in Documentation/virt/kvm/locking.rst: kvm.lock, vcpu.mutex, slots_lock, mmu.lock. The VM
lives until its fd, every vCPU fd and every guest_memfd is closed. `bug` is KVM_BUG_ON: something happened that should
not have; the VM is dead, every later ioctl is EIO, running vCPUs leave.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import threading
import time
import weakref
from collections.abc import Iterator
from enum import Enum
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm import i8259
from swtdx.linux.arch.x86.kvm.i8254 import Pit
from swtdx.linux.arch.x86.kvm.i8259 import Pic
from swtdx.linux.arch.x86.kvm.ioapic import IoApic
from swtdx.linux.arch.x86.kvm.irq_comm import IrqRouting
from swtdx.linux.arch.x86.kvm.mmu.tdp_mmu import TdpMmu
from swtdx.linux.arch.x86.kvm.x86.msr_filter import MsrFilter
from swtdx.linux.arch.x86.kvm.x86.pvclock import KvmClock
from swtdx.linux.arch.x86.kvm.x86.tsc import TscGeneration
from swtdx.linux.err import err
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.linux.uaccess import copy_from_user, copy_to_user, current_mm
from swtdx.linux.virt.kvm.binary_stats import REMOTE_TLB_FLUSH, REMOTE_TLB_FLUSH_REQUESTS, VM_STATISTICS, Statistics
from swtdx.linux.virt.kvm.eventfd import Buses
from swtdx.linux.virt.kvm.guest_memfd import GuestMemfd
from swtdx.linux.virt.kvm.hva import HvaMapping
from swtdx.linux.virt.kvm.memory_attributes import MemoryAttributes
from swtdx.linux.virt.kvm.memslots import Change, Memslot, Memslots, check_region, plan
from swtdx.uapi.asm_kvm import KVM_X86_SW_PROTECTED_VM
from swtdx.uapi.dialect import InitialMemory
from swtdx.uapi.kvm import (
    GUEST_MEMFD_FLAG_INIT_SHARED,
    GUEST_MEMFD_FLAG_MMAP,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    kvm_memory_attributes,
    kvm_userspace_memory_region2,
)
from swtdx.uapi.reason import Reason

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.vmx.tdx import KvmTdx
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.kernel import EmulatedKernel

log = logging.getLogger(__name__)

KVM_MAX_VCPUS = 1024
KVM_MAX_VCPU_IDS = 4 * KVM_MAX_VCPUS
MAX_TSC_KHZ = 0x7FFFFFFF  # what scaling by VMX's largest ratio leaves (kvm_caps.max_guest_tsc_khz)
APIC_BUS_CYCLE_NS_DEFAULT = 1
_vm_numbers = itertools.count(1)


class IrqchipMode(Enum):
    """Where the interrupt controllers are."""

    NONE = "user space"
    SPLIT = "LAPIC in the kernel"
    KERNEL = "kernel"


class SuppressEoiBroadcast(Enum):
    """Whether local APICs keep a level-triggered EOI from the I/O APICs if the guest asks (Directed EOI).

    QUIRKED, as before there was a choice: offered unless the I/O APIC is in the kernel, and without effect.
    """

    QUIRKED = "offered, ignored"
    ENABLED = "offered"
    DISABLED = "not offered"


class Kvm:
    """``ops`` is the kernel's kvm_x86_ops."""

    __slots__ = ("__dict__", "__weakref__", "dead")  # PageRun reads them

    def __init__(self, kernel: EmulatedKernel, vm_type: int) -> None:
        self.kernel = kernel
        self.ops = kernel.kvm_x86_ops
        self.pages = kernel.pages
        self.processor = kernel.processor
        self.cpus = kernel.cpus
        self.vm_type = vm_type
        self.is_td = vm_type == kernel.dialect.vm_type_tdx
        self.is_sw_protected = not self.is_td and vm_type == KVM_X86_SW_PROTECTED_VM
        self.tdx: KvmTdx | None = None
        self.number = next(_vm_numbers)
        self.mm = current_mm()
        self.users = 1
        self._users_lock = threading.Lock()
        self.dead = False
        self._death: str | Reason = ""
        self.lock = threading.RLock()
        self.slots_lock = threading.RLock()

        self.memslots = Memslots()
        self.attributes = MemoryAttributes()
        self.has_attributes = self.is_sw_protected  # user space decides what is private (also of a TD, upstream)
        self.mmu = TdpMmu(self)
        self.guest_memfds: weakref.WeakSet[GuestMemfd] = weakref.WeakSet()

        self.vcpus: list[Vcpu] = []
        self.created_vcpus = 0
        self.stat = Statistics(f"kvm-{os.getpid()}", VM_STATISTICS)
        self.max_vcpus = KVM_MAX_VCPUS
        self.max_vcpu_ids = 0  # not said yet: KVM_MAX_VCPU_IDS
        self.bsp_vcpu_id = 0

        self.irqchip_mode = IrqchipMode.NONE
        self.irq_routing = IrqRouting(self)
        self.buses = Buses()
        self.nr_reserved_ioapic_pins = 0
        self.pic: Pic | None = None
        self.ioapic: IoApic | None = None
        self.pit: Pit | None = None
        self.x2apic_format = False
        self.x2apic_broadcast_quirk_disabled = False
        self.suppress_eoi_broadcast = SuppressEoiBroadcast.QUIRKED
        self.apic_bus_cycle_ns = APIC_BUS_CYCLE_NS_DEFAULT
        self.tsc = TscGeneration()
        self.default_tsc_khz: int = kernel.processor.platform.tsc_hz // 1000
        self.hypercall_exit_enabled = 0
        self.user_space_msr_mask = 0
        self.msr_filter: MsrFilter | None = None
        self.disabled_quirks = 0
        self.disabled_exits = 0
        self.exception_payload_enabled = False
        self.manual_dirty_log_protect = False
        self.dirty_log_initially_set = False
        self.triple_fault_event = False
        self.exit_on_emulation_error = False
        self.bus_lock_detection = False  # bus_lock_detection_enabled
        self.guest_can_read_platform_info = True
        self.clock = KvmClock(self)
        self.ops.vm_init(self)

    @property
    def irqchip_in_kernel(self) -> bool:
        """Whether the kernel has at least the local APICs."""
        return self.irqchip_mode is not IrqchipMode.NONE

    # --- Life ---------------------------------------------------------------------------------------------------------

    def get(self) -> None:
        """kvm_get_kvm."""
        with self._users_lock:
            self.users += 1

    def put(self) -> None:
        """kvm_put_kvm: the last one destroys."""
        with self._users_lock:
            self.users -= 1
            last = self.users == 0
        if last:
            self.kvm_destroy_vm()

    def kvm_destroy_vm(self) -> None:
        log.debug("VM %d: destroy", self.number)
        self.irq_routing.release()
        if self.pit is not None:
            self.pit.release()
        self.buses.release()
        slots = list(self.memslots)
        for gmem in {slot.gmem for slot in slots if slot.gmem is not None}:
            gmem.kvm_gmem_punch_hole(0, gmem.length >> PAGE_SHIFT)
        for slot in slots:
            self._release_slot_memory(slot, keep_gmem=True)
            slot.hva.release()
        # A TD's order: private pages are removed one by one while the key exists, so they went first; then the key, and
        # after it the pages of vCPUs, page tables and at last TDCS and TDR can be reclaimed.
        self.ops.vm_pre_destroy(self)
        for vcpu in self.vcpus:
            vcpu.free()
        self.mmu.free_mirror()
        self.mmu.free_direct()
        self.ops.vm_destroy(self)
        self.kernel.vms.discard(self)

    def bug(self, reason: str | Reason) -> OSError:
        """KVM_BUG_ON: mark the VM dead; the EIO to raise."""
        if not self.dead:
            log.error("VM %d is dead: %s", self.number, reason)
            self._death = reason
        self.dead = True
        self.kick_all()
        return err(errno.EIO, reason)

    def dead_error(self) -> OSError:
        """Return the EIO of a call on a dead VM. It carries what killed the VM, which another vCPU may have met."""
        return err(errno.EIO, self._death or "the VM is dead")

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP. Raises OSError(EEXIST, ENOTTY, EINVAL). A TD that may have it gets no vCPU then."""
        if self.irqchip_mode is not IrqchipMode.NONE:
            raise err(errno.EEXIST, "an irqchip exists")
        if self.is_td and not self.kernel.release.tds_take_irqchips:
            raise err(errno.ENOTTY, "KVM does not see the EOIs of a TD, which an I/O APIC in the kernel needs")
        if self.created_vcpus:
            raise err(errno.EINVAL, "vCPUs exist")
        self.pic, self.ioapic = Pic(self), IoApic(self)
        self.buses.ports.update(dict.fromkeys(i8259.PORTS, self.pic))
        self.irqchip_mode = IrqchipMode.KERNEL
        self.irq_routing.set_default_routes()

    def create_pit(self, ports: tuple[int, ...]) -> None:
        """KVM_CREATE_PIT2. Raises OSError(EEXIST, ENOENT)."""
        if self.pit is not None:
            raise err(errno.EEXIST, "the PIT exists")
        if self.pic is None:
            raise err(errno.ENOENT, "no PIC in the kernel")
        self.pit = Pit(self)
        self.buses.ports.update(dict.fromkeys(ports, self.pit))

    # --- vCPUs as a whole ---------------------------------------------------------------------------------------------

    def kick_all(self) -> None:
        """Make every vCPU leave the guest or wake up, without waiting for it."""
        for vcpu in self.vcpus:
            vcpu.kick()

    def kick_all_outside_guest(self) -> None:
        """Make every vCPU that is in the guest leave it once (kvm_make_all_cpus_request, KVM_REQ_OUTSIDE_GUEST_MODE).

        Nothing is asked of a vCPU that is outside: it may enter at once, and then starts in the new TLB epoch, or finds
        `wait_for_sept_zap`. The number of the entry tells "has left" from "has left and entered again".
        """
        inside = [(vcpu, vcpu.entries) for vcpu in self.vcpus if vcpu.in_guest]
        for vcpu, _ in inside:
            vcpu.kick()
        for vcpu, entries in inside:
            patience = 0
            while vcpu.is_in_guest(entries):
                patience += 1
                if patience % 50 == 0:  # an interrupt that came before the entry had begun is sent again
                    vcpu.kick()
                time.sleep(0.00002)

    def kvm_flush_remote_tlbs(self) -> None:
        """Make sure that no processor keeps a translation of a changed entry."""
        values = self.stat.values
        values[REMOTE_TLB_FLUSH_REQUESTS] += 1
        values[REMOTE_TLB_FLUSH] += 1
        self.processor.invept()

    # --- Memory -------------------------------------------------------------------------------------------------------

    def valid_slot_flags(self, wanted: int) -> int:
        """Return flags that a slot of this VM may have (check_memory_region_flags).

        A guest_memfd keeps no dirty log, and a write to read-only memory would be MMIO, which private memory has not.
        """
        flags = int(KVM_MEM_LOG_DIRTY_PAGES)
        if self.has_attributes or self.kernel.release.guest_memfd_for_all:
            flags |= int(KVM_MEM_GUEST_MEMFD)
        if wanted & int(KVM_MEM_GUEST_MEMFD):
            flags &= ~int(KVM_MEM_LOG_DIRTY_PAGES)
        elif not self.is_td:
            flags |= int(KVM_MEM_READONLY)
        return flags

    def kvm_set_memory_region(self, region: kvm_userspace_memory_region2) -> None:
        """KVM_SET_USER_MEMORY_REGION2. Raises OSError(EINVAL, EEXIST, EBADF, ENOMEM, EIO)."""
        with self.slots_lock:
            check_region(region, self.valid_slot_flags(region.flags), 1)
            change = plan(region, self.memslots)
            old = self.memslots.by_id.get(region.slot & 0xFFFF)
            if change is Change.NOTHING:
                return
            if change is Change.DELETE:
                assert old is not None
                self._delete_slot(old)
                return
            if change is Change.CREATE:
                self._create_slot(region)
            elif old is not None:
                self._check_last_gfn(region)
                with self.mmu.lock:  # no fault between the zap and the new place or flags
                    if change is Change.MOVE:
                        self.mmu.kvm_mmu_zap_memslot(old)
                        self.memslots.move(old, region.guest_phys_addr >> PAGE_SHIFT)
                    elif old.dirty_bitmap is None:
                        self.mmu.zap_direct(old.base_gfn, old.end_gfn)  # writes must be seen from now on
                    old.flags = region.flags
                    self._set_dirty_log(old)

    def _check_last_gfn(self, region: kvm_userspace_memory_region2) -> None:
        end = (region.guest_phys_addr + region.memory_size - 1) >> PAGE_SHIFT
        if self.mmu.direct_bits and end >= self.mmu.direct_bits:
            raise err(errno.EINVAL, "the slot reaches frames with the shared bit set")
        if end >> (self.processor.cpuid(0x80000008)[0] & 0xFF) - PAGE_SHIFT:
            raise err(errno.EINVAL, "the slot reaches beyond the host's physical address width")
        if self.mmu.mirror is None:
            self.mmu.cover(end + 1)

    def _create_slot(self, region: kvm_userspace_memory_region2) -> None:
        size = region.memory_size
        slot = Memslot(
            slot_id=region.slot & 0xFFFF,
            as_id=0,
            flags=region.flags,
            base_gfn=region.guest_phys_addr >> PAGE_SHIFT,
            npages=size >> PAGE_SHIFT,
            userspace_addr=region.userspace_addr,
            hva=HvaMapping(self.kernel.user_windows, region.userspace_addr, size),
        )
        if region.flags & int(KVM_MEM_GUEST_MEMFD):
            gmem = self._gmem_of(region.guest_memfd)
            gmem.enter()  # its release, which another thread may cause, has to find the slot
            pgoff = region.guest_memfd_offset >> PAGE_SHIFT
            try:
                gmem.kvm_gmem_check_range(slot, pgoff)
                if self.kernel.release.binds_guest_memfd_last:
                    self._check_last_gfn(region)
                    gmem.kvm_gmem_bind(slot, pgoff)
                else:
                    gmem.kvm_gmem_bind(slot, pgoff)
                    try:
                        self._check_last_gfn(region)
                    except OSError:
                        gmem.kvm_gmem_unbind(slot)
                        raise
            finally:
                gmem.leave()
        else:
            self._check_last_gfn(region)
            if self.is_td and self.kernel.dialect.initial_memory is InitialMemory.MEMSLOT:
                gmem = GuestMemfd(self, size)  # v10: the slot's own private memory
                self.put()  # it must not keep the VM alive: no descriptor exists whose close would end that
                gmem.kvm_gmem_bind(slot, 0)
        self._set_dirty_log(slot)
        self.memslots.insert(slot)
        if self.is_td:
            self.mmu.zap_direct(slot.base_gfn, slot.end_gfn)  # "no memory here" (MMIO) is not true any more

    def _gmem_of(self, fd: int) -> GuestMemfd:
        try:
            file = self.kernel.files.fget(fd)
        except OSError as error:
            raise err(errno.EBADF, f"guest_memfd {fd} is not an open file") from error
        if not isinstance(file, GuestMemfd) or file.kvm is not self:
            raise err(errno.EINVAL, f"fd {fd} is not a guest_memfd of this VM")
        return file

    def _delete_slot(self, slot: Memslot) -> None:
        self.memslots.remove(slot.slot_id)  # a fault that found it before has mapped the page by the time of the zap
        self.mmu.kvm_mmu_zap_memslot(slot)
        self._release_slot_memory(slot, keep_gmem=slot.flags & int(KVM_MEM_GUEST_MEMFD) != 0)
        slot.hva.release()

    def _release_slot_memory(self, slot: Memslot, *, keep_gmem: bool) -> None:
        gmem = slot.gmem
        if gmem is None:
            return
        if not keep_gmem:
            gmem.kvm_gmem_punch_hole(0, gmem.length >> PAGE_SHIFT)
        gmem.kvm_gmem_unbind(slot)

    def _set_dirty_log(self, slot: Memslot) -> None:
        if not slot.flags & int(KVM_MEM_LOG_DIRTY_PAGES):
            slot.dirty_bitmap = None
        elif slot.dirty_bitmap is None:
            slot.dirty_bitmap = bytearray((slot.npages + 63) // 64 * 8)
            if self.dirty_log_initially_set:
                full, rest = divmod(slot.npages, 8)
                slot.dirty_bitmap[:full] = b"\xff" * full
                if rest:
                    slot.dirty_bitmap[full] = (1 << rest) - 1

    def mark_page_dirty_in_slot(self, slot: Memslot, gfn: int) -> None:
        """Note that the frame may have been written."""
        if slot.dirty_bitmap is not None:
            offset = gfn - slot.base_gfn
            slot.dirty_bitmap[offset >> 3] |= 1 << (offset & 7)

    def guest_memfd_flags(self) -> int:
        """kvm_gmem_get_supported_flags: private and shared memory of one VM cannot both begin as shared."""
        if not self.kernel.release.guest_memfd_for_all:
            return 0
        return GUEST_MEMFD_FLAG_MMAP | (0 if self.has_attributes else GUEST_MEMFD_FLAG_INIT_SHARED)

    def supported_attributes(self) -> int:
        """Return what KVM_SET_MEMORY_ATTRIBUTES takes on this VM."""
        return KVM_MEMORY_ATTRIBUTE_PRIVATE if self.has_attributes else 0

    def kvm_vm_ioctl_set_mem_attributes(self, request: kvm_memory_attributes) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES: what becomes private loses its shared mappings and the reverse. Raises OSError."""
        address, size, attributes = request.address, request.size, request.attributes
        if request.flags:
            raise err(errno.EINVAL, "flags must be 0")
        if attributes & ~self.supported_attributes():
            raise err(errno.EINVAL, f"attributes {attributes:#x} are not supported by this VM")
        if not size or address + size >= 1 << 64:
            raise err(errno.EINVAL, "the range is empty or wraps")
        if address % PAGE_SIZE or size % PAGE_SIZE:
            raise err(errno.EINVAL, "address and size must be multiples of 4 KiB")
        start, end = address >> PAGE_SHIFT, (address + size) >> PAGE_SHIFT
        with self.slots_lock:
            if self.attributes.range_has(start, end, attributes):
                return
            with self.mmu.lock:  # a fault sees the old attribute and is zapped, or sees the new one
                if attributes & KVM_MEMORY_ATTRIBUTE_PRIVATE:
                    self.mmu.zap_direct(start, end)
                else:
                    self.mmu.zap_private(start, end)
                self.attributes.store(start, end, attributes)

    # --- Guest memory as KVM itself sees it: shared memory only -------------------------------------------------------

    def read_guest(self, gpa: int, length: int) -> bytes:
        """kvm_read_guest: bytes of the slots' user memory. Raises OSError(EFAULT)."""
        return b"".join(copy_from_user(hva, size, self.mm) for _, _, hva, size in self._pieces(gpa, length))

    def write_guest(self, gpa: int, data: bytes) -> None:
        """kvm_write_guest: into the slots' user memory, noted in the dirty log. Raises OSError(EFAULT)."""
        done = 0
        for slot, gfn, hva, size in self._pieces(gpa, len(data)):
            if slot.flags & int(KVM_MEM_READONLY):
                raise err(errno.EFAULT, f"the slot at {gfn << PAGE_SHIFT:#x} is read-only")
            copy_to_user(hva, data[done : done + size], self.mm)
            self.mark_page_dirty_in_slot(slot, gfn)
            done += size

    def _pieces(self, gpa: int, length: int) -> Iterator[tuple[Memslot, int, int, int]]:
        """Yield (slot, gfn, user address, bytes) of each page of the range."""
        while length:
            size = min(length, PAGE_SIZE - gpa % PAGE_SIZE)
            slot = self.memslots.gfn_to_memslot(gpa >> PAGE_SHIFT)
            if slot is None:
                raise err(errno.EFAULT, f"no slot at {gpa:#x}")
            yield slot, gpa >> PAGE_SHIFT, slot.userspace_addr + gpa - (slot.base_gfn << PAGE_SHIFT), size
            gpa += size
            length -= size
