# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest with a #VE handler for port I/O, right or one bit too generous, as Linux up to 7.1 was.

The mask of an access of n bytes has 8 n bits; with ``extra`` 1 it has one more (GENMASK(8 * size, 0)), for OUT and IN.
"""

from __future__ import annotations

from swtdx.vmm.bare_guest import CODE
from tests.cpu.guest import assemble

DONE = 0x502
OUT_PORT, IN_PORT = 0x80, 0x90

SOURCE = """
    lea rax, [rip + handler]
    lea rdi, [rip + idt + 20 * 16]
    mov [rdi], ax
    mov word ptr [rdi + 2], 8
    mov word ptr [rdi + 4], 0x8e00
    shr rax, 16
    mov [rdi + 6], ax
    shr rax, 16
    mov [rdi + 8], eax
    lea rax, [rip + idt]
    mov [rip + idtr + 2], rax
    lidt [rip + idtr]
    {body}
    mov eax, 1
    mov edx, {done}
    out dx, al
    jmp .

handler:
    push r15
    push r14
    push r13
    push r12
    push r11
    push r10
    push r9
    push r8
    push rdx
    push rcx
    push rbx
    push rax
    mov eax, 3                      # TDG.VP.VEINFO.GET
    .byte 0x66, 0x0f, 0x01, 0xcc
    add [rsp + 12 * 8], r10d        # over the instruction
    mov rax, [rsp]
    mov ecx, edx
    and ecx, 7
    inc ecx
    mov r12d, ecx                   # size
    shl ecx, 3
    add ecx, {extra}
    mov ebx, 1
    shl rbx, cl
    dec rbx                         # the mask
    mov r14d, edx
    shr r14d, 16                    # port
    mov r13d, 1
    mov r15, rax
    and r15, rbx
    test edx, 8
    jz 1f
    xor r13d, r13d
    xor r15d, r15d
1:  xor eax, eax
    mov ecx, 0xfc00
    xor r10d, r10d
    mov r11d, 30                    # Instruction.IO
    .byte 0x66, 0x0f, 0x01, 0xcc
    test r13d, r13d
    jnz 2f
    mov rax, rbx
    not rax
    and [rsp], rax
    and r11, rbx
    or [rsp], r11
2:  pop rax
    pop rbx
    pop rcx
    pop rdx
    pop r8
    pop r9
    pop r10
    pop r11
    pop r12
    pop r13
    pop r14
    pop r15
    iretq

    .balign 8
idtr: .word 21 * 16 - 1
    .quad 0
    .balign 16
idt: .fill 21 * 16, 1, 0
"""
ACCESSES = f"""
    movabs rax, 0x1122334455667788
    or eax, 0x00010100
    mov edx, {OUT_PORT}
    out dx, al
    out dx, ax
    mov rax, -1
    out dx, eax
    mov edx, {IN_PORT}
    xor eax, eax
    in al, dx
    xor eax, eax
    in ax, dx
    xor eax, eax
    in eax, dx
"""


def code(extra: int, body: str = ACCESSES) -> bytes:
    """Machine code for `CODE`."""
    return assemble(SOURCE.format(body=body, extra=extra, done=DONE), CODE)
