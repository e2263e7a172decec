# SPDX-License-Identifier: GPL-2.0-or-later
"""ioctls on a vCPU's fd (kvm_vcpu_ioctl, kvm_arch_vcpu_ioctl).

First EIO for a caller in another address space or a dead VM, EINVAL for a request of another subsystem; then the
vCPU's mutex is taken, and an unknown request is EINVAL too. The SET ioctls of register state copy their argument before
they ask whether the state may be touched, as the kernel does, so for a TD a bad pointer is EFAULT; the GETs ask first.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from swtdx.linux.arch.x86.kvm.cpuid import (
    KVM_MAX_CPUID_ENTRIES,
    CpuidTable,
    apply_cpuid_pv_features_quirk,
    cpuid2_to_user,
    entries_from_user,
    runtime_entries,
)
from swtdx.linux.arch.x86.kvm.vmx.nested import get_nested_state, set_nested_state
from swtdx.linux.arch.x86.kvm.x86 import msrs
from swtdx.linux.arch.x86.kvm.x86.mce import set_mce
from swtdx.linux.arch.x86.kvm.x86.msrs import Invalid, Unsupported
from swtdx.linux.arch.x86.kvm.x86.sregs2 import get_sregs2, set_sregs2
from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
from swtdx.linux.arch.x86.kvm.x86.vcpu_attr import get_device_attr, has_device_attr, set_device_attr
from swtdx.linux.arch.x86.kvm.x86.vcpu_events import get_vcpu_events, set_vcpu_events
from swtdx.linux.err import err
from swtdx.linux.files import File, FileMapping, show_file
from swtdx.linux.mm import PAGE_SHIFT
from swtdx.linux.uaccess import copy_from_user, copy_to_user, current_mm, get_user, put_user, struct_from_user
from swtdx.linux.virt.kvm.kvm_main import MAX_TSC_KHZ, IrqchipMode, Kvm
from swtdx.linux.virt.kvm.pre_fault_memory import pre_fault_memory
from swtdx.linux.virt.kvm.run_struct import RUN_SIZE
from swtdx.uapi.kvm import (
    KVM_MP_STATE_AP_RESET_HOLD,
    KVM_MP_STATE_HALTED,
    KVM_MP_STATE_INIT_RECEIVED,
    KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_SIPI_RECEIVED,
    KVM_REG_ARCH_MASK,
    KVM_REG_SIZE_MASK,
    KVM_REG_SIZE_U64,
    KVM_REG_X86,
    KVM_RUN,
    KVM_X86_DISABLE_EXITS_HLT,
    KVM_X86_REG_TYPE_MSR,
    KVMIO,
    REQUESTS,
    Cap,
    kvm_cpuid_entry,
    kvm_cpuid_entry2,
    kvm_debugregs,
    kvm_enable_cap,
    kvm_fpu,
    kvm_guest_debug,
    kvm_interrupt,
    kvm_lapic_state,
    kvm_mp_state,
    kvm_msr_entry,
    kvm_one_reg,
    kvm_regs,
    kvm_signal_mask,
    kvm_sregs,
    kvm_tpr_access_ctl,
    kvm_translation,
    kvm_x86_mce,
    kvm_xcrs,
    kvm_xsave,
)

if TYPE_CHECKING:
    from swtdx.linux.arch.x86.kvm.vmx.main import KvmX86Ops

MAX_IO_MSRS = 256
_KVM_RUN = int(KVM_RUN)


class VcpuFile(File):
    """An open vCPU. Its descriptor is the memory that holds kvm_run."""

    name = "anon_inode:kvm-vcpu"
    size = RUN_SIZE
    vcpu: Vcpu

    @staticmethod
    def refuse_second(kvm: Kvm, vcpu_id: int) -> None:
        """Raises OSError(EEXIST) if the VM has a vCPU with that id."""
        if any(other.vcpu_id == vcpu_id for other in kvm.vcpus):
            raise err(errno.EEXIST, f"vCPU {vcpu_id} exists")

    @classmethod
    def create(cls, kvm: Kvm, vcpu_id: int) -> int:
        """KVM_CREATE_VCPU, once the VM has agreed. Raises OSError(EEXIST, ENOMEM, EMFILE). Returns the fd."""
        cls.refuse_second(kvm, vcpu_id)  # the descriptor comes after that: EMFILE does not win
        file = cls()
        file.name = f"{cls.name}:{vcpu_id}"
        files = kvm.kernel.files
        fd = files.reserve(file)
        try:
            file.map = mmap.mmap(-1, RUN_SIZE)
            show_file(file.map, fd, apart=files.of_clients)
            vcpu = Vcpu(kvm, vcpu_id, memoryview(file.map))
            if not kvm.vcpus:
                kvm.buses.ring.settle(vcpu.run, -1 if files.of_clients else os.dup(fd))
        except BaseException:
            os.close(fd)
            raise
        vcpu.vcpu_idx = len(kvm.vcpus)
        kvm.vcpus.append(vcpu)
        kvm.created_vcpus += 1
        kvm.get()
        file.vcpu = vcpu
        return files.install(file, fd)  # last: another thread may guess the number

    map: mmap.mmap

    def ioctl(self, request: int, arg: int) -> int:
        inside = self.inside
        inside.append(request)  # enter() and leave(), written out: this is the path of every exit
        try:
            if self.references:
                vcpu = self.vcpu
                kvm = vcpu.kvm
                if kvm.mm is not current_mm():
                    raise err(errno.EIO, "the VM belongs to another process")
                if kvm.dead:
                    raise kvm.dead_error()
                if request != _KVM_RUN:
                    return self._ioctl(request, arg)
                if arg:
                    raise err(errno.EINVAL, "the argument must be 0")
                with vcpu.mutex:
                    return vcpu.kvm_arch_vcpu_ioctl_run()
        finally:
            inside.pop()
            if not self.references and self.table is not None:
                self.table.release_if_idle(self)
        raise err(errno.EBADF, f"{self.name} was closed")

    def _ioctl(self, request: int, arg: int) -> int:
        vcpu = self.vcpu
        kvm = vcpu.kvm
        if request >> 8 & 0xFF != KVMIO:
            raise err(errno.EINVAL, f"{request:#010x} is not a KVM request")
        with vcpu.mutex:
            handler = _HANDLERS.get(request)
            # v10: requests that came later must fail as unknown, for user space finds out by trying.
            if handler is None or request in kvm.kernel.release.absent_ioctls:
                raise err(errno.EINVAL, f"{request:#010x} is not a request for a vCPU")
            return handler(vcpu, arg)

    def mmap(self, fd: int, length: int, offset: int) -> mmap.mmap:
        if offset % mmap.PAGESIZE or offset + length > RUN_SIZE or length <= 0:
            raise err(errno.EINVAL, "beyond the vCPU's three pages")
        mapping = FileMapping(-1, length)
        files = self.vcpu.kvm.kernel.files
        mapping.show(fd, 0, length, offset, apart=files.of_clients)
        mapping.hold(files, self)
        if self.vcpu.vcpu_idx:
            self.vcpu.kvm.buses.ring.show_in(mapping, offset)
        return mapping

    def bug(self, reason: str) -> None:
        self.vcpu.kvm.bug(reason)

    def release(self) -> None:
        self.vcpu.kvm.put()


Handler = Callable[[Vcpu, int], int]


def _getter(name: str) -> Handler:
    """KVM_GET_x of a register structure: ask kvm_x86_ops, then copy out."""

    def get(vcpu: Vcpu, arg: int) -> int:
        ops: KvmX86Ops = vcpu.ops
        copy_to_user(arg, getattr(ops, f"get_{name}")(vcpu))
        return 0

    return get


def _setter(name: str, structure: type[ctypes.Structure]) -> Handler:
    """KVM_SET_x of a register structure: copy in, then let kvm_x86_ops decide."""
    size = ctypes.sizeof(structure)

    def set_(vcpu: Vcpu, arg: int) -> int:
        data = copy_from_user(arg, size)
        getattr(vcpu.ops, f"set_{name}")(vcpu, data)
        return 0

    return set_


def kvm_vcpu_ioctl_set_lapic(vcpu: Vcpu, arg: int) -> int:
    if vcpu.apic is None:  # asked before the argument is copied
        raise err(errno.EINVAL, "the local APIC is in user space")
    vcpu.ops.set_lapic(vcpu, copy_from_user(arg, ctypes.sizeof(kvm_lapic_state)))
    return 0


# --- CPUID and MSRs ---------------------------------------------------------------------------------------------------


def kvm_vcpu_ioctl_set_cpuid2(vcpu: Vcpu, arg: int) -> int:
    nent = get_user(arg, 4)
    if nent > KVM_MAX_CPUID_ENTRIES:
        raise err(errno.E2BIG, f"{nent} CPUID entries; at most {KVM_MAX_CPUID_ENTRIES}")
    return kvm_set_cpuid(vcpu, entries_from_user(arg + 8, nent))


def kvm_set_cpuid(vcpu: Vcpu, entries: list[kvm_cpuid_entry2]) -> int:
    if vcpu.kvm.disabled_exits & KVM_X86_DISABLE_EXITS_HLT:
        apply_cpuid_pv_features_quirk(entries)
    table = CpuidTable(entries)
    address_sizes = table.find(0x80000008)
    if address_sizes is not None and address_sizes[0] >> 8 & 0xFF not in (0, 48, 57) and not vcpu.has_run:
        raise err(errno.EINVAL, f"CPUID 0x80000008: {address_sizes[0] >> 8 & 0xFF} bits of linear address")
    if vcpu.has_run:
        old, new = (runtime_entries(vcpu, each) for each in (vcpu.cpuid.entries, entries))
        if [bytes(entry) for entry in new] != [bytes(entry) for entry in old]:
            raise err(errno.EINVAL, "CPUID cannot change after the first KVM_RUN")
        return 0
    vcpu.cpuid = table
    vcpu.ops.vcpu_after_set_cpuid(vcpu)
    if vcpu.apic is not None:
        vcpu.apic.set_version()
    return 0


def kvm_vcpu_ioctl_set_cpuid(vcpu: Vcpu, arg: int) -> int:
    nent = get_user(arg, 4)
    if nent > KVM_MAX_CPUID_ENTRIES:
        raise err(errno.E2BIG, f"{nent} CPUID entries; at most {KVM_MAX_CPUID_ENTRIES}")
    size = ctypes.sizeof(kvm_cpuid_entry)
    data = copy_from_user(arg + 8, size * nent)
    old = [kvm_cpuid_entry.from_buffer_copy(data, size * number) for number in range(nent)]
    return kvm_set_cpuid(
        vcpu, [kvm_cpuid_entry2(function=e.function, eax=e.eax, ebx=e.ebx, ecx=e.ecx, edx=e.edx) for e in old]
    )


def kvm_vcpu_ioctl_get_cpuid2(vcpu: Vcpu, arg: int) -> int:
    cpuid2_to_user(arg, runtime_entries(vcpu, vcpu.cpuid.entries))
    return 0


def msr_entries_from_user(arg: int) -> list[kvm_msr_entry]:
    """Return the entries of a kvm_msrs. Raises OSError(EFAULT, E2BIG)."""
    count = int.from_bytes(copy_from_user(arg, 8)[:4], "little")
    if count >= MAX_IO_MSRS:
        raise err(errno.E2BIG, f"{count} MSRs at once")
    data = copy_from_user(arg + 8, 16 * count)
    return [kvm_msr_entry.from_buffer_copy(data, 16 * number) for number in range(count)]


def do_get_msr(vcpu: Vcpu, index: int) -> int:
    """What KVM advertises and this vCPU does not have reads as 0 for user space. Raises Unsupported or Invalid."""
    try:
        return vcpu.ops.get_msr(vcpu, index, True)
    except Unsupported:
        if index in vcpu.kvm.kernel.msr_index_list:
            return 0
        raise


def _get_msrs(vcpu: Vcpu, arg: int) -> int:
    entries = msr_entries_from_user(arg)
    done = 0
    for entry in entries:
        try:
            entry.data = do_get_msr(vcpu, entry.index)
        except (Unsupported, Invalid):
            entry.data = 0
            break
        done += 1
    copy_to_user(arg + 8, b"".join(bytes(entry) for entry in entries))
    return done


def do_set_msr(vcpu: Vcpu, index: int, value: int) -> None:
    """Raises Unsupported or Invalid: also when the model of a vCPU that has run is to change."""
    if vcpu.has_run and index in msrs.IMMUTABLE and do_get_msr(vcpu, index) != value:
        raise Invalid
    try:
        vcpu.ops.set_msr(vcpu, index, value, True)
    except Unsupported:
        if value or index not in vcpu.kvm.kernel.msr_index_list:
            raise


def _set_msrs(vcpu: Vcpu, arg: int) -> int:
    entries = msr_entries_from_user(arg)
    for done, entry in enumerate(entries):
        try:
            do_set_msr(vcpu, entry.index, entry.data)
        except (Unsupported, Invalid):
            return done
    return len(entries)


# --- State ------------------------------------------------------------------------------------------------------------


def _one_reg(vcpu: Vcpu, arg: int) -> tuple[int, int]:
    """Return the MSR that a register's identifier means, and the user address of its value. Raises OSError.

    Registers of the other type, KVM's own, exist where the guest has shadow stacks: none here.
    """
    request = struct_from_user(kvm_one_reg, arg)
    number, reserved, kind = request.id & 0xFFFFFFFF, request.id >> 40 & 0xFFF, request.id >> 32 & 0xFF
    if request.id & KVM_REG_ARCH_MASK != KVM_REG_X86 or reserved or kind != KVM_X86_REG_TYPE_MSR:
        raise err(errno.EINVAL, f"register {request.id:#x}: not an MSR of x86")
    if request.id & KVM_REG_SIZE_MASK != KVM_REG_SIZE_U64:
        raise err(errno.EINVAL, f"register {request.id:#x}: an MSR has 64 bits")
    return number, request.addr


def _get_one_reg(vcpu: Vcpu, arg: int) -> int:
    index, address = _one_reg(vcpu, arg)
    try:
        value = do_get_msr(vcpu, index)
    except (Unsupported, Invalid) as refusal:
        raise err(errno.EINVAL, f"MSR {index:#x} cannot be read") from refusal
    put_user(address, value, 8)
    return 0


def _set_one_reg(vcpu: Vcpu, arg: int) -> int:
    index, address = _one_reg(vcpu, arg)
    value = get_user(address, 8)
    try:
        do_set_msr(vcpu, index, value)
    except (Unsupported, Invalid) as refusal:
        raise err(errno.EINVAL, f"MSR {index:#x} does not take {value:#x}") from refusal
    return 0


def _get_reg_list(vcpu: Vcpu, arg: int) -> int:
    """Of KVM's own registers there are none; MSRs are in KVM_GET_MSR_INDEX_LIST."""
    get_user(arg, 8)
    put_user(arg, 0, 8)
    return 0


