# SPDX-License-Identifier: GPL-2.0-or-later
"""VMCS fields as metadata: what a host reads and writes of a TD's VMCS by VMX encoding.

A production host has the posted-interrupt fields, the shared EPT pointer, a pin-based and two secondary controls and
the instruction timeout; the host of a debug TD also has the guest state and what the last exit said. Encodings: SDM
volume 3D, appendix B.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from swtdx.seam.hardware import Segment
from swtdx.seam.status import Status, StatusCode
from swtdx.seam.vcpu import (
    ENTRY_CONTROLS,
    EXIT_CONTROLS,
    PIN_PROCESS_POSTED_INTERRUPTS,
    PROC2_BUS_LOCK_DETECTION,
    PROC_CONTROLS,
    UNSET_DESCRIPTOR,
    UNSET_POSTED_VECTOR,
    Vcpu,
)
from swtdx.x86 import PAGE_OFFSET_MASK, PAGE_SIZE, Gpr, Msr

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule


class Encoding(IntEnum):
    """VMX encodings of the fields the module itself answers for."""

    POSTED_INTERRUPT_VECTOR = 0x0002
    MSR_BITMAP = 0x2004
    TSC_OFFSET = 0x2010
    POSTED_INTERRUPT_DESCRIPTOR = 0x2016
    EPTP = 0x201A
    TSC_MULTIPLIER = 0x2032
    SHARED_EPTP = 0x203C
    PIN_BASED_CONTROLS = 0x4000
    PRIMARY_CONTROLS = 0x4002
    EXCEPTION_BITMAP = 0x4004
    EXIT_CONTROLS = 0x400C
    ENTRY_CONTROLS = 0x4012
    SECONDARY_CONTROLS = 0x401E
    INSTRUCTION_TIMEOUT = 0x4024
    TD_HKID = 0x4026


_SEGMENTS = (
    Segment.ES, Segment.CS, Segment.SS, Segment.DS, Segment.FS, Segment.GS, Segment.LDTR, Segment.TR, Segment.GDTR,
    Segment.IDTR,
)  # fmt: skip
_SELECTORS, _LIMITS, _RIGHTS, _BASES = 0x800, 0x4800, 0x4814, 0x6806
_REGISTERS = {
    0x6800: "cr0", 0x6802: "cr3", 0x6804: "cr4", 0x681E: "rip", 0x6820: "rflags", 0x2806: "efer",
    0x6000: "cr0_guest_host_mask", 0x6002: "cr4_guest_host_mask", 0x6004: "cr0_read_shadow", 0x6006: "cr4_read_shadow",
    Encoding.EXCEPTION_BITMAP: "exception_bitmap", Encoding.TSC_OFFSET: "tsc_offset",
    Encoding.TSC_MULTIPLIER: "tsc_multiplier", 0x4824: "interruptibility",
}  # fmt: skip
_MSRS = {0x2804: Msr.PAT, 0x482A: Msr.SYSENTER_CS, 0x6824: Msr.SYSENTER_ESP, 0x6826: Msr.SYSENTER_EIP}
_SAVED_MSRS = {0x2802: Msr.DEBUGCTL, 0x2808: Msr.PERF_GLOBAL_CTRL}
_EXIT_INFORMATION = {
    0x2400: "guest_physical_address", 0x4402: "exit_reason", 0x4404: "interruption_info", 0x440C: "instruction_length",
    0x440E: "instruction_info", 0x6400: "exit_qualification", 0x640A: "guest_linear_address",
}  # fmt: skip
_RSP, _DR7 = 0x681C, 0x681A


def read(vcpu: Vcpu, code: int) -> int:
    """Return the VMCS field with encoding ``code``; zero for controls that are not used here."""
    fixed: dict[int, int] = {
        Encoding.POSTED_INTERRUPT_VECTOR: vcpu.posted_vector,
        Encoding.POSTED_INTERRUPT_DESCRIPTOR: vcpu.posted_descriptor,
        Encoding.MSR_BITMAP: vcpu.td.tdcx[2],
        Encoding.EPTP: vcpu.td.sept.eptp,
        Encoding.SHARED_EPTP: vcpu.shared_eptp,
        Encoding.PIN_BASED_CONTROLS: vcpu.pin_controls,
        Encoding.PRIMARY_CONTROLS: PROC_CONTROLS,
        Encoding.SECONDARY_CONTROLS: vcpu.proc2_controls,
        Encoding.EXIT_CONTROLS: EXIT_CONTROLS,
        Encoding.ENTRY_CONTROLS: ENTRY_CONTROLS,
        Encoding.INSTRUCTION_TIMEOUT: vcpu.instruction_timeout,
        Encoding.TD_HKID: vcpu.td.hkid,
    }
    if code in fixed:
        return fixed[code]
    context = vcpu.context
    name = _REGISTERS.get(code) or _EXIT_INFORMATION.get(code)
    if name is not None:
        value: int = getattr(context, name)
        return value
    if code in _MSRS:
        return context.rdmsr(_MSRS[code])
    if code in _SAVED_MSRS:
        return vcpu.msrs[_SAVED_MSRS[code]]
    if code == _RSP:
        rsp: int = context.gpr[Gpr.RSP]
        return rsp
    if code == _DR7:
        return context.get_dr(7)
    segment = _segment_part(code)
    return context.segment(segment[0])[segment[1]] if segment else 0


def write(module: TdxModule, vcpu: Vcpu, code: int, value: int) -> None:
    """Set the VMCS field with encoding ``code`` to its merged value; raises the field's own Status."""
    invalid = Status(StatusCode.METADATA_FIELD_VALUE_NOT_VALID)
    context = vcpu.context
    match code:
        case Encoding.POSTED_INTERRUPT_VECTOR:
            if value > 0xFF:
                raise invalid
            vcpu.posted_vector = value
        case Encoding.POSTED_INTERRUPT_DESCRIPTOR:
            if not module.host.is_shared(value, 64):
                raise invalid
            vcpu.posted_descriptor = value
            _post_interrupts(vcpu)
        case Encoding.SHARED_EPTP:
            if not module.host.is_shared(value, PAGE_SIZE):
                raise invalid
            vcpu.shared_eptp = value
            context.set_shared_ept(value | vcpu.td.sept.eptp & PAGE_OFFSET_MASK, vcpu.td.shared_bit)
        case Encoding.PIN_BASED_CONTROLS:
            unset = vcpu.posted_vector == UNSET_POSTED_VECTOR or vcpu.posted_descriptor == UNSET_DESCRIPTOR
            if value & PIN_PROCESS_POSTED_INTERRUPTS and unset:
                raise Status(StatusCode.TD_VMCS_FIELD_NOT_INITIALIZED)
            vcpu.pin_controls = value
            _post_interrupts(vcpu)
        case Encoding.SECONDARY_CONTROLS:
            vcpu.proc2_controls = value
            context.bus_lock_exiting = bool(value & PROC2_BUS_LOCK_DETECTION)
        case Encoding.INSTRUCTION_TIMEOUT:
            vcpu.instruction_timeout = value
        case _:
            _write_guest_state(vcpu, code, value)


