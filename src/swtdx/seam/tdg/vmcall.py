# SPDX-License-Identifier: GPL-2.0-or-later
"""TDG.VP.VMCALL: the guest calls the host with registers that it selects.

RCX 15:0 selects general registers (bit numbers are register numbers), 31:16 XMM registers. Selected registers reach the
host, the others read as zero there; when the host enters again, the selected ones come back from it, RAX is 0 and RCX
keeps the mask. RAX, RCX and RSP cannot be selected, RBP neither under CONFIG_FLAGS.NO_RBP_MOD.

SeamArgs has no RBP and no XMM registers. What a guest selects of them stays as it is, as if the host had not
touched them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam.hardware import Args, ExitReason
from swtdx.seam.lifecycle import LastTdExit
from swtdx.seam.status import Operand, StatusCode
from swtdx.seam.td import CONFIG_NO_RBP_MOD

if TYPE_CHECKING:
    from swtdx.seam.vcpu import Vcpu

FORBIDDEN = 0xFFFF_FFFF_0000_0013
"""RCX bits that must be zero: 63:32, RSP, RCX, RAX."""
RBP = 1 << 5
_EXIT = int(ExitReason.TDCALL)
_TDVMCALL = LastTdExit.TDVMCALL


def vmcall(vcpu: Vcpu, args: Args) -> int | None:
    """Exit to the host with the selected registers, or return an error for an invalid mask."""
    context = vcpu.context
    gpr = context.gpr
    mask = gpr[1]
    context.rip += context.instruction_length
    if mask & RBP:
        vcpu.td.passes_rbp = True
    if mask & FORBIDDEN or (mask & RBP and vcpu.td.config_flags & CONFIG_NO_RBP_MOD):
        vcpu.host_waits_since = None
        gpr[0] = StatusCode.OPERAND_INVALID | Operand.RCX
        return None
    vcpu.last_td_exit = _TDVMCALL
    # One list and a line for each register: a loop over names takes more than twice as long, at every TDVMCALL.
    _, _, rdx, rbx, _, _, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 = gpr.tolist()
    args.rcx = mask
    args.rdx = rdx if mask & 0x4 else 0
    args.rbx = rbx if mask & 0x8 else 0
    args.rsi = rsi if mask & 0x40 else 0
    args.rdi = rdi if mask & 0x80 else 0
    args.r8 = r8 if mask & 0x100 else 0
    args.r9 = r9 if mask & 0x200 else 0
    args.r10 = r10 if mask & 0x400 else 0
    args.r11 = r11 if mask & 0x800 else 0
    args.r12 = r12 if mask & 0x1000 else 0
    args.r13 = r13 if mask & 0x2000 else 0
    args.r14 = r14 if mask & 0x4000 else 0
    args.r15 = r15 if mask & 0x8000 else 0
    return _EXIT


def resume(vcpu: Vcpu, args: Args) -> None:
    """Complete a VMCALL on entry: the host's selected registers become the guest's, and RAX is 0."""
    gpr = vcpu.context.gpr
    mask = gpr[1]  # the guest's; the host of a debug TD may have changed it
    gpr[0] = 0
    if mask & 0xFC00:
        if mask & 0x400:
            gpr[10] = args.r10
        if mask & 0x800:
            gpr[11] = args.r11
        if mask & 0x1000:
            gpr[12] = args.r12
        if mask & 0x2000:
            gpr[13] = args.r13
        if mask & 0x4000:
            gpr[14] = args.r14
        if mask & 0x8000:
            gpr[15] = args.r15
    if mask & 0x3CC:
        if mask & 0x4:
            gpr[2] = args.rdx
        if mask & 0x8:
            gpr[3] = args.rbx
        if mask & 0x40:
            gpr[6] = args.rsi
        if mask & 0x80:
            gpr[7] = args.rdi
        if mask & 0x100:
            gpr[8] = args.r8
        if mask & 0x200:
            gpr[9] = args.r9
