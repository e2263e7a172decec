# SPDX-License-Identifier: GPL-2.0-or-later
"""Page tables in a read-only slot: each instruction is the emulator's, since no accessed bit can be set.

The expectation is the processor, which executes the same code with its tables in memory. The instructions are those of
opcode_table, twobyte_table and their groups in arch/x86/kvm/emulate.c that touch no memory of their own.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError
from testing.long_mode import CODE, DONE, DONE_PORT, FAULT_PORT, STACK, TSS, LongModeVm, split_irqchip
from tests.cpu.guest import assemble

TABLES = 0x40_0000
RAX, RCX, RDX, RBX = 0x1122_3344_8877_9A8B, 3, 0xFFFF_0000_1234_5678, 0x8000_0001_8000_7FFF
CF, PF, AF, ZF, SF, DF, OF = 1, 4, 0x10, 0x40, 0x80, 0x400, 0x800
CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
ALL_FLAGS = (2, 2 | CF, 2 | ZF, 2 | SF, 2 | OF, 2 | SF | OF, 2 | PF, 2 | CF | ZF | SF | OF | PF | AF)

PROGRAMS = {
    **{f"j{name}": f"j{name} 1f; inc rax; 1: inc rdx" for name in CONDITIONS},
    **{f"j{name}, far": f"j{name} 1f; inc rax; .fill 200, 1, 0x90; 1: inc rdx" for name in ("e", "g")},
    **{name: f"1: inc rdx; {name} 1b" for name in ("loop", "loope", "loopne", "addr32 loop")},
    **{f"{name}, {what}": f"{move}; {name} 1f; inc rax; 1: inc rdx" for name in ("jecxz", "jrcxz")
       for what, move in (("0", "xor ecx, ecx"), ("not 0", "mov rcx, 1"), ("upper", "mov rcx, 0x100000000"))},
    "jmp": "jmp 1f; inc rax; 1: inc rdx",
    "lea": "lea rax, [rbx + 4*rcx + 0x10]; lea ecx, [rdx - 1]; lea dx, [rbx + rbx]; lea rbx, [rip + 0x100]",
    "lea of 32 bits": "lea rax, [ebx + ecx]",
    "nop": "nop; pause; .byte 0x66, 0x90; nop dword ptr [rax + rax]; xchg rax, rdx; xchg ecx, eax",
    "prefetch": "prefetchnta [rax]; prefetcht0 [rax]; prefetcht1 [rax]; prefetcht2 [rax]; prefetchw [rax]",
    "clflush": "mov eax, 0x9000; clflush [rax]; invlpg [rax]",
    "cbw": "cbw; mov ecx, eax; cwde; mov edx, eax; cdqe", "cwd": "cwd; cdq; cqo", "cwd of 0": "xor eax, eax; cwd",
    "bswap": "bswap rax; bswap ecx; bswap r15", "sahf": "mov ah, 0xff; sahf", "lahf": "lahf",
    "carry": "clc; adc rax, 0; stc; adc rax, 0; cmc; adc rax, 0", "std": "std", "cld": "std; cld",
    "cli": "sti; cli", "sti": "cli; sti", "clts": "mov rax, cr0; or eax, 8; mov cr0, rax; clts; mov rbx, cr0",
    "lmsw": "mov eax, 0x1b; lmsw ax; mov rbx, cr0; mov eax, 0x10; lmsw ax; mov rdx, cr0",
    "wbinvd": "wbinvd; invd",
    "cr": "mov rax, cr3; mov rbx, cr4; mov rcx, cr8; mov edx, 5; mov cr8, rdx; mov rsi, cr8",
    "cr2": "mov cr2, rbx; mov rdi, cr2",
    "cr3": "mov rax, cr3; mov cr3, rax; inc rdx", "cr4": "mov rax, cr4; or eax, 0x200; mov cr4, rax; mov rbx, cr4",
    "cr4, reserved": "mov rax, -1; mov cr4, rax",
    "dr": "mov eax, 0x1234; mov dr0, rax; mov rbx, dr0; mov rcx, dr7; mov rdx, dr6",
    "cpuid": "xor eax, eax; xor ecx, ecx; cpuid", "rdmsr": "mov ecx, 0xc0000080; rdmsr", "rdpmc": "rdpmc",
    "wrmsr": "mov ecx, 0xc0000102; mov eax, 0x5000; xor edx, edx; wrmsr; rdmsr",
    "wrmsr, refused": "mov ecx, 0xc0000080; mov eax, 2; xor edx, edx; wrmsr",
    "rdmsr, unknown": "mov ecx, 0x12345; rdmsr", "xsetbv, refused": "xor ecx, ecx; xor eax, eax; xsetbv",
    "vmcall": "mov eax, 1; vmcall",
    "setcc": "sete al; setg cl", "cmov": "cmove rax, rbx; cmovg ecx, edx",
    "push": "push rax; push 5; pop rcx; pop rdx", "call": "call 1f; 1: pop rax",
    "ret": "lea rax, [rip + 1f]; push rax; ret; 1: inc rdx",
    "bit test": "bts rdx, 40; btc rax, 3",
    "string": "mov esi, 0x9000; mov edi, 0x9100; mov ecx, 5; rep movsb", "lods": "mov esi, 0x9000; lodsq",
    "division": "xor edx, edx; div rcx",
    "division by 0": "xor ecx, ecx; div ecx",
}  # fmt: skip


def set_msr(index: int, value: str) -> str:
    """A program that loads an MSR with a constant, or with the address of the label 1."""
    low = f"lea rax, [rip + {value}]; xor edx, edx" if value == "1f" else f"mov eax, {value}; xor edx, edx"
    return f"mov ecx, {index:#x}; {low}; wrmsr"


_STAR, _LSTAR, _FMASK, _EFER = 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000080
_WITH_SCE = f"mov ecx, {_EFER:#x}; rdmsr; or eax, 1; wrmsr"
_WITHOUT_SCE = f"mov ecx, {_EFER:#x}; rdmsr; and eax, -2; wrmsr"
_SYSCALL = f"mov ecx, {_STAR:#x}; xor eax, eax; mov edx, 0x230008; wrmsr; " + "; ".join(
    (set_msr(_LSTAR, "1f"), set_msr(_FMASK, "0x600"))
)
_SYSEXIT = ".byte 0x0f, 0x35"
_SYSEXITQ = ".byte 0x48, 0x0f, 0x35"
PROGRAMS |= {
    "syscall": f"{_SYSCALL}; {_WITH_SCE}; std; syscall; inc rbx; 1: mov rsi, cs; mov rdi, ss",
    "syscall, disabled": f"{_SYSCALL}; {_WITHOUT_SCE}; syscall; 1: nop",
    "sysexit without a selector": f"{set_msr(0x174, '0')}; xor edx, edx; {_SYSEXIT}",
    "sysexit to a non-canonical RIP": f"{set_msr(0x174, '8')}; mov rdx, 1 << 50; mov ecx, 0x9000; {_SYSEXITQ}",
    "sysexit to a non-canonical RSP": f"{set_msr(0x174, '8')}; mov edx, 0x9000; mov rcx, 1 << 50; {_SYSEXITQ}",
    "fninit with TS": "mov rax, cr0; or eax, 8; mov cr0, rax; fninit",
}


class Pair:
    """Two guests: one with its page tables in a slot for reading only, and one that can write to them."""

    def __init__(self, kvm: Kvm) -> None:
        self.tables = {read_only: mmap.mmap(-1, 0x2000) for read_only in (False, True)}
        self.guests = {read_only: LongModeVm(kvm, setup=split_irqchip) for read_only in (False, True)}
        for read_only, guest in self.guests.items():
            flags = int(k.KVM_MEM_READONLY) if read_only else 0
            guest.vm.set_user_memory_region(1, TABLES, 0x2000, self.tables[read_only], flags)

    def close(self) -> None:
        for guest in self.guests.values():
            guest.close()

    def start(
        self,
        read_only: bool,
        code: bytes,
        rflags: int,
        *,
        compatibility: bool = False,
        restored: bytes = b"",
        **registers: int,
    ) -> LongModeVm:
        """Put a guest before the code, with these registers and a few that are usual."""
        registers = {"rax": RAX, "rcx": RCX, "rdx": RDX, "rbx": RBX, "r15": 0x0102030405060708} | registers
        guest, tables = self.guests[read_only], self.tables[read_only]
        # pages of 1 GiB, none of them accessed
        struct.pack_into("<Q", tables, 0, TABLES + 0x1000 | 3)
        struct.pack_into("<4Q", tables, 0x1000, 0x83, 0, 0, 3 << 30 | 0x83)
        guest.memory[0x9000:0xF000] = bytes(0x6000)
        guest.memory[0x9000:0x9010] = bytes(range(0x40, 0x50))
        guest.memory[0x9100 : 0x9100 + len(restored)] = restored
        guest.vcpu.set_vcpu_events(k.kvm_vcpu_events(flags=k.KVM_VCPUEVENT_VALID_SHADOW))
        guest.reset()
        guest.load(code + DONE)
        sregs = guest.vcpu.get_sregs()
        sregs.cr2, sregs.cr3, sregs.cr8 = 0, TABLES, 0
        sregs.cs.l, sregs.cs.db = not compatibility, compatibility
        guest.vcpu.set_sregs(sregs)
        guest.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=rflags, rsp=STACK, **registers))
        return guest

    def ran(self, read_only: bool, code: bytes, rflags: int, **how: Any) -> dict[str, Any]:
        """Execute the code, begun as by `start`: all that the guest can see."""
        guest = self.start(read_only, code, rflags, **how)
        guest.vcpu.run()
        if read_only and guest.vcpu.exit_reason == k.Exit.INTERNAL_ERROR:
            error = guest.vcpu.kvm_run.internal
            assert error.suberror == k.KVM_INTERNAL_ERROR_DELIVERY_EV, "the handler's address cannot be translated"
            return {"fault": error.data[0] & 0xFF, "rip": guest.vcpu.get_regs().rip}
        assert guest.vcpu.exit_reason == k.Exit.IO, k.Exit(guest.vcpu.exit_reason)
        untouched = bytes(self.tables[read_only][:8]) == struct.pack("<Q", TABLES + 0x1000 | 3)
        assert untouched is read_only, "no accessed bit was set: each instruction was emulated"
        found = {name: getattr(guest.vcpu.get_regs(), name) for name, *_ in k.kvm_regs._fields_}
        found["rflags"] &= ~(1 << 16)
        after = guest.vcpu.get_sregs()
        found |= {name: getattr(after, name) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer")}
        found["port"], found["data"] = guest.vcpu.kvm_run.io.port, bytes(guest.vcpu.io_data())
        found["memory"] = bytes(guest.memory[0x9000:0xF000])
        return found


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with Kvm(open_kernel("emulated")) as kvm:
        made = Pair(kvm)
        yield made
        made.close()


OF_32_BITS = {
    "das": b"\x2f", "aam": b"\xd4\x0a", "aam, 7": b"\xd4\x07", "aad": b"\xd5\x0a", "salc": b"\xd6", "inc": b"\x40\x49",
    "jcxz": b"\x67\xe3\x01\x40", "jecxz": b"\xe3\x01\x40", "loop of 16 bits": b"\x42\x67\xe2\xfc",
}  # fmt: skip
"""Code of 32-bit segments."""


def same(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    if theirs["port"] == FAULT_PORT:
        (rip,) = struct.unpack("<Q", theirs["memory"][-40:-32])  # of the frame, behind which the stack ends
        assert ours == {"fault": theirs["data"][0], "rip": rip}
    else:
        assert theirs["port"] == DONE_PORT
        assert ours == theirs


@pytest.mark.parametrize("what", OF_32_BITS)
def test_an_instruction_of_32_bit_code(pair: Pair, what: str) -> None:
    undefined = {"aam": OF | AF | CF, "aad": OF | AF | CF, "das": OF}.get(what[:3], 0)
    for rax in (0x9A8B, 0x1234_0000, 0x3F, 0x99, 0xA005):
        for rflags in (2, 2 | CF, 2 | AF, 2 | CF | AF):
            results = []
            for read_only in (False, True):
                how = {"rax": rax, "rdx": 0, "rcx": 0x1_0003, "rbx": 0, "r15": 0}
                found = pair.ran(read_only, OF_32_BITS[what], rflags, compatibility=True, **how)
                results.append(found | {"rflags": found["rflags"] & ~undefined})
            same(*results)


TS, OSFXSR = b"\x0f\x20\xc0\x0c\x08\x0f\x22\xc0", b"\x0f\x20\xe0\x0d\x00\x02\x00\x00\x0f\x22\xe0"
"""MOV EAX, CR0; OR AL, 8; MOV CR0, EAX, and MOV EAX, CR4; OR EAX, 0x200; MOV CR4, EAX."""
X87 = {
    "fninit": b"\xdb\xe3",
    "fxsave": b"\x0f\xae\x07",
    "fxsave, unaligned": b"\x47\x0f\xae\x07",  # inc edi
    "fxsave with TS": TS + b"\x0f\xae\x07",
    "fxrstor": b"\x0f\xae\x0f",
    "fxrstor, reserved bits of MXCSR": b"\xc6\x47\x1a\x01\x0f\xae\x0f",  # mov byte [edi + 26], 1
    "fxrstor, unaligned": b"\x47\x0f\xae\x0f",
}
"""Behind MOV EDI, 0x9100, in 32-bit segments."""


def x87_state(seed: int) -> bytes:
    """An FXSAVE image with ST(0) in register 5, and none of 64-bit code's pointers."""
    image = bytearray((seed + 7 * at) % 251 for at in range(416)) + bytearray(96)
    struct.pack_into("<HHBxHQQII", image, 0, 0x27F, 5 << 11 | 0x41, 0b1110_0000, 0x123, 0x1000, 0x2000, 0x1F80, 0xFFFF)
    for register in range(8):
        image[32 + 16 * register + 10 : 48 + 16 * register] = bytes(6)
    return bytes(image)


