# SPDX-License-Identifier: GPL-2.0-or-later
"""A normal VM's ABI: the same calls to this machine's real /dev/kvm and to the emulated kernel, the same answers.

The calls are those of the conformance table that concern a default VM, those on a VM that has nothing yet, and all
capabilities. Where a real kernel may rightly answer otherwise (its vendor module, its configuration or its version is
another one) the entry in `DIFFERS` says why; what it answers must then be what is listed there, or what we answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel
from swtdx.uapi.kernel import Kernel
from tests.linux.conformance import CASES, Case, E, Subject, cap, header, irqfd, name_of, room, struct
from tests.linux.conftest import Bench, ScriptedModule, boot

DIFFERS: dict[str, tuple[set[int], str]] = {
    "vcpu KVM_MEMORY_ENCRYPT_OP": ({errno.ENOTTY}, "a vendor module built without TDX has no vCPU callback"),
    "device KVM_CREATE_VM": ({errno.EINVAL}, "a kernel without CONFIG_KVM_SW_PROTECTED_VM, as distributions build it"),
    "vm KVM_SET_MEMORY_ATTRIBUTES": ({errno.ENOTTY}, "a kernel without CONFIG_KVM_GENERIC_MEMORY_ATTRIBUTES"),
    "vm KVM_SET_USER_MEMORY_REGION2": ({errno.EBADF}, "6.18 takes guest_memfd for VMs without private memory, too"),
    "vm KVM_CREATE_GUEST_MEMFD": ({0}, "6.18 has flags for it: MMAP is 1"),
    "vm KVM_CREATE_DEVICE": ({0}, "a kernel with VFIO makes the device"),
    "vm KVM_SET_TSC_KHZ": ({errno.EINVAL}, "a host without TSC scaling takes its own frequency only"),
    "vcpu KVM_SET_TSC_KHZ": ({0}, "a host without TSC scaling catches up in software and takes any frequency"),
    "vcpu KVM_SET_SREGS": (
        {0},
        "x86.c looks at LME, LMA and CS.L of EFER and leaves reserved bits to VM entry; ours refuses them at once",
    ),
    "vm KVM_IRQFD": ({errno.EBADF}, "6.18 looks at resampling only once it has the eventfd"),
    "vcpu KVM_GET_ONE_REG": ({errno.EFAULT}, "6.18 has it, and reads the argument first"),
    "vcpu KVM_SET_ONE_REG": ({errno.EFAULT}, "6.18 has it, and reads the argument first"),
    "vcpu KVM_GET_REG_LIST": ({errno.EFAULT}, "6.18 has it, and reads the argument first"),
    "vcpu KVM_PRE_FAULT_MEMORY": ({errno.EINVAL, errno.EOPNOTSUPP}, "not there without the two-dimensional MMU"),
}
CAPABILITIES_THAT_DIFFER = {  # by what the real one depends on
    "vendor module": "TSC_CONTROL VM_TSC_CONTROL VAPIC NESTED_STATE X86_DISABLE_EXITS PRE_FAULT_MEMORY "
    "X86_SMM MULTI_ADDRESS_SPACE SMALLER_MAXPHYADDR HAS_BUS_LOCK_EXIT X86_BUS_LOCK_EXIT X86_NOTIFY_VMEXIT",
    "configuration and processor": "NR_VCPUS MAX_VCPUS MAX_VCPU_ID MEMORY_ATTRIBUTES GUEST_MEMFD GUEST_MEMFD_FLAGS "
    "VM_TYPES XSAVE2",
    "features that the emulated kernel leaves out": "ONE_REG "
    "STEAL_TIME DIRTY_LOG_RING DIRTY_LOG_RING_ACQ_REL "
    "VM_COPY_ENC_CONTEXT_FROM VM_MOVE_ENC_CONTEXT_FROM "
    "VM_DISABLE_NX_HUGE_PAGES SYNC_REGS",
    "version": "X2APIC_API DISABLE_QUIRKS2 X86_GUEST_MODE",
}


def new_vm(kernel: Kernel, *, bare: bool) -> Subject:
    """A default VM; unless ``bare`` with split irqchip and a vCPU."""
    bench = Bench(kernel, ScriptedModule())  # type: ignore[arg-type]  # Bench asks only system calls of it here
    device = kernel.open("/dev/kvm")
    fds = {"device": device, "vm": kernel.ioctl(device, k.KVM_CREATE_VM, 0)}
    if not bare:
        bench.enable(fds["vm"], k.Cap.SPLIT_IRQCHIP, 24)
    fds["vcpu"] = kernel.ioctl(fds["vm"], k.KVM_CREATE_VCPU, 0) if not bare else -1
    return Subject("VM upstream", bench, fds)


@pytest.fixture(scope="module")
def host(host_kvm: Path) -> HostKernel:
    return HostKernel()


@contextlib.contextmanager
def closing(subject: Subject) -> Iterator[Subject]:
    try:
        yield subject
    finally:
        for fd in subject.fds.values():
            if fd >= 0:
                subject.bench.kernel.close(fd)


def both(case: Case, host: Kernel, *, bare: bool) -> tuple[int, int]:
    outcomes = []
    for kernel in (host, boot_emulated()):
        before = set(os.listdir("/proc/self/fd"))
        with closing(new_vm(kernel, bare=bare)) as subject:
            outcomes.append(case.run(subject))
        if kernel is host:
            for left in set(os.listdir("/proc/self/fd")) - before:  # what a successful call has made
                with contextlib.suppress(OSError):
                    os.close(int(left))
    return outcomes[0], outcomes[1]


def boot_emulated() -> Any:
    return boot(Dialect.UPSTREAM).kernel


def agree(case: Case, real: int, ours: int) -> None:
    allowed, why = DIFFERS.get(f"{case.fd} {case.request}", (set(), ""))
    assert real == ours or real in allowed, f"real: {name_of(real)}, emulated: {name_of(ours)} {why}"


def is_of_both(case: Case) -> bool:
    return "VM upstream" in case.on and case.why != "a TD"


@pytest.mark.parametrize("case", [case for case in CASES if is_of_both(case)], ids=lambda case: case.id)
def test_a_vm_with_split_irqchip_and_vcpu(case: Case, host: Kernel) -> None:
    agree(case, *both(case, host, bare=False))


BARE = (
    Case("vm", "KVM_CREATE_IRQCHIP", 0, "accepted"),
    Case("vm", "KVM_SET_GSI_ROUTING", E.EINVAL, "no irqchip", header(k.kvm_irq_routing, nr=0)),
    Case("vm", "KVM_SIGNAL_MSI", E.EINVAL, "no irqchip", room()),
    Case("vm", "KVM_IRQ_LINE", E.ENXIO, "no irqchip", room()),
    Case("vm", "KVM_IRQFD", E.EINVAL, "no irqchip", struct(k.kvm_irqfd, fd=9999)),
    Case("vm", "KVM_CREATE_PIT2", E.ENOENT, "no irqchip", room()),
    Case("vm", "KVM_SET_IDENTITY_MAP_ADDR", 0, "accepted", room()),
    Case("vm", "KVM_SET_BOOT_CPU_ID", 0, "accepted", 0),
    Case("vm", "KVM_SET_BOOT_CPU_ID", E.EINVAL, "beyond KVM_MAX_VCPU_IDS", 4097),
    Case("vm", "KVM_IRQFD", 0, "deassigned without an irqchip", lambda on: irqfd(on, 1)),
    Case("vm", "KVM_ENABLE_CAP", 0, "MAX_VCPU_ID", cap(int(k.Cap.MAX_VCPU_ID), 7)),
    Case("vm", "KVM_ENABLE_CAP", 0, "MAX_VCPU_ID 0, which is none yet", cap(int(k.Cap.MAX_VCPU_ID), 0)),
    Case("vm", "KVM_CREATE_VCPU", 0, "accepted", 0),
    Case("vm", "KVM_CREATE_VCPU", E.EINVAL, "an id beyond the limit", 4096),
    Case("vm", "KVM_GET_IRQCHIP", E.ENXIO, "no irqchip", room()),
)


@pytest.mark.parametrize("case", BARE, ids=lambda case: case.id)
def test_a_vm_that_has_nothing_yet(case: Case, host: Kernel) -> None:
    real, ours = both(case, host, bare=True)
    assert ours == case.outcome
    agree(case, real, ours)


def test_capabilities(host: Kernel) -> None:
    """KVM_CHECK_EXTENSION on /dev/kvm."""
    emulated = boot_emulated()
    devices = [(kernel, kernel.open("/dev/kvm")) for kernel in (host, emulated)]
    may_differ = {name for names in CAPABILITIES_THAT_DIFFER.values() for name in names.split()}
    different = {}
    for capability in k.Cap:
        real, ours = (kernel.ioctl(fd, k.KVM_CHECK_EXTENSION, int(capability)) for kernel, fd in devices)
        if real != ours and capability.name not in may_differ:
            different[capability.name] = (real, ours)
    for kernel, fd in devices:
        kernel.close(fd)
    assert different == {}
