# SPDX-License-Identifier: GPL-2.0-or-later
"""What virtual CPUs that execute at the same time may see of each other's loads and stores: x86-TSO.

Each case is one of the SDM's (volume 3, 9.2.3) or of the literature (Sewell and others, "x86-TSO", 2010): threads that
each make a few accesses to two locations, and an outcome that must not be. All threads run through the same thousands
of pairs of locations, each pair once, and keep what they loaded; afterwards no pair may show the outcome.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import CODE, PAGE_TABLES, STACK, Guest

SHARED = 0x4000_0000
WINDOW_BYTES = 1 << 21
PAIRS, PAIR_BYTES = 8_000, 128
LOADED = PAIRS * PAIR_BYTES
"""Where what was loaded is kept: for each thread two numbers of four bytes for each pair."""
START = WINDOW_BYTES - 64
ROUNDS = 8
RSP = 4

LOOP = """
    mov rsi, {shared}
    mov rbp, {loaded}
    mov rcx, {pairs}
    mov r15, {start}
    xor r13d, r13d
1:  test ecx, 15 # wait for the others from time to time, but not for long: a busy machine may have stopped one
    jnz 3f
    add r13d, {threads}
    lock inc dword ptr [r15]
    mov r14d, 20000
2:  cmp dword ptr [r15], r13d
    jge 3f
    dec r14d
    jnz 2b
3:  lea rdi, [rsi + 64]
    xor eax, eax
    xor edx, edx
    mov r8d, 1
    mov r9d, 2
    {accesses}
    mov [rbp], eax
    mov [rbp + 4], edx
    add rsi, {pair_bytes}
    add rbp, 8
    dec rcx
    jnz 1b
    hlt
