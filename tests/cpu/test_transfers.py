# SPDX-License-Identifier: GPL-2.0-or-later
"""Control transfers between privilege levels: fast system calls, and with whose rights stacks are used.

Expectations are the Intel SDM's: volume 2 (SYSENTER, SYSEXIT, SYSCALL, SYSRET, RET, IRET, CALL), volume 3, section 4.6
(which accesses are the supervisor's).
"""

from __future__ import annotations

import struct

import pytest

from swtdx.cpu.vmx import ExitReason, Segment
from tests.cpu.guest import FLAT_DATA, GDT, PAGE_TABLES, SELECTOR_CODE, SELECTOR_DATA, Guest, assemble

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 = range(12)
USER_32, USER_DATA, USER_64 = 0x20 | 3, 0x28 | 3, 0x30 | 3
USER_DATA_64 = 0x38 | 3
TSS = 0x2000
KERNEL_STACK = 0x80000
USER_STACK = 0x40_0000 + 0x8000
USER_CODE = 0x40_0000
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
STAR, LSTAR, FMASK = 0xC0000081, 0xC0000082, 0xC0000084
IF, AC, VM, NT = 1 << 9, 1 << 18, 1 << 17, 1 << 14
GP = 13


class TwoLevels(Guest):
    """A guest with user segments and a user page of 2 MiB at :data:`USER_CODE`; handlers leave their vector in R8."""

    def __init__(self, source: str, *, mode: int = 64, user: bool = True, origin: int | None = None) -> None:
        super().__init__()
        self.put64(PAGE_TABLES, PAGE_TABLES + 0x1007)
        self.put64(PAGE_TABLES + 0x1000, PAGE_TABLES + 0x2007)
        self.put64(PAGE_TABLES + 0x2000 + 8 * (USER_CODE >> 21), USER_CODE | 0x87)
        user_code_32, user_data, user_code_64 = 0x00CFFB000000FFFF, 0x00CFF3000000FFFF, 0x00AFFB000000FFFF
        segments = [0, 0, 0x00AF9B000000FFFF, 0x00CF93000000FFFF, user_code_32, user_data, user_code_64, user_data]
        segments += [0x0000_8900_0000_0067 | TSS << 16, 0]
        self.memory.raw[GDT : GDT + 80] = struct.pack("<10Q", *segments)
        context = self.context
        context.set_segment(Segment.GDTR, 0, GDT, 8 * len(segments) - 1, 0)
        context.set_segment(Segment.TR, 0x40, TSS, 0x67, 0x8B)
        self.put64(TSS + 8, KERNEL_STACK << 32)  # RSP0, unaligned in the TSS
        self.put64(TSS, (KERNEL_STACK & 0xFFFFFFFF) << 32)
        context.set_msr_bitmap(bytes(4096))
        self.handler(6, "mov r8d, 6\n hlt", 0x110000)
        self.handler(GP, "pop r9\n mov r8d, 13\n hlt", 0x111000)
        self.handler(14, "pop r9\n mov r8d, 14\n mov r10, cr2\n hlt", 0x112000)
        if mode == 32:
            source = ".code32\n" + source
        self.load(source, origin or (USER_CODE if user else 0x100000))
        if user:
            context.set_segment(
                Segment.CS, USER_64 if mode == 64 else USER_32, 0, 0xFFFFFFFF, 0xA0FB if mode == 64 else 0xC0FB
            )
            for segment in (Segment.SS, Segment.DS, Segment.ES):
                context.set_segment(segment, USER_DATA, 0, 0xFFFFFFFF, 0xC0F3)
            context.gpr[RSP] = USER_STACK
        context.rflags = 0x202

    def set_msrs(self, values: dict[int, int]) -> None:
        for index, value in values.items():
            self.context.wrmsr(index, value)


def selectors(guest: Guest) -> tuple[int, int]:
    return guest.context.segment(Segment.CS)[0], guest.context.segment(Segment.SS)[0]


