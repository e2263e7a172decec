# SPDX-License-Identifier: GPL-2.0-or-later
"""Performance counters, which no guest has here: as with kvm.enable_pmu=N (arch/x86/kvm/pmu.c).

User space can say all the same which events a guest may count. Its filter is checked, and has nothing to filter.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING

from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_from_user, struct_from_user
from swtdx.uapi.kvm import Cap, kvm_pmu_event_filter

if TYPE_CHECKING:
    from swtdx.linux.virt.kvm.kvm_main import Kvm

KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY = 0, 1
KVM_PMU_EVENT_FLAG_MASKED_EVENTS = 1 << 0
KVM_PMU_EVENT_FILTER_MAX_EVENTS = 300
_MASKED_ENTRY = 0xFF << 56 | 1 << 55 | 0xFFFF  # the mask of unit masks, EXCLUDE, the unit mask to match, the event
_EVENT_SIZE = 8


def kvm_vm_ioctl_set_pmu_event_filter(kvm: Kvm, arg: int) -> int:
    """KVM_SET_PMU_EVENT_FILTER. Raises OSError."""
    request = struct_from_user(kvm_pmu_event_filter, arg)
    absent = kvm.kernel.release.absent_capabilities
    valid = 0 if Cap.PMU_EVENT_MASKED_EVENTS in absent else KVM_PMU_EVENT_FLAG_MASKED_EVENTS
    if request.action not in (KVM_PMU_EVENT_ALLOW, KVM_PMU_EVENT_DENY):
        raise err(errno.EINVAL, f"action {request.action}")
    if request.flags & ~valid:
        raise err(errno.EINVAL, f"flags {request.flags:#x}")
    if request.nevents > KVM_PMU_EVENT_FILTER_MAX_EVENTS:
        raise err(errno.E2BIG, f"{request.nevents} events, at most {KVM_PMU_EVENT_FILTER_MAX_EVENTS} are possible")
    data = copy_from_user(arg + ctypes.sizeof(kvm_pmu_event_filter), _EVENT_SIZE * request.nevents)
    if request.flags & KVM_PMU_EVENT_FLAG_MASKED_EVENTS:
        for at in range(0, len(data), _EVENT_SIZE):
            event = int.from_bytes(data[at : at + _EVENT_SIZE], "little")
            if event & ~_MASKED_ENTRY:
                raise err(errno.EINVAL, f"event {event:#x} has bits that are none of a masked entry")
    return 0
