# SPDX-License-Identifier: GPL-2.0-or-later
"""Virtual CPUs: TDH.VP.CREATE, ADDCX, INIT and FLUSH."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam.dispatch import SEAMCALL_NUMBERS, SUCCESS, leaf, versioned_leaf
from swtdx.seam.hardware import Args
from swtdx.seam.lifecycle import Event, LifecycleState, VcpuState
from swtdx.seam.pamt import PageType
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td_params import check_tsc_adjust
from swtdx.seam.tdh.mng import ZERO_PAGE
from swtdx.seam.vcpu import Vcpu, control, reset

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule

VP_CREATE, VP_ADDCX = SEAMCALL_NUMBERS["TDH.VP.CREATE"], SEAMCALL_NUMBERS["TDH.VP.ADDCX"]
VP_INIT = SEAMCALL_NUMBERS["TDH.VP.INIT"]
MAX_X2APIC_ID = 0xFFFF_FFFF


@leaf("TDH.VP.CREATE")
def tdh_vp_create(module: TdxModule, args: Args, lp: int) -> int:
    """Create a virtual CPU's root page."""
    hpa = args.rcx
    td = module.td(args.rdx, Operand.RDX)
    td.check_state(VP_CREATE)
    index = module.pamt.free_page(hpa, Operand.RCX)
    module.take_page(hpa, td.hkid, ZERO_PAGE)
    module.pamt.assign(index, PageType.TDVPR, td.hpa)
    td.child_count += 1
    module.vcpus[hpa] = Vcpu(hpa, td, index)
    return SUCCESS


@leaf("TDH.VP.ADDCX")
def tdh_vp_addcx(module: TdxModule, args: Args, lp: int) -> int:
    """Add a page to a virtual CPU that is not initialised yet."""
    hpa = args.rcx
    vcpu = module.vcpu_exclusive(args.rdx, Operand.RDX)
    td = vcpu.td
    td.check_state(VP_ADDCX)
    if vcpu.state is not VcpuState.UNINITIALIZED:
        raise Status(StatusCode.VCPU_STATE_INCORRECT)
    if len(vcpu.pages) >= td.version.max_tdvps_pages:
        raise Status(StatusCode.TDCX_NUM_INCORRECT)
    index = module.pamt.free_page(hpa, Operand.RCX)
    module.take_page(hpa, td.hkid, ZERO_PAGE)
    module.pamt.assign(index, PageType(td.version.vcpu_page_type), td.hpa)
    td.child_count += 1
    vcpu.pages.append(hpa)
    return SUCCESS


@versioned_leaf("TDH.VP.INIT")
def tdh_vp_init(module: TdxModule, args: Args, lp: int, version: int) -> int:
    """Set a virtual CPU's initial state and associate it; version 1 sets its x2APIC id.

    As on the real module, an id that is not unique and a changed IA32_TSC_ADJUST are noticed after NUM_VCPUS has been
    counted up.
    """
    vcpu = module.vcpu_exclusive(args.rcx, Operand.RCX)
    td = vcpu.td
    if version and module.pamt.locked(td.pamt_index):
        raise Status(StatusCode.OPERAND_BUSY, Operand.TDR)
    td.check_state(VP_INIT)
    if len(vcpu.pages) < td.vcpu_pages:
        raise Status(StatusCode.TDCX_NUM_INCORRECT)
    if vcpu.state is not VcpuState.UNINITIALIZED:
        raise Status(StatusCode.VCPU_STATE_INCORRECT)
    if td.num_vcpus >= td.max_vcpus:
        raise Status(StatusCode.MAX_VCPUS_EXCEEDED)
    if version:
        if args.r8 > MAX_X2APIC_ID:
            raise Status(StatusCode.OPERAND_INVALID, Operand.R8)
        td.num_vcpus += 1
        taken = args.r8 in td.x2apic_ids
        td.x2apic_ids.append(args.r8)
        if taken:
            raise Status(StatusCode.X2APIC_ID_NOT_UNIQUE, args.r8)
        vcpu.x2apic_id = args.r8
    else:
        td.num_vcpus += 1
        td.x2apic_ids.append(0)
        td.topology_enum_configured = False
        vcpu.x2apic_id = td.num_vcpus - 1
    # After NUM_VCPUS was counted up, as on the real module: a failure here uses up an index.
    check_tsc_adjust(module.processor.rdmsr, module.tsc_adjust)
    vcpu.index = td.num_vcpus - 1
    vcpu.context = module.processor.new_context()
    vcpu.last_exit_tsc = module.processor.rdtsc()
    reset(vcpu, initial_rcx=args.rdx, family_model_stepping=module.processor.cpuid(1)[0])
    control(vcpu)
    td.vcpus.append(vcpu)
    vcpu.advance(Event.VP_INIT)
    vcpu.associate(lp)
    return SUCCESS


@leaf("TDH.VP.FLUSH")
def tdh_vp_flush(module: TdxModule, args: Args, lp: int) -> int:
    """Disassociate a virtual CPU from its logical processor. OP_STATE and FATAL are not checked."""
    vcpu = module.vcpu_exclusive(args.rcx, Operand.RCX)
    if vcpu.td.lifecycle is not LifecycleState.KEYS_CONFIGURED:
        raise Status(StatusCode.TD_KEYS_NOT_CONFIGURED)
    if len(vcpu.pages) < vcpu.td.vcpu_pages:
        raise Status(StatusCode.TDCX_NUM_INCORRECT)
    if vcpu.lp != lp:
        raise Status(StatusCode.VCPU_NOT_ASSOCIATED)
    vcpu.disassociate()
    return SUCCESS
