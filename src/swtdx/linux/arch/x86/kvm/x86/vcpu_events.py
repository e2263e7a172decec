# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS: what waits for the next entry (arch/x86/kvm/x86.c).

The processor holds one event to deliver: an exception, an NMI or an interrupt whose delivery an exit cut short, or that
was put in here. User space that asks for several at once gets the exception, then the NMI, then the interrupt; until
the next KVM_RUN all read back as they were set, and so do numbers and error codes without an event. Of a TD KVM knows
the NMIs alone that it has not yet told the module; the rest reads 0, and setting it changes nothing.

Left out: SMM (there is none).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any

from swtdx.cpu.vmx import EventType
from swtdx.linux.arch.x86.kvm.vmx.vmx import BLOCKED_BY_NMI
from swtdx.linux.err import err
from swtdx.linux.uaccess import copy_to_user, struct_from_user
from swtdx.linux.virt.kvm.kvm_main import IrqchipMode
from swtdx.uapi.kvm import (
    KVM_VCPUEVENT_VALID_NMI_PENDING,
    KVM_VCPUEVENT_VALID_PAYLOAD,
    KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR,
    KVM_VCPUEVENT_VALID_SMM,
    KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
    Vector,
    kvm_vcpu_events,
)
from swtdx.x86 import Cr0

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

_KNOWN = (
    KVM_VCPUEVENT_VALID_NMI_PENDING
    | KVM_VCPUEVENT_VALID_SIPI_VECTOR
    | KVM_VCPUEVENT_VALID_SHADOW
    | KVM_VCPUEVENT_VALID_SMM
    | KVM_VCPUEVENT_VALID_PAYLOAD
    | KVM_VCPUEVENT_VALID_TRIPLE_FAULT
)
NMI_VECTOR = 2
_GIVEN = "given"
EXCEPTIONS = (EventType.HARDWARE_EXCEPTION, EventType.SOFTWARE_EXCEPTION)
_SHADOW = {0: 0, 1: 2, 2: 1, 3: 3}  # KVM_X86_SHADOW_INT_MOV_SS 1, _STI 2; in the VMCS STI is bit 0, MOV SS bit 1
_SHADOW_SET = {0: 0, 1: 2, 2: 1, 3: 2}  # vmx_set_interrupt_shadow: of both the one of MOV SS


def get_vcpu_events(vcpu: Vcpu, arg: int) -> int:
    """KVM_GET_VCPU_EVENTS. Raises OSError(EFAULT)."""
    copy_to_user(arg, x86_get_vcpu_events(vcpu))
    return 0


def x86_get_vcpu_events(vcpu: Vcpu) -> kvm_vcpu_events:
    """Return what waits to be delivered."""
    events = kvm_vcpu_events(
        flags=KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM
    )
    if vcpu.kvm.exception_payload_enabled:
        events.flags |= KVM_VCPUEVENT_VALID_PAYLOAD
    events.nmi.pending = vcpu.process_nmi()
    if vcpu.kvm.triple_fault_event:
        events.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT
        events.triple_fault.pending = vcpu.triple_fault_pending
    events.smi.latched_init = vcpu.apic is not None and vcpu.apic.pending_init
    if not vcpu.is_td:
        _get_from_processor(vcpu, events)
    return events


def _get_from_processor(vcpu: Vcpu, events: kvm_vcpu_events) -> None:
    vmx, context = vcpu.vmx, vcpu.vmx.context
    events.interrupt.shadow = _SHADOW[context.interruptibility & 3]
    events.nmi.masked = bool(context.interruptibility & BLOCKED_BY_NMI)
    information = context.idt_vectoring_info
    vector, kind = information & 0xFF, information >> 8 & 7
    if (given := vmx.as_given("events", _held(vcpu)))[0] == _GIVEN:
        _as_set(vcpu, events, kvm_vcpu_events.from_buffer_copy(given[1]))
    elif not information:
        if vcpu.pending_external_vector >= 0 and vcpu.kvm.irqchip_mode is IrqchipMode.NONE:
            events.interrupt.injected, events.interrupt.nr = 1, vcpu.pending_external_vector
    elif kind == EventType.NMI:
        events.nmi.injected = 1
    elif kind in EXCEPTIONS:
        events.exception.nr = vector
        if kind == EventType.HARDWARE_EXCEPTION:  # for a software exception its instruction is to be executed again
            events.exception.pending = not vmx.event_injected
            events.exception.injected = vmx.event_injected or not vcpu.kvm.exception_payload_enabled
        if information & 1 << 11:
            events.exception.has_error_code, events.exception.error_code = 1, context.idt_vectoring_error
    elif kind == EventType.EXTERNAL:
        events.interrupt.injected, events.interrupt.nr = 1, vector


