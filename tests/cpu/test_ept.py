# SPDX-License-Identifier: GPL-2.0-or-later
"""The second stage: the processor walks real EPT tables, and reports what is not there (SDM volume 3, 28.2.1, 29.3)."""

from __future__ import annotations

import ctypes
import mmap
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swtdx.cpu.vmx import EventType, ExitReason
from tests.cpu.guest import CODE, EPT_TABLES, PAGE_TABLES, Guest, ept_map

RAX, RCX, RBX, RSI = 0, 1, 3, 6
GLA_VALID, FINAL = 1 << 7, 1 << 8
SHARED_ROOT = EPT_TABLES + 0x8000
HOST = 0x1000_0000


def nested_guest(source: str, *, levels: int = 4, tdx: bool = False) -> Guest:
    """A guest whose low 4 MiB lie at HOST in physical memory, page by page."""
    guest = Guest(ept=True, tdx=tdx)
    guest.memory.raw[HOST : HOST + 0x40_0000] = guest.memory.raw[:0x40_0000]
    guest.context.set_ept(guest.root | levels - 1 << 3 | 6)
    for gpa in range(0, 0x40_0000, 0x1000):
        ept_map(guest.processor, guest.root, gpa, HOST + gpa, levels=levels)
    from tests.cpu.guest import assemble

    code = assemble(source)
    guest.memory.write(HOST + CODE, code)
    guest.context.rip = CODE
    return guest


@pytest.mark.parametrize("levels", [4, 5])
def test_the_guest_runs_from_where_ept_says(levels: int) -> None:
    guest = nested_guest("mov rax, [0x200010]\n hlt", levels=levels)
    guest.put64(HOST + 0x200010, 0x1234)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RAX] == 0x1234
    assert guest.context.translate_gpa(0x200010) == (HOST + 0x200010, 7)


@pytest.mark.parametrize(("source", "access"), [("mov al, [rsi]", 1), ("mov [rsi], al", 2), ("jmp rsi", 4)])
def test_a_violation_reports_access_gpa_and_gla(source: str, access: int) -> None:
    guest = nested_guest(f"mov rsi, 0x801234\n {source}\n hlt")
    guest.put64(PAGE_TABLES + HOST + 0x2000 + 8 * 4, 0xA0_0000 | 0x83)  # linear 8 MiB is guest-physical 10 MiB
    assert guest.run() == ExitReason.EPT_VIOLATION
    context = guest.context
    assert context.exit_qualification == access | GLA_VALID | FINAL
    assert (context.guest_physical_address, context.guest_linear_address) == (0xA0_1234, 0x80_1234)
    ept_map(guest.processor, guest.root, 0xA0_1000, HOST + 0x1000)
    guest.memory.raw[HOST + 0x1234] = 0xF4  # HLT, whichever way it is reached
    assert guest.run() == ExitReason.HLT


def test_a_violation_in_the_guests_own_page_tables_is_not_final() -> None:
    guest = nested_guest("mov al, [0xffffffff80000000]\n hlt")
    guest.put64(PAGE_TABLES + HOST + 8 * 511, 0xB0_0003)
    assert guest.run() == ExitReason.EPT_VIOLATION
    assert guest.context.exit_qualification & FINAL == 0
    assert guest.context.guest_physical_address & ~0xFFF == 0xB0_0000
    assert guest.context.guest_linear_address == 0xFFFFFFFF80000000


def test_permissions_of_the_entries_are_enforced_and_reported() -> None:
    guest = nested_guest("mov al, [0x200000]\n mov [0x200000], al\n hlt")
    ept_map(guest.processor, guest.root, 0x20_0000, HOST + 0x20_0000, entry=5)
    assert guest.run() == ExitReason.EPT_VIOLATION
    assert guest.context.exit_qualification == 2 | 5 << 3 | GLA_VALID | FINAL


def test_write_without_read_is_a_misconfiguration() -> None:
    guest = nested_guest("mov al, [0x200000]\n hlt")
    ept_map(guest.processor, guest.root, 0x20_0000, HOST, entry=2)
    assert guest.run() == ExitReason.EPT_MISCONFIG


def test_an_entry_that_names_no_memory_is_a_misconfiguration_not_a_crash() -> None:
    guest = nested_guest("mov al, [0x200000]\n hlt")
    ept_map(guest.processor, guest.root, 0x20_0000, 1 << 44)
    assert guest.run() == ExitReason.EPT_MISCONFIG


def test_large_leaves() -> None:
    guest = nested_guest("mov rax, [0x654320]\n hlt")
    ept_map(guest.processor, guest.root, 0x60_0000, HOST + 0x80_0000, level=1)
    guest.put64(HOST + 0x80_0000 + 0x5_4320, 77)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RAX] == 77


