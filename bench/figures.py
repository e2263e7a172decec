# SPDX-License-Identifier: GPL-2.0-or-later
"""The measurements. Each is repeated and gives the median, with the aim that the project has set beside it."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import mrtd, quoting, starts, tracing
from swtdx.machine import MachineKernel, boot, open_kernel
from swtdx.uapi import kvm
from swtdx.uapi.client import Kvm
from swtdx.uapi.layout import address_of
from testing import guest, seamcalls
from testing.guest import PAGE_SIZE, Workload
from testing.td import MeasuredTd, close, fresh_td, staged
from testing.vm import OUT_FOR_EVER, SPIN, RealModeVm

PROMPT = "Shell>"


@dataclass(frozen=True)
class Effort:
    """How much to do of each."""

    repetitions: int
    ioctls: int
    pages: int
    exits: int
    loop_turns: int
    passes: int
    boots: int


FULL = Effort(repetitions=5, ioctls=50_000, pages=4096, exits=20_000, loop_turns=100_000_000, passes=100, boots=3)
SHORT = Effort(repetitions=3, ioctls=10_000, pages=512, exits=3_000, loop_turns=30_000_000, passes=30, boots=0)
LEAST = Effort(repetitions=1, ioctls=500, pages=32, exits=200, loop_turns=1_000_000, passes=2, boots=0)
"""Only to see that each figure can be measured."""


@dataclass(frozen=True)
class Figure:
    """A median in ``unit``; ``aim`` is a bound, from below where ``more_is_better``, None where there is none."""

    name: str
    median: float
    unit: str
    runs: tuple[float, ...]
    aim: float | None = None
    more_is_better: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the aim is reached; None without one."""
        if self.aim is None:
            return None
        return self.median >= self.aim if self.more_is_better else self.median <= self.aim


def _figure(name: str, unit: str, runs: list[float], aim: float | None = None, more_is_better: bool = False) -> Figure:
    return Figure(name, statistics.median(runs), unit, tuple(runs), aim, more_is_better)


def _repeated(effort: Effort, once: Callable[[], float]) -> list[float]:
    once()  # caches, lazily made tables, translated blocks
    return [once() for _ in range(effort.repetitions)]


def all_figures(effort: Effort) -> Iterator[Figure]:
    """Take every measurement in turn."""
    kernel = boot()
    with Kvm(kernel) as device:
        yield from seamcall_figures(device, kernel, effort)
        yield ioctl_round_trip(device, effort)
        for measure in (False, True):
            yield pages_a_second(device, effort, measure)
        with MeasuredTd(device) as td:
            yield from guest_figures(td, effort)
            yield from memory_figures(td, effort)
        yield from normal_vm_figures(device, effort)
    yield from quoting_figures(effort)
    yield from tracing_figures(effort)
    yield from mrtd_figures(effort)
    yield from start_figures(effort)
    if effort.boots:
        yield firmware_boot(effort)


def seamcall_figures(device: Kvm, kernel: MachineKernel, effort: Effort) -> Iterator[Figure]:
    """SEAMCALLs without crypto, the dearest of some; a page that is added and measured, beside hashing as much."""
    with seamcalls.host(device, kernel) as (host, pages):
        runs = [seamcalls.without_crypto(host, pages) for _ in range(effort.repetitions + 1)][1:]
        name = max(runs[0], key=lambda each: statistics.median(run[each] for run in runs))
        yield _figure(f"SEAMCALL without crypto, the dearest: {name}", "µs", [run[name] * 1e6 for run in runs], 15)
        source = kernel.pages.alloc_page("bench")
        try:
            kernel.processor.memory.write(source, os.urandom(PAGE_SIZE))
            pairs = [
                (seamcalls.measured_pages(host, pages, source), seamcalls.hashed())
                for _ in range(2 * effort.repetitions)
            ]
        finally:
            kernel.pages.free_page(source)
        yield _figure("PAGE.ADD and 16 MR.EXTEND of a page", "µs", [measured * 1e6 for measured, _ in pairs])
        yield _figure("  to SHA-384 of its 6,272 bytes", "x", [measured / hashed for measured, hashed in pairs], 5)


