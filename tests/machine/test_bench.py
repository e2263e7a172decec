# SPDX-License-Identifier: GPL-2.0-or-later
"""What the benchmark of SEAMCALLs does to the machine that it measures: nothing that stays."""

from __future__ import annotations

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from testing import seamcalls


def test_the_benchmark_of_seamcalls_leaves_nothing_behind() -> None:
    kernel = boot(platform=Platform(memory_size=1 << 30))
    assert kernel.tdx is not None
    with Kvm(kernel) as device:
        before = kernel.pages.in_use, kernel.tdx.free_hkids
        with seamcalls.host(device, kernel) as (host, pages):
            seconds = seamcalls.without_crypto(host, pages)
            source = kernel.pages.alloc_page("test")
            assert seamcalls.measured_pages(host, pages, source) > 0
            kernel.pages.free_page(source)
        assert len(seconds) > 5
        assert min(seconds.values()) > 0
        assert (kernel.pages.in_use, kernel.tdx.free_hkids) == before
        assert not kernel.module.tds
