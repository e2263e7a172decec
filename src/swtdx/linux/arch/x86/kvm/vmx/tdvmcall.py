# SPDX-License-Identifier: GPL-2.0-or-later
"""TDVMCALL: what a TD asks of its VMM (handle_tdvmcall in arch/x86/kvm/vmx/tdx.c; Intel GHCI specification).

R10 = 0 selects a GHCI function in R11, any other R10 is a KVM hypercall number. Arguments and results are in
`VcpuTdx.vp_enter_args`; R10 goes back as status, and KVM writes it only when something fails, for the guest gave 0.
A function that user space must serve fills kvm_run and leaves a completion for the next KVM_RUN.

In the v10 dialect user space has no attributes to set: MapGPA exits only if KVM_CAP_EXIT_HYPERCALL was enabled;
otherwise the kernel itself drops the mappings of the side that the guest gives up, and answers success.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from swtdx.cpu.vmx import ExitReason
from swtdx.linux.arch.x86.kvm.x86 import msr_exit
from swtdx.linux.arch.x86.kvm.x86.hypercall import kvm_emulate_hypercall
from swtdx.linux.err import err
from swtdx.linux.mm import PAGE_SHIFT, PAGE_SIZE
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import IO_EXITS
from swtdx.uapi.kvm import (
    KVM_EXIT_HYPERCALL,
    KVM_EXIT_HYPERCALL_LONG_MODE,
    KVM_EXIT_IO,
    KVM_EXIT_MMIO,
    KVM_EXIT_SYSTEM_EVENT,
    KVM_EXIT_TDX,
    KVM_HC_MAP_GPA_RANGE,
    KVM_MAP_GPA_RANGE_DECRYPTED,
    KVM_MAP_GPA_RANGE_ENCRYPTED,
    KVM_SYSTEM_EVENT_TDX_FATAL,
    TDVMCALL_GET_QUOTE,
    TDVMCALL_GET_TD_VM_CALL_INFO,
    TDVMCALL_MAP_GPA,
    TDVMCALL_REPORT_FATAL_ERROR,
    TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT,
    TDVMCALL_STATUS_ALIGN_ERROR,
    TDVMCALL_STATUS_INVALID_OPERAND,
    TDVMCALL_STATUS_RETRY,
    TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED,
)

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.vmx.tdx_vcpu import VcpuTdx
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu

# GHCI functions that are VMX exit reasons
# Plain integers: a table is read with them at each TDVMCALL.
EXIT_CPUID, EXIT_HLT, EXIT_IO = int(ExitReason.CPUID), int(ExitReason.HLT), int(ExitReason.IO)
EXIT_RDMSR, EXIT_WRMSR, EXIT_MMIO = int(ExitReason.RDMSR), int(ExitReason.WRMSR), int(ExitReason.EPT_VIOLATION)

_INT = 0xFFFFFFFF  # what KVM takes size and direction of MMIO for, not those of port I/O
MAP_GPA_MAX_LEN = 2 << 20  # bytes that one exit converts
_MAP_GPA_ERRNOS = {errno.EAGAIN: TDVMCALL_STATUS_RETRY, errno.EINVAL: TDVMCALL_STATUS_INVALID_OPERAND}
_EXIT_IO, _EXIT_MMIO, _EXIT_TDX = int(KVM_EXIT_IO), int(KVM_EXIT_MMIO), int(KVM_EXIT_TDX)
_EXIT_REASON, _UNION, _PIO_DATA = run_struct.EXIT_REASON, run_struct.UNION, run_struct.PIO_DATA
_pack_u32 = run_struct.U32.pack_into
_pack_io = run_struct.IO.pack_into
_PIO_STRUCTS = {size: run_struct.DATA[size] for size in (1, 2, 4)}


def handle_tdvmcall(vcpu: Vcpu) -> int:
    """1: enter the TD again; 0: to user space."""
    args = vcpu.tdx.vp_enter_args
    if args.r10:
        return tdx_emulate_vmcall(vcpu)
    handler = _HANDLERS.get(args.r11)
    if handler is None:
        args.r10 = TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED
        return 1
    return handler(vcpu)


def _invalid(vcpu: Vcpu) -> int:
    vcpu.tdx.vp_enter_args.r10 = TDVMCALL_STATUS_INVALID_OPERAND
    return 1


def tdx_emulate_cpuid(vcpu: Vcpu) -> int:
    """Answer from KVM's copy of the CPUID: the module answers leaves that it virtualises without an exit."""
    args = vcpu.tdx.vp_enter_args
    args.r12, args.r13, args.r14, args.r15 = vcpu.cpuid.query(args.r12 & 0xFFFFFFFF, args.r13 & 0xFFFFFFFF)
    return 1


