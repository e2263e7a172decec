# SPDX-License-Identifier: GPL-2.0-or-later
"""How many NMIs a vCPU holds (process_nmi, arch/x86/kvm/x86.c), and what comes first; the timer's current count.

The same rules as kvm-unit-tests' "multiple nmi", "pending nmi" and "apic change mode" (x86/apic.c).
"""

from __future__ import annotations

import struct

import pytest

from swtdx.linux.arch.x86.kvm.vmx.vmx import vmx_deliver_interrupt
from swtdx.linux.kernel import EmulatedKernel
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import IDT, LongModeVm, rdmsr, split_irqchip, wrmsr

NMI, HANDLER, COUNT = 4 << 8, 0xA000, 0x9000
X2APIC_SPIV, X2APIC_ICR, X2APIC_LVTT, X2APIC_TMICT, X2APIC_TMCCT, X2APIC_TDCR = 0x80F, 0x830, 0x832, 0x838, 0x839, 0x83E
MASKED, PERIODIC = 1 << 16, 1 << 17
INC_COUNT = bytes.fromhex("ff042500900000")  # inc dword [0x9000]
IRETQ = bytes.fromhex("48cf")


def handler(guest: LongModeVm, code: bytes) -> None:
    """Let NMIs go to ``code``."""
    guest.load(code, HANDLER)
    struct.pack_into("<HHBBHII", guest.memory, IDT + 32, HANDLER, 8, 0, 0x8E, 0, 0, 0)


def counted(guest: LongModeVm) -> int:
    return int.from_bytes(guest.memory[COUNT : COUNT + 4], "little")


@pytest.mark.parametrize("sent", [1, 2, 10])
def test_one_is_latched_while_one_is_handled(guest: LongModeVm, sent: int) -> None:
    more = wrmsr(X2APIC_ICR, NMI) + bytes.fromhex("0f30") * (sent - 1)
    first = bytes.fromhex("833c250090000001 75") + bytes([len(more)])  # cmp dword [0x9000], 1; jne
    handler(guest, INC_COUNT + first + more + IRETQ)
    assert guest.run(wrmsr(X2APIC_ICR, NMI) + b"\x90" * 16) is None
    assert counted(guest) == 2


@pytest.mark.parametrize(("sent", "delivered"), [(1, 1), (2, 2), (3, 2), (200, 2)])
def test_two_that_come_at_once_are_delivered(guest: LongModeVm, sent: int, delivered: int) -> None:
    handler(guest, INC_COUNT + IRETQ)
    for _ in range(sent):
        guest.vcpu.nmi()
    assert guest.run(b"\x90" * 16) is None
    assert counted(guest) == delivered


@pytest.mark.parametrize(("masked", "kept"), [(False, 2), (True, 1)])
def test_user_space_sees_what_is_kept(guest: LongModeVm, masked: bool, kept: int) -> None:
    events = guest.vcpu.get_vcpu_events()
    events.flags, events.nmi.pending, events.nmi.masked = k.KVM_VCPUEVENT_VALID_NMI_PENDING, 200, masked
    guest.vcpu.set_vcpu_events(events)
    assert guest.vcpu.get_vcpu_events().nmi.pending == kept


def test_an_interrupt_does_not_overtake_an_nmi(monkeypatch: pytest.MonkeyPatch) -> None:
    """Posted into the running guest it would: the NMI waits for the exit that it asks for."""
    kernel = open_kernel("emulated")
    assert isinstance(kernel, EmulatedKernel)

    with Kvm(kernel) as kvm, LongModeVm(kvm, setup=split_irqchip):
        (vm,) = kernel.vms
        vcpu = vm.vcpus[0]
        calls: list[str] = []
        monkeypatch.setattr(vcpu, "in_guest", True)
        monkeypatch.setattr(vcpu, "kick", lambda: calls.append("kick"))
        vcpu.queue_nmi()
        vmx_deliver_interrupt(vcpu, 0x44)
        assert calls == ["kick", "kick"]
        monkeypatch.undo()
        vcpu.nmi_queued = 0


@pytest.mark.parametrize("nmis", [1, 2])
def test_what_comes_right_before_the_entry_is_seen(monkeypatch: pytest.MonkeyPatch, nmis: int) -> None:
    """NMIs, then an interrupt, when the vCPU has looked for NMIs already and is not in the guest yet."""
    kernel = open_kernel("emulated")
    assert isinstance(kernel, EmulatedKernel)

    with Kvm(kernel) as kvm, LongModeVm(kvm, setup=split_irqchip) as guest:
        guest.vcpu.set_msrs({0x1B: 0xFEE00D00})
        handler(guest, INC_COUNT + IRETQ)
        (vm,) = kernel.vms
        vcpu, looks = vm.vcpus[0], []

        def look(seen: object) -> bool:
            looks.append(seen)
            if len(looks) == 1:
                for _ in range(nmis):
                    vcpu.queue_nmi()
                vmx_deliver_interrupt(vcpu, 0x44)
            return False

        assert guest.run(wrmsr(X2APIC_SPIV, 0x1FF)) is None
        monkeypatch.setattr("swtdx.linux.arch.x86.kvm.vmx.vmx._pic_output", look)
        assert guest.run(bytes.fromhex("fb90ebfd")) == 0x44  # sti; nop; jmp back
        assert counted(guest) == nmis


def current_count(guest: LongModeVm) -> int:
    assert guest.run(rdmsr(X2APIC_TMCCT)) is None
    return int(guest.vcpu.get_regs().rax & 0xFFFFFFFF)


def test_a_count_that_is_over_stays_at_0_in_periodic_mode(guest: LongModeVm) -> None:
    start = wrmsr(X2APIC_LVTT, MASKED | 0x40) + wrmsr(X2APIC_TDCR, 0xB) + wrmsr(X2APIC_TMICT, 100_000)
    assert guest.run(start) is None
    while current_count(guest):
        pass
    assert guest.run(wrmsr(X2APIC_LVTT, PERIODIC | MASKED | 0x40)) is None
    assert [current_count(guest) for _ in range(3)] == [0, 0, 0]
    assert guest.run(wrmsr(X2APIC_TMICT, 1 << 31)) is None
    assert current_count(guest) > 1 << 30


def test_a_count_goes_on_when_its_mode_changes(guest: LongModeVm) -> None:
    start = wrmsr(X2APIC_LVTT, MASKED | 0x40) + wrmsr(X2APIC_TDCR, 0xB) + wrmsr(X2APIC_TMICT, 0xFFFFFFFF)
    assert guest.run(start) is None
    before = current_count(guest)
    assert guest.run(wrmsr(X2APIC_LVTT, PERIODIC | MASKED | 0x40)) is None
    middle = current_count(guest)
    assert guest.run(wrmsr(X2APIC_LVTT, MASKED | 0x40)) is None
    assert before > middle > current_count(guest) > 0
