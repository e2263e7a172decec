# SPDX-License-Identifier: GPL-2.0-or-later
"""The state of a virtual CPU as bytes: complete, exact, and harmless whatever the bytes are."""

from __future__ import annotations

import random

import pytest

from swtdx.cpu.vmx import EventType, ExitReason
from testing.bare_processor import CODE, Guest

EVERYTHING = """
    mov rax, 0x0123456789abcdef
    movq xmm3, rax
    fld1
    fldpi
    pushfq
    pop r8
    or r8, 0x8d5
    push r8
    popfq
    mov dr1, rax
    mov ecx, 0xc0000102
    mov eax, 0x1234
    xor edx, edx
    wrmsr
    std
    hlt
    nop
    mov rbx, 7
    hlt
"""


def at_first_halt() -> Guest:
    guest = Guest(EVERYTHING)
    guest.context.set_msr_bitmap(bytes(4096))
    assert guest.run() == ExitReason.HLT
    return guest


def test_state_comes_back_bit_for_bit() -> None:
    guest = at_first_halt()
    guest.context.set_ymm_high(bytes(range(256)))
    guest.context.inject(0x30, EventType.EXTERNAL)
    guest.context.activity_state = 1
    kept = guest.context.kept()
    other = guest.processor.new_context()
    other.go_on(kept)
    assert other.kept() == kept
    assert other.get_fpu() == guest.context.get_fpu()
    assert other.get_ymm_high() == bytes(range(256))
    assert other.rdmsr(0xC0000102) == 0x1234
    assert other.get_dr(1) == 0x0123456789ABCDEF
    assert other.idt_vectoring_info == guest.context.idt_vectoring_info != 0
    assert other.exit_reason == ExitReason.HLT


def test_a_guest_continues_from_it_as_from_the_original() -> None:
    guest = at_first_halt()
    kept = guest.context.kept()
    ends = []
    for _ in range(3):
        guest.skip()
        assert guest.run() == ExitReason.HLT
        ends.append((guest.context.gpr[3], guest.context.rip, guest.context.rflags, guest.context.kept()))
        guest.context.go_on(kept)
    assert ends[0][0] == 7
    assert ends[0] == ends[1] == ends[2]


@pytest.mark.parametrize("shadow", ["sti", "mov ss, ax"])
def test_the_shadow_of_an_instruction_is_kept(shadow: str) -> None:
    guest = Guest(f"mov eax, ss\ncli\n{shadow}\nhlt")
    assert guest.run() == ExitReason.HLT
    assert guest.context.interruptibility == (1 if shadow == "sti" else 2)
    other = guest.processor.new_context()
    other.go_on(guest.context.kept())
    assert other.interruptibility == guest.context.interruptibility
    other.rip += other.instruction_length  # the instruction was carried out: it is over
    guest.skip()
    assert other.kept() == guest.context.kept()


def test_the_time_stamp_counter_is_set_for_guest_and_host() -> None:
    guest = Guest("rdtsc\nhlt")
    guest.processor.set_tsc(1 << 40)
    assert guest.run() == ExitReason.HLT
    seen = guest.context.gpr[0] & 0xFFFFFFFF | guest.context.gpr[2] << 32
    assert 1 << 40 <= seen <= guest.processor.rdtsc() < (1 << 40) + 60 * guest.processor.platform.tsc_hz


@pytest.mark.parametrize("data", [b"", b"x", bytes(100), bytes(1 << 16)])
def test_what_is_not_a_state_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not the state of a virtual CPU"):
        Guest().context.go_on(data)
    right_size = bytes(len(Guest().context.kept()))
    with pytest.raises(ValueError, match="not the state of a virtual CPU"):
        Guest().context.go_on(right_size)


@pytest.mark.parametrize("seed", range(8))
def test_any_numbers_in_it_leave_the_process_standing(seed: int) -> None:
    """Bytes from a stranger: the guest may do anything, and does it as a guest."""
    chance = random.Random(seed)
    guest = Guest("nop\nhlt")
    kept = guest.context.kept()
    for _ in range(150):
        damaged = bytearray(kept)
        for _ in range(chance.choice((1, 4, 64, 1024))):
            damaged[chance.randrange(8, len(damaged))] = chance.randrange(256)
        guest.context.go_on(bytes(damaged))
        guest.context.kick()
        guest.run()
        guest.context.kept()
        guest.context.get_fpu()
    guest.context.go_on(kept)
    guest.context.rip = CODE
    assert guest.run() in {ExitReason.HLT, ExitReason.EXTERNAL_INTERRUPT}
