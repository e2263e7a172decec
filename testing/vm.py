# SPDX-License-Identifier: GPL-2.0-or-later
"""Normal VMs to measure: one that writes to a port without end, and one that spins until it is interrupted."""

from __future__ import annotations

import contextlib
import mmap
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from swtdx.uapi import kvm
from swtdx.uapi.client import Kvm, KvmError

CODE, HANDLER, PORT = 0x1000, 0x2000, 0x80
OUT_FOR_EVER = bytes.fromhex("e680ebfc")  # out 0x80, al; jmp back
SPIN = bytes.fromhex("ebfe")
TELL = bytes.fromhex("e680cf")  # out 0x80, al; iret
_NMI = 2
_NMI_MESSAGE = 4 << 8  # delivery mode NMI


class RealModeVm:
    """``code`` in real mode at `CODE`; an NMI writes to `PORT`. A context manager."""

    def __init__(self, device: Kvm, code: bytes) -> None:
        self.memory = mmap.mmap(-1, 0x10000)
        self.memory[CODE : CODE + len(code)] = code
        self.memory[HANDLER : HANDLER + len(TELL)] = TELL
        self.memory[4 * _NMI : 4 * _NMI + 4] = HANDLER.to_bytes(4, "little")
        self.vm = device.create_vm()
        self.vm.split_irqchip()
        self.vm.set_user_memory_region(0, 0, len(self.memory), self.memory)
        self.vcpu = self.vm.create_vcpu(0)
        sregs = self.vcpu.get_sregs()
        sregs.cs.base, sregs.cs.selector = 0, 0
        self.vcpu.set_sregs(sregs)
        self.vcpu.set_regs(kvm.kvm_regs(rip=CODE, rflags=2, rsp=0x8000))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.vcpu.close()
        self.vm.close()

    def seconds_an_exit(self, exits: int, clock: Callable[[], float] = time.perf_counter) -> float:
        """Mean time by ``clock`` from KVM_RUN to KVM_RUN while the guest does nothing but OUT."""
        execute = self.vcpu.run
        execute()
        begin = clock()
        for _ in range(exits):
            execute()
        taken = clock() - begin
        if self.vcpu.exit_reason != kvm.Exit.IO:
            raise RuntimeError(f"the guest exits with {self.vcpu.exit_reason!r}")
        return taken / exits

    def seconds_to_leave(self, *, interrupt: bool) -> float:
        """How long a vCPU that spins in the guest continues: from ``immediate_exit``, set by another thread without a
        signal, or from an NMI that is sent as a message, to the return of KVM_RUN."""
        returned: list[float] = []

        def spin() -> None:
            with contextlib.suppress(KvmError):
                self.vcpu.run()
            returned.append(time.perf_counter())

        self.vcpu.kvm_run.immediate_exit = 0
        thread = threading.Thread(target=spin)
        thread.start()
        time.sleep(0.03)
        begin = time.perf_counter()
        if interrupt:
            self.vm.signal_msi(0xFEE00000, _NMI_MESSAGE)
        else:
            self.vcpu.kvm_run.immediate_exit = 1
        thread.join()
        expected = kvm.Exit.IO if interrupt else kvm.Exit.INTR
        if self.vcpu.exit_reason != expected:
            raise RuntimeError(f"the guest exits with {self.vcpu.exit_reason!r}")
        return returned[0] - begin
