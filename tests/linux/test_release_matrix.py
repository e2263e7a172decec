# SPDX-License-Identifier: GPL-2.0-or-later
"""Every release by every call in which releases differ: what a VMM is answered.

The expectations are those of the kernels' sources (arch/x86/kvm/vmx/tdx.c and virt/kvm/guest_memfd.c of each release),
written down here a second time: nothing is taken from the table that the kernel itself reads.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from swtdx.cpu.vmx import ExitReason
from swtdx.linux.arch.x86.kvm import cpuid
from swtdx.linux.arch.x86.kvm.vmx import tdx_params
from swtdx.linux.arch.x86.virt.vmx.tdx.seamcall import TDX_OPERAND_BUSY, TDX_OPERAND_INVALID
from swtdx.linux.release import RELEASES, Release
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.layout import filled, with_entries
from swtdx.uapi.release import KernelRelease
from tests.linux.conftest import Bench, boot, ept_violation, exits

UPSTREAM = [name for name in KernelRelease if name is not KernelRelease.V10]


def since(first: str, before: Any, after: Any) -> dict[str, Any]:
    """``before`` for the releases older than ``first``, ``after`` for it and the newer ones."""
    place = [name.value for name in UPSTREAM].index(first)
    return {name.value: before if number < place else after for number, name in enumerate(UPSTREAM)}


def answered(call: Callable[[], Any]) -> int:
    """0, or the errno with which a call fails."""
    try:
        call()
    except OSError as error:
        return error.errno or 0
    return 0


def built(release: str) -> tuple[Bench, int, int, int]:
    """A bench with a TD, its vCPU, 16 private pages, and the address of memory for them, before KVM_TDX_FINALIZE_VM."""
    bench = boot(release=release)
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    return bench, vm, vcpu, bench.memory(vm)


def add(bench: Bench, vcpu: int, source: int, gpa: int = 0) -> int:
    return answered(lambda: bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, bench.region(source, gpa, 1)))


# --- One observation each ---------------------------------------------------------------------------------------------


def terminate_vm(release: str) -> Any:
    bench = boot(release=release)
    vm = bench.td()
    return answered(lambda: bench.command(vm, up.KVM_TDX_TERMINATE_VM))


def tsc_frequency(release: str) -> Any:
    bench = boot(release=release)
    vm = bench.vm(0)
    before = answered(lambda: bench.ioctl(vm, k.KVM_SET_TSC_KHZ, 2_000_000))
    bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    return before, answered(lambda: bench.ioctl(vm, k.KVM_SET_TSC_KHZ, 1_000_000))


def set_msr(bench: Bench, vcpu: int, index: int) -> int:
    """Set an MSR to 0: how many were set."""
    entries = [k.kvm_msr_entry(index=index, data=0)]
    return bench.ioctl(vcpu, k.KVM_SET_MSRS, filled(k.kvm_msrs, entries, nmsrs=1))


def msrs_without_their_feature(release: str) -> Any:
    """KVM_STEAL_TIME where paravirtual features are enforced and the vCPU's CPUID has none, and IA32_XSS."""
    bench = boot(release=release)
    vcpu = bench.ioctl(bench.vm(0), k.KVM_CREATE_VCPU, 0)
    bench.ioctl(vcpu, k.KVM_SET_CPUID2, filled(k.kvm_cpuid2, [k.kvm_cpuid_entry2(function=1)], nent=1))
    bench.enable(vcpu, k.Cap.ENFORCE_PV_FEATURE_CPUID, 1)
    return set_msr(bench, vcpu, 0x4B564D03), set_msr(bench, vcpu, 0xDA0)


def boot_capability(release: str, capability: int) -> int:
    bench = boot(release=release)
    return bench.ioctl(bench.device(), k.KVM_CHECK_EXTENSION, capability)


