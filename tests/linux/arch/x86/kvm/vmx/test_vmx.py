# SPDX-License-Identifier: GPL-2.0-or-later
"""Normal VMs: MMIO by every instruction the emulator knows, string I/O, interrupt controllers, register state.

An emulated instruction on MMIO must do what the processor does with the same instruction on RAM: the oracle is another
implementation. Register state and string I/O are compared with the machine's own KVM where there is one.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError, Vcpu, Vm
from swtdx.uapi.kernel import Kernel

CODE, IDT, HANDLER = 0x1000, 0x3000, 0x2000
MMIO = 0xD0000000
LAPIC = 0xFEE00000
ANSWER = bytes.fromhex("f711223344556677")
HLT = "f4"


def address(value: int) -> str:
    return value.to_bytes(4, "little").hex()


def flat(vcpu: Vcpu, entry: int = CODE, **regs: int) -> None:
    """32-bit protected mode, flat segments, interrupts through `IDT`."""
    sregs = vcpu.get_sregs()
    sregs.cr0 |= 1
    sregs.cs = k.kvm_segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, s=1, db=1, g=1)
    data = k.kvm_segment(limit=0xFFFFFFFF, selector=16, type=3, present=1, s=1, db=1, g=1)
    sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
    sregs.gdt.base, sregs.gdt.limit = 0x3800, 23
    sregs.idt.base, sregs.idt.limit = IDT, 0x7FF
    vcpu.set_sregs(sregs)
    vcpu.set_regs(k.kvm_regs(rip=entry, rflags=2, rsp=0xF00, **regs))


class Machine:
    """One VM with 64 KiB at 0 and one vCPU."""

    def __init__(self, kernel: Kernel, setup: Callable[[Vm], None] = lambda vm: None) -> None:
        self.kvm = Kvm(kernel)
        self.vm = self.kvm.create_vm()
        setup(self.vm)
        self.memory = mmap.mmap(-1, 0x10000)
        self.vm.set_user_memory_region(0, 0, 0x10000, self.memory)
        self.memory[0x3808:0x3818] = bytes.fromhex("ffff0000009bcf00 ffff00000093cf00")
        self.vcpu = self.vm.create_vcpu(0)

    def load(self, code: str, at: int = CODE) -> None:
        data = bytes.fromhex(code)
        self.memory[at : at + len(data)] = data

    def gate(self, vector: int, code: str, at: int = HANDLER) -> None:
        """An interrupt gate to ``code``."""
        self.load(code, at)
        gate = at.to_bytes(2, "little") + b"\x08\x00\x00\x8e\x00\x00"
        self.memory[IDT + 8 * vector : IDT + 8 * vector + 8] = gate

    def trace(self, limit: int = 20) -> list[tuple[Any, ...]]:
        """Run until HLT (in user space), SHUTDOWN or the limit; what was seen."""
        seen: list[tuple[object, ...]] = []
        run = self.vcpu.kvm_run
        for _ in range(limit):
            self.vcpu.run()
            reason = run.exit_reason
            if reason == k.KVM_EXIT_MMIO:
                mmio = run.mmio
                data = bytes(mmio.data)[: mmio.len] if mmio.is_write else b""
                seen.append(("mmio", mmio.phys_addr, mmio.len, mmio.is_write, data))
                if not mmio.is_write:
                    offset = mmio.phys_addr - MMIO & 7
                    mmio.data[: mmio.len] = list((2 * ANSWER)[offset : offset + mmio.len])
            elif reason == k.KVM_EXIT_IO:
                io = run.io
                data = self.vcpu.io_data() if io.direction else b""
                seen.append(("io", io.direction, io.port, io.size, io.count, data))
                if not io.direction:
                    self.vcpu.set_io_data((ANSWER * 512)[: io.size * io.count])
            else:
                seen.append((int(reason),))
                break
        return seen

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()
        self.kvm.close()


@pytest.fixture
def emulated() -> Kernel:
    return open_kernel("emulated")


@pytest.fixture
def real(host_kvm: Path) -> Kernel:
    return open_kernel("host")


@pytest.fixture
def kernel(emulated: Kernel) -> Kernel:
    """Interrupt controllers in the kernel are not compared: hosts differ (nested KVMs lack some of them)."""
    return emulated


@pytest.fixture(params=["emulated", "real"])
def each(request: pytest.FixtureRequest) -> Kernel:
    """The same client and the same expectations, on both."""
    kernel: Kernel = request.getfixturevalue(request.param)
    return kernel


# --- The instruction emulator -----------------------------------------------------------------------------------------

AT = address(MMIO)
INSTRUCTIONS = {
    "cmpsb": "be" + AT + "bf00400000 a6",
    "repe cmpsb": "be" + AT + "bf" + AT + "b905000000 f3a6",
    "repe cmpsw that differ": "be" + AT + "bf00400000 b903000000 66f3a7",
    "repne cmpsb": "bf" + AT + "be00400000 b908000000 f2a6",
    "scasb": "bf" + AT + "ae",
    "repne scasb": "bf" + AT + "b022 b908000000 f2ae",
    "repe scasd": "bf" + AT + "b8f7112233 b902000000 f3af",
    "std; repne scasb": "bf" + AT + "83c707 b044 b908000000 fd f2ae fc",
    "rep lodsb": "be" + AT + "b903000000 f3ac",
    "push [m]": "ff35" + AT + "59",
    "pop [m]": "6878563412 8f05" + AT,
    "setb [m]": "f9 0f9205" + AT,
    "setne [m]": "0f9505" + AT,
    "cmovb ecx, [m]": "f9 0f420d" + AT,
    "cmovae ecx, [m]": "f9 0f430d" + AT,
    "smsw [m]": "0f0125" + AT,
    "push on it": "bc" + AT + "8d642408 50 bc000f0000",
    "push imm8 on it": "bc" + AT + "8d642408 6aff bc000f0000",
    "pop from it": "bc" + AT + "59 bc000f0000",
    "call on it": "bc" + AT + "8d642408 e800000000 bc000f0000",
    "mov eax, [m]": "a1" + AT,
    "mov [m], eax": "a3" + AT,
    "mov al, [m]": "a0" + AT,
    "mov byte [m], 5": "c605" + AT + "05",
    "mov dword [m], imm": "c705" + AT + "78563412",
    "mov bh, [m]": "8a3d" + AT,
    "movzx ecx, byte [m]": "0fb60d" + AT,
    "movsx ecx, byte [m]": "0fbe0d" + AT,
    "movsx ecx, word [m]": "0fbf0d" + AT,
    "mov cx, [m]": "668b0d" + AT,
    "or dword [m], 16": "830d" + AT + "10",
    "and byte [m], 15": "8025" + AT + "0f",
    "xor [m], edx": "3115" + AT,
    "add eax, [m]": "0305" + AT,
    "sub word [m], cx": "66290d" + AT,
    "adc eax, [m]": "f91305" + AT,
    "cmp [m], eax": "3905" + AT,
    "cmp eax, [m]": "3b05" + AT,
    "test dword [m], imm": "f705" + AT + "80000000",
    "xchg [m], ebx": "871d" + AT,
    "inc dword [m]": "ff05" + AT,
    "dec byte [m]": "fe0d" + AT,
    "not dword [m]": "f715" + AT,
    "neg dword [m]": "f71d" + AT,
    "bts dword [m], 3": "0fba2d" + AT + "03",
    "btr dword [m], 0": "0fba35" + AT + "00",
    "bt dword [m], 0": "0fba25" + AT + "00",
    "xadd [m], ebx": "0fc11d" + AT,
    "cmpxchg [m], ebx": "0fb11d" + AT,
    "stosd": "bf" + AT + "ab",
    "rep stosb": "b903000000bf" + AT + "f3aa",
    "std; stosw": "fdbf" + AT + "66ab",
    "movsd to m": "be00400000bf" + AT + "a5",
    "movsb from m": "be" + AT + "bf00400000a4",
    "rep movsw from m": "b902000000be" + AT + "bf00400000f366a5",
    "lodsd": "be" + AT + "ad",
    "mov eax, [ebx+ecx*4-8]": "bb" + AT + "b902000000 8b448bf8",
}


LOGIC = ("or ", "and ", "xor ", "test ")
RAM = 0x4100
AF = 1 << 4


def outcome(kernel: Kernel, name: str, target: int) -> tuple[k.kvm_regs, bytes, bytes]:
    """Registers, the 8 bytes at the memory operand, and 16 bytes of ordinary memory, after the instruction."""
    machine = Machine(kernel)
    machine.load((INSTRUCTIONS[name] + HLT).replace(AT, address(target)))
    machine.load("0102030405060708", 0x4000)
    for at in (RAM, RAM + 8):
        machine.load(ANSWER.hex(), at)
    flat(machine.vcpu, rax=0x80FF7F01, rbx=0x1234F678, rcx=0x0FEDCBA9, rdx=0xDEADBEEF)
    stored = bytearray(ANSWER)
    for item in machine.trace():
        if item[0] == "mmio" and item[3]:
            offset, data = int(item[1]) - MMIO, bytes(item[4])
            if 0 <= offset < 8:
                stored[offset : offset + len(data)] = data
    regs = machine.vcpu.get_regs()
    for register in ("rbx", "rsi", "rdi"):
        value = getattr(regs, register)
        if abs(value - target) < 0x20:
            setattr(regs, register, 1 << 32 | value - target & 0xFF)
    memory = bytes(stored) if target == MMIO else bytes(machine.memory[RAM : RAM + 8])
    ordinary = bytes(machine.memory[0x4000:0x4010])
    machine.close()
    return regs, memory, ordinary


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_mmio_by_instruction_is_what_it_is_on_ram(name: str, emulated: Kernel) -> None:
    (regs, *rest), (expected, *expected_rest) = (outcome(emulated, name, target) for target in (MMIO, RAM))
    regs.rflags = expected.rflags = 0
    assert bytes(regs).hex() == bytes(expected).hex()
    assert rest == expected_rest


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_flags_of_mmio_instructions(name: str, emulated: Kernel) -> None:
    regs, expected = (outcome(emulated, name, target)[0] for target in (MMIO, RAM))
    if name.startswith(LOGIC):
        regs.rflags, expected.rflags = regs.rflags & ~AF, expected.rflags & ~AF  # AF is undefined
    assert hex(regs.rflags) == hex(expected.rflags)


# --- String I/O -------------------------------------------------------------------------------------------------------

PORTS = {
    "outsb": "be00400000 6e",
    "rep outsb": "be00400000 b905000000 f36e",
    "rep outsd": "be00400000 b902000000 f36f",
    "std; rep outsb": "fd be05400000 b903000000 f36e",
    "insb": "bf00400000 6c",
    "rep insd": "bf00400000 b904000000 f36d",
    "rep insb of nothing": "bf00400000 31c9 f36c",
}


@pytest.mark.parametrize("name", PORTS)
def test_string_io(name: str, emulated: Kernel, real: Kernel) -> None:
    """KVM may split a repetition as it likes: the bytes, in order, and the registers afterwards must agree."""
    outcomes = []
    for each in (emulated, real):
        machine = Machine(each)
        machine.load("66baf803" + PORTS[name] + HLT)
        machine.load("0102030405060708", 0x4000)
        flat(machine.vcpu)
        trace = machine.trace()
        total = b"".join(bytes(item[5]) for item in trace if item[0] == "io")
        count = sum(int(item[4]) for item in trace if item[0] == "io")
        memory = bytes(machine.memory[0x4000:0x4020]) if count == 1 or "out" in name else b""
        outcomes.append((total, count, trace[-1], memory, bytes(machine.vcpu.get_regs()).hex()))
        machine.close()
    assert outcomes[0] == outcomes[1]


MMIO_PORTS = {
    "outsb": "be000000d0 6e",
    "rep outsb": "be000000d0 b905000000 f36e",
    "rep outsd": "be000000d0 b902000000 f36f",
    "std; rep outsb": "fd be050000d0 b903000000 f36e",
    "insb": "bf000000d0 6c",
    "rep insb": "bf030000d0 b913000000 f36c",
    "rep insd": "bf000000d0 b903000000 f36d",
    "std; insw": "fd bf080000d0 666d",  # KVM loses what a repetition backwards has read ahead of the first MMIO
    "rep insb over the end of a page": "bfff0f00d0 b903000000 f36c",
    "rep insd with an item on two pages": "bffe0f00d0 b902000000 f36d",
}


@pytest.mark.parametrize("name", MMIO_PORTS)
def test_string_io_with_memory_of_a_device(name: str, emulated: Kernel, real: Kernel) -> None:
    """How a repetition is split is KVM's affair: each byte at each port and address, in order, and the registers."""
    outcomes = []
    for each in (emulated, real):
        machine, seen, given = Machine(each), [], iter(range(1, 250))
        machine.load("66baf803" + MMIO_PORTS[name] + HLT)
        flat(machine.vcpu)
        run = machine.vcpu.kvm_run
        machine.vcpu.run()
        while run.exit_reason in (k.KVM_EXIT_IO, k.KVM_EXIT_MMIO):
            if run.exit_reason == k.KVM_EXIT_MMIO:
                if not run.mmio.is_write:
                    run.mmio.data[: run.mmio.len] = [(run.mmio.phys_addr + at) & 0xFF for at in range(run.mmio.len)]
                seen += [(run.mmio.phys_addr + at, run.mmio.data[at]) for at in range(run.mmio.len)]
            elif run.io.direction:
                seen += [("out", each) for each in machine.vcpu.io_data()]
            else:
                machine.vcpu.set_io_data(bytes(next(given) for _ in range(run.io.size * run.io.count)))
            machine.vcpu.run()
        outcomes.append((run.exit_reason, bytes(machine.vcpu.get_regs()).hex(), seen))
        machine.close()
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][0] == k.KVM_EXIT_HLT


