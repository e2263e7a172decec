# SPDX-License-Identifier: GPL-2.0-or-later
"""``script/kvm-selftests`` and ``script/kvm-unit-tests``: what they read from a tree and how they judge a run.

Formats: tools/testing/selftests/kselftest.h and kvm/Makefile.kvm of Linux; x86/unittests.cfg and docs/unittests.md of
kvm-unit-tests, whose exit statuses are in scripts/arch-run.bash.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from testing.kvmsuites import selftests, table, unittests
from testing.kvmsuites.command import chosen
from testing.kvmsuites.running import Ended, InputError, Outcome, Program, Status, run_all, run_once

MAKEFILE = """
TEST_GEN_PROGS_COMMON = demand_paging_test
TEST_GEN_PROGS_COMMON += guest_print_test
TEST_GEN_PROGS_x86 = $(TEST_GEN_PROGS_COMMON)
TEST_GEN_PROGS_x86 += x86/cpuid_test
TEST_GEN_PROGS_x86 += guest_print_test
TEST_GEN_PROGS_EXTENDED_x86 += x86/nx_huge_pages_test
TEST_GEN_PROGS_arm64 += arm64/hypercalls
"""
ASSERTION = """Random seed: 0x6b8b4567
==== Test Assertion Failure ====
  x86/debug_regs.c:195: run->exit_reason == KVM_EXIT_DEBUG
  pid=1 tid=1 errno=4 - Interrupted system call
     1\t0x0000000000402b70: main at debug_regs.c:195
  DR7.GD: exit 2
