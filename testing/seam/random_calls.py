# SPDX-License-Identifier: GPL-2.0-or-later
"""Random SEAMCALLs and TDCALLs against a small world of TDs in every stage of their lives; `campaign` makes many.

A step is one SEAMCALL, chosen in one of four ways:

* the next one that leads a TD further: from MNG.CREATE to VP.ENTER, and in the end back to a page that is free again;
* one that suits an entry of a Secure EPT: a mapped page is blocked, a blocked one removed, relocated, split, ...;
* any leaf function, with operands out of what there is: TDs, virtual CPUs, pages in use and free, GPAs that have
  tables and GPAs that have not;
* anything at all: unknown leaf functions, versions, addresses that no platform has.

Now and then another logical processor holds a lock meanwhile, an interrupt is pending, the host has moved its
time-stamp counter, or there is no entropy; or the host has written to a page of a TD. A guest that is
entered makes TDCALLs and VM exits of its own.

After each call the world is looked at whole. One that failed must have changed nothing (`LATE` has the exceptions,
which the real module has, too); after one that passed the `invariants` hold. Every status has a name.

The same seed makes the same calls.
"""

from __future__ import annotations

import contextlib
import random
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from swtdx.seam import sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.status import ERROR, Operand, StatusCode, decode, describe
from testing.seam.fake_host import GIB, REGISTERS, Args, FakePlatform, FakeProcessor, Host
from testing.seam.invariants import Violation, check, difference, entries, picture
from testing.seam.random_guest import InhabitedWorld
from testing.seam.random_world import LIKELY, MIB2

__all__ = ["LIKELY", "Result", "Trial", "campaign", "new_world"]

PER_WORLD = 4000
"""Calls before a new world is made."""
LATE = {
    (SEAMCALL_NUMBERS["TDH.VP.INIT"], StatusCode.X2APIC_ID_NOT_UNIQUE),  # NUM_VCPUS is counted before
    (SEAMCALL_NUMBERS["TDH.VP.INIT"], StatusCode.INCONSISTENT_MSR),
    (SEAMCALL_NUMBERS["TDH.PHYMEM.CACHE.WB"], StatusCode.INTERRUPTED_RESUMABLE),  # it remembers where it was
}
ASSOCIATING = {SEAMCALL_NUMBERS[name] for name in ("TDH.VP.ENTER", "TDH.VP.RD", "TDH.VP.WR")}
"""Leaf functions that associate the virtual CPU before their last checks."""
LOCKS = (Operand.OP_STATE, Operand.SEPT_TREE, Operand.TD_EPOCH, Operand.RTMR, Operand.METADATA_FIELD)
MODULE_LOCKS = (Operand.SYS, Operand.KOT, Operand.KET, Operand.WBCACHE)
NAMES = {number: name for name, number in SEAMCALL_NUMBERS.items()}