def test_string_io_to_a_device_in_the_kernel(kernel: Kernel) -> None:
    """emulator_pio_in_out: every item goes to the device, none to user space."""
    machine = Machine(kernel, lambda vm: vm.create_irqchip())
    # rep outsb to the first PIC's mask, then rep insb from it; out 80h, al
    machine.load("66ba2100 be00400000 b903000000 f36e bf10400000 b902000000 f36c e680")
    machine.load("0103a5", 0x4000)
    flat(machine.vcpu)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x80
    assert machine.memory[0x4010:0x4013] == b"\xa5\xa5\0"
    assert (machine.vcpu.get_regs().rsi, machine.vcpu.get_regs().rdi, machine.vcpu.get_regs().rcx) == (
        0x4003,
        0x4012,
        0,
    )
    machine.close()


def test_string_output_to_an_ioeventfd(each: Kernel) -> None:
    import os

    machine = Machine(each)
    event = each.eventfd()
    machine.vm.ioeventfd(event, 0x3F8, 1, k.IoeventfdFlag.PIO)
    machine.load("66baf803 be00400000 b905000000 f36e e680")
    flat(machine.vcpu)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x80
    assert os.eventfd_read(event) == 5
    machine.close()
    os.close(event)


# --- Interrupts -------------------------------------------------------------------------------------------------------

