# SPDX-License-Identifier: GPL-2.0-or-later
"""TDG.MEM.PAGE.ATTR.RD and ATTR.WR: what a private page is mapped as, and for which L2 virtual machines.

The TD itself (VM 0) always has all of its pages; attributes exist for L2 virtual machines, which are not reproduced.
A TD that was given some has no Secure EPT for them, and a walk of it fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import sept
from swtdx.seam.hardware import Args, ExitReason
from swtdx.seam.operands import GPA_RESERVED, LEVEL_MASK
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td_exit import ExtendedType, Interrupted, asynchronous
from swtdx.seam.tdg.mem import check_guest_lock
from swtdx.seam.tdg.tdcall import R8, RCX, RDX, tdcall_leaf

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

PENDING = 1 << 62
MAX_LEVEL = 2
VM_BITS = 16
"""Attribute bits of each VM: 15:0 for the TD itself, then those of VM 1 to 3."""


@tdcall_leaf("TDG.MEM.PAGE.ATTR.RD", clears=(RCX, RDX))
def tdg_mem_page_attr_rd(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """RCX: start of the page, its level, bit 62 when it is pending; RDX: attributes of the VMs."""
    td, gpr = vcpu.td, vcpu.context.gpr
    gpa = gpr[RCX]
    if gpa >= td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    _, entry, level = td.sept.walk(gpa, 0)
    check_guest_lock(entry)
    if entry & sept.STATE_MASK not in sept.ALLOWED["TDG_MEM_PAGE_ATTR_RD"]:
        raise Interrupted(asynchronous(vcpu, args, ExitReason.EPT_VIOLATION, gpa=gpa))
    _answer(vcpu, gpa, level, entry)
    return 0


@tdcall_leaf("TDG.MEM.PAGE.ATTR.WR", clears=(RCX, RDX))
def tdg_mem_page_attr_wr(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Set the attributes in RDX under the masks in R8 for the page at RCX (level in bits 2:0)."""
    td, gpr = vcpu.td, vcpu.context.gpr
    operand, attributes, flags = gpr[RCX], gpr[RDX], gpr[R8]
    allowed = (1 << VM_BITS * (td.num_l2_vms + 1)) - (1 << VM_BITS)
    for value, name in ((attributes, Operand.RDX), (flags, Operand.R8)):
        if value & ~allowed:
            raise Status(StatusCode.OPERAND_INVALID, name)
    level = operand & LEVEL_MASK
    gpa = operand & ~LEVEL_MASK
    if (
        operand & GPA_RESERVED
        or level > MAX_LEVEL
        or gpa & ((1 << sept.level_shift(level)) - 1)
        or gpa >= td.private_limit
    ):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    _, entry, reached = td.sept.walk(gpa, level)
    check_guest_lock(entry)
    if entry & sept.STATE_MASK not in sept.ALLOWED["TDG_MEM_PAGE_ATTR_WR"]:
        if not entry & sept.LEAF and reached == level and entry & sept.PRESENT_OR_LEAF:
            raise Status(StatusCode.PAGE_SIZE_MISMATCH, level)
        raise _violation(vcpu, args, gpa, level, entry, reached)
    if reached != level:
        raise Status(StatusCode.PAGE_SIZE_MISMATCH, level)
    for vm in range(1, td.num_l2_vms + 1):
        if flags >> VM_BITS * vm & (1 << VM_BITS) - 1:
            raise Status(StatusCode.L2_SEPT_WALK_FAILED, vm << 16 | td.sept.levels - 1)
    _answer(vcpu, gpa, level, entry)
    return 0


def _answer(vcpu: Vcpu, gpa: int, level: int, entry: int) -> None:
    gpr = vcpu.context.gpr
    pending = PENDING if entry & sept.STATE_MASK in sept.ANY_PENDING else 0
    gpr[RCX], gpr[RDX] = gpa & ~((1 << sept.level_shift(level)) - 1) | level | pending, 0


def _violation(vcpu: Vcpu, args: Args, gpa: int, level: int, entry: int, reached: int) -> Interrupted:
    leaf = 1 if entry & sept.LEAF else 0
    info = level | reached << 3 | sept.ARCH_STATE[entry & sept.STATE_MASK] << 6 | leaf << 14
    extended = ExtendedType.ATTR_WR | info << 32
    return Interrupted(asynchronous(vcpu, args, ExitReason.EPT_VIOLATION, extended=extended, gpa=gpa))
