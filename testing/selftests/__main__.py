# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/selftests-x86 KERNEL_TREE``: the kernel's x86 selftests in a TD and in an ordinary VM, as a table."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from testing.selftests.guest import Linux, boot, linux_in
from testing.selftests.makefile import BITS, Test
from testing.selftests.outcome import Ended, Outcome, Status, run_all
from testing.selftests.programs import Built, InputError, compile_test, pack, read_tree, version_of, why_no_compiler
from testing.selftests.table import markdown, rows_of, text

TEST_SECONDS = 120
VM_TYPES = {"VM": "default", "TD": "tdx"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="script/selftests-x86",
        description="Run tools/testing/selftests/x86 of a Linux source tree in guests of swtdx, and print a table.",
        epilog="examples: script/selftests-x86 ~/src/linux\n"
        "          script/selftests-x86 ~/src/linux --td --only sigreturn --only fsgsbase --output\n"
        "          script/selftests-x86 ~/src/linux --markdown table.md\n\n"
        "exit status: 0 no test failed, 1 a test failed or did not end, 2 bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("tree", metavar="KERNEL_TREE", type=Path, help="the top of a Linux source tree; only read")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--vm", dest="guests", action="store_const", const=("VM",), help="only an ordinary VM")
    which.add_argument("--td", dest="guests", action="store_const", const=("TD",), help="only a Trust Domain")
    which.add_argument("--both", dest="guests", action="store_const", const=("VM", "TD"), help="both (the default)")
    parser.add_argument(
        "--only", metavar="NAME", action="append", help="this test, as sigreturn or sigreturn_32; repeat"
    )
    parser.add_argument("--cpus", type=int, default=2, help="vCPUs of each guest (default: 2)")
    parser.add_argument("--seconds", type=int, default=TEST_SECONDS, help="time for one test (default: %(default)s)")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="also write the table as Markdown (- for stdout)")
    parser.add_argument("--output", action="store_true", help="print what tests that did not pass said")
    parser.set_defaults(guests=("VM", "TD"))
    options = parser.parse_args()
    if options.seconds < 1 or not 1 <= options.cpus <= 64:
        parser.error("--seconds wants a positive number, --cpus one from 1 to 64")
    return options


def chosen(tests: Sequence[Test], only: Sequence[str] | None) -> list[Test]:
    """Return the tests to run. Raise InputError for a name that is not among them."""
    if not only:
        return list(tests)
    known = {test.name for test in tests} | {test.program for test in tests}
    for name in only:
        if name not in known:
            raise InputError(
                f"--only {name}: not a test of this tree (it has {', '.join(sorted({t.name for t in tests}))})"
            )
    return [test for test in tests if test.name in only or test.program in only]


def compile_all(tests: Sequence[Test], tree: Path, scratch: Path) -> list[Built]:
    """Compile each test. Raise InputError if gcc can make none of them."""
    lacking = {bits: why_no_compiler(bits, scratch) for bits in BITS if any(test.bits == bits for test in tests)}
    for why in filter(None, lacking.values()):
        print(f"script/selftests-x86: {why}", file=sys.stderr)
    if all(lacking.values()):
        raise InputError("nothing can be compiled here")
    return [
        Built(test, failure=lacking[test.bits]) if lacking[test.bits] else compile_test(test, tree, scratch)
        for test in tests
    ]


def run_in(
    guest: str, built: Sequence[Built], linux: Linux, options: argparse.Namespace, scratch: Path
) -> tuple[str, dict[str, Outcome]]:
    """Run what could be compiled in one kind of guest."""
    by_program = {each.test.program: each for each in built}
    initrd = scratch / "initrd.img"
    started = time.monotonic()

    def show(line: str) -> None:
        if "SELFTEST begin" in line or "SELFTEST end" in line:
            print(
                f"{guest} {time.monotonic() - started:5.0f} s  {line.split('SELFTEST ')[-1]}",
                file=sys.stderr,
                flush=True,
            )

    def once(programs: Sequence[str]) -> Ended:
        initrd.write_bytes(pack(linux.busybox, [by_program[name] for name in programs], options.seconds))
        return boot(linux.kernel, initrd, VM_TYPES[guest], options.cpus, options.seconds, show)

    version, outcomes = run_all([each.test.program for each in built if not each.failure], once)
    outcomes |= {each.test.program: Outcome(Status.NOT_BUILT, each.failure) for each in built if each.failure}
    return version, outcomes


def main() -> int:
    """Return the exit status."""
    options = arguments()
    results: dict[tuple[str, str], Outcome] = {}
    version = ""
    try:
        tests = chosen(read_tree(options.tree), options.only)
        linux = linux_in(os.environ.get("SWTDX_LINUX"))
        with tempfile.TemporaryDirectory(prefix="swtdx-selftests-") as name:
            scratch = Path(name)
            built = compile_all(tests, options.tree, scratch)
            for guest in options.guests:
                ran, outcomes = run_in(guest, built, linux, options, scratch)
                version = ran or version
                results |= {(guest, program): outcome for program, outcome in outcomes.items()}
    except InputError as error:
        print(f"script/selftests-x86: {error}", file=sys.stderr)
        return 2
    rows = rows_of(tests, results, options.guests)
    if options.output:
        for (guest, program), outcome in results.items():
            if outcome.status is not Status.PASS:
                print(f"--- {guest} {program}: {outcome.status}", *outcome.output, sep="\n")
    print(f"selftests of Linux {version_of(options.tree)}, guest kernel {version or 'unknown'}, {options.cpus} vCPUs")
    print(text(rows, options.guests))
    if options.markdown:
        table = markdown(rows, options.guests) + "\n"
        if str(options.markdown) == "-":
            print(table)
        else:
            options.markdown.write_text(table, encoding="utf-8")
    bad = {Status.FAIL, Status.TIMEOUT, Status.NO_RESULT}
    return int(any(outcome.status in bad for outcome in results.values()))


if __name__ == "__main__":
    sys.exit(main())
