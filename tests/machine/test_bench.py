# SPDX-License-Identifier: GPL-2.0-or-later
"""The benchmark runs, and what it does to the machine that it measures does not stay. No figure is judged here."""

from __future__ import annotations

import json
import subprocess
import sys

from swtdx.cpu.platform import Platform
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from testing import seamcalls
from testing.places import REPOSITORY


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


def test_every_figure_can_be_measured() -> None:
    command = [sys.executable, "-m", "bench", "--least", "--json"]
    done = subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=280)
    figures = json.loads(done.stdout)["figures"]
    assert len(figures) > 10
    assert all(min(figure["runs"]) > 0 for figure in figures)
