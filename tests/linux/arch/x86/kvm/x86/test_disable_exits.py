# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_CAP_X86_DISABLE_EXITS: a guest whose HLT does not exit sleeps in the processor, and wakes as on hardware.

Expectations: Documentation/virt/kvm/api.rst 7.13; kvm_get_allowed_disable_exits, kvm_vm_ioctl_enable_cap and
kvm_apply_cpuid_pv_features_quirk in arch/x86/kvm of Linux 6.16; SDM volume 3, 27.7.2 (activity state); HLT in volume 2.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError, Vm
from swtdx.uapi.kernel import Kernel
from tests.linux.arch.x86.kvm.vmx.test_vmx import CODE, Machine, flat
from tests.linux.conftest import refused

pytestmark = pytest.mark.usefixtures("watchdog")

PAUSE, HLT, CSTATE, MWAIT = 1 << 2, 1 << 1, 1 << 3, 1 << 0
PATIENCE = 20
HLT_THEN_OUT = "f4e610ebfe"  # hlt; out 0x10, al; jmp self
STI = "fb"
HANDLER = "e620cf"  # out 0x20, al; iret
VECTOR = 0x55
SPIV = 0xF0


@pytest.fixture
def kernel() -> Kernel:
    return open_kernel("emulated")


@pytest.fixture
def make(kernel: Kernel) -> Iterator[Callable[..., Machine]]:
    machines: list[Machine] = []

    def build(exits: int = HLT, setup: Callable[[Vm], None] = lambda vm: None) -> Machine:
        def prepare(vm: Vm) -> None:
            setup(vm)
            vm.enable_cap(k.Cap.X86_DISABLE_EXITS, exits)

        machines.append(Machine(kernel, prepare))
        flat(machines[-1].vcpu)
        machines[-1].gate(VECTOR, HANDLER)
        machines[-1].gate(2, HANDLER)
        return machines[-1]

    yield build
    for machine in machines:
        machine.close()