OUT_99 = "b099e680"  # mov al, 99h; out 80h, al


def split(vm: Vm) -> None:
    vm.split_irqchip()


def test_a_message_wakes_a_halted_vcpu(kernel: Kernel) -> None:
    machine = Machine(kernel, split)
    machine.gate(0x41, OUT_99 + "cf")
    # enable the APIC (SPIV), sti, hlt; after the interrupt, out 81h
    machine.load(f"c705{address(LAPIC + 0xF0)}ff010000 fb f4 e681 f4")
    flat(machine.vcpu)
    thread = threading.Timer(0.2, lambda: machine.vm.signal_msi(LAPIC, 0x41))
    thread.start()
    machine.vcpu.run()
    assert machine.vcpu.io_data() == b"\x99"
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x81
    thread.join()
    machine.close()


@pytest.mark.parametrize("periodic", [False, True])
def test_the_local_apic_timer(kernel: Kernel, periodic: bool) -> None:
    machine = Machine(kernel, split)
    eoi = f"c705{address(LAPIC + 0xB0)}00000000"
    machine.gate(0x42, OUT_99 + eoi + "cf")
    lvtt = (0x42 | (1 << 17 if periodic else 0)).to_bytes(4, "little").hex()
    machine.load(
        f"c705{address(LAPIC + 0xF0)}ff010000 c705{address(LAPIC + 0x3E0)}0b000000"
        f"c705{address(LAPIC + 0x320)}{lvtt} c705{address(LAPIC + 0x380)}80969800"  # 10 ms at 1 GHz
        "fb f4 ebfd"  # sti; again: hlt; jmp again
    )
    flat(machine.vcpu)
    started = time.monotonic()
    for _ in range(3 if periodic else 1):
        machine.vcpu.run()
        assert machine.vcpu.io_data() == b"\x99"
    elapsed = time.monotonic() - started
    assert elapsed >= (0.025 if periodic else 0.009)
    machine.close()


