# SPDX-License-Identifier: GPL-2.0-or-later
"""The machine that a program under ``swtdx exec`` finds itself on.

A VMM executes CPUID itself and compares it with what KVM says: family and model (``-cpu host``), the offsets of XSAVE's
areas. The emulated processor therefore takes both from the machine's own processor. Its memory is large and sparse and
its logical processors are many, since it is the VMM that says how much of them a guest gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.exec.settings import Settings
from swtdx.machine import boot as power_on
from swtdx.trace.event import Emit
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.traced_kernel import TracedKernel

if TYPE_CHECKING:
    from swtdx.cpu.platform import Platform
    from swtdx.machine import MachineKernel
    from swtdx.uapi.kernel import Kernel


def platform(settings: Settings) -> Platform:
    """Raises ValueError for a machine that cannot be."""
    from swtdx.cpu.platform import Platform

    return Platform(
        memory_size=settings.memory,
        logical_processors=settings.processors,
        module_version=settings.module_version,
    )


def boot(settings: Settings, emit: Emit) -> tuple[MachineKernel, Kernel]:
    """The machine's kernel, and the same as calls reach it (watched, if there is to be a trace)."""
    trace = emit if settings.trace else None
    machine = power_on(Dialect(settings.dialect), platform(settings), enable_tdx=settings.tdx, trace=trace)
    return machine, machine if trace is None else TracedKernel(machine, trace)
