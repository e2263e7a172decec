# SPDX-License-Identifier: GPL-2.0-or-later
"""Kernels to run the same test against: the machine's own, and the emulated one."""

from __future__ import annotations

import errno

import pytest

from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.host import HostKernel, survey
from swtdx.uapi.kernel import Kernel


def host_kernel() -> Kernel:
    """The host's kernel, or a skip that says why this machine has no usable /dev/kvm."""
    offer = survey()
    if not offer.usable:
        pytest.skip(f"NOT TESTED ON THE HOST'S KVM: {offer}")
    kernel = HostKernel()
    try:
        with Kvm(kernel) as kvm, kvm.create_vm():
            pass
    except KvmError as error:
        pytest.skip(f"NOT TESTED ON THE HOST'S KVM: /dev/kvm opens, but {error}")
    return kernel


def emulated_kernel() -> Kernel:
    """The emulated kernel, or a skip as long as `swtdx.machine` cannot be imported."""
    machine = pytest.importorskip(
        "swtdx.machine", reason="NOT TESTED ON THE EMULATED KERNEL: swtdx.machine is not there", exc_type=ImportError
    )
    kernel: Kernel = machine.open_kernel("emulated")
    return kernel


@pytest.fixture(params=["host", "emulated"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Each kernel in turn."""
    return {"host": host_kernel, "emulated": emulated_kernel}[request.param]()


@pytest.fixture
def refusing_kernel() -> Kernel:
    """A kernel without /dev/kvm."""

    class Refusing(HostKernel):
        name = "refusing"

        def open(self, path: str, flags: int = 0) -> int:
            raise OSError(errno.EACCES, "Permission denied")

    return Refusing()
