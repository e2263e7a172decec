# SPDX-License-Identifier: GPL-2.0-or-later
"""A small world of TDs in every stage of their lives, and what a host may call next, sensible or not."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from swtdx.seam import metadata, sept
from swtdx.seam.dispatch import SEAMCALL_NUMBERS
from swtdx.seam.lifecycle import LifecycleState, OpState, VcpuState
from swtdx.seam.version import module_version
from testing.seam.fake_host import Host
from testing.seam.invariants import entries

GPA = 0x8000_0000
MIB2 = 1 << 21
SMALL_PAGES, LARGE_PAGES = 200, 2
MANY_TDS = 4
NONE = (1 << 64) - 1
ANY = (*(1 << bit for bit in range(64)), 0, NONE, 0xFFF)
NOWHERE = (*(1 << bit for bit in range(34, 64)), 0, NONE, 0xFFF)
ANSWERED_IN_MEMORY = {"TDH.SYS.INFO", "TDH.SYS.RDALL"}
"""A host that has them write over the PAMT or a TD's pages gets a machine check later, not a status."""
WRITABLE = {
    field.field_id: mask
    for version in ("1.5.06", "1.0")
    for table in (metadata.td_fields, metadata.vcpu_fields)
    for field in table(module_version(version)).fields
    for _, mask in field.masks
    if mask
}
"""Fields of TDs and virtual CPUs that a host or guest may write, and the bits."""
SYSTEM_FIELDS = tuple(field.field_id for field in metadata.system_fields().fields)
FIELDS = (NONE, 0x9100000100000008, 0x1110000300000000, *WRITABLE)
SKIPPED = {"TDH.SYS.SHUTDOWN", "TDH.SYS.LP.SHUTDOWN"}
"""They end the world."""
LEAVES = sorted(set(SEAMCALL_NUMBERS) - SKIPPED)
LIKELY = [
    "TDH.MEM.PAGE.AUG", "TDH.MEM.RANGE.BLOCK", "TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.RELOCATE", "TDH.MEM.TRACK",
    "TDH.MEM.SEPT.ADD", "TDH.MEM.PAGE.DEMOTE", "TDH.MEM.PAGE.PROMOTE", "TDH.MEM.RANGE.UNBLOCK", "TDH.MEM.PAGE.ADD",
    "TDH.MEM.SEPT.REMOVE", "TDH.MR.EXTEND", "TDH.MEM.SEPT.RD", "TDH.MEM.RD", "TDH.MEM.WR", "TDH.VP.ENTER",
    "TDH.VP.RD", "TDH.VP.WR", "TDH.VP.FLUSH", "TDH.MNG.RD", "TDH.MNG.WR", "TDH.PHYMEM.PAGE.RECLAIM",
]  # fmt: skip
SUITABLE = {
    "MAPPED": ("TDH.MEM.RANGE.BLOCK", "TDH.MEM.RD", "TDH.MEM.WR", "TDH.MR.EXTEND", "TDH.MEM.PAGE.DEMOTE"),
    "PENDING": ("TDH.MEM.RANGE.BLOCK", "TDH.MEM.SEPT.RD", "TDH.MEM.PAGE.DEMOTE"),
    "NL_MAPPED": ("TDH.MEM.RANGE.BLOCK", "TDH.MEM.PAGE.PROMOTE", "TDH.MEM.SEPT.RD"),
    "NL_BLOCKED": (
        "TDH.MEM.TRACK", "TDH.MEM.RANGE.UNBLOCK", "TDH.MEM.SEPT.REMOVE", "TDH.MEM.PAGE.PROMOTE", "TDH.MEM.PAGE.PROMOTE",
    ),
    **dict.fromkeys(("BLOCKED", "PENDING_BLOCKED"), (
        "TDH.MEM.TRACK", "TDH.MEM.RANGE.UNBLOCK", "TDH.MEM.PAGE.REMOVE", "TDH.MEM.PAGE.RELOCATE", "TDH.MEM.PAGE.DEMOTE",
    )),
}  # fmt: skip
"""Leaf functions for an entry in a state."""
TDR_IN_RCX = ("TDH.MNG.", "TDH.MR.FINALIZE", "TDH.MEM.TRACK", "TDH.EXPORT.STATE", "TDH.IMPORT.STATE", "TDH.SERVTD")


