# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest prints, judged by kselftest's rules: exit status 4 is a skip, and what a boot loses is run again."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from testing.selftests.outcome import Ended, Outcome, Status, judge, read_console, run_all


@pytest.mark.parametrize(
    ("status", "said", "expected"),
    [
        (0, "[OK]\tfine", Status.PASS),
        (0, "", Status.PASS),
        (0, "ok 1 first\nok 2 second # SKIP no hardware", Status.PASS),
        (0, "[SKIP]\tno hardware", Status.SKIP),
        (0, "1..0 # SKIP no hardware", Status.SKIP),
        (0, "not ok 2 second # XFAIL known", Status.PASS),
        (0, "[FAIL]\twrong\n[OK]\tright", Status.FAIL),
        (0, "not ok 2 second", Status.FAIL),
        (4, "ok 1 skipped # SKIP", Status.SKIP),
        (1, "[SKIP]\tno hardware", Status.SKIP),
        (139, "[SKIP]\tno hardware", Status.FAIL),
        (1, "[SKIP]\tone\n[FAIL]\tother", Status.FAIL),
        (139, "", Status.FAIL),
        (137, "[RUN]\tforever", Status.TIMEOUT),
    ],
)
def test_status_and_output_are_judged_as_kselftest_does(status: int, said: str, expected: Status) -> None:
    assert judge(status, said.splitlines()).status is expected


def test_a_reason_names_the_signal_and_the_first_failure() -> None:
    assert judge(139, ["[RUN]\tx", "[FAIL]\tthe register is wrong", "[OK]"]).reason == (
        "killed by SIGSEGV: the register is wrong"
    )
    assert judge(1, [], ["traps: x[1] general protection"]).reason == "exit status 1: traps: x[1] general protection"
    assert judge(4, ["[SKIP]\tno AMX"]).reason == "no AMX"


def test_a_console_with_other_lines_is_read() -> None:
    boot = read_console(
        "noise\r\nSELFTEST kernel 6.12\r\nSELFTEST begin a_64\r\nSELFTEST | [FAIL]\tbad\r\nSELFTEST end a_64 1\r\n"
        "[ 1.0] kernel line\r\nSELFTEST begin b_32\r\nSELFTEST | [OK]"
    )
    assert boot.kernel == "6.12"
    assert boot.outcomes["a_64"].status is Status.FAIL
    assert boot.unfinished == "b_32"
    assert not boot.done


def console(*finished: str, running: str = "") -> str:
    lines = ["SELFTEST kernel 6.12"]
    lines += [line for name in finished for line in (f"SELFTEST begin {name}", f"SELFTEST end {name} 0")]
    return "\n".join([*lines, f"SELFTEST begin {running}" if running else "SELFTEST done"])


def test_a_boot_that_ends_early_costs_one_test() -> None:
    asked: list[list[str]] = []
    answers = [Ended(console("a", running="b"), "no output for 9 s"), Ended(console("c", "d"))]

    def boot(programs: Sequence[str]) -> Ended:
        asked.append(list(programs))
        return answers.pop(0)

    version, outcomes = run_all(["a", "b", "c", "d"], boot)
    assert version == "6.12"
    assert asked == [["a", "b", "c", "d"], ["c", "d"]]
    assert {name: each.status for name, each in outcomes.items()} == {
        "a": Status.PASS,
        "b": Status.TIMEOUT,
        "c": Status.PASS,
        "d": Status.PASS,
    }


def test_a_guest_that_runs_nothing_ends_the_attempts() -> None:
    boots: list[int] = []

    def boot(programs: Sequence[str]) -> Ended:
        boots.append(len(programs))
        return Ended("panic", "swtdx run ended with status 3")

    _, outcomes = run_all(["a", "b"], boot)
    assert boots == [2]
    assert outcomes == dict.fromkeys(("a", "b"), Outcome(Status.NO_RESULT, "the guest did not reach it"))
