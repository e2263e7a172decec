# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM_GET_x gives back after KVM_SET_x, at the values where KVM and a processor part.

Rows come from arch/x86/kvm/x86.c, regs.c, lapic.c and vmx/vmx.c. What does not hang on the kind of processor is
compared with the machine's own KVM, too.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError
from testing.long_mode import CODE, STACK, LongModeVm, split_irqchip

TPR, PPR = 0x80, 0xA0


@pytest.fixture(params=["emulated", "host"])
def machine(request: pytest.FixtureRequest) -> Iterator[LongModeVm]:
    """On both kernels."""
    if request.param == "host":
        request.getfixturevalue("host_kvm")
    with Kvm(open_kernel(request.param)) as kvm, LongModeVm(kvm, setup=split_irqchip) as made:
        yield made


@pytest.fixture
def ours() -> Iterator[LongModeVm]:
    """On the emulated kernel: what is Intel's."""
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm, setup=split_irqchip) as made:
        yield made


def refusal(machine: LongModeVm, request: Any, argument: ctypes.Structure) -> int:
    try:
        machine.vcpu.put(request, argument)
    except KvmError as error:
        return error.errno or 0
    return 0


# --- debug registers and XCR0 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dr6", "dr7"), [(0, 0), (0xFFFF0FF0, 0x400), (0xFFFFFFFF, 0xFFFFFFFF), (1 << 12, 1 << 11)])
def test_debug_registers_read_as_they_were_set(machine: LongModeVm, dr6: int, dr7: int) -> None:
    registers = k.kvm_debugregs(dr6=dr6, dr7=dr7)
    machine.vcpu.put(k.KVM_SET_DEBUGREGS, registers)
    assert bytes(machine.vcpu.fetch(k.KVM_GET_DEBUGREGS, k.kvm_debugregs)) == bytes(registers)


@pytest.mark.parametrize(
    ("values", "expected", "left"),
    [
        ([(0, 3), (0, 7)], 0, 3),  # of several the first
        ([(0, 3), (0, 0)], 0, 3),
        ([(1, 0xFF00), (0, 3)], 0, 3),  # others than XCR0 are passed over
        ([(0, 0), (0, 3)], errno.EINVAL, 1),
        ([(0, 2)], errno.EINVAL, 1),
        ([(0, 5)], errno.EINVAL, 1),
        ([(9, 2)], 0, 1),
    ],
)
def test_of_several_values_for_xcr0_the_first_counts(
    machine: LongModeVm, values: list[tuple[int, int]], expected: int, left: int
) -> None:
    xcrs = k.kvm_xcrs(nr_xcrs=len(values))
    for entry, (number, value) in zip(xcrs.xcrs, values, strict=False):
        entry.xcr, entry.value = number, value
    assert refusal(machine, k.KVM_SET_XCRS, xcrs) == expected
    assert machine.vcpu.fetch(k.KVM_GET_XCRS, k.kvm_xcrs).xcrs[0].value == left


# --- FPU and XSAVE ----------------------------------------------------------------------------------------------------


def area(components: int, mxcsr: int = 0x1F80) -> k.kvm_xsave:
    image = bytearray(4096)
    struct.pack_into("<H", image, 0, 0x37F)
    struct.pack_into("<I", image, 24, mxcsr)
    struct.pack_into("<Q", image, 512, components)
    return k.kvm_xsave.from_buffer_copy(image)


def in_use(machine: LongModeVm) -> int:
    return int(struct.unpack_from("<Q", bytes(machine.vcpu.fetch(k.KVM_GET_XSAVE, k.kvm_xsave)), 512)[0])


@pytest.mark.parametrize("components", range(8))
def test_xstate_bv_reads_as_it_was_set(machine: LongModeVm, components: int) -> None:
    machine.vcpu.put(k.KVM_SET_XSAVE, area(components))
    assert in_use(machine) == components


