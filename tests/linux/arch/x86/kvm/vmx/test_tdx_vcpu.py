# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's vCPU: sub-commands, initial memory, exits. Expectations: the ABI sheet, sections 2.2, 2.3, 3 and 4.1."""

from __future__ import annotations

import ctypes
import errno
import random
import struct
from collections.abc import Callable
from contextlib import nullcontext

import pytest

from swtdx.linux.arch.x86.virt.vmx.tdx import seamcall as s
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi import tdx_v10 as v10
from swtdx.uapi.layout import filled, with_entries
from tests.linux.conftest import Answer, Bench, ept_violation, exits, on_release, refused, signals, tdvmcall

SHARED = 1 << 47
INVALID_OPERAND = 1 << 63
PANICKED = int.from_bytes(b"panicked", "little")


# --- Creation and INIT_VCPU -------------------------------------------------------------------------------------------


def test_a_vcpu_needs_an_initialised_td(bench: Bench) -> None:
    vm = bench.td(init=False)
    with refused(errno.EIO):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    with refused(errno.EIO):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)


def test_a_vcpu_needs_the_split_irqchip(bench: Bench) -> None:
    vm = bench.vm()
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    with refused(errno.EINVAL):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)


def test_vcpu_numbers(bench: Bench) -> None:
    vm = bench.td()
    bench.vcpu(vm, 0)
    with refused(errno.EEXIST):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    with refused(errno.EINVAL):
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 4096)
    bench.vcpu(vm, 1)
    with refused(errno.EINVAL):  # as many as the host has CPUs
        bench.ioctl(vm, k.KVM_CREATE_VCPU, 2)


def test_init_vcpu_seamcalls(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm, 1, init=False)
    bench.module.names()
    bench.command(vcpu, up.KVM_TDX_INIT_VCPU, 0x809000)
    calls = list(bench.module.calls)
    assert bench.module.names() == ["VP_CREATE", *["VP_ADDCX"] * 5, "VP_INIT", "VP_WR", "VP_WR", "VP_WR"]
    registers = calls[6][1]
    assert (registers["rdx"], registers["r8"]) == (0x809000, 1)
    assert [call[1]["rdx"] for call in calls[7:]] == [0x0002, 0x2016, 0x4000]
    assert (calls[9][1]["r8"], calls[9][1]["r9"]) == (0x80, 0x80)


def test_init_vcpu_refusals(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    with refused(errno.EINVAL):  # no X2APIC in its CPUID
        bench.command(vcpu, up.KVM_TDX_INIT_VCPU)
    entry = k.kvm_cpuid_entry2(function=1, ecx=1 << 21)
    bench.ioctl(vcpu, k.KVM_SET_CPUID2, filled(k.kvm_cpuid2, [entry], nent=1))
    with refused(errno.EINVAL):
        bench.command(vcpu, up.KVM_TDX_INIT_VCPU, flags=1)
    bench.command(vcpu, up.KVM_TDX_INIT_VCPU)
    with refused(errno.EINVAL):
        bench.command(vcpu, up.KVM_TDX_INIT_VCPU)


@on_release("6.18")
def test_the_state_wins_over_the_pointer_on_a_vcpu(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    with refused(errno.EFAULT):
        bench.ioctl(vcpu, k.KVM_MEMORY_ENCRYPT_OP, 8)
    with refused(errno.EINVAL):
        bench.command(vcpu, up.KVM_TDX_GET_CPUID, error=1)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, k.KVM_MEMORY_ENCRYPT_OP, 8)


@pytest.mark.parametrize(
    ("leaf", "code"), [("VP_CREATE", errno.EIO), ("VP_ADDCX", errno.EIO), ("VP_INIT", errno.EIO), ("VP_WR", 0)]
)
def test_a_seamcall_error_in_init_vcpu_kills_the_vm(bench: Bench, leaf: str, code: int) -> None:
    """After TDH.VP.WR the call itself succeeds: td_vmcs_write16 and its like return nothing (tdh_vp_wr_failed)."""
    assert bench.kernel.tdx is not None
    hkids = bench.kernel.tdx.free_hkids
    vm = bench.td()
    vcpu = bench.vcpu(vm, init=False)
    bench.module.answers[leaf] = [0xC0000300 << 32]
    with refused(code) if code else nullcontext():
        bench.command(vcpu, up.KVM_TDX_INIT_VCPU)
    with refused(errno.EIO):
        bench.ioctl(vcpu, k.KVM_RUN)
    for fd in (vm, vcpu):
        bench.kernel.close(fd)
    assert not bench.kernel.pages.in_use
    assert bench.kernel.tdx.free_hkids == hkids


# --- GET_CPUID --------------------------------------------------------------------------------------------------------


def test_get_cpuid_tells_how_much_room_it_needs(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    answer = with_entries(k.kvm_cpuid2, 8)(nent=2)
    with refused(errno.E2BIG):
        bench.command(vcpu, up.KVM_TDX_GET_CPUID, answer)
    assert answer.nent == 4
    assert not any(bytes(answer)[8:])
    answer.nent = 8
    bench.command(vcpu, up.KVM_TDX_GET_CPUID, answer, flags=5)  # flags are not looked at
    assert [entry.function for entry in answer.entries[: answer.nent]] == [0, 1, 0x80000000, 0x80000008]
    assert answer.entries[3].eax >> 16 & 0xFF == 48
    assert (answer.entries[1].eax, answer.entries[1].ebx, answer.entries[1].ecx, answer.entries[1].edx) == (1, 2, 3, 4)


# --- INIT_MEM_REGION --------------------------------------------------------------------------------------------------


@pytest.fixture
def building(bench: Bench) -> tuple[int, int, int]:
    """(VM, vCPU, user address of the 16 pages at GPA 0)."""
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    bench.module.names()
    return vm, vcpu, source


def test_adding_pages_costs_exactly_these_seamcalls(bench: Bench, building: tuple[int, int, int]) -> None:
    _, vcpu, source = building
    region = bench.region(source, 0x1000, 2)
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region, flags=1)
    calls = list(bench.module.calls)
    page = ["MEM_PAGE_ADD", *["MR_EXTEND"] * 16]
    assert bench.module.names() == [*["MEM_SEPT_ADD"] * 3, *page, *page]
    assert [call[1]["rcx"] for call in calls[:3]] == [3, 2, 1]  # top down, GPA aligned to each level
    assert [call[1]["rcx"] for call in calls[4:8]] == [0x1000, 0x1100, 0x1200, 0x1300]
    assert (region.source_addr, region.gpa, region.nr_pages) == (source + 0x2000, 0x3000, 0)
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0x3000, 1))
    assert bench.module.names() == ["MEM_PAGE_ADD"]


