# SPDX-License-Identifier: GPL-2.0-or-later
"""Two TDs and two normal VMs of two vCPUs each, at once, on interrupts and I/O (`smp_guest`); nothing is left over."""

from __future__ import annotations

import mmap
import os
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from swtdx.cpu.platform import Platform
from swtdx.machine import MachineKernel, boot
from swtdx.uapi.client import Kvm, Vcpu, Vm, msi_route
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import KVM_MP_STATE_RUNNABLE, Exit, IoeventfdFlag, kvm_regs, kvm_segment
from swtdx.uapi.layout import address_of
from testing import guest
from testing.td import fresh_td, staged
from tests.machine import smp_guest as program
from tests.uapi.conftest import host_kernel

TURNS, VCPUS = 60, 2
PAGE = 4096


class Board:
    """What the guest's ports and its MMIO address do: the VMM of one VM."""

    def __init__(self, vm: Vm) -> None:
        self.vm = vm
        self.kernel = vm.kernel
        self.counted = self.kernel.eventfd()
        vm.ioeventfd(self.counted, program.PORT_COUNTED, 4, IoeventfdFlag.PIO)
        self.irqfds = [self.kernel.eventfd() for _ in range(VCPUS)]
        vm.set_gsi_routing([msi_route(number, 0xFEE00000 | number << 12, program.MESSAGE) for number in range(VCPUS)])
        for number, event in enumerate(self.irqfds):
            vm.irqfd(event, number)
        self.reports: list[dict[str, int]] = [{} for _ in range(VCPUS)]
        self.exits: list[Counter[str]] = [Counter() for _ in range(VCPUS)]

    def run(self, vcpu: Vcpu) -> None:
        """Until the guest is done."""
        seen, report, run = self.exits[vcpu.id], self.reports[vcpu.id], vcpu.kvm_run
        while True:
            vcpu.run()
            if vcpu.exit_reason == Exit.MMIO:
                seen["mmio"] += 1
                assert (run.mmio.phys_addr, run.mmio.len, run.mmio.is_write) == (program.MMIO, 4, 1)
                assert struct.unpack("<I", bytes(run.mmio.data)[:4]) == (seen["mmio"],)
                continue
            assert vcpu.exit_reason == Exit.IO, vcpu.exit_reason
            port, (value,) = run.io.port, struct.unpack("<I", vcpu.io_data())
            if port == program.PORT_INTERRUPT:
                seen["interrupt"] += 1
                assert value == seen["interrupt"]
                os.eventfd_write(self.irqfds[vcpu.id], 1)
            elif port == program.PORT_DONE:
                return
            else:
                report[program.COUNTED[port - program.PORT_REPORT]] = value

    def close(self) -> None:
        for event in (self.counted, *self.irqfds):
            self.kernel.close(event)

    def check(self) -> None:
        """Every interrupt was counted once and every access seen."""
        assert self.reports == [dict.fromkeys(program.COUNTED, TURNS)] * VCPUS
        assert self.exits == [Counter(mmio=TURNS, interrupt=TURNS)] * VCPUS
        assert os.eventfd_read(self.counted) == VCPUS * TURNS


def run_all(board: Board, vcpus: list[Vcpu]) -> None:
    """Each vCPU in a thread of its own."""
    failures: list[BaseException] = []

    def one(vcpu: Vcpu) -> None:
        try:
            board.run(vcpu)
        except BaseException as error:  # noqa: BLE001 - the calling thread must see it
            failures.append(error)

    threads = [threading.Thread(target=one, args=(vcpu,), daemon=True) for vcpu in vcpus]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), (board.exits, board.reports)