def test_a_level_triggered_line_through_the_io_apic(kernel: Kernel) -> None:
    machine = Machine(kernel, lambda vm: vm.create_irqchip())
    eoi = f"c705{address(LAPIC + 0xB0)}00000000"
    machine.gate(0x50, OUT_99 + eoi + "cf")
    machine.load(
        f"c705{address(LAPIC + 0xF0)}ff010000"
        "b0ffe621 c7050000c0fe1a000000 c7051000c0fe50800000"  # PIC masked; pin 5: level, vector 50h
        "fb f4 ebfd"
    )
    flat(machine.vcpu)
    machine.vm.irq_line(5, 1)
    machine.vcpu.run()
    assert machine.vcpu.io_data() == b"\x99"
    machine.vcpu.run()  # the line is still high: again after the EOI
    assert machine.vcpu.io_data() == b"\x99"
    machine.vm.irq_line(5, 0)
    machine.close()


def test_a_line_through_the_pic(kernel: Kernel) -> None:
    machine = Machine(kernel, lambda vm: vm.create_irqchip())
    machine.gate(0x34, OUT_99 + "b020e620cf")  # non-specific EOI
    # ICW1..4 (vector base 30h), unmask all
    machine.load("b011e620 b030e621 b004e621 b001e621 b000e621 fb f4 ebfd")
    flat(machine.vcpu)
    threading.Timer(0.1, lambda: machine.vm.irq_line(4, 1)).start()
    machine.vcpu.run()
    assert machine.vcpu.io_data() == b"\x99"
    chip = machine.vm.get_irqchip(0).chip.pic
    assert chip.irq_base == 0x30
    assert chip.isr == 1 << 4
    machine.close()