@pytest.mark.parametrize(("mode", "user"), [(64, True), (32, True), (64, False)])
def test_sysenter_enters_the_kernel(mode: int, user: bool) -> None:
    guest = TwoLevels("sysenter\n ud2", mode=mode, user=user)
    guest.memory.write(0x120000, b"\xf4")
    guest.set_msrs({SYSENTER_CS: SELECTOR_CODE, SYSENTER_ESP: KERNEL_STACK, SYSENTER_EIP: 0x120000})
    assert guest.run() == ExitReason.HLT
    assert (guest.context.rip, guest.context.gpr[RSP]) == (0x120000, KERNEL_STACK)
    assert selectors(guest) == (SELECTOR_CODE, SELECTOR_DATA)
    assert not guest.context.rflags & IF
    assert guest.context.segment(Segment.CS)[3] & 0xF0FF == 0xA09B
    assert guest.context.segment(Segment.SS)[3] & 0xF0FF == FLAT_DATA


@pytest.mark.parametrize("selector", [0, 3])
def test_sysenter_without_a_segment_is_a_protection_fault(selector: int) -> None:
    guest = TwoLevels("sysenter")
    guest.set_msrs({SYSENTER_CS: selector})
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[R8], guest.context.gpr[R9]) == (GP, 0)


def legacy(source: str, *, protected: bool) -> Guest:
    """A 32-bit guest without paging, or one in real mode."""
    guest = Guest()
    context = guest.context
    context.efer, context.cr4 = 0, 0x600
    context.cr0 = 0x21 if protected else 0x20
    for segment in (Segment.ES, Segment.SS, Segment.DS):
        context.set_segment(segment, SELECTOR_DATA, 0, 0xFFFFFFFF, FLAT_DATA)
    context.set_segment(Segment.CS, SELECTOR_CODE, 0, 0xFFFFFFFF, 0xC09B)
    context.set_msr_bitmap(bytes(4096))
    guest.memory.write(0x100000, assemble(source, 0x100000, 32))
    context.rip = 0x100000
    return guest


def test_sysenter_and_sysexit_in_legacy_protected_mode() -> None:
    guest = legacy("mov ecx, 0x8000\n mov edx, 0x130000\n sysexit", protected=True)
    guest.memory.write(0x120000, b"\xf4")
    guest.memory.write(0x130000, b"\x0f\x34")
    for index, value in {SYSENTER_CS: 0x10, SYSENTER_ESP: 0x7000, SYSENTER_EIP: 0x120000}.items():
        guest.context.wrmsr(index, value)
    assert guest.run() == ExitReason.HLT
    assert (guest.context.rip, guest.context.gpr[RSP], guest.context.gpr[RCX]) == (0x120000, 0x7000, 0x8000)
    assert guest.context.segment(Segment.CS)[3] & 0xF0FF == 0xC09B


@pytest.mark.parametrize("instruction", ["sysenter", "sysexit"])
def test_fast_system_calls_fault_in_real_mode(instruction: str) -> None:
    guest = legacy(instruction, protected=False)
    guest.context.exception_bitmap = 1 << GP | 1 << 6
    guest.context.wrmsr(SYSENTER_CS, 0x10)
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.interruption_info & 0xFF == GP


@pytest.mark.parametrize("wide", [True, False])
def test_sysexit_returns_to_the_user(wide: bool) -> None:
    high = 0x1234_5678 << 32 if not wide else 0
    source = f"""
        mov rcx, {USER_STACK | high:#x}
        mov rdx, {USER_CODE | high:#x}
        {".byte 0x48" if wide else ""}
        .byte 0x0f, 0x35
    """
    guest = TwoLevels(source, user=False)
    guest.memory.write(USER_CODE, b"\x0f\x0b")
    guest.set_msrs({SYSENTER_CS: SELECTOR_CODE})
    guest.context.exception_bitmap = 1 << 6
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert (guest.context.rip, guest.context.gpr[RSP]) == (USER_CODE, USER_STACK)
    assert selectors(guest) == ((USER_64, USER_DATA_64) if wide else (USER_32, USER_DATA))
    assert guest.context.segment(Segment.CS)[3] & 0xF0FF == (0xA0FB if wide else 0xC0FB)
    assert guest.context.segment(Segment.SS)[3] & 0xF0FF == 0xC0F3


