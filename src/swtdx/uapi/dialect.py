# SPDX-License-Identifier: GPL-2.0-or-later
"""The two dialects of KVM's TDX interface, and what one must know to speak either.

``UPSTREAM`` is Linux 6.16 and later; ``V10`` the document of November 2022 (see `tdx_v10` for where it contradicts
itself). A kernel speaks exactly one; which releases of the kernel there are is in `release`. A client that does not
know asks for the VM types: `Dialect.cap_vm_types` differs, and so does the bit that stands for a TD.

>>> Dialect.UPSTREAM.vm_type_tdx, Dialect.V10.vm_type_tdx
(5, 1)
>>> Dialect.V10.target(TdxCommand.INIT_MEM_REGION).name, Dialect.UPSTREAM.target(TdxCommand.INIT_MEM_REGION).name
('VM', 'VCPU')
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from types import MappingProxyType

from swtdx.uapi import tdx_upstream, tdx_v10
from swtdx.uapi.capability import Cap


class TdxCommand(IntEnum):
    """Sub-commands of KVM_MEMORY_ENCRYPT_OP; the ids that both dialects have are the same in both."""

    CAPABILITIES = 0
    INIT_VM = 1
    INIT_VCPU = 2
    INIT_MEM_REGION = 3
    FINALIZE_VM = 4
    GET_CPUID = 5
    TERMINATE_VM = 6


class Target(Enum):
    """The kind of fd that a sub-command goes to."""

    VM = "VM"
    VCPU = "vCPU"


class InitialMemory(Enum):
    """Where the pages of INIT_MEM_REGION end up."""

    MEMSLOT = "memslot"  # the slot's memory is the TD's; its contents are encrypted in place of being mapped
    GUEST_MEMFD = "guest_memfd"  # needs a slot with a guest_memfd and the PRIVATE attribute


@dataclass(frozen=True)
class Layout:
    """All that differs between the dialects."""

    vm_type_tdx: int
    cap_vm_types: int
    cmd: type[ctypes.Structure]
    hw_error_member: str
    capabilities: type[ctypes.Structure]
    init_vm: type[ctypes.Structure]
    init_mem_region: type[ctypes.Structure]
    initial_memory: InitialMemory
    targets: Mapping[TdxCommand, Target]


_LAYOUTS = {
    "upstream": Layout(
        vm_type_tdx=int(tdx_upstream.KVM_X86_TDX_VM),
        cap_vm_types=int(Cap.VM_TYPES),
        cmd=tdx_upstream.kvm_tdx_cmd,
        hw_error_member="hw_error",
        capabilities=tdx_upstream.kvm_tdx_capabilities,
        init_vm=tdx_upstream.kvm_tdx_init_vm,
        init_mem_region=tdx_upstream.kvm_tdx_init_mem_region,
        initial_memory=InitialMemory.GUEST_MEMFD,
        targets=MappingProxyType(
            {
                TdxCommand.CAPABILITIES: Target.VM,
                TdxCommand.INIT_VM: Target.VM,
                TdxCommand.INIT_VCPU: Target.VCPU,
                TdxCommand.INIT_MEM_REGION: Target.VCPU,
                TdxCommand.FINALIZE_VM: Target.VM,
                TdxCommand.GET_CPUID: Target.VCPU,
                TdxCommand.TERMINATE_VM: Target.VM,
            }
        ),
    ),
    "v10": Layout(
        vm_type_tdx=tdx_v10.KVM_X86_TDX_VM,
        cap_vm_types=tdx_v10.KVM_CAP_VM_TYPES,
        cmd=tdx_v10.kvm_tdx_cmd,
        hw_error_member="error",
        capabilities=tdx_v10.kvm_tdx_capabilities,
        init_vm=tdx_v10.kvm_tdx_init_vm,
        init_mem_region=tdx_v10.kvm_tdx_init_mem_region,
        initial_memory=InitialMemory.MEMSLOT,
        targets=MappingProxyType(
            {
                TdxCommand.CAPABILITIES: Target.VM,
                TdxCommand.INIT_VM: Target.VM,
                TdxCommand.INIT_VCPU: Target.VCPU,
                TdxCommand.INIT_MEM_REGION: Target.VM,
                TdxCommand.FINALIZE_VM: Target.VM,
            }
        ),
    ),
}


class Dialect(Enum):
    """A dialect; its layouts and numbers are attributes."""

    V10 = "v10"
    UPSTREAM = "upstream"

    @property
    def layout(self) -> Layout:
        """Everything at once."""
        return _LAYOUTS[self.value]

    @property
    def vm_type_tdx(self) -> int:
        """What KVM_CREATE_VM takes for a TD; its bit in the answer to `cap_vm_types` says that TDs can be made."""
        return self.layout.vm_type_tdx

    @property
    def cap_vm_types(self) -> int:
        """The number of the capability KVM_CAP_VM_TYPES."""
        return self.layout.cap_vm_types

    @property
    def cmd(self) -> type[ctypes.Structure]:
        """The class of ``kvm_tdx_cmd``; its status member is named by `hw_error_member`."""
        return self.layout.cmd

    @property
    def hw_error_member(self) -> str:
        """``hw_error`` upstream, ``error`` in v10."""
        return self.layout.hw_error_member

    @property
    def capabilities(self) -> type[ctypes.Structure]:
        """The class of ``kvm_tdx_capabilities``, without entries (see `layout.with_entries`)."""
        return self.layout.capabilities

    @property
    def init_vm(self) -> type[ctypes.Structure]:
        """The class of ``kvm_tdx_init_vm``, upstream without entries."""
        return self.layout.init_vm

    @property
    def init_mem_region(self) -> type[ctypes.Structure]:
        """The class of ``kvm_tdx_init_mem_region``."""
        return self.layout.init_mem_region

    @property
    def initial_memory(self) -> InitialMemory:
        """Where the TD's first pages live."""
        return self.layout.initial_memory

    @property
    def commands(self) -> frozenset[TdxCommand]:
        """The sub-commands that have a number; no released kernel serves TERMINATE_VM."""
        return frozenset(self.layout.targets)

    def target(self, command: TdxCommand) -> Target:
        """The kind of fd that takes ``command``. Raises KeyError if the dialect does not have it."""
        return self.layout.targets[command]