class Running:
    """KVM_RUN in a thread: `ended` is what it comes back with, an exit reason or minus an errno."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.ended: int | None = None
        machine.vcpu.kvm_run.immediate_exit = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.machine.vcpu.run()
            self.ended = int(self.machine.vcpu.exit_reason)
        except KvmError as error:
            self.ended = -(error.errno or 0)

    def sleeps(self, seconds: float = 0.1) -> bool:
        """Whether it is still inside after a while."""
        self.thread.join(seconds)
        return self.thread.is_alive()

    def result(self) -> int:
        self.thread.join(PATIENCE)
        assert self.ended is not None, "KVM_RUN does not come back"
        return self.ended

    def stop(self) -> int:
        self.machine.vcpu.kvm_run.immediate_exit = 1  # looked at when the host's tick ends the stay in the guest
        return self.result()


def port(machine: Machine) -> int:
    return int(machine.vcpu.kvm_run.io.port)


def msi(machine: Machine) -> None:
    machine.vm.signal_msi(0xFEE00000, VECTOR)


def enable_apic(machine: Machine, **registers: int) -> None:
    state = machine.vcpu.get_lapic()
    for register, value in {SPIV: 0x1FF, **{int(name[1:], 16): value for name, value in registers.items()}}.items():
        state.regs[register : register + 4] = list(value.to_bytes(4, "little"))
    machine.vcpu.set_lapic(state)


# --- The capability ---------------------------------------------------------------------------------------------------


def test_what_is_offered(kernel: Kernel) -> None:
    """The processor has no MWAIT (CPUID.1:ECX[3])."""
    with Kvm(kernel) as kvm, kvm.create_vm() as vm, kvm.create_td() as td:
        for owner in (kvm, vm, td):
            assert owner.check_extension(k.Cap.X86_DISABLE_EXITS) == PAUSE | HLT | CSTATE


@pytest.mark.parametrize("bits", [MWAIT, 1 << 4, HLT | 1 << 63, MWAIT | HLT])
def test_other_exits_are_refused(kernel: Kernel, bits: int) -> None:
    with Kvm(kernel) as kvm, kvm.create_vm() as vm, refused(errno.EINVAL):
        vm.enable_cap(k.Cap.X86_DISABLE_EXITS, bits)


@pytest.mark.parametrize("td", [False, True])
def test_it_is_too_late_once_there_is_a_vcpu(kernel: Kernel, td: bool) -> None:
    with Kvm(kernel) as kvm, kvm.create_td() if td else kvm.create_vm() as vm:
        vm.split_irqchip()
        assert vm.enable_cap(k.Cap.X86_DISABLE_EXITS, PAUSE | HLT | CSTATE) == 0
        assert vm.enable_cap(k.Cap.X86_DISABLE_EXITS, 0) == 0
        if td:
            return  # its vCPUs need INIT_VM
        with vm.create_vcpu(0), refused(errno.EINVAL):
            vm.enable_cap(k.Cap.X86_DISABLE_EXITS, HLT)


@pytest.mark.parametrize("base", [0x40000000, 0x40000100])
@pytest.mark.parametrize(("exits", "left"), [(HLT, 0), (CSTATE | PAUSE, 1 << 7)])
def test_pv_unhalt_goes_with_the_exit(make: Callable[..., Machine], base: int, exits: int, left: int) -> None:
    """Also where KVM's leaves come after another hypervisor's; and the same CPUID may be set again after KVM_RUN."""
    machine = make(exits)
    leaves = [
        k.kvm_cpuid_entry2(function=base, eax=base + 1, ebx=0x4B4D564B, ecx=0x564B4D56, edx=0x4D),
        k.kvm_cpuid_entry2(function=base + 1, eax=1 << 7 | 1 << 3),
    ]
    machine.vcpu.set_cpuid2(leaves)
    read = {entry.function: entry.eax for entry in machine.vcpu.get_cpuid2()}
    assert read[base + 1] == left | 1 << 3
    machine.load("e610")
    machine.vcpu.run()
    machine.vcpu.set_cpuid2(leaves)


def test_a_leaf_without_kvms_signature_keeps_its_bits(make: Callable[..., Machine]) -> None:
    machine = make(HLT)
    machine.vcpu.set_cpuid2([k.kvm_cpuid_entry2(function=0x40000001, eax=1 << 7)])
    assert [entry.eax for entry in machine.vcpu.get_cpuid2()] == [1 << 7]


@pytest.mark.parametrize(("exits", "reads"), [(CSTATE, True), (HLT, False)])
@pytest.mark.parametrize("index", [0x3FC, 0x3FD, 0x3FE])
def test_residency_counters_pass_through(make: Callable[..., Machine], exits: int, reads: bool, index: int) -> None:
    machine = make(exits)
    machine.gate(13, "e630f4")
    machine.load("b9" + index.to_bytes(4, "little").hex() + "0f32e610")  # mov ecx, index; rdmsr; out 0x10, al
    machine.vcpu.run()
    assert port(machine) == (0x10 if reads else 0x30)


# --- HLT without an APIC in the kernel --------------------------------------------------------------------------------


def test_hlt_does_not_exit_and_can_be_left(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.load(HLT_THEN_OUT)
    run = Running(machine)
    assert run.sleeps()
    assert run.stop() == -errno.EINTR
    assert machine.vcpu.get_regs().rip == CODE + 1, "HLT is complete when the processor sleeps"
    assert Running(machine).sleeps(), "it still halts at the next KVM_RUN"
    machine.vcpu.kvm_run.immediate_exit = 1


def test_without_the_capability_it_exits(make: Callable[..., Machine]) -> None:
    machine = make(PAUSE)
    machine.load(HLT_THEN_OUT)
    machine.vcpu.run()
    assert machine.vcpu.exit_reason == k.KVM_EXIT_HLT


def test_an_interrupt_of_user_space_wakes_it(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.load(STI + HLT_THEN_OUT)
    run = Running(machine)
    assert run.sleeps()
    run.stop()
    machine.vcpu.interrupt(VECTOR)
    assert Running(machine).result() == k.KVM_EXIT_IO
    assert port(machine) == 0x20
    assert Running(machine).result() == k.KVM_EXIT_IO
    assert port(machine) == 0x10, "after the handler the guest continues behind HLT"


@pytest.mark.parametrize("flags", ["", STI])
def test_an_nmi_wakes_it_whatever_if_is(make: Callable[..., Machine], flags: str) -> None:
    machine = make()
    machine.load(flags + HLT_THEN_OUT)
    run = Running(machine)
    assert run.sleeps()
    run.stop()
    machine.vcpu.nmi()
    assert Running(machine).result() == k.KVM_EXIT_IO
    assert port(machine) == 0x20


def test_user_space_that_waits_for_a_window_gets_it(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.load(STI + HLT_THEN_OUT)
    machine.vcpu.kvm_run.request_interrupt_window = 1
    assert Running(machine).result() == k.KVM_EXIT_IRQ_WINDOW_OPEN


def test_a_single_step_ends_at_hlt(make: Callable[..., Machine]) -> None:
    """The guest's own TF: the trap comes after HLT and ends it."""
    machine = make()
    machine.gate(1, HANDLER)
    machine.load("f4eb00f4")
    machine.vcpu.set_regs(k.kvm_regs(rip=CODE, rflags=0x102, rsp=0xF00))
    assert Running(machine).result() == k.KVM_EXIT_IO
    assert port(machine) == 0x20
    assert machine.vcpu.get_debugregs().dr6 & 1 << 14


def test_a_debugger_steps_over_hlt(make: Callable[..., Machine]) -> None:
    machine = make()
    machine.load(HLT_THEN_OUT)
    machine.vcpu.set_guest_debug(k.KVM_GUESTDBG_ENABLE | k.KVM_GUESTDBG_SINGLESTEP)
    assert Running(machine).result() == k.KVM_EXIT_DEBUG
    assert machine.vcpu.get_regs().rip == CODE + 1