def test_the_pit_ticks(kernel: Kernel) -> None:
    def setup(vm: Vm) -> None:
        vm.create_irqchip()
        vm.create_pit2()

    machine = Machine(kernel, setup)
    machine.gate(0x30, OUT_99 + "b020e620cf")
    # PIC as above; PIT channel 0: rate generator, 11932 counts = 10 ms
    machine.load("b011e620 b030e621 b004e621 b001e621 b0fee621 b034e643 b09ce640 b02ee640 fb f4 ebfd")
    flat(machine.vcpu)
    started = time.monotonic()
    for _ in range(4):
        machine.vcpu.run()
        assert machine.vcpu.io_data() == b"\x99"
    assert time.monotonic() - started >= 0.025
    machine.close()


def test_an_nmi(kernel: Kernel) -> None:
    machine = Machine(kernel, split)
    machine.gate(2, OUT_99 + "cf")
    machine.load("90 f4 e681 f4")
    flat(machine.vcpu)
    machine.vcpu.nmi()
    machine.vcpu.run()
    assert machine.vcpu.io_data() == b"\x99"
    machine.close()


def test_an_application_processor_starts_by_init_and_sipi(kernel: Kernel) -> None:
    machine = Machine(kernel, split)
    second = machine.vm.create_vcpu(1)
    machine.load("b055e682f4", 0x5000)  # real mode: mov al, 55h; out 82h, al; hlt
    icr = LAPIC + 0x300
    machine.load(
        f"c705{address(LAPIC + 0xF0)}ff010000 c705{address(icr + 0x10)}00000001"
        f"c705{address(icr)}00450000 c705{address(icr)}05460000 e681 ebfe"
    )
    flat(machine.vcpu)
    seen: list[tuple[int, bytes]] = []

    def run_second() -> None:
        for _ in range(3):
            try:
                second.run()
            except KvmError as error:
                if error.errno != errno.EAGAIN:
                    raise
                continue
            break
        seen.append((second.kvm_run.io.port, second.io_data()))

    thread = threading.Thread(target=run_second)
    thread.start()
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x81
    thread.join(5)
    assert seen == [(0x82, b"\x55")]
    second.close()
    machine.close()


