# SPDX-License-Identifier: GPL-2.0-or-later
"""What a TD may be, and what the caller asks for: KVM_TDX_CAPABILITIES and the arguments of KVM_TDX_INIT_VM.

Upstream: `init_kvm_tdx_caps`, `init_vm_upstream` follow Linux (tdx_get_capabilities, setup_tdparams). KVM does
not mask CPUID: bits that cannot be configured are refused by the module (EINVAL, ``hw_error``).

v10, the document of Nov 2022: the module's fixed masks and CPUID configurations as they are; INIT_VM takes a pointer to
a kvm_cpuid2, masks each configurable leaf silently, ignores other leaves, derives XFAM from leaf 0xD and the address
width from leaf 0x80000008. Its 512-byte structure has two members named ``reserved``; both must be 0 here.
"""

from __future__ import annotations

import errno
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from swtdx.linux.arch.x86.kvm.cpuid import (
    F7_EBX_HLE,
    F7_EBX_RTM,
    F7_ECX_WAITPKG,
    KVM_MAX_CPUID_ENTRIES,
    SIGNIFICANT,
    Registers,
    entries_from_user,
    make_entry,
)
from swtdx.linux.arch.x86.virt.vmx.tdx.tdx import NO_SUBLEAF, CpuidConfig, SysInfo
from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_from_user, copy_to_user, get_user, struct_from_user
from swtdx.uapi import tdx_upstream, tdx_v10
from swtdx.uapi.kvm import kvm_cpuid_entry2

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.vmx.tdx import KvmTdx
    from swtdx.linux.virt.kvm.kvm_main import Kvm

Command = Any
"""A kvm_tdx_cmd of either dialect; commands write its status member."""

TDX_TD_ATTR_PERFMON = 1 << 63
KVM_SUPPORTED_TD_ATTRS = tdx_upstream.TDX_TD_ATTR_SEPT_VE_DISABLE
TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT = 1 << 1
XFAM_LBR, XFAM_XTILE = 1 << 15, 3 << 17
CONFIG_FLAGS_MAX_GPAW, CONFIG_FLAGS_NO_RBP_MOD = 1 << 0, 1 << 2
EPTP_WB, EPTP_PWL_4, EPTP_PWL_5 = 6, 3 << 3, 4 << 3
TSC_KHZ_UNIT = 25_000
GPAW_LEAF = 0x80000008
_PARAMS_SIZE = 1024
_CPUID_VALUES = 256


@dataclass(frozen=True)
class InitVm:
    """INIT_VM, checked; ``td_params``: the 1024 bytes for TDH.MNG.INIT."""

    attributes: int
    xfam: int
    gpaw: int
    max_vcpus: int
    td_params: bytes


def setup_tdparams_eptp_controls(gpaw: int) -> int:
    """TD_PARAMS.EPTP_CONTROLS: five levels for a guest of 52 bits, whose shared bit is bit 51."""
    return EPTP_WB | (EPTP_PWL_5 if gpaw == 52 else EPTP_PWL_4)


