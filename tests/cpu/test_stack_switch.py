# SPDX-License-Identifier: GPL-2.0-or-later
"""Debug exceptions behind MOV SS and POP SS (SDM volume 3, 6.8.3, and volume 2, MOV and POP).

A data breakpoint on the operand of such an instruction is reported after the next instruction, wherever that leads:
where it enters the kernel, at the kernel's first instruction (CVE-2018-8897). An instruction breakpoint on the next
instruction is not reported at all. Between two runs VMX keeps what waits ("pending debug exceptions", 25.4.2).
"""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import CODE, IDT, PAGE_TABLES, SELECTOR_CODE, Guest, assemble, ept_map
from tests.cpu.test_debug_registers import ACCESS, BS, DB, EXECUTE, TF, arm, debugged, stopped
from tests.cpu.test_transfers import (
    KERNEL_STACK,
    LSTAR,
    STAR,
    SYSENTER_CS,
    SYSENTER_EIP,
    SYSENTER_ESP,
    USER_CODE,
    USER_DATA,
    TwoLevels,
)

OPERAND = USER_CODE + 0x9000
ENTRY = 0x120000
LOADS = {
    64: ("mov ss, word ptr [rsi]", "mov ss, word ptr [rsi]\n mov ss, ecx"),
    32: ("mov ss, word ptr [esi]", "mov esp, esi\n pop ss"),
}
LANDINGS = {
    "nop": "next",
    "inc rax": "next",
    "mov ss, ecx": "next",
    "jmp 1f\n nop\n 1:": "label",
    "lea rbx, [rip + 1f]\n mov ss, word ptr [rsi]\n jmp rbx\n nop\n 1:": "label",
    "call 1f\n nop\n 1:": "label",
    "syscall": "entry",
    "sysenter": "entry",
    "int 0x80": "entry",
    "int3": "entry",
    "ud2": "entry",
}


def user(source: str, mode: int = 64) -> TwoLevels:
    guest = TwoLevels("", mode=mode)
    guest.load((".code32\n" if mode == 32 else "") + source, USER_CODE)
    guest.memory.write(ENTRY, b"\x90\x90\xf4")
    gate = struct.pack("<HHBBHII", ENTRY & 0xFFFF, SELECTOR_CODE, 0, 0xEE, ENTRY >> 16 & 0xFFFF, ENTRY >> 32, 0)
    for vector in (3, 6, 0x80):
        guest.memory.write(IDT + 16 * vector, gate)
    guest.set_msrs({SYSENTER_CS: SELECTOR_CODE, SYSENTER_ESP: KERNEL_STACK, SYSENTER_EIP: ENTRY})
    guest.set_msrs({LSTAR: ENTRY, STAR: SELECTOR_CODE << 32 | (0x20 | 3) << 48})
    guest.context.exception_bitmap = 1 << DB
    guest.memory.write(OPERAND, USER_DATA.to_bytes(4, "little"))
    guest.context.gpr[6] = OPERAND
    guest.context.gpr[1] = USER_DATA
    arm(guest, 0, OPERAND, ACCESS, 2)
    return guest


@pytest.mark.parametrize("following", LANDINGS)
@pytest.mark.parametrize("step", [False, True])
def test_a_data_breakpoint_on_the_operand_is_reported_behind_the_next_instruction(following: str, step: bool) -> None:
    load = "" if "mov ss, word" in following else "mov ss, word ptr [rsi]\n"
    guest = user(f"{load}{following}\n inc rdx\n hlt")
    if step:
        guest.context.rflags |= TF
        if not load:  # the LEA is stepped over first
            assert stopped(guest)[1] == BS
    place, reasons = stopped(guest)
    entered = LANDINGS[following] == "entry"
    end = ENTRY if entered else USER_CODE + len(assemble(load + following, USER_CODE))
    assert CODE + place == end
    keeps_tf = not entered or following in ("syscall", "sysenter")  # SYSENTER always, SYSCALL by SFMASK
    if following != "mov ss, ecx":  # whether the second such instruction inhibits is not defined
        assert reasons == (1 | (BS if step and keeps_tf else 0))
    assert guest.context.gpr[2] == 0


@pytest.mark.parametrize("load", LOADS[32])
def test_in_compatibility_mode(load: str) -> None:
    guest = user(f"{load}\n inc eax\n inc eax\n hlt", 32)
    assert CODE + stopped(guest)[0] == USER_CODE + len(assemble(f".code32\n {load}\n inc eax", USER_CODE))
    assert guest.context.gpr[0] == 1


