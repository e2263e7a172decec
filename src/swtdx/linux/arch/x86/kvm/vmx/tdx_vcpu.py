# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD's vCPU: KVM_TDX_INIT_VCPU and the vCPU's other sub-commands, TDH.VP.ENTER, and what its exits mean.

The guest's registers are the module's; KVM sees what VP.ENTER returns and nothing else (struct tdx_module_args, kept in
`VcpuTdx.vp_enter_args` between exit and re-entry). RAX: completion status in the upper half, VMX exit reason in the
lower. For EPT violations: RCX qualification, RDX extended qualification, R8 the page's GPA, R9 interruption info.
"""

from __future__ import annotations

import errno
import logging
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from swtdx.cpu.processor import SeamArgs
from swtdx.cpu.vmx import BUS_LOCK_DETECTED, EventType, ExitReason
from swtdx.linux.arch.x86.kvm.lapic import APIC_DEFAULT_PHYS_BASE, APICBASE_BSP, APICBASE_ENABLE, APICBASE_X2APIC, Lapic
from swtdx.linux.arch.x86.kvm.mmu.first_touch import FirstTouch
from swtdx.linux.arch.x86.kvm.mmu.spte import (
    EPT_VIOLATION_ACC_INSTR,
    EPT_VIOLATION_ACC_WRITE,
    EPT_VIOLATION_PROT_MASK,
)
from swtdx.linux.arch.x86.kvm.mmu.tdp_mmu import RetPf
from swtdx.linux.arch.x86.kvm.vmx import tdvmcall, tdx_msrs
from swtdx.linux.arch.x86.kvm.vmx.posted_intr import POSTED_INTR_VECTOR, PostedInterruptDescriptor
from swtdx.linux.arch.x86.kvm.vmx.tdx import TdState, tdx_operand_busy, tdx_reclaim_control_page, to_kvm_tdx
from swtdx.linux.arch.x86.kvm.vmx.tdx_params import tdx_vcpu_get_cpuid_leaves
from swtdx.linux.arch.x86.kvm.vmx.tdx_sept import tdx_vcpu_init_mem_region
from swtdx.linux.arch.x86.virt.vmx.tdx.seamcall import (
    TDH_VP_ENTER,
    TDX_ERROR,
    TDX_NON_RECOVERABLE,
    TDX_NON_RECOVERABLE_TD,
    TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE,
    TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE,
    TDX_NON_RECOVERABLE_VCPU,
    TDX_SEAMCALL_STATUS_MASK,
    TDX_SW_ERROR,
    TDX_VCPU_NOT_ASSOCIATED,
    status_class,
)
from swtdx.linux.arch.x86.virt.vmx.tdx.tdx import FEATURE_TOPOLOGY_ENUM
from swtdx.linux.err import err
from swtdx.linux.mm import PAGE_SHIFT
from swtdx.linux.uaccess import copy_from_user, copy_to_user, struct_from_user
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import NMI_INJECTIONS
from swtdx.linux.virt.kvm.kvm_main import IrqchipMode
from swtdx.uapi.dialect import Target, TdxCommand
from swtdx.uapi.kvm import (
    KVM_EXIT_EXCEPTION,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_X86_BUS_LOCK,
    KVM_MP_STATE_RUNNABLE,
    KVM_RUN_X86_BUS_LOCK,
)
from swtdx.uapi.reason import Reason, seamcall_failed
from swtdx.x86 import PAGE_SIZE, Vector

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
    from swtdx.linux.virt.kvm.kvm_main import Kvm

log = logging.getLogger(__name__)

# TDVPS metadata that KVM reads and writes (class in bits 61:56)
MD_VMCS_POSTED_INTR_NV, MD_VMCS_POSTED_INTR_DESC_ADDR = 0x0002, 0x2016
MD_VMCS_SHARED_EPT_POINTER, MD_VMCS_PIN_BASED, MD_VMCS_SECONDARY = 0x203C, 0x4000, 0x401E
PIN_BASED_POSTED_INTR, SECONDARY_EXEC_BUS_LOCK_DETECTION = 1 << 7, 1 << 30
MD_PEND_NMI = 0x20 << 56 | 0xB
MD_VCPU_STATE_DETAILS = 1 << 63 | 0x11 << 56 | 0x100
STATE_DETAILS_INTR_PENDING = 1 << 0  # VMXIP: RVI is above PPR

_EXIT_BASIC, _EXIT_REASON = 0xFFFF, 0xFFFFFFFF
_FAILED_VMENTRY = 1 << 31
_EXT_ACCEPT = 1
_EXT_PENDING_EPT_VIOLATION = 6
_TDCALL, _EPT_VIOLATION, _EXTERNAL = (
    int(ExitReason.TDCALL),
    int(ExitReason.EPT_VIOLATION),
    int(ExitReason.EXTERNAL_INTERRUPT),
)
_VALID, _TYPE, _VECTOR = 1 << 31, 7 << 8, 0xFF  # of the interruption information
_NMI, _MACHINE_CHECK = _VALID | EventType.NMI << 8, _VALID | EventType.HARDWARE_EXCEPTION << 8 | Vector.MC
_OTHER_SMI = int(ExitReason.OTHER_SMI)
_BAD_STATUS = TDX_ERROR | TDX_NON_RECOVERABLE
_EXITED = frozenset(  # statuses with a VMX exit reason below them, beside success
    [
        TDX_NON_RECOVERABLE_VCPU,
        TDX_NON_RECOVERABLE_TD,
        TDX_NON_RECOVERABLE_TD_NON_ACCESSIBLE,
        TDX_NON_RECOVERABLE_TD_WRONG_APIC_MODE,
    ]
)


@dataclass(eq=False)
class VcpuTdx:
    """struct vcpu_tdx. Pages are HPAs."""

    pi_desc: PostedInterruptDescriptor
    initialized: bool = False
    tdvpr: int = 0
    tdcx: list[int] = field(default_factory=list)
    associated_cpu: int = -1
    vp_enter_args: SeamArgs = field(default_factory=SeamArgs)
    vp_enter_ret: int = 0
    halted: bool = False  # the last exit was HLT; registers cannot tell, for the answer to another call can look so
    shared_eptp_written: bool = False
    map_gpa_next: int = 0
    map_gpa_end: int = 0


# --- Life -------------------------------------------------------------------------------------------------------------


def tdx_vcpu_precreate(kvm: Kvm) -> None:
    """Before a vCPU is made; v10 did not check the TD's state here. Raises OSError(EIO, EINVAL)."""
    if kvm.kernel.release.vcpus_need_initialized_td and to_kvm_tdx(kvm).state is not TdState.INITIALIZED:
        raise err(errno.EIO, "vCPUs are created between KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM")
    if kvm.irqchip_mode is not IrqchipMode.SPLIT:
        raise err(errno.EINVAL, "a TD needs KVM_CAP_SPLIT_IRQCHIP")


