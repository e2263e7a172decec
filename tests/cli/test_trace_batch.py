# SPDX-License-Identifier: GPL-2.0-or-later
"""Events that come many at a time are written, counted and shown as the same events one by one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swtdx.cli.output import Outputs
from swtdx.cli.recording import Recording
from swtdx.cpu.watched_context import Entry, PagesTaken
from swtdx.exec.record import Record
from swtdx.exec.settings import Settings
from swtdx.seam.traced_module import SeamTracer
from swtdx.trace.batch import Repeated, Sink
from swtdx.trace.event import Column, Event, Ioctl, Seamcall, from_json
from swtdx.trace.file import TraceWriter
from swtdx.trace.format import TraceFormat
from swtdx.trace.history import RunHistory

ORIGIN, GPA, PAGES = 5_000, 0x7FE000, 4
"""The pages lie on both sides of 8 MiB, so in two tables."""


def accepted(times: int = PAGES, apart: int = 3_000) -> Repeated:
    """What a traced machine has to say about so many pages that the processor took, each ``apart`` nanoseconds."""
    found: list[Repeated] = []
    began = [10_000 + number * apart for number in range(times)]
    left, resumed = [time + 701 for time in began], [time + 1_013 for time in began]
    gpa, hpa = ([base + number * 4096 for number in range(times)] for base in (GPA, 0x965000))
    rip = [0xFFFD2A8F + number % 2 for number in range(times)]
    entry = Entry(began=9_000, lp=1, tdvpr=0x109000, tdr=0x101000)
    SeamTracer(Sink(lambda event: None, found.append)).pages_taken(
        PagesTaken(0, 77, entry, began, left, resumed, gpa, hpa, rip)
    )
    (batch,) = found
    return batch


def removed() -> Repeated:
    """As a removal of every second one is told; a sign that means something to "%" is in its text."""
    page = Column([GPA, GPA + 0x2000])
    calls: Any = Seamcall
    began = Column([90_001, 95_003])
    out = {"page": Column([0x965000, 0x967000])}
    of_page = {"gpa": page, "level": 0, "tdr": 1}
    return Repeated((calls("TDH.MEM.PAGE.REMOVE", began, 50, 77, of_page, 0, 0, "100 % \ufffd", out),), 2)


def test_of_each_page_come_the_events_that_it_has_by_itself() -> None:
    """TDG.MEM.PAGE.ACCEPT in the module's ABI: an EPT violation exits to the host, which adds the page."""
    events = list(accepted())
    assert [(event.kind, event.name, getattr(event, "text", "")[:8]) for event in events] == [
        ("seamcall", "TDH.VP.ENTER", "exit EPT"),
        ("seamcall", "TDH.MEM.PAGE.AUG", "SUCCESS"),
        ("exit", "TDCALL", ""),
        ("tdcall", "TDG.MEM.PAGE.ACCEPT", "not done"),
        ("exit", "TDCALL", ""),
        ("tdcall", "TDG.MEM.PAGE.ACCEPT", "SUCCESS"),
    ] * PAGES
    augmented = [event.args for event in events if event.name == "TDH.MEM.PAGE.AUG"]
    pages = [(GPA + number * 4096, 0x965000 + number * 4096) for number in range(PAGES)]
    assert [(args["gpa"], args["page"]) for args in augmented] == pages
    entries = [event for event in events if event.name == "TDH.VP.ENTER"]
    assert entries[0].t == 9_000
    for before, entry in zip(events[5::6], entries[1:], strict=False):
        assert entry.t == before.t, "the guest is entered when the page before is there"
    lines = [event.as_json() for event in events]
    assert {line["lp"] for line in lines if line["kind"] == "seamcall"} == {1, 0}
    assert all(from_json(line).as_json() == line for line in lines)


