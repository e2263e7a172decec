# SPDX-License-Identifier: GPL-2.0-or-later
"""A kernel of a few bytes that counts without end, in a register and in memory, and prints a letter now and then."""

from __future__ import annotations

import string
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.vmm.bare_guest import tdvmcall_io
from swtdx.vmm.execution import Execution
from swtdx.vmm.launch import Machine, Plan, TdParameters, direct_boot
from swtdx.vmm.outcome import End, Outcome
from swtdx.vmm.run import Run
from testing.bare_processor import assemble
from tests.image.test_linux_image import bzimage

LETTERS = string.ascii_uppercase[:16].encode()
COM1 = 0x3F8
MEMORY = 64 << 20
_PATIENCE_SECONDS = 60


def code(*, td: bool) -> bytes:
    """The machine code. The letter comes from the counter in memory, which must agree with that in RBX."""
    out = (
        ".byte " + ",".join(map(str, tdvmcall_io(1, 1, COM1))) if td else f"mov eax, r15d\nmov edx, {COM1}\nout dx, al"
    )
    return assemble(f"""
        xor ebx, ebx
    again:
        inc rbx
        inc qword ptr [rip + counter]
        test ebx, 0x3fff
        jnz again
        cmp rbx, [rip + counter]
        je right
        ud2
    right:
        mov r15, [rip + counter]
        shr r15, 14
        and r15d, 15
        add r15d, 65
        {out}
        jmp again
        .balign 4096
    counter:
        .quad 0
    """)


def plan(td: TdParameters | None, serial: Callable[[bytes], object], *, empty: bool = False, cpus: int = 1) -> Plan:
    """What to build."""
    linux = LinuxBoot(parse(bzimage(kernel=bytes(0x200) + code(td=td is not None)), "a counting guest"), b"", "")
    direct, firmware = direct_boot(linux, MEMORY, cpus, td=td is not None)
    return Plan(firmware, MEMORY, cpus, td, direct=direct, serial=serial, empty=empty)


class Running:
    """A run of a machine that can be stopped between two instructions. A context manager."""

    def __init__(self, machine: Machine, printed: bytearray) -> None:
        self.printed = printed
        self.execution = Execution(len(machine.vcpus))
        self.run = Run(machine, self.execution)

    def __enter__(self) -> Self:
        self.run.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.run.finish(Outcome(End.INTERRUPTED, "the test is over"))
        self.run.stop()

    def prints(self, count: int) -> None:
        """Wait for so many more letters."""
        wanted, deadline = len(self.printed) + count, time.monotonic() + _PATIENCE_SECONDS
        while len(self.printed) < wanted:
            assert self.run.outcome is None, self.run.outcome
            assert time.monotonic() < deadline, self.printed
            time.sleep(0.002)


def go(machine: Machine, printed: bytearray, letters: int) -> bytes:
    """Run for some letters: all that were printed."""
    start = len(printed)
    with Running(machine, printed) as running:
        running.prints(letters)
    return bytes(printed[start:])


def after(printed: bytes, count: int) -> bytes:
    """What the guest prints next."""
    first = LETTERS.index(printed[-1]) + 1
    return bytes(LETTERS[(first + index) % 16] for index in range(count))
