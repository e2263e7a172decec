# SPDX-License-Identifier: GPL-2.0-or-later
"""The measured guest: a page of hand-assembled code that asks the VMM what to do, does it so many times, and says so.

A TD's vCPU starts at 0xFFFFFFF0 in 32-bit protected mode, flat and without paging, with EFER.LME already set (TDX
module specification, initial state of a vCPU). The reset page loads a GDT, turns on PAE and paging and is in 64-bit
mode. From there on the guest only knows two port reads (which workload, how often) and one port write (done), all by
TDG.VP.VMCALL<Instruction.IO> (GHCI specification): no exception handler and no stack are needed.

RBP counts: it is never passed in a TDVMCALL. RBX holds the workload's address.
"""

from __future__ import annotations

import struct
from enum import IntEnum

PAGE_SIZE = 0x1000
RESET_PAGE = 0xFFFF_F000
PAGE_TABLES = 0x1_0000
CODE = 0x2_0000
DATA = 0x100_0000
DATA_PAGES = 2048
"""What `Workload.FLUSH_AND_TOUCH` touches, one byte a page."""
WARM_PAGES = 64
"""What `Workload.TOUCH` touches: few enough for any TLB."""

_PRESENT_WRITABLE, _LARGE_PAGE = 0x3, 0x80


class Port(IntEnum):
    """The ports by which guest and VMM talk."""

    EXIT = 0x80  # the exit being measured
    WORKLOAD = 0x500  # in, 4 bytes: where to jump
    COUNT = 0x501  # in, 4 bytes: how often
    DONE = 0x502  # out, 1 byte


class Workload(IntEnum):
    """Addresses of the loops; each runs RBP times."""

    COMPUTE = CODE + 0x100
    IO_EXIT = CODE + 0x140
    CPUID = CODE + 0x180
    TOUCH = CODE + 0x1C0
    FLUSH_AND_TOUCH = CODE + 0x200


COMPUTE_INSTRUCTIONS = 5
"""Instructions in one turn of `Workload.COMPUTE`."""

_DONE = CODE + 0xC0


def tdvmcall_io(size: int, direction: int, port: Port) -> bytes:
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


def _jump(here: int, there: int) -> bytes:
    return b"\xe9" + struct.pack("<i", there - (here + 5))


def _loop(address: int, body: bytes) -> bytes:
    """``body`` RBP times, then to the report."""
    code = body + b"\x48\xff\xcd"  # dec rbp
    code += b"\x75" + struct.pack("<b", -(len(code) + 2))  # jnz the body
    return code + _jump(address + len(code), _DONE)


def _touch(pages: int) -> bytes:
    return (
        b"\xbe" + struct.pack("<I", DATA)  # mov esi, first page
        + b"\xbf" + struct.pack("<I", DATA + pages * PAGE_SIZE)  # mov edi, end
        + b"\x8a\x06"  # mov al, [rsi]
        b"\x48\x81\xc6\x00\x10\x00\x00"  # add rsi, 0x1000
        b"\x48\x39\xfe"  # cmp rsi, rdi
        b"\x72\xf2"  # jb to the load
    )  # fmt: skip


def code_page() -> bytes:
    """The page at `CODE`."""
    bodies = {
        Workload.COMPUTE: b"\x48\x01\xd0"  # add rax, rdx
        b"\x48\x31\xc1"  # xor rcx, rax
        b"\x48\x0f\xaf\xd1",  # imul rdx, rcx
        Workload.IO_EXIT: b"\x41\xbf\x55\x00\x00\x00" + tdvmcall_io(1, 1, Port.EXIT),  # mov r15d, 0x55
        Workload.CPUID: b"\x31\xc0\x31\xc9\x0f\xa2",  # xor eax, eax; xor ecx, ecx; cpuid
        Workload.TOUCH: _touch(WARM_PAGES),
        Workload.FLUSH_AND_TOUCH: b"\x0f\x20\xd8\x0f\x22\xd8" + _touch(DATA_PAGES),  # mov rax, cr3; mov cr3, rax
    }
    dispatch = (
        tdvmcall_io(4, 0, Port.WORKLOAD)
        + b"\x44\x89\xdb"  # mov ebx, r11d
        + tdvmcall_io(4, 0, Port.COUNT)
        + b"\x44\x89\xdd"  # mov ebp, r11d
        + b"\xff\xe3"  # jmp rbx
    )
    report = tdvmcall_io(1, 1, Port.DONE)
    page = bytearray(b"\xcc" * PAGE_SIZE)
    pieces = {CODE: dispatch, _DONE: report + _jump(_DONE + len(report), CODE)}
    pieces.update({workload: _loop(workload, body) for workload, body in bodies.items()})
    for address, piece in pieces.items():
        room = page[address - CODE : address - CODE + len(piece)]
        if room.strip(b"\xcc"):
            raise ValueError(f"the piece at {address:#x} overlaps another")
        page[address - CODE : address - CODE + len(piece)] = piece
    return bytes(page)


def reset_page() -> bytes:
    """The page that ends at 4 GiB: from reset to 64-bit mode at `CODE`."""
    entry = (
        b"\x0f\x01\x15" + struct.pack("<I", RESET_PAGE + 0xF0)  # lgdt [gdtr]
        + b"\x0f\x20\xe0\x83\xc8\x20\x0f\x22\xe0"  # CR4.PAE
        + b"\xb8" + struct.pack("<I", PAGE_TABLES) + b"\x0f\x22\xd8"  # CR3
        + b"\x0f\x20\xc0\x0d\x00\x00\x00\x80\x0f\x22\xc0"  # CR0.PG: long mode, as EFER.LME is set
        + b"\xea" + struct.pack("<IH", CODE, 8)  # jmp 8:CODE
    )  # fmt: skip
    gdt = struct.pack("<3Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)  # null, 64-bit code, data
    page = bytearray(PAGE_SIZE)
    page[: len(entry)] = entry
    page[0xC0 : 0xC0 + len(gdt)] = gdt
    page[0xF0:0xF6] = struct.pack("<HI", len(gdt) - 1, RESET_PAGE + 0xC0)
    page[0xFF0:0xFF5] = _jump(RESET_PAGE + 0xFF0, RESET_PAGE)
    return bytes(page)


def page_tables() -> bytes:
    """Four pages at `PAGE_TABLES`: the first and the fourth GiB mapped onto themselves in pages of 2 MiB."""
    pml4, pdpt, low, high = ([0] * 512 for _ in range(4))
    pml4[0] = PAGE_TABLES + 0x1000 | _PRESENT_WRITABLE
    pdpt[0] = PAGE_TABLES + 0x2000 | _PRESENT_WRITABLE
    pdpt[3] = PAGE_TABLES + 0x3000 | _PRESENT_WRITABLE
    for index in range(512):
        low[index] = index << 21 | _LARGE_PAGE | _PRESENT_WRITABLE
        high[index] = 3 << 30 | index << 21 | _LARGE_PAGE | _PRESENT_WRITABLE
    return b"".join(struct.pack("<512Q", *table) for table in (pml4, pdpt, low, high))