def tdx_emulate_hlt(vcpu: Vcpu) -> int:
    """Sleep until an interrupt: R12: whether the guest has interrupts blocked (see tdx_interrupt_allowed)."""
    vcpu.tdx.halted = True
    return vcpu.halt()


# --- Port I/O and MMIO ------------------------------------------------------------------------------------------------


def tdx_emulate_io(vcpu: Vcpu) -> int:
    """R12 size, R13 direction, R14 port, R15 data. String I/O does not exist: the guest's #VE handler unrolls it."""
    args = vcpu.tdx.vp_enter_args
    size, write, port = args.r12, args.r13, args.r14
    vcpu.stat.values[IO_EXITS] += 1
    data = _PIO_STRUCTS.get(size)
    if data is None or write > 1:
        return _invalid(vcpu)
    run = vcpu.run
    if write:
        value = args.r15 & (1 << 8 * size) - 1
        bus = vcpu.kvm.buses.pio
        if bus.active and bus.write(port & 0xFFFF, size, value):
            return 1
        data.pack_into(run, _PIO_DATA, value)
    else:
        vcpu.complete_userspace_io = lambda: tdx_complete_pio_in(vcpu, size)
    _pack_u32(run, _EXIT_REASON, _EXIT_IO)
    _pack_io(run, _UNION, write, size, port & 0xFFFF, 1, _PIO_DATA)
    return 0


def tdx_complete_pio_in(vcpu: Vcpu, size: int) -> None:
    vcpu.tdx.vp_enter_args.r11 = _PIO_STRUCTS[size].unpack_from(vcpu.run, _PIO_DATA)[0]


def tdx_emulate_mmio(vcpu: Vcpu) -> int:
    """R12 size, R13 direction, R14 address, R15 data. The address must be shared: private memory is never MMIO."""
    args = vcpu.tdx.vp_enter_args
    size, write, gpa = args.r12 & _INT, args.r13 & _INT, args.r14
    if size not in run_struct.DATA or write > 1:
        return _invalid(vcpu)
    shared = vcpu.kvm.mmu.direct_bits << PAGE_SHIFT
    # Both ends: an access that starts shared and ends private would reach memory that the host may not touch.
    if not gpa & shared or not gpa + size - 1 & shared:
        return _invalid(vcpu)
    gpa &= ~shared
    data = bytes(8)
    if write:
        value = args.r15 & (1 << 8 * size) - 1
        bus = vcpu.kvm.buses.mmio
        if bus.active and bus.write(gpa, size, value):
            return 1
        data = value.to_bytes(8, "little")
    else:
        vcpu.complete_userspace_io = lambda: tdx_complete_mmio_read(vcpu, size)
    _pack_u32(vcpu.run, _EXIT_REASON, _EXIT_MMIO)
    run_struct.MMIO.pack_into(vcpu.run, _UNION, gpa, data, size, write)
    return 0


def tdx_complete_mmio_read(vcpu: Vcpu, size: int) -> None:
    vcpu.tdx.vp_enter_args.r11 = run_struct.DATA[size].unpack_from(vcpu.run, _UNION + 8)[0]


# --- MSRs -------------------------------------------------------------------------------------------------------------


def tdx_emulate_rdmsr(vcpu: Vcpu) -> int:
    args = vcpu.tdx.vp_enter_args

    def done(value: int | None) -> None:
        if value is None:
            args.r10 = TDVMCALL_STATUS_INVALID_OPERAND
        else:
            args.r11 = value

    return msr_exit.read(vcpu, args.r12 & 0xFFFFFFFF, done)


def tdx_emulate_wrmsr(vcpu: Vcpu) -> int:
    args = vcpu.tdx.vp_enter_args

    def done(accepted: bool) -> None:
        if not accepted:
            args.r10 = TDVMCALL_STATUS_INVALID_OPERAND

    return msr_exit.write(vcpu, args.r12 & 0xFFFFFFFF, args.r13, done)


# --- MapGPA -----------------------------------------------------------------------------------------------------------


