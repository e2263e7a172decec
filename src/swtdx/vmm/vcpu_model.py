# SPDX-License-Identifier: GPL-2.0-or-later
"""What CPU a guest sees: the CPUID entries for KVM_SET_CPUID2, from which those for KVM_TDX_INIT_VM are taken too.

The model is "the host's, as far as KVM supports it": KVM_GET_SUPPORTED_CPUID, with the topology of this machine (one
package, a core for each vCPU, no hyper-threads; SDM volume 2A, CPUID leaves 1, 4, 0xb, 0x1f) written over it.  For a TD
most of CPUID is the module's: `TdCapabilities.configure` of the client cuts these entries down to what may be chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from swtdx.uapi.client import TdCapabilities
from swtdx.uapi.kvm import KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2

LEAF_FEATURES = 0x1
LEAF_CACHE = 0x4
LEAF_TOPOLOGY = 0xB
LEAF_EXTENDED_STATE = 0xD
LEAF_TOPOLOGY_V2 = 0x1F
LEAF_KVM_FEATURES = 0x4000_0001
LEAF_ADDRESS_SIZES = 0x8000_0008
LEAF_AMD_TOPOLOGY = 0x8000_001E

ECX_X2APIC = 1 << 21
ECX_TSC_DEADLINE = 1 << 24
ECX_HYPERVISOR = 1 << 31
EDX_HTT = 1 << 28
KVM_FEATURES_OF_A_TD = 0xBA82
"""NOP_IO_DELAY, PV_UNHALT, PV_TLB_FLUSH, PV_SEND_IPI, POLL_CONTROL, PV_SCHED_YIELD, MSI_EXT_DEST_ID."""
KVM_FEATURE_STEAL_TIME = 1 << 5
_LEVEL_SMT = 1 << 8
_LEVEL_CORE = 2 << 8
_TOPOLOGY_LEAVES = (LEAF_TOPOLOGY, LEAF_TOPOLOGY_V2)


def vcpu_cpuid(supported: Sequence[kvm_cpuid_entry2], apic_id: int, cpus: int) -> list[kvm_cpuid_entry2]:
    """Entries for KVM_SET_CPUID2 of the vCPU with this APIC id, in a machine of ``cpus`` vCPUs.

    X2APIC is always there (without it KVM_TDX_INIT_VCPU fails), and the TSC deadline timer, which KVM's local APIC has.
    """
    result = [_with_topology(entry, apic_id, cpus) for entry in supported if entry.function not in _TOPOLOGY_LEAVES]
    functions = {entry.function for entry in supported}
    for leaf in _TOPOLOGY_LEAVES:
        if leaf in functions:
            result.extend(_topology(leaf, apic_id, cpus))
    return result


def without_shared_pages(model: Sequence[kvm_cpuid_entry2]) -> list[kvm_cpuid_entry2]:
    """The model for a TD's vCPU: of KVM's own features those that need no page which KVM writes, as QEMU leaves them.

    kvmclock for one is not for a TD: KVM cannot reach its private memory, and has no such MSR for it.
    """
    entries = [kvm_cpuid_entry2.from_buffer_copy(entry) for entry in model]
    for entry in entries:
        if entry.function == LEAF_KVM_FEATURES:
            entry.eax &= KVM_FEATURES_OF_A_TD
    return entries


def td_xfam(supported: Iterable[kvm_cpuid_entry2], capabilities: TdCapabilities) -> int:
    """XFAM for a TD: all extended state that both the vCPU model (CPUID leaf 0xD) and the module have."""
    state = 0
    for entry in supported:
        if entry.function == LEAF_EXTENDED_STATE and entry.index == 0:
            state |= entry.eax | entry.edx << 32
        elif entry.function == LEAF_EXTENDED_STATE and entry.index == 1:
            state |= entry.ecx
    return state & capabilities.xfam_allowed | capabilities.xfam_required


def _with_topology(supported: kvm_cpuid_entry2, apic_id: int, cpus: int) -> kvm_cpuid_entry2:
    entry = kvm_cpuid_entry2.from_buffer_copy(supported)
    if entry.function == LEAF_FEATURES:
        entry.ebx = entry.ebx & 0xFFFF | _power_of_two(cpus) << 16 & 0xFF0000 | (apic_id & 0xFF) << 24
        entry.ecx |= ECX_X2APIC | ECX_TSC_DEADLINE | ECX_HYPERVISOR
        entry.edx = entry.edx | EDX_HTT if cpus > 1 else entry.edx & ~EDX_HTT
    elif entry.function == LEAF_KVM_FEATURES:
        entry.eax &= ~KVM_FEATURE_STEAL_TIME  # KVM would write to the guest's memory twice for each exit
    elif entry.function == LEAF_CACHE and entry.eax & 0x1F:
        level = entry.eax >> 5 & 7
        sharing = _power_of_two(cpus) - 1 if level >= 3 else 0
        cores = min(_power_of_two(cpus) - 1, 63)
        entry.eax = entry.eax & 0x3FFF | (sharing & 0xFFF) << 14 | cores << 26
    elif entry.function == LEAF_ADDRESS_SIZES and entry.ecx:
        entry.ecx = (cpus - 1) & 0xFF  # AMD has the number of cores here; on Intel the register is reserved and 0
    elif entry.function == LEAF_AMD_TOPOLOGY:
        entry.eax, entry.ebx, entry.ecx = apic_id, entry.ebx & ~0xFFFF | apic_id & 0xFF, 0
    return entry


def _topology(leaf: int, apic_id: int, cpus: int) -> list[kvm_cpuid_entry2]:
    """The sub-leaves of an extended topology leaf: threads of a core, cores of the package, the end."""
    shift = _power_of_two(cpus).bit_length() - 1
    levels = [(0, 1, _LEVEL_SMT | 0), (shift, cpus, _LEVEL_CORE | 1), (0, 0, 2)]
    return [
        kvm_cpuid_entry2(leaf, index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax, ebx, ecx, apic_id)
        for index, (eax, ebx, ecx) in enumerate(levels)
    ]


def _power_of_two(number: int) -> int:
    """The smallest power of two that is not below ``number``: how many APIC ids are set aside."""
    return 1 << (number - 1).bit_length() if number > 1 else 1