def test_a_new_vcpu_has_nothing_in_use(machine: LongModeVm) -> None:
    assert in_use(machine) == 0


@pytest.mark.parametrize("at", range(528, 576, 8))
def test_reserved_bytes_of_the_header(machine: LongModeVm, at: int) -> None:
    image = bytearray(area(7))
    image[at + 7] = 1
    assert refusal(machine, k.KVM_SET_XSAVE, k.kvm_xsave.from_buffer_copy(image)) == errno.EINVAL


@pytest.mark.parametrize(("components", "expected"), [(0, 0), (1, 22), (2, 22), (4, 22), (7, 22)])
def test_reserved_bits_of_mxcsr_count_with_any_of_the_three(
    machine: LongModeVm, components: int, expected: int
) -> None:
    assert refusal(machine, k.KVM_SET_XSAVE, area(components, 1 << 16)) == expected


def test_pkru_stays_where_its_bit_is_clear(ours: LongModeVm) -> None:
    with_pkru = bytearray(area(1 << 9))
    leaf = next(entry for entry in ours.vcpu.get_cpuid2() if (entry.function, entry.index) == (0xD, 9))
    struct.pack_into("<I", with_pkru, leaf.ebx, 0x5555)
    ours.vcpu.put(k.KVM_SET_XSAVE, k.kvm_xsave.from_buffer_copy(with_pkru))
    ours.vcpu.put(k.KVM_SET_XSAVE, area(3))
    assert in_use(ours) == 3
    ours.vcpu.put(k.KVM_SET_XSAVE, area(0))
    sregs = ours.vcpu.get_sregs()
    sregs.cr4 |= 1 << 22
    ours.vcpu.set_sregs(sregs)
    ours.load(bytes.fromhex("31c90f01eee780"))  # rdpkru; out 0x80, eax
    ours.vcpu.run()
    assert ours.vcpu.io_data() == (0x5555).to_bytes(4, "little")


STORE = bytes.fromhex("0f110425009000009bd93c25109000000fae1c2518900000e680")  # movups, fnstcw, stmxcsr; out 0x80


@pytest.mark.parametrize(("components", "shown"), [(None, False), (3, True)])
def test_what_set_fpu_writes_counts_where_it_is_in_use(ours: LongModeVm, components: int | None, shown: bool) -> None:
    """The machine's own KVM loses it, too: a program in C showed that (it cannot be run in this mode on all hosts)."""
    sregs = ours.vcpu.get_sregs()
    sregs.cr4 |= 0x600
    ours.vcpu.set_sregs(sregs)
    ours.load(STORE)
    if components is not None:
        ours.vcpu.put(k.KVM_SET_XSAVE, area(components))
    fpu = k.kvm_fpu(fcw=0x27F, mxcsr=0x1FA0)
    fpu.xmm[0][:] = [0x5A] * 16
    ours.vcpu.put(k.KVM_SET_FPU, fpu)
    assert in_use(ours) == (components or 0)
    assert ours.vcpu.get_fpu().fcw == 0x27F, "it is in the image"
    ours.vcpu.run()
    assert ours.vcpu.exit_reason == k.Exit.IO
    seen = ours.memory[0x9000], *struct.unpack_from("<H6xI", ours.memory, 0x9010)
    assert seen == ((0x5A, 0x27F, 0x1F80) if shown else (0, 0x37F, 0x1F80))


def test_get_fpu_has_all_bytes_that_were_set_but_mxcsr(machine: LongModeVm) -> None:
    given = k.kvm_fpu.from_buffer_copy(bytes([0xA5]) * ctypes.sizeof(k.kvm_fpu))
    machine.vcpu.put(k.KVM_SET_FPU, given)
    given.mxcsr = given.pad1 = given.pad2 = 0
    assert bytes(machine.vcpu.fetch(k.KVM_GET_FPU, k.kvm_fpu)) == bytes(given)


# --- events -----------------------------------------------------------------------------------------------------------


