# SPDX-License-Identifier: GPL-2.0-or-later
"""What the mirror saves: SEAMCALLs of a fault, none of which reads; and that a fault and a zap do not miss each other.

Expectations: the ABI sheet, section 5.2 (one MEM.SEPT.ADD for each missing level, top down, then one MEM.PAGE.AUG; for
a removal BLOCK, TRACK, REMOVE, WBINVD), and that MEM.SEPT.RD is never used.
"""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest

from swtdx.uapi import kvm as k
from swtdx.uapi import tdx_upstream as up
from tests.linux.conftest import Bench, boot, ept_violation, exits, refused

SIZE = 0x10000
LEVELS = {"the same table": (0x1000, 0), "another 2 MiB": (2 << 20, 1), "another 1 GiB": (1 << 30, 2),
          "another 512 GiB": (1 << 39, 3)}  # fmt: skip


def finalised(bench: Bench, *gpas: int) -> tuple[int, int]:
    """(VM, vCPU) of a TD with 64 KiB of private memory at each address, and nothing mapped."""
    vm = bench.td()
    vcpu = bench.vcpu(vm)
    for slot, gpa in enumerate(gpas):
        bench.memory(vm, gpa, SIZE >> 12, slot=slot)
        bench.keep_slot = [*getattr(bench, "keep_slot", []), bench.user_memory]  # type: ignore[attr-defined]
    bench.command(vm, up.KVM_TDX_FINALIZE_VM)
    bench.module.names()
    return vm, vcpu


def touch(bench: Bench, vcpu: int, *gpas: int) -> list[str]:
    """What the module is asked when the guest touches these private addresses, entries left out."""
    bench.module.answers["VP_ENTER"] = exits(*(ept_violation(gpa) for gpa in gpas))
    bench.ioctl(vcpu, k.KVM_RUN)
    return [name for name in bench.module.names() if name not in ("VP_ENTER", "VP_WR")]


@pytest.mark.parametrize("where", LEVELS)
def test_a_fault_beside_a_mapped_page(bench: Bench, where: str) -> None:
    distance, tables = LEVELS[where]
    _, vcpu = finalised(bench, 0, *([distance] if tables else []))
    assert touch(bench, vcpu, 0) == [*["MEM_SEPT_ADD"] * 3, "MEM_PAGE_AUG"]
    assert touch(bench, vcpu, distance) == [*["MEM_SEPT_ADD"] * tables, "MEM_PAGE_AUG"]
    assert touch(bench, vcpu, distance + 0x1000) == ["MEM_PAGE_AUG"]


def test_a_fault_on_a_page_that_is_there_costs_nothing(bench: Bench) -> None:
    """Another vCPU was quicker, or the guest has not accepted it."""
    _, vcpu = finalised(bench, 0)
    touch(bench, vcpu, 0x3000)
    assert touch(bench, vcpu, 0x3000, 0x3000) == []


def test_a_whole_table_needs_one_call_a_page(bench: Bench) -> None:
    _, vcpu = finalised(bench, 0)
    names = touch(bench, vcpu, *range(0, SIZE, 0x1000))
    assert names == [*["MEM_SEPT_ADD"] * 3, *["MEM_PAGE_AUG"] * 16]


def test_there_and_back(bench: Bench) -> None:
    """Tables stay: a page that was shared for a while is one call; a conversion of what is not mapped is none."""
    vm, vcpu = finalised(bench, 0)
    touch(bench, vcpu, 0, 0x1000)
    bench.attributes(vm, 0, 0x4000, 0)
    removal = ["MEM_RANGE_BLOCK", "MEM_TRACK", "MEM_PAGE_REMOVE", "PHYMEM_PAGE_WBINVD"]
    assert bench.module.names() == removal * 2
    bench.attributes(vm, 0, 0x4000, 8)
    bench.attributes(vm, 0x8000, 0x4000, 0)
    assert bench.module.names() == []
    assert touch(bench, vcpu, 0) == ["MEM_PAGE_AUG"]


class Meanwhile:
    """While the module removes a page, another thread lets its vCPU touch it."""

    def __init__(self, bench: Bench, vcpu: int, gpa: int) -> None:
        self.bench, self.vcpu = bench, vcpu
        self.code: int | None = None
        bench.module.answers["VP_ENTER"] = exits(ept_violation(gpa))
        bench.module.answers["MEM_PAGE_REMOVE"] = [self.remove]
        self.thread = threading.Thread(target=self.touch, daemon=True)
        self.looked = threading.Event()

    def remove(self, args: Any) -> int:
        self.thread.start()
        self.looked.wait(0.2)  # it cannot come in before the page is gone: this runs out
        return 0

    def touch(self) -> None:
        try:
            self.bench.ioctl(self.vcpu, k.KVM_RUN)
        except OSError as error:
            self.code = error.errno
        self.looked.set()

    def outcome(self) -> int | None:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.code


