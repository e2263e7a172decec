# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_SREGS2 and KVM_SET_SREGS2: system registers with PDPTRs in place of pending interrupts (x86.c, __set_sregs2).

The guest's PDPTEs are read from memory whenever the processor needs them, as they are in the guest's own page tables:
those given with KVM_SREGS2_FLAGS_PDPTRS_VALID are checked for the paging mode and otherwise not kept. Both calls ask
whether the state may be touched before they look at the argument.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_to_user, struct_from_user
from swtdx.uapi.kvm import KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_sregs, kvm_sregs2
from swtdx.x86 import Cr0, Cr4, Efer

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

SHARED_SIZE = kvm_sregs2.flags.offset
"""Bytes with which kvm_sregs and kvm_sregs2 begin alike."""
CR0_PG, CR4_PAE, EFER_LMA = Cr0.PG, Cr4.PAE, Efer.LMA


def _pae_paging(sregs: kvm_sregs | kvm_sregs2) -> bool:
    return bool(sregs.cr0 & CR0_PG and sregs.cr4 & CR4_PAE and not sregs.efer & EFER_LMA)


def get_sregs2(vcpu: Vcpu, arg: int) -> int:
    """KVM_GET_SREGS2. Raises OSError(EINVAL, EFAULT)."""
    data: bytes = vcpu.ops.get_sregs(vcpu)
    sregs = kvm_sregs2.from_buffer_copy(data[:SHARED_SIZE] + bytes(ctypes.sizeof(kvm_sregs2) - SHARED_SIZE))
    if _pae_paging(sregs):
        try:
            entries = vcpu.kvm.read_guest(sregs.cr3 & 0xFFFFFFE0, 32)
        except OSError:  # CR3 points at no memory: there are none to report
            entries = bytes(32)
        for number in range(4):
            sregs.pdptrs[number] = int.from_bytes(entries[8 * number : 8 * number + 8], "little")
        sregs.flags = KVM_SREGS2_FLAGS_PDPTRS_VALID
    copy_to_user(arg, sregs)
    return 0


def set_sregs2(vcpu: Vcpu, arg: int) -> int:
    """KVM_SET_SREGS2. Raises OSError(EINVAL, EFAULT)."""
    if vcpu.kvm.is_td:
        raise err(errno.EINVAL, "the registers of a TD are the module's")
    sregs = struct_from_user(kvm_sregs2, arg)
    if sregs.flags & ~KVM_SREGS2_FLAGS_PDPTRS_VALID:
        raise err(errno.EINVAL, f"flags {sregs.flags:#x}")
    if sregs.flags and not _pae_paging(sregs):
        raise err(errno.EINVAL, "PDPTRs without PAE paging")
    shared = bytes(sregs)[:SHARED_SIZE]
    vcpu.ops.set_sregs(vcpu, shared + bytes(ctypes.sizeof(kvm_sregs) - SHARED_SIZE))
    return 0
