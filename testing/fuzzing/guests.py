# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest code for the ioctl fuzzer: short pieces that make every kind of exit, put together at random, without an end.

A TD runs in 64-bit mode from `testing.guest`'s reset page and page tables; its pieces are TDCALLs with values that are
sometimes right. A normal VM runs in real mode at address 0; its pieces are instructions that exit.
"""

from __future__ import annotations

import random
import struct

from testing.guest import CODE, PAGE_SIZE

SHARED = 1 << 47
TD_MEMORY = 6 << 20
_MOV = {"rcx": "48b9", "rdx": "48ba", "r8": "49b8", "r9": "49b9", "r10": "49ba", "r11": "49bb", "r12": "49bc",
        "r13": "49bd", "r14": "49be", "r15": "49bf"}  # fmt: skip
_TDCALL = bytes.fromhex("660f01cc")
_FUNCTIONS = (10, 12, 30, 30, 31, 32, 48, 48, 0x10000, 0x10001, 0x10001, 0x10002, 0x10004, 0x10005, 54, 1 << 40)


def _set(register: str, value: int) -> bytes:
    return bytes.fromhex(_MOV[register]) + struct.pack("<Q", value & (1 << 64) - 1)


def _tdcall(leaf: int, **registers: int) -> bytes:
    return (
        b"".join(_set(name, value) for name, value in registers.items()) + b"\xb8" + struct.pack("<I", leaf) + _TDCALL
    )


def _operand(chance: random.Random) -> int:
    return chance.choice(
        (0, 1, 2, 4, 8, 0x80, 0x3F8, 0x20, 0x1B, 0x6E0, 0x830, 0x10, 0x1000, 0x30000, 0x20_0000, 0x10_0000,
         SHARED, SHARED | 0x5000, SHARED | 0x10_0000, SHARED | 0xFEC0_0000, (1 << 64) - 1, chance.getrandbits(64))
    )  # fmt: skip


def private_page(chance: random.Random) -> int:
    """A page of a TD's memory, or just behind it; twice 2 MiB of it can be accepted at once."""
    return chance.choice((chance.randrange(16, 70), chance.randrange(0x200, 0x604))) * PAGE_SIZE


def _td_piece(chance: random.Random) -> bytes:
    kind = chance.randrange(10)
    if kind < 5:
        registers = {f"r{number}": _operand(chance) for number in range(12, 16)}
        return _tdcall(0, rcx=0xFC00, r10=0 if chance.random() < 0.9 else chance.randrange(16),
                       r11=chance.choice(_FUNCTIONS), **registers)  # fmt: skip
    if kind == 5:  # MEM.PAGE.ACCEPT
        if chance.random() < 0.3:
            return _tdcall(6, rcx=chance.choice((0x20_0000, 0x40_0000)) | 1)
        return _tdcall(6, rcx=private_page(chance))
    if kind == 6:  # MapGPA of some pages that KVM knows
        gpa = chance.choice((0, SHARED)) | private_page(chance)
        size = chance.randrange(1, 4) * PAGE_SIZE
        return _tdcall(0, rcx=0xFC00, r10=0, r11=0x10001, r12=gpa, r13=size, r14=0, r15=0)
    if kind == 7:  # touch private or shared memory
        gpa = chance.choice((0, 0, SHARED)) | private_page(chance)
        return _set("rcx", gpa) + bytes.fromhex(chance.choice(("8a01", "c60101")))  # mov al, [rcx]; mov byte [rcx], 1
    if kind == 8:
        return bytes.fromhex(chance.choice(("31c00fa2", "b91b0000000f32", "0f31", "fb", "fa", "f4", "0f0b", "90")))
    return _tdcall(chance.randrange(40), rcx=_operand(chance), rdx=_operand(chance), r8=_operand(chance))


def td_code(chance: random.Random) -> bytes:
    """The page at `testing.guest.CODE`: pieces, then a jump back."""
    code = bytearray()
    while len(code) < PAGE_SIZE - 200 and chance.random() < 0.97:
        code += _td_piece(chance)
    code += b"\xe9" + struct.pack("<i", -(len(code) + 5))
    assert CODE % PAGE_SIZE == 0
    return bytes(code)


_REAL_MODE = (
    "e460", "e680", "e584", "66e784", "ba2000ec", "bac000ee",  # in and out
    "f4", "fbf4", "fa", "fb", "0fa2", "0f31", "0f01c1", "f390", "0f09", "cc", "cd30", "0f0b", "ce", "9c9d",
    "b90300bf0080f36c", "b90300be0080f36e", "b90200f36f",  # rep insb, outsb, outsw
    "b800d08ed8a10000", "b800d08ed8a30000", "b800d08ed8ff060000", "b800d08ed8a4",  # MMIO at 0xD0000
    "66b91b0000000f32", "66b9e00600000f30", "66b9a00100000f32", "66b94b564d000f32", "66b9000800000f32",
    "0f20c0", "0f22c0", "0f23f8", "0f01f8", "0f01d1", "0f011e0000", "0f010e0000", "0fc7f0", "eafe0f0000",
)  # fmt: skip


def real_mode_code(chance: random.Random) -> bytes:
    """64 KiB for address 0: pieces now and then, random bytes between some, or just a short loop of one piece."""
    if chance.random() < 0.5:
        pieces = b"".join(bytes.fromhex(chance.choice(_REAL_MODE)) for _ in range(chance.randrange(0, 12)))
        code = pieces + b"\xe9" + struct.pack("<h", -(len(pieces) + 3))
        return code.ljust(0x10000, b"\x90")
    return b"".join(
        chance.randbytes(chance.randrange(6)) if chance.random() < 0.3 else bytes.fromhex(chance.choice(_REAL_MODE))
        for _ in range(8000)
    )[:0x10000].ljust(0x10000, b"\xf4")