def debugctl_is_listed(release: str) -> Any:
    bench = boot(release=release)
    room = filled(k.kvm_msr_list, [ctypes.c_uint32()] * 500, nmsrs=500)
    bench.ioctl(bench.device(), k.KVM_GET_MSR_INDEX_LIST, room)
    return 0x1D9 in [int.from_bytes(bytes(room)[at : at + 4], "little") for at in range(4, 4 + 4 * room.nmsrs, 4)]


def sregs_with_a_bit_of_efer(release: str) -> Any:
    bench = boot(release=release)
    vcpu = bench.ioctl(bench.vm(0), k.KVM_CREATE_VCPU, 0)
    return answered(lambda: bench.ioctl(vcpu, k.KVM_SET_SREGS, k.kvm_sregs(efer=1 << 4)))


def capability_of_terminate_vm(release: str) -> Any:
    bench = boot(release=release)
    vm = bench.vm()
    space = (ctypes.c_char * 8192)()
    answer = up.kvm_tdx_capabilities.from_buffer(space)
    answer.cpuid.nent = 100
    bench.command(vm, up.KVM_TDX_CAPABILITIES, space)
    return answer.reserved[0]


def size_of_private_mappings(release: str) -> Any:
    """What the first fault of a TD that accepts 2 MiB adds to it, in KiB."""
    bench = boot(release=release)
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    bench.memory(vm, pages=1024)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    exits = iter([("EPT_VIOLATION", 2 << 20), ("TRIPLE_FAULT", 0)])

    def enter(args: Any) -> int:
        name, gpa = next(exits)
        args.rcx, args.rdx, args.r8 = 2, 1 | 1 << 32, gpa
        return int(ExitReason[name]) | (0x40000001 << 32 if name == "TRIPLE_FAULT" else 0)

    bench.module.answers["VP_ENTER"] = [enter, enter]
    bench.run_page(vcpu)
    bench.module.names()
    bench.ioctl(vcpu, k.KVM_RUN)
    (level,) = (registers["rcx"] & 7 for name, registers, _ in bench.module.calls if name == "MEM_PAGE_AUG")
    return 4 << 9 * level


def unreadable_command_of_a_finalized_td(release: str) -> Any:
    bench, vm, vcpu, _ = built(release)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    return answered(lambda: bench.ioctl(vcpu, k.KVM_MEMORY_ENCRYPT_OP, 0))


def status_set_in_a_command_of_a_finalized_td(release: str) -> Any:
    bench, vm, vcpu, _ = built(release)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    return answered(lambda: bench.command(vcpu, up.KVM_TDX_INIT_VCPU, error=1))


def nent_that_changes(release: str) -> Any:
    """Another thread writes cpuid.nent after the kernel has read the entries that it counts."""
    bench = boot(release=release)
    vm = bench.vm()
    init = bench.init_vm()
    original = cpuid.entries_from_user

    def copies(address: int, count: int) -> Any:
        found = original(address, count)
        init.cpuid.nent = count + 1
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tdx_params, "entries_from_user", copies)
        return answered(lambda: bench.command(vm, up.KVM_TDX_INIT_VM, init))


def source_of_0(release: str) -> Any:
    bench, _, vcpu, _ = built(release)
    return add(bench, vcpu, 0)


def unreadable_source_of_a_shared_page(release: str) -> Any:
    bench, vm, vcpu, _ = built(release)
    bench.attributes(vm, 0, 0x1000, 0)
    return add(bench, vcpu, 0x7FFF_F000_0000)


def unreadable_source_of_a_populated_page(release: str) -> Any:
    bench, _, vcpu, user = built(release)
    assert add(bench, vcpu, user) == 0
    return add(bench, vcpu, 0x7FFF_F000_0000)


def page_populated_twice(release: str) -> Any:
    bench, _, vcpu, user = built(release)
    assert add(bench, vcpu, user) == 0
    return add(bench, vcpu, user)


