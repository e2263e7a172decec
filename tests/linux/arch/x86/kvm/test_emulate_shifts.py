# SPDX-License-Identifier: GPL-2.0-or-later
"""What KVM's emulator has for one operand in memory (opcode_table and twobyte_table of arch/x86/kvm/emulate.c).

Each instruction is executed with its operand in a slot, by the engine, and in MMIO, by the emulator. Flags that the
manual (SDM vol. 2) leaves undefined are not compared. What KVM's tables lack ends the guest's run.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import pytest

from swtdx.cpu.platform import host_features
from swtdx.machine import boot, open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from swtdx.uapi.layout import address_of
from swtdx.uapi.release import KernelRelease
from testing.long_mode import DATA, MMIO, UD, LongModeVm, move, write_cr
from tests.cpu.guest import assemble

CF, PF, AF, ZF, SF, OF = 1, 4, 0x10, 0x40, 0x80, 0x800
STATUS = CF | PF | AF | ZF | SF | OF
BEFORE, AROUND = 128, 512  # bytes in front of the operand, and in all
OPERAND = bytes(range(0x71, 0xB1))
ONE, MORE = STATUS & ~AF, CF | PF | ZF | SF  # shifts: OF is defined for a count of 1
NUMBERS = (0, 3, 31, 63, 64, 77, 300, -1 & 2**64 - 1, -70 & 2**64 - 1, 0xFFBA, 0x12345678_9000_0051)

ROTATES, SHIFTS, SIZES = ("rol", "ror", "rcl", "rcr"), ("shl", "shr", "sar"), ("byte", "word", "dword", "qword")
COUNTS = [
    ("byte", "5"), ("byte", "8"), ("byte", "9"), ("word", "17"), ("dword", "31"), ("dword", "32"), ("qword", "63"),
    ("dword", "cl"), ("qword", "cl"),
]  # fmt: skip
REGISTERS = ("eax", "rax", "ax")
CONDITIONS = ["o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g"]


def every(text: str, defined: int, **words: Iterable[str]) -> dict[str, int]:
    """The text with each combination of the words."""
    return {text.format(**dict(zip(words, each, strict=True))): defined for each in product(*words.values())}


FORMS: dict[str, int] = {  # flags that are defined
    **every("{name} {size} ptr [rsi], 1", CF | OF, name=ROTATES, size=SIZES),
    **every("{name} {size} ptr [rsi], 1", ONE, name=SHIFTS, size=SIZES),
    **{text: CF for size, n in COUNTS for text in every(f"{{name}} {size} ptr [rsi], {n}", 0, name=ROTATES)},
    **{
        text: MORE
        for size, n in (("byte", "5"), ("word", "15"), *COUNTS[4:])
        for text in every(f"{{name}} {size} ptr [rsi], {n}", 0, name=SHIFTS)
    },
    **every("{lock}{name} [rsi], {register}", CF, lock=("", "lock "), name=("bts", "btr", "btc"), register=REGISTERS),
    **every("bt [rsi], {register}", CF, register=REGISTERS),
    **every("{name} {size} ptr [rsi], 77", CF, name=("bt", "bts", "btr", "btc"), size=SIZES[1:]),
    **every("set{condition} byte ptr [rsi]", STATUS, condition=CONDITIONS),
    **every("cmov{condition} {register}, [rsi]", STATUS, condition=CONDITIONS, register=REGISTERS),
    **every("movbe {register}, [rsi]", STATUS, register=REGISTERS),
    **every("movbe [rsi], {register}", STATUS, register=REGISTERS),
    "cmpxchg8b [rsi]": STATUS, "lock cmpxchg8b [rsi]": STATUS,
    "sldt [rsi]": STATUS, "str [rsi]": STATUS, "smsw [rsi]": STATUS, "fnstcw [rsi]": STATUS, "fnstsw [rsi]": STATUS,
}  # fmt: skip
VECTORS = [
    "movups xmm9, [rsi]", "movups [rsi], xmm1", "movapd xmm1, [rsi]", "movaps [rsi], xmm1", "movupd xmm1, [rsi]",
    "movdqu xmm1, [rsi]", "movdqa [rsi], xmm1", "movntps [rsi], xmm1", "movntpd [rsi], xmm1", "movntdq [rsi], xmm1",
    "movntdqa xmm1, [rsi]", "movq mm1, [rsi]", "movq [rsi], mm1",
]  # fmt: skip
AVX = [
    "vmovups ymm9, [rsi]", "vmovups [rsi], ymm1", "vmovups xmm1, [rsi]", "vmovupd [rsi], xmm1", "vmovaps ymm1, [rsi]",
    "vmovapd [rsi], ymm1", "vmovdqu ymm1, [rsi]", "vmovdqu [rsi], ymm9", "vmovdqa xmm1, [rsi]", "vmovntps [rsi], ymm1",
    "vmovntpd [rsi], ymm1", "vmovntdq [rsi], ymm1", "vmovntdqa ymm1, [rsi]",
]  # fmt: skip
NOT_EMULATED = [
    "movd xmm1, [rsi]", "movq xmm1, [rsi]", "movq [rsi], xmm1", "movd [rsi], mm1", "movss xmm1, [rsi]",
    "movsd [rsi], xmm1", "movhps xmm1, [rsi]", "paddb xmm1, [rsi]", "popcnt eax, [rsi]", "crc32 eax, dword ptr [rsi]",
    "cmpxchg16b [rsi]", "fld qword ptr [rsi]", "fstp dword ptr [rsi]", "fild word ptr [rsi]", "fldcw [rsi]",
    "ldmxcsr [rsi]", "movntq [rsi], mm1", "lddqu xmm1, [rsi]",
]  # fmt: skip
SSE_ON = write_cr(4, 0x620)


@pytest.fixture(scope="module")
def guest() -> Iterator[LongModeVm]:
    with Kvm(open_kernel("emulated")) as kvm, LongModeVm(kvm) as made:
        yield made


def executed(guest: LongModeVm, code: bytes, address: int, operand: bytes, flags: int, **registers: int) -> Any:
    """What an instruction with an operand at ``address`` makes of registers, flags and memory."""
    start = (DATA if address == DATA else MMIO) + (0x400 - BEFORE)
    memory = bytearray(AROUND)
    memory[BEFORE : BEFORE + len(operand)] = operand
    guest.memory[DATA + 0x400 - BEFORE : DATA + 0x400 - BEFORE + AROUND] = bytes(memory)
    guest.start(code, rsi=start + BEFORE, rbx=start + BEFORE, **registers)
    regs = guest.vcpu.get_regs()
    regs.rflags = 2 | flags
    guest.vcpu.set_regs(regs)
    mmio = guest.vcpu.kvm_run.mmio
    while guest.step() is k.Exit.MMIO:
        at = mmio.phys_addr - start
        assert 0 <= at <= AROUND - mmio.len
        if mmio.is_write:
            memory[at : at + mmio.len] = bytes(mmio.data[: mmio.len])
        else:
            mmio.data[: mmio.len] = memory[at : at + mmio.len]
    if address == DATA:
        memory[:] = guest.memory[DATA + 0x400 - BEFORE : DATA + 0x400 - BEFORE + AROUND]
    regs = guest.vcpu.get_regs()
    assert guest.vcpu.exit_reason == k.Exit.IO, guest.vcpu.exit_reason
    return guest.vcpu.kvm_run.io.port, regs.rax, regs.rdx, regs.rflags, bytes(memory)


def near(text: str, rax: int) -> bool:
    """Whether a bit number lies within the memory around the operand."""
    bits = {"eax": 32, "rax": 64, "ax": 16}.get(text.rpartition(" ")[2])
    if bits is None:
        return True
    number = rax & (1 << bits) - 1
    return -8 * BEFORE <= (number - (1 << bits) if number >> bits - 1 else number) < 8 * (AROUND - BEFORE - 8)


@pytest.mark.parametrize("text", FORMS)
def test_it_is_what_the_processor_does(guest: LongModeVm, text: str) -> None:
    code, defined = assemble(text), FORMS[text]
    for number, rax in enumerate(NUMBERS):
        if ("bt " in text or "bts" in text or "btr" in text or "btc" in text) and not near(text, rax):
            continue
        before = (STATUS, 0, CF, ZF | SF, OF, SF | PF)[number % 6]
        seen = [
            executed(guest, code, at, OPERAND, before, rax=rax, rdx=0x78777675, rcx=2 + number, rdi=5)
            for at in (DATA, MMIO)
        ]
        here, there = ((port, a, d, flags & defined, memory) for port, a, d, flags, memory in seen)
        assert here == there, hex(rax)


def test_cmpxchg8b_that_fits(guest: LongModeVm) -> None:
    low, high = (int.from_bytes(OPERAND[at : at + 4], "little") for at in (0, 4))
    code = assemble("cmpxchg8b [rsi]")
    here, there = (executed(guest, code, at, OPERAND, 0, rax=low, rdx=high, rcx=0xC0FFEE) for at in (DATA, MMIO))
    assert here[3] & there[3] & ZF
    assert here[1:3] == there[1:3]
    assert here[4][BEFORE + 4 : BEFORE + 8] == there[4][BEFORE + 4 : BEFORE + 8] == (0xC0FFEE).to_bytes(4, "little")


def test_xlat(guest: LongModeVm) -> None:
    for index in (0, 1, 63, 0xFFFF_FF10):
        for text in ("xlatb", "addr32 xlatb"):
            here, there = (executed(guest, assemble(text), at, OPERAND, 0, rax=index) for at in (DATA, MMIO))
            assert here == there


def test_movbe_without_the_feature() -> None:
    """em_movbe: #UD; an operand in memory that is there is the processor's own business."""
    with Kvm(open_kernel("emulated")) as kvm:
        cpuid = kvm.supported_cpuid()
        for entry in cpuid:
            if entry.function == 1:
                entry.ecx &= ~(1 << 22)
        with LongModeVm(kvm, cpuid) as guest:
            assert guest.run(assemble("movbe eax, [rsi]"), rsi=MMIO) == UD


