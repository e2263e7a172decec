# SPDX-License-Identifier: GPL-2.0-or-later
"""What became of a run, condensed from the events of its trace: what a page can show, and no more.

Everything follows from events, so that a trace of long ago and a run that is going on give the same history:

* **guest memory** from the slots (KVM_SET_USER_MEMORY_REGION*), the attributes (KVM_SET_MEMORY_ATTRIBUTES, or MapGPA
  where there are none), TDH.MEM.PAGE.ADD, .AUG and .REMOVE, and TDG.MEM.PAGE.ACCEPT: one state for each 4 KiB page, and
  now and then a snapshot of all of them;
* **the Secure EPT** from TDH.MEM.SEPT.ADD, TDH.MEM.PAGE.DEMOTE and the same;
* **the measurement** from TDH.MEM.PAGE.ADD, TDH.MR.EXTEND, TDH.MR.FINALIZE and TDG.MR.RTMR.EXTEND;
* **counts over time** from all of them.

Memory and Secure EPT are kept as they were when the first vCPU was closed: what follows is the taking down.
"""

from __future__ import annotations

import operator
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import pairwise
from typing import Any

from swtdx.trace.batch import Repeated
from swtdx.trace.event import Column, Event, LeafCall, Syscall

PAGE_SHIFT = 12
ROWS = 64
"""Rows of a memory snapshot, over all slots."""
MOST_SNAPSHOTS = 240
LAST_EVENTS = 24
"""How many of the last events are kept as they are."""
_FIRST_INTERVAL = 5_000.0
_BIN = 10_000.0
_PRIVATE = 0x8
_SHARED_BITS = 1 << 47 | 1 << 51


class PageState(IntEnum):
    """What a frame of guest memory is."""

    UNMAPPED = 0
    """Private by attribute, and nothing is there yet."""
    PENDING = 1
    """The host has put a page there, the guest has not accepted it."""
    PRIVATE = 2
    SHARED = 3


@dataclass
class Slot:
    """A memory slot. ``states`` has a byte for each page."""

    gpa: int
    states: bytearray

    @property
    def pages(self) -> int:
        """How many pages of 4 KiB."""
        return len(self.states)


@dataclass
class Added:
    """A run of pages that were added one after the other, and how many pieces of 256 bytes of them were measured."""

    gpa: int
    pages: int
    extended: int


@dataclass(frozen=True)
class Row:
    """What a row of the memory map stands for."""

    gpa: int
    slot: int
    first: int
    last: int


@dataclass
class Snapshot:
    """Memory at ``time`` (µs): for each row of `RunHistory.rows` the number of pages in each state."""

    time: float
    rows: list[tuple[int, int, int, int]]


def _counters() -> dict[str, Counter[int]]:
    return defaultdict(Counter)