def tdx_map_gpa(vcpu: Vcpu) -> int:
    kvm, tdx = vcpu.kvm, vcpu.tdx
    args = tdx.vp_enter_args
    gpa, size = args.r12, args.r13
    shared = kvm.mmu.direct_bits << PAGE_SHIFT
    # upstream: user space owns the memory attributes, so a conversion needs its consent by KVM_CAP_EXIT_HYPERCALL.
    exits = bool(kvm.hypercall_exit_enabled & 1 << KVM_HC_MAP_GPA_RANGE)
    if not exits and kvm.kernel.release.map_gpa_needs_exit:
        return _map_gpa_error(tdx, TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED, gpa)
    end = gpa + size
    # The range must not wrap and must lie on one side of the shared bit; upstream: within the vCPU's own address width.
    illegal = vcpu.cpuid.reserved_gpa_bits if kvm.kernel.release.map_gpa_knows_guest_width else -1 << 52
    if not size or end >= 1 << 64 or (gpa | end - 1) & illegal or (gpa ^ end - 1) & shared:
        return _map_gpa_error(tdx, TDVMCALL_STATUS_INVALID_OPERAND, gpa)
    if gpa % PAGE_SIZE or size % PAGE_SIZE:
        return _map_gpa_error(tdx, TDVMCALL_STATUS_ALIGN_ERROR, gpa)
    if not exits:
        # v10: no attributes and no exit; KVM drops what the guest gives up, and maps the other side on demand.
        start, last = (gpa & ~shared) >> PAGE_SHIFT, (end - 1 & ~shared) >> PAGE_SHIFT
        with kvm.slots_lock:
            if gpa & shared:
                kvm.mmu.drop_private(start, last + 1)
            else:
                kvm.mmu.zap_direct(start, last + 1)
        return 1
    tdx.map_gpa_next, tdx.map_gpa_end = gpa, end
    return __tdx_map_gpa(vcpu)


def _map_gpa_error(tdx: VcpuTdx, status: int, gpa: int) -> int:
    tdx.vp_enter_args.r10 = status
    tdx.vp_enter_args.r11 = gpa
    return 1


def __tdx_map_gpa(vcpu: Vcpu) -> int:
    """Exit for the next 2 MiB at most, so that a large conversion does not hold up interrupts until its end.

    hypercall.ret is preset to 0: user space that does not know the exit's result field (QEMU up to 9.2) means success.
    """
    tdx = vcpu.tdx
    shared = vcpu.kvm.mmu.direct_bits << PAGE_SHIFT
    gpa, size = tdx.map_gpa_next, min(tdx.map_gpa_end - tdx.map_gpa_next, MAP_GPA_MAX_LEN)
    attribute = KVM_MAP_GPA_RANGE_DECRYPTED if gpa & shared else KVM_MAP_GPA_RANGE_ENCRYPTED
    vcpu.complete_userspace_io = lambda: tdx_complete_vmcall_map_gpa(vcpu, size)
    _pack_u32(vcpu.run, _EXIT_REASON, int(KVM_EXIT_HYPERCALL))
    run_struct.HYPERCALL.pack_into(
        vcpu.run, _UNION, KVM_HC_MAP_GPA_RANGE, gpa & ~shared, size >> PAGE_SHIFT, attribute, 0, 0, 0, 0,
        KVM_EXIT_HYPERCALL_LONG_MODE,
    )  # fmt: skip
    return 0


def tdx_complete_vmcall_map_gpa(vcpu: Vcpu, size: int) -> int:
    tdx = vcpu.tdx
    ret = run_struct.U64.unpack_from(vcpu.run, _UNION + 56)[0]  # hypercall.ret
    if ret:
        # Since 7.2 user space may have the guest call again; what it may not answer fails KVM_RUN.
        knows_errnos = vcpu.kvm.kernel.release.map_gpa_knows_errnos
        if knows_errnos and ret not in _MAP_GPA_ERRNOS:
            raise err(errno.EINVAL, f"hypercall.ret {ret:#x} after MapGPA: it must be 0, EAGAIN or EINVAL")
        status = _MAP_GPA_ERRNOS[ret] if knows_errnos else TDVMCALL_STATUS_INVALID_OPERAND
        return _map_gpa_error(tdx, status, tdx.map_gpa_next)
    tdx.map_gpa_next += size
    if tdx.map_gpa_next >= tdx.map_gpa_end:
        return 1
    # An interrupt goes first: the guest gets RETRY with the address reached, and calls again from there.
    if vcpu.kvm_vcpu_has_events():
        return _map_gpa_error(tdx, TDVMCALL_STATUS_RETRY, tdx.map_gpa_next)
    return __tdx_map_gpa(vcpu)


# --- Served by user space: KVM_EXIT_TDX and KVM_EXIT_SYSTEM_EVENT -----------------------------------------------------


def _tdx_exit(vcpu: Vcpu, nr: int, ret: int, *words: int) -> int:
    _pack_u32(vcpu.run, _EXIT_REASON, _EXIT_TDX)
    run_struct.TDX.pack_into(vcpu.run, _UNION, 0, nr, ret, *words, *(0,) * (5 - len(words)))
    return 0


