# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx exec`` keeps of a command: ``--trace``, ``--json``, ``--html``.

The processes of the command write traces and summaries themselves (`swtdx.exec.record`). The files of ``--json`` and
``--html`` are made from them when the command has ended, whatever it ended of.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import swtdx
from swtdx.cli.output import Output, OutputError, Outputs
from swtdx.cli.writing import complain
from swtdx.exec.settings import Settings
from swtdx.trace.event import Event
from swtdx.trace.file import TraceError, TraceFormat, read_events
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
        if self._trace is not None:
            _make_way(self._trace)
        for option, path in self._paths.items():
            if path is not None:
                self._open[option] = self._outputs.open(option, path)
        if self._open:
            self._folder = tempfile.mkdtemp(prefix="swtdx-record-")
            Path(self._folder).chmod(0o1777)  # a service of another user writes its part, too
        return self

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
        if "--html" in self._open:
            text = self._page(record, processes)
            if text:
                self._open["--html"].replace(text.encode("utf-8", "replace"))

    def _processes(self) -> list[dict[str, Any]]:
        found = []
        for path in sorted(Path(self._folder).glob("*.json")):
            try:
                found.append(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):  # of a process that ended in the middle
                continue
        return sorted(found, key=lambda process: -len(process["tds"]))

    def _page(self, record: dict[str, Any], processes: list[dict[str, Any]]) -> str:
        history = RunHistory()
        try:
            for line in read_events(Path(self._settings.trace)):
                if isinstance(line, Event):
                    history.add(line)
        except FileNotFoundError:
            complain("no process opened /dev/kvm: there is nothing to show with --html")
            return ""
        except (OSError, TraceError) as error:
            complain(f"--html: {error}")
            return ""
        tds = [td for process in processes for td in process["tds"]]
        release = KernelRelease(record["kernel_release"])
        history.record = {
            "vm_type": "tdx" if tds else "default",
            "text": " ".join(self._command),
            "subtitle": f"under swtdx exec, {release.words}; exit status {record['status']}",
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
