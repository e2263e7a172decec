# SPDX-License-Identifier: GPL-2.0-or-later
"""What the exits of a normal VM mean (vmx_handle_exit and its handlers, arch/x86/kvm/vmx/vmx.c and x86.c).

A handler answers 1 (enter again) or 0 (kvm_run is filled: to user space). Exits leave RIP at the instruction; `_skip`
moves on. An IN or OUT that user space completes is skipped at the next KVM_RUN, unless RIP was changed meanwhile.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from swtdx.cpu.vmx import BUS_LOCK_DETECTED, EventType, ExitReason
from swtdx.linux.arch.x86.kvm.cpuid import kvm_update_cpuid_runtime
from swtdx.linux.arch.x86.kvm.mmu.spte import EPT_VIOLATION_ACC_WRITE
from swtdx.linux.arch.x86.kvm.mmu.tdp_mmu import RetPf
from swtdx.linux.arch.x86.kvm.vmx.vm_entry import ENTRY_FAILURE_GUEST_STATE
from swtdx.linux.arch.x86.kvm.vmx.vmx import BLOCKED_BY_STI_OR_MOV_SS
from swtdx.linux.arch.x86.kvm.x86 import msr_exit, pio
from swtdx.linux.arch.x86.kvm.x86.control_registers import EFER_LMA, kvm_is_valid_cr4, xcr0_valid
from swtdx.linux.arch.x86.kvm.x86.guest_debug import (
    CR4_DE,
    DR7_GD,
    do_singlestep,
    guest_get_dr,
    guest_set_dr,
    handle_debug_exception,
    handle_emulated,
    handle_general_detect,
)
from swtdx.linux.arch.x86.kvm.x86.hypercall import kvm_emulate_hypercall
from swtdx.linux.arch.x86.kvm.x86.undefined_opcode import VMMCALL, handle_ud, is_vmmcall
from swtdx.linux.mm import PAGE_SHIFT
from swtdx.linux.virt.kvm import binary_stats as stats
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import IO_EXITS
from swtdx.uapi.kvm import (
    KVM_EXIT_EXCEPTION,
    KVM_EXIT_HLT,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_IO,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_X86_BUS_LOCK,
    KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_RUN_X86_BUS_LOCK,
    KVM_X86_DISABLE_EXITS_HLT,
    KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS,
    KVM_X86_QUIRK_OUT_7E_INC_RIP,
    Vector,
)
from swtdx.x86 import Gpr, Rflags

if TYPE_CHECKING:
    from swtdx.cpu._engine import GuestContext
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

RAX, RCX, RDX, RBX = int(Gpr.RAX), int(Gpr.RCX), int(Gpr.RDX), int(Gpr.RBX)
_FOLLOWS_STATE = frozenset((1, 7, 0xD))  # kvm_update_cpuid_runtime
_EXIT_IO = int(KVM_EXIT_IO)
_BLOCKED_BY_STI_OR_MOV_SS = 0b11
_PORT_7E = 0x7E
_IO_STRING = 1 << 4
_DATA = {size: run_struct.DATA[size] for size in (1, 2, 4)}


def vmx_handle_exit(vcpu: Vcpu) -> int:
    """1: enter again; 0: to user space. Raises OSError when KVM_RUN fails."""
    handler = _HANDLERS.get(vcpu.vmx.exit_reason)
    if handler is None:
        if vcpu.vmx.exit_reason & BUS_LOCK_DETECTED:
            return _with_bus_lock(vcpu)
        return vcpu.internal_error(vcpu.vmx.exit_reason)
    context = vcpu.vmx.context
    if vcpu.vmx.guest_debug:
        rip = context.rip
        return handle_emulated(vcpu, context, rip, handler(vcpu, context))
    return handler(vcpu, context)


def _skip(vcpu: Vcpu, context: GuestContext) -> int:
    """kvm_skip_emulated_instruction. 1."""
    return do_singlestep(vcpu, context) if context.skip_instruction() else 1


def _again(vcpu: Vcpu, context: GuestContext) -> int:
    return 1


def _external_interrupt(vcpu: Vcpu, context: GuestContext) -> int:
    return vcpu.external_interrupt()


def _interrupt_window(vcpu: Vcpu, context: GuestContext) -> int:
    vcpu.stat.values[stats.IRQ_WINDOW_EXITS] += 1
    context.interrupt_window_exiting = False
    return 1


def _nmi_window(vcpu: Vcpu, context: GuestContext) -> int:
    vcpu.stat.values[stats.NMI_WINDOW_EXITS] += 1
    context.nmi_window_exiting = False
    return 1


def queue_exception(context: GuestContext, vector: int, error_code: int | None = None) -> int:
    """Let the guest take an exception at the next entry. 1."""
    context.inject(vector, EventType.HARDWARE_EXCEPTION, error_code)
    return 1


def _undefined(vcpu: Vcpu, context: GuestContext) -> int:
    return queue_exception(context, Vector.UD)


def _general_protection(vcpu: Vcpu, context: GuestContext) -> int:
    return queue_exception(context, Vector.GP, 0)


def _nothing(vcpu: Vcpu, context: GuestContext) -> int:
    return _skip(vcpu, context)


def _monitor_or_mwait(vcpu: Vcpu, context: GuestContext) -> int:
    """They do nothing; with the quirk of that disabled a guest without the feature gets #UD (handle_monitor_trap)."""
    features = vcpu.cpuid.find(1)
    if features is not None:
        features = kvm_update_cpuid_runtime(vcpu, 1, 0, features)
    if vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS and not (features and features[2] & 1 << 3):
        return queue_exception(context, Vector.UD)
    return _skip(vcpu, context)


