# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever a guest does, a kick ends its run: between any two deliveries of events, and in the longest instructions.

The first kind is CVE-2015-8104 and its siblings: deliveries that cause deliveries, so that no instruction is ever
executed. Each guest runs in a child, which is ended if it does not come back.
"""

from __future__ import annotations

import os
import signal
import struct
import threading

import pytest

from swtdx.cpu.vmx import EventType, ExitReason, Segment
from tests.cpu.guest import CODE, GDT, IDT, STACK, Guest

PATIENCE = 20
TSS = 0x8000
IST = 0x70000
HANDLER = 0x110000
WATCH_8_BYTES = 0xF0403  # DR7: DR0 enabled, reads and writes, length 4 (the low half of an entry is enough)


def survives_kicks(guest: Guest, kicks: int = 3) -> None:
    """Run in a child, and kick: each run must end by that."""
    pid = os.fork()
    if not pid:
        signal.alarm(PATIENCE)
        status = 1
        try:
            for _ in range(kicks):
                timer = threading.Timer(0.1, guest.context.kick)
                timer.start()
                if guest.run() != ExitReason.EXTERNAL_INTERRUPT:
                    status = 2
                    break
                timer.join()
            else:
                status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def with_ist(source: str) -> Guest:
    """A 64-bit guest whose exceptions all start on one stack of the TSS, so that they can follow each other."""
    guest = Guest(source)
    guest.memory.write(TSS, bytes(36) + struct.pack("<Q", IST) + bytes(60))
    for vector in range(32):
        gate = struct.pack("<HHBBHII", HANDLER & 0xFFFF, 0x10, 1, 0x8E, HANDLER >> 16, 0, 0)
        guest.memory.write(IDT + 16 * vector, gate)
    guest.memory.write(HANDLER, bytes.fromhex("48cf"))  # iretq
    guest.context.set_segment(Segment.TR, 0x20, TSS, 0x67, 0x8B)
    return guest


@pytest.mark.parametrize(
    "watched",
    [IDT + 16, TSS + 36, IST - 8, IST - 16, IST - 40, GDT + 16],
    ids=["gate", "ist", "ss", "rsp", "rip", "cs"],
)
def test_a_data_breakpoint_on_what_its_own_delivery_touches(watched: int) -> None:
    guest = with_ist(f"""
        mov eax, {watched:#x}
        mov dr0, rax
        mov eax, {WATCH_8_BYTES:#x}
        mov dr7, rax
        mov al, byte ptr [{watched:#x}]
        nop
    2:  jmp 2b
    """)
    survives_kicks(guest)


def test_the_same_in_real_mode() -> None:
    guest = Guest()
    context = guest.context
    context.efer, context.cr0 = 0x800, 0x20
    for segment in (Segment.ES, Segment.SS, Segment.DS):
        context.set_segment(segment, 0, 0, 0xFFFF, 0x93)
    context.set_segment(Segment.CS, 0, 0, 0xFFFF, 0x9B)
    context.set_segment(Segment.IDTR, 0, 0, 0x3FF, 0)
    # mov eax, 4; mov dr0, eax; mov eax, DR7; mov dr7, eax; mov ax, [4]; jmp $
    code = "66b804000000 0f23c0 66b8 03040f00 0f23f8 a10400 ebfe"
    guest.memory.write(0x1000, bytes.fromhex(code))
    guest.memory.write(4, bytes.fromhex("00300000"))
    guest.memory.write(0x3000, b"\xcf")
    context.rip, context.gpr[4] = 0x1000, 0xF000
    survives_kicks(guest)


def test_an_alignment_check_whose_delivery_is_unaligned() -> None:
    """CVE-2015-5307: a gate of legacy mode that stays at CPL 3, with a stack pointer that is odd."""
    guest = Guest()
    context = guest.context
    context.efer, context.cr0, context.cr4 = 0, 0x40011, 0
    guest.memory.write(GDT + 0x20, struct.pack("<QQ", 0x00CFFB000000FFFF, 0x00CFF3000000FFFF))
    context.set_segment(Segment.GDTR, 0, GDT, 0x2F, 0)
    for segment in (Segment.ES, Segment.SS, Segment.DS):
        context.set_segment(segment, 0x2B, 0, 0xFFFFFFFF, 0xC0F3)
    context.set_segment(Segment.CS, 0x23, 0, 0xFFFFFFFF, 0xC0FB)
    for vector in range(32):
        gate = struct.pack("<HHBBH", HANDLER & 0xFFFF, 0x20, 0, 0xEE, HANDLER >> 16)
        guest.memory.write(IDT + 8 * vector, gate)
    guest.memory.write(CODE, bytes.fromhex("8b03ebfe"))  # mov eax, [ebx]; jmp $
    context.rip, context.gpr[3], context.gpr[4], context.rflags = CODE, 0x20001, 0x30001, 0x40002
    survives_kicks(guest)


@pytest.mark.parametrize(
    ("source", "handler"),
    [
        ("ud2", "0f0b"),  # the handler's first instruction raises the same again
        ("int3", "cc"),
        ("int 31", "cd1f"),
        ("xor ecx, ecx; div ecx", "f7f1"),
        ("mov rax, [-16]", "488b0425f0ffffff"),  # #PF, not canonical enough to be mapped
        ("pushfq; or qword ptr [rsp], 0x100; popfq; nop; nop", "9c810c24000100009d9090"),
        ("mov ax, 0x88; mov ds, ax", "66b888008ed8"),
        ("int1", "f1"),
    ],
    ids=["ud", "bp", "int", "de", "pf", "step", "gp", "icebp"],
)
def test_a_handler_that_raises_what_it_handles(source: str, handler: str) -> None:
    guest = with_ist(source.replace(";", "\n"))
    guest.memory.write(HANDLER, bytes.fromhex(handler))
    survives_kicks(guest)


@pytest.mark.parametrize("vector", [1, 3, 14, 17, 2])
def test_an_injected_event_waits_through_a_kick(vector: int) -> None:
    """The kick comes first; the event is delivered at the next entry, once."""
    guest = with_ist("1: jmp 1b")
    guest.memory.write(HANDLER, b"\xf4")
    guest.context.inject(
        vector, EventType.NMI if vector == 2 else EventType.HARDWARE_EXCEPTION, 0 if vector in (14, 17) else None
    )
    guest.context.kick()
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
    assert int(guest.context.event_pending) == 1
    assert guest.context.idt_vectoring_info & 0xFF == vector
    assert guest.context.idt_vectoring_info >> 11 & 1 == (vector in (14, 17))
    assert guest.context.rip == CODE
    assert guest.run() == ExitReason.HLT
    assert int(guest.context.event_pending) == 0
    assert guest.context.gpr[4] == (IST - (48 if vector in (14, 17) else 40))


@pytest.mark.parametrize("what", ["movsb", "stosq", "lodsb", "cmpsb", "scasb", "movsq"])
def test_repeated_string_instructions(what: str) -> None:
    """Far more repetitions than a run has time for, over memory of which there is enough."""
    guest = Guest(f"rep{'e' if what in ('cmpsb', 'scasb') else ''} {what}\nhlt")
    context = guest.context
    context.gpr[1], context.gpr[6], context.gpr[7] = 1 << 28, 0x1000_0000, 0x1000_0000 - 64
    if what.endswith("q"):
        context.gpr[1] = 1 << 26
    timer = threading.Timer(0.02, context.kick)
    timer.start()
    reason = guest.run()
    timer.join()
    assert reason == ExitReason.EXTERNAL_INTERRUPT
    assert 0 < context.gpr[1] < 1 << 28
    assert context.rip == CODE


def test_an_interrupted_storm_is_still_there_afterwards() -> None:
    """Nothing is lost by a kick: with the breakpoint gone, the pending #DB is delivered and its handler runs."""
    guest = with_ist(f"""
        mov eax, {IDT + 16:#x}
        mov dr0, rax
        mov eax, {WATCH_8_BYTES:#x}
        mov dr7, rax
        mov al, byte ptr [{IDT + 16:#x}]
        hlt
    """)
    guest.memory.write(HANDLER, b"\xf4")
    timer = threading.Timer(0.1, guest.context.kick)
    timer.start()
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
    timer.join()
    assert guest.context.idt_vectoring_info == 1 << 31 | EventType.HARDWARE_EXCEPTION << 8 | 1
    guest.context.set_dr(7, 0x400)
    assert guest.run() == ExitReason.HLT
    assert guest.context.rip == HANDLER
    assert STACK != guest.context.gpr[4] == IST - 40
