# SPDX-License-Identifier: GPL-2.0-or-later
"""VMMCALL on a processor that has VMCALL: KVM rewrites it (em_hypercall, emulator_fix_hypercall).

Results: Documentation/virt/kvm/x86/hypercalls.rst; an unknown number is -KVM_ENOSYS, ring 3 gets -KVM_EPERM.
Documentation/virt/kvm/api.rst, KVM_X86_QUIRK_FIX_HYPERCALL_INSN: without it the guest gets #UD.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.cpu import _engine
from swtdx.cpu.platform import Platform
from swtdx.exec.machine import platform
from swtdx.exec.settings import Settings
from swtdx.linux.arch.x86.kvm.x86 import undefined_opcode
from swtdx.linux.arch.x86.kvm.x86.guest_memory import fetch
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from tests.linux.arch.x86.kvm.vmx.test_vmx import CODE, HANDLER, HLT, Machine, flat

VMCALL, VMMCALL = "0f01c1", "0f01d9"
NUMBER = "b8e8030000"  # mov eax, 1000: no hypercall
UD, PF = 6, 14
PAGE_DIRECTORY, PAGE_TABLE = 0x8000, 0x9000


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine(open_kernel("emulated"))
    flat(machine.vcpu)
    machine.gate(UD, HLT)
    yield machine
    machine.close()


@pytest.fixture
def with_vmmcall() -> Iterator[Machine]:
    """A machine whose processor has both, as `swtdx exec` makes it where CPUID names AMD."""
    machine = Machine(open_kernel("emulated", platform=Platform(vmmcall=True)))
    flat(machine.vcpu)
    machine.gate(UD, HLT)
    yield machine
    machine.close()


def result(machine: Machine) -> tuple[int, int]:
    """(RIP, EAX) at the first exit to user space, which is a HLT."""
    assert machine.trace() == [(int(k.Exit.HLT),)]
    registers = machine.vcpu.get_regs()
    return registers.rip, registers.rax & 0xFFFFFFFF


def test_vmmcall_becomes_vmcall_and_is_executed(machine: Machine) -> None:
    machine.load(NUMBER + VMMCALL + HLT)
    assert result(machine) == (CODE + 9, -1000 & 0xFFFFFFFF)
    assert machine.memory[CODE + 5 : CODE + 8].hex() == VMCALL


def test_also_across_a_page_and_more_than_once(machine: Machine) -> None:
    at = CODE + 0x1000 - 7
    machine.load(NUMBER + VMMCALL + NUMBER + VMMCALL + HLT, at)
    machine.vcpu.set_regs(k.kvm_regs(rip=at, rflags=2, rsp=0xF00))
    assert result(machine) == (at + 17, -1000 & 0xFFFFFFFF)
    assert machine.memory[at + 5 : at + 8].hex() == VMCALL


def test_another_vcpu_has_replaced_it_meanwhile(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes are VMCALL by the time that KVM looks for what was undefined: the guest executes them again."""
    looked = []

    def replaced_first(*where: Any) -> bytes:
        machine.load(VMCALL, CODE + 5)
        looked.append(fetch(*where))
        return looked[-1]

    monkeypatch.setattr(undefined_opcode, "fetch", replaced_first)
    machine.load(NUMBER + VMMCALL + HLT)
    assert result(machine) == (CODE + 9, -1000 & 0xFFFFFFFF)
    assert [code.hex() for code in looked] == [VMCALL]


def test_in_real_mode(machine: Machine) -> None:
    sregs = machine.vcpu.get_sregs()
    sregs.cr0 &= ~1
    sregs.cs = k.kvm_segment(base=0x1000, limit=0xFFFF, selector=0x100, type=11, present=1, s=1)
    machine.vcpu.set_sregs(sregs)
    machine.load("66" + NUMBER + VMMCALL + HLT, 0x1000)
    machine.vcpu.set_regs(k.kvm_regs(rip=0, rflags=2))
    assert result(machine) == (10, -1000 & 0xFFFFFFFF)