def tdx_vcpu_create(vcpu: Vcpu) -> None:
    """The KVM side of a vCPU; the module's comes with INIT_VCPU."""
    vcpu.tdx = VcpuTdx(PostedInterruptDescriptor(vcpu.kvm.pages))
    vcpu.apic = Lapic(vcpu, memoryview(bytearray(PAGE_SIZE)))


def tdx_vcpu_free(vcpu: Vcpu) -> None:
    """Phase 2 of the TD's end: reclaim TDCX pages, then TDVPR."""
    tdx, kvm = vcpu.tdx, vcpu.kvm
    tdx.pi_desc.free()
    if kvm.processor.first_touches is not None:
        kvm.processor.first_touches.pop(tdx.tdvpr, None)
    if not tdx.tdvpr or to_kvm_tdx(kvm).is_hkid_assigned:
        return
    for page in tdx.tdcx:
        tdx_reclaim_control_page(kvm, page)
    tdx_reclaim_control_page(kvm, tdx.tdvpr)
    tdx.tdcx.clear()
    tdx.tdvpr = 0


def tdx_vcpu_reset(vcpu: Vcpu, init_event: bool) -> None:
    """INIT cannot reach a TD."""
    log.warning("INIT for vCPU %d of a TD", vcpu.vcpu_id)


