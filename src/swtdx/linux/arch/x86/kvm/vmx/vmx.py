# SPDX-License-Identifier: GPL-2.0-or-later
"""Normal VMs: a vCPU on the processor's VMX (arch/x86/kvm/vmx/vmx.c). Exits: `vmx_exit`, registers: `vmx_state`.

With the local APIC in the kernel the processor virtualises it (APICv): the vCPU's register page is the virtual-APIC
page, interrupts are posted. Without, user space injects by KVM_INTERRUPT when the interrupt window is open.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swtdx.cpu.vmx import EventType, Segment
from swtdx.linux.arch.x86.kvm.cpuid import F7_EBX_TSC_ADJUST
from swtdx.linux.arch.x86.kvm.lapic import Lapic
from swtdx.linux.arch.x86.kvm.vmx.posted_intr import PostedInterruptDescriptor
from swtdx.linux.arch.x86.kvm.vmx.vm_entry import entry_refused
from swtdx.linux.arch.x86.kvm.x86 import msrs
from swtdx.linux.arch.x86.kvm.x86.control_registers import (
    EFER_LMA,
    EFER_LME,
    TSC_AUX_FEATURES,
    cr4_guest_rsvd_bits,
    guest_has,
    kvm_valid_efer,
)
from swtdx.linux.arch.x86.kvm.x86.guest_debug import before_entry, guest_get_dr, guest_set_dr
from swtdx.linux.arch.x86.kvm.x86.msrs import Invalid, Unsupported
from swtdx.linux.err import err
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import IRQ_INJECTIONS, NMI_INJECTIONS
from swtdx.linux.virt.kvm.kvm_main import IrqchipMode
from swtdx.uapi.kvm import KVM_X86_DISABLE_EXITS_CSTATE, KVM_X86_DISABLE_EXITS_HLT, Vector
from swtdx.x86 import DR6_INIT, Cr0, Cr4, Dr7, Msr, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.kvm_main import Kvm

POWER_ON_TR = (Segment.TR, 0, 0, 0xFFFF, 0x89)  # busy, which the emulated processor must not see: vmx_state.TSS_BUSY
RFLAGS_IF = Rflags.IF
DR6_TRAPS = 0xF  # B0 to B3 (DR_TRAP_BITS)
BLOCKED_BY_STI_OR_MOV_SS, BLOCKED_BY_NMI = 0b11, 1 << 3
CR0_PG, CR4_MCE, MC_VECTOR = Cr0.PG, Cr4.MCE, Vector.MC
INTERCEPTED_EXCEPTIONS = 1 << Vector.UD | 1 << Vector.DB | 1 << Vector.AC
"""What exits also when no debugger asks for it (vmx_update_exception_bitmap)."""

# MSRs that the guest processor holds
IN_CONTEXT = (
    Msr.EFER, Msr.STAR, Msr.LSTAR, Msr.CSTAR, Msr.FMASK,
    Msr.FS_BASE, Msr.GS_BASE, Msr.KERNEL_GS_BASE, Msr.TSC_AUX,
    Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP, Msr.PAT,
)  # fmt: skip
CHECKED_BY_KVM = frozenset((Msr.EFER, Msr.TSC_AUX, Msr.PAT, Msr.LSTAR, Msr.CSTAR))
"""Of these a write exits: what may be written depends on the guest's CPUID, or user space is told of a bad value."""
_CANONICAL = frozenset([msrs.FS_BASE, msrs.GS_BASE, msrs.KERNEL_GS_BASE, msrs.LSTAR, msrs.CSTAR])
CORE_RESIDENCY = (0x3FC, 0x3FD, 0x3FE)  # MSR_CORE_C3_RESIDENCY, C6, C7; C1 is of other processors
_SPEC_CTRL_BITS = 0x4FF  # IBRS, STIBP, SSBD, IPRED_DIS_U and _S, RRSBA_DIS_U and _S, PSFD, BHI_DIS_S
_DEBUGCTL_DROPPED = 0b11  # LBR, BTF: taken and not done, as KVM does
_MASK64 = (1 << 64) - 1
_READ_LOW, _READ_HIGH, _WRITE_LOW, _WRITE_HIGH = 0, 1024, 2048, 3072


