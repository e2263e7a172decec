# SPDX-License-Identifier: GPL-2.0-or-later
"""Metadata of a TD and of a virtual CPU for the host: TDH.MNG.RD, MNG.WR, VP.RD, VP.WR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import metadata
from swtdx.seam.dispatch import SEAMCALL_NUMBERS, SUCCESS, leaf, versioned_leaf
from swtdx.seam.hardware import Args
from swtdx.seam.lifecycle import VcpuState
from swtdx.seam.metadata import Accessor, FieldTable
from swtdx.seam.metadata_values import read_td, read_vcpu, write_td, write_vcpu
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.vcpu import NO_LP

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.td import Td
    from swtdx.seam.vcpu import Vcpu

MNG_RD, MNG_WR = SEAMCALL_NUMBERS["TDH.MNG.RD"], SEAMCALL_NUMBERS["TDH.MNG.WR"]
VP_RD, VP_WR = SEAMCALL_NUMBERS["TDH.VP.RD"], SEAMCALL_NUMBERS["TDH.VP.WR"]


def _host(td: Td) -> Accessor:
    return Accessor.DEBUG if td.debug else Accessor.PRODUCTION


def _first(table: FieldTable, td: Td) -> Status:
    return Status(StatusCode.METADATA_FIRST_FIELD_ID_IN_CONTEXT, rdx=metadata.first(table, _host(td)))


@versioned_leaf("TDH.MNG.RD", clears=("r8",), later=("rdx",))
def tdh_mng_rd(module: TdxModule, args: Args, lp: int, version: int) -> int:
    """Read a TD's field into R8; version 1: RDX becomes the next field's id."""
    td = module.td(args.rcx, Operand.RCX)
    td.check_state(MNG_RD)
    table = metadata.td_fields(td.version)
    if version and args.rdx == metadata.NONE:
        raise _first(table, td)
    field, element = metadata.lookup(table, args.rdx, _host(td))
    args.r8 = read_td(td, field, element) & field.masks[_host(td)][0]
    if version:
        args.rdx = metadata.following(table, field, element, _host(td), td.cpuid.metadata_codes())
    return SUCCESS


@leaf("TDH.MNG.WR", clears=("r8",))
def tdh_mng_wr(module: TdxModule, args: Args, lp: int) -> int:
    """Write a TD's field under a mask; R8: its old value."""
    td = module.td(args.rcx, Operand.RCX)
    td.check_state(MNG_WR)
    accessor = _host(td)
    table = metadata.td_fields(td.version)
    field, element = metadata.lookup_writable(table, args.rdx, accessor, args.r9)
    old = read_td(td, field, element)
    value = metadata.merge(table, field, accessor, old, args.r8, args.r9)
    write_td(td, field, element, value, args.r9)
    args.r8 = old & field.masks[accessor][0]
    return SUCCESS


@versioned_leaf("TDH.VP.RD", clears=("r8",), later=("rdx",))
def tdh_vp_rd(module: TdxModule, args: Args, lp: int, version: int) -> int:
    """Read a virtual CPU's field into R8; version 1: RDX becomes the next field's id. Associates the vCPU."""
    vcpu = module.vcpu(args.rcx, Operand.RCX)
    check_accessible(vcpu, VP_RD, lp, (VcpuState.READY, VcpuState.DISABLED))
    vcpu.associate(lp)  # stays so if a later check fails
    td, table = vcpu.td, metadata.vcpu_fields(vcpu.td.version)
    if version and args.rdx == metadata.NONE:
        raise _first(table, td)
    field, element = metadata.lookup(table, args.rdx, _host(td))
    args.r8 = read_vcpu(vcpu, field, element) & field.masks[_host(td)][0]
    if version:
        args.rdx = metadata.following(table, field, element, _host(td), [])
    return SUCCESS


@leaf("TDH.VP.WR", clears=("r8",))
def tdh_vp_wr(module: TdxModule, args: Args, lp: int) -> int:
    """Write a virtual CPU's field under a mask; R8: its old value. Associates the vCPU."""
    vcpu = module.vcpu(args.rcx, Operand.RCX)
    check_accessible(vcpu, VP_WR, lp, (VcpuState.READY,))
    vcpu.associate(lp)
    accessor = _host(vcpu.td)
    table = metadata.vcpu_fields(vcpu.td.version)
    field, element = metadata.lookup_writable(table, args.rdx, accessor, args.r9)
    old = read_vcpu(vcpu, field, element)
    value = metadata.merge(table, field, accessor, old, args.r8, args.r9)
    write_vcpu(module, vcpu, field, element, value)
    args.r8 = old & field.masks[accessor][0]
    return SUCCESS


def check_accessible(vcpu: Vcpu, leaf_number: int, lp: int, states: tuple[VcpuState, ...]) -> None:
    """Check a virtual CPU for VP.RD and VP.WR: TD state, pages, vCPU state, association."""
    vcpu.td.check_state(leaf_number)
    if len(vcpu.pages) < vcpu.td.vcpu_pages:
        raise Status(StatusCode.TDCX_NUM_INCORRECT)
    # A running virtual CPU (ACTIVE) is on its logical processor; the host asks from the thread that left it.
    if vcpu.state not in states:
        raise Status(StatusCode.VCPU_STATE_INCORRECT)
    if vcpu.lp not in (NO_LP, lp):
        raise Status(StatusCode.VCPU_ASSOCIATED)
