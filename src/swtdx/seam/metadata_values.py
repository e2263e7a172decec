# SPDX-License-Identifier: GPL-2.0-or-later
"""What the metadata fields hold: readers and writers by field name, for the module, a TD and a virtual CPU.

A field of a feature this module does not reproduce (migration, L2 VMs, service TDs) reads as the value it has on a
real module where the feature was never used: zero.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.seam import cpuid, identity, vcpu_vmcs
from swtdx.seam.lifecycle import OpState
from swtdx.seam.metadata import CPUID_VALUES, Field
from swtdx.seam.sept import FREE
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td import (
    CONFIG_FLEXIBLE_PENDING_VE,
    CTLS_ENUM_TOPOLOGY,
    CTLS_PENDING_VE_DISABLE,
    Td,
)
from swtdx.x86 import Msr, XFeature

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

HP_LOCK_TIMEOUTS = range(10_000, 100_000_001)
"""Microseconds."""
MASK64 = (1 << 64) - 1
COMPACTED = 1 << 63
XSAVE_LEGACY, XSAVE_EXTENDED, MXCSR_OFFSET = 512, 576, 24
NO_LEAF = MASK64


def _word(data: bytes, element: int) -> int:
    return int.from_bytes(data[8 * element : 8 * element + 8], "little")


def _saved_state(vcpu: Vcpu) -> bytes:
    """Return the virtual CPU's extended state as XSAVES writes it: the compacted form (SDM volume 1, 13.4.3)."""
    context, xfam = vcpu.context, vcpu.td.xfam
    header = struct.pack("<QQ48x", xfam, COMPACTED | xfam)
    high = context.get_ymm_high() if xfam & XFeature.AVX else b""
    return context.get_fpu() + header + high + (struct.pack("<Q", context.pkru) if xfam & XFeature.PKRU else b"")


def _write_xbuff(vcpu: Vcpu, element: int, value: int) -> None:
    """Change 8 bytes of a virtual CPU's saved state, as XRSTORS would load them.

    The module keeps the XSAVE header to itself (metadata_vp.c). It lets the host write an MXCSR over which the next TD
    entry fails, and bytes behind the last component: there is no memory here that could keep them.
    """
    context, image = vcpu.context, bytearray(_saved_state(vcpu))
    if XSAVE_LEGACY <= 8 * element < XSAVE_EXTENDED or 8 * element >= len(image):
        raise Status(StatusCode.METADATA_FIELD_NOT_WRITABLE)
    struct.pack_into("<Q", image, 8 * element, value)
    if struct.unpack_from("<I", image, MXCSR_OFFSET)[0] >> 16:
        raise Status(StatusCode.METADATA_FIELD_VALUE_NOT_VALID)
    if 8 * element < XSAVE_LEGACY:
        context.set_fpu(bytes(image[:XSAVE_LEGACY]))
        return
    pkru = len(image) - 8 if vcpu.td.xfam & XFeature.PKRU else len(image)
    if 8 * element >= pkru:
        context.pkru = value & 0xFFFF_FFFF
    else:
        context.set_ymm_high(bytes(image[XSAVE_EXTENDED:pkru]))


# --- module -----------------------------------------------------------------------------------------------------------


def _config_leaf(module: TdxModule, slot: int) -> int:
    order = cpuid.config_order(module.version.tables)
    if slot >= len(order):
        return NO_LEAF
    leaf, subleaf = order[slot]
    return leaf | (cpuid.NO_SUBLEAF if subleaf is None else subleaf) << 32


def _config_value(module: TdxModule, element: int) -> int:
    order, slot = cpuid.config_order(module.version.tables), element >> 1
    if slot >= len(order):
        return 0
    eax, ebx, ecx, edx = cpuid.config_mask(module.processor, order[slot], module.version.tables)
    return ecx | edx << 32 if element & 1 else eax | ebx << 32


def _cmr(module: TdxModule, number: int, part: int) -> int:
    cmrs = module.platform.cmrs
    return cmrs[number][part] if number < len(cmrs) else 0