def tdx_vcpu_load(vcpu: Vcpu, cpu: int) -> None:
    """Move to another CPU: the module keeps a vCPU associated with the one where it ran, and enters it nowhere else."""
    tdx_flush_vp_on_cpu(vcpu)


def tdx_flush_vp_on_cpu(vcpu: Vcpu) -> None:
    """End the association with a CPU, if there is one. The leaf runs on that CPU; the kernel sends it there by IPI."""
    if vcpu.tdx.associated_cpu >= 0:
        tdx_flush_vp(vcpu)


def tdx_flush_vp(vcpu: Vcpu) -> None:
    """Write the vCPU's state back on the CPU that has it.

    Nothing contends: only the thread that moves the vCPU or destroys the TD uses its TDVPR. So no busy-retry.
    "Not associated" is success: an entry that failed may have ended the association.
    """
    tdx = vcpu.tdx
    status = to_kvm_tdx(vcpu.kvm).host.seamcall.tdh_vp_flush(tdx.tdvpr, tdx.associated_cpu)
    tdx_disassociate_vp(vcpu)
    if status and status_class(status) != TDX_VCPU_NOT_ASSOCIATED:
        vcpu.kvm.bug(seamcall_failed("TDH.VP.FLUSH", status))


def tdx_disassociate_vp(vcpu: Vcpu) -> None:
    """Note that no CPU has the vCPU's state."""
    vcpu.tdx.associated_cpu = -1


def tdx_guest_state_protected(vcpu: Vcpu, data: object = None) -> Any:
    """Registers, FPU, debug and APIC state of a TD are not for the host. Raises OSError(EINVAL)."""
    raise err(errno.EINVAL, "the state of a TD's vCPU is protected")


# --- Sub-commands -----------------------------------------------------------------------------------------------------


def tdx_vcpu_ioctl(vcpu: Vcpu, arg: int) -> int:
    """KVM_MEMORY_ENCRYPT_OP on a vCPU's fd. Raises OSError."""
    kvm = vcpu.kvm
    dialect = kvm.kernel.dialect
    td = to_kvm_tdx(kvm)
    # v10: INIT_VCPU is the vCPU's only sub-command, and refused before anything else is looked at.
    if kvm.kernel.release.initialized_vcpu_takes_no_command and vcpu.tdx.initialized:
        raise err(errno.EINVAL, "the vCPU is initialised already")
    # Since 6.19 the command is read outside vcpu.mutex, and so before the state, which only the lock keeps as it is.
    cmd = _read_command(kvm, arg) if kvm.kernel.release.vcpu_command_is_read_first else None
    if not td.is_hkid_assigned or td.state is TdState.RUNNABLE:
        raise err(errno.EINVAL, "the TD is not initialised, or is final already")
    if cmd is None:
        cmd = _read_command(kvm, arg)
    if dialect.layout.targets.get(cmd.id) is not Target.VCPU:
        raise err(errno.EINVAL, f"sub-command {cmd.id} is not one for a vCPU's fd")
    if cmd.id == TdxCommand.INIT_VCPU:
        tdx_vcpu_init(vcpu, cmd)
    elif cmd.id == TdxCommand.INIT_MEM_REGION:
        if not vcpu.tdx.initialized:
            raise err(errno.EINVAL, "the vCPU is not initialised")
        tdx_vcpu_init_mem_region(vcpu, cmd)
    else:
        tdx_vcpu_get_cpuid(vcpu, cmd.data)
    return 0


def _read_command(kvm: Kvm, arg: int) -> Any:
    """Return the kvm_tdx_cmd at ``arg``. Raises OSError(EFAULT, EINVAL)."""
    dialect = kvm.kernel.dialect
    cmd = struct_from_user(dialect.cmd, arg)
    member = dialect.hw_error_member
    if any(getattr(cmd, name) for name in (member, *kvm.kernel.release.reserved_members)):
        raise err(errno.EINVAL, f"{member} must be 0")
    return cmd