def test_a_fault_while_the_guest_memfd_is_closed_finds_no_page(bench: Bench) -> None:
    _vm, vcpu = finalised(bench, 0)
    touch(bench, vcpu, 0x5000)
    meanwhile = Meanwhile(bench, vcpu, 0x5000)
    bench.kernel.close(bench.gmem)
    assert meanwhile.outcome() == errno.EFAULT
    assert bench.module.names().count("MEM_PAGE_AUG") == 0
    assert bench.kernel.pages.in_use["guest_memfd"] == 0


def test_a_fault_while_a_hole_is_punched_gets_a_new_page(bench: Bench) -> None:
    _vm, vcpu = finalised(bench, 0)
    touch(bench, vcpu, 0x5000)
    meanwhile = Meanwhile(bench, vcpu, 0x5000)
    bench.kernel.fallocate(bench.gmem, 3, 0x5000, 0x1000)
    assert meanwhile.outcome() is None
    assert bench.module.names().count("MEM_PAGE_AUG") == 1
    assert bench.kernel.pages.in_use["guest_memfd"] == 1


def test_a_fault_while_the_page_becomes_shared_is_told_so(bench: Bench) -> None:
    vm, vcpu = finalised(bench, 0)
    touch(bench, vcpu, 0x5000)
    meanwhile = Meanwhile(bench, vcpu, 0x5000)
    bench.attributes(vm, 0x5000, 0x1000, 0)
    assert meanwhile.outcome() == errno.EFAULT
    assert bench.vm_object().mmu.mirror.mapped == 0


def test_a_fault_while_the_slot_is_deleted_finds_none(bench: Bench) -> None:
    vm, vcpu = finalised(bench, 0)
    touch(bench, vcpu, 0x5000)
    meanwhile = Meanwhile(bench, vcpu, 0x5000)
    bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, k.kvm_userspace_memory_region2(slot=0))
    assert meanwhile.outcome() == errno.EFAULT
    assert bench.vm_object().mmu.mirror.mapped == 0


def test_the_deleted_slot_is_gone_for_pre_faults_too(bench: Bench) -> None:
    vm, vcpu = finalised(bench, 0)
    bench.ioctl(vm, k.KVM_SET_USER_MEMORY_REGION2, k.kvm_userspace_memory_region2(slot=0))
    with refused(errno.ENOENT):
        bench.ioctl(vcpu, k.KVM_PRE_FAULT_MEMORY, k.kvm_pre_fault_memory(gpa=0, size=0x1000))


def test_a_zap_looks_at_no_table_beside_its_range() -> None:
    """A guest converts page by page: what one conversion costs must not grow with the memory of the guest."""
    bench = boot()
    _, vcpu = finalised(bench, 0, 1 << 30)
    touch(bench, vcpu, 0x3000, 1 << 30)
    mirror = bench.vm_object().mmu.mirror
    assert mirror is not None
    looked_at: list[int] = []

    class Watched(dict[int, object]):
        def __contains__(self, key: object) -> bool:
            assert isinstance(key, int)
            looked_at.append(key)
            return super().__contains__(key)

        def get(self, key: int, default: object = None) -> object:
            looked_at.append(key)
            return super().get(key, default)

    for page in (mirror.root, *mirror.root.tables.values()):
        page.tables = Watched(page.tables)
    mirror.tdp_mmu_zap_leafs(3, 4)
    assert looked_at == [0, 0]
    assert mirror.lookup(3) is None
    assert mirror.lookup(1 << 18) is not None


@pytest.mark.parametrize(
    ("start", "end", "left"),
    [
        (0, 1, 1),
        (1, 2, 2),
        (0, 1 << 18, 1),
        (1 << 18, 1 << 19, 1),
        (0, 1 << 36, 0),
        (511, 1 << 18, 2),
        (1, 1 << 35, 1),
        (1 << 36, (1 << 36) + 1, 2),
    ],
)
def test_a_zap_takes_what_lies_in_its_range(start: int, end: int, left: int) -> None:
    bench = boot()
    _, vcpu = finalised(bench, 0, 1 << 30)
    touch(bench, vcpu, 0, 1 << 30)
    mirror = bench.vm_object().mmu.mirror
    assert mirror is not None
    mirror.tdp_mmu_zap_leafs(start, end)
    assert mirror.mapped == left
    kept = {gfn for gfn in (0, 1 << 18) if not start <= gfn < end}
    assert {gfn for gfn in (0, 1 << 18) if mirror.lookup(gfn) is not None} == kept