@dataclass(eq=False)
class VcpuVmx:
    """struct vcpu_vmx."""

    context: GuestContext
    pi_desc: PostedInterruptDescriptor
    exit_reason: int = 0
    tsc_offset: int = 0
    tsc_multiplier: int = 1 << 48
    spec_ctrl: int = 0
    entry_unchecked: bool = False  # user space has set state since the last entry
    entry_fails: int = 0  # what KVM_EXIT_FAIL_ENTRY reports of the state that user space has set, or 0
    event_injected: bool = False  # the event that waits was being delivered, or user space set it as such; else queued
    exception_payload: int | None = None  # of a queued exception, from user space
    given: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    guest_debug: int = 0
    singlestep_rip: int = 0
    guest_dr: dict[int, int] | None = None  # the guest's DR0-3 and DR7 while a debugger's are loaded

    def keep_given(self, name: str, given: Any, held: Any) -> None:
        """User space has set a register to ``given``, of which the emulated processor holds ``held``.

        KVM keeps such values in the VMCS or in memory, and KVM_GET_x shows them until something else is in their place.
        """
        if given == held:
            self.given.pop(name, None)
        else:
            self.given[name] = given, held

    def as_given(self, name: str, held: Any) -> Any:
        """Return what user space has set, if the processor still holds what was made of it, else ``held``."""
        pair = self.given.get(name)
        return pair[0] if pair is not None and pair[1] == held else held

    def segment(self, number: int) -> tuple[int, int, int, int]:
        """Return selector, base, limit and access rights as the VMCS has them."""
        value: tuple[int, int, int, int] = self.as_given(f"segment {number}", self.context.segment(number))
        return value


# --- VM ---------------------------------------------------------------------------------------------------------------


def vmx_vm_init(kvm: Kvm) -> None:
    """Nothing beyond the common part."""


def vmx_vm_pre_destroy(kvm: Kvm) -> None:
    """Nothing."""


def vmx_vm_destroy(kvm: Kvm) -> None:
    """Nothing."""


def vmx_vcpu_precreate(kvm: Kvm) -> None:
    """Nothing to check."""


def vmx_set_tss_addr(kvm: Kvm, address: int) -> None:
    """Real mode needs no TSS here: the processor is an unrestricted guest's."""


def vmx_set_identity_map_addr(kvm: Kvm, address: int) -> None:
    """Nor an identity map."""


def vmx_mem_enc_ioctl(kvm: Kvm, arg: int) -> int:
    """Raises OSError(ENOTTY): not an encrypted VM."""
    raise err(errno.ENOTTY, "not a TD")


def vmx_vcpu_mem_enc_ioctl(vcpu: Vcpu, arg: int) -> int:
    """Raises OSError: ENOTTY from a kernel without TDX, EINVAL from one with it."""
    code = errno.EINVAL if vcpu.kvm.kernel.tdx is not None else errno.ENOTTY
    raise err(code, "not a vCPU of a TD")


def vmx_no_external_spt(kvm: Kvm, gfn: int, level: int, page: int) -> None:
    """Only TDs have mirrored page tables."""
    raise AssertionError("a normal VM has no mirror page tables")


# --- vCPU -------------------------------------------------------------------------------------------------------------


