# SPDX-License-Identifier: GPL-2.0-or-later
"""The bench on which the parts are plugged together: processor, TDX module, kernel.

This is the only module that knows all of them. What it hands out is the system-call line: an object with ``open``,
``ioctl``, ``mmap``, ``close``, ``eventfd`` and ``fallocate``, behind which there is either the emulated machine or the
real one.
"""

from __future__ import annotations

import errno
import os
from typing import Any, Literal

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.linux.kernel import EmulatedKernel
from swtdx.linux.kvm.vm_ioctl import VmFile
from swtdx.seam.module import TdxModule
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel
from swtdx.uapi.kernel import Kernel

KernelName = Literal["emulated", "host"]


class MachineKernel(EmulatedKernel):
    """The kernel of a machine whose TDX module can be looked into, as no real one can.

    The kernel itself does not use the window: it reaches the module by SEAMCALL only.
    """

    def __init__(
        self, processor: Processor, module: TdxModule, dialect: Dialect, *, enable_tdx: bool, no_rbp_mod: bool
    ) -> None:
        super().__init__(processor, dialect, enable_tdx, no_rbp_mod)
        self.module = module

    def inspect_td(self, vm_fd: int) -> dict[str, Any]:
        """What the TDX module holds of the TD behind a VM's descriptor.

        ``mrtd`` and four ``rtmr`` as lowercase hex (MRTD is zero until the TD is finalised), ``rtmr_events``
        what they were extended with, in order, as [register, hex], ``passes_rbp``: the guest has passed RBP in a
        TDVMCALL. Raises OSError(EBADF) for anything but a VM's descriptor, ENOENT where there is
        no TD.
        """
        file = self.files.by_fd.get(vm_fd)
        if not isinstance(file, VmFile):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        kvm_tdx = file.kvm.tdx if file.kvm is not None else None
        td = self.module.tds.get(kvm_tdx.tdr) if kvm_tdx is not None else None
        if td is None:
            raise OSError(errno.ENOENT, "the TDX module knows no TD for this VM")
        return {
            "mrtd": td.mrtd.hex(),
            "rtmr": [value.hex() for value in td.rtmr],
            "rtmr_events": [[index, data.hex()] for index, data in td.rtmr_events],
            "passes_rbp": td.passes_rbp,
        }


def boot(
    dialect: Dialect = Dialect.UPSTREAM,
    platform: Platform | None = None,
    *,
    enable_tdx: bool = True,
    no_rbp_mod: bool = True,
) -> MachineKernel:
    """Power an emulated machine on: load the TDX module, boot a kernel that speaks ``dialect``.

    ``enable_tdx`` is the module parameter ``kvm_intel.tdx``; ``no_rbp_mod`` as for
    :class:`~swtdx.linux.kernel.EmulatedKernel`. The processor is reachable as ``kernel.processor``. Raises ValueError
    for a platform that cannot be.
    """
    processor = Processor(platform)
    module = TdxModule(processor)
    processor.load_seam_module(module)
    return MachineKernel(processor, module, dialect, enable_tdx=enable_tdx, no_rbp_mod=no_rbp_mod)


def open_kernel(
    name: KernelName = "emulated",
    dialect: Dialect = Dialect.UPSTREAM,
    platform: Platform | None = None,
    *,
    enable_tdx: bool = True,
    no_rbp_mod: bool = True,
) -> Kernel:
    """The kernel called ``name``: ``"emulated"`` boots a machine of its own, ``"host"`` is the one we run on.

    The other parameters are those of :func:`boot`; the host's kernel is what it is.
    """
    if name == "host":
        return HostKernel()
    if name != "emulated":
        raise ValueError(f"no kernel called {name!r}: it is 'emulated' or 'host'")
    return boot(dialect, platform, enable_tdx=enable_tdx, no_rbp_mod=no_rbp_mod)
