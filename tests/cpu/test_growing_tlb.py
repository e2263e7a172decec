# SPDX-License-Identifier: GPL-2.0-or-later
"""The TLB grows between two flushes where a guest uses more pages than it has room for, and forgets none of its duties.

4096 pages, of which a round of the guest reads, writes or executes each. After it pages get other frames, and what
INVLPG and MOV to CR3 do has to be what it is for a few pages (SDM volume 3, 4.10.4.1).
"""

from __future__ import annotations

import pytest

from testing.bare_processor import PAGE_TABLES, Guest, assemble

PAGES, FRAMES = 4096, 64
START, END = 1 << 30, (1 << 30) + PAGES * 4096
DIRECTORY, TABLES = 0x30_0000, 0x30_1000
FIRST, SECOND = 0x80_0000, 0x100_0000
PRESENT_WRITABLE, LARGE = 0x3, 0x80
LEVELS = 5
"""Walks of the EPT for one page of 4 KiB: four tables, and the page."""

READS = f"""
    mov rsi, {START}
1:  add rax, [rsi]
    add rsi, 4096
    cmp rsi, {END}
    jb 1b
"""
CALLS = READS.replace("add rax, [rsi]", "call rsi")
WRITES = READS.replace("add rax, [rsi]", "inc qword ptr [rsi + 8]")


def _guest(source: str, *, large: bool = False) -> Guest:
    """Page i shows frame i % 64, in which stands i % 64 + 1; of the other frames there, 1000 more."""
    guest = Guest(f"xor eax, eax\n{source}\nhlt")
    guest.put64(PAGE_TABLES + 0x1008, DIRECTORY | PRESENT_WRITABLE)
    for table in range(PAGES // 512):
        entry = FIRST | LARGE if large else TABLES + table * 4096
        guest.put64(DIRECTORY + 8 * table, entry | PRESENT_WRITABLE)
    for page in range(PAGES):
        guest.put64(TABLES + 8 * page, FIRST + page % FRAMES * 4096 | PRESENT_WRITABLE)
    for frame in range(512):
        guest.put64(FIRST + frame * 4096, frame % FRAMES + 1)
        guest.put64(SECOND + frame * 4096, frame % FRAMES + 1001)
    return guest


def _round(*, others: int = 0) -> int:
    """What one round of `READS` adds; ``others``: pages that show one of the second frames."""
    return PAGES // FRAMES * sum(range(1, FRAMES + 1)) + 1000 * others


def _walks(source: str) -> int:
    guest = _guest(source)
    before = guest.processor.ept_walks
    guest.run()
    return guest.processor.ept_walks - before


@pytest.mark.parametrize("what", [READS, WRITES], ids=["reads", "writes"])
def test_pages_of_a_loop_are_walked_for_a_few_times(what: str) -> None:
    """Without it each of the 20 rounds has to find each page again."""
    rounds = 20
    assert _walks(f"mov edi, {rounds}\n2: {what}\ndec edi\njnz 2b") < rounds * PAGES * LEVELS // 2


def test_every_page_is_read_as_it_is_mapped() -> None:
    guest = _guest(f"mov edi, 5\n2: {READS}\ndec edi\njnz 2b")
    guest.run()
    assert guest.context.gpr[0] == 5 * _round()


def test_every_page_is_written_as_it_is_mapped() -> None:
    guest = _guest(f"mov edi, 5\n2: {WRITES}\ndec edi\njnz 2b")
    guest.run()
    assert {guest.memory.qwords[(FIRST + frame * 4096 >> 3) + 1] for frame in range(FRAMES)} == {5 * PAGES // FRAMES}


def test_every_page_is_executed_as_it_is_mapped() -> None:
    guest = _guest(f"mov edi, 5\n2: {CALLS}\ndec edi\njnz 2b")
    for frame in range(FRAMES):
        code = assemble(f"add rax, {frame + 1}; ret").ljust(8, b"\x90")
        guest.put64(FIRST + frame * 4096, int.from_bytes(code[:8], "little"))
    guest.run()
    assert guest.context.gpr[0] == 5 * _round()


def _read_after(change: str, *, large: bool = False) -> int:
    """What a round adds after ``change``, before which every page was read four times."""
    guest = _guest(f"mov edi, 4\n2: {READS}\ndec edi\njnz 2b\n{change}\nxor eax, eax\n{READS}", large=large)
    guest.run()
    return guest.context.gpr[0]


@pytest.mark.parametrize("page", [0, 1, 255, 256, 257, 1000, 2047, 2048, 4095])
def test_invlpg_finds_its_page(page: int) -> None:
    change = f"""
        mov rdx, {SECOND + page % FRAMES * 4096 | PRESENT_WRITABLE:#x}
        mov [{TABLES + 8 * page:#x}], rdx
        mov rdx, {START + page * 4096:#x}
        invlpg [rdx]
    """
    assert _read_after(change) == _round(others=1)


def test_invlpg_of_a_large_page_finds_all_of_it() -> None:
    change = f"""
        mov rdx, {SECOND | LARGE | PRESENT_WRITABLE:#x}
        mov [{DIRECTORY + 8 * 3:#x}], rdx
        mov rdx, {START + (3 << 21) + 0x5000:#x}
        invlpg [rdx]
    """
    assert _read_after(change, large=True) == _round(others=512)


def test_mov_to_cr3_forgets_every_page() -> None:
    """Each table is replaced, so that every entry that is left over shows."""
    change = f"""
        mov rsi, {TABLES}
    3:  add qword ptr [rsi], {SECOND - FIRST:#x}
        add rsi, 8
        cmp rsi, {TABLES + 8 * PAGES}
        jb 3b
        mov rdx, cr3
        mov cr3, rdx
    """
    assert _read_after(change) == _round(others=PAGES)
