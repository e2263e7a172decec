# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/fuzz gdb``: what a debugger's stub makes of bytes that no debugger would send.

The stub, its framing and its `monitor` are the real ones; the machine behind them is a stand-in of a page of memory and
a set of registers, so that a case costs microseconds.  A case is a packet of the manual, damaged or not, cut into
pieces, or noise.  Nothing may be raised, every reply must be a packet that a client can read and is no longer than was
announced, and after each case the stub must still answer.
"""

from __future__ import annotations

import socket
import traceback
from collections.abc import Callable, Iterable
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from swtdx.vmm.execution import Execution, Hit
from swtdx.vmm.gdb.breakpoints import Breakpoints
from swtdx.vmm.gdb.packet import PACKET_SIZE, Packet, PacketReader, framed
from swtdx.vmm.gdb.registers import EXTENSIONS, REGISTERS
from swtdx.vmm.gdb.server import Conversation
from swtdx.vmm.gdb.stub import Stub
from swtdx.vmm.gdb.target import AccessError
from testing.fuzzing.result import Result

MEMORY, BASE = 4096, 0x1000
VCPUS = 2
_MOST_CASES_A_SESSION = 500

# Each packet that the stub knows, once or more, and some that it does not.
SEEDS = (
    b"qSupported:swbreak+;hwbreak+", b"?", b"g", b"G00", b"p10", b"P10=0010000000000000", b"m1000,10", b"M1000,2:abcd",
    b"X1000,2:ab", b"c", b"c1000", b"C05;1000", b"s", b"S05", b"Hg1", b"Hc-1", b"T2", b"Z0,1000,1", b"z0,1000,1",
    b"Z1,1010,1", b"z1,1010,1", b"Z2,1020,8", b"z2,1020,8", b"Z3,1020,4", b"Z4,1028,2", b"vCont?", b"vCont;c",
    b"vCont;s:1;c", b"vCont;C05:2", b"qfThreadInfo", b"qsThreadInfo", b"qThreadExtraInfo,1", b"qC", b"qAttached",
    b"qXfer:features:read:target.xml:0,7ff", b"qqemu.PhyMemMode", b"Qqemu.PhyMemMode:1", b"Qqemu.PhyMemMode:0",
    *(b"qRcmd," + line.hex().encode() for line in (b"help", b"info", b"translate 0x1000", b"xp 0x1000 32", b"xp")),
    b"vMustReplyEmpty", b"qSymbol::", b"!", b"QNonStop:1",
)  # fmt: skip
_LETTERS = b"0123456789abcdefABCDEF:;,=-+.?*}{qQvZzmMXgGpPHcCsST\x00\x80\xff"


class Standing(Execution):
    """An execution without threads: who is told to stop stands already."""

    def stop(self) -> None:
        self._allowed = frozenset()

    def resume(self, vcpus: Iterable[int]) -> None:
        self._allowed = frozenset(vcpus)


class StandIn:
    """A `Target`: `MEMORY` bytes at `BASE`, linear addresses that are physical, registers that keep their values."""

    gives_back = frozenset((1, 3))
    extensions = frozenset(EXTENSIONS)

    def __init__(self, chance: Random) -> None:
        self._chance = chance
        self._memory = bytearray(MEMORY)
        self._registers = [dict.fromkeys((register.name for register in REGISTERS), 0) for _ in range(VCPUS)]

    def registers(self, vcpu: int) -> dict[str, int]:
        return dict(self._registers[vcpu])

    def set_register(self, vcpu: int, name: str, value: int) -> None:
        if name == "cr0":
            raise AccessError("refused")
        self._registers[vcpu][name] = value

    def translate(self, vcpu: int, address: int) -> int:
        if not BASE <= address < BASE + MEMORY:
            raise AccessError("not mapped")
        return address

    def read(self, gpa: int, length: int) -> bytes:
        if not BASE <= gpa <= BASE + MEMORY - length:
            raise AccessError("no memory")
        return bytes(self._memory[gpa - BASE : gpa - BASE + length])

    def write(self, gpa: int, data: bytes) -> None:
        self.read(gpa, len(data))
        self._memory[gpa - BASE : gpa - BASE + len(data)] = data

    def reasons(self, vcpu: int) -> int:
        return self._chance.choice((0, 1, 2, 8, 1 << 14, 1 << 14 | 4))

    def linear_pc(self, vcpu: int) -> int:
        return self._chance.choice((BASE, self._registers[vcpu]["rip"]))

    def arm(self, vcpu: int, breakpoints: Breakpoints, *, step: bool, give_back: int | None) -> None:
        breakpoints.debug_registers()

    def disarm(self, vcpu: int) -> None:
        return


class _Wire:
    """The socket's end that the stub writes to."""

    def __init__(self) -> None:
        self.sent = bytearray()

    def sendall(self, data: bytes) -> None:
        self.sent += data