def _cpuid(vcpu: Vcpu, context: GuestContext) -> int:
    gpr = context.gpr
    if vcpu.msrs.cpuid_fault and context.segment(2)[3] >> 5 & 3:  # CPL: the DPL of SS
        return queue_exception(context, Vector.GP, 0)
    function, index = gpr[RAX] & 0xFFFFFFFF, gpr[RCX] & 0xFFFFFFFF
    registers = vcpu.cpuid.query(function, index)
    if function in _FOLLOWS_STATE:
        registers = kvm_update_cpuid_runtime(vcpu, function, index, registers)
    gpr[RAX], gpr[RBX], gpr[RCX], gpr[RDX] = registers
    return _skip(vcpu, context)


def _hlt(vcpu: Vcpu, context: GuestContext) -> int:
    _skip(vcpu, context)
    if vcpu.kvm.disabled_exits & KVM_X86_DISABLE_EXITS_HLT:  # exits for a single step, whose trap ends the HLT at once
        return 1
    if vcpu.apic is not None:
        context.interruptibility &= ~BLOCKED_BY_STI_OR_MOV_SS  # the shadow of STI covered the HLT itself
        return 1 if context.event_pending else vcpu.halt()  # the trap of a single step
    vcpu.stat.values[stats.HALT_EXITS] += 1
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_HLT))
    return 0


def _io(vcpu: Vcpu, context: GuestContext) -> int:
    qualification = context.exit_qualification
    vcpu.stat.values[IO_EXITS] += 1
    if qualification & _IO_STRING:
        return pio.string_io(vcpu, context, qualification)
    size, port = (qualification & 7) + 1, qualification >> 16 & 0xFFFF
    rip = context.rip
    device = vcpu.kvm.buses.ports.get(port)
    if device is not None:
        mask = (1 << 8 * size) - 1
        if qualification & 8:
            rax = context.gpr[RAX]
            value = device.read(port, size) & mask
            context.gpr[RAX] = value if size == 4 else rax & ~mask | value
        else:
            device.write(port, size, context.gpr[RAX] & mask)
        return _skip(vcpu, context)
    if qualification & 8:

        def complete_in() -> None:
            if context.rip == rip:
                value = _DATA[size].unpack_from(vcpu.run, run_struct.PIO_DATA)[0]
                rax = context.gpr[RAX]
                context.gpr[RAX] = value if size == 4 else rax & ~((1 << 8 * size) - 1) | value
                _skip(vcpu, context)

        vcpu.complete_userspace_io = complete_in
    else:
        value = context.gpr[RAX] & (1 << 8 * size) - 1
        bus = vcpu.kvm.buses.pio
        if bus.active and bus.write(port, size, value):
            return _skip(vcpu, context)

        def complete_out() -> None:
            if context.rip == rip:
                _skip(vcpu, context)

        if port == _PORT_7E and not vcpu.kvm.disabled_quirks & KVM_X86_QUIRK_OUT_7E_INC_RIP:
            _skip(vcpu, context)  # there are VMMs that look at RIP to see who was meant
        else:
            vcpu.complete_userspace_io = complete_out
        _DATA[size].pack_into(vcpu.run, run_struct.PIO_DATA, value)
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, _EXIT_IO)
    run_struct.IO.pack_into(
        vcpu.run, run_struct.UNION, 0 if qualification & 8 else 1, size, port, 1, run_struct.PIO_DATA
    )
    return 0