_SYSTEM: dict[str, int | Callable[[TdxModule, int], int]] = {
    "NUM_PKGS": lambda module, _: module.platform.packages,
    "PKG_FMS": lambda module, n: module.processor.cpuid(1)[0] if n < module.platform.packages else 0,
    "VENDOR_ID": identity.VENDOR_INTEL,
    "BUILD_DATE": lambda module, _: module.version.build_date,
    "BUILD_NUM": lambda module, _: module.version.build_num,
    "MINOR_VERSION": lambda module, _: module.version.number[1],
    "MAJOR_VERSION": lambda module, _: module.version.number[0],
    "UPDATE_VERSION": lambda module, _: module.version.number[2],
    "INTERNAL_VERSION": lambda module, _: module.version.number[3],
    "NUM_TDX_FEATURES": 1,
    "TDX_FEATURES0": lambda module, _: identity.features0(module.version),
    "NUM_CMRS": identity.MAX_CMRS,
    "CMR_BASE": lambda module, n: _cmr(module, n, 0),
    "CMR_SIZE": lambda module, n: _cmr(module, n, 1),
    "MAX_TDMRS": identity.MAX_TDMRS,
    "MAX_RESERVED_PER_TDMR": identity.MAX_RESERVED_PER_TDMR,
    "PAMT_4K_ENTRY_SIZE": identity.PAMT_ENTRY_SIZE,
    "PAMT_2M_ENTRY_SIZE": identity.PAMT_ENTRY_SIZE,
    "PAMT_1G_ENTRY_SIZE": identity.PAMT_ENTRY_SIZE,
    "TDR_BASE_SIZE": identity.TDR_BASE_SIZE,
    "TDCS_BASE_SIZE": lambda module, _: module.version.tdcs_base_size,
    "TDCS_SIZE_PER_L2_VM": identity.TDCS_SIZE_PER_L2_VM,
    "TDVPS_BASE_SIZE": identity.TDVPS_BASE_SIZE,
    "TDVPS_SIZE_PER_L2_VM": identity.TDVPS_SIZE_PER_L2_VM,
    "ATTRIBUTES_FIXED0": lambda module, _: identity.attributes_fixed0(module.processor, module.version),
    "ATTRIBUTES_FIXED1": identity.ATTRIBUTES_FIXED1,
    "XFAM_FIXED0": lambda module, _: identity.xfam_fixed0(module.processor),
    "XFAM_FIXED1": identity.XFAM_FIXED1,
    "NUM_CPUID_CONFIG": lambda module, _: len(cpuid.config_order(module.version.tables)),
    "CONFIG_FLAGS_FIXED0": lambda module, _: module.version.config_flags_fixed0,
    "CONFIG_FLAGS_FIXED1": identity.CONFIG_FLAGS_FIXED1,
    "MAX_VCPUS_PER_TD": lambda module, _: module.version.max_vcpus,
    "MIN_VIRT_MAXPA": identity.MIN_VIRT_MAXPA,
    "CPUID_CONFIG_LEAVES": _config_leaf,
    "CPUID_CONFIG_VALUES": _config_value,
    "IA32_ARCH_CAPABILITIES_CONFIG_MASK": identity.ARCH_CAPABILITIES_CONFIG_MASK,
    "NUM_ALLOWED_FMS": lambda module, _: len(identity.allowed_models(module.processor.cpuid(1)[0])),
    "ALLOWED_FMS": lambda module, n: (*identity.allowed_models(module.processor.cpuid(1)[0]), *[0] * 128)[n],
    # Constants of features that the module has whether or not they can be used here.
    "MAX_MIGS": 512,
    "NUM_IMMUTABLE_STATE_PAGES": 4,
    "NUM_TD_STATE_PAGES": 2,
    "NUM_VP_STATE_PAGES": 5,
    "MAX_SERV_TDS": 1,
    "SERVTD_ATTR_FIXED0": 0x7FF_0000_0001,
    "GUEST_L2_GPA_ATTR_MASK": 0x807F,
    "VM_CTLS_FIXED0": 1,
    "VPCU_L2_CTLS_FIXED0": 3,
    "VPCU_L2_DEBUG_CTLS_FIXED0": 7,
}