@pytest.mark.parametrize("osfxsr", [True, False])
@pytest.mark.parametrize("what", X87)
def test_the_state_of_x87_in_32_bit_code(pair: Pair, what: str, osfxsr: bool) -> None:
    """Without CR4.OSFXSR the emulator leaves SSE's registers out, as a processor may (SDM volume 2, FXSAVE), which then
    does not look at MXCSR either."""
    if what == "fxrstor, reserved bits of MXCSR" and not osfxsr:
        return
    results = []
    for read_only in (False, True):
        guest = pair.guests[read_only]
        state = bytearray(x87_state(1)) + bytearray(4096 - 512)
        struct.pack_into("<Q", state, 512, 3)
        guest.vcpu.set_xsave(k.kvm_xsave.from_buffer_copy(state))
        image = x87_state(5)
        code = (OSFXSR if osfxsr else b"") + b"\xbf\x00\x91\x00\x00" + X87[what]
        found = pair.ran(read_only, code, 2, compatibility=True, restored=image)
        after = bytes(guest.vcpu.get_xsave())[:512]
        if not osfxsr:
            after = after[:160]
            if "memory" in found:
                found["memory"] = found["memory"][:0x1A0] + found["memory"][0x220:]
        results.append((found, after))
    same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


SYSENTER = b"\xb9\x74\x01\x00\x00\xb8\x08\x00\x00\x00\x31\xd2\x0f\x30" + b"\xb9\x76\x01\x00\x00\xb8%s\x0f\x30"
"""MOV ECX, 0x174; MOV EAX, 8; XOR EDX, EDX; WRMSR; MOV ECX, 0x176; MOV EAX, a target; WRMSR."""


