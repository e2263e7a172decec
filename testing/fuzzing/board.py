# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/fuzz board``: a guest that does to the board's devices whatever it likes.

The board is the real one with a disk, a console and a random number generator; KVM behind it is a stand-in that refuses
now and then. A case is a burst: one access, or a few, made again and again, since what grows without bound grows by
repetition. A fault is what is raised, a value that is not an integer of the access's size, and *growth*: whatever a
guest does, what the board holds stays below a bound, which is far above what it holds in use.
"""

from __future__ import annotations

import gc
import sys
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from random import Random
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType

from swtdx.image.memory_map import ECAM_BASE, IOAPIC_BASE, MIB, MemoryMap
from swtdx.vmm.board.ioapic import Msi
from swtdx.vmm.board.pci_function import COMMAND
from swtdx.vmm.board.q35 import Board
from swtdx.vmm.board.virtio.blk import VirtioBlk
from swtdx.vmm.board.virtio.console import VirtioConsole
from swtdx.vmm.board.virtio.rng import VirtioRng
from swtdx.vmm.console import GuestOutput
from swtdx.vmm.memory import GuestMemory

GROWTH = 8 << 10
"""Bytes by which the board may hold more than after power-on: twice what queues in use have come to."""
BURSTS = (1,) * 30 + (2,) * 10 + (17,) * 3 + (800,)
_LOOK_EVERY = 2000
_BARS = (0xC000_0000, 0xC001_0000, 0xC002_0000, 0xC010_0000, 0xC011_0000, 0xC012_0000)
_VALUES = (
    0, 1, 2, 3, 4, 6, 7, 8, 0x0A, 0x0B, 0x0C, 0x0F, 0x10, 0x18, 0x1F, 0x20, 0x22, 0x30, 0x34, 0x40, 0x7F, 0x80, 0x82,
    0x83, 0x92, 0xC2, 0xC7, 0xE2, 0xE8, 0xEE, 0xFF, 0x100, 0x8000, 0xFFFF, 0x1_0000, 0x2000_0000, 0x8000_0000,
    0xFFFF_FFFF,
)  # fmt: skip


class MemoryDisk:
    """64 KiB."""

    path, size, read_only, label = "memory", 64 << 10, False, "fuzz"

    def __init__(self) -> None:
        self._bytes = bytearray(self.size)

    def read_into(self, buffers: list[memoryview], offset: int) -> None:
        for buffer in buffers:
            buffer[:] = self._bytes[offset : offset + len(buffer)]
            offset += len(buffer)

    def write_from(self, buffers: list[memoryview], offset: int) -> None:
        for buffer in buffers:
            self._bytes[offset : offset + len(buffer)] = buffer
            offset += len(buffer)

    def flush(self) -> None:
        return


@dataclass
class Result:
    """What a campaign came to. ``accesses`` by where they went."""

    accesses: Counter[str] = field(default_factory=Counter)
    requests: Counter[str] = field(default_factory=Counter)
    largest: int = 0
    failures: list[str] = field(default_factory=list)

    @property
    def cases(self) -> int:
        return sum(self.accesses.values())

    def lines(self) -> Iterator[str]:
        """For a person."""
        yield f"{self.cases:,} accesses: " + "  ".join(
            f"{name} {count:,}" for name, count in self.accesses.most_common()
        )
        yield f"the board grew by {self.largest:,} bytes at most; asked for: {dict(self.requests)}"
        yield from self.failures


class Bench:
    """One board and what stands around it. ``refuse``: how often KVM refuses a message."""

    def __init__(self, chance: Random, refuse: float = 0.1) -> None:
        self.chance = chance
        self.memory = GuestMemory()
        layout = MemoryMap(64 * MIB, 2 * MIB)
        self.memory.add(0, 2 * MIB)
        self.output = GuestOutput(None)
        self.messages = 0

        def signal(message: Msi) -> None:
            self.messages += 1
            if chance.random() < refuse:
                raise OSError(1, "Operation not permitted")  # KVM_SIGNAL_MSI to no APIC

        def route(routes: object) -> None:
            if chance.random() < refuse:
                raise OSError(22, "Invalid argument")

        self.board = Board(
            layout, self.memory, 2, serial=self.output.put, debug=self.output.put, debug_exit=0xF4,
            signal_msi=signal, route_msis=route,
        )  # fmt: skip
        for device in (VirtioBlk(MemoryDisk()), VirtioConsole(self.output.put, (80, 25)), VirtioRng()):
            self.board.plug(device, self.memory)
        self.board.program_chipset()
        self._map_bars()
        self._open_interrupts()
        self.board._rtc_timer.set(1e6)  # its thread is there from now on
        self.ports = sorted(self.board.ports.reads.keys() | self.board.ports.writes.keys())
        self.at_power_on = self.weight()

    def _map_bars(self) -> None:
        """What firmware does: without addresses the devices would not be reached."""
        for number, slot in enumerate((1, 2, 3)):
            function = self.board.pci.functions[slot, 0]
            function.write(0x14, 4, _BARS[number])
            function.write(0x20, 4, _BARS[3 + number])
            function.write(COMMAND, 2, 6)

    def _open_interrupts(self) -> None:
        """Each pin of the I/O APIC has a vector, as under an operating system; some name an APIC that is not there."""
        for pin in range(24):
            for half, value in ((1, self.chance.choice((0, 1, 0xEE)) << 24), (0, 0x20 + pin)):
                self.board.mmio.write(IOAPIC_BASE, 4, 0x10 + 2 * pin + half)
                self.board.mmio.write(IOAPIC_BASE + 0x10, 4, value)

    def weight(self) -> int:
        """Bytes of everything that the board holds, but for guest memory and what is outside."""
        outside = (
            ModuleType,
            type,
            FunctionType,
            BuiltinFunctionType,
            CodeType,
            memoryview,
            GuestMemory,
            Random,
            Bench,
        )
        seen: set[int] = set()
        total, waiting = 0, deque[object]([self.board])
        while waiting:
            one = waiting.popleft()
            if id(one) in seen or isinstance(one, outside):
                continue
            seen.add(id(one))
            total += sys.getsizeof(one)
            waiting.extend(gc.get_referents(one))
        return total + len(self.output.record)

    # --- Accesses -----------------------------------------------------------------------------------------------------

    def port(self) -> int:
        dice = self.chance.random()
        if dice < 0.9:
            return self.chance.choice(self.ports)
        return self.chance.choice((0x80, 0x60, 0x3B0, 0xFFFF, self.chance.getrandbits(16)))

    def address(self) -> int:
        chance = self.chance
        function = ECAM_BASE + (chance.randrange(5) << 15)
        base = chance.choice((IOAPIC_BASE, IOAPIC_BASE, ECAM_BASE, function, *_BARS, *_BARS, 0xFED0_0000))
        offsets = (0, 0, 0x10, 0x10, 0x40, 0x14, 0x16, 0x18, 0x1C, 0x20, 0x1000, 0x2000, 0x3000, 0x3004, 0x800)
        return base + chance.choice((*offsets, chance.randrange(0x4000), chance.randrange(0x100) * 4))

    def value(self, size: int) -> int:
        chance = self.chance
        value = chance.choice(_VALUES) if chance.random() < 0.7 else chance.getrandbits(8 * size)
        return value & (1 << 8 * size) - 1

    def access(self) -> tuple[str, Callable[[], object]]:
        """A random access: where it goes, and what makes it."""
        chance, board = self.chance, self.board
        size = chance.choice((1, 1, 2, 4))
        write = chance.random() < 0.65
        if chance.random() < 0.6:
            port = self.port()
            if write:
                fixed = self.value(size)
                changing = chance.random() < 0.3
                return "OUT", lambda: board.ports.write(port, size, self.value(size) if changing else fixed)
            return "IN", lambda: self._check(board.ports.read(port, size), size)
        size = chance.choice((1, 2, 4, 4, 4, 8))
        address = self.address()
        if write:
            fixed = self.value(size)
            return "MMIO write", lambda: board.mmio.write(address, size, fixed)
        return "MMIO read", lambda: self._check(board.mmio.read(address, size), size)

    @staticmethod
    def _check(value: object, size: int) -> None:
        if not isinstance(value, int) or not 0 <= value < 1 << 8 * size:
            raise AssertionError(f"a read of {size} bytes gives {value!r}")

    def scribble(self) -> None:
        """The guest's memory, where rings and DMA structures may be."""
        chance = self.chance
        for _ in range(chance.randrange(1, 20)):
            address = chance.choice((0, 0x1000, 0x2000, 0x3000, 0x1_0000, 0x10_0000)) + chance.randrange(64) * 4
            self.memory.write(address, chance.choice(_VALUES).to_bytes(4, "little"))
        # a control structure of fw_cfg: select, read, skip or write, of any length
        control = chance.choice((2, 4, 8, 16, 0xA)) | chance.choice((0, 1, 3, 0x19, 0x20, 0x21)) << 16
        length = chance.choice((0, 1, 16, 4096, 1 << 20, 0xFFFF_FFFF))
        target = chance.choice((0, 0x8000, 0x10_0000, 0x1F_FFFF, 1 << 40))
        self.memory.write(0x4000, control.to_bytes(4, "big") + length.to_bytes(4, "big") + target.to_bytes(8, "big"))
        for port, half in ((0x514, 0), (0x518, 0x4000)):
            self.board.ports.write(port, 4, int.from_bytes(half.to_bytes(4, "big"), "little"))


