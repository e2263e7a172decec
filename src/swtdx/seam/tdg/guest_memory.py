# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-physical memory as the module meets it: EPT violations, and its own accesses on behalf of a TDCALL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import sept
from swtdx.seam.hardware import Args, EventType, ExitReason
from swtdx.seam.status import StatusCode
from swtdx.seam.td_exit import (
    PRIVATE_QUALIFICATION,
    QUALIFICATION_GLA_VALID,
    ExtendedType,
    Interrupted,
    asynchronous,
    inject_ve,
)
from swtdx.x86 import Vector

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

READ, WRITE, EXECUTE = 1, 2, 4
"""Access bits of an EPT-violation qualification; the same of an EPT entry's permissions."""
PF_PRESENT, PF_WRITE, PF_USER, PF_RESERVED, PF_FETCH = 1, 2, 4, 8, 16
MACHINE_CHECK = 1 << 31 | EventType.HARDWARE_EXCEPTION << 8 | Vector.MC
"""#MC as interruption information."""
PENDING_EXIT = int(ExtendedType.PENDING_EPT_VIOLATION)


def ept_violation(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Handle an access that the EPT did not allow."""
    context, td = vcpu.context, vcpu.td
    gpa, qualification = context.guest_physical_address, context.exit_qualification
    gla_valid = qualification & QUALIFICATION_GLA_VALID
    if gpa & td.illegal_gpa_bits and gla_valid:
        reserved_bit_fault(vcpu, qualification)
        return None
    if not gpa & td.shared_bit:
        gla = context.guest_linear_address if gla_valid else 0
        return private_violation(vcpu, args, gpa, qualification, gla)
    if context.ve_convertible:
        gla = context.guest_linear_address if gla_valid else 0
        inject_ve(vcpu, ExitReason.EPT_VIOLATION, qualification=qualification, gla=gla, gpa=gpa)
        return None
    return asynchronous(vcpu, args, ExitReason.EPT_VIOLATION, qualification=qualification, gpa=gpa)


def private_violation(vcpu: Vcpu, args: Args, gpa: int, qualification: int, gla: int) -> int | None:
    """Handle an access to private memory that is not mapped, pending or blocked.

    The zero-step defence, which logs repeated faults at one instruction, is not reproduced.
    """
    td = vcpu.td
    _, entry, _ = td.sept.walk(gpa, 0)
    state = entry & sept.STATE_MASK
    if entry & sept.LEAF:
        if state in sept.GUEST_ACCEPTABLE:
            if td.pending_ve_disable:
                return _private_exit(vcpu, args, gpa, qualification, PENDING_EXIT)
            inject_ve(vcpu, ExitReason.EPT_VIOLATION, qualification=qualification, gla=gla, gpa=gpa)
            return None
        if state in sept.GUEST_FULLY_ACCESSIBLE:
            return None  # mapped in the meantime by another virtual CPU: try again
    return _private_exit(vcpu, args, gpa, qualification, ExtendedType.NONE)


def _private_exit(vcpu: Vcpu, args: Args, gpa: int, qualification: int, extended: int) -> int:
    visible = qualification & PRIVATE_QUALIFICATION
    return asynchronous(vcpu, args, ExitReason.EPT_VIOLATION, qualification=visible, extended=extended, gpa=gpa)


def reserved_bit_fault(vcpu: Vcpu, qualification: int) -> None:
    """Raise #PF as the processor does for a page-table entry with a reserved bit."""
    error = PF_PRESENT | PF_RESERVED
    if qualification & WRITE:
        error |= PF_WRITE
    if qualification & EXECUTE:
        error |= PF_FETCH
    if vcpu.cpl == 3:
        error |= PF_USER
    vcpu.context.cr2 = vcpu.context.guest_linear_address
    vcpu.context.inject(Vector.PF, EventType.HARDWARE_EXCEPTION, error)


def ept_misconfiguration(module: TdxModule, vcpu: Vcpu, args: Args) -> int | None:
    """Pass a misconfigured EPT entry to the host: only its shared tables can be malformed."""
    return asynchronous(vcpu, args, ExitReason.EPT_MISCONFIG, gpa=vcpu.context.guest_physical_address)


def private_hpa(module: TdxModule, vcpu: Vcpu, args: Args, gpa: int, access: int) -> int:
    """Return where private memory that a TDCALL names is (the caller has checked that the GPA is private).

    Raises Interrupted when the guest itself could not access it: then it is as if the guest had tried. That ends the
    TD where the host has broken the page's integrity (the real module takes the machine check itself, and is lost).
    """
    _, entry, level = vcpu.td.sept.walk(gpa, 0)
    if not entry & sept.LEAF or entry & access != access:
        raise Interrupted(private_violation(vcpu, args, gpa, access | (entry & 7) << 3, 0))
    offset = (1 << (12 + 9 * level)) - 1
    hpa = entry & sept.HPA_MASK & ~offset | gpa & offset
    if module.memory.integrity_broken(hpa):
        raise Interrupted(machine_check(vcpu, args, MACHINE_CHECK))
    return hpa


def machine_check(vcpu: Vcpu, args: Args, interruption: int, qualification: int = 0) -> int:
    """Kill the TD after a machine check on a line whose integrity is broken, and report it to the host."""
    vcpu.td.die()
    dead = StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE
    return asynchronous(
        vcpu, args, ExitReason.EXCEPTION_NMI, status=dead, qualification=qualification, interruption=interruption
    )


def shared_hpa(vcpu: Vcpu, args: Args, gpa: int, access: int, qwords: memoryview) -> int:
    """Return where shared memory that a TDCALL names is: walk the host's EPT.

    Raises Interrupted: #VE where the entry lets it, else a TD exit.
    """
    levels = vcpu.td.sept.levels
    table, entry, level = vcpu.shared_eptp, 0, levels
    while table and level and table < 8 * len(qwords):
        level -= 1
        entry = qwords[(table >> 3) + (gpa >> (12 + 9 * level) & 511)]
        if not entry & 7 or (entry & sept.LEAF and level) or not level:
            break
        table = entry & sept.HPA_MASK
    if not entry & access:
        qualification = access | (entry & 7) << 3
        if not entry & sept.SUPPRESS_VE:
            inject_ve(vcpu, ExitReason.EPT_VIOLATION, qualification=qualification, gpa=gpa)
            raise Interrupted(None)
        raise Interrupted(asynchronous(vcpu, args, ExitReason.EPT_VIOLATION, qualification=qualification, gpa=gpa))
    offset = (1 << (12 + 9 * level)) - 1
    return entry & sept.HPA_MASK & ~offset | gpa & offset
