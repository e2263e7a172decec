# SPDX-License-Identifier: GPL-2.0-or-later
"""Steal time: how long a vCPU wanted to run and could not (record_steal_time, arch/x86/kvm/x86.c).

A guest names 64 bytes of its memory by MSR_KVM_STEAL_TIME; KVM adds up there what the vCPU's thread waited for a
processor (struct kvm_steal_time, Documentation/virt/kvm/x86/msr.rst): on the run queue of the host, as its scheduler
counts, and for a processor of the emulated machine, when it has more vCPUs than those. Written each time the vCPU is
loaded; ``preempted`` is set while another vCPU has its processor, not in HLT or in user space. TDs have no such page.

KVM makes the version odd while the rest changes. Here all changes by one copy, of whose members only ``steal`` depends
on the version: no reader could tell.

Left out: a vCPU's turn on the one engine that executes guests, for which it waits inside the processor.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

KVM_MSR_ENABLED = 1 << 0
KVM_STEAL_RESERVED_MASK = 0x3E
KVM_VCPU_PREEMPTED = 1 << 0
KVM_FEATURE_PV_TLB_FLUSH = 9
_AREA = struct.Struct("<QIIB")  # of struct kvm_steal_time: steal, version, flags, preempted
_PREEMPTED = 16  # offset
_MASK32, _MASK64 = (1 << 32) - 1, (1 << 64) - 1


def run_delay() -> int:
    """Nanoseconds that this thread has waited on a run queue (sched_info.run_delay); 0 if the host does not count."""
    try:
        fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)  # half of what open() takes
        try:
            return int(os.read(fd, 64).split()[1])
        finally:
            os.close(fd)
    except (OSError, IndexError, ValueError):
        return 0


class StealTime:
    """A vCPU's 64 bytes."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.msr = 0
        self.waited_ns = 0
        """What the vCPU has waited for a processor of the emulated machine."""
        self._last = 0
        self._preempted = False

    @property
    def enabled(self) -> bool:
        """Whether the guest has named its memory."""
        return bool(self.msr & KVM_MSR_ENABLED)

    def record(self) -> None:
        """Add what was waited since the last time."""
        kvm, address = self._vcpu.kvm, self.msr & ~0x3F
        try:
            steal, version, flags, _ = _AREA.unpack(kvm.read_guest(address, _AREA.size))
            version += version & 1  # the first time it is whatever was there
            steal, version = steal + self._since() & _MASK64, version + 2 & _MASK32
            kvm.write_guest(address, _AREA.pack(steal, version, flags, 0))
        except OSError:
            return  # there is no memory to write to
        if self._preempted and self._vcpu.cpuid.pv_features & 1 << KVM_FEATURE_PV_TLB_FLUSH:
            # Not only if another vCPU has asked for it: it may ask between a look at its mark and the write above.
            self._vcpu.vmx.context.invept()
        self._preempted = False

    def _since(self) -> int:
        now = run_delay() + self.waited_ns
        waited, self._last = now - self._last, now
        return max(waited, 0)  # another thread runs the vCPU now, which has waited less

    def set_preempted(self) -> None:
        """Another vCPU gets the processor (kvm_steal_time_set_preempted)."""
        if self._preempted:
            return
        try:
            self._vcpu.kvm.write_guest((self.msr & ~0x3F) + _PREEMPTED, bytes([KVM_VCPU_PREEMPTED]))
        except OSError:
            return
        self._preempted = True
