# SPDX-License-Identifier: GPL-2.0-or-later
"""Trust Domains and ordinary VMs side by side on one kernel, each in its own thread, through one kvm_x86_ops."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable

import pytest

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import Exit, kvm_regs
from testing import guest
from testing.td import MeasuredTd

CODE, PORT, TURNS = 0x1000, 0x80, 500
# mov cx, TURNS; again: inc ax; out PORT, al; loop again; hlt
REAL_MODE = bytes.fromhex("b9") + TURNS.to_bytes(2, "little") + bytes.fromhex("40e680e2fbf4")


def ordinary_vm(device: Kvm) -> int:
    """Run the real-mode loop in two vCPUs, one after the other's exit: how many times the port was written."""
    memory = mmap.mmap(-1, 0x10000)
    memory[CODE : CODE + len(REAL_MODE)] = REAL_MODE
    written = 0
    with device.create_vm() as vm:
        vm.set_user_memory_region(0, 0, len(memory), memory)
        vcpus = [vm.create_vcpu(number) for number in range(2)]
        for vcpu in vcpus:
            sregs = vcpu.get_sregs()
            sregs.cs.base, sregs.cs.selector = 0, 0
            vcpu.set_sregs(sregs)
            vcpu.set_regs(kvm_regs(rip=CODE, rflags=2))
        running = list(vcpus)
        while running:
            for vcpu in list(running):
                vcpu.run()
                if vcpu.exit_reason == Exit.HLT:
                    assert vcpu.get_regs().rax & 0xFFFF == TURNS
                    running.remove(vcpu)
                else:
                    assert (vcpu.exit_reason, vcpu.kvm_run.io.port) == (Exit.IO, PORT)
                    written += 1
        for vcpu in vcpus:
            vcpu.close()
    return written


@pytest.mark.parametrize("dialect", list(Dialect), ids=lambda dialect: dialect.value)
def test_two_tds_and_two_ordinary_vms_at_once(dialect: Dialect) -> None:
    kernel = boot(dialect, Platform(memory_size=2 << 30))
    assert kernel.tdx is not None
    results: dict[str, object] = {}

    def trust_domain(device: Kvm) -> float:
        with MeasuredTd(device) as td:
            return td.seconds(guest.Workload.CPUID, 2000) + td.seconds(guest.Workload.IO_EXIT, 500)

    def report(name: str, work: Callable[[Kvm], object], device: Kvm) -> None:
        try:
            results[name] = work(device)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test's own thread must see it
            results[name] = error

    with Kvm(kernel) as device:
        before = kernel.pages.in_use, kernel.tdx.free_hkids
        threads = [
            threading.Thread(target=report, args=(f"{work.__name__} {number}", work, device))
            for work in (trust_domain, ordinary_vm)
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        for number in range(2):
            taken = results[f"trust_domain {number}"]
            assert isinstance(taken, float), taken
            assert results[f"ordinary_vm {number}"] == 2 * TURNS
        assert (kernel.pages.in_use, kernel.tdx.free_hkids) == before
    assert kernel.module.tds == {}
