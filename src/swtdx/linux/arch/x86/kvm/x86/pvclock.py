# SPDX-License-Identifier: GPL-2.0-or-later
"""kvmclock: time of a VM in nanoseconds, and how a guest reads it without an exit (arch/x86/kvm/x86.c, pvclock).

A guest names a page of its memory by MSR_KVM_SYSTEM_TIME; KVM writes there, per vCPU, at which TSC it was what time and
how fast the TSC counts (struct pvclock_vcpu_time_info, Documentation/virt/kvm/x86/msr.rst). The version is odd while
the page changes. Where all vCPUs have one TSC the VM has a *master clock*: every page then holds the same pair of host
TSC and time, is stable across vCPUs (flag 1), and KVM_GET_CLOCK reports that by KVM_CLOCK_TSC_STABLE.

The VM's time is a line over the host's TSC, whether there is a master clock or not. The guest computes along that line
from what a page says, so that a page that is written again, for this vCPU or another, never takes time back: the
host's clocks, which are slewed, run beside it.

A page is written when what it says changes: the MSR, KVM_SET_CLOCK, the vCPU's TSC. What cannot be written, because no
slot is there or it is read-only, stays as it is. TDs have no such page (the module shows them their TSC).
"""

from __future__ import annotations

import struct
import threading
from typing import TYPE_CHECKING

from swtdx.uapi.kvm import KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_CLOCK_TSC_STABLE, kvm_clock_data
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.kvm_main import Kvm

NSEC_PER_SEC = 1_000_000_000
TSC_STABLE_BIT, GUEST_STOPPED = 1 << 0, 1 << 1
TIME_INFO = struct.Struct("<IIQQIbBxx")  # version, pad, TSC, system time, multiplier, shift, flags
_FLAGS_OFFSET = 29
_MASK64 = (1 << 64) - 1


def time_scale(hertz: int) -> tuple[int, int]:
    """(shift, multiplier): ``(ticks << shift) * multiplier >> 32`` are nanoseconds; the shift may be negative."""
    shift = 0
    while hertz > 2 * NSEC_PER_SEC:
        hertz >>= 1
        shift -= 1
    while hertz <= NSEC_PER_SEC:
        hertz <<= 1
        shift += 1
    return shift, (NSEC_PER_SEC << 32) // hertz


