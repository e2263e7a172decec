# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers, sizes and offsets written down from documents, for what a system's header may be too old to have.

Sources: Linux 6.16/6.18 headers (include/uapi/linux/kvm.h, arch/x86/include/uapi/asm/kvm.h), Documentation/virt/kvm;
for v10 the document of the series of November 2022; all by way of the facts sheet ``kvm-tdx-abi.md``, whose section is
named with each table.
"""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from swtdx.uapi import capability, kvm, tdx_upstream, tdx_v10
from swtdx.uapi.dialect import Dialect, InitialMemory, Target, TdxCommand
from swtdx.uapi.layout import filled, with_entries

# Sections 1.2 to 1.4: the whole 32-bit number.
REQUESTS = {
    "KVM_GET_API_VERSION": 0x0000AE00,
    "KVM_CREATE_VM": 0x0000AE01,
    "KVM_CHECK_EXTENSION": 0x0000AE03,
    "KVM_GET_VCPU_MMAP_SIZE": 0x0000AE04,
    "KVM_GET_SUPPORTED_CPUID": 0xC008AE05,
    "KVM_GET_MSR_INDEX_LIST": 0xC004AE02,
    "KVM_GET_MSR_FEATURE_INDEX_LIST": 0xC004AE0A,
    "KVM_GET_MSRS": 0xC008AE88,
    "KVM_X86_GET_MCE_CAP_SUPPORTED": 0x8008AE9D,
    "KVM_MEMORY_ENCRYPT_OP": 0xC008AEBA,
    "KVM_CREATE_VCPU": 0x0000AE41,
    "KVM_SET_USER_MEMORY_REGION": 0x4020AE46,
    "KVM_SET_USER_MEMORY_REGION2": 0x40A0AE49,
    "KVM_CREATE_GUEST_MEMFD": 0xC040AED4,
    "KVM_SET_MEMORY_ATTRIBUTES": 0x4020AED2,
    "KVM_ENABLE_CAP": 0x4068AEA3,
    "KVM_CREATE_IRQCHIP": 0x0000AE60,
    "KVM_CREATE_PIT2": 0x4040AE77,
    "KVM_SET_GSI_ROUTING": 0x4008AE6A,
    "KVM_SIGNAL_MSI": 0x4020AEA5,
    "KVM_IRQFD": 0x4020AE76,
    "KVM_IOEVENTFD": 0x4040AE79,
    "KVM_SET_TSS_ADDR": 0x0000AE47,
    "KVM_SET_IDENTITY_MAP_ADDR": 0x4008AE48,
    "KVM_SET_TSC_KHZ": 0x0000AEA2,
    "KVM_GET_TSC_KHZ": 0x0000AEA3,
    "KVM_X86_SET_MSR_FILTER": 0x4188AEC6,
    "KVM_MEMORY_ENCRYPT_REG_REGION": 0x8010AEBB,
    "KVM_MEMORY_ENCRYPT_UNREG_REGION": 0x8010AEBC,
    "KVM_GET_STATS_FD": 0x0000AECE,
    "KVM_SET_CPUID2": 0x4008AE90,
    "KVM_GET_CPUID2": 0xC008AE91,
    "KVM_SET_MSRS": 0x4008AE89,
    "KVM_GET_MP_STATE": 0x8004AE98,
    "KVM_SET_MP_STATE": 0x4004AE99,
    "KVM_NMI": 0x0000AE9A,
    "KVM_X86_SETUP_MCE": 0x4008AE9C,
    "KVM_GET_VCPU_EVENTS": 0x8040AE9F,
    "KVM_SET_VCPU_EVENTS": 0x4040AEA0,
    "KVM_PRE_FAULT_MEMORY": 0xC040AED5,
    "KVM_RUN": 0x0000AE80,
    "KVM_SET_SIGNAL_MASK": 0x4004AE8B,
}

# Sections 1.3, 3.2, 4.2 and the 6.18 header.
CONSTANTS = {
    "KVM_CAP_USER_MEMORY2": 231,
    "KVM_CAP_MEMORY_FAULT_INFO": 232,
    "KVM_CAP_MEMORY_ATTRIBUTES": 233,
    "KVM_CAP_GUEST_MEMFD": 234,
    "KVM_CAP_VM_TYPES": 235,
    "KVM_CAP_PRE_FAULT_MEMORY": 236,
    "KVM_CAP_X86_APIC_BUS_CYCLES_NS": 237,
    "KVM_CAP_GUEST_MEMFD_FLAGS": 244,
    "KVM_CAP_EXIT_HYPERCALL": 201,
    "KVM_CAP_SPLIT_IRQCHIP": 121,
    "KVM_EXIT_MEMORY_FAULT": 39,
    "KVM_EXIT_TDX": 40,
    "KVM_SYSTEM_EVENT_TDX_FATAL": 7,
    "KVM_MEM_GUEST_MEMFD": 4,
    "KVM_MEMORY_ATTRIBUTE_PRIVATE": 8,
    "KVM_MEMORY_EXIT_FLAG_PRIVATE": 8,
    "KVM_HC_MAP_GPA_RANGE": 12,
    "KVM_MAP_GPA_RANGE_ENCRYPTED": 0x10,
    "KVM_X86_DEFAULT_VM": 0,
    "KVM_X86_SW_PROTECTED_VM": 1,
    "KVM_X86_TDX_VM": 5,
}

# (class, size, {member path: offset}). Sections 1.3, 1.4, 2.1, 2.6, 3.1, 3.2, 3.4.
LAYOUTS: list[tuple[Any, int, dict[str, int]]] = [
    (
        kvm.kvm_userspace_memory_region2,
        160,
        {
            "slot": 0,
            "flags": 4,
            "guest_phys_addr": 8,
            "memory_size": 16,
            "userspace_addr": 24,
            "guest_memfd_offset": 32,
            "guest_memfd": 40,
        },
    ),
    (kvm.kvm_create_guest_memfd, 64, {"size": 0, "flags": 8}),
    (kvm.kvm_memory_attributes, 32, {"address": 0, "size": 8, "attributes": 16, "flags": 24}),
    (kvm.kvm_pre_fault_memory, 64, {"gpa": 0, "size": 8, "flags": 16}),
    (
        kvm.kvm_run,
        2352,
        {
            "immediate_exit": 1,
            "exit_reason": 8,
            "ready_for_interrupt_injection": 12,
            "if_flag": 13,
            "flags": 14,
            "cr8": 16,
            "apic_base": 24,
            "exit.io.direction": 32,
            "exit.io.size": 33,
            "exit.io.port": 34,
            "exit.io.count": 36,
            "exit.io.data_offset": 40,
            "exit.mmio.phys_addr": 32,
            "exit.mmio.data": 40,
            "exit.mmio.len": 48,
            "exit.mmio.is_write": 52,
            "exit.msr.error": 32,
            "exit.msr.reason": 40,
            "exit.msr.index": 44,
            "exit.msr.data": 48,
            "exit.hypercall.nr": 32,
            "exit.hypercall.args": 40,
            "exit.hypercall.ret": 88,
            "exit.hypercall.mode.flags": 96,
            "exit.system_event.type": 32,
            "exit.system_event.ndata": 36,
            "exit.system_event.payload.data": 40,
            "exit.memory_fault.flags": 32,
            "exit.memory_fault.gpa": 40,
            "exit.memory_fault.size": 48,
            "exit.internal.suberror": 32,
            "exit.internal.ndata": 36,
            "exit.internal.data": 40,
            "exit.fail_entry.hardware_entry_failure_reason": 32,
            "exit.fail_entry.cpu": 40,
            "exit.ex.exception": 32,
            "exit.ex.error_code": 36,
            "exit.tdx.flags": 32,
            "exit.tdx.nr": 40,
            "exit.tdx.call.unknown.ret": 48,
            "exit.tdx.call.get_quote.ret": 48,
            "exit.tdx.call.get_quote.gpa": 56,
            "exit.tdx.call.get_quote.size": 64,
            "exit.tdx.call.get_tdvmcall_info.leaf": 56,
            "exit.tdx.call.get_tdvmcall_info.r11": 64,
            "exit.tdx.call.get_tdvmcall_info.r12": 72,
            "exit.tdx.call.get_tdvmcall_info.r13": 80,
            "exit.tdx.call.get_tdvmcall_info.r14": 88,
            "exit.tdx.call.setup_event_notify.vector": 56,
        },
    ),
    (tdx_upstream.kvm_tdx_cmd, 24, {"id": 0, "flags": 4, "data": 8, "hw_error": 16}),
    (
        tdx_upstream.kvm_tdx_capabilities,
        2056,
        {
            "supported_attrs": 0,
            "supported_xfam": 8,
            "kernel_tdvmcallinfo_1_r11": 16,
            "user_tdvmcallinfo_1_r11": 24,
            "kernel_tdvmcallinfo_1_r12": 32,
            "user_tdvmcallinfo_1_r12": 40,
            "reserved": 48,
            "cpuid.nent": 2048,
            "cpuid.entries": 2056,
        },
    ),
    (
        tdx_upstream.kvm_tdx_init_vm,
        264,
        {
            "attributes": 0,
            "xfam": 8,
            "mrconfigid": 16,
            "mrowner": 64,
            "mrownerconfig": 112,
            "reserved": 160,
            "cpuid.nent": 256,
            "cpuid.padding": 260,
            "cpuid.entries": 264,
        },
    ),
    (tdx_upstream.kvm_tdx_init_mem_region, 24, {"source_addr": 0, "gpa": 8, "nr_pages": 16}),
    (tdx_v10.kvm_tdx_cmd, 32, {"id": 0, "flags": 4, "data": 8, "error": 16, "unused": 24}),
    (
        tdx_v10.kvm_tdx_capabilities,
        40,
        {
            "attrs_fixed0": 0,
            "attrs_fixed1": 8,
            "xfam_fixed0": 16,
            "xfam_fixed1": 24,
            "nr_cpuid_configs": 32,
            "cpuid_configs": 36,
        },
    ),
    (tdx_v10.kvm_tdx_cpuid_config, 24, {"leaf": 0, "sub_leaf": 4, "eax": 8, "ebx": 12, "ecx": 16, "edx": 20}),
    (
        tdx_v10.kvm_tdx_init_vm,
        512,
        {
            "max_vcpus": 0,
            "reserved0": 4,
            "attributes": 8,
            "cpuid": 16,
            "mrconfigid": 24,
            "mrowner": 72,
            "mrownerconfig": 120,
            "reserved": 168,
        },
    ),
    (tdx_v10.kvm_tdx_init_mem_region, 24, {"source_addr": 0, "gpa": 8, "nr_pages": 16}),
]


def offset(structure: Any, path: str) -> int:
    """Offset of a member given by its path, through nested structures and unions."""
    total, kind = 0, structure
    for name in path.split("."):
        total += getattr(kind, name).offset
        kind = {field[0]: field[1] for field in kind._fields_}[name]
    return total


@pytest.mark.parametrize(("name", "number"), REQUESTS.items())
def test_request_number(name: str, number: int) -> None:
    assert kvm.REQUESTS[name] == number
    assert kvm.ioctl_name(number) == name


@pytest.mark.parametrize(("name", "number"), CONSTANTS.items())
def test_constant(name: str, number: int) -> None:
    assert getattr(kvm, name) == number


@pytest.mark.parametrize(
    ("structure", "size", "offsets"),
    [pytest.param(*row, id=f"{row[0].__module__.rpartition('.')[2]}.{row[0].__name__}") for row in LAYOUTS],
)
def test_layout(structure: Any, size: int, offsets: dict[str, int]) -> None:
    assert ctypes.sizeof(structure) == size
    assert {path: offset(structure, path) for path in offsets} == offsets


def test_no_two_requests_share_a_number() -> None:
    assert len({int(request) for request in kvm.REQUESTS.values()}) == len(kvm.REQUESTS)


def test_no_two_capabilities_share_a_number() -> None:
    assert len({int(cap) for cap in capability.Cap.__members__.values()}) == len(capability.Cap.__members__)


def test_an_unknown_request_is_shown_in_hexadecimal() -> None:
    assert kvm.ioctl_name(0xAEFE) == "ioctl 0x0000AEFE"


def test_a_request_number_is_understood_when_sign_extended() -> None:
    assert kvm.ioctl_name(0xC008AEBA - (1 << 32)) == "KVM_MEMORY_ENCRYPT_OP"


class TestFlexibleArrays:
    """Header sizes plus n entries, section 2.1: 2056 + 40n and 264 + 40n upstream, configs at 36 in v10."""

    def test_upstream_capabilities(self) -> None:
        assert ctypes.sizeof(with_entries(tdx_upstream.kvm_tdx_capabilities, 6)) == 2056 + 40 * 6

    def test_upstream_init_vm(self) -> None:
        assert ctypes.sizeof(with_entries(tdx_upstream.kvm_tdx_init_vm, 256)) == 264 + 40 * 256

    def test_v10_capabilities_leave_no_gap_before_the_configurations(self) -> None:
        table = with_entries(tdx_v10.kvm_tdx_capabilities, 3)()
        table.cpuid_configs[1].leaf = 0xAABBCCDD
        assert bytes(table).index(b"\xdd\xcc\xbb\xaa") == 36 + 24

    def test_msr_list_is_packed(self) -> None:
        assert ctypes.sizeof(with_entries(kvm.kvm_msr_list, 11)) == 4 + 4 * 11

    def test_filling_copies_the_entries(self) -> None:
        entry = kvm.kvm_cpuid_entry2(function=0xD, index=1, flags=1, edx=0xFFFFFFFF)
        made = filled(kvm.kvm_cpuid2, [entry, entry], nent=2)
        entry.function = 0
        assert (made.nent, made.entries[1].function, made.entries[1].edx) == (2, 0xD, 0xFFFFFFFF)

    def test_a_structure_without_one_is_refused(self) -> None:
        with pytest.raises(TypeError, match="kvm_regs does not end in a flexible array"):
            with_entries(kvm.kvm_regs, 1)


class TestDialects:
    """Sections 2.1 and 2.6."""

    def test_a_td_is_type_5_upstream_and_1_in_v10(self) -> None:
        assert (Dialect.UPSTREAM.vm_type_tdx, Dialect.V10.vm_type_tdx) == (5, 1)

    def test_the_capability_of_vm_types(self) -> None:
        assert (Dialect.UPSTREAM.cap_vm_types, Dialect.V10.cap_vm_types) == (235, 225)

    def test_ids_are_the_same_in_both(self) -> None:
        for command in Dialect.V10.commands:
            assert getattr(tdx_v10, f"KVM_TDX_{command.name}") == command
        for command in Dialect.UPSTREAM.commands:
            assert getattr(tdx_upstream, f"KVM_TDX_{command.name}") == command

    def test_initial_memory_goes_to_the_vm_in_v10_and_to_a_vcpu_upstream(self) -> None:
        assert Dialect.V10.target(TdxCommand.INIT_MEM_REGION) is Target.VM
        assert Dialect.UPSTREAM.target(TdxCommand.INIT_MEM_REGION) is Target.VCPU

    def test_initial_memory_is_the_memslot_in_v10_and_guest_memfd_upstream(self) -> None:
        assert Dialect.V10.initial_memory is InitialMemory.MEMSLOT
        assert Dialect.UPSTREAM.initial_memory is InitialMemory.GUEST_MEMFD

    def test_get_cpuid_and_terminate_are_upstream_only(self) -> None:
        assert Dialect.UPSTREAM.commands - Dialect.V10.commands == {TdxCommand.GET_CPUID, TdxCommand.TERMINATE_VM}
        with pytest.raises(KeyError):
            Dialect.V10.target(TdxCommand.GET_CPUID)

    @pytest.mark.parametrize("dialect", Dialect)
    def test_the_status_member_is_in_the_command(self, dialect: Dialect) -> None:
        assert offset(dialect.cmd, dialect.hw_error_member) == 16
