# SPDX-License-Identifier: GPL-2.0-or-later
"""What must hold in the TDX module whatever was called, and a picture of all of it to compare.

* Secure EPT and page metadata agree in both directions: what an entry points to belongs to that TD as that kind of
  page, at that size, and every private page or table that the metadata gives to a TD is pointed to once, by that TD
  alone.
* Every other page of a TD is one of its TDCX, TDVPR or TDVPX pages, and these are all.
* A TD's count of child pages is the number of 4 KiB pages that the metadata gives it.
* Mapped pages, tables and control structures lie under their TD's key, TDRs under the module's.
* An entry of the Secure EPT is in one of the published states, with permissions that suit it; a leaf is aligned.
* A KeyID belongs to one TD, and the key ownership table tells its state; TDs without one have none assigned.
* Counts of virtual CPUs match them; outside VP.ENTER none is active, and no lock is held.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import Any

from swtdx.seam import sept
from swtdx.seam.lifecycle import HkidState, LifecycleState, VcpuState
from swtdx.seam.pamt import PageType

LOCKS = 0xFFFF
TYPE = 0xFF << 16
CONTROL = (PageType.TDCX, PageType.TDVPR, PageType.TDVPX)


class Violation(AssertionError):
    """An invariant does not hold."""


@lru_cache(maxsize=4096)
def _entries(page: bytes, level: int) -> tuple[tuple[int, int], ...]:
    """(number, entry) of a table's entries that are not free, each checked."""
    words = memoryview(page).cast("Q").tolist()
    found = tuple((number, entry) for number, entry in enumerate(words) if entry not in (sept.FREE,))
    for number, entry in found:
        state = sept.SeptState(entry & sept.STATE_MASK)
        leaf = bool(entry & sept.LEAF)
        blocked = state in sept.ANY_BLOCKED | sept.ANY_PENDING
        wrong = (
            leaf != (state not in (sept.SeptState.NL_MAPPED, sept.SeptState.NL_BLOCKED))
            or (level == 0 and not leaf)
            or (leaf and level > 2)
            or bool(entry & 7) == blocked
            or entry & (sept.ENTRY_LOCK | sept.HOST_PRIORITY)
            or not entry & sept.SUPPRESS_VE
            or (
                leaf and level and entry & sept.HPA_MASK & ((1 << 12 + 9 * level) - 1) and state not in sept.ANY_PENDING
            )
        )
        if wrong:
            raise Violation(f"entry {number} at level {level} is {entry:#x}")
    return found


def entries(host: Any, td: Any) -> list[tuple[int, int, int]]:
    """(GPA, level, entry) of the TD's Secure EPT, without free entries."""
    raw, found = host.memory.raw, []

    def below(table: int, level: int, gpa: int) -> None:
        for number, entry in _entries(raw[table : table + 4096].tobytes(), level):
            start = gpa + (number << 12 + 9 * level)
            found.append((start, level, entry))
            if not entry & sept.LEAF:
                below(entry & sept.HPA_MASK, level - 1, start)

    if td.lifecycle is LifecycleState.KEYS_CONFIGURED and not td.fatal:
        below(td.sept.root, td.sept.levels - 1, 0)
    return found


def mapped(host: Any, td: Any) -> list[tuple[int, int, PageType]]:
    """(HPA, level of the size, page type) of everything that the TD's Secure EPT points to."""
    raw, found = host.memory.raw, []

    def below(table: int, level: int) -> None:
        page = raw[table : table + 4096].tobytes()
        if page == sept.FREE_PAGE:
            return
        for _, entry in _entries(page, level):
            hpa = entry & sept.HPA_MASK
            if entry & sept.LEAF:
                found.append((hpa & ~((1 << 12 + 9 * level) - 1), level, PageType.REG))
            else:
                found.append((hpa, 0, PageType.EPT))
                below(hpa, level - 1)

    below(td.sept.root, td.sept.levels - 1)
    return found


