# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of two vCPUs that depends on interrupts and I/O, as a Trust Domain and as a normal VM from the same source.

Each vCPU does, `turns` times over: an MMIO write, a write to a port that an ioeventfd takes, a write to a port at which
the VMM answers with a message-signalled interrupt, a timer interrupt (vCPU 0 one-shot, vCPU 1 TSC deadline), and an IPI
that the other vCPU answers with an IPI. It waits for each by HLT and continues only when its handler has counted it, so
that what is lost hangs and what comes twice shows in the counts, which it writes to ports at the end.

A normal VM uses the instructions; a TD the TDVMCALLs that stand for them (GHCI), but for EOI, which the module's
virtual APIC takes. RBX points at the vCPU's counters, R8 is the other's APIC id in ICR form, R9 the turn.
"""

from __future__ import annotations

import struct

from testing import guest
from tests.cpu.guest import assemble

CODE, IDT, STACKS, COUNTERS, GDT = guest.CODE, 0x2_2000, 0x2_4000, 0x2_5000, 0x2_6000
END = 0x2_7000
MMIO = 0xD000_0000
PORT_COUNTED, PORT_INTERRUPT, PORT_REPORT, PORT_DONE = 0x520, 0x510, 0x600, 0x610
TIMER, PING, PONG, MESSAGE = 0x30, 0x41, 0x42, 0x50
COUNTED = ("timer", "ping", "pong", "message")
"""What PORT_REPORT and the three after it tell, and the order of the counters, 8 bytes each."""

_SOURCE = """
.set TD, {td}
.macro TDVMCALL function
    xor eax, eax
    mov ecx, 0xfc00
    xor r10d, r10d
    mov r11d, \\function
    .byte 0x66, 0x0f, 0x01, 0xcc
.endm
.macro PORT_OUT port                 # value in R15D
.if TD
    mov r12d, 4
    mov r13d, 1
    mov r14d, \\port
    TDVMCALL 30
.else
    mov edx, \\port
    mov eax, r15d
    out dx, eax
.endif
.endm
.macro SET_MSR index            # value in R13
.if TD
    mov r12d, \\index
    TDVMCALL 32
.else
    mov ecx, \\index
    mov eax, r13d
    mov rdx, r13
    shr rdx, 32
    wrmsr
.endif
.endm
.macro SEND vector
    mov r13d, \\vector
    or r13, r8
    SET_MSR 0x830
.endm
.macro AWAIT offset, target      # until the counter has reached the register; no wake-up may be lost
1:  cli
    cmp qword ptr [rbx + \\offset], \\target
    jae 2f
.if TD
    xor r12d, r12d
    xor eax, eax
    mov ecx, 0xfc00
    xor r10d, r10d
    mov r11d, 12
    sti
    .byte 0x66, 0x0f, 0x01, 0xcc
.else
    sti
    hlt
.endif
    jmp 1b
2:  sti
.endm
.macro HANDLER offset
    push rax
    push rcx
    push rdx
    push r10
    push r11
    push r12
    push r13
    push r14
    push r15
    inc qword ptr [rbx + \\offset]
.endm
.macro RETURN
    mov ecx, 0x80b              # EOI
    xor eax, eax
    xor edx, edx
    wrmsr
    pop r15
    pop r14
    pop r13
    pop r12
    pop r11
    pop r10
    pop rdx
    pop rcx
    pop rax
    iretq
.endm
start:
    mov eax, esi                # the vCPU's number
    mov ebx, esi
    shl ebx, 7
    add ebx, {counters}
    lea rsp, [rbx + {stack_offset}]
    xor r8d, r8d
    xor esi, 1
    mov r8d, esi
    shl r8, 32
    lidt [{idtr}]
.if !TD
    mov ecx, 0x1b               # x2APIC
    rdmsr
    or eax, 0xc00
    wrmsr
    mov r13d, 0x1ff
    SET_MSR 0x80f
.endif
    mov r13d, {timer}
    bt r8, 32                   # vCPU 0's other is 1
    jc 1f
    or r13d, 0x40000            # TSC deadline
1:  SET_MSR 0x832
    mov r13d, 0xb
    SET_MSR 0x83e               # divide by 1
    mov qword ptr [rbx + 0x40], 1
    mov rax, rbx
    xor rax, 0x80
2:  pause
    cmp qword ptr [rax + 0x40], 0   # the other must have its handlers
    je 2b
    sti
    xor r9d, r9d
turn:
    inc r9
.if TD
    mov r12d, 4
    mov r13d, 1
    mov r14, {mmio} + (1 << 47)
    mov r15, r9
    TDVMCALL 48
.else
    mov eax, {mmio}
    mov dword ptr [rax], r9d
.endif
    mov r15, r9
    PORT_OUT {port_counted}
    mov r15, r9
    PORT_OUT {port_interrupt}
    AWAIT 24, r9
    bt r8, 32
    jc one_shot
    rdtsc
    shl rdx, 32
    or rax, rdx
    add rax, 20000
    mov r13, rax
    SET_MSR 0x6e0
    jmp armed
one_shot:
    mov r13d, 20000
    SET_MSR 0x838
armed:
    AWAIT 0, r9
    SEND {ping}
    AWAIT 16, r9
    cmp r9, {turns}
    jb turn
    AWAIT 8, r9                  # the other's last question
    mov r15, [rbx]
    PORT_OUT {port_report}
    mov r15, [rbx + 8]
    PORT_OUT ({port_report}+1)
    mov r15, [rbx + 16]
    PORT_OUT ({port_report}+2)
    mov r15, [rbx + 24]
    PORT_OUT ({port_report}+3)
    PORT_OUT {port_done}
    ud2
on_timer:
    HANDLER 0
    RETURN
on_ping:
    HANDLER 8
    SEND {pong}
    RETURN
on_pong:
    HANDLER 16
    RETURN
on_message:
    HANDLER 24
    RETURN
.balign 8
addresses: .quad on_timer, on_ping, on_pong, on_message
"""


def image(*, td: bool, turns: int) -> bytes:
    """What goes at `CODE`, up to `END`: code, IDT, GDT and room."""
    code = assemble(
        _SOURCE.format(
            td=int(td), turns=turns, counters=COUNTERS, stack_offset=STACKS - COUNTERS + 0x780, idtr=GDT + 0x40,
            mmio=MMIO, port_counted=PORT_COUNTED, port_interrupt=PORT_INTERRUPT, port_report=PORT_REPORT,
            port_done=PORT_DONE, timer=TIMER, ping=PING, pong=PONG,
        ),
        CODE,
    )  # fmt: skip
    memory = bytearray(END - CODE)
    memory[: len(code)] = code
    assert len(code) < IDT - CODE
    for vector, handler in zip((TIMER, PING, PONG, MESSAGE), struct.unpack("<4Q", code[-32:]), strict=True):
        gate = struct.pack("<HHBBHII", handler & 0xFFFF, 8, 0, 0x8E, handler >> 16 & 0xFFFF, 0, 0)
        memory[IDT - CODE + 16 * vector : IDT - CODE + 16 * vector + 16] = gate
    memory[GDT - CODE : GDT - CODE + 24] = struct.pack("<3Q", 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
    memory[GDT - CODE + 0x40 : GDT - CODE + 0x4A] = struct.pack("<HQ", 0xFFF, IDT)
    return bytes(memory)
