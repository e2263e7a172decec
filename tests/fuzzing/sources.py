# SPDX-License-Identifier: GPL-2.0-or-later
"""The source of one guest with a fault for each kind of lie that is not the answer to a call.

========== =============================================================================================
virtio     a driver of virtio-rng takes the length that the device says for that of its own buffer
acpi       an entry of the MADT is as long as it says
interrupts vector 0x80 is for programs only, so what it is given is trusted (as Linux's was, CVE-2024-25744)
ve         a page that is not there is accepted, whatever was in it
time       the year is the same as a moment ago
========== =============================================================================================

Each prints `BEGUN`, then makes a call in each round. Without a lie it runs without end.
"""

from __future__ import annotations

from swtdx.image.boot_protocol import BOOT_PARAMS
from swtdx.vmm.board.bus import MmioBus
from swtdx.vmm.board.virtio.pci import VirtioPci
from swtdx.vmm.board.virtio.rng import VirtioRng
from swtdx.vmm.memory import GuestMemory

SHARED_AT = 0x300_0000
"""What the virtio guest shares: two pages."""
SYSTEM_CALL = 0x80
_SHARED_BIT = 1 << 47
_WINDOW_TYPE = 5
_ROOM = 16

_BEGIN = """
    lea rsp, [rip + top]
    mov r12d, 1
    mov r13d, 1
    mov r14d, 0x3f8
    mov r15d, '!'
    call io
"""
_ROUND = """
    mov r12d, 1
    xor r13d, r13d
    mov r14d, 0x700
    call io
"""
_END = """
io:
    mov r11d, 30
vmcall:
    xor eax, eax
    mov ecx, 0xfc00
    xor r10d, r10d
    .byte 0x66, 0x0f, 0x01, 0xcc
    ret
    .balign 4096
    .skip 4096
top:
    .skip 131072
"""


def _window() -> int:
    """Where the capability is by which configuration space reaches the device's registers (virtio 1.2, 4.1.4.9)."""
    function = VirtioPci(VirtioRng(), GuestMemory(), MmioBus(), lambda message: None, lambda text: None)
    at = function.value(0x34, 1)
    while function.value(at, 1) != 9 or function.value(at + 3, 1) != _WINDOW_TYPE:
        at = function.value(at + 1, 1)
        assert at
    return at


def _registers(window: int) -> str:
    """Write to the device's registers, by way of configuration space."""
    return f"""
set:
    push rsi
    push rdi
    mov edi, {window + 4}
    mov esi, 4
    call configure
    pop rsi
    mov edi, {window + 8}
    call configure
    mov esi, edx
    mov edi, {window + 12}
    call configure
    pop rsi
    mov edi, {window + 16}
configure:
    mov r12d, 4
    mov r13d, 1
    mov r14d, 0xcf8
    mov r15d, 0x80000800
    or r15d, edi
    call io
    mov r14d, 0xcfc
    mov r12d, 4
    mov r13d, 1
    mov r15d, esi
    jmp io
"""


def _virtio() -> str:
    window = _window()
    steps = [(0x14, 1, 1), (0x14, 1, 3), (8, 4, 1), (12, 4, 1), (0x14, 1, 11), (0x16, 2, 0), (0x18, 2, 8)]
    steps += [(0x20, 4, SHARED_AT), (0x28, 4, SHARED_AT + 0x100), (0x30, 4, SHARED_AT + 0x200)]
    steps += [(0x1C, 2, 1), (0x14, 1, 15)]
    setup = "".join(
        f"""
    mov edi, {offset}
    mov edx, {size}
    mov esi, {value}
    call set
"""
        for offset, size, value in steps
    )
    return f"""
    {_BEGIN}
    lea rax, [rip + directory + 4095]
    and rax, -4096
    mov rcx, {SHARED_AT | _SHARED_BIT | 0x83}
    mov [rax], rcx
    or rax, 3
    mov rcx, cr3
    mov rcx, [rcx]
    and rcx, -4096
    mov [rcx + 32], rax
    mov r11d, 0x10001
    mov r12, {SHARED_AT | _SHARED_BIT}
    mov r13d, 0x2000
    call vmcall
    mov edi, 4
    mov esi, 6
    call configure
    {setup}
    mov edi, 0x3000
    mov edx, 2
    xor esi, esi
    call set
    mov rbx, 0x100000000
again:
    call look
    jmp again
look:
    sub rsp, {_ROOM}
    mov eax, {SHARED_AT + 0x1000}
    mov [rbx], rax
    mov dword ptr [rbx + 8], {_ROOM}
    mov dword ptr [rbx + 12], 2
    mov ebp, [rip + offered]
    mov r8d, ebp
    and r8d, 7
    mov word ptr [rbx + r8 * 2 + 0x104], 0
    inc ebp
    mov [rip + offered], ebp
    mov [rbx + 0x102], bp
    mov edi, {window + 16}
    xor esi, esi
    call configure
    mov ecx, [rbx + r8 * 8 + 0x208]
    mov eax, 0xa5
    mov rdi, rsp
    cld
    rep stosb
    add rsp, {_ROOM}
    ret
{_registers(window)}
offered:
    .quad 0
directory:
    .skip 8192
    {_END}
"""


