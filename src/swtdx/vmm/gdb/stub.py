# SPDX-License-Identifier: GPL-2.0-or-later
"""What each packet means (gdb manual, E.2 to E.6), and what a stop is called.

The machine stops when a client connects, and continues when it leaves: QEMU's behaviour.  While the machine runs the
client may only interrupt it; anything else it sends then is dropped.

Replies: ``OK``, ``Enn`` with an errno, data in hexadecimal, or nothing for a packet that is not known.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from swtdx.vmm.execution import CRASHED, Execution, Hit
from swtdx.vmm.gdb import monitor
from swtdx.vmm.gdb.breakpoints import INT3, Breakpoints, Hardware, Kind, NoRoom, Planted
from swtdx.vmm.gdb.packet import PACKET_SIZE
from swtdx.vmm.gdb.registers import REGISTERS, RIP, Register, registers_with, target_xml
from swtdx.vmm.gdb.target import AccessError, Target
from swtdx.vmm.launch import Machine
from swtdx.vmm.outcome import End, Outcome
from swtdx.vmm.run import Run
from swtdx.x86 import PAGE_SIZE, Dr6, Vector

SIGINT, SIGTRAP, SIGABRT = 2, 5, 6
MASK64 = (1 << 64) - 1
_MOST_BYTES = PACKET_SIZE // 2 - 16
_HEX = re.compile(rb"[0-9a-fA-F]{1,16}\Z")
_WATCH = {Kind.WRITE: b"watch", Kind.ACCESS: b"awatch"}
_FEATURES = (
    f"PacketSize={PACKET_SIZE:x};qXfer:features:read+;vContSupported+;QStartNoAckMode+;swbreak+;hwbreak+"
).encode()

Reply = list[bytes]


class BadPacket(Exception):
    """A packet that says nothing sensible."""


@dataclass(frozen=True)
class Stop:
    """Why the machine stopped: a signal, a vCPU, and what gdb should know beside."""

    signal: int
    vcpu: int
    cause: bytes = b""


class Stub:
    """One client's session with a machine. Used by one thread; ``thread`` is the vCPU that packets speak of."""

    features = _FEATURES
    """What it says that it can."""

    def __init__(self, machine: Machine, run: Run, execution: Execution, target: Target) -> None:
        self.machine = machine
        self.run = run
        self.execution = execution
        self.target = target
        self.described = registers_with(target.extensions)
        self.breakpoints = Breakpoints()
        self.thread = 0
        self.no_acknowledgement = False
        self.gone = False
        """The client has detached, or killed the machine: nothing more is to be said."""
        self.waiting = False
        """The client has let the machine run and waits to hear how that ends."""
        self._continue_thread = -1
        self._physical = False
        self._stop = Stop(SIGTRAP, 0)
        self._steps: dict[int, bool] = {}  # the vCPUs that run, and whether only for one instruction
        self._pending: list[Stop] = []
        self._given_back: dict[int, int] = {}
        self._crashed: set[int] = set()

    # --- The session --------------------------------------------------------------------------------------------------

    def attach(self) -> None:
        """A client came: the machine stops. From now on it also stops where it would end by a crash (SIGABRT)."""
        self.execution.attached = True
        self.execution.stop()
        self.execution.hits.clear()

    def detach(self) -> None:
        """The client is gone: remove what it has set, and let the machine continue."""
        self.gone = True
        self.execution.attached = False
        self.execution.stop()
        if self.execution.over:
            return
        for address in list(self.breakpoints.software):
            self._remove_software(address)
        self.breakpoints.hardware.clear()
        self._pending.clear()
        self.execution.hits.clear()
        for vcpu in range(self.execution.count):
            vector = self._given_back.pop(vcpu, None)
            with suppress(AccessError):
                self.target.arm(vcpu, self.breakpoints, step=False, give_back=vector)
        self.execution.resume(range(self.execution.count))

    def interrupt(self) -> Reply:
        """Ctrl-C."""
        if not self.waiting:
            return []
        self.execution.stop()
        told = self._look_at_hits()
        return [told if told is not None else self._stopped(Stop(SIGINT, self.thread))]

    def event(self) -> Reply:
        """Something happened while the machine ran."""
        if not self.waiting:
            return []
        if self.execution.over:
            self.waiting = False
            outcome = self.run.outcome
            return [b"W%02x" % (outcome.status if outcome is not None else 0)]
        if not self.execution.hits:
            return []
        self.execution.stop()
        told = self._look_at_hits()
        if told is not None:
            return [told]
        if not self.execution.over:
            self._run(self._steps)  # only the guest's own exceptions, given back to it
        return []

    def handle(self, packet: bytes) -> Reply:
        """Answer one packet. An empty list: the answer comes when the machine stops, or never."""
        if self.waiting:
            return []
        try:
            return self._dispatch(packet)
        except BadPacket:
            return [_error(errno.EINVAL)]
        except AccessError:
            return [_error(errno.EFAULT)]

    def _dispatch(self, packet: bytes) -> Reply:
        for name, handler in _NAMED:
            if packet.startswith(name):
                return handler(self, packet[len(name) :])
        handler_of = _LETTERS.get(packet[:1])
        return handler_of(self, packet[1:]) if handler_of is not None else [b""]

    # --- Stopping and running -----------------------------------------------------------------------------------------

    def _look_at_hits(self) -> bytes | None:
        """All vCPUs stand: what to tell the client, if anything. The machine's debug state is cleared away then."""
        stops: list[Stop] = []
        hits, seen = self.execution.hits, set[int]()
        while hits:
            hit = hits.popleft()
            if hit.vcpu in seen:
                continue
            seen.add(hit.vcpu)
            stop = self._stop_of(hit)
            # A breakpoint before an instruction is met again; what is over must be told later.
            if stop is not None and (not stops or hit.vector != Vector.BP):
                stops.append(stop)
        if not stops:
            return None
        self._pending += stops[1:]
        return self._stopped(stops[0])

    def _stop_of(self, hit: Hit) -> Stop | None:
        """None: it was the guest's own exception, which it shall have."""
        if hit.vector == CRASHED:
            self._crashed.add(hit.vcpu)
            return Stop(SIGABRT, hit.vcpu)
        try:
            if hit.vector == Vector.BP:
                if self.target.linear_pc(hit.vcpu) in self.breakpoints.software:
                    return Stop(SIGTRAP, hit.vcpu, b"swbreak:;")
            else:
                reasons = self.target.reasons(hit.vcpu)
                met = self.breakpoints.met(reasons)
                if met is not None:
                    return Stop(SIGTRAP, hit.vcpu, _cause(met))
                if reasons & Dr6.BS and self._steps.get(hit.vcpu):
                    return Stop(SIGTRAP, hit.vcpu)
        except AccessError:
            return Stop(SIGTRAP, hit.vcpu)
        if hit.vector not in self.target.gives_back:
            return Stop(SIGTRAP, hit.vcpu)
        self._given_back[hit.vcpu] = hit.vector
        return None

    def _stopped(self, stop: Stop) -> bytes:
        for vcpu in range(self.execution.count):
            with suppress(AccessError):  # a vCPU that is lost has nothing to clear away
                self.target.disarm(vcpu)
        self.waiting = False
        self._stop = stop
        self.thread = stop.vcpu
        return _stop_reply(stop)

    def _run(self, steps: dict[int, bool]) -> Reply:
        """Let vCPUs run; the reply comes when they stop."""
        for number, stop in enumerate(self._pending):
            if stop.vcpu in steps:
                del self._pending[number]
                return [self._stopped(stop)]
        self._steps = dict(steps)
        for vcpu, step in steps.items():
            if vcpu in self._crashed:
                continue  # it only continues to its end
            self.target.arm(vcpu, self.breakpoints, step=step, give_back=self._given_back.pop(vcpu, None))
        self.waiting = True
        self.execution.resume(steps)
        return []

    def _resume(self, rest: bytes) -> Reply:
        """`c [addr]`."""
        self._jump(rest)
        return self._run(dict.fromkeys(range(self.execution.count), False))

    def _step(self, rest: bytes) -> Reply:
        """`s [addr]`: one thread, one instruction."""
        self._jump(rest)
        return self._run({self.thread if self._continue_thread < 0 else self._continue_thread: True})

    def _resume_with_signal(self, rest: bytes) -> Reply:
        """`C sig[;addr]`: a machine takes no signals."""
        return self._resume(rest.partition(b";")[2])

    def _step_with_signal(self, rest: bytes) -> Reply:
        return self._step(rest.partition(b";")[2])

    def _jump(self, address: bytes) -> None:
        if address:
            self.target.set_register(self.thread, REGISTERS[RIP].name, _number(address))

    def _vcont(self, rest: bytes) -> Reply:
        """`vCont;action[:thread]...`: for each thread the leftmost action that names it, or names none."""
        steps: dict[int, bool] = {}
        for action in rest.split(b";")[1:]:
            what, colon, name = action.partition(b":")
            if what[:1] not in (b"c", b"C", b"s", b"S"):
                raise BadPacket
            named = self._threads(name) if colon else range(self.execution.count)
            for vcpu in named:
                steps.setdefault(vcpu, what[:1] in (b"s", b"S"))
        if not steps:
            raise BadPacket
        return self._run(steps)

    # --- Threads ------------------------------------------------------------------------------------------------------

    def _threads(self, text: bytes) -> list[int]:
        """The vCPUs that a thread id means: -1 all, 0 any. Raises BadPacket."""
        if text == b"-1":
            return list(range(self.execution.count))
        number = _number(text)
        if number == 0:
            return [self.thread]
        if number > self.execution.count:
            raise BadPacket
        return [number - 1]

    def _set_thread(self, rest: bytes) -> Reply:
        operation, named = rest[:1], self._threads(rest[1:])
        if operation == b"g":
            self.thread = named[0]
        elif operation == b"c":
            self._continue_thread = named[0] if len(named) == 1 else -1
        else:
            raise BadPacket
        return [b"OK"]

    def _is_alive(self, rest: bytes) -> Reply:
        self._threads(rest)
        return [b"OK"]

    def _thread_list(self, rest: bytes) -> Reply:
        return [b"m" + b",".join(b"%x" % (vcpu + 1) for vcpu in range(self.execution.count))]

    def _thread_words(self, rest: bytes) -> Reply:
        (vcpu,) = self._threads(rest)
        return [f"vCPU {vcpu}".encode().hex().encode()]

    # --- Registers ----------------------------------------------------------------------------------------------------

    def _read_all(self, rest: bytes) -> Reply:
        values = self.target.registers(self.thread)
        return [b"".join(_register_bytes(register, values) for register in self.described)]

    def _read_one(self, rest: bytes) -> Reply:
        return [_register_bytes(self._described(rest), self.target.registers(self.thread))]

    def _described(self, number: bytes) -> Register:
        """Raises BadPacket."""
        try:
            return self.described[_number(number)]
        except IndexError:
            raise BadPacket from None

    def _write_all(self, rest: bytes) -> Reply:
        data = _bytes(rest)
        values, offset = self.target.registers(self.thread), 0
        for register in self.described:
            piece = data[offset : offset + register.size]
            offset += register.size
            if len(piece) == register.size and values.get(register.name) != int.from_bytes(piece, "little"):
                self.target.set_register(self.thread, register.name, int.from_bytes(piece, "little"))
        return [b"OK"]

    def _write_one(self, rest: bytes) -> Reply:
        name, equals, text = rest.partition(b"=")
        register, data = self._described(name), _bytes(text)
        if not equals or len(data) != register.size:
            raise BadPacket
        self.target.set_register(self.thread, register.name, int.from_bytes(data, "little"))
        return [b"OK"]

    # --- Memory -------------------------------------------------------------------------------------------------------

    def _pieces(self, address: int, length: int) -> list[tuple[int, int]]:
        """(GPA, bytes) for a linear range, page by page, up to the first that is not mapped. Raises AccessError."""
        pieces: list[tuple[int, int]] = []
        while length:
            size = min(length, PAGE_SIZE - address % PAGE_SIZE)
            try:
                gpa = address if self._physical else self.target.translate(self.thread, address)
            except AccessError:
                if not pieces:
                    raise
                break
            pieces.append((gpa, size))
            address, length = address + size & MASK64, length - size
        return pieces

    def _read_memory(self, rest: bytes) -> Reply:
        address, length = _pair(rest)
        data = b""
        for gpa, size in self._pieces(address, min(length, _MOST_BYTES)):
            try:
                data += self.breakpoints.hide(gpa, self.target.read(gpa, size))
            except AccessError:
                if not data:
                    raise
                break
        return [data.hex().encode()]

    def _write_memory(self, rest: bytes) -> Reply:
        where, _, text = rest.partition(b":")
        return self._store(where, _bytes(text))

    def _write_binary(self, rest: bytes) -> Reply:
        where, _, data = rest.partition(b":")
        return self._store(where, data)

    def _store(self, where: bytes, data: bytes) -> Reply:
        address, length = _pair(where)
        if length != len(data):
            raise BadPacket
        pieces = self._pieces(address, length)
        if sum(size for _, size in pieces) != length:
            raise AccessError
        for gpa, size in pieces:
            self.target.write(gpa, self.breakpoints.keep(gpa, data[:size]))
            data = data[size:]
        return [b"OK"]

    # --- Breakpoints --------------------------------------------------------------------------------------------------

    def _insert(self, rest: bytes) -> Reply:
        kind, address, length = breakpoint_of(rest)
        if kind is Kind.SOFTWARE:
            self._insert_software(address)
            return [b"OK"]
        if kind is Kind.READ:
            return [b""]
        try:
            self.breakpoints.add_hardware(kind, address, length)
        except NoRoom:
            return [_error(errno.ENOSPC)]
        except ValueError:
            raise BadPacket from None
        return [b"OK"]

    def _remove(self, rest: bytes) -> Reply:
        kind, address, length = breakpoint_of(rest)
        if kind is Kind.SOFTWARE:
            self._remove_software(address)
        elif kind is Kind.READ:
            return [b""]
        else:
            self.breakpoints.remove_hardware(kind, address, length)
        return [b"OK"]

    def _insert_software(self, address: int) -> None:
        if address in self.breakpoints.software:
            return
        gpa = self.target.translate(self.thread, address)
        already = next((planted for planted in self.breakpoints.software.values() if planted.gpa == gpa), None)
        original = already.original if already is not None else self.target.read(gpa, 1)[0]
        self.target.write(gpa, INT3)
        self.breakpoints.software[address] = Planted(gpa, original)

    def _remove_software(self, address: int) -> None:
        planted = self.breakpoints.software.pop(address, None)
        if planted is None or any(other.gpa == planted.gpa for other in self.breakpoints.software.values()):
            return
        with suppress(AccessError):  # the memory may be gone
            if self.target.read(planted.gpa, 1) == INT3:  # else the guest has put other code there
                self.target.write(planted.gpa, bytes([planted.original]))

    # --- The rest -----------------------------------------------------------------------------------------------------

    def _supported(self, rest: bytes) -> Reply:
        return [self.features]

    def _description(self, rest: bytes) -> Reply:
        annex, _, window = rest.partition(b":")
        if annex != b"target.xml":
            return [b"E00"]
        offset, length = _pair(window)
        length = min(length, PACKET_SIZE // 2)
        description = target_xml(self.target.extensions)
        piece = description[offset : offset + length]
        more = offset + len(piece) < len(description)
        return [(b"m" if more else b"l") + piece]

    def _without_acknowledgement(self, rest: bytes) -> Reply:
        self.no_acknowledgement = True
        return [b"OK"]

    def _physical_memory(self, rest: bytes) -> Reply:
        self._physical = rest == b"1"
        return [b"OK"]

    def _monitor(self, rest: bytes) -> Reply:
        text = monitor.answer(self, _bytes(rest).decode("utf-8", "replace")).encode()
        size = PACKET_SIZE // 4
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        return [*(b"O" + piece.hex().encode() for piece in pieces), b"OK"]

    def _detach(self, rest: bytes) -> Reply:
        self.detach()
        return [b"OK"]

    def _kill(self, rest: bytes) -> Reply:
        self.gone = True
        self.run.finish(Outcome(End.LEFT, "the debugger ended the run"))
        return []

    def _kill_with_answer(self, rest: bytes) -> Reply:
        self._kill(rest)
        return [b"OK"]


def _stop_reply(stop: Stop) -> bytes:
    return b"T%02xthread:%02x;%b" % (stop.signal, stop.vcpu + 1, stop.cause)


def _cause(met: Hardware) -> bytes:
    return b"hwbreak:;" if met.kind is Kind.EXECUTE else b"%b:%x;" % (_WATCH[met.kind], met.address)


def _error(code: int) -> bytes:
    return b"E%02x" % (code & 0xFF)


def _register_bytes(register: Register, values: dict[str, int]) -> bytes:
    value = values.get(register.name)
    if value is None:
        return b"x" * 2 * register.size  # cannot be had
    return (value & (1 << register.bits) - 1).to_bytes(register.size, "little").hex().encode()


def _number(text: bytes) -> int:
    """Hexadecimal of at most 64 bits, nothing else. Raises BadPacket."""
    if not _HEX.match(text):
        raise BadPacket
    return int(text, 16)


def _pair(text: bytes) -> tuple[int, int]:
    first, comma, second = text.partition(b",")
    if not comma:
        raise BadPacket
    return _number(first), _number(second)


def _bytes(text: bytes) -> bytes:
    try:
        return bytes.fromhex(text.decode("ascii"))
    except ValueError:
        raise BadPacket from None


def breakpoint_of(text: bytes) -> tuple[Kind, int, int]:
    """`type,addr,kind`; conditions and commands, which no client was told of, are not looked at."""
    parts = text.partition(b";")[0].split(b",")
    if len(parts) != 3:
        raise BadPacket
    try:
        return Kind(_number(parts[0])), _number(parts[1]), _number(parts[2])
    except ValueError:
        raise BadPacket from None


Handler = Callable[[Stub, bytes], Reply]


def _says(reply: bytes) -> Handler:
    return lambda stub, rest: [reply]


_NAMED: tuple[tuple[bytes, Handler], ...] = (
    (b"qSupported", Stub._supported),
    (b"qXfer:features:read:", Stub._description),
    (b"qfThreadInfo", Stub._thread_list),
    (b"qsThreadInfo", _says(b"l")),
    (b"qThreadExtraInfo,", Stub._thread_words),
    (b"qRcmd,", Stub._monitor),
    (b"qAttached", _says(b"1")),
    (b"qqemu.PhyMemMode", lambda stub, rest: [b"1" if stub._physical else b"0"]),
    (b"Qqemu.PhyMemMode:", Stub._physical_memory),
    (b"QStartNoAckMode", Stub._without_acknowledgement),
    (b"vCont?", _says(b"vCont;c;C;s;S")),
    (b"vCont", Stub._vcont),
    (b"vKill;", Stub._kill_with_answer),
    (b"qC", lambda stub, rest: [b"QC%x" % (stub.thread + 1)] if not rest else [b""]),
)
_LETTERS: dict[bytes, Handler] = {
    b"?": lambda stub, rest: [_stop_reply(stub._stop)],
    b"g": Stub._read_all,
    b"G": Stub._write_all,
    b"p": Stub._read_one,
    b"P": Stub._write_one,
    b"m": Stub._read_memory,
    b"M": Stub._write_memory,
    b"X": Stub._write_binary,
    b"c": Stub._resume,
    b"C": Stub._resume_with_signal,
    b"s": Stub._step,
    b"S": Stub._step_with_signal,
    b"H": Stub._set_thread,
    b"T": Stub._is_alive,
    b"Z": Stub._insert,
    b"z": Stub._remove,
    b"D": Stub._detach,
    b"k": Stub._kill,
}
