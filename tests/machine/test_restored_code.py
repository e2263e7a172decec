# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines whose code changes itself, side by side with equal layouts: what is restored is what runs."""

from __future__ import annotations

import pytest

from swtdx.cpu.platform import Platform
from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.machine import MachineKernel, boot
from swtdx.uapi.client import Kvm
from swtdx.vmm.bare_guest import tdvmcall_io
from swtdx.vmm.launch import Machine, Plan, TdParameters, direct_boot, launch
from testing.bare_processor import assemble
from tests.image.test_linux_image import bzimage
from tests.machine.counting_guest import COM1, LETTERS, MEMORY, after, go


def _code(*, td: bool) -> bytes:
    """Print the letter that an instruction holds, and write the next one into that instruction."""
    out = (
        ".byte " + ",".join(map(str, tdvmcall_io(1, 1, COM1))) if td else f"mov eax, r15d\nmov edx, {COM1}\nout dx, al"
    )
    return assemble(f"""
        lea rsp, [rip + stack]
    again:
        mov ecx, 0x2000
    1:  dec ecx
        jnz 1b
        call letter
        lea ebx, [r15 - 64]
        {out}
        and ebx, 15
        add ebx, 65
        mov byte ptr [rip + letter + 2], bl
        jmp again
        .balign 4096
    letter:
        mov r15d, 65
        ret
        .balign 4096
        .skip 4096
    stack:
        .quad 0
    """)


class Patching:
    """A machine with that guest."""

    def __init__(self, td: TdParameters | None, kernel: MachineKernel) -> None:
        code = bytes(0x200) + _code(td=td is not None)
        direct, firmware = direct_boot(
            LinuxBoot(parse(bzimage(kernel=code), "a guest that patches itself"), b"", ""), MEMORY, 1, td=td is not None
        )
        self.printed = bytearray()
        self.device = Kvm(kernel)
        self.machine: Machine = launch(
            self.device, Plan(firmware, MEMORY, 1, td, direct=direct, serial=self.printed.extend)
        )

    def go(self, letters: int) -> bytes:
        """Run for some letters: all that were printed."""
        return go(self.machine, self.printed, letters)

    def close(self) -> None:
        self.machine.close()
        self.device.close()


@pytest.mark.parametrize("td", [pytest.param(TdParameters(), marks=pytest.mark.slow), None], ids=["td", "vm"])
def test_code_that_changed_since_is_as_it_was(td: TdParameters | None) -> None:
    """Two machines with one layout, each at another letter; the code of both lies at the same addresses."""
    platform = Platform(memory_size=1 << 30, logical_processors=1, report_key=bytes(32))
    machines = [Patching(td, boot(platform=platform)) for _ in range(2)]
    kept = []
    for index, each in enumerate(machines):
        printed = each.go(3 + 5 * index)
        assert printed == after(LETTERS[-1:], len(printed))
        kept.append((each.machine.snapshot(), bytes(each.printed)))
    for _ in range(4):
        for each, (snapshot, before) in zip(machines, kept, strict=True):
            more = each.go(5)
            assert more == after(bytes(each.printed[: -len(more)]), len(more))
            each.machine.restore(snapshot)
            del each.printed[len(before) :]
    for each in machines:
        each.close()