def tdx_vcpu_init(vcpu: Vcpu, cmd: Any) -> None:
    if cmd.flags:
        raise err(errno.EINVAL, "flags must be 0")
    if vcpu.tdx.initialized:
        raise err(errno.EINVAL, "the vCPU is initialised already")
    # The module fixes x2APIC mode. upstream: KVM's copy of APIC_BASE is made to agree; v10: only its local APIC's mode.
    if vcpu.kvm.kernel.release.sets_apic_base:
        bsp = APICBASE_BSP if vcpu.is_bsp else 0
        vcpu.set_apic_base(APIC_DEFAULT_PHYS_BASE | APICBASE_ENABLE | APICBASE_X2APIC | bsp)
    else:
        assert vcpu.apic is not None
        vcpu.apic.enable_x2apic()
    tdx_td_vcpu_init(vcpu, cmd.data)
    vcpu.tdx.initialized = True
    vcpu.mp_state = KVM_MP_STATE_RUNNABLE
    vcpu.kick()


def tdx_td_vcpu_init(vcpu: Vcpu, initial_rcx: int) -> None:
    """Create the module's side. Raises OSError: ENOMEM, or EIO and the VM is dead."""
    kvm, tdx, td = vcpu.kvm, vcpu.tdx, to_kvm_tdx(vcpu.kvm)
    seamcall, pages, info = td.host.seamcall, kvm.pages, td.host.sysinfo
    tdvpr = pages.alloc_page("tdvpr")
    tdcx: list[int] = []
    try:
        for _ in range(info.tdcx_pages_per_vcpu):
            tdcx.append(pages.alloc_page("tdcx"))  # one by one: what was had when one fails is given back
        status = seamcall.tdh_vp_create(td.tdr, tdvpr)
        if status:
            raise kvm.bug(seamcall_failed("TDH.VP.CREATE", status))
        tdx.tdvpr = tdvpr
        while tdcx:
            status = seamcall.tdh_vp_addcx(tdvpr, tdcx[0])
            if status:
                raise kvm.bug(seamcall_failed("TDH.VP.ADDCX", status))
            tdx.tdcx.append(tdcx.pop(0))
    except OSError:
        # Pages that the module has are reclaimed by tdx_vcpu_free; only those that it never got are freed here.
        for page in (*tdcx, *([] if tdx.tdvpr else [tdvpr])):
            pages.free_page(page)
        raise
    cpu = vcpu.cpu
    # upstream: needs TOPOLOGY_ENUM, and gives the x2APIC id by VP.INIT version 1. v10: modules number the vCPUs.
    x2apic_id = vcpu.vcpu_id if info.features0 & FEATURE_TOPOLOGY_ENUM else None
    status = seamcall.tdh_vp_init(tdvpr, initial_rcx, x2apic_id, cpu)
    if status:
        raise kvm.bug(seamcall_failed("TDH.VP.INIT", status))
    tdx.associated_cpu = cpu
    _vp_write(vcpu, MD_VMCS_POSTED_INTR_NV, POSTED_INTR_VECTOR, 0xFFFF, cpu)
    _vp_write(vcpu, MD_VMCS_POSTED_INTR_DESC_ADDR, tdx.pi_desc.hpa, (1 << 64) - 64, cpu)
    _vp_write(vcpu, MD_VMCS_PIN_BASED, PIN_BASED_POSTED_INTR, PIN_BASED_POSTED_INTR, cpu)
    if kvm.bus_lock_detection and kvm.kernel.release.tds_report_bus_locks:
        _vp_write(vcpu, MD_VMCS_SECONDARY, SECONDARY_EXEC_BUS_LOCK_DETECTION, SECONDARY_EXEC_BUS_LOCK_DETECTION, cpu)
    if kvm.processor.first_touches is not None:
        kvm.processor.first_touches[tdvpr] = FirstTouch(vcpu)


def _vp_write(vcpu: Vcpu, md_field: int, value: int, mask: int, cpu: int) -> None:
    """Write a field of the vCPU. A failure kills the VM, and the call that did this fails only if it looks at that."""
    status = to_kvm_tdx(vcpu.kvm).host.seamcall.tdh_vp_wr(vcpu.tdx.tdvpr, md_field, value, mask, cpu)
    if status:
        tdh_vp_wr_failed(vcpu, md_field, status)