def ioctl_round_trip(device: Kvm, effort: Effort) -> Figure:
    """KVM_CHECK_EXTENSION through the kernel object: the system-call line and nothing behind it."""

    def once() -> float:
        ioctl, fd = device.kernel.ioctl, device.fd
        begin = time.perf_counter()
        for _ in range(effort.ioctls):
            ioctl(fd, kvm.KVM_CHECK_EXTENSION, kvm.KVM_CAP_USER_MEMORY)
        return (time.perf_counter() - begin) / effort.ioctls * 1e6

    return _figure("ioctl round trip", "µs", _repeated(effort, once))


def pages_a_second(device: Kvm, effort: Effort, measure: bool) -> Figure:
    """KVM_TDX_INIT_MEM_REGION into a fresh TD, with contents that are not all alike."""
    source = staged(os.urandom(effort.pages * PAGE_SIZE))

    def once() -> float:
        vm, vcpu, memfd = fresh_td(device, effort.pages * PAGE_SIZE)
        try:
            begin = time.perf_counter()
            vm.tdx_init_mem_region(address_of(source), 0, effort.pages, measure)
            return effort.pages / (time.perf_counter() - begin)
        finally:
            close(vm, vcpu, memfd)

    runs = [once() for _ in range(effort.repetitions)]
    name = f"INIT_MEM_REGION, {'measured' if measure else 'not measured'}"
    return _figure(name, "pages/s", runs, 3000 if measure else None, more_is_better=True)


def guest_figures(td: MeasuredTd, effort: Effort) -> Iterator[Figure]:
    """What is measured from inside a TD."""

    def each(workload: Workload, count: int) -> list[float]:
        return _repeated(effort, lambda: td.seconds(workload, count) / count)

    runs = [seconds * 1e6 for seconds in each(Workload.IO_EXIT, effort.exits)]
    yield _figure("TDVMCALL I/O, to user space and back", "µs", runs, 15)
    runs = [seconds * 1e6 for seconds in each(Workload.CPUID, effort.exits)]
    yield _figure("CPUID exit, answered by the module", "µs", runs, 15)

    # A miss costs what touching a page costs more after a flush; the flush itself is spread over all pages.
    hit = statistics.median(each(Workload.TOUCH, effort.passes * 100)) / guest.WARM_PAGES
    flushed = each(Workload.FLUSH_AND_TOUCH, effort.passes)
    runs = [(seconds / guest.DATA_PAGES - hit) * 1e6 for seconds in flushed]
    yield _figure("TLB miss (guest walk and Secure EPT walk)", "µs", runs, 1)

    instructions = guest.COMPUTE_INSTRUCTIONS / 1e6
    runs = [instructions / seconds for seconds in each(Workload.COMPUTE, effort.loop_turns)]
    yield _figure("compute loop", "MIPS", runs, 800, more_is_better=True)


def memory_figures(td: MeasuredTd, effort: Effort) -> Iterator[Figure]:
    """Private pages that come by faults, and conversions that the guest asks for."""
    pages, megabytes = guest.FRESH_PAGES, guest.FRESH_PAGES * PAGE_SIZE

    def emptied() -> None:
        td.vm.set_memory_attributes(guest.FRESH, megabytes, 0)
        td.vm.set_memory_attributes(guest.FRESH, megabytes, kvm.KVM_MEMORY_ATTRIBUTE_PRIVATE)

    def accept() -> float:
        emptied()
        return td.seconds(Workload.ACCEPT, pages) / pages * 1e6

    yield _figure("private page fault, AUG and ACCEPT", "µs", _repeated(effort, accept))
    to_shared, back = [], []
    for _ in range(effort.repetitions):
        accept()
        to_shared.append(td.seconds(Workload.MAP_SHARED, 1) * 1e3)
        back.append(td.seconds(Workload.MAP_PRIVATE, 1) * 1e3)
    yield _figure("MapGPA of 2 MiB to shared, all of it accepted", "ms", to_shared)
    yield _figure("MapGPA of 2 MiB back to private", "ms", back)


