# SPDX-License-Identifier: GPL-2.0-or-later
"""Reserved bits of the guest's page tables in KVM's walk: a #PF with PFEC.RSVD, as __reset_rsvds_bits_mask has them.

SDM volume 3, 4.3 to 4.5: of an address the bits from MAXPHYADDR on, in PAE paging also 62:52, which IA-32e paging
ignores; bit 63 without NXE; bit 7 where no page can be mapped; address bits below the size of a page. MAXPHYADDR is the
guest's (reserved_gpa_bits), whatever the processor's is.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from swtdx.linux.arch.x86.kvm.mmu import paging_tmpl
from swtdx.x86 import Cr0, Cr4, Efer

CR3, PRESENT_WRITABLE_USER, PAGE, RSVD = 0x1000, 7, 0x7000, 1 | 8
WIDTH = 40
"""MAXPHYADDR of the guest."""
IA32E = {"cr4": int(Cr4.PAE), "efer": int(Efer.LMA | Efer.NXE), "levels": 4}
LA57 = {"cr4": int(Cr4.PAE | Cr4.LA57), "efer": int(Efer.LMA | Efer.NXE), "levels": 5}
PAE = {"cr4": int(Cr4.PAE), "efer": int(Efer.NXE), "levels": 3}
LEGACY = {"cr4": int(Cr4.PSE), "efer": 0, "levels": 2}
LARGE = 1 << 7
M = 1 << WIDTH


def cases() -> list[Any]:
    """(paging, level of the entry, whether it maps a page there, bits set in it, whether they are reserved)."""
    found = []
    for name, mode, levels in (("4 levels", IA32E, 4), ("5 levels", LA57, 5)):
        for level in range(1, levels + 1):
            for page in {1: [True], 2: [False, True], 3: [False, True]}.get(level, [False]):
                for bits, reserved in (
                    *((M, True), (1 << 51, True), (M >> 1, False), (1 << 52, False), (1 << 58, False)),
                    *((1 << 63, False), (1 << 62, False)),
                ):
                    found.append((name, mode, level, page, bits, reserved))
        for level in range(4, levels + 1):
            found.append((name, mode, level, False, LARGE, True))
        found += [(name, mode, 2, True, 1 << bit, bit != 12) for bit in (12, 13, 20)]
        found += [(name, mode, 3, True, 1 << bit, bit != 12) for bit in (12, 13, 29)]
    for level, page in ((1, True), (2, False), (2, True)):
        of_pae = ((M, True), (1 << 51, True), (1 << 52, True), (1 << 62, True), (M >> 1, False), (1 << 63, False))
        found += [("PAE", PAE, level, page, each, reserved) for each, reserved in of_pae]
    found += [("PAE", PAE, 2, True, 1 << bit, bit != 12) for bit in (12, 13, 20)]
    found += [("PAE", PAE, 3, False, bit, False) for bit in (M, 1 << 52, 1 << 5)]  # the load of CR3 finds these
    found += [("32 bits", LEGACY, 2, True, 1 << bit, bit >= 17) for bit in (12, 13, 16, 17, 21)]
    found += [("32 bits", LEGACY | {"cr4": 0}, 2, False, bits, False) for bits in (LARGE, LARGE | 1 << 21)]
    return [pytest.param(*case, id=f"{case[0]}, level {case[2]}{' page' * case[3]}, {case[4]:#x}") for case in found]


def context(mode: dict[str, int], **more: int) -> Any:
    return SimpleNamespace(cr0=int(Cr0.PG | Cr0.PE), cr3=CR3, rflags=0, pkru=0, **(mode | more))


def vcpu(width: int = WIDTH) -> Any:
    cpuid = SimpleNamespace(reserved_gpa_bits=(1 << 64) - (1 << width))
    return SimpleNamespace(kvm=None, cpuid=cpuid)


def tables(monkeypatch: pytest.MonkeyPatch, mode: dict[str, int], at: int, page: bool, bits: int) -> None:
    """A table of each level in its own page, entry 0 used; the entry of level ``at`` has ``bits`` beside."""
    levels = mode["levels"]
    entries = {}
    for level in range(levels, 0, -1):
        target = PAGE << 4 if level == 1 or (level == at and page) else CR3 + 0x1000 * (levels - level + 1)
        rights = 1 if mode is PAE and level == 3 else PRESENT_WRITABLE_USER
        entry = (0 if level == at and page and level > 1 else target) | rights
        if level == at:
            entry |= bits | (LARGE if page and level > 1 else 0)
        entries[CR3 + 0x1000 * (levels - level)] = entry

    def entry_at(kvm: Any, gpa: int, size: int) -> int:
        # Where bits of an address are no fault they lead elsewhere: to the same tables, so that the walk ends.
        return entries.get(gpa & 0xFFFFF, 0)

    monkeypatch.setattr(paging_tmpl, "_entry", entry_at)


@pytest.mark.parametrize(("name", "mode", "level", "page", "bits", "reserved"), cases())
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_an_access(
    name: str,
    mode: dict[str, int],
    level: int,
    page: bool,
    bits: int,
    reserved: bool,
    write: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables(monkeypatch, mode, level, page, bits)
    gpa, error = paging_tmpl.access(vcpu(), context(mode), 0, write=write, user=True, implicit=False)
    assert (gpa is None) is reserved
    assert error == (RSVD | 4 | write << 1 if reserved else 0)
    assert (paging_tmpl.walk(vcpu(), context(mode), 0) is None) is reserved


@pytest.mark.parametrize("mode", [IA32E, LA57, PAE], ids=["4 levels", "5 levels", "PAE"])
def test_the_last_bit_is_reserved_without_nxe_and_a_fetch_says_so(
    mode: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables(monkeypatch, mode, 1, True, 1 << 63)
    without = context(mode, efer=mode["efer"] & ~int(Efer.NXE))
    assert paging_tmpl.access(vcpu(), without, 0, write=False, user=False, implicit=False) == (None, RSVD)
    assert paging_tmpl.fetch_access(vcpu(), without, 0, user=True) == (None, RSVD | 4)
    tables(monkeypatch, mode, 1, True, M)
    assert paging_tmpl.fetch_access(vcpu(), context(mode), 0, user=True) == (None, RSVD | 4 | 16)


@pytest.mark.parametrize("width", [36, 46, 52])
@pytest.mark.parametrize("mode", [IA32E, PAE], ids=["4 levels", "PAE"])
def test_the_width_is_that_of_the_guest(mode: dict[str, int], width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for bit in (36, 45, 46, 51):
        tables(monkeypatch, mode, 1, True, 1 << bit)
        gpa, _ = paging_tmpl.access(vcpu(width), context(mode), 0, write=False, user=False, implicit=False)
        assert (gpa is None) is (bit >= width)
    tables(monkeypatch, mode, 1, True, 1 << 52)
    gpa, _ = paging_tmpl.access(vcpu(width), context(mode), 0, write=False, user=False, implicit=False)
    assert (gpa is None) is (mode is PAE)


def test_a_reserved_bit_of_an_entry_that_is_not_present_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    tables(monkeypatch, IA32E, 1, True, M)
    monkeypatch.setattr(paging_tmpl, "_entry", lambda kvm, gpa, size: M)
    assert paging_tmpl.access(vcpu(), context(IA32E), 0, write=False, user=False, implicit=False) == (None, 0)