def _held(vcpu: Vcpu) -> tuple[str, Any]:
    context = vcpu.vmx.context
    return "held", (context.idt_vectoring_info, context.idt_vectoring_error)


def _as_set(vcpu: Vcpu, events: kvm_vcpu_events, given: kvm_vcpu_events) -> None:
    """Report the events that user space has set, none of which has been delivered."""
    events.exception = given.exception
    for name in ("injected", "pending", "has_error_code"):
        setattr(events.exception, name, bool(getattr(given.exception, name)))
    if events.exception.nr in (Vector.BP, Vector.OF):
        events.exception.injected = events.exception.pending = 0
    elif not vcpu.kvm.exception_payload_enabled:
        events.exception.injected |= events.exception.pending
    events.exception_has_payload, events.exception_payload = bool(given.exception_has_payload), given.exception_payload
    events.interrupt.injected = bool(given.interrupt.injected and not given.interrupt.soft)
    events.interrupt.nr = given.interrupt.nr
    events.nmi.injected = bool(given.nmi.injected)


def set_vcpu_events(vcpu: Vcpu, arg: int) -> int:
    """KVM_SET_VCPU_EVENTS. Raises OSError: EFAULT, EINVAL."""
    x86_set_vcpu_events(vcpu, struct_from_user(kvm_vcpu_events, arg))
    return 0


def x86_set_vcpu_events(vcpu: Vcpu, events: kvm_vcpu_events) -> None:
    """Raises OSError(EINVAL)."""
    flags, exception = events.flags, events.exception
    if flags & ~_KNOWN:
        raise err(errno.EINVAL, f"flags {flags:#x}")
    if flags & KVM_VCPUEVENT_VALID_PAYLOAD:
        if not vcpu.kvm.exception_payload_enabled:
            raise err(errno.EINVAL, "KVM_CAP_EXCEPTION_PAYLOAD was not enabled")
        if exception.pending:
            exception.injected = 0
        else:
            events.exception_has_payload = 0
    else:
        exception.pending = events.exception_has_payload = 0
    if (exception.injected or exception.pending) and (exception.nr > 31 or exception.nr == NMI_VECTOR):
        raise err(errno.EINVAL, f"exception {exception.nr}")
    smi = events.smi
    if flags & KVM_VCPUEVENT_VALID_SMM and (smi.smm or smi.pending or smi.smm_inside_nmi):
        raise err(errno.EINVAL, "there is no SMM")
    if flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT and not vcpu.kvm.triple_fault_event:
        raise err(errno.EINVAL, "KVM_CAP_X86_TRIPLE_FAULT_EVENT was not enabled")
    if not vcpu.is_td:
        _set_in_processor(vcpu, events)
    if flags & KVM_VCPUEVENT_VALID_NMI_PENDING:
        vcpu.nmi_pending, vcpu.nmi_queued = 0, events.nmi.pending
    if flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT:
        vcpu.triple_fault_pending = bool(events.triple_fault.pending)
    if flags & KVM_VCPUEVENT_VALID_SMM and vcpu.apic is not None:
        vcpu.apic.pending_init = bool(smi.latched_init)
    if flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR and vcpu.apic is not None:
        vcpu.apic.sipi_vector = events.sipi_vector & 0xFF


def _set_in_processor(vcpu: Vcpu, events: kvm_vcpu_events) -> None:
    vmx, context = vcpu.vmx, vcpu.vmx.context
    exception = events.exception
    context.cancel_event()
    vmx.event_injected = bool(exception.injected or events.nmi.injected or events.interrupt.injected)
    vmx.exception_payload = events.exception_payload if events.exception_has_payload else None
    if exception.injected or exception.pending:
        error = exception.error_code if exception.has_error_code and context.cr0 & Cr0.PE else None
        if exception.nr in (Vector.BP, Vector.OF):  # as INT3 and INTO do it, which user space has put RIP behind
            context.inject(exception.nr, EventType.SOFTWARE_EXCEPTION, error)
        else:
            context.inject(exception.nr, EventType.HARDWARE_EXCEPTION, error)
    elif events.nmi.injected:
        context.inject(NMI_VECTOR, EventType.NMI)
    elif events.interrupt.injected:
        context.inject(events.interrupt.nr, EventType.EXTERNAL)
    blocked = context.interruptibility & ~BLOCKED_BY_NMI | (BLOCKED_BY_NMI if events.nmi.masked else 0)
    if events.flags & KVM_VCPUEVENT_VALID_SHADOW:
        blocked = blocked & ~3 | _SHADOW_SET[events.interrupt.shadow & 3]
    context.interruptibility = blocked
    vmx.keep_given("events", (_GIVEN, bytes(events)), _held(vcpu))
    vmx.entry_unchecked = True
