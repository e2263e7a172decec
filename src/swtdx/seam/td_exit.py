# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaving a TD: what the host finds in its registers, and the exceptions the module raises in the guest instead.

An asynchronous TD exit gives

====  ===========================================================
RAX   status in the upper half, VMX exit reason in the lower half
RCX   exit qualification (32 bits)
RDX   extended exit qualification: type 3:0, information 63:32
R8    GPA of an EPT exit, page aligned, shared bit kept
R9    interruption information
====  ===========================================================

and zero in every other register. SeamArgs has no RBP: it stays the guest's, as with CONFIG_FLAGS.NO_RBP_MOD.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from swtdx.seam.hardware import Args, EventType
from swtdx.seam.lifecycle import LastTdExit
from swtdx.x86 import PAGE_OFFSET_MASK, Vector

if TYPE_CHECKING:
    from swtdx.seam.vcpu import Vcpu

QUALIFICATION_GLA_VALID = 1 << 7
PRIVATE_QUALIFICATION = ~0x1F80
"""EPT qualification bits 12:7 are hidden from the host for private accesses."""


class ExtendedType(IntEnum):
    """Types of the extended exit qualification."""

    NONE = 0
    ACCEPT = 1
    GPA_DETAILS = 2
    MSR_LOAD = 3
    XSTATE = 4
    ATTR_WR = 5
    PENDING_EPT_VIOLATION = 6


class Interrupted(Exception):
    """A TDCALL met a guest page that is not there: the access has become #VE (None) or a TD exit (RAX)."""

    def __init__(self, result: int | None) -> None:
        super().__init__(result)
        self.result = result


def asynchronous(
    vcpu: Vcpu,
    args: Args,
    reason: int,
    *,
    status: int = 0,
    qualification: int = 0,
    extended: int = 0,
    gpa: int = 0,
    interruption: int = 0,
) -> int:
    """Fill the host's registers for an asynchronous, fault-like TD exit; returns RAX."""
    vcpu.last_td_exit = LastTdExit.ASYNC_FAULT
    args.rcx = qualification & 0xFFFF_FFFF
    args.rdx, args.r8, args.r9 = extended, gpa & ~PAGE_OFFSET_MASK, interruption
    args.rbx = args.rsi = args.rdi = args.r10 = args.r11 = args.r12 = args.r13 = args.r14 = args.r15 = 0
    return status | reason


def inject_ve(vcpu: Vcpu, reason: int, *, qualification: int, gla: int = 0, gpa: int = 0) -> None:
    """Raise #VE with VE_INFO; #DF while the guest has not read the last one."""
    info, context = vcpu.ve, vcpu.context
    if info.valid:
        context.inject(Vector.DF, EventType.HARDWARE_EXCEPTION, 0)
    else:
        info.valid = True
        info.exit_reason = reason
        info.qualification = qualification
        info.gla, info.gpa = gla, gpa
        info.instruction_length = context.instruction_length
        info.instruction_info = context.instruction_info
        context.inject(Vector.VE, EventType.HARDWARE_EXCEPTION)


def inject_gp(vcpu: Vcpu) -> None:
    """Raise #GP(0)."""
    vcpu.context.inject(Vector.GP, EventType.HARDWARE_EXCEPTION, 0)


def inject_ud(vcpu: Vcpu) -> None:
    """Raise #UD."""
    vcpu.context.inject(Vector.UD, EventType.HARDWARE_EXCEPTION)


def advance(vcpu: Vcpu) -> None:
    """Step over the exiting instruction, which is done."""
    context = vcpu.context
    context.rip = context.rip + context.instruction_length