def vmx_vcpu_create(vcpu: Vcpu) -> None:
    """A processor context in its power-on state."""
    kvm = vcpu.kvm
    context = kvm.processor.new_context()
    vcpu.vmx = VcpuVmx(context, PostedInterruptDescriptor(kvm.pages))
    vmx_load_mmu_pgd(vcpu)
    vmx_write_tsc_multiplier(vcpu)
    vmx_write_tsc_offset(vcpu, kvm.tsc.offset_for(vcpu, vcpu.vmx.tsc_multiplier, None))
    if kvm.irqchip_mode is not IrqchipMode.NONE:
        vcpu.apic = Lapic(vcpu, context.vapic)
        context.apicv = True
        context.posted_interrupt_descriptor = vcpu.vmx.pi_desc.hpa
    vmx_set_virtual_apic_mode(vcpu)
    context.exception_bitmap = INTERCEPTED_EXCEPTIONS
    context.hlt_exiting = not kvm.disabled_exits & KVM_X86_DISABLE_EXITS_HLT
    vmx_vcpu_after_set_cpuid(vcpu)
    context.set_segment(*POWER_ON_TR)
    context.gpr[2] = kvm.processor.cpuid(1)[0]  # RDX: family, model, stepping
    context.rflags = 2


def vmx_load_mmu_pgd(vcpu: Vcpu) -> None:
    """The root of the page tables."""
    vcpu.vmx.context.set_ept(vcpu.kvm.mmu.eptp)


def vmx_vcpu_free(vcpu: Vcpu) -> None:
    """Give the context back."""
    vcpu.vmx.context.close()
    vcpu.vmx.pi_desc.free()


def vmx_vcpu_reset(vcpu: Vcpu, init_event: bool) -> None:
    """INIT: registers as after power-on, but FPU, most MSRs and the TSC stay (SDM vol. 3, table 10-1)."""
    context = vcpu.vmx.context
    for register in range(16):
        context.gpr[register] = 0
    model = vcpu.cpuid.find(1)
    context.gpr[2] = model[0] if model else 0x600
    context.rflags = 2
    context.efer = 0
    context.cr0 = context.cr0 & 0x60000000 | 0x10
    context.cr4 = context.cr3 = context.cr2 = 0
    for segment in (Segment.ES, Segment.SS, Segment.DS, Segment.FS, Segment.GS):
        context.set_segment(segment, 0, 0, 0xFFFF, 0x93)
    context.set_segment(Segment.CS, 0xF000, 0xFFFF0000, 0xFFFF, 0x9B)
    context.set_segment(Segment.LDTR, 0, 0, 0xFFFF, 0x82)
    context.set_segment(*POWER_ON_TR)
    vcpu.vmx.entry_fails, vcpu.vmx.entry_unchecked = 0, False
    vcpu.vmx.given.clear()
    context.set_segment(Segment.GDTR, 0, 0, 0xFFFF, 0)
    context.set_segment(Segment.IDTR, 0, 0, 0xFFFF, 0)
    context.rip = 0xFFF0
    for number in (*range(4), 7):
        guest_set_dr(vcpu, number, 0)
    context.set_dr(6, 0xFFFF0FF0)
    for index in (msrs.SYSENTER_CS, msrs.SYSENTER_ESP, msrs.SYSENTER_EIP):
        context.wrmsr(index, 0)
    vcpu.vmx.spec_ctrl = 0
    vcpu.msrs.reset()
    vcpu.pv_time.msr = vcpu.steal_time.msr = 0
    context.interruptibility = 0
    context.activity_state = 0
    context.cancel_event()
    vcpu.pending_external_vector = -1
    vcpu.nmi_pending = vcpu.nmi_queued = 0


def vmx_clear_hlt(vcpu: Vcpu) -> None:
    """Wake a vCPU that sleeps in the processor."""
    vcpu.vmx.context.activity_state = 0


def vmx_vcpu_deliver_sipi_vector(vcpu: Vcpu, vector: int) -> None:
    """Start in real mode at vector * 4 KiB."""
    context = vcpu.vmx.context
    context.set_segment(Segment.CS, vector << 8, vector << 12, 0xFFFF, 0x9B)
    context.rip = 0


def vmx_vcpu_load(vcpu: Vcpu, cpu: int) -> None:
    """The context is not bound to a CPU."""


def vmx_vcpu_pre_run(vcpu: Vcpu) -> int:
    """User space may have written code. 1, or 0: exit."""
    vmx = vcpu.vmx
    vmx.context.check_code()
    if vmx.entry_unchecked:
        vmx.entry_fails, vmx.entry_unchecked = entry_refused(vcpu), False
        if not vmx.entry_fails and vmx.exception_payload is not None:
            _deliver_exception_payload(vcpu, vmx.exception_payload)
            vmx.exception_payload = None
    return vcpu.fail_entry(vmx.entry_fails) if vmx.entry_fails else 1