def test_events_and_registers(machine: LongModeVm) -> None:
    """KVM_SET_REGS drops an exception that is queued, and nothing that was being delivered."""
    seen = []
    for members in ({"exception": 6}, {"interrupt": 0x44}, {"nmi": 1}):
        events = k.kvm_vcpu_events()
        for name, number in members.items():
            part = getattr(events, name)
            part.injected = 1
            if name != "nmi":
                part.nr = number
        machine.vcpu.set_vcpu_events(events)
        machine.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=0x202, rsp=STACK))
        left = machine.vcpu.fetch(k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events)
        seen.append((left.exception.injected, left.interrupt.injected, left.nmi.injected))
    assert seen == [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    machine.vcpu.set_vcpu_events(k.kvm_vcpu_events())
    machine.vcpu.put(k.KVM_SET_GUEST_DEBUG, k.kvm_guest_debug(control=1 << 18 | 1))  # KVM_GUESTDBG_INJECT_DB
    queued = machine.vcpu.fetch(k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events)
    assert (queued.exception.injected, queued.exception.pending, queued.exception.nr) == (1, 1, 1)
    machine.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2, rsp=STACK))
    left = machine.vcpu.fetch(k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events)
    assert (left.exception.injected, left.exception.pending) == (0, 0)


def test_a_software_exception_is_not_reported(machine: LongModeVm) -> None:
    machine.vcpu.put(k.KVM_SET_GUEST_DEBUG, k.kvm_guest_debug(control=1 << 19 | 1))  # KVM_GUESTDBG_INJECT_BP
    queued = machine.vcpu.fetch(k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events)
    assert (queued.exception.injected, queued.exception.pending, queued.exception.nr) == (0, 0, 3)


@pytest.mark.parametrize(("vector", "payload"), [(1, 0x4001), (14, 0x1234000)])
def test_the_payload_of_a_queued_exception(ours: LongModeVm, vector: int, payload: int) -> None:
    """DR6 or CR2 gets it when the exception is delivered, not before (kvm_deliver_exception_payload)."""
    ours.vm.enable_cap(k.Cap.EXCEPTION_PAYLOAD, 1)
    ours.load(b"\xf4")
    events = k.kvm_vcpu_events(flags=0x10, exception_has_payload=1, exception_payload=payload)
    events.exception.pending, events.exception.nr = 1, vector
    events.exception.has_error_code = int(vector == 14)
    ours.vcpu.set_vcpu_events(events)
    before = ours.vcpu.fetch(k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events)
    assert (before.exception.pending, before.exception.injected, before.exception_payload) == (1, 0, payload)
    assert (ours.vcpu.get_sregs().cr2, ours.vcpu.fetch(k.KVM_GET_DEBUGREGS, k.kvm_debugregs).dr6) == (0, 0xFFFF0FF0)
    ours.vcpu.run()
    assert (ours.vcpu.exit_reason, ours.vcpu.io_data()) == (k.Exit.IO, bytes([vector]))
    dr6 = ours.vcpu.fetch(k.KVM_GET_DEBUGREGS, k.kvm_debugregs).dr6
    assert (ours.vcpu.get_sregs().cr2, dr6) == ((payload, 0xFFFF0FF0) if vector == 14 else (0, 0xFFFF4FF1))


# --- system registers, local APIC, mp_state ---------------------------------------------------------------------------


@pytest.mark.parametrize("cr0", [0x80010021, 0x8001FFF1, 0x9FFF0031])
def test_cr0_reads_as_it_was_set(machine: LongModeVm, cr0: int) -> None:
    sregs = machine.vcpu.get_sregs()
    sregs.cr0 = cr0
    machine.vcpu.set_sregs(sregs)
    assert machine.vcpu.get_sregs().cr0 == cr0


