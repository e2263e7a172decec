# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest to be debugged, and a client of gdb's protocol that is not gdb.

The guest is a firmware that goes to 64-bit mode and calls ``work`` again and again, which counts at `COUNTER`, until
`STOP` is set; then it powers off.  It runs as an ordinary VM and, with the descriptor of a TDVF, as a TD.  A debugger
that sets RIP to ``vectors`` has it enable AVX, load YMM0, add YMM2 to YMM1 and store that at `VECTOR`.
"""

from __future__ import annotations

import functools
import socket
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from swtdx.cpu.platform import Platform
from swtdx.image.firmware import Firmware
from swtdx.machine import MachineKernel, boot, open_kernel
from swtdx.uapi.client import Kvm
from swtdx.vmm.execution import Execution
from swtdx.vmm.gdb.server import Address, GdbServer
from swtdx.vmm.gdb.target import Target
from swtdx.vmm.gdb.td_target import TdTarget
from swtdx.vmm.gdb.vm_target import VmTarget
from swtdx.vmm.launch import Machine, Plan, TdParameters, launch
from swtdx.vmm.run import Run
from testing.tdvf_image import SIZE, Image

BASE = (1 << 32) - SIZE
DATA = 0x80_0000
COUNTER, STOP, VECTOR, STACK, TABLES = DATA, DATA + 8, DATA + 0x40, DATA + 0x3000, DATA + 0x3000
MEMORY = 16 << 20
_CODE_AT, _RESET_AT = 0x4000, SIZE - 16

SOURCE = f"""
.intel_syntax noprefix
.globl loop, work, count, counted, out80, own_int3, power_off, vectors, enabled, loaded, stored
base: .org {_CODE_AT:#x}
.ifndef TD
.code16
start: cli
    data32 lgdt cs:[gdtr - base]
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xEA
    .long protected
    .word 8
.endif
.code32
start_td:
    lgdt [gdtr]
    .byte 0xEA
    .long protected
    .word 8
protected:
    mov ax, 16
    mov ds, ax
    mov es, ax
    mov ss, ax
    mov eax, cr4
    or eax, 0x620
    mov cr4, eax
    mov esi, offset pml4
    mov edi, {TABLES:#x}
    mov ecx, 2048
    cld
    rep movsd
    mov eax, {TABLES:#x}
    mov cr3, eax
.ifndef TD
    mov ecx, 0xC0000080
    rdmsr
    or eax, 0x100
    wrmsr
.endif
    mov eax, cr0
    or eax, 0x80000000
    mov cr0, eax
    .byte 0xEA
    .long long_mode
    .word 24
.code64
long_mode:
    mov rsp, {STACK:#x}
    lidt [rip + idtr]
    xor rbx, rbx
loop:
    call work
    cmp qword ptr [{STOP:#x}], 0
    je loop
power_off:
.ifdef TD
    xor eax, eax
    mov ecx, 0xFC00
    xor r10, r10
    mov r11, 30
    mov r12, 2
    mov r13, 1
    mov r14, 0x604
    mov r15, 0x2000
    .byte 0x66, 0x0F, 0x01, 0xCC
.else
    mov dx, 0x604
    mov ax, 0x2000
    out dx, ax
.endif
    hlt
work:
    mov rax, [{COUNTER:#x}]
count:
    inc qword ptr [{COUNTER:#x}]
counted:
    mov rcx, 7
.ifdef TD
    nop
    nop
.else
out80: out 0x80, al
.endif
own_int3: nop
    ret
vectors:
    mov rax, cr4
    or eax, 0x40000
    mov cr4, rax
    xor ecx, ecx
    xor edx, edx
    mov eax, 7
    xsetbv
enabled:
    vmovdqu ymm0, [rip + numbers]
loaded:
    vpaddd ymm1, ymm1, ymm2
    vmovdqu [{VECTOR:#x}], ymm1
stored:
    jmp loop
handler:
    inc rbx
    iretq
.balign 8
numbers: .long 1, 2, 3, 4, 5, 6, 7, 8
gdt: .quad 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF, 0x00AF9B000000FFFF
gdtr: .word 31
    .long gdt
idtr: .word 63
    .quad idt
.balign 16
idt: .fill 6, 8, 0
    .word (handler - base), 24, 0x8E00, {BASE >> 16:#x}
    .quad 0
.balign 4096
pml4: .quad {TABLES + 0x1000:#x} + 0x23
    .fill 511, 8, 0
pdpt: .quad 0xE3, 0x400000E3, 0x800000E3, 0xC00000E3
    .fill 508, 8, 0
.org {_RESET_AT:#x}
.ifdef TD
.code32
    jmp start_td
.else
.code16
    jmp start
.endif
.org {SIZE:#x}
"""


@dataclass(frozen=True)
class Built:
    """A firmware image, where its labels are, and the ELF file that tells gdb so."""

    image: bytes
    symbols: dict[str, int]
    elf: bytes


@functools.cache
def build(*, td: bool = False) -> Built:
    with tempfile.TemporaryDirectory() as scratch:
        text, obj, elf, raw = (Path(scratch) / name for name in ("a.s", "a.o", "a.elf", "a.bin"))
        text.write_text(SOURCE)
        subprocess.run(["as", "--64", *(["--defsym", "TD=1"] if td else []), "-o", obj, text], check=True)
        subprocess.run(["ld", f"-Ttext={BASE:#x}", "-e", "0", "-o", elf, obj], check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, raw], check=True)
        listed = subprocess.run(["nm", elf], check=True, capture_output=True, text=True).stdout
        symbols = {line.split()[2]: int(line.split()[0], 16) for line in listed.splitlines()}
        image = raw.read_bytes()
        assert len(image) == SIZE
        if td:
            described = bytearray(Image().build())
            described[_CODE_AT : SIZE - 0x1000] = image[_CODE_AT : SIZE - 0x1000]
            described[_RESET_AT:] = image[_RESET_AT:]
            image = bytes(described)
        return Built(image, symbols, elf.read_bytes())


def checksum(data: bytes) -> bytes:
    return b"%02x" % (sum(data) & 0xFF)


class Client:
    """Speaks the protocol over a socket; every reply's checksum is looked at."""

    def __init__(self, where: str) -> None:
        host, _, port = where.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=20)
        self.acknowledges = True
        self._buffer = b""

    def close(self) -> None:
        self.socket.close()

    def byte(self) -> bytes:
        if not self._buffer:
            self._buffer = self.socket.recv(65536)
            if not self._buffer:
                raise EOFError
        first, self._buffer = self._buffer[:1], self._buffer[1:]
        return first

    def send(self, data: bytes) -> None:
        """A packet, which the stub must acknowledge."""
        self.socket.sendall(b"$" + data + b"#" + checksum(data))
        if self.acknowledges:
            assert self.byte() == b"+"

    def receive(self) -> bytes:
        """The next packet's data, unescaped."""
        assert self.byte() == b"$"
        raw = b""
        while (byte := self.byte()) != b"#":
            raw += byte
        assert self.byte() + self.byte() == checksum(raw)
        if self.acknowledges:
            self.socket.sendall(b"+")
        plain, escaped = bytearray(), False
        for value in raw:
            if escaped:
                plain.append(value ^ 0x20)
                escaped = False
            elif value == ord("}"):
                escaped = True
            else:
                plain.append(value)
        return bytes(plain)

    def ask(self, data: bytes) -> bytes:
        self.send(data)
        return self.receive()

    def interrupt(self) -> bytes:
        self.socket.sendall(b"\x03")
        return self.receive()

    def monitor(self, line: str) -> str:
        """Output of a monitor command."""
        self.send(b"qRcmd," + line.encode().hex().encode())
        text = b""
        while (reply := self.receive()) != b"OK":
            assert reply[:1] == b"O"
            text += bytes.fromhex(reply[1:].decode())
        return text.decode()

    def memory(self, address: int, length: int = 8) -> int:
        reply = self.ask(b"m%x,%x" % (address, length))
        assert not reply.startswith(b"E"), reply
        return int.from_bytes(bytes.fromhex(reply.decode()), "little")

    def description(self) -> bytes:
        """target.xml, piece by piece."""
        xml, piece = b"", b"m"
        while piece[:1] == b"m":
            piece = self.ask(b"qXfer:features:read:target.xml:%x,%x" % (len(xml), 0x7FF))
            xml += piece[1:]
        return xml

    def described(self) -> list[tuple[str, int]]:
        """The registers of target.xml with their bytes."""
        found = ET.fromstring(self.description()).findall("feature/reg")
        return [(register.get("name", ""), int(register.get("bitsize", "0")) // 8) for register in found]

    def set_register(self, name: str, value: int) -> bytes:
        """By `P`; the reply."""
        described = self.described()
        number = [each for each, _ in described].index(name)
        return self.ask(b"P%x=%s" % (number, value.to_bytes(described[number][1], "little").hex().encode()))

    def registers(self) -> dict[str, int]:
        """All registers by name, as target.xml numbers them."""
        data = bytes.fromhex(self.ask(b"g").decode())
        values = {}
        for name, size in self.described():
            values[name] = int.from_bytes(data[:size], "little")
            data = data[size:]
        assert not data
        return values


@dataclass
class Session:
    """A machine with a guest in it, and the server before it."""

    machine: Machine
    run: Run
    server: GdbServer
    symbols: dict[str, int]
    said: list[str]
    connect: Callable[[], Client]


def target_of(machine: Machine) -> Target:
    if machine.plan.td is None:
        return VmTarget(machine)
    return TdTarget(machine, machine.vm.kernel.debug_td(machine.vm.fd))  # type: ignore[attr-defined]


@contextmanager
def debugged(
    *, td: bool = False, cpus: int = 1, wait: bool = True, host: bool = False, platform: Platform | None = None
) -> Iterator[Session]:
    """The guest on an emulated machine, or on this one's own KVM, with a debug server."""
    built = build(td=td)
    kernel = open_kernel("host") if host else boot(platform=platform, debug_tds=True)
    plan = Plan(
        Firmware(Path("debugged.fd"), "a test made it", built.image),
        MEMORY,
        cpus,
        TdParameters(debug=True) if td else None,
    )
    said: list[str] = []
    clients: list[Client] = []
    with Kvm(kernel) as device, launch(device, plan) as machine, GdbServer(Address(), said.append) as server:
        execution = Execution(cpus, stopped=wait)
        run = Run(machine, execution)
        server.serve(machine, run, execution, target_of(machine))

        def connect() -> Client:
            clients.append(Client(server.where))
            return clients[-1]

        run.start()
        try:
            yield Session(machine, run, server, built.symbols, said, connect)
        finally:
            for client in clients:
                client.close()
            run.stop()
            server.close()
    if isinstance(kernel, MachineKernel):
        kernel.shutdown()