def _deliver_exception_payload(vcpu: Vcpu, payload: int) -> None:
    """kvm_deliver_exception_payload: DR6 for a #DB, CR2 for a #PF."""
    context = vcpu.vmx.context
    vector = context.idt_vectoring_info & 0xFF
    if vector == Vector.PF:
        context.cr2 = payload
    elif vector == Vector.DB:
        dr6 = context.get_dr(6) & ~DR6_TRAPS | DR6_INIT | payload
        guest_set_dr(vcpu, 6, dr6 ^ payload & DR6_INIT)
        guest_set_dr(vcpu, 7, guest_get_dr(vcpu, 7) & ~Dr7.GD)


def vmx_set_cr8(vcpu: Vcpu, cr8: int) -> None:
    """Without a local APIC here CR8 comes from user space at every KVM_RUN. Raises OSError(EINVAL)."""
    if cr8 > 15:
        raise err(errno.EINVAL, f"cr8 {cr8:#x}")
    vcpu.vmx.context.cr8 = cr8


def vmx_vcpu_run(vcpu: Vcpu, cpu: int) -> None:
    """One VM entry and exit, on ``cpu``."""
    vmx = vcpu.vmx
    context = vmx.context
    if (vcpu.nmi_queued or vcpu.nmi_pending) and vcpu.process_nmi():
        _inject_nmi(vcpu, context)
    if vcpu.pending_external_vector >= 0 or _pic_output(vcpu):
        _inject_external(vcpu, context)
    elif vcpu.run[run_struct.REQUEST_INTERRUPT_WINDOW] and _accepts_dm_interrupts(vcpu):
        context.interrupt_window_exiting = True
    if vmx.guest_debug:
        before_entry(vcpu, context)
    processor = vcpu.kvm.processor
    vcpu.in_guest = True
    if vcpu.kicked:  # since the looks above
        context.kick()
    processor.enter_lp(cpu, context)  # so that an interrupt for this CPU, the tick's for one, finds the guest
    try:
        if vmx.pi_desc.requests:
            vmx.pi_desc.sync()
        vmx.exit_reason = context.run()
        vmx.event_injected = context.event_pending
    finally:
        processor.leave_lp(cpu)
        vcpu.in_guest = False


def _window_open(context: GuestContext) -> bool:
    return bool(context.rflags & RFLAGS_IF) and not context.interruptibility & BLOCKED_BY_STI_OR_MOV_SS


def _inject_nmi(vcpu: Vcpu, context: GuestContext) -> None:
    if context.event_pending or context.interruptibility & (BLOCKED_BY_NMI | BLOCKED_BY_STI_OR_MOV_SS):
        context.nmi_window_exiting = True
        return
    vcpu.nmi_pending -= 1
    vcpu.stat.values[NMI_INJECTIONS] += 1
    context.inject(2, EventType.NMI)
    if vcpu.nmi_pending:
        context.nmi_window_exiting = True


def _pic_output(vcpu: Vcpu) -> bool:
    pic = vcpu.kvm.pic
    return pic is not None and pic.output


def _accepts_dm_interrupts(vcpu: Vcpu) -> bool:
    """kvm_cpu_accept_dm_intr: an interrupt that user space injects would be taken, once the window is open."""
    return vcpu.apic is None or vcpu.apic.accepts_pic_interrupts


def _inject_external(vcpu: Vcpu, context: GuestContext) -> None:
    """The vector of KVM_INTERRUPT or of the PIC here; with the APIC here, only if it lets it through."""
    if not _accepts_dm_interrupts(vcpu):
        return
    if context.event_pending or not _window_open(context):
        context.interrupt_window_exiting = True
        return
    vector, vcpu.pending_external_vector = vcpu.pending_external_vector, -1
    if vector < 0:
        pic = vcpu.kvm.pic
        assert pic is not None
        vector = pic.read_irq()
    vcpu.stat.values[IRQ_INJECTIONS] += 1
    context.inject(vector, EventType.EXTERNAL)