class Trial(InhabitedWorld):
    """A world that is looked at whole after each call."""

    def __init__(self, host: Any, chance: random.Random) -> None:
        super().__init__(host, chance)
        self.calls = 0
        self.picture = picture(self)
        self.said: tuple[str, dict[str, int], int] = ("", {}, 0)
        """The call that is being made: RAX, registers, logical processor."""

    def step(self) -> None:
        """One call and all that must hold afterwards; raises Violation."""
        chance = self.chance
        if chance.random() < 0.002:
            self.vandalise()
        fn, registers, lp = self.choose()
        guest = fn == SEAMCALL_NUMBERS["TDH.VP.ENTER"] and registers["rcx"] in self.module.vcpus
        if guest:
            self.script(self.module.vcpus[registers["rcx"]])
        others = {name: chance.getrandbits(64) for name in REGISTERS if name not in registers}
        args = Args(**registers, **others)
        self.said = (f"{fn:#x}", registers, lp)
        with contextlib.ExitStack() as stack:
            if chance.random() < 0.06:
                self.in_the_way(stack, lp)
            status = self.module.seamcall(fn, args, lp)
        self.asked = None
        self.calls += 1
        code, _ = decode(status)
        name = NAMES.get(fn & 0xFFFF, "?")
        self.answers[f"{name} {code.name if code is not None else None}"] += 1
        now = picture(self)
        if code is None or (status & ERROR and args.rbx != others.get("rbx", 0)):
            raise Violation(f"RAX {status:#x}, RBX {args.rbx:#x}")
        if status & ERROR:
            may_change = (fn & 0xFFFF, code) in LATE or fn & 0xFFFF in ASSOCIATING
            if now != self.picture and not may_change:
                raise Violation(f"failed with {describe(status)} and changed {difference(self.picture, now)}")
        else:
            check(self)
            self.keep_count(fn, registers)
        self.picture = now

    def vandalise(self) -> None:
        """The host writes to a page of a TD: mostly to one that is mapped, else to whichever of the pool."""
        able = [td for td in self.module.tds.values() if hasattr(td, "sept")]
        pages = [
            entry & sept.HPA_MASK for td in able for _, _, entry in entries(self.host, td) if entry & sept.LEAF
        ] or self.small
        self.host.memory.write(self.chance.choice(pages if self.chance.random() < 0.8 else self.small), b"vandalism")
        self.picture = picture(self)

    def keep_count(self, fn: int, registers: dict[str, int]) -> None:
        """Keep the list of TDRs."""
        if fn == SEAMCALL_NUMBERS["TDH.MNG.CREATE"]:
            self.tdrs.append(registers["rcx"])
        gone = [tdr for tdr in self.tdrs if tdr not in self.module.tds]
        for tdr in gone:
            self.tdrs.remove(tdr)
            self.dying.discard(tdr)

    def in_the_way(self, stack: contextlib.ExitStack, lp: int) -> None:
        """Another logical processor holds a lock, an interrupt is pending, an MSR changed, or there is no entropy."""
        chance, contention = self.chance, self.module.contention
        kind = chance.randrange(6)
        if kind == 0 and self.tdrs:
            td = chance.choice(self.tdrs)
            stack.enter_context(contention.hold(chance.choice(LOCKS), td, shared=chance.random() < 0.5))
        elif kind == 1:
            stack.enter_context(contention.hold(chance.choice(MODULE_LOCKS)))
        elif kind == 2:
            page = chance.choice((*self.small, *self.module.tds, *self.module.vcpus))
            stack.enter_context(contention.hold_page(page, exclusive=chance.random() < 0.5))
        elif kind == 3:
            contention.interrupt(lp)
            stack.callback(contention.interrupted, lp)
        elif kind == 4:
            self.host.processor.msrs[0x3B] = 1  # IA32_TSC_ADJUST
            stack.callback(self.host.processor.msrs.pop, 0x3B)
        else:
            contention.entropy = False
            stack.callback(setattr, contention, "entropy", True)


# --- many -------------------------------------------------------------------------------------------------------------


@dataclass
class Result:
    """What a campaign came to."""

    calls: int = 0
    worlds: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def lines(self) -> Iterator[str]:
        """For a person."""
        leaves = Counter[str]()
        passed = Counter[str]()
        for answer, count in self.answers.items():
            name, status = answer.split()
            leaves[name] += count
            passed[name] += count if status == "SUCCESS" else 0
        yield f"{self.calls:,} calls in {self.worlds} worlds, {len(self.answers)} different answers"
        for name, count in leaves.most_common():
            statuses = sum(answer.split()[0] == name for answer in self.answers)
            yield f"  {name:<28}{count:>9,} calls {passed[name]:>9,} successes {statuses:>4} statuses"
        yield from self.failures


def new_world(seed: object, version: str = "1.5.06") -> Trial:
    """A world on a platform of two packages with a logical processor each."""
    host = Host(FakeProcessor(FakePlatform(packages=2, module_version=version)))
    host.start()
    end = 0x100_0000 + 3 * MIB2  # no more than what the pictures show
    status, _ = host.config(host.tdmr(reserved=[(0, 0x100_0000), (end, GIB - end)]))
    assert not status, describe(status)
    host.complete()
    world = Trial(host, random.Random(str(seed)))
    assert world.pages[1] == end
    return world


def campaign(
    calls: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
    *,
    minutes: float | None = None,
    version: str = "1.5.06",
) -> Result:
    """Make ``calls`` calls, or as many as ``minutes`` allow; a failure ends its world, three end the campaign."""
    result = Result()
    end = None if minutes is None else time.monotonic() + 60 * minutes
    while result.calls < calls and len(result.failures) < 3 and (end is None or time.monotonic() < end):
        world = new_world(f"{seed}/{result.worlds}", version)
        try:
            for _ in range(min(PER_WORLD, calls - result.calls)):
                world.step()
                if end is not None and time.monotonic() >= end:
                    break
                if world.calls % 100 == 0:
                    progress(result.calls + world.calls)
        except Exception:  # noqa: BLE001 - whatever comes out of the module is a failure to be told
            fn, registers, lp = world.said
            given = ", ".join(f"{name}={value:#x}" for name, value in registers.items())
            result.failures.append(
                f"world {result.worlds}, call {world.calls} ({result.calls + world.calls} in all): "
                f"RAX={fn}, {given} on logical processor {lp}\n{traceback.format_exc()}"
            )
        result.calls += world.calls
        result.worlds += 1
        result.answers += world.answers
    return result