def setup_tdparams(
    kvm: Kvm,
    info: SysInfo,
    *,
    attributes: int,
    xfam: int,
    gpaw: int,
    flags: int,
    digests: tuple[bytes, bytes, bytes],
    cpuid_values: list[Registers],
    max_vcpus: int,
) -> InitVm:
    attributes |= info.attributes_fixed1
    xfam |= info.xfam_fixed1
    eptp_controls = setup_tdparams_eptp_controls(gpaw)
    flags |= CONFIG_FLAGS_MAX_GPAW if gpaw == 52 else 0
    params = bytearray(_PARAMS_SIZE)
    struct.pack_into("<QQHxxxxxxQQH", params, 0, attributes, xfam, max_vcpus, eptp_controls, flags,
                     kvm.default_tsc_khz // TSC_KHZ_UNIT & 0xFFFF)  # fmt: skip
    for position, digest in zip((80, 128, 176), digests, strict=True):
        params[position : position + 48] = digest
    for number, registers in enumerate(cpuid_values):
        struct.pack_into("<4I", params, _CPUID_VALUES + 16 * number, *registers)
    return InitVm(attributes, xfam, gpaw, max_vcpus, bytes(params))


# --- Upstream ---------------------------------------------------------------------------------------------------------


def tdx_get_supported_attrs(info: SysInfo, debug_tds: bool = False) -> int:
    """ATTRIBUTES bits that INIT_VM may set; 0 if KVM cannot give what the module demands.

    ``debug_tds``: with DEBUG, which upstream leaves out.
    """
    wanted = KVM_SUPPORTED_TD_ATTRS | (tdx_upstream.TDX_TD_ATTR_DEBUG if debug_tds else 0)
    supported = wanted & info.attributes_fixed0
    return 0 if info.attributes_fixed1 & ~supported else supported


def tdx_get_supported_xfam(info: SysInfo, kvm_xfam: int) -> int:
    """XFAM bits that INIT_VM may set; 0 if KVM cannot give what the module demands."""
    supported = kvm_xfam & info.xfam_fixed0
    return 0 if info.xfam_fixed1 & ~supported else supported


def tdx_get_guest_phys_addr_bits(eax: int) -> int:
    """The guest's address width in EAX of leaf 0x80000008: bits 23:16, which hardware leaves 0."""
    return eax >> 16 & 0xFF


def tdx_set_guest_phys_addr_bits(eax: int, bits: int) -> int:
    """EAX of leaf 0x80000008 with another width for the guest."""
    return eax & ~0x00FF0000 | (bits & 0xFF) << 16


def has_tsx(entry: kvm_cpuid_entry2) -> bool:
    """Return whether the entry is leaf 7 with TSX."""
    return entry.function == 7 and entry.index == 0 and bool(entry.ebx & (F7_EBX_HLE | F7_EBX_RTM))


def has_waitpkg(entry: kvm_cpuid_entry2) -> bool:
    """Return whether the entry is leaf 7 with WAITPKG."""
    return entry.function == 7 and entry.index == 0 and bool(entry.ecx & F7_ECX_WAITPKG)


def tdx_unsupported_cpuid(entry: kvm_cpuid_entry2) -> bool:
    """Return whether the entry has a feature for which KVM would have to switch an MSR of the host, and does not."""
    return has_tsx(entry) or has_waitpkg(entry)


def tdx_clear_unsupported_cpuid(entry: kvm_cpuid_entry2) -> None:
    """Take TSX and WAITPKG out of the entry."""
    if has_tsx(entry):
        entry.ebx &= ~(F7_EBX_HLE | F7_EBX_RTM)
    if has_waitpkg(entry):
        entry.ecx &= ~F7_ECX_WAITPKG


def td_init_cpuid_entry2(config: CpuidConfig) -> kvm_cpuid_entry2:
    """Return a CPUID_CONFIG of the module, as KVM offers it."""
    index = 0 if config.subleaf == NO_SUBLEAF else config.subleaf
    entry = make_entry(config.leaf, index, 0, config.registers)
    # The field is KVM's: all bits are configurable, whatever the module says, and become GPAW in TD_PARAMS.
    if config.leaf == GPAW_LEAF:
        entry.eax = tdx_set_guest_phys_addr_bits(entry.eax, 0xFF)
    tdx_clear_unsupported_cpuid(entry)
    return entry


def init_kvm_tdx_caps(
    info: SysInfo, kvm_xfam: int, cmd: Command, debug_tds: bool = False, *, terminate_vm: bool = False
) -> None:
    """KVM_TDX_CAPABILITIES. Raises OSError(EINVAL, EFAULT, E2BIG, EIO)."""
    if cmd.flags:
        raise err(errno.EINVAL, "flags must be 0")
    nent_address = cmd.data + tdx_upstream.kvm_tdx_capabilities.cpuid.offset
    nent = get_user(nent_address, 4)
    if nent < len(info.cpuid_configs):
        raise err(errno.E2BIG, f"room for {nent} CPUID entries, {len(info.cpuid_configs)} needed")
    attributes, xfam = tdx_get_supported_attrs(info, debug_tds), tdx_get_supported_xfam(info, kvm_xfam)
    if not attributes or not xfam:
        raise err(errno.EIO, "the module demands attributes or extended features that KVM does not support")
    capabilities = tdx_upstream.kvm_tdx_capabilities(
        supported_attrs=attributes,
        supported_xfam=xfam,
        user_tdvmcallinfo_1_r11=TDVMCALLINFO_SETUP_EVENT_NOTIFY_INTERRUPT,
    )
    if terminate_vm:
        capabilities.reserved[0] = tdx_upstream.KVM_TDX_CAP_TERMINATE_VM  # "supported_caps" of that proposal
    entries = [td_init_cpuid_entry2(config) for config in info.cpuid_configs]
    capabilities.cpuid.nent = len(entries)
    copy_to_user(cmd.data, bytes(capabilities) + b"".join(bytes(entry) for entry in entries))


def init_vm_upstream(kvm: Kvm, info: SysInfo, cmd: Command) -> InitVm:
    """Read and check kvm_tdx_init_vm, in the kernel's order. Raises OSError(EFAULT, E2BIG, EINVAL, EBUSY)."""
    nent = get_user(cmd.data + tdx_upstream.kvm_tdx_init_vm.cpuid.offset, 4)
    if nent > KVM_MAX_CPUID_ENTRIES:
        raise err(errno.E2BIG, f"{nent} CPUID entries; at most {KVM_MAX_CPUID_ENTRIES}")
    init = struct_from_user(tdx_upstream.kvm_tdx_init_vm, cmd.data)
    entries = entries_from_user(cmd.data + len(bytes(init)), nent)
    # Since 7.1: the count was read for its check and is copied again with everything; another thread may write it.
    again = get_user(cmd.data + tdx_upstream.kvm_tdx_init_vm.cpuid.offset, 4)
    if kvm.kernel.release.init_vm_checks_nent_again and again != nent:
        raise err(errno.EINVAL, f"cpuid.nent changed from {nent} to {again} while the kernel read it")
    if any(init.reserved):
        raise err(errno.EINVAL, "reserved members of kvm_tdx_init_vm must be 0")
    if init.cpuid.padding:
        raise err(errno.EINVAL, "cpuid.padding must be 0")
    if kvm.created_vcpus:
        raise err(errno.EBUSY, "vCPUs exist")
    if init.attributes & ~tdx_get_supported_attrs(info, kvm.kernel.config.debug_tds):
        raise err(errno.EINVAL, f"attributes {init.attributes:#x}: more than KVM_TDX_CAPABILITIES offers")
    if init.xfam & ~tdx_get_supported_xfam(info, kvm.kernel.supported_xfam):
        raise err(errno.EINVAL, f"xfam {init.xfam:#x}: more than KVM_TDX_CAPABILITIES offers")
    gpaw_entry = _find(entries, GPAW_LEAF, 0)
    gpaw = tdx_get_guest_phys_addr_bits(gpaw_entry.eax) if gpaw_entry is not None else 0
    if gpaw not in (48, 52):
        raise err(errno.EINVAL, f"CPUID 0x80000008 EAX[23:16] must be 48 or 52, not {gpaw}")
    return setup_tdparams(
        kvm,
        info,
        attributes=init.attributes,
        xfam=init.xfam,
        gpaw=gpaw,
        flags=CONFIG_FLAGS_NO_RBP_MOD if kvm.kernel.config.no_rbp_mod else 0,
        digests=(bytes(init.mrconfigid), bytes(init.mrowner), bytes(init.mrownerconfig)),
        cpuid_values=setup_tdparams_cpuids(info, entries),
        max_vcpus=kvm.max_vcpus,
    )


def _find(entries: list[kvm_cpuid_entry2], leaf: int, index: int) -> kvm_cpuid_entry2 | None:
    for entry in entries:
        if entry.function == leaf and (not entry.flags & SIGNIFICANT or entry.index == index):
            return entry
    return None


def setup_tdparams_cpuids(info: SysInfo, entries: list[kvm_cpuid_entry2]) -> list[Registers]:
    """Return what goes into TD_PARAMS, in the module's order. Raises OSError(EINVAL)."""
    values: list[Registers] = []
    matched = 0
    for config in info.cpuid_configs:
        index = 0 if config.subleaf == NO_SUBLEAF else config.subleaf
        entry = _find(entries, config.leaf, index)
        if entry is None:
            values.append((0, 0, 0, 0))
            continue
        if tdx_unsupported_cpuid(entry):
            raise err(errno.EINVAL, "TSX and WAITPKG are not supported in a TD")
        matched += 1
        # KVM's own field of that leaf: the module takes the width from EPTP_CONTROLS and refuses other bits here.
        eax = tdx_set_guest_phys_addr_bits(entry.eax, 0) if config.leaf == GPAW_LEAF else entry.eax
        values.append((eax, entry.ebx, entry.ecx, entry.edx))
    if matched != len(entries):
        raise err(errno.EINVAL, f"{len(entries)} CPUID entries given, {matched} are configurable leaves")
    return values


# --- v10 --------------------------------------------------------------------------------------------------------------


def capabilities_v10(info: SysInfo, cmd: Command) -> None:
    """KVM_TDX_CAPABILITIES of the document: 36 bytes, then 24 for each CPUID configuration. Raises OSError."""
    if cmd.flags:
        raise err(errno.EINVAL, "flags must be 0")
    offset = tdx_v10.kvm_tdx_capabilities.cpuid_configs.offset
    given = tdx_v10.kvm_tdx_capabilities.from_buffer_copy(copy_from_user(cmd.data, offset).ljust(40, b"\0"))
    if given.nr_cpuid_configs < len(info.cpuid_configs):
        raise err(errno.E2BIG, f"room for {given.nr_cpuid_configs} configurations, {len(info.cpuid_configs)} needed")
    capabilities = tdx_v10.kvm_tdx_capabilities(
        attrs_fixed0=info.attributes_fixed0,
        attrs_fixed1=info.attributes_fixed1,
        xfam_fixed0=info.xfam_fixed0,
        xfam_fixed1=info.xfam_fixed1,
        nr_cpuid_configs=len(info.cpuid_configs),
    )
    configs = b"".join(struct.pack("<6I", c.leaf, c.subleaf, *c.registers) for c in info.cpuid_configs)
    copy_to_user(cmd.data, bytes(capabilities)[:offset] + configs)


def init_vm_v10(kvm: Kvm, info: SysInfo, cmd: Command) -> InitVm:
    """Read and check the document's kvm_tdx_init_vm. Raises OSError(EFAULT, E2BIG, EINVAL, EBUSY, EOPNOTSUPP)."""
    init = struct_from_user(tdx_v10.kvm_tdx_init_vm, cmd.data)
    header = copy_from_user(init.cpuid, 8)
    nent, padding = struct.unpack("<II", header)
    if padding or init.reserved0 or any(init.reserved):
        raise err(errno.EINVAL, "padding and reserved members must be 0")
    if nent > KVM_MAX_CPUID_ENTRIES:
        raise err(errno.E2BIG, f"{nent} CPUID entries; at most {KVM_MAX_CPUID_ENTRIES}")
    entries = entries_from_user(init.cpuid + 8, nent)
    if kvm.created_vcpus:
        raise err(errno.EBUSY, "vCPUs exist")
    if init.max_vcpus > kvm.max_vcpus:
        raise err(errno.EINVAL, f"max_vcpus {init.max_vcpus}: at most {kvm.max_vcpus}")
    if init.attributes & TDX_TD_ATTR_PERFMON:
        raise err(errno.EOPNOTSUPP, "PERFMON is not supported")
    values: list[Registers] = []
    for config in info.cpuid_configs:
        entry = _find(entries, config.leaf, 0 if config.subleaf == NO_SUBLEAF else config.subleaf)
        if entry is None:
            values.append((0, 0, 0, 0))
        else:
            eax, ebx, ecx, edx = config.registers
            values.append((entry.eax & eax, entry.ebx & ebx, entry.ecx & ecx, entry.edx & edx))
    width_entry = _find(entries, GPAW_LEAF, 0)
    width = width_entry.eax & 0xFF if width_entry is not None else 36
    xfam = _xfam_of(entries) & kvm.kernel.supported_xfam & info.xfam_fixed0
    if xfam & (XFAM_LBR | XFAM_XTILE):
        raise err(errno.EOPNOTSUPP, "LBR and AMX are not supported")
    return setup_tdparams(
        kvm,
        info,
        attributes=init.attributes,
        xfam=xfam,
        gpaw=52 if width > 48 else 48,
        flags=0,
        digests=(bytes(init.mrconfigid), bytes(init.mrowner), bytes(init.mrownerconfig)),
        cpuid_values=values,
        max_vcpus=init.max_vcpus or kvm.max_vcpus,
    )


def _xfam_of(entries: list[kvm_cpuid_entry2]) -> int:
    user, supervisor = _find(entries, 0xD, 0), _find(entries, 0xD, 1)
    xfam = user.eax | user.edx << 32 if user is not None else 0
    return xfam | (supervisor.ecx | supervisor.edx << 32 if supervisor is not None else 0)


# --- KVM_TDX_GET_CPUID ------------------------------------------------------------------------------------------------

MD_CPUID_VALUES = 0x9410000300000000
_NO_SUBLEAF_ELEMENT = 0x1FE
_MAX_LEAF = _MAX_SUBLEAF = 0x7F


def cpuid_field(leaf: int, subleaf: int | None, element: int) -> int:
    """Metadata id of half of a CPUID value: element 0 is EBX:EAX, 1 is EDX:ECX."""
    selector = _NO_SUBLEAF_ELEMENT if subleaf is None else subleaf << 1
    return MD_CPUID_VALUES | leaf >> 31 << 16 | (leaf & 0x7F) << 9 | selector | element


def tdx_td_metadata_field_read(tdx: KvmTdx, field_id: int) -> tuple[int, int]:
    """Read a metadata field of the TD: completion status and value."""
    return tdx.host.seamcall.tdh_mng_rd(tdx.tdr, field_id)


def tdx_read_cpuid(tdx: KvmTdx, leaf: int, subleaf: int | None) -> kvm_cpuid_entry2 | None:
    """Read what the guest sees at a leaf; None if the module does not report it. ``subleaf``: None if it has none."""
    registers = []
    for element in (0, 1):
        status, value = tdx_td_metadata_field_read(tdx, cpuid_field(leaf, subleaf, element))
        if status:
            return None
        registers += [value & 0xFFFFFFFF, value >> 32]
    entry = make_entry(leaf, subleaf or 0, 0 if subleaf is None else SIGNIFICANT, registers)
    # The module does not report how many address bits the guest may use. GPAW decides it, and QEMU reads it from here.
    if leaf == GPAW_LEAF:
        entry.eax = tdx_set_guest_phys_addr_bits(entry.eax, tdx.gpaw)
    return entry


def tdx_vcpu_get_cpuid_leaf(tdx: KvmTdx, leaf: int) -> list[kvm_cpuid_entry2]:
    """Read a leaf, or all of its sub-leaves. Which kind it is only the module's answer shows."""
    entry = tdx_read_cpuid(tdx, leaf, None)
    if entry is not None:
        return [entry]
    entries: list[kvm_cpuid_entry2] = []
    while len(entries) <= _MAX_SUBLEAF and (entry := tdx_read_cpuid(tdx, leaf, len(entries))) is not None:
        entries.append(entry)
    return entries


def tdx_vcpu_get_cpuid_leaves(kvm: Kvm) -> list[kvm_cpuid_entry2]:
    """Read all that the module reports. Raises OSError(EIO) if leaves 0 or 0x80000000 fail."""
    tdx = kvm.tdx
    assert tdx is not None
    entries: list[kvm_cpuid_entry2] = []
    for base in (0, 0x80000000):
        found = tdx_vcpu_get_cpuid_leaf(tdx, base)
        if not found:
            raise err(errno.EIO, f"the module does not report CPUID leaf {base:#x}")
        entries += found
        level = entries[-1].eax if base else entries[0].eax
        for leaf in range(base + 1, level + 1):
            if leaf & 0x7FFFFFFF <= _MAX_LEAF:  # a field's id has 7 bits for the leaf
                entries += tdx_vcpu_get_cpuid_leaf(tdx, leaf)
    return entries
