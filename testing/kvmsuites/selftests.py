# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/kvm-selftests KERNEL_TREE``: tools/testing/selftests/kvm of a Linux source tree under ``swtdx exec``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from testing.kvmsuites.command import checked, chosen, parser_of, report
from testing.kvmsuites.reasons import selftest_reason
from testing.kvmsuites.running import Ended, InputError, Outcome, Program, Status, run_all, swtdx_exec

SCRIPT = "script/kvm-selftests"
FOLDER = Path("tools/testing/selftests/kvm")
KSFT_SKIP, ASSERTION = 4, "==== Test Assertion Failure ===="
_LIST = re.compile(r"^TEST_GEN_PROGS_(COMMON|x86(?:_64)?)\s*\+?=\s*(.*)$", re.MULTILINE)
_SKIPPED = re.compile(r"^1\.\.0 # SKIP *-? *(.*)$", re.MULTILINE)
_NOT_OK = re.compile(r"^not ok \d+ (.*)$", re.MULTILINE)


def names_in(makefile: str) -> list[str]:
    """Return the programs for x86 that a Makefile.kvm names, in its order."""
    names = [name for _, words in _LIST.findall(makefile) for name in words.split() if not name.startswith("$")]
    return list(dict.fromkeys(names))


def read_tree(tree: Path) -> list[str]:
    """Return the tests of a kernel tree. Raise InputError if ``tree`` is not one."""
    if not tree.is_dir():
        raise InputError(f"{tree}: not a directory (name the top of a Linux source tree)")
    for name in ("Makefile.kvm", "Makefile"):
        makefile = tree / FOLDER / name
        if makefile.is_file() and (names := names_in(makefile.read_text(encoding="utf-8", errors="replace"))):
            return names
    raise InputError(f"{tree}: not a Linux source tree: it has no tests in {FOLDER}")


def version_of(tree: Path) -> str:
    """Return the tree's version, as its Makefile has it."""
    text = (tree / "Makefile").read_text(encoding="utf-8", errors="replace") if (tree / "Makefile").is_file() else ""
    values = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$", text, re.MULTILINE))
    numbers = [values[name] for name in ("VERSION", "PATCHLEVEL", "SUBLEVEL") if values.get(name)]
    return ".".join(numbers) + values.get("EXTRAVERSION", "") if numbers else "unknown"


def _make(arguments: Sequence[str], what: str) -> str:
    done = subprocess.run(["make", *arguments], capture_output=True, text=True, errors="replace", check=False)
    if done.returncode and what:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InputError(f"{what}: make failed: {lines[0] if lines else done.returncode}")
    return done.stderr


def build(tree: Path, folder: Path, jobs: int) -> str:
    """Build the tests of ``tree`` in ``folder``. Return what the compiler printed. Raise InputError."""
    for tool in ("make", "gcc", "rsync"):  # rsync: headers_install
        if shutil.which(tool) is None:
            raise InputError(f"{tool} is needed to build the tests: install the package {tool}")
    headers = folder / "usr"
    _make(
        ["-s", "-C", str(tree), f"O={folder / 'headers'}", "ARCH=x86", f"INSTALL_HDR_PATH={headers}",
         "headers_install"],
        f"{tree}: headers_install",
    )  # fmt: skip
    # One test that does not compile must not hide the others (-k).
    return _make(
        ["-s", "-k", f"-j{jobs}", "-C", str(tree / FOLDER), "ARCH=x86", f"OUTPUT={folder}", f"top_srcdir={tree}",
         f"KHDR_INCLUDES=-isystem {headers / 'include'}"],
        "",
    )  # fmt: skip


def judge(ended: Ended) -> Outcome:
    """Read the outcome from how a selftest ended (tools/testing/selftests/kselftest.h)."""
    lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
    if ended.status is None:
        return Outcome(Status.TIMEOUT, f"did not end in {ended.seconds:.0f} s", ended.seconds, ended.output)
    if ended.status == 0:
        return Outcome(Status.PASS, "", ended.seconds, ended.output)
    skipped = _SKIPPED.search(ended.output)
    if ended.status == KSFT_SKIP:
        reason = skipped.group(1) if skipped else (lines[-1] if lines else "")
        return Outcome(Status.SKIP, reason, ended.seconds, ended.output)
    if ASSERTION in ended.output:
        after = ended.output.partition(ASSERTION)[2].splitlines()
        shown = [line.strip() for line in after if line.strip() and not re.match(r"\s*(pid=|\d+\t)", line)]
        reason = "; ".join((*shown[:1], *shown[-1:])) if shown else ""
    elif broken := _NOT_OK.findall(ended.output):
        reason = "not ok: " + ", ".join(broken)
    else:
        reason = (f"killed by signal {-ended.status}; " if ended.status < 0 else "") + (lines[-1] if lines else "")
    return Outcome(Status.FAIL, reason, ended.seconds, ended.output)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return the exit status."""
    parser = parser_of(
        SCRIPT, "Build tools/testing/selftests/kvm of a Linux source tree, run each test under `swtdx exec`, and print "
        "a table.", "KERNEL_TREE",
        [f"{SCRIPT} ~/src/linux", f"{SCRIPT} ~/src/linux --only x86/set_sregs_test --output",
         f"{SCRIPT} ~/src/linux --build /tmp/kvm --json"],
    )  # fmt: skip
    options = checked(parser, arguments)
    try:
        tree = options.tree.resolve()
        names = read_tree(tree)
        with tempfile.TemporaryDirectory(prefix="swtdx-kvm-selftests-") as scratch:
            folder = (options.build or Path(scratch)).resolve()
            folder.mkdir(parents=True, exist_ok=True)
            prefix = swtdx_exec("--quiet", *options.exec)
            programs = [Program(name, (*prefix, str(folder / name)), options.seconds) for name in names]
            wanted = chosen(programs, options.only)
            print(f"{SCRIPT}: building in {folder}", file=sys.stderr)
            said = build(tree, folder, options.jobs)
            built = [program for program in wanted if (folder / program.name).is_file()]
            results = {program.name: Outcome(Status.NOT_BUILT, _error_of(program.name, said)) for program in wanted}
            results |= run_all(built, judge, options.jobs, os.environ)
    except (InputError, OSError) as error:
        print(f"{SCRIPT}: {error}", file=sys.stderr)
        return 2
    return report(options, "KVM selftests of Linux", version_of(tree), results, selftest_reason)


def _error_of(name: str, said: str) -> str:
    lines = [line for line in said.splitlines() if "error:" in line]
    return next((line for line in lines if name in line), lines[0] if lines else "make built no such program")


if __name__ == "__main__":
    sys.exit(main())