def owned(world: Any) -> dict[int, list[tuple[int, int, PageType]]]:
    """What the metadata gives to each TDR, by owner: (HPA, level of the size, page type)."""
    qwords, (low, high) = world.host.memory.qwords, world.pages
    (block,) = world.module.pamt.blocks.values()
    found: dict[int, list[tuple[int, int, PageType]]] = {}
    for level, bias, shift in ((0, block.bias_4k, 12), (1, block.bias_2m, 21)):
        first, last = low >> shift, high >> shift
        words = qwords[bias + first * 2 : bias + last * 2 : 2].tolist()
        for number, word in enumerate(words, first):
            if word & LOCKS:
                raise Violation(f"the metadata of {number << shift:#x} is locked: {word:#x}")
            kind = (word & TYPE) >> 16
            if kind and kind not in (PageType.RSVD, PageType.TDR):
                found.setdefault((word >> 24) << 12, []).append((number << shift, level, PageType(kind)))
    return found


def check(world: Any) -> None:
    """Raises Violation."""
    module, host = world.module, world.host
    by_owner = owned(world)
    if set(by_owner) - set(module.tds):
        raise Violation(f"pages belong to TDs that do not exist: {set(by_owner) - set(module.tds)}")
    for tdr, td in module.tds.items():
        has = by_owner.get(tdr, [])
        count = sum(1 << 9 * level for _, level, _ in has)
        if count != td.child_count:
            raise Violation(f"TDR {tdr:#x} counts {td.child_count} pages, the metadata gives it {count}")
        _check_pages(world, td, has)
        _check_vcpus(module, td)
        if module.pamt.type_at(module.pamt.index_of(tdr)[0]) is not PageType.TDR:
            raise Violation(f"the page of TDR {tdr:#x} is none")
        if host.memory.key_of(tdr) != module.global_hkid:
            raise Violation(f"TDR {tdr:#x} lies under KeyID {host.memory.key_of(tdr)}")
    _check_keys(module)


def _check_pages(world: Any, td: Any, has: list[tuple[int, int, PageType]]) -> None:
    memory = sorted(page for page in has if page[2] in (PageType.REG, PageType.EPT))
    control = {hpa for hpa, _, kind in has if kind in CONTROL}
    alive = td.lifecycle in (LifecycleState.HKID_ASSIGNED, LifecycleState.KEYS_CONFIGURED)
    if td.lifecycle is LifecycleState.TEARDOWN:  # pages are taken back one by one, whatever still names them
        return
    broken = td.fatal and any(map(world.host.memory.integrity_broken, {*td.tdcx, *(page for page, *_ in memory)}))
    if broken:  # its tables say nothing any more
        return
    if memory != (sorted(mapped(world.host, td)) if hasattr(td, "sept") else []):
        raise Violation(f"TDR {td.hpa:#x}: metadata and Secure EPT differ")
    pages = [page for vcpu in world.module.vcpus.values() if vcpu.td is td for page in vcpu.pages]
    if control != {*td.tdcx, *pages}:
        raise Violation(f"TDR {td.hpa:#x}: control structures are {control}, TDCX and TDVPS {td.tdcx} {pages}")
    key_of = world.host.memory.key_of
    keyed = control | {hpa for hpa, _, kind in memory if kind is PageType.EPT}
    strange = {hpa for hpa in keyed if key_of(hpa) != td.hkid}
    if alive and strange:
        raise Violation(f"TDR {td.hpa:#x}: {strange} lie under another KeyID than {td.hkid}")


def _check_vcpus(module: Any, td: Any) -> None:
    mine = [vcpu for vcpu in module.vcpus.values() if vcpu.td is td]
    associated = sum(vcpu.lp >= 0 for vcpu in mine)
    if associated != td.num_associated:
        raise Violation(f"TDR {td.hpa:#x} counts {td.num_associated} associated virtual CPUs, there are {associated}")
    if len(td.vcpus) > td.num_vcpus or any(vcpu.state is VcpuState.ACTIVE for vcpu in mine):
        raise Violation(f"TDR {td.hpa:#x}: {td.num_vcpus} virtual CPUs, {[vcpu.state for vcpu in mine]}")
    if any(td.refcount):
        raise Violation(f"TDR {td.hpa:#x}: REFCOUNT {td.refcount} with no vCPU inside")