def campaign(accesses: int, seed: int, progress: Callable[[int], object] = lambda done: None) -> Result:
    """At least so many accesses, on a new board now and then; the same seed makes the same ones."""
    result, rounds = Result(), 0
    while result.cases < accesses:
        chance = Random(f"{seed}/{rounds}")
        rounds += 1
        bench, told = Bench(chance), ""
        end, look_at = result.cases + 60_000, result.cases + _LOOK_EVERY
        try:
            while result.cases < min(end, accesses):
                if chance.random() < 0.02:
                    told = "memory and fw_cfg DMA"
                    with bench.board.lock:
                        bench.scribble()
                steps = [bench.access() for _ in range(chance.choice((1, 1, 1, 1, 2, 3)))]
                told = " then ".join(name for name, _ in steps)
                burst = chance.choice(BURSTS)
                with bench.board.lock:
                    for _ in range(burst):
                        for name, step in steps:
                            step()
                            result.accesses[name] += 1
                event, bench.board.power_event = bench.board.power_event, None
                if event is not None:
                    result.requests[event.name] += 1
                if burst == BURSTS[-1] or result.cases >= look_at:
                    look_at = result.cases + _LOOK_EVERY
                    progress(min(result.cases, accesses))
                    _weigh(bench, result)
            _weigh(bench, result)
            result.requests["interrupt"] += bench.messages
        except Exception as error:  # noqa: BLE001 - whatever it is, a guest has brought it about
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{where.filename.rpartition('/')[2]}:{where.lineno}"
            result.failures.append(f"seed {seed}, round {rounds - 1}: {told}: {error!r} at {place}")
            if len(result.failures) >= 20:
                break
        finally:
            bench.board.stop()
    return result


def _weigh(bench: Bench, result: Result) -> None:
    bench.output.record.clear()  # bounded by itself: see its test
    bench.output._pending.clear()
    grown = bench.weight() - bench.at_power_on
    result.largest = max(result.largest, grown)
    if grown > GROWTH:
        raise AssertionError(f"the board holds {grown:,} bytes more than after power-on")