def tdh_vp_wr_failed(vcpu: Vcpu, md_field: int, status: int) -> None:
    """Kill the VM."""
    vcpu.kvm.bug(seamcall_failed("TDH.VP.WR", status, where=f"of field {md_field:#x}"))


def tdh_vp_rd_failed(vcpu: Vcpu, md_field: int, status: int) -> None:
    """Kill the VM."""
    vcpu.kvm.bug(seamcall_failed("TDH.VP.RD", status, where=f"of field {md_field:#x}"))


def tdx_vcpu_get_cpuid(vcpu: Vcpu, address: int) -> None:
    """KVM_TDX_GET_CPUID. Raises OSError(EFAULT, EIO, E2BIG); with E2BIG the count that is needed is written."""
    given = copy_from_user(address, 8)
    nent = int.from_bytes(given[:4], "little")
    entries = tdx_vcpu_get_cpuid_leaves(vcpu.kvm)
    header = len(entries).to_bytes(4, "little") + given[4:]  # the padding goes back as it came
    copy_to_user(address, header)
    if nent < len(entries):
        raise err(errno.E2BIG, f"room for {nent} CPUID entries, {len(entries)} needed")
    copy_to_user(address + 8, b"".join(bytes(entry) for entry in entries))


# --- Running ----------------------------------------------------------------------------------------------------------


def tdx_vcpu_pre_run(vcpu: Vcpu) -> int:
    """1. Raises OSError(EINVAL) unless TD and vCPU are ready."""
    td = vcpu.kvm.tdx
    assert td is not None  # to_kvm_tdx(), written out: this is the path of every exit
    if not vcpu.tdx.initialized or td.state is not TdState.RUNNABLE:
        raise err(errno.EINVAL, "KVM_RUN needs KVM_TDX_INIT_VCPU and KVM_TDX_FINALIZE_VM")
    return 1


def tdx_vcpu_run(vcpu: Vcpu, cpu: int) -> None:
    """TDH.VP.ENTER on ``cpu``; the result is in VcpuTdx. If what precedes it kills the VM, the guest is not entered."""
    kvm, tdx = vcpu.kvm, vcpu.tdx
    td = kvm.tdx
    assert td is not None
    # A SEAMCALL that found the module busy is tried again with no vCPU inside: an entry now could contend with it.
    while td.wait_for_sept_zap:
        time.sleep(0.0001)
    if not tdx.shared_eptp_written:
        _vp_write(vcpu, MD_VMCS_SHARED_EPT_POINTER, kvm.mmu.direct.root, 0x000FFFFFFFFFF000, cpu)
        tdx.shared_eptp_written = True
    if vcpu.process_nmi():
        tdx_inject_nmi(vcpu, cpu)
    tdx_vcpu_enter_exit(vcpu, cpu)


def tdx_inject_nmi(vcpu: Vcpu, cpu: int) -> None:
    """Have the module inject an NMI.

    The module holds one, and cannot report that the guest takes NMIs again. A second one that is pending is merged into
    the first: that has not been delivered, and its handler looks at all sources.
    """
    vcpu.nmi_pending = 0
    vcpu.stat.values[NMI_INJECTIONS] += 1
    _vp_write(vcpu, MD_PEND_NMI, 1, 0xFF, cpu)


def tdx_vcpu_enter_exit(vcpu: Vcpu, cpu: int) -> None:
    """Execute TDH.VP.ENTER and keep what it returns."""
    kvm, tdx = vcpu.kvm, vcpu.tdx
    args = tdx.vp_enter_args
    args.rcx = tdx.tdvpr
    tdx.associated_cpu = cpu
    # Before the last look at `kicked`: a kick that comes later finds the vCPU inside and interrupts its CPU.
    vcpu.in_guest = True
    try:
        if tdx.pi_desc.requests:
            tdx.pi_desc.sync()
        tdx.halted = False
        if not vcpu.kicked and not _called_out(kvm):
            tdx.vp_enter_ret = kvm.processor.seamcall(TDH_VP_ENTER, args, cpu)
        else:
            tdx.vp_enter_ret = _EXTERNAL  # as if the interrupt had arrived right after the entry
    finally:
        vcpu.in_guest = False


