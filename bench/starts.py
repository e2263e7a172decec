# SPDX-License-Identifier: GPL-2.0-or-later
"""What a person waits for who types a command: each in a fresh process, beside a Python that does nothing.

The commands alternate, so that a busy machine slows all alike. CPU time is compared: what else runs changes it least.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from swtdx.image.firmware import FirmwareError, find_firmware
from testing import evidence
from testing.places import REPOSITORY

VERSION_AIM = 4.0
"""Times a Python that does nothing."""
COMMAND_AIM = 6.0
WHEEL_AIM = 25.0
"""MiB."""


def commands(folder: Path) -> dict[str, list[str]]:
    """Prepare evidence in ``folder``; return the arguments of swtdx by what the table calls them."""
    run = [sys.executable, "-m", "swtdx"]
    keys = str(folder / "keys")
    (folder / "log").write_bytes(evidence.binary_log((1, 1, b"event", b"event")))
    for words in (
        ["pki", "--pki", keys],
        ["quote", "make", "--pki", keys, "--reportdata", "00", "--output", "quote"],
        ["collateral", "--pki", keys, "--output", "collateral"],
    ):
        subprocess.run([*run, *words, "--quiet"], cwd=folder, check=True, capture_output=True)
    found = {
        "--version": ["--version"],
        "replay": ["replay", "log"],
        "quote verify": ["quote", "verify", "quote", "--collateral", "collateral", "--root", f"{keys}/root-ca.pem"],
    }
    try:
        found["measure"] = ["measure", str(find_firmware().path)]
    except FirmwareError:
        pass  # the table has no row for it
    return found


def _cpu(command: list[str], folder: Path) -> float:
    """Seconds of CPU that a command takes, with Python's bytecode beside the source as an installation has it."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command} ended with status {process.returncode}")
    return used.ru_utime + used.ru_stime


def ratios(repetitions: int) -> dict[str, list[float]]:
    """CPU time of each command over that of ``python -c pass``; ``""`` has the seconds of the latter."""
    console_script = str(Path(sys.executable).with_name("swtdx"))
    with tempfile.TemporaryDirectory(prefix="swtdx-bench-") as name:
        folder = Path(name)
        started = {what: [console_script, *words] for what, words in commands(folder).items()}
        nothing = [sys.executable, "-c", "pass"]
        for command in started.values():
            _cpu(command, folder)  # leaves the bytecode
        idle: list[float] = []
        taken: dict[str, list[float]] = {what: [] for what in started}
        for _ in range(repetitions):
            idle.append(_cpu(nothing, folder))
            for what, command in started.items():
                taken[what].append(_cpu(command, folder))
    least = statistics.median(idle)
    return {"": idle, **{what: [seconds / least for seconds in runs] for what, runs in taken.items()}}


def wheel() -> Path | None:
    """The newest wheel that script/wheel has left in dist/."""
    found = sorted(REPOSITORY.glob("dist/swtdx-*.whl"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None
