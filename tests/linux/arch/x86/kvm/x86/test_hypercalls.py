# SPDX-License-Identifier: GPL-2.0-or-later
"""Hypercalls of a normal VM's guest (Documentation/virt/kvm/x86/hypercalls.rst), and CPUID faulting.

Not compared with the machine's own KVM: a nested one without VMCALL never comes back from it.
"""

from __future__ import annotations

import errno
import mmap
import struct
import threading
import time

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.kernel import Kernel
from tests.linux.arch.x86.kvm.vmx.test_vmx import LAPIC, Machine, address, flat, split

VMCALL = "0f01c1"
OUT_EAX = "e780"  # out 80h, eax


@pytest.fixture
def kernel() -> Kernel:
    return open_kernel("emulated")


def call(kernel: Kernel, nr: int, a0: int = 0, a1: int = 0, a2: int = 0, a3: int = 0) -> tuple[int, Machine]:
    """What a guest in protected mode gets, signed."""
    machine = Machine(kernel, split)
    machine.load(VMCALL + OUT_EAX)
    flat(machine.vcpu, rax=nr, rbx=a0, rcx=a1, rdx=a2, rsi=a3)
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.Exit.IO
    return struct.unpack("<i", machine.vcpu.io_data())[0], machine


ANSWERS = (
    ("VAPIC_POLL_IRQ", (1,), 0),
    ("unknown", (99,), -1000),  # -KVM_ENOSYS
    ("KICK_CPU of an absent vCPU", (5, 0, 77), 0),
    ("SCHED_YIELD", (11, 0), 0),
    ("SEND_IPI with a logical destination", (10, 1, 0, 0, 1 << 11 | 0x40), -errno.EINVAL),
    ("SEND_IPI with a shorthand", (10, 1, 0, 0, 1 << 18 | 0x40), -errno.EINVAL),
    ("MAP_GPA_RANGE, which was not enabled", (12, 0, 1, 1 << 4), -1000),
    ("CLOCK_PAIRING of another clock", (9, 0x4000, 1), -errno.EOPNOTSUPP),
)