def normal_vm(device: Kvm) -> None:
    """The program in a default VM; both vCPUs start in 64-bit mode."""
    memory = mmap.mmap(-1, program.END)
    tables = guest.page_tables()
    memory[guest.PAGE_TABLES : guest.PAGE_TABLES + len(tables)] = tables
    code = program.image(td=False, turns=TURNS)
    memory[program.CODE : program.CODE + len(code)] = code
    with device.create_vm() as vm:
        vm.split_irqchip()
        vm.set_user_memory_region(0, 0, len(memory), memory)
        board = Board(vm)
        vcpus = [vm.create_vcpu(number) for number in range(VCPUS)]
        for vcpu in vcpus:
            _start_in_long_mode(device, vcpu)
        run_all(board, vcpus)
        for vcpu in vcpus:
            vcpu.close()
        board.check()
        board.close()


def _start_in_long_mode(device: Kvm, vcpu: Vcpu) -> None:
    cpuid = device.supported_cpuid()
    for entry in cpuid:
        if entry.function == 1:
            entry.ecx |= 1 << 21 | 1 << 24  # x2APIC, TSC deadline
    vcpu.set_cpuid2(cpuid)
    vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)
    sregs = vcpu.get_sregs()
    sregs.cs = kvm_segment(limit=0xFFFFFFFF, selector=8, type=11, present=1, s=1, l=1, g=1)
    sregs.ss = sregs.ds = sregs.es = kvm_segment(limit=0xFFFFFFFF, selector=16, type=3, present=1, s=1, db=1, g=1)
    sregs.gdt.base, sregs.gdt.limit = program.GDT, 23
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = 0x80000021, guest.PAGE_TABLES, 0x20, 0x500
    vcpu.set_sregs(sregs)
    vcpu.set_regs(kvm_regs(rip=program.CODE, rflags=2, rsi=vcpu.id))


def trust_domain(device: Kvm) -> None:
    """The same in a TD; both vCPUs start at the reset vector and find their number in RSI."""
    with _built(device) as (board, vcpus):
        run_all(board, vcpus)
        board.check()


@contextmanager
def _built(device: Kvm) -> Iterator[tuple[Board, list[Vcpu]]]:
    vm, first, memfd = fresh_td(device, 64 * PAGE)
    second = vm.create_vcpu(1)
    second.set_cpuid2(first.get_cpuid2())
    second.tdx_init_vcpu()
    board = Board(vm)
    try:
        for gpa, contents in (
            (guest.RESET_PAGE, guest.reset_page()),
            (guest.PAGE_TABLES, guest.page_tables()),
            (program.CODE, program.image(td=True, turns=TURNS)),
        ):
            source = staged(contents)
            vm.tdx_init_mem_region(address_of(source), gpa, len(source) // PAGE)
        vm.tdx_finalize()
        yield board, [first, second]
    finally:
        board.close()
        for vcpu in (first, second):
            vcpu.close()
        vm.close()
        if memfd >= 0:
            device.kernel.close(memfd)


def test_the_program_in_a_normal_vm_of_a_real_kernel() -> None:
    """The oracle: on the host's own KVM the program gives the same counts."""
    with Kvm(host_kernel()) as device:
        normal_vm(device)


@pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
def test_two_tds_and_two_normal_vms_on_interrupts_and_io(dialect: Dialect) -> None:
    kernel: MachineKernel = boot(dialect, Platform(memory_size=2 << 30, logical_processors=4))
    tdx = kernel.tdx
    assert tdx is not None
    failures: list[BaseException] = []

    def work(one: Callable[[Kvm], None], device: Kvm) -> None:
        try:
            one(device)
        except BaseException as error:  # noqa: BLE001 - the test's own thread must see it
            failures.append(error)

    with Kvm(kernel) as device:
        before = kernel.pages.in_use, tdx.free_hkids
        threads = [
            threading.Thread(target=work, args=(one, device), daemon=True)
            for one in (trust_domain, normal_vm, trust_domain, normal_vm)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(150)
        if failures:
            raise failures[0]
        assert not any(thread.is_alive() for thread in threads)
        assert (kernel.pages.in_use, tdx.free_hkids) == before
        assert not kernel.vms
        assert kernel.module.tds == {}
    kernel.shutdown()
