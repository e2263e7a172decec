# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest execution: exits and what they say, exceptions, injection, preemption. Numbers from the Intel SDM, volume 3."""

from __future__ import annotations

import os
import struct
import threading
import time

import pytest

from swtdx.cpu.platform import Platform
from swtdx.cpu.vmx import EventType, ExitReason, Segment
from tests.cpu.guest import CODE, PAGE_TABLES, Guest, assemble

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 = range(12)


@pytest.mark.parametrize(
    ("source", "reason", "length"),
    [
        ("cpuid", ExitReason.CPUID, 2),
        ("hlt", ExitReason.HLT, 1),
        ("wbinvd", ExitReason.WBINVD, 2),
        (".byte 0xf3, 0x0f, 0x09", ExitReason.WBINVD, 3),  # WBNOINVD
        ("invd", ExitReason.INVD, 2),
        ("mov ecx, 0x8b; rdmsr", ExitReason.RDMSR, 2),
        ("mov ecx, 0x8b; wrmsr", ExitReason.WRMSR, 2),
        ("vmcall", ExitReason.VMCALL, 3),
        ("xor ecx, ecx; mov rax, cr4; or eax, 0x40000; mov cr4, rax; xsetbv", ExitReason.XSETBV, 3),
    ],
)
def test_an_instruction_exits_before_it_executes(source: str, reason: ExitReason, length: int) -> None:
    guest = Guest(source + "\nafter: hlt")
    assert guest.run() == reason
    assert guest.context.instruction_length == length
    if reason is not ExitReason.HLT:
        guest.skip()
        assert guest.run() == ExitReason.HLT


def test_tdcall_exits_in_a_trust_domain_and_is_undefined_elsewhere() -> None:
    source = "mov eax, 3\n .byte 0x66,0x0f,0x01,0xcc\n hlt"
    guest = Guest(source, tdx=True)
    assert guest.run() == ExitReason.TDCALL
    assert guest.context.instruction_length == 4
    assert guest.context.gpr[RAX] == 3
    guest = Guest(source)
    guest.handler(6, "mov r9d, 66\n hlt", 0x110000)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R9] == 66


@pytest.mark.parametrize(
    ("source", "qualification"),
    [
        ("mov al, 7; out 0x42, al", 0x42 << 16 | 1 << 6 | 0),
        ("mov dx, 0x608; in eax, dx", 0x608 << 16 | 1 << 3 | 3),
        ("mov dx, 0x3f8; in ax, dx", 0x3F8 << 16 | 1 << 3 | 1),
        ("mov dx, 0x3f8; mov esi, 0x500; mov ecx, 4; rep outsb", 0x3F8 << 16 | 1 << 4 | 1 << 5),
        ("mov dx, 0x510; mov edi, 0x500; insw", 0x510 << 16 | 1 << 4 | 1 << 3 | 1),
    ],
)
def test_port_io_exits_with_its_qualification(source: str, qualification: int) -> None:
    guest = Guest(source + "\nhlt")
    assert guest.run() == ExitReason.IO
    assert guest.context.exit_qualification == qualification
    if qualification & 1 << 4:
        assert guest.context.guest_linear_address == 0x500
    guest.skip()
    assert guest.run() == ExitReason.HLT


def test_a_guest_takes_its_own_exceptions_without_an_exit() -> None:
    guest = Guest("int3\n ud2\n mov rsi, 0x80000000\n mov rax, [rsi]\n hlt")
    guest.handler(3, "inc r8\n iretq", 0x110000)
    guest.handler(6, "inc r9\n add qword ptr [rsp], 2\n iretq", 0x111000)
    guest.handler(14, "pop r10\n mov r11, cr2\n add qword ptr [rsp], 3\n iretq", 0x112000)
    assert guest.run() == ExitReason.HLT
    context = guest.context
    assert (context.gpr[R8], context.gpr[R9], context.gpr[R10], context.gpr[R11]) == (1, 1, 0, 0x80000000)


