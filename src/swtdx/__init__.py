# SPDX-License-Identifier: GPL-2.0-or-later
"""swtdx: Intel TDX under KVM, in software.

The names in ``__all__`` are the public interface, with those of `swtdx.attest` and the fixtures of the pytest plugin::

    from swtdx import Kvm, open_kernel

    with Kvm(open_kernel("emulated")) as kvm, kvm.create_td() as td:
        ...

A change that breaks a program which uses only these names is announced in CHANGELOG.md. Every other module, class and
function is internal and can change in any release. Each public name is loaded when it is first used, so that
``import swtdx`` costs nothing.

The folders are floors, from the top: ``cli`` (the command), ``quoting`` (quotes with test keys), ``attest`` (a
verifier), ``vmm`` (user space), ``image`` (what is in memory at the start), ``uapi`` (what crosses the system-call
line), ``linux`` (the emulated kernel), ``seam`` (the emulated TDX module) and ``cpu`` (the emulated processor).
``machine`` wires them together.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the same names for type checkers; at run time __getattr__ finds them
    from swtdx.cpu.platform import Platform as Platform
    from swtdx.image.firmware import Firmware as Firmware
    from swtdx.image.firmware import FirmwareError as FirmwareError
    from swtdx.image.firmware import find_firmware as find_firmware
    from swtdx.linux.config import KernelConfig as KernelConfig
    from swtdx.machine import MachineKernel as MachineKernel
    from swtdx.machine import boot as boot
    from swtdx.machine import open_kernel as open_kernel
    from swtdx.uapi.client import Kvm as Kvm
    from swtdx.uapi.client import KvmError as KvmError
    from swtdx.uapi.client import TdCapabilities as TdCapabilities
    from swtdx.uapi.client import Vcpu as Vcpu
    from swtdx.uapi.client import Vm as Vm
    from swtdx.uapi.dialect import Dialect as Dialect
    from swtdx.uapi.kernel import Kernel as Kernel
    from swtdx.vmm.bare_td import BareTd as BareTd
    from swtdx.vmm.launch import LaunchError as LaunchError
    from swtdx.vmm.launch import Machine as Machine
    from swtdx.vmm.launch import Plan as Plan
    from swtdx.vmm.launch import TdParameters as TdParameters
    from swtdx.vmm.launch import launch as launch
    from swtdx.vmm.outcome import End as End
    from swtdx.vmm.outcome import Outcome as Outcome
    from swtdx.vmm.run import Run as Run

__version__ = "0.2.0"

_HOMES = {
    "BareTd": "vmm.bare_td",
    "Dialect": "uapi.dialect",
    "End": "vmm.outcome",
    "Firmware": "image.firmware",
    "FirmwareError": "image.firmware",
    "Kernel": "uapi.kernel",
    "KernelConfig": "linux.config",
    "Kvm": "uapi.client",
    "KvmError": "uapi.client",
    "LaunchError": "vmm.launch",
    "Machine": "vmm.launch",
    "MachineKernel": "machine",
    "Outcome": "vmm.outcome",
    "Plan": "vmm.launch",
    "Platform": "cpu.platform",
    "Run": "vmm.run",
    "TdCapabilities": "uapi.client",
    "TdParameters": "vmm.launch",
    "Vcpu": "uapi.client",
    "Vm": "uapi.client",
    "boot": "machine",
    "find_firmware": "image.firmware",
    "launch": "vmm.launch",
    "open_kernel": "machine",
}
"""Public name -> the module that has it."""

__all__ = ["__version__", *_HOMES]  # noqa: PLE0604 (the keys are strings)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
