# SPDX-License-Identifier: GPL-2.0-or-later
"""Trace files: what is written can be read back, in both formats, whole or cut off; and their summary."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swtdx.cli.output import Outputs
from swtdx.cpu.platform import Platform
from swtdx.machine import open_kernel
from swtdx.trace.event import CLASSES, Event, Ioctl
from swtdx.trace.file import CutOff, End, Head, TraceError, TraceWriter, _thread_name, read_events
from swtdx.trace.format import TraceFormat
from swtdx.uapi.client import Kvm
from testing import guest
from testing.td import MeasuredTd
from tests.cli.conftest import Command
from tests.vmm.fake_kernel import FakeKernel, port_out


def event(kind: str, name: str, t: int, dur: int, **more: Any) -> Event:
    return CLASSES[kind](name, t, dur, 5, more.pop("args"), **more)


EVENTS = [
    event("ioctl", "KVM_RUN", 2_000, 10_000, on="vCPU 0", args={}, result=0),
    event("ioctl", "KVM_RUN", 13_000, 30_000, on="vCPU 0", args={}, errno="EINTR"),
    event("ioctl", "KVM_MEMORY_ENCRYPT_OP", 1_000, 500, on="VM", args={"command": "KVM_TDX_INIT_VM"}, result=0),
    event("seamcall", "TDH.MEM.PAGE.AUG", 3_000, 100, args={}, status=0x8000020000000092, text="OPERAND_BUSY"),
    event("exit", "TDCALL", 8_000, 1_000, vcpu=0, guest=4_000, args={}),
    event("tdcall", "TDG.VP.VMCALL", 8_000, 1_000, vcpu=0, args={"function": "MapGPA"}, status=0),
    event("event", "#VE", 9_000, 0, vcpu=0, args={}),
]


def written(path: Path, form: TraceFormat = TraceFormat.jsonl) -> Path:
    with Outputs() as outputs:
        writer = TraceWriter(outputs.open("--trace", path), form, ["swtdx", "run"], origin=1_000)
        for each in EVENTS:
            writer.emit(each)
        writer.close({"outcome": "a test"})
    return path


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    if name.endswith("gz"):
        assert gzip.decompress(path.read_bytes()).startswith(b'{"kind":"trace"')
    head, *body, end = read_events(path)
    assert isinstance(head, Head)
    assert head.command == ("swtdx", "run")
    assert end == End(len(EVENTS), {"outcome": "a test"})
    assert body == [replace(each, t=each.t - 1_000) for each in EVENTS]  # times count from the origin


def test_in_a_file_times_are_microseconds_and_operands_are_hexadecimal(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in written(tmp_path / "t.jsonl").read_text().splitlines()]
    assert (lines[1]["t"], lines[1]["dur"]) == (1.0, 10.0)
    assert lines[5]["guest"] == 4.0
    assert lines[4]["status"] == "0x8000020000000092"


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_a_file_that_is_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name)
    path.write_bytes(path.read_bytes()[:-30])
    found = list(read_events(path))
    assert [type(found[0]), type(found[-1])] == [Head, CutOff]
    assert len(found) <= len(EVENTS) + 2


@pytest.mark.parametrize("text", [b"", b"not json\n", b'{"kind": "other"}\n', b'{"kind":"trace","version":99}\n'])
def test_what_is_no_trace(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "no.jsonl"
    path.write_bytes(text)
    with pytest.raises(TraceError):
        list(read_events(path))


@pytest.mark.parametrize(
    ("first", "name"),
    [
        (Ioctl("KVM_RUN", 0, 1, 77, {}, on="vCPU 3"), "vCPU 3 thread"),
        (Ioctl("KVM_GET_API_VERSION", 0, 1, os.getpid(), {}, on="/dev/kvm"), "main thread"),
        (Ioctl("KVM_GET_REGS", 0, 1, 78, {}, on="vCPU 3"), "thread 78"),
    ],
)
def test_threads_have_names_that_say_what_they_do(first: Ioctl, name: str) -> None:
    assert _thread_name(first) == name


def test_chrome_format_as_perfetto_reads_it(tmp_path: Path) -> None:
    """The Trace Event Format document: complete events have ts and dur in microseconds, pid and tid; slices nest."""
    slices = json.loads(written(tmp_path / "t.json", TraceFormat.chrome).read_text())
    complete = [s for s in slices if s["ph"] == "X"]
    assert all({"name", "cat", "ts", "dur", "pid", "tid"} <= set(s) for s in complete)
    assert {s["ph"] for s in slices} == {"X", "M", "i"}
    names = {(s["pid"], s["tid"]): s["args"]["name"] for s in slices if s["name"] == "thread_name"}
    assert names == {(1, 5): "vCPU 0 thread", (2, 1): "vCPU 0"}
    (ran,) = (s for s in complete if s["name"] == "guest")
    assert (ran["ts"], ran["dur"], ran["pid"]) == (3.0, 4.0, 2)


def test_slices_of_one_track_nest(tmp_path: Path) -> None:
    """On one track a slice begins after the one before has ended, or ends no later than it."""
    path = tmp_path / "t.json"
    outputs = Outputs()
    writer = TraceWriter(outputs.open("--trace", path), TraceFormat.chrome, [])
    kernel = open_kernel("emulated", platform=Platform(memory_size=2 << 30), trace=writer.emit)
    with Kvm(kernel) as device, MeasuredTd(device) as td:
        td.seconds(guest.Workload.IO_EXIT, 50)
    writer.close()
    slices = [s for s in json.loads(path.read_text()) if s["ph"] == "X"]
    for track in {(s["pid"], s["tid"]) for s in slices}:
        open_until: list[float] = []
        own = sorted((s["ts"], -s["dur"]) for s in slices if (s["pid"], s["tid"]) == track)
        for begin, minus in own:
            while open_until and open_until[-1] <= begin + 0.001:
                open_until.pop()
            assert not open_until or begin - minus <= open_until[-1] + 0.002, track
            open_until.append(begin - minus)


@pytest.mark.parametrize("form", list(TraceFormat))
def test_summary(command: Command, tmp_path: Path, form: TraceFormat) -> None:
    path = written(tmp_path / "trace", form)
    result = command("trace", "summary", path, "--json")
    assert result.status == 0
    found = json.loads(result.out)
    run = found["by_kind"]["ioctl"]["by_name"]["KVM_RUN"]
    assert run == {
        "count": 2,
        "total_us": 40.0,
        "mean_us": 20.0,
        "longest_us": 30.0,
        "failed": 1,
        "errors": {"EINTR": 1},
    }
    assert found["by_kind"]["ioctl"]["by_name"]["KVM_TDX_INIT_VM"]["count"] == 1
    assert found["by_kind"]["seamcall"]["by_name"]["TDH.MEM.PAGE.AUG"]["failed"] == 1
    assert "TDG.VP.VMCALL MapGPA" in found["by_kind"]["tdcall"]["by_name"]
    assert found["guest_seconds"] == 4e-6
    assert found["seconds"] == 42e-6  # from the origin to the end of the second KVM_RUN


def test_summary_table_and_kinds(command: Command, tmp_path: Path) -> None:
    path = written(tmp_path / "trace")
    result = command("trace", "summary", path, "--kind", "seamcall")
    assert "TDH.MEM.PAGE.AUG" in result.out
    assert "KVM_RUN" not in result.out
    assert "\x1b" not in result.out + result.err


def cut(path: Path, lines: int, more: int) -> Path:
    """Leave so many whole lines of a trace, and so many bytes of the next one."""
    whole = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(whole[:lines]) + whole[lines][:more])
    return path


@pytest.mark.parametrize("form", list(TraceFormat))
@pytest.mark.parametrize("which", [["trace", "summary"], ["lint"]])
@pytest.mark.parametrize(("more", "why"), [(20, "is cut off in its last line"), (0, "has no end")])
def test_a_trace_without_an_end_is_said(
    command: Command, tmp_path: Path, form: TraceFormat, which: list[str], more: int, why: str
) -> None:
    """A run that was killed, or a full disk: what is there counts, and the reader learns that it is not all."""
    path = cut(written(tmp_path / "t", form), 5, more)
    result = command(*which, path)
    assert result.status == 0
    assert why in result.err
    assert "whole events are read" in result.err


@pytest.mark.parametrize("form", list(TraceFormat))
@pytest.mark.parametrize("which", [["trace", "summary"], ["lint"], ["report", "html"]])
@pytest.mark.parametrize("more", [0, 20])
def test_a_trace_without_a_whole_event_is_refused(
    command: Command, tmp_path: Path, form: TraceFormat, which: list[str], more: int
) -> None:
    path = cut(written(tmp_path / "t", form), 1, more)
    result = command(*which, path)
    assert result.status == 2
    assert "has no whole event" in result.err


@pytest.mark.parametrize("form", list(TraceFormat))
def test_nothing_is_said_of_a_whole_trace(command: Command, tmp_path: Path, form: TraceFormat) -> None:
    assert command("trace", "summary", written(tmp_path / "t", form)).err == ""


def test_a_run_without_events_is_a_whole_trace(command: Command, tmp_path: Path) -> None:
    """As of a program that never opens /dev/kvm."""
    path = tmp_path / "t"
    TraceWriter(Outputs().open("--trace", path), TraceFormat.jsonl, []).close()
    result = command("trace", "summary", path)
    assert (result.status, result.err) == (0, "")


def test_summary_of_what_is_no_trace(command: Command, tmp_path: Path) -> None:
    (tmp_path / "no").write_text("hello\n")
    assert command("trace", "summary", tmp_path / "no").status == 2
    assert command("trace", "summary", tmp_path / "nowhere").status == 3
    assert command("trace", "summary", tmp_path / "no", "--kind", "sorrow").status == 1


def test_run_refuses_a_trace_that_cannot_be_written(command: Command, firmware: Path, tmp_path: Path) -> None:
    result = command("run", "--firmware", firmware, "--trace", tmp_path / "no" / "where")
    assert result.status == 2
    assert "there is no folder" in result.err
    assert command("run", "--firmware", firmware, "--trace", tmp_path).status == 2


def test_a_run_closes_its_trace_with_the_record(
    command: Command, firmware: Path, tmp_path: Path, scripted: Callable[[FakeKernel], FakeKernel]
) -> None:
    scripted(FakeKernel(plays={0: [port_out(0x604, struct.pack("<H", 0x2000), 2)]}))
    result = command("run", "--firmware", firmware, "--trace", tmp_path / "t.jsonl", "--json", tmp_path / "r.json")
    assert result.status == 0
    *_, end = read_events(tmp_path / "t.jsonl")
    assert isinstance(end, End)
    assert end.record == json.loads((tmp_path / "r.json").read_text())


def test_a_full_disk_is_said_and_does_not_end_the_run(
    command: Command, firmware: Path, scripted: Callable[[FakeKernel], FakeKernel]
) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("NOT SHOWN: a trace on a full disk; there is no /dev/full")
    scripted(FakeKernel(plays={0: [port_out(0x604, struct.pack("<H", 0x2000), 2)]}))
    result = command("run", "--firmware", firmware, "--trace", "/dev/full")
    assert result.status == 2
    assert "the guest powered off" in result.err
    assert "--trace /dev/full cannot be written: No space left on device" in result.err


def test_writing_stops_at_the_first_failure() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("NOT SHOWN: a trace on a full disk; there is no /dev/full")
    with Outputs() as outputs:
        writer = TraceWriter(outputs.open("--trace", Path("/dev/full")), TraceFormat.jsonl, [])
        for _ in range(2000):  # more than the file's buffer holds
            writer.emit(EVENTS[0])
        assert outputs.failed
        written = writer.events
        writer.emit(EVENTS[0])
        assert writer.events == written
        writer.close()