def _ept_violation(vcpu: Vcpu, context: GuestContext) -> int:
    kvm = vcpu.kvm
    gpa = context.guest_physical_address
    write = bool(context.exit_qualification & EPT_VIOLATION_ACC_WRITE)
    if kvm.mmu.kvm_tdp_page_fault(vcpu, gpa, write) is not RetPf.EMULATE:
        return 1
    if context.event_pending:  # vmx_check_emulate_instruction: RIP is not at what made the access
        return _event_vectoring_exit(vcpu, context, gpa)
    from swtdx.linux.arch.x86.kvm import emulate  # no TD has an instruction to emulate

    if kvm.memslots.gfn_to_memslot(gpa >> PAGE_SHIFT) is None and kvm.buses.mmio.listeners:
        listeners = kvm.buses.mmio.listeners.get(gpa)
        if write and listeners and not listeners[0].length and listeners[0].datamatch is None:
            kvm.buses.mmio.write(gpa, 0, 0)  # KVM_FAST_MMIO_BUS: a doorbell, whatever is written
            return emulate.skip_instruction(vcpu, context)
    return emulate.emulate_instruction(vcpu, context, _emulated_exit)


class _EmulatedExit:
    """A vCPU's context as a handler sees it: the exit is that of the instruction which the emulator has decoded."""

    def __init__(self, context: GuestContext, qualification: int, length: int) -> None:
        object.__setattr__(self, "_context", context)
        object.__setattr__(self, "_length", length)
        object.__setattr__(self, "exit_qualification", qualification)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_context"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._context, name, value)

    def skip_instruction(self) -> bool:
        """Move RIP past the instruction. True if RFLAGS.TF is set."""
        self._context.rip += self._length
        return bool(self._context.rflags & Rflags.TF)


def _emulated_exit(vcpu: Vcpu, context: GuestContext, reason: int, qualification: int, length: int) -> int:
    """Handle an instruction that the emulator has met as the exit that it is elsewhere (x86_emulate_ops)."""
    return _HANDLERS[reason](vcpu, cast("GuestContext", _EmulatedExit(context, qualification, length)))


def _event_vectoring_exit(vcpu: Vcpu, context: GuestContext, gpa: int) -> int:
    """The delivery of an event needs the emulator, which cannot do it (kvm_prepare_event_vectoring_exit). 0."""
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_INTERNAL_ERROR))
    run_struct.VECTORING.pack_into(
        vcpu.run, run_struct.UNION, KVM_INTERNAL_ERROR_DELIVERY_EV, 5, context.idt_vectoring_info,
        vcpu.vmx.exit_reason, context.exit_qualification, gpa, vcpu.cpu,
    )  # fmt: skip
    return 0


def _ept_misconfig(vcpu: Vcpu, context: GuestContext) -> int:
    raise vcpu.kvm.bug(f"EPT misconfiguration at {context.guest_physical_address:#x}")


def _host_fault(vcpu: Vcpu, context: GuestContext) -> int:
    reason = "the guest touched memory that the program itself cannot touch: a file that was truncated, a guard region"
    raise vcpu.memory_fault(context.guest_physical_address >> PAGE_SHIFT, False, reason, errno.EFAULT)


def _rdmsr(vcpu: Vcpu, context: GuestContext) -> int:
    def done(value: int | None) -> None:
        if value is None:
            queue_exception(context, Vector.GP, 0)
            return
        context.gpr[RAX], context.gpr[RDX] = value & 0xFFFFFFFF, value >> 32
        _skip(vcpu, context)

    return msr_exit.read(vcpu, context.gpr[RCX] & 0xFFFFFFFF, done)