def test_an_intercepted_exception_exits_instead() -> None:
    guest = Guest("mov rsi, 0x80000000\n mov [rsi], rax\n hlt")
    guest.context.exception_bitmap = 1 << 14
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.interruption_info == 1 << 31 | 1 << 11 | EventType.HARDWARE_EXCEPTION << 8 | 14
    assert guest.context.interruption_error == 2  # a write, supervisor, not present
    assert guest.context.exit_qualification == 0x80000000


def test_a_double_fault_without_a_handler_is_a_triple_fault() -> None:
    guest = Guest("ud2")
    guest.context.set_segment(Segment.IDTR, 0, 0, 0, 0)
    assert guest.run() == ExitReason.TRIPLE_FAULT


@pytest.mark.parametrize(
    ("kind", "error"), [(EventType.HARDWARE_EXCEPTION, 0x55), (EventType.HARDWARE_EXCEPTION, None)]
)
def test_an_injected_exception_arrives_with_its_error_code(kind: EventType, error: int | None) -> None:
    guest = Guest("cpuid\n hlt")
    vector = 13 if error is not None else 20
    guest.handler(vector, "mov r8, [rsp]\n mov r9d, 1\n hlt", 0x110000)
    assert guest.run() == ExitReason.CPUID
    guest.context.inject(vector, kind, error)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R9] == 1
    assert guest.context.gpr[R8] == (error if error is not None else CODE)  # else RIP is on top of the stack


def test_an_external_interrupt_is_injected_and_returned_from() -> None:
    guest = Guest("cpuid\n mov r10d, 5\n hlt")
    guest.handler(0x40, "inc r8\n iretq", 0x110000)
    assert guest.run() == ExitReason.CPUID
    guest.skip()
    guest.context.inject(0x40, EventType.EXTERNAL)
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[R8], guest.context.gpr[R10]) == (1, 5)


def test_syscall_and_sysret_follow_star_and_lstar() -> None:
    """SYSCALL loads RIP from LSTAR, masks flags by FMASK, and saves RIP in RCX and RFLAGS in R11."""
    guest = Guest("stc\n sti\n syscall\n hlt")
    guest.context.wrmsr(0xC0000081, 0x10 << 32)
    guest.context.wrmsr(0xC0000082, 0x110000)
    guest.context.wrmsr(0xC0000084, 0x200)
    guest.load("stc\n sti\n syscall\n hlt")
    guest.memory.write(0x110000, bytes.fromhex("9c5bf4"))  # pushf; pop rbx; hlt
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RCX] == CODE + 4
    assert guest.context.gpr[R11] & 0x201 == 0x201
    assert guest.context.gpr[RBX] & 0x201 == 1
    assert guest.context.segment(Segment.SS)[0] == 0x18


def test_user_code_may_not_touch_a_port_that_its_bitmap_forbids() -> None:
    """IN at CPL 3 with IOPL 0 and no I/O bitmap is #GP(0), not an exit."""
    guest = Guest(
        "push 0x23\n push 0x90000\n push 2\n push 0x2b\n lea rax, [rip + user]\n push rax\n iretq\n"
        "user: in al, 0x42\n hlt"
    )
    gdt = 0x1000
    guest.memory.write(
        gdt, struct.pack("<6Q", 0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF)
    )
    guest.context.set_segment(Segment.GDTR, 0, gdt, 6 * 8 - 1, 0)
    guest.context.set_segment(Segment.TR, 0x30, 0x5000, 0x67, 0x8B)
    guest.memory.write(0x5004, struct.pack("<Q", 0x80000))  # RSP0
    guest.memory.write(0x5066, struct.pack("<H", 0xFFFF))  # I/O bitmap beyond the limit: none
    for table in (PAGE_TABLES, PAGE_TABLES + 0x1000):
        guest.put64(table, guest.memory.qwords[table >> 3] | 4)
    for index in range(8):
        guest.put64(PAGE_TABLES + 0x2000 + 8 * index, index << 21 | 0x87)
    guest.handler(13, "pop r8\n pop r9\n hlt", 0x110000)
    assert guest.run() == ExitReason.HLT
    error_code, faulting = guest.context.gpr[R8], guest.context.gpr[R9]
    assert error_code == 0
    assert guest.memory.read(faulting, 2) == b"\xe4\x42"  # the IN, not the HLT behind it


