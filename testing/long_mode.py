# SPDX-License-Identifier: GPL-2.0-or-later
"""An ordinary VM of one vCPU in 64-bit mode, in which an exception is seen: each has a handler that reports its vector.

Memory: page tables at 0x2000, IDT at 0x5000, handlers at 0x6000, GDT and TSS at 0x7000, code at 0x1000, data at 0x9000.
The first GiB is mapped onto itself, and so is the one at 0xC0000000, where there is no memory.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterable
from typing import Self

from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vm

CODE, PML4, IDT, HANDLERS, GDT, TSS, DATA, STACK = 0x1000, 0x2000, 0x5000, 0x6000, 0x7000, 0x7100, 0x9000, 0xF000
MMIO = 0xD000_0000
SIZE = 0x20_0000
FAULT_PORT, DONE_PORT = 0xE0, 0xE1
CODE_SELECTOR, DATA_SELECTOR, TSS_SELECTOR, LDT_SELECTOR = 8, 16, 24, 40
UD, NM, DF, GP, PF = 6, 7, 8, 13, 14
DONE = b"\xe6" + bytes([DONE_PORT])
_GATE = struct.Struct("<HHBBHII")


def move(register: int, value: int) -> bytes:
    """Machine code: MOV of 64 bits to a general register by its number."""
    return bytes([0x48 | register >> 3, 0xB8 | register & 7]) + struct.pack("<Q", value)


def wrmsr(index: int, value: int) -> bytes:
    """Machine code: WRMSR."""
    low, high = value & 0xFFFFFFFF, value >> 32
    return (
        b"\xb9"
        + struct.pack("<I", index)
        + b"\xb8"
        + struct.pack("<I", low)
        + b"\xba"
        + struct.pack("<I", high)
        + (b"\x0f\x30")
    )


def rdmsr(index: int) -> bytes:
    """Machine code: RDMSR."""
    return b"\xb9" + struct.pack("<I", index) + b"\x0f\x32"


def write_cr(number: int, value: int) -> bytes:
    """Machine code: MOV to a control register."""
    prefix = b"\x44" if number >= 8 else b""
    return move(0, value) + prefix + bytes([0x0F, 0x22, 0xC0 | (number & 7) << 3])


def split_irqchip(vm: Vm) -> None:
    """A ``setup`` of `LongModeVm`: the local APIC in the kernel, the other interrupt controllers in user space."""
    vm.enable_cap(k.Cap.SPLIT_IRQCHIP, 24)


class LongModeVm:
    """``cpuid``: the entries of KVM_SET_CPUID2, those that KVM supports unless given; None for no such call."""

    def __init__(
        self,
        kvm: Kvm,
        cpuid: Iterable[k.kvm_cpuid_entry2] | str | None = "supported",
        setup: Callable[[Vm], None] = lambda vm: None,
        vm_type: int = k.VmType.DEFAULT,
    ) -> None:
        self.vm = kvm.create_vm(vm_type)
        setup(self.vm)
        self.memory = mmap.mmap(-1, SIZE)
        self.vm.set_user_memory_region(0, 0, SIZE, self.memory)
        self._fill()
        self.vcpu = self.vm.create_vcpu(0)
        if cpuid is not None:
            self.vcpu.set_cpuid2(kvm.supported_cpuid() if isinstance(cpuid, str) else list(cpuid))
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the vCPU and the VM."""
        self.vcpu.close()
        self.vm.close()

    def _fill(self) -> None:
        memory = self.memory
        struct.pack_into("<Q", memory, PML4, PML4 + 0x1000 | 3)
        struct.pack_into("<4Q", memory, PML4 + 0x1000, 0x83, 0, 0, 3 << 30 | 0x83)  # pages of 1 GiB
        for vector in range(256):
            at = HANDLERS + 8 * vector
            memory[at : at + 5] = bytes([0xB0, vector, 0xE6, FAULT_PORT, 0xF4])
            _GATE.pack_into(memory, IDT + 16 * vector, at, CODE_SELECTOR, 0, 0x8E, 0, 0, 0)
        struct.pack_into(
            "<7Q", memory, GDT, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_7100_0067, 0,
            0x0000_8200_8000_0FFF, 0,
        )  # fmt: skip

    def reset(self) -> None:
        """Put the vCPU into 64-bit mode at `CODE`."""
        sregs = self.vcpu.get_sregs()
        sregs.cs = k.kvm_segment(limit=0xFFFFFFFF, selector=CODE_SELECTOR, type=11, present=1, s=1, l=1, g=1)
        data = k.kvm_segment(limit=0xFFFFFFFF, selector=DATA_SELECTOR, type=3, present=1, s=1, db=1, g=1)
        sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data
        sregs.tr = k.kvm_segment(base=TSS, limit=0x67, selector=TSS_SELECTOR, type=11, present=1)
        sregs.ldt = k.kvm_segment(unusable=1)
        sregs.gdt.base, sregs.gdt.limit = GDT, 0x37
        sregs.idt.base, sregs.idt.limit = IDT, 0xFFF
        sregs.cr3, sregs.cr4, sregs.efer, sregs.cr0 = PML4, 0x20, 0x500, 0x80010031
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2, rsp=STACK))

    def load(self, code: bytes, at: int = CODE) -> None:
        """Put code into memory."""
        self.memory[at : at + len(code)] = code

    def start(self, code: bytes, **registers: int) -> None:
        """Load code that ends by reporting that it is done, and set RIP to it."""
        self.load(code + DONE)
        self.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=2, rsp=STACK, **registers))

    def step(self) -> k.Exit:
        """KVM_RUN once."""
        self.vcpu.run()
        return k.Exit(self.vcpu.exit_reason)

    def run(self, code: bytes, **registers: int) -> int | None:
        """Execute ``code``: the vector of the exception that it raised, or None."""
        self.start(code, **registers)
        return self.outcome()

    def outcome(self) -> int | None:
        """Run to the end of what was started."""
        assert self.step() is k.Exit.IO, self.vcpu.exit_reason
        port = self.vcpu.kvm_run.io.port
        assert port in (FAULT_PORT, DONE_PORT)
        return self.vcpu.io_data()[0] if port == FAULT_PORT else None
