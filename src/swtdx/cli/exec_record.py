# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx exec`` keeps of a command: ``--trace``, ``--json``, ``--html``.

The processes of the command write traces and summaries themselves (`swtdx.exec.record`). The files of ``--json`` and
``--html`` are made from them when the command has ended, whatever it ended of.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import swtdx
from swtdx.cli.output import Output, OutputError, Outputs
from swtdx.cli.writing import complain
from swtdx.exec.settings import Settings
from swtdx.trace.event import KINDS, Event
from swtdx.trace.file import TraceError, read_events
from swtdx.trace.format import TraceFormat
from swtdx.trace.history import RunHistory
from swtdx.trace.html import page
from swtdx.uapi.release import KernelRelease


class Keeper:
    """The outputs of one ``swtdx exec``; a context manager around the command's life."""

    def __init__(
        self, command: list[str], trace: Path | None, form: TraceFormat, html: Path | None, record: Path | None
    ) -> None:
        self._command = command
        self._form = form
        self._paths = {"--html": html, "--json": record}
        self._trace = trace
        self._outputs = Outputs(stdout=False)
        self._open: dict[str, Output] = {}
        self._folder = ""
        self._settings = Settings()

    def __enter__(self) -> Keeper:
        self._outputs.__enter__()
        self._check_names()
        if self._trace is not None:
            _make_way(self._trace)
        for option, path in self._paths.items():
            if path is not None:
                self._open[option] = self._outputs.open(option, path)
        if self._open:
            self._folder = tempfile.mkdtemp(prefix="swtdx-record-")
            Path(self._folder).chmod(0o1777)  # a service of another user writes its part, too
        return self

    def _check_names(self) -> None:
        """Refuse one file for two outputs, and standard output, which is the program's. Raises `OutputError`."""
        named: dict[str, str] = {}
        for option, path in {"--trace": self._trace, **self._paths}.items():
            if path is None:
                continue
            if str(path) == "-":
                raise OutputError(f"{option} -: standard output is COMMAND's. Name a file")
            if path.is_dir() or path.is_char_device() or path.is_fifo():
                continue  # a device may be named twice
            for file in _named_by(self._command):
                if path.exists() and path.samefile(file):
                    raise OutputError(f"{option} {path} is the same file as {file}, which COMMAND names")
            other = named.setdefault(os.path.realpath(path), option)
            if other != option:
                raise OutputError(f"{other} and {option} name the same file, {path}")

    def settings(self, settings: Settings) -> Settings:
        """Return ``settings`` with what is to be kept."""
        trace, form = self._trace, self._form
        if trace is None and "--html" in self._open:
            trace, form = Path(self._folder) / "trace.jsonl", TraceFormat.jsonl
        self._settings = replace(
            settings, trace=str(trace.absolute()) if trace else "", trace_format=form.value, record=self._folder
        )
        return self._settings

    def done(self, status: int) -> None:
        """The command has ended: write the files."""
        if not self._open:
            return
        self._outputs.begin()
        processes = self._processes()
        page = self._page(processes, status) if "--html" in self._open else ""
        for process in processes:
            if process["trace"].startswith(self._folder):
                process["trace"] = ""  # it goes with the folder
        record = {
            "swtdx": swtdx.__version__,
            "command": self._command,
            "status": status,
            "kernel_release": self._settings.kernel_release,
            "dialect": KernelRelease(self._settings.kernel_release).dialect_name,
            "module_version": self._settings.module_version,
            "processes": processes,
        }
        if "--json" in self._open:
            self._open["--json"].replace((json.dumps(record, indent=2) + "\n").encode())
        if page:
            self._open["--html"].replace(page.encode("utf-8", "replace"))

    def _processes(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(Path(self._folder).glob("*.json")):
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):  # of a process that ended in the middle
                continue
        return sorted(found, key=lambda process: -len(process["tds"]))

    def _page(self, processes: list[dict[str, Any]], status: int) -> str:
        """The page of the process with most to show: one with a TD, of these the one with most events."""
        traced = [process for process in processes if process["trace"]]
        if not traced:
            complain("no process opened /dev/kvm: there is nothing to show with --html")
            return ""
        shown = max(traced, key=lambda process: (len(process["tds"]), _events(process)))
        history = RunHistory()
        try:
            for line in read_events(Path(shown["trace"])):
                if isinstance(line, Event):
                    history.add(line)
        except (OSError, TraceError) as error:
            complain(f"--html: {error}")
            return ""
        tds = shown["tds"]
        release = KernelRelease(self._settings.kernel_release)
        others = f"; process {shown['pid']}, one of {len(traced)}" if len(traced) > 1 else ""
        history.record = {
            "vm_type": "tdx" if tds else "default",
            "text": " ".join(shown["command"]),
            "subtitle": f"under swtdx exec, {release.words}; exit status {status}{others}",
            **({"mrtd": tds[-1]["mrtd"], "rtmr": tds[-1]["rtmr"], "mrtd_source": "the TDX module"} if tds else {}),
        }
        history.finish()
        return page(history)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._outputs.__exit__(kind, error, trace)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)


def _events(process: dict[str, Any]) -> int:
    """Return how many events a process has had."""
    return sum(sum(process.get(kind, {}).values()) for kind in KINDS)


def _named_by(command: list[str]) -> Iterator[Path]:
    """Yield the files that a command line names: its program, and arguments as in ``-drive if=virtio,file=d.img``."""
    program = shutil.which(command[0]) if command else None
    for text in [program or "", *(piece for argument in command[1:] for piece in re.split("[=,]", argument))]:
        try:
            if text and os.path.isfile(text):
                yield Path(text)
        except ValueError:  # a null byte
            continue


def _make_way(path: Path) -> None:
    """Remove an earlier trace, so that the first process can create it. Raises `OutputError`.

    What is not a regular file is refused: root would remove a device.
    """
    if path.exists() and not path.is_file():
        raise OutputError(f"--trace {path} is not a regular file: every process of the command makes a file of its own")
    try:
        path.unlink(missing_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        path.unlink()
    except OSError as error:
        raise OutputError(f"--trace {path} cannot be written: {error.strerror}") from None
