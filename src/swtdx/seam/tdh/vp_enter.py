# SPDX-License-Identifier: GPL-2.0-or-later
"""TDH.VP.ENTER: run a virtual CPU until an exit that the host must handle.

While the guest runs, the TD and the virtual CPU are held shared (their metadata entries' locks) and other SEAMCALLs
can run; the module handles a VM exit with its own lock held.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from swtdx.seam.dispatch import SEAMCALL_NUMBERS, leaf
from swtdx.seam.hardware import Args
from swtdx.seam.lifecycle import VCPU_STATE, Event, LastTdExit, VcpuState
from swtdx.seam.status import Operand, Status, StatusCode
from swtdx.seam.td_exit import asynchronous, injected_for_debugger
from swtdx.seam.td_params import check_limit_cpuid_maxval, check_monitor, check_tsc_adjust
from swtdx.seam.tdg.vm_exits import HANDLERS, unexpected
from swtdx.seam.tdg.vmcall import resume
from swtdx.seam.vcpu import NO_LP
from swtdx.x86 import Gpr

if TYPE_CHECKING:
    from swtdx.seam.module import TdxModule
    from swtdx.seam.vcpu import Vcpu

VP_ENTER = SEAMCALL_NUMBERS["TDH.VP.ENTER"]
RECOVERABILITY_HINT = 1 << 52
RESUME_L1 = 1 << 53
RESERVED = 0xFFC0_0000_0000_0FFF
_READY = VcpuState.READY
# Looked up once: a virtual CPU enters and exits more often than anything else happens here.
_ACTIVE = VCPU_STATE.after(_READY, Event.VP_ENTER)
_EXITED = VCPU_STATE.after(_ACTIVE, Event.TD_EXIT)
_TDVMCALL, _TRAP = LastTdExit.TDVMCALL, LastTdExit.ASYNC_TRAP
RAX = int(Gpr.RAX)
STATUS_HINT = 1 << 60
"""HOST_RECOVERABILITY_HINT of a status."""


@leaf("TDH.VP.ENTER")
def tdh_vp_enter(module: TdxModule, args: Args, lp: int) -> int:
    """Run until a TD exit; after a TDVMCALL the host's registers that the guest selected are inputs."""
    # Look first: the usual entry repeats the one before, and `_check` makes a dozen checks.
    vcpu, processor = module.vcpus.get(args.rcx), module.processor
    hint = False
    if (
        vcpu is None
        or vcpu.state is not _READY
        or vcpu.lp != lp
        or VP_ENTER not in vcpu.td.allowed
        or processor.msrs_changed
    ):
        hint = bool(args.rcx & RECOVERABILITY_HINT)
        vcpu = _check(module, args.rcx, lp)
    td, context = vcpu.td, vcpu.context
    qwords, td_lock, vcpu_lock = module.memory.qwords, td.pamt_index, vcpu.pamt_index
    # Shared locks, counted in the metadata entries: meanwhile others get OPERAND_BUSY for what needs them exclusively.
    qwords[td_lock] += 1
    qwords[vcpu_lock] += 1
    epoch = td.epoch
    td.refcount[epoch & 1] += 1
    vcpu.state = _ACTIVE
    # In a new epoch, mappings may have been blocked since this virtual CPU cached them.
    if vcpu.epoch != epoch or vcpu.flush_needed:
        context.invept()
        vcpu.epoch, vcpu.flush_needed = epoch, False
    if vcpu.last_td_exit is _TDVMCALL:
        resume(vcpu, args)
    elif vcpu.last_td_exit is _TRAP:
        context.gpr[RAX] = context.gpr[RAX] & ~STATUS_HINT | (STATUS_HINT if hint else 0)
    # A guest that is about to read VE_INFO must not be interrupted by an NMI whose handler could raise another #VE.
    if vcpu.pending_nmi and not vcpu.ve.valid:
        context.nmi_window_exiting = True
    lock = module.lock
    processor.enter_lp(lp, context)
    result: int | None = None
    try:
        while result is None:
            # The guest runs without the module's lock, or no other SEAMCALL could reach the module.
            lock.release()
            try:
                reason = context.run()
            finally:
                lock.acquire()
            if td.fatal:  # another virtual CPU met an integrity error
                dead = StatusCode.NON_RECOVERABLE_TD_NON_ACCESSIBLE
                qualification, information = context.exit_qualification, context.interruption_info
                return asynchronous(
                    vcpu, args, reason, status=dead, qualification=qualification, interruption=information
                )
            handler = HANDLERS.get(reason)
            if handler is None:
                result = unexpected(module, vcpu, args, reason)
            else:
                result = handler(module, vcpu, args)
                if result is None and td.debug:
                    result = injected_for_debugger(vcpu, args)
    finally:
        processor.leave_lp(lp)
        td.refcount[epoch & 1] -= 1
        qwords[td_lock] -= 1
        qwords[vcpu_lock] -= 1
        if vcpu.state is _ACTIVE:
            vcpu.state = _EXITED
        if td.debug:  # the only one whose host can read it
            vcpu.last_exit_tsc = processor.rdtsc()
    return result


def _check(module: TdxModule, rcx: int, lp: int) -> Vcpu:
    """Make the checks of TDH.VP.ENTER in order; raises the Status of the first that fails.

    Left out: a time-stamp counter that went back (here it is the machine's own), and the zero-step defence.
    """
    check_limit_cpuid_maxval(module.processor.rdmsr)
    if rcx & RESERVED:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    vcpu = module.vcpu(rcx & ~(RECOVERABILITY_HINT | RESUME_L1), Operand.RCX)
    vcpu.td.check_state(VP_ENTER)
    if len(vcpu.pages) < vcpu.td.vcpu_pages:
        raise Status(StatusCode.TDCX_NUM_INCORRECT)
    if vcpu.state is not _READY:
        raise Status(StatusCode.VCPU_STATE_INCORRECT)
    if vcpu.lp not in (NO_LP, lp):
        raise Status(StatusCode.VCPU_ASSOCIATED)
    vcpu.associate(lp)  # stays so if a later check fails
    if rcx & RECOVERABILITY_HINT and vcpu.last_td_exit is not _TRAP:
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    if rcx & RESUME_L1:  # there is no L2 virtual machine, so CURR_VM is 0
        raise Status(StatusCode.OPERAND_INVALID, Operand.RCX)
    check_tsc_adjust(module.processor.rdmsr, module.tsc_adjust)
    check_monitor(module.processor.rdmsr, vcpu.td)
    vcpu.td.check_lock(Operand.TD_EPOCH, shared=True)
    return vcpu