def tsc_offset(vcpu: Vcpu) -> int:
    return vcpu.get_device_attr(k.KVM_VCPU_TSC_CTRL, k.KVM_VCPU_TSC_OFFSET)


def test_all_vcpus_have_one_time(kernel: Kernel) -> None:
    tsc = 0x10  # IA32_TIME_STAMP_COUNTER
    with Kvm(kernel) as device, device.create_vm() as vm:
        vcpus = []
        for number in range(3):
            vcpus.append(vm.create_vcpu(number))
            time.sleep(0.01)
        (offset,) = {tsc_offset(vcpu) for vcpu in vcpus}
        second = vcpus[0].get_tsc_khz() * 1000
        # What user space restores on one after the other is meant as the same time, if it is within a second.
        far = vcpus[0].get_msrs([tsc])[tsc] + 1000 * second
        vcpus[0].set_msrs({tsc: far})
        assert tsc_offset(vcpus[0]) != offset
        time.sleep(0.01)
        vcpus[1].set_msrs({tsc: far})
        assert tsc_offset(vcpus[1]) == tsc_offset(vcpus[0])
        vcpus[2].set_msrs({tsc: far + 2 * second})
        assert tsc_offset(vcpus[2]) not in (offset, tsc_offset(vcpus[0]))
        vcpus[0].set_msrs({tsc: 0})
        assert tsc_offset(vcpus[0]) == tsc_offset(vcpus[2])
        for vcpu in vcpus:
            vcpu.close()


def test_interrupt_window(kernel: Kernel) -> None:
    machine = Machine(kernel)  # no irqchip: user space injects
    machine.gate(0x60, OUT_99 + "cf")
    machine.load("90 fb 90 90 e681 f4")
    flat(machine.vcpu)
    machine.vcpu.kvm_run.request_interrupt_window = 1
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.KVM_EXIT_IRQ_WINDOW_OPEN
    assert machine.vcpu.kvm_run.ready_for_interrupt_injection == 1
    assert machine.vcpu.kvm_run.if_flag == 1
    machine.vcpu.interrupt(0x60)
    machine.vcpu.kvm_run.request_interrupt_window = 0
    machine.vcpu.run()
    assert machine.vcpu.io_data() == b"\x99"
    machine.close()