def test_without_the_quirk_it_is_undefined(machine: Machine) -> None:
    machine.vm.enable_cap(k.Cap.DISABLE_QUIRKS2, k.KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
    machine.load(NUMBER + VMMCALL + HLT)
    assert result(machine) == (HANDLER + 1, 1000)
    assert machine.memory[CODE + 5 : CODE + 8].hex() == VMMCALL
    (returns_to,) = struct.unpack("<I", machine.memory[0xF00 - 12 : 0xF00 - 8])
    assert returns_to == CODE + 5


@pytest.mark.parametrize("code", ["0f0b", "0fff00", "0f01d8"], ids=["ud2", "ud0", "vmrun"])
def test_other_undefined_instructions_are_the_guests(machine: Machine, code: str) -> None:
    machine.load(code + HLT)
    assert result(machine)[0] == HANDLER + 1


def protect(machine: Machine, cr0_wp: bool = True) -> None:
    """Turn paging on, with the guest's code in a page that it may not write. A #PF leaves its error code in EAX."""
    for number in range(16):
        entry = (number << 12) | (1 if number == CODE >> 12 else 3)
        machine.memory[PAGE_TABLE + 4 * number : PAGE_TABLE + 4 * number + 4] = entry.to_bytes(4, "little")
    machine.memory[PAGE_DIRECTORY : PAGE_DIRECTORY + 4] = (PAGE_TABLE | 3).to_bytes(4, "little")
    machine.gate(PF, "58" + HLT)  # pop eax: the error code
    sregs = machine.vcpu.get_sregs()
    sregs.cr3, sregs.cr0 = PAGE_DIRECTORY, sregs.cr0 | 1 << 31 | (1 << 16 if cr0_wp else 0)
    machine.vcpu.set_sregs(sregs)


@pytest.mark.parametrize("protected", [True, False], ids=["CR0.WP", "no CR0.WP"])
def test_a_page_that_the_guest_may_not_write(machine: Machine, protected: bool) -> None:
    """The write is made in the guest's name: #PF with the present and write bits, CR2 at the instruction."""
    protect(machine, protected)
    machine.load(NUMBER + VMMCALL + HLT)
    if protected:
        assert result(machine) == (HANDLER + 2, 0b11)
        assert machine.vcpu.get_sregs().cr2 == CODE + 5
    else:
        assert result(machine) == (CODE + 9, -1000 & 0xFFFFFFFF)


@pytest.mark.parametrize("instruction", [VMCALL, VMMCALL])
@pytest.mark.parametrize("quirk", [True, False])
def test_a_processor_that_has_both(with_vmmcall: Machine, instruction: str, quirk: bool) -> None:
    """Kernels keep their code in pages that they may not write: nothing is replaced, nothing is undefined."""
    if not quirk:
        with_vmmcall.vm.enable_cap(k.Cap.DISABLE_QUIRKS2, k.KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
    protect(with_vmmcall)
    with_vmmcall.load((NUMBER + instruction) * 2 + HLT)
    assert result(with_vmmcall) == (CODE + 17, -1000 & 0xFFFFFFFF)
    assert with_vmmcall.memory[CODE + 5 : CODE + 8].hex() == instruction


@pytest.mark.parametrize("instruction", [VMCALL, VMMCALL])
def test_a_single_step_over_either(with_vmmcall: Machine, instruction: str) -> None:
    """#DB after the instruction, with RFLAGS.TF."""
    with_vmmcall.gate(1, "58" + HLT)  # pop eax: the address to return to
    with_vmmcall.load(NUMBER + instruction + HLT)
    with_vmmcall.vcpu.set_regs(k.kvm_regs(rip=CODE + 5, rflags=0x102, rsp=0xF00, rax=1000))
    assert result(with_vmmcall)[1] == CODE + 8


def test_other_undefined_instructions_stay_so(with_vmmcall: Machine) -> None:
    with_vmmcall.load("0f01d8" + HLT)  # vmrun
    assert result(with_vmmcall)[0] == HANDLER + 1


@pytest.mark.parametrize(
    ("vendor", "has"),
    [(b"GenuineIntel", False), (b"AuthenticAMD", True), (b"HygonGenuine", True), (b"CentaurHauls", False)],
)
def test_the_machine_of_swtdx_exec_follows_the_vendor(
    monkeypatch: pytest.MonkeyPatch, vendor: bytes, has: bool
) -> None:
    real = _engine.host_cpuid

    def cpuid(leaf: int, subleaf: int = 0) -> tuple[int, ...]:
        ebx, edx, ecx = struct.unpack("<III", vendor)
        return (real(0)[0], ebx, ecx, edx) if leaf == 0 else real(leaf, subleaf)

    monkeypatch.setattr(_engine, "host_cpuid", cpuid)
    assert platform(Settings()).vmmcall == has