@pytest.mark.parametrize("text", VECTORS)
def test_vector_moves(guest: LongModeVm, text: str) -> None:
    before = (
        SSE_ON + move(0, 0x1122334455667788) + bytes.fromhex("660f6ec8 66440f6ec8 0f6ec8")
    )  # movd to xmm1, xmm9, mm1
    after = bytes.fromhex("660f7ec8") if "xmm1" in text else bytes.fromhex("66440f7ec8" if "xmm9" in text else "0f7ec8")
    here, there = (executed(guest, before + assemble(text) + after, at, OPERAND, 0) for at in (DATA, MMIO))
    assert here == there
    assert here[0] == 0xE1


def test_an_mmx_move_turns_the_x87_stack(guest: LongModeVm) -> None:
    """The registers are the x87 stack's by their place in it: TOP becomes 0, and all are valid."""
    setup = SSE_ON + bytes.fromhex("dbe3 d9e8 d9ee d9eb")  # fninit; fld1; fldz; fldpi: TOP is 5
    states = []
    for at in (DATA, MMIO):
        executed(guest, setup + assemble("movq mm2, [rsi]"), at, OPERAND, 0)
        fpu = guest.vcpu.get_fpu()
        states.append((fpu.fsw >> 11 & 7, fpu.ftwx, bytes(fpu.fpr)))
    assert states[0] == states[1]
    assert states[0][:2] == (0, 0xFF)


