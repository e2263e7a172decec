# SPDX-License-Identifier: GPL-2.0-or-later
"""Which kernel is emulated, and how it was built and booted: the switches that do not follow from its release.

A switch is a field here and nowhere else. `EmulatedKernel` keeps the record as ``config``; code that depends on a
switch reads it there, so a new one passes through no signature on its way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict


@dataclass(frozen=True)
class KernelConfig:
    """The defaults are those of Linux as released."""

    kernel_release: str | None = None
    """One of `swtdx.uapi.release.KernelRelease`. None: the one that the dialect is short for, the newest by default."""
    enable_tdx: bool = True
    """The module parameter ``kvm_intel.tdx``."""
    no_rbp_mod: bool = True
    """Create TDs with CONFIG_FLAGS.NO_RBP_MOD, as Linux always does (the posted code of v10 did not yet).

    With the flag the TDX module refuses TDVMCALLs that pass RBP. TDVF images before edk2-stable202405 make such calls.
    """
    tdx_huge_page: bool | None = None
    """Map private memory 2 MiB at a time where a TD accepts 2 MiB, as the series "KVM: TDX huge page support for
    private memory" does. None: as the release does, and every released kernel maps 4 KiB pages only.
    """
    debug_tds: bool = False
    """Accept ATTRIBUTES.DEBUG in upstream's INIT_VM, which Linux leaves out of what it supports.

    v10 passes the module's own masks to user space, DEBUG among them, and does not need this.
    """


class KernelSwitches(TypedDict, total=False):
    """The fields of `KernelConfig` as keywords: ``boot(no_rbp_mod=False)``."""

    kernel_release: str | None
    enable_tdx: bool
    no_rbp_mod: bool
    tdx_huge_page: bool | None
    debug_tds: bool
