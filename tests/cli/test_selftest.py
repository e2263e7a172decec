# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx selftest``: a line for each step, the exit status, and the step that fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from swtdx.image.mrtd import MrtdPredictor
from swtdx.quoting.enclave import QeError, QuotingEnclave, QuotingError
from tests.cli.conftest import Command

STEPS = ["engine", "machine", "TD", "MRTD", "run", "TDREPORT", "quote"]


def test_every_step_has_its_line(command: Command) -> None:
    done = command("selftest")
    assert (done.status, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[:2] for line in lines] == [["ok", step] for step in STEPS]
    assert "TCB status UpToDate" in done.out


def test_as_json_and_quiet(command: Command) -> None:
    found = json.loads(command("selftest", "--json").out)
    assert found["passed"]
    assert [(each["step"], each["passed"]) for each in found["steps"]] == [(step, True) for step in STEPS]
    assert command("selftest", "--quiet").out == ""


def test_the_first_step_that_fails_is_named_and_the_last(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MrtdPredictor, "digest", lambda self: bytes(48))
    done = command("selftest", "--quiet")
    assert done.status == 2
    assert done.out.startswith("FAILED  MRTD ")
    assert "predicted is 0000" in done.out
    found = json.loads(command("selftest", "--json").out)
    assert [each["passed"] for each in found["steps"]] == [True, True, True, False]


def test_a_refusal_of_a_layer_below_is_named(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: QuotingEnclave, report: bytes) -> bytes:
        raise QuotingError(next(iter(QeError)), "no key")

    monkeypatch.setattr(QuotingEnclave, "quote", refuse)
    done = command("selftest")
    assert (done.status, done.out.splitlines()[-1].split()[:2]) == (2, ["FAILED", "TDREPORT"])


@pytest.mark.slow
def test_it_needs_no_home_and_writes_no_file(tmp_path: Path) -> None:
    environment = {"PATH": os.defpath, "HOME": "/nonexistent"}
    arguments = [sys.executable, "-m", "swtdx", "selftest"]
    done = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert list(tmp_path.iterdir()) == []
