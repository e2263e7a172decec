# SPDX-License-Identifier: GPL-2.0-or-later
"""--trace, --json and --html of programs, by both front ends: whole, also of programs that are killed or replaced."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from swtdx.exec.notify import available
from swtdx.trace.event import Event, Ioctl
from swtdx.trace.file import End, read_events
from swtdx.vmm import bare_guest
from tests.conftest import skip
from tests.exec.conftest import Run

Build = Callable[..., Path]
FLAGS = {"preload": (), "notify": ("-static",)}


@pytest.fixture(params=FLAGS)
def flags(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """With which a test's program is compiled: they decide the front end."""
    if request.param == "notify" and (cannot := available()):
        skip(cannot)
    return FLAGS[request.param]


@dataclass
class Outputs:
    """What a run is told to keep."""

    folder: Path

    @property
    def options(self) -> list[str]:
        return [
            *("--trace", str(self.folder / "run.jsonl"), "--json", str(self.folder / "run.json")),
            *("--html", str(self.folder / "run.html")),
        ]

    def record(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "run.json").read_text()))

    def traces(self) -> dict[str, list[object]]:
        """Name -> lines."""
        return {path.name: list(read_events(path)) for path in sorted(self.folder.glob("*.jsonl"))}

    def names(self) -> set[str]:
        return {path.name for path in self.folder.iterdir()}


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    folder = tmp_path / "kept"
    folder.mkdir()
    return Outputs(folder)


@pytest.fixture
def regions(tmp_path: Path) -> Path:
    """The initial memory of a TD that writes two bytes."""
    code = b"".join(bare_guest.io_out(0x80, byte) for byte in b"ok") + bare_guest.io_out(0xF4, 0)
    parts = (struct.pack("<QQ", gpa, len(contents)) + contents for gpa, contents in bare_guest.regions(code))
    path = tmp_path / "regions"
    path.write_bytes(b"".join(parts))
    return path


def test_a_td(compiled: Build, swtdx_exec: Run, flags: tuple[str, ...], outputs: Outputs, regions: Path) -> None:
    program = compiled("td", *flags)
    done = swtdx_exec(program, regions, options=["--quiet", *outputs.options])
    assert (done.returncode, done.stderr) == (0, "")
    assert outputs.names() == {"run.jsonl", "run.json", "run.html"}
    (process,) = outputs.record()["processes"]
    assert process["command"] == [str(program), str(regions)]
    assert process["exited"]
    (td,) = process["tds"]
    assert td["mrtd"].strip("0")
    assert len(td["rtmr"]) == 4
    events = [line for line in outputs.traces()["run.jsonl"] if isinstance(line, Event)]
    assert isinstance(outputs.traces()["run.jsonl"][-1], End)
    assert sum(process["ioctl"].values()) == sum(event.kind == "ioctl" for event in events)
    (slot,) = (event for event in events if event.name == "KVM_SET_USER_MEMORY_REGION2" and event.args["slot"] == 0)
    assert slot.args["memory_size"] == 0x200000, "the structure is the program's"
    exits = [event.out for event in events if isinstance(event, Ioctl) and event.name == "KVM_RUN"]
    assert [found["exit"] for found in exits] == ["IO"] * 3
    page = (outputs.folder / "run.html").read_text()
    assert td["mrtd"] in page
    assert 'aria-label="guest memory by state over time"' in page
    assert str(program) in page


def test_what_failed(compiled: Build, swtdx_exec: Run, flags: tuple[str, ...], outputs: Outputs) -> None:
    """``--quiet`` takes the sentence from standard error, and not from the record."""
    for options in ([], ["--quiet"]):
        done = swtdx_exec(compiled("descriptors", *flags), "calls", options=[*options, *outputs.options])
        assert ("unknown request" in done.stderr.lower() or "is not" in done.stderr) != bool(options)
        refused = outputs.record()["processes"][0]["refused"]
        assert {"ENOTTY", "EINVAL"} <= {each["errno"] for each in refused}
        assert all(each["reason"] and each["count"] >= 1 for each in refused)
        for name in ("run.jsonl", "run.json", "run.html"):
            (outputs.folder / name).unlink()


