# SPDX-License-Identifier: GPL-2.0-or-later
"""A virtual CPU and KVM_RUN (struct kvm_vcpu; kvm_arch_vcpu_ioctl_run, vcpu_run, vcpu_block in arch/x86/kvm/x86.c).

The loop: enter the guest, let kvm_x86_ops handle the exit, go on while the handler answers 1, return to user space when
it answers 0. An exit that user space must complete leaves a callback in ``complete_userspace_io`` for the next KVM_RUN.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.cpuid import CpuidTable
from swtdx.linux.arch.x86.kvm.lapic import (
    APIC_DEFAULT_PHYS_BASE,
    APICBASE_BSP,
    APICBASE_ENABLE,
    APICBASE_RESERVED,
    APICBASE_X2APIC,
    Lapic,
)
from swtdx.linux.arch.x86.kvm.x86.async_pf import AsyncPf
from swtdx.linux.arch.x86.kvm.x86.msrs import EmulatedMsrs
from swtdx.linux.arch.x86.kvm.x86.pvclock import PvTime
from swtdx.linux.arch.x86.kvm.x86.steal_time import StealTime
from swtdx.linux.err import err
from swtdx.linux.sched import SIGNAL_POLL_SECONDS, TICK_SECONDS, HeldSignals
from swtdx.linux.virt.kvm import binary_stats as stats
from swtdx.linux.virt.kvm import run_struct
from swtdx.linux.virt.kvm.binary_stats import EXITS, HOST_STATE_RELOAD, VCPU_STATISTICS, Statistics
from swtdx.linux.virt.kvm.kvm_main import IrqchipMode, Kvm
from swtdx.uapi.kvm import (
    KVM_EXIT_FAIL_ENTRY,
    KVM_EXIT_INTERNAL_ERROR,
    KVM_EXIT_INTR,
    KVM_EXIT_IOAPIC_EOI,
    KVM_EXIT_IRQ_WINDOW_OPEN,
    KVM_EXIT_MEMORY_FAULT,
    KVM_EXIT_SHUTDOWN,
    KVM_EXIT_UNKNOWN,
    KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_MP_STATE_UNINITIALIZED,
)
from swtdx.x86 import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.vmx.tdx_vcpu import VcpuTdx
    from swtdx.linux.arch.x86.kvm.vmx.vmx import VcpuVmx

_UNKNOWN, _INTR, _IRQ_WINDOW_OPEN = int(KVM_EXIT_UNKNOWN), int(KVM_EXIT_INTR), int(KVM_EXIT_IRQ_WINDOW_OPEN)
_IMMEDIATE_EXIT = run_struct.IMMEDIATE_EXIT
_EXIT_REASON = run_struct.EXIT_REASON
_RUNNABLE = KVM_MP_STATE_RUNNABLE
_NMI_LOCK = threading.Lock()  # of nmi_queued, of all vCPUs: any thread counts one more, the vCPU's takes them all
_SPIN_SECONDS, _SPIN_SECONDS_MAX = 0.0001, 0.1
"""How long a vCPU that polls is put to sleep at first and at most. Each sleep is twice the last, so that it has waited
no more than twice as long as it had to; processors that firmware parks in a loop must not cost those that work."""


class Vcpu:
    """``run`` is the memory that user space maps: kvm_run, the PIO page, the coalesced-MMIO page."""

    __slots__ = ("__dict__", "__weakref__", "interrupted", "nmi_pending", "nmi_queued", "sigset")  # PageRun reads them

    vmx: VcpuVmx
    tdx: VcpuTdx

    def __init__(self, kvm: Kvm, vcpu_id: int, run: memoryview) -> None:
        self.kvm = kvm
        self.ops = kvm.ops
        self.is_td = kvm.is_td  # its registers are protected, too (guest_state_protected)
        self.vcpu_id = vcpu_id
        self.vcpu_idx = -1
        self.run = run
        self.mutex = threading.Lock()
        self.is_bsp = vcpu_id == kvm.bsp_vcpu_id
        # An AP waits for INIT and SIPI where there is a local APIC in the kernel to receive them.
        waits = kvm.irqchip_mode is not IrqchipMode.NONE and not self.is_bsp
        self.mp_state = KVM_MP_STATE_UNINITIALIZED if waits else KVM_MP_STATE_RUNNABLE

        self.cpu = kvm.created_vcpus % kvm.cpus.count
        self.in_guest = False
        self.entries = 0
        self.blocking = False
        self.kicked = False  # since it last looked at what asks for a kick: it does not enter, or leaves at once
        self._wait = kvm.kernel.new_wait_queue()
        self._signals = HeldSignals()
        self.interrupted = False  # a signal that was held back waits
        self.run_flags = 0  # of this KVM_RUN's exit (KVM_RUN_X86_*)
        self.spin_seconds = 0.0  # how long to sleep before the next entry
        self._spin_backoff = 0.0
        self.sigset: int | None = None
        self.has_run = False

        self.complete_userspace_io: Callable[[], int | None] | None = None
        self.nmi_queued = self.nmi_pending = 0
        self.triple_fault_pending = False
        self.pv_features_enforced = False
        self.pv_unhalted = False  # another vCPU asks by hypercall that a HLT end
        self.pending_external_vector = -1
        self.apic: Lapic | None = None
        self._apic_base = APIC_DEFAULT_PHYS_BASE | APICBASE_ENABLE | (APICBASE_BSP if self.is_bsp else 0)
        self.cpuid = CpuidTable()
        self.cr4_guest_rsvd_bits = 0
        self.virtual_tsc_khz = kvm.default_tsc_khz
        self.msrs = EmulatedMsrs(self)
        self.pv_time = PvTime(self)
        self.steal_time = StealTime(self)
        self.async_pf = AsyncPf(self)
        self.stat = Statistics(f"kvm-{os.getpid()}/vcpu-{vcpu_id}", VCPU_STATISTICS)
        self.ops.vcpu_create(self)

    def free(self) -> None:
        """kvm_vcpu_destroy; at the VM's end."""
        if self.apic is not None:
            self.apic.free()
        self.ops.vcpu_free(self)

    # --- APIC base, CPUID, TSC ----------------------------------------------------------------------------------------

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self.apic.base if self.apic is not None else self._apic_base

    def set_apic_base(self, value: int, *, host: bool = True) -> None:
        """kvm_apic_set_base; the guest may not change modes as it likes. Raises OSError(EINVAL)."""
        old = self.apic_base
        if value == old:
            return
        both = APICBASE_ENABLE | APICBASE_X2APIC
        old_mode, mode = old & both, value & both
        x2apic = 0 if self.guest_cpuid_has_x2apic() else APICBASE_X2APIC
        if value & (self.cpuid.reserved_gpa_bits | APICBASE_RESERVED | x2apic) or mode == APICBASE_X2APIC:
            raise err(errno.EINVAL, f"IA32_APIC_BASE {value:#x}: reserved bits, or no mode that the vCPU has")
        if not host and (old_mode, mode) in ((both, APICBASE_ENABLE), (0, both)):
            raise err(errno.EINVAL, f"IA32_APIC_BASE {value:#x}: not a way into or out of x2APIC mode")
        if self.apic is not None:
            self.apic.set_base(value)
        else:
            self._apic_base = value

    def guest_cpuid_has_x2apic(self) -> bool:
        """Return whether the guest's CPUID offers x2APIC."""
        leaf = self.cpuid.find(1)
        return leaf is not None and bool(leaf[2] & 1 << 21)

    def guest_pv_has(self, feature: int) -> bool:
        """Whether the guest may use a paravirtual feature: any, unless user space wants its CPUID to be asked."""
        return not self.pv_features_enforced or bool(self.cpuid.pv_features & 1 << feature)

    def guest_tsc(self) -> int:
        """The guest's TSC now."""
        return self.ops.read_l1_tsc(self, self.kvm.processor.rdtsc())

    # --- Interrupts ---------------------------------------------------------------------------------------------------

    def kick(self) -> None:
        """kvm_vcpu_kick: out of the guest, or awake, whichever applies."""
        self.kicked = True  # before the look at `in_guest`: one that is about to enter sees it
        if self.in_guest:
            self.ops.vcpu_kick(self)
        elif self.blocking:
            self.stat.values[stats.HALT_WAKEUP] += 1
            self._wait.wake_up()

    def is_in_guest(self, entries: int) -> bool:
        """Return whether the vCPU is in the guest since entry number ``entries``."""
        return self.in_guest and self.entries == entries

    def queue_nmi(self) -> None:
        """kvm_inject_nmi, by any thread."""
        with _NMI_LOCK:
            self.nmi_queued += 1
        self.kick()

    def process_nmi(self) -> int:
        """Count what was queued as pending, and return how many are: one while NMIs are blocked, else two."""
        if self.nmi_queued:
            with _NMI_LOCK:
                queued, self.nmi_queued = self.nmi_queued, 0
            self.nmi_pending = min(self.nmi_pending + queued, 2 if self.ops.nmi_allowed(self) else 1)
        return self.nmi_pending

    # --- Exits --------------------------------------------------------------------------------------------------------

    def memory_fault(self, gfn: int, private: bool, reason: str, code: int = errno.EFAULT) -> OSError:
        """Prepare KVM_EXIT_MEMORY_FAULT; the error with which KVM_RUN is to fail."""
        run_struct.U32.pack_into(self.run, _EXIT_REASON, int(KVM_EXIT_MEMORY_FAULT))
        flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if private else 0
        run_struct.MEMORY_FAULT.pack_into(self.run, run_struct.UNION, flags, gfn << PAGE_SHIFT, PAGE_SIZE)
        return err(code, reason)

    def internal_error(self, data0: int, suberror: int = KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON) -> int:
        """KVM_EXIT_INTERNAL_ERROR with what happened and the CPU it happened on; 0."""
        run_struct.U32.pack_into(self.run, _EXIT_REASON, int(KVM_EXIT_INTERNAL_ERROR))
        run_struct.INTERNAL.pack_into(self.run, run_struct.UNION, suberror, 2, data0, self.cpu)
        return 0

    def fail_entry(self, reason: int) -> int:
        """KVM_EXIT_FAIL_ENTRY with the hardware's reason and the CPU; 0."""
        run_struct.U32.pack_into(self.run, _EXIT_REASON, int(KVM_EXIT_FAIL_ENTRY))
        run_struct.U64.pack_into(self.run, run_struct.UNION, reason)
        run_struct.U32.pack_into(self.run, run_struct.UNION + 8, self.cpu)
        return 0

    # --- KVM_RUN ------------------------------------------------------------------------------------------------------

    def kvm_arch_vcpu_ioctl_run(self) -> int:
        """KVM_RUN with vcpu.mutex held. Raises OSError: EINTR, EAGAIN, EINVAL, EFAULT, EIO."""
        run = self.run
        run_struct.U16.pack_into(run, run_struct.FLAGS, 0)
        if self.mp_state == KVM_MP_STATE_UNINITIALIZED:
            self._run_uninitialized()
        valid = run_struct.U64.unpack_from(run, run_struct.VALID_REGS)[0]
        dirty = run_struct.U64.unpack_from(run, run_struct.VALID_REGS + 8)[0]
        if not (valid or dirty):
            return self._complete_and_run()
        self.ops.sync_regs_load(self, valid, dirty)
        try:
            return self._complete_and_run()
        finally:
            self.ops.sync_regs_store(self, valid)

    def _complete_and_run(self) -> int:
        run = self.run
        if self.apic is None:
            self.ops.set_cr8(self, run_struct.U64.unpack_from(run, run_struct.CR8)[0])
        complete = self.complete_userspace_io
        if complete is not None:
            self.complete_userspace_io = None
            result = complete()
            if result == 0:
                self.post_kvm_run_save()
                return 0
        # After the completion: user space sets immediate_exit to have an exit completed without running the guest.
        if run[_IMMEDIATE_EXIT]:
            self.post_kvm_run_save()
            raise err(errno.EINTR, "immediate_exit")
        if not self.ops.vcpu_pre_run(self):
            self.post_kvm_run_save()
            return 0
        if self.triple_fault_pending:
            self.triple_fault_pending = False
            run_struct.U32.pack_into(run, _EXIT_REASON, int(KVM_EXIT_SHUTDOWN))
            self.post_kvm_run_save()
            return 0
        try:
            self.vcpu_run()
        finally:
            self.post_kvm_run_save()
        return 0

    def post_kvm_run_save(self) -> None:
        """Write what every exit reports: whether an interrupt can be injected, CR8, the APIC base."""
        ready, if_flag, cr8 = (0, 0, 0) if self.is_td else self.ops.post_run_state(self)
        flags = self.run_flags
        run_struct.STATE.pack_into(self.run, run_struct.READY_FOR_INTERRUPT, ready, if_flag, flags, cr8, self.apic_base)
        if flags:
            self.run_flags = 0

    def _run_uninitialized(self) -> None:
        """An application processor waits for INIT, or for user space to change its state; then EAGAIN, as in KVM."""
        if self.run[_IMMEDIATE_EXIT]:
            raise err(errno.EINTR, "immediate_exit")
        interrupted = self.kvm_vcpu_block()
        if interrupted or self.exit_requested():
            raise self.kvm_handle_signal_exit()
        self.kvm_apic_accept_events()
        raise err(errno.EAGAIN, "the vCPU was waiting to be started; run it again")

    def vcpu_run(self) -> None:
        """Enter and handle exits until one is for user space. Raises OSError as KVM_RUN."""
        run, kvm, ops, cpus = self.run, self.kvm, self.ops, self.kvm.cpus
        run_struct.U32.pack_into(run, _EXIT_REASON, _UNKNOWN)
        vcpu_run, handle_exit, stat = ops.vcpu_run, ops.handle_exit, self.stat
        looks = not kvm.kernel.sees_signals
        cpu = self._load()
        self.has_run = True
        self.kicked = False
        if self.apic is not None and self.apic.pending_init and not self.is_td:
            self.kvm_apic_accept_events()
        if self.async_pf.requested:
            self.async_pf.check_completion()
        try:
            while True:
                if self.mp_state == _RUNNABLE:
                    if kvm.dead:
                        raise kvm.dead_error()
                    self.entries += 1
                    vcpu_run(self, cpu)
                    stat.values[EXITS] += 1
                    if not handle_exit(self):
                        return
                    if self.spin_seconds:
                        self._put_preempted(cpu)
                        cpu = -1
                        if self.kvm_vcpu_on_spin():
                            raise self.kvm_handle_signal_exit()
                        cpu = self._load()
                else:
                    cpus.put_cpu(cpu)
                    cpu = -1
                    interrupted = self.vcpu_block()
                    if kvm.dead:
                        raise kvm.dead_error()
                    self.kvm_apic_accept_events()
                    if interrupted:
                        raise self.kvm_handle_signal_exit()
                    cpu = self._load()
                self.kicked = False  # what asked for it is looked at from here on
                apic = self.apic
                if apic is not None:
                    if apic.pending_ioapic_eoi is not None and self._ioapic_eoi_exit():
                        return
                    if apic.pending_init and not self.is_td:  # of one that runs, too
                        self.kvm_apic_accept_events()
                if run[run_struct.REQUEST_INTERRUPT_WINDOW] and self._irq_window_open():
                    return
                told = looks and run[_IMMEDIATE_EXIT]
                if told or self.interrupted or (self.watches_signals and self.signal_pending()):
                    raise self.kvm_handle_signal_exit()
                if cpus.waiters:  # cond_resched: another vCPU waits for a CPU
                    self._put_preempted(cpu)
                    cpu = -1
                    cpu = self._load()
        finally:
            if cpu >= 0:
                cpus.put_cpu(cpu)
            self.interrupted = False
            if self._signals.holding:
                self._signals.let_go()

    def kvm_handle_signal_exit(self) -> OSError:
        """Prepare KVM_EXIT_INTR; the error with which KVM_RUN is to fail."""
        run_struct.U32.pack_into(self.run, _EXIT_REASON, _INTR)
        self.stat.values[stats.SIGNAL_EXITS] += 1
        return err(errno.EINTR, "a signal is pending")

    def _load(self) -> int:
        if not self.steal_time.msr:
            cpu = self.kvm.cpus.get_cpu(self)
        else:
            asked = time.monotonic_ns()
            cpu = self.kvm.cpus.get_cpu(self)
            self.steal_time.waited_ns += time.monotonic_ns() - asked
            if self.steal_time.enabled:
                self.steal_time.record()
        if cpu != self.cpu:
            try:
                self.ops.vcpu_load(self, cpu)
            except BaseException:
                self.kvm.cpus.put_cpu(cpu)
                raise
            self.cpu = cpu
        self.stat.values[HOST_STATE_RELOAD] += 1
        return cpu

    def _put_preempted(self, cpu: int) -> None:
        """Give the CPU up though the guest could go on (kvm_sched_out, kvm_arch_vcpu_put)."""
        self.kvm.cpus.put_cpu(cpu)
        if self.steal_time.enabled:
            self.steal_time.set_preempted()

    def _ioapic_eoi_exit(self) -> bool:
        apic = self.apic
        assert apic is not None
        vector, apic.pending_ioapic_eoi = apic.pending_ioapic_eoi, None
        if vector is None:
            return False
        if self.kvm.ioapic is not None:
            self.kvm.ioapic.update_eoi(vector)
            return False
        run_struct.U32.pack_into(self.run, _EXIT_REASON, int(KVM_EXIT_IOAPIC_EOI))
        self.run[run_struct.UNION] = vector
        return True

    def _irq_window_open(self) -> bool:
        if self.is_td or self.kvm.irqchip_mode is IrqchipMode.KERNEL or not self.ops.post_run_state(self)[0]:
            return False
        self.stat.values[stats.REQUEST_IRQ_EXITS] += 1
        run_struct.U32.pack_into(self.run, _EXIT_REASON, _IRQ_WINDOW_OPEN)
        return True

    @property
    def watches_signals(self) -> bool:
        """Whether `signal_pending` can see any."""
        return self.sigset is not None or self.kvm.kernel.sees_signals

    def exit_requested(self) -> bool:
        """Return whether KVM_RUN is to end for a signal.

        KVM looks at immediate_exit only when KVM_RUN begins; so does this where all signals are seen. Elsewhere it
        stands for a handler that has run meanwhile.
        """
        if self.kvm.kernel.sees_signals:
            return self.signal_pending()
        return bool(self.run[_IMMEDIATE_EXIT]) or self.signal_pending()

    def signal_pending(self) -> bool:
        """signal_pending(current), as far as it can be seen: what a signal handler has told the processor
        (`EmulatedKernel.sees_signals`), and of blocked signals those that the vCPU's mask lets in.
        """
        if self.kvm.kernel.sees_signals and self.kvm.processor.signal_pending():
            return True
        if self.sigset is None:
            return False
        return any(not self.sigset >> number - 1 & 1 for number in self.kvm.mm.pending_signals())

    # --- Blocking -----------------------------------------------------------------------------------------------------

    def halt(self) -> int:
        """The guest halted: sleep in the kernel if it has a local APIC here. 1."""
        self.stat.values[stats.HALT_EXITS] += 1
        self.mp_state = KVM_MP_STATE_HALTED
        return 1

    def pv_kick(self) -> None:
        """KVM_HC_KICK_CPU: end the HLT in which the vCPU is, or the next one."""
        self.pv_unhalted = True
        self.kick()

    def kvm_arch_vcpu_runnable(self) -> bool:
        """Return whether the vCPU has something to do."""
        if self.mp_state == KVM_MP_STATE_RUNNABLE:
            return True
        apic = self.apic
        if self.mp_state == KVM_MP_STATE_UNINITIALIZED or self.mp_state == KVM_MP_STATE_INIT_RECEIVED:
            return apic is not None and (apic.pending_init or apic.pending_sipi)
        return self.pv_unhalted or self.kvm_vcpu_has_events()

    def kvm_vcpu_has_events(self) -> bool:
        """Return whether there is something that ends a HLT."""
        if (self.nmi_pending or self.nmi_queued) and self.ops.nmi_allowed(self):
            return True
        if (self.apic is not None and self.apic.pending_init) or self.async_pf.wakes_all:
            return True
        return self.ops.has_interrupt(self) and self.ops.interrupt_allowed(self)

    def vcpu_block(self) -> bool:
        """Sleep as a vCPU that halted, and be runnable after an event. True: a signal ended it."""
        interrupted = self.kvm_vcpu_block()
        if self.mp_state == KVM_MP_STATE_HALTED and self.kvm_arch_vcpu_runnable():
            self.kvm_set_mp_state(KVM_MP_STATE_RUNNABLE)
        return interrupted

    def kvm_vcpu_block(self) -> bool:
        """Sleep until runnable, a signal, the VM's death, or user space changes mp_state. True: a signal."""
        self.in_guest = False
        started = time.monotonic_ns()
        wait, interrupted = self._wait, self._signals.let_go()
        pause = SIGNAL_POLL_SECONDS if self.sigset is not None else 2 * TICK_SECONDS
        self.blocking = True
        self.stat.values[stats.BLOCKING] = 1
        try:
            while not interrupted:
                ticket = wait.ticket()
                if self.kvm_arch_vcpu_runnable() or self.kvm.dead or self.exit_requested():
                    break
                interrupted = wait.wait(ticket, pause)
        finally:
            self.blocking = False
            self.stat.values[stats.BLOCKING] = 0
        waited = time.monotonic_ns() - started
        self.stat.values[stats.HALT_WAIT_NS] += waited
        self.stat.log_hist(stats.HALT_WAIT_HIST, waited)
        return interrupted

    def external_interrupt(self) -> int:
        """The guest left for an interrupt of the host. 1.

        The processor lets one that only polls for another vCPU nap; but one that waits for a CPU is to have this one's.
        """
        self.stat.values[stats.IRQ_EXITS] += 1
        if not self.watches_signals:
            self.interrupted = self._signals.look()
        if self.kvm.cpus.waiters and self.kvm.processor.polls(self.cpu):
            self._spin_backoff = self.spin_seconds = min(2 * self._spin_backoff or _SPIN_SECONDS, _SPIN_SECONDS_MAX)
        else:
            self._spin_backoff = 0.0
        return 1

    def kvm_vcpu_on_spin(self) -> bool:
        """Let others run, unless there is something to do. True: a signal ended it."""
        until, self.spin_seconds = time.monotonic() + self.spin_seconds, 0.0
        wait = self._wait
        if self._signals.let_go():
            return True
        self.blocking = True
        try:
            ticket = wait.ticket()
            if self.kvm_vcpu_has_events():
                return False
            while (left := until - time.monotonic()) > 0 and not (self.exit_requested() or self.kvm.dead):
                if wait.wait(ticket, min(left, TICK_SECONDS / 2)):
                    return True
                if wait.ticket() != ticket:  # a kick: there is something to do
                    return False
        finally:
            self.blocking = False
        return False

    def kvm_apic_accept_events(self) -> None:
        """Act on INIT and SIPI."""
        apic = self.apic
        if apic is None:
            return
        if apic.pending_init:
            apic.pending_init = False
            self.ops.vcpu_reset(self, True)
            apic.reset()
            self.mp_state = KVM_MP_STATE_RUNNABLE if self.is_bsp else KVM_MP_STATE_INIT_RECEIVED
        if apic.pending_sipi:
            apic.pending_sipi = False
            if self.mp_state == KVM_MP_STATE_INIT_RECEIVED:
                self.ops.vcpu_deliver_sipi_vector(self, apic.sipi_vector)
                self.mp_state = KVM_MP_STATE_RUNNABLE

    def kvm_set_mp_state(self, state: int) -> None:
        """Change the state; a vCPU that becomes runnable has used up the request to end its HLT."""
        self.mp_state = state
        if state == KVM_MP_STATE_RUNNABLE:
            self.pv_unhalted = False

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE's effect, from another thread or this one."""
        if state == KVM_MP_STATE_SIPI_RECEIVED and self.apic is not None:
            state, self.apic.pending_sipi = KVM_MP_STATE_INIT_RECEIVED, True
        self.kvm_set_mp_state(state)
        self.kick()  # it may sleep in KVM_RUN in the former state


Handler = Callable[[Vcpu], int]
