# SPDX-License-Identifier: GPL-2.0-or-later
"""What a TD's exit is taken for, bit by bit: tdx_handle_exit and what it calls in Linux 7.2.13 (vmx/tdx.c)."""

from __future__ import annotations

import ctypes
import errno
from typing import Any

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi.layout import with_entries
from tests.linux.conftest import Bench, ept_violation, exits, refused, tdvmcall

SHARED = 1 << 47
INVALID_OPERAND = 1 << 63
HLT, IO, RDMSR, MMIO = 12, 30, 31, 48
FAILED_ENTRY, TRIPLE_FAULT = 1 << 31, 2


def run_once(bench: Bench, vcpu: int, *script: Any) -> k.kvm_run:
    bench.module.answers["VP_ENTER"] = exits(*script)
    run = bench.run_page(vcpu)
    bench.ioctl(vcpu, k.KVM_RUN)
    return run


def answer_of(bench: Bench, vcpu: int, **registers: int) -> tuple[int, int]:
    """(R10, R11) with which the guest is entered after a TDVMCALL that KVM serves itself."""
    seen = []

    def look(args: Any) -> int:
        seen.append((args.r10, args.r11))
        return 0x40000001_00000002

    run_once(bench, vcpu, tdvmcall(**registers), look)
    return seen[0]


# --- tdx_handle_exception_nmi -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("information", "goes_on"),
    [
        (1 << 31 | 2 << 8 | 2, True),  # NMI
        (1 << 31 | 2 << 8 | 9, True),  # is_nmi does not look at the vector
        (2 << 8 | 2, False),  # not valid
        (1 << 31 | 3 << 8 | 18, True),  # #MC
        (1 << 31 | 6 << 8 | 18, False),  # INT 18
        (1 << 31 | 3 << 8 | 1, False),  # #DB
        (1 << 31 | 3 << 8 | 1 << 11 | 14, False),  # #PF, with an error code
    ],
)
def test_exceptions(bench: Bench, runnable: tuple[int, int], information: int, goes_on: bool) -> None:
    def exception(args: Any) -> int:
        args.r9 = information
        return 0

    run = run_once(bench, runnable[1], exception)
    if goes_on:
        assert run.exit_reason == k.KVM_EXIT_SHUTDOWN  # the script's end
    else:
        assert (run.exit_reason, run.ex.exception, run.ex.error_code) == (k.KVM_EXIT_EXCEPTION, information & 0xFF, 0)


# --- tdx_to_vmx_exit_reason, tdx_failed_vmentry -----------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 0x40000001, 0x40000002, 0x60000005, 0x60000007])
def test_statuses_with_an_exit_reason(bench: Bench, runnable: tuple[int, int], status: int) -> None:
    whole = status << 32 | FAILED_ENTRY | 33
    run = run_once(bench, runnable[1], whole)
    assert run.exit_reason == k.KVM_EXIT_FAIL_ENTRY
    assert run.fail_entry.hardware_entry_failure_reason == FAILED_ENTRY | 33


@pytest.mark.parametrize("reason", [FAILED_ENTRY | 33, TRIPLE_FAULT, 48])
@pytest.mark.parametrize("status", [0x60000004, 0xC0000600, 0x00001105, 0x80000003])
def test_statuses_without_one(bench: Bench, runnable: tuple[int, int], status: int, reason: int) -> None:
    """Their lower half is not an exit reason (-1), so that neither a failed entry nor a triple fault is seen in it."""
    whole = status << 32 | reason
    run = run_once(bench, runnable[1], whole)
    assert (run.exit_reason, run.internal.suberror) == (k.KVM_EXIT_INTERNAL_ERROR, 4)
    assert (run.internal.ndata, run.internal.data[0]) == (2, whole)


def test_a_reason_with_a_bit_of_the_processors(bench: Bench, runnable: tuple[int, int]) -> None:
    """Bit 26 says that a bus lock was seen; union vmx_exit_reason takes the basic reason from bits 15:0."""
    violation = ept_violation(0x1000)

    def with_bus_lock(args: Any) -> int:
        return violation(args) | 1 << 26

    run_once(bench, runnable[1], with_bus_lock, 1 | 1 << 26)
    assert "MEM_PAGE_AUG" in bench.module.names()