def test_the_source_page_holds_what_user_memory_held(bench: Bench, building: tuple[int, int, int]) -> None:
    _, vcpu, source = building
    ctypes.memset(source, 0x5A, 4096)
    seen = []

    def page_add(args: object) -> int:
        seen.append(bench.kernel.processor.memory.read(args.r9, 4096))  # type: ignore[attr-defined]
        return 0

    bench.module.answers["MEM_PAGE_ADD"] = [page_add]
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0, 1))
    assert seen == [b"\x5a" * 4096]


REGIONS = {
    "unaligned source": (1, 0, 1),
    "unaligned gpa": (0, 1, 1),
    "no pages": (0, 0, 0),
    "wraps": (0, 0xFFFFFFFFFFFFF000, 2),
    "shared": (0, SHARED, 1),
    "into shared": (0, SHARED - 0x1000, 2),
}


@pytest.mark.parametrize("case", REGIONS)
def test_region_checks(bench: Bench, building: tuple[int, int, int], case: str) -> None:
    _, vcpu, source = building
    offset, gpa, pages = REGIONS[case]
    region = bench.region(source + offset, gpa, pages)
    before = bytes(region)
    with refused(errno.EINVAL):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert bytes(region) == before


def test_region_order_of_checks(bench: Bench, building: tuple[int, int, int]) -> None:
    vm, vcpu, source = building
    other = bench.vcpu(vm, 1, init=False)
    with refused(errno.EINVAL):  # the vCPU's state before everything
        bench.command(other, up.KVM_TDX_INIT_MEM_REGION, 8)
    with refused(errno.EINVAL):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, 8, flags=2)
    with refused(errno.EFAULT):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, 8)
    for gpa, pages in ((0x800, 1), (0, 0), (SHARED, 1), (SHARED - 0x1000, 2), (0x1000, 1 << 52), (-0x1000, 1)):
        with refused(errno.EINVAL):
            bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, gpa, pages))
    region = bench.region(source, 0, (1 << 52) + 1)  # as bytes, 2^64 more than a page: taken, to where a slot ends
    with refused(errno.EINVAL):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert region.gpa == 0x10000


def test_page_refusals_write_back_how_far_it_came(bench: Bench, building: tuple[int, int, int]) -> None:
    vm, vcpu, source = building
    region = bench.region(source, 0xF000, 2)  # the second page has no slot
    with refused(errno.EINVAL):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert (region.gpa, region.nr_pages) == (0x10000, 1)
    bench.attributes(vm, 0x1000, 0x1000, 0)
    with refused(errno.EINVAL):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0x1000, 1))
    with refused(errno.EIO):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0xF000, 1))
    with refused(errno.EFAULT):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(0x1000, 0x2000, 1))