def _post_interrupts(vcpu: Vcpu) -> None:
    posting = vcpu.pin_controls & PIN_PROCESS_POSTED_INTERRUPTS
    vcpu.context.posted_interrupt_descriptor = vcpu.posted_descriptor if posting else 0


def _write_guest_state(vcpu: Vcpu, code: int, value: int) -> None:
    context = vcpu.context
    segment = _segment_part(code)
    if code in _REGISTERS:
        setattr(context, _REGISTERS[code], value)
    elif code in _MSRS:
        context.wrmsr(_MSRS[code], value)
    elif code in _SAVED_MSRS:
        vcpu.msrs[_SAVED_MSRS[code]] = value
    elif code == _RSP:
        context.gpr[Gpr.RSP] = value
    elif code == _DR7:
        context.set_dr(7, value)
    elif segment:
        parts = list(context.segment(segment[0]))
        parts[segment[1]] = value
        context.set_segment(segment[0], *parts)
    else:
        raise Status(StatusCode.METADATA_FIELD_NOT_WRITABLE)


def _segment_part(code: int) -> tuple[Segment, int] | None:
    """Return (segment register, part of its tuple) for a selector, base, limit or access-rights field."""
    for first, count, part in ((_SELECTORS, 8, 0), (_BASES, 10, 1), (_LIMITS, 10, 2), (_RIGHTS, 8, 3)):
        if code & 1 == 0 and 0 <= code - first < 2 * count:
            return _SEGMENTS[(code - first) // 2], part
    return None


def interrupt_pending(vcpu: Vcpu) -> bool:
    """Return VCPU_STATE_DETAILS bit 0: a virtual interrupt would be delivered (RVI above the processor priority).

    RVI counts what the posted-interrupt descriptor holds only once the processor has synchronised it.
    """
    vapic = vcpu.context.vapic
    highest = 0
    for word in range(8):
        bits = int.from_bytes(vapic[0x200 + 16 * word : 0x204 + 16 * word], "little")
        if bits:
            highest = 32 * word + bits.bit_length() - 1
    return highest >> 4 > vapic[0xA0] >> 4