@dataclass
class RunHistory:
    """Feed it with `add`, in the order of the trace. Times here are microseconds since ``origin``, in nanoseconds."""

    origin: int = 0
    record: dict[str, Any] | None = None
    slots: dict[int, Slot] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    added: list[Added] = field(default_factory=list)
    extensions: list[tuple[float, int]] = field(default_factory=list)
    """(time, register) of each TDG.MR.RTMR.EXTEND that succeeded."""
    finalized: float | None = None
    tables: dict[tuple[int, int], int] = field(default_factory=dict)
    """Secure EPT tables: (level of the entries in it, GPA) -> number of leaves in it. Level 0 has 4 KiB leaves."""
    counts: dict[str, dict[str, Counter[int]]] = field(default_factory=lambda: defaultdict(_counters))
    """kind -> name -> number in each bin of 10 ms."""
    last: float = 0.0
    now: float = 0.0
    """When the event began that is being taken."""
    events: int = 0
    frozen: bool = False
    tail: deque[Event] = field(default_factory=lambda: deque(maxlen=LAST_EVENTS))
    """The last events, until the first vCPU was closed."""
    _interval: float = _FIRST_INTERVAL
    _next: float = 0.0
    _changed: bool = True
    _attributes: bool = False
    _rows: list[Row] | None = None

    def add(self, event: Event) -> None:
        """Take one event."""
        self.events += 1
        self.now = now = (event.t - self.origin) / 1000
        end = now + event.dur / 1000
        if end > self.last:
            self.last = end
        name = event.name
        shown = f"TDVMCALL {event.args.get('function', '')}" if name == "TDG.VP.VMCALL" else name
        self.counts[event.kind][shown][int(now // _BIN)] += 1
        if self.frozen:
            return
        self.tail.append(event)
        handler = _HANDLERS.get(name)
        if handler is not None and event.succeeded:
            try:
                handler(self, event)
            except KeyError:
                if not isinstance(event, Syscall):  # an ioctl's arguments may lie in memory that cannot be read
                    raise
        if self._changed and end >= self._next and self.slots and not self.frozen:
            self._snapshot(end)

    def add_all(self, batch: Repeated) -> None:
        """Take events that come many at a time, as `add` does each."""
        start = 0
        if all(_HANDLERS.get(event.name, RunHistory._map) is RunHistory._map for event in batch.events):
            while start < batch.times:
                stop = self._before_snapshot(batch, start)
                if stop > start:
                    self._add_rows(batch, start, stop)
                for event in batch.rows(stop, stop + 1):
                    self.add(event)
                start = stop + 1
        for event in batch.rows(start):
            self.add(event)

    def _before_snapshot(self, batch: Repeated, start: int) -> int:
        """Return the first repetition from ``start`` on in which a snapshot may be due, or how many there are."""
        if self.frozen or not self.slots:
            return batch.times
        first = batch.times
        for event in batch.events:
            began, dur = _values(event.t, batch.times), _values(event.dur, batch.times)
            rows = range(start, first)
            ends = ((began[row] - self.origin) / 1000 + dur[row] / 1000 for row in rows)
            first = next((row for row, end in zip(rows, ends, strict=True) if end >= self._next), first)
        return first

    def _add_rows(self, batch: Repeated, start: int, stop: int) -> None:
        """Take repetitions in which no snapshot is due."""
        self.events += (stop - start) * len(batch.events)
        for event in batch.events:
            began = [(time - self.origin) / 1000 for time in _values(event.t, batch.times)[start:stop]]
            durations = _values(event.dur, batch.times)[start:stop]
            ends = map(operator.add, began, [dur / 1000 for dur in durations])
            self.now, self.last = began[-1], max(self.last, *ends)
            count = self.counts[event.kind][event.name]
            if min(began) // _BIN == max(began) // _BIN:
                count[int(self.now // _BIN)] += stop - start
            else:
                count.update(int(time // _BIN) for time in began)
            if event.name in _OF_PAGES and event.succeeded and not self.frozen:
                gpas = _values(event.args["gpa"], batch.times)[start:stop]
                self._map_pages(gpas, event.args["level"], *_OF_PAGES[event.name])
        if not self.frozen:
            self.tail.extend(batch.rows(max(start, stop - -(-LAST_EVENTS // len(batch.events))), stop))

    def finish(self) -> None:
        """The last snapshot, if something changed after the one before."""
        if self._changed and self.slots:
            self._snapshot(self.last)

    @property
    def rows(self) -> list[Row]:
        """What each row of a snapshot stands for: slots one after the other, each with its share of `ROWS`."""
        if self._rows is None:
            self._rows = []
            total = sum(slot.pages for slot in self.slots.values()) or 1
            for number, slot in sorted(self.slots.items(), key=lambda item: item[1].gpa):
                share = max(2, round(ROWS * slot.pages / total))
                edges = [slot.pages * part // share for part in range(share + 1)]
                for first, last in pairwise(edges):
                    if last > first:
                        self._rows.append(Row(slot.gpa + (first << PAGE_SHIFT), number, first, last))
        return self._rows

    def _snapshot(self, time: float) -> None:
        self._changed = False
        self._next = time + self._interval
        rows = []
        for row in self.rows:
            part = self.slots[row.slot].states[row.first : row.last]
            rows.append((part.count(0), part.count(1), part.count(2), part.count(3)))
        self.snapshots.append(Snapshot(time, rows))
        if len(self.snapshots) > MOST_SNAPSHOTS:
            self.snapshots = self.snapshots[::2]
            self._interval *= 2

    # --- Memory -------------------------------------------------------------------------------------------------------

    def _set(self, gpa: int, pages: int, state: PageState, only: PageState | None = None) -> None:
        gpa &= ~_SHARED_BITS
        for slot in self.slots.values():
            first = max(0, (gpa - slot.gpa) >> PAGE_SHIFT)
            last = min(slot.pages, ((gpa - slot.gpa) >> PAGE_SHIFT) + pages)
            if first < last:
                if only is None:
                    slot.states[first:last] = bytes([state]) * (last - first)
                else:
                    slot.states[first:last] = slot.states[first:last].replace(bytes([only]), bytes([state]))
                self._changed = True

    def _region(self, event: Event) -> None:
        args = event.args
        slot, size = args["slot"], args["memory_size"]
        self._rows = None
        self.snapshots.clear()  # their rows are others
        if size:
            self.slots[slot] = Slot(args["guest_phys_addr"], bytearray(size >> PAGE_SHIFT))
        else:
            self.slots.pop(slot, None)
        self._changed = True

    def _attribute(self, event: Event) -> None:
        args = event.args
        self._attributes = True
        gpa, pages = args["address"], args["size"] >> PAGE_SHIFT
        if args["attributes"] & _PRIVATE:
            self._set(gpa, pages, PageState.UNMAPPED, only=PageState.SHARED)
        else:
            self._set(gpa, pages, PageState.SHARED)

    def _vmcall(self, event: Event) -> None:
        """v10 has no attributes: there the guest's request is what converts."""
        args = event.args
        if self._attributes or not isinstance(event, LeafCall) or args.get("function") != "MapGPA":
            return
        if event.out["result"]:
            return
        gpa, pages = args["gpa"], args["size"] >> PAGE_SHIFT
        if gpa & _SHARED_BITS:
            self._set(gpa, pages, PageState.SHARED)
        else:
            self._set(gpa, pages, PageState.UNMAPPED, only=PageState.SHARED)

    def _map(self, event: Event) -> None:
        self._map_pages([event.args["gpa"]], event.args["level"], *_OF_PAGES[event.name])

    def _map_pages(self, gpas: Sequence[int], level: int, state: PageState, change: int) -> None:
        """Set the state of pages of one size, and count the leaves that came or went (``change`` for each)."""
        size = 512**level
        first, pages = gpas[0], 0
        for gpa in gpas:
            if gpa != first + (pages << PAGE_SHIFT):
                self._set(first, pages, state)
                first, pages = gpa, 0
            pages += size
        self._set(first, pages, state)
        if change:
            shift = PAGE_SHIFT + 9 * (level + 1)
            for number, leaves in Counter(gpa >> shift for gpa in gpas).items():
                table = (level, number << shift)
                self.tables[table] = self.tables.get(table, 0) + change * leaves

    def _page_add(self, event: Event) -> None:
        self._map(event)
        gpa = event.args["gpa"]
        run = self.added[-1] if self.added else None
        # A page begins a run of its own where the addresses do not follow, or where measuring begins or ends.
        follows = run is not None and run.gpa + (run.pages << PAGE_SHIFT) == gpa
        if run is not None and follows and run.extended in (0, run.pages * 16):
            run.pages += 1
        else:
            self.added.append(Added(gpa, 1, 0))

    def _extend(self, event: Event) -> None:
        gpa = event.args["gpa"]
        for run in reversed(self.added):
            if run.gpa <= gpa < run.gpa + (run.pages << PAGE_SHIFT):
                if run.extended == 0 and run.pages > 1 and gpa >> PAGE_SHIFT == (run.gpa >> PAGE_SHIFT) + run.pages - 1:
                    run.pages -= 1  # the pages before were not measured: this one is another run
                    run = Added(gpa & -4096, 1, 0)
                    self.added.append(run)
                run.extended += 1
                return

    def _sept_add(self, event: Event) -> None:
        self.tables.setdefault((event.args["level"] - 1, event.args["gpa"]), 0)

    def _sept_remove(self, event: Event) -> None:
        self.tables.pop((event.args["level"] - 1, event.args["gpa"]), None)

    def _demote(self, event: Event) -> None:
        gpa, level = event.args["gpa"], event.args["level"]
        above = (level, gpa & -(1 << PAGE_SHIFT + 9 * (level + 1)))
        self.tables[above] = self.tables.get(above, 0) - 1
        self.tables[level - 1, gpa] = 512

    def _finalize(self, event: Event) -> None:
        self.finalized = self.now

    def _rtmr(self, event: Event) -> None:
        self.extensions.append((self.now, event.args["rtmr"]))

    def _close(self, event: Event) -> None:
        if isinstance(event, Syscall) and event.on.startswith("vCPU"):
            if self._changed and self.slots:
                self._snapshot(self.now)
            self.frozen = True

    def _terminate(self, event: Event) -> None:
        if event.args.get("command") == "KVM_TDX_TERMINATE_VM":
            self.frozen = True


def _values(value: Any, times: int) -> Sequence[Any]:
    """Return the value of each repetition."""
    return value.values if isinstance(value, Column) else [value] * times


_OF_PAGES = {
    "TDH.MEM.PAGE.ADD": (PageState.PRIVATE, 1),
    "TDH.MEM.PAGE.AUG": (PageState.PENDING, 1),
    "TDH.MEM.PAGE.REMOVE": (PageState.UNMAPPED, -1),
    "TDG.MEM.PAGE.ACCEPT": (PageState.PRIVATE, 0),
}
"""What calls do to a page: the state that it gets, and how many leaves more its table has."""
_HANDLERS: dict[str, Callable[[RunHistory, Event], None]] = {
    "KVM_SET_USER_MEMORY_REGION": RunHistory._region,
    "KVM_SET_USER_MEMORY_REGION2": RunHistory._region,
    "KVM_SET_MEMORY_ATTRIBUTES": RunHistory._attribute,
    "KVM_MEMORY_ENCRYPT_OP": RunHistory._terminate,
    "TDH.MEM.PAGE.ADD": RunHistory._page_add,
    "TDH.MEM.PAGE.AUG": RunHistory._map,
    "TDH.MEM.PAGE.REMOVE": RunHistory._map,
    "TDH.MEM.PAGE.DEMOTE": RunHistory._demote,
    "TDH.MEM.SEPT.ADD": RunHistory._sept_add,
    "TDH.MEM.SEPT.REMOVE": RunHistory._sept_remove,
    "TDH.MR.EXTEND": RunHistory._extend,
    "TDH.MR.FINALIZE": RunHistory._finalize,
    "TDG.MEM.PAGE.ACCEPT": RunHistory._map,
    "TDG.MR.RTMR.EXTEND": RunHistory._rtmr,
    "TDG.VP.VMCALL": RunHistory._vmcall,
    "close": RunHistory._close,
}