def refused_page_add(release: str) -> Any:
    """The errno, whether the VM is dead, and what FINALIZE_VM says then."""
    bench, vm, vcpu, user = built(release)
    bench.module.answers["MEM_PAGE_ADD"] = [TDX_OPERAND_INVALID | 1]
    first = add(bench, vcpu, user)
    return first, bench.vm_object().dead, answered(lambda: bench.command(vm, up.KVM_TDX_FINALIZE_VM))


def refused_extend(release: str) -> Any:
    bench, vm, vcpu, user = built(release)
    bench.module.answers["MR_EXTEND"] = [TDX_OPERAND_INVALID | 1]
    region = bench.region(user, 0, 1)
    first = answered(lambda: bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region, flags=1))
    return first, bench.vm_object().dead, answered(lambda: bench.command(vm, up.KVM_TDX_FINALIZE_VM))


def refused_create(release: str) -> Any:
    bench = boot(release=release)
    vm = bench.td(init=False)
    bench.module.answers["MNG_CREATE"] = [TDX_OPERAND_INVALID | 1]
    return answered(lambda: bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())), bench.vm_object().dead


def capabilities_of_a_read_only_command(release: str) -> Any:
    bench = boot(release=release)
    vm = bench.vm()
    answer = with_entries(up.kvm_tdx_capabilities, 100)()
    answer.cpuid.nent = 100
    page = mmap.mmap(-1, 4096)
    page.write(bytes(up.kvm_tdx_cmd(id=up.KVM_TDX_CAPABILITIES, data=ctypes.addressof(answer))))
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address), 4096, mmap.PROT_READ) == 0
    return answered(lambda: bench.ioctl(vm, k.KVM_MEMORY_ENCRYPT_OP, address))


def busy_page_add(release: str) -> Any:
    bench, vm, vcpu, user = built(release)
    bench.module.answers["MEM_PAGE_ADD"] = [TDX_OPERAND_BUSY]
    first = add(bench, vcpu, user)
    return first, bench.vm_object().dead, answered(lambda: bench.command(vm, up.KVM_TDX_FINALIZE_VM))


def after_map_gpa(release: str, ret: int) -> Any:
    """hypercall.ret is ``ret``: the errno of KVM_RUN, or the status that the guest gets in R10."""
    bench, vm, vcpu, _ = built(release)
    bench.enable(vm, k.Cap.EXIT_HYPERCALL, 1 << k.KVM_HC_MAP_GPA_RANGE)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    seen: list[int] = []

    def asks(args: Any) -> int:
        args.r10, args.r11, args.r12, args.r13 = 0, k.TDVMCALL_MAP_GPA, 1 << 47, 0x1000
        return int(ExitReason.TDCALL)

    def ends(args: Any) -> int:
        seen.append(args.r10)
        return int(ExitReason.TRIPLE_FAULT) | 0x40000001 << 32

    bench.module.answers["VP_ENTER"] = [asks, ends]
    run = bench.run_page(vcpu)
    bench.ioctl(vcpu, k.KVM_RUN)
    assert run.exit_reason == k.KVM_EXIT_HYPERCALL
    run.hypercall.ret = ret
    failed = answered(lambda: bench.ioctl(vcpu, k.KVM_RUN))
    return failed or ("R10", seen[0])


def x2apic_read(release: str, register: int) -> Any:
    bench, _, vcpu, _ = built(release)
    msrs = k.kvm_msrs(nmsrs=1)
    space = (ctypes.c_char * (ctypes.sizeof(msrs) + 16))()
    ctypes.memmove(space, ctypes.addressof(msrs), ctypes.sizeof(msrs))
    entry = k.kvm_msr_entry.from_buffer(space, 8)
    entry.index = register
    return bench.ioctl(vcpu, k.KVM_GET_MSRS, space)


def x2apic_write_by_guest(release: str, register: int, value: int) -> Any:
    """R10 after TDVMCALL<WRMSR>."""
    bench, vm, vcpu, _ = built(release)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    seen: list[int] = []

    def asks(args: Any) -> int:
        args.r10, args.r11, args.r12, args.r13 = 0, int(ExitReason.WRMSR), register, value
        return int(ExitReason.TDCALL)

    def ends(args: Any) -> int:
        seen.append(args.r10)
        return int(ExitReason.TRIPLE_FAULT) | 0x40000001 << 32

    bench.module.answers["VP_ENTER"] = [asks, ends]
    bench.run_page(vcpu)
    bench.ioctl(vcpu, k.KVM_RUN)
    return seen[0]


