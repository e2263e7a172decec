# SPDX-License-Identifier: GPL-2.0-or-later
"""What a VM entry refuses of the state that user space has set (SDM volume 3, chapter 27 "VM Entries").

KVM checks little of what KVM_SET_SREGS, KVM_SET_REGS and KVM_SET_VCPU_EVENTS bring: the processor does, at the entry,
and KVM_RUN ends with KVM_EXIT_FAIL_ENTRY. The guest is an unrestricted one, so the checks that real mode and differing
privilege levels would fail are the few that are left then. What a guest does to itself never leads to such a state, so
only an entry after one of those calls is checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.cpu.vmx import EventType, ExitReason, Segment
from swtdx.linux.arch.x86.kvm.x86.control_registers import EFER_VALID
from swtdx.x86 import Cr0, Cr4, Efer, Rflags

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

ENTRY_FAILURE_GUEST_STATE = 1 << 31 | int(ExitReason.ENTRY_FAILURE)
INVALID_CONTROL_FIELDS = 7
"""VM-instruction error: VM entry with invalid control fields."""
BLOCKED_BY_STI, BLOCKED_BY_MOV_SS = 1, 1 << 1
UNUSABLE, PRESENT, CODE_OR_DATA, RESERVED_RIGHTS = 1 << 16, 1 << 7, 1 << 4, 0xFFFE_0F00
LONG, DEFAULT_BIG, GRANULARITY = 1 << 13, 1 << 14, 1 << 15
RFLAGS_FIXED_1 = 1 << 1
RFLAGS_RESERVED = ~((1 << 22) - 1) & (1 << 64) - 1 | 1 << 15 | 1 << 5 | 1 << 3
_WITH_ERROR_CODE = frozenset((8, 10, 11, 12, 13, 14, 17))
_VIRTUAL_8086_RIGHTS = 0xF3
_LAM = 0b11 << 61
_DATA = (Segment.DS, Segment.ES, Segment.FS, Segment.GS)

SegmentValue = tuple[int, int, int, int]
"""Selector, base, limit, access rights in VMX format."""


def entry_refused(vcpu: Vcpu) -> int:
    """Return 0, or what KVM_EXIT_FAIL_ENTRY reports: a VM-instruction error, or the exit reason of a failed entry."""
    if _event_refused(vcpu):
        return INVALID_CONTROL_FIELDS
    return ENTRY_FAILURE_GUEST_STATE if guest_state_refused(vcpu) else 0


def _event_refused(vcpu: Vcpu) -> bool:
    """27.2.1.3: an error code goes with the exceptions that have one, in protected mode, and has 16 bits."""
    context = vcpu.vmx.context
    information = context.idt_vectoring_info
    if not information or information >> 8 & 7 != EventType.HARDWARE_EXCEPTION:
        return False
    has_error = bool(information & 1 << 11)
    wanted = information & 0xFF in _WITH_ERROR_CODE and bool(context.cr0 & Cr0.PE)
    return has_error != wanted or (has_error and bool(context.idt_vectoring_error >> 16))


def guest_state_refused(vcpu: Vcpu) -> bool:
    """27.3.1: control registers, segment registers, RIP and RFLAGS, and what blocks interrupts."""
    vmx = vcpu.vmx
    context = vmx.context
    long_mode = bool(context.efer & Efer.LMA)
    rflags = vmx.as_given("rflags", context.rflags)
    if vmx.as_given("efer", context.efer) & ~EFER_VALID:
        return True
    virtual_8086 = bool(rflags & Rflags.VM)
    if virtual_8086 and (long_mode or not context.cr0 & Cr0.PE):
        return True
    segments = {number: vmx.segment(number) for number in range(8)}
    return (
        _cr_refused(vcpu, long_mode)
        or _segments_refused(segments, long_mode, bool(context.cr0 & Cr0.PE), virtual_8086)
        or _tables_refused(vcpu)
        or _rip_refused(context.rip, long_mode and bool(segments[Segment.CS][3] & LONG))
        or bool(rflags & RFLAGS_RESERVED)
        or _blocking_refused(vcpu, bool(rflags & Rflags.IF))
    )


def _cr_refused(vcpu: Vcpu, long_mode: bool) -> bool:
    context = vcpu.vmx.context
    width = vcpu.kvm.processor.cpuid(0x80000008)[0] & 0xFF
    return bool((context.cr3 & ~_LAM) >> width) or (not long_mode and bool(context.cr4 & Cr4.PCIDE))


def canonical(address: int) -> bool:
    """Whether a processor with 57 bits of linear address takes the address for canonical."""
    return address >> 56 in (0, 0xFF)


def _tables_refused(vcpu: Vcpu) -> bool:
    return any(not canonical(vcpu.vmx.context.segment(number)[1]) for number in (Segment.GDTR, Segment.IDTR))


def _rip_refused(rip: int, sixty_four: bool) -> bool:
    return rip >> 57 not in (0, 0x7F) if sixty_four else bool(rip >> 32)  # one past the last address is let in


def _blocking_refused(vcpu: Vcpu, interrupts: bool) -> bool:
    """27.3.1.5, and of 27.3.1.4 that an interrupt is injected only with RFLAGS.IF."""
    context = vcpu.vmx.context
    blocked, information = context.interruptibility, context.idt_vectoring_info
    if blocked & BLOCKED_BY_STI and (blocked & BLOCKED_BY_MOV_SS or not interrupts):
        return True
    if not information:
        return False
    kind = information >> 8 & 7
    if kind == EventType.EXTERNAL:
        return not interrupts or bool(blocked & (BLOCKED_BY_STI | BLOCKED_BY_MOV_SS))
    return kind == EventType.NMI and bool(blocked & BLOCKED_BY_MOV_SS)


# --- 27.3.1.2: segment registers --------------------------------------------------------------------------------------


def _segments_refused(segments: dict[int, SegmentValue], long_mode: bool, protected: bool, virtual_8086: bool) -> bool:
    if _task_register_refused(segments[Segment.TR], long_mode) or _ldtr_refused(segments[Segment.LDTR]):
        return True
    usual = (Segment.CS, Segment.SS, *_DATA)
    if virtual_8086:
        return any(_virtual_8086_refused(segments[number]) for number in usual)
    stack_level = segments[Segment.SS][3] >> 5 & 3
    return (
        _code_refused(segments[Segment.CS], long_mode, stack_level)
        or _stack_refused(segments[Segment.SS], segments[Segment.CS][3] & 0xF, protected)
        or any(_data_refused(segments[number], number) for number in _DATA)
    )


def _virtual_8086_refused(segment: SegmentValue) -> bool:
    selector, base, limit, rights = segment
    return base != selector << 4 or limit != 0xFFFF or rights != _VIRTUAL_8086_RIGHTS


def _limit_refused(limit: int, rights: int) -> bool:
    """The granularity bit must say what the limit looks like; and bits without a meaning are 0."""
    in_pages = bool(rights & GRANULARITY)
    return (
        (limit & 0xFFF != 0xFFF and in_pages) or (bool(limit >> 20) and not in_pages) or bool(rights & RESERVED_RIGHTS)
    )


def _code_refused(segment: SegmentValue, long_mode: bool, stack_level: int) -> bool:
    _, base, limit, rights = segment
    kind, level = rights & 0xF, rights >> 5 & 3
    if kind == 3:
        level_refused = level != 0
    elif kind in (9, 11):
        level_refused = level != stack_level
    elif kind in (13, 15):
        level_refused = level > stack_level
    else:
        return True
    return (
        level_refused
        or bool(base >> 32)
        or bool(rights & UNUSABLE)
        or not rights & CODE_OR_DATA
        or not rights & PRESENT
        or bool(long_mode and rights & LONG and rights & DEFAULT_BIG)
        or _limit_refused(limit, rights)
    )


def _stack_refused(segment: SegmentValue, code_kind: int, protected: bool) -> bool:
    _, base, limit, rights = segment
    if (code_kind == 3 or not protected) and rights >> 5 & 3:
        return True
    if rights & UNUSABLE:
        return False
    return (
        rights & 0xF not in (3, 7)
        or not rights & CODE_OR_DATA
        or not rights & PRESENT
        or bool(base >> 32)
        or _limit_refused(limit, rights)
    )


def _data_refused(segment: SegmentValue, number: int) -> bool:
    _, base, limit, rights = segment
    if number in (Segment.FS, Segment.GS):
        if not canonical(base):
            return True
    elif base >> 32 and not rights & UNUSABLE:
        return True
    if rights & UNUSABLE:
        return False
    return (
        not rights & 1
        or rights & 0b1010 == 0b1000  # code that cannot be read
        or not rights & CODE_OR_DATA
        or not rights & PRESENT
        or _limit_refused(limit, rights)
    )


def _task_register_refused(segment: SegmentValue, long_mode: bool) -> bool:
    selector, base, limit, rights = segment
    kinds = (11,) if long_mode else (3, 11)  # a busy TSS of 64, or of 16 and 32 bits
    return (
        bool(selector & 4)
        or not canonical(base)
        or rights & 0xF not in kinds
        or bool(rights & (CODE_OR_DATA | UNUSABLE))
        or not rights & PRESENT
        or _limit_refused(limit, rights)
    )


def _ldtr_refused(segment: SegmentValue) -> bool:
    selector, base, limit, rights = segment
    if rights & UNUSABLE:
        return False
    return (
        bool(selector & 4)
        or not canonical(base)
        or rights & 0xF != 2
        or bool(rights & CODE_OR_DATA)
        or not rights & PRESENT
        or _limit_refused(limit, rights)
    )
