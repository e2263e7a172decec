# SPDX-License-Identifier: GPL-2.0-or-later
"""Counted instructions: each once when it begins, whatever the blocks are; and time that follows from the count."""

from __future__ import annotations

import threading
import time

import pytest

from swtdx.cpu.vmx import ExitReason
from testing.bare_processor import CODE
from tests.cpu.guest import Guest, assemble

RAX, RCX, RDX, RBX = range(4)
NEVER = 1 << 62
NS = 4


def counting(source: str, *, tsc_ratio: int = 1 << 48, seed: int = 1) -> Guest:
    """A guest whose instructions are counted."""
    guest = Guest(source)
    guest.processor._get_engine().start_counting(tsc_ratio, seed)
    guest.processor._get_engine().set_count_end(NEVER)
    return guest


def count(guest: Guest) -> int:
    """How many instructions have begun."""
    return guest.processor._get_engine().count


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hlt", 1),
        ("nop\n nop\n nop\n hlt", 4),
        ("mov ecx, 1000\n again: dec ecx\n jnz again\n hlt", 1 + 2 * 1000 + 1),
        ("mov ecx, 1000\n again: loop again\n hlt", 1 + 1000 + 1),
        ("call there\n hlt\n there: ret", 3),
        ("cli\n sti\n nop\n hlt", 4),
        ("xor eax, eax\n mov cr2, rax\n lea rax, [rip + there]\n jmp rax\n there: hlt", 5),
        (f".rept {4096 + 300}\n nop\n .endr\n hlt", 4096 + 300 + 1),  # over page ends
        (".rept 1000\n .byte 0x66, 0x66, 0x66, 0x90\n .endr\n .byte 0x66, 0x90, 0x66, 0x90\n hlt", 1003),
    ],
)
def test_each_instruction_counts_once(source: str, expected: int) -> None:
    guest = counting(source)
    assert guest.run() == ExitReason.HLT
    assert count(guest) == expected


def test_an_exit_counts_the_instructions_before_it_and_itself() -> None:
    guest = counting("nop\n nop\n cpuid\n nop\n nop\n nop\n nop\n hlt")
    assert guest.run() == ExitReason.CPUID
    assert count(guest) == 3
    guest.skip()
    assert guest.run() == ExitReason.HLT
    assert count(guest) == 8


def test_a_store_into_its_own_block_counts_once() -> None:
    # a block is left and begun again for it
    guest = counting("mov byte ptr [rip + there], 0x90\n nop\n nop\n there: hlt\n hlt")
    assert guest.run() == ExitReason.HLT
    assert count(guest) == 5


@pytest.mark.parametrize("end", [1, 2, 3, 5, 31, 32, 33, 64, 100, 255, 511, 512, 513, 700])
def test_it_stops_at_the_instruction_asked_for(end: int) -> None:
    guest = counting(".rept 800\n inc rbx\n .endr\n hlt")
    guest.processor._get_engine().set_count_end(end)
    length = len(assemble("inc rbx"))
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
    assert (count(guest), guest.context.gpr[RBX], guest.context.rip) == (end, end, CODE + end * length)
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT  # at once: nothing is left
    assert count(guest) == end
    guest.processor._get_engine().set_count_end(NEVER)
    assert guest.run() == ExitReason.HLT
    assert count(guest) == 801


def test_stops_at_every_instruction_of_a_loop_change_nothing() -> None:
    source = "mov ecx, 40\n again: imul rbx, rbx, 7\n add rbx, rcx\n push rbx\n pop rax\n dec ecx\n jnz again\n hlt"
    whole = counting(source)
    assert whole.run() == ExitReason.HLT
    guest = counting(source)
    stops = 0
    while True:
        guest.processor._get_engine().set_count_end(stops + 1)
        if guest.run() == ExitReason.HLT:
            break
        stops += 1
        assert count(guest) == stops
    assert stops == count(whole) - 1
    assert list(guest.context.gpr) == list(whole.context.gpr)


def test_kicks_change_neither_the_count_nor_what_is_computed() -> None:
    source = "mov ecx, 3000000\n again: imul rbx, rbx, 7\n add rbx, rcx\n dec ecx\n jnz again\n hlt"
    guest = counting(source)
    over = threading.Event()

    def kick() -> None:
        while not over.is_set():
            guest.context.kick()
            time.sleep(0.0005)

    thread = threading.Thread(target=kick)
    thread.start()
    kicks = 0
    try:
        while (reason := guest.run()) == ExitReason.EXTERNAL_INTERRUPT:
            kicks += 1
    finally:
        over.set()
        thread.join()
    assert reason == ExitReason.HLT
    assert kicks
    assert count(guest) == 1 + 4 * 3000000 + 1
    expected = 0
    for left in range(3000000, 0, -1):
        expected = expected * 7 + left & (1 << 64) - 1
    assert guest.context.gpr[RBX] == expected


def test_the_time_stamp_counter_follows_from_the_count() -> None:
    guest = counting("rdtsc\n mov ebx, eax\n nop\n nop\n nop\n rdtsc\n hlt", tsc_ratio=3 << 47)  # 1.5 for each ns
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[RBX], guest.context.gpr[RAX]) == (1 * NS * 3 // 2, 6 * NS * 3 // 2)
    assert guest.processor._get_engine().counted_ns == 7 * NS


def test_a_jump_sets_the_time_forward() -> None:
    guest = counting("rdtsc\n hlt")
    guest.processor._get_engine().jump(1000)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RAX] == 1000 + NS
    assert count(guest) == 2


def test_an_event_waits_for_an_entry_that_executes() -> None:
    guest = counting("nop\n hlt")
    guest.handler(3, "mov ebx, 33\n hlt", 0x110000)
    guest.processor._get_engine().set_count_end(0)
    guest.context.inject(0x20, 0)
    guest.handler(0x20, "mov ebx, 32\n hlt", 0x120000)
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
    assert guest.context.event_pending
    guest.processor._get_engine().set_count_end(NEVER)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RBX] == 32
    assert count(guest) == 2


def test_random_numbers_follow_from_the_seed() -> None:
    source = "rdrand rbx\n rdseed rcx\n rdrand rdx\n hlt"

    def numbers(seed: int) -> list[int]:
        guest = counting(source, seed=seed)
        assert guest.run() == ExitReason.HLT
        return [guest.context.gpr[register] for register in (RBX, RCX, RDX)]

    first = numbers(7)
    assert len(set(first)) == 3
    assert numbers(7) == first
    assert not set(numbers(8)) & set(first)
