# SPDX-License-Identifier: GPL-2.0-or-later
"""Leaving a TD: what the host finds in its registers, and the exceptions the module raises in the guest instead.

An asynchronous TD exit gives

====  ===========================================================
RAX   status in the upper half, VMX exit reason in the lower half
RCX   exit qualification
RDX   extended exit qualification: type 3:0, information 63:32
R8    GPA of an EPT exit, page aligned, shared bit kept
R9    interruption information
====  ===========================================================

and zero in every other register. SeamArgs has no RBP: it stays the guest's, as with CONFIG_FLAGS.NO_RBP_MOD.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from swtdx.seam.hardware import Args, EventType, ExitReason
from swtdx.seam.lifecycle import LastTdExit
from swtdx.seam.status import NON_RECOVERABLE
from swtdx.x86 import PAGE_OFFSET_MASK, Rflags, Vector

if TYPE_CHECKING:
    from swtdx.seam.vcpu import Vcpu

QUALIFICATION_GLA_VALID = 1 << 7
EPT_QUALIFICATION = ~0x1F80
"""Qualification bits 12:7 of an EPT violation are hidden from the host, for private and shared memory."""
VALID, ERROR_CODE = 1 << 31, 1 << 11
"""Flags of interruption information."""
VM_INDEX = 3 << 32
"""Bits of RCX that name the VM that exited: the TD itself, 0."""


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
    """A TDCALL ends without a status: a guest page is not there, and the access is #VE (None) or a TD exit (RAX)."""

    def __init__(self, result: int | None, *, resumes: bool = False) -> None:
        super().__init__(result)
        self.result = result
        self.resumes = resumes
        """An interrupt stopped it; the guest makes the same call again, which continues."""


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
    if not status & NON_RECOVERABLE:  # a virtual CPU that cannot be entered again keeps its last reason
        vcpu.last_td_exit = LastTdExit.ASYNC_FAULT
    args.rcx = qualification & ~VM_INDEX
    args.rdx, args.r8, args.r9 = extended, gpa & ~PAGE_OFFSET_MASK, interruption
    args.rbx = args.rsi = args.rdi = args.r10 = args.r11 = args.r12 = args.r13 = args.r14 = args.r15 = 0
    return status | reason


def trap(vcpu: Vcpu, args: Args, status: int, *, extended: int = 0, gpa: int = 0) -> int:
    """Fill the host's registers for a trap-like TD exit, after a TDCALL that the guest sees as done; returns RAX."""
    result = asynchronous(vcpu, args, 0, status=status, extended=extended, gpa=gpa)
    vcpu.last_td_exit = LastTdExit.ASYNC_TRAP
    return result


def inject_ve(vcpu: Vcpu, reason: int, *, qualification: int, gla: int = 0, gpa: int = 0) -> None:
    """Raise #VE with VE_INFO; #DF while the guest has not read the last one."""
    info, context = vcpu.ve, vcpu.context
    if info.valid:
        inject(vcpu, Vector.DF, 0)
    else:
        info.valid = True
        info.exit_reason = reason
        info.qualification = qualification
        info.gla, info.gpa = gla, gpa
        info.instruction_length = context.instruction_length
        info.instruction_info = context.instruction_info
        inject(vcpu, Vector.VE)


def processor_ve(vcpu: Vcpu, *, qualification: int, gla: int, gpa: int) -> None:
    """Deliver a convertible EPT violation as the processor does, without the module.

    The processor knows no instruction length and information: VE_INFO keeps those of the last #VE of the module.
    """
    info = vcpu.ve
    info.valid = True
    info.exit_reason = ExitReason.EPT_VIOLATION
    info.qualification = qualification
    info.gla, info.gpa = gla, gpa
    vcpu.context.inject(Vector.VE, EventType.HARDWARE_EXCEPTION)


def inject_gp(vcpu: Vcpu) -> None:
    """Raise #GP(0)."""
    inject(vcpu, Vector.GP, 0)


def inject_ud(vcpu: Vcpu) -> None:
    """Raise #UD."""
    inject(vcpu, Vector.UD)


def inject(vcpu: Vcpu, vector: int, error: int | None = None) -> None:
    """Raise a hardware exception in the guest."""
    context = vcpu.context
    context.rflags |= Rflags.RF
    context.inject(vector, EventType.HARDWARE_EXCEPTION, error)
    vcpu.injected = VALID | EventType.HARDWARE_EXCEPTION << 8 | vector | (0 if error is None else ERROR_CODE)


def injected_for_debugger(vcpu: Vcpu, args: Args) -> int | None:
    """Exit to the host of a debug TD that intercepts the exception which the module has just raised; returns RAX."""
    information, vcpu.injected = vcpu.injected, 0
    if not information or not vcpu.context.exception_bitmap >> (information & 0x1F) & 1:
        return None
    return asynchronous(vcpu, args, ExitReason.EXCEPTION_NMI, interruption=information)


def advance(vcpu: Vcpu) -> None:
    """Step over the exiting instruction, which is done."""
    context = vcpu.context
    context.rip = context.rip + context.instruction_length
