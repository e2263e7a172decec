# SPDX-License-Identifier: GPL-2.0-or-later
"""Instructions that load segments, tables and flags, with stack or operand where no memory is.

The expectation is the processor: each is executed twice, with the memory in a slot, where the engine does it alone, and
in MMIO, where the kernel's emulator does (Linux emulates the same ones, arch/x86/kvm/emulate.c).
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from testing.long_mode import CODE, DONE, DONE_PORT, FAULT_PORT, GDT, MMIO, LongModeVm

RAM, SIZE, TARGET = 0x10_0000, 0x1000, CODE + 0x200
TOP = 0x800
SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss")
NOT_PRESENT = 0x30


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


class Bus:
    """What a VMM has at `MMIO`."""

    def __init__(self, contents: bytes) -> None:
        self.memory = bytearray(contents)
        self.accesses = 0

    def run(self, vcpu: Any, base: int) -> None:
        """Run to the report of the guest."""
        vcpu.run()
        while vcpu.exit_reason == k.Exit.MMIO:
            mmio, self.accesses = vcpu.kvm_run.mmio, self.accesses + 1
            at = mmio.phys_addr - base
            if mmio.is_write:
                self.memory[at : at + mmio.len] = bytes(mmio.data[: mmio.len])
            else:
                mmio.data[: mmio.len] = self.memory[at : at + mmio.len]
            vcpu.run()


def seen(vcpu: Any, contents: bytes | bytearray, place: int) -> dict[str, Any]:
    """What the instruction did, with addresses as offsets into its memory."""
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    found: dict[str, Any] = {"exit": vcpu.exit_reason, "memory": bytes(contents), "rflags": regs.rflags & ~(1 << 16)}
    if vcpu.exit_reason == k.Exit.IO:
        found["port"], found["data"] = vcpu.kvm_run.io.port, bytes(vcpu.io_data())
    for name in ("rax", "rbx", "rcx", "rdx", "rsp", "rbp", "rip"):
        value = getattr(regs, name)
        found[name] = value - place if place <= value <= place + SIZE else value
    for name in SEGMENTS:
        segment = getattr(sregs, name)
        found[name] = segment.selector, segment.base, segment.type if not segment.unusable else None, segment.dpl
    for name in ("ldt", "tr"):
        segment = getattr(sregs, name)
        found[name] = segment.selector, segment.base, segment.limit, segment.type if not segment.unusable else None
    found["gdt"], found["idt"] = (sregs.gdt.base, sregs.gdt.limit), (sregs.idt.base, sregs.idt.limit)
    return found


def contents_of(operand: bytes, stack: bytes) -> bytes:
    memory = bytearray(SIZE)
    memory[0x100 : 0x100 + len(operand)] = operand
    memory[TOP : TOP + len(stack)] = stack
    return bytes(memory)


def executed(kvm: Kvm, code: bytes, place: int, operand: bytes, stack: bytes, registers: dict[str, int]) -> Any:
    with LongModeVm(kvm) as guest:
        struct.pack_into("<Q", guest.memory, GDT + NOT_PRESENT, 0x00CF_1300_0000_FFFF)
        guest.load(DONE, at=TARGET)
        guest.load(code + DONE)
        contents = contents_of(operand, stack)
        guest.memory[RAM : RAM + SIZE] = contents
        wanted = {"rsp": place + TOP, "rbp": place + TOP + 0x20, "rsi": place + 0x100} | registers
        guest.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=0x202, **wanted))
        bus = Bus(contents)
        bus.run(guest.vcpu, MMIO)
        if place == MMIO:
            assert bus.accesses, "the emulator has not been asked"
            return seen(guest.vcpu, bus.memory, place)
        assert not bus.accesses
        return seen(guest.vcpu, guest.memory[RAM : RAM + SIZE], place)


def far(selector: int, offset: int = TARGET, size: int = 4) -> bytes:
    return offset.to_bytes(size, "little") + selector.to_bytes(2, "little")


SELECTORS = (0, 1, 3, 8, 11, 16, 17, 19, 0x28, NOT_PRESENT, 0x100, 0x14)
POINTERS = {"there": far(8), "data": far(16), "null": far(0), "not present": far(NOT_PRESENT), "beyond": far(0x100),
            "another level": far(11)}  # fmt: skip
FLAGS = (0, 0xCD5, 0x246, 0x4202, 0x40202, 0x200202, 0x3202)
OPERANDS: dict[str, tuple[bytes, bytes]] = {
    **{f"call far m16:32, {name}": (b"\xff\x1e", pointer) for name, pointer in POINTERS.items()},
    **{f"jmp far m16:32, {name}": (b"\xff\x2e", pointer) for name, pointer in POINTERS.items()},
    "jmp far m16:64": (b"\x48\xff\x2e", far(8, size=8)),
    "call far m16:16": (b"\x66\xff\x1e", far(8, size=2)),
    **{f"mov ds, {each:#x}": (b"\x8e\x1e", struct.pack("<H", each)) for each in SELECTORS},
    **{f"mov ss, {each:#x}": (b"\x8e\x16", struct.pack("<H", each)) for each in SELECTORS if each not in (1, 3)},
    **{f"mov fs, {each:#x}": (b"\x8e\x26", struct.pack("<H", each)) for each in SELECTORS},
    "mov m16, ds": (b"\x8c\x1e", b"\xff" * 8),
    "mov m16, cs": (b"\x8c\x0e", b"\xff" * 8),
    "lss": (b"\x0f\xb2\x06", far(16, 0x1234)),
    "lss, null": (b"\x0f\xb2\x06", far(0, 0x1234)),
    "lfs": (b"\x0f\xb4\x06", far(16, 0x12345678)),
    "lfs of 16 bits": (b"\x66\x0f\xb4\x06", far(16, 0x1234, 2)),
    "lgs, not present": (b"\x0f\xb5\x06", far(NOT_PRESENT, 1)),
    "lgdt": (b"\x0f\x01\x16", struct.pack("<HQ", 0x37, GDT)),
    "lidt": (b"\x0f\x01\x1e", struct.pack("<HQ", 0xFFF, 0x5000)),
    "sgdt": (b"\x0f\x01\x06", b""),
    "sidt": (b"\x0f\x01\x0e", b""),
}  # fmt: skip
STACKS: dict[str, tuple[bytes, bytes]] = {
    **{f"retf, {name}": (b"\xcb", pointer[:4] + pointer[4:] + bytes(2)) for name, pointer in POINTERS.items()},
    "retf of 64 bits": (b"\x48\xcb", struct.pack("<QQ", TARGET, 8)),
    "retf 16": (b"\xca\x10\x00", far(8) + bytes(2)),
    "pushfq": (b"\x9c", b""),
    "pushf": (b"\x66\x9c", b""),
    **{f"popfq {flags:#x}": (b"\x9d", struct.pack("<Q", flags)) for flags in FLAGS},
    **{f"popf {flags:#x}": (b"\x66\x9d", struct.pack("<Q", flags)) for flags in FLAGS},
    "push fs": (b"\x0f\xa0", b"\xff" * 8),
    "push gs of 16 bits": (b"\x66\x0f\xa8", b"\xff" * 8),
    **{f"pop fs {each:#x}": (b"\x0f\xa1", struct.pack("<Q", each)) for each in SELECTORS},
    "leave": (b"\xc9", struct.pack("<5Q", 1, 2, 3, 4, 0x1234)),
    "enter": (b"\xc8\x38\x02\x00", b""),
    "enter of 16 bits": (b"\x66\xc8\x38\x00\x00", b""),
    "call": (b"\xe8\xfb\x01\x00\x00", b""),
    "push imm": (b"\x68\x78\x56\x34\xf2", b""),
}


@pytest.mark.parametrize("what", OPERANDS)
def test_an_operand_in_mmio(kvm: Kvm, what: str) -> None:
    code, operand = OPERANDS[what]
    stack = {"rsp": 0xF000}  # which is memory in both cases
    ours, theirs = (executed(kvm, code, place, operand, b"", stack) for place in (MMIO, RAM))
    assert ours == theirs
    assert theirs["port"] in (DONE_PORT, FAULT_PORT)


SYSTEM_DESCRIPTORS = {
    "TSS": (0x0000_8900_7100_0067, 0), "TSS of 16 bits": (0x0000_8100_7100_002B, 0),
    "busy TSS": (0x0000_8B00_7100_0067, 0), "TSS that is not present": (0x0000_0900_7100_0067, 0),
    "LDT": (0x0000_8200_8000_0FFF, 0),
    "LDT that is not present": (0x0000_0200_8000_0FFF, 0), "high LDT": (0xFF00_8200_8000_0FFF, 0xFF00_0000),
    "LDT without a canonical base": (0x0000_8200_8000_0FFF, 0x0100_0000), "data": (0x00CF_9300_0000_FFFF, 0),
    "TSS without a canonical base": (0x0000_8900_7100_0067, 0xFE00_0000), "gate": (0x0000_8E00_0008_1000, 0),
}  # fmt: skip
SYSTEM_SELECTORS = {"null": 0, "null of another level": 3, "of the LDT": 0x44, "beyond": 0x100}


def load_system_segment(kvm: Kvm, code: bytes, place: int, what: str) -> Any:
    """Execute LLDT or LTR with its operand at ``place``: what the guest saw, and its GDT afterwards."""
    with LongModeVm(kvm) as guest:
        at = 0x40
        selectors = dict(SYSTEM_SELECTORS)
        for name, descriptor in SYSTEM_DESCRIPTORS.items():
            struct.pack_into("<QQ", guest.memory, GDT + at, *descriptor)
            selectors[name] = at
            at += 16
        sregs = guest.vcpu.get_sregs()
        sregs.gdt.limit = at - 1
        guest.vcpu.set_sregs(sregs)
        guest.load(code + DONE)
        operand = struct.pack("<H", selectors[what])
        guest.memory[RAM : RAM + 2] = operand
        guest.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2, rsp=0xF000, rsi=place))
        bus = Bus(operand)
        bus.run(guest.vcpu, MMIO)
        assert bool(bus.accesses) is (place == MMIO)
        found = seen(guest.vcpu, operand, place)
        del found["memory"]
        return found | {"table": bytes(guest.memory[GDT : GDT + at])}


@pytest.mark.parametrize("what", [*SYSTEM_DESCRIPTORS, *SYSTEM_SELECTORS])
@pytest.mark.parametrize("code", [b"\x0f\x00\x16", b"\x0f\x00\x1e"], ids=["lldt", "ltr"])
def test_system_segments_from_mmio(kvm: Kvm, code: bytes, what: str) -> None:
    ours, theirs = (load_system_segment(kvm, code, place, what) for place in (MMIO, RAM))
    assert ours == theirs
    good = {b"\x16": {"LDT", "high LDT", "null", "null of another level"}, b"\x1e": {"TSS", "TSS of 16 bits"}}[code[2:]]
    assert theirs["port"] == (DONE_PORT if what in good else FAULT_PORT), "SDM vol. 2, LLDT and LTR"


@pytest.mark.parametrize("code", [b"\x0f\x00\x17", b"\x0f\x00\x1f"], ids=["lldt", "ltr"])
def test_system_segments_are_unknown_in_real_mode(kvm: Kvm, code: bytes) -> None:
    """SDM vol. 2: #UD, which a handler at 0x1900 tells."""
    memory = mmap.mmap(-1, 0x2000)
    memory[CODE : CODE + 5] = code + DONE
    memory[0x18:0x1C] = struct.pack("<HH", 0x1900, 0)
    memory[0x1900:0x1902] = b"\xe6" + bytes([FAULT_PORT])
    with kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0, 0x2000, memory)
        vcpu = vm.create_vcpu(0)
        sregs = vcpu.get_sregs()
        sregs.cs.base, sregs.cs.selector = 0, 0
        vcpu.set_sregs(sregs)
        vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2, rsp=0x1000, rbx=0x8000))
        vcpu.run()
        assert (vcpu.exit_reason, vcpu.kvm_run.io.port) == (k.Exit.IO, FAULT_PORT)
        vcpu.close()


