# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of a normal VM's vCPU, in the layouts of the KVM_GET/SET ioctls (arch/x86/kvm/x86.c).

Functions take and give the bytes of the structures in `uapi.asm_kvm`; a refused value is OSError(EINVAL).
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import EventType, Segment
from swtdx.linux.arch.x86.kvm.mmu.paging_tmpl import walk
from swtdx.linux.arch.x86.kvm.x86.control_registers import CR0_DEFINED, EFER_LMA, kvm_is_valid_sregs, xcr0_valid
from swtdx.linux.arch.x86.kvm.x86.guest_debug import RFLAGS_TF, guest_get_dr, guest_set_dr, linear_rip
from swtdx.linux.arch.x86.kvm.x86.vcpu_events import x86_get_vcpu_events, x86_set_vcpu_events
from swtdx.linux.err import err
from swtdx.linux.virt.kvm import run_struct
from swtdx.uapi.kvm import (
    KVM_GUESTDBG_SINGLESTEP,
    KVM_SYNC_X86_EVENTS,
    KVM_SYNC_X86_REGS,
    KVM_SYNC_X86_SREGS,
    KVM_SYNC_X86_VALID_FIELDS,
    kvm_debugregs,
    kvm_dtable,
    kvm_fpu,
    kvm_segment,
    kvm_sregs,
    kvm_sync_regs,
    kvm_vcpu_events,
    kvm_xcrs,
)
from swtdx.x86 import XFeature

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

_REGS = struct.Struct("<18Q")
_SEGMENTS = (
    ("cs", Segment.CS), ("ds", Segment.DS), ("es", Segment.ES), ("fs", Segment.FS), ("gs", Segment.GS),
    ("ss", Segment.SS), ("tr", Segment.TR), ("ldt", Segment.LDTR),
)  # fmt: skip
_TABLES = (("gdt", Segment.GDTR), ("idt", Segment.IDTR))
_SYNC_REGS, _SYNC_SREGS, _SYNC_EVENTS = (
    slice(run_struct.SYNC_REGS + member.offset, run_struct.SYNC_REGS + member.offset + member.size)
    for member in (kvm_sync_regs.regs, kvm_sync_regs.sregs, kvm_sync_regs.events)
)
_XSAVE_LEGACY = 512
_INITIAL_FCW, _INITIAL_MXCSR = 0x37F, 0x1F80
TSS_AVAILABLE, TSS_BUSY = 0x89, 1 << 1


def vmx_get_regs(vcpu: Vcpu) -> bytes:
    """struct kvm_regs."""
    context = vcpu.vmx.context
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, *rest = context.gpr.tolist()
    rflags = context.rflags
    if vcpu.vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP:
        rflags &= ~RFLAGS_TF  # the debugger's
    return _REGS.pack(rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, *rest, context.rip, rflags)