def _check_keys(module: Any) -> None:
    wanted: Counter[int] = Counter()
    for td in module.tds.values():
        if td.lifecycle is not LifecycleState.TEARDOWN:
            wanted[td.hkid] += 1
            state = HkidState.FLUSHED if td.lifecycle is LifecycleState.BLOCKED else HkidState.ASSIGNED
            if module.kot.state(td.hkid) is not state:
                raise Violation(f"TDR {td.hpa:#x} is {td.lifecycle.name}, its KeyID {module.kot.state(td.hkid).name}")
    taken = {hkid for hkid in module.kot.private if module.kot.state(hkid) is not HkidState.FREE}
    if max(wanted.values(), default=1) > 1 or taken != {*wanted, module.global_hkid}:
        raise Violation(f"KeyIDs in use: {taken}; of TDs: {dict(wanted)}")


# --- everything -------------------------------------------------------------------------------------------------------

_NO_STATE = {"passes_rbp", "rtmr_events"}
"""What is recorded for inspection."""
_BY_NAME = {"cpuid", "msrs", "sept", "params", "version", "td", "context", "vcpus"}
"""Objects that are made once, or have a picture of their own."""


def _frozen(thing: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in vars(thing).items():
        if name in _NO_STATE:
            continue
        if name in _BY_NAME:
            value = id(value) if name != "vcpus" else len(value)
        elif isinstance(value, (list, bytearray)):
            value = tuple(value)
        elif name == "mrtd_context":
            value = value.hexdigest()
        elif name == "ve":
            value = tuple(vars(value).values())
        elif isinstance(value, dict):
            value = tuple(sorted(value.items()))
        result[name] = value
    return result


def picture(world: Any) -> tuple[Any, ...]:
    """All that a call could change: states, TDs, virtual CPUs and their registers, metadata, memory; comparable."""
    module, memory, (low, high) = world.module, world.host.memory, world.pages
    things: dict[str, Any] = {}
    for hpa, td in module.tds.items():
        things |= {f"TD {hpa:#x} {name}": value for name, value in _frozen(td).items()}
    for hpa, vcpu in module.vcpus.items():
        things |= {f"vCPU {hpa:#x} {name}": value for name, value in _frozen(vcpu).items()}
        context = getattr(vcpu, "context", None)
        if context is not None:
            things[f"vCPU {hpa:#x} registers"] = (
                context.gpr.tobytes(), context.rip, context.cr0, context.cr4, len(context.injected),
            )  # fmt: skip
    raw, qwords = memory.raw, memory.qwords
    (block,) = module.pamt.blocks.values()
    kot = tuple((module.kot.state(hkid), module.kot.write_back_pending(hkid)) for hkid in module.kot.private)
    small_end = world.small[-1] + 4096  # beyond them are the host's buffers
    return (
        module.state,
        things,
        kot,
        tuple(sorted(module.interrupted_write_back)),
        qwords[block.bias_4k + (low >> 11) : block.bias_4k + (high >> 11)].tobytes(),
        qwords[block.bias_2m + (low >> 21) * 2 : block.bias_2m + ((high >> 21) + 1) * 2].tobytes(),
        raw[low:small_end].tobytes(),
        qwords[world.large[0] >> 3 : high >> 3 : 512].tobytes(),
        memory.keyids[low >> 12 : high >> 12].tobytes(),
    )


def difference(then: tuple[Any, ...], now: tuple[Any, ...]) -> str:
    """What has changed between two pictures, for a person."""
    found = []
    for before, after in zip(then, now, strict=True):
        if before != after:
            if isinstance(before, dict) and isinstance(after, dict):
                keys = [key for key in before.keys() | after.keys() if before.get(key) != after.get(key)]
                found.append(", ".join(f"{key}: {before.get(key)!r} -> {after.get(key)!r}"[:400] for key in keys))
            elif isinstance(before, bytes) and isinstance(after, bytes):
                places = [at for at, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
                found.append(f"{len(places)} bytes of {len(before)}, from {places[0]:#x}")
            else:
                found.append(f"{before!r} -> {after!r}"[:400])
    return "; ".join(found)
