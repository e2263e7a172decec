# SPDX-License-Identifier: GPL-2.0-or-later
"""The measured guest: a page of hand-assembled code that asks the VMM what to do, does it so many times, and reports.

How it comes to be in 64-bit mode is `swtdx.vmm.bare_guest`'s business. From there on the guest only knows two port
reads (which workload, how often) and one port write (done), all by TDG.VP.VMCALL<Instruction.IO> (GHCI specification):
no exception handler and no stack are needed.

RBP counts: it is never passed in a TDVMCALL. RBX holds the workload's address.
"""

from __future__ import annotations

import struct
from enum import IntEnum

from swtdx.vmm.bare_guest import CODE, PAGE_TABLES, RESET_PAGE, page_tables, reset_page, tdvmcall_io

__all__ = ["CODE", "PAGE_TABLES", "RESET_PAGE", "code_page", "page_tables", "reset_page", "tdvmcall_io"]

PAGE_SIZE = 0x1000
DATA = 0x100_0000
DATA_PAGES = 2048
"""What `Workload.FLUSH_AND_TOUCH` touches, one byte a page."""
FRESH = DATA + DATA_PAGES * PAGE_SIZE
"""Private memory that is not there at first: what `Workload.ACCEPT` and the two conversions work on. 2 MiB aligned."""
FRESH_PAGES = 1024
SHARED_BIT = 1 << 47
MAP_GPA_SIZE = 2 << 20
WARM_PAGES = 64
"""What `Workload.TOUCH` touches: few enough for any TLB."""


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
    ACCEPT = CODE + 0x240
    """Accept so many pages of `FRESH`, the last first: each is a fault, TDH.MEM.PAGE.AUG, TDG.MEM.PAGE.ACCEPT."""
    MAP_SHARED = CODE + 0x280
    """MapGPA of the first 2 MiB of `FRESH`: to shared, and the next one back to private."""
    MAP_PRIVATE = CODE + 0x2C0


COMPUTE_INSTRUCTIONS = 5
"""Instructions in one turn of `Workload.COMPUTE`."""

_DONE = CODE + 0xC0


def _jump(here: int, there: int) -> bytes:
    return b"\xe9" + struct.pack("<i", there - (here + 5))


def _loop(address: int, body: bytes) -> bytes:
    """``body`` RBP times, then to the report."""
    code = body + b"\x48\xff\xcd"  # dec rbp
    code += b"\x75" + struct.pack("<b", -(len(code) + 2))  # jnz the body
    return code + _jump(address + len(code), _DONE)


def _map_gpa(gpa: int) -> bytes:
    return (
        b"\x31\xc0"  # xor eax, eax               TDG.VP.VMCALL
        b"\xb9\x00\xfc\x00\x00"  # mov ecx, 0xfc00
        b"\x45\x31\xd2"  # xor r10d, r10d
        b"\x41\xbb\x01\x00\x01\x00"  # mov r11d, 0x10001          MapGPA
        + b"\x49\xbc" + struct.pack("<Q", gpa)  # mov r12, gpa
        + b"\x41\xbd" + struct.pack("<I", MAP_GPA_SIZE)  # mov r13d, size
        + b"\x66\x0f\x01\xcc"  # tdcall
    )  # fmt: skip


def _accept() -> bytes:
    return (
        b"\x48\x89\xe9\x48\xc1\xe1\x0c"  # mov rcx, rbp; shl rcx, 12
        + b"\x48\x81\xc1" + struct.pack("<I", FRESH - PAGE_SIZE)  # add rcx, FRESH - 0x1000
        + b"\xb8\x06\x00\x00\x00\x66\x0f\x01\xcc"  # mov eax, 6; tdcall          TDG.MEM.PAGE.ACCEPT
    )  # fmt: skip


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
        Workload.ACCEPT: _accept(),
        Workload.MAP_SHARED: _map_gpa(FRESH | SHARED_BIT),
        Workload.MAP_PRIVATE: _map_gpa(FRESH),
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
