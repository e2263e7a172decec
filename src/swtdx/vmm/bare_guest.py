# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of a few bytes: what must stand around them so that a TD's vCPU comes to execute them in 64-bit mode.

A TD's vCPU starts at 0xFFFFFFF0 in 32-bit protected mode, flat and without paging, with EFER.LME already set (TDX
module specification, initial state of a vCPU).  The reset page loads a GDT, turns on PAE and paging, and jumps to the
code.  There, RSP is `STACK`, interrupts are off and there is no IDT: an exception is a triple fault.

Mapped onto themselves, with pages of 2 MiB: the first GiB and the one below 4 GiB. Shared addresses are not mapped.

A TD reaches the outside by TDG.VP.VMCALL (GHCI specification); `io_out` and `io_in` are the machine code of its most
useful function.  They change RAX, RCX and R10 to R15.

>>> io_out(0x80, 7)[-4:].hex()  # TDCALL
'660f01cc'
"""

from __future__ import annotations

import struct

from swtdx.x86 import PAGE_SIZE

RESET_PAGE = 0xFFFF_F000
PAGE_TABLES = 0x1_0000
PAGE_TABLE_PAGES = 4
STACK = 0x1_F000
"""Where the stack begins; it grows down, through memory that is added as zeros."""
STACK_PAGES = 4
CODE = 0x2_0000

_PRESENT_WRITABLE, _LARGE_PAGE = 0x3, 0x80
_VALUE_IN_R11 = b"\x4c\x89\xd8"  # mov rax, r11


def io_out(port: int, value: int, size: int = 1) -> bytes:
    """Machine code: write ``value`` of ``size`` bytes (1, 2, 4) to ``port``, by TDG.VP.VMCALL<Instruction.IO>."""
    return b"\x41\xbf" + struct.pack("<I", value) + tdvmcall_io(size, 1, port)  # mov r15d, value


def io_in(port: int, size: int = 1) -> bytes:
    """Machine code: read ``size`` bytes from ``port`` into RAX, by TDG.VP.VMCALL<Instruction.IO>."""
    return tdvmcall_io(size, 0, port) + _VALUE_IN_R11


def forever(code: bytes) -> bytes:
    """``code`` again and again."""
    return code + b"\xe9" + struct.pack("<i", -(len(code) + 5))


def tdvmcall_io(size: int, direction: int, port: int) -> bytes:
    """Machine code: the TDVMCALL itself; ``direction`` 1 is out, of R15, 0 is in, to R11."""
    return (
        b"\x31\xc0"  # xor eax, eax               TDG.VP.VMCALL
        b"\xb9\x00\xfc\x00\x00"  # mov ecx, 0xfc00            pass R10 to R15
        b"\x45\x31\xd2"  # xor r10d, r10d
        b"\x41\xbb\x1e\x00\x00\x00"  # mov r11d, 30               Instruction.IO
        + b"\x41\xbc" + struct.pack("<I", size)  # mov r12d, size
        + b"\x41\xbd" + struct.pack("<I", direction)  # mov r13d, direction        0 in, 1 out
        + b"\x41\xbe" + struct.pack("<I", port)  # mov r14d, port
        + b"\x66\x0f\x01\xcc"  # tdcall                     data: R15 out, R11 in
    )  # fmt: skip


def reset_page() -> bytes:
    """The page that ends at 4 GiB: from reset to 64-bit mode at `CODE`."""
    entry = (
        b"\x0f\x01\x15" + struct.pack("<I", RESET_PAGE + 0xF0)  # lgdt [gdtr]
        + b"\x0f\x20\xe0\x83\xc8\x20\x0f\x22\xe0"  # CR4.PAE
        + b"\xb8" + struct.pack("<I", PAGE_TABLES) + b"\x0f\x22\xd8"  # CR3
        + b"\xbc" + struct.pack("<I", STACK)  # ESP
        + b"\x0f\x20\xc0\x0d\x00\x00\x00\x80\x0f\x22\xc0"  # CR0.PG: long mode, as EFER.LME is set
        + b"\xea" + struct.pack("<IH", CODE, 8)  # jmp 8:CODE
    )  # fmt: skip
    gdt = struct.pack("<3Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)  # null, 64-bit code, data
    page = bytearray(PAGE_SIZE)
    page[: len(entry)] = entry
    page[0xC0 : 0xC0 + len(gdt)] = gdt
    page[0xF0:0xF6] = struct.pack("<HI", len(gdt) - 1, RESET_PAGE + 0xC0)
    page[0xFF0:0xFF5] = b"\xe9" + struct.pack("<i", -0xFF5)  # jmp to the beginning of the page
    return bytes(page)


def page_tables() -> bytes:
    """`PAGE_TABLE_PAGES` pages at `PAGE_TABLES`: the first and the fourth GiB mapped onto themselves."""
    pml4, pdpt, low, high = ([0] * 512 for _ in range(PAGE_TABLE_PAGES))
    pml4[0] = PAGE_TABLES + 0x1000 | _PRESENT_WRITABLE
    pdpt[0] = PAGE_TABLES + 0x2000 | _PRESENT_WRITABLE
    pdpt[3] = PAGE_TABLES + 0x3000 | _PRESENT_WRITABLE
    for index in range(512):
        low[index] = index << 21 | _LARGE_PAGE | _PRESENT_WRITABLE
        high[index] = 3 << 30 | index << 21 | _LARGE_PAGE | _PRESENT_WRITABLE
    return b"".join(struct.pack("<512Q", *table) for table in (pml4, pdpt, low, high))


def regions(code: bytes) -> list[tuple[int, bytes]]:
    """(GPA, contents) of all that must be in private memory before the first entry, in whole pages."""
    pages = -(-len(code) // PAGE_SIZE)
    return [
        (RESET_PAGE, reset_page()),
        (PAGE_TABLES, page_tables()),
        (STACK - STACK_PAGES * PAGE_SIZE, bytes(STACK_PAGES * PAGE_SIZE)),
        (CODE, code.ljust(pages * PAGE_SIZE, b"\xcc")),
    ]
