# SPDX-License-Identifier: GPL-2.0-or-later
"""Two virtual CPUs that execute at the same time on the same memory.

They are of two machines of this process, with one piece of the process's memory in both. A thread of a VMM and a guest
share memory in the same way, and what holds for them holds for these: a locked instruction is one operation (SDM volume
3, 9.1.2), wherever its operand lies; stores and loads are ordered as 9.2.2 says; the processor sets accessed and dirty
bits of page tables without losing what another one writes there.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator

import pytest

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import CODE, PAGE_TABLES, STACK, Guest

SHARED = 0x4000_0000
"""Where both see the memory. Its second page is elsewhere, so that an operand over their border lies in two places."""
SECOND, FAR = SHARED + 0x1000, 0x3000
CELLS = SHARED + 0x10000
"""What tells them that both have started, and what they count."""
WINDOW_BYTES = 1 << 21
RAX, RCX, RBX, RSP, RDI = 0, 1, 3, 4, 7
ROUNDS = 20_000

START = """
    mov r15, {cells}
    mov byte ptr [r15 + {me}], 1
9:  cmp word ptr [r15], 0x0101
    jne 9b
"""


class Pair:
    """Two guests, of two machines or of one whose virtual CPUs do not take turns, and the memory that they share."""

    def __init__(self, machines: int) -> None:
        self.map = mmap.mmap(-1, 2 * WINDOW_BYTES)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        self.offset = -start % WINDOW_BYTES
        processors = [Processor(Platform(memory_size=1 << 30, parallel=machines == 1)) for _ in range(machines)]
        self.guests = [Guest(processor=processors[0]), Guest(processor=processors[-1])]
        for guest in self.guests[:machines]:
            window = guest.memory.map_user(start + self.offset, WINDOW_BYTES)
            put = guest.put64
            put(PAGE_TABLES + 0x1008, PAGE_TABLES + 0x3003)
            put(PAGE_TABLES + 0x3000, PAGE_TABLES + 0x4003)
            for page in range(512):
                put(PAGE_TABLES + 0x4000 + 8 * page, window + (page << 12) | 0x63)
            put(PAGE_TABLES + 0x4008, window + FAR | 0x63)
            put(PAGE_TABLES + 0x4018, window + 0x1000 | 0x63)

    def bytes_at(self, address: int, length: int) -> bytes:
        """What the guests see at a linear address, of operands of up to 16 bytes."""
        return bytes(self.map[self._place(address + at)] for at in range(length))

    def _place(self, address: int) -> int:
        offset = address - SHARED
        page = {1: 3, 3: 1}.get(offset >> 12, offset >> 12)
        return self.offset + (page << 12) + (offset & 4095)

    def number_at(self, address: int, length: int = 8) -> int:
        return int.from_bytes(self.bytes_at(address, length), "little")

    def run(self, *sources: str, rdi: int = SHARED, value: int = 0) -> list[int]:
        """Run both from the start, the same code if there is one. Returns the reasons of their exits.

        RDI is an address, and ``value`` the byte there; all else that they share is zero.
        """
        self.map[self.offset : self.offset + 0x8000] = bytes(0x8000)
        self.map[self.offset + 0x10000 : self.offset + 0x20000] = bytes(0x10000)
        self.map[self._place(rdi)] = value
        reasons = [0, 0]

        def execute(index: int) -> None:
            reasons[index] = self.guests[index].run()

        for index, guest in enumerate(self.guests):
            guest.load(
                START.format(cells=CELLS, me=index) + sources[index % len(sources)].format(me=index),
                CODE + index * 0x10000,
            )
            guest.context.gpr[RSP] = STACK - index * 0x4000
            guest.context.gpr[RAX], guest.context.gpr[RBX] = 0, 0
            guest.context.gpr[RCX], guest.context.gpr[RDI] = ROUNDS, rdi
        threads = [threading.Thread(target=execute, args=(index,)) for index in (0, 1)]
        for thread in threads:
            thread.start()
        for thread, guest in zip(threads, self.guests, strict=True):
            thread.join(30)
            if thread.is_alive():
                guest.context.kick()
                thread.join()
        return reasons

    def close(self) -> None:
        for guest in self.guests:
            guest.context.close()
            guest.processor.close()


@pytest.fixture(scope="module", params=[2, 1], ids=["two machines", "one machine"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    pair = Pair(request.param)
    yield pair
    pair.close()


WIDTHS = {1: ("byte", "al", "dl"), 2: ("word", "ax", "dx"), 4: ("dword", "eax", "edx"), 8: ("qword", "rax", "rdx")}
PLACES = {
    "aligned": SHARED + 0x40,
    "two lines": SHARED + 0x7F,
    "two pages": SHARED + 0x4FFF,
    "two pages that lie apart": SHARED + 0xFFF,
}

# Each leaves one more in memory, whatever the other one does at the same time.
COUNTING = {
    "inc": "lock inc {size} ptr [rdi]",
    "dec": "lock dec {size} ptr [rdi]; lock add {size} ptr [rdi], 2",
    "add": "lock add {size} ptr [rdi], 1",
    "sub": "lock sub {size} ptr [rdi], -1",
    "adc": "stc; lock adc {size} ptr [rdi], 0",
    "sbb": "stc; lock sbb {size} ptr [rdi], -2",
    "xadd": "mov edx, 1; lock xadd {size} ptr [rdi], {d}",
    "cmpxchg": "2: mov {a}, [rdi]; mov edx, eax; lea rdx, [rax + 1]; lock cmpxchg {size} ptr [rdi], {d}; jne 2b",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("instruction", "width"), [*(("inc", width) for width in WIDTHS), *((name, 8) for name in COUNTING)]
)
def test_no_count_is_lost(pair: Pair, instruction: str, width: int, place: str) -> None:
    size, a, d = WIDTHS[width]
    count = COUNTING[instruction].format(size=size, a=a, d=d)
    assert pair.run(f"1: {count}; dec rcx; jnz 1b; hlt", rdi=PLACES[place]) == [ExitReason.HLT] * 2
    assert pair.number_at(PLACES[place], width) == 2 * ROUNDS % (1 << 8 * width)


@pytest.mark.parametrize("place", PLACES)
def test_cmpxchg8b_is_one_operation(pair: Pair, place: str) -> None:
    source = """
    1:  mov eax, [rdi]
        mov edx, [rdi + 4]
    2:  mov ebx, eax
        lea r8d, [edx - 1]
        inc ebx
        mov r9, rcx
        mov ecx, r8d
        lock cmpxchg8b [rdi]
        mov rcx, r9
        jne 2b
        dec rcx
        jnz 1b
        hlt
    """
    assert pair.run(source, rdi=PLACES[place]) == [ExitReason.HLT] * 2
    low, high = pair.number_at(PLACES[place], 4), pair.number_at(PLACES[place] + 4, 4)
    assert (low, high) == (2 * ROUNDS, (1 << 32) - 2 * ROUNDS)


def test_cmpxchg16b_is_one_operation(pair: Pair) -> None:
    source = """
    1:  mov rax, [rdi]
        mov rdx, [rdi + 8]
    2:  mov rbx, rax
        inc rbx
        mov r9, rcx
        lea rcx, [rdx - 1]
        lock cmpxchg16b [rdi]
        mov rcx, r9
        jne 2b
        dec rcx
        jnz 1b
        hlt
    """
    assert pair.run(source, rdi=SHARED + 0x40) == [ExitReason.HLT] * 2
    assert pair.number_at(SHARED + 0x40, 16) == 2 * ROUNDS | (1 << 64) - 2 * ROUNDS << 64


# Each changes the bits of one of them only, and finds in RBX how often they were not as it had left them.
OWN_BITS = {
    "or, and": "lock or {size} ptr [rdi], {bit}; test {size} ptr [rdi], {bit}; jnz 2f; inc rbx; 2: "
    "lock and {size} ptr [rdi], {rest}; test {size} ptr [rdi], {bit}; jz 2f; inc rbx; 2:",
    "xor": "lock xor {size} ptr [rdi], {bit}; test {size} ptr [rdi], {bit}; jnz 2f; inc rbx; 2: "
    "lock xor {size} ptr [rdi], {bit}; test {size} ptr [rdi], {bit}; jz 2f; inc rbx; 2:",
    "bts, btr": "lock bts {size} ptr [rdi], {number}; adc rbx, 0; lock btr {size} ptr [rdi], {number}; cmc; adc rbx, 0",
    "btc": "lock btc {size} ptr [rdi], {number}; adc rbx, 0; lock btc {size} ptr [rdi], {number}; cmc; adc rbx, 0",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("instruction", OWN_BITS)
def test_a_bit_is_as_its_owner_left_it(pair: Pair, instruction: str, place: str) -> None:
    sources = []
    for number in (2, 5):
        bits = {"size": "word", "bit": 1 << number, "rest": ~(1 << number), "number": number}
        sources.append(f"1: {OWN_BITS[instruction].format(**bits)}; dec rcx; jnz 1b; hlt")
    assert pair.run(*sources, rdi=PLACES[place]) == [ExitReason.HLT] * 2
    assert [guest.context.gpr[RBX] for guest in pair.guests] == [0, 0]
    assert pair.number_at(PLACES[place], 2) == 0


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("instruction", ["not", "neg"])
def test_every_change_of_all_bits_counts(pair: Pair, instruction: str, place: str) -> None:
    """Both turn the operand around, an odd number of times in all: a change that is lost shows in every second run."""
    turn = f"1: lock {instruction} word ptr [rdi]; dec rcx; jnz 1b; hlt"
    for _ in range(4):
        assert pair.run(turn, "dec rcx;" + turn, rdi=PLACES[place], value=3) == [ExitReason.HLT] * 2
        assert pair.number_at(PLACES[place], 2) == (0xFFFC if instruction == "not" else 0xFFFD)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("width", [1, 4])
def test_xchg_makes_a_lock(pair: Pair, width: int, place: str) -> None:
    size, a, _ = WIDTHS[width]
    source = f"""
    1:  mov eax, 1
        xchg {size} ptr [rdi], {a}
        test {a}, {a}
        jz 2f
        pause
        jmp 1b
    2:  inc qword ptr [r15 + 0x100]
        mov {size} ptr [rdi], 0
        dec rcx
        jnz 1b
        hlt
    """
    assert pair.run(source, rdi=PLACES[place]) == [ExitReason.HLT] * 2
    assert pair.number_at(CELLS + 0x100) == 2 * ROUNDS


# One loads what the other one stores, in both directions, round by round: RBX counts what TSO does not allow.
FENCES = {
    "mfence": "mfence",
    "a locked instruction": "lock or dword ptr [r15 + 0x800 + 64 * {me}], 0",
    "xchg": "xchg [r15 + 0x800 + 64 * {me}], r10",
    "mov to cr3": "mov r10, cr3; mov cr3, r10",
    "invlpg": "invlpg [r15]",
    "iretq": "mov r10, rsp; mov r11, ss; push r11; push r10; pushfq; mov r11, cs; push r11; lea r11, 7f[rip]; "
    "push r11; iretq; 7:",
}


@pytest.mark.parametrize("fence", FENCES)
def test_a_load_comes_after_the_store_before_the_fence(pair: Pair, fence: str) -> None:
    """Store buffering (SDM volume 3, 9.2.3.4): without a fence both may read the old value, with one they may not."""
    source = """
        mov r14d, 1
    1:  mov [r15 + 0x400 + 64 * {me}], r14d
    2:  cmp [r15 + 0x400 + 64 * (1 - {me})], r14d
        jl 2b
        mov [r15 + 0x600 + 64 * {me}], r14d
        FENCE
        mov eax, [r15 + 0x600 + 64 * (1 - {me})]
        mov [r15 + 0x500 + 64 * {me}], eax
        lea r13d, [r14 + 1]
        mov [r15 + 0x400 + 64 * {me}], r13d
        inc r14d
    3:  cmp [r15 + 0x400 + 64 * (1 - {me})], r14d
        jl 3b
        lea r13d, [r14 - 1]
        cmp eax, r13d
        jge 4f
        cmp [r15 + 0x500 + 64 * (1 - {me})], r13d
        jge 4f
        inc rbx
    4:  inc r14d
        dec rcx
        jnz 1b
        hlt
    """.replace("FENCE", FENCES[fence])
    assert pair.run(source) == [ExitReason.HLT] * 2
    assert [guest.context.gpr[RBX] for guest in pair.guests] == [0, 0]


def test_stores_arrive_in_order(pair: Pair) -> None:
    """Message passing (SDM volume 3, 9.2.3.2): a reader that sees the second of two stores sees the first."""
    writer = "1: mov [r15 + 0x100], rcx; mov [r15 + 0x200], rcx; dec rcx; jnz 1b; hlt"
    reader = """
    1:  mov rax, [r15 + 0x200]
        mov rdx, [r15 + 0x100]
        test rax, rax
        jz 2f
        cmp rdx, rax
        jbe 2f
        inc rbx
    2:  cmp rax, 1
        jne 1b
        hlt
    """
    assert pair.run(writer, reader) == [ExitReason.HLT] * 2
    assert pair.guests[1].context.gpr[RBX] == 0


@pytest.mark.parametrize("access", ["mov al, [rsi]", "mov [rsi], al"])
def test_an_entry_that_is_taken_away_does_not_come_back(pair: Pair, access: str) -> None:
    """One uses a page again and again; the other one takes it away with XCHG and looks whether it stays so.

    The tables of the first one lie in the shared memory. Its page fault only starts the instruction again.
    """
    user, taker = pair.guests
    window = user.processor.memory.map_user(*_behind(pair))
    table = window + 0x20000
    user.put64(PAGE_TABLES + 0x3008, table | 0x3)
    user.handler(14, "add rsp, 8; iretq", 0x180000)
    entry = window + 0x30000 | 0x3
    use = f"invlpg [rsi]; {access}"  # once more at the end, by the entry that stays
    using = f"mov rsi, {SHARED + (1 << 21)}; 1: {use}; cmp byte ptr [r15 + 0x100], 0; je 1b; {use}; hlt"
    taking = f"""
        mov r8, {entry}
        mov rdi, {SHARED + 0x20000}
    1:  mov [rdi], r8
        mov edx, 20
    2:  dec edx
        jnz 2b
        xor eax, eax
        xchg [rdi], rax
        mov edx, 20
    3:  cmp qword ptr [rdi], 0
        jne 4f
        dec edx
        jnz 3b
        jmp 5f
    4:  inc rbx
    5:  dec rcx
        jnz 1b
        mov [rdi], r8
        mov byte ptr [r15 + 0x100], 1
        hlt
    """
    assert pair.run(using, taking) == [ExitReason.HLT] * 2
    assert taker.context.gpr[RBX] == 0
    assert pair.number_at(SHARED + 0x20000) & 0x60 == (0x60 if access.startswith("mov [") else 0x20)


PLACES_OF_CODE = {"in a page": SHARED + 0x6003, "over two pages that lie apart": SHARED + 0xFFF}


@pytest.mark.parametrize("waits", [True, False], ids=["in step", "at will"])
@pytest.mark.parametrize("place", PLACES_OF_CODE)
def test_code_that_another_one_writes_is_not_stale(pair: Pair, place: str, waits: bool) -> None:
    """One writes an operand of an instruction and then a number; the other one sees the number and executes it.

    Between two machines translations of the memory of a process are compared, and may be stale meanwhile.
    """
    if pair.guests[0].processor is not pair.guests[1].processor:
        return
    code, rounds = PLACES_OF_CODE[place], ROUNDS // 10 if waits else ROUNDS
    writer = f"""
        mov rdi, {code}
        mov byte ptr [rdi], 0xb8
        mov byte ptr [rdi + 5], 0xc3
        mov dword ptr [rdi + 1], 0
        mov eax, 0
    1:  inc eax
        mov [rdi + 1], eax
        mov [r15 + 0x100], eax
        {"2: cmp [r15 + 0x200], eax; jb 2b" if waits else ""}
        cmp eax, {rounds}
        jb 1b
        hlt
    """
    caller = f"""
        mov rdi, {code}
        xor esi, esi
    1:  mov r8d, [r15 + 0x100]
        cmp r8d, esi
        je 1b
        mov esi, r8d
        call rdi
        cmp eax, r8d
        jae 2f
        inc rbx
    2:  mov [r15 + 0x200], r8d
        cmp r8d, {rounds}
        jb 1b
        hlt
    """
    assert pair.run(writer, caller) == [ExitReason.HLT] * 2
    assert pair.guests[1].context.gpr[RBX] == 0


def _behind(pair: Pair) -> tuple[int, int]:
    return ctypes.addressof(ctypes.c_char.from_buffer(pair.map)) + pair.offset, WINDOW_BYTES


def test_every_request_to_leave_is_seen() -> None:
    """A notification makes the guest look and go on; a kick that comes meanwhile must still bring it out."""
    guest = Guest("lp: jmp lp")
    over = threading.Event()

    def notify() -> None:
        while not over.is_set():
            guest.context.notify()

    def run() -> None:
        while not over.is_set():
            assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
            left.release()

    left = threading.Semaphore(0)
    threads = [threading.Thread(target=notify), threading.Thread(target=run)]
    for thread in threads:
        thread.start()
    lost = False
    for _ in range(1_000):
        guest.context.kick()
        if not left.acquire(timeout=5):
            lost = True
            break
    over.set()
    guest.context.kick()
    for thread in threads:
        thread.join(10)
    assert not lost
    assert guest.context.rip == CODE
