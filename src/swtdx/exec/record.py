# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of a program's use of KVM: its trace, and a summary of each process.

A process writes both while it runs: every second, and whenever something is settled: a TD is finalised, a descriptor is
closed, another program is executed, the process exits. So both are there, as far as they go, when a process is killed.

The first process that opens /dev/kvm writes the trace under the name given; another one adds its process id to it.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtdx.exec.settings import Settings
from swtdx.linux.arch.x86.kvm.x86.vm_ioctl import VmFile
from swtdx.linux.kept_file import KeptFile
from swtdx.trace.batch import Repeated, Sink
from swtdx.trace.event import Event
from swtdx.trace.file import TraceWriter
from swtdx.trace.format import TraceFormat

if TYPE_CHECKING:
    from swtdx.machine import MachineKernel

_SAVE_NS = 1_000_000_000
KINDS = ("ioctl", "syscall", "seamcall", "tdcall", "exit", "event")


class TraceFile:
    """Where a trace is written (`swtdx.trace.file.Destination`). ``problem`` is set when a write has failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: OSError | None = None
        new, again = os.O_WRONLY | os.O_CREAT | os.O_EXCL, os.O_WRONLY | os.O_APPEND
        for self.path in _names(path):
            with suppress(FileExistsError):
                self._file = KeptFile(self.path, new, again=again)
                return

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``."""
        rest = memoryview(data)
        try:
            fd = self._file.fd()
            while rest:
                rest = rest[os.write(fd, rest) :]
        except OSError as problem:
            self.problem = problem
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""


def _names(path: Path) -> Iterator[Path]:
    """Yield what a trace may be called. A process that executes another program keeps its number."""
    yield path
    stem, suffix = path.name.removesuffix(".gz"), ".gz" if path.suffix == ".gz" else ""
    stem, dot, kind = stem.rpartition(".") if "." in stem[1:] else (stem, "", "")
    for number in count(1):
        yield path.with_name(f"{stem}.{os.getpid()}{f'-{number}' if number > 1 else ''}{dot}{kind}{suffix}")


class Record:
    """The record of one process, or of a server for all the programs that it serves.

    ``command``: the words of the program, if the process is not the program's own.
    """

    def __init__(self, settings: Settings, command: Sequence[str] | None = None) -> None:
        self._settings = settings
        self._command = list(command) if command is not None else _command_line()
        self._writer: TraceWriter | None = None
        self._trace = ""
        self._counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._tds: dict[int, dict[str, Any]] = {}
        self._injections: list[dict[str, Any]] = []
        self._vms = 0
        self._started = time.time()
        self._finished = False
        self._next = 0
        self._saving = threading.Lock()

    @property
    def sink(self) -> Sink:
        """What takes the events."""
        return Sink(self.emit, self.emit_all)

    @property
    def wanted(self) -> bool:
        """Whether anything is to be kept, so that the machine must be watched."""
        return bool(self._settings.trace or self._settings.record)

    def begin(self) -> None:
        """The process opens /dev/kvm. Raises OSError where the trace cannot be written."""
        if self._settings.trace:
            file = TraceFile(Path(self._settings.trace))
            form = TraceFormat.chrome if self._settings.trace_format == "chrome" else TraceFormat.jsonl
            self._writer = TraceWriter(file, form, self._command)
            self._trace = str(file.path)
        self._save()

    def emit(self, event: Event) -> None:
        """Take an event, from any thread."""
        self._counts[event.kind][event.name] += 1
        if event.name == "KVM_CREATE_VM" and event.succeeded:
            self._vms += 1
        if self._writer is not None:
            self._writer.emit(event)
        self._save_at(event.t)

    def emit_all(self, batch: Repeated) -> None:
        """Take events that come many at a time: none is an ioctl."""
        for event in batch.events:
            self._counts[event.kind][event.name] += batch.times
        if self._writer is not None:
            self._writer.emit_all(batch)
        self._save_at(time.perf_counter_ns())

    def _save_at(self, now: int) -> None:
        """Save now and then, so that a process that is killed leaves all but its last second."""
        if now > self._next:
            self._next = now + _SAVE_NS
            self.flush()
            self._save()

    def refused(self, ioctl: str, errno: str, reason: str) -> None:
        """Note that an ioctl has failed."""
        self._refused[ioctl, errno, reason] += 1

    def settle(self, machine: MachineKernel) -> None:
        """Note the measurements of all TDs, and write the summary; and what there is of the trace."""
        self.flush()
        if not self._settings.record:
            return
        self._injections = machine.injections()
        for fd, file in list(machine.files.by_fd.items()):
            if not isinstance(file, VmFile) or file.kvm is None:
                continue
            with suppress(OSError):  # not a TD, or gone
                td = machine.inspect_td(fd)
                if td["mrtd"].strip("0") or file.kvm.number not in self._tds:
                    self._tds[file.kvm.number] = td
        self._save()

    def flush(self) -> None:
        """Write what is held back of the trace."""
        if self._writer is not None:
            self._writer.flush()

    def finish(self) -> None:
        """The process exits."""
        self._finished = True
        self._save()
        if self._writer is not None:
            self._writer.close(None)

    def _save(self) -> None:
        if self._settings.record:
            with self._saving:
                self._write()

    def _write(self) -> None:
        record = {
            "pid": os.getpid(),
            "command": self._command,
            "seconds": round(time.time() - self._started, 3),
            "exited": self._finished,
            "trace": self._trace,
            "vms": self._vms,
            "tds": [
                {name: td[name] for name in ("mrtd", "rtmr", "rtmr_events", "module_version")}
                for td in self._tds.values()
            ],
            "refused": [
                {"ioctl": ioctl, "errno": errno, "reason": reason, "count": count}
                for (ioctl, errno, reason), count in self._refused.items()
            ],
            **({"injections": self._injections} if self._injections else {}),
            **{kind: dict(counts.most_common()) for kind, counts in self._counts.items()},
        }
        path = Path(self._settings.record) / f"{os.getpid()}-{self._started}.json"
        part = path.with_suffix(".part")
        with suppress(OSError):  # the command that asked for it has ended
            part.write_text(json.dumps(record), encoding="utf-8")
            part.replace(path)


def _command_line() -> list[str]:
    with suppress(OSError), open("/proc/self/cmdline", "rb") as file:
        return [word.decode("utf-8", "replace") for word in file.read().split(b"\0")[:-1]]
    return []
