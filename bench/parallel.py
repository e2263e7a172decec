# SPDX-License-Identifier: GPL-2.0-or-later
"""Two virtual CPUs at the same time, beside QEMU's `-accel tcg,thread=multi -smp 2`: ``script/bench parallel``.

The guest is the same: firmware, kernel, initrd, and a script that works on both processors and times itself by the
guest's clock. On a busy machine only the seconds of processor time say something: those of the whole process, boot and
all.
"""

from __future__ import annotations

import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from guest.newc import FILE, newc

CPUS = 2
_SECONDS = 600
_END = "measured end"
_MEASURED = re.compile(r"measured (\w+) ([0-9.]+)")
LOADS = {
    "sha256": "two sha256sum of 64 MiB at once",
    "awk": "two awk loops of a million turns at once",
    "forks": "two times 100 processes at once",
    "serial": "200 processes, one after the other",
}
SCRIPT = b"""#!/bin/sh
now() { cut -d' ' -f1 /proc/uptime; }
took() { echo "measured $1 $(echo "$(now) $2" | awk '{ printf "%.2f", $1 - $2 }')"; }
sha() { head -c 67108864 /dev/zero | sha256sum; }
loop() { awk 'BEGIN { for (i = 0; i < 1000000; i++) x = (x * 7 + i) % 1000003; print x }'; }
forks() { i=0; while [ $i -lt $1 ]; do /bin/busybox true; i=$((i + 1)); done; }
start=$(now); sha >/dev/null & sha >/dev/null; wait; took sha256 $start
start=$(now); loop >/dev/null & loop >/dev/null; wait; took awk $start
start=$(now); forks 100 & forks 100; wait; took forks $start
start=$(now); forks 200; took serial $start
echo measured end 0
"""


def contenders(firmware: Path, kernel: Path, initrd: Path) -> dict[str, list[str]]:
    """What to start, by who runs it."""
    append = "console=ttyS0 quiet swtdx.run=/bin/parallel"
    own = [sys.executable, "-m", "swtdx", "run", "--firmware", str(firmware), "--memory", "512M", "--cpus", str(CPUS)]
    own += ["--kernel", str(kernel), "--initrd", str(initrd), "--append", append, "--timeout", str(_SECONDS)]
    commands = {"TD": own, "VM": [*own, "--vm-type", "default"]}
    if qemu := shutil.which("qemu-system-x86_64"):
        theirs = [qemu, "-accel", "tcg,thread=multi", "-smp", str(CPUS), "-machine", "q35", "-cpu", "max,-cx16"]
        theirs += ["-m", "512M", "-bios", str(firmware), "-nodefaults", "-display", "none", "-serial", "stdio"]
        theirs += ["-no-reboot", "-kernel", str(kernel), "-initrd", str(initrd), "-append", append]
        commands["QEMU TCG"] = theirs
    return commands


def measure(command: list[str]) -> dict[str, float]:
    """Seconds of each load by the guest's clock, and of processor time of the whole. Raises TimeoutError."""
    env = {**os.environ, "SWTDX_TCG_THREAD": "multi"}
    with tempfile.TemporaryFile() as printed:
        process = subprocess.Popen(["timeout", str(_SECONDS), *command], stdin=subprocess.DEVNULL, stdout=printed,
                                   stderr=subprocess.STDOUT, env=env)  # fmt: skip
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        printed.seek(0)
        console = printed.read().decode("utf-8", "replace")
    if _END not in console:
        raise TimeoutError((console.strip().splitlines() or ["nothing was said"])[-1])
    seconds = {name: float(value) for name, value in _MEASURED.findall(console) if name in LOADS}
    return {**seconds, "cpu": usage.ru_utime + usage.ru_stime}


def rows(firmware: Path, linux: Path, repetitions: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Yield (what, median by who). Raises FileNotFoundError without a kernel."""
    kernel = max(linux.glob("boot/vmlinuz-*"), default=None)
    if kernel is None:
        raise FileNotFoundError(f"{linux} has no boot/vmlinuz-*")
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory() as scratch:
        initrd = Path(scratch) / "initrd.img"
        initrd.write_bytes((linux / "initrd.img").read_bytes() + newc([("bin/parallel", FILE, SCRIPT)]))
        for _ in range(repetitions):
            for who, command in contenders(firmware, kernel, initrd).items():
                try:
                    for what, seconds in measure(command).items():
                        found[what][who].append(seconds)
                except TimeoutError as error:
                    print(f"  a run of {who} did not come to its end: {error}", flush=True)
    for what, name in (*LOADS.items(), ("cpu", "processor time of it all, with the boot")):
        yield name, {who: statistics.median(runs) for who, runs in found[what].items()}


def main(repetitions: int) -> int:
    """Print the comparison; 2 where something is missing."""
    from swtdx.image.firmware import find_firmware

    peers = "TD", "VM", "QEMU TCG"
    print(
        f"{CPUS} virtual CPUs at the same time; medians of {repetitions} runs in seconds; the ratio is TD to QEMU TCG"
    )
    print(f"{'':<44}" + "".join(f"{peer:>10}" for peer in peers) + f"{'ratio':>8}")
    try:
        for name, medians in rows(find_firmware(None).path, Path(os.environ.get("SWTDX_LINUX", "")), repetitions):
            values = [medians.get(peer, float("nan")) for peer in peers]
            print(f"{name:<44}" + "".join(f"{value:>10.2f}" for value in values) + f"{values[0] / values[-1]:>8.2f}")
    except FileNotFoundError as error:
        print(f"script/bench: {error}", file=sys.stderr)
        return 2
    return 0
