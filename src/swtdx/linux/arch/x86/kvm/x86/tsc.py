# SPDX-License-Identifier: GPL-2.0-or-later
"""One time for all vCPUs of a normal VM: whose TSC writes are meant as "the same as the others" (kvm_synchronize_tsc).

vCPUs are created, and their TSCs written by user space, one after the other. Were each write taken at its word the
counters would differ by the time in between, and Linux, which compares them when it starts a processor, would not trust
them. So a new vCPU, a write of 0, and a write that is within a second of what the counter would show anyway, get the
offset that the others have. A TD's TSC is the module's: one offset for the whole TD.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

_MASK64 = (1 << 64) - 1


class TscGeneration:
    """What struct kvm_arch knows of the last write that was none of these: ``offset`` at ``multiplier``."""

    def __init__(self) -> None:
        self.lock = threading.Lock()  # tsc_write_lock
        self.user_set = False
        self.offset = 0
        self.multiplier: int | None = None

    def offset_for(self, vcpu: Vcpu, multiplier: int, value: int | None) -> int:
        """Return the offset with which a vCPU's TSC continues from now.

        ``value``: what user space wrote; None: it is new.
        """
        scaled = vcpu.kvm.processor.rdtsc() * multiplier >> 48
        with self.lock:
            synchronizing = not value
            if value and self.user_set:
                ahead = value - (scaled + self.offset & _MASK64)
                synchronizing = abs(ahead) < vcpu.virtual_tsc_khz * 1000
            if value is not None:
                self.user_set = True
            if not synchronizing or self.multiplier != multiplier:
                self.offset, self.multiplier = (value or 0) - scaled & _MASK64, multiplier
            return self.offset