"""

Seen = tuple[tuple[int, int], ...]
"""For each thread what EAX and EDX were."""


@dataclass(frozen=True)
class Litmus:
    """``threads``: accesses to X, [rsi], and Y, [rdi]; R8D is 1 and R9D is 2. All memory is 0 before."""

    threads: tuple[str, ...]
    forbidden: Callable[[Seen, int, int], bool]
    """Of what the threads loaded, and X and Y at the end."""


STORE_X, STORE_Y = "mov [rsi], r8d", "mov [rdi], r8d"
LOAD_X_Y, LOAD_Y_X = "mov eax, [rsi]; mov edx, [rdi]", "mov eax, [rdi]; mov edx, [rsi]"
CASES = {
    # 9.2.3.2: neither loads nor stores are reordered with like operations
    "message passing": Litmus((f"{STORE_X}; {STORE_Y}", LOAD_Y_X), lambda seen, x, y: seen[1] == (1, 0)),
    "two loads of one location": Litmus(
        (STORE_X, "mov eax, [rsi]; mov edx, [rsi]"), lambda seen, x, y: seen[1] == (1, 0)
    ),
    "two stores each": Litmus(
        (f"{STORE_X}; mov [rdi], r9d", f"{STORE_Y}; mov [rsi], r9d"), lambda seen, x, y: (x, y) == (1, 1)
    ),
    # 9.2.3.3: stores are not reordered with earlier loads
    "load buffering": Litmus(
        (f"mov eax, [rsi]; {STORE_Y}", f"mov eax, [rdi]; {STORE_X}"),
        lambda seen, x, y: seen[0][0] == seen[1][0] == 1,
    ),
    "a load and two stores": Litmus(
        (f"mov [rsi], r9d; {STORE_Y}", f"mov eax, [rdi]; {STORE_X}"), lambda seen, x, y: seen[1][0] == 1 and x == 2
    ),
    # 9.2.3.4, and its end: MFENCE
    "store buffering with fences": Litmus(
        (f"{STORE_X}; mfence; mov eax, [rdi]", f"{STORE_Y}; mfence; mov eax, [rsi]"),
        lambda seen, x, y: seen[0][0] == seen[1][0] == 0,
    ),
    "one fence is enough between stores": Litmus(
        (f"{STORE_X}; {STORE_Y}", "mov [rdi], r9d; mfence; mov eax, [rsi]"),
        lambda seen, x, y: y == 2 and seen[1][0] == 0,
    ),
    # 9.2.3.5: a processor sees its own stores at once
    "own stores": Litmus(
        (f"{STORE_X}; {LOAD_X_Y}", f"{STORE_Y}; {LOAD_Y_X}"), lambda seen, x, y: 0 in (seen[0][0], seen[1][0])
    ),
    # volume 2, RDTSC: behind LFENCE it is read after what was loaded before, here another processor's counter
    "time of another processor": Litmus(
        ("rdtsc; mov [rsi], eax; xor eax, eax", "mov r10d, [rsi]; lfence; rdtsc; mov edx, r10d"),
        lambda seen, x, y: bool(seen[1][1]) and bool((seen[1][0] - seen[1][1]) & 1 << 31),
    ),
    # 9.2.3.6: stores are transitively visible
    "transitive": Litmus(
        (STORE_X, f"mov eax, [rsi]; {STORE_Y}", LOAD_Y_X), lambda seen, x, y: seen[1][0] == 1 and seen[2] == (1, 0)
    ),
    # 9.2.3.7: two stores are seen in one order by all others
    "independent reads": Litmus(
        (STORE_X, STORE_Y, LOAD_X_Y, LOAD_Y_X), lambda seen, x, y: seen[2] == seen[3] == (1, 0)
    ),
    # 9.2.3.8: so are locked instructions
    "independent reads of locked writes": Litmus(
        ("xchg [rsi], r8d", "xchg [rdi], r8d", LOAD_X_Y, LOAD_Y_X), lambda seen, x, y: seen[2] == seen[3] == (1, 0)
    ),
    # 9.2.3.9: loads and stores are not reordered with locked instructions
    "loads behind a lock": Litmus(
        ("xchg [rsi], r8d; mov eax, [rdi]", "xchg [rdi], r8d; mov eax, [rsi]"),
        lambda seen, x, y: seen[0][0] == seen[1][0] == 0,
    ),
    "loads behind a lock elsewhere": Litmus(
        (
            f"{STORE_X}; lock add dword ptr [r15 + 16], 1; mov eax, [rdi]",
            f"{STORE_Y}; lock xadd [r15 + 32], r9d; mov eax, [rsi]",
        ),
        lambda seen, x, y: seen[0][0] == seen[1][0] == 0,
    ),
    "a store behind a lock": Litmus((f"xchg [rsi], r8d; {STORE_Y}", LOAD_Y_X), lambda seen, x, y: seen[1] == (1, 0)),
    # 9.1.1: accesses that are one operation
    "eight bytes within a line": Litmus(
        ("mov r8, -1; mov [rsi + 5], r8", "mov rax, [rsi + 5]; mov rdx, rax; shr rdx, 32"),
        lambda seen, x, y: seen[1][0] != seen[1][1],
    ),
}
WHOLE_MOVES = ("movdqa", "movaps", "movapd", "vmovdqa", "vmovaps", "vmovapd")
ALL_ONES = "pcmpeqd xmm0, xmm0"
LOAD_HALVES = "{move} xmm1, [rsi]; movd eax, xmm1; psrldq xmm1, 8; movd edx, xmm1"
SWAP_16 = """
    push rcx; push rbx; xor eax, eax; xor edx, edx; mov rbx, -1; mov rcx, rbx
    lock cmpxchg16b [rsi]; pop rbx; pop rcx
