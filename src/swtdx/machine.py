# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the parts are connected: processor, TDX module, kernel.

This is the only module that knows all of them. What it hands out is the system-call line: an object with ``open``,
``ioctl``, ``mmap``, ``close``, ``eventfd`` and ``fallocate``, behind which there is either the emulated machine or the
real one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Unpack

from swtdx.clock import Clock
from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.linux.arch.x86.kvm.x86.vcpu_ioctl import VcpuFile
from swtdx.linux.arch.x86.kvm.x86.vm_ioctl import VmFile
from swtdx.linux.config import KernelConfig, KernelSwitches
from swtdx.linux.err import err, reason_of
from swtdx.linux.kernel import DEFAULT_CONFIG, EmulatedKernel
from swtdx.linux.sched import CountedWait
from swtdx.linux.uaccess import get_user, struct_from_user
from swtdx.linux.virt.kvm.kvm_main import Kvm
from swtdx.seam import report
from swtdx.seam.identity import Identity
from swtdx.seam.module import TdxModule
from swtdx.seam.version import module_version
from swtdx.uapi.abilities import KeepError
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.kvm import REQUESTS
from swtdx.x86 import PAGE_SHIFT

if TYPE_CHECKING:
    from swtdx.cpu.counted import Chance, CountedClock
    from swtdx.inject.line import Faults
    from swtdx.lint.report import Findings
    from swtdx.linux.arch.x86.kvm.vmx.tdx_debug import TdxDebug
    from swtdx.lying.live import Answers
    from swtdx.seam.hardware import SeamModule
    from swtdx.snapshot.taken import Snapshot, Times
    from swtdx.trace.event import Emit

KernelName = Literal["emulated", "host"]


class MachineKernel(EmulatedKernel):
    """The kernel of a machine whose TDX module can be inspected, unlike a real one.

    The kernel itself does not use this: it reaches the module by SEAMCALL only.
    """

    def __init__(
        self,
        processor: Processor,
        module: TdxModule,
        dialect: Dialect | None = None,
        config: KernelConfig = DEFAULT_CONFIG,
    ) -> None:
        super().__init__(processor, dialect, config)
        self.module = module
        self.flush_trace: Callable[[], None] = lambda: None
        """Report what a trace still holds back: the last exit of each vCPU."""
        self._faults: Faults | None = None

    @property
    def faults(self) -> Faults:
        """What was asked to fail (``inject``), and how often it did."""
        if self._faults is None:
            self._faults = _faults((), wait=False)
        return self._faults

    def inspect_td(self, vm_fd: int) -> dict[str, Any]:
        """Return what the TDX module holds of the TD behind a VM's descriptor.

        ``mrtd`` and four ``rtmr`` as lowercase hex (MRTD is zero until the TD is finalised), ``rtmr_events``
        what they were extended with, in order, as [register, hex], ``passes_rbp``: the guest has passed RBP in a
        TDVMCALL, ``unread_ve``: the exit reason of each #VE whose information the guest has not
        fetched, ``module_version``: the module's. Raises OSError(EBADF) for anything but a VM's descriptor, ENOENT
        where there is no TD.
        """
        kvm_tdx = self._kvm_of(vm_fd).tdx
        td = self.module.tds.get(kvm_tdx.tdr) if kvm_tdx is not None else None
        if td is None:
            raise OSError(errno.ENOENT, "the TDX module knows no TD for this VM")
        return {
            "mrtd": td.mrtd.hex(),
            "rtmr": [value.hex() for value in td.rtmr],
            "rtmr_events": [[index, data.hex()] for index, data in td.rtmr_events],
            "passes_rbp": td.passes_rbp,
            "unread_ve": [vcpu.ve.exit_reason for vcpu in td.vcpus if vcpu.ve.valid],
            "module_version": td.version.name,
        }

    def injections(self) -> list[dict[str, Any]]:
        """Return for each fault of ``inject``: ``injection``, ``calls``, ``struck``, and ``text``, a sentence."""
        armed = [] if self._faults is None else self._faults.armed
        return [{**each.as_json(), "text": str(each)} for each in armed]

    def everifyreport2(self, report_mac_struct: bytes) -> bool:
        """Return whether this machine's module made a REPORTMACSTRUCT (256 bytes): EVERIFYREPORT2 of an enclave."""
        return report.verify(self.module.identity, report_mac_struct)

    def debug_td(self, vm_fd: int) -> TdxDebug:
        """Return access to the memory and the vCPUs of the debug TD behind a VM's descriptor.

        No real kernel has it: it stands for the SEAMCALLs themselves. Raises OSError(EBADF) for anything but a VM's
        descriptor, ENOENT where there is no TD; a TD without ATTRIBUTES.DEBUG answers every call with EACCES.
        """
        kvm = self._kvm_of(vm_fd)
        if kvm.tdx is None:
            raise OSError(errno.ENOENT, "the VM is not a TD")
        from swtdx.linux.arch.x86.kvm.vmx.tdx_debug import TdxDebug

        return TdxDebug(
            kvm,
            {
                fd: file.vcpu
                for fd, file in self.files.by_fd.items()
                if isinstance(file, VcpuFile) and file.vcpu.kvm is kvm
            },
        )

    def snapshot(self, parts: Sequence[object], clock: Clock, *, movable: bool = False) -> Snapshot:
        """Keep the machine as it is, with ``parts`` of user space and their ``clock``. Raises KeepError.

        ``movable``: what is mapped of user memory is forgotten first, as KVM may at any time; the guest maps it again.
        """
        with self._still():
            if movable:
                for kvm in self.vms:
                    for slot in kvm.memslots:
                        end = slot.userspace_addr + (slot.npages << PAGE_SHIFT)
                        self.mmu_notifier_invalidate_range(slot.userspace_addr, end)
            from swtdx.snapshot.taken import Snapshot

            return Snapshot.take([self, *parts, self.timers], self._times(clock))

    def restore(self, parts: Sequence[object], clock: Clock, snapshot: object) -> None:
        """Go on from there. Raises KeepError; if it does, the VMs are dead unless nothing was changed."""
        from swtdx.snapshot.taken import Snapshot

        assert isinstance(snapshot, Snapshot)
        with self._still():
            self._set_time(snapshot.times, clock)
            self._give_back(snapshot, parts)
            self._set_time(snapshot.times, clock)  # what that took is not the machine's time
        if self._faults is not None:
            self._faults.begin()

    def _give_back(self, snapshot: Snapshot, parts: Sequence[object]) -> None:
        """Put the state in. A machine into which it does not fit is of no use any more: it is switched off."""
        try:
            snapshot.give_back([self, *parts, self.timers])
        except Exception as error:
            for kvm in self.vms:
                kvm.bug("a snapshot was put into the machine, which it does not fit")
            self.power_off()
            from swtdx.snapshot.values import Misfit

            if isinstance(error, Misfit):
                raise
            raise Misfit(f"the state cannot be put into the machine: {error}") from error

    def _set_time(self, times: Times, clock: Clock) -> None:
        tsc, own, theirs = times
        self.processor.clock.go_on(own)
        clock.go_on(theirs)
        self.processor.set_tsc(tsc)

    def _times(self, clock: Clock) -> Times:
        return self.processor.rdtsc(), self.processor.clock.kept(), clock.kept()

    @contextmanager
    def _still(self) -> Iterator[None]:
        from swtdx.snapshot.values import Misfit, NotKept  # with its tables, for those who keep machines only

        try:
            with self.standing_still():
                yield
        except BlockingIOError as error:
            raise KeepError(f"{error.strerror}: stop the machine first") from None
        except (NotKept, Misfit) as error:
            raise KeepError(str(error)) from None

    def _kvm_of(self, vm_fd: int) -> Kvm:
        file = self.files.by_fd.get(vm_fd)
        if not isinstance(file, VmFile) or file.kvm is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return file.kvm


