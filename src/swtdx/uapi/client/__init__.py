# SPDX-License-Identifier: GPL-2.0-or-later
"""A typed client of KVM over any kernel: `Kvm`, `Vm`, `Vcpu`.

One method for each ioctl, named after it. Most carry an example; in those ``kernel`` is a kernel, ``kvm`` an open
/dev/kvm on it, ``vm`` a VM with a page of memory at 0, ``vcpu`` its vCPU 0, and the names of `swtdx.uapi.kvm` are there
as imported. ``tests/uapi/test_client_examples.py`` runs them all, on the machine's own /dev/kvm where there is one and
on the emulated one.

    with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        ...
"""

from __future__ import annotations

from swtdx.uapi.client.descriptor import Descriptor
from swtdx.uapi.client.device import Kvm
from swtdx.uapi.client.error import KvmError
from swtdx.uapi.client.tdx import CpuidConfig, TdCapabilities
from swtdx.uapi.client.vcpu import Vcpu
from swtdx.uapi.client.vm import Memory, Vm, msi_route

__all__ = [
    "CpuidConfig",
    "Descriptor",
    "Kvm",
    "KvmError",
    "Memory",
    "TdCapabilities",
    "Vcpu",
    "Vm",
    "msi_route",
]
