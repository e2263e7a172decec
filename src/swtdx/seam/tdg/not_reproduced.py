# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's leaf functions of service TDs and TD partitioning: SERVTD.RD and WR, VP.ENTER, INVEPT, INVVPID.

Neither feature is reproduced (TDX_FEATURES0 has neither). No TD was ever bound to another. A binding handle can name
one all the same, and the module looks at that: its root page, its state, its UUID, and at last that it is not bound.
What is wrong with the other TD, and not with the caller, is told to the host (CROSS_TD_TRAP). L2 virtual machines that
a TD was given cannot be entered, and have nothing to flush.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td_exit import Interrupted, trap
from swtdx.seam.tdg.guest_memory import READ, private_hpa
from swtdx.seam.tdg.tdcall import R8, RAX, RCX, RDX, tdcall_leaf
from swtdx.x86 import PAGE_OFFSET_MASK, Gpr

if TYPE_CHECKING:
    from swtdx.seam.hardware import Args
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

L2_STATE_ALIGNMENT = 256
VM_SHIFT = 52
INVVPID_LIST, INVEPT_TYPES = 1, 3
LIST_ENTRIES, COUNT_SHIFT = 512, 52
SLOT_MASK, MAX_SERVICE_TDS = 0xFFF, 1
STATUS_CLASS = 0xFFFF_FFFF << 32
UUID_REGISTERS = tuple(map(int, (Gpr.R10, Gpr.R11, Gpr.R12, Gpr.R13)))
LIST_ADDRESS, LIST_RESERVED = 0x000F_FFFF_FFFF_F000, 0xC000_0000_0000_0E00
PAGE_SHIFT, MASK64 = 12, (1 << 64) - 1


@tdcall_leaf("TDG.SERVTD.RD", clears=(R8,), sets=(RDX,))
def tdg_servtd_rd(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Look up the TD of a binding handle, which is not bound to this one."""
    return _servtd(module, vcpu, args, (R8, 0), (RDX, MASK64))


@tdcall_leaf("TDG.SERVTD.WR", clears=(R8,))
def tdg_servtd_wr(module: TdxModule, vcpu: Vcpu, args: Args) -> int:
    """Look up the TD of a binding handle, which is not bound to this one."""
    return _servtd(module, vcpu, args, (R8, 0))


def _servtd(module: TdxModule, vcpu: Vcpu, args: Args, *defaults: tuple[int, int]) -> int:
    """The handle is slot 11:0 and page 51:12 of the other TD's TDR, with the first qword of the caller's UUID added."""
    gpr = vcpu.context.gpr
    handle = gpr[RCX] - int.from_bytes(vcpu.td.uuid[:8], "little")
    slot, tdr = handle & SLOT_MASK, handle & LIST_ADDRESS
    if slot >= MAX_SERVICE_TDS:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    try:
        target = module.td(tdr, Operand.TDR)
        target.check_other()
    except Status as status:
        if status.value & STATUS_CLASS == StatusCode.OPERAND_BUSY:
            raise
        raise _cross_td(vcpu, args, status.value, tdr, defaults) from status
    uuid = b"".join(int(gpr[register]).to_bytes(8, "little") for register in UUID_REGISTERS)
    if uuid != target.uuid:
        if any(uuid):
            raise Status(StatusCode.TARGET_UUID_MISMATCH)
        # Zeros are the UUID that the TD had before it was imported, which none was.
        for number, register in enumerate(UUID_REGISTERS):
            gpr[register] = int.from_bytes(target.uuid[8 * number : 8 * number + 8], "little")
        raise Status(StatusCode.TARGET_UUID_UPDATED)
    target.check_lock(Operand.SERVTD_BINDINGS, shared=True)
    raise _cross_td(vcpu, args, StatusCode.SERVTD_NOT_BOUND | slot, tdr, defaults)


def _cross_td(vcpu: Vcpu, args: Args, status: int, tdr: int, defaults: tuple[tuple[int, int], ...]) -> Interrupted:
    """Return the TD exit for a fault of another TD: the guest finds its status, and the TDCALL is done."""
    context = vcpu.context
    for register, value in defaults:
        context.gpr[register] = value
    context.gpr[RAX] = status
    context.rip += context.instruction_length
    vcpu.host_waits_since = None
    return Interrupted(trap(vcpu, args, StatusCode.CROSS_TD_TRAP, extended=status, gpa=tdr))


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
