# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest is the adversary: whatever it executes, the processor exits or continues, and never ends the process.

``SWTDX_RANDOM_GUESTS=20000 pytest tests/cpu/test_random_code.py`` makes a campaign of it (``SWTDX_RANDOM_SEED`` for
another sequence); by default some guests of each kind run in seconds.
"""

from __future__ import annotations

import os
import random
import threading

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import CODE, FLAT_CODE, FLAT_DATA, Guest, ept_map

GUESTS = int(os.environ.get("SWTDX_RANDOM_GUESTS", "120"))
SEED = int(os.environ.get("SWTDX_RANDOM_SEED", "1"))
# Opcodes that pure chance would hardly compose: system registers, far transfers, x87/SSE state, TDCALL, VMCALL, SVM.
_SEASONING = """
    0f20c0 0f22c0 0f22d8 0f22e0 0f23f8 0f30 0f32 0fa2 0f01d0 0f01d1 660f01cc 0f01c1 0f01d8 0f01d9 0f01da 0f01df
    0faa 0f0b cc cd80 ce f1 cf 48cf 0f05 0f07 0f34 0f35 cb ca0400 ea00001000 9a00001000 0f00d8 0f00d0 0f0100
    0f0118 0f0138 0f09 0f08 0fae00 0fae08 0fae20 0fae28 0fc7b000100000 0fc73500100000 f00fc70f dbe3 9b d9e1 0f77
    f30f6f00 0f3800c1 660f3adfc101 e460 ec ed ef 6c 6d 6e 6f f36d f36f fa fb f4 f390 9d 9c 8ed8 8ed0 0fa1 0fa9
    0f38f000 f20f38f1c0 f3480fb8c0 0fc7f0 0fc7f8
"""
SEASONING = [bytes.fromhex(text) for text in _SEASONING.split()]


def random_code(source: random.Random) -> bytes:
    pieces = [
        source.choice(SEASONING) if source.random() < 0.4 else source.randbytes(source.randint(1, 6)) for _ in range(40)
    ]
    return b"".join(pieces)


def in_mode(guest: Guest, mode: str, source: random.Random) -> None:
    context = guest.context
    if mode == "64":
        return
    context.efer = 0x800
    context.cr0 = 0x21 if mode == "32" else 0x30
    context.cr4 = source.choice((0, 0x20, 0x600))
    for segment in (Segment.ES, Segment.SS, Segment.DS, Segment.FS, Segment.GS):
        context.set_segment(segment, 0x18, 0, 0xFFFFFFFF, FLAT_DATA if mode == "32" else 0x93)
    rights = FLAT_CODE & ~0x2000 | 0x4000 if mode == "32" else 0x9B
    context.set_segment(Segment.CS, 0x10, 0 if mode == "32" else CODE, 0xFFFFFFFF if mode == "32" else 0xFFFF, rights)
    context.rip = CODE if mode == "32" else 0


@pytest.mark.parametrize("mode", ["64", "32", "16"])
@pytest.mark.parametrize("tdx", [False, True], ids=["vm", "td"])
def test_random_code(mode: str, tdx: bool) -> None:
    source = random.Random(f"{SEED} {mode} {tdx}")
    processor = Guest().processor
    for _ in range(max(1, GUESTS // 6)):
        ept = source.random() < 0.5
        guest = Guest(processor=processor, ept=ept, tdx=tdx)
        if ept:
            processor.memory.raw[guest.root : guest.root + 4096] = bytes(4096)
            for gpa in range(0, 0x40_0000, 0x20_0000):
                ept_map(processor, guest.root, gpa, gpa, level=1)
        guest.memory.write(CODE, random_code(source))
        context = guest.context
        context.rip = CODE
        in_mode(guest, mode, source)
        context.apicv = source.random() < 0.5
        context.set_msr_bitmap(source.choice((bytes(4096), b"\xff" * 4096)))
        context.exception_bitmap = source.choice((0, 0xFFFFFFFF, 1 << 6))
        context.rflags = source.choice((2, 0x202, 0x102, 0x3202))
        for register in range(16):
            context.gpr[register] = source.choice((0, 1, CODE, 0x90000, 1 << 47, source.getrandbits(64)))
        for _ in range(12):
            timer = threading.Timer(0.005, context.kick)
            timer.start()
            reason = context.run()
            timer.cancel()
            timer.join()
            assert reason in set(ExitReason)
            if reason in (ExitReason.TRIPLE_FAULT, ExitReason.EPT_VIOLATION, ExitReason.EPT_MISCONFIG):
                break
            context.rip += context.instruction_length or 1
        context.close()