def vmx_vcpu_kick(vcpu: Vcpu) -> None:
    """Make the context leave the guest."""
    vcpu.vmx.context.kick()


def vmx_post_run_state(vcpu: Vcpu) -> tuple[int, int, int]:
    """Return (ready for interrupt injection, IF, CR8)."""
    context = vcpu.vmx.context
    flag = bool(context.rflags & RFLAGS_IF)
    apic = vcpu.apic
    cr8 = context.cr8 if apic is None else context.vapic[0x80] >> 4
    ready = (
        flag
        and (apic is None or apic.accepts_pic_interrupts)
        and vcpu.pending_external_vector < 0
        and not context.event_pending
        and not context.interruptibility & BLOCKED_BY_STI_OR_MOV_SS
    )
    return int(ready), int(flag), cr8


# --- MSRs -------------------------------------------------------------------------------------------------------------


def vmx_has_emulated_msr(kvm: Kvm | None, index: int) -> bool:
    """SMBASE is not: there is no SMM here."""
    return index != msrs.IA32_SMBASE


def vmx_get_msr(vcpu: Vcpu, index: int, host: bool) -> int:
    """Raises Unsupported or Invalid."""
    if index in IN_CONTEXT:
        if index == msrs.TSC_AUX and not host and not _has_tsc_aux(vcpu):
            raise Invalid
        return vcpu.vmx.context.rdmsr(index)
    if index == msrs.IA32_SPEC_CTRL:
        if not host and not vcpu.cpuid.has_spec_ctrl(vcpu.kvm.processor):
            raise Invalid
        return vcpu.vmx.spec_ctrl
    if index == msrs.IA32_TSC:
        return vmx_read_l1_tsc(vcpu, vcpu.kvm.processor.rdtsc())
    if index == msrs.IA32_DEBUGCTL:
        return 0
    if index in CORE_RESIDENCY and not host and vcpu.kvm.disabled_exits & KVM_X86_DISABLE_EXITS_CSTATE:
        return 0  # passed through to a processor that never leaves C1
    if index == msrs.IA32_XSS:
        if not host and not vcpu.cpuid.has_xsaves:
            raise Invalid
        return 0
    return vcpu.msrs.get(index, host)


def vmx_set_msr(vcpu: Vcpu, index: int, value: int, host: bool) -> None:
    """Raises Unsupported or Invalid."""
    if index in IN_CONTEXT:
        _set_context_msr(vcpu, index, value, host)
    elif index == msrs.IA32_SPEC_CTRL:
        if value & ~_SPEC_CTRL_BITS or (not host and not vcpu.cpuid.has_spec_ctrl(vcpu.kvm.processor)):
            raise Invalid
        vcpu.vmx.spec_ctrl = value
    elif index == msrs.IA32_TSC and host:
        vmx_write_tsc_offset(vcpu, vcpu.kvm.tsc.offset_for(vcpu, vcpu.vmx.tsc_multiplier, value))
    elif index == msrs.IA32_TSC:
        old = vcpu.vmx.tsc_offset
        vmx_write_tsc(vcpu, value)
        vcpu.msrs.tsc_adjust = vcpu.msrs.tsc_adjust + vcpu.vmx.tsc_offset - old & _MASK64
    elif index == msrs.IA32_TSC_ADJUST:
        if not vcpu.cpuid.has_7_ebx(F7_EBX_TSC_ADJUST):
            return
        if not host:
            vmx_write_tsc_offset(vcpu, vcpu.vmx.tsc_offset + value - vcpu.msrs.tsc_adjust & _MASK64)
        vcpu.msrs.tsc_adjust = value
    elif index == msrs.IA32_DEBUGCTL:
        if value & ~_DEBUGCTL_DROPPED:
            raise Invalid
    elif index == msrs.IA32_XSS:
        if not vcpu.cpuid.has_xsaves and vcpu.kvm.kernel.release.xss_needs_xsaves:
            raise Unsupported
        if value or (not host and not vcpu.cpuid.has_xsaves):
            raise Invalid
    else:
        vcpu.msrs.set(index, value, host=host)