def _wrmsr(vcpu: Vcpu, context: GuestContext) -> int:
    def done(accepted: bool) -> None:
        if accepted:
            _skip(vcpu, context)
        else:
            queue_exception(context, Vector.GP, 0)

    value = context.gpr[RAX] & 0xFFFFFFFF | (context.gpr[RDX] & 0xFFFFFFFF) << 32
    return msr_exit.write(vcpu, context.gpr[RCX] & 0xFFFFFFFF, value, done)


def _xsetbv(vcpu: Vcpu, context: GuestContext) -> int:
    value = context.gpr[RAX] & 0xFFFFFFFF | (context.gpr[RDX] & 0xFFFFFFFF) << 32
    if context.gpr[RCX] & 0xFFFFFFFF or not xcr0_valid(vcpu, value):
        return queue_exception(context, Vector.GP, 0)
    context.xcr0 = value
    return _skip(vcpu, context)


def _vmcall(vcpu: Vcpu, context: GuestContext) -> int:
    return _hypercall(vcpu, context, _skip)


def _skip_vmmcall(vcpu: Vcpu, context: GuestContext) -> int:
    """As `_skip`, after an exit for #UD, which has no instruction length."""
    context.rip = context.rip + len(VMMCALL) & ((1 << 64) - 1 if context.efer & EFER_LMA else 0xFFFFFFFF)
    context.interruptibility &= ~_BLOCKED_BY_STI_OR_MOV_SS
    return do_singlestep(vcpu, context) if context.rflags & Rflags.TF else 1


def _hypercall(vcpu: Vcpu, context: GuestContext, skip: Callable[[Vcpu, GuestContext], int]) -> int:
    gpr = context.gpr
    long_mode = bool(context.efer & 1 << 10 and context.segment(1)[3] & 1 << 13)
    mask = (1 << 64) - 1 if long_mode else 0xFFFFFFFF
    nr, a0, a1, a2, a3 = (gpr[register] & mask for register in (RAX, RBX, RCX, RDX, 6))

    def done(result: int) -> None:
        gpr[RAX] = result & mask
        skip(vcpu, context)

    if context.segment(2)[3] >> 5 & 3:  # CPL: the DPL of SS
        done(-1)  # -KVM_EPERM
        return 1
    return kvm_emulate_hypercall(vcpu, nr, (a0, a1, a2, a3), done, long_mode=long_mode)


def _cr_access(vcpu: Vcpu, context: GuestContext) -> int:
    """What the guest/host mask catches: reserved bits of CR4, which are #GP (kvm_set_cr4)."""
    qualification = context.exit_qualification
    number, kind, register = qualification & 0xF, qualification >> 4 & 3, qualification >> 8 & 0xF
    name = {0: "cr0", 3: "cr3", 4: "cr4", 8: "cr8"}.get(number)
    if name is None or kind > 1:
        return vcpu.internal_error(vcpu.vmx.exit_reason)
    if kind == 0:
        value = context.gpr[register] if context.efer & EFER_LMA else context.gpr[register] & 0xFFFFFFFF
        if number == 4 and not kvm_is_valid_cr4(vcpu, value):
            return queue_exception(context, Vector.GP, 0)
        setattr(context, name, value)
    else:
        context.gpr[register] = getattr(context, name)
    return _skip(vcpu, context)


def _dr_access(vcpu: Vcpu, context: GuestContext) -> int:
    """MOV DR, which exits while a debugger's breakpoints are in the registers. DR4 and DR5 mean DR6 and DR7."""
    qualification = context.exit_qualification
    number, register = qualification & 7, qualification >> 8 & 0xF
    if context.get_dr(7) & DR7_GD:
        return handle_general_detect(vcpu, context)
    if number in (4, 5):
        if context.cr4 & CR4_DE:
            return queue_exception(context, Vector.UD)
        number += 2
    if qualification & 1 << 4:
        context.gpr[register] = guest_get_dr(vcpu, number)
    else:
        value = context.gpr[register]
        if number >= 6 and value >> 32:
            return queue_exception(context, Vector.GP, 0)
        guest_set_dr(vcpu, number, value)
    return _skip(vcpu, context)