def _called_out(kvm: Kvm) -> bool:
    td = kvm.tdx
    assert td is not None
    return kvm.dead or td.wait_for_sept_zap


def tdx_handle_exit(vcpu: Vcpu) -> int:
    """1: enter again; 0: to user space. Raises OSError when KVM_RUN fails."""
    tdx = vcpu.tdx
    status = tdx.vp_enter_ret
    if status == _TDCALL:
        return tdvmcall.handle_tdvmcall(vcpu)
    if status == _EPT_VIOLATION:
        return tdx_handle_ept_violation(vcpu)
    if status == _EXTERNAL:
        return vcpu.external_interrupt()
    if status & _BAD_STATUS or status & TDX_SEAMCALL_STATUS_MASK:
        return _handle_failure(vcpu, status)
    return _handle_rare_exit(vcpu, status)


def _handle_failure(vcpu: Vcpu, status: int) -> int:
    # Zero-step mitigation takes the lock of the Secure EPT at entry, and MEM.TRACK that of the epoch. The guest did not
    # run; return by way of the loop, so that a request to leave the guest is served before the next try.
    if tdx_operand_busy(status):
        return 1
    if status & TDX_SW_ERROR == TDX_SW_ERROR:
        vcpu.kvm.bug(f"TDH.VP.ENTER cannot be executed: {status:#x}")
        return vcpu.internal_error(status)
    reason = status & _EXIT_BASIC
    if status & TDX_SEAMCALL_STATUS_MASK in _EXITED:
        if status & _FAILED_VMENTRY:
            return vcpu.fail_entry(status & _EXIT_REASON)
        if reason == ExitReason.TRIPLE_FAULT:
            run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_SHUTDOWN))
            return 0
    log.warning("vCPU %d: TDH.VP.ENTER: %#x", vcpu.vcpu_id, status)
    return vcpu.internal_error(status)


def _handle_rare_exit(vcpu: Vcpu, status: int) -> int:
    """Of a bus lock user space is told beside what else there is to tell, since KVM detects those of TDs."""
    answer = _handle_by_reason(vcpu, status)
    locked = status & BUS_LOCK_DETECTED or status & _EXIT_BASIC == ExitReason.BUS_LOCK
    if locked and vcpu.kvm.kernel.release.tds_report_bus_locks:
        vcpu.run_flags = KVM_RUN_X86_BUS_LOCK
        if answer > 0:
            run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_X86_BUS_LOCK))
        return 0
    return answer


def _handle_by_reason(vcpu: Vcpu, status: int) -> int:
    if status & _FAILED_VMENTRY:
        return vcpu.fail_entry(status & _EXIT_REASON)
    reason = status & _EXIT_BASIC
    if reason == ExitReason.TRIPLE_FAULT:
        run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_SHUTDOWN))
        return 0
    if reason == ExitReason.EXCEPTION_NMI:
        return tdx_handle_exception_nmi(vcpu)
    if reason == _EPT_VIOLATION:  # with a bit of the processor's above the reason
        return tdx_handle_ept_violation(vcpu)
    if reason == _EXTERNAL:
        return vcpu.external_interrupt()
    if reason == _OTHER_SMI:  # the host served it when the module returned
        return 1
    if reason == ExitReason.EPT_MISCONFIG:
        raise vcpu.kvm.bug("EPT misconfiguration in the shared EPT")
    if reason == _TDCALL:  # with such a bit
        return tdvmcall.handle_tdvmcall(vcpu)
    if reason == ExitReason.BUS_LOCK and vcpu.kvm.kernel.release.tds_report_bus_locks:
        return 1
    return vcpu.internal_error(status)


def tdx_handle_exception_nmi(vcpu: Vcpu) -> int:
    """Let the host's own handlers have NMI and #MC, which they served already; any other is for user space."""
    information = vcpu.tdx.vp_enter_args.r9
    if information & (_VALID | _TYPE) == _NMI or information & (_VALID | _TYPE | _VECTOR) == _MACHINE_CHECK:
        return 1
    run_struct.U32.pack_into(vcpu.run, run_struct.EXIT_REASON, int(KVM_EXIT_EXCEPTION))
    run_struct.U64.pack_into(vcpu.run, run_struct.UNION, information & 0xFF)
    return 0