class FaultyKernel(MachineKernel):
    """A kernel some of whose ioctls fail before they begin, because ``inject`` asks for it."""

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """As `EmulatedKernel.ioctl`."""
        arg &= 0xFFFFFFFFFFFFFFFF
        injection = self.faults.struck_ioctl(
            request & 0xFFFFFFFF, lambda: _command(arg), lambda name: self._touched(name, arg)
        )
        if injection is not None:
            error = err(injection.answer, f"injected: {injection.text}")
            self.last_refusal = reason_of(error)
            raise error
        return super().ioctl(fd, request, arg)

    def _touched(self, name: str, arg: int) -> range | None:
        """Return the guest physical addresses that the argument of an ioctl or sub-command names."""
        from swtdx.inject.line import GPA_OF_IOCTL

        base, size, shift = GPA_OF_IOCTL[name]
        try:
            if name in REQUESTS:
                layout: Any = REQUESTS[name].argument
                given = struct_from_user(layout, arg)
            else:
                given = struct_from_user(self.dialect.init_mem_region, struct_from_user(self.dialect.cmd, arg).data)
        except OSError:
            return None
        start = getattr(given, base)
        return range(start, start + (getattr(given, size) << shift))


def _command(arg: int) -> int | None:
    """Return the sub-command of a kvm_tdx_cmd."""
    try:
        return get_user(arg, 4)
    except OSError:
        return None


