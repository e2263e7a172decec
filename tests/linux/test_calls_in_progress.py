# SPDX-License-Identifier: GPL-2.0-or-later
"""What is closed or unmapped while a call on it is in progress: the call holds it (fget, fput), and ends as it would.

open(2) and close(2): an open file description lives until the last reference to it is gone, and a system call in
progress has one. KVM: a vCPU and a guest_memfd hold their VM.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import mmap
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from swtdx.cpu.platform import Platform
from swtdx.linux.files import File, FileTable
from swtdx.linux.sched import TimerQueue
from swtdx.machine import MachineKernel, boot
from swtdx.uapi import kvm as k
from swtdx.uapi.client import Kvm, Vcpu, Vm
from swtdx.vmm.bare_td import BareTd

# 1: mov [di], ax; inc edi; cmp di, 0xf000; jb 1b; jmp 1b
TOUCH = bytes.fromhex("31ff8905474781ff00f072f6ebf2")
HALT = bytes.fromhex("fbf4ebfd")
PATIENCE = 20.0


@pytest.fixture(autouse=True)
def watchdog() -> Iterator[None]:
    faulthandler.dump_traceback_later(5 * PATIENCE, exit=True)
    old = signal.signal(signal.SIGUSR1, lambda *_: None)
    yield
    signal.signal(signal.SIGUSR1, old)
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture
def kernel() -> Iterator[MachineKernel]:
    kernel = boot(platform=Platform(memory_size=1 << 30, logical_processors=4))
    yield kernel
    kernel.shutdown()


def machine(device: Kvm, code: bytes) -> tuple[Vm, Vcpu, mmap.mmap]:
    vm = device.create_vm()
    vm.split_irqchip()
    memory = mmap.mmap(-1, 1 << 20)
    memory[0x1000 : 0x1000 + len(code)] = code
    vm.set_user_memory_region(0, 0, len(memory), memory)
    vcpu = vm.create_vcpu(0)
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(k.kvm_regs(rip=0x1000, rflags=2))
    return vm, vcpu, memory


def unmap(vcpu: Vcpu) -> None:
    """munmap(2) of what the client has mapped."""
    vcpu.kvm_run = k.kvm_run.from_buffer_copy(vcpu.mapping)
    vcpu.mapping.close()


class Call(threading.Thread):
    """A system call in a thread: what it raised, or None."""

    def __init__(self, function: Callable[[], object], settle: float = 0.1) -> None:
        super().__init__(daemon=True)
        self._function = function
        self.error: BaseException | None = None
        self.start()
        time.sleep(settle)

    def run(self) -> None:
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def kick_until_it_ends(self) -> None:
        end = time.monotonic() + PATIENCE
        while self.is_alive() and time.monotonic() < end:
            assert self.ident is not None
            signal.pthread_kill(self.ident, signal.SIGUSR1)
            self.join(0.02)
        assert not self.is_alive(), "the call cannot be stopped"


@pytest.mark.parametrize("code", [TOUCH, HALT], ids=["in the guest", "halted"])
@pytest.mark.parametrize("order", ["vcpu first", "vm first"])
def test_a_vm_lives_until_the_run_has_ended(kernel: MachineKernel, code: bytes, order: str) -> None:
    with Kvm(kernel) as device:
        vm, vcpu, _memory = machine(device, code)
        fd = vcpu.fd
        call = Call(lambda: kernel.ioctl(fd, k.KVM_RUN, 0))
        before = kernel.pages.in_use
        for one in (vcpu, vm) if order == "vcpu first" else (vm, vcpu):
            one.close()  # a vCPU's mapping goes with it
        time.sleep(0.1)
        assert call.is_alive()
        assert before <= kernel.pages.in_use
        assert len(kernel.vms) == 1
        with pytest.raises(OSError) as error:
            kernel.ioctl(fd, k.KVM_RUN, 0)
        assert error.value.errno == errno.EBADF
        other_vm, other, _other_memory = machine(device, TOUCH)  # would take the pages
        call.kick_until_it_ends()
        assert isinstance(call.error, OSError)
        assert call.error.errno == errno.EINTR
        assert len(kernel.vms) == 1
        other.close()
        other_vm.close()
    assert not kernel.pages.in_use


def test_a_td_lives_until_the_run_has_ended(kernel: MachineKernel) -> None:
    assert kernel.tdx is not None
    hkids = kernel.tdx.free_hkids
    with Kvm(kernel) as device:
        td = BareTd(device, b"\xeb\xfe")
        fd = td.vcpu.fd
        keep = list(td.memory)
        call = Call(lambda: kernel.ioctl(fd, k.KVM_RUN, 0))
        td.vcpu.close()
        td.vm.close()
        time.sleep(0.1)
        assert call.is_alive()
        assert kernel.tdx.free_hkids == hkids - 1
        call.kick_until_it_ends()
        assert isinstance(call.error, OSError)
        assert keep
        td.close()  # the guest_memfd, which is what is left
    assert kernel.tdx.free_hkids == hkids


def test_unmapping_alone_changes_nothing(kernel: MachineKernel) -> None:
    with Kvm(kernel) as device:
        vm, vcpu, _memory = machine(device, TOUCH)
        call = Call(lambda: kernel.ioctl(vcpu.fd, k.KVM_RUN, 0))
        unmap(vcpu)
        time.sleep(0.1)
        assert call.is_alive()
        call.kick_until_it_ends()
        assert isinstance(call.error, OSError)
        assert call.error.errno == errno.EINTR
        kernel.close(vcpu.fd)
        vcpu.fd = -1
        vm.close()
    assert not kernel.pages.in_use


class Slow(File):
    """A file whose calls last until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go, self.released = threading.Event(), 0

    def ioctl(self, request: int, arg: int) -> int:
        self.enter()
        try:
            self.go.wait(PATIENCE)
        finally:
            self.leave()
        return 0

    def release(self) -> None:
        self.released += 1


