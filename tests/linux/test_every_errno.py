# SPDX-License-Identifier: GPL-2.0-or-later
"""What is left of the ABI sheet's errno: those that need a shortage, a signal, another thread, or a whole life before.

Sections 1.1 to 1.4, 2.3 and 3.1 of the sheet. Each test breaks what is checked later, too, where that can be done.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from swtdx.linux.err import err
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi import tdx_v10 as v10
from swtdx.uapi.layout import address_of, with_entries
from tests.linux.conftest import Bench, boot_v10, ept_violation, exits, on_release, refused, signals

NOWHERE = 8


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextmanager
def no_more_pages(bench: Bench, after: int = 0) -> Iterator[None]:
    """The kernel's allocator gives ``after`` pages more."""
    pages, left = bench.kernel.pages, [after]
    real = pages.alloc_page

    def alloc_page(use: str) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise err(errno.ENOMEM, use)
        return real(use)

    pages.alloc_page = alloc_page  # type: ignore[method-assign]
    try:
        yield
    finally:
        del pages.alloc_page


# --- Section 1.1 to 1.3 -----------------------------------------------------------------------------------------------


def test_too_many_files_wins_over_a_bad_type(bench: Bench) -> None:
    device = bench.device()
    with no_more_descriptors(), refused(errno.EMFILE):
        bench.ioctl(device, k.KVM_CREATE_VM, 31)


def test_too_many_files_for_a_vcpu_and_a_guest_memfd(bench: Bench) -> None:
    vm = bench.td()
    before = bench.kernel.pages.in_use
    with no_more_descriptors(), refused(errno.EMFILE):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    with no_more_descriptors(), refused(errno.EMFILE):
        bench.memfd(vm)
    assert bench.kernel.pages.in_use == before
    bench.vcpu(vm)
    bench.memfd(vm)


def test_the_tds_state_wins_over_its_irqchip(bench: Bench) -> None:
    vm = bench.vm()
    with refused(errno.EIO):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    with refused(errno.EINVAL):  # and the id over the state
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 4096)
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    with refused(errno.EINVAL):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)


def test_a_dead_vms_vcpu_answers_nothing(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.module.answers["MR_FINALIZE"] = [0xC0000607_00000000]
    with refused(errno.EIO):
        bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    for request, argument in ((k.KVM_RUN, 1), (k.KVM_GET_REGS, NOWHERE), (0x1234, 0)):  # before all else
        with refused(errno.EIO):
            bench.ioctl(vcpu, request, argument)


def test_an_overlap_wins_over_a_bad_guest_memfd(bench: Bench) -> None:
    vm = bench.td()
    bench.memory(vm)
    region = k.kvm_userspace_memory_region2(slot=1, flags=4, guest_phys_addr=0x8000, memory_size=0x1000,
                                            guest_memfd=9999)  # fmt: skip
    with refused(errno.EEXIST):
        bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, region)
    region.guest_phys_addr = 0x20000
    with refused(errno.EBADF):
        bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, region)


# --- Sections 1.4 and 3.1: running ------------------------------------------------------------------------------------


def test_a_vcpu_that_waits_to_be_started(bench: Bench) -> None:
    """EINTR with immediate_exit; when it is woken, EAGAIN: KVM_RUN is to be called again."""
    vm = bench.vm(0)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    second = bench.ioctl(vm, k.KVM_CREATE_VCPU, 1)
    run = bench.run_page(second)
    run.immediate_exit = 1
    with refused(errno.EINTR):
        bench.ioctl(second, k.KVM_RUN)
    run.immediate_exit = 0
    codes: list[int | None] = []

    def wait() -> None:
        try:
            bench.kernel.ioctl(second, k.KVM_RUN, 0)
        except OSError as error:
            codes.append(error.errno)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    time.sleep(0.05)
    assert codes == []
    (kvm,) = bench.kernel.vms
    apic = kvm.vcpus[1].apic
    assert apic is not None
    apic.accept_irq(5, 0, level_triggered=False)  # INIT, from another vCPU
    thread.join(10)
    assert codes == [errno.EAGAIN]


def test_a_signal_ends_pre_faulting(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.memory(vm)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    request = k.kvm_pre_fault_memory(gpa=0, size=0x2000)
    with signals(bench) as arrive, refused(errno.EINTR):
        arrive()
        bench.ioctl(vcpu, k.KVM_PRE_FAULT_MEMORY, request)
    assert (request.gpa, request.size) == (0, 0x2000)
    request.flags = 1
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, k.KVM_PRE_FAULT_MEMORY, request)


# --- Section 2.3 ------------------------------------------------------------------------------------------------------


def test_a_signal_between_two_pages(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    region = bench.region(source, 0, 3)
    with signals(bench) as arrive, refused(errno.EINTR):

        def page_add(args: object) -> int:
            arrive()
            return 0

        bench.module.answers["MEM_PAGE_ADD"] = [page_add]
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert (region.source_addr, region.gpa, region.nr_pages) == (source + 0x1000, 0x1000, 2)
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert region.nr_pages == 0


@on_release("6.19")  # the last one that answers EEXIST
def test_a_region_that_cannot_be_written_back(bench: Bench) -> None:
    """EFAULT, whatever became of the pages."""
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    page = mmap.mmap(-1, 4096)
    page[:24] = bytes(bench.region(source, 0, 1))
    address = address_of(page)
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ) == 0
    with refused(errno.EFAULT):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, address)
    with refused(errno.EEXIST):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0, 1))


