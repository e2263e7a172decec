# SPDX-License-Identifier: GPL-2.0-or-later
"""Linux boots as a TD while a SEAMCALL of KVM's fails: by hand for every documented status, in the tests for a few.

In `testing.forced_status` the TD is a few bytes of code, and the expectation exact. Here it is a distribution's kernel
and the call a random one of all that its boot makes. What must hold: the run ends with an outcome that has a name, no
exception is printed, and what a busy module is asked again for costs the guest nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from testing.forced_status import END, kernels_leaves, sites

PROMPT = "swtdx#"
SECONDS = 400
"""No boot takes so long, also where the machine has other work."""
SMALL = ["--memory", "192M", "--append", "console=ttyS0 quiet swiotlb=1024"]
"""Few pages to convert: a conversion is three SEAMCALLs a page."""
NOT_BUILT = "not built"
REFUSED = 2
"""Where KVM answers EINVAL, the input is said to be bad."""
NAMED_BY = "swtdx explain E", "makes no TDs"
"""The first for an errno of KVM's; the second where the TDX module could not be initialised, and KVM offers no TDs."""
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

    @property
    def trouble(self) -> str:
        """What must not be; empty if nothing."""
        if "Traceback" in self.errors or "internal error:" in self.errors:
            return "an exception"
        if self.outcome == NOT_BUILT and self.status == REFUSED and any(said in self.errors for said in NAMED_BY):
            return ""
        if self.status not in NAMED:
            return f"exit status {self.status}"
        return ""


def boot(folder: Path, injections: Iterable[str], *options: str) -> Boot:
    """Boot the kernel of a folder of ``script/linux`` to its prompt."""
    kernel = sorted(folder.glob("boot/vmlinuz-*"))[-1]
    with tempfile.TemporaryDirectory() as work:
        record = Path(work) / "run.json"
        command = [sys.executable, "-m", "swtdx", "run", "--firmware", "none", "--kernel", str(kernel)]
        command += ["--initrd", str(folder / "initrd.img"), *SMALL, "--until", PROMPT, "--timeout", str(SECONDS)]
        command += ["--json", str(record), *options]
        for text in injections:
            command += ["--inject", text]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        try:
            kept = json.loads(record.read_text())
        except (OSError, ValueError):  # the TD could not be built
            kept = {"outcome": NOT_BUILT, "text": (done.stderr.splitlines() or ["no word"])[-1]}
    found = tuple(kept.get("injections", ()))
    return Boot(done.returncode, kept["outcome"], kept["text"], found, done.stderr, kept.get("lint", {}))


def usual(folder: Path) -> dict[str, int]:
    """How often an undisturbed boot makes each call. Raises RuntimeError for one that does not come to its prompt."""
    seen = boot(folder, [f"{leaf}: TD_FATAL @999999999999" for leaf in kernels_leaves()], *_to_the_end(""))
    if seen.outcome != "until":
        raise RuntimeError(f"an undisturbed boot did not come to its prompt: {seen.text}")
    return {str(each["injection"]).partition(":")[0]: int(each["calls"]) for each in seen.injections}


def _to_the_end(during: str) -> Sequence[str]:
    """A run takes its TD down page by page only if it is traced."""
    return ("--trace", "/dev/null") if during in (END, "") else ()


def _is_slow_on_purpose(injection: str, seen: Boot) -> bool:
    """td_tdcs_exec_read64 returns 0 when TDH.MNG.RD fails: for TSC_OFFSET or TSC_MULTIPLIER, by which timers are set.

    The guest lives, and its timers come at other times than it asked for: at once, or long after.
    """
    return injection.startswith("TDH.MNG.RD:") and seen.outcome == "timeout"


def cases(calls: dict[str, int], leaf: str | None, sample: int | None, seed: int) -> Iterator[tuple[str, str]]:
    """Yield (injection, what the short life expects): every leaf function with its statuses, or ``sample`` of them."""
    random = Random(seed)
    for site in sites():
        if site.call != "1" or (leaf is not None and site.leaf != leaf) or not calls.get(site.leaf):
            continue
        statuses = site.statuses()
        if sample is not None:
            statuses = random.sample(statuses, min(sample, len(statuses)))
        for status in statuses:
            number = random.randint(1, calls[site.leaf])
            row = site.row(status)
            yield f"{site.leaf}: {status} @{number}", f"{site.during}: {row[2] if len(row) > 2 else row[1]}"


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="script/forced-statuses", description="Boot Linux while SEAMCALLs fail.")
    parser.add_argument("folder", type=Path, help="of script/linux")
    parser.add_argument("--leaf", choices=kernels_leaves(), metavar="LEAF", help="only this leaf function")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many statuses of each, chosen by the seed")
    parser.add_argument("--seed", type=int, default=1, help="which calls fail (not given: 1)")
    options = parser.parse_args()
    calls = usual(options.folder)
    print(f"a boot makes {sum(calls.values()):,} calls of {len(calls)} leaf functions", flush=True)
    ended: Counter[str] = Counter()
    failed = 0
    for injection, expected in cases(calls, options.leaf, options.sample, options.seed):
        seen = boot(options.folder, [injection], *_to_the_end(expected.partition(":")[0]))
        trouble = "" if _is_slow_on_purpose(injection, seen) else seen.trouble
        if not trouble and expected.endswith(": repeated") and seen.outcome != "until":
            trouble = "the guest did not come through"
        failed += bool(trouble)
        ended[seen.outcome] += 1
        print(f"{'FAILED ' if trouble else ''}{injection}: {trouble or seen.outcome}: {seen.text}", flush=True)
    print(
        f"{sum(ended.values())} boots, {failed} failed; {', '.join(f'{name} {n}' for name, n in ended.most_common())}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