def _get_mp_state(vcpu: Vcpu, arg: int) -> int:
    if not vcpu.is_td:
        vcpu.kvm_apic_accept_events()
    woken = vcpu.mp_state == KVM_MP_STATE_HALTED and vcpu.pv_unhalted
    copy_to_user(arg, kvm_mp_state(mp_state=KVM_MP_STATE_RUNNABLE if woken else vcpu.mp_state))
    return 0


def _set_mp_state(vcpu: Vcpu, arg: int) -> int:
    state = struct_from_user(kvm_mp_state, arg).mp_state
    if state > KVM_MP_STATE_SIPI_RECEIVED and state != KVM_MP_STATE_AP_RESET_HOLD:
        raise err(errno.EINVAL, f"mp_state {state}")
    if vcpu.apic is None and state:
        raise err(errno.EINVAL, "no local APIC in the kernel: the vCPU is always runnable")
    if state in (KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_SIPI_RECEIVED):
        if vcpu.ops.apic_init_signal_blocked(vcpu):
            raise err(errno.EINVAL, "INIT and SIPI are blocked")
    if state != KVM_MP_STATE_HALTED and vcpu.kvm.kernel.release.mp_state_ends_hlt:
        vcpu.ops.clear_hlt(vcpu)
    vcpu.set_mp_state(state)
    return 0


