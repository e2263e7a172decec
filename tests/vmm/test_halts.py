# SPDX-License-Identifier: GPL-2.0-or-later
"""The halts of vCPUs can be counted while a vCPU computes and returns from KVM_RUN for nothing."""

from __future__ import annotations

import threading
import time
from contextlib import closing, suppress

from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm, KvmError
from swtdx.vmm.halts import HaltCounter
from testing.vm import RealModeVm

COUNTER = 0x3000
COUNT = bytes.fromhex("fe060030ebfa")  # inc byte [COUNTER]; jmp back: no exit to user space


def test_counting_does_not_wait_for_a_vcpu_that_spins() -> None:
    """KVM_GET_STATS_FD needs the mutex that KVM_RUN holds (virt/kvm/kvm_main.c, kvm_vcpu_ioctl): reading must not."""
    counted: list[int] = []
    with (
        Kvm(open_kernel("emulated")) as device,
        RealModeVm(device, COUNT) as spinning,
        closing(HaltCounter(spinning.vm, [spinning.vcpu])) as halts,
    ):

        def run() -> None:
            with suppress(KvmError):
                spinning.vcpu.run()

        vcpu = threading.Thread(target=run)
        counting = threading.Thread(target=lambda: counted.append(halts.total()))
        vcpu.start()
        while not spinning.memory[COUNTER]:
            time.sleep(0.001)
        counting.start()
        counting.join(20)
        waited = counting.is_alive()
        spinning.vcpu.kvm_run.immediate_exit = 1
        vcpu.join()
        counting.join()
    assert not waited
    assert counted == [0]
