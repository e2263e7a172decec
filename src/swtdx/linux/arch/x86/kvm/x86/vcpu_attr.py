# SPDX-License-Identifier: GPL-2.0-or-later
"""Device attributes of a vCPU: KVM_VCPU_TSC_CTRL / KVM_VCPU_TSC_OFFSET is the only one (x86.c, kvm_arch_tsc_*_attr)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.uaccess import get_user, put_user, struct_from_user
from swtdx.uapi.kvm import KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu


def _attr(arg: int) -> kvm_device_attr:
    attr = struct_from_user(kvm_device_attr, arg)
    if attr.group != KVM_VCPU_TSC_CTRL or attr.attr != KVM_VCPU_TSC_OFFSET:
        raise err(errno.ENXIO, f"attribute {attr.group}.{attr.attr}")
    return attr


def has_device_attr(vcpu: Vcpu, arg: int) -> int:
    """KVM_HAS_DEVICE_ATTR. Raises OSError(EFAULT, ENXIO)."""
    _attr(arg)
    return 0


def get_device_attr(vcpu: Vcpu, arg: int) -> int:
    """KVM_GET_DEVICE_ATTR: the guest's TSC offset. Raises OSError(EFAULT, ENXIO)."""
    put_user(_attr(arg).addr, vcpu.ops.get_tsc_offset(vcpu), 8)
    return 0


def set_device_attr(vcpu: Vcpu, arg: int) -> int:
    """KVM_SET_DEVICE_ATTR; a TD's offset is the module's, and the call has no effect. Raises OSError(EFAULT, ENXIO)."""
    vcpu.ops.write_tsc_offset(vcpu, get_user(_attr(arg).addr, 8))
    return 0
