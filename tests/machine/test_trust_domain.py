# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole machine with a Trust Domain in it: what the host can see of it, and what is left when it is gone."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from swtdx.cpu.platform import Platform
from swtdx.machine import MachineKernel, boot, open_kernel
from swtdx.seam.pamt import PageType
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.kvm import KVM_CAP_VM_TYPES
from testing import guest
from testing.td import MeasuredTd, fresh_td

PAGE = 4096


KERNELS = [(Dialect.V10, "1.0"), *((dialect, "1.5.06") for dialect in Dialect)]


@pytest.fixture(params=KERNELS, ids=lambda param: f"{param[0].value} over module {param[1]}")
def kernel(request: pytest.FixtureRequest) -> MachineKernel:
    dialect, version = request.param
    return boot(dialect, Platform(memory_size=2 << 30, module_version=version))


@pytest.fixture
def device(kernel: MachineKernel) -> Iterator[Kvm]:
    with Kvm(kernel) as kvm:
        yield kvm


def inventory(kernel: MachineKernel) -> tuple[Any, ...]:
    """All that a TD takes from the host: pages by use, free KeyIDs, page metadata by type, keyed pages."""
    pamt, memory = kernel.module.pamt, kernel.processor.memory
    assert kernel.tdx is not None
    types = Counter(pamt.type_at(pamt.index_of(hpa)[0]) for hpa in kernel.pages.booked() if not _reserved(kernel, hpa))
    keyed = sum(memory.key_of(hpa) >= kernel.processor.platform.first_private_hkid for hpa in kernel.pages.booked())
    return kernel.pages.in_use, kernel.tdx.free_hkids, types - Counter({PageType.NDA: types[PageType.NDA]}), keyed


def _reserved(kernel: MachineKernel, hpa: int) -> bool:
    index, _ = kernel.module.pamt.index_of(hpa)
    return kernel.module.pamt.type_at(index) is PageType.RSVD


def private_page(kernel: MachineKernel, content: bytes) -> int:
    """Where in physical memory the TD keeps this page."""
    raw = kernel.processor.memory.raw
    (found,) = [
        hpa
        for hpa in kernel.pages.booked()
        if kernel.processor.memory.key_of(hpa) and bytes(raw[hpa : hpa + PAGE]) == content
    ]
    return found


def test_the_host_reads_ciphertext_where_the_td_has_its_code(kernel: MachineKernel, device: Kvm) -> None:
    code = guest.code_page().ljust(PAGE, b"\0")
    with MeasuredTd(device):
        memory = kernel.processor.memory
        hpa = private_page(kernel, code)
        seen = memory.read(hpa, PAGE)
        assert seen != code
        blocks = {seen[at : at + 16] for at in range(0, PAGE, 16)}
        assert len(blocks) == PAGE // 16  # the page is mostly zeros: equal plaintext blocks do not show
        assert memory.key_of(hpa) >= kernel.processor.platform.first_private_hkid


def test_a_host_write_to_a_private_page_ends_the_td_not_the_machine(kernel: MachineKernel, device: Kvm) -> None:
    with MeasuredTd(device) as td:
        hpa = private_page(kernel, guest.code_page().ljust(PAGE, b"\0"))
        kernel.processor.memory.write(hpa, b"host was here")
        with pytest.raises((KvmError, OSError, RuntimeError)):
            td.seconds(guest.Workload.CPUID, 10)
    with MeasuredTd(device) as td:
        assert td.seconds(guest.Workload.CPUID, 10) > 0


def test_a_td_leaves_nothing_behind(kernel: MachineKernel, device: Kvm) -> None:
    before = inventory(kernel)
    with MeasuredTd(device) as td:
        td.seconds(guest.Workload.FLUSH_AND_TOUCH, 1)
        during = inventory(kernel)
        pages = [hpa for hpa in kernel.pages.booked() if kernel.processor.memory.key_of(hpa) >= 32]
        assert during[1] == before[1] - 1
        assert during[3] > guest.DATA_PAGES
    assert inventory(kernel) == before
    assert kernel.module.tds == {}
    memory = kernel.processor.memory
    assert all(memory.key_of(hpa) == 0 and not any(memory.raw[hpa : hpa + PAGE]) for hpa in pages)


def test_as_many_tds_one_after_the_other_as_there_are_keys_and_more(kernel: MachineKernel, device: Kvm) -> None:
    assert kernel.tdx is not None
    for _ in range(kernel.tdx.free_hkids + 3):
        vm, vcpu, memfd = fresh_td(device, PAGE * 16)
        vcpu.close()
        vm.close()
        if memfd >= 0:
            kernel.close(memfd)


def test_when_the_keys_run_out_init_vm_says_so_and_loses_nothing(device: Kvm, kernel: MachineKernel) -> None:
    """ENOSPC (the kernel: no free HKID)."""
    assert kernel.tdx is not None
    before = inventory(kernel)
    made = [fresh_td(device, PAGE * 16) for _ in range(kernel.tdx.free_hkids)]
    full = inventory(kernel)
    with pytest.raises(KvmError, match="KVM_TDX_INIT_VM") as caught:
        fresh_td(device, PAGE * 16)
    assert caught.value.errno == errno.ENOSPC
    assert inventory(kernel)[1:] == full[1:]
    for vm, vcpu, memfd in made:
        vcpu.close()
        vm.close()
        if memfd >= 0:
            kernel.close(memfd)
    assert inventory(kernel) == before


def test_without_the_module_parameter_there_are_no_tds() -> None:
    with Kvm(boot(platform=Platform(memory_size=1 << 30), enable_tdx=False)) as device:
        assert device.check_extension(KVM_CAP_VM_TYPES) == 1 << 0 | 1 << 1  # normal and software-protected VMs
        with pytest.raises(KvmError) as caught:
            device.create_td()
        assert caught.value.errno == errno.EINVAL


def test_a_kernel_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no kernel called 'windows'"):
        open_kernel("windows")  # type: ignore[arg-type]
