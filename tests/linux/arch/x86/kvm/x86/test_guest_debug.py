# SPDX-License-Identifier: GPL-2.0-or-later
"""KVM_SET_GUEST_DEBUG on a normal VM.

Expectations come from the SDM (volume 3, chapter 18) and from linux/Documentation/virt/kvm/api.rst, 4.87.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError, Vm
from tests.linux.arch.x86.kvm.vmx.test_vmx import CODE, Machine, flat
from tests.linux.conftest import refused

DB, BP, BS = 1, 3, 1 << 14
ENABLE = k.KVM_GUESTDBG_ENABLE
STEP, SOFTWARE, HARDWARE = k.KVM_GUESTDBG_SINGLESTEP, k.KVM_GUESTDBG_USE_SW_BP, k.KVM_GUESTDBG_USE_HW_BP
DATA = 0x5000
VECTOR = 0x55


@pytest.fixture
def machine() -> Iterator[Machine]:
    made = Machine(open_kernel("emulated"))
    yield made
    made.close()


def start(machine: Machine, code: str) -> None:
    machine.load(code)
    flat(machine.vcpu)


def stop(machine: Machine) -> tuple[int, int, int]:
    """Run to KVM_EXIT_DEBUG: (vector, offset in the code, reasons of a #DB)."""
    machine.vcpu.run()
    run = machine.vcpu.kvm_run
    assert run.exit_reason == k.KVM_EXIT_DEBUG
    arch = run.debug.arch
    return arch.exception, arch.pc - CODE, arch.dr6 & 0xE00F if arch.exception == DB else 0


def test_a_step_is_one_instruction_and_its_flag_is_not_seen(machine: Machine) -> None:
    start(machine, "40 40 90 f4")  # inc eax; inc eax; nop; hlt
    machine.vcpu.set_guest_debug(ENABLE | STEP)
    assert [stop(machine) for _ in range(3)] == [(DB, 1, BS), (DB, 2, BS), (DB, 3, BS)]
    regs = machine.vcpu.get_regs()
    assert (regs.rax, regs.rflags & 1 << 8) == (2, 0)
    machine.vcpu.set_guest_debug(0)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_HLT


def test_instructions_that_kvm_carries_out_are_steps_too(machine: Machine) -> None:
    start(machine, "0fa2 e680 e480 90 f4")  # cpuid; out 0x80, al; in al, 0x80; nop; hlt
    machine.vcpu.set_guest_debug(ENABLE | STEP)
    assert stop(machine) == (DB, 2, BS)
    for offset in (4, 6):
        machine.vcpu.run()
        assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_IO
        assert stop(machine) == (DB, offset, BS)
    assert stop(machine) == (DB, 7, BS)


def test_a_software_breakpoint_stops_before_the_int3(machine: Machine) -> None:
    start(machine, "40 cc 40 f4")
    machine.vcpu.set_guest_debug(ENABLE | SOFTWARE)
    assert stop(machine) == (BP, 1, 0)
    assert machine.vcpu.get_regs().rip == CODE + 1
    assert stop(machine) == (BP, 1, 0), "nothing has moved"
    machine.load("90", CODE + 1)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_HLT


def test_a_breakpoint_planted_in_code_that_ran_before_is_met_at_once(machine: Machine) -> None:
    """The block with the jump stays in translation; the target lies in another page."""
    start(machine, "e80b100000 e680 ebf7")  # call f; out 0x80, al; jmp back
    machine.load("40 c3", CODE + 0x1010)
    for _ in range(3):
        machine.vcpu.run()
        assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_IO
    machine.load("cc", CODE + 0x1010)
    machine.vcpu.set_guest_debug(ENABLE | SOFTWARE)
    assert stop(machine) == (BP, 0x1010, 0)


def test_a_guests_own_int3_is_given_back_to_it(machine: Machine) -> None:
    start(machine, "cc 40 f4")
    machine.gate(BP, "bb07000000 cf")  # mov ebx, 7; iret
    machine.vcpu.set_guest_debug(ENABLE | SOFTWARE)
    assert stop(machine) == (BP, 0, 0)
    machine.vcpu.set_guest_debug(ENABLE | SOFTWARE | k.KVM_GUESTDBG_INJECT_BP)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_HLT
    regs = machine.vcpu.get_regs()
    assert (regs.rbx, regs.rax) == (7, 1)


def test_hardware_breakpoints_stop_before_code_and_after_stores(machine: Machine) -> None:
    start(machine, "40 c60500500000 09 40 f4")  # inc eax; mov byte [0x5000], 9; inc eax; hlt
    dr7 = 0x600 | 2 | 2 << 6 | 1 << 28  # DR0: execute; DR3: one byte written
    machine.vcpu.set_guest_debug(ENABLE | HARDWARE, [CODE + 1, 0, 0, DATA, 0, 0, 0, dr7])
    assert stop(machine) == (DB, 1, 1)
    machine.vcpu.set_guest_debug(ENABLE | HARDWARE, [CODE, 0, 0, DATA, 0, 0, 0, dr7])
    assert stop(machine) == (DB, 8, 8)
    assert machine.memory[DATA] == 9


def test_a_code_breakpoint_is_met_again_until_it_is_taken_away(machine: Machine) -> None:
    """Its #DB does not set RF (SDM volume 3, 18.3.1.1); KVM's selftest ``debug_regs`` moves it from DR0 to DR3."""
    start(machine, "40 90 40 f4")  # inc eax; nop; inc eax; hlt
    for number in (0, 0, 1, 2, 3):
        registers = [0] * 8
        registers[number], registers[7] = CODE + 1, 0x400 | 2 << 2 * number
        machine.vcpu.set_guest_debug(ENABLE | HARDWARE, registers)
        assert stop(machine) == (DB, 1, 1 << number)
        assert machine.vcpu.get_regs().rflags == 2
    machine.vcpu.set_guest_debug(0)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_HLT


def test_the_guests_debug_registers_are_not_the_debuggers(machine: Machine) -> None:
    start(machine, "b834120000 0f23c0 0f21c3 40 f4")  # mov eax, 0x1234; mov dr0, eax; mov ebx, dr0; inc eax; hlt
    machine.vcpu.set_guest_debug(ENABLE | HARDWARE, [CODE + 11, 0, 0, 0, 0, 0, 0, 0x602])
    assert stop(machine) == (DB, 11, 1), "the guest's MOV to DR0 has not taken the breakpoint away"
    assert machine.vcpu.get_regs().rbx == 0x1234
    assert machine.vcpu.get_debugregs().db[0] == 0x1234
    machine.vcpu.set_guest_debug(0)
    registers = machine.vcpu.get_debugregs()
    assert (registers.db[0], registers.dr7) == (0x1234, 0x400)


def test_blockirq_keeps_an_interrupt_out_of_a_step(machine: Machine) -> None:
    start(machine, "fb 90 40 40 f4")  # sti; nop; inc eax; inc eax; hlt
    machine.gate(0x30, "bb07000000 cf")
    machine.vcpu.set_guest_debug(ENABLE | STEP)
    assert stop(machine)[1] == 1
    assert stop(machine)[1] == 2
    machine.vcpu.interrupt(0x30)
    machine.vcpu.set_guest_debug(ENABLE | STEP | k.KVM_GUESTDBG_BLOCKIRQ)
    assert stop(machine)[1] == 3
    machine.vcpu.set_guest_debug(0)
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_HLT
    regs = machine.vcpu.get_regs()
    assert (regs.rax, regs.rbx) == (2, 7), "it came after the step"


def test_which_controls_there_are() -> None:
    with Kvm(open_kernel("emulated")) as kvm:
        assert kvm.check_extension(k.Cap.SET_GUEST_DEBUG2) == ENABLE | STEP | SOFTWARE | HARDWARE | (
            k.KVM_GUESTDBG_INJECT_DB | k.KVM_GUESTDBG_INJECT_BP | k.KVM_GUESTDBG_BLOCKIRQ
        )


def _own_breakpoint(machine: Machine, handler: str) -> None:
    """A real-mode guest with a data breakpoint on its own vector 1, which it reads."""
    machine.memory[4:8] = (0x3000).to_bytes(4, "little")
    machine.load(handler, 0x3000)
    # mov eax, 4; mov dr0, eax; mov eax, 0xF0403; mov dr7, eax; mov ax, [4]; hlt
    machine.load("66b804000000 0f23c0 66b803040f00 0f23f8 a10400 f4")
    sregs = machine.vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    machine.vcpu.set_sregs(sregs)
    machine.vcpu.set_regs(k.kvm_regs(rip=CODE, rsp=0xF000, rflags=2))


def test_a_guest_gets_its_own_debug_exception(machine: Machine) -> None:
    """#DB exits and is given back; DR6 says which breakpoint it was (SDM volume 3, 18.2.3)."""
    # the handler: mov eax, 0x400; mov dr7, eax; hlt
    _own_breakpoint(machine, "66b800040000 0f23f8 f4")
    sregs = machine.vcpu.get_sregs()
    sregs.idt.base, sregs.idt.limit = 0x8000, 0x3FF  # the vector that is delivered is not the one that is read
    machine.vcpu.set_sregs(sregs)
    machine.memory[0x8004:0x8008] = (0x3000).to_bytes(4, "little")
    machine.vcpu.run()
    assert machine.vcpu.kvm_run.exit_reason == k.KVM_EXIT_HLT
    assert machine.vcpu.get_regs().rip == 0x300A
    assert machine.vcpu.get_debugregs().dr6 & 0xE00F == 1


def test_a_storm_of_debug_exceptions_can_be_interrupted(machine: Machine) -> None:
    _own_breakpoint(machine, "cf")
    for _ in range(2):
        machine.vcpu.kvm_run.immediate_exit = 0
        timer = threading.Timer(0.3, lambda: setattr(machine.vcpu.kvm_run, "immediate_exit", 1))
        timer.start()
        with pytest.raises(KvmError) as refused:
            machine.vcpu.run()
        timer.join()
        assert refused.value.errno == errno.EINTR


def _with_apics(vm: Vm) -> None:
    vm.enable_cap(k.Cap.SPLIT_IRQCHIP, 24)


def _nmi(machine: Machine) -> None:
    machine.vcpu.nmi()


def _interrupt(machine: Machine) -> None:
    machine.vm.signal_msi(0xFEE00000, VECTOR)


def _interrupt_below_tpr(machine: Machine) -> None:
    machine.vcpu.kvm_run.cr8 = 15
    state = machine.vcpu.get_lapic()
    state.regs[0x80] = 0xF0
    machine.vcpu.set_lapic(state)
    machine.vm.signal_msi(0xFEE00000, VECTOR)


def _smi(machine: Machine) -> None:
    machine.vm.signal_msi(0xFEE00000, 0x200)  # as a message: this KVM has no CONFIG_KVM_SMM, and so no KVM_SMI


def _guest_debug(machine: Machine) -> None:
    machine.vcpu.set_guest_debug(ENABLE | SOFTWARE)


@pytest.mark.parametrize("rflags", [0x002, 0x202, 0x302], ids=["off", "if", "tf"])
@pytest.mark.parametrize("pending", [_nmi, _interrupt, _interrupt_below_tpr, _smi, _guest_debug])
def test_a_storm_with_something_pending_can_be_interrupted(pending: Callable[[Machine], None], rflags: int) -> None:
    """Nothing that waits for the guest keeps it in the guest."""
    machine = Machine(open_kernel("emulated"), _with_apics)
    try:
        _own_breakpoint(machine, "cf")
        for vector in (2, VECTOR):
            machine.memory[4 * vector : 4 * vector + 4] = (0x3100).to_bytes(4, "little")
        machine.load("cf", 0x3100)
        state = machine.vcpu.get_lapic()
        state.regs[0xF0:0xF2] = [0xFF, 1]
        machine.vcpu.set_lapic(state)
        machine.vcpu.set_regs(k.kvm_regs(rip=CODE, rsp=0xF000, rflags=rflags))
        for _ in range(3):
            pending(machine)
            machine.vcpu.kvm_run.immediate_exit = 0
            timer = threading.Timer(0.1, lambda: setattr(machine.vcpu.kvm_run, "immediate_exit", 1))
            timer.start()
            with refused(errno.EINTR):
                machine.vcpu.run()
            timer.join()
    finally:
        machine.close()
