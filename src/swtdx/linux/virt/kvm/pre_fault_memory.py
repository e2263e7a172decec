# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_PRE_FAULT_MEMORY: map guest memory before the guest touches it (kvm_vcpu_pre_fault_memory).

A TD's private page is AUGed by it and stays PENDING until the guest accepts it. Not before KVM_TDX_FINALIZE_VM.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.mmu.tdp_mmu import RetPf
from swtdx.linux.arch.x86.kvm.vmx.tdx import TdState
from swtdx.linux.err import err
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.linux.uaccess import copy_to_user, struct_from_user
from swtdx.uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, kvm_pre_fault_memory

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu


def pre_fault_memory(vcpu: Vcpu, arg: int) -> None:
    """Raises OSError: EFAULT, EINVAL, EOPNOTSUPP, EINTR, ENOENT; nothing if at least one page was mapped."""
    request = struct_from_user(kvm_pre_fault_memory, arg)
    try:
        kvm_vcpu_pre_fault_memory(vcpu, request)
    finally:  # what is left of the range goes back, whatever became of it; if that fails it is EFAULT
        copy_to_user(arg, memoryview(request).cast("B")[: ctypes.sizeof(kvm_pre_fault_memory)])


def kvm_vcpu_pre_fault_memory(vcpu: Vcpu, request: kvm_pre_fault_memory) -> None:
    if request.flags:
        raise err(errno.EINVAL, f"flags {request.flags:#x}")
    if request.gpa % PAGE_SIZE or request.size % PAGE_SIZE or not request.size or request.gpa + request.size >= 1 << 64:
        raise err(errno.EINVAL, "the range is unaligned, empty or wraps")
    whole = request.size
    while request.size:
        try:
            if vcpu.signal_pending():
                raise err(errno.EINTR, "a signal is pending")
            kvm_arch_vcpu_pre_fault_memory(vcpu, request.gpa)
        except OSError:
            if request.size == whole:
                raise
            return
        request.gpa += PAGE_SIZE
        request.size -= PAGE_SIZE


def kvm_arch_vcpu_pre_fault_memory(vcpu: Vcpu, gpa: int) -> None:
    kvm = vcpu.kvm
    if kvm.tdx is not None and kvm.tdx.state is not TdState.RUNNABLE:
        raise err(errno.EOPNOTSUPP, "a TD's memory cannot be mapped before KVM_TDX_FINALIZE_VM")
    gfn = gpa >> PAGE_SHIFT
    if gfn & kvm.mmu.direct_bits:
        raise err(errno.EINVAL, f"{gpa:#x} has the shared bit")
    if kvm.memslots.gfn_to_memslot(gfn) is None:
        raise err(errno.ENOENT, f"no slot at {gpa:#x}")
    if kvm.is_td and gfn >= kvm.mmu.direct_bits:  # upstream: retries until a signal comes
        raise err(errno.EINVAL, f"{gpa:#x} is wider than the TD's addresses")
    with kvm.mmu.lock:  # under which attributes change
        shared = kvm.has_attributes and not kvm.attributes.load(gfn) & KVM_MEMORY_ATTRIBUTE_PRIVATE
    if shared:
        gpa |= kvm.mmu.direct_bits << PAGE_SHIFT
    while (result := kvm.mmu.kvm_tdp_page_fault(vcpu, gpa, False)) is RetPf.RETRY:
        if vcpu.signal_pending():
            raise err(errno.EINTR, "a signal is pending")
        if kvm.dead:
            raise kvm.dead_error()
    if result is RetPf.EMULATE:
        raise err(errno.ENOENT, f"no memory at {gpa:#x}")