@pytest.mark.parametrize("selector", [8, 0, 3])
def test_sysenter_of_compatibility_mode_goes_to_64_bit_code(pair: Pair, selector: int) -> None:
    esp = b"\xb9\x75\x01\x00\x00\xb8\x00\x98\x00\x00\x0f\x30"
    before = len(SYSENTER % bytes(4)) + len(esp)
    code = bytearray(SYSENTER % struct.pack("<I", CODE + before + 3) + esp + b"\x0f\x34\xf4" + assemble("mov rax, cs"))
    code[6] = selector
    same(*(pair.ran(read_only, bytes(code), 2 | 0x200, compatibility=True) for read_only in (False, True)))


@pytest.mark.parametrize("wide", [True, False])
def test_sysexit(pair: Pair, wide: bool) -> None:
    """To privilege level 3, where the tables have nothing (SDM volume 2, SYSEXIT)."""
    leave = (b"\x48" if wide else b"") + b"\x0f\x35"
    code = assemble(set_msr(0x174, "8") + "; mov edx, 0x1234; mov rcx, 0x100009876", CODE) + leave
    guest = pair.start(True, code, 2)
    guest.vcpu.run()
    assert guest.vcpu.exit_reason == k.Exit.INTERNAL_ERROR, "#PF, and the handler's address cannot be translated"
    sregs, regs = guest.vcpu.get_sregs(), guest.vcpu.get_regs()
    offset, rsp = (32, 0x1_0000_9876) if wide else (16, 0x9876)
    assert (regs.rip, regs.rsp) == (0x1234, rsp), hex(guest.vcpu.kvm_run.internal.data[0])
    assert (sregs.cs.selector, sregs.ss.selector) == (8 + offset | 3, 16 + offset | 3)
    assert (sregs.cs.l, sregs.cs.db, sregs.cs.dpl, sregs.ss.dpl) == (wide, not wide, 3, 3)
    assert sregs.cr2 == 0x1234