# --- tdx_emulate_mmio, tdx_emulate_io ---------------------------------------------------------------------------------


def test_mmio_has_an_int_for_size_and_direction(bench: Bench, runnable: tuple[int, int]) -> None:
    high = 1 << 32
    call = tdvmcall(r11=MMIO, r12=high | 4, r13=high | 1, r14=SHARED | 0x100000, r15=0x1122334455667788)
    run = run_once(bench, runnable[1], call)
    assert (run.exit_reason, run.mmio.len, run.mmio.is_write) == (k.KVM_EXIT_MMIO, 4, 1)
    assert bytes(run.mmio.data)[:4] == bytes.fromhex("88776655")


@pytest.mark.parametrize("registers", [{"r12": 1 << 32 | 4}, {"r13": 1 << 32 | 1}, {"r12": 8}, {"r13": 2}])
def test_port_io_has_64_bits_for_them(bench: Bench, runnable: tuple[int, int], registers: dict[str, int]) -> None:
    call = {"r11": IO, "r12": 4, "r13": 1, "r14": 0x80, **registers}
    assert answer_of(bench, runnable[1], **call)[0] == INVALID_OPERAND


# --- tdx_interrupt_allowed, tdx_protected_apic_has_interrupt ----------------------------------------------------------


def test_what_a_port_returns_is_not_taken_for_a_hlt(bench: Bench, runnable: tuple[int, int]) -> None:
    """IN of 1 byte that reads 12 leaves R10 0, R11 12, R12 1: the registers of a HLT with interrupts blocked."""
    _, vcpu_fd = runnable
    run = run_once(bench, vcpu_fd, tdvmcall(r11=IO, r12=1, r13=0, r14=0x80))
    assert run.exit_reason == k.KVM_EXIT_IO
    ctypes.c_char.from_buffer(bench.mapping, run.io.data_offset).value = bytes([HLT])
    run.immediate_exit = 1
    with refused(errno.EINTR):
        bench.ioctl(vcpu_fd, k.KVM_RUN)
    (vcpu,) = bench.vm_object().vcpus
    args = vcpu.tdx.vp_enter_args
    assert (args.r10, args.r11, args.r12) == (0, HLT, 1)
    assert vcpu.ops.interrupt_allowed(vcpu)


def halted(bench: Bench, vcpu_fd: int, blocked: int) -> Any:
    """The vCPU, asleep in a HLT; KVM_RUN has been left."""
    (vcpu,) = bench.vm_object().vcpus
    run = bench.run_page(vcpu_fd)

    def halts(args: Any) -> int:
        run.immediate_exit = 1
        return tdvmcall(r11=HLT, r12=blocked)(args)

    bench.module.answers["VP_ENTER"] = [halts]
    with refused(errno.EINTR):
        bench.ioctl(vcpu_fd, k.KVM_RUN)
    bench.module.names()
    return vcpu


def test_a_hlt_with_interrupts_blocked_ends_by_an_nmi_only(bench: Bench, runnable: tuple[int, int]) -> None:
    vcpu = halted(bench, runnable[1], 1)
    assert not vcpu.ops.interrupt_allowed(vcpu)
    assert not vcpu.ops.has_interrupt(vcpu)
    assert bench.module.names() == []  # the module is not asked
    vcpu.nmi_pending = 1
    assert vcpu.kvm_vcpu_has_events()


@pytest.mark.parametrize("moved", [False, True])
def test_a_hlt_ends_by_what_the_virtual_apic_has(bench: Bench, runnable: tuple[int, int], moved: bool) -> None:
    vcpu = halted(bench, runnable[1], 0)
    if moved:
        vcpu.ops.vcpu_load(vcpu, 1)
        assert bench.module.names() == ["VP_FLUSH"]

    def pending(args: Any) -> int:
        args.r8 = 1
        return 0

    bench.module.answers["VP_RD"] = [pending]
    assert vcpu.ops.has_interrupt(vcpu)
    assert bench.module.names() == ["VP_RD"]


def test_a_vcpu_whose_state_cannot_be_read_kills_the_vm(bench: Bench, runnable: tuple[int, int]) -> None:
    """tdh_vp_rd_failed."""
    vcpu = halted(bench, runnable[1], 0)
    bench.module.answers["VP_RD"] = [0xC0000C02 << 32]
    assert not vcpu.ops.has_interrupt(vcpu)
    assert bench.vm_object().dead


