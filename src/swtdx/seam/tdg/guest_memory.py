# SPDX-License-Identifier: GPL-2.0-or-later
"""Guest-physical memory as the module meets it: EPT violations, and its own accesses on behalf of a TDCALL."""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam import sept
from swtdx.seam.hardware import Args, EventType, ExitReason
from swtdx.seam.status import StatusCode
from swtdx.seam.td_exit import (
    EPT_QUALIFICATION,
    QUALIFICATION_GLA_VALID,
    ExtendedType,
    Interrupted,
    asynchronous,
    inject,
    inject_ve,
    processor_ve,
)
from swtdx.x86 import PAGE_SIZE, Vector

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

READ, WRITE, EXECUTE = 1, 2, 4
"""Access bits of an EPT-violation qualification; the same of an EPT entry's permissions."""
READ_WRITE = READ | WRITE
"""What the module asks for when it writes for the guest."""
NMI_UNBLOCKED_BY_IRET, SHADOW_STACK = 1 << 12, 1 << 13
"""More bits of an EPT-violation qualification."""
BLOCKED_BY_NMI = 1 << 3
PF_PRESENT, PF_WRITE, PF_USER, PF_RESERVED, PF_FETCH, PF_SHADOW_STACK = 1, 2, 4, 8, 16, 64
RESERVED_MEMORY_TYPES = (2, 3, 7)
LARGE_PAGE = 1 << 7
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
    gla = context.guest_linear_address if gla_valid else 0
    if not gpa & td.shared_bit:
        return private_violation(vcpu, args, gpa, qualification, gla)
    if context.ve_convertible and not vcpu.ve.valid:
        processor_ve(vcpu, qualification=qualification, gla=gla, gpa=gpa)
        return None
    return _exit(vcpu, args, gpa, qualification)


def private_violation(vcpu: Vcpu, args: Args, gpa: int, qualification: int, gla: int) -> int | None:
    """Handle an access to private memory that is not mapped, pending or blocked, or was so a moment ago.

    The zero-step defence, which logs repeated faults at one instruction, is not reproduced.
    """
    td = vcpu.td
    _, entry, _ = td.sept.walk(gpa, 0)
    if entry & sept.STATE_MASK not in sept.GUEST_ACCEPTABLE:
        return _exit(vcpu, args, gpa, qualification)
    if td.pending_ve_disable:
        return _exit(vcpu, args, gpa, qualification, PENDING_EXIT)
    inject_ve(vcpu, ExitReason.EPT_VIOLATION, qualification=qualification, gla=gla, gpa=gpa)
    return None


def _exit(vcpu: Vcpu, args: Args, gpa: int, qualification: int, extended: int = 0) -> int:
    visible = qualification & EPT_QUALIFICATION
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
    if qualification & SHADOW_STACK:
        error |= PF_SHADOW_STACK
    context = vcpu.context
    if qualification & NMI_UNBLOCKED_BY_IRET:  # the IRET did not happen
        context.interruptibility |= BLOCKED_BY_NMI
    context.cr2 = context.guest_linear_address
    inject(vcpu, Vector.PF, error)


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
        raise Interrupted(private_violation(vcpu, args, gpa, _qualification(access, entry), 0))
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


def _qualification(access: int, rights: int) -> int:
    """Return the qualification of a walk for ``access`` that found ``rights`` (read, write, execute)."""
    return access & ~rights | (rights & 7) << 3


def shared_hpa(module: TdxModule, vcpu: Vcpu, args: Args, gpa: int, access: int) -> int:
    """Return where shared memory that a TDCALL names is: walk the host's EPT as the processor would.

    Raises Interrupted: a TD exit for an entry that is malformed or forbids the access, #VE where bit 63 is clear.
    """
    qwords, level, rights, table = module.memory.qwords, vcpu.td.sept.levels, 7, vcpu.shared_eptp
    while True:
        level -= 1
        index = (table >> 3) + (gpa >> (12 + 9 * level) & 511)
        entry = qwords[index] if table and index < len(qwords) else 0
        rights &= entry
        leaf = not level or entry & LARGE_PAGE
        if _malformed(module, entry, level):
            raise Interrupted(_misconfigured(vcpu, args, gpa))
        if not entry & 7 or entry & access != access:
            raise Interrupted(_shared_violation(vcpu, args, gpa, _qualification(access, rights), entry, bool(leaf)))
        if leaf:
            break
        table = entry & sept.HPA_MASK
    offset = (1 << (12 + 9 * level)) - 1
    hpa = entry & sept.HPA_MASK & ~offset | gpa & offset
    if not module.host.is_shared(hpa & ~(PAGE_SIZE - 1), PAGE_SIZE):
        raise Interrupted(_misconfigured(vcpu, args, gpa))
    return hpa


def _malformed(module: TdxModule, entry: int, level: int) -> bool:
    """Return whether an entry of the host's EPT is an EPT misconfiguration."""
    if not entry & 7:
        return False
    if entry & READ_WRITE == WRITE:
        return True
    if level and not (entry & LARGE_PAGE and level <= 2):
        return bool(entry & 0xF8) or not module.host.is_shared(entry & sept.HPA_MASK, PAGE_SIZE)
    unaligned = entry & ((1 << (12 + 9 * level)) - PAGE_SIZE)
    return bool(unaligned) or entry >> 3 & 7 in RESERVED_MEMORY_TYPES


def _misconfigured(vcpu: Vcpu, args: Args, gpa: int) -> int:
    return asynchronous(vcpu, args, ExitReason.EPT_MISCONFIG, gpa=gpa)


def _shared_violation(vcpu: Vcpu, args: Args, gpa: int, qualification: int, entry: int, leaf: bool) -> int | None:
    if not entry & sept.SUPPRESS_VE and (leaf or not entry & 7):
        inject_ve(vcpu, ExitReason.EPT_VIOLATION, qualification=qualification, gpa=gpa)
        return None
    return _exit(vcpu, args, gpa, qualification)
