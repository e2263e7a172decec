# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m fuzz KIND [--cases N] [--seed N]``: a campaign, and what it came to; exits with 1 if anything failed."""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import time
from importlib import import_module

CASES = 100_000
KINDS = {
    "parsers": "images, kernels, event logs, quotes, TDREPORTs and records, damaged",
    "kvm": "random ioctls, good and bad, while guests run",
    "gdb": "what a debugger's stub may be sent",
    "seam": "random sequences of SEAMCALLs and TDCALLs (a test of tests/seam, made long)",
}
SEAM_CALLS = 200_000
_EVERY_SECONDS = 5.0


def main() -> int:
    """Returns the exit status."""
    kinds = "\n".join(f"  {name:<9}{what}" for name, what in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="script/fuzz",
        description="Feed swtdx what nobody in his right mind would.",
        epilog=f"kinds:\n{kinds}\n\nexample: script/fuzz parsers --cases 1000 --seed 7",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--cases", type=int, help=f"inputs or calls (not given: {CASES:,}; seam: {SEAM_CALLS:,})")
    parser.add_argument("--seed", type=int, help="the same number gives the same cases (not given: a random one)")
    options = parser.parse_args()
    if options.cases is not None and options.cases < 1:
        parser.error("--cases wants a positive number")
    if options.kind == "seam":
        if options.seed is not None:
            parser.error("--seed is not for seam: hypothesis chooses, and keeps what failed")
        return _seam(options.cases or SEAM_CALLS)
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    cases = options.cases or CASES
    print(f"{options.kind}: {cases:,} cases, seed {seed}", flush=True)
    started = told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _EVERY_SECONDS:
            told = now
            print(f"{done:,} of {cases:,}", file=sys.stderr, flush=True)

    result = import_module(f"fuzz.{options.kind}").campaign(cases, seed, progress)
    print("\n".join(result.lines()))
    print(f"{len(result.failures)} failed, {time.monotonic() - started:.0f} s; again: --cases {cases} --seed {seed}")
    return 1 if result.failures else 0


def _seam(calls: int) -> int:
    environment = {**os.environ, "SWTDX_RANDOM_CALLS": str(calls)}
    tests = "tests/seam/test_random_calls.py"
    command = [sys.executable, "-m", "pytest", "-q", "--timeout=0", "-p", "no:cacheprovider", tests]
    return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
