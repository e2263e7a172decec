# SPDX-License-Identifier: GPL-2.0-or-later
"""A vCPU whose guest never exits leaves KVM_RUN all the same. How soon: script/bench."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Iterator

import pytest

from swtdx.cpu.platform import Platform
from swtdx.machine import MachineKernel, boot
from swtdx.uapi.client import Kvm, KvmError, Vcpu
from swtdx.uapi.kvm import Exit
from swtdx.uapi.layout import address_of
from testing import guest
from testing.td import fresh_td, staged
from testing.vm import SPIN, RealModeVm

PATIENCE = 30


@pytest.fixture
def kernel() -> Iterator[MachineKernel]:
    kernel = boot(platform=Platform(memory_size=1 << 30, logical_processors=2))
    yield kernel
    kernel.shutdown()


@pytest.mark.parametrize("interrupt", [False, True], ids=["immediate_exit", "interrupt"])
def test_a_normal_vm(kernel: MachineKernel, interrupt: bool) -> None:
    with Kvm(kernel) as device, RealModeVm(device, SPIN) as vm:
        for _ in range(3):
            assert vm.seconds_to_leave(interrupt=interrupt) < PATIENCE


def leave(vcpus: list[Vcpu]) -> list[int | None]:
    """Let all spin, then call them out by immediate_exit alone; the errno with which each KVM_RUN ends."""
    codes: list[int | None] = []

    def spin(vcpu: Vcpu) -> None:
        try:
            vcpu.run()
        except KvmError as error:
            codes.append(error.errno)
        else:
            codes.append(None)

    threads = [threading.Thread(target=spin, args=(vcpu,), daemon=True) for vcpu in vcpus]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    assert codes == []
    for vcpu in vcpus:
        vcpu.kvm_run.immediate_exit = 1
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads)
    return codes


def test_a_td(kernel: MachineKernel) -> None:
    with Kvm(kernel) as device:
        vm, vcpu, memfd = fresh_td(device, 64 * guest.PAGE_SIZE)
        for gpa, contents in (
            (guest.RESET_PAGE, guest.reset_page()),
            (guest.PAGE_TABLES, guest.page_tables()),
            (guest.CODE, SPIN),
        ):
            source = staged(contents)
            vm.tdx_init_mem_region(address_of(source), gpa, len(source) // guest.PAGE_SIZE)
        vm.tdx_finalize()
        assert leave([vcpu]) == [errno.EINTR]
        assert vcpu.exit_reason == Exit.INTR
        vcpu.close()
        vm.close()
        kernel.close(memfd)


def test_more_spinning_vcpus_than_processors(kernel: MachineKernel) -> None:
    """Two processors, five vCPUs: who waits for a processor is called out, too."""
    with Kvm(kernel) as device:
        machines = [RealModeVm(device, SPIN) for _ in range(5)]
        assert leave([machine.vcpu for machine in machines]) == [errno.EINTR] * 5
        for machine in machines:
            machine.__exit__(None, None, None)
