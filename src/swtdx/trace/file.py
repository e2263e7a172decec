# SPDX-License-Identifier: GPL-2.0-or-later
"""A trace in a file: written while a machine runs, read back for a summary or a report.

Two formats.  JSON lines: a line ``{"kind": "trace", ...}`` that says what it is, a line for each event, and at the end
a line ``{"kind": "end", "record": ...}`` with all that ``--json`` keeps of a run.  Chrome's trace format, for Perfetto
(https://ui.perfetto.dev) and chrome://tracing: an array of slices; the threads of the VMM with their ioctls and
SEAMCALLs are one process, the virtual CPUs with guest execution, exits and TDCALLs another.

In a file times are microseconds since the trace began. A name that ends in ``.gz`` is compressed.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import swtdx
from swtdx.trace.batch import Repeated
from swtdx.trace.event import Event, Exit, Injected, Syscall, Tdcall, from_json
from swtdx.trace.format import TraceFormat

VERSION = 1

_VMM, _GUEST = 1, 2

_LONGEST_HEAD, _LONGEST_LINE = 1 << 20, 256 << 20  # bytes; the last line holds the whole console
_NOT_VALID = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""What reading JSON raises that is damaged, nested too deeply, or not what it should be."""
_HELD_BYTES = 8192  # written at once
_SLICE_DETAILS = ("args", "out", "on", "status", "text", "errno", "lp")
_encode = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class TraceError(Exception):
    """A file is not a valid trace; the text is one sentence for a person."""


class Destination(Protocol):
    """Where a trace is written. ``problem`` is set when a write has failed; later writes are dropped."""

    path: Path
    problem: OSError | None

    def write(self, data: bytes | memoryview) -> int: ...


@dataclass(frozen=True)
class Head:
    """The first line: which swtdx wrote the trace, and for which command. Of Chrome's format nothing is known."""

    swtdx: str = ""
    command: tuple[str, ...] = ()


@dataclass(frozen=True)
class End:
    """The last line: how many events there are, and the record of the run, if it has one."""

    events: int
    record: dict[str, Any] | None = None


@dataclass(frozen=True)
class CutOff:
    """What stands for the last line of a trace that does not end. ``why`` follows the file's name in a sentence."""

    why: str


_CUT_LINE = CutOff("is cut off in its last line")
_NO_END = CutOff("has no end: the run was killed, or is not over")
Line = Head | Event | End | CutOff


class TraceWriter:
    """A trace being written; `emit` may be called from any thread. ``origin`` is the time 0, in nanoseconds.

    A name that ends in ``.gz`` is compressed. What cannot be written is the output's to report.
    """

    def __init__(self, output: Destination, form: TraceFormat, command: list[str], origin: int | None = None) -> None:
        self._output = output
        compressed = output.path.suffix == ".gz"
        self._file = cast(BinaryIO, gzip.GzipFile("", "wb", 1, cast(BinaryIO, output)) if compressed else output)
        self._compressed = compressed
        self._held = bytearray()
        self._closed = False
        self._format = form
        self._lock = threading.Lock()
        self._origin = time.perf_counter_ns() if origin is None else origin
        self._tracks: set[tuple[int, int]] = set()
        self._events = 0
        head = {"kind": "trace", "version": VERSION, "swtdx": swtdx.__version__, "command": command}
        if form is TraceFormat.jsonl:
            self._write(_encode({**head, "pid": os.getpid()}) + "\n")
        else:
            self._write("[\n" + _encode(_metadata("process_name", _VMM, 0, "swtdx")))
            self._write(",\n" + _encode(_metadata("process_name", _GUEST, 0, "guest")))

    @property
    def events(self) -> int:
        """How many there have been."""
        return self._events

    def emit(self, event: Event) -> None:
        """Write one event."""
        if self._output.problem is not None:
            return
        if self._format is TraceFormat.jsonl:
            text = _encode(event.as_json(self._origin)) + "\n"
        else:
            text = "".join(",\n" + _encode(slice) for slice in self._slices(event))
        with self._lock:
            if not self._closed:  # a thread of the kernel may come late
                self._write(text)
                self._events += 1

    def emit_all(self, batch: Repeated) -> None:
        """Write events that come many at a time."""
        if self._output.problem is not None:
            return
        tracks = ""
        if self._format is TraceFormat.jsonl:
            text = batch.text(lambda event: [event.as_json(self._origin)], after="\n")
        else:
            tracks = "".join(",\n" + _encode(slice) for event in batch.events for slice in self._new_track(event))
            text = batch.text(self._slices, before=",\n")
        with self._lock:
            if not self._closed:
                self._write(tracks + text)
                self._events += batch.times * len(batch.events)

    def flush(self) -> None:
        """Write what is held back, so that a reader finds it, and an end by a signal does not take it."""
        with self._lock:
            if not self._closed and self._held:
                self._file.write(bytes(self._held))
                self._held.clear()
                if self._compressed:
                    self._file.flush()

    def close(self, record: dict[str, Any] | None = None) -> None:
        """Finish the trace; ``record`` is what is known of the run."""
        with self._lock:
            self._closed = True
            if self._format is TraceFormat.jsonl:
                self._write(_encode({"kind": "end", "events": self._events, "record": record}) + "\n")
            else:
                self._write("\n]\n")
            self._file.write(bytes(self._held))
            if self._compressed:
                self._file.close()  # the compressor alone: the output below stays open

    def _write(self, text: str) -> None:
        self._held += text.encode("utf-8", "replace")
        if len(self._held) >= _HELD_BYTES:
            self._file.write(bytes(self._held))
            self._held.clear()

    def _new_track(self, event: Event) -> Iterator[dict[str, Any]]:
        """Name the track of an event, if it is the first one there."""
        process, track, name = _place(event)
        if (process, track) not in self._tracks:
            self._tracks.add((process, track))
            yield _metadata("thread_name", process, track, name)

    def _slices(self, event: Event) -> Iterator[dict[str, Any]]:
        yield from self._new_track(event)
        process, track, _ = _place(event)
        line = event.as_json(self._origin)
        began, place = line["t"], {"pid": process, "tid": track}
        if isinstance(event, Exit):
            ran = line["guest"]
            yield {"name": "guest", "cat": "guest", "ph": "X", "ts": began - ran, "dur": ran, **place}
        details = {name: line[name] for name in _SLICE_DETAILS if name in line}
        slice = {"name": event.name, "cat": event.kind, "ph": "X", "ts": began, "dur": line["dur"]}
        if isinstance(event, Injected):
            slice |= {"ph": "i", "s": "t"}
        yield {**slice, **place, "args": details}