def irqchip_of_a_td(release: str) -> int:
    bench = boot(release=release)
    vm = bench.vm()
    return answered(lambda: bench.ioctl(vm, k.KVM_CREATE_IRQCHIP))


def eventfd_of_two_vms(release: str) -> Any:
    """The errno of the second KVM_IRQFD; else how many of the two VMs get an interrupt."""
    bench = boot(release=release)
    eventfd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    seen: list[int] = []
    refused = 0
    for number in range(2):
        vm = bench.vm(0)
        bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
        bench.vm_object().irq_routing.set_irq = lambda *args, number=number: seen.append(number)
        refused = answered(lambda vm=vm: bench.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=eventfd, gsi=5)))  # type: ignore[misc]
    if not refused:
        os.eventfd_write(eventfd, 1)
        deadline = time.monotonic() + 5
        while len(seen) < 2 and time.monotonic() < deadline:
            time.sleep(0.001)
    bench.kernel.irqfd_thread.stop()
    os.close(eventfd)
    return refused or set(seen)


def x2apic_api(release: str, flags: int, split: bool = True) -> Any:
    """(the capability of the VM, the errno of enabling ``flags``)"""
    bench = boot(release=release)
    vm = bench.vm(0)
    if split:
        bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    else:
        bench.ioctl(vm, k.KVM_CREATE_IRQCHIP)
    offered = bench.ioctl(vm, k.KVM_CHECK_EXTENSION, k.Cap.X2APIC_API)
    return offered, answered(lambda: bench.enable(vm, k.Cap.X2APIC_API, flags))


def one_reg(release: str) -> Any:
    """(the capability, the errno of reading TSC_AUX by its register identifier, that of KVM_GET_REG_LIST)"""
    bench = boot(release=release)
    vm = bench.vm(0)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    value = ctypes.c_uint64(1)
    register = k.kvm_one_reg(id=0x2030_0002_C000_0103, addr=ctypes.addressof(value))
    offered = bench.ioctl(vm, k.KVM_CHECK_EXTENSION, k.Cap.ONE_REG)
    listed = answered(lambda: bench.ioctl(vcpu, k.KVM_GET_REG_LIST, k.kvm_reg_list(n=1)))
    return offered, answered(lambda: bench.ioctl(vcpu, k.KVM_GET_ONE_REG, register)), listed


def guest_memfd(release: str) -> Any:
    """(KVM_CAP_GUEST_MEMFD of an ordinary VM, KVM_CAP_GUEST_MEMFD_FLAGS of it and of a TD, the errno of a slot)"""
    bench = boot(release=release)
    vm, td = bench.vm(0), bench.vm()
    offered = [
        bench.ioctl(each, k.KVM_CHECK_EXTENSION, cap)
        for each, cap in ((vm, k.Cap.GUEST_MEMFD), (vm, k.Cap.GUEST_MEMFD_FLAGS), (td, k.Cap.GUEST_MEMFD_FLAGS))
    ]
    return *offered, answered(lambda: bench.slot_of(vm, bench.memfd(vm)))


def apic_bus_cycles(release: str) -> Any:
    """KVM_CAP_X86_APIC_BUS_CYCLES_NS of a VM in which 40 ns were set, of another one, and of /dev/kvm."""
    bench = boot(release=release)
    vm, other = bench.vm(0), bench.vm(0)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    bench.enable(vm, k.Cap.X86_APIC_BUS_CYCLES_NS, 40)
    return [bench.ioctl(fd, k.KVM_CHECK_EXTENSION, k.Cap.X86_APIC_BUS_CYCLES_NS) for fd in (vm, other, bench.device())]