@pytest.mark.parametrize(
    ("setting", "user"),
    [
        ({"rcx": 1 << 47}, False),
        ({"rdx": 1 << 63}, False),
        ({"cs": 0}, False),
        ({}, True),
    ],
    ids=["stack", "target", "no segment", "from the user"],
)
def test_sysexit_faults(setting: dict[str, int], user: bool) -> None:
    source = f"mov rcx, {setting.get('rcx', 0):#x}\n mov rdx, {setting.get('rdx', 0):#x}\n .byte 0x48, 0x0f, 0x35"
    guest = TwoLevels(source, user=user)
    guest.set_msrs({SYSENTER_CS: setting.get("cs", SELECTOR_CODE)})
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[R8], guest.context.gpr[R9]) == (GP, 0)


def test_syscall_is_undefined_in_compatibility_mode() -> None:
    guest = TwoLevels("syscall", mode=32)
    guest.set_msrs({STAR: SELECTOR_CODE << 32, LSTAR: 0x120000})
    guest.context.efer |= 1
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == 6


@pytest.mark.parametrize("wide", [True, False])
def test_sysret_takes_no_reserved_flags(wide: bool) -> None:
    guest = TwoLevels(
        f"mov ecx, {USER_CODE:#x}\n mov r11, -1\n {'.byte 0x48' if wide else ''}\n .byte 0x0f, 0x07", user=False
    )
    guest.memory.write(USER_CODE, b"\x0f\x0b")
    guest.set_msrs({STAR: USER_32 << 48})
    guest.context.efer |= 1
    guest.context.exception_bitmap = 1 << 6 | 1 << 1
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.rip == USER_CODE
    assert guest.context.rflags & ~(1 << 16 | 1 << 8) == 0x3C7FD7 & ~(1 << 8)
    assert selectors(guest) == (USER_64 if wide else USER_32, USER_DATA)


def test_sysret_to_an_address_that_is_not_canonical_faults_in_the_kernel() -> None:
    guest = TwoLevels("mov rcx, 0x800000000000\n .byte 0x48, 0x0f, 0x07", user=False)
    guest.set_msrs({STAR: USER_32 << 48})
    guest.context.efer |= 1
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[R8], guest.context.gpr[RCX]) == (GP, 1 << 47)


@pytest.mark.parametrize("index", [SYSENTER_ESP, SYSENTER_EIP, LSTAR, 0xC0000100, 0xC0000101, 0xC0000102])
def test_msrs_hold_canonical_addresses(index: int) -> None:
    guest = TwoLevels(f"mov ecx, {index:#x}\n xor eax, eax\n mov edx, 0x1000000\n wrmsr\n hlt", user=False)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == GP


SMAP, SMEP = 1 << 21, 1 << 20
RETURNS = {
    "lret": f"push {USER_64}\n lea rax, [rip + 1f]\n push rax\n rex.W lret\n 1: mov r8d, 1\n hlt",
    "lret n": f"push {USER_64}\n lea rax, [rip + 1f]\n push rax\n rex.W lret 8\n 1: mov r8d, 1\n hlt",
    "iret": f"""mov rcx, rsp\n push {USER_DATA}\n push rcx\n push 0x202\n push {USER_64}
        lea rax, [rip + 1f]\n push rax\n iretq\n 1: mov r8d, 1\n hlt""",
    "lcall": f"""lea rax, [rip + 1f]\n push {USER_64}\n push rax\n rex.W lcall [rsp]\n ud2\n 1: mov r8d, 1\n hlt""",
}


@pytest.mark.parametrize("name", sorted(RETURNS))
def test_a_user_transfer_uses_the_stack_as_the_user(name: str) -> None:
    guest = TwoLevels(RETURNS[name])
    guest.context.cr4 |= SMAP | SMEP
    guest.context.exception_bitmap = 1 << GP
    assert guest.run() == ExitReason.EXCEPTION_NMI  # HLT in user mode
    assert guest.context.gpr[R8] == 1