@pytest.mark.parametrize("what", PROGRAMS)
def test_an_instruction_does_what_it_does_on_the_processor(pair: Pair, what: str) -> None:
    code = assemble(PROGRAMS[what], CODE)
    for rflags in ALL_FLAGS if what.startswith(("j", "set", "cmov", "loop", "lahf", "carry")) else (2, 2 | CF | AF):
        same(*(pair.ran(read_only, code, rflags) for read_only in (False, True)))


def test_a_port_is_read_and_written(pair: Pair) -> None:
    code = assemble("in al, 0x77; mov ecx, eax; mov dx, 0x1234; in ax, dx; out dx, eax; in eax, 0x20", CODE)
    seen = []
    for read_only in (False, True):
        guest = pair.start(read_only, code, 2, rax=RAX)
        exits: list[tuple[int, int, int, int, bytes]] = []
        while not exits or exits[-1][0] != DONE_PORT:
            guest.vcpu.run()
            assert guest.vcpu.exit_reason == k.Exit.IO, k.Exit(guest.vcpu.exit_reason)
            io = guest.vcpu.kvm_run.io
            data = guest.vcpu.io_data() if io.direction else b""
            exits.append((io.port, io.direction, io.size, io.count, data))
            if not io.direction:
                guest.vcpu.set_io_data(bytes(range(0xA0, 0xA0 + io.size)))
        seen.append((exits, guest.vcpu.get_regs().rax, guest.vcpu.get_regs().rcx))
    assert seen[0] == seen[1]
    assert [each[0] for each in seen[0][0]] == [0x77, 0x1234, 0x1234, 0x20, DONE_PORT]