"""
CONFIG = '''
[x2apic]
file = apic.flat
smp = 2
qemu_params = -cpu qemu64,+x2apic,+tsc-deadline
arch = x86_64
timeout = 30

[cmpxchg8b]
file = cmpxchg8b.flat
arch = i386

[vmexit_cpuid]
file = vmexit.flat
test_args = 'cpuid'

[pcid-disabled]
file = pcid.flat
extra_params = -cpu qemu64,-pcid   # as old trees spell it

[long]
file = vmx.flat
test_args = """a*
b*"""
groups = vmx nodefault
'''


def test_the_list_of_selftests() -> None:
    assert selftests.names_in(MAKEFILE) == ["demand_paging_test", "guest_print_test", "x86/cpuid_test"]


@pytest.mark.parametrize(
    ("status", "output", "result", "reason"),
    [
        (0, "", Status.PASS, ""),
        (4, "1..0 # SKIP - Requirement not met: kvm_has_cap(KVM_CAP_X86_SMM)\n", Status.SKIP, "KVM_CAP_X86_SMM"),
        (254, ASSERTION, Status.FAIL, "x86/debug_regs.c:195: run->exit_reason == KVM_EXIT_DEBUG; DR7.GD: exit 2"),
        (1, "ok 1 a\nnot ok 2 global.the_quirk\n", Status.FAIL, "not ok: global.the_quirk"),
        (-11, "it began\n", Status.FAIL, "killed by signal 11; it began"),
        (None, "it began\n", Status.TIMEOUT, "did not end in 5 s"),
    ],
)
def test_how_a_selftest_ended(status: int | None, output: str, result: Status, reason: str) -> None:
    outcome = selftests.judge(Ended(status, output, 5.0))
    assert outcome.status is result
    assert reason in outcome.reason


def test_the_list_of_unit_tests() -> None:
    tests = {test.name: test for test in unittests.read_list(CONFIG)}
    assert list(tests) == ["x2apic", "vmexit_cpuid", "pcid-disabled", "long"]
    assert (tests["x2apic"].smp, tests["x2apic"].seconds) == ("2", 30)
    assert tests["x2apic"].arguments == ("-cpu", "qemu64,+x2apic,+tsc-deadline")
    assert tests["vmexit_cpuid"].arguments == ("-append", "cpuid")
    assert tests["pcid-disabled"].arguments == ("-cpu", "qemu64,-pcid")
    assert "nodefault" in tests["long"].groups
    assert tests["long"].arguments == ("-append", "a* b*")
    assert tests["x2apic"].command(Path("/b"))[-5:] == ("/b/x86/apic.flat", "-smp", "2", *tests["x2apic"].arguments)


@pytest.mark.parametrize(
    ("status", "output", "result", "reason"),
    [
        (1, "SUMMARY: 3 tests\n", Status.PASS, ""),
        (77, "SKIP: (0 tests) no PKS\nSUMMARY: 1 tests, 1 skipped\n", Status.SKIP, "no PKS"),
        (155, "SKIP: no such feature\n", Status.SKIP, "SKIP: no such feature"),
        (3, "PASS: a\nFAIL: b\nSUMMARY: 2 tests, 1 unexpected failures\n", Status.FAIL, "1 failed; FAIL: b; 2 tests"),
        (35, "Unhandled exception 13 #GP\n", Status.FAIL, "QEMU ended with 35; Unhandled exception 13 #GP"),
        (None, "enabling apic\n", Status.TIMEOUT, "the last line: enabling apic"),
    ],
)
def test_how_a_unit_test_ended(status: int | None, output: str, result: Status, reason: str) -> None:
    outcome = unittests.judge(Ended(status, output, 5.0))
    assert outcome.status is result
    assert reason in outcome.reason


@pytest.mark.parametrize("module", [selftests, unittests], ids=["selftests", "unit tests"])
def test_a_folder_that_is_no_tree(module: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main = module.main  # type: ignore[attr-defined]
    for tree in (tmp_path, tmp_path / "missing"):
        assert main([str(tree)]) == 2
        assert str(tree) in capsys.readouterr().err


def test_a_name_that_is_no_test() -> None:
    programs = [Program("a", ("true",), 1), Program("b", ("true",), 1)]
    assert chosen(programs, ["b"]) == programs[1:]
    with pytest.raises(InputError, match="--only c: not a test of this tree \\(it has a, b\\)"):
        chosen(programs, ["c"])


def test_a_program_that_does_not_end_is_ended_with_all_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    ended = run_once(("sh", "-c", f"sleep 60 & echo $! > {file}; echo began; wait"), 0.5, os.environ)
    assert ended.status is None
    assert ended.output == "began\n"
    stat = Path(f"/proc/{int(file.read_text())}/stat")
    assert not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z"


def test_tests_run_and_are_reported() -> None:
    code = "import sys; sys.exit({status})"
    programs = [
        Program(name, (sys.executable, "-c", code.format(status=status)), 30)
        for name, status in (("good", 0), ("bad", 1), ("other", 4))
    ]
    results = run_all(programs, selftests.judge, 2, os.environ)
    assert [outcome.status for outcome in results.values()] == [Status.PASS, Status.FAIL, Status.SKIP]
    assert table.totals(results) == "1 pass, 1 skip, 1 fail"
    shown = json.loads(table.as_json("suite", "6.16", results, lambda name, outcome: "because"))
    assert [test["reason"] for test in shown["tests"]] == ["", "because", "because"]
    assert "| `bad` | fail | because |" in table.markdown(results, lambda name, outcome: "because")
    assert "good" in table.text({"good": Outcome(Status.PASS)}, lambda name, outcome: "")


def test_a_command_in_the_arguments_is_run_when_the_test_starts(tmp_path: Path) -> None:
    """scripts/runtime.bash of kvm-unit-tests evaluates test_args in a shell: kvmclock_test is given the time."""
    (test,) = unittests.read_list('[clock]\nfile = clock.flat\ntest_args = "10 `echo 5; echo 6`"\n')
    shell, option, script = test.command(tmp_path)
    assert (shell, option) == ("sh", "-c")
    shown = subprocess.run(
        ["sh", "-c", script.replace("exec", "printf '%s|'", 1)], capture_output=True, text=True, check=True
    ).stdout.split("|")
    assert shown[0] == "qemu-system-x86_64"
    assert shown[-3:-1] == ["-append", "10 5\n6"]