@pytest.mark.parametrize(("arguments", "answer"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_answers(kernel: Kernel, arguments: tuple[int, ...], answer: int) -> None:
    got, machine = call(kernel, *arguments)
    machine.close()
    assert got == answer


def test_clock_pairing_gives_wall_clock_and_tsc_of_one_moment(kernel: Kernel) -> None:
    before = time.time_ns()
    answer, machine = call(kernel, 9, 0x4000, 0)
    after = time.time_ns()
    assert answer == 0
    seconds, nanoseconds, tsc, flags = struct.unpack("<qqQI", machine.memory[0x4000:0x401C])
    assert before <= seconds * 10**9 + nanoseconds <= after
    assert 0 < tsc <= machine.vcpu.get_msrs([0x10])[0x10]
    assert flags == 0
    machine.close()
    answer, machine = call(kernel, 9, 0xDEAD0000, 0)
    machine.close()
    assert answer == -errno.EFAULT


def test_the_kick_ends_a_hlt_with_interrupts_off(kernel: Kernel) -> None:
    """KVM_FEATURE_PV_UNHALT: how a paravirtual spinlock wakes who waits for it."""
    machine = Machine(kernel, split)
    second = machine.vm.create_vcpu(1)
    machine.load("faf4e681", 0x1800)  # cli; hlt; out 81h, al
    flat(second, 0x1800)
    second.set_mp_state(k.KVM_MP_STATE_RUNNABLE)
    seen: list[int] = []

    def wait() -> None:
        second.run()
        seen.append(second.kvm_run.io.port)

    thread = threading.Thread(target=wait)
    thread.start()
    deadline = time.monotonic() + 10
    while not _halted(kernel):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert not seen
    machine.load(VMCALL + OUT_EAX)
    flat(machine.vcpu, rax=5, rcx=1)  # KVM_HC_KICK_CPU of APIC id 1
    machine.vcpu.run()
    thread.join(10)
    assert seen == [0x81]
    second.close()
    machine.close()


def _halted(kernel: Kernel) -> bool:
    return any(vcpu.blocking for vm in kernel.vms for vcpu in vm.vcpus)  # type: ignore[attr-defined]


def test_send_ipi_reaches_those_of_the_map(kernel: Kernel) -> None:
    """Two maps of 32 bits outside long mode: bit n of the second is APIC id first + 32 + n."""
    machine = Machine(kernel, split)
    machine.gate(0x41, "e684cf")  # out 84h, al; iret
    enable = f"c705{address(LAPIC + 0xF0)}ff010000"
    machine.load(enable + VMCALL + OUT_EAX + "fb90f4")
    flat(machine.vcpu, rax=10, rbx=1, rcx=0, rdx=0, rsi=0x41)
    machine.vcpu.run()
    assert struct.unpack("<i", machine.vcpu.io_data()) == (1,)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x84
    machine.close()


@pytest.mark.parametrize("enabled", [False, True])
def test_cpuid_outside_ring_0_faults_if_it_is_to(kernel: Kernel, enabled: bool) -> None:
    """MSR_MISC_FEATURES_ENABLES bit 0."""
    machine = Machine(kernel)
    assert machine.vcpu.set_msrs({0x140: int(enabled)}) == 1
    # GDT: 8 code, 16 data of ring 0; 24 code, 32 data of ring 3; 40 TSS with the ring-0 stack
    machine.memory[0x3818:0x3828] = bytes.fromhex("ffff000000fbcf00 ffff000000f3cf00")
    machine.memory[0x3828:0x3830] = bytes.fromhex("6700003a00890000")
    machine.memory[0x3A04:0x3A0A] = struct.pack("<IH", 0xE00, 16)
    machine.gate(13, "e68df4")  # #GP: out 8dh, al
    machine.load("0fa2 e680", 0x1800)  # ring 3: cpuid; out 80h
    machine.load("b8280000000f00d8 6a23 6800100000 6802300000 6a1b 6800180000 cf".replace(" ", ""))  # ltr; iret
    flat(machine.vcpu)
    sregs = machine.vcpu.get_sregs()
    sregs.gdt.limit = 47
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == (0x8D if enabled else 0x80)
    machine.close()


def test_bits_that_are_not_there_are_refused(kernel: Kernel) -> None:
    machine = Machine(kernel)
    assert machine.vcpu.set_msrs({0x140: 2}) == 0
    assert machine.vcpu.set_msrs({0xCE: 0}) == 1
    assert machine.vcpu.set_msrs({0x140: 1}) == 0
    machine.close()


# --- The task register ------------------------------------------------------------------------------------------------


def user_mode(machine: Machine, code: str) -> None:
    """Let the guest go to ring 3 without having loaded a task register; the stack for ring 0 is at TSS offset 4."""
    machine.memory[0x3818:0x3828] = bytes.fromhex("ffff000000fbcf00 ffff000000f3cf00")
    machine.memory[4:10] = struct.pack("<IH", 0xE00, 16)
    machine.load(code, 0x1800)
    machine.load("6a23 6800100000 6802300000 6a1b 6800180000 cf")
    flat(machine.vcpu)
    sregs = machine.vcpu.get_sregs()
    sregs.gdt.limit = 39
    machine.vcpu.set_sregs(sregs)


def test_the_power_on_task_register_serves_an_interrupt_from_ring_3(kernel: Kernel) -> None:
    """It is a busy 32-bit TSS at 0 after RESET (SDM vol. 3, table 10-1), and the stack is taken from there."""
    machine = Machine(kernel)
    assert machine.vcpu.get_sregs().tr.type == 11
    machine.gate(13, "e68df4")
    user_mode(machine, "f4")  # hlt: #GP
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x8D
    machine.close()


@pytest.mark.parametrize("change", [{"unusable": 1}, {"present": 0}, {"s": 1}, {"type": 1}])
def test_no_guest_is_entered_without_a_task_register(kernel: Kernel, change: dict[str, int]) -> None:
    machine = Machine(kernel)
    user_mode(machine, "f4")
    sregs = machine.vcpu.get_sregs()
    for name, value in change.items():
        setattr(sregs.tr, name, value)
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.Exit.FAIL_ENTRY
    assert machine.vcpu.kvm_run.fail_entry.hardware_entry_failure_reason == 0x80000021
    sregs.tr = k.kvm_segment(limit=0xFFFF, type=11, present=1)
    machine.gate(13, "e68df4")
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x8D
    machine.close()


# --- Instructions that KVM's emulator does not know (handle_emulation_failure) ----------------------------------------

FLD_MMIO = "d905000000d0"  # fld dword [0xd0000000]
USER_FLD_MMIO = "36" + FLD_MMIO  # by SS: IRET to ring 3 has made DS null (SDM vol. 2, IRET)


def emulation_failure(machine: Machine) -> None:
    assert machine.vcpu.exit_reason == k.Exit.INTERNAL_ERROR
    assert machine.vcpu.kvm_run.internal.suberror == k.KVM_INTERNAL_ERROR_EMULATION


def test_of_a_user_program_they_are_ud(kernel: Kernel) -> None:
    machine = Machine(kernel)
    machine.gate(6, "e68ef4")
    user_mode(machine, USER_FLD_MMIO)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x8E
    machine.close()


def test_of_a_user_program_they_exit_if_user_space_wants_it(kernel: Kernel) -> None:
    machine = Machine(kernel)
    machine.vm.enable_cap(k.Cap.EXIT_ON_EMULATION_FAILURE, 1)
    machine.gate(6, "e68ef4")
    user_mode(machine, USER_FLD_MMIO)
    machine.vcpu.run()
    emulation_failure(machine)
    machine.close()


def test_in_ring_0_they_exit_and_are_ud_if_nothing_is_done(kernel: Kernel) -> None:
    machine = Machine(kernel)
    machine.gate(6, "e68ef4")
    machine.load(FLD_MMIO)
    flat(machine.vcpu)
    machine.vcpu.run()
    emulation_failure(machine)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.io.port == 0x8E
    machine.close()


@pytest.mark.parametrize("flags", [0x83, 0xE3])
def test_page_tables_in_a_read_only_slot(kernel: Kernel, flags: int) -> None:
    """The walk's accessed bit cannot be stored: KVM emulates, drops the bit, and knows no FSIN."""
    machine = Machine(kernel)
    tables = mmap.mmap(-1, 0x1000)
    tables[:4] = struct.pack("<I", flags)  # 4 MiB at 0
    machine.vm.set_user_memory_region(1, 0x100000, 0x1000, tables, int(k.KVM_MEM_READONLY))
    machine.load("ff05 00500000 0305 00500000 d9fe")  # inc dword [5000h]; add eax, [5000h]; fsin
    flat(machine.vcpu)
    sregs = machine.vcpu.get_sregs()
    sregs.cr3, sregs.cr4, sregs.cr0 = 0x100000, sregs.cr4 | 1 << 4, sregs.cr0 | 1 << 31
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.run()
    emulation_failure(machine)
    regs = machine.vcpu.get_regs()
    assert (regs.rip, regs.rax, machine.memory[0x5000]) == (0x100C, 1, 1)
    assert tables[:4] == struct.pack("<I", flags)
    machine.close()