@pytest.mark.parametrize(("levels", "bit"), [(4, 47), (5, 51)])
def test_the_shared_bit_selects_the_shared_ept(levels: int, bit: int) -> None:
    """The same offset, private and shared, is different memory; the page-table entry carries the bit."""
    guest = nested_guest("mov rax, [0x200000]\n mov rbx, [0x800000]\n hlt", levels=levels, tdx=True)
    guest.context.set_shared_ept(SHARED_ROOT | levels - 1 << 3 | 6, 1 << bit)
    guest.put64(PAGE_TABLES + HOST + 0x2000 + 8 * 4, 1 << bit | 0x20_0000 | 0x83)
    guest.put64(HOST + 0x20_0000, 0xAAAA)
    ept_map(guest.processor, SHARED_ROOT, 1 << bit | 0x20_0000, HOST + 0x50_0000, levels=levels, entry=3)
    guest.put64(HOST + 0x50_0000, 0xBBBB)
    assert guest.run() == ExitReason.HLT
    assert (guest.context.gpr[RAX], guest.context.gpr[RBX]) == (0xAAAA, 0xBBBB)


def test_code_is_not_fetched_from_shared_memory() -> None:
    guest = nested_guest("mov rsi, 0x800000\n jmp rsi", tdx=True)
    guest.context.set_shared_ept(SHARED_ROOT | 3 << 3 | 6, 1 << 47)
    guest.put64(PAGE_TABLES + HOST + 0x2000 + 8 * 4, 1 << 47 | 0x20_0000 | 0x83)
    ept_map(guest.processor, SHARED_ROOT, 1 << 47 | 0x20_0000, HOST)
    assert guest.run() == ExitReason.EPT_VIOLATION
    assert guest.context.exit_qualification & 7 == 4


@pytest.mark.parametrize(("entry", "convertible"), [(0, True), (1 << 63, False)])
def test_suppress_ve_in_the_shared_half_decides_who_hears_of_it(entry: int, convertible: bool) -> None:
    guest = nested_guest("mov al, [0x800000]\n hlt", tdx=True)
    guest.context.set_shared_ept(SHARED_ROOT | 3 << 3 | 6, 1 << 47)
    guest.put64(PAGE_TABLES + HOST + 0x2000 + 8 * 4, 1 << 47 | 0x20_0000 | 0x83)
    ept_map(guest.processor, SHARED_ROOT, 1 << 47 | 0x20_1000, HOST)
    ept_map(guest.processor, SHARED_ROOT, 1 << 47 | 0x20_0000, 0, entry=entry)
    assert guest.run() == ExitReason.EPT_VIOLATION
    assert guest.context.ve_convertible is convertible


def test_an_unmapped_page_is_gone_after_invept() -> None:
    guest = nested_guest("again: mov al, [0x200000]\n cpuid\n jmp again")
    assert guest.run() == ExitReason.CPUID
    guest.skip()
    assert guest.run() == ExitReason.CPUID
    ept_map(guest.processor, guest.root, 0x20_0000, 0, entry=0)
    guest.processor.invept()
    guest.skip()
    assert guest.run() == ExitReason.EPT_VIOLATION


def test_an_event_whose_delivery_faults_is_delivered_when_the_page_is_there() -> None:
    guest = nested_guest("cpuid\n hlt")
    guest.memory.write(HOST + 0x200000 + 16 * 32, guest.memory.read(0, 16))
    context = guest.context
    context.gpr[4] = 0x80_1000  # a stack that EPT does not map yet
    from tests.cpu.guest import IDT, assemble

    guest.memory.write(HOST + 0x110000, assemble("mov ebx, 32\n hlt", 0x110000))
    gate = bytes.fromhex("0000") + b"\x10\x00\x00\x8e\x11\x00" + bytes(8)
    guest.memory.write(HOST + IDT + 16 * 32, gate)
    assert guest.run() == ExitReason.CPUID
    guest.skip()
    context.inject(32, EventType.EXTERNAL)
    assert guest.run() == ExitReason.EPT_VIOLATION
    assert context.idt_vectoring_info == 1 << 31 | 32
    ept_map(guest.processor, guest.root, 0x80_0000, HOST + 0x30_0000)
    assert guest.run() == ExitReason.HLT
    assert context.gpr[RBX] == 32


def test_a_window_on_user_memory_is_the_same_memory() -> None:
    user = mmap.mmap(-1, 0x2000)
    guest = nested_guest("mov rax, [0x800008]\n mov qword ptr [0x801000], 99\n hlt")
    address = ctypes.addressof(ctypes.c_char.from_buffer(user))
    hpa = guest.memory.map_user(address, 0x2000)
    user[8:16] = (4711).to_bytes(8, "little")
    for page in (0, 0x1000):
        ept_map(guest.processor, guest.root, 0x80_0000 + page, hpa + page)
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RAX] == 4711
    assert int.from_bytes(user[0x1000:0x1008], "little") == 99


