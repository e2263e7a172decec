# SPDX-License-Identifier: GPL-2.0-or-later
"""What the module says of itself: TDH.SYS.INFO (two structures), SYS.RD (field by field), SYS.RDALL (all)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from swtdx.seam import cpuid, identity, metadata, metadata_list
from swtdx.seam.dispatch import SUCCESS, leaf
from swtdx.seam.hardware import Args
from swtdx.seam.metadata import Accessor, Field
from swtdx.seam.metadata_values import read_system
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule

TDSYSINFO_SIZE = 1024
CMR_INFO = struct.Struct("<QQ")
CMR_ARRAY_ALIGNMENT = 512
_HEADER = struct.Struct("<IIIHHHB13x HHH10x H2xHB9x QQQQ32x I")
_CPUID_CONFIG = struct.Struct("<6I")


def tdsysinfo(module: TdxModule) -> bytes:
    """Return TDSYSINFO_STRUCT, 1024 bytes."""
    processor = module.processor
    version = module.version
    order = cpuid.config_order(version.tables)
    header = _HEADER.pack(
        0, identity.VENDOR_INTEL, version.build_date, version.build_num,
        version.number[1], version.number[0], version.sys_rd,
        identity.MAX_TDMRS, identity.MAX_RESERVED_PER_TDMR, identity.PAMT_ENTRY_SIZE,
        version.tdcs_base_size, identity.TDVPS_BASE_SIZE, 0,
        identity.attributes_fixed0(processor, version), identity.ATTRIBUTES_FIXED1,
        identity.xfam_fixed0(processor), identity.XFAM_FIXED1,
        len(order),
    )  # fmt: skip
    leaves = b"".join(
        _CPUID_CONFIG.pack(leaf, cpuid.NO_SUBLEAF if subleaf is None else subleaf, *mask)
        for (leaf, subleaf), mask in ((key, cpuid.config_mask(processor, key, version.tables)) for key in order)
    )
    return (header + leaves).ljust(TDSYSINFO_SIZE, b"\0")


@leaf("TDH.SYS.INFO", clears=("rdx", "r9"))
def tdh_sys_info(module: TdxModule, args: Args, lp: int) -> int:
    """Write TDSYSINFO_STRUCT and the CMRs; the first buffer is zeroed before the second one's operands are checked."""
    _check_lp(module, lp)
    info = module.host.shared(args.rcx, TDSYSINFO_SIZE, Operand.RCX)
    if args.rdx < TDSYSINFO_SIZE:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    module.write_host(info, bytes(TDSYSINFO_SIZE))
    cmr_array = module.host.shared(args.r8, CMR_ARRAY_ALIGNMENT, Operand.R8)
    if args.r9 < identity.MAX_CMRS:
        raise Status(StatusCode.OPERAND_INVALID, Operand.R9)
    cmrs = b"".join(CMR_INFO.pack(*cmr) for cmr in module.platform.cmrs)
    module.write_host(info, tdsysinfo(module))
    module.write_host(cmr_array, cmrs.ljust(identity.MAX_CMRS * CMR_INFO.size, b"\0"))
    args.rdx, args.r9 = TDSYSINFO_SIZE, identity.MAX_CMRS
    return SUCCESS


@leaf("TDH.SYS.RD", clears=("r8",), sets=("rdx",))
def tdh_sys_rd(module: TdxModule, args: Args, lp: int) -> int:
    """Read one field of the module; RDX becomes the next field's id."""
    _check_lp(module, lp)
    args.rdx, args.r8 = read_system_field(module, args.rdx, Accessor.PRODUCTION)
    return SUCCESS


def read_system_field(module: TdxModule, identifier: int, accessor: Accessor) -> tuple[int, int]:
    """Return (next id, value); raises METADATA_FIRST_FIELD_ID_IN_CONTEXT for the id -1, and the errors of `lookup`."""
    table = metadata.system_fields()
    context = 7 << metadata.CONTEXT_SHIFT
    if identifier | context == metadata.NONE:
        raise Status(StatusCode.METADATA_FIRST_FIELD_ID_IN_CONTEXT, rdx=metadata.first(table, accessor))
    field, element = metadata.lookup(table, identifier, accessor)
    value = read_system(module, field, element) & field.masks[accessor][0]
    return metadata.following(table, field, element, accessor, []), value


@leaf("TDH.SYS.RDALL", sets=("r8",))
def tdh_sys_rdall(module: TdxModule, args: Args, lp: int) -> int:
    """Write the module's fields from the one in R8 on to the page at RDX; R8: where to go on."""
    _check_lp(module, lp)
    page = module.host.shared(args.rdx, PAGE_SIZE, Operand.RDX)
    content, rest = dump_system(module, args.r8, Accessor.PRODUCTION)
    module.write_host(page, content)
    if rest != metadata.NONE:
        raise Status(StatusCode.METADATA_LIST_OVERFLOW, r8=rest)
    args.r8 = rest
    return SUCCESS


def dump_system(module: TdxModule, start: int, accessor: Accessor) -> tuple[bytes, int]:
    """Return (metadata list from ``start`` on, id to go on from); raises METADATA_FIELD_ID_INCORRECT."""
    if start | 7 << metadata.CONTEXT_SHIFT == metadata.NONE:
        start = metadata.NONE

    def read(field: Field, element: int) -> int:
        return read_system(module, field, element)

    return metadata_list.dump(metadata.system_fields(), start, accessor, PAGE_SIZE, read)


def _check_lp(module: TdxModule, lp: int) -> None:
    if lp not in module.initialized_lps:
        raise Status(StatusCode.SYS_LP_INIT_NOT_DONE)
