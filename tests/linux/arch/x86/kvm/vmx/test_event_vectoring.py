# SPDX-License-Identifier: GPL-2.0-or-later
"""The delivery of an event that meets memory which is not there: KVM_EXIT_INTERNAL_ERROR, suberror DELIVERY_EV.

arch/x86/kvm/vmx/vmx.c and x86.c of Linux 6.16 (vmx_check_emulate_instruction, kvm_prepare_event_vectoring_exit): five
words of data, which are the IDT-vectoring information, the exit reason, its qualification, the address and the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import MMIO, LongModeVm

EPT_VIOLATION, DELIVERY_EV = 48, 3
EVENTS = {"ud2": ("0f0b", 6, 3), "int3": ("cc", 3, 6), "int 0x80": ("cd80", 0x80, 4), "nmi": ("ebfe", 2, 2)}


@pytest.fixture
def guest() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as made:
        yield made


@pytest.mark.parametrize("event", EVENTS)
def test_an_idt_where_there_is_no_memory(guest: LongModeVm, event: str) -> None:
    code, vector, kind = EVENTS[event]
    sregs = guest.vcpu.get_sregs()
    sregs.idt.base = MMIO
    guest.vcpu.set_sregs(sregs)
    guest.start(bytes.fromhex(code))
    if event == "nmi":
        guest.vcpu.nmi()
    assert guest.step() is k.Exit.INTERNAL_ERROR
    internal = guest.vcpu.kvm_run.internal
    assert (internal.suberror, internal.ndata) == (DELIVERY_EV, 5)
    assert internal.data[0] == 1 << 31 | kind << 8 | vector
    assert internal.data[1] == EPT_VIOLATION
    assert internal.data[2] & 1, "a read"
    assert internal.data[3] == MMIO + 16 * vector
    again = guest.step(), guest.vcpu.kvm_run.internal.data[3]
    assert again == (k.Exit.INTERNAL_ERROR, MMIO + 16 * vector), "the event still waits"


def test_a_stack_where_there_is_no_memory(guest: LongModeVm) -> None:
    guest.load(bytes.fromhex("0f0b"))
    guest.vcpu.set_regs(k.kvm_regs(rip=0x1000, rflags=2, rsp=MMIO + 0x1000))
    assert guest.step() is k.Exit.INTERNAL_ERROR
    internal = guest.vcpu.kvm_run.internal
    assert (internal.suberror, internal.data[1]) == (DELIVERY_EV, EPT_VIOLATION)
    assert internal.data[2] & 2, "a write"
    assert MMIO <= internal.data[3] < MMIO + 0x1000
