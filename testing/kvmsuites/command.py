# SPDX-License-Identifier: GPL-2.0-or-later
"""What the two commands share: options, the choice of tests, and what is printed at the end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from testing.kvmsuites import table
from testing.kvmsuites.running import BAD, InputError, Outcome, Program

EXIT_STATUS = "exit status: 0 no test failed, 1 a test failed or did not end, 2 bad input"


def parser_of(script: str, what: str, tree: str, examples: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with the options that both commands have."""
    indent = "\n          "
    parser = argparse.ArgumentParser(
        prog=script,
        description=what,
        epilog=f"examples: {indent.join(examples)}\n\n{EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tree", metavar=tree, type=Path, help="the top of the source tree; only read")
    parser.add_argument("--only", metavar="NAME", action="append", help="only this test; repeat for more")
    parser.add_argument("--seconds", type=float, default=120, help="time for one test (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="tests at once (default: %(default)s)")
    parser.add_argument("--build", metavar="FOLDER", type=Path, help="build there and keep it, for the next run")
    parser.add_argument("--exec", metavar="OPTION", action="append", default=[], help="an option for `swtdx exec`")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the table as Markdown")
    parser.add_argument("--output", action="store_true", help="print what tests that failed printed")
    return parser


def checked(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse. A number out of range ends the command."""
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or options.jobs < 1:
        parser.error("--seconds and --jobs want positive numbers")
    return options


def chosen(programs: Sequence[Program], only: Sequence[str] | None) -> list[Program]:
    """Return the tests to run. Raise InputError for a name that is not among them."""
    if not only:
        return list(programs)
    by_name = {program.name: program for program in programs}
    for name in only:
        if name not in by_name:
            raise InputError(f"--only {name}: not a test of this tree (it has {', '.join(sorted(by_name))})")
    return [program for program in programs if program.name in only]


def report(
    options: argparse.Namespace, suite: str, version: str, results: Mapping[str, Outcome], reason: table.Reason
) -> int:
    """Print the table. Return the exit status."""
    if options.output:
        for name, outcome in results.items():
            if outcome.status in BAD:
                print(f"--- {name}: {outcome.status}\n{outcome.output}", file=sys.stderr)
    if options.json:
        print(table.as_json(suite, version, results, reason))
    else:
        print(f"{suite} {version}\n{table.text(results, reason)}")
    if options.markdown:
        options.markdown.write_text(table.markdown(results, reason), encoding="utf-8")
    return int(any(outcome.status in BAD for outcome in results.values()))
