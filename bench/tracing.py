# SPDX-License-Identifier: GPL-2.0-or-later
"""What tracing costs while it is off: a machine as it is made, beside one without the places where a trace enters.

Those are `Processor.context_class`, of which a virtual CPU is made, and the TDX module that the processor was given;
system calls are traced by a kernel around the kernel, of which there is none when tracing is off. `bare_kernel` makes
contexts by the class itself and SEAMCALLs by the module itself.

The ratio of two alike things is 1 only on a machine that does nothing else. So both are measured by turns, in short
pieces, in the thread's own time, and the best piece of each counts. `on` has the same with a trace that is thrown
away: it shows that the method sees a difference where there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass

from swtdx.cpu._engine import GuestContext
from swtdx.cpu.processor import Processor, SeamArgs
from swtdx.linux.kernel import EmulatedKernel
from swtdx.machine import MachineKernel, open_kernel
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.module import TdxModule
from swtdx.uapi import kvm
from swtdx.uapi.client import Kvm
from swtdx.uapi.dialect import Dialect
from testing.guest import Workload
from testing.td import MeasuredTd

PIECES = 60
RDMD = SEAMCALL_NUMBERS["TDH.PHYMEM.PAGE.RDMD"]


class _Bare(Processor):
    def new_context(self) -> GuestContext:
        context = GuestContext(self._get_engine())
        context.attach_views()
        return context


def bare_kernel() -> EmulatedKernel:
    """An emulated machine without the places where a trace enters."""
    processor = _Bare()
    module = TdxModule(processor)
    processor.load_seam_module(module)
    processor.seamcall = module.seamcall  # type: ignore[method-assign,assignment]
    return MachineKernel(processor, module, Dialect.UPSTREAM)


@dataclass(frozen=True)
class Ratios:
    """Of one operation: cost with tracing off to cost without its places, and with tracing on; one for each run."""

    name: str
    off: list[float]
    on: list[float]


def ratios(repetitions: int, ioctls: int, exits: int) -> Iterator[Ratios]:
    """An ioctl, a SEAMCALL, and an exit of a TD to user space."""
    with ExitStack() as made:
        kernels = {"bare": bare_kernel(), "off": open_kernel("emulated")}
        kernels["on"] = open_kernel("emulated", trace=lambda event: None)
        devices = {name: made.enter_context(Kvm(kernel)) for name, kernel in kernels.items()}
        tds = {name: made.enter_context(MeasuredTd(device)) for name, device in devices.items()}
        for name, operation in (
            ("ioctl", {name: _ioctls(device, ioctls // PIECES) for name, device in devices.items()}),
            ("SEAMCALL", {name: _seamcalls(device, ioctls // PIECES) for name, device in devices.items()}),
            ("exit of a TD to user space", {name: _exits(td, exits // PIECES) for name, td in tds.items()}),
        ):
            runs = [_best(operation) for _ in range(repetitions)]
            yield Ratios(name, [run["off"] / run["bare"] for run in runs], [run["on"] / run["bare"] for run in runs])


def _best(operations: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The least time of each, measured by turns in changing order."""
    best = dict.fromkeys(operations, float("inf"))
    names = list(operations)
    for piece in range(PIECES):
        for name in names[piece % len(names) :] + names[: piece % len(names)]:
            begin = time.thread_time()
            operations[name]()
            best[name] = min(best[name], time.thread_time() - begin)
    return best


def _ioctls(device: Kvm, count: int) -> Callable[[], object]:
    ioctl, fd = device.kernel.ioctl, device.fd

    def once() -> None:
        for _ in range(count):
            ioctl(fd, kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_USER_MEMORY)

    return once


def _seamcalls(device: Kvm, count: int) -> Callable[[], object]:
    """TDH.PHYMEM.PAGE.RDMD, one of the cheapest, by way of the processor as the kernel makes it."""
    processor = device.kernel.processor  # type: ignore[attr-defined]
    args = SeamArgs()

    def once() -> None:
        for _ in range(count):
            args.rcx = 0
            processor.seamcall(RDMD, args, 0)

    return once


def _exits(td: MeasuredTd, count: int) -> Callable[[], object]:
    return lambda: td.seconds(Workload.IO_EXIT, count)
