# SPDX-License-Identifier: GPL-2.0-or-later
"""A VM or a TD: memory, interrupts, clocks, vCPUs. The TDX sub-commands are in `tdx`."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Iterable, Sequence
from typing import Any

from swtdx.uapi import kvm
from swtdx.uapi.client.error import KvmError
from swtdx.uapi.client.tdx import TdVm
from swtdx.uapi.client.vcpu import Vcpu
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kernel import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, Kernel
from swtdx.uapi.layout import address_of, filled, u64

Memory = int | mmap.mmap | bytearray | ctypes.Array[Any]
"""A slot's memory: a page-aligned address, or the buffer itself, which is then kept alive with the slot."""


class Vm(TdVm):
    """Made by `Kvm.create_vm` or `Kvm.create_td`. Closing it leaves its vCPUs open: close those too."""

    def __init__(self, kernel: Kernel, fd: int, dialect: Dialect, vcpu_mmap_size: int, is_td: bool) -> None:
        super().__init__(kernel, fd, dialect)
        self.is_td = is_td
        self.vcpus: list[Vcpu] = []
        self._vcpu_mmap_size = vcpu_mmap_size
        self._slots: dict[int, Memory] = {}

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU; the id is also the APIC id. EEXIST: taken. A TD must have been initialised (`tdx_init`).

        >>> with vm.create_vcpu(1) as second:
        ...     second.id
        1
        """
        fd = self.ioctl(kvm.KVM_CREATE_VCPU, vcpu_id)
        vcpu = Vcpu(self.kernel, fd, self.dialect, vcpu_id, self._vcpu_mmap_size)
        self.vcpus.append(vcpu)
        return vcpu

    # --- Memory -------------------------------------------------------------------------------------------------------

    def set_user_memory_region(self, slot: int, gpa: int, size: int, memory: Memory, flags: int = 0) -> None:
        """KVM_SET_USER_MEMORY_REGION: bytes ``gpa``..``gpa + size`` are ``memory``. Size 0 deletes the slot.

        EEXIST: overlap; EINVAL: unaligned, or a change that slots do not take.

        >>> vm.set_user_memory_region(7, 0x10_0000, 0x1000, mmap.mmap(-1, 0x1000))
        >>> vm.set_user_memory_region(7, 0x10_0000, 0, 0)
        """
        region = kvm.kvm_userspace_memory_region(slot, flags, gpa, size, _address(memory))
        self.put(kvm.KVM_SET_USER_MEMORY_REGION, region)
        self._keep(slot, size, memory)

    def set_user_memory_region2(
        self,
        slot: int,
        gpa: int,
        size: int,
        memory: Memory,
        flags: int = 0,
        guest_memfd: int = 0,
        guest_memfd_offset: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION2: as above, and with `MemFlag.GUEST_MEMFD` private memory from ``guest_memfd``.

        ``memory`` then backs what is shared. Such a slot can be deleted but not changed.

        >>> if kvm.check_extension(Cap.USER_MEMORY2):
        ...     vm.set_user_memory_region2(7, 0x10_0000, 0x1000, mmap.mmap(-1, 0x1000))
        ...     vm.set_user_memory_region2(7, 0x10_0000, 0, 0)
        """
        region = kvm.kvm_userspace_memory_region2(
            slot, flags, gpa, size, _address(memory), guest_memfd_offset, guest_memfd
        )
        self.put(kvm.KVM_SET_USER_MEMORY_REGION2, region)
        self._keep(slot, size, memory)

    def create_guest_memfd(self, size: int, flags: int = 0) -> int:
        """KVM_CREATE_GUEST_MEMFD: memory that only the guest can touch; returns a descriptor that the caller closes.

        It holds a reference to the VM, which is not destroyed before it.

        >>> if vm.check_extension(Cap.GUEST_MEMFD):
        ...     kvm.kernel.close(vm.create_guest_memfd(0x1000))
        """
        return self.put(kvm.KVM_CREATE_GUEST_MEMFD, kvm.kvm_create_guest_memfd(size, flags))

    def set_memory_attributes(self, gpa: int, size: int, attributes: int) -> None:
        """KVM_SET_MEMORY_ATTRIBUTES: make a range private (KVM_MEMORY_ATTRIBUTE_PRIVATE) or shared (0).

        ``gpa`` is without the shared bit. What is mapped with the other nature is zapped, its contents lost. EINVAL: an
        attribute that this VM does not have (KVM_CAP_MEMORY_ATTRIBUTES).

        >>> if vm.check_extension(Cap.MEMORY_ATTRIBUTES):
        ...     vm.set_memory_attributes(0, 0x1000, 0)
        """
        self.put(kvm.KVM_SET_MEMORY_ATTRIBUTES, kvm.kvm_memory_attributes(gpa, size, attributes))

    def punch_hole(self, guest_memfd: int, offset: int, size: int) -> None:
        """fallocate(2) on a guest_memfd: give pages back, their contents are lost. EINVAL: unaligned."""
        try:
            self.kernel.fallocate(guest_memfd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, size)
        except OSError as error:
            raise KvmError(error.errno or errno.EIO, "fallocate") from None

    def dirty_log(self, slot: int, pages: int) -> bytes:
        """KVM_GET_DIRTY_LOG of a slot of ``pages`` pages, and reset it: bit n of byte n//8 is page n.

        >>> vm.set_user_memory_region(7, 0x10_0000, 0x1000, mmap.mmap(-1, 0x1000), MemFlag.LOG_DIRTY_PAGES)
        >>> vm.dirty_log(7, 1).hex()
        '0000000000000000'
        >>> vm.set_user_memory_region(7, 0x10_0000, 0, 0)
        """
        bitmap = (ctypes.c_uint64 * ((pages + 63) // 64))()
        self.put(kvm.KVM_GET_DIRTY_LOG, kvm.kvm_dirty_log(slot, 0, ctypes.addressof(bitmap)))
        return bytes(bitmap)

    def clear_dirty_log(self, slot: int, first_page: int, bitmap: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG: ``bitmap`` has a set bit for each page to be watched again.

        Needs KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2; ``first_page`` and the number of pages are multiples of 64.
        """
        memory = (ctypes.c_uint8 * len(bitmap)).from_buffer_copy(bitmap)
        request = kvm.kvm_clear_dirty_log(slot, len(bitmap) * 8, first_page, ctypes.addressof(memory))
        self.put(kvm.KVM_CLEAR_DIRTY_LOG, request)

    def set_tss_addr(self, gpa: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB that old Intel processors need for real mode; a no-op for TDs.

        >>> vm.set_tss_addr(0xFFFB_D000)
        """
        self.ioctl(kvm.KVM_SET_TSS_ADDR, gpa)

    def set_identity_map_addr(self, gpa: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one page for the same purpose. Before the first vCPU (EINVAL).

        >>> with kvm.create_vm() as fresh:
        ...     fresh.set_identity_map_addr(0xFFFB_C000)
        """
        self.put(kvm.KVM_SET_IDENTITY_MAP_ADDR, u64(gpa))

    # --- Interrupts ---------------------------------------------------------------------------------------------------

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: PICs, I/O APIC and local APICs in the kernel. Before the first vCPU. Not for TDs.

        >>> with kvm.create_vm() as fresh:
        ...     fresh.create_irqchip()
        """
        self.ioctl(kvm.KVM_CREATE_IRQCHIP)

    def split_irqchip(self, pins: int = 24) -> None:
        """KVM_CAP_SPLIT_IRQCHIP: local APICs in the kernel, I/O APIC with ``pins`` pins in the VMM. TDs need it.

        >>> with kvm.create_vm() as fresh:
        ...     fresh.split_irqchip()
        """
        self.enable_cap(kvm.Cap.SPLIT_IRQCHIP, pins)

    def create_pit2(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2: the i8254 in the kernel; needs `create_irqchip`.

        >>> with kvm.create_vm() as fresh:
        ...     fresh.create_irqchip()
        ...     fresh.create_pit2()
        """
        self.put(kvm.KVM_CREATE_PIT2, kvm.kvm_pit_config(flags=flags))

    def irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE: set an interrupt line of the in-kernel chips.

        >>> with kvm.create_vm() as fresh:
        ...     fresh.create_irqchip()
        ...     fresh.irq_line(4, 0)
        """
        self.put(kvm.KVM_IRQ_LINE, kvm.kvm_irq_level(irq=gsi, level=level))

    def get_irqchip(self, chip_id: int) -> kvm.kvm_irqchip:
        """KVM_GET_IRQCHIP. ENXIO without in-kernel chips.

        >>> with kvm.create_vm() as fresh:
        ...     fresh.create_irqchip()
        ...     hex(fresh.get_irqchip(2).chip.ioapic.base_address)
        '0xfec00000'
        """
        chip = kvm.kvm_irqchip(chip_id=chip_id)
        self.put(kvm.KVM_GET_IRQCHIP, chip)
        return chip

    def set_irqchip(self, chip: kvm.kvm_irqchip) -> None:
        """KVM_SET_IRQCHIP."""
        self.put(kvm.KVM_SET_IRQCHIP, chip)

    def get_pit2(self) -> kvm.kvm_pit_state2:
        """KVM_GET_PIT2. ENXIO without an in-kernel PIT."""
        return self.fetch(kvm.KVM_GET_PIT2, kvm.kvm_pit_state2)

    def set_pit2(self, state: kvm.kvm_pit_state2) -> None:
        """KVM_SET_PIT2."""
        self.put(kvm.KVM_SET_PIT2, state)

    def set_gsi_routing(self, entries: Sequence[kvm.kvm_irq_routing_entry]) -> None:
        """KVM_SET_GSI_ROUTING: the whole table at once.

        >>> route = msi_route(5, address=0xFEE00000, data=0x30)
        >>> with kvm.create_vm() as fresh:
        ...     fresh.split_irqchip()
        ...     fresh.set_gsi_routing([route])
        """
        self.put(kvm.KVM_SET_GSI_ROUTING, filled(kvm.kvm_irq_routing, entries, nr=len(entries)))

    def signal_msi(self, address: int, data: int) -> int:
        """KVM_SIGNAL_MSI: > 0 delivered, 0 blocked by the guest."""
        return self.put(kvm.KVM_SIGNAL_MSI, kvm.kvm_msi(address & 0xFFFFFFFF, address >> 32, data))

    def irqfd(self, eventfd: int, gsi: int, flags: int = 0, resamplefd: int = 0) -> None:
        """KVM_IRQFD: writing ``eventfd`` raises ``gsi``; KVM_IRQFD_FLAG_DEASSIGN undoes it.

        >>> with kvm.create_vm() as fresh:
        ...     fresh.split_irqchip()
        ...     fresh.set_gsi_routing([msi_route(5, address=0xFEE00000, data=0x30)])
        ...     fresh.irqfd(event := kvm.kernel.eventfd(), 5)
        ...     kvm.kernel.close(event)
        """
        self.put(kvm.KVM_IRQFD, kvm.kvm_irqfd(eventfd, gsi, flags, resamplefd))

    def ioeventfd(self, eventfd: int, address: int, length: int, flags: int = 0, datamatch: int = 0) -> None:
        """KVM_IOEVENTFD: a guest write of ``length`` bytes (0: any) at ``address`` signals ``eventfd``, no exit.

        `IoeventfdFlag`: PIO for a port, DATAMATCH to compare the value, DEASSIGN to undo.

        >>> event = kvm.kernel.eventfd()
        >>> vm.ioeventfd(event, 0x510, 2, IoeventfdFlag.PIO)
        >>> vm.ioeventfd(event, 0x510, 2, IoeventfdFlag.PIO | IoeventfdFlag.DEASSIGN)
        >>> kvm.kernel.close(event)
        """
        self.put(kvm.KVM_IOEVENTFD, kvm.kvm_ioeventfd(datamatch, address, length, eventfd, flags))

    # --- The rest -----------------------------------------------------------------------------------------------------

    def set_msr_filter(self, ranges: Iterable[tuple[int, int, bytes]], default_deny: bool = False) -> None:
        """KVM_X86_SET_MSR_FILTER: each range is (KVM_MSR_FILTER_READ/WRITE, first MSR, bitmap: 1 allows).

        >>> vm.set_msr_filter([(KVM_MSR_FILTER_READ, 0x174, b"\\xff")])
        >>> vm.set_msr_filter([])
        """
        request = kvm.kvm_msr_filter(
            flags=kvm.KVM_MSR_FILTER_DEFAULT_DENY if default_deny else kvm.KVM_MSR_FILTER_DEFAULT_ALLOW
        )
        bitmaps = []  # alive until the call is over
        for position, (flags, base, bitmap) in enumerate(ranges):
            bitmaps.append(ctypes.create_string_buffer(bitmap, len(bitmap)))
            request.ranges[position] = kvm.kvm_msr_filter_range(
                flags, len(bitmap) * 8, base, ctypes.addressof(bitmaps[-1])
            )
        self.put(kvm.KVM_X86_SET_MSR_FILTER, request)

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """KVM_SET_BOOT_CPU_ID, before the first vCPU (EBUSY).

        >>> with kvm.create_vm() as fresh:
        ...     fresh.set_boot_cpu_id(1)
        """
        self.ioctl(kvm.KVM_SET_BOOT_CPU_ID, vcpu_id)

    def get_clock(self) -> kvm.kvm_clock_data:
        """KVM_GET_CLOCK: kvmclock, in nanoseconds.

        >>> vm.get_clock().clock >= 0
        True
        """
        return self.fetch(kvm.KVM_GET_CLOCK, kvm.kvm_clock_data)

    def set_clock(self, clock: int) -> None:
        """KVM_SET_CLOCK, in nanoseconds.

        >>> vm.set_clock(10**9)
        """
        self.put(kvm.KVM_SET_CLOCK, kvm.kvm_clock_data(clock=clock))

    def register_coalesced_mmio(self, gpa: int, size: int, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO: writes there are queued in the vCPU mapping's third page, no exit each.

        >>> if kvm.check_extension(Cap.COALESCED_MMIO):
        ...     vm.register_coalesced_mmio(0xD000_0000, 0x1000)
        ...     vm.unregister_coalesced_mmio(0xD000_0000, 0x1000)
        """
        self.put(kvm.KVM_REGISTER_COALESCED_MMIO, kvm.kvm_coalesced_mmio_zone(gpa, size, pio))

    def unregister_coalesced_mmio(self, gpa: int, size: int, pio: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO."""
        self.put(kvm.KVM_UNREGISTER_COALESCED_MMIO, kvm.kvm_coalesced_mmio_zone(gpa, size, pio))

    def _keep(self, slot: int, size: int, memory: Memory) -> None:
        if size:
            self._slots[slot] = memory
        else:
            self._slots.pop(slot, None)


def msi_route(gsi: int, address: int, data: int) -> kvm.kvm_irq_routing_entry:
    """An entry for `Vm.set_gsi_routing` that sends ``data`` to the MSI address.

    >>> msi_route(3, 0x1_FEE0_0000, 0x41).u.msi.address_hi
    1
    """
    entry = kvm.kvm_irq_routing_entry(gsi=gsi, type=kvm.KVM_IRQ_ROUTING_MSI)
    entry.u.msi = kvm.kvm_irq_routing_msi(address & 0xFFFFFFFF, address >> 32, data)
    return entry


def _address(memory: Memory) -> int:
    return memory if isinstance(memory, int) else address_of(memory)