def vmx_set_regs(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_regs."""
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, *rest = _REGS.unpack(data)
    context = vcpu.vmx.context
    for number, value in enumerate((rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, *rest[:8])):
        context.gpr[number] = value
    context.rip = rest[8]
    context.rflags = rest[9] & 0x3FFFFF | 2
    if vcpu.vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP and linear_rip(context) == vcpu.vmx.singlestep_rip:
        context.rflags |= RFLAGS_TF
    context.cancel_event()  # user space starts afresh: what was being delivered is dropped


def _segment_to_user(context: GuestContext, number: int) -> kvm_segment:
    selector, base, limit, rights = context.segment(number)
    if number == Segment.TR:
        rights |= TSS_BUSY
    unusable = bool(rights & 1 << 16) or not rights & 0x80
    return kvm_segment(
        base=base,
        limit=limit,
        selector=selector,
        type=rights & 0xF,
        s=rights >> 4 & 1,
        dpl=rights >> 5 & 3,
        present=rights >> 7 & 1 if not unusable else 0,
        avl=rights >> 12 & 1,
        l=rights >> 13 & 1,
        db=rights >> 14 & 1,
        g=rights >> 15 & 1,
        unusable=unusable,
    )


def task_register_refused(tr: kvm_segment, efer: int) -> bool:
    """Return whether VM entry refuses such a task register (SDM vol. 3, "Checks on Guest Segment Registers")."""
    types = (11,) if efer & EFER_LMA else (3, 11)  # busy TSS of 64, or of 16 and 32 bits
    return bool(tr.unusable or not tr.present or tr.s or tr.type not in types)


def _segment_from_user(context: GuestContext, number: int, segment: kvm_segment) -> None:
    if number == Segment.TR and (segment.unusable or not segment.present or segment.type & ~2 not in (1, 9)):
        rights = TSS_AVAILABLE  # the entry fails before anything makes use of it
    elif segment.unusable or not segment.present:
        rights = 1 << 16
    else:
        rights = (
            segment.type & 0xF
            | (segment.s & 1) << 4
            | (segment.dpl & 3) << 5
            | 1 << 7
            | (segment.avl & 1) << 12
            | (segment.l & 1) << 13
            | (segment.db & 1) << 14
            | (segment.g & 1) << 15
        )
        if number == Segment.TR:
            rights &= ~TSS_BUSY  # the emulated processor takes a stack from none that is marked busy
    context.set_segment(number, segment.selector, segment.base, segment.limit, rights)


def vmx_get_sregs(vcpu: Vcpu) -> bytes:
    """struct kvm_sregs."""
    context = vcpu.vmx.context
    sregs = kvm_sregs(
        cr0=context.cr0,
        cr2=context.cr2,
        cr3=context.cr3,
        cr4=context.cr4,
        cr8=context.vapic[0x80] >> 4 if vcpu.apic is not None else context.cr8,
        efer=context.efer,
        apic_base=vcpu.apic_base,
    )
    for name, number in _SEGMENTS:
        setattr(sregs, name, _segment_to_user(context, number))
    for name, number in _TABLES:
        _, base, limit, _ = context.segment(number)
        setattr(sregs, name, kvm_dtable(base=base, limit=limit))
    vector = vcpu.pending_external_vector
    information = context.idt_vectoring_info
    if information >> 31 and information >> 8 & 7 == EventType.EXTERNAL:
        vector = information & 0xFF
    if vector >= 0:
        sregs.interrupt_bitmap[vector >> 6] = 1 << (vector & 63)
    return bytes(sregs)


def vmx_set_sregs(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_sregs. Raises OSError(EINVAL)."""
    sregs = kvm_sregs.from_buffer_copy(data)
    kvm_is_valid_sregs(vcpu, sregs)
    if vcpu.apic_base != sregs.apic_base:
        vcpu.set_apic_base(sregs.apic_base)
    context = vcpu.vmx.context
    for name, number in _TABLES:
        table = getattr(sregs, name)
        context.set_segment(number, 0, table.base, table.limit, 0)
    context.cr2 = sregs.cr2
    if vcpu.apic is not None:
        context.vapic[0x80] = sregs.cr8 << 4 & 0xF0
    else:
        context.cr8 = sregs.cr8
    # LMA follows from LME and PG: EFER before CR0, both before the segments, which are read in their light
    context.cr4 = sregs.cr4
    context.cr3 = sregs.cr3
    context.efer = sregs.efer & ~(1 << 10)
    context.cr0 = sregs.cr0 & CR0_DEFINED
    context.efer = sregs.efer
    for name, number in _SEGMENTS:
        _segment_from_user(context, number, getattr(sregs, name))
    vcpu.vmx.entry_fails = task_register_refused(sregs.tr, sregs.efer)
    pending = [word * 64 + bits.bit_length() - 1 for word, bits in enumerate(sregs.interrupt_bitmap) if bits]
    if pending and vcpu.apic is None:
        vcpu.pending_external_vector = pending[-1]


def vmx_get_fpu(vcpu: Vcpu) -> bytes:
    """struct kvm_fpu from the FXSAVE image."""
    image = vcpu.vmx.context.get_fpu()
    fpu = kvm_fpu()
    fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp = struct.unpack_from("<HHBxHQQ", image)
    fpu.fpr = type(fpu.fpr).from_buffer_copy(image, 32)
    fpu.xmm = type(fpu.xmm).from_buffer_copy(image, 160)
    fpu.mxcsr = struct.unpack_from("<I", image, 24)[0]
    return bytes(fpu)


def vmx_set_fpu(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_fpu; MXCSR is kept, as KVM does."""
    fpu = kvm_fpu.from_buffer_copy(data)
    image = bytearray(vcpu.vmx.context.get_fpu())
    struct.pack_into(
        "<HHBxHQQ", image, 0, fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp
    )  # fmt: skip
    image[32:160] = bytes(fpu.fpr)
    image[160:416] = bytes(fpu.xmm)
    vcpu.vmx.context.set_fpu(bytes(image))


def vmx_get_xsave(vcpu: Vcpu) -> bytes:
    """struct kvm_xsave in the standard form: of what XCR0 may have, components in their initial state are left out."""
    image = bytearray(4096)
    context, supported = vcpu.vmx.context, vcpu.kvm.kernel.supported_xcr0
    image[:_XSAVE_LEGACY] = context.get_fpu()
    components = int(XFeature.X87 | XFeature.SSE)
    if supported & XFeature.AVX and any(high := context.get_ymm_high()):
        components |= XFeature.AVX
        image[_ymm_area(vcpu)] = high
    if supported & XFeature.PKRU and context.pkru:
        components |= XFeature.PKRU
        struct.pack_into("<Q", image, _pkru_offset(vcpu), context.pkru)
    struct.pack_into("<Q", image, 512, components)  # XSTATE_BV
    return bytes(image)


def _ymm_area(vcpu: Vcpu) -> slice:
    size, offset, _, _ = vcpu.kvm.processor.cpuid(0xD, 2)
    return slice(offset, offset + size)


def _pkru_offset(vcpu: Vcpu) -> int:
    return vcpu.kvm.processor.cpuid(0xD, 9)[1]


def vmx_set_xsave(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_xsave. Components that XSTATE_BV leaves out get their initial state.

    Raises OSError(EINVAL) for components that the processor lacks, and for the compacted form.
    """
    components, compacted = struct.unpack_from("<QQ", data, 512)
    if components & ~vcpu.kvm.kernel.supported_xcr0 or compacted:
        raise err(errno.EINVAL, f"XSTATE_BV {components:#x}, XCOMP_BV {compacted:#x}")
    context, supported = vcpu.vmx.context, vcpu.kvm.kernel.supported_xcr0
    context.set_fpu(_legacy_region(data, components))
    if supported & XFeature.AVX:
        area = _ymm_area(vcpu)
        context.set_ymm_high(data[area] if components & XFeature.AVX else bytes(area.stop - area.start))
    if supported & XFeature.PKRU:
        at = _pkru_offset(vcpu)
        context.pkru = struct.unpack_from("<I", data, at)[0] if components & XFeature.PKRU else 0


def _legacy_region(data: bytes, components: int) -> bytes:
    """The FXSAVE image of an XSAVE area; what ``components`` lacks is in its initial state. Raises OSError(EINVAL)."""
    image = bytearray(data[:_XSAVE_LEGACY])
    if not components & XFeature.X87:
        image[:24], image[32:160] = struct.pack("<H22x", _INITIAL_FCW), bytes(128)
    if not components & XFeature.SSE:
        image[160:416] = bytes(256)
    if not components & (XFeature.SSE | XFeature.AVX):
        struct.pack_into("<I", image, 24, _INITIAL_MXCSR)
    mxcsr = struct.unpack_from("<I", image, 24)[0]
    if mxcsr >> 16:
        raise err(errno.EINVAL, f"MXCSR {mxcsr:#x} has reserved bits")
    return bytes(image)


def vmx_get_xcrs(vcpu: Vcpu) -> bytes:
    """struct kvm_xcrs: XCR0."""
    xcrs = kvm_xcrs(nr_xcrs=1)
    xcrs.xcrs[0].value = vcpu.vmx.context.xcr0
    return bytes(xcrs)


def vmx_set_xcrs(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_xcrs. Raises OSError(EINVAL)."""
    xcrs = kvm_xcrs.from_buffer_copy(data)
    if xcrs.nr_xcrs > len(xcrs.xcrs) or xcrs.flags:
        raise err(errno.EINVAL, f"{xcrs.nr_xcrs} registers, flags {xcrs.flags:#x}")
    for xcr in xcrs.xcrs[: xcrs.nr_xcrs]:
        if xcr.xcr == 0:
            if not xcr0_valid(vcpu, xcr.value):
                raise err(errno.EINVAL, f"xcr0 {xcr.value:#x}")
            vcpu.vmx.context.xcr0 = xcr.value


def vmx_get_debugregs(vcpu: Vcpu) -> bytes:
    """struct kvm_debugregs."""
    registers = kvm_debugregs(dr6=guest_get_dr(vcpu, 6), dr7=guest_get_dr(vcpu, 7))
    for number in range(4):
        registers.db[number] = guest_get_dr(vcpu, number)
    return bytes(registers)


def vmx_set_debugregs(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_debugregs. Raises OSError(EINVAL)."""
    registers = kvm_debugregs.from_buffer_copy(data)
    if registers.flags or registers.dr6 >> 32 or registers.dr7 >> 32:
        raise err(errno.EINVAL, "flags or the upper halves of DR6 and DR7 are not 0")
    for number in range(4):
        guest_set_dr(vcpu, number, registers.db[number])
    guest_set_dr(vcpu, 6, registers.dr6)
    guest_set_dr(vcpu, 7, registers.dr7)


def vmx_get_lapic(vcpu: Vcpu) -> bytes:
    """struct kvm_lapic_state. Raises OSError(EINVAL) without an APIC in the kernel."""
    if vcpu.apic is None:
        raise err(errno.EINVAL, "the local APIC is in user space")
    vcpu.apic.request(vcpu.vmx.pi_desc.take())
    return vcpu.apic.get_state()


def vmx_set_lapic(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_lapic_state. Raises OSError(EINVAL)."""
    if vcpu.apic is None:
        raise err(errno.EINVAL, "the local APIC is in user space")
    vcpu.vmx.pi_desc.take()  # vmx_apicv_pre_state_restore: user space says what is requested
    vcpu.apic.set_state(data)


def vmx_translate(vcpu: Vcpu, address: int) -> int | None:
    """Return the GPA of a linear address, or None."""
    return walk(vcpu.kvm, vcpu.vmx.context, address)


# --- kvm_run.s.regs ---------------------------------------------------------------------------------------------------


def vmx_sync_regs_load(vcpu: Vcpu, valid: int, dirty: int) -> None:
    """Take the registers that user space marked dirty. Raises OSError(EINVAL)."""
    if (valid | dirty) & ~KVM_SYNC_X86_VALID_FIELDS:
        raise err(errno.EINVAL, f"kvm_valid_regs {valid:#x}, kvm_dirty_regs {dirty:#x}")
    if dirty & KVM_SYNC_X86_REGS:
        vmx_set_regs(vcpu, bytes(vcpu.run[_SYNC_REGS]))
    if dirty & KVM_SYNC_X86_SREGS:
        vmx_set_sregs(vcpu, bytes(vcpu.run[_SYNC_SREGS]))
    if dirty & KVM_SYNC_X86_EVENTS:
        x86_set_vcpu_events(vcpu, kvm_vcpu_events.from_buffer_copy(vcpu.run[_SYNC_EVENTS]))
    run_struct.U64.pack_into(vcpu.run, run_struct.VALID_REGS + 8, 0)


def vmx_sync_regs_store(vcpu: Vcpu, valid: int) -> None:
    """Give user space the registers it asked for."""
    if valid & KVM_SYNC_X86_REGS:
        vcpu.run[_SYNC_REGS] = vmx_get_regs(vcpu)
    if valid & KVM_SYNC_X86_SREGS:
        vcpu.run[_SYNC_SREGS] = vmx_get_sregs(vcpu)
    if valid & KVM_SYNC_X86_EVENTS:
        vcpu.run[_SYNC_EVENTS] = bytes(x86_get_vcpu_events(vcpu))