@pytest.mark.parametrize("selector", [1, 3])
def test_a_null_stack_of_another_level_is_refused(kvm: Kvm, selector: int) -> None:
    """SDM vol. 2, MOV: #GP(0) if RPL is not CPL. The engine accepts it, so it cannot be the model here."""
    found = executed(kvm, b"\x8e\x16", MMIO, struct.pack("<H", selector), b"", {"rsp": 0xF000})
    assert (found["port"], found["data"]) == (FAULT_PORT, b"\x0d")


@pytest.mark.parametrize("what", STACKS)
def test_a_stack_in_mmio(kvm: Kvm, what: str) -> None:
    code, stack = STACKS[what]
    faults = "retf" in what or "pop fs" in what
    if faults and executed(kvm, code, RAM, b"", stack, {})["port"] == FAULT_PORT:
        pytest.skip("the frame of the exception would go to the same stack")
    pushed = {"rbp": 0x1234_5678} if what.startswith("enter") else {}
    ours, theirs = (executed(kvm, code, place, b"", stack, pushed) for place in (MMIO, RAM))
    assert ours == theirs


REAL = {
    "pusha": (b"\x60", b""), "pushad": (b"\x66\x60", b""),
    "popa": (b"\x61", bytes(range(1, 65))), "popad": (b"\x66\x61", bytes(range(1, 65))),
    "pushf": (b"\x9c", b""), "popf": (b"\x9d", b"\xd5\x7e"), "popfd": (b"\x66\x9d", b"\xd5\x7e\x24\x00"),
    "iret": (b"\xcf", struct.pack("<HHH", 0x20, 0x120, 0x7ED7)),
    "iretd": (b"\x66\xcf", struct.pack("<III", 0x20, 0x120, 0x247ED7)),
    "retf": (b"\xcb", struct.pack("<HH", 0x20, 0x120)),
    "retfd 4": (b"\x66\xca\x04\x00", struct.pack("<II", 0x20, 0x120)),
    "call far": (b"\x9a\x20\x00\x20\x01", b""), "call far 32": (b"\x66\x9a\x20\x00\x00\x00\x20\x01", b""),
    "push ds": (b"\x1e", b""), "pop ds": (b"\x1f", b"\x34\x12"), "pop es": (b"\x07", b"\x34\x12"),
    "leave": (b"\xc9", bytes(range(1, 65))), "enter": (b"\xc8\x38\x01\x00", b""),
    "enterd": (b"\x66\xc8\x38\x01\x00", b""), "push imm": (b"\x68\x34\x12", b""), "ret": (b"\xc3", b"\x20\x02"),
    "lds": (b"\x36\xc5\x1f", b"\x78\x56\x34\x12"), "les": (b"\x36\xc4\x1f", b"\x78\x56\x34\x12"),
    "lgdt, 24 bits": (b"\x36\x0f\x01\x17", b"\xff\x00\x78\x56\x34\x12"),
    "lidt, 32 bits": (b"\x36\x66\x0f\x01\x1f", b"\xff\x03\x00\x00\x00\x00"),
    "jmp far": (b"\x36\xff\x2f", struct.pack("<HH", 0x20, 0x120)),
    "mov m16, es": (b"\x36\x8c\x07", b""), "mov es, m16": (b"\x36\x8e\x07", b"\x34\x12"),
}  # fmt: skip
REAL_PLACE = 0x9_0000