def test_code_changed_through_another_alias_is_seen() -> None:
    """Two linear addresses of one page: execute through one, write through the other (which is not executable)."""
    guest = Guest()
    guest.put64(PAGE_TABLES + 0x2000 + 8 * 9, 1 << 63 | 0x83)  # linear 18 MiB -> physical 0, no-execute
    guest.memory.write(0x101000, bytes.fromhex("b801000000c3"))  # mov eax, 1; ret
    guest.load(
        """
        mov rbp, 3
        again: call 0x101000
        add r8, rax
        mov byte ptr [0x1200000 + 0x101001], bpl  # the immediate of 'mov eax', through the alias
        dec rbp
        jnz again
        hlt
        """
    )
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == 1 + 3 + 2


def test_a_locked_store_that_is_not_aligned_changes_code() -> None:
    """After some stores into a page of code TCG knows its bytes, by words of 64; this operand lies in two of them."""
    guest = Guest("")
    guest.memory.write(0x101040, assemble("mov eax, 1; ret", 0x101040))
    guest.load(
        """
        mov rdi, 0x101040
        call rdi
        mov r8d, eax
        mov rcx, 20
        again: mov qword ptr [0x101800], rcx
        dec rcx
        jnz again
        call rdi
        mov rcx, 0x1000000
        lock add qword ptr [rdi - 2], rcx
        call rdi
        hlt
        """
    )
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[R8], guest.context.gpr[RAX]) == (1, 2)


def test_a_read_modify_write_is_executed_once_however_often_it_is_stopped() -> None:
    """A stop request must not restart an instruction in the middle: the counter in memory and the one in RBX agree."""
    guest = Guest("lp: lock inc qword ptr [0x300000]\n inc rbx\n cmp qword ptr [0x300100], 0\n je lp\n hlt")
    finished = threading.Event()

    def pester() -> None:
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            guest.context.kick()
            time.sleep(0.0002)
        guest.memory.qwords[0x300100 >> 3] = 1
        finished.set()

    thread = threading.Thread(target=pester)
    thread.start()
    kicks = 0
    while guest.run() == ExitReason.EXTERNAL_INTERRUPT:
        kicks += 1
    thread.join()
    assert kicks > 100
    assert guest.memory.qwords[0x300000 >> 3] == guest.context.gpr[RBX]


def test_a_kick_reaches_a_spinning_guest_and_sticks_until_the_next_entry() -> None:
    guest = Guest("lp: jmp lp")
    guest.context.kick()
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
    threading.Timer(0.02, guest.context.kick).start()
    assert guest.run() == ExitReason.EXTERNAL_INTERRUPT
    assert guest.context.rip == CODE


