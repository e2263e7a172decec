# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE where no guest has VMX (vmx_get_nested_state, vmx_set_nested_state).

There is no nested virtualization here, as with kvm_intel.nested=0: the state is a header that says that VMXON was never
executed, and no other can be set.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_to_user, get_user, put_user, struct_from_user
from swtdx.uapi.kvm import KVM_STATE_NESTED_GUEST_MODE, KVM_STATE_NESTED_RUN_PENDING, kvm_nested_state

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

HEADER_SIZE = ctypes.sizeof(kvm_nested_state)
NESTED_STATE_SIZE = HEADER_SIZE + 2 * 4096
"""The answer to KVM_CAP_NESTED_STATE: the header, and two VMCSs that a guest with VMX would have."""
_EVMCS, _MTF_PENDING, _GIF_SET = 1 << 2, 1 << 3, 1 << 8
_KNOWN_FLAGS = KVM_STATE_NESTED_GUEST_MODE | KVM_STATE_NESTED_RUN_PENDING | _EVMCS | _MTF_PENDING | _GIF_SET
_FORMAT_VMX = 0
_HDR = kvm_nested_state.hdr.offset
_INVALID_GPA = (1 << 64) - 1
_VMX = struct.Struct("<QQH")  # vmxon_pa, vmcs12_pa, smm.flags


def get_nested_state(vcpu: Vcpu, arg: int) -> int:
    """Raises OSError: EFAULT; E2BIG with the size that is needed."""
    size_at = arg + kvm_nested_state.size.offset
    if get_user(size_at, 4) < HEADER_SIZE:
        put_user(size_at, HEADER_SIZE, 4)
        raise err(errno.E2BIG, f"{HEADER_SIZE} bytes are needed")
    state = bytearray(bytes(kvm_nested_state(format=_FORMAT_VMX, size=HEADER_SIZE)))
    _VMX.pack_into(state, _HDR, _INVALID_GPA, _INVALID_GPA, 0)
    copy_to_user(arg, state)
    return 0


def set_nested_state(vcpu: Vcpu, arg: int) -> int:
    """Raises OSError: EFAULT, EINVAL."""
    state = struct_from_user(kvm_nested_state, arg)
    if state.size < HEADER_SIZE or state.flags & ~_KNOWN_FLAGS:
        raise err(errno.EINVAL, f"size {state.size}, flags {state.flags:#x}")
    if state.flags & KVM_STATE_NESTED_RUN_PENDING and not state.flags & KVM_STATE_NESTED_GUEST_MODE:
        raise err(errno.EINVAL, "a run is pending, but of no guest")
    vmxon, vmcs12, smm = _VMX.unpack_from(bytes(state), _HDR)
    if state.format != _FORMAT_VMX or state.flags or (vmxon, vmcs12, smm) != (_INVALID_GPA, _INVALID_GPA, 0):
        raise err(errno.EINVAL, "the guest has no VMX")
    return 0
