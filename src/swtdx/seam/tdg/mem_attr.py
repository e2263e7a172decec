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
from swtdx.seam.tdg.guest_memory import WRITE
from swtdx.seam.tdg.mem import check_guest_lock, violation
from swtdx.seam.tdg.tdcall import R8, RCX, RDX, tdcall_leaf

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.td import Td
    from swtdx.seam.vcpu import Vcpu

PENDING = 1 << 62
MAX_LEVEL = 2
NUM_VMS = 4
VM_BITS = 16
"""Attribute bits of each VM: 15:0 for the TD itself, then those of VM 1 to 3."""
READ, PRESENT = 1 << 0, 0xF
"""Attributes: a page is mapped for reads, writes, fetches of the kernel or of programs."""
WRITES = 1 << 1 | 1 << 5
"""Writes, and writes by the processor's paging, which both need reads."""
SUPPRESS_VE, RESERVED, VALID = 1 << 7, 0x7F00, 1 << 15
EPT_VIOLATION_ON_L2_WALK_FAILURE = 1
"""VM_CTLS bit."""


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
    _check_attributes(td, attributes, flags)
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
    if reached != level:
        raise _violation(vcpu, args, gpa, level, entry, reached)
    check_guest_lock(entry)
    if not entry & sept.LEAF and entry & sept.STATE_MASK != sept.SeptState.FREE:
        raise Status(StatusCode.PAGE_SIZE_MISMATCH, level)
    if entry & sept.STATE_MASK not in sept.ALLOWED["TDG_MEM_PAGE_ATTR_WR"]:
        raise _violation(vcpu, args, gpa, level, entry, reached)
    _check_l2_attributes(vcpu, args, gpa, attributes, flags)
    _answer(vcpu, gpa, level, entry)
    gpr[RDX] = attributes
    return 0


def _of(value: int, vm: int) -> int:
    """Return the attributes, or flags, of one VM."""
    return value >> VM_BITS * vm & (1 << VM_BITS) - 1


def _check_attributes(td: Td, attributes: int, flags: int) -> None:
    """Check what can be told of the operands alone: raises OPERAND_INVALID for those of VMs that cannot have any."""
    for vm in range(NUM_VMS):
        mine = _of(attributes, vm)
        if 1 <= vm <= td.num_l2_vms:
            if mine and not mine & VALID:
                raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
        elif mine:
            raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
        elif _of(flags, vm):
            raise Status(StatusCode.OPERAND_INVALID, Operand.R8)


def _check_l2_attributes(vcpu: Vcpu, args: Args, gpa: int, attributes: int, flags: int) -> None:
    """Check the attributes that L2 virtual machines shall get: they must be legal, and have a Secure EPT to go to.

    Raises PAGE_ATTR_INVALID; a page that is to be mapped finds no Secure EPT, which the host can be told.
    """
    td, remaining = vcpu.td, attributes
    for vm in range(1, td.num_l2_vms + 1):
        wanted = _of(attributes, vm) & (_of(flags, vm) | VALID)
        if not wanted & VALID or not wanted & PRESENT:
            continue
        if wanted & RESERVED or wanted & SUPPRESS_VE or (wanted & WRITES and not wanted & READ):
            remaining &= ~((1 << VM_BITS) - 1 << VM_BITS * vm)
            continue
        if td.vm_ctls[vm] & EPT_VIOLATION_ON_L2_WALK_FAILURE:
            extended = ExtendedType.GPA_DETAILS | (td.sept.levels - 1 << 3 | vm << 20) << 32
            raise Interrupted(
                asynchronous(vcpu, args, ExitReason.EPT_VIOLATION, qualification=WRITE, extended=extended, gpa=gpa)
            )
        raise Status(StatusCode.L2_SEPT_WALK_FAILED, vm << 16 | td.sept.levels - 1)
    if remaining != attributes:
        raise Status(StatusCode.PAGE_ATTR_INVALID, rdx=remaining)


def _answer(vcpu: Vcpu, gpa: int, level: int, entry: int) -> None:
    gpr = vcpu.context.gpr
    pending = PENDING if entry & sept.STATE_MASK in sept.ANY_PENDING else 0
    gpr[RCX], gpr[RDX] = gpa & ~((1 << sept.level_shift(level)) - 1) | level | pending, 0


def _violation(vcpu: Vcpu, args: Args, gpa: int, level: int, entry: int, reached: int) -> Interrupted:
    return violation(vcpu, args, gpa, level, entry, reached, ExtendedType.ATTR_WR)
