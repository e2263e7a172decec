# SPDX-License-Identifier: GPL-2.0-or-later
"""What one kernel does otherwise than another: a named behaviour each, in one record per kernel.

`swtdx.uapi.dialect` has the numbers and structures that cross the system-call line. Here is what the kernel does behind
it. Code asks ``kernel.release`` for a behaviour and never which kernel it is, so that another kernel is another record.

Sources: Linux 6.16, arch/x86/kvm (upstream); the series "KVM TDX basic feature support" of November 2022 (v10).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from swtdx.uapi.capability import Cap
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import REQUESTS


@dataclass(frozen=True)
class Release:
    """The behaviours of one kernel."""

    # --- bring-up and /dev/kvm ----------------------------------------------------------------------------------------
    reads_module_fields: bool
    """Read the TDX module's properties with TDH.SYS.RD, not TDH.SYS.INFO."""
    checks_module_features: bool
    """Refuse TDX without the module's features TOPOLOGY_ENUM and NO_RBP_MOD, or with too few vCPUs for each TD."""
    reports_guest_phys_bits: bool
    """KVM_GET_SUPPORTED_CPUID: GuestPhysAddrSize in leaf 0x80000008."""
    absent_ioctls: frozenset[int]
    absent_capabilities: frozenset[int]
    max_vcpus_can_be_enabled: bool
    """KVM_ENABLE_CAP of KVM_CAP_MAX_VCPUS."""

    # --- building a TD ------------------------------------------------------------------------------------------------
    tds_have_attributes: bool
    """User space says by KVM_SET_MEMORY_ATTRIBUTES which memory of a TD is private."""
    reserved_members: tuple[str, ...]
    """Members of kvm_tdx_cmd that must be 0, beside the one for the status."""
    init_reports_operands: bool
    """An operand that TDH.MNG.INIT refuses is EINVAL with the status in hw_error; else any failure is EIO with it."""
    vcpus_need_initialized_td: bool
    """KVM_CREATE_VCPU fails outside KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM."""
    initialized_vcpu_takes_no_command: bool
    """KVM_MEMORY_ENCRYPT_OP on an initialised vCPU fails before the command is read."""
    sets_apic_base: bool
    """KVM_TDX_INIT_VCPU sets IA32_APIC_BASE; else it switches the local APIC to x2APIC mode."""

    # --- a running TD -------------------------------------------------------------------------------------------------
    tracks_while_building: bool
    """Call TDH.MEM.TRACK when a mapping of a TD is removed that is not finalized yet, and once it is finalized."""
    map_gpa_needs_exit: bool
    """TDG.VP.VMCALL<MapGPA> is unsupported unless user space enabled KVM_EXIT_HYPERCALL for it."""
    map_gpa_knows_guest_width: bool
    """MapGPA refuses GPAs beyond the guest's own address width; else beyond 52 bits."""
    vm_call_info_to_user_space: bool
    """GetTdVmCallInfo with R12 = 1 asks user space."""


def _requests(*names: str) -> frozenset[int]:
    return frozenset(int(REQUESTS[name]) for name in names)


RELEASES: Mapping[Dialect, Release] = MappingProxyType(
    {
        Dialect.UPSTREAM: Release(
            reads_module_fields=True,
            checks_module_features=True,
            reports_guest_phys_bits=True,
            absent_ioctls=frozenset(),
            absent_capabilities=frozenset(),
            max_vcpus_can_be_enabled=False,
            tds_have_attributes=True,
            reserved_members=(),
            init_reports_operands=True,
            vcpus_need_initialized_td=True,
            initialized_vcpu_takes_no_command=False,
            sets_apic_base=True,
            tracks_while_building=False,
            map_gpa_needs_exit=True,
            map_gpa_knows_guest_width=True,
            vm_call_info_to_user_space=True,
        ),
        Dialect.V10: Release(
            reads_module_fields=False,
            checks_module_features=False,
            reports_guest_phys_bits=False,
            absent_ioctls=_requests(
                "KVM_SET_USER_MEMORY_REGION2",
                "KVM_SET_MEMORY_ATTRIBUTES",
                "KVM_CREATE_GUEST_MEMFD",
                "KVM_PRE_FAULT_MEMORY",
            ),
            absent_capabilities=frozenset(
                {
                    Cap.USER_MEMORY2,
                    Cap.MEMORY_FAULT_INFO,
                    Cap.MEMORY_ATTRIBUTES,
                    Cap.GUEST_MEMFD,
                    Cap.PRE_FAULT_MEMORY,
                    Cap.X86_APIC_BUS_CYCLES_NS,
                }
            ),
            max_vcpus_can_be_enabled=True,
            tds_have_attributes=False,
            reserved_members=("unused",),
            init_reports_operands=False,
            vcpus_need_initialized_td=False,
            initialized_vcpu_takes_no_command=True,
            sets_apic_base=False,
            tracks_while_building=True,
            map_gpa_needs_exit=False,
            map_gpa_knows_guest_width=False,
            vm_call_info_to_user_space=False,
        ),
    }
)
