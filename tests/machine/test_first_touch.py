# SPDX-License-Identifier: GPL-2.0-or-later
"""The first touch of a page as one step leaves what the long way leaves, and is not taken where anything is unusual."""

from __future__ import annotations

import errno
import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest

from swtdx.cpu._engine import PageRun
from swtdx.cpu.memory import PhysicalMemory
from swtdx.cpu.platform import Platform
from swtdx.linux.arch.x86.kvm.mmu import first_touch
from swtdx.linux.arch.x86.kvm.mmu.tdp_mmu import TdpMmu
from swtdx.linux.arch.x86.kvm.x86.vcpu import Vcpu
from swtdx.linux.virt.kvm import run_struct
from swtdx.machine import MachineKernel, boot
from swtdx.trace.batch import Repeated, Sink
from swtdx.trace.event import Event, Seamcall
from swtdx.uapi.client import Kvm, KvmError
from swtdx.uapi.kvm import Exit
from swtdx.x86 import Gpr
from testing.guest import FRESH, FRESH_PAGES, PAGE_SIZE, Workload
from testing.td import MeasuredTd

PAGES = 40
WAYS = [pytest.param(True, id="one step"), pytest.param(False, id="exit")]


@contextmanager
def running(quick: bool, *, used: int = 0, **options: Any) -> Iterator[tuple[MachineKernel, MeasuredTd]]:
    """``used``: so many pages, with bytes in them, are given back before the TD is made."""
    kernel = boot(platform=Platform(memory_size=1 << 30), **options)
    if not quick:
        kernel.processor.first_touches = None
    pages = [kernel.pages.alloc_page("test") for _ in range(used)]
    for page in pages:
        kernel.processor.memory.raw[page : page + 8] = b"\xff" * 8
        kernel.pages.free_page(page)
    with Kvm(kernel) as device, MeasuredTd(device) as td:
        yield kernel, td


def state(kernel: MachineKernel, td: MeasuredTd) -> dict[str, Any]:
    """All that the two ways could leave otherwise: Secure EPT, metadata, page tables, guest_memfd, counters."""
    (kvm,) = kernel.vms
    (module_td,) = kernel.module.tds.values()
    pamt, mirror = kernel.module.pamt, kvm.mmu.mirror
    assert mirror is not None
    found: dict[str, Any] = {"children": module_td.child_count, "mapped": mirror.mapped}
    for number in range(PAGES):
        gpa = FRESH + number * PAGE_SIZE
        hpa = mirror.lookup(gpa >> 12)
        _, entry, level = module_td.sept.walk(gpa, 0)
        assert hpa is not None
        index, size = pamt.index_of(hpa)
        content = bytes(kernel.processor.memory.raw[hpa : hpa + PAGE_SIZE])
        key = kernel.processor.memory.key_of(hpa) == module_td.hkid
        found[hex(gpa)] = (entry & ~0xFFFFFFFFFF000, level, pamt.type_at(index), size, any(content), key)
    gmem = next(iter(kvm.guest_memfds))
    found["prepared"] = [index for index in range(gmem.length >> 12) if gmem.is_prepared(index)]
    found["VM"], found["vCPU"] = bytes(kvm.stat.values), list(kvm.vcpus[0].stat.values[:12])
    return found