def _place(event: Event) -> tuple[int, int, str]:
    """Return process, track and the track's name."""
    if isinstance(event, Tdcall | Exit | Injected):
        return _GUEST, event.vcpu + 1, f"vCPU {event.vcpu}"
    return _VMM, event.tid, _thread_name(event)


def _thread_name(event: Event) -> str:
    """What to call a thread of the VMM by its first event: a vCPU's begins with entering the guest."""
    if event.tid == os.getpid():
        return "main thread"
    if isinstance(event, Syscall) and event.name == "KVM_RUN" and event.on:
        return f"{event.on} thread"
    return f"thread {event.tid}"


def _metadata(name: str, process: int, track: int, text: str) -> dict[str, Any]:
    return {"name": name, "ph": "M", "pid": process, "tid": track, "args": {"name": text}}


def read_events(path: Path) -> Iterator[Line]:
    """Read a trace in either format, with the first and the last line of JSON lines; Chrome's has no details of them.

    Raises OSError; `TraceError` for what is not a valid trace. One that does not end, of a run that was killed or whose
    disk was full, has `CutOff` as its last.
    """
    with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
        lines = _lines(path, file)
        first = next(lines, b"")
        if first.strip() == b"[":
            yield Head()
            yield from _chrome_events(path, lines)
            return
        try:
            head = json.loads(first)
            version, command = head["version"], tuple(map(str, head.get("command", ())))
            is_trace = head["kind"] == "trace"
        except _NOT_VALID:
            is_trace = False
        if not is_trace:
            raise TraceError(f"{path} is not a trace of swtdx run --trace")
        if version != VERSION:
            raise TraceError(f"{path} is a trace of version {version}, this swtdx reads {VERSION}")
        yield Head(str(head.get("swtdx", "")), command)
        last: Line = Head()
        for number, line in enumerate(lines, 2):
            if not line.endswith(b"\n"):
                yield _CUT_LINE
                return
            last = _line(path, number, line)
            yield last
        if not isinstance(last, End):
            yield _NO_END


def _lines(path: Path, file: BinaryIO) -> Iterator[bytes]:
    """The lines of a file that may be anything, also endless. Raises OSError, `TraceError`."""
    longest = _LONGEST_HEAD
    while True:
        try:
            line = file.readline(longest + 1)
        except EOFError:  # a compressed file that is cut off
            return
        except (gzip.BadGzipFile, zlib.error):
            raise TraceError(f"{path} is not a trace of swtdx run --trace: its compressed data is damaged") from None
        if not line:
            return
        if len(line) > longest:
            raise TraceError(f"{path} is not a trace of swtdx run --trace: it has a line of more than {longest} bytes")
        yield line
        longest = _LONGEST_LINE


def _line(path: Path, number: int, line: bytes) -> Event | End:
    try:
        found = json.loads(line)
        if found["kind"] == "end":
            return End(found.get("events", 0), found.get("record"))
        return from_json(found)
    except _NOT_VALID:
        raise TraceError(f"{path}: line {number} is not a valid event") from None


def _chrome_events(path: Path, lines: Iterator[bytes]) -> Iterator[Event | CutOff]:
    guest = 0.0
    line, ended = b"\n", False
    for number, line in enumerate(lines, 2):
        text = line.strip().strip(b",")
        ended = ended or text == b"]"
        if not text or text == b"]" or not line.endswith(b"\n"):
            continue
        try:
            slice = json.loads(text)
            if slice["ph"] == "M":
                continue
            if slice["cat"] == "guest":
                guest = slice["dur"]
                continue
            found = {"kind": slice["cat"], "name": slice["name"], "t": slice["ts"], "dur": slice.get("dur", 0)}
            found |= slice.get("args", {})
            if found["kind"] == Exit.kind:
                found["guest"], guest = guest, 0.0
            event = from_json(found)
        except _NOT_VALID:
            raise TraceError(f"{path}: line {number} is not a slice of a trace") from None
        yield event
    if not ended:
        yield _NO_END if line.endswith(b"\n") else _CUT_LINE
