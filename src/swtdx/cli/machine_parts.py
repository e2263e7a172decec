# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run is made of by its options: the kernel, its /dev/kvm, and the devices of the board."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from swtdx.cli.parameters import InputError, address_space_limit
from swtdx.linux.config import KernelConfig
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel
from swtdx.uapi.kernel import Kernel
from swtdx.vmm.board.virtio.console import VirtioConsole
from swtdx.vmm.board.virtio.device import VirtioDevice
from swtdx.vmm.launch import LaunchError, check_tdx

if TYPE_CHECKING:
    from swtdx.cli.recorded_run import Repeatable
    from swtdx.cli.run_options import Options
    from swtdx.lint.report import Findings
    from swtdx.lying.live import Answers
    from swtdx.trace.event import Emit
    from swtdx.vmm.disk_image import DiskImage

_LEAST_PLATFORM_GIB = 8
_EMBEDDED = "; the embedded kernel, which needs no TDX hardware, is the default (omit --kvm)"
EASY_GOING = KernelConfig(no_rbp_mod=False)
"""What ``swtdx run`` boots by default: TDs may pass RBP in a TDVMCALL, as older firmware does."""


def kernel_named(
    name: str,
    dialect: Dialect,
    *,
    cpus: int,
    memory: int,
    module_version: str | None = None,
    cpu_features: frozenset[str] | None = None,
    module_updated: bool = False,
    report_key: bytes | None = None,
    config: KernelConfig = EASY_GOING,
    trace: Emit | None = None,
    inject: tuple[str, ...] = (),
    inject_later: bool = False,
    lint: Findings | None = None,
    lies: Answers | None = None,
    counted: Repeatable | None = None,
) -> Kernel:
    """Return the kernel of that name. The embedded one brings its engine along, loaded only here, when wanted.

    Its machine is made to measure for a guest of ``cpus`` vCPUs and ``memory`` bytes. The number of processors shows
    in the guest: Linux gives a TD MAX_VCPUS = that number, and firmware from before edk2-stable202405 waits for so
    many vCPUs once it has ACPI tables. On a real host with more processors than vCPUs it waits without end.

    ``module_version`` is that of the TDX module; by default the platform's. ``cpu_features``, ``module_updated`` and
    ``report_key`` are those of `Platform`; ``inject`` are faults on demand (`swtdx.inject`), from a snapshot on
    if ``inject_later``, ``lint`` takes what TDs leak (`swtdx.lint`), ``lies`` are other answers to their calls
    (`swtdx.lying`).
    """
    if name == "host":
        if trace is None:
            return HostKernel()
        from swtdx.uapi.traced_kernel import TracedKernel

        return TracedKernel(HostKernel(), trace)
    from swtdx.cpu.platform import Platform
    from swtdx.machine import open_kernel

    # Beside the guest: Secure EPT, PAMT (1/256) and control structures, in whole GiB.
    gib = max(_LEAST_PLATFORM_GIB, -(-(memory + memory // 32) >> 30) + 2)
    try:
        platform = Platform(
            memory_size=gib << 30,
            logical_processors=cpus,
            report_key=report_key,
            module_updated=module_updated,
            cpu_features=cpu_features,
        )
    except ValueError as error:  # of the environment
        raise InputError(str(error)) from None
    if module_version is not None:
        platform = replace(platform, module_version=module_version)
    try:
        return open_kernel(
            "emulated",
            dialect,
            platform,
            config,
            trace=trace,
            inject=inject,
            inject_later=inject_later,
            lint=lint,
            lies=lies,
            counted=None if counted is None else (counted.clock, counted.chance),
        )
    except (MemoryError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise
        raise InputError(
            f"no {gib} GiB of address space can be reserved for the machine{address_space_limit()}"
        ) from None


def kernel_for(
    options: Options,
    report_key: bytes | None,
    trace: Emit | None = None,
    lint: Findings | None = None,
    lies: Answers | None = None,
    counted: Repeatable | None = None,
) -> Kernel:
    """Return the kernel that the options ask for. Raises InputError."""
    return kernel_named(
        options.kvm,
        options.dialect or Dialect.UPSTREAM,
        cpus=options.cpus,
        memory=options.memory,
        module_version=options.module_version,
        cpu_features=options.cpu_features,
        module_updated=options.module_updated,
        report_key=report_key,
        config=KernelConfig(
            kernel_release=options.kernel_release,
            no_rbp_mod=options.no_rbp_mod,
            tdx_huge_page=None if options.huge_pages else False,
            debug_tds=options.td is not None and options.td.is_debug,
        ),
        trace=trace,
        inject=options.inject,
        inject_later=options.restored is not None,
        lint=lint,
        lies=lies,
        counted=counted,
    )


def open_device(options: Options, kernel: Kernel) -> Kvm:
    """/dev/kvm of the chosen kernel, which can make what was asked for."""
    try:
        device = Kvm(kernel, options.dialect)
    except KvmError as error:
        if options.kvm == "host":
            raise InputError(f"--kvm host: /dev/kvm cannot be used: {error.strerror}{_EMBEDDED}") from error
        raise
    try:
        if options.td is not None:
            check_tdx(device)
    except LaunchError as error:
        device.close()
        raise InputError(f"--kvm {options.kvm}: {error}{_EMBEDDED}") from None
    except KvmError:
        device.close()
        raise
    return device


def devices(
    options: Options,
    disks: Sequence[DiskImage],
    put: Callable[[bytes], object],
    size: tuple[int, int] | None = None,
    random: Callable[[int], bytes] = os.urandom,
) -> Iterator[VirtioDevice]:
    """Yield what was asked for, in the order of the PCI slots: disks first, so that they keep their places.

    ``put`` gets what a virtio console shows, ``size`` is that of its terminal; ``random`` is virtio-rng's source.
    """
    if disks:
        from swtdx.vmm.board.virtio.blk import VirtioBlk

        for disk in disks:
            yield VirtioBlk(disk)
    if options.virtio_console:
        yield VirtioConsole(put, size)
    if options.rng:
        from swtdx.vmm.board.virtio.rng import VirtioRng

        yield VirtioRng(random)