@pytest.mark.parametrize(
    ("leaf", "status"),
    [
        ("MEM_PAGE_ADD", 0xC0000B0D_00000001),
        ("MEM_SEPT_ADD", 0xC0000B0D_00000001),
        ("MR_EXTEND", 0xC0000B0D_00000001),
        ("MR_EXTEND", 0x80000200_00000092),  # busy, too: slots_lock leaves nothing that could contend
    ],
)
def test_seamcall_errors_while_adding(bench: Bench, building: tuple[int, int, int], leaf: str, status: int) -> None:
    _, vcpu, source = building
    bench.module.answers[leaf] = [status]
    with refused(errno.EIO):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0, 1), flags=1)
    assert bench.vm_object().dead


@pytest.mark.parametrize(
    ("leaf", "status"), [("MEM_SEPT_ADD", 0x80000200_00000092), ("MEM_PAGE_ADD", 0x80000200_00000001)]
)
def test_a_busy_module_is_asked_again_while_pages_are_added(
    bench: Bench, building: tuple[int, int, int], leaf: str, status: int
) -> None:
    """kvm_tdp_mmu_map_private_pfn: RET_PF_RETRY until it is mapped, a signal comes or the VM is dead."""
    vm, vcpu, source = building
    bench.module.answers[leaf] = [status] * 5
    region = bench.region(source, 0, 1)
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region, flags=1)
    assert bench.module.names().count(leaf) == 5 + (3 if leaf == "MEM_SEPT_ADD" else 1)
    assert region.nr_pages == 0
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)


@pytest.mark.parametrize("leaf", ["MEM_SEPT_ADD", "MEM_PAGE_ADD"])
def test_a_signal_ends_the_wait_for_a_busy_module(bench: Bench, building: tuple[int, int, int], leaf: str) -> None:
    """Nothing stays half mapped: the page can be added later, and the TD finalised without it."""
    vm, vcpu, source = building

    with signals(bench) as arrives:

        def busy(_: object) -> int:
            arrives()
            return 0x80000200_00000001

        bench.module.answers[leaf] = [0x80000200_00000001, busy]
        region = bench.region(source, 0, 1)
        with refused(errno.EINTR):
            bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert region.nr_pages == 1
    assert not bench.vm_object().dead
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)


@on_release("6.18")
def test_finalize_with_a_page_that_was_mapped_but_not_added(bench: Bench, building: tuple[int, int, int]) -> None:
    vm, vcpu, source = building
    bench.module.answers["MEM_PAGE_ADD"] = [0x80000200_00000001]
    with refused(errno.EBUSY):
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, 0, 1))
    with refused(errno.EINVAL):
        bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    bench.attributes(vm, 0, 0x1000, 0)  # zapping it needs no SEAMCALL: the module never had it
    bench.module.names()
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    assert bench.module.names() == ["MR_FINALIZE"]


def test_v10_adds_memory_on_the_vm_from_any_slot(bench_v10: Bench) -> None:
    vm = bench_v10.td()
    source = bench_v10.memory(vm)
    with refused(errno.EINVAL):  # a vCPU first
        bench_v10.command(vm, v10.KVM_TDX_INIT_MEM_REGION, bench_v10.region(source, 0, 1))
    vcpu = bench_v10.vcpu(vm)
    bench_v10.module.names()
    bench_v10.command(vm, v10.KVM_TDX_INIT_MEM_REGION, bench_v10.region(source, 0, 1), flags=1)
    assert bench_v10.module.names() == [*["MEM_SEPT_ADD"] * 3, "MEM_PAGE_ADD", *["MR_EXTEND"] * 16]
    with refused(errno.EINVAL):
        bench_v10.command(vcpu, v10.KVM_TDX_INIT_MEM_REGION, bench_v10.region(source, 0x1000, 1))
    for fd in (vcpu, vm):
        bench_v10.kernel.close(fd)
    assert not bench_v10.kernel.pages.in_use


def test_v10_adds_no_memory_to_what_is_not_being_built(bench_v10: Bench) -> None:
    """A vCPU may be there before INIT_VM; the memory is fixed by FINALIZE_VM."""
    vm = bench_v10.td(init=False)
    source = bench_v10.memory(vm)
    vcpu = bench_v10.vcpu(vm, init=False)
    with refused(errno.EINVAL):
        bench_v10.command(vm, v10.KVM_TDX_INIT_MEM_REGION, bench_v10.region(source, 0, 1))
    assert not bench_v10.vm_object().dead
    vm = bench_v10.td()
    source = bench_v10.memory(vm)
    bench_v10.vcpu(vm)
    bench_v10.command(vm, v10.KVM_TDX_FINALIZE_VM)
    with refused(errno.EINVAL):
        bench_v10.command(vm, v10.KVM_TDX_INIT_MEM_REGION, bench_v10.region(source, 0, 1))
    assert vcpu