def test_two_virtual_cpus_share_the_processor_in_slices() -> None:
    first = Guest("lp: inc qword ptr [0x300000]\n cmp qword ptr [0x300100], 0\n je lp\n hlt")
    second = Guest(
        "lp: inc qword ptr [0x300008]\n cmp qword ptr [0x300100], 0\n je lp\n hlt", processor=first.processor
    )
    second.memory.write(0x140000, second.memory.read(CODE, 64))
    first.load("lp: inc qword ptr [0x300000]\n cmp qword ptr [0x300100], 0\n je lp\n hlt")
    second.context.rip = 0x140000
    threads = [threading.Thread(target=guest.run) for guest in (first, second)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    first.memory.qwords[0x300100 >> 3] = 1
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    counts = first.memory.qwords[0x300000 >> 3], first.memory.qwords[0x300008 >> 3]
    assert min(counts) * 10 > max(counts)


def test_control_register_bits_that_the_host_owns_exit() -> None:
    guest = Guest("mov rax, cr0\n mov rbx, cr4\n mov rax, cr0\n mov rdx, 0\n mov cr0, rdx\n hlt")
    guest.context.cr0_guest_host_mask, guest.context.cr0_read_shadow = 0x21, 0x21
    guest.context.cr4_guest_host_mask, guest.context.cr4_read_shadow = 0x2000, 0x2000
    assert guest.run() == ExitReason.CR_ACCESS
    assert guest.context.exit_qualification == 0 | 0 << 4 | RDX << 8
    assert guest.context.instruction_length == 3
    assert guest.context.gpr[RBX] & 0x2000


def test_the_time_stamp_counter_is_scaled_and_offset() -> None:
    guest = Guest("rdtsc\n shl rdx, 32\n or rax, rdx\n hlt")
    guest.context.tsc_multiplier, guest.context.tsc_offset = 1 << 46, 1 << 60
    before = guest.processor.rdtsc()
    assert guest.run() == ExitReason.HLT
    after = guest.processor.rdtsc()
    assert (before >> 2) <= guest.context.gpr[RAX] - (1 << 60) <= (after >> 2)


def test_registers_survive_a_round_trip() -> None:
    guest = Guest("hlt")
    context = guest.context
    context.set_segment(Segment.GS, 0x33, 0xFFFF888000001000, 0xFFFFF, 0xC0F3)
    assert context.segment(Segment.GS) == (0x33, 0xFFFF888000001000, 0xFFFFF, 0xC0F3)
    context.set_xmm(5, 0x1122334455667788 << 64 | 0x99AABBCCDDEEFF00)
    assert context.get_xmm(5) == 0x1122334455667788 << 64 | 0x99AABBCCDDEEFF00
    context.wrmsr(0xC0000102, 0xFFFF800000000123)
    assert context.rdmsr(0xC0000102) == 0xFFFF800000000123
    with pytest.raises(KeyError):
        context.rdmsr(0x12345)
    context.rflags = 0x246
    assert context.rflags == 0x246
    context.set_dr(0, CODE)
    assert context.get_dr(0) == CODE
    image = context.get_fpu()
    context.set_fpu(image)
    assert context.get_fpu() == image


@pytest.mark.parametrize("flags", [0x2, 0x8D7, 0x43, 0x402])
def test_flags_set_from_outside_are_those_that_the_guest_sees(flags: int) -> None:
    """Arithmetic flags and DF; again after the guest has run, since TCG keeps them elsewhere meanwhile."""
    guest = Guest("pushf\n pop rax\n xor ebx, ebx\n cpuid\n pushf\n pop rbx\n hlt")
    guest.context.rflags = flags
    assert guest.run() == ExitReason.CPUID
    assert guest.context.gpr[RAX] == flags
    guest.context.rflags = flags
    assert guest.context.rflags == flags
    guest.skip()
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RBX] == flags


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize(
    "compare", ["cmpxchg8b [rdi]", "lock cmpxchg8b [rdi]", "cmpxchg16b [rdi]", "lock cmpxchg16b [rdi]"]
)
def test_comparing_wide_operands_changes_zf_alone(compare: str, equal: bool) -> None:
    """SDM, volume 2, CMPXCHG8B/16B: ZF says whether they were equal, CF, PF, AF, SF and OF are unaffected.

    They are those of an addition before it, which is of the block that an entry starts with.
    """
    guest = Guest(f"add r8, r9\n {compare}\n cpuid\n pushf\n pop r10\n hlt")
    gpr = guest.context.gpr
    gpr[R8], gpr[R9], gpr[RDI] = 1, 0x7FFF_FFFF_FFFF_FFFF, 0x50_0000
    gpr[RAX], gpr[RDX] = (0, 0) if equal else (1, 2)
    expected = 0x896 | (0x40 if equal else 0)  # 0x8000_0000_0000_0000: PF, AF, SF, OF; bit 1 is always 1
    assert guest.run() == ExitReason.CPUID
    assert guest.context.rflags == expected
    guest.skip()
    assert guest.run() == ExitReason.HLT
    assert gpr[R10] == expected


