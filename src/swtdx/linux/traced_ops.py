# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own part of a trace: interrupts that KVM delivers to a vCPU, posted or by the virtual APIC.

What else KVM does is seen at its two edges: system calls (`uapi.traced_kernel`), SEAMCALLs (`seam.traced_module`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any

from swtdx.linux.arch.x86.kvm.vmx.main import KvmX86Ops

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu


def told(ops: KvmX86Ops, emit: Callable[[dict[str, Any]], None]) -> KvmX86Ops:
    """``ops`` with a ``deliver_interrupt`` that tells of each interrupt."""
    deliver = ops.deliver_interrupt

    def deliver_interrupt(vcpu: Vcpu, vector: int) -> None:
        began = perf_counter_ns()
        deliver(vcpu, vector)
        emit(
            {
                "kind": "event",
                "name": "interrupt",
                "t": began,
                "dur": perf_counter_ns() - began,
                "tid": threading.get_native_id(),
                "vcpu": vcpu.vcpu_id,
                "args": {"vector": f"{vector:#x}", "type": "posted" if vcpu.kvm.tdx is not None else "virtual APIC"},
            }
        )

    return replace(ops, deliver_interrupt=deliver_interrupt)
