# SPDX-License-Identifier: GPL-2.0-or-later
"""Counted instructions: each once when it begins, whatever the blocks are; and time that follows from the count."""

from __future__ import annotations

import threading
import time

import pytest

from swtdx.cpu.counted import Chance, CountedClock, CountedProcessor
from swtdx.cpu.platform import Platform
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


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("inc rbx\n div rcx\n hlt", 2 + 2),  # and the two of the handler
        ("inc rbx\n inc rbx\n mov eax, [rdi]\n inc rbx\n hlt", 3 + 2),
        ("inc rbx\n mov [rdi], eax\n hlt", 2 + 2),
        ("inc rbx\n lock inc dword ptr [rdi]\n hlt", 2 + 2),
        ("inc rbx\n ud2\n hlt", 2 + 2),
        ("inc rbx\n int3\n hlt", 2 + 2),
        ("inc rbx\n fld qword ptr [rdi]\n hlt", 2 + 2),
        ("inc rbx\n movups xmm0, [rdi]\n hlt", 2 + 2),
        ("inc rbx\n jmp rdi\n hlt", 2 + 2),
    ],
)
def test_what_faults_in_the_middle_of_a_block_has_begun_and_nothing_behind_it(source: str, expected: int) -> None:
    guest = counting(f"xor ecx, ecx\n mov rdi, {1 << 40:#x}\n {source}")
    for vector in (0, 3, 6, 13, 14):
        guest.handler(vector, "nop\n hlt", 0x110000)
    assert guest.run() == ExitReason.HLT
    assert guest.context.rip == 0x110001
    assert count(guest) == 2 + expected


def test_a_watched_access_counts_once() -> None:
    # it is begun again in a block of its own: SDM volume 3, 18.2: the #DB follows the instruction
    guest = counting("inc rbx\n inc rbx\n mov byte ptr [0x80000], 1\n inc rbx\n hlt")
    guest.context.exception_bitmap = 1 << 1
    guest.context.set_dr(0, 0x80000)
    guest.context.set_dr(7, 2 | 1 << 16)
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert count(guest) == 3
    assert guest.run() == ExitReason.HLT
    assert count(guest) == 5


def test_a_split_lock_counts_once() -> None:
    guest = counting("inc rbx\n inc rbx\n lock inc dword ptr [0x8003e]\n inc rbx\n hlt")
    guest.context.bus_lock_exiting = True
    assert guest.run() == ExitReason.BUS_LOCK
    assert count(guest) == 3
    assert guest.run() == ExitReason.HLT
    assert count(guest) == 5


def test_a_debuggers_stop_is_before_the_instruction_and_once_for_each_count() -> None:
    guest = counting("mov ecx, 5\n inc rbx\n again: inc rbx\n rdtsc\n dec ecx\n jnz again\n hlt")
    engine = guest.processor._get_engine()
    at = CODE + 5 + 3  # again
    engine.set_stops([at, CODE + 0x1000])
    met = []
    while guest.run() != ExitReason.HLT:
        assert engine.take_stop()
        assert not engine.take_stop()
        assert guest.context.rip == at
        met.append((count(guest), guest.context.gpr[RBX]))
    assert met == [(2 + 4 * times, 1 + times) for times in range(5)]
    assert count(guest) == 2 + 4 * 5 + 1
    assert guest.memory.read(at, 1) == assemble("inc rbx")[:1]
    engine.set_stops([])
    guest.load("inc rbx\n inc rbx\n inc rbx\n hlt")
    assert guest.run() == ExitReason.HLT
    assert not engine.take_stop()


def test_stops_that_are_passed_are_noted() -> None:
    guest = counting("mov ecx, 5\n again: inc rbx\n dec ecx\n jnz again\n hlt")
    engine = guest.processor._get_engine()
    engine.set_stops([CODE + 5])
    engine.pass_stops(True)
    last = [engine.last_stop]
    assert guest.run() == ExitReason.HLT
    last.append(engine.last_stop)
    assert last == [None, 1 + 3 * 4]
    assert (engine.take_stop(), count(guest)) == (False, 1 + 3 * 5 + 1)
    engine.pass_stops(False)
    guest.context.rip = CODE
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
    last.append(engine.last_stop)
    assert (last[-1], engine.take_stop()) == (count(guest), True)


def test_stops_and_instruction_breakpoints_in_the_middle_of_a_block_change_no_count() -> None:
    source = ".rept 20\n inc rbx\n .endr\n rdtsc\n hlt"
    guest = counting(source)
    guest.context.exception_bitmap = 1 << 1
    guest.context.set_dr(0, CODE + 30)
    guest.context.set_dr(7, 2)
    guest.processor._get_engine().set_stops([CODE + 3 * number for number in (0, 4, 10, 11, 17)])
    counts = []
    while (reason := guest.run()) != ExitReason.HLT:
        counts.append((reason, count(guest)))
        if reason == ExitReason.EXCEPTION_NMI:
            guest.context.rflags |= 1 << 16
    stop = ExitReason.EXTERNAL_INTERRUPT
    assert counts == [(stop, 0), (stop, 4), (stop, 10), (ExitReason.EXCEPTION_NMI, 10), (stop, 11), (stop, 17)]
    assert (count(guest), guest.context.gpr[RAX]) == (22, 21 * NS)


def test_the_count_goes_back_with_time_and_random_numbers() -> None:
    guest = counting("rdrand rbx\n rdtsc\n hlt")
    engine = guest.processor._get_engine()
    engine.jump(100)
    engine.set_stops([CODE])
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
    assert engine.take_stop()
    then = engine.counted_state
    assert then[:2] == (0, 100)
    results = []
    for _ in range(2):
        engine.set_count_end(NEVER)
        assert guest.run() == ExitReason.HLT
        results.append((guest.context.gpr[RBX], guest.context.gpr[RAX], count(guest)))
        guest.context.rip = CODE
        engine.counted_state = then
        assert engine.counted_state == then
        engine.set_count_end(NEVER)
        assert guest.run() == ExitReason.EXTERNAL_INTERRUPT  # what was met then is met again
        assert engine.take_stop()
    assert results[0] == results[1]
    assert results[0][1:] == (100 + 2 * NS, 3)


def test_a_counted_run_is_one_of_turns_whatever_the_platform_says() -> None:
    """It is the one engine's count that repeats."""
    processor = CountedProcessor(Platform(memory_size=1 << 30, parallel=True), CountedClock(0), Chance(b"seed"))
    assert not processor.platform.parallel
    processor.close()
