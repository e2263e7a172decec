# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench on which the parts are plugged together: processor, TDX module, kernel.

This is the only module that knows all of them. What it hands out is the system-call line: an object with ``open``,
``ioctl``, ``mmap``, ``close``, ``eventfd`` and ``fallocate``, behind which there is either the emulated machine or the
real one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel
from swtdx.uapi.kernel import Kernel

if TYPE_CHECKING:
    from swtdx.cpu.platform import Platform
    from swtdx.linux.kernel import EmulatedKernel

KernelName = Literal["emulated", "host"]


def boot(dialect: Dialect = Dialect.UPSTREAM, platform: Platform | None = None, *, enable_tdx: bool = True) -> EmulatedKernel:
    """Power an emulated machine on: load the TDX module, boot a kernel that speaks ``dialect``.

    ``enable_tdx`` is the module parameter ``kvm_intel.tdx``. The processor is reachable as ``kernel.processor``. Raises
    ValueError for a platform that cannot be.
    """
    from swtdx.cpu.processor import Processor
    from swtdx.linux.kernel import EmulatedKernel
    from swtdx.seam.module import TdxModule

    processor = Processor(platform)
    processor.load_seam_module(TdxModule(processor))
    return EmulatedKernel(processor, dialect, enable_tdx=enable_tdx)


def open_kernel(
    name: KernelName = "emulated",
    dialect: Dialect = Dialect.UPSTREAM,
    platform: Platform | None = None,
    *,
    enable_tdx: bool = True,
) -> Kernel:
    """The kernel called ``name``: ``"emulated"`` boots a machine of its own, ``"host"`` is the one we run on.

    ``dialect``, ``platform`` and ``enable_tdx`` are for the emulated one; the host's are what they are.
    """
    if name == "host":
        return HostKernel()
    if name != "emulated":
        raise ValueError(f"no kernel called {name!r}: it is 'emulated' or 'host'")
    return boot(dialect, platform, enable_tdx=enable_tdx)
