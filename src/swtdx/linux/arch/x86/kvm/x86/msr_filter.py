# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_X86_SET_MSR_FILTER: which MSRs a guest may touch without user space being asked (arch/x86/kvm/x86.c)."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_from_user
from swtdx.uapi.kvm import (
    KVM_MSR_FILTER_DEFAULT_DENY,
    KVM_MSR_FILTER_MAX_BITMAP_SIZE,
    KVM_MSR_FILTER_READ,
    KVM_MSR_FILTER_WRITE,
    kvm_msr_filter,
)


@dataclass(frozen=True)
class MsrFilter:
    """KVM_X86_SET_MSR_FILTER: which MSRs the guest may touch. x2APIC's are never filtered."""

    default_allow: bool
    ranges: tuple[tuple[int, int, int, bytes], ...]  # flags, base, count, bitmap

    def allows(self, index: int, *, write: bool) -> bool:
        """Return whether KVM handles the guest's access."""
        if 0x800 <= index < 0x900:
            return True
        wanted = KVM_MSR_FILTER_WRITE if write else KVM_MSR_FILTER_READ
        for flags, base, count, bitmap in self.ranges:
            if flags & wanted and base <= index < base + count:
                bit = index - base
                return bool(bitmap[bit >> 3] & 1 << (bit & 7))
        return self.default_allow


def msr_filter_from_user(request: kvm_msr_filter) -> MsrFilter | None:
    """Return the filter that the structure describes, None for no filter. Raises OSError(EINVAL, EFAULT)."""
    if request.flags & ~KVM_MSR_FILTER_DEFAULT_DENY:
        raise err(errno.EINVAL, f"flags {request.flags:#x}")
    ranges = []
    for item in request.ranges:
        if not item.nmsrs:
            continue
        if item.flags & ~(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE) or not item.flags:
            raise err(errno.EINVAL, f"range flags {item.flags:#x}")
        size = (item.nmsrs + 63) // 64 * 8
        if size > KVM_MSR_FILTER_MAX_BITMAP_SIZE:
            raise err(errno.EINVAL, f"a range of {item.nmsrs} MSRs is too large")
        ranges.append((item.flags, item.base, item.nmsrs, copy_from_user(item.bitmap or 0, size)))
    default_allow = not request.flags & KVM_MSR_FILTER_DEFAULT_DENY
    if not ranges:
        if not default_allow:
            raise err(errno.EINVAL, "a filter that denies by default needs a range")
        return None
    return MsrFilter(default_allow, tuple(ranges))