def tdx_complete_simple(vcpu: Vcpu) -> None:
    vcpu.tdx.vp_enter_args.r10 = run_struct.U64.unpack_from(vcpu.run, _UNION + 16)[0]


def tdx_get_td_vm_call_info(vcpu: Vcpu) -> int:
    args = vcpu.tdx.vp_enter_args
    # Leaf 0 asks for the base GHCI calls, which KVM serves. upstream: leaf 1 is for user space to answer, which serves
    # those calls. v10: knows leaf 0 only.
    if args.r12 == 0:
        args.r10 = args.r11 = args.r12 = args.r13 = args.r14 = 0
        return 1
    if args.r12 > 1 or not vcpu.kvm.kernel.release.vm_call_info_to_user_space:
        return _invalid(vcpu)

    def tdx_complete_get_td_vm_call_info() -> None:
        values = run_struct.TDX.unpack_from(vcpu.run, _UNION)
        args.r10, (args.r11, args.r12, args.r13, args.r14) = values[2], values[4:8]

    vcpu.complete_userspace_io = tdx_complete_get_td_vm_call_info
    return _tdx_exit(vcpu, TDVMCALL_GET_TD_VM_CALL_INFO, 0, args.r12)


def tdx_get_quote(vcpu: Vcpu) -> int:
    args = vcpu.tdx.vp_enter_args
    shared = vcpu.kvm.mmu.direct_bits << PAGE_SHIFT
    if not args.r12 & shared:  # user space writes the quote there, which it cannot do in private memory
        return _invalid(vcpu)
    # ret is preset: user space that does not serve the call leaves "unsupported" for the guest.
    vcpu.complete_userspace_io = lambda: tdx_complete_simple(vcpu)
    return _tdx_exit(vcpu, TDVMCALL_GET_QUOTE, TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED, args.r12 & ~shared, args.r13)


def tdx_setup_event_notify_interrupt(vcpu: Vcpu) -> int:
    vector = vcpu.tdx.vp_enter_args.r12
    if vector < 32 or vector > 255:  # 0 to 31 are exceptions, which cannot be interrupts
        return _invalid(vcpu)
    vcpu.complete_userspace_io = lambda: tdx_complete_simple(vcpu)
    return _tdx_exit(vcpu, TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT, TDVMCALL_STATUS_SUBFUNC_UNSUPPORTED, vector)


def tdx_report_fatal_error(vcpu: Vcpu) -> int:
    """Exit with all registers: the guest may put a message of its own in any of them (GHCI, ReportFatalError)."""
    a = vcpu.tdx.vp_enter_args
    registers = (
        vcpu.tdx.vp_enter_ret, a.rcx, a.rdx, a.rbx, 0, 0, a.rsi, a.rdi,
        a.r8, a.r9, a.r10, a.r11, a.r12, a.r13, a.r14, a.r15,
    )  # fmt: skip
    _pack_u32(vcpu.run, _EXIT_REASON, int(KVM_EXIT_SYSTEM_EVENT))
    run_struct.SYSTEM_EVENT.pack_into(vcpu.run, _UNION, int(KVM_SYSTEM_EVENT_TDX_FATAL), 16, *registers)
    return 0


# --- KVM hypercalls ---------------------------------------------------------------------------------------------------


def tdx_emulate_vmcall(vcpu: Vcpu) -> int:
    args = vcpu.tdx.vp_enter_args

    def done(result: int) -> None:
        args.r10 = result

    return kvm_emulate_hypercall(vcpu, args.r10, (args.r11, args.r12, args.r13, args.r14), done, long_mode=True)


_HANDLERS = {
    EXIT_CPUID: tdx_emulate_cpuid,
    EXIT_HLT: tdx_emulate_hlt,
    EXIT_IO: tdx_emulate_io,
    EXIT_RDMSR: tdx_emulate_rdmsr,
    EXIT_WRMSR: tdx_emulate_wrmsr,
    EXIT_MMIO: tdx_emulate_mmio,
    TDVMCALL_GET_TD_VM_CALL_INFO: tdx_get_td_vm_call_info,
    TDVMCALL_MAP_GPA: tdx_map_gpa,
    TDVMCALL_GET_QUOTE: tdx_get_quote,
    TDVMCALL_REPORT_FATAL_ERROR: tdx_report_fatal_error,
    TDVMCALL_SETUP_EVENT_NOTIFY_INTERRUPT: tdx_setup_event_notify_interrupt,
}