@pytest.mark.parametrize("what", REAL)
def test_in_real_mode(kvm: Kvm, what: str) -> None:
    """SS is 0x9000, where the slot has an end or has not; SP and BX are 0x800."""
    code, stack = REAL[what]
    results = []
    for slot in (REAL_PLACE, REAL_PLACE + SIZE):
        memory = mmap.mmap(-1, REAL_PLACE + SIZE)
        memory[CODE : CODE + len(code) + 2] = code + DONE
        memory[0x1220:0x1222] = memory[0x0220:0x0222] = DONE  # 0120:0020 and 0000:0220
        contents = contents_of(b"", stack)
        memory[REAL_PLACE:] = contents
        with kvm.create_vm() as vm:
            vm.set_user_memory_region(0, 0, slot, memory)
            vcpu = vm.create_vcpu(0)
            sregs = vcpu.get_sregs()
            sregs.cs.base, sregs.cs.selector = 0, 0
            sregs.ss.base, sregs.ss.selector = REAL_PLACE, REAL_PLACE >> 4
            vcpu.set_sregs(sregs)
            values = {name: 0x11111111 * n for n, name in enumerate(("rax", "rcx", "rdx", "rsi", "rdi"), 1)}
            vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2, rsp=TOP, rbp=TOP + 8, rbx=TOP, **values))
            bus = Bus(contents)
            bus.run(vcpu, REAL_PLACE)
            assert bool(bus.accesses) is (slot == REAL_PLACE)
            results.append(seen(vcpu, bus.memory if bus.accesses else memory[REAL_PLACE:], 1 << 40))
            vcpu.close()
    assert results[0] == results[1]
    assert results[1]["port"] == DONE_PORT


def test_a_nested_enter_is_left_to_user_space(kvm: Kvm) -> None:
    """em_enter of arch/x86/kvm/emulate.c."""
    with LongModeVm(kvm) as guest:
        guest.load(b"\xc8\x38\x02\x01" + DONE)
        guest.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2, rsp=MMIO + TOP, rbp=MMIO + TOP + 0x20))
        Bus(bytes(SIZE)).run(guest.vcpu, MMIO)
        assert guest.vcpu.exit_reason == k.Exit.INTERNAL_ERROR


def test_a_gate_is_left_to_user_space(kvm: Kvm) -> None:
    with LongModeVm(kvm) as guest:
        guest.load(b"\xff\x2e" + DONE)
        guest.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2, rsp=0xF000, rsi=MMIO))
        bus = Bus(far(0x28) + bytes(8))
        bus.run(guest.vcpu, MMIO)
        assert guest.vcpu.exit_reason == k.Exit.INTERNAL_ERROR
        assert guest.vcpu.get_sregs().cs.selector == 8
