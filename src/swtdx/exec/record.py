# SPDX-License-Identifier: GPL-2.0-or-later
"""What is kept of a program's use of KVM: its trace, and a summary of each process.

A process writes its trace while it runs, and its summary whenever something in it is settled: a TD is finalised, a
descriptor is closed, the process exits. So both are there, as far as they go, when the process is killed.

The first process that opens /dev/kvm writes the trace under the name given; another one appends its process id.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtdx.exec.settings import Settings
from swtdx.linux.arch.x86.kvm.x86.vm_ioctl import VmFile
from swtdx.trace.event import Event
from swtdx.trace.file import TraceFormat, TraceWriter

if TYPE_CHECKING:
    from swtdx.machine import MachineKernel

KINDS = ("ioctl", "syscall", "seamcall", "tdcall", "exit", "event")


class TraceFile:
    """Where a trace is written (`swtdx.trace.file.Destination`). ``problem`` is set when a write has failed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: OSError | None = None
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL
        try:
            self._fd = os.open(path, flags, 0o666)
        except FileExistsError:
            self.path = path.with_name(f"{path.stem}.{os.getpid()}{path.suffix}")
            self._fd = os.open(self.path, flags, 0o666)

    def write(self, data: bytes | memoryview) -> int:
        """Write all of ``data``."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError as problem:
            self.problem = problem
        return len(data)


class Record:
    """The record of one process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._writer: TraceWriter | None = None
        self._counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self._refused: Counter[tuple[str, str, str]] = Counter()
        self._tds: dict[int, dict[str, Any]] = {}
        self._injections: list[dict[str, Any]] = []
        self._vms = 0
        self._started = time.time()
        self._finished = False

    @property
    def wanted(self) -> bool:
        """Whether anything is to be kept, so that the machine must be watched."""
        return bool(self._settings.trace or self._settings.record)

    def begin(self) -> None:
        """The process opens /dev/kvm. Raises OSError where the trace cannot be written."""
        if self._settings.trace:
            path = Path(self._settings.trace)
            form = TraceFormat.chrome if self._settings.trace_format == "chrome" else TraceFormat.jsonl
            self._writer = TraceWriter(TraceFile(path), form, _command_line())

    def emit(self, event: Event) -> None:
        """Take an event, from any thread."""
        self._counts[event.kind][event.name] += 1
        if self._writer is not None:
            self._writer.emit(event)

    def refused(self, ioctl: str, errno: str, reason: str) -> None:
        """Note that an ioctl has failed."""
        self._refused[ioctl, errno, reason] += 1

    def settle(self, machine: MachineKernel) -> None:
        """Note the measurements of all TDs, and write the summary."""
        if not self._settings.record:
            return
        self._injections = machine.injections()
        for fd, file in list(machine.files.by_fd.items()):
            if not isinstance(file, VmFile) or file.kvm is None:
                continue
            self._vms = max(self._vms, file.kvm.number)
            with suppress(OSError):  # not a TD, or gone
                td = machine.inspect_td(fd)
                if td["mrtd"].strip("0") or file.kvm.number not in self._tds:
                    self._tds[file.kvm.number] = td
        self._save()

    def finish(self) -> None:
        """The process exits."""
        self._finished = True
        if self._settings.record:
            self._save()
        if self._writer is not None:
            self._writer.close(None)

    def _save(self) -> None:
        record = {
            "pid": os.getpid(),
            "command": _command_line(),
            "seconds": round(time.time() - self._started, 3),
            "exited": self._finished,
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
        path = Path(self._settings.record) / f"{os.getpid()}.json"
        part = path.with_suffix(".part")
        with suppress(OSError):  # the command that asked for it has ended
            part.write_text(json.dumps(record), encoding="utf-8")
            part.replace(path)


def _command_line() -> list[str]:
    with open("/proc/self/cmdline", "rb") as file:
        return [word.decode("utf-8", "replace") for word in file.read().split(b"\0")[:-1]]