def test_several_processes(compiled: Build, swtdx_exec: Run, flags: tuple[str, ...], outputs: Outputs) -> None:
    done = swtdx_exec(compiled("tree", *flags), "ten", options=outputs.options)
    assert (done.stdout, done.returncode, done.stderr) == ("programs that ran a guest: 10\n", 0, "")
    processes = outputs.record()["processes"]
    traces = outputs.traces()
    assert len(traces) == len(processes)
    assert sum(process["vms"] for process in processes) == 20
    assert all(process["exited"] for process in processes)
    assert all(isinstance(lines[-1], End) for lines in traces.values())
    assert {Path(process["trace"]).name for process in processes} == set(traces)
    if len(processes) > 1:
        assert f"one of {len(processes)}" in (outputs.folder / "run.html").read_text()


def test_a_program_that_executes_another(
    compiled: Build, swtdx_exec: Run, flags: tuple[str, ...], outputs: Outputs
) -> None:
    """Three times, with one process id: nothing of the earlier ones is lost."""
    done = swtdx_exec(compiled("tree", *flags), "chained", "3", options=outputs.options)
    assert (done.stdout, done.returncode, done.stderr) == ("chained\n", 0, "")
    processes = outputs.record()["processes"]
    assert sum(process["vms"] for process in processes) == 4
    assert sum(process["exit"].get("HLT", 0) + process["ioctl"]["KVM_RUN"] > 0 for process in processes) == len(
        processes
    )
    assert sum(process["ioctl"]["KVM_CREATE_VM"] for process in processes) == 4
    made = [event for lines in outputs.traces().values() for event in lines if getattr(event, "name", "") == "KVM_RUN"]
    assert len(made) == 8, "two for each"


def _started(program: Path, outputs: Outputs) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "swtdx", "exec", "--quiet", *outputs.options, "--", str(program), "lasts"]
    started = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "lasts\n"
    time.sleep(2.5)
    return started


def _program_of(program: Path) -> int:
    """The process that runs it."""
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.readlink(f"/proc/{name}/exe") == str(program):
                return int(name)
        except OSError:
            continue
    raise AssertionError("it does not run")


def test_a_program_that_is_killed(compiled: Build, flags: tuple[str, ...], outputs: Outputs) -> None:
    """All but the last second is there, and every file is whole."""
    program = compiled("tree", *flags)
    with _started(program, outputs) as started:
        os.kill(_program_of(program), signal.SIGKILL)
        assert started.wait(30) == 137
        assert started.stderr is not None
        assert started.stderr.read() == ""
    assert outputs.names() == {"run.jsonl", "run.json", "run.html"}
    (process,) = outputs.record()["processes"]
    assert process["vms"] == 1
    assert process["ioctl"]["KVM_RUN"] > 10
    events = [line for line in outputs.traces()["run.jsonl"] if isinstance(line, Event)]
    assert sum(event.name == "KVM_RUN" for event in events) > 10
    assert "</html>" in (outputs.folder / "run.html").read_text()


def test_the_command_that_is_killed(compiled: Build, flags: tuple[str, ...], outputs: Outputs) -> None:
    """No process is left that could write --json and --html: no half of them is there. The trace is readable."""
    program = compiled("tree", *flags)
    with _started(program, outputs) as started:
        started.kill()
        started.wait(30)
    left = {path.name for path in outputs.folder.iterdir() if path.stat().st_size}
    assert left == {"run.jsonl"}
    assert any(getattr(line, "name", "") == "KVM_RUN" for line in outputs.traces()["run.jsonl"])


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".json", ""])
def test_other_names(compiled: Build, swtdx_exec: Run, flags: tuple[str, ...], outputs: Outputs, suffix: str) -> None:
    done = swtdx_exec(compiled("tree", *flags), "chained", "1", options=["--trace", str(outputs.folder / f"a{suffix}")])
    assert (done.stdout, done.returncode, done.stderr) == ("chained\n", 0, "")
    for path in outputs.folder.iterdir():
        assert path.name.startswith("a")
        assert path.name.endswith(suffix)
        assert list(read_events(path))
