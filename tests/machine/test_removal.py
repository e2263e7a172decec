# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages removed from a TD in one step leave what the long way leaves, and only where nothing is unusual."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from swtdx.cpu.platform import Platform
from swtdx.cpu.processor import Processor
from swtdx.linux.arch.x86.kvm.mmu.removal import remove_at_once
from swtdx.linux.arch.x86.kvm.vmx import tdx_sept
from swtdx.machine import MachineKernel, boot
from swtdx.seam.status import Operand
from swtdx.trace.event import Event
from swtdx.uapi.client import Kvm
from testing.guest import FRESH, PAGE_SIZE, Workload
from testing.td import MeasuredTd

PAGES = 40
"""So many are accepted: of 2 MiB the first ones, the others are holes."""


@contextmanager
def running(**options: Any) -> Iterator[tuple[MachineKernel, MeasuredTd]]:
    kernel = boot(platform=Platform(memory_size=1 << 30), **options)
    with Kvm(kernel) as device, MeasuredTd(device) as td:
        td.seconds(Workload.ACCEPT, PAGES)
        yield kernel, td


def hpas(kernel: MachineKernel) -> list[int]:
    (kvm,) = kernel.vms
    assert kvm.mmu.mirror is not None
    return [kvm.mmu.mirror.lookup((FRESH >> 12) + number) or 0 for number in range(PAGES)]


def state(kernel: MachineKernel, pages: list[int]) -> dict[str, Any]:
    """All that the two ways could leave otherwise. ``pages``: where the guest's memory was."""
    (kvm,), (td,) = kernel.vms, kernel.module.tds.values()
    memory, pamt = kernel.processor.memory, kernel.module.pamt
    assert kvm.mmu.mirror is not None
    (gmem,) = kvm.guest_memfds
    return {
        "entries": [td.sept.walk(FRESH + number * PAGE_SIZE, 0)[1:] for number in range(512)],
        "metadata": [memory.qwords[pamt.index_of(page)[0] + word] for page in pages for word in (0, 1)],
        "keys": [memory.key_of(page) for page in pages],
        "contents": [any(memory.raw[page : page + PAGE_SIZE]) for page in pages],
        "TD": (td.epoch, td.child_count, td.refcount),
        "mirror": (kvm.mmu.mirror.mapped, hpas(kernel)),
        "prepared": [gmem.is_prepared((FRESH >> 12) + number) for number in range(PAGES)],
        "pages": kernel.pages.in_use,
        "VM": bytes(kvm.stat.values),
    }


