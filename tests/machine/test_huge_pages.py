# SPDX-License-Identifier: GPL-2.0-or-later
"""Private memory in 2 MiB pages: accepted at once, split when a part is converted, given back whole.

The guest is a few instructions that ask for TDG.MEM.PAGE.ACCEPT and leave by TDVMCALL; what it must get is the module
sheet's: success where a pending page of that size is mapped, PAGE_SIZE_MISMATCH where smaller ones are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from swtdx.cpu.memory import PhysicalMemory
from swtdx.cpu.platform import Platform
from swtdx.linux.arch.x86.kvm.mmu.mirror import MirrorRoot
from swtdx.linux.mm import PageAllocator
from swtdx.machine import MachineKernel, boot
from swtdx.seam.sept import LEAF
from swtdx.seam.status import StatusCode
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import KVM_MEMORY_ATTRIBUTE_PRIVATE, Exit
from swtdx.uapi.layout import address_of
from testing.guest import CODE, PAGE_SIZE, PAGE_TABLES, RESET_PAGE, Port, page_tables, reset_page, tdvmcall_io
from testing.td import close, fresh_td, staged

MIB2 = 2 << 20
PRIVATE_BYTES = 8 << 20
READ, WRITE, ACCEPT = 0, 1, 6
MARK = 0xA5


def guest_code() -> bytes:
    """In an endless loop: take an operation and an operand from two ports, carry it out, put the result to a third."""
    take = tdvmcall_io(4, 0, Port.WORKLOAD) + b"\x44\x89\xdb" + tdvmcall_io(4, 0, Port.COUNT) + b"\x44\x89\xdd"
    read = b"\x44\x0f\xb6\x7d\x00"  # movzx r15d, byte [rbp]
    write = b"\xc6\x45\x00" + bytes([MARK]) + b"\x45\x31\xff"  # mov byte [rbp], MARK; xor r15d, r15d
    accept = (
        b"\x48\x89\xe9\xb8\x06\x00\x00\x00\x66\x0f\x01\xcc"  # mov rcx, rbp; mov eax, 6; tdcall
        b"\x48\xc1\xe8\x20\x41\x89\xc7"  # shr rax, 32; mov r15d, eax
    )
    give = tdvmcall_io(4, 1, Port.DONE)
    code = take
    for operation, body in ((READ, read), (WRITE, write), (ACCEPT, accept)):
        code += b"\x83\xfb" + bytes([operation]) + b"\x75" + bytes([len(body)]) + body  # cmp ebx, n; jne past the body
    code += give
    return code + b"\xe9" + (-(len(code) + 5)).to_bytes(4, "little", signed=True)


class Guest:
    """The TD with that code in it. ``free`` is what was in use before."""

    def __init__(self, device: Kvm) -> None:
        self.vm, self.vcpu, self.memfd = fresh_td(device, PRIVATE_BYTES)
        for gpa, contents in ((RESET_PAGE, reset_page()), (PAGE_TABLES, page_tables()), (CODE, guest_code())):
            source = staged(contents)
            self.vm.tdx_init_mem_region(address_of(source), gpa, len(source) // PAGE_SIZE)
        self.vm.tdx_finalize()
        self.vcpu.run()

    def do(self, operation: int, operand: int) -> int:
        """Let the guest do it; returns what it answers."""
        run = self.vcpu.kvm_run
        for port, value in ((Port.WORKLOAD, operation), (Port.COUNT, operand)):
            assert (run.exit_reason, run.io.port, run.io.direction) == (Exit.IO, port, 0)
            self.vcpu.set_io_data(value.to_bytes(4, "little"))
            self.vcpu.run()
        assert (run.exit_reason, run.io.port, run.io.direction) == (Exit.IO, Port.DONE, 1)
        answer = int.from_bytes(self.vcpu.io_data(), "little")
        self.vcpu.run()
        return answer

    def convert(self, gpa: int, length: int, private: bool) -> None:
        self.vm.set_memory_attributes(gpa, length, KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0)
        if not private:
            self.vm.punch_hole(self.memfd, gpa, length)

    def close(self) -> None:
        close(self.vm, self.vcpu, self.memfd)


@contextmanager
def running(huge: bool, dialect: Dialect = Dialect.UPSTREAM) -> Iterator[tuple[MachineKernel, Guest]]:
    # upstream: the series is a part of `next` only; what it does is shown there.
    release = "next" if dialect is Dialect.UPSTREAM else None
    kernel = boot(dialect, Platform(memory_size=1 << 30), kernel_release=release, tdx_huge_page=huge)
    with Kvm(kernel) as device:
        before = kernel.pages.in_use
        guest = Guest(device)
        try:
            yield kernel, guest
        finally:
            guest.close()
        assert kernel.pages.in_use == before


def mirror_of(kernel: MachineKernel) -> MirrorRoot:
    (vm,) = kernel.vms
    assert vm.mmu.mirror is not None
    return vm.mmu.mirror


def secure_ept_level(kernel: MachineKernel, gpa: int) -> int:
    """The level of the leaf by which the TDX module maps ``gpa``: 0 for 4 KiB, 1 for 2 MiB."""
    (td,) = kernel.module.tds.values()
    _, entry, level = td.sept.walk(gpa, 0)
    assert entry & LEAF
    return level


@pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
def test_2_mib_are_accepted_by_one_page(dialect: Dialect) -> None:
    with running(True, dialect) as (kernel, guest):
        before = kernel.pages.in_use["guest_memfd"]
        assert guest.do(ACCEPT, MIB2 | 1) == 0
        assert kernel.pages.in_use["guest_memfd"] == before + 512
        assert secure_ept_level(kernel, MIB2 + 0x5000) == 1
        assert guest.do(READ, MIB2 + 0x5007) == 0
        guest.do(WRITE, MIB2 + 0x5007)
        assert guest.do(READ, MIB2 + 0x5007) == MARK
        assert guest.do(ACCEPT, MIB2 + 0x5000) == StatusCode.PAGE_ALREADY_ACCEPTED >> 32


def test_merged_kernels_map_4_kib_and_the_guest_hears_of_it() -> None:
    with running(False) as (kernel, guest):
        assert guest.do(ACCEPT, MIB2 | 1) == StatusCode.PAGE_SIZE_MISMATCH >> 32
        assert guest.do(ACCEPT, MIB2) == 0
        assert secure_ept_level(kernel, MIB2) == 0


def test_small_pages_stay_small() -> None:
    with running(True) as (kernel, guest):
        assert guest.do(ACCEPT, MIB2 + 0x3000) == 0
        assert guest.do(ACCEPT, MIB2 | 1) == StatusCode.PAGE_SIZE_MISMATCH >> 32
        assert secure_ept_level(kernel, MIB2 + 0x3000) == 0


def test_what_is_not_all_private_is_not_one_page() -> None:
    with running(True) as (_, guest):
        guest.convert(MIB2 + 0x9000, PAGE_SIZE, private=False)
        assert guest.do(ACCEPT, MIB2 | 1) == StatusCode.PAGE_SIZE_MISMATCH >> 32


def test_a_page_converted_out_of_the_middle_leaves_the_rest_as_it_was() -> None:
    with running(True) as (kernel, guest):
        assert guest.do(ACCEPT, MIB2 | 1) == 0
        for gpa in (MIB2, MIB2 + 0x6000, MIB2 + 0x7000, 2 * MIB2 - 1):
            guest.do(WRITE, gpa)
        before = kernel.pages.in_use["guest_memfd"]
        guest.convert(MIB2 + 0x6000, PAGE_SIZE, private=False)
        assert kernel.pages.in_use["guest_memfd"] == before - 1
        assert secure_ept_level(kernel, MIB2) == 0
        assert mirror_of(kernel).lookup((MIB2 >> 12) + 6) is None
        for gpa in (MIB2, MIB2 + 0x7000, 2 * MIB2 - 1):
            assert guest.do(READ, gpa) == MARK
        guest.convert(MIB2 + 0x6000, PAGE_SIZE, private=True)
        assert guest.do(ACCEPT, MIB2 + 0x6000) == 0
        assert guest.do(READ, MIB2 + 0x6000) == 0


def test_all_of_it_converted_goes_back_whole_and_comes_again() -> None:
    with running(True) as (kernel, guest):
        assert guest.do(ACCEPT, MIB2 | 1) == 0
        guest.do(WRITE, MIB2)
        before = kernel.pages.in_use
        guest.convert(MIB2, MIB2, private=False)
        assert kernel.pages.in_use == before - Counter({"guest_memfd": 512})
        guest.convert(MIB2, MIB2, private=True)
        assert guest.do(ACCEPT, MIB2 | 1) == 0
        assert secure_ept_level(kernel, MIB2) == 1
        assert guest.do(READ, MIB2) == 0


@pytest.mark.parametrize("terminate", [False, True])
def test_nothing_is_left_whichever_way_it_ends(terminate: bool) -> None:
    with running(True) as (kernel, guest):
        assert guest.do(ACCEPT, MIB2 | 1) == 0
        assert guest.do(ACCEPT, 2 * MIB2 | 1) == 0
        guest.convert(MIB2 + 0x6000, PAGE_SIZE, private=False)
        if terminate:
            guest.vm.tdx_terminate()
    assert kernel.module.tds == {}
    memory = kernel.processor.memory
    assert not any(memory.key_of(page << 12) >= kernel.processor.platform.first_private_hkid for page in range(1 << 12))


def test_pages_are_booked_through_splits() -> None:
    pages = PageAllocator(PhysicalMemory(64 << 20))
    small = pages.alloc_page("a")
    huge = pages.alloc_huge_page("b")
    assert huge is not None
    assert huge % MIB2 == 0
    assert pages.in_use == Counter(a=1, b=512)
    pages.split_huge_page(huge)
    assert pages.in_use == Counter(a=1, b=512)
    pages.free_page(huge + 0x3000)
    assert pages.in_use["b"] == 511
    again = pages.alloc_huge_page("c")
    assert again not in (None, huge)
    pages.free_page(small)
    free = (64 << 20) // PAGE_SIZE - 256 - 511 - 512  # the first MiB is the BIOS's
    taken = {pages.alloc_page("rest") for _ in range(free)}
    assert len(taken) == free
    with pytest.raises(OSError, match="out of memory"):
        pages.alloc_page("rest")
    assert pages.alloc_huge_page("d") is None