def test_a_halt_halts() -> None:
    tables = mmap.mmap(-1, 0x2000)
    struct.pack_into("<Q", tables, 0, TABLES + 0x1000 | 3)
    struct.pack_into("<Q", tables, 0x1000, 0x83)
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as guest:
        guest.vm.set_user_memory_region(1, TABLES, 0x2000, tables, int(k.KVM_MEM_READONLY))
        guest.load(b"\xf4" + DONE)
        sregs = guest.vcpu.get_sregs()
        sregs.cr3 = TABLES
        guest.vcpu.set_sregs(sregs)
        assert guest.step() is k.Exit.HLT
        assert guest.vcpu.get_regs().rip == CODE + 1
        assert guest.step() is k.Exit.IO


@pytest.mark.parametrize("user", [False, True], ids=["supervisor", "user"])
@pytest.mark.parametrize("page", ["absent", "supervisor's", "user's", "supervisor's, XD", "user's, XD"])
@pytest.mark.parametrize("smep", [False, True], ids=["", "SMEP"])
@pytest.mark.parametrize("no_execute", [False, True], ids=["", "NXE"])
def test_code_is_fetched_with_the_rights_of_its_page(
    pair: Pair, user: bool, page: str, smep: bool, no_execute: bool
) -> None:
    """SDM volume 3, 4.6.1 and 4.7: by the processor, and where it cannot set accessed bits, by KVM's emulator."""
    disabled = "XD" in page
    owned = "user's" in page
    error: int | None = (4 if user else 0) | (16 if smep or no_execute else 0)
    if disabled and not no_execute:
        error = (error or 0) | 1 | 8  # the bit is reserved
    elif page != "absent":
        refused = disabled or (user and not owned) or (smep and owned and not user)
        error = (error or 0) | 1 if refused else None
    target = (1 << 30) + CODE
    for read_only in (False, True):
        pair.guests[read_only].vcpu.kvm_run.immediate_exit = 1  # the OUT before completes, which may be at the same RIP
        with pytest.raises(KvmError, match="EINTR"):
            pair.guests[read_only].vcpu.run()
        pair.guests[read_only].vcpu.kvm_run.immediate_exit = 0
        guest = pair.start(read_only, b"", 2)
        entry = 0 if page == "absent" else 0x83 | (4 if owned else 0) | disabled << 63
        struct.pack_into("<Q", pair.tables[read_only], 0, TABLES + 0x1000 | 7)
        struct.pack_into("<2Q", pair.tables[read_only], 0x1000, 0x83, entry)
        struct.pack_into("<Q", guest.memory, TSS + 4, STACK)
        sregs = guest.vcpu.get_sregs()
        sregs.efer |= no_execute << 11
        sregs.cr4 |= smep << 20
        if user:
            for name in ("cs", "ss"):
                getattr(sregs, name).dpl, getattr(sregs, name).selector = 3, getattr(sregs, name).selector | 3
        guest.vcpu.set_sregs(sregs)
        guest.vcpu.set_regs(k.kvm_regs(rip=target, rflags=2 | 3 << 12, rsp=STACK))
        guest.vcpu.run()
        if error is None:
            assert (guest.vcpu.exit_reason, guest.vcpu.kvm_run.io.port) == (k.Exit.IO, DONE_PORT)
        elif read_only:
            events = guest.vcpu.get_vcpu_events().exception
            assert guest.vcpu.exit_reason == k.Exit.INTERNAL_ERROR, "the handler's address cannot be translated"
            assert (events.nr, events.error_code) == (14, error)
        else:
            assert guest.vcpu.kvm_run.io.port == FAULT_PORT
            assert struct.unpack_from("<2Q", guest.memory, STACK - 48) == (error, target)
        assert guest.vcpu.get_sregs().cr2 == (0 if error is None else target)
        struct.pack_into("<Q", guest.memory, TSS + 4, 0)


