# SPDX-License-Identifier: GPL-2.0-or-later
"""Run programs side by side, each with a time limit, and collect how they ended and what they printed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

KEPT_BYTES = 1 << 20
END_SECONDS = 5


class Status(StrEnum):
    PASS = "pass"
    SKIP = "skip"
    FAIL = "fail"
    TIMEOUT = "timeout"
    NOT_BUILT = "not built"


BAD = frozenset((Status.FAIL, Status.TIMEOUT))


class InputError(Exception):
    """What the caller named cannot be used; the message is one sentence for a person."""


@dataclass(frozen=True)
class Program:
    """A test: its name in the table, its command, and how long it may take."""

    name: str
    command: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit status (minus a signal's number), or None if time was up."""

    status: int | None
    output: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    status: Status
    reason: str = ""
    seconds: float = 0.0
    output: str = field(default="", repr=False)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started: its process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)
            if number == signal.SIGKILL:
                return


def run_once(command: Sequence[str], seconds: float, environment: Mapping[str, str]) -> Ended:
    """Run a command in a folder of its own, in a process group of its own."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="swtdx-kvmtest-") as folder, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=folder,
            env=dict(environment), start_new_session=True,
        )  # fmt: skip
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
        output.seek(max(0, output.seek(0, os.SEEK_END) - KEPT_BYTES))
        text = output.read().decode(errors="replace")
    return Ended(status, text, time.monotonic() - started)


def run_all(
    programs: Iterable[Program], judge: Callable[[Ended], Outcome], jobs: int, environment: Mapping[str, str]
) -> dict[str, Outcome]:
    """Return the outcome of each program by its name. Progress goes to standard error."""

    def run(program: Program) -> tuple[str, Outcome]:
        outcome = judge(run_once(program.command, program.seconds, environment))
        print(f"{outcome.seconds:6.1f} s  {program.name}: {outcome.status}", file=sys.stderr, flush=True)
        return program.name, outcome

    with ThreadPoolExecutor(jobs) as pool:
        return dict(pool.map(run, programs))


def swtdx_exec(*options: str) -> tuple[str, ...]:
    """Return the words that run a command on the emulated kernel."""
    return (str(Path(sys.executable).with_name("swtdx")), "exec", *options, "--")
