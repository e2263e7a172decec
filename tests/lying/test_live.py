# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that is lied to, by the machine and by the command; kernel and VMM stay honest."""

from __future__ import annotations

from swtdx.cpu.platform import Platform
from swtdx.lying.lie import parse
from swtdx.lying.live import listen
from swtdx.lying.teller import Teller
from swtdx.machine import boot
from swtdx.uapi.client import Kvm
from swtdx.uapi.kvm import Exit
from swtdx.vmm import bare_guest
from swtdx.vmm.bare_td import BareTd

ECHO = bare_guest.forever(
    bare_guest.io_in(0x10) + b"\x41\x89\xc7" + bare_guest.tdvmcall_io(1, 1, 0x20)  # mov r15d, eax; out
)
"""Reads port 0x10 and writes what it has read to port 0x20."""


def echoed(*texts: str, turns: int = 4, lines: list[str] | None = None) -> list[int]:
    """What a guest writes back, of 0x41 that it reads each time."""
    teller = Teller([parse(text) for text in texts], (lambda text: None) if lines is None else lines.append)
    kernel = boot(platform=Platform(memory_size=1 << 30), lies=teller)
    found: list[int] = []
    try:
        with Kvm(kernel) as device, BareTd(device, ECHO) as td:
            while len(found) < turns:
                assert td.run() is Exit.IO
                if td.vcpu.kvm_run.io.direction:
                    found += td.vcpu.io_data()
                else:
                    td.vcpu.set_io_data(b"\x41")
    finally:
        kernel.shutdown()
    return found


def test_the_guest_gets_the_lie_and_the_vmm_has_told_the_truth() -> None:
    lines: list[str] = []
    assert echoed("Instruction.IO 0x10: R11=0x5a @2", lines=lines) == [0x41, 0x5A, 0x41, 0x41]
    assert lines == ["Instruction.IO 0x10: R11=0x5a @2"]


def test_a_random_run_is_repeated_by_its_record() -> None:
    lines: list[str] = []
    first = echoed("Instruction.IO: random 50% seed 3", turns=20, lines=lines)
    assert first != [0x41] * 20
    assert lines
    assert echoed(*lines, turns=20) == first


def test_no_lie_is_told_without_one() -> None:
    assert echoed() == [0x41] * 4


def test_coverage_gets_the_address_of_each_exit() -> None:
    kernel, seen = boot(platform=Platform(memory_size=1 << 30)), set[int]()
    listen(kernel.processor, Teller([], left=seen.add))
    try:
        with Kvm(kernel) as device, BareTd(device, ECHO) as td:
            for _ in range(4):
                td.run()
    finally:
        kernel.shutdown()
    first = bare_guest.CODE + len(bare_guest.tdvmcall_io(1, 0, 0x10)) - 4
    second = bare_guest.CODE + len(ECHO) - 5 - 4
    assert {first, second} <= seen
