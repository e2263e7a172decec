# SPDX-License-Identifier: GPL-2.0-or-later
"""APIC virtualization and posted interrupts (SDM volume 3, chapter 30)."""

from __future__ import annotations

import struct
import threading
import time

import pytest

from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import Guest

R8, R9, RBX = 8, 9, 3
DESCRIPTOR = 0x40_0000
TPR, ISR, IRR = 0x80, 0x100, 0x200


def apic_guest(source: str) -> Guest:
    guest = Guest(source)
    guest.context.apicv = True
    guest.context.set_msr_bitmap(bytes(4096))
    guest.context.posted_interrupt_descriptor = DESCRIPTOR
    guest.handler(0x40, "inc r8\n mov ecx, 0x80b\n xor eax, eax\n xor edx, edx\n wrmsr\n iretq", 0x110000)
    guest.handler(0x80, "inc r9\n mov ecx, 0x80b\n xor eax, eax\n xor edx, edx\n wrmsr\n iretq", 0x111000)
    return guest


def post(guest: Guest, vector: int) -> None:
    """What a kernel does: the request bit, the outstanding-notification bit, the notification."""
    word = DESCRIPTOR + (vector >> 5) * 4
    old = struct.unpack("<I", guest.memory.read(word, 4))[0]
    guest.memory.write(word, struct.pack("<I", old | 1 << (vector & 31)))
    guest.memory.write(DESCRIPTOR + 32, b"\x01")
    guest.context.notify()


def test_a_posted_interrupt_is_delivered_without_an_exit() -> None:
    guest = apic_guest("sti\n lp: test r8, r8\n jz lp\n hlt")
    threading.Timer(0.02, post, (guest, 0x40)).start()
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == 1
    assert guest.context.vapic[ISR : ISR + 0x80].tobytes() == bytes(0x80)


def test_it_waits_while_interrupts_are_off_and_comes_with_sti() -> None:
    guest = apic_guest("cpuid\n mov rbx, r8\n sti\n nop\n hlt")
    assert guest.run() == ExitReason.CPUID
    guest.skip()
    post(guest, 0x40)
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[RBX], guest.context.gpr[R8]) == (0, 1)


def test_the_task_priority_holds_back_lower_classes() -> None:
    """TPR 0x50: vector 0x40 waits, 0x80 is taken; lowering it through the x2APIC MSR lets the other in."""
    guest = apic_guest("sti\n nop\n cpuid\n mov ecx, 0x808\n xor eax, eax\n xor edx, edx\n wrmsr\n nop\n hlt")
    guest.context.vapic[TPR] = 0x50
    post(guest, 0x40)
    post(guest, 0x80)
    assert guest.run() == ExitReason.CPUID
    assert (guest.context.gpr[R8], guest.context.gpr[R9]) == (0, 1)
    assert guest.context.vapic[IRR + 0x20] == 1
    guest.skip()
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == 1


def test_a_self_ipi_arrives_at_once() -> None:
    guest = apic_guest("sti\n mov ecx, 0x83f\n mov eax, 0x40\n xor edx, edx\n wrmsr\n nop\n nop\n mov rbx, r8\n hlt")
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RBX] == 1


@pytest.mark.parametrize(("value", "taken"), [(0, True), (15, True), (0x100, False), (0xFF00, False)])
def test_a_self_ipi_has_eight_bits_and_any_vector(value: int, taken: bool) -> None:
    """Bits 63:8 are reserved (10.12.11). No priority lets a vector below 16 through, and no fault refuses it."""
    guest = apic_guest(f"sti\n mov ecx, 0x83f\n mov eax, {value}\n xor edx, edx\n wrmsr\n nop\n hlt")
    guest.context.exception_bitmap = 1 << 13
    assert guest.run() == (ExitReason.HLT if taken else ExitReason.EXCEPTION_NMI)


def test_the_end_of_a_level_triggered_interrupt_exits_after_the_instruction() -> None:
    guest = apic_guest("sti\n nop\n nop\n hlt")
    guest.context.vapic[0x180 + 0x20] = 1  # TMR: 0x40 is level-triggered
    post(guest, 0x40)
    assert guest.run() == ExitReason.VIRTUALIZED_EOI
    assert guest.context.exit_qualification == 0x40
    assert guest.run() == ExitReason.HLT


def test_the_interrupt_window_opens_with_sti() -> None:
    guest = Guest("nop\n sti\n nop\n nop\n hlt")
    guest.context.interrupt_window_exiting = True
    assert guest.run() == ExitReason.INTERRUPT_WINDOW
    assert guest.context.rflags & 0x200
    guest.context.interrupt_window_exiting = False
    assert guest.run() == ExitReason.HLT


def test_a_notification_reaches_a_spinning_guest_quickly() -> None:
    """Under 20 ms is what the kernel floor promises; the processor adds one block's length."""
    guest = apic_guest("sti\n lp: test r8, r8\n jz lp\n hlt")
    taken: list[float] = []

    def later() -> None:
        taken.append(time.monotonic())
        post(guest, 0x40)

    threading.Timer(0.05, later).start()
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == 1
