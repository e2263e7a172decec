# SPDX-License-Identifier: GPL-2.0-or-later
"""What comes first, and what is remembered: paths of Linux 6.16 that need more than one call, named by their function.

Each runs on the emulated kernel and, where the machine has one, on the real /dev/kvm.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Iterator

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel
from swtdx.uapi.layout import filled
from tests.linux.conftest import Bench, ScriptedModule, boot, refused


class Both(Bench):
    """A bench on either kernel; everything is closed at the end."""

    def close(self) -> None:
        for fd in reversed(self.fds):
            self.kernel.close(fd)

    fds: list[int]

    def opened(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def new_vm(self, *, split: bool = True, irqchip: bool = False) -> int:
        device = self.opened(self.kernel.open("/dev/kvm"))
        vm = self.opened(self.ioctl(device, k.KVM_CREATE_VM, 0))
        if irqchip:
            self.ioctl(vm, k.KVM_CREATE_IRQCHIP)
        elif split:
            self.enable(vm, k.Cap.SPLIT_IRQCHIP, 24)
        return vm

    def new_vcpu(self, vm: int, number: int = 0) -> int:
        return self.opened(self.ioctl(vm, k.KVM_CREATE_VCPU, number))


@pytest.fixture(params=["emulated", "host"])
def both(request: pytest.FixtureRequest) -> Iterator[Both]:
    if request.param == "host":
        request.getfixturevalue("host_kvm")
    kernel = boot(Dialect.UPSTREAM).kernel if request.param == "emulated" else HostKernel()
    bench = Both(kernel, ScriptedModule())  # type: ignore[arg-type]  # it asks only system calls of it here
    bench.fds = []
    yield bench
    bench.close()


@pytest.fixture
def emulated() -> Iterator[Both]:
    bench = Both(boot(Dialect.UPSTREAM).kernel, ScriptedModule())
    bench.fds = []
    yield bench
    bench.close()


def mp_state(bench: Bench, vcpu: int) -> int:
    state = k.kvm_mp_state()
    bench.ioctl(vcpu, k.KVM_GET_MP_STATE, state)
    return int(state.mp_state)


# --- kvm_arch_vcpu_ioctl_run ------------------------------------------------------------------------------------------


def test_cr8_wins_over_immediate_exit(both: Both) -> None:
    """Without a local APIC in the kernel CR8 is taken over, or refused, before anything else is done."""
    vcpu = both.new_vcpu(both.new_vm(split=False))
    run = both.run_page(vcpu)
    run.immediate_exit, run.cr8 = 1, 16
    with refused(errno.EINVAL):
        both.ioctl(vcpu, k.KVM_RUN)
    run.cr8 = 15
    with refused(errno.EINTR):
        both.ioctl(vcpu, k.KVM_RUN)
    sregs = k.kvm_sregs()
    both.ioctl(vcpu, k.KVM_GET_SREGS, sregs)
    assert sregs.cr8 == 15
    del run


def test_sync_registers_win_over_cr8(both: Both) -> None:
    vcpu = both.new_vcpu(both.new_vm(split=False))
    run = both.run_page(vcpu)
    run.immediate_exit, run.kvm_valid_regs = 1, 1 << 20
    with refused(errno.EINVAL):
        both.ioctl(vcpu, k.KVM_RUN)
    run.kvm_valid_regs = 1
    with refused(errno.EINTR):
        both.ioctl(vcpu, k.KVM_RUN)
    del run


# --- kvm_vcpu_ioctl_interrupt -----------------------------------------------------------------------------------------


def test_a_second_interrupt(both: Both) -> None:
    """With the local APIC here one waits and a second is EEXIST; without it the last one counts."""
    first, second = k.kvm_interrupt(irq=0x40), k.kvm_interrupt(irq=0x41)
    vcpu = both.new_vcpu(both.new_vm())
    both.ioctl(vcpu, k.KVM_INTERRUPT, first)
    with refused(errno.EEXIST):
        both.ioctl(vcpu, k.KVM_INTERRUPT, second)
    vcpu = both.new_vcpu(both.new_vm(split=False))
    both.ioctl(vcpu, k.KVM_INTERRUPT, first)
    both.ioctl(vcpu, k.KVM_INTERRUPT, second)
    events = k.kvm_vcpu_events()
    both.ioctl(vcpu, k.KVM_GET_VCPU_EVENTS, events)
    assert (events.interrupt.injected, events.interrupt.nr) == (1, 0x41)


# --- kvm_arch_vcpu_ioctl_set_mpstate, kvm_vcpu_ioctl_x86_set_vcpu_events ----------------------------------------------


def test_sipi_received_is_a_sipi_that_is_pending(emulated: Both) -> None:
    """It starts the vCPU at the vector of the events as soon as its state is read (kvm_apic_accept_events)."""
    vm = emulated.new_vm()
    emulated.new_vcpu(vm)
    vcpu = emulated.new_vcpu(vm, 1)
    emulated.ioctl(
        vcpu,
        k.KVM_SET_VCPU_EVENTS,
        k.kvm_vcpu_events(flags=int(k.KVM_VCPUEVENT_VALID_SIPI_VECTOR), sipi_vector=0x12),
    )
    emulated.ioctl(vcpu, k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=k.KVM_MP_STATE_SIPI_RECEIVED))
    assert mp_state(emulated, vcpu) == k.KVM_MP_STATE_RUNNABLE
    run = emulated.run_page(vcpu)
    emulated.ioctl(vcpu, k.KVM_RUN)  # without memory: it comes no further than its first instruction
    sregs = k.kvm_sregs()
    emulated.ioctl(vcpu, k.KVM_GET_SREGS, sregs)
    assert (sregs.cs.selector, sregs.cs.base) == (0x1200, 0x12000)
    del run


def test_only_runnable_without_a_local_apic(both: Both) -> None:
    vcpu = both.new_vcpu(both.new_vm(split=False))
    both.ioctl(vcpu, k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=k.KVM_MP_STATE_RUNNABLE))
    with refused(errno.EINVAL):
        both.ioctl(vcpu, k.KVM_SET_MP_STATE, k.kvm_mp_state(mp_state=k.KVM_MP_STATE_HALTED))


def test_a_triple_fault_by_the_events(both: Both) -> None:
    """KVM_CAP_X86_TRIPLE_FAULT_EVENT: it is shown, set and taken back, and ends the run."""
    vm = both.new_vm()
    both.enable(vm, k.Cap.X86_TRIPLE_FAULT_EVENT, 1)
    vcpu = both.new_vcpu(vm)
    flag = int(k.KVM_VCPUEVENT_VALID_TRIPLE_FAULT)
    events = k.kvm_vcpu_events()
    both.ioctl(vcpu, k.KVM_GET_VCPU_EVENTS, events)
    assert events.flags & flag
    assert not events.triple_fault.pending
    events.flags, events.triple_fault.pending = flag, 1
    both.ioctl(vcpu, k.KVM_SET_VCPU_EVENTS, events)
    both.ioctl(vcpu, k.KVM_GET_VCPU_EVENTS, events)
    assert events.triple_fault.pending
    run = both.run_page(vcpu)
    both.ioctl(vcpu, k.KVM_RUN)
    assert run.exit_reason == k.Exit.SHUTDOWN
    del run


# --- kvm_apic_state_fixup, kvm_lapic_reset ----------------------------------------------------------------------------


def lapic_with_x2apic(bench: Both, *, ids: int | None) -> tuple[int, k.kvm_lapic_state]:
    vm = bench.new_vm()
    if ids is not None:
        bench.enable(vm, k.Cap.X2APIC_API, ids)
    bench.new_vcpu(vm)
    vcpu = bench.new_vcpu(vm, 3)
    entry = k.kvm_cpuid_entry2(function=1, ecx=1 << 21)
    bench.ioctl(vcpu, k.KVM_SET_CPUID2, filled(k.kvm_cpuid2, [entry], nent=1))
    base = k.kvm_msr_entry(index=0x1B, data=0xFEE00C00)
    assert bench.ioctl(vcpu, k.KVM_SET_MSRS, filled(k.kvm_msrs, [base], nmsrs=1)) == 1
    state = k.kvm_lapic_state()
    bench.ioctl(vcpu, k.KVM_GET_LAPIC, state)
    return vcpu, state


def id_register(state: k.kvm_lapic_state) -> int:
    return int(struct.unpack_from("<I", bytes(state), 0x20)[0])


def test_the_x2apic_id_in_either_format(both: Both) -> None:
    vcpu, state = lapic_with_x2apic(both, ids=None)
    assert id_register(state) == 3 << 24
    struct.pack_into("<I", (ctypes.c_char * 1024).from_buffer(state), 0x20, 99 << 24)
    both.ioctl(vcpu, k.KVM_SET_LAPIC, state)  # another id is ignored
    both.ioctl(vcpu, k.KVM_GET_LAPIC, state)
    assert id_register(state) == 3 << 24
    vcpu, state = lapic_with_x2apic(both, ids=1)
    assert id_register(state) == 3
    struct.pack_into("<I", (ctypes.c_char * 1024).from_buffer(state), 0x20, 99)
    with refused(errno.EINVAL):
        both.ioctl(vcpu, k.KVM_SET_LAPIC, state)


@pytest.mark.parametrize(("quirk", "lint0"), [(0, 0x700), (k.KVM_X86_QUIRK_LINT0_REENABLED, 0x10000)])
def test_lint0_after_reset_is_a_quirk(both: Both, quirk: int, lint0: int) -> None:
    vm = both.new_vm()
    both.enable(vm, k.Cap.DISABLE_QUIRKS2, quirk)
    state = k.kvm_lapic_state()
    both.ioctl(both.new_vcpu(vm), k.KVM_GET_LAPIC, state)
    assert struct.unpack_from("<I", bytes(state), 0x350)[0] == lint0


# --- kvm_irqfd, irqfd_resampler_ack -----------------------------------------------------------------------------------


def test_an_eventfd_is_known_under_any_descriptor(both: Both) -> None:
    """struct eventfd_ctx, not the number, says which eventfd it is."""
    vm = both.new_vm()
    first = both.opened(both.kernel.eventfd())
    second = both.opened(os.dup(first))
    both.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=first, gsi=1))
    with refused(errno.EBUSY):
        both.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=second, gsi=2))
    both.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=second, gsi=1, flags=k.KVM_IRQFD_FLAG_DEASSIGN))
    both.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=first, gsi=2))
    both.ioctl(vm, k.KVM_IOEVENTFD, k.kvm_ioeventfd(fd=first, addr=0x1000, len=4))
    both.ioctl(vm, k.KVM_IOEVENTFD, k.kvm_ioeventfd(fd=second, addr=0x1000, len=4, flags=4))
    with refused(errno.ENOENT):
        both.ioctl(vm, k.KVM_IOEVENTFD, k.kvm_ioeventfd(fd=first, addr=0x1000, len=4, flags=4))


def test_resampling_wants_a_second_eventfd(both: Both) -> None:
    vm = both.new_vm(irqchip=True)
    eventfd = both.opened(both.kernel.eventfd())
    resample = k.KVM_IRQFD_FLAG_RESAMPLE
    with refused(errno.EBADF):
        both.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=eventfd, gsi=5, flags=resample, resamplefd=9999))
    with refused(errno.EINVAL):
        both.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=eventfd, gsi=5, flags=resample, resamplefd=vm))
    other = both.opened(both.kernel.eventfd())
    both.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=eventfd, gsi=5, flags=resample, resamplefd=other))
    both.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(fd=eventfd, gsi=5, flags=k.KVM_IRQFD_FLAG_DEASSIGN))


def test_a_resampled_line_stays_up_until_the_guest_has_ended_the_interrupt(emulated: Both) -> None:
    vm = emulated.new_vm(irqchip=True)
    emulated.new_vcpu(vm)
    ioapic = emulated.vm_object().ioapic
    vector, level = 0x55, 1 << 15
    ioapic.write(0xFEC00000, 4, 0x10 + 2 * 5)
    ioapic.write(0xFEC00010, 4, vector | level)
    emulated.ioctl(vm, k.KVM_IRQFD, k.kvm_irqfd(
        fd=(eventfd := emulated.opened(emulated.kernel.eventfd())), gsi=5, flags=k.KVM_IRQFD_FLAG_RESAMPLE,
        resamplefd=(resample := emulated.opened(emulated.kernel.eventfd())),
    ))  # fmt: skip
    os.eventfd_write(eventfd, 1)
    for _ in range(500):
        if ioapic.state.irr & 1 << 5:
            break
        select.select([], [], [], 0.01)
    assert ioapic.state.irr & 1 << 5
    emulated.ioctl(vm, k.KVM_IRQ_LINE, k.kvm_irq_level(level=1, line=type(k.kvm_irq_level().line)(irq=5)))
    assert not select.select([resample], [], [], 0)[0]
    ioapic.update_eoi(vector)
    assert os.eventfd_read(resample) == 1
    assert ioapic.state.irr & 1 << 5  # user space holds it up still
    emulated.ioctl(vm, k.KVM_IRQ_LINE, k.kvm_irq_level(level=0, line=type(k.kvm_irq_level().line)(irq=5)))
    assert not ioapic.state.irr & 1 << 5


# --- kvm_set_memory_region, kvm_prepare_memory_region -----------------------------------------------------------------


def test_the_guest_memfd_is_asked_before_the_last_frame(emulated: Both) -> None:
    vm = emulated.td()
    memory = (ctypes.c_char * 8192)()
    region = k.kvm_userspace_memory_region2(
        flags=4, guest_phys_addr=1 << 47, memory_size=4096, guest_memfd=9999,
        userspace_addr=(ctypes.addressof(memory) + 4095) & -4096,
    )  # fmt: skip
    with refused(errno.EBADF):
        emulated.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, region)
    region.guest_memfd = emulated.memfd(vm, 4096)
    with refused(errno.EINVAL):  # the shared bit
        emulated.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, region)
    region.guest_phys_addr = 0
    emulated.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, region)  # the refused slot holds nothing of the memfd


def test_a_slot_beyond_the_hosts_address_width(both: Both) -> None:
    """kvm_mmu_max_gfn."""
    vm = both.new_vm()
    memory = (ctypes.c_char * 8192)()
    region = k.kvm_userspace_memory_region(
        guest_phys_addr=1 << 52, memory_size=4096, userspace_addr=(ctypes.addressof(memory) + 4095) & -4096
    )
    with refused(errno.EINVAL):
        both.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, region)


def test_a_dirty_log_that_begins_full(both: Both) -> None:
    """KVM_DIRTY_LOG_INITIALLY_SET: every page, and none beyond the slot's."""
    vm = both.new_vm()
    both.enable(vm, k.Cap.MANUAL_DIRTY_LOG_PROTECT2, 3)
    memory = (ctypes.c_char * (4096 * 14))()
    region = k.kvm_userspace_memory_region(
        flags=1, memory_size=4096 * 13, userspace_addr=(ctypes.addressof(memory) + 4095) & -4096
    )
    both.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, region)
    bitmap = ctypes.c_uint64(0)
    log = k.kvm_dirty_log()
    log.dirty_bitmap = ctypes.addressof(bitmap)
    both.ioctl(vm, k.KVM_GET_DIRTY_LOG, log)
    assert bitmap.value == (1 << 13) - 1