def _nmi(vcpu: Vcpu, arg: int) -> int:
    vcpu.queue_nmi()
    return 0


def _interrupt(vcpu: Vcpu, arg: int) -> int:
    vector = struct_from_user(kvm_interrupt, arg).irq
    if vector >= 256:
        raise err(errno.EINVAL, f"vector {vector}")
    if vcpu.kvm.irqchip_mode is IrqchipMode.NONE:
        vcpu.pending_external_vector = vector  # also over one that waits
        return 0
    if vcpu.kvm.irqchip_mode is IrqchipMode.KERNEL:
        raise err(errno.ENXIO, "the PIC is in the kernel")
    if vcpu.pending_external_vector >= 0:
        raise err(errno.EEXIST, f"vector {vcpu.pending_external_vector} waits already")
    vcpu.pending_external_vector = vector
    return 0


def _translate(vcpu: Vcpu, arg: int) -> int:
    request = struct_from_user(kvm_translation, arg)
    address = vcpu.ops.translate(vcpu, request.linear_address)
    request.physical_address = (1 << 64) - 1 if address is None else address
    request.valid, request.writeable, request.usermode = address is not None, 1, 0
    copy_to_user(arg, request)
    return 0


def _set_signal_mask(vcpu: Vcpu, arg: int) -> int:
    if not arg:
        vcpu.sigset = None
        return 0
    length = struct_from_user(kvm_signal_mask, arg).len
    if length != 8:
        raise err(errno.EINVAL, f"a signal set of {length} bytes")
    vcpu.sigset = get_user(arg + 4, 8)
    return 0