def _has_tsc_aux(vcpu: Vcpu) -> bool:
    return any(guest_has(vcpu, feature) for feature in TSC_AUX_FEATURES)


def _set_context_msr(vcpu: Vcpu, index: int, value: int, host: bool) -> None:
    """An MSR that the processor holds, written by user space, or by a guest and not passed through."""
    context = vcpu.vmx.context
    if index in _CANONICAL:
        if _made_canonical(vcpu, value) != value:
            raise Invalid
    elif index in (msrs.SYSENTER_ESP, msrs.SYSENTER_EIP):
        value = _made_canonical(vcpu, value)  # not refused
    elif index == msrs.TSC_AUX:
        if not host and not _has_tsc_aux(vcpu):
            raise Invalid
        if value >> 32 and not vcpu.cpuid.is_amd_compatible:
            raise Invalid
        value &= 0xFFFFFFFF
    elif index == msrs.IA32_PAT:
        vcpu.msrs.set(index, value, host=True)
    elif index == msrs.IA32_EFER:
        if not kvm_valid_efer(vcpu, value, host=host):
            raise Invalid
        if not host and context.cr0 & CR0_PG and (value ^ context.efer) & EFER_LME:
            raise Invalid
        value = value & ~EFER_LMA | context.efer & EFER_LMA
    context.wrmsr(index, value)


def _made_canonical(vcpu: Vcpu, address: int) -> int:
    """Sign-extend an address at the processor's width, whatever the guest's paging (max_host_virt_addr_bits)."""
    sign = 1 << (vcpu.kvm.processor.cpuid(0x80000008)[0] >> 8 & 0xFF) - 1
    return (address & 2 * sign - 1 ^ sign) - sign & _MASK64


def vmx_read_l1_tsc(vcpu: Vcpu, host_tsc: int) -> int:
    """The guest's TSC when the host's is ``host_tsc``."""
    vmx = vcpu.vmx
    return (host_tsc * vmx.tsc_multiplier >> 48) + vmx.tsc_offset & _MASK64


def vmx_write_tsc(vcpu: Vcpu, value: int) -> None:
    """Let the guest's TSC read ``value`` now."""
    vmx = vcpu.vmx
    vmx_write_tsc_offset(vcpu, value - (vcpu.kvm.processor.rdtsc() * vmx.tsc_multiplier >> 48) & _MASK64)


def vmx_get_tsc_offset(vcpu: Vcpu) -> int:
    """Guest TSC less scaled host TSC, modulo 2^64."""
    return vcpu.vmx.tsc_offset


def vmx_write_tsc_offset(vcpu: Vcpu, offset: int) -> None:
    """Set the offset."""
    vcpu.vmx.tsc_offset = vcpu.vmx.context.tsc_offset = offset
    vcpu.kvm.clock.tsc_changed()


def vmx_write_tsc_multiplier(vcpu: Vcpu) -> None:
    """Follow the vCPU's TSC frequency, the counter's value kept."""
    vmx = vcpu.vmx
    now = vmx_read_l1_tsc(vcpu, vcpu.kvm.processor.rdtsc())
    host_khz = vcpu.kvm.processor.platform.tsc_hz // 1000
    vmx.tsc_multiplier = (vcpu.virtual_tsc_khz << 48) // host_khz
    vmx.context.tsc_multiplier = vmx.tsc_multiplier
    vmx_write_tsc(vcpu, now)


def vmx_vcpu_after_set_cpuid(vcpu: Vcpu) -> None:
    """The bits of CR4 that the guest's CPUID leaves out are in the guest/host mask, and read as 0."""
    context = vcpu.vmx.context
    vcpu.cr4_guest_rsvd_bits = context.cr4_guest_host_mask = cr4_guest_rsvd_bits(vcpu)
    context.bus_lock_exiting = vcpu.kvm.bus_lock_detection  # vmx_secondary_exec_control


