# SPDX-License-Identifier: GPL-2.0-or-later
"""Bit scans, double shifts, multiplications and divisions with an operand in MMIO, beside the processor's own.

Each is executed with its operand in a slot, by the engine, and in MMIO, by the emulator. What the manual (SDM vol. 2)
leaves undefined is not compared: some flags, the destination of a scan of 0, shifts by more bits than there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import DATA, MMIO, LongModeVm

CF, PF, ZF, SF, OF = 1, 4, 0x40, 0x80, 0x800
SIZES = {8: "", 4: "", 2: "66", 1: ""}
# name: (opcode after the prefixes, for operands at [rsi]; of bytes, if there is one; flags that are defined)
FORMS = {
    "bsf": ("0fbc06", "", ZF), "bsr": ("0fbd06", "", ZF),
    "shld 1": ("0fa40601", "", CF | ZF | SF | PF | OF), "shld 7": ("0fa40607", "", CF | ZF | SF | PF),
    "shrd 1": ("0fac0601", "", CF | ZF | SF | PF | OF), "shld cl": ("0fa506", "", CF | ZF | SF | PF),
    "shrd cl": ("0fad06", "", CF | ZF | SF | PF),
    "mul": ("f726", "f626", CF | OF), "imul": ("f72e", "f62e", CF | OF),
    "imul r, m": ("0faf06", "", CF | OF), "imul r, m, imm8": ("6b06f9", "", CF | OF),
    "div": ("f736", "f636", 0), "idiv": ("f73e", "f63e", 0),
}  # fmt: skip
VALUES = (0, 1, 2, 0x80, 0x7F, 0xFFFF, 0x8000, 0x12345678, 0x80000000, 0xFFFFFFFFFFFFFFFF, 0x8000000000000000)
CASES = [(name, size) for name, form in FORMS.items() for size in SIZES if size > 1 or form[1]]


@pytest.fixture(scope="module")
def guest() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as made:
        yield made


def executed(guest: LongModeVm, code: bytes, address: int, operand: bytes, rax: int, rdx: int, flags: int) -> Any:
    guest.memory[DATA : DATA + 8] = operand
    guest.start(code, rsi=address, rax=rax, rdx=rdx, rcx=rax & 0xF)
    memory, mmio = bytearray(operand), guest.vcpu.kvm_run.mmio
    while guest.step() is k.Exit.MMIO:
        if mmio.is_write:
            memory[: mmio.len] = bytes(mmio.data[: mmio.len])
        else:
            mmio.data[: mmio.len] = memory[: mmio.len]
    regs = guest.vcpu.get_regs()
    outcome = guest.vcpu.kvm_run.io.port, bytes(guest.vcpu.io_data())
    if outcome[0] == 0xE0:
        return outcome  # the handler has used AL
    return (
        outcome,
        regs.rax,
        regs.rdx,
        regs.rflags & flags,
        bytes(memory if address == MMIO else guest.memory[DATA : DATA + 8]),
    )


@pytest.mark.parametrize(("name", "size"), CASES)
def test_it_is_what_the_processor_does(guest: LongModeVm, name: str, size: int) -> None:
    wide, narrow, flags = FORMS[name]
    prefix = {8: "48", 4: "", 2: "66", 1: ""}[size]
    code = bytes.fromhex(prefix + (narrow if size == 1 else wide))
    for number, value in enumerate(VALUES):
        rax, rdx = VALUES[(number * 3 + 1) % len(VALUES)], VALUES[(number * 5) % 4]
        if name in ("bsf", "bsr") and not value & (1 << 8 * size) - 1:
            continue
        operand = value.to_bytes(8, "little")
        ours, theirs = (executed(guest, code, at, operand, rax, rdx, flags) for at in (MMIO, DATA))
        assert ours == theirs, (hex(value), hex(rax), hex(rdx))