def guest_memfd_bound_twice(release: str) -> Any:
    bench = boot(release=release)
    vm = bench.vm(k.VmType.SW_PROTECTED)
    memfd = bench.memfd(vm)
    bench.slot_of(vm, memfd)
    return answered(lambda: bench.slot_of(vm, memfd, slot=1, gpa=0x10_0000))


def guest_memfd_bound_twice_beyond_the_width(release: str) -> Any:
    """Which of two reasons refuses a slot: its range of the guest_memfd is another's, and no address is that wide.

    Before 7.2 the errno is the same: what the kernel notes of the reason tells.
    """
    bench = boot(release=release)
    vm = bench.vm(k.VmType.SW_PROTECTED)
    memfd = bench.memfd(vm)
    bench.slot_of(vm, memfd)
    with pytest.raises(OSError) as caught:
        bench.slot_of(vm, memfd, slot=1, gpa=1 << 55)
    (reason,) = (note for note in caught.value.__notes__ if "slot" in note)
    # What was refused binds nothing.
    other = bench.memfd(vm)
    assert answered(lambda: bench.slot_of(vm, other, slot=2, gpa=1 << 55)) == errno.EINVAL
    bench.slot_of(vm, other, slot=2, gpa=0x10_0000)
    return "width" in reason


def second_vcpu_with_an_id(release: str) -> Any:
    """While the TD is built, and when it is final: of an id that exists, and in the end of another."""
    bench, vm, _, _ = built(release)
    before = answered(lambda: bench.ioctl(vm, k.KVM_CREATE_VCPU, 0))
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    return before, *(answered(partial(bench.ioctl, vm, k.KVM_CREATE_VCPU, number)) for number in (0, 1))


def state_set_while_it_sleeps(release: str, state: int) -> Any:
    """A vCPU whose HLT does not exit sleeps; user space leaves KVM_RUN and sets its state: does it sleep on?"""
    bench = boot(release=release)
    vm = bench.vm(0)
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    bench.enable(vm, k.Cap.X86_DISABLE_EXITS, 1 << 1)
    vcpu = bench.ioctl(vm, k.KVM_CREATE_VCPU, 0)
    context = bench.vm_object().vcpus[0].vmx.context
    context.activity_state = 1
    bench.ioctl(vcpu, k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=state))
    return context.activity_state


def bus_lock_of_a_td(release: str) -> Any:
    """Whether the TD's controls get bus lock detection (bit 30), and the exit of a TD exit with reason 74."""
    bench = boot(release=release)
    vm = bench.vm()
    bench.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
    bench.enable(vm, k.Cap.X86_BUS_LOCK_EXIT, k.KVM_BUS_LOCK_DETECTION_EXIT)
    bench.command(vm, up.KVM_TDX_INIT_VM, bench.init_vm())
    bench.module.calls.clear()
    vcpu = bench.vcpu(vm)
    written = [
        (args["r8"], args["r9"]) for name, args, _ in bench.module.calls if name == "VP_WR" and args["rdx"] == 0x401E
    ]
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    bench.module.answers["VP_ENTER"] = [int(ExitReason.BUS_LOCK), int(ExitReason.TRIPLE_FAULT) | 0x40000001 << 32]
    run = bench.run_page(vcpu)
    seen = []
    for _ in range(2):
        bench.ioctl(vcpu, k.KVM_RUN)
        seen.append((run.exit_reason, run.flags))
    return written, seen


