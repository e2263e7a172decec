# SPDX-License-Identifier: GPL-2.0-or-later
"""What these tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm
from testing.long_mode import LongModeVm, split_irqchip


@pytest.fixture
def guest() -> Iterator[LongModeVm]:
    """A VM with its local APIC in the kernel and in x2APIC mode."""
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=split_irqchip) as made:
        made.vcpu.set_msrs({0x1B: 0xFEE00D00})
        yield made