def _virtualized_eoi(vcpu: Vcpu, context: GuestContext) -> int:
    """A level-triggered vector ended. The instruction is complete."""
    if vcpu.apic is not None:
        vcpu.apic.ioapic_send_eoi(context.exit_qualification & 0xFF)
    return 1


def _triple_fault(vcpu: Vcpu, context: GuestContext) -> int:
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_SHUTDOWN))
    return 0


def _exception(vcpu: Vcpu, context: GuestContext) -> int:
    information = context.interruption_info
    if information >> 8 & 7 == EventType.NMI:
        return 1
    if information & 0xFF == Vector.UD:
        if is_vmmcall(vcpu, context):
            return _hypercall(vcpu, context, _skip_vmmcall)
        return handle_ud(vcpu, context)
    if information & 0xFF in (Vector.DB, Vector.BP):
        return handle_debug_exception(vcpu, context, information & 0xFF)
    if information & 0xFF == Vector.AC:  # as #DB: it exits so that a storm of them does (CVE-2015-5307)
        context.inject(Vector.AC, EventType.HARDWARE_EXCEPTION, context.interruption_error)
        return 1
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_EXCEPTION))
    run_struct.U64.pack_into(
        vcpu.run, run_struct.UNION, information & 0xFF | (context.interruption_error & 0xFFFFFFFF) << 32
    )
    return 0


def _entry_failure(vcpu: Vcpu, context: GuestContext) -> int:
    return vcpu.fail_entry(ENTRY_FAILURE_GUEST_STATE)


def _bus_lock(vcpu: Vcpu, context: GuestContext) -> int:
    """The instruction is complete (handle_bus_lock_vmexit)."""
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_X86_BUS_LOCK))
    vcpu.run_flags = KVM_RUN_X86_BUS_LOCK
    return 0


def _with_bus_lock(vcpu: Vcpu) -> int:
    """An exit that follows a bus lock: user space is told of both, or of the lock alone."""
    vcpu.vmx.exit_reason &= ~BUS_LOCK_DETECTED
    if vmx_handle_exit(vcpu) > 0:
        return _bus_lock(vcpu, vcpu.vmx.context)
    vcpu.run_flags = KVM_RUN_X86_BUS_LOCK
    return 0


_HANDLERS: dict[int, Callable[[Vcpu, GuestContext], int]] = {
    ExitReason.EXCEPTION_NMI: _exception,
    ExitReason.EXTERNAL_INTERRUPT: _external_interrupt,
    ExitReason.TRIPLE_FAULT: _triple_fault,
    ExitReason.INTERRUPT_WINDOW: _interrupt_window,
    ExitReason.NMI_WINDOW: _nmi_window,
    ExitReason.CPUID: _cpuid,
    ExitReason.GETSEC: _undefined,
    ExitReason.HLT: _hlt,
    ExitReason.INVD: _nothing,
    ExitReason.INVLPG: _nothing,
    ExitReason.RDPMC: _general_protection,
    ExitReason.RSM: _undefined,
    ExitReason.VMCALL: _vmcall,
    **dict.fromkeys(range(19, 28), _undefined),  # VMCLEAR to VMXON: no nested virtualization
    ExitReason.CR_ACCESS: _cr_access,
    ExitReason.DR_ACCESS: _dr_access,
    ExitReason.IO: _io,
    ExitReason.RDMSR: _rdmsr,
    ExitReason.WRMSR: _wrmsr,
    ExitReason.ENTRY_FAILURE: _entry_failure,
    ExitReason.MWAIT: _monitor_or_mwait,
    ExitReason.MONITOR: _monitor_or_mwait,
    ExitReason.PAUSE: _nothing,
    ExitReason.VIRTUALIZED_EOI: _virtualized_eoi,
    ExitReason.EPT_VIOLATION: _ept_violation,
    ExitReason.EPT_MISCONFIG: _ept_misconfig,
    50: _undefined,  # INVEPT
    53: _undefined,  # INVVPID
    ExitReason.WBINVD: _nothing,
    ExitReason.XSETBV: _xsetbv,
    ExitReason.INVPCID: _undefined,
    ExitReason.BUS_LOCK: _bus_lock,
    ExitReason.TDCALL: _undefined,
    ExitReason.HOST_FAULT: _host_fault,
}
