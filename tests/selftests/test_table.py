# SPDX-License-Identifier: GPL-2.0-or-later
"""The initrd and the table that script/selftests-x86 makes, without a kernel tree and without a boot."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from testing.places import REPOSITORY
from testing.selftests import reasons
from testing.selftests.guest import linux_in
from testing.selftests.makefile import Test
from testing.selftests.outcome import Outcome, Status
from testing.selftests.programs import Built, InputError, pack
from testing.selftests.table import markdown, rows_of, text
from tests.selftests.test_makefile import tree_with

TESTS = [Test("both", 64), Test("both", 32), Test("wide", 64)]


def test_the_initrd_has_what_was_built_and_its_list() -> None:
    archive = pack(b"BUSYBOX", [Built(TESTS[0], b"PROGRAM"), Built(TESTS[1], failure="no")], 7)
    assert b"tests/both_64\0" in archive
    assert b"both_64\n" in archive
    assert b"both_32" not in archive
    assert b"timeout -s KILL 7 " in archive


def test_a_row_has_each_guest_and_a_note_for_what_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(reasons.REASONS, "both", [("analysed part", "An explanation.")])
    results = {
        ("VM", "both_64"): Outcome(Status.PASS),
        ("VM", "both_32"): Outcome(Status.FAIL, "the analysed part"),
        ("VM", "wide_64"): Outcome(Status.SKIP, "no | hardware"),
        ("TD", "both_64"): Outcome(Status.PASS),
        ("TD", "both_32"): Outcome(Status.FAIL, "something else"),
        ("TD", "wide_64"): Outcome(Status.SKIP, "no | hardware"),
    }
    rows = rows_of(TESTS, results, ("VM", "TD"))
    assert rows[0].notes() == ["VM 32: An explanation.", "TD 32: something else"]
    assert "| `wide` | skip | - | skip | - | no \\| hardware |" in markdown(rows, ("VM", "TD"))
    shown = text(rows, ("VM", "TD"))
    assert "2 pass, 2 skip, 2 fail" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("both")] == [
        ["both", "pass", "fail", "pass", "fail"]
    ]


def test_a_folder_without_a_kernel_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="SWTDX_LINUX is not set"):
        linux_in(None)
    with pytest.raises(InputError, match="has no boot/vmlinuz"):
        linux_in(str(tmp_path))


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ([], "not a Linux source tree"),
        (["--only", "nothing"], "--only nothing: not a test of this tree (it has added, both"),
        (["--vm", "--td"], "not allowed with"),
        (["--seconds", "0"], "--seconds wants a positive number"),
    ],
)
def test_bad_input_is_answered_by_a_sentence(more: list[str], sentence: str, tmp_path: Path) -> None:
    if more:
        tree_with(tmp_path)
    command = [sys.executable, "-m", "testing.selftests", str(tmp_path), *more]
    result = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, check=False)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr
