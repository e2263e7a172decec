# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's leaf functions of service TDs and TD partitioning: SERVTD.RD and WR, VP.ENTER, INVEPT, INVVPID.

Neither feature is reproduced (TDX_FEATURES0 has neither). No TD was ever bound to another, so that no binding handle is
right; L2 virtual machines that a TD was given cannot be entered, and have nothing to flush.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td_exit import Interrupted
from swtdx.seam.tdg.guest_memory import READ, private_hpa
from swtdx.seam.tdg.tdcall import R8, RCX, RDX, tdcall_leaf
from swtdx.x86 import PAGE_OFFSET_MASK

if TYPE_CHECKING:
    from swtdx.seam.hardware import Args
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

L2_STATE_ALIGNMENT = 256
VM_SHIFT = 52
INVVPID_LIST, INVEPT_TYPES = 1, 3
LIST_ENTRIES, COUNT_SHIFT = 512, 52
LIST_ADDRESS, LIST_RESERVED = 0x000F_FFFF_FFFF_F000, 0xC000_0000_0000_0E00
PAGE_SHIFT, MASK64 = 12, (1 << 64) - 1


@tdcall_leaf("TDG.SERVTD.RD", clears=(R8,), sets=(RDX,))
def tdg_servtd_rd(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Refuse any binding handle."""
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


@tdcall_leaf("TDG.SERVTD.WR", clears=(R8,))
def tdg_servtd_wr(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Refuse any binding handle."""
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


@tdcall_leaf("TDG.VP.ENTER")
def tdg_vp_enter(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Refuse to enter an L2 virtual machine: none has a virtual APIC page."""
    td, gpr = vcpu.td, vcpu.context.gpr
    area, flags = gpr[RDX], gpr[RCX]
    if area % L2_STATE_ALIGNMENT or area >= td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    if flags & ((1 << VM_SHIFT) - 1) & ~INVEPT_TYPES or not 1 <= flags >> VM_SHIFT <= td.num_l2_vms:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    raise Status(StatusCode.OPERAND_INVALID, Operand.L2_VAPIC_GPA)


@tdcall_leaf("TDG.VP.INVEPT")
def tdg_vp_invept(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Flush L2 virtual machines by bitmap: those that exist have never run."""
    if vcpu.context.gpr[RCX] & ~((2 << vcpu.td.num_l2_vms) - 2):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    return 0


@tdcall_leaf("TDG.VP.INVVPID")
def tdg_vp_invvpid(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Flush addresses of one L2 virtual machine: it has never run, so that there is nothing to do but to check them.

    RDX is one entry (address 63:12, further pages 11:0) or names a list of them (first 8:0, page 51:12, number 61:52).
    """
    gpr = vcpu.context.gpr
    flags, operand = gpr[RCX], gpr[RDX]
    if flags & ((1 << VM_SHIFT) - 1) & ~INVVPID_LIST or not 1 <= flags >> VM_SHIFT <= vcpu.td.num_l2_vms:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    if flags & INVVPID_LIST:
        _flush_list(module, vcpu, args, operand)
    else:
        _flush(module, operand)
    return 0


def _flush_list(module: TdxModule, vcpu: Vcpu, args: Args, operand: int) -> None:
    """Check the entries of a list one by one; RDX then names those that an interrupt left."""
    first, count, gpa = operand & 0x1FF, operand >> COUNT_SHIFT & 0x3FF, operand & LIST_ADDRESS
    if operand & LIST_RESERVED or first + count > LIST_ENTRIES or gpa >= vcpu.td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    entries = private_hpa(module, vcpu, args, gpa, READ) >> 3
    interrupted = False
    while count and not interrupted:
        _flush(module, module.memory.qwords[entries + first])
        first, count = first + 1, count - 1
        interrupted = module.contention.interrupted(vcpu.lp)
    vcpu.context.gpr[RDX] = first & 0x1FF | gpa | count << COUNT_SHIFT
    if interrupted:
        raise Interrupted(None, resumes=True)


def _flush(module: TdxModule, entry: int) -> None:
    """Check the addresses of one entry; raises GLA_NOT_CANONICAL."""
    first = entry & ~PAGE_OFFSET_MASK
    last = first + ((entry & PAGE_OFFSET_MASK) << PAGE_SHIFT) & MASK64
    sign = module.processor.cpuid(0x8000_0008)[0] >> 8 & 0xFF
    upper = (1 << 65 - sign) - 1
    if first >> sign - 1 not in (0, upper) or last >> sign - 1 != first >> sign - 1:
        raise Status(StatusCode.GLA_NOT_CANONICAL)