def normal_vm_figures(device: Kvm, effort: Effort) -> Iterator[Figure]:
    """Exits of a normal VM beside TDX, and without it; how soon a spinning vCPU leaves."""
    without_tdx = Kvm(open_kernel("emulated", enable_tdx=False))
    with without_tdx, RealModeVm(device, OUT_FOR_EVER) as beside, RealModeVm(without_tdx, OUT_FOR_EVER) as alone:
        ratios = []
        for _ in range(2 * effort.repetitions + 1):
            # By turns and in the thread's own time, the best of each: what else the machine does must not show.
            best = dict.fromkeys((beside, alone), float("inf"))
            for turn in range(40):
                for vm in (beside, alone) if turn % 2 else (alone, beside):
                    best[vm] = min(best[vm], vm.seconds_an_exit(effort.exits // 40, time.thread_time))
            ratios.append(best[beside] / best[alone])
        enabled = [seconds * 1e6 for seconds in _repeated(effort, lambda: beside.seconds_an_exit(effort.exits))]
        yield _figure("normal VM: OUT, to user space and back", "µs", enabled, 15)
        yield _figure("the same, TDX enabled to disabled", "x", ratios, 1.03)
    with RealModeVm(device, SPIN) as vm:
        for name, interrupt in (("immediate_exit", False), ("an interrupt", True)):
            worst = [
                max(vm.seconds_to_leave(interrupt=interrupt) for _ in range(10)) for _ in range(effort.repetitions)
            ]
            yield _figure(f"{name} reaches a spinning vCPU, worst of 10", "ms", [each * 1e3 for each in worst], 20)


def quoting_figures(effort: Effort) -> Iterator[Figure]:
    """A quote by itself, as a guest gets it, and what a verifier fetches for it."""
    with quoting.bench() as subject:
        for name, once, aim in (
            ("quote from a TDREPORT", subject.quote, 2),
            ("GetQuote, from TDG.MR.REPORT to the quote", subject.get_quote, 5),
            ("GetQuote by a QGS on a unix socket", subject.get_quote_by_socket, 5),
            ("TCB info from the collateral service", subject.collateral, 2),
        ):
            yield _figure(name, "ms", [seconds * 1e3 for seconds in _repeated(effort, once)], aim)


def tracing_figures(effort: Effort) -> Iterator[Figure]:
    """What tracing costs while it is off, and for comparison while it is on."""
    for found in tracing.ratios(effort.repetitions, effort.ioctls, effort.exits):
        yield _figure(f"tracing off to none at all: {found.name}", "x", found.off, 1.03)
        yield _figure("  tracing on, for comparison", "x", found.on)


def mrtd_figures(effort: Effort) -> Iterator[Figure]:
    """MRTD of the installed firmware: beside one hash over as many bytes, and as a command. None without firmware."""
    found = mrtd.firmware()
    if found is None:
        return
    timed = mrtd.in_process(found.image, effort.repetitions, 10)
    size = f"{len(found.image) >> 20} MiB image"
    yield _figure(f"MRTD of a {size}", "ms", [seconds * 1e3 for seconds in timed.mrtd])
    name = f"SHA-384 of as many bytes ({timed.stream_bytes / 1e6:.2f} MB), one call"
    yield _figure(name, "ms", [seconds * 1e3 for seconds in timed.hash])
    yield _figure("MRTD to that hash", "x", timed.ratios, 1.3)
    runs = _repeated(effort, lambda: mrtd.command(found.path))
    yield _figure("swtdx measure, the whole command", "ms", [seconds * 1e3 for seconds in runs], 250)


def start_figures(effort: Effort) -> Iterator[Figure]:
    """What a command takes in a fresh process, beside a Python that does nothing; the size of the wheel."""
    timed = starts.ratios(3 * effort.repetitions)
    yield _figure("python -c pass, CPU time", "ms", [seconds * 1e3 for seconds in timed.pop("")])
    for what, runs in timed.items():
        aim = starts.VERSION_AIM if what == "--version" else starts.COMMAND_AIM
        yield _figure(f"  swtdx {what} to that", "x", runs, aim)
    wheel = starts.wheel()
    if wheel is not None:
        yield _figure(f"wheel {wheel.name.split('-')[2]}", "MiB", [wheel.stat().st_size / (1 << 20)], starts.WHEEL_AIM)


def firmware_boot(effort: Effort) -> Figure:
    """`swtdx run` of the distribution's firmware to the UEFI shell's prompt, the whole command from start to exit."""
    command = [str(Path(sys.executable).with_name("swtdx")), "run", "--quiet", "--until", PROMPT, "--timeout", "300"]

    def once() -> float:
        begin = time.perf_counter()
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - begin

    return _figure(f"firmware to {PROMPT} (its countdown of 5 s included)", "s", [once() for _ in range(effort.boots)])
