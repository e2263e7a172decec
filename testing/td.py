# SPDX-License-Identifier: GPL-2.0-or-later
"""A Trust Domain around the measured guest, made by the ordinary client in the order that the interface demands."""

from __future__ import annotations

import mmap
import time
from types import TracebackType
from typing import Self

from swtdx.uapi import kvm
from swtdx.uapi.client import Kvm, Vcpu, Vm
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.layout import address_of
from testing import guest
from testing.guest import PAGE_SIZE, Port, Workload

XFAM = 0x3  # x87 and SSE
GPA_WIDTH = 48


def fresh_td(device: Kvm, private_bytes: int) -> tuple[Vm, Vcpu, int]:
    """A TD with one vCPU and private memory from 0 on and in the reset page: (VM, vCPU, guest_memfd or -1).

    What is left to do is to put the initial memory in, and to finalize.
    """
    vm = device.create_td()
    memfd = -1
    try:
        vm.split_irqchip()
        cpuid = device.supported_cpuid()
        capabilities = vm.tdx_capabilities()
        vm.tdx_init(0, XFAM | capabilities.xfam_required, capabilities.configure(cpuid, GPA_WIDTH))
        memfd = _memory(vm, private_bytes)
        vcpu = vm.create_vcpu(0)
        for entry in cpuid:
            if entry.function == 1:
                entry.ecx |= 1 << 21  # X2APIC, which INIT_VCPU asks for
        vcpu.set_cpuid2(cpuid)
        vcpu.tdx_init_vcpu()
    except BaseException:
        for each in vm.vcpus:
            each.close()
        vm.close()
        if memfd >= 0:
            device.kernel.close(memfd)
        raise
    return vm, vcpu, memfd


def _memory(vm: Vm, private_bytes: int) -> int:
    shared, top = mmap.mmap(-1, private_bytes), mmap.mmap(-1, PAGE_SIZE)
    if vm.dialect is Dialect.V10:  # initial memory is copied from the slots themselves
        vm.set_user_memory_region(0, 0, private_bytes, shared)
        vm.set_user_memory_region(1, guest.RESET_PAGE, PAGE_SIZE, top)
        return -1
    memfd = vm.create_guest_memfd(private_bytes + PAGE_SIZE)
    flags = kvm.MemFlag.GUEST_MEMFD
    vm.set_user_memory_region2(0, 0, private_bytes, shared, flags, memfd, 0)
    vm.set_user_memory_region2(1, guest.RESET_PAGE, PAGE_SIZE, top, flags, memfd, private_bytes)
    vm.set_memory_attributes(0, private_bytes, kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    vm.set_memory_attributes(guest.RESET_PAGE, PAGE_SIZE, kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE)
    return memfd


def staged(contents: bytes) -> mmap.mmap:
    """Page-aligned user memory that holds ``contents``."""
    memory = mmap.mmap(-1, -len(contents) // PAGE_SIZE * -PAGE_SIZE)
    memory[: len(contents)] = contents
    return memory


class MeasuredTd:
    """The guest of `testing.guest`, running as a TD. A context manager."""

    def __init__(self, device: Kvm) -> None:
        self.vm, self.vcpu, self.memfd = fresh_td(device, guest.FRESH + guest.FRESH_PAGES * PAGE_SIZE)
        try:
            for gpa, contents in (
                (guest.RESET_PAGE, guest.reset_page()),
                (guest.PAGE_TABLES, guest.page_tables()),
                (guest.CODE, guest.code_page()),
                (guest.DATA, bytes(guest.DATA_PAGES * PAGE_SIZE)),
            ):
                source = staged(contents)
                self.vm.tdx_init_mem_region(address_of(source), gpa, len(source) // PAGE_SIZE)
            self.vm.tdx_finalize()
            if self.vm.dialect is Dialect.UPSTREAM:
                self.vm.enable_cap(kvm.Cap.EXIT_HYPERCALL, 1 << kvm.KVM_HC_MAP_GPA_RANGE)
            self._run_to(Port.WORKLOAD)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Take the TD down."""
        close(self.vm, self.vcpu, self.memfd)

    def seconds(self, workload: Workload, count: int) -> float:
        """Let the guest do ``workload`` ``count`` times: seconds from telling it to its report."""
        self.vcpu.set_io_data(int(workload).to_bytes(4, "little"))
        self._run_to(Port.COUNT)
        self.vcpu.set_io_data(count.to_bytes(4, "little"))
        run, io, execute = self.vcpu.kvm_run, self.vcpu.kvm_run.io, self.vcpu.run
        begin = time.perf_counter()
        execute()
        while run.exit_reason == kvm.Exit.IO and io.port == Port.EXIT:
            execute()
        while run.exit_reason == kvm.Exit.HYPERCALL:
            self._convert()
            execute()
        end = time.perf_counter()
        self._expect(Port.DONE)
        self._run_to(Port.WORKLOAD)
        return end - begin

    def _convert(self) -> None:
        """Do as MapGPA asks."""
        call = self.vcpu.kvm_run.hypercall
        private = call.args[2] & kvm.KVM_MAP_GPA_RANGE_ENCRYPTED
        attributes = kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE if private else 0
        self.vm.set_memory_attributes(call.args[0], call.args[1] * PAGE_SIZE, attributes)
        call.ret = 0

    def _run_to(self, port: Port) -> None:
        self.vcpu.run()
        self._expect(port)

    def _expect(self, port: Port) -> None:
        run = self.vcpu.kvm_run
        if run.exit_reason != kvm.Exit.IO or run.io.port != port:
            raise RuntimeError(f"the guest exits with {self.vcpu.exit_reason!r}, not at port {port:#x}")


def close(vm: Vm, vcpu: Vcpu, memfd: int) -> None:
    """Close a TD's descriptors."""
    vcpu.close()
    vm.close()
    if memfd >= 0:
        vm.kernel.close(memfd)