@pytest.mark.parametrize(
    ("source", "seen"),
    [("mov ss, ecx", False), ("mov ss, word ptr [rsi]", False), ("mov ds, ecx", True), ("sti", True), ("nop", True)],
)
def test_an_instruction_breakpoint_behind_a_load_of_ss_is_not_reported(source: str, seen: bool) -> None:
    length = len(assemble(source))
    guest = debugged(f"{source}\n inc rax\n inc rax\n hlt")
    guest.context.gpr[1] = 0x18
    guest.context.gpr[6] = 0x90100
    guest.memory.write(0x90100, b"\x18\0")
    arm(guest, 0, CODE + length, EXECUTE)
    arm(guest, 1, CODE + length + 3, EXECUTE)
    if seen:
        assert stopped(guest) == (length, 1)
        guest.context.rflags |= 1 << 16
    assert stopped(guest) == (length + 3, 2)
    assert guest.context.gpr[0] == 1


def exits() -> Guest:
    guest = debugged("mov ss, word ptr [rsi]\n cpuid\n inc rdi\n hlt")
    guest.context.gpr[6] = 0x90100
    guest.memory.write(0x90100, b"\x18\0")
    arm(guest, 2, 0x90100, ACCESS, 2)
    assert guest.run() == ExitReason.CPUID
    return guest


def test_what_waits_is_kept_over_an_exit_of_the_next_instruction() -> None:
    guest = exits()
    assert guest.context.interruptibility == 2
    assert guest.run() == ExitReason.CPUID, "nothing was skipped: it is executed again, and #DB still waits"
    guest.skip()
    assert stopped(guest) == (4, 1 << 2)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[7] == 1


def test_what_waits_goes_with_its_breakpoint() -> None:
    guest = exits()
    guest.context.set_dr(7, 0x400)
    guest.skip()
    assert guest.run() == ExitReason.HLT


def test_another_virtual_cpu_does_not_take_what_waits() -> None:
    guest = exits()
    other = Guest("", processor=guest.processor)
    other.context.exception_bitmap = 1 << DB
    other.context.rip = CODE + 4
    arm(other, 2, 0x90100, ACCESS, 2)
    assert other.run() == ExitReason.HLT
    guest.skip()
    assert stopped(guest) == (4, 1 << 2)


def test_over_a_fault_in_the_second_stage() -> None:
    """The next instruction lies in a page that the VMM maps only when it is executed."""
    guest = Guest(ept=True)
    start = 0x101000 - 2
    for page in (PAGE_TABLES, PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2000, 0x100000, 0x90000):
        ept_map(guest.processor, guest.root, page, page)
    guest.load("mov ss, word ptr [rsi]\n inc rax\n inc rax\n hlt", start)
    guest.context.gpr[6] = 0x90100
    guest.context.exception_bitmap = 1 << DB
    guest.memory.write(0x90100, b"\x18\0")
    arm(guest, 0, 0x90100, ACCESS, 2)
    while (reason := guest.run()) == ExitReason.EPT_VIOLATION:
        page = guest.context.guest_physical_address & -4096
        ept_map(guest.processor, guest.root, page, page)
    assert reason == ExitReason.EXCEPTION_NMI
    assert (guest.context.rip, guest.context.exit_qualification, guest.context.gpr[0]) == (0x101000 + 3, 1, 1)


@pytest.mark.parametrize(("source", "state"), [("sti", 1), ("mov ss, ecx", 2), ("sti\n mov ss, ecx", 2), ("nop", 0)])
def test_interruptibility_names_what_blocks(source: str, state: int) -> None:
    """SDM volume 3, table 25-3: bit 0 blocking by STI, bit 1 by MOV SS, and never both."""
    guest = Guest(f"{source}\n cpuid\n hlt")
    guest.context.gpr[1] = 0x18
    assert guest.run() == ExitReason.CPUID
    assert guest.context.interruptibility == state
    for value in (1, 2, 0):
        guest.context.interruptibility = value
        assert guest.context.interruptibility == value


def test_a_halt_behind_a_load_of_ss_ends_for_what_waits() -> None:
    guest = debugged("mov ss, word ptr [rsi]\n hlt\n inc rdi\n hlt")
    guest.context.hlt_exiting = False
    guest.context.gpr[6] = 0x90100
    guest.memory.write(0x90100, b"\x18\0")
    arm(guest, 0, 0x90100, ACCESS, 2)
    assert stopped(guest) == (3, 1)