@pytest.mark.parametrize("text", NOT_EMULATED)
def test_what_kvm_cannot_emulate(guest: LongModeVm, text: str) -> None:
    guest.start(SSE_ON + assemble(text), rsi=MMIO + 0x400)
    assert guest.step() is k.Exit.INTERNAL_ERROR
    assert guest.vcpu.kvm_run.internal.suberror == k.KVM_INTERNAL_ERROR_EMULATION


needs_avx = pytest.mark.skipif("avx" not in host_features(), reason="the processor here has no AVX")
AVX_ON = write_cr(4, 0x40620) + bytes.fromhex("31c9 31d2 b807000000 0f01d1")  # xsetbv 7


@needs_avx
@pytest.mark.parametrize("release", [KernelRelease.V6_18, KernelRelease.V6_19, KernelRelease.V7_2])
@pytest.mark.parametrize("text", AVX)
def test_avx_moves_by_release(release: KernelRelease, text: str) -> None:
    load = bytes.fromhex("c5fe6f0e c57e6f0e")  # vmovdqu ymm1, [rsi]; ymm9: from memory that is there
    with Kvm(boot(kernel_release=release.value)) as kvm, LongModeVm(kvm) as guest:
        guest.memory[DATA : DATA + 32] = bytes(range(0xA0, 0xC0))
        setup = AVX_ON + move(6, DATA) + load
        results = []
        for at in (DATA + 0x400, MMIO + 0x400):
            guest.memory[DATA + 0x400 : DATA + 0x440] = OPERAND
            guest.memory[DATA + 0x800 : DATA + 0x840] = bytes(64)
            tail = move(6, DATA + 0x800) + bytes.fromhex("c5fe7f0e c57e7f4e20")  # vmovdqu [rsi], ymm1; [rsi+32], ymm9
            guest.start(setup + move(6, at) + assemble(text) + tail)
            memory, mmio = bytearray(OPERAND), guest.vcpu.kvm_run.mmio
            while guest.step() is k.Exit.MMIO:
                place = mmio.phys_addr - MMIO - 0x400
                if mmio.is_write:
                    memory[place : place + mmio.len] = bytes(mmio.data[: mmio.len])
                else:
                    mmio.data[: mmio.len] = memory[place : place + mmio.len]
            if release is KernelRelease.V6_18 and at >= MMIO:
                assert guest.vcpu.exit_reason == k.Exit.INTERNAL_ERROR
                return
            assert guest.vcpu.exit_reason == k.Exit.IO
            if at < MMIO:
                memory[:] = guest.memory[DATA + 0x400 : DATA + 0x440]
            results.append((bytes(memory), bytes(guest.memory[DATA + 0x800 : DATA + 0x840])))
        assert results[0] == results[1]


