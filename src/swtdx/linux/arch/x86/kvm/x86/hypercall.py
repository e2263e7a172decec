# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM hypercalls (kvm_emulate_hypercall; Documentation/virt/kvm/x86/hypercalls.rst).

By VMCALL from a normal VM, by TDVMCALL with R10 != 0 from a TD. Results are negative KVM_E* numbers or 0.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.lapic import ICR_LEVEL_TRIGGERED
from swtdx.linux.arch.x86.kvm.x86.pvclock import NSEC_PER_SEC
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import HYPERCALLS
from swtdx.uapi.kvm import KVM_EXIT_HYPERCALL, KVM_EXIT_HYPERCALL_LONG_MODE, KVM_HC_MAP_GPA_RANGE

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

KVM_HC_VAPIC_POLL_IRQ, KVM_HC_KICK_CPU, KVM_HC_CLOCK_PAIRING, KVM_HC_SEND_IPI, KVM_HC_SCHED_YIELD = 1, 5, 9, 10, 11
KVM_CLOCK_PAIRING_WALLCLOCK = 0
PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD = 7, 11, 13  # KVM_FEATURE_*
KVM_ENOSYS, KVM_EFAULT, KVM_EINVAL, KVM_EOPNOTSUPP = 1000, 14, 22, 95
_PAIRING = struct.Struct("<qqQI36x")  # seconds, nanoseconds, guest TSC, flags
_ICR_LOGICAL_OR_SHORTHAND = 1 << 11 | 3 << 18
_MASK64 = (1 << 64) - 1


def kvm_emulate_hypercall(
    vcpu: Vcpu, nr: int, args: tuple[int, int, int, int], done: Callable[[int], None], *, long_mode: bool
) -> int:
    """Serve hypercall ``nr``; ``done`` receives the result, now or at the next KVM_RUN. 1: go on; 0: to user space."""
    vcpu.stat.values[HYPERCALLS] += 1
    if nr == KVM_HC_VAPIC_POLL_IRQ:
        done(0)
    elif nr == KVM_HC_KICK_CPU and vcpu.guest_pv_has(PV_UNHALT):
        for other in vcpu.kvm.vcpus:
            if other.apic is not None and other.apic.apic_id == args[1]:
                other.pv_kick()
        done(0)
    elif nr == KVM_HC_CLOCK_PAIRING:
        done(kvm_pv_clock_pairing(vcpu, args[0], args[1]) & _MASK64)
    elif nr == KVM_HC_SEND_IPI and vcpu.apic is not None and vcpu.guest_pv_has(PV_SEND_IPI):
        done(kvm_pv_send_ipi(vcpu, *args, cluster=64 if long_mode else 32) & _MASK64)
    elif nr == KVM_HC_SCHED_YIELD and vcpu.guest_pv_has(PV_SCHED_YIELD):
        done(0)
    elif nr == KVM_HC_MAP_GPA_RANGE and vcpu.kvm.hypercall_exit_enabled & 1 << KVM_HC_MAP_GPA_RANGE:
        gpa, pages, attributes = args[:3]
        if gpa % PAGE_SIZE or not pages or (gpa >> PAGE_SHIFT) + pages >= 1 << 64:
            done(-KVM_EINVAL & _MASK64)
            return 1
        run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_HYPERCALL))
        flags = KVM_EXIT_HYPERCALL_LONG_MODE if long_mode else 0
        run_struct.HYPERCALL.pack_into(vcpu.run, run_struct.UNION, nr, gpa, pages, attributes, 0, 0, 0, 0, flags)
        vcpu.complete_userspace_io = lambda: done(run_struct.U64.unpack_from(vcpu.run, run_struct.UNION + 56)[0])
        return 0
    else:
        done(-KVM_ENOSYS & _MASK64)
    return 1


def kvm_pv_clock_pairing(vcpu: Vcpu, address: int, kind: int) -> int:
    """Wall-clock time and the guest's TSC of one moment, to guest memory (of a TD: to shared memory)."""
    if kind != KVM_CLOCK_PAIRING_WALLCLOCK:
        return -KVM_EOPNOTSUPP
    now, host_tsc = vcpu.kvm.processor.clock.real_ns(), vcpu.kvm.processor.rdtsc()
    seconds, nanoseconds = divmod(now, NSEC_PER_SEC)
    try:
        vcpu.kvm.write_guest(address, _PAIRING.pack(seconds, nanoseconds, vcpu.ops.read_l1_tsc(vcpu, host_tsc), 0))
    except OSError:
        return -KVM_EFAULT
    return 0


def kvm_pv_send_ipi(vcpu: Vcpu, low: int, high: int, first: int, icr: int, *, cluster: int) -> int:
    """Send to the APIC ids from ``first`` on in two maps of ``cluster`` bits. Return how many vCPUs were reached."""
    if icr & _ICR_LOGICAL_OR_SHORTHAND:
        return -KVM_EINVAL
    count = 0
    bits = low | high << cluster
    first &= 0xFFFFFFFF
    for other in vcpu.kvm.vcpus:
        if other.apic is None:
            continue
        position = other.apic.apic_id - first
        if 0 <= position < 2 * cluster and bits >> position & 1:
            count += other.apic.accept_irq(icr >> 8 & 7, icr & 0xFF, bool(icr & ICR_LEVEL_TRIGGERED))
    return count
