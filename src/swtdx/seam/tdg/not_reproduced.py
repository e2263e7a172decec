# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's leaf functions of service TDs and TD partitioning: SERVTD.RD and WR, VP.ENTER, INVEPT, INVVPID.

Neither feature is reproduced (TDX_FEATURES0 has neither). No TD was ever bound to another, so that no binding handle is
right; L2 virtual machines that a TD was given cannot be entered, and have nothing to flush.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.tdg.tdcall import R8, RCX, RDX, tdcall_leaf

if TYPE_CHECKING:
    from swtdx.seam.hardware import Args
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

L2_STATE_ALIGNMENT = 256
VM_SHIFT = 52
INVVPID_LIST = 1


@tdcall_leaf("TDG.SERVTD.RD", clears=(RDX, R8))
def tdg_servtd_rd(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Refuse any binding handle."""
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


@tdcall_leaf("TDG.SERVTD.WR", clears=(R8,))
def tdg_servtd_wr(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Refuse any binding handle."""
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


@tdcall_leaf("TDG.VP.ENTER")
def tdg_vp_enter(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Refuse to enter an L2 virtual machine, once the state area in RDX is right."""
    area = vcpu.context.gpr[RDX]
    if area % L2_STATE_ALIGNMENT or area >= vcpu.td.private_limit:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RDX)
    raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)


@tdcall_leaf("TDG.VP.INVEPT")
def tdg_vp_invept(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Flush L2 virtual machines by bitmap: those that exist have never run."""
    if vcpu.context.gpr[RCX] & ~((2 << vcpu.td.num_l2_vms) - 2):
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    return 0


@tdcall_leaf("TDG.VP.INVVPID")
def tdg_vp_invvpid(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Flush addresses of one L2 virtual machine: it has never run, so that there is nothing to do but to check RCX."""
    flags = vcpu.context.gpr[RCX]
    if flags & ((1 << VM_SHIFT) - 1) & ~INVVPID_LIST or not 1 <= flags >> VM_SHIFT <= vcpu.td.num_l2_vms:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    return 0