def test_memory_that_its_owner_unmapped_ends_the_run_not_the_process() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(0x1000), 3, 0x22, -1, ctypes.c_long(0))
    guest = nested_guest("mov rax, [0x800008]\n hlt")
    hpa = guest.memory.map_user(address, 0x1000)
    ept_map(guest.processor, guest.root, 0x80_0000, hpa)
    libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(0x1000))
    assert guest.run() == ExitReason.HOST_FAULT
    guest.context.rip = CODE
    guest.memory.write(HOST + CODE, b"\xf4")
    assert guest.run() == ExitReason.HLT


def test_page_tables_that_their_owner_has_taken_away_are_no_crash() -> None:
    """Before an entry the page of the next instruction is looked for, by the guest's tables in user memory."""
    user = mmap.mmap(-1, 0x2000)
    address = ctypes.addressof(ctypes.c_char.from_buffer(user))
    guest = nested_guest("cpuid\n mov al, 1\n hlt")
    directory = PAGE_TABLES + 0x2000
    user[:0x1000] = guest.memory.read(HOST + directory, 0x1000)
    user[0x1000:0x2000] = guest.memory.read(HOST + CODE, 0x1000)
    window = guest.memory.map_user(address, 0x2000)
    ept_map(guest.processor, guest.root, directory, window)
    ept_map(guest.processor, guest.root, CODE, window + 0x1000)
    assert guest.run() == ExitReason.CPUID
    guest.skip()
    mprotect = ctypes.CDLL(None).mprotect
    for access in (0, mmap.PROT_READ | mmap.PROT_WRITE):
        assert mprotect(ctypes.c_void_p(address), ctypes.c_size_t(0x1000), access) == 0
        guest.context.check_code()
    user[0x1003] = 2  # MOV AL, 2: written by the owner, and seen since the tables can be read again
    guest.context.check_code()
    assert guest.run() == ExitReason.HLT
    assert guest.context.gpr[RAX] & 0xFF == 2


def test_a_poisoned_page_is_a_machine_check() -> None:
    """A foreign write to a page stored under a private key: the owner's next access is #MC (vector 18)."""
    guest = nested_guest("mov al, [0x200000]\n cpuid\n mov al, [0x200000]\n hlt")
    guest.memory.create_key(40)
    guest.memory.set_key(HOST + 0x20_0000, 40)
    assert guest.run() == ExitReason.CPUID
    guest.skip()
    guest.memory.write(HOST + 0x20_0000, b"host was here")
    assert guest.run() == ExitReason.EXCEPTION_NMI
    assert guest.context.interruption_info == 1 << 31 | EventType.HARDWARE_EXCEPTION << 8 | 18
    guest.memory.clear_page(HOST + 0x20_0000 | 40 << 46)
    assert guest.run() == ExitReason.HLT


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 511), st.integers(0, 2**64 - 1)), min_size=1, max_size=6))
def test_random_tables_end_in_an_exit_never_in_a_crash(entries: list[tuple[int, int, int]]) -> None:
    guest = nested_guest("mov rsi, 0x200000\n lp: mov rax, [rsi]\n add rsi, 0x1000\n cmp rsi, 0x210000\n jb lp\n hlt")
    qwords = guest.memory.qwords
    tables = [guest.root]
    for _ in range(3):
        tables.append(qwords[tables[-1] >> 3] & 0x000F_FFFF_FFFF_F000)
    for level, index, value in entries:
        qwords[(tables[level] >> 3) + (index if level == 3 else 0)] = value
    guest.processor.invept()
    timer = threading.Timer(0.1, guest.context.kick)  # whatever code it finds there may well loop
    timer.start()
    assert guest.run() in set(ExitReason)
    timer.cancel()
    timer.join()


def test_after_invept_no_guest_writes_to_the_page_that_was_there() -> None:
    """KVM gives such a page back to its owner at once (kvm_flush_remote_tlbs): who runs must be past its last store."""
    stores = "mov [0x300000], rcx; inc rcx;" * 100
    guest = Guest(f"lp: {stores} cmp qword ptr [0x301000], 0; je lp; hlt", ept=True)
    for gpa in range(0, 0x302000, 0x1000):
        ept_map(guest.processor, guest.root, gpa, gpa)
    pages = 0x400000, 0x500000
    ept_map(guest.processor, guest.root, 0x300000, pages[0])
    qwords = guest.memory.qwords
    thread = threading.Thread(target=guest.run)
    thread.start()
    late = 0
    for turn in range(600):
        old, new = pages[turn % 2], pages[1 - turn % 2]
        ept_map(guest.processor, guest.root, 0x300000, new)
        guest.processor.invept()
        seen = qwords[old >> 3]
        for _ in range(20):
            late += qwords[old >> 3] != seen
    qwords[0x301000 >> 3] = 1
    thread.join(10)
    assert not thread.is_alive()
    assert late == 0