@pytest.mark.parametrize("used", [0, 10 * PAGES + 3000], ids=["fresh pages", "used pages"])
def test_all_ways_leave_the_same(used: int, monkeypatch: pytest.MonkeyPatch) -> None:
    left, taken, steps = [], taken_by_the_processor(monkeypatch), count(monkeypatch)
    for way in ("run", "step", "exit"):
        if way == "step":
            monkeypatch.setattr(first_touch.FirstTouch, "rest", lambda self: None)
        with running(way != "exit", used=used) as (kernel, td):
            td.seconds(Workload.ACCEPT, PAGES)
            left.append(state(kernel, td))
        # The first page of 2 MiB needs a table, and takes the long way. An interrupt of the host ends a run.
        assert sum(taken) + len(steps) == (0 if way == "exit" else PAGES - 1)
        assert (sum(taken) > PAGES // 2) is (way == "run")
        taken.clear()
        steps.clear()
    assert left[0] == left[1] == left[2]


def taken_by_the_processor(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pages each run of the processor has taken."""
    taken: list[int] = []
    settle = first_touch.FirstTouch._settle

    def counted(self: first_touch.FirstTouch, pages: int) -> None:
        taken.append(pages)
        settle(self, pages)

    monkeypatch.setattr(first_touch.FirstTouch, "_settle", counted)
    return taken


def test_a_page_takes_little_of_the_host() -> None:
    """Of 64 GiB a guest accepts 16 million: page tables and books take 44 bytes of each, of which Python has 16."""
    with running(True) as (kernel, td):
        td.seconds(Workload.ACCEPT, 1)
        tracemalloc.start()
        try:
            td.seconds(Workload.ACCEPT, FRESH_PAGES)
            taken, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        (kvm,) = kernel.vms
        assert kvm.mmu.mirror is not None
        assert kvm.mmu.mirror.mapped >= FRESH_PAGES
    assert taken < 40 * FRESH_PAGES


def test_a_run_ends_with_its_2_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = taken_by_the_processor(monkeypatch)
    with running(True) as (_, td):
        td.seconds(Workload.ACCEPT, 512 + PAGES)
    assert sum(taken) > 512
    assert max(taken) <= 510


AFTER = 7
AT_ONCE = ("mmu_lock is held", "the allocator is locked", "the module is locked", "the page has an owner")


@pytest.mark.parametrize(
    "what",
    [
        *AT_ONCE,
        *("another vCPU waits for the CPU", "an NMI waits", "an NMI is queued", "a signal was seen"),
        *("the VM is dead", "a zap keeps vCPUs out", "an interrupt is requested", "immediate_exit"),
        "a mask of signals is set",
        *("the TD's epoch moved", "the module has an NMI", "TLBs are to be flushed", "the TD's limit changes"),
        *("other leaf functions are allowed", "the walk was forgotten", "a page is poisoned", "the leaf is set"),
        *("slots change", "attributes change"),
    ],
)
def test_what_is_unusual_ends_a_run(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes while the processor takes a page, and goes again before that or the next is taken in another way."""
    assert any(ends_a_run(what, monkeypatch) for _ in range(8))


def ends_a_run(what: str, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Try it; False where the host's scheduler interrupted the guest at that very moment."""
    undone: list[Callable[[], None]] = []
    left: list[Any] = []
    expected = asked = 0

    def undo_first(call: Callable[..., Any], position: int) -> Callable[..., Any]:
        def called(*args: Any) -> Any:
            while undone:
                undone.pop()()
                left.append(args[position])
            return call(*args)

        return called

    with running(True) as (kernel, td):

        class Watched(PageRun):
            def __init__(self, *args: Any, locked: Callable[[], bool], **names: Any) -> None:
                super().__init__(*args, locked=lambda: comes() or locked(), **names)

        def comes() -> bool:
            nonlocal asked, expected
            asked += 1
            if asked == AFTER:  # not a number of pages: an interrupt of the host may have ended a run before
                (module_vcpu,) = kernel.module.vcpus.values()
                gpa = module_vcpu.context.gpr[Gpr.RCX]
                expected = gpa if what in AT_ONCE else gpa - PAGE_SIZE
                undone.append(disturb(kernel, what, expected))
            return False

        monkeypatch.setattr(first_touch, "PageRun", Watched)
        monkeypatch.setattr(first_touch.FirstTouch, "__call__", undo_first(first_touch.FirstTouch.__call__, 1))
        monkeypatch.setattr(TdpMmu, "kvm_tdp_page_fault", undo_first(TdpMmu.kvm_tdp_page_fault, 2))
        monkeypatch.setattr(Vcpu, "external_interrupt", undo_first(Vcpu.external_interrupt, 0))
        td.seconds(Workload.ACCEPT, PAGES)
        monkeypatch.undo()
        if not isinstance(left[0], int):
            return False
        assert left == [expected]
        result = state(kernel, td)
    with running(False) as (kernel, td):
        td.seconds(Workload.ACCEPT, PAGES)
        plain = state(kernel, td)
    for name in ("mapped", "children", "prepared"):
        assert result[name] == plain[name]
    return True


def disturb(kernel: MachineKernel, what: str, gpa: int) -> Callable[[], None]:
    """Bring that about while a page is taken, before that at ``gpa`` is; returns what undoes it."""
    (kvm,), (module_td,) = kernel.vms, kernel.module.tds.values()
    (module_vcpu,), mirror = module_td.vcpus, next(iter(kernel.vms)).mmu.mirror
    vcpu, memory, module = kvm.vcpus[0], kernel.processor.memory, kernel.module
    table = mirror and mirror.table_of(gpa >> 12)
    assert table
    if what in ("mmu_lock is held", *UNUSUAL):
        return unusual(kernel, what)
    if what == "the allocator is locked":
        kernel.pages.lock.acquire()
        return kernel.pages.lock.release
    if what == "the module is locked":  # the vCPU waits for it after the exit
        module.lock.acquire()
        threading.Timer(0.05, module.lock.release).start()
        return lambda: None
    items: dict[str, tuple[Any, int, int]] = {
        "the page has an owner": (memory.qwords, module.pamt.index_of(kernel.pages.next_page)[0], 3 << 16),
        "the leaf is set": (table.leaves, gpa >> 12 & 511, PAGE_SIZE),
        "immediate_exit": (vcpu.run, run_struct.IMMEDIATE_EXIT, 1),
    }
    if what in items:
        place, index, value = items[what]
        before, place[index] = place[index], value
        return lambda: place.__setitem__(index, before)
    attributes: dict[str, tuple[Any, str, Any]] = {
        "a mask of signals is set": (vcpu, "sigset", (1 << 64) - 1),
        "an interrupt is requested": (vcpu.tdx.pi_desc, "requests", 1 << 255),
        "the TD's epoch moved": (module_td, "epoch", module_td.epoch + 2),
        "the module has an NMI": (module_vcpu, "pending_nmi", True),
        "TLBs are to be flushed": (module_vcpu, "flush_needed", True),
        "the TD's limit changes": (module_td, "gpa_limit", module_td.gpa_limit - PAGE_SIZE),
        "other leaf functions are allowed": (module_td, "allowed", module_td.allowed | {-1}),
        "the walk was forgotten": (module_td.sept, "range", -1),
        "a page is poisoned": (memory, "poisoned", 1),
        "slots change": (kvm.memslots, "generation", kvm.memslots.generation + 1),
        "attributes change": (kvm.attributes, "generation", kvm.attributes.generation + 1),
    }
    target, name, value = attributes[what]
    before = getattr(target, name)
    setattr(target, name, value)
    return lambda: setattr(target, name, before)


def count(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    taken: list[bool] = []
    call = first_touch.FirstTouch.__call__

    def counted(self: first_touch.FirstTouch, gpa: int, aug: Callable[[int], bool]) -> int:
        done = call(self, gpa, aug)
        if done:
            taken.append(True)
        return done

    monkeypatch.setattr(first_touch.FirstTouch, "__call__", counted)
    return taken


def traced(quick: bool, pages: int, **options: Any) -> list[Event]:
    events: list[Event] = []
    with running(quick, trace=events.append, **options) as (_, td):
        events.clear()
        td.seconds(Workload.ACCEPT, pages)
        return list(events)


@pytest.mark.parametrize("quick", WAYS)
def test_a_trace_has_every_exit_and_every_seamcall(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pages, taken = 512 + PAGES, taken_by_the_processor(monkeypatch)
    events = traced(quick, pages)
    counts = Counter((event.kind, event.name) for event in events)
    assert counts["tdcall", "TDG.MEM.PAGE.ACCEPT"] == 2 * pages
    assert counts["seamcall", "TDH.MEM.PAGE.AUG"] == pages
    calls = counts["tdcall", "TDG.VP.VMCALL"]
    assert counts["exit", "TDCALL"] == 2 * pages + calls
    entries = [event for event in events if event.name == "TDH.VP.ENTER"]
    assert sum(event.text == "exit EPT_VIOLATION" for event in entries if isinstance(event, Seamcall)) == pages
    interrupts = counts["exit", "EXTERNAL_INTERRUPT"]
    assert len(entries) == pages + calls + interrupts
    assert (sum(taken) > pages // 2) is quick


def of_pages(events: list[Event]) -> dict[int, list[Any]]:
    """By page what is told of it, without times; of the operands those that are no place in the host."""
    found: dict[int, list[Any]] = {}
    for before, event in pairwise(events):
        if event.name in ("TDH.MEM.PAGE.AUG", "TDG.MEM.PAGE.ACCEPT"):
            line = event.as_json()
            told: list[Any] = [{name: line[name] for name in line if name not in ("t", "dur", "tid", "args")}]
            told.append({name: value for name, value in line["args"].items() if name != "page"})
            if event.name == "TDG.MEM.PAGE.ACCEPT":
                exit = before.as_json()
                told.append((exit["kind"], exit["name"], exit["args"], event.t == before.t, event.dur == before.dur))
            found.setdefault(event.args["gpa"], []).append(told)
    return found


def test_a_trace_tells_the_same_of_each_page_on_all_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = 512 + PAGES
    run = of_pages(traced(True, pages))
    exits = of_pages(traced(False, pages))
    monkeypatch.setattr(first_touch.FirstTouch, "rest", lambda self: None)
    steps = of_pages(traced(True, pages))
    assert set(exits) == {FRESH + number * PAGE_SIZE for number in range(pages)}
    assert run == exits
    assert steps == exits


def test_pages_that_the_processor_takes_are_told_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, each, many = taken_by_the_processor(monkeypatch), list[Event](), list[Repeated]()
    pages = 512 + PAGES
    with running(True, trace=Sink(each.append, many.append)) as (_, td):
        each.clear()
        many.clear()
        td.seconds(Workload.ACCEPT, pages)
    assert sum(batch.times for batch in many if len(batch.events) == 6) == sum(taken) > pages // 2
    accepted = [event for event in each if event.name == "TDG.MEM.PAGE.ACCEPT"]
    assert len(accepted) == 2 * (pages - sum(taken))


def test_events_of_a_run_of_pages_do_not_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = taken_by_the_processor(monkeypatch)
    events = traced(True, 512 + PAGES)
    assert sum(taken) > 512
    for name in ("TDH.VP.ENTER", "TDH.MEM.PAGE.AUG", "TDG.MEM.PAGE.ACCEPT"):
        of_name = [event for event in events if event.name == name]
        for before, after in pairwise(of_name):
            assert before.t + before.dur <= after.t
    accepted = [event for event in events if event.name == "TDG.MEM.PAGE.ACCEPT"]
    assert all(event.dur >= 0 for event in events)
    assert [event.args["gpa"] for event in accepted[::2]] == [event.args["gpa"] for event in accepted[1::2]]


@pytest.mark.parametrize("quick", WAYS)
def test_a_page_that_is_shared_ends_in_the_same_memory_fault(quick: bool) -> None:
    with running(quick) as (_, td):
        td.seconds(Workload.ACCEPT, PAGES)
        td.vm.set_memory_attributes(FRESH, PAGES * PAGE_SIZE, 0)
        with pytest.raises(KvmError) as caught:
            td.seconds(Workload.ACCEPT, PAGES)
        assert caught.value.errno == errno.EFAULT
        run = td.vcpu.kvm_run
        assert run.exit_reason == Exit.MEMORY_FAULT
        assert (run.memory_fault.gpa, run.memory_fault.size) == (FRESH + (PAGES - 1) * PAGE_SIZE, PAGE_SIZE)


UNUSUAL = (
    *("another vCPU waits for the CPU", "an NMI waits", "an NMI is queued", "a signal was seen", "the VM is dead"),
    "a zap keeps vCPUs out",
)


def unusual(kernel: MachineKernel, what: str) -> Callable[[], None]:
    """Bring that about; returns what undoes it."""
    (kvm,) = kernel.vms
    vcpu = kvm.vcpus[0]
    if what == "mmu_lock is held":
        held, release = threading.Event(), threading.Event()

        def hold() -> None:
            with kvm.mmu.lock:
                held.set()
                release.wait(60)

        threading.Thread(target=hold, daemon=True).start()
        assert held.wait(60)
        return release.set
    target, name, value = {
        "another vCPU waits for the CPU": (kvm.cpus, "waiters", 1),
        "an NMI waits": (vcpu, "nmi_pending", 1),
        "an NMI is queued": (vcpu, "nmi_queued", 1),
        "a signal was seen": (vcpu, "interrupted", True),
        "the VM is dead": (kvm, "dead", True),
        "a zap keeps vCPUs out": (kvm.tdx, "wait_for_sept_zap", True),
    }[what]
    before = getattr(target, name)
    setattr(target, name, value)
    return lambda: setattr(target, name, before)


@pytest.mark.parametrize("what", ["mmu_lock is held", *UNUSUAL])
def test_the_long_way_is_left_what_is_unusual(what: str) -> None:
    with running(True) as (kernel, td):
        td.seconds(Workload.ACCEPT, PAGES)
        (touch,) = (kernel.processor.first_touches or {}).values()
        untouched = FRESH + PAGES * PAGE_SIZE
        before = kernel.pages.in_use
        undo = unusual(kernel, what)
        try:
            assert not touch(untouched, lambda hpa: pytest.fail("nothing may be added"))
        finally:
            undo()
        assert kernel.pages.in_use == before
        assert not touch(untouched, lambda hpa: False)  # the module refuses the page
        mirror = next(iter(kernel.vms)).mmu.mirror
        assert mirror is not None
        assert mirror.lookup(untouched >> 12) is None


def test_nothing_is_left_of_a_td_that_is_gone() -> None:
    with running(True) as (kernel, td):
        assert len(kernel.processor.first_touches or {}) == 1
        td.seconds(Workload.ACCEPT, PAGES)
    assert kernel.processor.first_touches == {}


def test_what_was_found_for_2_mib_is_not_used_after_a_change() -> None:
    """Slot, attributes and guest_memfd are looked up once for 2 MiB: each change of one is seen by the next page."""
    with running(True) as (kernel, td):
        td.seconds(Workload.ACCEPT, PAGES)
        (kvm,) = kernel.vms
        (touch,) = (kernel.processor.first_touches or {}).values()
        pages = iter(range(FRESH + PAGES * PAGE_SIZE, FRESH + 2 * PAGES * PAGE_SIZE, PAGE_SIZE))
        added: list[int] = []

        def aug(hpa: int) -> bool:
            added.append(hpa)
            return False  # nothing is entered into the mirror

        def tried() -> int:
            touch(next(pages), aug)
            return len(added)

        assert tried() == 1
        td.vm.set_memory_attributes(FRESH, 2 * PAGES * PAGE_SIZE, 0)
        assert tried() == 1
        td.vm.set_memory_attributes(FRESH + PAGES * PAGE_SIZE, PAGES * PAGE_SIZE, 8)
        assert tried() == 2
        assert tried() == 3, "2 MiB of which a part is shared"
        assert not touch(FRESH, aug)
        (memfd,) = kvm.guest_memfds
        slot = kvm.memslots.gfn_to_memslot(FRESH >> 12)
        assert slot is not None
        memfd.kvm_gmem_unbind(slot)
        assert tried() == 3
        memfd.kvm_gmem_bind(slot, 0)
        assert tried() == 4
        td.vm.set_user_memory_region2(0, 0, 0, 0, 4, td.memfd, 0)
        assert tried() == 4


def test_an_accepted_page_is_zero_whatever_it_was_before() -> None:
    """A page that was never given out is known to be zero, and is not cleared: no other one is taken for it."""
    with running(True) as (kernel, td):
        used = [kernel.pages.alloc_page("test") for _ in range(PAGES)]
        for page in used[: PAGES // 2]:
            kernel.processor.memory.raw[page : page + 8] = b"\xff" * 8  # as a table of page tables
        for page in used:
            kernel.pages.free_page(page)
        td.seconds(Workload.ACCEPT, PAGES)
        (kvm,) = kernel.vms
        assert kvm.mmu.mirror is not None
        accepted = [kvm.mmu.mirror.lookup((FRESH >> 12) + number) or 0 for number in range(PAGES)]
        assert len({*accepted} & {*used}) == PAGES - 1, "one became a table"
        for hpa in accepted:
            assert not any(kernel.processor.memory.raw[hpa : hpa + PAGE_SIZE])


def test_a_page_that_the_host_writes_before_it_is_accepted_is_zero() -> None:
    memory = PhysicalMemory(1 << 24)
    for write_first in (False, True):
        page = 0x80_0000 + 2 * PAGE_SIZE * write_first
        memory.fresh[page >> 12] = 1
        if write_first:
            memory.write(page - 4, b"\xff" * 8)
        memory.discard_page(page, 0)
        assert not any(memory.raw[page : page + PAGE_SIZE])
        assert not memory.fresh[page >> 12]
