# SPDX-License-Identifier: GPL-2.0-or-later
"""The kernel's own part of a trace: interrupts that KVM delivers to a vCPU, posted or by the virtual APIC.

What else KVM does is seen at its two edges: system calls (`uapi.traced_kernel`), SEAMCALLs (`seam.traced_module`).
"""

from __future__ import annotations

import threading
from dataclasses import replace
from time import perf_counter_ns
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.vmx.main import KvmX86Ops
from swtdx.trace.event import Emit, Injected

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu


def told(ops: KvmX86Ops, emit: Emit) -> KvmX86Ops:
    """Return ``ops`` with a ``deliver_interrupt`` that reports each interrupt."""
    deliver = ops.deliver_interrupt

    def deliver_interrupt(vcpu: Vcpu, vector: int) -> None:
        began = perf_counter_ns()
        deliver(vcpu, vector)
        dur = perf_counter_ns() - began
        args = {"vector": vector, "type": "posted" if vcpu.kvm.tdx is not None else "virtual APIC"}
        emit(Injected("interrupt", began, dur, threading.get_native_id(), args, vcpu.vcpu_id))

    return replace(ops, deliver_interrupt=deliver_interrupt)
