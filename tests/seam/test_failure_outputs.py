# SPDX-License-Identifier: GPL-2.0-or-later
"""What the registers of a leaf function hold after it failed, where the module gives them a value of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from testing.seam.fake_host import GPR, GuestStep, Host

NONE = (1 << 64) - 1
UNKNOWN = 0x1234_5678
GPA = 0x8000_0000
VM_RD, VM_WR, VP_RD, VP_WR, SYS_RD, SYS_RDALL, SERVTD_RD, SERVTD_WR = 7, 8, 9, 10, 11, 12, 18, 20


@pytest.mark.parametrize(
    ("leaf", "version", "inputs", "outputs"),
    [
        (VM_RD, 0, {"rdx": UNKNOWN, "r8": 5}, {"rdx": UNKNOWN, "r8": 0}),
        (VM_RD, 1, {"rdx": UNKNOWN, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VM_RD, 1, {"rcx": 1, "rdx": 9, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VM_RD, 2, {"rdx": 9, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VM_RD, 255, {"rdx": 9, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VM_WR, 0, {"rdx": UNKNOWN, "r8": 5, "r9": 1}, {"rdx": UNKNOWN, "r8": 0, "r9": 1}),
        (VP_RD, 0, {"rdx": UNKNOWN, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (VP_WR, 0, {"rdx": UNKNOWN, "r8": 5, "r9": 1}, {"rdx": UNKNOWN, "r8": 0, "r9": 1}),
        (SYS_RD, 0, {"rdx": UNKNOWN, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (SYS_RDALL, 0, {"rdx": 8, "r8": 5}, {"rdx": 8, "r8": NONE}),
        (SYS_RDALL, 0, {"rdx": 1 << 47, "r8": 5}, {"rdx": 1 << 47, "r8": NONE}),
        (SERVTD_RD, 0, {"rdx": 9, "r8": 5}, {"rdx": NONE, "r8": 0}),
        (SERVTD_WR, 0, {"rdx": 9, "r8": 5}, {"rdx": 9, "r8": 0}),
    ],
)
def test_of_the_guest(
    host: Host, call: Callable[..., GuestStep], leaf: int, version: int, inputs: dict[str, Any], outputs: dict[str, Any]
) -> None:
    _, tdvpr, context = host.runnable(attributes=0)
    host.guest(tdvpr, context, call(leaf, version=version, **inputs))
    assert context.gpr[0] >> 63
    assert {name: context.gpr[GPR[name]] for name in outputs} == outputs
