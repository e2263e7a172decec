# SPDX-License-Identifier: GPL-2.0-or-later
"""``python -m bench [--short] [--json]``: print the figures, each with its aim."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict

from bench import boots, distribution, front_ends, parallel, qemu_boots, sizes, snapshots
from bench.figures import FULL, LEAST, SHORT, Figure, all_figures


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _line(figure: Figure) -> str:
    value = _number(figure.median)
    aim = ""
    if figure.aim is not None:
        bound = "at least" if figure.more_is_better else "under"
        aim = f"aim: {bound} {_number(figure.aim)}{'' if figure.met else '   not met'}"
    return f"{figure.name:<52}{value:>10} {figure.unit:<8}{aim}".rstrip()


def main() -> int:
    """Returns 0 whatever the figures are."""
    parser = argparse.ArgumentParser(prog="script/bench", description="Measure swtdx on this machine; medians of runs.")
    parser.add_argument(
        "what",
        nargs="?",
        choices=["boot", "distribution", "exec", "parallel", "size", "snapshot"],
        help="boot: boots beside QEMU's TCG; distribution: Debian to its login prompt; exec: its front ends, QEMU's "
        "boots; parallel: two virtual CPUs beside QEMU's thread=multi; size: boots with 512 MiB to 64 GiB; snapshot: "
        "a Linux TD restored",
    )
    parser.add_argument("--runs", type=int, default=3, help="of each boot (default 3)")
    parser.add_argument("--short", action="store_true", help="less of each, and no firmware boot: a few seconds")
    parser.add_argument("--least", action="store_true", help="each figure once, to see that it can be measured")
    parser.add_argument("--json", action="store_true", help="one JSON object with every run, in place of the table")
    options = parser.parse_args()
    of_boots = {
        "boot": boots.main,
        "distribution": distribution.main,
        "parallel": parallel.main,
        "size": sizes.main,
        "snapshot": snapshots.main,
    }
    if options.what in of_boots:
        return of_boots[options.what](max(1, options.runs))
    if options.what == "exec":
        return front_ends.main(max(1, options.runs)) or qemu_boots.main(max(1, options.runs))
    effort = LEAST if options.least else SHORT if options.short else FULL
    machine = f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}"
    if options.json:
        figures = [{**asdict(figure), "met": figure.met} for figure in all_figures(effort)]
        print(json.dumps({"machine": machine, "effort": asdict(effort), "figures": figures}, indent=2))
        return 0
    print(f"{machine}; medians of {effort.repetitions} runs")
    for figure in all_figures(effort):
        print(_line(figure), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