# --- KVM_RUN ----------------------------------------------------------------------------------------------------------


def test_run_before_finalize(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, k.KVM_RUN)
    with refused(errno.EINVAL):
        bench.ioctl(vcpu, k.KVM_RUN, 1)


def test_immediate_exit_and_sync_regs(bench: Bench, runnable: tuple[int, int]) -> None:
    run = bench.run_page(runnable[1])
    run.immediate_exit = 1
    with refused(errno.EINTR):
        bench.ioctl(runnable[1], k.KVM_RUN)
    run.immediate_exit = 0
    run.kvm_valid_regs = 1
    with refused(errno.EINVAL):
        bench.ioctl(runnable[1], k.KVM_RUN)


def enter(bench: Bench, vcpu: int, *answers: Answer) -> k.kvm_run:
    bench.module.answers["VP_ENTER"] = exits(*answers)
    run = bench.run_page(vcpu)
    bench.ioctl(vcpu, k.KVM_RUN)
    return run


def test_the_first_entry_tells_the_module_the_shared_ept(bench: Bench, runnable: tuple[int, int]) -> None:
    enter(bench, runnable[1], 1)
    calls = list(bench.module.calls)
    assert bench.module.names() == ["VP_WR", "VP_ENTER", "VP_ENTER"]
    assert calls[0][1]["rdx"] == 0x203C


def test_port_output_and_input(bench: Bench, runnable: tuple[int, int]) -> None:
    answers = []

    def again(args: object) -> int:
        answers.append((args.r10, args.r11))  # type: ignore[attr-defined]
        return 0x4000000100000002

    run = enter(bench, runnable[1], tdvmcall(r11=30, r12=1, r13=1, r14=0x3F8, r15=0x1241))
    assert (run.exit_reason, run.io.direction, run.io.size, run.io.port, run.io.count) == (2, 1, 1, 0x3F8, 1)
    assert run.io.data_offset == 0x1000
    assert bench.mapping[0x1000] == 0x41
    run = enter(bench, runnable[1], tdvmcall(r11=30, r12=4, r13=0, r14=0xCFC))
    assert (run.io.direction, run.io.size) == (0, 4)
    bench.mapping[0x1000:0x1004] = b"\x78\x56\x34\x92"
    enter(bench, runnable[1], again)
    assert answers == [(0, 0x92345678)]


@pytest.mark.parametrize(("size", "direction"), [(3, 0), (8, 0), (1, 2)])
def test_a_senseless_port_access_is_refused_without_an_exit(
    bench: Bench, runnable: tuple[int, int], size: int, direction: int
) -> None:
    run = enter(bench, runnable[1], tdvmcall(r11=30, r12=size, r13=direction, r14=0x80))
    assert run.exit_reason == k.KVM_EXIT_SHUTDOWN
    entered = [registers for name, registers, _ in bench.module.calls if name == "VP_ENTER"]
    assert entered[1]["r10"] == INVALID_OPERAND


def test_mmio_is_shown_without_the_shared_bit(bench: Bench, runnable: tuple[int, int]) -> None:
    run = enter(bench, runnable[1], tdvmcall(r11=48, r12=4, r13=1, r14=SHARED | 0xFEC00010, r15=0xAABBCCDD))
    assert (run.exit_reason, run.mmio.phys_addr, run.mmio.len, run.mmio.is_write) == (6, 0xFEC00010, 4, 1)
    assert bytes(run.mmio.data)[:4] == bytes.fromhex("ddccbbaa")
    run = enter(bench, runnable[1], tdvmcall(r11=48, r12=4, r13=0, r14=0xFEC00010))  # private: refused
    assert run.exit_reason == k.KVM_EXIT_SHUTDOWN


def test_map_gpa_needs_the_capability(bench: Bench, runnable: tuple[int, int]) -> None:
    run = enter(bench, runnable[1], tdvmcall(r11=0x10001, r12=SHARED, r13=0x1000))
    assert run.exit_reason == k.KVM_EXIT_SHUTDOWN
    entered = [registers for name, registers, _ in bench.module.calls if name == "VP_ENTER"]
    assert (entered[1]["r10"], entered[1]["r11"]) == (1 << 63 | 3, SHARED)


def test_map_gpa_comes_in_pieces_of_two_megabytes(bench: Bench, runnable: tuple[int, int]) -> None:
    bench.enable(runnable[0], k.Cap.EXIT_HYPERCALL, 1 << 12)
    run = enter(bench, runnable[1], tdvmcall(r11=0x10001, r12=SHARED | 0x1000, r13=0x300000))
    assert (run.exit_reason, run.hypercall.nr, list(run.hypercall.args)[:3]) == (3, 12, [0x1000, 512, 0])
    assert (run.hypercall.ret, run.hypercall.flags) == (0, 1)
    bench.ioctl(runnable[1], k.KVM_RUN)
    assert list(run.hypercall.args)[:3] == [0x201000, 256, 0]
    bench.ioctl(runnable[1], k.KVM_RUN)
    assert run.exit_reason == k.KVM_EXIT_SHUTDOWN