def _setup_mce(vcpu: Vcpu, arg: int) -> int:
    vcpu.msrs.mce.setup(get_user(arg, 8))
    if vcpu.apic is not None:
        vcpu.apic.set_cmci(vcpu.msrs.mce.cmci)
    return 0


def _set_mce(vcpu: Vcpu, arg: int) -> int:
    set_mce(vcpu, struct_from_user(kvm_x86_mce, arg))
    return 0


def _set_guest_debug(vcpu: Vcpu, arg: int) -> int:
    debug = struct_from_user(kvm_guest_debug, arg)
    vcpu.ops.set_guest_debug(vcpu, debug)
    return 0


def _set_tsc_khz(vcpu: Vcpu, arg: int) -> int:
    khz = arg & 0xFFFFFFFF or vcpu.kvm.processor.platform.tsc_hz // 1000
    if arg & 0xFFFFFFFF >= MAX_TSC_KHZ:
        raise err(errno.EINVAL, f"{khz} kHz")
    if vcpu.kvm.is_td:
        vcpu.ops.write_tsc_multiplier(vcpu)
    vcpu.virtual_tsc_khz = khz
    vcpu.ops.write_tsc_multiplier(vcpu)
    return 0


def _tpr_access_reporting(vcpu: Vcpu, arg: int) -> int:
    request = struct_from_user(kvm_tpr_access_ctl, arg)
    if request.flags:
        raise err(errno.EINVAL, f"flags {request.flags:#x}")
    copy_to_user(arg, request)
    return 0