class KvmClock:
    """A VM's clock: it counts from the VM's creation, or from what KVM_SET_CLOCK says."""

    def __init__(self, kvm: Kvm) -> None:
        self._kvm = kvm
        self._lock = threading.Lock()
        self.wall_clock = 0
        self.boot_vcpu_runs_old_kvmclock = False
        self._hertz = kvm.processor.platform.tsc_hz
        self._zero_tsc = self._master_tsc = kvm.processor.rdtsc()
        self._offset = 0

    def update_master(self) -> None:
        """kvm_update_masterclock: a new pair of TSC and time from now on."""
        self._master_tsc = self._kvm.processor.rdtsc()

    def _at(self, tsc: int) -> int:
        """Return the VM's time in ns at a host TSC."""
        return (tsc - self._zero_tsc) * NSEC_PER_SEC // self._hertz + self._offset

    @property
    def use_master_clock(self) -> bool:
        """Whether the vCPUs' TSCs are one, and the first vCPU asked for its clock by the newer MSR."""
        kvm = self._kvm
        if not kvm.vcpus or self.boot_vcpu_runs_old_kvmclock:
            return False
        return len({(kvm.ops.get_tsc_offset(vcpu), vcpu.virtual_tsc_khz) for vcpu in kvm.vcpus}) == 1

    def sample(self) -> tuple[int, int, bool]:
        """Return (host TSC, VM time in ns at it, whether that is the master clock's)."""
        master = self.use_master_clock
        tsc = self._master_tsc if master else self._kvm.processor.rdtsc()
        return tsc, self._at(tsc), master

    def read(self) -> kvm_clock_data:
        """KVM_GET_CLOCK."""
        with self._lock:
            realtime, host_tsc = self._kvm.processor.clock.real_ns(), self._kvm.processor.rdtsc()
            if not self.use_master_clock:
                return kvm_clock_data(clock=self._at(host_tsc) & _MASK64)
            return kvm_clock_data(
                clock=self._at(host_tsc) & _MASK64,
                flags=KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC,
                realtime=realtime,
                host_tsc=host_tsc,
            )

    def set(self, data: kvm_clock_data) -> None:
        """KVM_SET_CLOCK, its flags checked. With KVM_CLOCK_REALTIME the time since then is added."""
        value = data.clock
        if data.flags & KVM_CLOCK_REALTIME:
            value += max(0, self._kvm.processor.clock.real_ns() - data.realtime)
        with self._lock:
            self.update_master()
            self._offset += value - self._at(self._master_tsc)
        self.update_pages()

    def tsc_changed(self) -> None:
        """A vCPU's TSC got another offset or rate."""
        with self._lock:
            self.update_master()
        self.update_pages()

    def update_pages(self) -> None:
        """KVM_REQ_GLOBAL_CLOCK_UPDATE."""
        for vcpu in self._kvm.vcpus:
            vcpu.pv_time.update()

    def set_wall_clock(self, address: int) -> None:
        """MSR_KVM_WALL_CLOCK: at guest-physical ``address`` write when (UTC) the VM's clock was 0."""
        self.wall_clock = address
        if not address:
            return
        kvm = self._kvm
        try:
            version = int.from_bytes(kvm.read_guest(address, 4), "little")
            version += 1 + (version & 1)
            epoch = kvm.processor.clock.real_ns() - self.read().clock
            seconds, nanoseconds = divmod(max(0, epoch), NSEC_PER_SEC)
            kvm.write_guest(address, struct.pack("<I", version & 0xFFFFFFFF))
            kvm.write_guest(address + 4, struct.pack("<II", seconds & 0xFFFFFFFF, nanoseconds))
            kvm.write_guest(address, struct.pack("<I", version + 1 & 0xFFFFFFFF))
        except OSError:
            return  # there is no memory to write to


class PvTime:
    """A vCPU's page."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.msr = 0
        self.guest_stopped = False

    @property
    def active(self) -> bool:
        """Whether the guest has named a page."""
        return bool(self.msr & 1)

    def set(self, value: int, *, old_msr: bool, host: bool) -> None:
        """MSR_KVM_SYSTEM_TIME or, newer, MSR_KVM_SYSTEM_TIME_NEW: address and, in bit 0, on or off."""
        clock = self._vcpu.kvm.clock
        if self._vcpu.vcpu_id == 0 and not host and clock.boot_vcpu_runs_old_kvmclock != old_msr:
            clock.boot_vcpu_runs_old_kvmclock = old_msr
            clock.update_master()
        self.msr = value
        clock.update_pages()

    def update(self) -> None:
        """kvm_guest_time_update."""
        if not self.active:
            return
        vcpu, address = self._vcpu, self.msr & ~1
        kvm = vcpu.kvm
        host_tsc, system_time, stable = kvm.clock.sample()
        shift, multiplier = time_scale(vcpu.virtual_tsc_khz * 1000)
        if address % PAGE_SIZE > PAGE_SIZE - TIME_INFO.size:
            return  # over the end of a page: KVM's cache of a page cannot hold it
        try:
            old = kvm.read_guest(address, TIME_INFO.size)
            version = (int.from_bytes(old[:4], "little") + 1 | 1) & 0xFFFFFFFF
            flags = (TSC_STABLE_BIT if stable else 0) | old[_FLAGS_OFFSET] & GUEST_STOPPED
            if self.guest_stopped:
                flags |= GUEST_STOPPED
            tsc = vcpu.ops.read_l1_tsc(vcpu, host_tsc)
            page = TIME_INFO.pack(version, 0, tsc, system_time & _MASK64, multiplier, shift, flags)
            kvm.write_guest(address, page[:4])
            kvm.write_guest(address + 4, page[4:])
            kvm.write_guest(address, struct.pack("<I", version + 1 & 0xFFFFFFFF))
        except OSError:
            return
        self.guest_stopped = False
