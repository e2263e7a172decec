# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m fuzz KIND [--cases N] [--seed N]``: a campaign, and what it came to; exits with 1 if anything failed."""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from importlib import import_module
from typing import Any

from swtdx.cpu.platform import MODULE_VERSIONS

CASES = 100_000
KINDS = {
    "parsers": "images, kernels, event logs, quotes, TDREPORTs and records, damaged",
    "kvm": "random ioctls, good and bad, while guests run",
    "cpu": "instructions of every kind, straight on for pages, in every mode",
    "board": "what a guest does to the devices: no fault, no growth",
    "arithmetic": "SSE, MMX and x87 instructions beside the host's processor",
    "gdb": "what a debugger's stub may be sent",
    "quoting": "messages to the quote generation service, TDREPORTs, quotes, requests for collateral, damaged",
    "signals": "signals at random moments for a VMM's threads under swtdx exec",
    "seam": "random SEAMCALLs and TDCALLs, good and bad; the TDX module is looked at whole after each",
}
SEAM_CALLS = 200_000
DEFAULTS = {"quoting": 20_000, "signals": 20_000, "board": 1_000_000, "cpu": 200_000, "seam": SEAM_CALLS}
_EVERY_SECONDS = 5.0


def main() -> int:
    """Returns the exit status."""
    kinds = "\n".join(f"  {name:<11}{what}" for name, what in KINDS.items())
    parser = argparse.ArgumentParser(
        prog="script/fuzz",
        description="Fuzz swtdx with malformed input.",
        epilog=f"kinds:\n{kinds}\n\nexamples: script/fuzz parsers --cases 1000 --seed 7\n"
        "          script/fuzz seam --minutes 30 --module-version 1.0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument(
        "--cases",
        "--calls",
        type=int,
        help=f"inputs, streams or calls (not given: {CASES:,}; cpu, seam: {SEAM_CALLS:,})",
    )
    parser.add_argument("--seed", type=int, help="the same number gives the same cases (not given: a random one)")
    parser.add_argument("--minutes", type=float, help="seam: for so long, unless --calls come first")
    parser.add_argument(
        "--module-version", choices=MODULE_VERSIONS, help=f"seam: which TDX module (not given: {MODULE_VERSIONS[0]})"
    )
    options = parser.parse_args()
    if options.cases is not None and options.cases < 1:
        parser.error("--cases wants a positive number")
    more: dict[str, Any] = {}
    if options.minutes is not None:
        more["minutes"] = options.minutes
    if options.module_version is not None:
        more["version"] = options.module_version
    if more and options.kind != "seam":
        parser.error("--minutes and --module-version are for seam")
    seed = secrets.randbelow(1 << 32) if options.seed is None else options.seed
    cases = options.cases or (sys.maxsize if options.minutes else DEFAULTS.get(options.kind, CASES))
    amount = f"{cases:,} cases" if cases < sys.maxsize else f"{options.minutes:g} minutes"
    print(f"{options.kind}: {amount}, seed {seed}", flush=True)
    started = told = time.monotonic()

    def progress(done: int) -> None:
        nonlocal told
        now = time.monotonic()
        if now - told >= _EVERY_SECONDS:
            told = now
            print(f"{done:,} of {amount}", file=sys.stderr, flush=True)

    module = "testing.seam.random_calls" if options.kind == "seam" else f"testing.fuzzing.{options.kind}"
    result = import_module(module).campaign(cases, seed, progress, **more)
    print("\n".join(result.lines()))
    again = ["--seed", str(seed), *(f"--cases {cases}" for _ in (1,) if cases < sys.maxsize)]
    again += [f"--module-version {more['version']}"] if "version" in more else []
    print(f"{len(result.failures)} failed, {time.monotonic() - started:.0f} s; again: {' '.join(again)}")
    return 1 if result.failures else 0


if __name__ == "__main__":
    sys.exit(main())
