# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU: its shared page, KVM_RUN, its registers."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterable, Mapping

from swtdx.uapi import kvm
from swtdx.uapi.client.error import KvmError
from swtdx.uapi.client.tdx import TdVcpu
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.layout import filled, u64

KERNEL_SIGSET_SIZE = 8  # bytes, on x86-64


class Vcpu(TdVcpu):
    """Made by `Vm.create_vcpu`. ``kvm_run`` lies over the shared page, not a copy: read and write its members.
    After `close` it is a copy of what was there last. A reference to the page keeps it mapped, and so the VM.

    Registers of a TD's vCPU belong to the TD: their getters and setters are EINVAL.
    """

    def __init__(self, kernel: Kernel, fd: int, dialect: Dialect, vcpu_id: int, mmap_size: int) -> None:
        super().__init__(kernel, fd, dialect)
        self.id = vcpu_id
        try:
            self.mapping = kernel.mmap(fd, mmap_size)
        except OSError as error:
            self.close()
            raise KvmError(error.errno or errno.EIO, "mmap of a vCPU") from None
        self.kvm_run = kvm.kvm_run.from_buffer(self.mapping)

    def close(self) -> None:
        """close(2), and munmap(2) of what was mapped unless it is still referenced."""
        mapped = self.fd >= 0 and hasattr(self, "kvm_run")
        super().close()
        if mapped:
            self.kvm_run = kvm.kvm_run.from_buffer_copy(self.mapping)
            with contextlib.suppress(BufferError):
                self.mapping.close()

    def run(self) -> None:
        """KVM_RUN: run the guest until ``kvm_run.exit_reason`` says why not.

        EINTR: a signal, or ``kvm_run.immediate_exit``. EFAULT with `Exit.MEMORY_FAULT`: memory of the wrong nature.

        >>> vcpu.kvm_run.immediate_exit = 1
        >>> try:
        ...     vcpu.run()
        ... except KvmError as error:
        ...     print(error)
        KVM_RUN: EINTR (Interrupted system call)
        >>> vcpu.kvm_run.immediate_exit = 0
        """
        try:
            self.kernel.ioctl(self.fd, kvm.KVM_RUN, 0)
        except OSError as error:
            raise KvmError(error.errno or errno.EIO, "KVM_RUN") from None

    @property
    def exit_reason(self) -> int:
        """``kvm_run.exit_reason`` as an `Exit` where it is one that x86 knows."""
        reason = int(self.kvm_run.exit_reason)
        try:
            return kvm.Exit(reason)
        except ValueError:
            return reason

    def io_data(self) -> bytes:
        """After `Exit.IO`: the bytes that the guest writes, ``count`` items of ``size``."""
        io = self.kvm_run.io
        return self.mapping[io.data_offset : io.data_offset + io.size * io.count]

    def set_io_data(self, data: bytes) -> None:
        """After `Exit.IO` with direction in: the bytes that the guest gets at the next `run`."""
        start = int(self.kvm_run.io.data_offset)
        self.mapping[start : start + len(data)] = data

    # --- Registers ----------------------------------------------------------------------------------------------------

    def get_regs(self) -> kvm.kvm_regs:
        """KVM_GET_REGS.

        >>> hex(vcpu.get_regs().rip)  # the reset vector, with CS base 0xFFFF0000
        '0xfff0'
        """
        return self.fetch(kvm.KVM_GET_REGS, kvm.kvm_regs)

    def set_regs(self, regs: kvm.kvm_regs) -> None:
        """KVM_SET_REGS.

        >>> vcpu.set_regs(kvm_regs(rip=0x1000, rflags=2))
        >>> hex(vcpu.get_regs().rip)
        '0x1000'
        """
        self.put(kvm.KVM_SET_REGS, regs)

    def get_sregs(self) -> kvm.kvm_sregs:
        """KVM_GET_SREGS: segments, control registers, EFER, APIC base.

        >>> hex(vcpu.get_sregs().cs.base)
        '0xffff0000'
        """
        return self.fetch(kvm.KVM_GET_SREGS, kvm.kvm_sregs)

    def set_sregs(self, sregs: kvm.kvm_sregs) -> None:
        """KVM_SET_SREGS. EINVAL: an impossible combination.

        >>> sregs = vcpu.get_sregs()
        >>> sregs.cs.base, sregs.cs.selector = 0, 0
        >>> vcpu.set_sregs(sregs)
        """
        self.put(kvm.KVM_SET_SREGS, sregs)

    def get_sregs2(self) -> kvm.kvm_sregs2:
        """KVM_GET_SREGS2: as `get_sregs`, with the PDPTEs in place of the pending interrupt.

        >>> hex(vcpu.get_sregs2().cs.base) if kvm.check_extension(Cap.SREGS2) else '0xffff0000'
        '0xffff0000'
        """
        return self.fetch(kvm.KVM_GET_SREGS2, kvm.kvm_sregs2)

    def set_sregs2(self, sregs: kvm.kvm_sregs2) -> None:
        """KVM_SET_SREGS2."""
        self.put(kvm.KVM_SET_SREGS2, sregs)

    def get_fpu(self) -> kvm.kvm_fpu:
        """KVM_GET_FPU.

        >>> hex(vcpu.get_fpu().fcw)
        '0x37f'
        """
        return self.fetch(kvm.KVM_GET_FPU, kvm.kvm_fpu)

    def set_fpu(self, fpu: kvm.kvm_fpu) -> None:
        """KVM_SET_FPU.

        >>> vcpu.set_fpu(vcpu.get_fpu())
        """
        self.put(kvm.KVM_SET_FPU, fpu)

    def get_xsave(self) -> kvm.kvm_xsave:
        """KVM_GET_XSAVE: the first 4096 bytes, which is all unless AMX is enabled.

        >>> vcpu.set_xsave(vcpu.get_xsave())
        """
        return self.fetch(kvm.KVM_GET_XSAVE, kvm.kvm_xsave)

    def set_xsave(self, xsave: kvm.kvm_xsave) -> None:
        """KVM_SET_XSAVE."""
        self.put(kvm.KVM_SET_XSAVE, xsave)

    def get_xcrs(self) -> kvm.kvm_xcrs:
        """KVM_GET_XCRS.

        >>> vcpu.get_xcrs().xcrs[0].value  # XCR0 after reset
        1
        """
        return self.fetch(kvm.KVM_GET_XCRS, kvm.kvm_xcrs)

    def set_xcrs(self, xcrs: kvm.kvm_xcrs) -> None:
        """KVM_SET_XCRS.

        >>> vcpu.set_xcrs(vcpu.get_xcrs())
        """
        self.put(kvm.KVM_SET_XCRS, xcrs)

    def get_debugregs(self) -> kvm.kvm_debugregs:
        """KVM_GET_DEBUGREGS.

        >>> hex(vcpu.get_debugregs().dr6)
        '0xffff0ff0'
        """
        return self.fetch(kvm.KVM_GET_DEBUGREGS, kvm.kvm_debugregs)

    def set_debugregs(self, debugregs: kvm.kvm_debugregs) -> None:
        """KVM_SET_DEBUGREGS.

        >>> vcpu.set_debugregs(vcpu.get_debugregs())
        """
        self.put(kvm.KVM_SET_DEBUGREGS, debugregs)

    def get_lapic(self) -> kvm.kvm_lapic_state:
        """KVM_GET_LAPIC. EINVAL without an in-kernel APIC, and for a TD.

        >>> with kvm.create_vm() as fresh:
        ...     fresh.split_irqchip()
        ...     with fresh.create_vcpu(0) as bsp:
        ...         bsp.get_lapic().regs[0x30] & 0xF0  # the version register: an integrated APIC
        16
        """
        return self.fetch(kvm.KVM_GET_LAPIC, kvm.kvm_lapic_state)

    def set_lapic(self, lapic: kvm.kvm_lapic_state) -> None:
        """KVM_SET_LAPIC."""
        self.put(kvm.KVM_SET_LAPIC, lapic)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: KVM_MP_STATE_*.

        >>> vcpu.get_mp_state() == KVM_MP_STATE_RUNNABLE
        True
        """
        return int(self.fetch(kvm.KVM_GET_MP_STATE, kvm.kvm_mp_state).mp_state)

    def set_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE; without an in-kernel APIC only RUNNABLE.

        >>> vcpu.set_mp_state(KVM_MP_STATE_RUNNABLE)
        """
        self.put(kvm.KVM_SET_MP_STATE, kvm.kvm_mp_state(mp_state))

    def get_vcpu_events(self) -> kvm.kvm_vcpu_events:
        """KVM_GET_VCPU_EVENTS: what is pending or being injected.

        >>> vcpu.set_vcpu_events(vcpu.get_vcpu_events())
        """
        return self.fetch(kvm.KVM_GET_VCPU_EVENTS, kvm.kvm_vcpu_events)

    def set_vcpu_events(self, events: kvm.kvm_vcpu_events) -> None:
        """KVM_SET_VCPU_EVENTS."""
        self.put(kvm.KVM_SET_VCPU_EVENTS, events)

    def set_msrs(self, values: Mapping[int, int]) -> int:
        """KVM_SET_MSRS: the number set; less than asked means that the next one was refused.

        >>> vcpu.set_msrs({0x174: 8})  # IA32_SYSENTER_CS
        1
        """
        entries = [kvm.kvm_msr_entry(index=index, data=data) for index, data in values.items()]
        return self.put(kvm.KVM_SET_MSRS, filled(kvm.kvm_msrs, entries, nmsrs=len(entries)))

    def set_cpuid2(self, entries: Iterable[kvm.kvm_cpuid_entry2]) -> None:
        """KVM_SET_CPUID2, before the first `run`.

        >>> vcpu.set_cpuid2(kvm.supported_cpuid())
        """
        listed = list(entries)
        self.put(kvm.KVM_SET_CPUID2, filled(kvm.kvm_cpuid2, listed, nent=len(listed)))

    def get_cpuid2(self) -> list[kvm.kvm_cpuid_entry2]:
        """KVM_GET_CPUID2.

        >>> vcpu.get_cpuid2()
        []
        """
        answer = self.listed(kvm.KVM_GET_CPUID2, kvm.kvm_cpuid2, "nent", 256)
        return list(answer.entries[: answer.nent])

    # --- Events -------------------------------------------------------------------------------------------------------

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: an external interrupt. ENXIO with a full in-kernel irqchip; EEXIST: one is pending (split).

        >>> vcpu.interrupt(0x20)
        """
        self.put(kvm.KVM_INTERRUPT, kvm.kvm_interrupt(vector))

    def nmi(self) -> None:
        """KVM_NMI.

        >>> vcpu.nmi()
        """
        self.ioctl(kvm.KVM_NMI)

    def smi(self) -> None:
        """KVM_SMI. ENOTTY without SMM (TDs, or KVM_CAP_X86_SMM = 0).

        >>> vcpu.smi() if kvm.check_extension(Cap.X86_SMM) else None
        """
        self.ioctl(kvm.KVM_SMI)

    def translate(self, address: int) -> kvm.kvm_translation:
        """KVM_TRANSLATE: the guest's page tables applied to a linear address.

        >>> translation = vcpu.translate(0x1234)  # paging is off
        >>> translation.valid, hex(translation.physical_address)
        (1, '0x1234')
        """
        translation = kvm.kvm_translation(linear_address=address)
        self.put(kvm.KVM_TRANSLATE, translation)
        return translation

    def set_guest_debug(self, control: int, debugreg: Iterable[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG: KVM_GUESTDBG_* and breakpoint registers.

        >>> vcpu.set_guest_debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP)
        >>> vcpu.set_guest_debug(0)
        """
        request = kvm.kvm_guest_debug(control=control)
        for position, value in enumerate(debugreg):
            request.arch.debugreg[position] = value
        self.put(kvm.KVM_SET_GUEST_DEBUG, request)

    def set_signal_mask(self, signals: Iterable[int] | None) -> None:
        """KVM_SET_SIGNAL_MASK: signals blocked while the guest runs; None: the thread's own mask.

        >>> vcpu.set_signal_mask([10])
        >>> vcpu.set_signal_mask(None)
        """
        if signals is None:
            self.ioctl(kvm.KVM_SET_SIGNAL_MASK, 0)
            return
        mask = sum(1 << signal - 1 for signal in set(signals))
        octets = mask.to_bytes(KERNEL_SIGSET_SIZE, "little")
        self.put(kvm.KVM_SET_SIGNAL_MASK, filled(kvm.kvm_signal_mask, octets, len=KERNEL_SIGSET_SIZE))

    def tpr_access_reporting(self, enabled: bool) -> None:
        """KVM_TPR_ACCESS_REPORTING. EINVAL without an in-kernel APIC."""
        self.put(kvm.KVM_TPR_ACCESS_REPORTING, kvm.kvm_tpr_access_ctl(enabled=enabled))

    def set_vapic_addr(self, gpa: int) -> None:
        """KVM_SET_VAPIC_ADDR. EINVAL without an in-kernel APIC."""
        self.put(kvm.KVM_SET_VAPIC_ADDR, kvm.kvm_vapic_addr(gpa))

    def setup_mce(self, mcg_cap: int) -> None:
        """KVM_X86_SETUP_MCE: IA32_MCG_CAP within `Kvm.mce_cap_supported`, its low byte the number of banks.

        >>> vcpu.setup_mce(kvm.mce_cap_supported() & ~0xFF | 10)
        """
        self.put(kvm.KVM_X86_SETUP_MCE, u64(mcg_cap))

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell the guest that it was paused. EINVAL if it has not set kvmclock up."""
        self.ioctl(kvm.KVM_KVMCLOCK_CTRL)

    def pre_fault_memory(self, gpa: int, size: int) -> None:
        """KVM_PRE_FAULT_MEMORY: map a range now. EOPNOTSUPP for a TD before `Vm.tdx_finalize`; ENOENT: no memory there.

        >>> if kvm.check_extension(Cap.PRE_FAULT_MEMORY):
        ...     vcpu.pre_fault_memory(0, 0x1000)
        """
        request = kvm.kvm_pre_fault_memory(gpa=gpa, size=size)
        while request.size:
            try:
                self.put(kvm.KVM_PRE_FAULT_MEMORY, request)
            except KvmError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    raise