def msr_bitmap(vcpu: Vcpu) -> bytes:
    """The VMX MSR bitmap: everything exits but what the processor holds and the VMM does not filter, and, in x2APIC
    mode, what it virtualises: x2APIC MSRs are never filtered."""
    bitmap = bytearray(b"\xff" * 4096)

    def clear(index: int, *, read: bool, write: bool) -> None:
        low, high = (_READ_LOW, _WRITE_LOW) if index < 0x2000 else (_READ_HIGH, _WRITE_HIGH)
        position = index & 0x1FFF
        if read:
            bitmap[low + (position >> 3)] &= ~(1 << (position & 7))
        if write:
            bitmap[high + (position >> 3)] &= ~(1 << (position & 7))

    msr_filter = vcpu.kvm.msr_filter
    for index in IN_CONTEXT:
        read = index != Msr.TSC_AUX and (msr_filter is None or msr_filter.allows(index, write=False))
        write = index not in CHECKED_BY_KVM and (msr_filter is None or msr_filter.allows(index, write=True))
        clear(index, read=read, write=write)
    apic = vcpu.apic
    if apic is not None and apic.x2apic:
        clear(0x808, read=True, write=True)  # TPR
        for index in (0x80A, *range(0x810, 0x828)):  # PPR, ISR, TMR, IRR
            clear(index, read=True, write=False)
        clear(0x80B, read=False, write=True)  # EOI
        clear(0x83F, read=False, write=True)  # SELF IPI
    return bytes(bitmap)


# --- Interrupts -------------------------------------------------------------------------------------------------------


def vmx_inject_machine_check(vcpu: Vcpu) -> bool:
    """#MC at the next entry; False if the guest has not enabled it."""
    context = vcpu.vmx.context
    if not context.cr4 & CR4_MCE:
        return False
    context.inject(MC_VECTOR, EventType.HARDWARE_EXCEPTION)
    return True


def vmx_set_virtual_apic_mode(vcpu: Vcpu) -> None:
    """xAPIC accesses exit as EPT violations, x2APIC's TPR, EOI and SELF IPI do not exit."""
    if hasattr(vcpu, "vmx"):
        vcpu.vmx.context.set_msr_bitmap(msr_bitmap(vcpu))


def vmx_msr_filter_changed(vcpu: Vcpu) -> None:
    """What the VMM filters exits, also where the processor holds it."""
    vcpu.vmx.context.set_msr_bitmap(msr_bitmap(vcpu))


def vmx_deliver_interrupt(vcpu: Vcpu, vector: int) -> None:
    """Post the interrupt."""
    notify = vcpu.vmx.pi_desc.post(vector)
    # In the guest the notification delivers it without an exit, unless an NMI came before: that makes the guest exit.
    # Elsewhere the vCPU may sleep in HLT, and has to look.
    if vcpu.in_guest and notify and not vcpu.nmi_queued:
        vcpu.vmx.context.notify()
    else:
        vcpu.kick()


def vmx_has_interrupt(vcpu: Vcpu) -> bool:
    """Return whether something waits that a HLT would end for."""
    apic = vcpu.apic
    if apic is None:
        return vcpu.pending_external_vector >= 0
    if (vcpu.pending_external_vector >= 0 or _pic_output(vcpu)) and apic.accepts_pic_interrupts:
        return True
    return vcpu.vmx.pi_desc.pending() or apic.has_interrupt()


def vmx_interrupt_allowed(vcpu: Vcpu) -> bool:
    """RFLAGS.IF and no shadow."""
    return _window_open(vcpu.vmx.context)


def vmx_nmi_allowed(vcpu: Vcpu) -> bool:
    """Not inside an NMI handler."""
    return not vcpu.vmx.context.interruptibility & BLOCKED_BY_NMI


def vmx_apic_init_signal_blocked(vcpu: Vcpu) -> bool:
    """INIT is taken."""
    return False
