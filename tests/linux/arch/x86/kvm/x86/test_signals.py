# SPDX-License-Identifier: GPL-2.0-or-later
"""What ends a call early: a signal, as soon as it comes, and immediate_exit in KVM_RUN alone.

signal(7): a blocked system call whose signal has a handler ends with EINTR, whatever the handler does.
Documentation/virt/kvm/api.rst, 4.10 and 5 (immediate_exit: "KVM_RUN will exit immediately, returning -EINTR").
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from swtdx.cpu import _engine
from swtdx.cpu.platform import Platform
from swtdx.machine import MachineKernel, boot
from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from swtdx.uapi.client import Kvm, KvmError, Vcpu
from testing.vm import SPIN
from tests.linux.conftest import Bench, ept_violation, exits, refused, signals, tdvmcall

pytestmark = pytest.mark.usefixtures("watchdog")

MARK = 0x2000  # the guest writes here first
HALT = bytes.fromhex("c606002001fbf4ebfd")  # mov byte ptr [MARK], 1; sti; 1: hlt; jmp 1b
PATIENCE = 20.0


@pytest.fixture
def kernel() -> Iterator[MachineKernel]:
    kernel = boot(platform=Platform(memory_size=1 << 30, logical_processors=2))
    yield kernel
    kernel.sees_signals = False
    kernel.shutdown()


@pytest.fixture
def handler() -> Iterator[Callable[[Callable[..., object]], object]]:
    old = signal.getsignal(signal.SIGUSR1)
    yield lambda function: signal.signal(signal.SIGUSR1, function)
    signal.signal(signal.SIGUSR1, old)


def vm_of(device: Kvm, code: bytes) -> tuple[Vcpu, mmap.mmap]:
    vm = device.create_vm()
    vm.split_irqchip()
    memory = mmap.mmap(-1, 0x10000)
    memory[0x1000 : 0x1000 + len(code)] = code
    vm.set_user_memory_region(0, 0, 0x10000, memory)
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(k.kvm_regs(rip=0x1000, rflags=2))
    return vcpu, memory


class Running:
    """KVM_RUN in a thread of its own. ``ended``: its errno (0 if it returned).

    A signal that comes before the call ends nothing, so it is awaited that the guest runs, if ``memory`` is given.
    """

    def __init__(self, vcpu: Vcpu, memory: mmap.mmap | None = None) -> None:
        self._vcpu = vcpu
        self.ended: int | None = None
        if memory is not None:
            memory[MARK] = 0
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        time.sleep(0.05)
        deadline = time.monotonic() + PATIENCE
        while memory is not None and not memory[MARK] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.ended is None

    def _run(self) -> None:
        code = 0
        try:
            self._vcpu.run()
        except KvmError as error:
            code = error.errno or 0
        self.ended = code

    def kick(self) -> None:
        assert self.thread.ident is not None
        signal.pthread_kill(self.thread.ident, signal.SIGUSR1)

    def result(self) -> int:
        self.thread.join(PATIENCE)
        assert self.ended is not None, "KVM_RUN does not come back"
        return self.ended


def test_a_signal_ends_a_halt_whatever_its_handler_does(kernel: MachineKernel, handler: Callable[..., None]) -> None:
    handler(lambda *_: None)
    with Kvm(kernel) as device:
        vcpu, memory = vm_of(device, HALT)
        running = Running(vcpu, memory)
        running.kick()
        assert running.result() == errno.EINTR
        assert vcpu.exit_reason == k.Exit.INTR


def test_a_signal_ends_the_wait_of_a_processor_that_was_not_started(
    kernel: MachineKernel, handler: Callable[..., None]
) -> None:
    handler(lambda *_: None)
    with Kvm(kernel) as device:
        vm = device.create_vm()
        vm.split_irqchip()
        vm.create_vcpu(0)
        running = Running(vm.create_vcpu(1))
        deadline = time.monotonic() + PATIENCE
        while running.ended is None and time.monotonic() < deadline:
            running.kick()  # it may not have begun to wait
            running.thread.join(0.5)
        assert running.result() == errno.EINTR


def test_each_kick_ends_a_halt(kernel: MachineKernel, handler: Callable[..., None]) -> None:
    handler(lambda *_: None)
    with Kvm(kernel) as device:
        vcpu, memory = vm_of(device, HALT)
        for turn in range(9):  # how soon: script/bench exec
            vcpu.kvm_run.immediate_exit = 0
            running = Running(vcpu, None if turn else memory)  # it halts where it was
            vcpu.kvm_run.immediate_exit = 1
            running.kick()
            assert running.result() == errno.EINTR


def test_a_signal_that_says_so_ends_a_spinning_guest_at_once(kernel: MachineKernel) -> None:
    """As a library that wraps handlers does it: the handler is ``swtdx_signal`` and nothing else."""
    libc = ctypes.CDLL(None)
    libc.signal.restype, libc.signal.argtypes = ctypes.c_void_p, (ctypes.c_int, ctypes.c_void_p)
    kernel.sees_signals = True
    old = libc.signal(signal.SIGUSR1, _engine.signal_entry())
    try:
        with Kvm(kernel) as device:
            vcpu, _memory = vm_of(device, SPIN)
            for _ in range(9):
                running = Running(vcpu)
                running.kick()
                assert running.result() == errno.EINTR
    finally:
        libc.signal(signal.SIGUSR1, old)


def test_a_signal_that_came_before_the_entry_keeps_the_guest_from_running(kernel: MachineKernel) -> None:
    mark = ctypes.CFUNCTYPE(None)(_engine.signal_entry())
    kernel.sees_signals = True
    with Kvm(kernel) as device:
        vcpu, _memory = vm_of(device, SPIN)
        mark()
        assert _engine.signal_pending()
        with pytest.raises(KvmError) as error:
            vcpu.run()
        assert error.value.errno == errno.EINTR
        _engine.clear_signal()
        assert not _engine.signal_pending()


def test_a_blocked_signal_that_the_mask_lets_in_ends_a_halt(kernel: MachineKernel) -> None:
    with Kvm(kernel) as device:
        vcpu, _memory = vm_of(device, HALT)
        mask = (ctypes.c_uint32 * 3)(8)  # len, then the set: nothing is blocked
        kernel.ioctl(vcpu.fd, k.REQUESTS["KVM_SET_SIGNAL_MASK"], ctypes.addressof(mask))
        result: list[int | None] = []

        def run() -> None:
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
            try:
                vcpu.run()
            except KvmError as error:
                result.append(error.errno)
            result.append(signal.SIGUSR1 in signal.sigpending())
            signal.sigtimedwait({signal.SIGUSR1}, 0)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        time.sleep(0.05)
        assert thread.ident is not None
        signal.pthread_kill(thread.ident, signal.SIGUSR1)
        thread.join(PATIENCE)
        assert result == [errno.EINTR, True]


def test_immediate_exit_does_not_stop_adding_memory(bench: Bench) -> None:
    """kvm_gmem_populate asks signal_pending(current) alone."""
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    bench.run_page(vcpu).immediate_exit = 1
    region = bench.region(source, 0, 3)
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert (region.nr_pages, region.gpa) == (0, 0x3000)


def test_immediate_exit_does_not_stop_prefaulting(kernel: MachineKernel) -> None:
    with Kvm(kernel) as device:
        vcpu, _memory = vm_of(device, HALT)
        vcpu.kvm_run.immediate_exit = 1
        request = k.kvm_pre_fault_memory(gpa=0, size=0x3000)
        kernel.ioctl(vcpu.fd, k.REQUESTS["KVM_PRE_FAULT_MEMORY"], ctypes.addressof(request))
        assert (request.gpa, request.size) == (0x3000, 0)


def test_a_signal_does(bench: Bench) -> None:
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    region = bench.region(source, 0, 3)
    with signals(bench) as arrive, refused(errno.EINTR):
        arrive()
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert region.nr_pages == 3
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region)
    assert region.nr_pages == 0


# --- in the middle of a call: the module's answer to one SEAMCALL is when the signal comes, so that no clock decides --


def at_the(bench: Bench, leaf: str, number: int, arrive: Callable[[], None]) -> None:
    """Let the signal come while the module serves the call ``number`` of ``leaf``, which succeeds."""

    def served(args: object) -> int:
        arrive()
        return 0

    bench.module.answers[leaf] = [*[0] * (number - 1), served]


@pytest.mark.parametrize("leaf", ["MEM_PAGE_ADD", "MR_EXTEND"])
@pytest.mark.parametrize("page", [1, 2, 5])
def test_a_signal_in_the_middle_of_adding_memory_ends_it_after_that_page(bench: Bench, leaf: str, page: int) -> None:
    """tdx_vcpu_init_mem_region asks before each page, and tells how far it came."""
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    source = bench.memory(vm)
    region = bench.region(source, 0, 8)
    calls_of_a_page = 16 if leaf == "MR_EXTEND" else 1
    with signals(bench) as arrive, refused(errno.EINTR):
        at_the(bench, leaf, calls_of_a_page * (page - 1) + 1, arrive)
        bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region, flags=1)
    assert (region.nr_pages, region.gpa, region.source_addr) == (8 - page, page << 12, source + (page << 12))
    bench.command(vcpu, up.KVM_TDX_INIT_MEM_REGION, region, flags=1)
    assert region.nr_pages == 0
    assert bench.module.names().count("MEM_PAGE_ADD") == 8


@pytest.mark.parametrize("page", [1, 2, 5])
def test_a_signal_in_the_middle_of_prefaulting_ends_it_after_that_page(
    bench: Bench, runnable: tuple[int, int], page: int
) -> None:
    """kvm_vcpu_pre_fault_memory returns 0 once a page is mapped, and EINTR if none is."""
    request = k.kvm_pre_fault_memory(gpa=0, size=0x8000)
    with signals(bench) as arrive:
        at_the(bench, "MEM_PAGE_AUG", page, arrive)
        bench.ioctl(runnable[1], k.KVM_PRE_FAULT_MEMORY, request)
        assert (request.gpa, request.size) == (page << 12, 0x8000 - (page << 12))
        with refused(errno.EINTR):
            bench.ioctl(runnable[1], k.KVM_PRE_FAULT_MEMORY, request)
    bench.ioctl(runnable[1], k.KVM_PRE_FAULT_MEMORY, request)
    assert request.size == 0


def test_a_signal_ends_a_fault_that_finds_the_module_busy_for_ever(bench: Bench, runnable: tuple[int, int]) -> None:
    """tdx_handle_ept_violation: RET_PF_RETRY is repeated until an event or a signal comes."""
    with signals(bench) as arrive:
        tries = 0

        def busy(args: object) -> int:
            nonlocal tries
            tries += 1
            if tries == 5:
                arrive()
            bench.module.answers["MEM_PAGE_AUG"] = [busy]
            return 0x8000020000000092  # OPERAND_BUSY, SEPT_TREE

        bench.module.answers["MEM_PAGE_AUG"] = [busy]
        bench.module.answers["VP_ENTER"] = exits(ept_violation(0))
        with refused(errno.EINTR):
            bench.ioctl(runnable[1], k.KVM_RUN)
    assert tries >= 5
    assert bench.module.names().count("VP_ENTER") == 1


def test_a_signal_comes_between_the_exits_of_a_guest_that_only_exits(bench: Bench, runnable: tuple[int, int]) -> None:
    """vcpu_run looks after each exit that needs no user space."""
    with signals(bench) as arrive:

        def third(args: object) -> int:
            arrive()
            return 1  # external interrupt

        bench.module.answers["VP_ENTER"] = exits(1, 1, third, 1, 1)
        with refused(errno.EINTR):
            bench.ioctl(runnable[1], k.KVM_RUN)
    assert bench.module.names().count("VP_ENTER") == 3


def test_a_signal_while_map_gpa_converts_comes_after_the_last_piece(bench: Bench, runnable: tuple[int, int]) -> None:
    """tdx_complete_vmcall_map_gpa goes to the next piece without asking for signals; vcpu_run asks."""
    vm, vcpu = runnable
    bench.enable(vm, k.Cap.EXIT_HYPERCALL, 1 << k.KVM_HC_MAP_GPA_RANGE)
    bench.module.answers["VP_ENTER"] = exits(
        tdvmcall(r11=0x10001, r12=1 << 47, r13=0x600000),
        1,  # with a signal pending the processor leaves the guest at once: external interrupt
    )
    run = bench.run_page(vcpu)
    bench.ioctl(vcpu, k.KVM_RUN)
    assert (run.exit_reason, run.hypercall.args[0]) == (k.KVM_EXIT_HYPERCALL, 0)
    with signals(bench) as arrive:  # one for each call: what is pending when a call returns is delivered then
        for gpa in (0x200000, 0x400000):
            arrive()
            bench.ioctl(vcpu, k.KVM_RUN)
            assert (run.exit_reason, run.hypercall.args[0]) == (k.KVM_EXIT_HYPERCALL, gpa)
        arrive()
        with refused(errno.EINTR):
            bench.ioctl(vcpu, k.KVM_RUN)
    assert bench.module.names().count("VP_ENTER") == 2
    bench.ioctl(vcpu, k.KVM_RUN)
    assert run.exit_reason == k.KVM_EXIT_SHUTDOWN