def test_ioeventfds_and_irqfds(kernel: Kernel) -> None:
    import os

    machine = Machine(kernel, split)
    doorbell, line = kernel.eventfd(), kernel.eventfd()
    machine.vm.ioeventfd(doorbell, MMIO, 4)
    machine.vm.set_gsi_routing([_route(7, LAPIC, 0x43)])
    machine.vm.irqfd(line, 7)
    machine.gate(0x43, OUT_99 + "cf")
    machine.load(f"c705{address(LAPIC + 0xF0)}ff010000 c705{AT}01000000 fb f4 ebfd")
    flat(machine.vcpu)
    threading.Timer(0.1, lambda: os.eventfd_write(line, 1)).start()
    machine.vcpu.run()
    assert machine.vcpu.io_data() == b"\x99"
    assert os.eventfd_read(doorbell) == 1
    machine.close()
    os.close(doorbell)
    os.close(line)


def _route(gsi: int, target: int, data: int) -> k.kvm_irq_routing_entry:
    entry = k.kvm_irq_routing_entry(gsi=gsi, type=k.KVM_IRQ_ROUTING_MSI)
    entry.u.msi.address_lo, entry.u.msi.data = target, data
    return entry


# --- Register state ---------------------------------------------------------------------------------------------------


@pytest.fixture
def both(emulated: Kernel, real: Kernel) -> Iterator[tuple[Machine, Machine]]:
    machines = Machine(emulated), Machine(real)
    yield machines
    for machine in machines:
        machine.close()


def test_power_on_state(both: tuple[Machine, Machine]) -> None:
    """Registers are as after RESET on both; RDX holds the processor's signature, and GDTR, IDTR differ in nothing."""
    ours, theirs = (machine.vcpu.get_regs() for machine in both)
    ours.rdx = theirs.rdx = 0
    assert bytes(ours).hex() == bytes(theirs).hex()
    sregs = [machine.vcpu.get_sregs() for machine in both]
    for name in ("cs", "ds", "ss", "tr", "ldt", "gdt", "idt", "cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base"):
        values = [getattr(each, name) for each in sregs]
        if isinstance(values[0], ctypes.Structure):
            values = [bytes(value).hex() for value in values]
        assert values[0] == values[1], name


def test_registers_that_are_set_are_got(both: tuple[Machine, Machine]) -> None:
    for machine in both:
        flat(machine.vcpu)
    sregs = [bytes(machine.vcpu.get_sregs()).hex() for machine in both]
    assert sregs[0] == sregs[1]


def test_triple_fault(kernel: Kernel) -> None:
    machine = Machine(kernel)
    machine.load("0f0b")
    flat(machine.vcpu)
    sregs = machine.vcpu.get_sregs()
    sregs.idt.limit = 0
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.KVM_EXIT_SHUTDOWN
    machine.close()


def test_code_that_a_device_brought_is_what_runs(emulated: Kernel) -> None:
    """DMA by the VMM into a page whose code has run, which the guest maps again: it must see it at once."""
    machine = Machine(emulated)
    routine, immediate = 0x5000, 0x5001
    machine.load("b800000000c3", routine)  # mov eax, N; ret
    # mov ebx, routine; 1: invlpg [ebx]; mov ecx, [ebx]; call ebx; mov [MMIO], eax; jmp 1b
    machine.load(f"bb{address(routine)} 0f013b 8b0b ffd3 a3{address(MMIO)} ebf2")
    flat(machine.vcpu)
    seen = []
    for number in range(200):
        machine.memory[immediate] = number
        machine.vcpu.run()
        assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_MMIO
        seen.append(machine.vcpu.kvm_run.mmio.data[0])
    assert seen == list(range(200))


