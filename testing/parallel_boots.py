# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux boots again and again with virtual CPUs that execute at the same time, and its console is read.

Each boot puts work on every virtual CPU: processes, pipes and a hash whose value is known. A boot counts as right if
the guest found all its virtual CPUs, all hashes are what they must be, the kernel printed nothing that looks like a
complaint, and the guest powered off.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from guest.newc import FILE, newc

KINDS = {"TD": "tdx", "VM": "default"}
APPEND = "console=ttyS0 loglevel=5 swiotlb=1024 panic=-1 swtdx.run=/bin/work"
"""Warnings and what is worse go to the console, and a panic ends the boot."""
HASHED = 1 << 20
WORK = f"""#!/bin/sh
cpus=$(nproc)
i=0
while [ $i -lt $cpus ]; do
    (
        j=0
        while [ $j -lt 10 ]; do /bin/busybox true; j=$((j + 1)); done
        head -c {HASHED} /dev/zero | sha256sum
    ) >/tmp/work$i &
    i=$((i + 1))
done
wait
cat /tmp/work* | sort | uniq -c | sed 's/^/work done: /'
""".encode()
COMPLAINTS = re.compile(
    r"BUG|WARNING|Oops|stall|lockup|cut here|Call Trace|panic|hung|blocked for more than|general protection|segfault"
    r"|traps:|invalid opcode|unable to handle|unstable|failed to|bad page|corrupt|rror reading|timed out|out of memory",
    re.IGNORECASE,
)
"""In a line of the console. The words of lib/bug.c, kernel/panic.c, kernel/rcu, kernel/watchdog.c, mm and smpboot.c."""


@dataclass(frozen=True)
class Boot:
    """How one boot went."""

    trouble: tuple[str, ...]
    """A sentence or a line of the console for each thing that must not be."""
    console: str
    wall: float
    cpu: float
    """Seconds of processor time of the process."""


def judge(console: str, cpus: int, status: int) -> tuple[str, ...]:
    """Return what is wrong with a boot, by its console and exit status."""
    found = [line.strip() for line in console.splitlines() if COMPLAINTS.search(line)]
    if f" on {cpus} CPU{'s' if cpus > 1 else ''}, as " not in console:
        found.append(f"the guest has not found {cpus} virtual CPUs")
    digest = hashlib.sha256(bytes(HASHED)).hexdigest()
    if re.findall(r"work done: +(\d+) (\S+)", console) != [(str(cpus), digest)]:
        found.append("the work of the guest was not done, or came out wrong")
    if status:
        found.append(f"exit status {status}")
    return tuple(found)


def boot(folder: Path, initrd: Path, kind: str, cpus: int, options: Sequence[str], seconds: float) -> Boot:
    """Boot once. Never raises for what the guest does."""
    kernel = sorted(folder.glob("boot/vmlinuz-*"))[-1]
    command = [sys.executable, "-m", "swtdx", "run", "--kernel", str(kernel), "--initrd", str(initrd)]
    command += ["--vm-type", KINDS[kind], "--cpus", str(cpus), "--append", APPEND, "--timeout", str(seconds), *options]
    with tempfile.TemporaryFile() as printed:
        begin = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=printed, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - begin
        printed.seek(0)
        console = printed.read().decode("utf-8", "replace")
    return Boot(judge(console, cpus, process.returncode), console, wall, _processor_time(usage))


def _processor_time(usage: resource.struct_rusage) -> float:
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Returns 0 if every boot was right."""
    parser = argparse.ArgumentParser(prog="script/parallel-boots", description="Boot Linux on parallel virtual CPUs.")
    parser.add_argument("folder", type=Path, help="of script/linux")
    parser.add_argument("--boots", type=int, default=20, help="of each kind and number (not given: 20)")
    parser.add_argument("--cpus", default="1,2,4,8", help="numbers of virtual CPUs (not given: 1,2,4,8)")
    parser.add_argument("--kind", choices=KINDS, help="not given: both")
    parser.add_argument("--thread", choices=["multi", "single"], default="multi", help="SWTDX_TCG_THREAD")
    parser.add_argument("--jobs", type=int, default=2, help="boots at a time (not given: 2)")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for a boot (not given: 900)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="for the consoles of boots that were not right")
    parser.add_argument("options", nargs="*", help="of swtdx run, behind --")
    options = parser.parse_args()
    os.environ["SWTDX_TCG_THREAD"] = options.thread
    given = options.options or ["--firmware", "none", "--memory", "256M"]
    numbers = [int(each) for each in options.cpus.split(",")]
    kinds = [options.kind] if options.kind else list(KINDS)
    done: dict[tuple[str, int], list[Boot]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.jobs) as pool:
        initrd = Path(scratch) / "initrd.img"
        initrd.write_bytes((options.folder / "initrd.img").read_bytes() + newc([("bin/work", FILE, WORK)]))
        # Round by round, so that a campaign that is cut short has something of everything.
        plan = [(kind, cpus) for _ in range(options.boots) for cpus in numbers for kind in kinds]
        running = [pool.submit(boot, options.folder, initrd, *each, given, options.timeout) for each in plan]
        for (kind, cpus), future in zip(plan, running, strict=True):
            seen = future.result()
            done[kind, cpus].append(seen)
            number = len(done[kind, cpus])
            print(f"{kind} {cpus} #{number}: {'; '.join(seen.trouble) or 'right'} ({seen.wall:.0f} s)", flush=True)
            if seen.trouble and options.keep:
                options.keep.mkdir(parents=True, exist_ok=True)
                (options.keep / f"{kind}-{cpus}-{number}.txt").write_text(seen.console)
    print(f"{'':<4}{'vCPUs':>6}{'boots':>7}{'right':>7}{'wall s':>9}{'CPU s':>8}   (medians)")
    for (kind, cpus), boots in sorted(done.items()):
        right = sum(not each.trouble for each in boots)
        wall, cpu = (statistics.median(getattr(each, what) for each in boots) for what in ("wall", "cpu"))
        print(f"{kind:<4}{cpus:>6}{len(boots):>7}{right:>7}{wall:>9.1f}{cpu:>8.1f}")
    return int(any(each.trouble for boots in done.values() for each in boots))


if __name__ == "__main__":
    sys.exit(main())