def test_a_write_that_fails_before_the_entry_kills_the_vm(bench: Bench, runnable: tuple[int, int]) -> None:
    """tdh_vp_wr_failed: the guest is not run, and the next look at the VM is EIO."""
    bench.module.answers["VP_WR"] = [0xC0000C01 << 32]
    bench.run_page(runnable[1])
    with refused(errno.EIO):
        bench.ioctl(runnable[1], k.KVM_RUN)
    assert bench.vm_object().dead
    assert "VP_ENTER" not in bench.module.names()


# --- tdx_vcpu_get_cpuid -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 8])
def test_the_padding_of_get_cpuid_goes_back_as_it_came(bench: Bench, room: int) -> None:
    vcpu = bench.vcpu(bench.td())
    answer = with_entries(k.kvm_cpuid2, 8)(nent=room, padding=0x1234)
    if room:
        bench.command(vcpu, up.KVM_TDX_GET_CPUID, answer)
    else:
        with refused(errno.E2BIG):
            bench.command(vcpu, up.KVM_TDX_GET_CPUID, answer)
    assert (answer.nent, answer.padding) == (4, 0x1234)


@pytest.mark.parametrize("base", [0, 0x80000000])
def test_the_first_leaf_of_a_range_may_have_sub_leaves(bench: Bench, base: int) -> None:
    """tdx_vcpu_get_cpuid_leaf tries without one, then from 0 on, for each leaf."""
    vcpu = bench.vcpu(bench.td())

    def read(args: Any) -> int:
        leaf = (args.rdx >> 9 & 0x7F) | (args.rdx >> 16 & 1) << 31
        sub_leaf = args.rdx >> 1 & 0xFF
        if leaf == base and sub_leaf not in (0, 1):  # 0xFF: none
            return 0xC0000C02 << 32
        if leaf != base and (leaf & 0x7FFFFFFF or sub_leaf != 0xFF):
            return 0xC0000C02 << 32
        args.r8 = leaf
        return 0

    bench.module.answers["MNG_RD"] = [read] * 100
    answer = with_entries(k.kvm_cpuid2, 8)(nent=8)
    bench.command(vcpu, up.KVM_TDX_GET_CPUID, answer)
    found = [(entry.function, entry.index, entry.flags) for entry in answer.entries[: answer.nent]]
    first = [(base, 0, 1), (base, 1, 1)]
    other = [(base ^ 0x80000000, 0, 0)]
    assert found == (other + first if base else first + other)


# --- tdx_sept_remove_leaf_spte ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leaf", "calls"),
    [
        ("MEM_RANGE_BLOCK", ["MEM_RANGE_BLOCK"]),
        ("MEM_TRACK", ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE", "PHYMEM_PAGE_WBINVD"]),
        ("MEM_PAGE_REMOVE", ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE"]),
        ("PHYMEM_PAGE_WBINVD", ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE", "PHYMEM_PAGE_WBINVD"]),
    ],
)
def test_where_a_removal_ends(bench: Bench, runnable: tuple[int, int], leaf: str, calls: list[str]) -> None:
    """tdx_track returns nothing, so that PAGE.REMOVE is called all the same; each failure kills the VM."""
    vm, vcpu = runnable
    run_once(bench, vcpu, ept_violation(0x1000))
    bench.module.names()
    bench.module.answers[leaf] = [0xC0000300 << 32]
    bench.attributes(vm, 0x1000, 0x1000, 0)
    assert bench.module.names() == calls
    assert bench.vm_object().dead


# --- kvm_arch_vcpu_pre_fault_memory -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gpa", "code"), [(SHARED, errno.EINVAL), (1 << 48, errno.ENOENT), (1 << 52, errno.ENOENT), (1 << 30, errno.ENOENT)]
)
def test_addresses_that_cannot_be_pre_faulted(bench: Bench, runnable: tuple[int, int], gpa: int, code: int) -> None:
    """kvm_is_gfn_alias is the shared bit alone; above it nothing is private, and there is no slot."""
    with refused(code):
        bench.ioctl(runnable[1], k.KVM_PRE_FAULT_MEMORY, k.kvm_pre_fault_memory(gpa=gpa, size=0x1000))