def _acpi() -> str:
    return f"""
    {_BEGIN}
again:
    {_ROUND}
    call look
    jmp again
look:
    sub rsp, {_ROOM}
    mov rbx, [{BOOT_PARAMS + 0x70}]
    mov rbx, [rbx + 24]
    mov r8d, [rbx + 4]
    add r8, rbx
    add rbx, 36
tables:
    cmp rbx, r8
    jae done
    mov rsi, [rbx]
    add rbx, 8
    cmp dword ptr [rsi], 0x43495041
    jne tables
    mov r9d, [rsi + 4]
    add r9, rsi
    add rsi, 44
entries:
    cmp rsi, r9
    jae done
    movzx ecx, byte ptr [rsi + 1]
    test ecx, ecx
    jz done
    cmp byte ptr [rsi], 0
    jne next
    mov edx, ecx
    mov eax, 0xa5
    mov rdi, rsp
    cld
    rep stosb
    mov ecx, edx
next:
    add rsi, rcx
    jmp entries
done:
    add rsp, {_ROOM}
    ret
    {_END}
"""


def _gates(handlers: dict[int, str], others: str | None) -> str:
    """Fill an IDT: ``others`` takes the vectors from 16 on that are not in ``handlers``."""
    fill = f"""
    lea rax, [rip + {others}]
    mov edi, 16
1:  call gate
    inc edi
    cmp edi, 256
    jb 1b
"""
    named = "".join(f"lea rax, [rip + {name}]\nmov edi, {vector}\ncall gate\n" for vector, name in handlers.items())
    return f"""
    {fill if others else ""}
    {named}
    lea rax, [rip + idt]
    mov [rip + idtr + 2], rax
    lidt [rip + idtr]
    jmp begin
gate:
    mov rdx, rdi
    shl rdx, 4
    lea rcx, [rip + idt]
    add rdx, rcx
    mov [rdx], ax
    mov word ptr [rdx + 2], 0x10
    mov word ptr [rdx + 4], 0x8e00
    mov rcx, rax
    shr rcx, 16
    mov [rdx + 6], cx
    shr rcx, 16
    mov [rdx + 8], ecx
    ret
idtr:
    .word 4095
    .quad 0
    .balign 4096
idt:
    .skip 4096
begin:
"""


def _interrupts() -> str:
    return f"""
    {_BEGIN}
    {_gates({SYSTEM_CALL: "system_call"}, "ignore")}
    mov r11d, 32
    mov r12d, 0x80f
    mov r13d, 0x1ff
    call vmcall
    sti
again:
    {_ROUND}
    jmp again
ignore:
    push rax
    push rcx
    push rdx
    mov ecx, 0x80b
    xor eax, eax
    xor edx, edx
    wrmsr
    pop rdx
    pop rcx
    pop rax
    iretq
system_call:
    mov rax, 0xa5a5a5a5a5a5a5a5
    mov [rax], al
    iretq
    {_END}
"""


def _ve() -> str:
    return f"""
    {_BEGIN}
    {_gates({20: "not_there"}, None)}
again:
    {_ROUND}
    mov rax, 0x1122334455667788
    cmp rax, [rip + kept]
    je again
    ud2
not_there:
    push rax
    push rcx
    push rdx
    push r8
    push r9
    push r10
    mov eax, 3
    .byte 0x66, 0x0f, 0x01, 0xcc
    mov rcx, r9
    and rcx, -4096
    mov eax, 6
    .byte 0x66, 0x0f, 0x01, 0xcc
    pop r10
    pop r9
    pop r8
    pop rdx
    pop rcx
    pop rax
    iretq
    .balign 4096
kept:
    .quad 0x1122334455667788
    .balign 4096
    {_END}
"""


def _time() -> str:
    return f"""
    {_BEGIN}
    call year
    mov ebx, r11d
again:
    call year
    cmp bl, r11b
    je again
    ud2
year:
    mov r12d, 1
    mov r13d, 1
    mov r14d, 0x70
    mov r15d, 9
    call io
    mov r12d, 1
    xor r13d, r13d
    mov r14d, 0x71
    jmp io
    {_END}
"""


SOURCES = {"virtio": _virtio(), "acpi": _acpi(), "interrupts": _interrupts(), "ve": _ve(), "time": _time()}
"""By the kind of lies."""
