# SPDX-License-Identifier: GPL-2.0-or-later
"""What an emulated instruction may reach: canonical addresses, within limits, with the rights of the page tables.

One operand is where no memory is, so that the kernel's emulator carries the instruction out; the other one is where the
guest may not go. The expectation is the processor: the same instruction with its first operand in memory, which the
engine executes alone (Linux: __linearize and assign_eip of arch/x86/kvm/emulate.c, permission_fault of mmu.h).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import CODE, DONE, DONE_PORT, FAULT_PORT, IDT, MMIO, PML4, STACK, TSS, LongModeVm

RAM, SIZE, TOP = 0x10_0000, 0x1000, 0x800
NOWHERE = 0x8000_0000_0000
TABLES, PAGE, BASE = 0x11000, 0x15000, 1 << 39
HANDLER_STACK = 0x18000
GP, PF, SS = 13, 14, 12
PAGES = {
    "absent": 0, "read-only": 1, "of the user": 7, "read-only of the user": 5, "own": 3, "with key 3": 3 << 59 | 7,
}  # fmt: skip
ABSENT, READ_ONLY, USERS, USERS_READ_ONLY, OWN, KEYED = (BASE + 0x1000 * n for n in range(len(PAGES)))
CR0_WP, CR4_SMAP, CR4_PKE, AC, IOPL = 1 << 16, 1 << 21, 1 << 22, 1 << 18, 3 << 12


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


def prepare(guest: LongModeVm, *, user: bool) -> None:
    """Map `PAGES` at `BASE`, give exceptions a stack of their own, and a user everything below `BASE`."""
    memory, rights = guest.memory, 0x87 if user else 0x83
    struct.pack_into("<4Q", memory, PML4, PML4 + 0x1000 | 7, TABLES | 7, 0, 0)
    struct.pack_into("<4Q", memory, PML4 + 0x1000, rights, 0, 0, 3 << 30 | rights)
    for level in range(2):
        struct.pack_into("<Q", memory, TABLES + 0x1000 * level, TABLES + 0x1000 * (level + 1) | 7)
    for number, rights in enumerate(PAGES.values()):
        struct.pack_into("<Q", memory, TABLES + 0x2000 + 8 * number, PAGE | rights)
    for vector in range(32):
        memory[IDT + 16 * vector + 4] = 1
    struct.pack_into("<Q", memory, TSS + 4, HANDLER_STACK)
    struct.pack_into("<Q", memory, TSS + 0x24, HANDLER_STACK)


def ran(
    kvm: Kvm, code: bytes, place: int, *, operand: bytes = b"", user: bool = False, cr0: int = CR0_WP, cr4: int = 0,
    rflags: int = 2, **registers: int,
) -> dict[str, Any]:  # fmt: skip
    """Execute ``code``: what the guest saw. Values of registers from `RAM` on are moved to ``place``."""
    with LongModeVm(kvm) as guest:
        prepare(guest, user=user)
        sregs = guest.vcpu.get_sregs()
        sregs.cr0, sregs.cr4 = sregs.cr0 & ~CR0_WP | cr0, sregs.cr4 | cr4
        if user:
            for name in ("cs", "ss", "ds", "es"):
                segment = getattr(sregs, name)
                segment.dpl, segment.selector = 3, segment.selector | 3
        guest.vcpu.set_sregs(sregs)
        guest.load(code + DONE)
        contents = operand.ljust(0x100, b"\x11")
        guest.memory[RAM + TOP : RAM + TOP + 0x100] = contents
        moved = {name: value - RAM + place if RAM <= value < RAM + SIZE else value for name, value in registers.items()}
        guest.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=rflags | (IOPL if user else 0), **({"rsp": STACK} | moved)))
        memory, asked = bytearray(guest.memory[RAM : RAM + SIZE]), 0
        guest.vcpu.run()
        while guest.vcpu.exit_reason == k.Exit.MMIO:
            mmio, asked = guest.vcpu.kvm_run.mmio, asked + 1
            at = mmio.phys_addr - MMIO
            if mmio.is_write:
                memory[at : at + mmio.len] = bytes(mmio.data[: mmio.len])
            else:
                mmio.data[: mmio.len] = memory[at : at + mmio.len]
            guest.vcpu.run()
        assert guest.vcpu.exit_reason == k.Exit.IO, k.Exit(guest.vcpu.exit_reason)
        regs = guest.vcpu.get_regs()
        found: dict[str, Any] = {
            name: value - place if place <= (value := getattr(regs, name)) < place + SIZE else value
            for name in ("rax", "rbx", "rcx", "rdx", "rbp", "rsi", "rdi")
        }
        found["data"] = bytes(guest.memory[PAGE : PAGE + SIZE])
        found["memory"] = bytes(memory if place == MMIO else guest.memory[RAM : RAM + SIZE])
        found["port"] = guest.vcpu.kvm_run.io.port
        if found["port"] == FAULT_PORT:
            frame = struct.unpack_from("<6Q", guest.memory, HANDLER_STACK - 48)
            error, rip, _, flags, rsp, _ = frame
            found["fault"] = guest.vcpu.io_data()[0], error
            found["cr2"] = guest.vcpu.get_sregs().cr2
            found["flags"] = flags & ~(1 << 16)
        else:
            rip, rsp = regs.rip, regs.rsp
        found["rip"], found["rsp"] = rip, rsp - place if place <= rsp < place + SIZE else rsp
        return found


def both(kvm: Kvm, code: bytes, **how: Any) -> dict[str, Any]:
    """Execute ``code`` with the operand in memory and where none is, and see no difference."""
    theirs = ran(kvm, code, RAM, **how)
    assert ran(kvm, code, MMIO, **how) == theirs
    return theirs


TARGET = struct.pack("<Q", NOWHERE)
BRANCHES = {
    "jmp": (b"\xff\x26", {"rsi": RAM + TOP}),
    "jmp with a prefix of 16 bits": (b"\x66\xff\x26", {"rsi": RAM + TOP}),
    "call": (b"\xff\x16", {"rsi": RAM + TOP}),
    "call, whose stack has no canonical address either": (b"\xff\x16", {"rsi": RAM + TOP, "rsp": NOWHERE}),
    "ret": (b"\xc3", {"rsp": RAM + TOP}),
    "ret 16": (b"\xc2\x10\x00", {"rsp": RAM + TOP}),
}


@pytest.mark.parametrize("target", [NOWHERE, 0xAAAA_AAAA_AAAA_AAAA, 0xFFFF_7FFF_FFFF_FFFF])
@pytest.mark.parametrize("what", BRANCHES)
def test_a_branch_to_no_canonical_address_does_not_begin(kvm: Kvm, what: str, target: int) -> None:
    code, registers = BRANCHES[what]
    found = both(kvm, code, operand=struct.pack("<Q", target), **registers)
    assert (found["fault"], found["rip"], found["rsp"]) == ((GP, 0), CODE, found["rsp"])
    assert found["rsp"] == (TOP if what.startswith("ret") else registers.get("rsp", STACK))


def test_a_call_from_the_last_canonical_page(kvm: Kvm) -> None:
    """CALL rel32 over the end of the lower half: nothing is pushed."""
    with LongModeVm(kvm) as guest:
        last = 0x7FFF_FFFF_F000
        struct.pack_into("<Q", guest.memory, PML4 + 8 * 255, TABLES | 3)
        for level in range(2):
            struct.pack_into("<Q", guest.memory, TABLES + 0x1000 * level + 8 * 511, TABLES + 0x1000 * (level + 1) | 3)
        struct.pack_into("<Q", guest.memory, TABLES + 0x2000 + 8 * 511, PAGE | 3)
        guest.load(b"\xe8\x00\x10\x00\x00", at=PAGE)
        for vector in range(32):
            guest.memory[IDT + 16 * vector + 4] = 1
        struct.pack_into("<Q", guest.memory, TSS + 0x24, HANDLER_STACK)
        guest.vcpu.set_regs(k.kvm_regs(rip=last, rflags=2, rsp=MMIO + TOP))
        assert guest.outcome() == GP
        assert struct.unpack_from("<Q", guest.memory, HANDLER_STACK - 40) == (last,)
        assert struct.unpack_from("<Q", guest.memory, HANDLER_STACK - 16) == (MMIO + TOP,)


SECOND = {
    "movsb": (b"\xa4", {"rsi": RAM + TOP}, "rdi", True, GP),
    "movsq": (b"\x48\xa5", {"rsi": RAM + TOP}, "rdi", True, GP),
    "rep movsb": (b"\xf3\xa4", {"rsi": RAM + TOP, "rcx": 4}, "rdi", True, GP),
    "cmpsb": (b"\xa6", {"rsi": RAM + TOP}, "rdi", False, GP),
    "movsb to a device": (b"\xa4", {"rdi": RAM + TOP}, "rsi", False, GP),
    "push m": (b"\xff\x36", {"rsi": RAM + TOP}, "rsp", True, SS),
    "call m": (b"\xff\x16", {"rsi": RAM + TOP}, "rsp", True, SS),
    "pop m": (b"\x8f\x06", {"rsp": RAM + TOP}, "rsi", True, GP),
    "pop [rbp]": (b"\x8f\x45\x00", {"rsp": RAM + TOP}, "rbp", True, SS),
}
"""Instruction, its operand in a device, the register of the other one, whether that is written, and the fault."""
RIGHTS: dict[str, tuple[int, dict[str, Any]]] = {
    "absent": (ABSENT, {}),
    "absent for the user": (ABSENT, {"user": True}),
    "read-only": (READ_ONLY, {}),
    "read-only without CR0.WP": (READ_ONLY, {"cr0": 0}),
    "the supervisor's own": (OWN, {}),
    "the supervisor's for the user": (OWN, {"user": True}),
    "the user's": (USERS, {"user": True}),
    "the user's, read-only": (USERS_READ_ONLY, {"user": True}),
    "the user's for the supervisor": (USERS, {}),
    "the user's under SMAP": (USERS, {"cr4": CR4_SMAP}),
    "the user's under SMAP with AC": (USERS, {"cr4": CR4_SMAP, "rflags": 2 | AC}),
}


@pytest.mark.parametrize("what", SECOND)
def test_the_other_operand_has_no_canonical_address(kvm: Kvm, what: str) -> None:
    code, registers, register, _, vector = SECOND[what]
    operand = struct.pack("<Q", CODE + len(code))
    for address in (NOWHERE + 0x100, 0xFFFF_7FFF_FFFF_F000):
        found = both(kvm, code, operand=operand, **registers, **{register: address})
        assert (found["fault"], found["rip"]) == ((vector, 0), CODE)


@pytest.mark.parametrize("user", [False, True], ids=["supervisor", "user"])
@pytest.mark.parametrize("pkru", [0, 1 << 6, 2 << 6, 3 << 6, 0xFFFFFF3C], ids=hex)
@pytest.mark.parametrize("what", ["movsb", "cmpsb", "push m"])
def test_the_other_operand_is_of_a_page_with_a_key(kvm: Kvm, what: str, pkru: int, user: bool) -> None:
    """SDM volume 3, protection keys: they hold for the supervisor's accesses to the user's pages, too."""
    if not any(entry.function == 7 and entry.ecx & 1 << 3 for entry in kvm.supported_cpuid()):
        pytest.skip("the processor here has no protection keys")
    code, registers, register, written, _ = SECOND[what]
    for wp in (0, CR0_WP):
        set_pkru = b"\x31\xc9\x31\xd2\xb8" + struct.pack("<I", pkru) + b"\x0f\x01\xef"
        how = registers | {register: KEYED + 0x100}
        found = both(kvm, set_pkru + code, operand=bytes(8), user=user, cr0=wp, cr4=CR4_PKE, **how)
        refused = pkru & 1 << 6 or (pkru & 2 << 6 and written and (user or wp))
        wanted = (PF, 1 << 5 | 4 * user | 2 * written | 1) if refused else None
        assert found.get("fault") == wanted


@pytest.mark.parametrize("rights", RIGHTS)
@pytest.mark.parametrize("what", SECOND)
def test_the_other_operand_is_what_page_tables_protect(kvm: Kvm, what: str, rights: str) -> None:
    code, registers, register, written, _ = SECOND[what]
    address, how = RIGHTS[rights]
    operand = struct.pack("<Q", CODE + len(code))
    found = both(kvm, code, operand=operand, **registers, **{register: address + 0x100}, **how)
    if written and rights in ("read-only", "the user's, read-only", "absent", "the supervisor's for the user"):
        assert found["fault"][0] == PF
        assert found["data"] == bytes(SIZE)


INS_MAY = (
    "read-only without CR0.WP", "the supervisor's own", "the user's", "the user's for the supervisor",
    "the user's under SMAP with AC",
)  # fmt: skip


@pytest.mark.parametrize("rights", RIGHTS)
@pytest.mark.parametrize("code", [b"\x6c", b"\xf3\x6c"], ids=["insb", "rep insb"])
def test_ins_writes_where_the_guest_may(kvm: Kvm, code: bytes, rights: str) -> None:
    """SDM volume 2, INS: #PF for its memory. The I/O exit comes before that is looked at."""
    address, how = RIGHTS[rights]
    may = rights in INS_MAY
    with LongModeVm(kvm) as guest:
        user = how.get("user", False)
        prepare(guest, user=user)
        sregs = guest.vcpu.get_sregs()
        sregs.cr0, sregs.cr4 = sregs.cr0 & ~CR0_WP | how.get("cr0", CR0_WP), sregs.cr4 | how.get("cr4", 0)
        for name in ("cs", "ss", "ds", "es") if user else ():
            segment = getattr(sregs, name)
            segment.dpl, segment.selector = 3, segment.selector | 3
        guest.vcpu.set_sregs(sregs)
        guest.load(code + DONE)
        flags = how.get("rflags", 2) | (IOPL if user else 0)
        guest.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=flags, rsp=STACK, rdi=address, rdx=0x77, rcx=1))
        guest.vcpu.run()
        if guest.vcpu.exit_reason == k.Exit.IO and guest.vcpu.kvm_run.io.port == 0x77:
            guest.vcpu.run()
        port = guest.vcpu.kvm_run.io.port
        assert port == (DONE_PORT if may else FAULT_PORT)
        if not may:
            error = 2 | (address != ABSENT) | 4 * user
            assert struct.unpack_from("<QQ", guest.memory, HANDLER_STACK - 48) == (error, CODE)
            assert guest.vcpu.get_sregs().cr2 == address
