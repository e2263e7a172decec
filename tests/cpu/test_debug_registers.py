# SPDX-License-Identifier: GPL-2.0-or-later
"""DR0-3, single steps and #DB: SDM volume 3, chapter 18 (debug registers, debug exceptions), 25.6.3 and table 28-1."""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import CODE, IDT, Guest, assemble

DB = 1
DATA = 0x80000
BS = 1 << 14
EXECUTE, WRITE, ACCESS = 0, 1, 3
LENGTH = {1: 0, 2: 1, 4: 3, 8: 2}


def arm(guest: Guest, number: int, address: int, kind: int, length: int = 1) -> None:
    context = guest.context
    context.set_dr(number, address)
    context.set_dr(7, context.get_dr(7) | 2 << 2 * number | (kind | LENGTH[length] << 2) << 16 + 4 * number)


def debugged(source: str) -> Guest:
    guest = Guest(source)
    guest.context.exception_bitmap = 1 << DB
    return guest


def stopped(guest: Guest) -> tuple[int, int]:
    """Run to a #DB: (offset of RIP in the code, reasons)."""
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.interruption_info == 1 << 31 | 3 << 8 | DB
    return guest.context.rip - CODE, guest.context.exit_qualification


def test_an_instruction_breakpoint_stops_before_its_instruction() -> None:
    guest = debugged("inc rax; inc rax; inc rax; hlt")  # 3 bytes each
    arm(guest, 1, CODE + 6, EXECUTE)
    before = guest.context.get_dr(6)
    assert stopped(guest) == (6, 1 << 1)
    assert guest.context.gpr[0] == 2
    assert guest.context.get_dr(6) == before, "a #DB that exits leaves DR6 alone"


def test_an_instruction_breakpoint_is_a_linear_address() -> None:
    guest = debugged("inc rax; inc rax; hlt")
    guest.context.cr0 = 0x21  # 32-bit protected mode, whose code segments have a base
    guest.context.efer = 0
    guest.context.set_segment(Segment.CS, 0x10, CODE, 0xFFFFFFFF, 0xC09B)
    guest.context.rip = 0
    arm(guest, 0, CODE + 2, EXECUTE)  # "dec eax; inc eax" in 32 bits: 1 and 2 bytes
    arm(guest, 2, CODE + 1, EXECUTE)
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert (guest.context.rip, guest.context.exit_qualification) == (1, 1 << 2)


@pytest.mark.parametrize(
    ("store", "length"),
    [("mov byte ptr [{0}], 1", 1), ("mov word ptr [{0}], 1", 2), ("mov dword ptr [{0}], 1", 4), ("mov [{0}], rcx", 8)],
)
def test_a_data_breakpoint_traps_after_the_store(store: str, length: int) -> None:
    guest = debugged(f"nop; nop; {store.format(hex(DATA))}; here: inc rax; inc rax; hlt")
    arm(guest, 3, DATA, WRITE, length)
    offset, reasons = stopped(guest)
    assert reasons == 1 << 3
    assert guest.context.gpr[0] == 0
    assert bytes(guest.memory.raw[CODE + offset : CODE + offset + 3]) == b"\x48\xff\xc0"  # the INC is next
    if length < 8:
        assert guest.memory.raw[DATA] == 1, "the store has been made"
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[0] == 2


def test_a_write_breakpoint_lets_loads_pass_and_an_access_breakpoint_does_not() -> None:
    source = f"mov rcx, [{DATA:#x}]; mov rcx, [{DATA:#x}]; hlt"
    guest = debugged(source)
    arm(guest, 0, DATA, WRITE, 8)
    assert guest.run() == ExitReason.HLT
    guest = debugged(source)
    arm(guest, 0, DATA, ACCESS, 8)
    first, reasons = stopped(guest)
    assert reasons == 1
    assert stopped(guest) == (2 * first, 1)
    assert guest.run() == ExitReason.HLT


def test_neighbours_of_a_watched_byte_are_not_watched() -> None:
    guest = debugged(f"mov byte ptr [{DATA + 3:#x}], 1; mov dword ptr [{DATA + 8:#x}], 1; hlt")
    arm(guest, 0, DATA + 4, WRITE, 4)
    assert guest.run() == ExitReason.HLT


def test_a_page_seen_before_the_breakpoint_was_set_is_watched_too() -> None:
    guest = debugged(f"mov byte ptr [{DATA:#x}], 1; cpuid; mov byte ptr [{DATA:#x}], 2; hlt")
    assert guest.run() == ExitReason.CPUID
    arm(guest, 0, DATA, WRITE)
    guest.skip()
    assert stopped(guest)[1] == 1
    guest.context.set_dr(7, 0x400)
    assert guest.run() == ExitReason.HLT


