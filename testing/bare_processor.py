# SPDX-License-Identifier: GPL-2.0-or-later
"""A bare 64-bit guest for tests of the processor: flat segments, identity page tables, EPT made by hand.

Guest code is GNU assembly (Intel syntax), put together by binutils, which the build needs anyway.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from pathlib import Path

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.cpu.vmx import Segment

CODE = 0x100000
STACK = 0x90000
GDT = 0x1000
IDT = 0x200000
PAGE_TABLES = 0x30000
EPT_TABLES = 0x2000_0000
FLAT_CODE, FLAT_DATA = 0xA09B, 0xC093
SELECTOR_CODE, SELECTOR_DATA = 0x10, 0x18


@functools.cache
def assemble(source: str, origin: int = CODE, bits: int = 64) -> bytes:
    """Machine code of ``source`` placed at ``origin``."""
    with tempfile.TemporaryDirectory() as scratch:
        text, obj, out = (Path(scratch) / name for name in ("a.s", "a.o", "a.bin"))
        text.write_text(f".intel_syntax noprefix\n.code{bits}\n{source}\n")
        subprocess.run(["as", "-o", obj, text], check=True)
        subprocess.run(
            ["ld", f"-Ttext={origin:#x}", "--oformat", "binary", "-e", "0", "-o", out, obj],
            check=True,
            stderr=subprocess.DEVNULL,
        )
        return out.read_bytes()


def ept_map(
    processor: Processor, root: int, gpa: int, hpa: int, entry: int = 7, levels: int = 4, level: int = 0
) -> None:
    """Put one mapping into the EPT at ``root``, taking tables from behind :data:`EPT_TABLES`."""
    qwords = processor.memory.qwords
    table = root
    for depth in range(levels - 1, level, -1):
        index = (table >> 3) + (gpa >> 12 + 9 * depth & 511)
        if not qwords[index]:
            qwords[EPT_TABLES >> 3] += 1
            qwords[index] = EPT_TABLES + 4096 * (16 + qwords[EPT_TABLES >> 3]) | 7
        table = qwords[index] & 0x000F_FFFF_FFFF_F000
    qwords[(table >> 3) + (gpa >> 12 + 9 * level & 511)] = hpa | entry | (0x80 if level else 0)


class Guest:
    """A processor with one virtual CPU in 64-bit mode, ``memory`` bytes mapped 1:1 by its own page tables."""

    def __init__(
        self, source: str = "", *, ept: bool = False, tdx: bool = False, processor: Processor | None = None
    ) -> None:
        self.processor = processor or Processor(Platform(memory_size=1 << 30))
        self.memory = self.processor.memory
        self.context = context = self.processor.new_context()
        context.no_ept = not ept
        context.tdx_mode = tdx
        context.set_msr_bitmap(b"\xff" * 4096)
        put = self.put64
        put(PAGE_TABLES, PAGE_TABLES + 0x1003)
        put(PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2003)
        for index in range(512):
            put(PAGE_TABLES + 0x2000 + 8 * index, index << 21 | 0x83)
        self.memory.raw[GDT : GDT + 32] = struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
        for segment in (Segment.ES, Segment.SS, Segment.DS, Segment.FS, Segment.GS):
            context.set_segment(segment, SELECTOR_DATA, 0, 0xFFFFFFFF, FLAT_DATA)
        context.set_segment(Segment.CS, SELECTOR_CODE, 0, 0xFFFFFFFF, FLAT_CODE)
        context.set_segment(Segment.GDTR, 0, GDT, 31, 0)
        context.set_segment(Segment.IDTR, 0, IDT, 4095, 0)
        context.efer = 0xD01
        context.cr4 = 0x660
        context.cr3 = PAGE_TABLES
        context.cr0 = 0x80000021
        context.rflags = 2
        context.gpr[4] = STACK
        if ept:
            self.root = EPT_TABLES + 4096
            context.set_ept(self.root | 3 << 3 | 6)
        if source:
            self.load(source)

    def put64(self, address: int, value: int) -> None:
        self.memory.qwords[address >> 3] = value

    def load(self, source: str, origin: int = CODE) -> None:
        """Assemble, place, and start there."""
        code = assemble(source, origin)
        self.memory.write(origin, code)
        self.context.rip = origin

    def handler(self, vector: int, source: str, origin: int) -> None:
        """An interrupt gate for ``vector`` to ``source`` at ``origin``."""
        self.memory.write(origin, assemble(source, origin))
        gate = struct.pack("<HHBBHII", origin & 0xFFFF, SELECTOR_CODE, 0, 0x8E, origin >> 16 & 0xFFFF, origin >> 32, 0)
        self.memory.write(IDT + 16 * vector, gate)

    def run(self) -> int:
        return self.context.run()

    def skip(self) -> None:
        """Step over the instruction that exited."""
        self.context.rip += self.context.instruction_length