def test_map_gpa_failure_names_the_address(bench: Bench, runnable: tuple[int, int]) -> None:
    bench.enable(runnable[0], k.Cap.EXIT_HYPERCALL, 1 << 12)
    run = enter(bench, runnable[1], tdvmcall(r11=0x10001, r12=0x2000, r13=0x1000))
    assert run.hypercall.args[2] == 0x10  # to private
    run.hypercall.ret = errno.EINVAL
    bench.module.calls.clear()
    bench.ioctl(runnable[1], k.KVM_RUN)
    assert (bench.module.calls[0][1]["r10"], bench.module.calls[0][1]["r11"]) == (INVALID_OPERAND, 0x2000)


@pytest.mark.parametrize(
    ("gpa", "size", "status"),
    [(0, 0, 0), (0x800, 0x1000, 2), (0, 0x800, 2), (SHARED - 0x1000, 0x2000, 0), (0xFFFFFFFFFFFFF000, 0x2000, 0)],
)
def test_map_gpa_operands(bench: Bench, runnable: tuple[int, int], gpa: int, size: int, status: int) -> None:
    bench.enable(runnable[0], k.Cap.EXIT_HYPERCALL, 1 << 12)
    enter(bench, runnable[1], tdvmcall(r11=0x10001, r12=gpa, r13=size))
    entered = [registers for name, registers, _ in bench.module.calls if name == "VP_ENTER"]
    assert (entered[1]["r10"], entered[1]["r11"]) == (1 << 63 | status, gpa)


def test_map_gpa_beyond_the_address_width_that_cpuid_tells(bench: Bench, runnable: tuple[int, int]) -> None:
    """tdx_map_gpa asks kvm_vcpu_is_legal_gpa; a vCPU whose CPUID tells no width has 36 bits, and no shared bit."""
    vm, vcpu = runnable
    bench.enable(vm, k.Cap.EXIT_HYPERCALL, 1 << 12)
    bench.ioctl(vcpu, k.KVM_SET_CPUID2, filled(k.kvm_cpuid2, [k.kvm_cpuid_entry2(function=1, ecx=1 << 21)], nent=1))
    enter(bench, vcpu, tdvmcall(r11=0x10001, r12=SHARED, r13=0x1000))
    entered = [registers for name, registers, _ in bench.module.calls if name == "VP_ENTER"]
    assert (entered[1]["r10"], entered[1]["r11"]) == (INVALID_OPERAND, SHARED)


def test_get_quote(bench: Bench, runnable: tuple[int, int]) -> None:
    run = enter(bench, runnable[1], tdvmcall(r11=0x10002, r12=SHARED | 0x5000, r13=0x2000))
    quote = run.tdx.get_quote
    assert (run.exit_reason, run.tdx.flags, run.tdx.nr) == (40, 0, 0x10002)
    assert (quote.ret, quote.gpa, quote.size) == (1 << 63 | 3, 0x5000, 0x2000)
    quote.ret = 0
    bench.module.calls.clear()
    bench.ioctl(runnable[1], k.KVM_RUN)
    assert bench.module.calls[0][1]["r10"] == 0


def test_get_tdvmcall_info_and_event_notify(bench: Bench, runnable: tuple[int, int]) -> None:
    run = enter(bench, runnable[1], tdvmcall(r11=0x10000, r12=1))
    info = run.tdx.get_tdvmcall_info
    assert (run.exit_reason, run.tdx.nr, info.ret, info.leaf) == (40, 0x10000, 0, 1)
    info.r11, info.r14 = 7, 9
    bench.module.calls.clear()
    bench.ioctl(runnable[1], k.KVM_RUN)
    registers = bench.module.calls[0][1]
    assert (registers["r10"], registers["r11"], registers["r14"]) == (0, 7, 9)
    run = enter(bench, runnable[1], tdvmcall(r11=0x10004, r12=0x31))
    assert (run.tdx.nr, run.tdx.setup_event_notify.vector) == (0x10004, 0x31)
    run = enter(bench, runnable[1], tdvmcall(r11=0x10004, r12=31))
    assert run.exit_reason == k.KVM_EXIT_SHUTDOWN


