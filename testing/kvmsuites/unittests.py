# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/kvm-unit-tests TREE``: kvm-unit-tests for x86-64 in QEMU under ``swtdx exec``."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from testing.kvmsuites.command import checked, chosen, parser_of, report
from testing.kvmsuites.reasons import unit_test_reason
from testing.kvmsuites.running import Ended, InputError, Outcome, Program, Status, run_all, swtdx_exec

SCRIPT, QEMU = "script/kvm-unit-tests", "qemu-system-x86_64"
LIST = Path("x86/unittests.cfg")
# isa-debug-exit ends QEMU with twice the guest's code plus 1 (scripts/arch-run.bash of kvm-unit-tests).
# All tests skipped is 77 >> 1 in the guest (lib/report.c), so that the status is 77.
_PASSED, _SKIPPED = 1, (77, 77 << 1 | 1)
_BOARD = (
    "-nodefaults", "--no-reboot", "-device", "pc-testdev", "-device", "isa-debug-exit,iobase=0xf4,iosize=0x4",
    "-global", "kvm-pit.lost_tick_policy=discard", "-display", "none", "-serial", "stdio", "-device", "pci-testdev",
    "-machine", "accel=kvm",
)  # fmt: skip


@dataclass(frozen=True)
class UnitTest:
    """A section of unittests.cfg."""

    name: str
    file: str
    smp: str
    arguments: tuple[str, ...]
    groups: frozenset[str]
    seconds: float | None

    def command(self, folder: Path) -> tuple[str, ...]:
        """Return QEMU's command line, as x86/run builds it: a shell fills in `date` when the test starts."""
        words = (QEMU, *_BOARD, "-kernel", str(folder / "x86" / self.file), "-smp", self.smp, *self.arguments)
        if not any("`" in word for word in words):
            return words
        return ("sh", "-c", " ".join(("exec", *(f'"{word}"' if "`" in word else shlex.quote(word) for word in words))))


def read_list(text: str) -> list[UnitTest]:
    """Return the tests of a unittests.cfg that run on x86-64. Raise InputError if it cannot be read."""
    parser = configparser.ConfigParser(interpolation=None, strict=False, inline_comment_prefixes=("#",))
    try:
        # A value between triple double quotes continues on the next lines, which configparser takes when indented.
        parser.read_string(re.sub(r'"{3}(.*?)"{3}', lambda value: " ".join(value[1].split()), text, flags=re.DOTALL))
    except configparser.Error as error:
        raise InputError(f"{LIST}: {str(error).splitlines()[0]}") from error
    tests = []
    for name in parser.sections():
        section = parser[name]
        if section.get("arch", "x86_64") != "x86_64" or "file" not in section:
            continue
        arguments = shlex.split(section.get("qemu_params", section.get("extra_params", "")))
        if words := section.get("test_args"):
            arguments += ["-append", shlex.split(words)[0] if words[:1] in "'\"" else words]
        seconds = section.get("timeout")
        tests.append(
            UnitTest(
                name, section["file"], section.get("smp", "1"), tuple(arguments),
                frozenset(section.get("groups", "").split()),
                float(seconds) if seconds and seconds.isdigit() and int(seconds) else None,
            )
        )  # fmt: skip
    return tests


def read_tree(tree: Path) -> list[UnitTest]:
    """Return the tests of a tree. Raise InputError if ``tree`` is not one of kvm-unit-tests."""
    if not (tree / LIST).is_file() or not (tree / "configure").is_file():
        raise InputError(f"{tree}: not a source tree of kvm-unit-tests: it has no {LIST}")
    return read_list((tree / LIST).read_text(encoding="utf-8", errors="replace"))


def build(tree: Path, folder: Path, jobs: int) -> None:
    """Configure and build in ``folder``. Raise InputError if that fails."""
    for tool in ("make", "gcc"):
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is needed to build the tests: install the package {tool}")
    for words in (("bash", str(tree / "configure"), "--arch=x86_64"), ("make", "-s", f"-j{jobs}")):
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            raise InputError(f"{tree}: {words[0]} failed: {lines[-1] if lines else done.returncode}")


def judge(ended: Ended) -> Outcome:
    """Read the outcome from QEMU's exit status."""
    failed = [line.strip() for line in ended.output.splitlines() if line.startswith("FAIL")]
    summary = re.findall(r"^SUMMARY: (.*)$", ended.output, re.MULTILINE)
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    if ended.status is None:
        last = f"; the last line: {lines[-1]}" if lines else ""
        return Outcome(Status.TIMEOUT, f"did not end in {ended.seconds:.0f} s{last}", ended.seconds, ended.output)
    if ended.status == _PASSED:
        return Outcome(Status.PASS, "", ended.seconds, ended.output)
    if ended.status in _SKIPPED:
        skips = [line.strip() for line in lines if "SKIP" in line or "skip" in line]
        reason = skips[0] if skips else lines[-1] if lines else ""
        return Outcome(Status.SKIP, reason, ended.seconds, ended.output)
    if failed:
        reason = "; ".join((f"{len(failed)} failed", *failed[:4], *(["..."] if len(failed) > 4 else []), *summary))
    else:
        reason = f"QEMU ended with {ended.status}; " + (lines[-1] if lines else "no output")
    return Outcome(Status.FAIL, reason, ended.seconds, ended.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = parser_of(
        SCRIPT, "Build kvm-unit-tests for x86-64, run each test in QEMU under `swtdx exec`, and print a table.", "TREE",
        [f"{SCRIPT} ~/src/kvm-unit-tests", f"{SCRIPT} ~/src/kvm-unit-tests --only msr --only debug --output",
         f"{SCRIPT} ~/src/kvm-unit-tests --build /tmp/kut --json"],
    )  # fmt: skip
    parser.add_argument("--all", action="store_true", help="also the tests of the group nodefault")
    options = checked(parser, arguments)
    try:
        tree = options.tree.resolve()
        tests = read_tree(tree)
        if shutil.which(QEMU) is None:
            raise InputError(f"{QEMU} is needed to run the tests: install the package qemu-system-x86")
        with tempfile.TemporaryDirectory(prefix="swtdx-kvm-unit-tests-") as scratch:
            folder = (options.build or Path(scratch)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            prefix = swtdx_exec("--quiet", *options.exec)
            programs = [
                Program(test.name, (*prefix, *test.command(folder)), max(options.seconds, test.seconds or 0))
                for test in tests
                if options.all or options.only or "nodefault" not in test.groups
            ]
            wanted = chosen(programs, options.only)
            print(f"{SCRIPT}: building in {folder}", file=sys.stderr)
            build(tree, folder, options.jobs)
            results = run_all(wanted, judge, options.jobs, os.environ)
    except (InputError, OSError) as error:
        print(f"{SCRIPT}: {error}", file=sys.stderr)
        return 2
    return report(options, "kvm-unit-tests", "", results, unit_test_reason)


if __name__ == "__main__":
    sys.exit(main())
