# SPDX-License-Identifier: GPL-2.0-or-later
"""What the size of a guest costs: ``script/bench size``. Linux to user space with little memory and with much.

Of each run there are the seconds until the text stands on the console, the processor seconds that it took, and the
most memory that the process had. A guest touches more when it has more, its own memory map first of all: 16 MiB a GiB.
Runs alternate, so that whatever else the machine does meets all alike.
"""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from testing.taken import Taken, taken_until

SIZES = "512M", "8G", "64G"
TEXT = "in user space after"
TIME_AIM = 1.3
_PATIENCE_SECONDS = 600.0
_WAYS = {
    "TD, through the firmware": [],
    "TD, without firmware, 2 MiB pages": ["--firmware", "none", "--kernel-release", "next"],
    "VM, without firmware": ["--firmware", "none", "--vm-type", "default"],
}


@dataclass
class Row:
    """One way to start and one size."""

    way: str
    size: str
    command: list[str]
    runs: list[Taken] = field(default_factory=list)

    def line(self, smallest: Row) -> str:
        """Return the row as text; ``smallest`` is that of the smallest size, started in the same way."""
        wall, cpu, resident = self._medians()
        text = f"{self.way:<36}{self.size:>6}{wall:>9.1f}{cpu:>9.1f}{resident / 1024:>9.0f} MiB"
        if self is not smallest:
            text += f"{cpu / smallest._medians()[1]:>8.2f} times   aim: at most {TIME_AIM}"
        return text

    def _medians(self) -> tuple[float, float, float]:
        ended = [run for run in self.runs if run.ended]
        if not ended:
            return float("nan"), float("nan"), float("nan")
        wall, cpu = (statistics.median(getattr(run, name) for run in ended) for name in ("wall", "cpu"))
        return wall, cpu, statistics.median(run.resident for run in ended)


def rows(linux: Path, sizes: Sequence[str] = SIZES) -> list[Row]:
    """Return what to run. Raises FileNotFoundError without a kernel."""
    kernel = max(linux.glob("boot/vmlinuz-*"), default=None)
    if kernel is None:
        raise FileNotFoundError(f"{linux} has no boot/vmlinuz-*")
    own = [sys.executable, "-c", "from swtdx.cli import main; main()", "run", "--timeout", "0"]
    own += ["--kernel", str(kernel), "--initrd", str(linux / "initrd.img"), "--append", "console=ttyS0 quiet"]
    return [
        Row(way, size, [*own, "--memory", size, *options, "--until", TEXT])
        for way, options in _WAYS.items()
        for size in sizes
    ]


def main(repetitions: int) -> int:
    """Print the rows; 2 where something is missing."""
    try:
        found = rows(Path(os.environ.get("SWTDX_LINUX", "")))
    except FileNotFoundError as error:
        print(f"script/bench: {error}", file=sys.stderr)
        return 2
    print(f"Linux to user space; medians of {repetitions} runs; the ratio is of processor seconds")
    print(f"{'':<42}{'s':>9}{'s of CPU':>9}{'most memory':>13}")
    for _ in range(repetitions):
        for row in found:
            row.runs.append(taken_until(row.command, TEXT, _PATIENCE_SECONDS))
    for row in found:
        print(row.line(next(other for other in found if other.way == row.way)))
    return 0
