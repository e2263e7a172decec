# SPDX-License-Identifier: GPL-2.0-or-later
"""What MOV to CR3, INVLPG and CR4.PGE leave of the TLB (SDM volume 3, 4.10.4.1).

The guest reads a word, gives its page another frame, does one of these, and reads again: an entry that is still in the
TLB shows the first frame.
"""

from __future__ import annotations

import pytest

from testing.bare_processor import PAGE_TABLES, Guest, assemble

PAGE, OLD, NEW = 0x80_0000, 0x80_0000, 0xA0_0000
TABLE = PAGE_TABLES + 0x3000
PRESENT_WRITABLE, LARGE, GLOBAL = 0x3, 0x80, 0x100
CR4_PGE = 0x80
ATTEMPTS = 20
MOV_CR3 = "mov rdx, cr3; mov cr3, rdx"
INVLPG = f"mov edx, {PAGE:#x}; invlpg [rdx]"
TOGGLE_PGE = f"mov rdx, cr4; xor edx, {CR4_PGE}; mov cr4, rdx; xor edx, {CR4_PGE}; mov cr4, rdx"

INVALIDATES = [
    (MOV_CR3, True, 0),
    (MOV_CR3, False, GLOBAL),
    (INVLPG, True, GLOBAL),
    (INVLPG, True, 0),
    (f"{MOV_CR3}; {INVLPG}", True, GLOBAL),
    (TOGGLE_PGE, True, GLOBAL),
    (TOGGLE_PGE, False, 0),
]
"""Operation, CR4.PGE and the bits of the entry with which it drops the translation."""


def _read_again(operation: str, *, pge: bool, bits: int, large: bool, switches: int = 1) -> int:
    """The second word read: 1 from the old frame, 2 from the new one."""
    directory_entry = PAGE_TABLES + 0x2000 + 8 * (PAGE >> 21)
    entry = directory_entry if large else TABLE + 8 * (PAGE >> 12 & 511)
    bits |= PRESENT_WRITABLE | (LARGE if large else 0)
    guest = Guest(
        f"""
        mov rbx, [{PAGE:#x}]
        mov rax, {NEW | bits:#x}
        mov [{entry:#x}], rax
        mov edi, {switches}
    again:
        {operation}
        dec edi
        jnz again
        mov rcx, [{PAGE:#x}]
        hlt
        """
    )
    if not large:
        guest.put64(directory_entry, TABLE | PRESENT_WRITABLE)
    guest.put64(entry, OLD | bits)
    guest.put64(OLD, 1)
    guest.put64(NEW, 2)
    guest.context.cr4 |= CR4_PGE if pge else 0
    guest.run()
    assert guest.context.gpr[3] == 1
    return guest.context.gpr[1]


def _stays(operation: str, *, large: bool, switches: int = 1) -> bool:
    """Whether a global page's entry outlives it. Once in a while TCG makes its TLB smaller, which empties it."""
    return any(
        _read_again(operation, pge=True, bits=GLOBAL, large=large, switches=switches) == 1 for _ in range(ATTEMPTS)
    )


@pytest.mark.parametrize("large", [False, True], ids=["4K", "2M"])
@pytest.mark.parametrize("switches", [1, 1000])
def test_mov_to_cr3_leaves_what_is_global(switches: int, large: bool) -> None:
    assert _stays(MOV_CR3, large=large, switches=switches)


@pytest.mark.parametrize("large", [False, True], ids=["4K", "2M"])
@pytest.mark.parametrize(("operation", "pge", "bits"), INVALIDATES)
def test_all_else_leaves_nothing(operation: str, pge: bool, bits: int, large: bool) -> None:
    assert _read_again(operation, pge=pge, bits=bits, large=large) == 2


def _call_again(operation: str, *, pge: bool, bits: int, large: bool, offset: int) -> int:
    """What code at an offset of the page returns after the operation: 1 from the old frame, 2 from the new one.

    It is called by RET and by a register, as blocks that are not chained are found by their address.
    """
    directory_entry = PAGE_TABLES + 0x2000 + 8 * (PAGE >> 21)
    entry = directory_entry if large else TABLE + 8 * (PAGE >> 12 & 511)
    bits |= PRESENT_WRITABLE | (LARGE if large else 0)
    guest = Guest(
        f"""
        mov esi, {PAGE + offset:#x}
        mov edi, 3
    warm:
        call rsi
        dec edi
        jnz warm
        mov ebx, eax
        mov rax, {NEW | bits:#x}
        mov [{entry:#x}], rax
        {operation}
        call rsi
        mov ecx, eax
        hlt
        """
    )
    if not large:
        guest.put64(directory_entry, TABLE | PRESENT_WRITABLE)
    guest.put64(entry, OLD | bits)
    guest.put64(OLD + offset, int.from_bytes(assemble("mov eax, 1; ret"), "little"))
    guest.put64(NEW + offset, int.from_bytes(assemble("mov eax, 2; ret"), "little"))
    guest.context.cr4 |= CR4_PGE if pge else 0
    guest.run()
    assert guest.context.gpr[3] == 1
    return guest.context.gpr[1]


@pytest.mark.parametrize("large", [False, True], ids=["4K", "2M"])
@pytest.mark.parametrize(("operation", "pge", "bits"), INVALIDATES)
def test_code_that_is_mapped_anew_is_executed(operation: str, pge: bool, bits: int, large: bool) -> None:
    for offset in [0x40] + ([0x5040, 0x10_0040] if large else []):  # INVLPG of any address drops the whole page
        assert _call_again(operation, pge=pge, bits=bits, large=large, offset=offset) == 2, hex(offset)
