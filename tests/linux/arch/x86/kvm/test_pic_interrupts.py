# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether an interrupt of the PIC, or of user space in its place, reaches a vCPU that has a local APIC in the kernel.

Expectations: kvm_apic_accept_pic_intr (LINT0 unmasked in ExtINT mode, or the APIC disabled by IA32_APIC_BASE),
kvm_cpu_accept_dm_intr, dm_request_for_irq_injection in arch/x86/kvm.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import KvmError, Vm
from tests.linux.arch.x86.kvm.vmx.test_vmx import CODE, HLT, Machine, flat

pytestmark = pytest.mark.usefixtures("watchdog")

LVT0, SPIV = 0x350, 0xF0
MASKED, EXTINT, FIXED = 0x10000, 0x700, 0
STI_NOP_NOP_OUT = "fb9090e610f4"
PATIENCE = 10


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(open_kernel("emulated"), Vm.split_irqchip)
    yield machine
    machine.close()


def set_apic(machine: Machine, *, lint0: int, enabled: bool = True) -> None:
    state = machine.vcpu.get_lapic()
    for register, value in ((LVT0, lint0), (SPIV, 0x1FF)):
        for offset, byte in enumerate(value.to_bytes(4, "little")):
            state.regs[register + offset] = byte
    machine.vcpu.set_lapic(state)
    sregs = machine.vcpu.get_sregs()
    sregs.apic_base = sregs.apic_base & ~0x800 | (0x800 if enabled else 0)
    machine.vcpu.set_sregs(sregs)


def run(machine: Machine, seconds: float = PATIENCE) -> int | None:
    """KVM_RUN; the exit reason, or None if it made no progress."""
    result: list[int | None] = []

    def enter() -> None:
        try:
            machine.vcpu.run()
            result.append(int(machine.vcpu.exit_reason))
        except KvmError as error:
            result.append(None if error.errno == errno.EINTR else -(error.errno or 0))

    thread = threading.Thread(target=enter, daemon=True)
    thread.start()
    thread.join(seconds)
    machine.vcpu.kvm_run.immediate_exit = 1
    thread.join(PATIENCE)
    machine.vcpu.kvm_run.immediate_exit = 0
    return result[0]


REACHES = [(EXTINT, True), (MASKED | EXTINT, False), (FIXED, False), (MASKED, False)]


@pytest.mark.parametrize(("lint0", "reaches"), REACHES)
@pytest.mark.parametrize("enabled", [True, False], ids=["APIC on", "APIC off"])
def test_a_window_opens_only_for_who_can_use_it(machine: Machine, lint0: int, reaches: bool, enabled: bool) -> None:
    flat(machine.vcpu)
    machine.load(STI_NOP_NOP_OUT)
    set_apic(machine, lint0=lint0, enabled=enabled)
    machine.vcpu.kvm_run.request_interrupt_window = 1
    expected = k.Exit.IRQ_WINDOW_OPEN if reaches or not enabled else k.Exit.IO
    assert run(machine) == expected
    assert machine.vcpu.kvm_run.ready_for_interrupt_injection == int(reaches or not enabled)


@pytest.mark.parametrize(("lint0", "reaches"), REACHES)
@pytest.mark.parametrize("enabled", [True, False], ids=["APIC on", "APIC off"])
def test_an_injected_interrupt_ends_a_halt_where_it_is_taken(
    machine: Machine, lint0: int, reaches: bool, enabled: bool
) -> None:
    flat(machine.vcpu)
    machine.load("fb90f4e620" + HLT)  # sti; nop; hlt; out 0x20
    machine.gate(0x40, "e630cf")  # out 0x30; iret
    set_apic(machine, lint0=lint0, enabled=enabled)
    machine.vcpu.interrupt(0x40)
    if reaches or not enabled:
        assert run(machine) == k.Exit.IO
        assert machine.vcpu.kvm_run.io.port == 0x30
    else:
        assert run(machine, 0.3) is None
        assert machine.vcpu.get_regs().rip == CODE + 3, "it was woken for an interrupt that it cannot take"


@pytest.mark.parametrize(("lint0", "reaches"), REACHES)
@pytest.mark.parametrize("enabled", [True, False], ids=["APIC on", "APIC off"])
def test_the_pic_in_the_kernel(lint0: int, reaches: bool, enabled: bool) -> None:
    machine = Machine(open_kernel("emulated"), Vm.create_irqchip)
    flat(machine.vcpu)
    initialise = "b011e620 b020e621 b004e621 b001e621 b0fee621".replace(" ", "")  # vectors from 0x20, line 0 open
    machine.load(initialise + "fb90f4e631" + HLT)
    machine.gate(0x20, "e630cf")
    set_apic(machine, lint0=lint0, enabled=enabled)

    over = threading.Event()

    def tick() -> None:
        """Again and again: an edge that comes before the guest has initialised the PIC is lost."""
        while not over.wait(0.05):
            machine.vm.irq_line(0, 1)
            machine.vm.irq_line(0, 0)

    ticking = threading.Thread(target=tick, daemon=True)
    ticking.start()
    if reaches or not enabled:
        assert run(machine) == k.Exit.IO
        assert machine.vcpu.kvm_run.io.port == 0x30
    else:
        assert run(machine, 0.6) is None
    over.set()
    ticking.join()
    machine.close()
