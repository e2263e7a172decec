# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/fuzz cpu``: streams of instructions, straight on for pages, in every mode; the process must survive them.

A stream is up to a page and a half of code: one instruction over and over, or a mixture of all that there are, or of
some few, or noise. Blocks as long as the translator makes them are the point: what a translator runs out of, it runs
out of there. Streams run in children, some hundreds each. What counts as a failure:

* the child dies (a signal, an assertion, a report of a sanitizer);
* a kick does not end a run;
* the processor exits with a reason that it does not have.

The same seed makes the same streams. Exits are stepped over, a few a stream, and all exceptions exit, so that what is
behind a faulting instruction runs too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.cpu.vmx import ExitReason, Segment
from testing.fuzzing import instructions
from testing.fuzzing.result import Result

CODE, DATA, STACK = 0x100000, 0x80000, 0x90000
GDT, PAGE_TABLES = 0x1000, 0x30000
ROOM = 6000
STREAMS_A_CHILD = 500
EXITS_A_STREAM = 24
SLICE = 0.004
"""Seconds after which a stream that does not exit is kicked."""
PATIENCE = 5.0
"""Seconds within which a kick, or many, must end a stream."""
_REASONS = frozenset(ExitReason)
_RIGHTS = {64: 0xA09B, 32: 0xC09B, 16: 0x009B}


@dataclass(frozen=True)
class Stream:
    """Code and the mode it runs in."""

    mode: int
    kind: str
    code: bytes


def _instruction(mode: int, chance: Random) -> bytes:
    while True:
        instruction = instructions.encoded(instructions.some_form(mode, chance), chance)
        if instruction is not None:
            return instructions.prefixed(instruction, chance) if chance.random() < 0.2 else instruction


def _mixture(mode: int, chance: Random, many: int) -> bytes:
    ready = [_instruction(mode, chance) for _ in range(many)]
    return b"".join(chance.choices(ready, k=ROOM))[: ROOM - instructions.LONGEST]


