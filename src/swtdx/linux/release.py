# SPDX-License-Identifier: GPL-2.0-or-later
"""What one kernel does otherwise than another: a named behaviour each, in one record per release.

`swtdx.uapi.dialect` has the numbers and structures that cross the system-call line. Here is what the kernel does behind
it. Code reads a behaviour of ``kernel.release`` and never asks which release it is, so that another release is another
record. `RELEASES` states each release by what it changes against the one before. The documentation makes a page of it,
"What changes from release to release", from the docstrings below.

Sources: Linux 6.16.1, 6.18.15, 6.18.44 (as it answers), 6.19.11, 7.1.13, 7.2.8, 7.2.13, 7.3-rc7 and 7.3.4, arch/x86/kvm
and virt/kvm; the series "KVM TDX basic feature support" of November 2022 (v10); for ``next`` the series that are posted
and not merged.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from swtdx.uapi.capability import Cap
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import REQUESTS
from swtdx.uapi.release import SHORT_FORMS, KernelRelease


@dataclass(frozen=True)
class Release:
    """The behaviours of one kernel."""

    name: KernelRelease
    dialect: Dialect
    """The layouts and numbers of its TDX sub-commands."""

    # --- bring-up and /dev/kvm ----------------------------------------------------------------------------------------
    reads_module_fields: bool
    """Read the TDX module's properties with TDH.SYS.RD, not TDH.SYS.INFO."""
    checks_module_features: bool
    """Refuse TDX without the module's features TOPOLOGY_ENUM and NO_RBP_MOD, or with too few vCPUs for each TD."""
    reports_guest_phys_bits: bool
    """KVM_GET_SUPPORTED_CPUID: GuestPhysAddrSize in leaf 0x80000008."""
    absent_ioctls: frozenset[int]
    """ioctls that do not exist."""
    absent_capabilities: frozenset[int]
    """Capabilities that KVM_CHECK_EXTENSION answers with 0."""
    makes_sw_protected_vms: bool
    """KVM_CREATE_VM takes KVM_X86_SW_PROTECTED_VM (CONFIG_KVM_SW_PROTECTED_VM)."""
    guest_memfd_for_all: bool
    """Slots of any VM can have a guest_memfd, which KVM_CAP_GUEST_MEMFD says, and a guest_memfd takes flags
    (KVM_CAP_GUEST_MEMFD_FLAGS): user space can map it, and in VMs without private memory it can begin as shared. Else
    only VMs with private memory, without flags."""
    bound_twice: int
    """The errno of KVM_SET_USER_MEMORY_REGION2 for a range of a guest_memfd that another slot shows."""
    binds_guest_memfd_last: bool
    """KVM_SET_USER_MEMORY_REGION2 looks at last whether another slot shows the range of the guest_memfd, so that EINVAL
    for a slot beyond the physical address width comes first; else that is first."""
    irqfds_share_eventfds: bool
    """KVM_IRQFD takes an eventfd that is an irqfd of another VM, and only that other VM gets interrupts; else EBUSY."""
    tds_take_irqchips: bool
    """KVM_CREATE_IRQCHIP on a TD succeeds, and KVM_CREATE_VCPU fails then; else ENOTTY."""
    vcpu_id_is_looked_up_first: bool
    """KVM_CREATE_VCPU of an id that exists is EEXIST whatever state the VM is in; else EIO comes first for a TD that is
    final."""
    max_vcpus_can_be_enabled: bool
    """KVM_ENABLE_CAP of KVM_CAP_MAX_VCPUS."""
    shows_module_in_sysfs: bool
    """/sys/devices/faux/tdx_host/version has the TDX module's version (drivers/virt/coco/tdx-host)."""

    mp_state_ends_hlt: bool
    """KVM_SET_MP_STATE, with any state but HALTED, wakes a vCPU that sleeps inside the processor because its HLT does
    not exit (KVM_CAP_X86_DISABLE_EXITS); else only an event of the guest's does."""
    fixes_tsc_frequency: bool
    """KVM_SET_TSC_KHZ of a VM that has vCPUs fails with EINVAL; else it is for the vCPUs to come."""
    shows_apic_bus_cycles: bool
    """KVM_CAP_X86_APIC_BUS_CYCLES_NS of a VM answers what is set; else the default."""
    quirks: int
    """What KVM_CAP_DISABLE_QUIRKS2 offers to disable. Those beyond 0x3ff concern nested guests, which there are not."""
    advertised_pv_msrs_read_as_0: bool
    """Under KVM_CAP_ENFORCE_PV_FEATURE_CPUID user space can read, and set to 0, the paravirtual MSRs of a vCPU whose
    CPUID lacks them; else KVM_GET_MSRS and KVM_SET_MSRS stop there. (In 6.18 since one of its stable updates.)"""
    xss_needs_xsaves: bool
    """KVM_SET_MSRS sets IA32_XSS only where the vCPU's CPUID has XSAVES; else it can be set to 0 on any vCPU."""
    sregs_check_efer: bool
    """KVM_SET_SREGS refuses bits of EFER that the vCPU lacks with EINVAL; else KVM_RUN ends with KVM_EXIT_FAIL_ENTRY
    for those that the processor lacks. (In 7.2 since one of its stable updates, which others got, too.)"""
    knows_newer_faults: bool
    """IA32_ARCH_CAPABILITIES, as KVM offers it, has BHI_NO, GDS_NO, RFDS_NO and ITS_NO."""
    lists_debugctl: bool
    """KVM_GET_MSR_INDEX_LIST has IA32_DEBUGCTL and the addresses of the last interrupt. (So has 6.18.44.)"""
    emulates_avx: bool
    """On device memory the emulator executes VMOVUPS, VMOVDQA and the like; else KVM_EXIT_INTERNAL_ERROR."""
    directed_eoi_is_chosen: bool
    """KVM_CAP_X2APIC_API has flags that choose whether a guest can keep EOIs from the I/O APIC in user space; else that
    is offered without effect."""

    # --- building a TD ------------------------------------------------------------------------------------------------
    tds_have_attributes: bool
    """User space says by KVM_SET_MEMORY_ATTRIBUTES which memory of a TD is private."""
    reserved_members: tuple[str, ...]
    """Members of kvm_tdx_cmd that must be 0, beside the one for the status."""
    writes_capabilities_command: bool
    """KVM_TDX_CAPABILITIES writes kvm_tdx_cmd back, which must be writable; else it is read only."""
    vcpu_command_is_read_first: bool
    """A sub-command on a vCPU is read before the state of the TD is checked: EFAULT comes before EINVAL."""
    init_vm_checks_nent_again: bool
    """KVM_TDX_INIT_VM fails with EINVAL if cpuid.nent changes between the two times that the kernel reads it."""
    init_reports_operands: bool
    """An operand that TDH.MNG.INIT refuses is EINVAL with the status in hw_error; else any failure is EIO with it."""
    vcpus_need_initialized_td: bool
    """KVM_CREATE_VCPU fails outside KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM."""
    initialized_vcpu_takes_no_command: bool
    """KVM_MEMORY_ENCRYPT_OP on an initialised vCPU fails before the command is read."""
    sets_apic_base: bool
    """KVM_TDX_INIT_VCPU sets IA32_APIC_BASE; else it switches the local APIC to x2APIC mode."""
    null_source: int
    """The errno of KVM_TDX_INIT_MEM_REGION with source_addr 0."""
    pins_source_first: bool
    """KVM_TDX_INIT_MEM_REGION reads the source before it looks at the page: EFAULT comes before EINVAL for a page that
    is not private, and before the error for a page that is populated."""
    populated_twice: int
    """The errno of KVM_TDX_INIT_MEM_REGION for a page that is populated already."""
    maps_and_adds_at_once: bool
    """TDH.MEM.PAGE.ADD is a part of mapping a page: if the module refuses it, the VM is dead (if the module is busy,
    it is asked again until a signal comes); else the page stays mapped without contents, and KVM_TDX_FINALIZE_VM fails
    with EINVAL."""
    building_errors_kill: bool
    """A status that should not be kills the VM while a TD is built, too: of TDH.MNG.CREATE, ADDCX and INIT and of
    TDH.MR.EXTEND; else only the call fails."""

    # --- a running TD -------------------------------------------------------------------------------------------------
    maps_2m_private: bool
    """Private memory is mapped 2 MiB at a time where a TD accepts 2 MiB; else always 4 KiB."""
    tracks_while_building: bool
    """Call TDH.MEM.TRACK when a mapping of a TD is removed that is not finalized yet, and once it is finalized."""
    map_gpa_needs_exit: bool
    """TDG.VP.VMCALL<MapGPA> is unsupported unless user space enabled KVM_EXIT_HYPERCALL for it."""
    map_gpa_knows_guest_width: bool
    """MapGPA refuses GPAs beyond the guest's own address width; else beyond 52 bits."""
    map_gpa_knows_errnos: bool
    """After MapGPA hypercall.ret EAGAIN is RETRY for the guest, EINVAL is INVALID_OPERAND, and any other value but 0
    fails KVM_RUN with EINVAL; else any value but 0 is INVALID_OPERAND."""
    vm_call_info_to_user_space: bool
    """GetTdVmCallInfo with R12 = 1 asks user space."""
    tds_report_bus_locks: bool
    """KVM_CAP_X86_BUS_LOCK_EXIT has an effect on a TD, too: KVM_EXIT_X86_BUS_LOCK."""
    x2apic_by_register: bool
    """The x2APIC registers that TDVMCALL RDMSR and WRMSR reach are a list. Else they are the whole range 0x800 to 0x8ff
    without TPR, PPR, EOI and the first of ISR, TMR and IRR each: SELF_IPI can be written, the others read as 0."""

    # --- the end of a TD ----------------------------------------------------------------------------------------------
    serves_terminate_vm: bool
    """KVM_TDX_TERMINATE_VM, and its bit in KVM_TDX_CAPABILITIES."""