def test_memory_that_is_gone_is_device_memory(guest: LongModeVm) -> None:
    """Where a copy from or to user space fails, the emulator takes the MMIO path (emulator_read_write_onepage).

    So it is for a slot that another thread deletes, and unmaps, while an instruction is emulated.
    """
    gone = 0x100_0000
    memory = mmap.mmap(-1, 4096)
    guest.vm.set_user_memory_region(7, gone, 4096, memory)
    libc = ctypes.CDLL(None)
    assert not libc.mprotect(ctypes.c_void_p(address_of(memory)), ctypes.c_size_t(4096), 0)
    try:
        guest.start(assemble("movsd"), rsi=MMIO, rdi=gone)
        seen = []
        while guest.step() is k.Exit.MMIO:
            seen.append((guest.vcpu.kvm_run.mmio.phys_addr, guest.vcpu.kvm_run.mmio.is_write))
        assert seen == [(MMIO, 0), (gone, 1)]
        assert guest.vcpu.kvm_run.io.port == 0xE1
    finally:
        guest.vm.set_user_memory_region(7, gone, 0, memory)


def test_what_the_emulator_writes_is_in_the_dirty_log(guest: LongModeVm) -> None:
    memory = mmap.mmap(-1, 4096)
    guest.vm.set_user_memory_region(7, 0x100_0000, 4096, memory, k.MemFlag.LOG_DIRTY_PAGES)
    guest.start(assemble("movsd"), rsi=MMIO, rdi=0x100_0000)
    assert guest.step() is k.Exit.MMIO
    guest.vcpu.kvm_run.mmio.data[:4] = b"\x01\x02\x03\x04"
    assert guest.outcome() is None
    assert memory[:4] == b"\x01\x02\x03\x04"
    assert bytes(guest.vm.dirty_log(7, 1))[:1] == b"\x01"
    guest.vm.set_user_memory_region(7, 0x100_0000, 0, memory)
