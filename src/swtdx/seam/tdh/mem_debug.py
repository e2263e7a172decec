# SPDX-License-Identifier: GPL-2.0-or-later
"""Access of the host to the memory of a debug TD: TDH.MEM.RD and MEM.WR."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS, SUCCESS, leaf
from swtdx.seam.hardware import Args
from swtdx.seam.operands import check_entry, check_leaf
from swtdx.seam.status import Operand, Status, StatusCode

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule

MEM_RD, MEM_WR = SEAMCALL_NUMBERS["TDH.MEM.RD"], SEAMCALL_NUMBERS["TDH.MEM.WR"]


@leaf("TDH.MEM.RD", clears=("rcx", "rdx", "r8"))
def tdh_mem_rd(module: TdxModule, args: Args, lp: int) -> int:
    """Read 8 bytes of a debug TD into R8."""
    index = _locate(module, args, MEM_RD, "TDH_MEM_RD")
    args.r8 = module.memory.qwords[index]
    args.rcx = args.rdx = 0
    return SUCCESS


@leaf("TDH.MEM.WR", clears=("rcx", "rdx", "r8"))
def tdh_mem_wr(module: TdxModule, args: Args, lp: int) -> int:
    """Write 8 bytes of a debug TD; R8: what was there."""
    index = _locate(module, args, MEM_WR, "TDH_MEM_WR")
    old: int = module.memory.qwords[index]
    module.memory.write(index << 3 | module.td(args.rdx, Operand.RDX).hkid << module.host.hkid_shift,
                        args.r8.to_bytes(8, "little"))  # fmt: skip
    args.r8 = old
    args.rcx = args.rdx = 0
    return SUCCESS


def _locate(module: TdxModule, args: Args, number: int, name: str) -> int:
    """Make the checks common to both; returns the index of the 64-bit word in physical memory."""
    td = module.td(args.rdx, Operand.RDX)
    td.check_state(number)
    if not td.debug:
        raise Status(StatusCode.TD_NON_DEBUG)
    gpa = args.rcx
    if gpa & 7:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    td.check_lock(Operand.SEPT_TREE, shared=True)
    if gpa >= td.gpa_limit:
        raise td.cannot_walk(gpa)
    index, entry, level = td.sept.walk(gpa, 0)
    check_leaf(td, entry, level)
    if td.version.entry_states:
        entry = check_entry(td, name, entry, level, index)
    offset = (1 << (12 + 9 * level)) - 1
    return (entry & sept.HPA_MASK & ~offset | gpa & offset) >> 3
