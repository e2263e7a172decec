# SPDX-License-Identifier: GPL-2.0-or-later
"""What a snapshot saves: ``script/bench snapshot``. Linux as a TD of 512 MiB at its shell, restored again and again.

Processor seconds do not depend on what else the machine does; the others do.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from swtdx.cli.fuzzed_guest import Settings, open_guest
from swtdx.fuzzing.guest import Guest, Limits
from testing.taken import taken_until

PROMPT = "swtdx#"
BEFORE_PROMPT = "in user space after"
WRITTEN = 0, 8, 32
"""MiB that the guest writes to a file in its memory."""
_MS_AIM, _RESETS_AIM, _START_AIM = 20.0, 50.0, 1.0
_SHORT_CALLS = 1
_PATIENCE_SECONDS = 600.0


def kept(linux: Path, folder: Path, text: str) -> Path:
    """Boot, and keep the machine when ``text`` is printed. Raises FileNotFoundError, CalledProcessError."""
    kernel = max(linux.glob("boot/vmlinuz-*"), default=None)
    if kernel is None:
        raise FileNotFoundError(f"{linux} has no boot/vmlinuz-*")
    file = folder / f"{len(text)}.snapshot"
    command = [sys.executable, "-m", "swtdx", "run", "--quiet", "--firmware", "none", "--memory", "512M"]
    command += ["--kernel", str(kernel), "--initrd", str(linux / "initrd.img"), "--append", "console=ttyS0 quiet"]
    command += ["--snapshot-at", text, "--snapshot", str(file), "--timeout", str(_PATIENCE_SECONDS)]
    subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    return file


def restores(snapshot: Path, repetitions: int) -> None:
    """Print what a restore takes after so much was written, and how many there are in a second."""
    settings = Settings(snapshot, Limits(calls=1 << 40, seconds=120.0, until="done\r\n"))
    with ExitStack() as files:
        guest = open_guest(settings, files)
        for size in WRITTEN:
            typed = f"dd if=/dev/urandom of=/x bs=1M count={size} 2>/dev/null; echo do''ne\n"
            guest._typed = typed.encode()
            found = []
            for _ in range(repetitions):
                guest.run(())
                written = _written(guest)
                began = time.process_time()
                assert guest.machine is not None
                guest.machine.restore(guest._snapshot)
                found.append((written, (time.process_time() - began) * 1e3))
            mib, ms = (statistics.median(each[part] for each in found) for part in (0, 1))
            each = f"{ms:9.1f} ms of CPU{ms / mib:8.2f} ms/MiB"
            print(f"restore after {mib:7.1f} MiB written{each}   aim: under {_MS_AIM:g}")
        guest._typed, guest.limits = b"\n", replace(settings.limits, calls=_SHORT_CALLS, until=None)
        runs = 40 * repetitions
        began, computed = time.perf_counter(), time.process_time()
        for _ in range(runs):
            guest.run(())
        wall, cpu = time.perf_counter() - began, time.process_time() - computed
        print(
            f"runs of {_SHORT_CALLS} call, restored before each: {runs / wall:.0f} a second, {runs / cpu:.0f} in a "
            f"second of CPU   aim: at least {_RESETS_AIM:g}"
        )


def _written(guest: Guest) -> float:
    """MiB that differ from the snapshot, or may."""
    snapshot: Any = guest._snapshot
    regions = {id(image): image for image in snapshot.images.values()}
    owners = (guest.machine.vm.kernel.processor.memory, guest.machine.slots.memory)  # type: ignore[union-attr]
    found = {
        id(region): region
        for owner in owners
        for region in getattr(owner, "regions", {}).values()
        if id(region.shown) in regions
    }
    written = sum(length for region in found.values() for _, length in region.written())
    return float(written) / (1 << 20)


def main(repetitions: int) -> int:
    """Print the rows; 2 where something is missing."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            linux = Path(os.environ.get("SWTDX_LINUX", ""))
            restores(kept(linux, Path(folder), PROMPT), repetitions)
            start = kept(linux, Path(folder), BEFORE_PROMPT)
            command = [sys.executable, "-m", "swtdx", "run", "--quiet", "--from", str(start), "--until", PROMPT]
            taken = [taken_until(command, PROMPT, _PATIENCE_SECONDS) for _ in range(repetitions)]
            wall, cpu = (statistics.median(getattr(each, name) for each in taken) for name in ("wall", "cpu"))
            print(f"from a snapshot to the shell: {wall:.2f} s, {cpu:.2f} s of CPU   aim: under {_START_AIM:g}")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        print(f"script/bench: {error}", file=sys.stderr)
        return 2
    return 0
