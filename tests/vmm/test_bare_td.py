# SPDX-License-Identifier: GPL-2.0-or-later
"""A TD around a few bytes: what it refuses, and its examples."""

from __future__ import annotations

import doctest

import pytest

from swtdx.machine import open_kernel
from swtdx.uapi.client import Kvm
from swtdx.vmm import bare_guest, bare_td
from swtdx.vmm.bare_td import BareTd


@pytest.mark.parametrize("module", [bare_guest, bare_td])
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]


@pytest.mark.parametrize(("code", "memory"), [(bytes(1 << 20), 1 << 20), (b"\x90", 0x1234), (b"\x90", 2 << 30)])
def test_what_does_not_fit_is_refused_before_the_kernel_is_asked(code: bytes, memory: int) -> None:
    with Kvm(open_kernel("emulated")) as device, pytest.raises(ValueError, match="do not fit"):
        BareTd(device, code, memory)


def test_the_stack_is_there() -> None:
    """PUSH and POP without a #PF: RSP is `STACK`, and the pages below it are the TD's."""
    push_pop = b"\x68\x2a\x00\x00\x00\x41\x5f"  # push 42; pop r15
    out = bare_guest.tdvmcall_io(1, 1, 0x80)
    with Kvm(open_kernel("emulated")) as device, BareTd(device, push_pop + out) as td:
        td.run()
        assert td.vcpu.io_data() == b"*"