@pytest.mark.parametrize("entry", ["PML4E", "page of 1 GiB"])
@pytest.mark.parametrize("write", [False, True])
def test_reserved_bits_of_the_tables_are_seen(pair: Pair, entry: str, write: bool) -> None:
    """SDM volume 3, 4.5 and 4.7: bit 7 where no page is mapped, bits of an address below the page's size."""
    target = 1 << 39 if entry == "PML4E" else 1 << 30
    code = assemble("mov [rsi], eax" if write else "mov eax, [rsi]", CODE)
    for read_only in (False, True):
        guest = pair.start(read_only, code, 2, rsi=target)
        struct.pack_into("<2Q", pair.tables[read_only], 0, TABLES + 0x1000 | 3, TABLES + 0x1000 | 0x83)
        struct.pack_into("<Q", pair.tables[read_only], 0x1008, 0x83 | 1 << 13)
        guest.vcpu.run()
        error = 1 | 8 | write << 1
        if read_only:
            events = guest.vcpu.get_vcpu_events().exception
            assert guest.vcpu.exit_reason == k.Exit.INTERNAL_ERROR, "the handler's address cannot be translated"
            assert (events.nr, events.error_code) == (14, error)
        else:
            assert struct.unpack_from("<2Q", guest.memory, STACK - 48) == (error, CODE)
        assert guest.vcpu.get_sregs().cr2 == target