def _set_vapic_addr(vcpu: Vcpu, arg: int) -> int:
    if vcpu.apic is None:
        raise err(errno.EINVAL, "the local APIC is in user space")
    address = get_user(arg, 8)
    if address and vcpu.kvm.memslots.gfn_to_memslot(address >> PAGE_SHIFT) is None:
        raise err(errno.EINVAL, f"no slot at {address:#x}")
    return 0


def _enable_cap(vcpu: Vcpu, arg: int) -> int:
    request = struct_from_user(kvm_enable_cap, arg)
    if request.flags:
        raise err(errno.EINVAL, "flags must be 0")
    if request.cap != Cap.ENFORCE_PV_FEATURE_CPUID:
        raise err(errno.EINVAL, f"capability {request.cap} cannot be enabled on a vCPU")
    vcpu.pv_features_enforced = bool(request.args[0])
    return 0


def _kvmclock_ctrl(vcpu: Vcpu, arg: int) -> int:
    """Tell the guest, by a flag in its page, that user space had stopped it."""
    if not vcpu.pv_time.active:
        raise err(errno.EINVAL, "the guest uses no kvmclock")
    vcpu.pv_time.guest_stopped = True
    vcpu.pv_time.update()
    return 0


def _get_stats_fd(vcpu: Vcpu, arg: int) -> int:
    kvm = vcpu.kvm
    return vcpu.stat.open(kvm.kernel.files, f"anon_inode:kvm-vcpu-stats:{vcpu.vcpu_id}", kvm.get, kvm.put)