def stream(seed: int, number: int) -> Stream:
    """The stream with this number of a campaign."""
    chance = Random(f"{seed}/{number}")
    mode = chance.choice(instructions.MODES)
    kind = chance.choices(("one", "few", "all", "noise"), (50, 30, 15, 5))[0]
    if kind == "one":
        instruction = _instruction(mode, chance)
        code = instruction * (ROOM // len(instruction))
    elif kind == "noise":
        code = chance.randbytes(ROOM)
    else:
        code = _mixture(mode, chance, chance.randrange(2, 12) if kind == "few" else 100)
    return Stream(mode, kind, code)


class Target:
    """A processor with one virtual CPU, set up again for each stream."""

    def __init__(self) -> None:
        self.processor = Processor(Platform(memory_size=1 << 30))
        self.memory = self.processor.memory
        self.context = self.processor.new_context()
        self.context.no_ept = True
        directory = b"".join(struct.pack("<Q", index << 21 | 0x87) for index in range(512))
        top = struct.pack("<Q", PAGE_TABLES + 0x1007).ljust(4096, b"\0")
        self._tables = top + struct.pack("<Q", PAGE_TABLES + 0x2007).ljust(4096, b"\0") + directory
        self._gdt = struct.pack("<4Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF)
        self._running = 0.0
        threading.Thread(target=self._kick, daemon=True).start()

    def _kick(self) -> None:
        while True:
            time.sleep(SLICE)
            if self._running and time.monotonic() - self._running > SLICE:
                self.context.kick()

    def prepare(self, what: Stream, chance: Random) -> None:
        """Registers and memory, as the stream's mode wants them, with what chance adds."""
        context, raw = self.context, self.memory.raw
        self.memory.clear_range(0, 1 << 22, 0)
        raw[PAGE_TABLES : PAGE_TABLES + len(self._tables)] = self._tables
        raw[GDT : GDT + len(self._gdt)] = self._gdt
        start = CODE + chance.choice((0, 1, 4095, chance.randrange(4096)))
        raw[start : start + len(what.code)] = what.code
        self.memory.set_key(start, 0)
        ring = chance.choice((0, 0, 0, 3)) if what.mode != 16 else 0
        flat = 0xC093 if what.mode != 16 else 0x93
        limit = 0xFFFFFFFF if what.mode != 16 else 0xFFFF
        for segment in (Segment.ES, Segment.SS, Segment.DS, Segment.FS, Segment.GS):
            context.set_segment(segment, 0x18 | ring, 0, limit, flat | ring << 5)
        base = start & ~15 if what.mode == 16 else 0
        context.set_segment(Segment.CS, 0x10 | ring, base, limit, _RIGHTS[what.mode] | ring << 5)
        context.set_segment(Segment.GDTR, 0, GDT, 31, 0)
        context.set_segment(Segment.IDTR, 0, 0x2000, 4095, 0)
        context.efer = 0xD01 if what.mode == 64 else 0x801
        context.cr3 = PAGE_TABLES
        context.cr4 = chance.choice((0x660, 0x40660, 0x20, 0x600)) | (0x20 if what.mode == 64 else 0)
        context.cr0 = (0x80000021 if what.mode == 64 else 0x21 if what.mode == 32 else 0x20) | chance.choice(
            (0, 0, 2, 0xC)
        )
        context.rflags = 2 | chance.choice((0, 0, 0x200, 0x3000, 0x100, 0x40000, 0xCD5))
        context.exception_bitmap = chance.choice((0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
        context.tdx_mode, context.apicv = chance.random() < 0.5, chance.random() < 0.5
        context.set_msr_bitmap(chance.choice((bytes(4096), b"\xff" * 4096)))
        for register in range(16):
            context.gpr[register] = chance.choices(
                (0, 1, DATA, DATA + chance.randrange(4096), chance.getrandbits(64)), (2, 2, 6, 3, 1)
            )[0]
        context.gpr[4] = STACK if what.mode != 16 else 0x8000
        context.cancel_event()
        context.rip = start - base

    def play(self, what: Stream, chance: Random) -> Iterator[str]:
        """Run a stream; the names of its exits."""
        self.prepare(what, chance)
        for _ in range(EXITS_A_STREAM):
            self._running = time.monotonic()
            reason = self.context.run()
            self._running = 0.0
            if reason not in _REASONS:
                raise AssertionError(f"exit reason {reason:#x}")
            yield ExitReason(reason).name
            if reason in (ExitReason.EXTERNAL_INTERRUPT, ExitReason.TRIPLE_FAULT):
                break
            length = self.context.instruction_length
            if not length:  # a fault: on to what is behind it
                code = self.context.read_linear(self._linear(), instructions.LONGEST)
                length = instructions.decode(code, what.mode).len if code else 1
            self.context.rip += length or 1
            self.context.cancel_event()

    def _linear(self) -> int:
        return self.context.segment(Segment.CS)[1] + self.context.rip & (1 << 64) - 1


def _child(seed: int, first: int, count: int, pipe: int) -> None:
    """Play streams and report: the number before each, the exits at the end."""
    exits: Counter[str] = Counter()
    target = Target()
    for number in range(first, first + count):
        os.write(pipe, b"%d\n" % number)
        exits.update(target.play(stream(seed, number), Random(f"{seed}/{number}/machine")))
    os.write(pipe, json.dumps(exits).encode() + b"\n")


def _watch(pid: int, pipe: int, told: Callable[[int], None]) -> tuple[int, int, dict[str, int]]:
    """Follow a child to its end: (wait status, number of the last stream, exits). One that hangs is killed."""
    number, exits, rest = -1, {}, b""
    while True:
        if not select.select([pipe], [], [], PATIENCE)[0]:
            os.kill(pid, signal.SIGKILL)
            break
        data = os.read(pipe, 1 << 16)
        if not data:
            break
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if isinstance(said, int):
                number = said
                told(number)
            else:
                exits = said
    return os.waitpid(pid, 0)[1], number, exits


def campaign(cases: int, seed: int, progress: Callable[[int], None] = lambda done: None) -> Result:
    """So many streams; the same seed gives the same ones."""
    result = Result("streams")
    while result.cases < cases:
        first, count = result.cases, min(STREAMS_A_CHILD, cases - result.cases)
        ours, theirs = os.pipe()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            status = 1
            try:
                os.close(ours)
                _child(seed, first, count, theirs)
                status = 0
            finally:
                os._exit(status)
        os.close(theirs)
        status, number, exits = _watch(pid, ours, progress)
        os.close(ours)
        result.answers.update(exits)
        if status and number < first:
            raise RuntimeError("no stream can be run at all")
        if status:
            what = stream(seed, number)
            how = "does not come back" if status == signal.SIGKILL else f"wait status {status:#x}"
            result.failures.append(f"stream {number} ({what.kind}, {what.mode}-bit): {how}; {what.code[:24].hex()}...")
            result.cases = number + 1
        else:
            result.cases = first + count
    return result