def test_a_file_is_released_once_by_whoever_leaves_last() -> None:
    files, file = FileTable(), Slow()
    fd = files.install(file)
    calls = [Call(lambda: file.ioctl(0, 0), 0.02) for _ in range(3)]
    files.close(fd)
    assert not file.released
    with pytest.raises(OSError) as error:
        file.enter()
    assert error.value.errno == errno.EBADF
    assert not file.released
    file.go.set()
    for call in calls:
        call.join(PATIENCE)
    assert int(file.released) == 1


def test_a_mapping_made_while_the_descriptor_is_closed_keeps_the_file() -> None:
    files, file = FileTable(), Slow()
    fd = files.install(file)
    file.enter()
    files.close(fd)
    files.hold(file)
    file.leave()
    assert not file.released
    files.put(file)
    assert int(file.released) == 1


def test_a_timer_that_is_shut_down_does_not_run_any_more() -> None:
    """Neither now nor because its own function has armed it again."""
    queue = TimerQueue()
    ran: list[float] = []
    inside = threading.Event()

    def function() -> None:
        inside.set()
        time.sleep(0.05)
        timer.start(time.monotonic_ns())
        ran.append(time.monotonic())

    timer = queue.timer(function)
    timer.start(time.monotonic_ns())
    assert inside.wait(PATIENCE)
    timer.shutdown_sync()
    done = time.monotonic()
    assert ran
    assert max(ran) <= done
    count = len(ran)
    time.sleep(0.15)
    assert len(ran) == count
    queue.stop()


# Not mmap: Python duplicates the descriptor for it, and so brings a number that was just closed back to life.
ATTACKS: dict[str, Callable[[MachineKernel, list[int], random.Random], object]] = {
    "close": lambda kernel, fds, chance: kernel.close(chance.choice(fds)),
    "run": lambda kernel, fds, chance: kernel.ioctl(chance.choice(fds), k.KVM_RUN, 0),
    "slots": lambda kernel, fds, chance: kernel.ioctl(chance.choice(fds), k.REQUESTS["KVM_GET_TSC_KHZ"], 0),
}


def test_many_threads_close_and_run_the_same_descriptors(kernel: MachineKernel) -> None:
    """Every call ends in an answer or one of KVM's errnos, and nothing is left when the last descriptor is gone."""
    answers: Counter[Any] = Counter()
    for seed in range(25):
        with Kvm(kernel) as device:
            vm, vcpu, memory = machine(device, (TOUCH, HALT)[seed % 2])
            second = vm.create_vcpu(1)
            fds = [vm.fd, vcpu.fd, second.fd]
            run_pages = [one.kvm_run for one in (vcpu, second)]

            def attack(number: int, seed: int = seed, fds: list[int] = fds) -> None:
                chance = random.Random(f"{seed}:{number}")
                for _ in range(60):
                    name = chance.choices(list(ATTACKS), (0.03, 2, 1))[0]
                    try:
                        ATTACKS[name](kernel, fds, chance)
                        answers[name] += 1
                    except OSError as error:
                        answers[name, errno.errorcode[error.errno or 0]] += 1

            threads = [Call(partial(attack, number), 0) for number in range(4)]
            end = time.monotonic() + PATIENCE
            while any(thread.is_alive() for thread in threads):
                assert time.monotonic() < end, "stuck"
                for page in run_pages:
                    page.immediate_exit = 1
                time.sleep(0.002)
                for thread in threads:
                    with contextlib.suppress(ProcessLookupError):
                        if thread.is_alive() and thread.ident is not None:
                            signal.pthread_kill(thread.ident, signal.SIGUSR1)
            assert not [thread.error for thread in threads if thread.error is not None]
            del run_pages, page
            for one in (vcpu, second):
                unmap(one)
            for fd in fds:
                with contextlib.suppress(OSError):
                    kernel.close(fd)
            vcpu.fd = second.fd = vm.fd = -1
            assert not kernel.vms, f"round {seed}"
            del memory
        assert not kernel.pages.in_use
    errnos = {key[1] for key in answers if isinstance(key, tuple)}
    assert errnos <= {"EBADF", "EINTR", "EAGAIN", "EINVAL", "EIO", "ENOTTY", "ENODEV", "EFAULT"}, answers
    assert answers["close"] > 20


def test_an_eventfd_interrupt_in_progress_is_over_when_the_vm_ends(kernel: MachineKernel) -> None:
    """Its function works on the interrupt controllers, whose pages go with the VM."""
    with Kvm(kernel) as device:
        vm, vcpu, _memory = machine(device, HALT)
        event = kernel.eventfd()
        vm.irqfd(event, 5)
        (kvm,) = kernel.vms
        entered, over = threading.Event(), threading.Event()

        def slow(gsi: int, level: int, source: int = 0) -> int:
            entered.set()
            time.sleep(0.2)
            over.set()
            return 0

        kvm.irq_routing.set_irq = slow  # type: ignore[method-assign]
        os.eventfd_write(event, 1)
        assert entered.wait(PATIENCE)
        vcpu.close()
        vm.close()
        assert over.is_set()
        kernel.close(event)