def boot(
    dialect: Dialect | None = None,
    platform: Platform | None = None,
    config: KernelConfig = DEFAULT_CONFIG,
    *,
    trace: Emit | None = None,
    inject: Sequence[str] = (),
    inject_later: bool = False,
    lint: Findings | None = None,
    lies: Answers | None = None,
    counted: tuple[CountedClock, Chance] | None = None,
    **switches: Unpack[KernelSwitches],
) -> MachineKernel:
    """Power on an emulated machine: load the TDX module, boot a kernel.

    ``dialect`` alone is short for the newest released Linux that speaks it. ``switches`` are fields of ``config`` that
    differ: ``boot(kernel_release="6.16")``, ``boot(debug_tds=True)``. The processor is ``kernel.processor``.
    ``trace`` is called with each SEAMCALL, TDCALL, VM exit and injected event (system calls: :func:`open_kernel`).
    ``inject`` are faults on demand, as `swtdx.inject.parse` reads them: ``inject=["TDH.MEM.PAGE.AUG: OPERAND_BUSY
    @3"]``; ``kernel.faults.armed`` says how often each has struck. ``inject_later``: their calls count from the first
    `MachineKernel.restore` on. ``lint`` takes what TDs hand to their host beyond
    what each call needs (`swtdx.lint`); ``lies`` answers their TDVMCALLs otherwise (`swtdx.lying`). ``counted``: time
    and random numbers of a machine with one vCPU whose run can be repeated (`swtdx.cpu.counted`). Raises ValueError
    for a platform, a release or an injection that is not valid.
    """
    config = replace(config, **switches)
    processor = Processor(platform) if counted is None else _counted(platform or Platform(), *counted)
    module = TdxModule(processor, _identity(processor.platform))
    faults = _faults(inject, wait=inject_later) if inject else None
    loaded: SeamModule = module if faults is None else faults.module(module)
    flush: Callable[[], None] | None = None
    if (faults is not None and faults.seamcalls) or counted is not None:
        # Each SEAMCALL may fail; and a run that is repeated exits at the same instructions.
        processor.first_touches = None
    if trace is not None:
        from swtdx.cpu.watched_context import watch
        from swtdx.seam.traced_module import SeamTracer

        tracer = SeamTracer(trace, module)
        flush = watch(processor, tracer)
        loaded = tracer.module(loaded)
    if lint is not None:
        from swtdx.lint.live import watch as look_at

        look_at(processor, lint)
    if lies is not None:
        from swtdx.lying.live import listen

        pending = listen(processor, lies)
        if counted is not None:
            counted[0].followers.append(pending)
    processor.load_seam_module(loaded)
    made = FaultyKernel if faults is not None and faults.has_ioctls else MachineKernel
    kernel = made(processor, module, dialect, config)
    kernel._faults = faults
    if counted is not None:
        counted[0].followers += faults.armed if faults is not None else ()
        kernel.new_wait_queue = partial(CountedWait, counted[0])
    if trace is not None:
        from swtdx.linux.traced_ops import told
        from swtdx.trace.batch import takers

        kernel.kvm_x86_ops = told(kernel.kvm_x86_ops, takers(trace)[0])
    if flush is not None:
        kernel.flush_trace = flush
    return kernel


def _faults(texts: Sequence[str], *, wait: bool) -> Faults:
    from swtdx.inject.line import Faults

    if not texts:
        return Faults(())
    from swtdx.inject.parse import parse_all  # with the tables of `explain`, for those who ask for faults only

    return Faults(parse_all(texts), wait=wait)


def _counted(platform: Platform, clock: CountedClock, chance: Chance) -> Processor:
    from swtdx.cpu.counted import CountedProcessor

    return CountedProcessor(platform, clock, chance)


def _identity(platform: Platform) -> Identity:
    """What the reports of a machine carry. Raises ValueError."""
    identity = Identity.of(module_version(platform.module_version), updated=platform.module_updated)
    return identity if platform.report_key is None else replace(identity, report_key=platform.report_key)


def open_kernel(
    name: KernelName = "emulated",
    dialect: Dialect | None = None,
    platform: Platform | None = None,
    config: KernelConfig = DEFAULT_CONFIG,
    *,
    trace: Emit | None = None,
    inject: Sequence[str] = (),
    inject_later: bool = False,
    lint: Findings | None = None,
    lies: Answers | None = None,
    counted: tuple[CountedClock, Chance] | None = None,
    **switches: Unpack[KernelSwitches],
) -> Kernel:
    """Open the kernel called ``name``: ``"emulated"`` boots a machine of its own, ``"host"`` is the running one.

    The other parameters are those of :func:`boot`. Of the host's kernel only ``trace`` applies, and it is called with
    system calls only.
    """
    kernel: Kernel
    if name == "host" and (inject or lint is not None or lies is not None):
        raise ValueError("inject, lint and lies are for an emulated kernel and its guests only")
    if name == "host":
        kernel = HostKernel()
    elif name == "emulated":
        kernel = boot(
            dialect,
            platform,
            config,
            trace=trace,
            inject=inject,
            inject_later=inject_later,
            lint=lint,
            lies=lies,
            counted=counted,
            **switches,
        )
    else:
        raise ValueError(f"no kernel called {name!r}: it is 'emulated' or 'host'")
    if trace is None:
        return kernel
    from swtdx.trace.batch import takers
    from swtdx.uapi.traced_kernel import TracedKernel

    return TracedKernel(kernel, takers(trace)[0])