@pytest.mark.parametrize("form", list(TraceFormat))
@pytest.mark.parametrize("make", [accepted, removed])
def test_a_file_has_the_lines_of_the_events_one_by_one(
    form: TraceFormat, make: Callable[[], Repeated], tmp_path: Path
) -> None:
    paths = tmp_path / "one", tmp_path / "many"
    for path in paths:
        with Outputs() as outputs:
            writer = TraceWriter(outputs.open("--trace", path), form, ["swtdx"], ORIGIN)
            if path.name == "one":
                for event in make():
                    writer.emit(event)
            else:
                writer.emit_all(make())
            assert writer.events == make().times * len(make().events)
            writer.close()
    one, many = ([line.strip(",") for line in path.read_text().splitlines()] for path in paths)
    # In Chrome's format tracks are named before all else; a name may be anywhere.
    assert sorted(one) == sorted(many) if form is TraceFormat.chrome else one == many


SLOT = Ioctl("KVM_SET_USER_MEMORY_REGION2", 6_000, 1, 77, {}, "VM", 0)
SLOT.args = {"slot": 0, "guest_phys_addr": 0, "memory_size": 0x1000000}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("apart", [3_000, 600_000, 7_000_000], ids=["within 10 ms", "half a ms apart", "over 10 ms"])
def test_a_history_is_that_of_the_events_one_by_one(apart: int, frozen: bool) -> None:
    one, many = RunHistory(ORIGIN), RunHistory(ORIGIN)
    batches = accepted(PAGES, apart), accepted(30, apart), removed()
    for history in (one, many):
        history.add(SLOT)
        history.frozen = frozen
    for batch in batches:
        many.add_all(batch)
        for event in batch:
            one.add(event)
    assert many.counts == one.counts
    assert sum(many.counts["tdcall"]["TDG.MEM.PAGE.ACCEPT"].values()) == 2 * (PAGES + 30)
    assert (many.events, many.last, many.tables) == (one.events, one.last, one.tables)
    assert many.tables == ({} if frozen else {(0, 0x600000): 2 + 2 - 1, (0, 0x800000): PAGES - 2 + 28 - 1})
    assert many.slots == one.slots
    assert list(many.tail) == list(one.tail)
    one.finish()
    many.finish()
    assert many.snapshots == one.snapshots


def test_what_a_page_cannot_be_told_of_in_common_is_taken_one_by_one() -> None:
    """TDH.MEM.PAGE.ADD begins runs of pages, one after the other."""
    calls: Any = Seamcall
    added = calls("TDH.MEM.PAGE.ADD", Column([7_000, 8_000]), 1, 77, {"gpa": Column([0, 4096]), "level": 0}, 0, 0)
    history = RunHistory(ORIGIN)
    history.add(SLOT)
    history.add_all(Repeated((added,), 2))
    assert [(run.gpa, run.pages) for run in history.added] == [(0, 2)]
    assert history.tables == {(0, 0): 2}


def test_a_run_and_a_program_count_them(tmp_path: Path) -> None:
    settings = Settings(trace=str(tmp_path / "exec.jsonl"))
    record = Record(settings)
    record.begin()
    record.sink.many(accepted())
    record.finish()
    lines = (tmp_path / "exec.jsonl").read_text().splitlines()
    assert len(lines) == 6 * PAGES + 2
    assert record._counts["tdcall"] == {"TDG.MEM.PAGE.ACCEPT": 2 * PAGES}
    assert record._counts["seamcall"] == {"TDH.VP.ENTER": PAGES, "TDH.MEM.PAGE.AUG": PAGES}
    with Outputs() as outputs:
        recording = Recording(outputs.open("--trace", tmp_path / "run"), TraceFormat.jsonl, None, [])
        recording.sink.many(accepted())  # before the file is empty
        outputs.begin()
        recording.begin()
        recording.sink.many(accepted())
        assert recording.events == 12 * PAGES
        recording.__exit__(None, None, None)


def test_who_takes_single_events_gets_single_events() -> None:
    found: list[Event] = []
    batch = accepted()
    entry = Entry(9_000, 1, 0x109000, 0x101000)
    rows = [[value] for value in (10_000, 10_701, 11_013, GPA, 0x965000, 0xFFFD2A8F)]
    SeamTracer(found.append).pages_taken(PagesTaken(0, 77, entry, *rows))
    assert found == list(batch)[:6]