def _requests(*names: str) -> frozenset[int]:
    return frozenset(int(REQUESTS[name]) for name in names)


_ONE_REG = _requests("KVM_GET_ONE_REG", "KVM_SET_ONE_REG", "KVM_GET_REG_LIST")
_6_16 = Release(
    name=KernelRelease.V6_16,
    dialect=Dialect.UPSTREAM,
    reads_module_fields=True,
    checks_module_features=True,
    reports_guest_phys_bits=True,
    absent_ioctls=_ONE_REG,
    absent_capabilities=frozenset({Cap.ONE_REG, Cap.GUEST_MEMFD_FLAGS}),
    makes_sw_protected_vms=True,
    guest_memfd_for_all=False,
    bound_twice=errno.EINVAL,
    binds_guest_memfd_last=False,
    irqfds_share_eventfds=True,
    tds_take_irqchips=True,
    vcpu_id_is_looked_up_first=False,
    max_vcpus_can_be_enabled=False,
    shows_module_in_sysfs=False,
    mp_state_ends_hlt=False,
    fixes_tsc_frequency=False,
    shows_apic_bus_cycles=False,
    quirks=0x3FF,
    advertised_pv_msrs_read_as_0=False,
    xss_needs_xsaves=False,
    sregs_check_efer=False,
    knows_newer_faults=True,
    lists_debugctl=False,
    emulates_avx=False,
    directed_eoi_is_chosen=False,
    tds_have_attributes=True,
    reserved_members=(),
    writes_capabilities_command=True,
    vcpu_command_is_read_first=False,
    init_vm_checks_nent_again=False,
    init_reports_operands=True,
    vcpus_need_initialized_td=True,
    initialized_vcpu_takes_no_command=False,
    sets_apic_base=True,
    null_source=errno.EFAULT,
    pins_source_first=False,
    populated_twice=errno.EEXIST,
    maps_and_adds_at_once=False,
    building_errors_kill=False,
    maps_2m_private=False,
    tracks_while_building=False,
    map_gpa_needs_exit=True,
    map_gpa_knows_guest_width=True,
    map_gpa_knows_errnos=False,
    vm_call_info_to_user_space=True,
    tds_report_bus_locks=False,
    x2apic_by_register=False,
    serves_terminate_vm=False,
)
_6_18 = replace(
    _6_16,
    name=KernelRelease.V6_18,
    absent_ioctls=frozenset(),
    absent_capabilities=frozenset(),
    guest_memfd_for_all=True,
    irqfds_share_eventfds=False,
    fixes_tsc_frequency=True,
    quirks=0x7FF,
    advertised_pv_msrs_read_as_0=True,
    xss_needs_xsaves=True,
    tds_take_irqchips=False,
)
_6_19 = replace(
    _6_18,
    name=KernelRelease.V6_19,
    writes_capabilities_command=False,
    emulates_avx=True,
    directed_eoi_is_chosen=True,
    vcpu_command_is_read_first=True,
    maps_and_adds_at_once=True,
    building_errors_kill=True,
)
_7_1 = replace(
    _6_19,
    name=KernelRelease.V7_1,
    shows_apic_bus_cycles=True,
    lists_debugctl=True,
    init_vm_checks_nent_again=True,
    null_source=errno.EOPNOTSUPP,
    pins_source_first=True,
    populated_twice=errno.EIO,
)
_7_2 = replace(
    _7_1,
    name=KernelRelease.V7_2,
    bound_twice=errno.EEXIST,
    quirks=0xFFF,
    sregs_check_efer=True,
    shows_module_in_sysfs=True,
    map_gpa_knows_errnos=True,
    x2apic_by_register=True,
)
_7_3 = replace(
    _7_2,
    name=KernelRelease.V7_3,
    binds_guest_memfd_last=True,
    vcpu_id_is_looked_up_first=True,
    mp_state_ends_hlt=True,
    null_source=errno.EINVAL,
    tds_report_bus_locks=True,
)
_NEXT = replace(_7_3, name=KernelRelease.NEXT, maps_2m_private=True, serves_terminate_vm=True)
_V10 = replace(
    _6_16,
    name=KernelRelease.V10,
    dialect=Dialect.V10,
    reads_module_fields=False,
    checks_module_features=False,
    reports_guest_phys_bits=False,
    knows_newer_faults=False,
    absent_ioctls=_ONE_REG
    | _requests(
        "KVM_SET_USER_MEMORY_REGION2",
        "KVM_SET_MEMORY_ATTRIBUTES",
        "KVM_CREATE_GUEST_MEMFD",
        "KVM_PRE_FAULT_MEMORY",
    ),
    absent_capabilities=frozenset(
        {
            Cap.ONE_REG,
            Cap.USER_MEMORY2,
            Cap.MEMORY_FAULT_INFO,
            Cap.MEMORY_ATTRIBUTES,
            Cap.GUEST_MEMFD,
            Cap.GUEST_MEMFD_FLAGS,
            Cap.PRE_FAULT_MEMORY,
            Cap.X86_APIC_BUS_CYCLES_NS,
            Cap.X86_GUEST_MODE,
            Cap.PMU_EVENT_MASKED_EVENTS,
        }
    ),
    makes_sw_protected_vms=False,
    max_vcpus_can_be_enabled=True,
    quirks=0x7F,
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
)