@pytest.mark.parametrize(("cr8", "expected"), [(5, 0x50), (15, 0xF0), (16, 0), (0x1F, 0), (1 << 63, 0)])
def test_cr8_sets_both_priorities_and_a_bad_one_none(machine: LongModeVm, cr8: int, expected: int) -> None:
    sregs = machine.vcpu.get_sregs()
    sregs.cr8 = cr8
    machine.vcpu.set_sregs(sregs)
    state = bytes(machine.vcpu.fetch(k.KVM_GET_LAPIC, k.kvm_lapic_state))
    assert (state[TPR], state[PPR]) == (expected, expected)


def test_the_processor_priority_is_computed(machine: LongModeVm) -> None:
    state = bytearray(machine.vcpu.fetch(k.KVM_GET_LAPIC, k.kvm_lapic_state))
    state[TPR], state[PPR] = 0x35, 0x99
    machine.vcpu.put(k.KVM_SET_LAPIC, k.kvm_lapic_state.from_buffer_copy(state))
    assert bytes(machine.vcpu.fetch(k.KVM_GET_LAPIC, k.kvm_lapic_state))[PPR] == 0x35


def test_of_several_interrupts_in_the_bitmap_the_first_is_delivered(ours: LongModeVm) -> None:
    ours.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=0x202, rsp=STACK))
    sregs = ours.vcpu.get_sregs()
    sregs.interrupt_bitmap[0], sregs.interrupt_bitmap[1] = 1 << 33 | 1 << 40, 2
    ours.vcpu.set_sregs(sregs)
    assert list(ours.vcpu.get_sregs().interrupt_bitmap) == [1 << 33, 0, 0, 0]
    ours.vcpu.run()
    assert ours.vcpu.io_data() == bytes([33])


@pytest.mark.parametrize("name", ["cs", "ds", "ss", "fs", "ldt", "tr"])
def test_a_segment_that_is_not_usable_keeps_its_attributes(ours: LongModeVm, name: str) -> None:
    """vmx_get_segment; and vmx_set_segment marks all but LDTR as accessed."""
    sregs = ours.vcpu.get_sregs()
    before = k.kvm_segment(base=0x1000, limit=0x12345, selector=0x33, type=0x12, s=3, dpl=7, avl=1, l=1, db=3, g=1)
    before.unusable = 7
    setattr(sregs, name, before)
    ours.vcpu.set_sregs(sregs)
    after = getattr(ours.vcpu.get_sregs(), name)
    assert [getattr(after, member) for member in ("base", "limit", "selector")] == [0x1000, 0x12345, 0x33]
    assert (after.type, after.s, after.dpl, after.avl, after.l) == (2 if name == "ldt" else 3, 1, 3, 1, 1)
    assert (after.db, after.g, after.present, after.unusable) == (1, 1, 0, 1)


def test_a_sipi_is_taken_when_the_state_is_read(machine: LongModeVm) -> None:
    machine.vcpu.put(k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=k.KVM_MP_STATE_SIPI_RECEIVED))
    state = machine.vcpu.fetch(k.KVM_GET_MP_STATE, k.kvm_mp_state).mp_state
    assert state == k.KVM_MP_STATE_RUNNABLE
    assert machine.vcpu.get_regs().rip == 0


def test_a_boot_processor_at_its_reset_vector_no_longer_halts(machine: LongModeVm) -> None:
    vcpu = machine.vcpu
    vcpu.put(k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=k.KVM_MP_STATE_HALTED))
    vcpu.set_regs(k.kvm_regs(rip=0xFFF0, rflags=2))
    sregs = vcpu.get_sregs()
    sregs.cr0, sregs.cr4, sregs.efer = 0x60000010, 0, 0
    sregs.cs = k.kvm_segment(base=0xFFFF0000, selector=0xF000, limit=0xFFFF, type=11, s=1, present=1)
    vcpu.set_sregs(sregs)
    assert vcpu.fetch(k.KVM_GET_MP_STATE, k.kvm_mp_state).mp_state == k.KVM_MP_STATE_RUNNABLE