def test_the_status_of_an_interrupt_line(real: Kernel, emulated: Kernel) -> None:
    """KVM_IRQ_LINE_STATUS: what PIC and I/O APIC say, summed up; -1 for a GSI without a route."""
    machines = [Machine(kernel, lambda vm: vm.create_irqchip()) for kernel in (real, emulated)]
    for gsi, level in ((4000, 1), (3, 0), (3, 1), (3, 1), (3, 0), (3, 1), (20, 1), (20, 0), (9, 1)):
        answers = []
        for machine in machines:
            request = k.kvm_irq_level(irq=gsi, level=level)
            machine.vm.put(k.KVM_IRQ_LINE_STATUS, request)
            answers.append(request.status)
        assert answers[0] == answers[1], (gsi, level)


def ring_of(vcpu: Vcpu) -> tuple[int, int, list[tuple[int, int, int, bytes]]]:
    """(first, last, entries) of the coalesced ring as this vCPU's mapping shows it."""
    page = 0x2000
    first, last = struct.unpack_from("<II", vcpu.mapping, page)
    entries = []
    for number in range(first, last):
        gpa, length, pio, data = struct.unpack_from("<QII8s", vcpu.mapping, page + 8 + 24 * number)
        entries.append((gpa, length, pio, data[:length]))
    return first, last, entries


def test_coalesced_writes_wait_in_the_ring(each: Kernel) -> None:
    """No exit for them; the next exit finds them in the ring, in order; what a zone does not hold exits."""
    machine = Machine(each)
    assert machine.kvm.check_extension(k.Cap.COALESCED_MMIO) == 2
    machine.vm.register_coalesced_mmio(MMIO, 0x100)
    machine.vm.register_coalesced_mmio(0x80, 1, pio=True)
    flat(machine.vcpu)
    dword, byte, out, beyond = (
        f"a3{address(MMIO + 0x10)}",
        f"a2{address(MMIO + 0xFF)}",
        "e680",
        f"a3{address(MMIO + 0xFE)}",
    )
    machine.load(f"b844332211{dword}{byte}{out}{beyond}{HLT}")
    machine.vcpu.run()
    run = machine.vcpu.kvm_run
    assert (run.exit_reason, run.mmio.phys_addr, run.mmio.len) == (k.Exit.MMIO, MMIO + 0xFE, 4)
    expected = [
        (MMIO + 0x10, 4, 0, bytes.fromhex("44332211")),
        (MMIO + 0xFF, 1, 0, b"\x44"),
        (0x80, 1, 1, b"\x44"),
    ]
    assert ring_of(machine.vcpu) == (0, 3, expected)
    other = machine.vm.create_vcpu(1)
    assert ring_of(other) == (0, 3, expected)  # one ring for the VM
    machine.vm.unregister_coalesced_mmio(MMIO, 0x100)
    machine.vcpu.run()
    assert run.exit_reason == k.Exit.HLT
    flat(machine.vcpu)
    machine.load(f"a3{address(MMIO + 0x10)}")
    machine.vcpu.run()
    assert (run.exit_reason, run.mmio.phys_addr) == (k.Exit.MMIO, MMIO + 0x10)


def test_a_full_ring_exits(each: Kernel) -> None:
    machine = Machine(each)
    machine.vm.register_coalesced_mmio(MMIO, 0x1000)
    flat(machine.vcpu)
    machine.load(f"a3{address(MMIO)}ebf9")  # write in an endless loop
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.Exit.MMIO
    first, last, entries = ring_of(machine.vcpu)
    assert (first, last, len(entries)) == (0, (0x1000 - 8) // 24 - 1, 169)
    struct.pack_into("<I", machine.vcpu.mapping, 0x2000, last)  # user space takes them all
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.Exit.MMIO
    assert struct.unpack_from("<II", machine.vcpu.mapping, 0x2000) == (last, last - 1)