@pytest.mark.parametrize("source", ["rex.W lret", "iretq", "lret", "iretd"])
def test_a_user_return_from_a_supervisor_stack_is_the_users_fault(source: str) -> None:
    guest = TwoLevels(source)
    guest.context.gpr[RSP] = 0x60000  # a supervisor page with a good frame
    for offset, value in enumerate((USER_CODE, USER_64, 0x202, USER_STACK, USER_DATA)):
        guest.put64(0x60000 + 8 * offset, value)
    assert guest.run() == ExitReason.HLT
    context = guest.context
    assert (context.gpr[R8], context.gpr[R9], context.gpr[R10]) == (14, 5, 0x60000)  # present, user, read


def test_a_user_call_to_a_supervisor_stack_is_the_users_fault() -> None:
    guest = TwoLevels(
        f"lea rax, [rip + 1f]\n mov [{USER_STACK:#x}], rax\n mov dword ptr [{USER_STACK + 8:#x}], {USER_64}\n"
        f"mov esp, 0x60000\n rex.W lcall [{USER_STACK:#x}]\n 1: hlt"
    )
    assert guest.run() == ExitReason.HLT
    context = guest.context
    assert (context.gpr[R8], context.gpr[R9], context.gpr[R10]) == (14, 7, 0x60000 - 8)


def test_the_kernel_returns_through_a_user_stack_only_with_ac() -> None:
    source = f"""
        mov rcx, {USER_STACK:#x}
        stac
        mov rsp, rcx
        push {SELECTOR_CODE}
        lea rax, [rip + 1f]
        push rax
        rex.W lret
    1:  mov r11d, 1
        push {SELECTOR_CODE}
        lea rax, [rip + 2f]
        push rax
        clac
        rex.W lret
    2:  hlt
    """
    guest = TwoLevels(source, user=False)
    guest.context.cr4 |= SMAP
    guest.context.exception_bitmap = 1 << 14
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.gpr[R11] == 1
    assert guest.context.exit_qualification == USER_STACK - 16
    assert guest.context.interruption_error == 1


def test_descriptor_tables_in_user_pages_fault_under_smap_whatever_ac() -> None:
    guest = TwoLevels(f"stac\n mov eax, {SELECTOR_DATA}\n mov ds, eax\n hlt", user=False)
    guest.memory.raw[USER_CODE + 0x1000 : USER_CODE + 0x1050] = guest.memory.raw[GDT : GDT + 80]
    guest.context.set_segment(Segment.GDTR, 0, USER_CODE + 0x1000, 79, 0)
    guest.context.cr4 |= SMAP
    guest.context.exception_bitmap = 1 << 14
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.exit_qualification == USER_CODE + 0x1000 + SELECTOR_DATA


def test_iopl_that_the_guest_lowers_is_lowered_after_the_vmm_wrote_state() -> None:
    """CLI in ring 3 is #GP where CPL > IOPL (SDM volume 2, CLI), also if the VMM loaded a higher IOPL."""
    guest = TwoLevels(RETURNS["iret"].replace("mov r8d, 1", "cli\n mov r8d, 1"), user=False, origin=USER_CODE)
    guest.context.rflags = 2 | 3 << 12
    guest.context.exception_bitmap = 1 << GP
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.gpr[R8] == 0


@pytest.mark.parametrize("register", ["fs", "gs"])
@pytest.mark.parametrize("leave", ["iretq", "retfq"])
def test_a_return_to_the_user_leaves_the_bases_of_segments(leave: str, register: str) -> None:
    """A segment of the inner level becomes null (SDM volume 2, IRET); its base stays, as kvm-unit-tests rely on."""
    data = USER_CODE + 0x1000
    flags = "pushfq" if leave == "iretq" else ""
    guest = TwoLevels(
        f"""
        mov eax, {SELECTOR_DATA}
        mov {register}, ax
        mov ecx, {0xC0000100 if register == "fs" else 0xC0000101:#x}
        mov eax, {data:#x}
        xor edx, edx
        wrmsr
        push {USER_DATA}
        push {USER_STACK:#x}
        {flags}
        push {USER_64}
        push {USER_CODE:#x}
        {leave}
        """,
        user=False,
    )
    guest.memory.write(USER_CODE, assemble(f"mov edi, {register}\n mov rbx, {register}:[0]\n hlt", USER_CODE))
    guest.put64(data, 0x1122334455667788)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == GP  # the user's HLT
    assert (guest.context.gpr[RDI], guest.context.gpr[RBX]) == (0, 0x1122334455667788)


