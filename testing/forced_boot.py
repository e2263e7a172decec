# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux boots as a TD while a SEAMCALL of KVM's fails: by hand for every documented status, in the tests for a few.

In `testing.forced_status` the TD is a few bytes of code, and the expectation exact. Here it is a distribution's kernel
that boots, sleeps and powers off, and the call a random one of all up to the end of its TD. What must hold: the run
ends with an outcome that has a name, no exception is printed, what a busy module is asked again for costs the guest
nothing, and the host loses no page and no KeyID but those that the module still holds and Linux gives up, too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from swtdx.vmm.outcome import End
from testing.forced_status import END, Site, kernels_leaves, sites

SECONDS = 400
"""No boot takes so long, also where the machine has other work."""
STORM_SECONDS = 20
"""Enough for a guest that boots in a fifth of it to come to its first timer, with which it ends."""
SMALL = ["--memory", "80M", "--append", "console=ttyS0 quiet swiotlb=1024 swtdx.run=usleep,200000"]
"""Few pages to convert: a conversion is three SEAMCALLs a page. The guest sleeps, as then KVM asks TDH.VP.RD."""
NOT_BUILT = "not built"
REFUSED = 2
"""Where KVM answers EINVAL, the input is said to be bad."""
NAMED_BY = "swtdx explain E", "makes no TDs"
"""The first for an errno of KVM's; the second where the TDX module could not be initialised, and KVM offers no TDs."""
GUEST_TIMERS = "TDH.MNG.RD"
"""KVM of Linux 7.2 calls it for TSC_OFFSET and TSC_MULTIPLIER, if user space does not ask for a TD's CPUID."""
NOT_GIVEN_BACK = "TDH.PHYMEM.PAGE.WBINVD"
"""What the module has given up and Linux keeps: a page that could not be written back."""
LONGEST = "KVM_RUN"
"""What is forced there comes last: most of these boots go on to their end."""
NAMED = {0, 1, 3, 5}
"""Exit statuses of a run that came to an end: as it should (5: it leaks), refused, a guest that could not continue."""


@dataclass(frozen=True)
class Boot:
    """How a boot with injections ended."""

    status: int
    outcome: str
    text: str
    injections: tuple[dict[str, int | str], ...]
    errors: str
    lint: dict[str, Any]
    """What ``--lint`` found."""
    after: dict[str, Any] = field(default_factory=dict)
    """What `testing.forced_run` found when the TD was taken down."""

    @property
    def came_through(self) -> bool:
        """Whether the guest did all that it does undisturbed."""
        return self.outcome == End.POWER_OFF.label

    @property
    def lost(self) -> set[str]:
        """What the host has less than before the run."""
        return set(self.after.get("lost", ()))

    @property
    def trouble(self) -> str:
        """What must not be; empty if nothing."""
        if "Traceback" in self.errors or "internal error:" in self.errors:
            return "an exception"
        if self.after.get("trouble"):
            return str(self.after["trouble"])
        if self.outcome == NOT_BUILT and self.status == REFUSED and any(said in self.errors for said in NAMED_BY):
            return ""
        if self.status not in NAMED:
            return f"exit status {self.status}"
        return ""


def boot(folder: Path, injections: Iterable[str], *options: str, seconds: int = SECONDS) -> Boot:
    """Boot the kernel of a folder of ``script/linux`` until it powers off, and take its TD down."""
    kernel = sorted(folder.glob("boot/vmlinuz-*"))[-1]
    built = ["--firmware", "none", "--kernel", str(kernel), "--initrd", str(folder / "initrd.img"), *SMALL]
    return _ended([*built, *options], injections, seconds)


def go_on(snapshot: Path, injections: Iterable[str]) -> Boot:
    """Have the guest of `kept` sleep and power off, and take its TD down."""
    return _ended(["--from", str(snapshot)], injections, SECONDS)


def kept(folder: Path, work: Path) -> Path:
    """Boot the kernel, and keep the TD in a file where it is about to sleep. Raises RuntimeError."""
    file = work / "linux.snapshot"
    seen = boot(folder, (), "--snapshot-at", "powers off.", "--snapshot", str(file))
    if not file.exists():
        raise RuntimeError(f"no snapshot was made: {seen.text}")
    return file


def _ended(options: Iterable[str], injections: Iterable[str], seconds: int) -> Boot:
    with tempfile.TemporaryDirectory() as work:
        record, after = Path(work) / "run.json", Path(work) / "after.json"
        command = [sys.executable, "-m", "testing.forced_run", str(after), *options]
        command += ["--timeout", str(seconds), "--json", str(record)]
        for text in injections:
            command += ["--inject", text]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        told = _read(record) or {"outcome": NOT_BUILT, "text": (done.stderr.splitlines() or ["no word"])[-1]}
        found = _read(after) or {"trouble": "the run left no word about its machine"}
    struck = tuple(told.get("injections", ()))
    return Boot(done.returncode, told["outcome"], told["text"], struck, done.stderr, told.get("lint", {}), found)


def _read(file: Path) -> dict[str, Any]:
    """What a run wrote; nothing if it did not come so far."""
    try:
        return dict(json.loads(file.read_text()))
    except (OSError, ValueError):
        return {}