def _refuse(code: int, reason: str) -> Handler:
    def refuse(vcpu: Vcpu, arg: int) -> int:
        raise err(code, reason)

    return refuse


def _get_tsc_khz(vcpu: Vcpu, arg: int) -> int:
    return vcpu.virtual_tsc_khz


def _mem_enc_op(vcpu: Vcpu, arg: int) -> int:
    return vcpu.ops.vcpu_mem_enc_ioctl(vcpu, arg)


def _pre_fault_memory(vcpu: Vcpu, arg: int) -> int:
    pre_fault_memory(vcpu, arg)
    return 0


_HANDLERS: dict[int, Handler] = {
    int(REQUESTS[name]): handler
    for name, handler in {
        "KVM_SET_CPUID": kvm_vcpu_ioctl_set_cpuid,
        "KVM_SET_CPUID2": kvm_vcpu_ioctl_set_cpuid2,
        "KVM_GET_CPUID2": kvm_vcpu_ioctl_get_cpuid2,
        "KVM_GET_MSRS": _get_msrs,
        "KVM_SET_MSRS": _set_msrs,
        "KVM_GET_ONE_REG": _get_one_reg,
        "KVM_SET_ONE_REG": _set_one_reg,
        "KVM_GET_REG_LIST": _get_reg_list,
        "KVM_GET_REGS": _getter("regs"),
        "KVM_SET_REGS": _setter("regs", kvm_regs),
        "KVM_GET_SREGS": _getter("sregs"),
        "KVM_SET_SREGS": _setter("sregs", kvm_sregs),
        "KVM_GET_SREGS2": get_sregs2,
        "KVM_SET_SREGS2": set_sregs2,
        "KVM_GET_FPU": _getter("fpu"),
        "KVM_SET_FPU": _setter("fpu", kvm_fpu),
        "KVM_GET_XSAVE": _getter("xsave"),
        "KVM_GET_XSAVE2": _getter("xsave"),
        "KVM_SET_XSAVE": _setter("xsave", kvm_xsave),
        "KVM_GET_XCRS": _getter("xcrs"),
        "KVM_SET_XCRS": _setter("xcrs", kvm_xcrs),
        "KVM_GET_DEBUGREGS": _getter("debugregs"),
        "KVM_SET_DEBUGREGS": _setter("debugregs", kvm_debugregs),
        "KVM_GET_LAPIC": _getter("lapic"),
        "KVM_SET_LAPIC": kvm_vcpu_ioctl_set_lapic,
        "KVM_GET_MP_STATE": _get_mp_state,
        "KVM_SET_MP_STATE": _set_mp_state,
        "KVM_INTERRUPT": _interrupt,
        "KVM_NMI": _nmi,
        "KVM_SMI": _refuse(errno.ENOTTY, "there is no SMM"),
        "KVM_GET_VCPU_EVENTS": get_vcpu_events,
        "KVM_SET_VCPU_EVENTS": set_vcpu_events,
        "KVM_TRANSLATE": _translate,
        "KVM_SET_SIGNAL_MASK": _set_signal_mask,
        "KVM_X86_SETUP_MCE": _setup_mce,
        "KVM_X86_SET_MCE": _set_mce,
        "KVM_SET_GUEST_DEBUG": _set_guest_debug,
        "KVM_SET_TSC_KHZ": _set_tsc_khz,
        "KVM_GET_TSC_KHZ": _get_tsc_khz,
        "KVM_TPR_ACCESS_REPORTING": _tpr_access_reporting,
        "KVM_SET_VAPIC_ADDR": _set_vapic_addr,
        "KVM_ENABLE_CAP": _enable_cap,
        "KVM_KVMCLOCK_CTRL": _kvmclock_ctrl,
        "KVM_GET_STATS_FD": _get_stats_fd,
        "KVM_GET_NESTED_STATE": get_nested_state,
        "KVM_SET_NESTED_STATE": set_nested_state,
        "KVM_MEMORY_ENCRYPT_OP": _mem_enc_op,
        "KVM_PRE_FAULT_MEMORY": _pre_fault_memory,
        "KVM_HAS_DEVICE_ATTR": has_device_attr,
        "KVM_GET_DEVICE_ATTR": get_device_attr,
        "KVM_SET_DEVICE_ATTR": set_device_attr,
    }.items()
}