"""
"""9.1.1, of processors with AVX: these instructions, and CMPXCHG16B, move their 16 bytes at once."""


class Crew:
    """Virtual CPUs of one machine, each with an engine of its own."""

    def __init__(self, count: int = 4) -> None:
        self.map = mmap.mmap(-1, 2 * WINDOW_BYTES)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.offset = -start % WINDOW_BYTES
        self.processor = Processor(Platform(memory_size=1 << 30, parallel=True))
        self.guests: list[Guest] = []
        for _ in range(count):
            self.add()

    def add(self) -> None:
        """Add a virtual CPU."""
        self.guests.append(guest := Guest(processor=self.processor))
        if len(self.guests) == 1:
            start = ctypes.addressof(ctypes.c_char.from_buffer(self.map)) + self.offset
            self.window = guest.memory.map_user(start, WINDOW_BYTES)
        guest.put64(PAGE_TABLES + 0x1008, PAGE_TABLES + 0x3003)
        guest.put64(PAGE_TABLES + 0x3000, self.window | 0xE3)

    def run(self, sources: Sequence[str]) -> None:
        """Run them at the same time, on memory that is 0, each to its HLT."""
        self.map[self.offset : self.offset + WINDOW_BYTES] = bytes(WINDOW_BYTES)
        guests = self.guests[: len(sources)]
        for index, (guest, source) in enumerate(zip(guests, sources, strict=True)):
            guest.load(source, CODE + index * 0x10000)
            guest.context.gpr[RSP] = STACK - index * 0x4000
        threads = [threading.Thread(target=guest.run) for guest in guests]
        for thread in threads:
            thread.start()
        for thread, guest in zip(threads, guests, strict=True):
            thread.join(60)
            if thread.is_alive():
                guest.context.kick()
                thread.join()
            assert guest.context.exit_reason == ExitReason.HLT

    def number_at(self, offset: int) -> int:
        return int(struct.unpack_from("<I", self.map, self.offset + offset)[0])

    def outcomes(self, litmus: Litmus) -> Iterator[tuple[Seen, int, int]]:
        """Run all threads through all pairs, and yield what each pair shows."""
        kept, count = PAIRS * 8, len(litmus.threads)
        common = {"shared": SHARED, "start": SHARED + START, "pairs": PAIRS, "pair_bytes": PAIR_BYTES, "threads": count}
        self.run(
            [
                LOOP.format(accesses=accesses, loaded=SHARED + LOADED + index * kept, **common)
                for index, accesses in enumerate(litmus.threads)
            ]
        )
        image = self.map[self.offset : self.offset + WINDOW_BYTES]
        loaded = [
            list(struct.iter_unpack("<II", image[LOADED + index * kept : LOADED + (index + 1) * kept]))
            for index in range(count)
        ]
        for number in range(PAIRS):
            at = number * PAIR_BYTES
            yield (
                tuple((each[number][0], each[number][1]) for each in loaded),
                self.number_at(at),
                self.number_at(at + 64),
            )

    def close(self) -> None:
        for guest in self.guests:
            guest.context.close()
        self.processor.close()


@pytest.fixture(scope="module")
def crew() -> Iterator[Crew]:
    crew = Crew()
    yield crew
    crew.close()


@pytest.mark.parametrize("name", CASES)
def test_no_pair_shows_what_the_processor_rules_out(crew: Crew, name: str) -> None:
    litmus = CASES[name]
    for _ in range(ROUNDS):
        bad = [outcome for outcome in crew.outcomes(litmus) if litmus.forbidden(*outcome)]
        assert not bad, f"{len(bad)} of {PAIRS} pairs, the first: {bad[0]}"


@pytest.mark.parametrize("move", WHOLE_MOVES)
@pytest.mark.parametrize("writer", ["itself", "cmpxchg16b"])
def test_sixteen_aligned_bytes_are_one_access(crew: Crew, move: str, writer: str) -> None:
    if move.startswith("v"):
        if "avx" not in crew.processor.platform.features:
            pytest.skip("the processor here has no AVX")
        for guest in crew.guests:
            guest.context.cr4 |= 1 << 18
            guest.context.xcr0 = 7
    store = SWAP_16 if writer == "cmpxchg16b" else f"{ALL_ONES}; {move} [rsi], xmm0"
    litmus = Litmus((store, LOAD_HALVES.format(move=move)), lambda seen, x, y: seen[1][0] != seen[1][1])
    for _ in range(ROUNDS):
        bad = [outcome for outcome in crew.outcomes(litmus) if litmus.forbidden(*outcome)]
        assert not bad, f"{len(bad)} of {PAIRS} pairs, the first: {bad[0]}"


def test_code_of_one_that_was_alone_is_translated_anew() -> None:
    """While there is one virtual CPU 16 bytes may be two accesses; then a second one comes."""
    crew = Crew(1)
    move = LOAD_HALVES.format(move="movdqa")
    litmus = Litmus((move, f"{ALL_ONES}; movdqa [rsi], xmm0"), lambda seen, x, y: seen[0][0] != seen[0][1])
    list(crew.outcomes(Litmus((move,), litmus.forbidden)))
    crew.add()
    for _ in range(ROUNDS):
        bad = [outcome for outcome in crew.outcomes(litmus) if litmus.forbidden(*outcome)]
        assert not bad, f"{len(bad)} of {PAIRS} pairs, the first: {bad[0]}"
    crew.close()


def test_they_do_execute_at_the_same_time(crew: Crew) -> None:
    """Without LOCK counts are lost, which turns would hardly show: the other tests are about something."""
    turns = 2_000_000
    count = f"mov r15, {SHARED}; mov ecx, {turns}; 1: inc dword ptr [r15]; dec ecx; jnz 1b; hlt"
    for _ in range(20):
        crew.run([count] * 2)
        if crew.number_at(0) < 2 * turns:
            return
    pytest.skip("no count was lost in 20 runs: one processor, or a busy machine; the other tests here prove little")