# --- HLT with a local APIC in the kernel ------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["msi", "nmi"])
def test_an_event_from_another_thread_wakes_it(make: Callable[..., Machine], way: str) -> None:
    machine = make(HLT, Vm.split_irqchip)
    enable_apic(machine)
    machine.load(STI + HLT_THEN_OUT)
    run = Running(machine)
    assert run.sleeps()
    if way == "msi":
        msi(machine)
    else:
        machine.vm.signal_msi(0xFEE00000, 0x400)  # delivery mode NMI
    assert run.result() == k.KVM_EXIT_IO
    assert port(machine) == 0x20


def test_user_space_wakes_it_by_setting_its_state(make: Callable[..., Machine]) -> None:
    """Since 7.3 (kvm_arch_vcpu_ioctl_set_mpstate): a VMM that resets a machine continues with all of its processors."""
    machine = make(HLT, Vm.split_irqchip)
    machine.load(HLT_THEN_OUT)
    run = Running(machine)
    assert run.sleeps()
    run.stop()
    machine.vcpu.set_mp_state(k.KVM_MP_STATE_HALTED)
    machine.vcpu.kvm_run.immediate_exit = 0
    machine.vcpu.set_mp_state(k.KVM_MP_STATE_RUNNABLE)
    assert Running(machine).result() == k.KVM_EXIT_IO
    assert port(machine) == 0x10


def test_interrupts_that_the_guest_does_not_take_let_it_sleep(make: Callable[..., Machine]) -> None:
    machine = make(HLT, Vm.split_irqchip)
    enable_apic(machine)
    machine.load(HLT_THEN_OUT)
    run = Running(machine)
    assert run.sleeps()
    msi(machine)
    assert run.sleeps(), "IF is 0"
    assert run.stop() == -errno.EINTR


def test_its_own_timer_wakes_it(make: Callable[..., Machine]) -> None:
    machine = make(HLT, Vm.split_irqchip)
    enable_apic(machine, _320=VECTOR, _380=20_000_000, _3e0=0b1011)  # one shot, 20 ms of the 1 GHz bus
    machine.load(STI + HLT_THEN_OUT)
    assert Running(machine).result() == k.KVM_EXIT_IO
    assert port(machine) == 0x20


def test_no_event_is_lost_between_looking_and_sleeping(make: Callable[..., Machine]) -> None:
    """Each interrupt ends one HLT, however close to it it comes."""
    machine = make(HLT, Vm.split_irqchip)
    enable_apic(machine)
    machine.load(STI + "f4ebfd")  # sti; 1: hlt; jmp 1b
    state = machine.vcpu.get_lapic()
    for _ in range(200):
        run = Running(machine)
        msi(machine)
        assert run.result() == k.KVM_EXIT_IO
        machine.vcpu.set_lapic(state)  # the handler writes no EOI: nothing is in service any more


def test_the_processor_is_free_while_one_halts(make: Callable[..., Machine]) -> None:
    """Two vCPUs: one halts, the other computes and then sends it an IPI."""
    machine = make(HLT, Vm.split_irqchip)
    enable_apic(machine)
    machine.load(STI + HLT_THEN_OUT)
    run = Running(machine)
    assert run.sleeps()
    other = machine.vm.create_vcpu(1)
    other.set_mp_state(k.KVM_MP_STATE_RUNNABLE)
    flat(other, entry=0x1800)
    # mov ecx, 20000000; 1: dec ecx; jnz 1b; out 0x40, al
    machine.load("b9002d3101" + "4975fd" + "e640", at=0x1800)
    other.run()
    assert other.kvm_run.io.port == 0x40
    assert run.sleeps(0.01)
    msi(machine)
    assert run.result() == k.KVM_EXIT_IO
    other.close()


@pytest.mark.parametrize("waits", ["f4", "ebfe"], ids=["hlt", "spin"])
def test_init_ends_it(make: Callable[..., Machine], waits: str) -> None:
    """INIT reaches a processor that runs, and resets the activity state: after SIPI the processor runs."""
    machine = make(HLT, Vm.split_irqchip)
    second = machine.vm.create_vcpu(1)
    enable_apic(machine)
    second.set_mp_state(k.KVM_MP_STATE_RUNNABLE)
    flat(second, entry=CODE)
    machine.load(waits)
    machine.load("e650", at=0x8000)  # out 0x50, al
    ended: list[int] = []

    def run() -> None:
        for _ in range(50):
            try:
                second.run()
                ended.append(int(second.kvm_run.io.port))
                return
            except KvmError as error:
                if error.errno not in (errno.EAGAIN, errno.EINTR):
                    ended.append(-(error.errno or 0))
                    return

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(0.1)
    machine.vm.signal_msi(0xFEE00000 | 1 << 12, 0x500)  # INIT to APIC 1
    time.sleep(0.05)
    machine.vm.signal_msi(0xFEE00000 | 1 << 12, 0x608)  # SIPI, vector 8
    thread.join(PATIENCE)
    assert ended == [0x50]
    second.close()


def test_a_td_takes_the_capability(kernel: Kernel) -> None:
    """The TDX module decides what exits; KVM takes PV_UNHALT out of what it answers for the TD."""
    with Kvm(kernel) as kvm, kvm.create_td() as td:
        assert td.enable_cap(k.Cap.X86_DISABLE_EXITS, HLT | PAUSE | CSTATE) == 0
