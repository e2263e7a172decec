# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guests of a `random_world` do when they are entered: TDCALLs and VM exits, sensible or not."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from swtdx.seam import sept
from swtdx.seam.lifecycle import VcpuState
from swtdx.seam.status import ERROR, decode, describe
from swtdx.seam.tdg.tdcall import TDCALL_NUMBERS
from testing.seam.fake_host import GPR, TDCALL
from testing.seam.invariants import Violation, difference, entries, picture
from testing.seam.random_world import ANY, NONE, SYSTEM_FIELDS, WRITABLE, World

EXITS = (1, 10, 12, 14, 18, 30, 31, 32, 36, 48, 48, 48, 49, 54, 55)
LETHAL_EXITS = (0, 2, 28, 43)
"""VM exits that a guest may bring about, and interrupts; a triple fault or an exit that cannot be ends it."""
GUEST_NAMES = {number: name for name, number in TDCALL_NUMBERS.items()}


class InhabitedWorld(World):
    """A world whose guests act; counts what SEAMCALLs and TDCALLs answered."""

    def __init__(self, host: Any, chance: random.Random) -> None:
        super().__init__(host, chance)
        self.answers: Counter[str] = Counter()
        self.asked: tuple[int, tuple[Any, ...] | None] | None = None
        """The TDCALL that a guest is making: its number, and a picture of what was before."""
        self.entered = 0
        """The virtual CPU that makes it."""
        self.td: Any = None
        """Its TD."""

    def script(self, vcpu: Any) -> None:
        """What the guest does until the host's interrupt: TDCALLs and VM exits."""
        if vcpu.state is not VcpuState.READY:
            return
        chance, context = self.chance, vcpu.context
        context.long_mode()
        context.script.clear()
        context.queue(*(self.tdcall if chance.random() < 0.7 else self.exit for _ in range(4)), *[self.leave] * 8)
        self.entered, self.td = vcpu.hpa, vcpu.td

    def settle(self, context: Any) -> None:
        """The TDCALL before, if there was one, is done: one that failed has changed nothing but RIP and registers."""
        if self.asked is None:
            return
        (number, before), self.asked = self.asked, None
        status = context.gpr[0]
        code, _ = decode(status)
        self.answers[f"{GUEST_NAMES[number]} {code.name if code is not None else None}"] += 1
        if code is None:
            raise Violation(f"TDCALL {number}: RAX {status:#x}")
        if status & ERROR and before is not None:
            now = picture(self)
            for shot in (before, now):
                shot[1].pop(f"vCPU {self.entered:#x} registers")
            if now != before:
                changed = difference(before, now)
                raise Violation(f"{GUEST_NAMES[number]} failed with {describe(status)} and changed {changed}")

    def leave(self, context: Any) -> int:
        """The host's interrupt."""
        self.settle(context)
        return 1

    def tdcall(self, context: Any) -> int:
        """Some TDCALL with registers that may suit it."""
        self.settle(context)
        chance = self.chance
        name = chance.choice(("TDG.MEM.PAGE.ACCEPT", "TDG.MEM.PAGE.ACCEPT", *sorted(TDCALL_NUMBERS)))
        gpr = context.gpr
        gpr[0] = TDCALL_NUMBERS[name] | (chance.random() < 0.05) << 16
        level = chance.choice((0, 0, 0, 1, 1, 2))
        there = [gpa | level for gpa, level, entry in entries(self.host, self.td) if entry & sept.LEAF]
        gpr[GPR["rcx"]] = chance.choice(there) if there and chance.random() < 0.7 else self.gpa(level)
        if chance.random() < 0.1:
            gpr[GPR["rcx"]] = chance.choice(ANY)
        elif name.startswith("TDG.MR"):
            gpr[GPR["rcx"]] &= ~0xFFF
        elif name.startswith(("TDG.V", "TDG.SYS")):
            gpr[GPR["rcx"]] = 0
        if name == "TDG.SYS.RD":
            registers = chance.choice((NONE, *SYSTEM_FIELDS)), 0, 0
        elif name == "TDG.SYS.RDALL":
            registers = (chance.choice(there) & ~7 if there else 0), chance.choice((NONE, *SYSTEM_FIELDS)), 0
        elif name.startswith(("TDG.VM", "TDG.VP")):
            field, mask = chance.choice(sorted(WRITABLE.items()))
            registers = field, chance.getrandbits(64) & mask, mask
        else:
            registers = chance.choice((0, 1, 2, 3, *there[:4], self.gpa(0), chance.choice(ANY))), 0, 0
        gpr[GPR["rdx"]], gpr[GPR["r8"]], gpr[GPR["r9"]] = registers
        if name == "TDG.VP.VMCALL":
            gpr[GPR["rcx"]] = chance.choice((0xFC00, 0xFC4C, chance.getrandbits(16)))
        self.asked = (TDCALL_NUMBERS[name], picture(self) if chance.random() < 0.3 else None)
        return TDCALL

    def exit(self, context: Any) -> int:
        """Some VM exit; EPT violations are of private and shared memory."""
        self.settle(context)
        chance = self.chance
        for number in (0, 1, 2, 3):
            context.gpr[number] = chance.choice(
                (0, 1, 7, 0xD, 0x1F, 0x4000_0000, 0x8000_0008, 0x3B, 0x1A0, 0xC000_0080)
            )
        context.exit_qualification = chance.choice((0, 4, 0x10, 0x180 | chance.randrange(1, 8), 0x34))
        context.guest_physical_address = self.gpa(0) | chance.choice((0, 0, 1 << 47, 8))
        context.interruption_info = chance.choice((0, 1 << 31 | 32, 1 << 31 | 2 << 8 | 2))
        context.ve_convertible = chance.random() < 0.5
        return chance.choice(EXITS if chance.random() < 0.98 else LETHAL_EXITS)
