# SPDX-License-Identifier: GPL-2.0-or-later
"""Whole boots beside QEMU's TCG, on the same machine in the same run: ``script/bench boot``.

Both run the same firmware, kernel and initrd on one processor. QEMU's is an ordinary VM, since its TCG has no TDX; ours
is a Trust Domain, with everything that this takes, and then an ordinary VM too. Timed is the whole command, from its
start until a text stands on the guest's console, as a person who waits for it would; what the guest measures of itself
is by its own clock. Runs alternate, so that whatever else the machine does meets both alike.

QEMU's processor runs without CMPXCHG16B: in version 7.2 its flags may come from an address, which ends every other boot
of Linux (``native/patches`` has the repair for our engine). Linux needs the instruction for one fast path only.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FIRMWARE_TEXT, LINUX_TEXT, MEASURED_TEXT = "Shell>", "in user space after", "measured processes"
COMMAND_LINE = "console=ttyS0 quiet"
_PATIENCE_SECONDS = 120.0
_PANIC = b"Kernel panic"
_MEASURED = re.compile(r"measured (\w+) ([0-9.]+)")


@dataclass
class Row:
    """One comparison: seconds of each run, by who ran it."""

    name: str
    seconds: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    """A sentence for each run that did not come to its end; the medians are of the others."""

    def median(self, who: str) -> float:
        """Of the runs that came to their end; NaN if none did."""
        runs = self.seconds.get(who, [])
        return statistics.median(runs) if runs else float("nan")


def contenders(firmware: Path, kernel: Path, initrd: Path) -> dict[str, dict[str, list[str]]]:
    """What to start, by who runs it and what is booted."""
    own = [sys.executable, "-c", "from swtdx.cli import main; main()", "run", "--firmware", str(firmware)]
    own += ["--memory", "512M", "--timeout", str(_PATIENCE_SECONDS)]
    ours = ["--kernel", str(kernel), "--initrd", str(initrd)]
    commands = {
        "TD": own,
        "VM": [*own, "--vm-type", "default"],
        "TD, 2 MiB pages": [*own, "--kernel-release", "next"],
    }
    result = {}
    for who, command in commands.items():
        result[who] = {
            "firmware": command,
            "linux": [*command, *ours, "--append", COMMAND_LINE],
            "measure": [*command, *ours, "--append", f"{COMMAND_LINE} swtdx.run=/bin/measure"],
        }
    qemu = shutil.which("qemu-system-x86_64")
    if qemu:
        base = [qemu, "-accel", "tcg", "-machine", "q35", "-cpu", "max,-cx16", "-m", "512M", "-bios", str(firmware)]
        base += ["-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]
        theirs = ["-kernel", str(kernel), "-initrd", str(initrd)]
        result["QEMU TCG"] = {
            "firmware": base,
            "linux": [*base, *theirs, "-append", COMMAND_LINE],
            "measure": [*base, *theirs, "-append", f"{COMMAND_LINE} swtdx.run=/bin/measure"],
        }
    return result


def until(command: Sequence[str], text: str) -> tuple[float, str]:
    """Seconds until ``text`` is on the command's output, and what was printed. Raises TimeoutError, as for a panic."""
    with tempfile.TemporaryFile() as errors:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        assert process.stdout is not None
        printed = b""
        try:
            while text.encode() not in printed:
                rest = begin + _PATIENCE_SECONDS - time.perf_counter()
                ready = select.select([process.stdout], [], [], max(rest, 0))[0]
                piece = os.read(process.stdout.fileno(), 65536) if ready else b""
                printed += piece
                if not piece or _PANIC in printed:
                    errors.seek(0)
                    said = (printed[-4096:] + b"\n" + errors.read()).decode("utf-8", "replace")
                    shown = [line.strip() for line in said.splitlines() if line.strip()]
                    told = [line for line in shown if _PANIC.decode() in line] or shown or ["nothing was said"]
                    raise TimeoutError(f"{text!r} did not come: {told[-1]}")
            taken = time.perf_counter() - begin
            if text == MEASURED_TEXT:
                printed += os.read(process.stdout.fileno(), 65536)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    return taken, printed.decode("latin-1")


def compare(firmware: Path, linux: Path, repetitions: int) -> Iterator[Row]:
    """Each comparison as it is done. Raises FileNotFoundError without a kernel."""
    kernel = max(linux.glob("boot/vmlinuz-*"), default=None)
    if kernel is None:
        raise FileNotFoundError(f"{linux} has no boot/vmlinuz-*")
    who = contenders(firmware, kernel, linux / "initrd.img")
    for name, kind, text in (
        ("firmware to Shell>, 5 s of it its countdown", "firmware", FIRMWARE_TEXT),
        ("Linux to user space, through the firmware", "linux", LINUX_TEXT),
    ):
        row = Row(name, {each: [] for each in who})
        for _ in range(repetitions):
            for each, commands in who.items():
                try:
                    row.seconds[each].append(until(commands[kind], text)[0])
                except TimeoutError as error:
                    row.failures.append(f"{each}: {error}")
        yield row
    inside = {what: Row(name) for what, name in _INSIDE.items()}
    for _ in range(repetitions):
        for each, commands in who.items():
            try:
                printed = until(commands["measure"], MEASURED_TEXT)[1]
            except TimeoutError as error:
                inside["processes"].failures.append(f"{each}: {error}")
                continue
            for what, seconds in _MEASURED.findall(printed):
                inside[what].seconds.setdefault(each, []).append(float(seconds))
    yield from inside.values()


_INSIDE = {
    "loop": "in the guest: a million turns of an awk loop",
    "sha256": "in the guest: sha256sum of 64 MiB",
    "processes": "in the guest: 200 processes made and waited for",
}


def main(repetitions: int) -> int:
    """Print the comparisons; 2 where something is missing."""
    from swtdx.image.firmware import find_firmware

    linux = Path(os.environ.get("SWTDX_LINUX", ""))
    firmware = find_firmware(None).path
    peers = "TD", "VM", "TD, 2 MiB pages", "QEMU TCG"
    if shutil.which("qemu-system-x86_64") is None:
        print("script/bench: no qemu-system-x86_64 to compare with (Debian package qemu-system-x86)", file=sys.stderr)
    print(f"{firmware}; medians of {repetitions} runs in seconds; the ratio is TD to QEMU TCG")
    print(f"{'':<50}" + "".join(f"{peer:>17}" for peer in peers) + f"{'ratio':>8}")
    try:
        for row in compare(firmware, linux, repetitions):
            medians = [row.median(peer) for peer in peers]
            figures = "".join(f"{median:>17.2f}" for median in medians)
            print(f"{row.name:<50}{figures}{medians[0] / medians[-1]:>8.2f}", flush=True)
            for failure in row.failures:
                print(f"  a run did not come to its end, and is not in the medians: {failure}", flush=True)
    except FileNotFoundError as error:
        print(f"script/bench: {error}", file=sys.stderr)
        return 2
    return 0