def shared_access_to_a_guest_memfd(release: str) -> Any:
    """A TD's shared page of a slot whose guest_memfd can be mapped: whether it comes from there, filled with zeros."""
    bench = boot(release=release)
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    request = k.kvm_create_guest_memfd(size=0x4000, flags=k.GUEST_MEMFD_FLAG_MMAP)
    memfd = 0

    def creates() -> None:
        nonlocal memfd
        memfd = bench.ioctl(vm, k.KVM_CREATE_GUEST_MEMFD, request)

    if refused := answered(creates):
        return refused
    bench.slot_of(vm, memfd)
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    kvm = bench.vm_object()
    shared = kvm.mmu.direct_bits
    bench.module.answers["VP_ENTER"] = exits(
        ept_violation(0x1000 | shared << 12), int(ExitReason.TRIPLE_FAULT) | 0x40000001 << 32
    )
    bench.run_page(vcpu)
    bench.ioctl(vcpu, k.KVM_RUN)
    (file,) = kvm.guest_memfds
    entry, _ = kvm.mmu.direct.lookup(shared | 1)
    page = file.pages[0][1] & -4096  # of the first 2 MiB the second page
    return entry & 0xF_FFFF_F000 == page, bench.kernel.processor.memory.read(page, 4096) == bytes(4096)