@pytest.mark.parametrize(("prefix", "size"), [("data16", 2), ("", 4), ("rex.w", 8)])
def test_a_far_call_of_64_bit_code_uses_the_whole_stack_pointer(prefix: str, size: int) -> None:
    """Whatever its operand size (SDM volume 1, 6.2.5); RET takes what CALL has stored."""
    high, pointer = 4 << 30, 0x3000
    guest = Guest(
        f"{prefix} call fword ptr [{pointer}]\n there: hlt",
    )
    guest.put64(PAGE_TABLES + 0x1000 + 8 * 4, PAGE_TABLES + 0x2003)
    target = 0x8000  # below 64 KiB: a pointer of 16 bits reaches it
    guest.memory.write(
        target,
        assemble(f"mov rbx, rsp\n {prefix if prefix != 'rex.w' else ''} {'retfq' if size == 8 else 'retf'}", target),
    )
    guest.memory.write(0x100, b"\xf4")
    guest.memory.write(pointer, struct.pack({2: "<HH", 4: "<IH", 8: "<QH"}[size], target, SELECTOR_CODE))
    guest.context.gpr[RSP] = high + 0x50000
    guest.memory.raw[0x50000 - 32 : 0x50000] = b"\xee" * 32
    back = guest.context.rip + len(assemble(f"{prefix} call fword ptr [{pointer}]"))
    if size == 2:
        guest.memory.write(back & 0xFFFF, b"\xf4")
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RBX] == high + 0x50000 - 2 * size
    assert guest.context.gpr[RSP] == high + 0x50000
    stored = bytes(guest.memory.raw[0x50000 - 2 * size : 0x50000])
    mask = (1 << 8 * size) - 1
    assert stored == (back & mask).to_bytes(size, "little") + SELECTOR_CODE.to_bytes(size, "little")


def test_a_far_call_beyond_the_limit_stores_nothing() -> None:
    guest = TwoLevels("call 0x23:0x20000", mode=32)
    limited = 0x0040FB000000FFFF  # a limit of 64 KiB
    guest.put64(GDT + (USER_32 & ~7), limited)
    guest.memory.raw[USER_STACK - 16 : USER_STACK] = b"\xee" * 16
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[R8], guest.context.gpr[R9]) == (GP, 0)
    assert bytes(guest.memory.raw[USER_STACK - 16 : USER_STACK]) == b"\xee" * 16


def test_enter_faults_where_its_new_stack_pointer_would() -> None:
    """Although it does not write there (SDM volume 2, ENTER)."""
    guest = TwoLevels("enter 0x7ff8, 0\n ud2")
    guest.put64(PAGE_TABLES + 0x1000 + 8 * 4, PAGE_TABLES + 0x2007)
    guest.context.gpr[RSP] = (4 << 30) + USER_CODE + 0x8000
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[R8] == 6, "that is where the page begins"
    page = 16 << 20
    guest = TwoLevels("enter 0x7ff9, 0\n ud2")
    guest.put64(PAGE_TABLES + 0x2000 + 8 * (page >> 21), page | 0x87)
    guest.put64(PAGE_TABLES + 0x2000 + 8 * ((page >> 21) - 1), 0)
    guest.context.gpr[RSP] = page + 0x8000
    guest.memory.raw[page + 0x7FF8 : page + 0x8000] = b"\xee" * 8
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[R8], guest.context.gpr[R9], guest.context.gpr[R10]) == (14, 6, page - 1)
    assert bytes(guest.memory.raw[page + 0x7FF8 : page + 0x8000]) == b"\xee" * 8
