# SPDX-License-Identifier: GPL-2.0-or-later
"""A machine that is switched off ends with its TDs as they are; one that is not takes them down."""

from __future__ import annotations

import pytest

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import SeamArgs
from swtdx.machine import boot, open_kernel
from swtdx.uapi.abilities import powers_off
from swtdx.uapi.client import Kvm
from testing.guest import Workload
from testing.td import MeasuredTd


@pytest.mark.parametrize("off", [False, True])
def test_only_a_machine_that_stays_on_takes_a_td_down(off: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = boot(platform=Platform(memory_size=1 << 30))
    with Kvm(kernel) as device, MeasuredTd(device) as td:
        td.seconds(Workload.ACCEPT, 10)
        calls: list[int] = []
        seamcall = kernel.module.seamcall

        def counted(fn: int, args: SeamArgs, lp: int = 0) -> int:
            calls.append(fn)
            return seamcall(fn, args, lp)

        assert kernel.tdx is not None
        monkeypatch.setattr(kernel.processor, "seamcall", counted)
        monkeypatch.setattr(kernel.tdx.seamcall, "_seamcall", counted)
        if off:
            kernel.power_off()
    assert bool(calls) is not off
    assert bool(kernel.module.tds) is off
    assert not kernel.files.by_fd


def test_a_traced_machine_is_not_switched_off() -> None:
    traced = open_kernel("emulated", platform=Platform(memory_size=1 << 30), trace=lambda event: None)
    assert powers_off(traced) is None
    assert powers_off(boot(platform=Platform(memory_size=1 << 30))) is not None
