# SPDX-License-Identifier: GPL-2.0-or-later
"""Stores over two pages of which one faults: nothing is written (SDM volume 3, 6.5, faults restart the instruction)."""

from __future__ import annotations

import pytest

from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import PAGE_TABLES, Guest

BOUNDARY = 0x1000_0000
STORES = {"movups [rdi], xmm0": 16, "movdqu [rdi], xmm0": 16, "movupd [rdi], xmm0": 16, "fstp tbyte ptr [rdi]": 10}


def guest_with(store: str, missing: int) -> Guest:
    """The 2 MiB page before or behind the boundary is not present; its #PF leaves the vector in R8."""
    guest = Guest(f"fld1\n mov r8d, 0\n {store}\n hlt")
    guest.handler(14, "mov r8d, 14\n mov r9, cr2\n hlt", 0x112000)
    guest.put64(PAGE_TABLES + 0x2000 + 8 * (missing >> 21), 0)
    guest.context.cr4 = 0x660
    return guest


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("missing", [BOUNDARY - 1, BOUNDARY])
def test_a_store_over_two_pages_writes_all_or_nothing(store: str, missing: int) -> None:
    size = STORES[store]
    for before in range(1, size):
        guest = guest_with(store, missing)
        start = BOUNDARY - before
        guest.memory.raw[start : start + size] = b"\xcc" * size
        guest.context.gpr[7] = start
        assert guest.run() == ExitReason.HLT
        assert guest.context.gpr[8] == 14, before
        assert guest.context.gpr[9] == (start if missing < BOUNDARY else BOUNDARY), "CR2 is the first byte that faults"
        assert bytes(guest.memory.raw[start : start + size]) == b"\xcc" * size, before


@pytest.mark.parametrize("store", STORES)
def test_a_store_over_two_pages_that_are_there(store: str) -> None:
    size = STORES[store]
    for before in range(1, size):
        guest = Guest(f"fld1\n {store}\n hlt")
        start = BOUNDARY - before
        guest.memory.raw[start - 8 : start + size + 8] = b"\xcc" * (size + 16)
        guest.context.gpr[7] = start
        assert guest.run() == ExitReason.HLT
        written = bytes(guest.memory.raw[start : start + size])
        assert written == (bytes(16) if size == 16 else (0x3FFF_8000_0000_0000_0000).to_bytes(10, "little"))
        assert bytes(guest.memory.raw[start - 8 : start]) == bytes(guest.memory.raw[start + size :][:8]) == b"\xcc" * 8
