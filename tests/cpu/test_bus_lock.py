# SPDX-License-Identifier: GPL-2.0-or-later
"""Bus lock exits: KVM_CAP_X86_BUS_LOCK_EXIT (Documentation/virt/kvm/api.rst 7.22, vmx_handle_exit in vmx.c).

A locked access that is split over two cache lines locks the bus (SDM volume 3, 9.1.2). The exit is a trap (27.2): the
instruction is complete. Guest memory is write-back, so that no other locked access locks the bus.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest

from swtdx.linux.config import KernelConfig
from swtdx.machine import open_kernel
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, KvmError, Vm
from swtdx.vmm.bare_guest import io_out
from swtdx.vmm.bare_td import BareTd
from testing.long_mode import DATA, GP, SIZE, LongModeVm
from tests.cpu.guest import assemble

LOCKED = [
    ("lock inc word ptr [rdi]", 2),
    ("lock add dword ptr [rdi], eax", 4),
    ("lock add dword ptr [rdi], 1", 4),
    ("lock sub qword ptr [rdi], rax", 8),
    ("lock adc qword ptr [rdi], rax", 8),
    ("lock sbb qword ptr [rdi], rax", 8),
    ("lock and dword ptr [rdi], eax", 4),
    ("lock or dword ptr [rdi], 0x100", 4),
    ("lock xor word ptr [rdi], ax", 2),
    ("lock not qword ptr [rdi]", 8),
    ("lock neg qword ptr [rdi]", 8),
    ("lock dec dword ptr [rdi]", 4),
    ("lock xadd [rdi], rax", 8),
    ("lock xadd [rdi], eax", 4),
    ("lock cmpxchg [rdi], rcx", 8),
    ("lock cmpxchg [rdi], cx", 2),
    ("lock cmpxchg8b [rdi]", 8),
    ("lock bts dword ptr [rdi], 3", 4),
    ("lock btr qword ptr [rdi], 3", 8),
    ("lock btc word ptr [rdi], 3", 2),
    ("lock bts [rdi], rbx", 8),
    ("xchg [rdi], eax", 4),
    ("xchg [rdi], rax", 8),
    ("lock xchg [rdi], ax", 2),
]
PLAIN = ["inc dword ptr [rdi]", "xadd [rdi], eax", "cmpxchg [rdi], ecx", "cmpxchg8b [rdi]", "bts dword ptr [rdi], 3"]
BYTES = ["lock inc byte ptr [rdi]", "xchg [rdi], al", "lock cmpxchg [rdi], cl"]
LINE = DATA + 0x100
EXIT = k.KVM_BUS_LOCK_DETECTION_EXIT


@pytest.fixture(scope="module")
def kvm() -> Iterator[Kvm]:
    with Kvm(open_kernel("emulated")) as device:
        yield device


def detecting(vm: Vm) -> None:
    vm.enable_cap(k.Cap.X86_BUS_LOCK_EXIT, EXIT)


@pytest.fixture(scope="module")
def guest(kvm: Kvm) -> Iterator[LongModeVm]:
    with LongModeVm(kvm, setup=detecting) as made:
        yield made


@pytest.fixture(scope="module")
def other(kvm: Kvm) -> Iterator[LongModeVm]:
    """Where nothing is detected, the same happens."""
    with LongModeVm(kvm) as made:
        yield made


def bus_locks(guest: LongModeVm, code: bytes, **registers: int) -> int:
    """Run to the end: how many exits were bus locks."""
    guest.start(code, **registers)
    count = 0
    while guest.step() is k.Exit.X86_BUS_LOCK:
        assert guest.vcpu.kvm_run.flags & k.KVM_RUN_X86_BUS_LOCK
        count += 1
    assert guest.vcpu.exit_reason == k.Exit.IO
    assert not guest.vcpu.kvm_run.flags & k.KVM_RUN_X86_BUS_LOCK
    assert guest.vcpu.kvm_run.io.port == 0xE1
    return count


def test_the_capability(kvm: Kvm) -> None:
    both = k.KVM_BUS_LOCK_DETECTION_OFF | EXIT
    with kvm.create_vm() as vm:
        assert vm.check_extension(k.Cap.X86_BUS_LOCK_EXIT) == both
        for refused in (both, 4, 4 | EXIT):
            with pytest.raises(KvmError) as caught:
                vm.enable_cap(k.Cap.X86_BUS_LOCK_EXIT, refused)
            assert caught.value.errno == errno.EINVAL
        vm.enable_cap(k.Cap.X86_BUS_LOCK_EXIT, 0)
        vm.enable_cap(k.Cap.X86_BUS_LOCK_EXIT, k.KVM_BUS_LOCK_DETECTION_OFF)


@pytest.mark.parametrize(("text", "size"), LOCKED, ids=[text for text, _ in LOCKED])
def test_each_locked_instruction(guest: LongModeVm, other: LongModeVm, text: str, size: int) -> None:
    """It exits where it is split, and nowhere else, and has done its work."""
    code = assemble(text)
    for line in (LINE, DATA + 0x1000):  # within a page, and over two
        for offset in range(-8, 8):
            split = -size < offset < 0
            at, seen = line + offset, []
            for _ in range(2):
                guest.memory[line - 64 : line + 64] = bytes(range(128))
                seen.append((bus_locks(guest, code, rdi=at, rax=0x1122, rcx=0x3344, rbx=5), guest.vcpu.get_regs().rax))
            assert [count for count, _ in seen] == [split, split], offset
            changed = bytes(guest.memory[line - 64 : line + 64])
            other.memory[line - 64 : line + 64] = bytes(range(128))
            assert bus_locks(other, code, rdi=at, rax=0x1122, rcx=0x3344, rbx=5) == 0
            assert bytes(other.memory[line - 64 : line + 64]) == changed
            assert other.vcpu.get_regs().rax == seen[0][1]


@pytest.mark.parametrize("text", [*PLAIN, *BYTES])
def test_what_locks_nothing(guest: LongModeVm, text: str) -> None:
    assert bus_locks(guest, assemble(text), rdi=LINE - 1) == 0


def test_the_exit_follows_the_instruction(guest: LongModeVm) -> None:
    guest.memory[LINE - 2 : LINE + 2] = bytes(4)
    guest.start(assemble("nop; lock inc dword ptr [rdi]; nop"), rdi=LINE - 2)
    assert guest.step() is k.Exit.X86_BUS_LOCK
    regs = guest.vcpu.get_regs()
    assert guest.memory[LINE - 2] == 1
    assert regs.rip == 0x1000 + len(assemble("nop; lock inc dword ptr [rdi]"))
    assert guest.outcome() is None


def test_a_loop_exits_each_time(guest: LongModeVm) -> None:
    guest.memory[LINE - 2 : LINE + 2] = bytes(4)
    loop = bytes.fromhex("f0ff07") + bytes.fromhex("ffc9") + bytes.fromhex("75f9")  # lock inc [rdi]; dec ecx; jnz
    assert bus_locks(guest, loop, rdi=LINE - 2, rcx=100) == 100
    assert guest.memory[LINE - 2] == 100


def test_a_fault_locks_nothing(kvm: Kvm) -> None:
    """CMPXCHG16B of what is not aligned is #GP, and a page without memory is MMIO, which the emulator executes."""
    with LongModeVm(kvm, setup=detecting) as guest:
        assert guest.run(assemble("lock cmpxchg16b [rdi]"), rdi=LINE - 8) == GP
        guest.start(assemble("lock inc dword ptr [rdi]"), rdi=SIZE - 2)
        assert guest.step() is not k.Exit.X86_BUS_LOCK


