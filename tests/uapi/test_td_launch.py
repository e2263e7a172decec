# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD brought up to the point where it may run, through the client: every kernel, each dialect it can be had in."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator

import pytest

from swtdx.uapi import kvm as header
from swtdx.uapi.client import Kvm, KvmError, Vm
from swtdx.uapi.dialect import Dialect, InitialMemory
from swtdx.uapi.host import HostKernel, survey
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.layout import address_of
from swtdx.uapi.tdx_upstream import TDX_TD_ATTR_SEPT_VE_DISABLE

X87_AND_SSE = 0x3
RAM_SIZE, PAGE = 0x10000, 0x1000


@pytest.fixture(params=["host", "emulated-upstream", "emulated-v10"])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    where, _, dialect = str(request.param).partition("-")
    if where == "host":
        offer = survey()
        if not offer.tdx:
            pytest.skip(f"NOT TESTED ON REAL TDX: {offer}")
        return HostKernel()
    machine = pytest.importorskip(
        "swtdx.machine", reason="NOT TESTED ON THE EMULATED KERNEL: swtdx.machine is not there", exc_type=ImportError
    )
    made: Kernel = machine.open_kernel("emulated", dialect=Dialect(dialect))
    return made


@pytest.fixture
def kvm(kernel: Kernel) -> Iterator[Kvm]:
    with Kvm(kernel) as device:
        yield device


@pytest.fixture
def td(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_td() as vm:
        vm.split_irqchip()
        yield vm


def initialise(kvm: Kvm, td: Vm) -> None:
    capabilities = td.tdx_capabilities()
    xfam = capabilities.xfam_required | X87_AND_SSE
    attributes = capabilities.attributes_required | TDX_TD_ATTR_SEPT_VE_DISABLE
    td.tdx_init(attributes, xfam, capabilities.configure(kvm.supported_cpuid()), max_vcpus=1)


def test_the_capabilities_allow_what_every_td_has(td: Vm) -> None:
    capabilities = td.tdx_capabilities()
    assert capabilities.attributes_allowed & TDX_TD_ATTR_SEPT_VE_DISABLE
    assert capabilities.xfam_allowed & X87_AND_SSE == X87_AND_SSE
    assert capabilities.attributes_required & ~capabilities.attributes_allowed == 0
    assert capabilities.xfam_required & ~capabilities.xfam_allowed == 0


def test_a_launch_up_to_finalize(kvm: Kvm, td: Vm, kernel: Kernel) -> None:
    initialise(kvm, td)
    source, ram = mmap.mmap(-1, PAGE), mmap.mmap(-1, RAM_SIZE)
    source[:] = b"\xf4" * PAGE
    private = td.dialect.initial_memory is InitialMemory.GUEST_MEMFD
    memfd = td.create_guest_memfd(RAM_SIZE) if private else -1
    try:
        if private:
            td.set_user_memory_region2(0, 0, RAM_SIZE, ram, header.KVM_MEM_GUEST_MEMFD, memfd)
            td.set_memory_attributes(0, RAM_SIZE, header.KVM_MEMORY_ATTRIBUTE_PRIVATE)
        else:
            ram[:PAGE] = source[:]
            td.set_user_memory_region(0, 0, RAM_SIZE, ram)
        with td.create_vcpu(0) as vcpu:
            vcpu.set_cpuid2(vcpu.tdx_get_cpuid() if private else kvm.supported_cpuid())
            vcpu.tdx_init_vcpu(0x1234000)
            td.tdx_init_mem_region(address_of(source if private else ram), 0, 1, measure=True)
            td.tdx_finalize()
            with pytest.raises(KvmError) as caught:
                vcpu.get_regs()
            assert caught.value.errno == errno.EINVAL, "a TD's registers are its own"
    finally:
        if private:
            kernel.close(memfd)


def test_finalize_before_init_is_refused(td: Vm) -> None:
    with pytest.raises(KvmError, match="KVM_TDX_FINALIZE_VM") as caught:
        td.tdx_finalize()
    assert caught.value.errno == errno.EINVAL


def test_initialising_twice_is_refused(kvm: Kvm, td: Vm) -> None:
    initialise(kvm, td)
    with pytest.raises(KvmError, match="KVM_TDX_INIT_VM") as caught:
        initialise(kvm, td)
    assert caught.value.errno == errno.EINVAL
