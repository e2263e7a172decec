# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_PMU_EVENT_FILTER, which KVM has without performance counters, too (arch/x86/kvm/pmu.c, 6.16)."""

from __future__ import annotations

import ctypes
import errno
import struct

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError

MASKED = 1 << 0
EXCLUDE, BIT_16, BIT_54 = 1 << 55, 1 << 16, 1 << 54


def ask(release: str, action: int, flags: int, nevents: int, events: tuple[int, ...]) -> int:
    """The errno."""
    request = bytearray(
        struct.pack("<8I", action, nevents, 0, flags, 0, 0, 0, 0) + struct.pack(f"<{len(events)}Q", *events)
    )
    with Kvm(open_kernel("emulated", kernel_release=release)) as kvm, kvm.create_vm() as vm:
        try:
            vm.ioctl(k.KVM_SET_PMU_EVENT_FILTER, ctypes.addressof(ctypes.c_char.from_buffer(request)))
        except KvmError as error:
            return error.errno or 0
    return 0


@pytest.mark.parametrize(("action", "flags", "events", "expected"), [
    (0, 0, (), 0), (1, 0, (), 0), (2, 0, (), errno.EINVAL), (0xFFFFFFFF, 0, (), errno.EINVAL),
    (0, MASKED, (), 0), (0, 2, (), errno.EINVAL), (0, 1 << 31, (), errno.EINVAL),
    (0, 0, (BIT_16, BIT_54), 0), (0, MASKED, (0xFF00_0000_0000_FFFF, EXCLUDE), 0),
    (0, MASKED, (0, BIT_16), errno.EINVAL), (0, MASKED, (BIT_54,), errno.EINVAL),
    (0, 0, (1,) * 300, 0), (0, 0, (1,) * 301, errno.E2BIG), (2, 0, (1,) * 301, errno.EINVAL),
])  # fmt: skip
def test_arguments(action: int, flags: int, events: tuple[int, ...], expected: int) -> None:
    assert ask("7.2", action, flags, len(events), events) == expected


def test_masked_events_are_newer_than_v10() -> None:
    assert ask("v10", 0, MASKED, 0, ()) == errno.EINVAL
    with Kvm(open_kernel("emulated", kernel_release="v10")) as kvm:
        assert kvm.check_extension(k.Cap.PMU_EVENT_FILTER) == 1
        assert kvm.check_extension(k.Cap.PMU_EVENT_MASKED_EVENTS) == 0


def test_events_that_cannot_be_read() -> None:
    with Kvm(open_kernel("emulated")) as kvm, kvm.create_vm() as vm:
        with pytest.raises(KvmError) as refused:
            vm.ioctl(k.KVM_SET_PMU_EVENT_FILTER, 0)
        assert refused.value.errno == errno.EFAULT
