# SPDX-License-Identifier: GPL-2.0-or-later
"""A whole distribution to its login prompt: ``script/bench distribution``. Debian 13 with systemd, from a disk.

The disk is that of ``script/debian-disk``. A TD and an ordinary VM of ours have it, and an ordinary VM of QEMU's TCG
where that is installed, all with the same firmware, memory and number of processors. Each run gets a copy of the disk,
since a distribution writes to it when it starts; QEMU makes its own (snapshot=on). Runs alternate.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from testing.taken import Taken, taken_until

TEXT = "debian login:"
TIME_AIM = 1.0
_PATIENCE_SECONDS = 900.0
_MEMORY = "1G"


def contenders(firmware: Path, disk: Path, copy: Path, processors: int) -> dict[str, list[str]]:
    """What to start, by who runs it; ours use ``copy``."""
    own = [sys.executable, "-c", "from swtdx.cli import main; main()", "run", "--firmware", str(firmware)]
    own += ["--memory", _MEMORY, "--cpus", str(processors), "--timeout", "0", "--until", TEXT, "--disk", str(copy)]
    found = {"TD": own, "TD, 2 MiB pages": [*own, "--kernel-release", "next"], "VM": [*own, "--vm-type", "default"]}
    qemu = shutil.which("qemu-system-x86_64")
    if qemu:
        base = [qemu, "-accel", "tcg", "-machine", "q35", "-cpu", "max", "-m", _MEMORY, "-smp", str(processors)]
        base += ["-bios", str(firmware), "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
        found["QEMU TCG"] = [*base, "-drive", f"file={disk},format=raw,if=virtio,snapshot=on"]
    return found


def _median(runs: list[Taken], name: str) -> float:
    ended = [getattr(run, name) for run in runs if run.ended]
    return statistics.median(ended) if ended else float("nan")


def main(repetitions: int, processors: int = 2) -> int:
    """Print a line for each contender; 2 where there is no disk."""
    from swtdx.image.firmware import find_firmware

    disk = Path(os.environ.get("SWTDX_DEBIAN", "")) / "debian.img"
    if not disk.is_file():
        print("script/bench: no disk: script/debian-disk makes one and prints SWTDX_DEBIAN", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="swtdx-bench-", dir=disk.parent) as folder:
        copy = Path(folder) / "disk.img"
        commands = contenders(find_firmware(None).path, disk, copy, processors)
        runs: dict[str, list[Taken]] = {who: [] for who in commands}
        for _ in range(repetitions):
            for who, command in commands.items():
                subprocess.run(["cp", "--sparse=always", "--reflink=auto", disk, copy], check=True)
                runs[who].append(taken_until(command, TEXT, _PATIENCE_SECONDS))
    print(f"Debian 13 with systemd to its login prompt, {processors} processors; medians of {repetitions} runs")
    print(f"{'':<18}{'s':>9}{'s of CPU':>10}{'most memory':>14}{'CPU to QEMU TCG':>18}")
    peer = _median(runs.get("QEMU TCG", []), "cpu")
    for who, taken in runs.items():
        wall, cpu, resident = (_median(taken, name) for name in ("wall", "cpu", "resident"))
        line = f"{who:<18}{wall:>9.1f}{cpu:>10.1f}{resident / 1024:>10.0f} MiB"
        print(line if who == "QEMU TCG" else f"{line}{cpu / peer:>18.2f}   aim: at most {TIME_AIM}")
        failed = sum(not run.ended for run in taken)
        if failed:
            print(f"  {failed} of {len(taken)} runs did not come to the prompt, and are not in the medians")
    return 0