def tdx_is_sept_violation_unexpected_pending(vcpu: Vcpu) -> bool:
    """Return whether the guest touched a page that it has not accepted, where it wants no #VE for it.

    The same exit with a permission bit set is a page that KVM blocks at the moment: mapping it again helps.
    """
    args = vcpu.tdx.vp_enter_args
    return args.rdx & 0xF == _EXT_PENDING_EPT_VIOLATION and not args.rcx & EPT_VIOLATION_PROT_MASK


def tdx_handle_ept_violation(vcpu: Vcpu) -> int:
    """Map what the guest touched. Raises OSError: EFAULT with a memory-fault exit, ENOMEM, EIO when the VM is dead.

    A private fault is taken again here until the page is mapped, without an entry in between. The mapping can be busy:
    another vCPU works at the same Secure EPT, or a zap is going on. The module counts entries at which the guest makes
    no progress (zero-step attack) and, beyond a threshold, locks the Secure EPT at each of them: that would make the
    SEAMCALLs of the other vCPUs' faults busy in turn. An event for the guest or the VM's death ends the loop.
    """
    kvm = vcpu.kvm
    args = vcpu.tdx.vp_enter_args
    gpa, qualification = args.r8, args.rcx
    mmu = kvm.mmu
    if gpa >> PAGE_SHIFT & mmu.direct_bits:
        if qualification & EPT_VIOLATION_ACC_INSTR:  # upstream: hardware never reports that; taken for a fault of it
            raise kvm.bug(Reason(f"instruction fetch from shared memory at {gpa:#x}", by_guest=True))
        mmu.kvm_tdp_page_fault(vcpu, gpa, bool(qualification & EPT_VIOLATION_ACC_WRITE))
        return 1
    if tdx_is_sept_violation_unexpected_pending(vcpu):
        text = f"the guest touched private memory at {gpa:#x} before accepting it, with #VE disabled"
        raise kvm.bug(Reason(text, by_guest=True))
    level = (args.rdx >> 32 & 7) + 1 if args.rdx & 0xF == _EXT_ACCEPT else None
    # Always as a write: a private page is mapped with all permissions, so that one fault is enough.
    while mmu.kvm_tdp_page_fault(vcpu, gpa, True, level) is RetPf.RETRY:
        if vcpu.kvm_vcpu_has_events() or vcpu.exit_requested():
            break
        if kvm.dead:
            raise kvm.dead_error()
        time.sleep(0)  # cond_resched: the other side of the contention needs the processor
    return 1


def tdx_vcpu_kick(vcpu: Vcpu) -> None:
    """Interrupt the CPU on which the vCPU runs."""
    vcpu.kvm.processor.send_ipi(vcpu.cpu)


def tdx_sync_regs_load(vcpu: Vcpu, valid: int, dirty: int) -> None:
    """KVM_CAP_SYNC_REGS is 0 for a TD. Raises OSError(EINVAL)."""
    raise err(errno.EINVAL, "registers of a TD cannot be synchronised")


def tdx_sync_regs_store(vcpu: Vcpu, valid: int) -> None:
    """Never reached: `tdx_sync_regs_load` refuses."""


def tdx_translate(vcpu: Vcpu, address: int) -> int | None:
    """KVM_TRANSLATE is not refused, but KVM knows no guest page tables: paging looks off."""
    return address


# --- MSRs: see tdx_msrs -----------------------------------------------------------------------------------------------


def tdx_has_emulated_msr(kvm: Kvm | None, index: int) -> bool:
    """Return whether KVM emulates the MSR for a TD."""
    assert kvm is not None  # of a TD
    return tdx_msrs.has_emulated_msr(index, by_register=kvm.kernel.release.x2apic_by_register)


def tdx_get_msr(vcpu: Vcpu, index: int, host: bool) -> int:
    """Raises Unsupported or Invalid."""
    return tdx_msrs.get_msr(vcpu, index, host)


def tdx_set_msr(vcpu: Vcpu, index: int, value: int, host: bool) -> None:
    """Raises Unsupported or Invalid."""
    tdx_msrs.set_msr(vcpu, index, value, host)


