# SPDX-License-Identifier: GPL-2.0-or-later
"""GuestPhysAddrSize, and memory where it leads.

arch/x86/kvm/cpuid.c since Linux 6.10: CPUID 0x80000008 EAX[23:16] is the widest guest-physical address that the page
tables reach: PhysAddrSize with five levels of EPT, 48 with four. Before it was 0.
"""

from __future__ import annotations

import mmap
import struct

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect

PML4, PDPT, PD = 0x2000, 0x3000, 0x4000
BIG = 1 << 50


def address_sizes(dialect: Dialect) -> tuple[int, int, int]:
    with Kvm(open_kernel("emulated", dialect)) as device:
        (entry,) = (entry for entry in device.supported_cpuid() if entry.function == 0x80000008)
        return entry.eax & 0xFF, entry.eax >> 8 & 0xFF, entry.eax >> 16


def test_guest_phys_addr_size() -> None:
    assert address_sizes(Dialect.UPSTREAM) == (52, 57, 52)


def test_the_kernels_of_2022_had_none() -> None:
    assert address_sizes(Dialect.V10) == (52, 57, 0)


@pytest.mark.parametrize("moved", [False, True], ids=["created there", "moved there"])
@pytest.mark.parametrize("running", [False, True], ids=["before the first run", "after it"])
def test_a_guest_reaches_memory_above_48_bits(moved: bool, running: bool) -> None:
    with Kvm(open_kernel("emulated")) as device, device.create_vm() as vm:
        low, high = mmap.mmap(-1, 0x10000), mmap.mmap(-1, 0x200000)
        struct.pack_into("<Q", low, PML4, PDPT | 3)
        struct.pack_into("<Q", low, PDPT, PD | 3)
        struct.pack_into("<QQ", low, PD, 0x83, BIG | 0x83)
        code = bytes.fromhex("e610 8a042500002000 48c7042508002000 78563412 e611".replace(" ", ""))
        low[0x1000 : 0x1000 + len(code)] = code
        high[0] = 0x5A
        vm.set_user_memory_region(0, 0, len(low), low)
        vcpu = vm.create_vcpu(0)
        vcpu.set_cpuid2(device.supported_cpuid())
        sregs = vcpu.get_sregs()
        sregs.cs = k.kvm_segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, s=1, l=1, g=1)
        sregs.cr3, sregs.cr4, sregs.efer, sregs.cr0 = PML4, 0x20, 0x500, 0x80000011
        vcpu.set_sregs(sregs)
        vcpu.set_regs(k.kvm_regs(rip=0x1000, rflags=2))
        if running:
            vcpu.run()
            assert vcpu.kvm_run.io.port == 0x10
        vm.set_user_memory_region(1, 1 << 30 if moved else BIG, len(high), high)
        if moved:
            vm.set_user_memory_region(1, BIG, len(high), high)
        if not running:
            vcpu.run()
        vcpu.run()
        assert (vcpu.exit_reason, vcpu.kvm_run.io.port) == (k.Exit.IO, 0x11)
        assert vcpu.get_regs().rax & 0xFF == 0x5A
        assert high[8:16] == (0x12345678).to_bytes(8, "little")
        vcpu.close()