def long_ways(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The frames that go page by page."""
    found: list[int] = []
    drop = tdx_sept.tdx_sept_drop_private_spte

    def counted(kvm: Any, gpa: int, level: int, page: int) -> Any:
        found.append(gpa)
        return drop(kvm, gpa, level, page)

    monkeypatch.setattr(tdx_sept, "tdx_sept_drop_private_spte", counted)
    return found


def test_both_ways_leave_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    left, removed = [], long_ways(monkeypatch)
    for quick in (True, False):
        if not quick:
            monkeypatch.setattr(Processor, "remove_pages", lambda *_: False)
        with running() as (kernel, td):
            pages = hpas(kernel)
            for page in pages:
                kernel.processor.memory.raw[page : page + 4] = b"text"
            td.seconds(Workload.MAP_SHARED, 1)
            left.append(state(kernel, pages))
            assert len(removed) == (0 if quick else PAGES)
            td.seconds(Workload.MAP_PRIVATE, 1)
            td.seconds(Workload.ACCEPT, PAGES)
            left.append(state(kernel, hpas(kernel)))
    assert left[0] == left[2]
    assert left[1] == left[3]
    assert not any(left[0]["contents"])


def test_a_pending_page_is_removed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = long_ways(monkeypatch)
    with running() as (kernel, td):
        (kvm,) = kernel.vms
        gmem = next(iter(kvm.guest_memfds))
        kvm.mmu.map_private(gmem, (FRESH >> 12) + PAGES, (FRESH >> 12) + PAGES)
        td.seconds(Workload.MAP_SHARED, 1)
        assert not removed
        assert not any(hpas(kernel))


REMOVAL = ("TDH.MEM.RANGE.BLOCK", "TDH.MEM.TRACK", "TDH.MEM.PAGE.REMOVE", "TDH.PHYMEM.PAGE.WBINVD")


@pytest.mark.parametrize("quick", [True, False], ids=["one step", "page by page"])
def test_a_trace_has_every_seamcall(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    removed = long_ways(monkeypatch)
    with running(trace=events.append) as (kernel, td):
        if not quick:
            monkeypatch.setattr(Processor, "remove_pages", lambda *_: False)
        pages = hpas(kernel)
        (module_td,) = kernel.module.tds.values()
        keyid = module_td.hkid << kernel.module.host.hkid_shift
        events.clear()
        td.seconds(Workload.MAP_SHARED, 1)
        calls = [event for event in events if event.name in REMOVAL]
        assert len(removed) == (0 if quick else PAGES)
    assert [event.name for event in calls] == [*REMOVAL] * PAGES
    tdr, level, left = hex(module_td.hpa), 0, {"sept_entry": "0x0", "sept_state": "0x0"}
    expected = []
    for number, page in enumerate(pages):
        operands = {"gpa": hex(FRESH + number * PAGE_SIZE), "level": level, "tdr": tdr}
        expected += [
            (operands, left),
            ({"tdr": tdr}, None),
            (operands, {"page": hex(page), "sept_state": "0x0"}),
            ({"page": hex(page | keyid)}, None),
        ]
    lines = [event.as_json() for event in calls]
    assert [(line["args"], line.get("out")) for line in lines] == expected
    assert {(line["kind"], line["lp"], line["status"], line["text"]) for line in lines} == {
        ("seamcall", 0, "0x0", "SUCCESS")
    }
    for before, after in pairwise(calls):
        assert before.t + before.dur <= after.t


def test_an_injected_status_is_met() -> None:
    with running(inject=["TDH.MEM.PAGE.REMOVE: OPERAND_BUSY @3"]) as (kernel, td):
        td.seconds(Workload.MAP_SHARED, 1)
        assert [each.struck for each in kernel.faults.armed] == [1]


def disturb(kernel: MachineKernel, what: str) -> None:
    (kvm,), (td,) = kernel.vms, kernel.module.tds.values()
    qwords, third = kernel.processor.memory.qwords, hpas(kernel)[3]
    if what == "an entry has the host's mark":  # of a host that waited for its lock
        qwords[td.sept.walk(FRESH + 3 * PAGE_SIZE, 0)[0]] |= 1 << 52
    elif what == "a page is another":
        assert kvm.mmu.mirror is not None
        table = kvm.mmu.mirror.table_of(FRESH >> 12)
        assert table is not None
        table.leaves[3], table.leaves[4] = table.leaves[4], table.leaves[3]
    elif what == "a page's metadata is locked":
        qwords[kernel.module.pamt.index_of(third)[0]] += 1
    elif what == "a lock of the TD is held":
        td.hold(Operand.SEPT_TREE, shared=True)
    elif what == "a vCPU is inside":
        td.refcount[td.epoch & 1] += 1
    elif what == "a page waits for its ADD":
        assert kvm.tdx is not None
        kvm.tdx.premapped.add(1 << 30)


@pytest.mark.parametrize(
    "what",
    [
        *("an entry has the host's mark", "a page is another", "a page's metadata is locked"),
        *("a lock of the TD is held", "a vCPU is inside", "a page waits for its ADD"),
    ],
)
def test_what_is_unusual_changes_nothing(what: str) -> None:
    with running() as (kernel, _):
        (kvm,) = kernel.vms
        pages = hpas(kernel)
        disturb(kernel, what)
        before = state(kernel, pages)
        assert kvm.mmu.mirror is not None
        table = kvm.mmu.mirror.table_of(FRESH >> 12)
        assert table is not None
        with kvm.mmu.lock:
            assert not remove_at_once(kvm, table, list(range(PAGES)))
        assert state(kernel, pages) == before
        repair(kernel, what)


def repair(kernel: MachineKernel, what: str) -> None:
    (kvm,), (td,) = kernel.vms, kernel.module.tds.values()
    if what == "a lock of the TD is held":
        td.let_go(Operand.SEPT_TREE)
    elif what == "a vCPU is inside":
        td.refcount[td.epoch & 1] -= 1
    elif what == "a page's metadata is locked":
        kernel.processor.memory.qwords[kernel.module.pamt.index_of(hpas(kernel)[3])[0]] -= 1
    elif what == "a page waits for its ADD":
        assert kvm.tdx is not None
        kvm.tdx.premapped.clear()
    elif what == "a page is another":
        disturb(kernel, what)
