# SPDX-License-Identifier: GPL-2.0-or-later
"""Which failed ioctls `swtdx exec` reports."""

from __future__ import annotations

import errno

import pytest

from swtdx.exec.settings import Settings
from swtdx.exec.telling import Telling
from swtdx.uapi import kvm as k


@pytest.mark.parametrize(
    ("request_", "number", "reported"),
    [
        (k.KVM_CREATE_VCPU, errno.EINVAL, True),
        (k.KVM_GET_SUPPORTED_CPUID, errno.E2BIG, False),  # a program looks for the size
        (k.KVM_RUN, errno.EINTR, False),
        (k.KVM_RUN, errno.EFAULT, True),
        (k.KVM_HAS_DEVICE_ATTR, errno.ENXIO, False),  # a question
        (k.KVM_KVMCLOCK_CTRL, errno.EINVAL, False),  # QEMU tries it whatever the guest uses
    ],
)
def test_what_programs_try_on_purpose_is_not_reported(
    capfd: pytest.CaptureFixture[str], request_: int, number: int, reported: bool
) -> None:
    for _ in range(2):
        Telling(Settings()).refused(int(request_), 0, number, "the reason")
    shown = capfd.readouterr().err
    assert shown.count("the reason") == (2 if reported else 0), "once for each process"
    assert bool(shown) is reported


@pytest.mark.parametrize(
    ("gfn", "hint"), [(0x9F, False), (0xA0, True), (0xBF, True), (0xC0, False), (0xA00, False), (0xFED45, False)]
)
def test_an_access_to_vga_memory_has_a_remedy(capfd: pytest.CaptureFixture[str], gfn: int, hint: bool) -> None:
    """QEMU's words for it are "Convert non guest_memfd backed memory region (0xa0000 ,+ 0x1000) to private"."""
    reason = f"private access to gfn {gfn:#x}, where there is no slot"
    Telling(Settings()).refused(int(k.KVM_RUN), 0, errno.EFAULT, reason)
    assert ("-vga none" in capfd.readouterr().err) is hint
