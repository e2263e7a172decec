# SPDX-License-Identifier: GPL-2.0-or-later
"""Protection keys (SDM volume 3, 4.6.2): PKRU and CR4.PKE count at each access, whatever the TLB holds."""

from __future__ import annotations

import pytest

from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import PAGE_TABLES, Guest

PAGE = 0x80_0000
PRESENT_WRITABLE_USER, LARGE, GLOBAL, KEY_1 = 0x7, 0x80, 0x100, 1 << 59
CR4_PGE, CR4_PKE = 0x80, 1 << 22
NO_ACCESS_BY_KEY_1 = 0x4
SET_PKE = f"mov rdx, cr4; or edx, {CR4_PKE}; mov cr4, rdx"
CLEAR_PKE = f"mov rdx, cr4; and edx, {~CR4_PKE & 0xFFFFFFFF:#x}; mov cr4, rdx"
FAULT = 14


def wrpkru(value: int) -> str:
    return f"mov eax, {value}; xor ecx, ecx; xor edx, edx; wrpkru"


@pytest.mark.parametrize("bits", [0, GLOBAL], ids=["local", "global"])
@pytest.mark.parametrize(
    ("pke", "pkru", "operation", "faults"),
    [
        (False, NO_ACCESS_BY_KEY_1, SET_PKE, True),
        (False, 0, SET_PKE, False),
        (True, 0, wrpkru(NO_ACCESS_BY_KEY_1), True),
        (True, 0, f"{wrpkru(NO_ACCESS_BY_KEY_1)}; {CLEAR_PKE}", False),
        (True, 0, f"{wrpkru(NO_ACCESS_BY_KEY_1)}; {CLEAR_PKE}; {SET_PKE}", True),
    ],
)
def test_a_page_that_was_read_obeys_the_keys(bits: int, pke: bool, pkru: int, operation: str, faults: bool) -> None:
    guest = Guest(f"mov rbx, [{PAGE:#x}]\n {operation}\n mov rbx, [{PAGE:#x}]\n mov r8d, 1\n hlt")
    guest.handler(FAULT, f"mov r8d, {FAULT}\n hlt", 0x112000)
    for table in (PAGE_TABLES, PAGE_TABLES + 0x1000):
        guest.put64(table, table + 0x1000 | PRESENT_WRITABLE_USER)
    guest.put64(PAGE_TABLES + 0x2000 + 8 * (PAGE >> 21), PAGE | PRESENT_WRITABLE_USER | LARGE | KEY_1 | bits)
    guest.context.cr4 |= CR4_PGE | (CR4_PKE if pke else 0)
    guest.context.pkru = pkru
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[8] == (FAULT if faults else 1)