def test_a_fatal_error_shows_all_registers(bench: Bench, runnable: tuple[int, int]) -> None:
    run = enter(
        bench,
        runnable[1],
        tdvmcall(r11=0x10003, r12=1 << 63 | 5, r13=0x1234, r14=PANICKED),
    )
    assert (run.exit_reason, run.system_event.type, run.system_event.ndata) == (24, 7, 16)
    data = list(run.system_event.data)
    assert (data[0], data[12], data[13]) == (77, 1 << 63 | 5, 0x1234)
    assert struct.pack("<Q", data[14]) == b"panicked"


def test_an_unknown_function_is_unsupported(bench: Bench, runnable: tuple[int, int]) -> None:
    enter(bench, runnable[1], tdvmcall(r11=54))
    entered = [registers for name, registers, _ in bench.module.calls if name == "VP_ENTER"]
    assert entered[1]["r10"] == 1 << 63 | 3


def test_msrs_and_user_space(bench: Bench, runnable: tuple[int, int]) -> None:
    answers = []

    def look(args: object) -> int:
        answers.append((args.r10, args.r11))  # type: ignore[attr-defined]
        return 0x4000000100000002

    enter(bench, runnable[1], tdvmcall(r11=31, r12=0x1A0), look)
    assert answers == [(0, 0x1800)]
    enter(bench, runnable[1], tdvmcall(r11=31, r12=0x4B564D01), look)  # kvmclock is not for TDs
    assert answers[1][0] == INVALID_OPERAND
    # tdx_set_msr answers 1, not KVM_MSR_RET_UNSUPPORTED, for what KVM does not emulate for a TD: INVAL, not UNKNOWN
    bench.enable(runnable[0], k.Cap.X86_USER_SPACE_MSR, k.KVM_MSR_EXIT_REASON_INVAL)
    run = enter(bench, runnable[1], tdvmcall(r11=32, r12=0x4B564D01, r13=99))
    assert (run.exit_reason, run.msr.reason, run.msr.index, run.msr.data) == (30, 1, 0x4B564D01, 99)


# --- Faults and failures ----------------------------------------------------------------------------------------------


def test_a_private_fault_costs_exactly_its_seamcalls(bench: Bench, runnable: tuple[int, int]) -> None:
    enter(bench, runnable[1], ept_violation(0x3000), ept_violation(0x4000))
    names = bench.module.names()
    assert names == ["VP_WR", "VP_ENTER", *["MEM_SEPT_ADD"] * 3, "MEM_PAGE_AUG", "VP_ENTER", "MEM_PAGE_AUG", "VP_ENTER"]


def test_a_busy_module_is_asked_again_in_the_kernel(bench: Bench, runnable: tuple[int, int]) -> None:
    bench.module.answers["MEM_PAGE_AUG"] = [0x80000200_00000092, 0x80000200_00000092]
    enter(bench, runnable[1], ept_violation(0x3000))
    assert bench.module.names().count("MEM_PAGE_AUG") == 3


def test_a_fault_that_the_module_refuses_kills_the_vm(bench: Bench, runnable: tuple[int, int]) -> None:
    bench.module.answers["MEM_PAGE_AUG"] = [0xC0000B0D_00000001]
    with refused(errno.EIO):
        enter(bench, runnable[1], ept_violation(0x3000))
    assert bench.vm_object().dead


@pytest.mark.parametrize(
    ("gpa", "flags", "page"),
    [
        (0x3000, 8, 0x3000),  # the attribute was cleared
        (0x40000, 8, 0x40000),  # private attribute, no slot
        (SHARED | 0x5000, 0, 0x5000),  # shared access, attribute private
    ],
)
def test_memory_fault_exits(bench: Bench, runnable: tuple[int, int], gpa: int, flags: int, page: int) -> None:
    bench.attributes(runnable[0], 0x3000, 0x1000, 0)
    bench.attributes(runnable[0], 0x40000, 0x1000, 8)
    run = bench.run_page(runnable[1])
    with refused(errno.EFAULT):
        enter(bench, runnable[1], ept_violation(gpa))
    fault = run.memory_fault
    assert (run.exit_reason, fault.flags, fault.gpa, fault.size) == (39, flags, page, 4096)


def test_shared_memory_without_a_slot_becomes_mmio_by_ve(bench: Bench, runnable: tuple[int, int]) -> None:
    run = enter(bench, runnable[1], ept_violation(SHARED | 0xFEC00000))
    assert run.exit_reason == k.KVM_EXIT_SHUTDOWN  # the guest simply went on
    kvm = bench.vm_object()
    entry, level = kvm.mmu.direct.lookup(0xFEC00 | kvm.mmu.direct_bits)
    assert (entry, level) == (0, 3)  # suppress-#VE clear, for all of the GiB, in which there is no slot
    assert kvm.mmu.direct.lookup(5 | kvm.mmu.direct_bits)[0] == 1 << 63


