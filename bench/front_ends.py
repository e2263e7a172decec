# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/bench exec``: what a program pays under `swtdx exec`, by each front end, beside the same calls without it.

One program in C (``front_ends.c``) measures itself; the notify column is its static build.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("front_ends.c")
COLUMNS = ("preload", "notify")
CALLS = 5000


def _measure(command: list[str]) -> dict[str, tuple[float, str]]:
    """Name -> value and unit. Raises CalledProcessError."""
    done = subprocess.run([*command, str(CALLS)], check=True, capture_output=True, text=True, timeout=600)
    lines = (line.split("\t") for line in done.stdout.splitlines())
    return {name: (float(value), unit) for name, value, unit in lines}


def main(runs: int) -> int:
    """Print a table of medians; runs of the columns alternate. Returns an exit status."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        print("bench exec: a C compiler is needed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder:
        commands = {}
        for column, flags in zip(COLUMNS, ([], ["-static"]), strict=True):
            program = f"{folder}/{column}"
            subprocess.run([compiler, "-O2", "-o", program, str(SOURCE), "-lpthread", *flags], check=True)
            commands[column] = [sys.executable, "-m", "swtdx", "exec", "--quiet", "--front-end", column, "--", program]
        taken: dict[str, dict[str, list[float]]] = {}
        units: dict[str, str] = {}
        for _ in range(runs):
            for column, command in commands.items():
                for name, (value, unit) in _measure(command).items():
                    taken.setdefault(name, {}).setdefault(column, []).append(value)
                    units[name] = unit
    print(f"{'median of ' + str(runs):<44}" + "".join(f"{column:>12}" for column in COLUMNS))
    for name, values in taken.items():
        cells = "".join(f"{statistics.median(values[column]):>12,.2f}" for column in COLUMNS)
        print(f"{name:<44}{cells} {units[name]}")
    return 0
