# SPDX-License-Identifier: GPL-2.0-or-later
"""A default VM launched through the client, the very same way on the machine's own KVM and on the emulated kernel.

Expectations are the processor's and KVM's documented behaviour (Intel SDM, Documentation/virt/kvm/api.rst); the run on
the real /dev/kvm is what keeps them honest.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator

import pytest

from swtdx.uapi import kvm as header
from swtdx.uapi.client import Kvm, KvmError, Vcpu, Vm
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.kvm import Exit

MEMORY_SIZE = 0x8000
CODE = 0x1000
COM1 = 0x3F8
HLT = b"\xf4"

CR0_PE, CR0_PG, CR4_PAE, EFER_LME, EFER_LMA = 1 << 0, 1 << 31, 1 << 5, 1 << 8, 1 << 10
PTE_PRESENT, PTE_WRITABLE, PDE_LARGE = 1 << 0, 1 << 1, 1 << 7


class Guest:
    """A VM with `MEMORY_SIZE` bytes at 0 and one vCPU in real mode, about to run ``code`` at `CODE`."""

    def __init__(self, kvm: Kvm) -> None:
        self.memory = mmap.mmap(-1, MEMORY_SIZE)
        self.vm: Vm = kvm.create_vm()
        self.vm.set_user_memory_region(0, 0, MEMORY_SIZE, self.memory)
        self.vcpu: Vcpu = self.vm.create_vcpu(0)
        self.vcpu.set_cpuid2(kvm.supported_cpuid())  # without, KVM_SET_SREGS refuses long mode

    def load(self, code: bytes, **regs: int) -> None:
        self.memory[CODE : CODE + len(code)] = code
        sregs = self.vcpu.get_sregs()
        sregs.cs.base, sregs.cs.selector = 0, 0
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(header.kvm_regs(rip=CODE, rflags=2, rsp=0x800, **regs))

    def enter_long_mode(self) -> None:
        """64-bit mode, CPL 0, the first 2 MiB mapped onto themselves, no interrupt table."""
        pml4, pdpt, pd = 0x4000, 0x5000, 0x6000
        flags = PTE_PRESENT | PTE_WRITABLE
        for table, entry in ((pml4, pdpt | flags), (pdpt, pd | flags), (pd, flags | PDE_LARGE)):
            self.memory[table : table + 8] = entry.to_bytes(8, "little")
        sregs = self.vcpu.get_sregs()
        sregs.cr3, sregs.cr4 = pml4, CR4_PAE
        sregs.efer, sregs.cr0 = EFER_LME | EFER_LMA, sregs.cr0 | CR0_PE | CR0_PG
        sregs.cs = header.kvm_segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, s=1, l=1, g=1)
        data = header.kvm_segment(limit=0xFFFFFFFF, selector=16, type=3, present=1, s=1, db=1, g=1)
        sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
        sregs.idt.base, sregs.idt.limit = 0, 0
        self.vcpu.set_sregs(sregs)

    def run(self) -> Exit:
        self.vcpu.run()
        return Exit(self.vcpu.exit_reason)

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()


@pytest.fixture
def kvm(kernel: Kernel) -> Iterator[Kvm]:
    with Kvm(kernel) as device:
        yield device


@pytest.fixture
def guest(kvm: Kvm) -> Iterator[Guest]:
    made = Guest(kvm)
    yield made
    made.close()


def test_out_in_and_hlt(guest: Guest) -> None:
    # mov dx, 0x3f8; add al, bl; out dx, al; in al, dx; xor al, 0x20; out dx, al; hlt
    guest.load(b"\xba\xf8\x03\x00\xd8\xee\xec\x34\x20\xee" + HLT, rax=0x40, rbx=0x02)
    io = guest.vcpu.kvm_run.io

    assert guest.run() is Exit.IO
    assert (io.direction, io.port, io.size, io.count) == (header.KVM_EXIT_IO_OUT, COM1, 1, 1)
    assert guest.vcpu.io_data() == b"B"

    assert guest.run() is Exit.IO
    assert (io.direction, io.port, io.size, io.count) == (header.KVM_EXIT_IO_IN, COM1, 1, 1)
    guest.vcpu.set_io_data(b"x")

    assert guest.run() is Exit.IO
    assert guest.vcpu.io_data() == b"X"

    assert guest.run() is Exit.HLT
    assert guest.vcpu.get_regs().rip == CODE + 11


def test_wider_port_accesses(guest: Guest) -> None:
    # out 0x80, ax; out 0x80, eax; in eax, 0x81; hlt
    guest.load(b"\xe7\x80\x66\xe7\x80\x66\xe5\x81" + HLT, rax=0x11223344)
    assert guest.run() is Exit.IO
    assert guest.vcpu.io_data() == b"\x44\x33"
    assert guest.run() is Exit.IO
    assert guest.vcpu.io_data() == b"\x44\x33\x22\x11"
    assert guest.run() is Exit.IO
    guest.vcpu.set_io_data(b"\x01\x02\x03\x04")
    assert guest.run() is Exit.HLT
    assert guest.vcpu.get_regs().rax == 0x04030201


def test_a_write_outside_every_slot_is_mmio(guest: Guest) -> None:
    # mov [0x9000], ax; hlt
    guest.load(b"\xa3\x00\x90" + HLT, rax=0xBEEF)
    assert guest.run() is Exit.MMIO
    mmio = guest.vcpu.kvm_run.mmio
    assert (mmio.phys_addr, mmio.len, mmio.is_write, bytes(mmio.data[:2])) == (0x9000, 2, 1, b"\xef\xbe")
    assert guest.run() is Exit.HLT


def test_a_read_outside_every_slot_is_mmio(guest: Guest) -> None:
    # mov al, [0x9004]; hlt
    guest.load(b"\xa0\x04\x90" + HLT)
    assert guest.run() is Exit.MMIO
    mmio = guest.vcpu.kvm_run.mmio
    assert (mmio.phys_addr, mmio.len, mmio.is_write) == (0x9004, 1, 0)
    mmio.data[0] = 0x5A
    assert guest.run() is Exit.HLT
    assert guest.vcpu.get_regs().rax & 0xFF == 0x5A


def test_memory_is_shared_both_ways(guest: Guest) -> None:
    # mov al, [0x2000]; inc al; mov [0x2001], al; hlt
    guest.load(b"\xa0\x00\x20\xfe\xc0\xa2\x01\x20" + HLT)
    guest.memory[0x2000] = 0x41
    assert guest.run() is Exit.HLT
    assert guest.memory[0x2001] == 0x42


def test_code_changed_between_two_runs_is_what_runs(guest: Guest) -> None:
    guest.load(b"\xb0\x01" + HLT)  # mov al, 1; hlt
    assert guest.run() is Exit.HLT
    guest.load(b"\xb0\x02" + HLT)
    assert guest.run() is Exit.HLT
    assert guest.vcpu.get_regs().rax == 2


def test_an_interrupt_is_delivered_through_the_vector_table(guest: Guest) -> None:
    handler = 0x1100
    guest.memory[handler : handler + 5] = b"\xb0\x99\xe6\x80\xcf"  # mov al, 0x99; out 0x80, al; iret
    guest.memory[0x20 * 4 : 0x20 * 4 + 4] = handler.to_bytes(4, "little")
    sregs = guest.vcpu.get_sregs()
    sregs.idt.base, sregs.idt.limit = 0, 0x3FF
    guest.vcpu.set_sregs(sregs)
    guest.load(b"\xfb\x90" + HLT + HLT)  # sti; nop; hlt; hlt
    assert guest.run() is Exit.HLT
    guest.vcpu.interrupt(0x20)
    assert guest.run() is Exit.IO
    assert guest.vcpu.io_data() == b"\x99"
    assert guest.run() is Exit.HLT
    assert guest.vcpu.get_regs().rip == CODE + 4


def test_long_mode_with_page_tables(guest: Guest) -> None:
    # movabs rax, 0x1122334455667788; mov [0x2000], rax; mov al, 0x7e; out 0x80, al; hlt
    guest.load(bytes.fromhex("48b88877665544332211 48890425 00200000 b07e e680") + HLT)
    guest.enter_long_mode()

    assert guest.vcpu.translate(0x2000).physical_address == 0x2000
    assert guest.vcpu.translate(0x4000_0000).valid == 0
    assert guest.run() is Exit.IO
    assert guest.vcpu.io_data() == b"\x7e"
    assert guest.run() is Exit.HLT
    assert guest.memory[0x2000:0x2008] == bytes.fromhex("8877665544332211")


def test_a_triple_fault_is_a_shutdown(guest: Guest) -> None:
    """In long mode: a kernel that emulates real mode in software may report an emulation failure there instead."""
    guest.load(b"\x0f\x0b")  # ud2
    guest.enter_long_mode()  # with an interrupt table of length 0: neither #UD, nor #GP, nor #DF has a handler
    assert guest.run() is Exit.SHUTDOWN


def test_cpuid_answers_what_the_vmm_has_set(guest: Guest) -> None:
    guest.vcpu.set_cpuid2([header.kvm_cpuid_entry2(function=0x40000000, eax=0x40000001, ebx=0x1234, ecx=0x5678, edx=9)])
    guest.load(b"\x0f\xa2" + HLT, rax=0x40000000)  # cpuid; hlt
    assert guest.run() is Exit.HLT
    regs = guest.vcpu.get_regs()
    assert (regs.rax, regs.rbx, regs.rcx, regs.rdx) == (0x40000001, 0x1234, 0x5678, 9)


def test_immediate_exit_is_eintr_before_any_instruction(guest: Guest) -> None:
    guest.load(HLT)
    guest.vcpu.kvm_run.immediate_exit = 1
    with pytest.raises(KvmError) as caught:
        guest.vcpu.run()
    assert caught.value.errno == errno.EINTR
    guest.vcpu.kvm_run.immediate_exit = 0
    assert guest.vcpu.get_regs().rip == CODE
    assert guest.run() is Exit.HLT


def test_an_ioeventfd_takes_the_place_of_the_exit(guest: Guest, kernel: Kernel) -> None:
    event = kernel.eventfd()
    try:
        guest.vm.ioeventfd(event, 0x510, 1, header.IoeventfdFlag.PIO)
        guest.load(b"\xba\x10\x05\xee\xee" + HLT)  # mov dx, 0x510; out dx, al; out dx, al; hlt
        assert guest.run() is Exit.HLT
        with open(event, "rb", buffering=0, closefd=False) as counter:
            assert int.from_bytes(counter.read(8), "little") == 2
    finally:
        kernel.close(event)


def test_writes_are_logged_where_asked(kvm: Kvm, guest: Guest) -> None:
    logged = mmap.mmap(-1, 0x4000)
    guest.vm.set_user_memory_region(1, 0x10000, 0x4000, logged, header.KVM_MEM_LOG_DIRTY_PAGES)
    guest.load(b"\x66\x67\xc7\x05" + (0x12000).to_bytes(4, "little") + b"\x01\0\0\0" + HLT)  # mov dword [0x12000], 1
    sregs = guest.vcpu.get_sregs()
    sregs.ds.limit, sregs.ds.g = 0xFFFFFFFF, 1  # "unreal mode"
    guest.vcpu.set_sregs(sregs)
    assert guest.run() is Exit.HLT
    assert guest.vm.dirty_log(1, 4)[0] == 0b0100
    assert guest.vm.dirty_log(1, 4)[0] == 0
    assert logged[0x2000] == 1