# --- kvm_vm_ioctl_create_vcpu, KVM_CAP_MAX_VCPU_ID --------------------------------------------------------------------


def test_ids_are_settled_once(both: Both) -> None:
    vm = both.new_vm()
    both.enable(vm, k.Cap.MAX_VCPU_ID, 2)
    both.enable(vm, k.Cap.MAX_VCPU_ID, 2)
    for other in (3, 0):
        with refused(errno.EINVAL):
            both.enable(vm, k.Cap.MAX_VCPU_ID, other)
    with refused(errno.EINVAL):
        both.new_vcpu(vm, 2)
    with refused(errno.EINVAL):
        both.ioctl(vm, k.KVM_SET_BOOT_CPU_ID, 3)
    both.ioctl(vm, k.KVM_SET_BOOT_CPU_ID, 2)
    assert both.ioctl(vm, k.KVM_CHECK_EXTENSION, k.Cap.MAX_VCPU_ID) > 2  # the limit of the kernel, not of the VM


# --- kvm_do_msr_access, guest_pv_has ----------------------------------------------------------------------------------


def test_feature_msrs_of_the_device(both: Both) -> None:
    """A vCPU's MSR that is advertised reads as 0 on /dev/kvm, an unknown one ends the list."""
    device = both.opened(both.kernel.open("/dev/kvm"))
    entries = [k.kvm_msr_entry(index=index, data=7) for index in (0x10, 0x277, 0x12345, 0x10)]
    request = filled(k.kvm_msrs, entries, nmsrs=4)
    assert both.ioctl(device, k.KVM_GET_MSRS, request) == 2
    values = [k.kvm_msr_entry.from_buffer(request, 8 + 16 * number).data for number in range(4)]
    assert values == [0, 0, 0, 7]


