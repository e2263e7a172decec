# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest's RDMSR and WRMSR: filter, emulation, and the way to user space (kvm_emulate_rdmsr, kvm_msr_user_space).

Common to normal VMs and TDs, which differ in how the result reaches the guest: ``done`` is given it, now or when user
space has answered KVM_EXIT_X86_RDMSR / KVM_EXIT_X86_WRMSR at the next KVM_RUN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.x86.msrs import Invalid, Unsupported
from swtdx.linux.virt.kvm import run_struct
from swtdx.uapi.kvm import (
    KVM_EXIT_X86_RDMSR,
    KVM_EXIT_X86_WRMSR,
    KVM_MSR_EXIT_REASON_FILTER,
    KVM_MSR_EXIT_REASON_INVAL,
    KVM_MSR_EXIT_REASON_UNKNOWN,
)

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu


def read(vcpu: Vcpu, index: int, done: Callable[[int | None], None]) -> int:
    """RDMSR; ``done`` gets the value, or None for an error. 1: go on; 0: to user space."""
    msr_filter = vcpu.kvm.msr_filter
    reason = KVM_MSR_EXIT_REASON_FILTER
    if msr_filter is None or msr_filter.allows(index, write=False):
        try:
            done(vcpu.ops.get_msr(vcpu, index, False))
        except Unsupported:
            reason = KVM_MSR_EXIT_REASON_UNKNOWN
        except Invalid:
            reason = KVM_MSR_EXIT_REASON_INVAL
        else:
            return 1
    if not reason & vcpu.kvm.user_space_msr_mask:
        done(None)
        return 1

    def complete() -> None:
        error, _, _, value = run_struct.MSR.unpack_from(vcpu.run, run_struct.UNION)
        done(None if error else value)

    return _exit(vcpu, int(KVM_EXIT_X86_RDMSR), reason, index, 0, complete)


def write(vcpu: Vcpu, index: int, value: int, done: Callable[[bool], None]) -> int:
    """WRMSR; ``done`` is called with whether it was accepted. 1: continue; 0: to user space."""
    msr_filter = vcpu.kvm.msr_filter
    reason = KVM_MSR_EXIT_REASON_FILTER
    if msr_filter is None or msr_filter.allows(index, write=True):
        try:
            vcpu.ops.set_msr(vcpu, index, value, False)
        except Unsupported:
            reason = KVM_MSR_EXIT_REASON_UNKNOWN
        except Invalid:
            reason = KVM_MSR_EXIT_REASON_INVAL
        else:
            done(True)
            return 1
    if not reason & vcpu.kvm.user_space_msr_mask:
        done(False)
        return 1

    def complete() -> None:
        done(not vcpu.run[run_struct.UNION])

    return _exit(vcpu, int(KVM_EXIT_X86_WRMSR), reason, index, value, complete)


def _exit(vcpu: Vcpu, exit_reason: int, reason: int, index: int, data: int, complete: Callable[[], None]) -> int:
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, exit_reason)
    run_struct.MSR.pack_into(vcpu.run, run_struct.UNION, 0, reason, index, data)
    vcpu.complete_userspace_io = complete
    return 0