def test_get_cpuid_that_cannot_be_read_or_written(bench: Bench) -> None:
    vcpu = bench.vcpu(bench.td())
    bench.module.answers["MNG_RD"] = [0xC0000C02 << 32] * 2
    with refused(errno.EFAULT):  # before the module is asked
        bench.command(vcpu, up.KVM_TDX_GET_CPUID, NOWHERE)
    with refused(errno.EIO):
        bench.command(vcpu, up.KVM_TDX_GET_CPUID, with_entries(k.kvm_cpuid2, 100)(nent=100))


def test_finalized_once(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    for fd, number in ((vm, up.KVM_TDX_FINALIZE_VM), (vm, up.KVM_TDX_INIT_VM), (vcpu, up.KVM_TDX_GET_CPUID)):
        with refused(errno.EINVAL):
            bench.command(fd, number, NOWHERE)


def test_v10_vcpu_commands(bench_v10: Bench) -> None:
    vm = bench_v10.td()
    vcpu = bench_v10.vcpu(vm, init=False)
    with refused(errno.EFAULT):
        bench_v10.ioctl(vcpu, k.KVM_MEMORY_ENCRYPT_OP, NOWHERE)
    for number, flags, error in ((up.KVM_TDX_INIT_VCPU, 1, 0), (up.KVM_TDX_INIT_VCPU, 0, 1), (4, 0, 0)):
        with refused(errno.EINVAL):
            bench_v10.command(vcpu, number, 0, flags, error)
    bench_v10.command(vcpu, up.KVM_TDX_INIT_VCPU, 0x809000)
    with refused(errno.EINVAL):  # already, before the pointer
        bench_v10.ioctl(vcpu, k.KVM_MEMORY_ENCRYPT_OP, NOWHERE)


def test_v10_finalized_once(bench_v10: Bench) -> None:
    vm = bench_v10.td()
    bench_v10.command(vm, up.KVM_TDX_FINALIZE_VM)
    with refused(errno.EINVAL):
        bench_v10.command(vm, up.KVM_TDX_FINALIZE_VM)


# --- Out of pages -----------------------------------------------------------------------------------------------------


def test_no_page_for_a_vm(bench: Bench) -> None:
    device = bench.device()
    with no_more_pages(bench), refused(errno.ENOMEM):
        bench.ioctl(device, k.KVM_CREATE_VM, 0)
    assert not bench.kernel.vms


@pytest.mark.parametrize("after", range(8))
def test_no_page_for_a_td(bench: Bench, after: int) -> None:
    """TDR, TDCS pages, TD_PARAMS."""
    vm = bench.td(init=False)
    before = bench.kernel.pages.in_use
    with no_more_pages(bench, after), refused(errno.ENOMEM):
        bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    assert bench.kernel.pages.in_use == before
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())


@pytest.mark.parametrize("after", range(6))
def test_no_page_for_a_vcpu(bench: Bench, after: int) -> None:
    """TDVPR, TDCX pages. The vCPU may be initialised when there are some."""
    vm = bench.td()
    vcpu = bench.vcpu(vm, init=False)
    before = bench.kernel.pages.in_use
    with no_more_pages(bench, after), refused(errno.ENOMEM):
        bench.command(vcpu, up.KVM_TDX_INIT_VCPU, 0)
    assert bench.kernel.pages.in_use == before
    bench.command(vcpu, up.KVM_TDX_INIT_VCPU, 0)


def test_no_page_for_a_vcpus_descriptor(bench: Bench) -> None:
    vm = bench.td()
    with no_more_pages(bench), refused(errno.ENOMEM):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    bench.vcpu(vm)


@pytest.mark.parametrize("after", range(5))
def test_no_page_for_initial_memory(bench: Bench, after: int) -> None:
    """The bounce page, the guest_memfd's page, three tables; what was had is used when the call is repeated."""
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    region = bench.region(bench.memory(vm), 0, 1)
    with no_more_pages(bench, after), refused(errno.ENOMEM):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert region.nr_pages == 1
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert region.nr_pages == 0


@pytest.mark.parametrize("after", range(4))
def test_no_page_for_a_fault(bench: Bench, after: int) -> None:
    """KVM_RUN is ENOMEM, for the guest_memfd's page with KVM_EXIT_MEMORY_FAULT, for tables without; it can go on."""
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.memory(vm)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    run = bench.run_page(vcpu)
    bench.module.answers["VP_ENTER"] = exits(ept_violation(0x3000), ept_violation(0x3000))
    with no_more_pages(bench, after), refused(errno.ENOMEM):
        bench.ioctl(vcpu, k.KVM_RUN)
    if after == 0:
        fault = run.memory_fault
        assert (run.exit_reason, fault.gpa, fault.flags, fault.size) == (k.Exit.MEMORY_FAULT, 0x3000, 8, 0x1000)
    else:
        assert run.exit_reason == k.Exit.UNKNOWN
    bench.ioctl(vcpu, k.KVM_RUN)
    assert run.exit_reason == k.Exit.SHUTDOWN
    assert bench.module.names().count("MEM_PAGE_AUG") == 1


# --- What succeeds ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["upstream", "v10"])
def test_a_whole_life(bench: Bench, dialect: str) -> None:
    """Every sub-command of a launch, in its order, and KVM_RUN."""
    if dialect == "v10":
        bench = boot_v10()
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    target = vcpu if dialect == "upstream" else vm
    region_type: Callable[..., ctypes.Structure] = (
        up.kvm_tdx_init_mem_region if dialect == "upstream" else v10.kvm_tdx_init_mem_region
    )
    assert bench.command(target, up.KVM_TDX_INIT_MEM_REGION, region_type(source, 0, 1), flags=1) == 0
    assert bench.command(vm, up.KVM_TDX_FINALIZE_VM) == 0
    bench.module.answers["VP_ENTER"] = exits()
    assert bench.ioctl(vcpu, k.KVM_RUN) == 0