def tdx_read_l1_tsc(vcpu: Vcpu, host_tsc: int) -> int:
    """Return the TD's TSC, from the offset and multiplier that the module chose."""
    td = to_kvm_tdx(vcpu.kvm)
    return (host_tsc * td.tsc_multiplier >> 48) + td.tsc_offset & (1 << 64) - 1


def tdx_get_tsc_offset(vcpu: Vcpu) -> int:
    """Return what the module chose."""
    return to_kvm_tdx(vcpu.kvm).tsc_offset


def tdx_write_tsc_offset(vcpu: Vcpu, offset: int) -> None:
    """The module's; ignored."""


def tdx_write_tsc_multiplier(vcpu: Vcpu) -> None:
    """A TD's TSC frequency is fixed by INIT_VM. Raises OSError(EINVAL)."""
    raise err(errno.EINVAL, "the TSC frequency of a TD is fixed")


def tdx_msr_filter_changed(vcpu: Vcpu) -> None:
    """Which MSRs of a TD exit is settled by the module."""


def tdx_vcpu_after_set_cpuid(vcpu: Vcpu) -> None:
    """The module enforces CPUID; KVM's copy answers TDVMCALLs only."""


# --- Interrupts -------------------------------------------------------------------------------------------------------


def tdx_deliver_interrupt(vcpu: Vcpu, vector: int) -> None:
    """Post the interrupt. The local APIC of a TD is the module's and the processor's: KVM cannot inject."""
    # PIR is written before ON, and `in_guest` is read after both: the vCPU either sees the bit when it enters or is
    # found inside and notified.
    notify = vcpu.tdx.pi_desc.post(vector)
    if not vcpu.in_guest:
        vcpu.kick()
    elif notify:
        vcpu.kvm.processor.send_notification(vcpu.cpu)
    else:
        vcpu.kick()


def tdx_protected_apic_has_interrupt(vcpu: Vcpu) -> bool:
    """Return whether an interrupt is posted, or pending in the virtual APIC of a vCPU halted with interrupts on."""
    tdx = vcpu.tdx
    if tdx.pi_desc.pending():
        return True
    # Only a HLT with interrupts enabled can leave a deliverable one pending in the virtual APIC. At any other exit the
    # guest must be blocking it: it would have been delivered at an instruction's end otherwise.
    if not tdx.halted or tdx.vp_enter_args.r12:
        return False
    if tdx.associated_cpu < 0:  # the vCPU has moved since; the leaf associates it again
        tdx.associated_cpu = vcpu.cpu
    status, details = to_kvm_tdx(vcpu.kvm).host.seamcall.tdh_vp_rd(tdx.tdvpr, MD_VCPU_STATE_DETAILS, tdx.associated_cpu)
    if status:
        tdh_vp_rd_failed(vcpu, MD_VCPU_STATE_DETAILS, status)
    return not status and bool(details & STATE_DETAILS_INTR_PENDING)


def tdx_inject_machine_check(vcpu: Vcpu) -> bool:
    """KVM cannot: the guest's exceptions are the module's. False."""
    return False


def tdx_interrupt_allowed(vcpu: Vcpu) -> bool:
    """A vCPU that halted with interrupts blocked (HLT's R12) wakes for an NMI only."""
    tdx = vcpu.tdx
    return not (tdx.halted and tdx.vp_enter_args.r12)


def tdx_nmi_allowed(vcpu: Vcpu) -> bool:
    """The module holds NMIs back itself."""
    return True


def tdx_apic_init_signal_blocked(vcpu: Vcpu) -> bool:
    """INIT and SIPI never reach a TD: its firmware wakes the other vCPUs by mailbox."""
    return True


def tdx_clear_hlt(vcpu: Vcpu) -> None:
    """A TD's HLT is a TDVMCALL: no vCPU of one sleeps in the processor."""


def tdx_load_mmu_pgd(vcpu: Vcpu) -> None:
    """The shared EPT has its levels from KVM_TDX_INIT_VM on; its root is written before the first entry."""


def tdx_set_virtual_apic_mode(vcpu: Vcpu) -> None:
    """Always x2APIC, by the module."""
