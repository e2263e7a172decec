# SPDX-License-Identifier: GPL-2.0-or-later
"""Random sequences of SEAMCALLs and TDCALLs: what must hold after them, whatever they were.

* Secure EPT and metadata agree in both directions: what an entry points to belongs to that TD as that kind of page, at
  that size, and every private page or table that the metadata gives to a TD is pointed to once.
* A TD's count of child pages is the number of 4 KiB pages that the metadata gives it.
* A call that failed has changed nothing.

SWTDX_RANDOM_CALLS sets how many calls are made (3,000 unless told).
"""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swtdx.seam import sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.pamt import PageType
from swtdx.seam.status import ERROR, describe

CALLS = int(os.environ.get("SWTDX_RANDOM_CALLS", "3000"))
PER_RUN = 250
GPA = 0x8000_0000
MIB2 = 1 << 21
NAMES = (
    ["TDH.MEM.PAGE.AUG", "TDH.MEM.RANGE.BLOCK", "TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.RELOCATE", "TDH.MEM.TRACK"] * 4
    + ["TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.DEMOTE", "TDH.MEM.PAGE.PROMOTE", "TDH.MEM.RANGE.UNBLOCK"] * 3
    + ["TDH.MEM.PAGE.ADD", "TDH.MEM.SEPT.REMOVE", "TDH.MR.EXTEND", "TDH.MEM.SEPT.RD", "TDH.VP.CREATE", "TDH.VP.ADDCX"]
    + ["TDH.VP.FLUSH", "TDH.VP.RD", "TDH.MNG.ADDCX", "TDH.PHYMEM.PAGE.RECLAIM", "TDH.PHYMEM.PAGE.RDMD"]
    + ["TDH.MNG.CREATE", "TDH.MNG.KEY.CONFIG", "TDH.PHYMEM.CACHE.WB", "TDH.EXPORT.UNBLOCKW"]
)
assert set(NAMES) <= set(SEAMCALL_NUMBERS)


def mapped(host, td):
    """(HPA, level of the size, page type) of everything that the TD's Secure EPT points to."""

    def below(table, level):
        for entry in host.memory.qwords[table >> 3 : (table >> 3) + 512].tolist():
            state = entry & sept.STATE_MASK
            if state in (sept.SeptState.FREE, sept.SeptState.REMOVED):
                continue
            hpa = entry & sept.HPA_MASK
            if entry & sept.LEAF:
                yield hpa & ~((1 << 12 + 9 * level) - 1), level, PageType.REG
            else:
                yield hpa, 0, PageType.EPT
                yield from below(hpa, level - 1)

    return list(below(td.sept.root, td.sept.levels - 1))


def owned(host, tdr):
    """(HPA, level, page type) of everything that the metadata gives to the TD."""
    pamt, found = host.module.pamt, []
    block = pamt.blocks[0]
    for level, bias, shift in ((0, block.bias_4k, 12), (1, block.bias_2m, 21)):
        words = host.memory.qwords[bias : bias + (host.next_page >> shift) * 2 : 2].tolist()
        for number, word in enumerate(words):
            page_type = word >> 16 & 0xFF
            if page_type not in (0, PageType.RSVD, PageType.TDR) and (word >> 24) << 12 == tdr:
                found.append((number << shift, level, PageType(page_type)))
    return found


def check(host):
    for tdr, td in host.module.tds.items():
        has = owned(host, tdr)
        assert sum(1 << 9 * level for _, level, _ in has) == td.child_count
        memory = sorted(page for page in has if page[2] in (PageType.REG, PageType.EPT))
        assert memory == (sorted(mapped(host, td)) if hasattr(td, "sept") else [])


class World:
    """Two TDs under construction and two that run, and a guest that accepts what it is given."""

    def __init__(self, host, chance):
        self.host, self.chance = host, chance
        self.building = [host.build(), host.build()]
        self.running = [host.runnable(attributes=0) for _ in range(2)]
        self.tdrs = [*self.building, *(tdr for tdr, *_ in self.running)]
        for tdr in self.tdrs:
            host.tables(tdr, GPA, lowest=2)
        self.small = [host.page() for _ in range(40)]
        self.large = [host.page(MIB2) for _ in range(8)]
        self.made = 0

    def step(self):
        chance, host = self.chance, self.host
        self.made += 1
        gpa = GPA + chance.randrange(3) * MIB2
        level = chance.choice((0, 0, 0, 1, 1, 1, 1, 1, 2))
        if not level:
            gpa += chance.randrange(4) * 4096
        elif level == 2:
            gpa = GPA
        if chance.random() < 0.1:
            _, tdvpr, context = chance.choice(self.running)
            host.guest(tdvpr, context, self.accept(gpa | min(level, 1)))
            context.script.clear()
            return
        name = chance.choice(NAMES)
        page = chance.choice(self.large if level and "DEMOTE" not in name and "SEPT" not in name else self.small)
        page += chance.choice((0,) * 12 + (4096, 8))
        tdr = chance.choice(self.tdrs)
        registers = {"rcx": gpa | level, "rdx": tdr, "r8": page, "r9": 0x3000_0000}
        if name == "TDH.MEM.TRACK":
            registers["rcx"] = tdr
        elif name.startswith(("TDH.PHYMEM.PAGE", "TDH.MNG.CREATE", "TDH.MNG.ADDCX", "TDH.VP.CREATE")):
            registers["rcx"] = page
        elif name.startswith("TDH.VP"):
            registers |= {"rcx": self.running[0][1], "rdx": chance.choice((0x9120000300000100, self.running[0][1]))}
        if name == "TDH.MNG.CREATE":
            registers["rdx"] = chance.randrange(30, 66)
        before = host.snapshot() if chance.random() < 0.05 else None
        status, _ = host.call(name, **registers)
        if before is not None and status & ERROR:
            assert host.snapshot() == before, f"{name}: {describe(status)}"

    def accept(self, operand):
        def step(context):
            context.gpr[0], context.gpr[1] = 6, operand
            return 77

        return step


@pytest.fixture(scope="module")
def new_world(new_host):
    return lambda chance: World(new_host().bring_up(), chance)


@settings(max_examples=max(1, CALLS // PER_RUN), deadline=None)
@given(seed=st.integers(0, 1 << 32))
def test_random_calls(new_world, seed):
    world = new_world(random.Random(seed))
    for number in range(PER_RUN):
        world.step()
        if number % 50 == 49:
            check(world.host)