NOT_REPRODUCED: Mapping[KernelRelease, tuple[str, ...]] = MappingProxyType(
    {
        KernelRelease.V6_18: ("KVM_PRE_FAULT_MEMORY fails with EAGAIN where it would wait for a slot that goes away",),
        KernelRelease.V6_19: (
            "sub-commands wait for all vCPUs, and (until 7.2) fail with EBUSY while another thread is inside "
            "KVM_CREATE_VCPU: KVM_CREATE_VCPU is one step here, so that no thread can see it half done",
        ),
        KernelRelease.V7_1: ("the kernel initialises the TDX module when it boots, not when kvm_intel is loaded",),
        KernelRelease.V7_2: (
            "updates of the TDX module at run time (P-SEAMLDR): the modules here do not offer TDX_FEATURES0 bit 1 "
            "(TD preserving). For such a module Linux has neither seamldr_version nor num_remaining_updates in "
            "/sys/devices/faux/tdx_host, and no /sys/class/firmware/tdx_module for an image; nor has swtdx exec",
        ),
        KernelRelease.V7_3: (
            "bit 11 of DR6, once KVM_SET_DEBUGREGS has cleared it, stays 0 when KVM delivers a #DB: it becomes 1 here, "
            "as before",
            "while a debugger has the debug registers, MOV DR of user mode with DR7.GD is the debugger's; before and "
            "here it is #GP in the guest",
            "notify VM exits of TDs (KVM_CAP_X86_NOTIFY_VMEXIT): the processor here has none",
        ),
    }
)
"""What a release brought that is not here, for the documentation. A VMM finds it absent, as on the release before."""

RELEASES: Mapping[KernelRelease, Release] = MappingProxyType(
    {each.name: each for each in (_V10, _6_16, _6_18, _6_19, _7_1, _7_2, _7_3, _NEXT)}
)
"""In the order of their time."""


def release_for(name: str | None, dialect: Dialect | None) -> Release:
    """The release of that name, or the one for which ``dialect`` is short; the newest released one without either.

    Raises ValueError for a name that does not exist, and for a release that does not speak the dialect.
    """
    short = SHORT_FORMS[(dialect or Dialect.UPSTREAM).value]
    release = RELEASES[short if name is None else KernelRelease.named(name)]
    if dialect not in (None, release.dialect):
        raise ValueError(f"kernel release {release.name} speaks {release.dialect.value}, not {dialect.value}")
    return release