class Client:
    """One session: a stub, and what it said."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.execution = Standing(VCPUS, stopped=True)
        plan = SimpleNamespace(td=None, memory_size=MEMORY)
        machine = SimpleNamespace(plan=plan, vcpus=range(VCPUS), slots=SimpleNamespace(slots=[]), mrtd={})
        run = SimpleNamespace(seconds=0.0, exits={}, outcome=None, finish=lambda outcome: None)
        self.stub = Stub(cast(Any, machine), cast(Any, run), self.execution, StandIn(chance))
        self.stub.attach()
        self.wire = _Wire()
        self.conversation = Conversation(cast(socket.socket, self.wire), self.stub)

    def give(self, data: bytes) -> list[bytes]:
        """Hand bytes over in pieces; the packets that came back. Raises AssertionError for one that is none."""
        self.wire.sent.clear()
        while data:
            cut = self.chance.randrange(1, len(data) + 1)
            self.conversation.receive(data[:cut])
            data = data[cut:]
        reader = PacketReader()
        replies = [event.data for event in reader.feed(bytes(self.wire.sent)) if isinstance(event, Packet)]
        assert len(replies) == self.wire.sent.count(b"$"), f"an unreadable reply: {bytes(self.wire.sent)[:200]!r}"
        assert all(len(reply) <= PACKET_SIZE for reply in replies), "a reply longer than was announced"
        return replies

    def happen(self) -> None:
        """While the guest runs: a debug event, or Ctrl-C."""
        if self.chance.random() < 0.7:
            self.execution.hits.append(Hit(self.chance.randrange(VCPUS), self.chance.choice((1, 3, -1))))
            self.conversation.send(self.stub.event())
        if self.stub.waiting:
            self.conversation.receive(b"\x03")
        assert not self.stub.waiting, "Ctrl-C does not stop it"


def _case(chance: Random) -> bytes:
    kind = chance.random()
    if kind < 0.1:
        return chance.randbytes(chance.randrange(1, 300))
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(4):
            case 0:
                data[at:at] = bytes(chance.choices(_LETTERS, k=chance.randrange(1, 20)))
            case 1:
                del data[at : at + chance.randrange(1, 6)]
            case 2:
                data[at : at + 1] = bytes((chance.randrange(256),))
            case _:
                data[at:] = chance.choice(SEEDS)
    if kind < 0.15:
        data += b"0" * chance.choice((PACKET_SIZE - len(data), PACKET_SIZE, 3 * PACKET_SIZE))
    packet = framed(bytes(data))
    return packet[: chance.randrange(1, len(packet) + 1)] if kind > 0.95 else packet


def campaign(cases: int, seed: int, progress: Callable[[int], None] = lambda done: None) -> Result:
    """So many cases; the same seed gives the same ones."""
    result = Result("cases")
    while result.cases < cases:
        chance = Random(f"{seed}/{result.cases}")
        client = Client(chance)
        for _ in range(min(_MOST_CASES_A_SESSION, cases - result.cases)):
            result.cases += 1
            progress(result.cases)
            data = _case(chance)
            try:
                for reply in client.give(data):
                    result.answers[_name(reply)] += 1
                if client.stub.gone:
                    break
                if client.stub.waiting:
                    client.happen()
                # Whatever was left open, a whole packet begins again.
                assert client.give(framed(b"qAttached"))[-1:] == [b"1"], "it does not answer any more"
            except Exception as error:  # noqa: BLE001 - whatever it is, it was not to be raised
                where = traceback.extract_tb(error.__traceback__)[-1]
                result.failures.append(f"{data[:120]!r}: {error!r} at {where.filename}:{where.lineno}")
                break
    return result


def _name(reply: bytes) -> str:
    if reply[:1] in (b"E", b"T", b"O") or reply == b"":
        return {b"": "unknown", b"E": "error", b"T": "stop", b"O": "OK or output"}[reply[:1]]
    return "data"