def test_paravirtual_msrs_only_if_cpuid_has_them(emulated: Both) -> None:
    """KVM_CAP_ENFORCE_PV_FEATURE_CPUID."""
    vcpu = emulated.new_vcpu(emulated.new_vm())
    one = filled(k.kvm_msrs, [k.kvm_msr_entry(index=0x4B564D01, data=1)], nmsrs=1)
    emulated.enable(vcpu, k.Cap.ENFORCE_PV_FEATURE_CPUID, 1)
    assert emulated.ioctl(vcpu, k.KVM_SET_MSRS, one) == 0
    leaves = [
        k.kvm_cpuid_entry2(function=0x40000000, eax=0x40000001, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D),
        k.kvm_cpuid_entry2(function=0x40000001, eax=1 << 3),
    ]
    emulated.ioctl(vcpu, k.KVM_SET_CPUID2, filled(k.kvm_cpuid2, leaves, nent=2))
    assert emulated.ioctl(vcpu, k.KVM_SET_MSRS, one) == 1


# --- The system-call line ---------------------------------------------------------------------------------------------


def test_no_memory_is_enomem_and_the_vm_lives(emulated: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = emulated.new_vm()

    def full(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(type(emulated.vm_object()), "_set_dirty_log", full)
    memory = (ctypes.c_char * 8192)()
    region = k.kvm_userspace_memory_region(memory_size=4096, userspace_addr=(ctypes.addressof(memory) + 4095) & -4096)
    with refused(errno.ENOMEM):
        emulated.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, region)
    monkeypatch.undo()
    emulated.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION, region)