SHUT = (int(k.KVM_EXIT_SHUTDOWN), 0)
INVALID_OPERAND, RETRY = ("R10", k.TDVMCALL_STATUS_INVALID_OPERAND), ("R10", k.TDVMCALL_STATUS_RETRY)
E = errno
MATRIX: dict[str, tuple[Callable[[str], Any], dict[str, Any], tuple[str, ...]]] = {
    "KVM_TDX_TERMINATE_VM": (terminate_vm, since("next", E.EINVAL, 0), ("serves_terminate_vm",)),
    "its capability": (capability_of_terminate_vm, since("next", 0, 1), ("serves_terminate_vm",)),
    "KiB that a first touch of 2 MiB maps": (size_of_private_mappings, since("next", 4, 2048), ("maps_2m_private",)),
    "a command that cannot be read, once final": (
        unreadable_command_of_a_finalized_td, since("6.19", E.EINVAL, E.EFAULT), ("vcpu_command_is_read_first",),
    ),
    "a command with a status, once final": (status_set_in_a_command_of_a_finalized_td, since("6.16", 0, E.EINVAL), ()),
    "cpuid.nent that changes": (nent_that_changes, since("7.1", 0, E.EINVAL), ("init_vm_checks_nent_again",)),
    "KVM_CREATE_IRQCHIP of a TD": (irqchip_of_a_td, since("6.18", 0, E.ENOTTY), ("tds_take_irqchips",)),
    "KVM_IRQFD of another VM's eventfd": (
        eventfd_of_two_vms, since("6.18", {0}, E.EBUSY), ("irqfds_share_eventfds",),
    ),
    "KVM_GET_ONE_REG and KVM_GET_REG_LIST": (
        one_reg, since("6.18", (0, E.EINVAL, E.EINVAL), (1, 0, 0)), ("absent_ioctls", "absent_capabilities"),
    ),
    "KVM_SET_TSC_KHZ of a VM before and after its first vCPU": (
        tsc_frequency, since("6.18", (0, 0), (0, E.EINVAL)), ("fixes_tsc_frequency",),
    ),
    "KVM_SET_MSRS of an MSR that the vCPU's CPUID lacks": (
        msrs_without_their_feature,
        since("6.18", (0, 1), (1, 0)),
        ("advertised_pv_msrs_read_as_0", "xss_needs_xsaves"),
    ),
    "KVM_SET_SREGS with a bit of EFER that the vCPU lacks": (
        sregs_with_a_bit_of_efer, since("7.2", 0, E.EINVAL), ("sregs_check_efer",),
    ),
    "quirks of KVM_CAP_DISABLE_QUIRKS2": (
        lambda name: boot_capability(name, k.Cap.DISABLE_QUIRKS2),
        since("7.2", 0x7FF, 0xFFF) | {"6.16": 0x3FF},
        ("quirks",),
    ),
    "IA32_DEBUGCTL in KVM_GET_MSR_INDEX_LIST": (debugctl_is_listed, since("7.1", False, True), ("lists_debugctl",)),
    "x2APIC API: suppress EOI broadcasts": (
        lambda name: x2apic_api(name, 4), since("6.19", (0b11, E.EINVAL), (0b1111, 0)), ("directed_eoi_is_chosen",),
    ),
    "x2APIC API: do not suppress EOI broadcasts": (
        lambda name: x2apic_api(name, 8), since("6.19", (0b11, E.EINVAL), (0b1111, 0)), ("directed_eoi_is_chosen",),
    ),
    "x2APIC API: both": (
        lambda name: x2apic_api(name, 12), since("6.19", (0b11, E.EINVAL), (0b1111, E.EINVAL)), (),
    ),
    "x2APIC API: suppress, with the I/O APIC in the kernel": (
        lambda name: x2apic_api(name, 4, split=False), since("6.19", (0b11, E.EINVAL), (0b1011, E.EINVAL)), (),
    ),
    "x2APIC API: do not suppress, with the I/O APIC in the kernel": (
        lambda name: x2apic_api(name, 8, split=False), since("6.19", (0b11, E.EINVAL), (0b1011, 0)), (),
    ),
    "guest_memfd of an ordinary VM": (
        guest_memfd,
        since("6.18", (0, 0, 0, E.EINVAL), (1, 3, 1, 0)),
        ("guest_memfd_for_all", "absent_capabilities"),
    ),
    "KVM_CAP_X86_APIC_BUS_CYCLES_NS of a VM": (
        apic_bus_cycles, since("7.1", [1, 1, 1], [40, 1, 1]), ("shows_apic_bus_cycles",),
    ),
    "a page of a guest_memfd in two slots": (
        guest_memfd_bound_twice, since("7.2", E.EINVAL, E.EEXIST), ("bound_twice",),
    ),
    "shared memory of a TD from a guest_memfd": (
        shared_access_to_a_guest_memfd, since("6.18", E.EINVAL, (True, True)), ("guest_memfd_for_all",),
    ),
    "source_addr 0": (
        source_of_0, since("7.1", E.EFAULT, E.EOPNOTSUPP) | {"7.3": E.EINVAL, "next": E.EINVAL}, ("null_source",),
    ),
    "an unreadable source for a shared page": (
        unreadable_source_of_a_shared_page, since("7.1", E.EINVAL, E.EFAULT), ("pins_source_first",),
    ),
    "an unreadable source for a populated page": (
        unreadable_source_of_a_populated_page, since("7.1", E.EEXIST, E.EFAULT), ("pins_source_first",),
    ),
    "a page populated twice": (page_populated_twice, since("7.1", E.EEXIST, E.EIO), ("populated_twice",)),
    "PAGE.ADD refused": (
        refused_page_add, since("6.19", (E.EIO, False, E.EINVAL), (E.EIO, True, E.EIO)), ("maps_and_adds_at_once",),
    ),
    "MR.EXTEND refused": (
        refused_extend, since("6.19", (E.EIO, False, 0), (E.EIO, True, E.EIO)), ("building_errors_kill",),
    ),
    "MNG.CREATE refused": (refused_create, since("6.19", (E.EIO, False), (E.EIO, True)), ("building_errors_kill",)),
    "PAGE.ADD busy": (
        busy_page_add, since("6.19", (E.EBUSY, False, E.EINVAL), (0, False, 0)), ("maps_and_adds_at_once",),
    ),
    "KVM_TDX_CAPABILITIES, a command that cannot be written": (
        capabilities_of_a_read_only_command, since("6.19", E.EFAULT, 0), ("writes_capabilities_command",),
    ),
    "MapGPA, ret EAGAIN": (
        lambda name: after_map_gpa(name, E.EAGAIN), since("7.2", INVALID_OPERAND, RETRY), ("map_gpa_knows_errnos",),
    ),
    "MapGPA, ret EINVAL": (lambda name: after_map_gpa(name, E.EINVAL), since("6.16", None, INVALID_OPERAND), ()),
    "MapGPA, ret EPERM": (
        lambda name: after_map_gpa(name, E.EPERM), since("7.2", INVALID_OPERAND, E.EINVAL), ("map_gpa_knows_errnos",),
    ),
    "MapGPA, ret -EAGAIN": (
        lambda name: after_map_gpa(name, 2**64 - E.EAGAIN),
        since("7.2", INVALID_OPERAND, E.EINVAL),
        ("map_gpa_knows_errnos",),
    ),
    "MSRs read: x2APIC ISR1": (lambda name: x2apic_read(name, 0x811), since("7.2", 1, 0), ("x2apic_by_register",)),
    "MSRs read: x2APIC ISR0": (lambda name: x2apic_read(name, 0x810), since("6.16", None, 0), ()),
    "MSRs read: x2APIC LDR": (lambda name: x2apic_read(name, 0x80D), since("6.16", None, 1), ()),
    "WRMSR of SELF_IPI by TDVMCALL": (
        lambda name: x2apic_write_by_guest(name, 0x83F, 0x40),
        since("7.2", 0, k.TDVMCALL_STATUS_INVALID_OPERAND),
        ("x2apic_by_register",),
    ),
    "a guest_memfd bound twice, beyond the physical address width": (
        guest_memfd_bound_twice_beyond_the_width,
        since("7.3", False, True),
        ("binds_guest_memfd_last",),
    ),
    "KVM_CREATE_VCPU of an id that exists": (
        second_vcpu_with_an_id,
        since("7.3", (E.EEXIST, E.EIO, E.EIO), (E.EEXIST, E.EEXIST, E.EIO)),
        ("vcpu_id_is_looked_up_first",),
    ),
    "KVM_SET_MP_STATE to runnable of a vCPU that sleeps in the processor": (
        lambda name: state_set_while_it_sleeps(name, k.KVM_MP_STATE_RUNNABLE),
        since("7.3", 1, 0),
        ("mp_state_ends_hlt",),
    ),
    "KVM_SET_MP_STATE to halted of a vCPU that sleeps in the processor": (
        lambda name: state_set_while_it_sleeps(name, k.KVM_MP_STATE_HALTED), since("6.16", None, 1), (),
    ),
    "a bus lock of a TD": (
        bus_lock_of_a_td,
        since(
            "7.3",
            ([], [(int(k.KVM_EXIT_INTERNAL_ERROR), 0), SHUT]),
            ([(1 << 30, 1 << 30)], [(int(k.KVM_EXIT_X86_BUS_LOCK), k.KVM_RUN_X86_BUS_LOCK), SHUT]),
        ),
        ("tds_report_bus_locks",),
    ),
    "WRMSR of TMICT by TDVMCALL": (lambda name: x2apic_write_by_guest(name, 0x838, 1), since("6.16", None, 0), ()),
}  # fmt: skip
CASES = [(call, name.value) for call in MATRIX for name in UPSTREAM]
ELSEWHERE = {"shows_module_in_sysfs", "emulates_avx"}
"""Differences that other tests show (`tests/exec/test_sightings.py`, `test_emulate_shifts.py`)."""


@pytest.mark.parametrize(("call", "release"), CASES, ids=[f"{call}-{release}" for call, release in CASES])
def test_a_call_is_answered_as_in_that_release(call: str, release: str) -> None:
    observe, expected, _ = MATRIX[call]
    assert observe(release) == expected[release]


def differing(one: Release, other: Release) -> set[str]:
    return {name for name, value in vars(one).items() if value != getattr(other, name)} - {"name", "dialect"}


@pytest.mark.parametrize("place", range(1, len(UPSTREAM)))
def test_every_difference_between_neighbours_has_a_call_that_shows_it(place: int) -> None:
    old, new = UPSTREAM[place - 1], UPSTREAM[place]
    shown = {
        behaviour
        for _, expected, behaviours in MATRIX.values()
        if expected[old.value] != expected[new.value]
        for behaviour in behaviours
    }
    assert differing(RELEASES[old], RELEASES[new]) - ELSEWHERE == shown


def test_v10_is_another_dialect() -> None:
    assert boot(release="v10").kernel.dialect is Dialect.V10