@dataclass(frozen=True)
class Calls:
    """How often an undisturbed boot makes a call: while the guest lives, and in all."""

    alive: int
    total: int


NONE_FAILS = tuple(f"{leaf}: TD_FATAL @999999999999" for leaf in kernels_leaves())


def usual(seen: Boot) -> dict[str, Calls]:
    """How often each call is made in a run with `NONE_FAILS`. Raises RuntimeError if it does not power off."""
    if not seen.came_through or seen.trouble or seen.lost:
        raise RuntimeError(f"an undisturbed boot ends otherwise: {seen.text} {seen.trouble} {seen.lost or ''}")
    alive = {str(each["injection"]).partition(":")[0]: int(each["calls"]) for each in seen.injections}
    return {leaf: Calls(alive[leaf], total) for leaf, total in seen.after["calls"].items()}


def judged(case: Case, seen: Boot) -> str:
    """Return what must not be of a boot; empty if nothing."""
    if not sum(seen.after.get("struck", {}).values()):
        return "the call was never made"
    if case.leaf == GUEST_TIMERS and seen.outcome == End.TIMEOUT.label:
        # td_tdcs_exec_read64 returns 0, and KVM takes the TD's TSC for one that has passed each deadline: a timer of
        # the guest's expires when it is set. Linux sets the next one in its interrupt, and executes nothing else.
        return "" if seen.after.get("no_tsc") else "timers do not come, and KVM knows the guest's TSC"
    trouble = seen.trouble
    if case.leaf == NOT_GIVEN_BACK and trouble.startswith("lost, "):
        trouble = ""
    if trouble:
        return trouble
    if case.expected == "repeated" and not seen.came_through:
        return "the guest did not come through"
    if seen.lost and "lost: " not in case.expected:
        return f"lost {', '.join(sorted(seen.lost))}, where Linux loses nothing"
    return ""


@dataclass(frozen=True)
class Case:
    """An injection, and what a short life expects of it: docs/injected.json."""

    leaf: str
    injection: str
    during: str
    expected: str

    @property
    def seconds(self) -> int:
        """How long the boot may take."""
        return STORM_SECONDS if self.leaf == GUEST_TIMERS else SECONDS


def cases(
    whole: dict[str, Calls], end: dict[str, Calls], leaf: str | None, sample: int | None, seed: int
) -> Iterator[Case]:
    """Yield every leaf function with its statuses, or with ``sample`` of them.

    ``whole`` are the calls of a boot, ``end`` those of `go_on`: what a TD's end calls is forced there.
    """
    random = Random(seed)
    for site in sorted(sites(), key=lambda site: site.during == LONGEST):
        calls = (end if site.during == END else whole)[site.leaf]
        if (leaf is not None and site.leaf != leaf) or (number := _call(site, calls, random)) is None:
            continue
        statuses = site.statuses()
        if sample is not None:
            statuses = random.sample(statuses, min(sample, len(statuses)))
        for status in statuses:
            row = site.row(status)
            expected = row[2] if len(row) > 2 else row[1]
            yield Case(site.leaf, f"{site.leaf}: {status} @{number}", site.during, expected)
            number = _call(site, calls, random)


def _call(site: Site, made: Calls, random: Random) -> str | None:
    """Return which call is to fail at a site, a random one where the table says the first; None: a boot has none."""
    there = made.total if site.during == END else made.alive
    if site.call == "1":
        # Another boot may make fewer: how often a guest sleeps depends on how fast it is.
        return str(random.randint(1, there - there // 4)) if there else None
    if site.call == "last":
        return str(there)
    return site.call if int(site.call.rpartition("-")[2]) <= there else None


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="script/forced-statuses", description="Boot Linux while SEAMCALLs fail.")
    parser.add_argument("folder", type=Path, help="of script/linux")
    parser.add_argument("--leaf", choices=kernels_leaves(), metavar="LEAF", help="only this leaf function")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many statuses of each, chosen by the seed")
    parser.add_argument("--seed", type=int, default=1, help="which calls fail (not given: 1)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swtdx-forced-") as work:
        snapshot = kept(options.folder, Path(work))
        whole, end = usual(boot(options.folder, NONE_FAILS)), usual(go_on(snapshot, NONE_FAILS))
        made = {leaf: number.total for leaf, number in whole.items() if number.total}
        print(f"a boot makes {sum(made.values()):,} calls of {len(made)} leaf functions", flush=True)
        if missing := sorted(set(whole) - set(made)):
            print(f"never called: {', '.join(missing)}", flush=True)
        ended: Counter[str] = Counter()
        failed = 0
        for case in cases(whole, end, options.leaf, options.sample, options.seed):
            if case.during == END:
                seen = go_on(snapshot, [case.injection])
            else:
                seen = boot(options.folder, [case.injection], seconds=case.seconds)
            trouble = judged(case, seen)
            failed += bool(trouble)
            ended[seen.outcome] += 1
            said = f"{case.injection}: {trouble or seen.outcome}: {seen.text}"
            said += f"; lost: {', '.join(sorted(seen.lost))}" if seen.lost else ""
            print(f"{'FAILED ' if trouble else ''}{said}", flush=True)
    print(
        f"{sum(ended.values())} boots, {failed} failed; {', '.join(f'{name} {n}' for name, n in ended.most_common())}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