def test_vcpus_from_before(kvm: Kvm) -> None:
    """The control is computed when the vCPU is made, and again by KVM_SET_CPUID2 (vmx_vcpu_after_set_cpuid)."""
    with LongModeVm(kvm) as guest:
        detecting(guest.vm)
        code = assemble("lock inc dword ptr [rdi]")
        assert bus_locks(guest, code, rdi=LINE - 2) == 0
    with LongModeVm(kvm) as guest:
        detecting(guest.vm)
        guest.vcpu.set_cpuid2(kvm.supported_cpuid())
        guest.vm.enable_cap(k.Cap.X86_BUS_LOCK_EXIT, k.KVM_BUS_LOCK_DETECTION_OFF)
        assert bus_locks(guest, code, rdi=LINE - 2) == 1, "nothing switches it off"


def test_a_single_step_over_one(guest: LongModeVm) -> None:
    """The guest's own #DB follows the instruction; the exit is one for both (bit 26 of the exit reason)."""
    guest.start(assemble("lock inc dword ptr [rdi]"), rdi=LINE - 2)
    regs = guest.vcpu.get_regs()
    regs.rflags |= 0x100
    guest.vcpu.set_regs(regs)
    exits = [guest.step() for _ in range(2)]
    assert exits == [k.Exit.X86_BUS_LOCK, k.Exit.IO]
    assert guest.vcpu.io_data()[0] == 1, "the handler of #DB reports its vector"


# --- Trust Domains ----------------------------------------------------------------------------------------------------


class Detecting(Kvm):
    """TDs whose bus locks are to be told."""

    def create_td(self) -> Vm:
        td = super().create_td()
        detecting(td)
        return td


def exits_of_a_td(release: str, device: type[Kvm] = Detecting) -> list[k.Exit]:
    """Of one that locks the bus twice, locks a single line once, and writes to a port."""
    code = assemble("mov edi, 0x1c0fe; lock inc dword ptr [rdi]; lock inc dword ptr [rdi-1]; xchg [rdi-6], eax")
    kernel = open_kernel("emulated", config=KernelConfig(kernel_release=release))
    with device(kernel) as kvm, BareTd(kvm, code + io_out(0x80, 7)) as td:
        seen: list[k.Exit] = []
        while k.Exit.IO not in seen and len(seen) < 5:
            seen.append(td.run())
            assert bool(td.vcpu.kvm_run.flags & k.KVM_RUN_X86_BUS_LOCK) is (seen[-1] is k.Exit.X86_BUS_LOCK)
        assert td.vcpu.io_data() == b"\x07"
        return seen


@pytest.mark.parametrize(("release", "told"), [("6.16", 0), ("7.2", 0), ("7.3", 2), ("next", 2)])
def test_of_a_td_since_7_3(release: str, told: int) -> None:
    """tdx_vcpu_init of 7.3 sets the control that the TDX module lets a host set (secondary controls, bit 30)."""
    assert exits_of_a_td(release) == [k.Exit.X86_BUS_LOCK] * told + [k.Exit.IO]


def test_of_a_td_that_nobody_asked_about() -> None:
    assert exits_of_a_td("7.3", Kvm) == [k.Exit.IO]