def test_a_slot_takes_the_place_of_mmio(bench: Bench, runnable: tuple[int, int]) -> None:
    vm, vcpu = runnable
    enter(bench, vcpu, ept_violation(SHARED | 0xFEC00000))
    bench.memory(vm, 0xC000_0000, 4, slot=7)
    bench.attributes(vm, 0xC000_0000, 0x4000, 0)
    kvm = bench.vm_object()
    assert kvm.mmu.direct.lookup(0xC0000 | kvm.mmu.direct_bits)[0] == 1 << 63, "it exits to KVM"
    enter(bench, vcpu, ept_violation(SHARED | 0xC0001000))
    assert kvm.mmu.direct.lookup(0xC0001 | kvm.mmu.direct_bits)[0] & 7 == 7
    enter(bench, vcpu, ept_violation(SHARED | 0xC0004000))
    assert kvm.mmu.direct.lookup(0xC0004 | kvm.mmu.direct_bits) == (0, 1)  # beside the slot, page by page
    enter(bench, vcpu, ept_violation(SHARED | 0xFEC00000))
    assert kvm.mmu.direct.lookup(0xFEC00 | kvm.mmu.direct_bits) == (0, 2)
    assert kvm.mmu.direct.lookup(0xC0001 | kvm.mmu.direct_bits)[0] & 7 == 7


def test_looking_everywhere_takes_no_memory_to_speak_of(bench: Bench, runnable: tuple[int, int]) -> None:
    """A guest that reads at every 2 MiB of its address space would take a page of tables for each."""
    kvm, chance = bench.vm_object(), random.Random(1)
    vcpu = kvm.vcpus[0]
    for _ in range(20_000):
        gpa = chance.getrandbits(46) & -4096 | 1 << 40
        assert kvm.mmu.kvm_tdp_page_fault(vcpu, SHARED | gpa, False) == 3
        assert kvm.mmu.direct.lookup(gpa >> 12 | kvm.mmu.direct_bits)[0] == 0
    assert bench.kernel.pages.in_use["ept"] < 300


def test_shared_memory_with_a_slot_points_at_user_memory(bench: Bench, runnable: tuple[int, int]) -> None:
    bench.attributes(runnable[0], 0x5000, 0x1000, 0)
    enter(bench, runnable[1], ept_violation(SHARED | 0x5000))
    kvm = bench.vm_object()
    entry, _ = kvm.mmu.direct.lookup(5 | kvm.mmu.direct_bits)
    assert entry & 7 == 7
    assert entry & 0xFFFFFFFFFF000 >= 1 << 45  # a window, not RAM


@pytest.mark.parametrize(
    "answer",
    [
        ept_violation(0x3000, qualification=0, extended=6),  # pending page, #VE disabled
        ept_violation(SHARED | 0x3000, qualification=4),  # instruction fetch from shared memory
        49,  # EPT misconfiguration
    ],
)
def test_what_kills_the_vm(bench: Bench, runnable: tuple[int, int], answer: Answer) -> None:
    with refused(errno.EIO):
        enter(bench, runnable[1], answer)
    for request in (k.KVM_RUN, k.KVM_NMI):
        with refused(errno.EIO):
            bench.ioctl(runnable[1], request)


def test_entry_errors(bench: Bench, runnable: tuple[int, int]) -> None:
    run = enter(bench, runnable[1], 0x80000200_000000A9, 0xC0000601_00000000)  # busy is retried
    internal = run.internal
    assert (run.exit_reason, internal.suberror, internal.ndata, internal.data[0]) == (17, 4, 2, 0xC0000601 << 32)
    assert not bench.vm_object().dead
    run = enter(bench, runnable[1], 0x4000000100000002)
    assert run.exit_reason == k.KVM_EXIT_SHUTDOWN
    run = enter(bench, runnable[1], 1 << 31 | 33)
    assert run.exit_reason == k.KVM_EXIT_FAIL_ENTRY
    run = enter(bench, runnable[1], s.TDX_SEAMCALL_VMFAILINVALID)
    assert run.exit_reason == 17
    assert bench.vm_object().dead


# --- Removal ----------------------------------------------------------------------------------------------------------


def test_clearing_the_attribute_removes_the_page(bench: Bench, runnable: tuple[int, int]) -> None:
    enter(bench, runnable[1], ept_violation(0x3000))
    bench.module.names()
    bench.attributes(runnable[0], 0x0, 0x10000, 0)
    assert bench.module.names() == ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE", "PHYMEM_PAGE_WBINVD"]