def test_a_locked_read_modify_write_is_made_once() -> None:
    guest = debugged(f"lock inc qword ptr [{DATA:#x}]; xadd [{DATA:#x}], rcx; hlt")
    guest.context.gpr[1] = 5
    arm(guest, 0, DATA, WRITE, 8)
    assert stopped(guest)[1] == 1
    assert guest.memory.qwords[DATA >> 3] == 1
    assert stopped(guest)[1] == 1
    assert (guest.memory.qwords[DATA >> 3], guest.context.gpr[1]) == (6, 1)


def test_a_step_executes_one_instruction() -> None:
    guest = debugged("inc rax; nop; hlt")
    offsets = []
    for _ in range(2):
        guest.context.rflags |= 1 << 8
        offsets.append(stopped(guest))
    assert offsets == [(3, BS), (4, BS)]


def test_a_step_over_a_watched_store_tells_both() -> None:
    guest = debugged(f"mov byte ptr [{DATA:#x}], 1; hlt")
    arm(guest, 2, DATA, WRITE)
    guest.context.rflags |= 1 << 8
    assert stopped(guest)[1] == BS | 1 << 2


def test_a_guest_debugs_itself_and_finds_the_reason_in_dr6() -> None:
    guest = Guest(
        f"mov rax, {DATA:#x}; mov dr1, rax; mov eax, 0x10000c; mov dr7, rax; mov byte ptr [{DATA:#x}], 1; hlt"
    )
    guest.context.gpr[1] = 0
    guest.handler(DB, "mov rcx, dr6; xor eax, eax; mov dr7, rax; iretq", 0x210000)
    guest.context.set_segment(Segment.TR, 0x8, 0x5000, 0x67, 0x8B)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[1] & 0xF == 1 << 1


@pytest.mark.parametrize(
    ("code", "qualification"), [("mov dr7, r9", 7 | 9 << 8), ("mov rbx, dr3", 3 | 1 << 4 | 3 << 8)]
)
def test_mov_dr_exits_when_told_to(code: str, qualification: int) -> None:
    guest = Guest(f"{code}; hlt")
    guest.context.mov_dr_exiting = True
    assert guest.run() == ExitReason.DR_ACCESS
    assert guest.context.exit_qualification == qualification
    guest.skip()
    assert guest.run() == ExitReason.HLT


def test_two_virtual_cpus_have_their_own_breakpoints() -> None:
    watched = debugged(f"mov byte ptr [{DATA:#x}], 1; hlt")
    other = Guest("", processor=watched.processor)
    other.context.exception_bitmap = 1 << DB
    other.context.rip = CODE
    arm(watched, 0, DATA, WRITE)
    assert other.run() == ExitReason.HLT
    assert stopped(watched)[1] == 1


@pytest.mark.parametrize(
    ("source", "length", "shadow"),
    [
        ("mov ss, ecx", 2, True),
        ("mov ss, word ptr [rsi]", 2, True),
        ("mov ds, ecx", 2, False),
        ("sti", 1, False),
    ],
)
def test_a_single_step_passes_over_what_follows_a_load_of_ss_alone(source: str, length: int, *, shadow: bool) -> None:
    """SDM volume 3, "Masking Exceptions ... When Switching Stacks": MOV SS inhibits #DB too; STI does not."""
    start = "push 0x302\n mov ecx, 0x18\n mov esi, 0x90100\n mov word ptr [rsi], 0x18\n popfq\n nop\n"
    guest = Guest(f"{start} {source}\n inc eax\n inc eax\n hlt")
    guest.context.exception_bitmap = 1 << DB
    places = []
    while guest.run() == ExitReason.EXCEPTION_NMI:
        places.append((guest.context.rip - CODE, guest.context.gpr[0]))
    before = len(assemble(start))
    every = [(before, 0), (before + length, 0), (before + length + 2, 1), (before + length + 4, 2)]
    assert places == [every[0], *every[1 + shadow :]]


TF = 1 << 8
HANDLER_CODE = 0x9000


def test_a_handler_does_not_step_after_the_vmm_wrote_state_while_tf_was_set() -> None:
    """Delivery clears TF (SDM volume 3, 6.12.1.3), also where the VMM loaded RFLAGS with TF set."""
    guest = Guest("nop; nop; hlt")
    guest.memory.write(IDT + 16 * DB, struct.pack("<HHBBHII", HANDLER_CODE, 0x10, 0, 0x8E, 0, 0, 0))
    guest.memory.write(HANDLER_CODE, bytes.fromhex("909090f4"))
    guest.context.rflags = 2 | TF
    stack = guest.context.gpr[4]
    assert guest.run() == ExitReason.HLT
    assert guest.context.rip in (HANDLER_CODE + 3, HANDLER_CODE + 4)
    assert stack - guest.context.gpr[4] <= 48, "one #DB, not one for each instruction of the handler"
