# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernels offer beside the system calls: asked for by name, also through a trace."""

from __future__ import annotations

from typing import Any, cast

import pytest

from swtdx.uapi.abilities import debuggable, inspectable, last_refusal, logical_processors, stated_dialect
from swtdx.uapi.dialect import Dialect
from swtdx.uapi.host import HostKernel
from swtdx.uapi.kernel import Kernel
from swtdx.uapi.reason import Reason
from swtdx.uapi.traced_kernel import TracedKernel
from tests.vmm.fake_kernel import FakeKernel


class _Able(FakeKernel):
    logical_processors = 3
    last_refusal = Reason("the VM is dead")

    def inspect_td(self, vm_fd: int) -> dict[str, Any]:
        return {"fd": vm_fd}

    def debug_td(self, vm_fd: int) -> Any:
        return f"door of {vm_fd}"


def _wrapped(kernel: Kernel, wraps: int) -> Kernel:
    for _ in range(wraps):
        kernel = TracedKernel(kernel, lambda event: None)
    return kernel


@pytest.mark.parametrize("wraps", [0, 1, 2])
def test_a_kernel_with_every_ability(wraps: int) -> None:
    kernel = _wrapped(cast(Kernel, _Able(Dialect.V10)), wraps)
    inspected, debugged = inspectable(kernel), debuggable(kernel)
    assert inspected is not None
    assert inspected.inspect_td(5) == {"fd": 5}
    assert debugged is not None
    assert str(debugged.debug_td(6)) == "door of 6"
    assert last_refusal(kernel).text == "the VM is dead"
    assert logical_processors(kernel) == 3
    assert stated_dialect(kernel) is Dialect.V10


@pytest.mark.parametrize("wraps", [0, 1])
def test_the_host_kernel_has_none(wraps: int) -> None:
    kernel = _wrapped(HostKernel(), wraps)
    assert inspectable(kernel) is None
    assert debuggable(kernel) is None
    assert not last_refusal(kernel)
    assert logical_processors(kernel) is None
    assert stated_dialect(kernel) is None