def read_system(module: TdxModule, field: Field, element: int) -> int:
    """Return a field of the module."""
    value = _SYSTEM.get(field.name, 0)
    return value if isinstance(value, int) else value(module, element)


# --- TD ---------------------------------------------------------------------------------------------------------------


def _root_entry(td: Td, number: int) -> int:
    entry: int = td.sept.qwords[(td.sept.root >> 3) + number]
    return td.version.free_entry if entry == FREE else entry


_TD: dict[str, Callable[[Td, int], int]] = {
    "FATAL": lambda td, _: int(td.fatal),
    "NUM_TDCX": lambda td, _: len(td.tdcx),
    "CHLDCNT": lambda td, _: td.child_count,
    "LIFECYCLE_STATE": lambda td, _: td.lifecycle,
    "TDCX_PA": lambda td, n: td.tdcx[n] if n < len(td.tdcx) else 0,
    "TD_UUID": lambda td, n: _word(td.uuid, n),
    "HKID": lambda td, _: td.hkid,
    "PKG_CONFIG_BITMAP": lambda td, _: td.packages_configured,
    "NUM_VCPUS": lambda td, _: td.num_vcpus,
    "NUM_ASSOC_VCPUS": lambda td, _: td.num_associated,
    "OP_STATE": lambda td, _: td.op_state,
    "NUM_L2_VMS": lambda td, _: td.num_l2_vms,
    "ATTRIBUTES": lambda td, _: td.attributes,
    "XFAM": lambda td, _: td.xfam,
    "MAX_VCPUS": lambda td, _: td.max_vcpus,
    "GPAW": lambda td, _: td.config_flags & 1,
    "EPTP": lambda td, _: td.sept.eptp,
    "TSC_OFFSET": lambda td, _: td.tsc_offset,
    "TSC_MULTIPLIER": lambda td, _: td.tsc_multiplier,
    "TSC_FREQUENCY": lambda td, _: td.tsc_frequency,
    "NUM_CPUID_VALUES": lambda td, _: len(td.cpuid.values),
    "XBUFF_SIZE": lambda td, _: td.cpuid.save_area_size(td.xfam, compacted=True),
    "NOTIFY_ENABLES": lambda td, _: td.notify_enables,
    "HP_LOCK_TIMEOUT": lambda td, _: td.hp_lock_timeout,
    "VM_CTLS": lambda td, n: td.vm_ctls[n],
    "CONFIG_FLAGS": lambda td, _: td.config_flags,
    "TD_CTLS": lambda td, _: td.td_ctls,
    "VIRT_MAXPA": lambda td, _: td.virt_maxpa,
    "TOPOLOGY_ENUM_CONFIGURED": lambda td, _: int(td.topology_enum_configured),
    "CPUID_VALID": lambda td, n: int(n < len(td.cpuid.values)),
    "TD_EPOCH": lambda td, _: td.epoch,
    "REFCOUNT": lambda td, n: td.refcount[n],
    "MRTD": lambda td, n: _word(td.mrtd, n),
    "MRCONFIGID": lambda td, n: _word(td.mrconfigid, n),
    "MROWNER": lambda td, n: _word(td.mrowner, n),
    "MROWNERCONFIG": lambda td, n: _word(td.mrownerconfig, n),
    "RTMR": lambda td, n: _word(td.rtmr[n // 6], n % 6),
    "SERVTD_HASH": lambda td, n: _word(td.servtd_hash, n),
    "VIRTUAL_IA32_ARCH_CAPABILITIES": lambda td, _: td.arch_capabilities,
    "X2APIC_IDS": lambda td, n: td.x2apic_ids[n] if n < len(td.x2apic_ids) else 0,
    "SEPT_ROOT": _root_entry,
    "MSR_BITMAPS": lambda td, n: _word(td.msrs.bitmap, n),
}


_TD |= {  # fields of module 1.0 alone
    "INIT": lambda td, _: int(td.op_state is not OpState.UNINITIALIZED),
    "FINALIZED": lambda td, _: int(td.op_state is OpState.RUNNABLE),
    "CPUID_VALUES_BY_INDEX": lambda td, n: td.cpuid.indexed(n),
}


def read_td(td: Td, field: Field, element: int) -> int:
    """Return a field of a TD; raises METADATA_FIELD_ID_INCORRECT for a CPUID leaf that does not exist."""
    if field.name == CPUID_VALUES:
        value = td.cpuid.metadata(element)
        if value is None:
            raise Status(StatusCode.METADATA_FIELD_ID_INCORRECT)
        return value
    reader = _TD.get(field.name)
    return 0 if reader is None else reader(td, element)


def write_td(td: Td, field: Field, element: int, value: int, mask: int) -> None:
    """Set a field of a TD to its merged value; raises the field's own Status."""
    match field.name:
        case "HP_LOCK_TIMEOUT":
            if mask != MASK64:
                raise Status(StatusCode.METADATA_WR_MASK_NOT_VALID)
            if value not in HP_LOCK_TIMEOUTS:
                raise Status(StatusCode.METADATA_FIELD_VALUE_NOT_VALID)
            td.hp_lock_timeout = value
        case "VM_CTLS":
            td.check_lock(Operand.METADATA_FIELD)
            td.vm_ctls[element] = value
        case "NOTIFY_ENABLES":
            td.check_lock(Operand.METADATA_FIELD)
            td.notify_enables = value
        case "TD_CTLS":
            _write_td_ctls(td, value)
        case _:
            raise Status(StatusCode.METADATA_FIELD_NOT_WRITABLE)


def _write_td_ctls(td: Td, value: int) -> None:
    changed = value ^ td.td_ctls
    if changed & CTLS_PENDING_VE_DISABLE and not td.config_flags & CONFIG_FLEXIBLE_PENDING_VE:
        raise Status(StatusCode.METADATA_FIELD_VALUE_NOT_VALID)
    if value & CTLS_ENUM_TOPOLOGY and not td.topology_enum_configured:
        raise Status(StatusCode.METADATA_FIELD_VALUE_NOT_VALID)
    td.check_lock(Operand.METADATA_FIELD)
    td.td_ctls = value


# --- virtual CPU ------------------------------------------------------------------------------------------------------

_GPR_NAMES = ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
_DR = {"DR0": 0, "DR1": 1, "DR2": 2, "DR3": 3, "DR6": 6}
_MSRS = {
    f"IA32_{msr.name}": msr for msr in (Msr.SPEC_CTRL, Msr.STAR, Msr.LSTAR, Msr.FMASK, Msr.KERNEL_GS_BASE, Msr.TSC_AUX)
}

_VCPU: dict[str, Callable[[Vcpu, int], int]] = {
    "VAPIC": lambda vcpu, n: int.from_bytes(vcpu.context.vapic[8 * n : 8 * n + 8], "little"),
    "EXIT_REASON": lambda vcpu, _: vcpu.ve.exit_reason,
    "VALID": lambda vcpu, _: 0xFFFF_FFFF if vcpu.ve.valid else 0,
    "EXIT_QUALIFICATION": lambda vcpu, _: vcpu.ve.qualification,
    "GLA": lambda vcpu, _: vcpu.ve.gla,
    "GPA": lambda vcpu, _: vcpu.ve.gpa,
    "INSTRUCTION_LENGTH": lambda vcpu, _: vcpu.ve.instruction_length,
    "INSTRUCTION_INFORMATION": lambda vcpu, _: vcpu.ve.instruction_info,
    "XCR0": lambda vcpu, _: vcpu.context.xcr0,
    "CR2": lambda vcpu, _: vcpu.context.cr2,
    "VCPU_STATE_DETAILS": lambda vcpu, _: int(vcpu_vmcs.interrupt_pending(vcpu)),
    "VCPU_STATE": lambda vcpu, _: vcpu.state,
    "VCPU_INDEX": lambda vcpu, _: vcpu.index,
    "NUM_TDVPX": lambda vcpu, _: len(vcpu.pages) - 1,
    "ASSOC_HKID": lambda vcpu, _: vcpu.td.hkid,
    "IS_SHARED_EPTP_VALID": lambda vcpu, _: int(vcpu.shared_eptp != 0),
    "NUM_TDVPS_PAGES": lambda vcpu, _: len(vcpu.pages),
    "TDVPS_PAGE_PA": lambda vcpu, n: vcpu.pages[n] if n < len(vcpu.pages) else 0,
    "ASSOC_LPID": lambda vcpu, _: vcpu.lp & 0xFFFF_FFFF,
    "VCPU_EPOCH": lambda vcpu, _: vcpu.epoch,
    "CPUID_SUPERVISOR_VE": lambda vcpu, _: int(vcpu.cpuid_supervisor_ve),
    "CPUID_USER_VE": lambda vcpu, _: int(vcpu.cpuid_user_ve),
    "CPUID_CONTROL": lambda vcpu, n: vcpu.cpuid_control[n],
    "LAST_EXIT_TSC": lambda vcpu, _: vcpu.last_exit_tsc,
    "PEND_NMI": lambda vcpu, _: int(vcpu.pending_nmi),
    "XFAM": lambda vcpu, _: vcpu.td.xfam,
    "LAST_TD_EXIT": lambda vcpu, _: vcpu.last_td_exit,
    "IA32_XSS": lambda vcpu, _: vcpu.msrs[0xDA0],
    "XBUFF": lambda vcpu, n: _word(_saved_state(vcpu), n),
}


def read_vcpu(vcpu: Vcpu, field: Field, element: int) -> int:
    """Return a field of a virtual CPU or of its VMCS."""
    name = field.name
    if field.class_code == 0:
        return vcpu_vmcs.read(vcpu, field.code + element * field.stride)
    if name in _VCPU:
        return _VCPU[name](vcpu, element)
    if name in _GPR_NAMES:
        value: int = vcpu.context.gpr[_GPR_NAMES.index(name)]
        return value
    if name in _DR:
        return vcpu.context.get_dr(_DR[name])
    if name in _MSRS:
        return vcpu.context.rdmsr(_MSRS[name])
    if field.class_code == 0x13:  # saved MSR state: the code is the MSR, bit 13 set for the high range
        return vcpu.msrs.get(field.code + element, 0)
    return 0


def write_vcpu(module: TdxModule, vcpu: Vcpu, field: Field, element: int, value: int) -> None:
    """Set a field of a virtual CPU to its merged value; raises the field's own Status."""
    name = field.name
    if field.class_code == 0:
        vcpu_vmcs.write(module, vcpu, field.code + element * field.stride, value)
    elif name == "PEND_NMI":
        vcpu.pending_nmi = bool(value)
    elif name == "CPUID_SUPERVISOR_VE":
        vcpu.cpuid_supervisor_ve = bool(value & 1)
    elif name == "CPUID_USER_VE":
        vcpu.cpuid_user_ve = bool(value & 1)
    elif name == "CPUID_CONTROL":
        vcpu.cpuid_control[element] = value
        vcpu.td.cpuid.control_changed(vcpu.td.vcpus)
    elif name in _GPR_NAMES:
        vcpu.context.gpr[_GPR_NAMES.index(name)] = value
    elif name in _DR:
        vcpu.context.set_dr(_DR[name], value)
    elif name == "CR2":
        vcpu.context.cr2 = value
    elif name == "XBUFF":
        _write_xbuff(vcpu, element, value)
    elif name in _MSRS:
        vcpu.context.wrmsr(_MSRS[name], value)
    elif field.class_code == 0x13:
        vcpu.msrs[field.code + element] = value
    else:
        raise Status(StatusCode.METADATA_FIELD_NOT_WRITABLE)
