# SPDX-License-Identifier: GPL-2.0-or-later
"""The emulator's moves of vector registers, and the two x87 words that it stores (em_mov with Sse, Avx or Mmx,
em_fnstcw, em_fnstsw of arch/x86/kvm/emulate.c).

The processor has checked all but the access when it leaves the guest: CPUID, CR0, CR4, XCR0 and the alignment.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.x86.guest_memory import Unhandled

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.emulate import Instruction, Steps

_ST, _ST_SIZE = 32, 16
_HALF = 1 << 128


def move(instruction: Instruction) -> Steps:
    """One register of 16 bytes, and memory."""
    yield from instruction.put(0, (yield from instruction.get(1)))


def move_avx(instruction: Instruction) -> Steps:
    """The same with a VEX prefix, of 16 or 32 bytes; the upper half of a register goes with 16 (from 6.19 on)."""
    if not instruction.vcpu.kvm.kernel.release.emulates_avx:
        raise Unhandled
    context, loads = instruction.context, instruction.op_is_register(0)
    number, size = instruction.vector_register(0 if loads else 1)
    if loads:
        value = yield from instruction.read(instruction.address(size), size)
        _set_upper(instruction, number, value >> 128)
        context.set_xmm(number, value % _HALF)
        return
    value = context.get_xmm(number)
    if size == 2 * _ST_SIZE:
        at = _ST_SIZE * number
        value |= int.from_bytes(context.get_ymm_high()[at : at + _ST_SIZE], "little") << 128
    yield from instruction.write(instruction.address(size, write=True), size, value)


def _set_upper(instruction: Instruction, number: int, value: int) -> None:
    image = bytearray(instruction.context.get_ymm_high())
    image[_ST_SIZE * number : _ST_SIZE * (number + 1)] = value.to_bytes(_ST_SIZE, "little")
    instruction.context.set_ymm_high(bytes(image))


def move_mmx(instruction: Instruction) -> Steps:
    """MOVQ of MMX: as each such instruction it makes all x87 registers valid, and ST(0) the first."""
    context, loads = instruction.context, instruction.op_is_register(0)
    number = instruction.mmx_register(0 if loads else 1)
    if loads:
        value = yield from instruction.read(instruction.address(8), 8)
    image = bytearray(context.get_fpu())
    (status,) = struct.unpack_from("<H", image, 2)
    top = status >> 11 & 7
    stack = bytes(image[_ST : _ST + 8 * _ST_SIZE])
    for register in range(8):
        at = (register - top & 7) * _ST_SIZE
        image[_ST + register * _ST_SIZE : _ST + (register + 1) * _ST_SIZE] = stack[at : at + _ST_SIZE]
    struct.pack_into("<H", image, 2, status & ~(7 << 11))
    image[4] = 0xFF
    at = _ST + number * _ST_SIZE
    if loads:
        struct.pack_into("<QH", image, at, value, 0xFFFF)
    else:
        (value,) = struct.unpack_from("<Q", image, at)
        yield from instruction.write(instruction.address(8, write=True), 8, value)
    context.set_fpu(bytes(image))


def store_x87_word(instruction: Instruction) -> Steps:
    """FNSTCW and FNSTSW."""
    image = instruction.context.get_fpu()
    yield from instruction.put(0, int(struct.unpack_from("<HH", image)[instruction.name == "FNSTSW"]))


_SSE = (
    "MOVUPS", "MOVAPS", "MOVUPD", "MOVAPD", "MOVDQU", "MOVDQA", "MOVNTPS", "MOVNTPD", "MOVNTDQ", "MOVNTDQA",
)  # fmt: skip
OPERATIONS: dict[str, Callable[[Instruction], Steps]] = {
    **dict.fromkeys(_SSE, move),
    **dict.fromkeys((f"V{name}" for name in _SSE), move_avx),
    "MOVQ": move_mmx,
    **dict.fromkeys(("FNSTCW", "FNSTSW"), store_x87_word),
}
"""By the name that iced-x86 has for the mnemonic."""
