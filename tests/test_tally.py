# SPDX-License-Identifier: GPL-2.0-or-later
"""What a run says at its end is the same whether one process ran the tests or several."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONFTEST = """
from testing import tally

def pytest_configure(config):
    config.pluginmanager.register(tally)

def pytest_sessionfinish(session):
    if not hasattr(session.config, "workerinput"):
        tally.LINES.append(f"met {sorted(tally.gathered('things'))} in {sorted(tally.ran())}")
"""
TEST = """
from testing.tally import LINES, gathered

def test_it():
    gathered("things").add(({name!r}, {number}))
    LINES.append("a line of {name}")
"""


@pytest.mark.parametrize("workers", ["0", "2"])
def test_the_summary_is_of_all_processes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    pytester.makeconftest(CONFTEST)
    numbers = {"one": 1, "two": 0xFFFF_FFFF_FFFF_FFFF}  # statuses have 64 bits
    pytester.makepyfile(**{f"test_{name}": TEST.format(name=name, number=n) for name, n in numbers.items()})
    result = pytester.runpytest_subprocess("-n", workers)
    result.assert_outcomes(passed=2)
    files = ["test_one.py", "test_two.py"]
    result.stdout.fnmatch_lines_random(
        ["a line of one", "a line of two", f"met {sorted(numbers.items())} in {files}".replace("[", "[[]")]
    )
