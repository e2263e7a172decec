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
CR0_WP, CR4_OSXSAVE = 1 << 16, 1 << 18
XSTATE_PKRU, ALL_KEYS = 1 << 9, 0xFFFF_FFFF
AREAS = 0xA0_0000
ACCESS_BYTES = 8
"""Of an instruction that reads or writes a register at a 32-bit address."""


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


@pytest.mark.parametrize("instruction", ["wrpkru", "xrstor"])
@pytest.mark.parametrize("key", range(16))
def test_rights_follow_every_change_of_pkru(key: int, instruction: str) -> None:
    """Changes of this key's rights and of others', with what was accessed under the values before them in the TLB."""
    access, write, others = 1 << 2 * key, 2 << 2 * key, ALL_KEYS & ~(3 << 2 * key)
    values = [0, others, write, write | others, others, access, 0, access | others, write, access, others]
    source = "xor r9d, r9d\n"
    for index, value in enumerate(values):  # areas that XRSTOR reads PKRU from
        source += f"{wrpkru(value)}; mov eax, {XSTATE_PKRU:#x}; xsave [{AREAS + 4096 * index:#x}]\n"
    source += wrpkru(0) + "\n"
    for index, value in enumerate(values):
        change = f"mov eax, {XSTATE_PKRU:#x}; xor edx, edx; xrstor [{AREAS + 4096 * index:#x}]"
        source += (wrpkru(value) if instruction == "wrpkru" else change) + "\n"
        for operation in (f"mov rcx, [{PAGE:#x}]", f"mov [{PAGE:#x}], rcx"):
            source += f"xor r8d, r8d; {operation}; add r9d, r9d; or r9d, r8d\n"
    guest = Guest(source + "hlt")
    guest.handler(FAULT, f"mov r8d, 1; add rsp, 8; add qword ptr [rsp], {ACCESS_BYTES}; iretq", 0x112000)
    for table in (PAGE_TABLES, PAGE_TABLES + 0x1000):
        guest.put64(table, table + 0x1000 | PRESENT_WRITABLE_USER)
    guest.put64(PAGE_TABLES + 0x2000 + 8 * (PAGE >> 21), PAGE | PRESENT_WRITABLE_USER | LARGE | key << 59)
    guest.context.cr0 |= CR0_WP
    guest.context.cr4 |= CR4_PGE | CR4_PKE | CR4_OSXSAVE
    guest.context.xcr0 = XSTATE_PKRU | 3
    assert guest.run() == ExitReason.HLT
    faults = [bool(value & bits) for value in values for bits in (access, access | write)]
    assert f"{guest.context.gpr[9]:0{len(faults)}b}" == "".join(str(int(fault)) for fault in faults)
