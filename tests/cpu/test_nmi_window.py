# SPDX-License-Identifier: GPL-2.0-or-later
"""NMI-window exiting (SDM volume 3, 26.2): before an instruction at which an NMI would be taken.

None is taken inside an NMI's handler, nor in the shadow of MOV SS and of STI, which ends with the next instruction.
"""

from __future__ import annotations

import pytest

from swtdx.cpu.vmx import ExitReason
from tests.cpu.guest import CODE, Guest, assemble

BY_STI, BY_MOV_SS, BY_NMI = 1, 2, 8


@pytest.mark.parametrize("shadow", [BY_STI, BY_MOV_SS])
@pytest.mark.parametrize("first", ["nop", "inc eax", "mov eax, [rsp]", "jmp 1f\n nop\n 1:"])
def test_the_window_opens_behind_the_shadow(shadow: int, first: str) -> None:
    guest = Guest(f"{first}\n nop\n nop\n hlt")
    guest.context.interruptibility = shadow
    guest.context.nmi_window_exiting = True
    assert guest.run() == ExitReason.NMI_WINDOW
    assert guest.context.rip == CODE + len(assemble(first, CODE))
    assert guest.context.interruptibility == 0


def test_without_a_shadow_it_opens_at_once() -> None:
    guest = Guest("nop\n hlt")
    guest.context.nmi_window_exiting = True
    assert guest.run() == ExitReason.NMI_WINDOW
    assert guest.context.rip == CODE


def test_inside_an_nmi_handler_it_stays_closed() -> None:
    guest = Guest("nop\n hlt")
    guest.context.interruptibility = BY_NMI
    guest.context.nmi_window_exiting = True
    assert guest.run() == ExitReason.HLT