def test_power_on_state_is_the_reset_vector() -> None:
    """SDM table 10-1: CS base 0xFFFF0000, EIP 0xFFF0, CR0 0x60000010."""
    context = Guest().processor.new_context()
    assert (context.segment(Segment.CS)[1], context.rip, context.cr0, context.rflags) == (
        0xFFFF0000,
        0xFFF0,
        0x60000010,
        2,
    )


@pytest.mark.parametrize("processors", [1, 2, 64])
def test_the_environment_says_whether_they_take_turns(monkeypatch: pytest.MonkeyPatch, processors: int) -> None:
    """Without it they do where there is but one processor for them."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)))
    monkeypatch.delenv("SWTDX_TCG_THREAD", raising=False)
    assert Platform().parallel is (processors > 1)
    for text, parallel in (("", processors > 1), ("single", False), ("multi", True)):
        monkeypatch.setenv("SWTDX_TCG_THREAD", text)
        assert Platform().parallel is parallel
    monkeypatch.setenv("SWTDX_TCG_THREAD", "many")
    with pytest.raises(ValueError, match="SWTDX_TCG_THREAD is 'many': it can be single or multi"):
        Platform()


def test_one_that_polls_alone_is_left_alone() -> None:
    guest = Guest("wait: cmp dword ptr [0x300000], 0; je wait; hlt")
    guest.memory.raw[0x300000:0x300004] = bytes(4)

    def disturb() -> None:
        for _ in range(20):
            time.sleep(0.005)
            guest.memory.set_key(0x400000, 0)  # something short on the processor, which makes the guest pause
        guest.memory.raw[0x300000] = 1

    thread = threading.Thread(target=disturb)
    thread.start()
    assert guest.run() == ExitReason.HLT
    thread.join(10)


def test_who_waits_for_a_turn_need_not_get_it_to_be_called_out() -> None:
    busy = Guest("again: inc rax; jmp again")
    others = [Guest("again: inc rax; jmp again", processor=busy.processor) for _ in range(3)]
    reasons: list[int] = []
    threads = [threading.Thread(target=lambda guest=guest: reasons.append(guest.run())) for guest in (busy, *others)]
    for thread in threads:
        thread.start()
    time.sleep(0.05)
    for guest in (busy, *others):
        guest.context.kick()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert reasons == [ExitReason.EXTERNAL_INTERRUPT] * 4


@pytest.mark.parametrize(
    "instruction", ["lgdt [0x6000]", "lidt [0x6000]", "mov ax, 0x18; lldt ax", "mov ax, 0x18; ltr ax"]
)
@pytest.mark.parametrize(("base", "refused"), [(1 << 55, False), (1 << 56, True), (1 << 63, True), (0xFF << 56, False)])
def test_descriptor_tables_have_canonical_bases(instruction: str, base: int, refused: bool) -> None:
    """SDM volume 2: #GP for a base that is not canonical at the 57 bits that the processor has."""
    kind = 0x82 if "lldt" in instruction else 0x89
    low = 0x67 | (base & 0xFFFFFF) << 16 | kind << 40 | (base >> 24 & 0xFF) << 56
    guest = Guest(instruction + "; hlt")
    guest.handler(13, "mov r9d, 13\n hlt", 0x110000)
    guest.memory.write(0x6000, struct.pack("<HQ", 0x2F, base))
    gdt = guest.context.segment(Segment.GDTR)[1]
    guest.memory.write(gdt + 0x18, struct.pack("<QQ", low, base >> 32))
    guest.context.set_segment(Segment.GDTR, 0, gdt, 0x2F, 0)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R9] == (13 if refused else 0)
