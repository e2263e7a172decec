# SPDX-License-Identifier: GPL-2.0-or-later
"""Interrupts and timers of a VM that is saved and loaded: what is on its way is neither lost nor doubled.

Expectations: kvm_vcpu_ioctl_get_lapic (sync_pir_to_irr), kvm_apic_set_state (apicv_pre_state_restore, apic_update_lvtt,
__start_apic_timer from TMCCT), kvm_vm_ioctl_set_pit2 and create_pit_timer in arch/x86/kvm of Linux 6.16.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Vm
from tests.linux.arch.x86.kvm.vmx.test_vmx import Machine

VECTOR, OTHER = 0x55, 0x66
IRR, SPIV, LVTT, TMICT, TMCCT, TDCR = 0x200, 0xF0, 0x320, 0x380, 0x390, 0x3E0
ONE_SHOT, PERIODIC, DEADLINE = 0, 1 << 17, 2 << 17
BY_ONE = 0b1011
TSC_DEADLINE, TSC = 0x6E0, 0x10
LONG = 4_000_000_000
"""Ticks of the 1 GHz bus: 4 seconds."""


@pytest.fixture
def make() -> Iterator[Callable[..., Machine]]:
    machines: list[Machine] = []

    def build(setup: Callable[[Vm], None] = Vm.split_irqchip) -> Machine:
        machines.append(Machine(open_kernel("emulated"), setup))
        return machines[-1]

    yield build
    for machine in machines:
        machine.close()


def registers(machine: Machine, **values: int) -> k.kvm_lapic_state:
    """The APIC's state with some registers changed; ``_320=7`` is LVTT."""
    state = machine.vcpu.get_lapic()
    for name, value in {"_f0": 0x1FF, "_3e0": BY_ONE, **values}.items():
        put(state, int(name[1:], 16), value)
    return state


def put(state: k.kvm_lapic_state, register: int, value: int) -> None:
    for offset, byte in enumerate(value.to_bytes(4, "little")):
        state.regs[register + offset] = byte


def get(machine: Machine, register: int) -> int:
    return int.from_bytes(bytes(machine.vcpu.get_lapic().regs[register : register + 4]), "little")


def requested(machine: Machine, vector: int = VECTOR) -> bool:
    return bool(get(machine, IRR + 0x10 * (vector >> 5)) >> (vector & 31) & 1)


def comes(machine: Machine, vector: int = VECTOR, seconds: float = 10) -> bool:
    """Whether an interrupt is requested within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if requested(machine, vector):
            return True
        time.sleep(0.005)
    return False


def arm(machine: Machine, milliseconds: int) -> int:
    """Set the deadline; the value written."""
    now = machine.vcpu.get_msrs([TSC])[TSC]
    deadline = now + milliseconds * machine.vcpu.get_tsc_khz()
    machine.vcpu.set_msrs({TSC_DEADLINE: deadline})
    return deadline


# --- Interrupts -------------------------------------------------------------------------------------------------------


def test_an_interrupt_on_its_way_is_in_the_state(make: Callable[..., Machine]) -> None:
    first, second = make(), make()
    first.vcpu.set_lapic(registers(first))
    for vector in (VECTOR, OTHER, 0xFE):
        first.vm.signal_msi(0xFEE00000, vector)
    state = first.vcpu.get_lapic()
    second.vcpu.set_lapic(state)
    for machine in (first, second):
        assert all(requested(machine, vector) for vector in (VECTOR, OTHER, 0xFE))


def test_loading_a_state_forgets_what_was_on_its_way(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.vcpu.set_lapic(registers(machine))
    state = machine.vcpu.get_lapic()
    for vector in (VECTOR, OTHER):
        machine.vm.signal_msi(0xFEE00000, vector)
    machine.vcpu.set_lapic(state)
    assert not requested(machine)
    assert not requested(machine, OTHER)
    machine.vm.signal_msi(0xFEE00000, VECTOR)
    assert requested(machine)


# --- The APIC's timer -------------------------------------------------------------------------------------------------


def test_a_deadline_survives_the_loading_of_the_apic(make: Callable[..., Machine]) -> None:
    """In either order of the two ioctls."""
    machine = make()
    machine.vcpu.set_lapic(registers(machine, _320=DEADLINE | VECTOR))
    deadline = arm(machine, 50)
    machine.vcpu.set_lapic(machine.vcpu.get_lapic())
    assert machine.vcpu.get_msrs([TSC_DEADLINE])[TSC_DEADLINE] in (deadline, 0)
    assert comes(machine)


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC])
def test_a_deadline_is_void_in_another_mode(make: Callable[..., Machine], mode: int) -> None:
    machine = make()
    machine.vcpu.set_lapic(registers(machine, _320=DEADLINE | VECTOR))
    arm(machine, 60_000)
    machine.vcpu.set_lapic(registers(machine, _320=mode | VECTOR))
    assert machine.vcpu.get_msrs([TSC_DEADLINE])[TSC_DEADLINE] == 0


@pytest.mark.parametrize("mode", [ONE_SHOT, PERIODIC])
def test_what_was_left_of_a_count_is_left_again(make: Callable[..., Machine], mode: int) -> None:
    machine = make()
    machine.vcpu.set_lapic(registers(machine, _320=mode | VECTOR, _380=LONG, _390=10_000_000))
    assert get(machine, TMICT) == LONG
    assert get(machine, TMCCT) <= 10_000_000 or requested(machine)
    assert comes(machine, seconds=3.5)


def test_a_one_shot_that_was_over_fires_and_a_periodic_one_starts_again(make: Callable[..., Machine]) -> None:
    """As __start_apic_timer has it: a count of 0 is a deadline now, or a whole period."""
    machine = make()
    machine.vcpu.set_lapic(registers(machine, _320=ONE_SHOT | VECTOR, _380=LONG, _390=0))
    assert comes(machine, seconds=3.5)
    machine.vcpu.set_lapic(registers(machine, _320=PERIODIC | OTHER, _380=LONG, _390=0))
    assert get(machine, TMCCT) > LONG // 2


def test_more_than_the_whole_count_is_the_whole_count(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.vcpu.set_lapic(registers(machine, _320=PERIODIC | VECTOR, _380=20_000_000, _390=LONG))
    assert comes(machine, seconds=3.5)


# --- The 8254 ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def pit(make: Callable[..., Machine]) -> Machine:
    def irqchip_and_pit(vm: Vm) -> None:
        vm.create_irqchip()
        vm.create_pit2()

    return make(irqchip_and_pit)


def ticks(machine: Machine, seconds: float) -> bool:
    """Whether IRQ 0 is requested of the PIC within ``seconds``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if machine.vm.get_irqchip(0).chip.pic.irr & 1:
            return True
        time.sleep(0.002)
    return False


def program(machine: Machine, flags: int) -> None:
    state = machine.vm.get_pit2()
    state.channels[0].mode, state.channels[0].count = 2, 1193
    state.flags = flags
    machine.vm.set_pit2(state)


def test_a_timer_that_is_not_programmed_does_not_tick(pit: Machine) -> None:
    assert pit.vm.get_pit2().channels[0].mode == 0xFF
    assert not ticks(pit, 0.2)


def test_the_hpet_takes_the_place_of_channel_0_and_gives_it_back(pit: Machine) -> None:
    program(pit, k.KVM_PIT_FLAGS_HPET_LEGACY)
    assert not ticks(pit, 0.2)
    program(pit, 0)
    assert ticks(pit, 10)
