# SPDX-License-Identifier: GPL-2.0-or-later
"""Why this machine's kernel makes no Trust Domains: what /proc and /sys let anybody see of it.

Linux makes TDs when all of these hold (arch/x86/virt/vmx/tdx/tdx.c, arch/x86/kvm/vmx/tdx.c): an Intel processor with
TDX, switched on by the BIOS (the flag ``tdx_host_platform``); a kernel of 6.16 or later with CONFIG_KVM_INTEL_TDX;
``kvm_intel.tdx=1``; a TDX module that the BIOS loaded and that can be brought up.  Of the last there is no trace
outside the kernel's log, so it is named when nothing else is wrong.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

FIRST_KERNEL = (6, 16)
"""The Linux version with which KVM makes TDs."""


@dataclass(frozen=True)
class HostFacts:
    """What can be seen without rights. ``flags`` are those of the first processor in /proc/cpuinfo."""

    release: str
    vendor: str
    model: str
    flags: frozenset[str]
    kvm_intel: bool
    kvm_intel_tdx: str | None
    """The module parameter ``kvm_intel.tdx`` as it reads, None where the kernel has none."""

    @property
    def version(self) -> tuple[int, int]:
        """Of the kernel; (0, 0) if ``release`` does not begin with one.

        >>> HostFacts("6.18.4-amd64", "", "", frozenset(), False, None).version
        (6, 18)
        """
        found = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def in_guest(self) -> bool:
        """A hypervisor says that it is there."""
        return "hypervisor" in self.flags

    @property
    def in_td(self) -> bool:
        """This machine is itself a TD."""
        return "tdx_guest" in self.flags

    def obstacles(self) -> list[str]:
        """Everything seen that keeps this machine from making TDs, each as half a sentence.

        >>> facts = HostFacts("6.1.0", "GenuineIntel", "", frozenset({"vmx"}), True, None)
        >>> facts.obstacles()[1]
        'Linux 6.1.0 is older than 6.16'
        """
        found = []
        if self.vendor != "GenuineIntel":
            found.append(f"the processor is not from Intel ({self.vendor or 'unknown vendor'})")
        elif "tdx_host_platform" not in self.flags:
            found.append("the processor has no TDX, or the BIOS has not switched it on (flag tdx_host_platform)")
        if self.in_td:
            found.append("this machine is a TD itself, and TDs do not nest")
        elif self.in_guest:
            found.append("this machine is a virtual machine, and KVM does not pass TDX on to its guests")
        if self.version < FIRST_KERNEL:
            found.append(f"Linux {self.release} is older than {FIRST_KERNEL[0]}.{FIRST_KERNEL[1]}")
        if not self.kvm_intel:
            found.append("the module kvm_intel is not loaded")
        elif self.kvm_intel_tdx is None:
            found.append("kvm_intel has no parameter tdx: the kernel lacks CONFIG_KVM_INTEL_TDX")
        elif self.kvm_intel_tdx not in ("Y", "1"):
            found.append(f"kvm_intel.tdx is {self.kvm_intel_tdx}: load kvm_intel with tdx=1")
        return found


def host_facts(root: Path = Path("/")) -> HostFacts:
    """Look at this machine; ``root`` is where its ``proc`` and ``sys`` are. What cannot be read counts as absent."""
    first = _read(root / "proc/cpuinfo").split("\n\n", 1)[0]
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    module = root / "sys/module/kvm_intel"
    parameter = module / "parameters/tdx"
    return HostFacts(
        release=_read(root / "proc/sys/kernel/osrelease").strip() or os.uname().release,
        vendor=fields.get("vendor_id", ""),
        model=fields.get("model name", ""),
        flags=frozenset(fields.get("flags", "").split()),
        kvm_intel=module.is_dir(),
        kvm_intel_tdx=_read(parameter).strip() if parameter.exists() else None,
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
