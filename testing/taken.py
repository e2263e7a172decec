# SPDX-License-Identifier: GPL-2.0-or-later
"""What a command takes until it has printed a text: seconds, processor seconds, memory."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Timer


@dataclass(frozen=True)
class Taken:
    """``ended``: the text came. ``resident``: the most memory that the process had, in KiB."""

    ended: bool
    wall: float
    cpu: float
    resident: int


def taken_until(command: Sequence[str], text: str, patience: float) -> Taken:
    """Run a command until the text is on its standard output, it ends, or ``patience`` seconds are over."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    # Popen.kill() would wait for a process that has ended, and its processor time would be lost.
    timer = Timer(patience, os.kill, (process.pid, signal.SIGKILL))
    timer.start()
    assert process.stdout is not None
    printed, wanted, ended = b"", text.encode(), False
    with process.stdout:
        while not ended and (piece := os.read(process.stdout.fileno(), 65536)):
            printed = printed[-len(wanted) :] + piece
            ended = wanted in printed
        wall = time.perf_counter() - begin
        resident = _peak(process.pid)
        timer.cancel()
        timer.join()
        os.kill(process.pid, signal.SIGKILL)
        _, _, usage = os.wait4(process.pid, 0)
        process.returncode = 0  # it has been waited for
    return Taken(ended, wall, usage.ru_utime + usage.ru_stime, resident)


def _peak(pid: int) -> int:
    """KiB; 0 if the process has ended. rusage's maximum begins with that of the process that forked."""
    status = Path("/proc", str(pid), "status").read_text(encoding="ascii", errors="replace")
    found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else 0
