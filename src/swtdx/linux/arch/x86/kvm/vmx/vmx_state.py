# SPDX-License-Identifier: GPL-2.0-or-later
"""Registers of a normal VM's vCPU, in the layouts of the KVM_GET/SET ioctls (arch/x86/kvm/x86.c).

Functions take and give the bytes of the structures in `uapi.asm_kvm`; a refused value is OSError(EINVAL).
"""

from __future__ import annotations

import errno
import struct
import zlib
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import EventType, Segment
from swtdx.linux.arch.x86.kvm.mmu.paging_tmpl import walk
from swtdx.linux.arch.x86.kvm.x86.control_registers import (
    CR0_DEFINED,
    EFER_LMA,
    EFER_VALID,
    guest_supported_xcr0,
    kvm_is_valid_sregs,
    xcr0_valid,
)
from swtdx.linux.arch.x86.kvm.x86.guest_debug import RFLAGS_TF, guest_get_dr, guest_set_dr, linear_rip
from swtdx.linux.arch.x86.kvm.x86.vcpu_events import EXCEPTIONS, x86_get_vcpu_events, x86_set_vcpu_events
from swtdx.linux.err import err
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.kvm_main import IrqchipMode
from swtdx.uapi.kvm import (
    KVM_GUESTDBG_SINGLESTEP,
    KVM_MP_STATE_RUNNABLE,
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
from swtdx.x86 import Cr0, XFeature

if TYPE_CHECKING:
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
_XSAVE_LEGACY, _XSAVE_RESERVED = 512, slice(528, 576)
_INITIAL_FCW, _INITIAL_MXCSR = 0x37F, 0x1F80
UNUSABLE = 1 << 16
TSS_AVAILABLE, TSS_BUSY = 0x89, 1 << 1  # the emulated processor takes a stack from no task that is marked busy
_TASK_REGISTERS, _TSS_FREE = (0x81, 0x89), 0xF060  # present, of 16 or 32 and 64 bits; what may be anything


def vmx_get_regs(vcpu: Vcpu) -> bytes:
    """struct kvm_regs."""
    context = vcpu.vmx.context
    rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, *rest = context.gpr.tolist()
    rflags = vcpu.vmx.as_given("rflags", context.rflags)
    if vcpu.vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP:
        rflags &= ~RFLAGS_TF  # the debugger's
    return _REGS.pack(rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, *rest, context.rip, rflags)


def vmx_set_regs(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_regs."""
    rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, *rest = _REGS.unpack(data)
    vmx = vcpu.vmx
    context = vmx.context
    for number, value in enumerate((rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, *rest[:8])):
        context.gpr[number] = value
    context.rip = rest[8]
    rflags = rest[9] | 2
    if vmx.guest_debug & KVM_GUESTDBG_SINGLESTEP and linear_rip(context) == vmx.singlestep_rip:
        rflags |= RFLAGS_TF
    context.rflags = rflags & 0x3FFFFF
    vmx.keep_given("rflags", rflags, context.rflags)
    if context.idt_vectoring_info >> 8 & 7 in EXCEPTIONS and not vmx.event_injected:
        context.cancel_event()  # it was of the instruction at the old RIP; what was being delivered stays
        vmx.exception_payload = None
    vmx.entry_unchecked = True


def _segment_to_user(vcpu: Vcpu, number: int) -> kvm_segment:
    """vmx_get_segment: one that is not usable keeps its other attributes and is not present."""
    selector, base, limit, rights = vcpu.vmx.segment(number)
    return kvm_segment(
        base=base,
        limit=limit,
        selector=selector,
        type=rights & 0xF,
        s=rights >> 4 & 1,
        dpl=rights >> 5 & 3,
        present=not rights & UNUSABLE,
        avl=rights >> 12 & 1,
        l=rights >> 13 & 1,
        db=rights >> 14 & 1,
        g=rights >> 15 & 1,
        unusable=bool(rights & UNUSABLE),
    )


def _segment_from_user(vcpu: Vcpu, number: int, segment: kvm_segment) -> None:
    """vmx_set_segment of an unrestricted guest: all but LDTR are marked as accessed."""
    rights = (
        segment.type & 0xF
        | (segment.s & 1) << 4
        | (segment.dpl & 3) << 5
        | (segment.present & 1) << 7
        | (segment.avl & 1) << 12
        | (segment.l & 1) << 13
        | (segment.db & 1) << 14
        | (segment.g & 1) << 15
    )
    if segment.unusable or not segment.present:
        rights |= UNUSABLE
    if number != Segment.LDTR:
        rights |= 1
    context, held = vcpu.vmx.context, rights & ~TSS_BUSY if number == Segment.TR else rights
    if number == Segment.TR and held & ~_TSS_FREE not in _TASK_REGISTERS:
        held = TSS_AVAILABLE  # the entry fails before anything makes use of it
    context.set_segment(number, segment.selector, segment.base, segment.limit, held)
    given = segment.selector, segment.base, segment.limit, rights
    vcpu.vmx.keep_given(f"segment {number}", given, context.segment(number))


def vmx_get_sregs(vcpu: Vcpu) -> bytes:
    """struct kvm_sregs."""
    context = vcpu.vmx.context
    sregs = kvm_sregs(
        cr0=vcpu.vmx.as_given("cr0", context.cr0),
        cr2=context.cr2,
        cr3=context.cr3,
        cr4=context.cr4,
        cr8=context.vapic[0x80] >> 4 if vcpu.apic is not None else context.cr8,
        efer=vcpu.vmx.as_given("efer", context.efer),
        apic_base=vcpu.apic_base,
    )
    for name, number in _SEGMENTS:
        setattr(sregs, name, _segment_to_user(vcpu, number))
    for name, number in _TABLES:
        _, base, limit, _ = context.segment(number)
        setattr(sregs, name, kvm_dtable(base=base, limit=limit))
    vector = vcpu.pending_external_vector if vcpu.kvm.irqchip_mode is IrqchipMode.NONE else -1
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
    if sregs.cr8 <= 15:  # kvm_set_cr8, of whose refusal KVM_SET_SREGS does not tell
        if vcpu.apic is not None:
            vcpu.apic.set_tpr(sregs.cr8 << 4)
        else:
            context.cr8 = sregs.cr8
    # LMA follows from LME and PG: EFER before CR0, both before the segments, which are read in their light
    context.cr4 = sregs.cr4
    context.cr3 = sregs.cr3
    context.efer = sregs.efer & EFER_VALID & ~EFER_LMA
    context.cr0 = sregs.cr0 & CR0_DEFINED
    context.efer = sregs.efer & EFER_VALID
    vmx = vcpu.vmx
    vmx.keep_given("cr0", sregs.cr0, context.cr0)
    vmx.keep_given("efer", sregs.efer, context.efer)
    for name, number in _SEGMENTS:
        _segment_from_user(vcpu, number, getattr(sregs, name))
    vmx.entry_unchecked = True
    _unhalt_after_reset(vcpu, sregs)
    pending = [word * 64 + (bits & -bits).bit_length() - 1 for word, bits in enumerate(sregs.interrupt_bitmap) if bits]
    if pending:  # of several the first: kvm_queue_interrupt
        context.inject(pending[0], EventType.EXTERNAL)
        vmx.event_injected = True


def _unhalt_after_reset(vcpu: Vcpu, sregs: kvm_sregs) -> None:
    """An older user space that resets the boot processor does not set its mp_state."""
    at_reset = sregs.cs.selector == 0xF000 and sregs.cs.base == 0xFFFF0000 and not sregs.cr0 & Cr0.PE
    if vcpu.is_bsp and at_reset and vcpu.vmx.context.rip == 0xFFF0:
        vcpu.kvm_set_mp_state(KVM_MP_STATE_RUNNABLE)


def vmx_get_fpu(vcpu: Vcpu) -> bytes:
    """struct kvm_fpu from the FXSAVE image. MXCSR reads 0: KVM leaves it out."""
    image = vcpu.vmx.context.get_fpu()
    given = vcpu.vmx.as_given("fpu", zlib.crc32(image))
    if isinstance(given, bytes):
        return given
    fpu = kvm_fpu()
    fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp = struct.unpack_from("<HHBxHQQ", image)
    fpu.fpr = type(fpu.fpr).from_buffer_copy(image, 32)
    fpu.xmm = type(fpu.xmm).from_buffer_copy(image, 160)
    return bytes(fpu)


def vmx_set_fpu(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_fpu; MXCSR is kept, as KVM does.

    KVM writes the legacy area of the guest's XSAVE image and leaves XSTATE_BV as it is. So what that marks as being in
    its initial state, all of a vCPU that has not run, stays so for the guest: only KVM_GET_FPU shows what was set.
    """
    fpu = kvm_fpu.from_buffer_copy(data)
    vmx = vcpu.vmx
    image, in_use = bytearray(vmx.context.get_fpu()), struct.unpack_from("<Q", vmx_get_xsave(vcpu), 512)[0]
    if in_use & XFeature.X87:
        struct.pack_into(
            "<HHBxHQQ", image, 0, fpu.fcw, fpu.fsw, fpu.ftwx, fpu.last_opcode, fpu.last_ip, fpu.last_dp
        )  # fmt: skip
        image[32:160] = bytes(fpu.fpr)
    if in_use & XFeature.SSE:
        image[160:416] = bytes(fpu.xmm)
    vmx.context.set_fpu(bytes(image))
    fpu.mxcsr = fpu.pad1 = fpu.pad2 = 0
    vmx.keep_given("fpu", bytes(fpu), zlib.crc32(vmx.context.get_fpu()))
    _keep_in_use(vcpu, in_use)


def vmx_get_xsave(vcpu: Vcpu) -> bytes:
    """struct kvm_xsave in the standard form: of what XCR0 may have, components in their initial state are left out."""
    image = bytearray(4096)
    context = vcpu.vmx.context
    supported = guest_supported_xcr0(vcpu) | XFeature.X87 | XFeature.SSE
    image[:_XSAVE_LEGACY] = context.get_fpu()
    components = _legacy_in_use(image)
    if supported & XFeature.AVX and any(high := context.get_ymm_high()):
        components |= XFeature.AVX
        image[_ymm_area(vcpu)] = high
    if supported & XFeature.PKRU and context.pkru:
        components |= XFeature.PKRU
        struct.pack_into("<Q", image, _pkru_offset(vcpu), context.pkru)
    components, _ = vcpu.vmx.as_given("xsave", (components, zlib.crc32(image)))
    struct.pack_into("<Q", image, 512, components & supported)  # XSTATE_BV
    return bytes(image)


def _legacy_in_use(image: bytearray) -> int:
    """Return which of x87 and SSE an FXSAVE image has out of their initial state."""
    components = 0
    if image[:24] != struct.pack("<H22x", _INITIAL_FCW) or any(image[32:160]):
        components |= XFeature.X87
    if image[24:28] != struct.pack("<I", _INITIAL_MXCSR) or any(image[160:416]):
        components |= XFeature.SSE
    return components


def _ymm_area(vcpu: Vcpu) -> slice:
    size, offset, _, _ = vcpu.kvm.processor.cpuid(0xD, 2)
    return slice(offset, offset + size)


def _pkru_offset(vcpu: Vcpu) -> int:
    return vcpu.kvm.processor.cpuid(0xD, 9)[1]


def vmx_set_xsave(vcpu: Vcpu, data: bytes) -> None:
    """struct kvm_xsave. Components that XSTATE_BV leaves out get their initial state.

    Raises OSError(EINVAL) for components that the processor lacks, for the compacted form, and for reserved bytes of
    the header and bits of MXCSR.
    """
    components, compacted = struct.unpack_from("<QQ", data, 512)
    if components & ~vcpu.kvm.kernel.supported_xcr0 or compacted or any(data[_XSAVE_RESERVED]):
        raise err(errno.EINVAL, f"XSTATE_BV {components:#x}, XCOMP_BV {compacted:#x}, or reserved bytes are not 0")
    context, supported = vcpu.vmx.context, vcpu.kvm.kernel.supported_xcr0
    context.set_fpu(_legacy_region(data, components))
    if supported & XFeature.AVX:
        area = _ymm_area(vcpu)
        context.set_ymm_high(data[area] if components & XFeature.AVX else bytes(area.stop - area.start))
    if components & XFeature.PKRU:  # else it stays as it is, alone of all components
        context.pkru = struct.unpack_from("<I", data, _pkru_offset(vcpu))[0]
    vcpu.vmx.given.pop("fpu", None)
    _keep_in_use(vcpu, components)


def _keep_in_use(vcpu: Vcpu, components: int) -> None:
    """Remember XSTATE_BV, which a processor recomputes only when it saves the state of a guest that ran."""
    vcpu.vmx.given.pop("xsave", None)
    held = vmx_get_xsave(vcpu)
    in_use, image = struct.unpack_from("<Q", held, 512)[0], zlib.crc32(held[:512] + bytes(8) + held[520:])
    vcpu.vmx.keep_given("xsave", (components, image), (in_use, image))


def _legacy_region(data: bytes, components: int) -> bytes:
    """The FXSAVE image of an XSAVE area; what ``components`` lacks is in its initial state. Raises OSError(EINVAL)."""
    image = bytearray(data[:_XSAVE_LEGACY])
    if not components & XFeature.X87:
        image[:24], image[32:160] = struct.pack("<H22x", _INITIAL_FCW), bytes(128)
    if not components & XFeature.SSE:
        image[160:416] = bytes(256)
    if not components & (XFeature.SSE | XFeature.AVX):
        struct.pack_into("<I", image, 24, _INITIAL_MXCSR)
    mxcsr = struct.unpack_from("<I", data, 24)[0]
    if mxcsr >> 16 and components & (XFeature.X87 | XFeature.SSE | XFeature.AVX):
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
            break  # of several the first


def vmx_get_debugregs(vcpu: Vcpu) -> bytes:
    """struct kvm_debugregs."""
    dr6, dr7 = (vcpu.vmx.as_given(f"dr{number}", guest_get_dr(vcpu, number)) for number in (6, 7))
    registers = kvm_debugregs(dr6=dr6, dr7=dr7)
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
    for number, value in ((6, registers.dr6), (7, registers.dr7)):
        guest_set_dr(vcpu, number, value)
        vcpu.vmx.keep_given(f"dr{number}", value, guest_get_dr(vcpu, number))


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
    return walk(vcpu, vcpu.vmx.context, address)


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