class World:
    """A host, up to `MANY_TDS` TDs, and what a call may name."""

    def __init__(self, host: Host, chance: random.Random) -> None:
        self.host, self.chance = host, chance
        self.module = host.module
        self.small = [host.page() for _ in range(SMALL_PAGES)]
        self.source = host.page()
        self.buffer = host.page()
        self.large = [host.page(MIB2) for _ in range(LARGE_PAGES)]
        self.tdrs: list[int] = []
        """TDRs, from MNG.CREATE until they are free again; those that are `dying` are taken down."""
        self.dying: set[int] = set()
        self.pages = (min(self.small), max(self.large) + MIB2)

    # --- what there is ------------------------------------------------------------------------------------------------

    def free(self) -> int:
        """A page of the pool; mostly one that is free."""
        for _ in range(6):
            page = self.chance.choice(self.small)
            index, _ = self.module.pamt.index_of(page)
            if not self.module.pamt.type_at(index):
                return page
        return page

    def page(self) -> int:
        """Any page, in use or not, small or in a large one, or what is none."""
        chance = self.chance
        kind = chance.random()
        if kind < 0.75:
            return chance.choice(self.small)
        if kind < 0.95:
            return chance.choice(self.large) + chance.choice((0, 0, 4096, 511 * 4096))
        return chance.choice(self.small) | chance.choice(ANY)

    def tdr(self) -> int:
        """Mostly the TDR of a TD."""
        if self.tdrs and self.chance.random() < 0.95:
            return self.chance.choice(self.tdrs)
        return self.page()

    def tdvpr(self) -> int:
        """Mostly the TDVPR of a virtual CPU."""
        if self.module.vcpus and self.chance.random() < 0.95:
            return self.chance.choice(sorted(self.module.vcpus))
        return self.page()

    def gpa(self, level: int) -> int:
        """GPA and level: a few small pages in each of three 2 MiB ranges, of which two can be large."""
        chance = self.chance
        base = GPA + chance.randrange(3) * MIB2
        if not level:
            return base + chance.randrange(4) * 4096
        return (base if level == 1 else GPA >> 12 + 9 * level << 12 + 9 * level) | level

    def operands(self, name: str) -> dict[str, int]:
        """Registers that may well suit a leaf function."""
        chance = self.chance
        level = chance.choice((0, 0, 0, 1, 1, 1, 2, 3)) if "SEPT" not in name else chance.choice((1, 1, 2, 3))
        large = level == 1 and "AUG" in name
        page = chance.choice(self.large) if large else self.free() if chance.random() < 0.8 else self.page()
        registers = {"rcx": self.gpa(level), "rdx": self.tdr(), "r8": page, "r9": self.source}
        if name.startswith(TDR_IN_RCX):
            registers |= {"rcx": self.tdr(), "rdx": chance.choice(FIELDS)}
            registers |= {"r8": chance.getrandbits(64), "r9": chance.choice(ANY)}
        if name.endswith(".WR") and chance.random() < 0.7:
            field, mask = chance.choice(sorted(WRITABLE.items()))
            registers |= {"rdx": field, "r8": chance.getrandbits(64) & mask, "r9": mask}
            if name == "TDH.VP.WR":
                return registers | {"rcx": self.tdvpr()}
        elif name in ("TDH.MNG.CREATE", "TDH.MNG.ADDCX", "TDH.VP.CREATE", "TDH.VP.ADDCX"):
            rdx = self.tdvpr() if name == "TDH.VP.ADDCX" else self.tdr()
            registers |= {"rcx": page, "rdx": chance.randrange(31, 66) if name == "TDH.MNG.CREATE" else rdx}
        elif name.startswith("TDH.PHYMEM.PAGE"):
            registers["rcx"] = self.page()
        elif name == "TDH.PHYMEM.CACHE.WB":
            registers["rcx"] = chance.randrange(2)
        elif name.startswith("TDH.VP"):
            registers |= {"rcx": self.tdvpr(), "rdx": chance.choice(FIELDS), "r9": chance.choice(ANY)}
            registers["r8"] = chance.randrange(3) if name == "TDH.VP.INIT" else chance.choice(ANY)
        elif name in ("TDH.SYS.INFO", "TDH.SYS.RDALL"):
            registers |= {"rcx": self.buffer, "rdx": chance.choice((1024, self.buffer))}
            registers["r8"] = chance.choice((self.source, NONE))
        elif name == "TDH.SYS.RD":
            registers["rdx"] = chance.choice((*FIELDS, *SYSTEM_FIELDS))
        return registers

    # --- the next call on a TD's way ----------------------------------------------------------------------------------

    def onward(self) -> tuple[str, dict[str, int], int]:
        """(leaf function, registers, logical processor) that leads some TD further."""
        chance, module = self.chance, self.module
        if not self.tdrs or (len(self.tdrs) < MANY_TDS and chance.random() < 0.3):
            return "TDH.MNG.CREATE", {"rcx": self.free(), "rdx": chance.randrange(33, 64)}, 0
        tdr = chance.choice(self.tdrs)
        td = module.tds.get(tdr)
        if td is None:
            return "TDH.PHYMEM.PAGE.RDMD", {"rcx": tdr}, 0
        if tdr in self.dying or td.fatal:
            return self.downward(tdr, td)
        if chance.random() < 0.004:
            self.dying.add(tdr)
        lp = chance.randrange(2)
        if td.lifecycle is LifecycleState.HKID_ASSIGNED:
            return "TDH.MNG.KEY.CONFIG", {"rcx": tdr}, lp
        if td.op_state is OpState.UNINITIALIZED:
            if len(td.tdcx) < module.version.min_tdcx:
                return "TDH.MNG.ADDCX", {"rcx": self.free(), "rdx": tdr}, lp
            return "TDH.MNG.INIT", {"rcx": tdr, "rdx": self.params()}, lp
        if td.op_state is OpState.INITIALIZED:
            return self.build(tdr, td, lp)
        if td.vcpus and chance.random() < 0.6:
            vcpu = chance.choice(td.vcpus)
            return "TDH.VP.ENTER", {"rcx": vcpu.hpa}, vcpu.lp if vcpu.lp >= 0 else lp
        if chance.random() < 0.1:
            return "TDH.MEM.TRACK", {"rcx": tdr}, lp
        return *self.populate(tdr, td, "TDH.MEM.PAGE.AUG"), lp

    def populate(self, tdr: int, td: Any, name: str) -> tuple[str, dict[str, int]]:
        """PAGE.ADD or AUG of some GPA, or SEPT.ADD of the table that it still lacks."""
        chance = self.chance
        for _ in range(4):
            gpa = self.gpa(0 if name == "TDH.MEM.PAGE.ADD" else chance.choice((0, 0, 1)))
            level = gpa & 7
            _, entry, reached = td.sept.walk(gpa & ~7, level)
            if entry == sept.FREE:
                break
        if reached > level and not entry & sept.LEAF and chance.random() < 0.7:  # a table that is blocked
            table = (gpa & ~7) >> 12 + 9 * reached << 12 + 9 * reached
            return "TDH.MEM.RANGE.UNBLOCK", {"rcx": table | reached, "rdx": tdr}
        if reached > level and entry == sept.FREE:
            table = (gpa & ~7) >> 12 + 9 * reached << 12 + 9 * reached
            return "TDH.MEM.SEPT.ADD", {"rcx": table | reached, "rdx": tdr, "r8": self.free()}
        page = chance.choice(self.large) if level else self.free()
        return name, {"rcx": gpa, "rdx": tdr, "r8": page, "r9": self.source}

    def params(self) -> int:
        """TD_PARAMS in a host buffer, mostly good ones."""
        chance = self.chance
        wrong = {"xfam": 1 << 10, "max_vcpus": 0, "eptp_controls": 7, "tsc_frequency": 0, "reserved_3": b"\1"}
        changes: dict[str, Any] = {"attributes": chance.choice((0, 1, 1 << 28)), "max_vcpus": chance.randrange(1, 4)}
        if chance.random() < 0.1:
            name = chance.choice(sorted(wrong))
            changes[name] = wrong[name]
        self.host.memory.write(self.source, self.host.td_params(**changes))
        return self.source

    def build(self, tdr: int, td: Any, lp: int) -> tuple[str, dict[str, int], int]:
        """The next call on the way from MNG.INIT to MR.FINALIZE."""
        chance, module = self.chance, self.module
        for tdvpr, vcpu in sorted(module.vcpus.items()):
            full = td.num_vcpus >= td.max_vcpus
            if vcpu.td is td and vcpu.state is VcpuState.UNINITIALIZED and not full and chance.random() < 0.7:
                if len(vcpu.pages) < td.vcpu_pages:
                    return "TDH.VP.ADDCX", {"rcx": self.free(), "rdx": tdvpr}, lp
                return "TDH.VP.INIT", {"rcx": tdvpr, "rdx": 0x1234}, lp
        kind = chance.random()
        if kind < 0.2 and td.num_vcpus < td.max_vcpus:
            return "TDH.VP.CREATE", {"rcx": self.free(), "rdx": tdr}, lp
        if kind < 0.25:
            return "TDH.MR.FINALIZE", {"rcx": tdr}, lp
        return *self.populate(tdr, td, "TDH.MEM.PAGE.ADD"), lp

    def downward(self, tdr: int, td: Any) -> tuple[str, dict[str, int], int]:
        """The next call on the way to the TD's end."""
        module, lp = self.module, self.chance.randrange(2)
        if td.lifecycle in (LifecycleState.HKID_ASSIGNED, LifecycleState.KEYS_CONFIGURED):
            for vcpu in td.vcpus:
                if vcpu.lp >= 0:
                    return "TDH.VP.FLUSH", {"rcx": vcpu.hpa}, vcpu.lp
            return "TDH.MNG.VPFLUSHDONE", {"rcx": tdr}, lp
        if td.lifecycle is LifecycleState.BLOCKED:
            if module.kot.write_back_pending(td.hkid):
                return "TDH.PHYMEM.CACHE.WB", {"rcx": self.chance.randrange(4) == 0}, lp
            return "TDH.MNG.KEY.FREEID", {"rcx": tdr}, lp
        for page in (*self.large, *self.small):
            index, _ = module.pamt.index_of(page)
            if module.pamt.owner_at(index) == tdr and module.pamt.type_at(index) and page != tdr:
                return "TDH.PHYMEM.PAGE.RECLAIM", {"rcx": page}, lp
        for page in self.large:  # split ones
            for small in range(page, page + MIB2, 4096):
                index, _ = module.pamt.index_of(small)
                if module.pamt.owner_at(index) == tdr and module.pamt.type_at(index):
                    return "TDH.PHYMEM.PAGE.RECLAIM", {"rcx": small}, lp
        return "TDH.PHYMEM.PAGE.RECLAIM", {"rcx": tdr}, lp

    # --- a call for an entry of a Secure EPT --------------------------------------------------------------------------

    def tend(self) -> tuple[str, dict[str, int], int]:
        """(leaf function, registers, logical processor) that suits some entry of some TD's Secure EPT."""
        chance, lp = self.chance, self.chance.randrange(2)
        able = [tdr for tdr, td in self.module.tds.items() if hasattr(td, "sept") and not td.fatal]
        found: list[tuple[int, int, int]] = []
        if able:
            tdr = chance.choice(able)
            found = [entry for entry in entries(self.host, self.module.tds[tdr]) if entry[1] < 3]
        if not found:
            return self.onward()
        pages = Counter(gpa >> 21 for gpa, level, _ in found if not level)
        split = [entry for entry in found if entry[1] == 1 and pages[entry[0] >> 21] == sept.ENTRIES]
        if chance.random() < 0.8:  # spare what could become a page again, and tables of tables
            found = [entry for entry in found if entry[1] == 1 or pages[entry[0] >> 21] < sept.ENTRIES]
            found = split if split and chance.random() < 0.3 else found
        leaves = [entry for entry in found if entry[2] & sept.LEAF]
        gpa, level, entry = chance.choice(leaves if leaves and chance.random() < 0.6 else found)
        state = sept.SeptState(entry & sept.STATE_MASK)
        names = SUITABLE.get(state.name, ("TDH.MEM.SEPT.RD",))
        name = chance.choice([name for name in names if level or "MOTE" not in name])
        registers = {"rcx": gpa | level, "rdx": tdr, "r8": self.free(), "r9": NONE}
        if name == "TDH.MEM.TRACK":
            registers["rcx"] = tdr
        elif name in ("TDH.MEM.RD", "TDH.MEM.WR", "TDH.MR.EXTEND"):
            registers |= {"rcx": gpa | chance.choice((0, 8, 256)), "r8": chance.getrandbits(64)}
        return name, registers, lp

    # --- any call -----------------------------------------------------------------------------------------------------

    def choose(self) -> tuple[int, dict[str, int], int]:
        """(RAX, registers, logical processor)."""
        chance, kind = self.chance, self.chance.random()
        if kind < 0.65:
            name, registers, lp = self.onward() if kind < 0.4 else self.tend()
            return SEAMCALL_NUMBERS[name], registers, lp
        lp = chance.randrange(2)
        if kind < 0.93:
            name = chance.choice(LIKELY if chance.random() < 0.8 else LEAVES)
            return SEAMCALL_NUMBERS[name] | (chance.random() < 0.05) << 16, self.operands(name), lp
        fn = SEAMCALL_NUMBERS[chance.choice(LEAVES)] | chance.choice((0, 0, 0, *ANY))
        if fn & 0xFFFF in {SEAMCALL_NUMBERS[name] for name in SKIPPED}:
            fn |= 1 << 40
        values = (self.page(), self.tdr(), *ANY)
        if fn & 0xFFFF in {SEAMCALL_NUMBERS[name] for name in ANSWERED_IN_MEMORY}:
            values = (self.buffer, *NOWHERE)
        return fn, {name: chance.choice(values) for name in ("rcx", "rdx", "r8", "r9")}, lp