@pytest.mark.parametrize("leaf", ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE"])
def test_a_busy_removal_is_tried_once_more(bench: Bench, runnable: tuple[int, int], leaf: str) -> None:
    enter(bench, runnable[1], ept_violation(0x3000))
    bench.module.answers[leaf] = [0x80000200_00000092]
    bench.module.names()
    bench.attributes(runnable[0], 0x0, 0x10000, 0)
    assert bench.module.names().count(leaf) == 2
    assert not bench.vm_object().dead


@pytest.mark.parametrize("leaf", ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE"])
def test_a_page_that_cannot_be_removed_comes_back_at_the_end(
    bench: Bench, runnable: tuple[int, int], leaf: str
) -> None:
    vm, vcpu = runnable
    enter(bench, vcpu, ept_violation(0x3000))
    bench.module.answers[leaf] = [0xC0000B0D_00000001]
    bench.attributes(vm, 0x0, 0x10000, 0)
    assert bench.vm_object().dead
    for fd in (vcpu, vm, bench.gmem):
        bench.kernel.close(fd)
    bench.mapping.close()
    assert not bench.kernel.pages.in_use


def test_a_moved_vcpu_is_flushed_where_it_was(bench: Bench, runnable: tuple[int, int]) -> None:
    enter(bench, runnable[1], 1)
    bench.module.names()
    kvm = bench.vm_object()
    kvm.cpus.running[0] = kvm.vcpus[0]  # another vCPU has CPU 0 now
    bench.module.calls.clear()
    enter(bench, runnable[1], 1)
    assert [(name, cpu) for name, _, cpu in bench.module.calls][:2] == [("VP_FLUSH", 0), ("VP_ENTER", 1)]
    kvm.cpus.running[0] = None


# --- Refused for a TD -------------------------------------------------------------------------------------------------


GETS = ["REGS", "SREGS", "FPU", "XSAVE", "XSAVE2", "XCRS", "DEBUGREGS", "LAPIC"]
SETS = ["REGS", "SREGS", "FPU", "XSAVE", "XCRS", "DEBUGREGS", "LAPIC", "GUEST_DEBUG"]


@pytest.mark.parametrize("name", GETS)
def test_reading_state_is_einval_whatever_the_pointer(bench: Bench, runnable: tuple[int, int], name: str) -> None:
    with refused(errno.EINVAL):
        bench.ioctl(runnable[1], getattr(k, f"KVM_GET_{name}"), 8)


@pytest.mark.parametrize("name", SETS)
def test_writing_state_copies_first(bench: Bench, runnable: tuple[int, int], name: str) -> None:
    request = getattr(k, f"KVM_SET_{name}")
    with refused(errno.EFAULT):
        bench.ioctl(runnable[1], request, 8)
    with refused(errno.EINVAL):
        bench.ioctl(runnable[1], request, (ctypes.c_char * 8192)())


def state(number: int) -> Callable[[Bench, int], int]:
    return lambda bench, fd: bench.ioctl(fd, k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=number))


@pytest.mark.parametrize(
    ("call", "code"),
    [
        (state(2), errno.EINVAL),
        (state(4), errno.EINVAL),
        (lambda bench, fd: bench.ioctl(fd, k.KVM_SMI), errno.ENOTTY),
        (lambda bench, fd: bench.ioctl(fd, k.KVM_SET_TSC_KHZ, 1_000_000), errno.EINVAL),
    ],
)
def test_other_refusals(bench: Bench, runnable: tuple[int, int], call: Callable[[Bench, int], int], code: int) -> None:
    with refused(code):
        call(bench, runnable[1])


def test_what_stays_allowed(bench: Bench, runnable: tuple[int, int]) -> None:
    vcpu = runnable[1]
    bench.ioctl(vcpu, k.KVM_NMI)
    bench.ioctl(vcpu, k.KVM_TRANSLATE, k.kvm_translation(linear_address=0x1000))
    bench.ioctl(vcpu, k.KVM_GET_VCPU_EVENTS, k.kvm_vcpu_events())
    bench.ioctl(vcpu, k.KVM_INTERRUPT, k.kvm_interrupt(irq=0x20))
    with refused(errno.EEXIST):
        bench.ioctl(vcpu, k.KVM_INTERRUPT, k.kvm_interrupt(irq=0x20))
    state(0)(bench, vcpu)
    enter(bench, vcpu, 1)
    assert (0x20 << 56 | 0xB) in [registers["rdx"] for name, registers, _ in bench.module.calls if name == "VP_WR"]


def test_msr_list_stops_at_the_first_that_is_not_for_tds(bench: Bench, runnable: tuple[int, int]) -> None:
    entries = [k.kvm_msr_entry(index=index) for index in (0x1A0, 0x1B, 0xC0000103, 0x1A0)]
    request = filled(k.kvm_msrs, entries, nmsrs=4)
    assert bench.ioctl(runnable[1], k.KVM_GET_MSRS, request) == 2
    assert request.entries[0].data == 0x1800
    assert request.entries[1].data == 0xFEE00D00
    assert bench.ioctl(runnable[1], k.KVM_SET_MSRS, request) == 1  # APICBASE can only be read
