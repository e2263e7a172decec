# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD around a few bytes of code (`bare_guest`): for tests, for trying something out, for a first look.

There is no firmware and no board. `run` returns each exit of the guest to the caller.
"""

from __future__ import annotations

import mmap
import signal
import threading
from contextlib import ExitStack
from typing import Self

from swtdx.uapi import kvm
from swtdx.uapi.client import Kvm, KvmError, Vcpu, Vm
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.layout import address_of
from swtdx.vmm import bare_guest
from swtdx.vmm.launch import check_tdx
from swtdx.x86 import PAGE_SIZE

XFAM = 0x3  # x87 and SSE
GPA_WIDTH = 48
PORT = 0x80
DEFAULT_CODE = bare_guest.forever(bare_guest.io_out(PORT, 0))
"""A guest that writes 0 to port 0x80 in a loop."""
DEFAULT_MEMORY = 2 << 20


class BareTd:
    """A TD with one vCPU, measured and final, about to execute ``code`` at `bare_guest.CODE`. A context manager.

    ``attributes`` are set beside what the kernel requires. ``memory`` bytes from address 0 on are private; what
    ``code`` does not bring is not added, so that the guest would have to accept it. Raises KvmError, LaunchError where
    the kernel makes no TDs, ValueError for too much code.

    >>> from swtdx.machine import open_kernel
    >>> with Kvm(open_kernel("emulated")) as device, BareTd(device, bare_guest.io_out(0x80, 42)) as td:
    ...     print(td.run().name, hex(td.vcpu.kvm_run.io.port), td.vcpu.io_data())
    IO 0x80 b'*'
    """

    def __init__(
        self, device: Kvm, code: bytes = DEFAULT_CODE, memory: int = DEFAULT_MEMORY, *, attributes: int = 0
    ) -> None:
        if memory % PAGE_SIZE or not bare_guest.CODE + len(code) <= memory <= 1 << 30:
            raise ValueError(f"{len(code)} bytes of code at {bare_guest.CODE:#x} do not fit into {memory:#x}")
        check_tdx(device)
        self.device = device
        with ExitStack() as undo:
            self.vm: Vm = undo.enter_context(device.create_td())
            self.vcpu: Vcpu = self._build(undo, memory, attributes)
            for gpa, contents in bare_guest.regions(code):
                source = mmap.mmap(-1, len(contents))
                source[:] = contents
                self.vm.tdx_init_mem_region(address_of(source), gpa, len(contents) // PAGE_SIZE, measure=True)
            self.vm.tdx_finalize()
            self._undo = undo.pop_all()

    def _build(self, undo: ExitStack, memory: int, attributes: int) -> Vcpu:
        vm = self.vm
        vm.split_irqchip()
        cpuid = self.device.supported_cpuid()
        capabilities = vm.tdx_capabilities()
        vm.tdx_init(
            capabilities.attributes_required | attributes,
            XFAM | capabilities.xfam_required,
            capabilities.configure(cpuid, GPA_WIDTH),
        )
        self._map_memory(undo, memory)
        vcpu = undo.enter_context(vm.create_vcpu(0))
        for entry in cpuid:
            if entry.function == 1:
                entry.ecx |= 1 << 21  # X2APIC, which INIT_VCPU asks for
        vcpu.set_cpuid2(cpuid)
        vcpu.tdx_init_vcpu()
        return vcpu

    def _map_memory(self, undo: ExitStack, memory: int) -> None:
        vm = self.vm
        slots = ((0, memory), (bare_guest.RESET_PAGE, PAGE_SIZE))
        self.memory = [mmap.mmap(-1, size) for _, size in slots]
        if vm.dialect is Dialect.V10:
            for number, (gpa, size) in enumerate(slots):
                vm.set_user_memory_region(number, gpa, size, self.memory[number])
            return
        memfd = vm.create_guest_memfd(memory + PAGE_SIZE)
        undo.callback(vm.kernel.close, memfd)
        for number, (gpa, size) in enumerate(slots):
            flags, offset = kvm.MemFlag.GUEST_MEMFD, memory if number else 0
            vm.set_user_memory_region2(number, gpa, size, self.memory[number], flags, memfd, offset)
            vm.set_memory_attributes(gpa, size, kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def run(self, timeout: float = 10.0) -> kvm.Exit:
        """Enter the guest and say why it came back; the details are in ``vcpu.kvm_run``.

        Raises KvmError; TimeoutError when the guest has not come back after ``timeout`` seconds (told so by a signal,
        SIGUSR1, which works from the main thread only).
        """
        late = threading.Event()
        page = self.vcpu.kvm_run
        me = threading.current_thread()
        previous = signal.signal(signal.SIGUSR1, _nothing) if me is threading.main_thread() else None

        def call_out() -> None:
            late.set()
            page.immediate_exit = 1
            if previous is not None and me.ident is not None:
                signal.pthread_kill(me.ident, signal.SIGUSR1)

        timer = threading.Timer(timeout, call_out)
        timer.daemon = True
        timer.start()
        try:
            self.vcpu.run()
        except KvmError:
            if late.is_set():
                raise TimeoutError(f"the guest has not come back after {timeout:g} s") from None
            raise
        finally:
            timer.cancel()
            timer.join()
            page.immediate_exit = 0
            if previous is not None:
                signal.signal(signal.SIGUSR1, previous)
        return kvm.Exit(page.exit_reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the TD down."""
        self._undo.close()


def _nothing(number: int, frame: object) -> None:
    """The signal's purpose is to end a system call."""
