# SPDX-License-Identifier: GPL-2.0-or-later
"""``--help`` of the scripts: the comment at their beginning, and nothing is set up, fetched or run for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from testing.places import REPOSITORY

HELPED_BY_PYTHON = {"bench", "engine", "fuzz", "kvm-selftests", "kvm-unit-tests", "run", "selftests-x86"}
"""They hand their arguments to a program that has its own help."""
SCRIPTS = sorted(path.name for path in (REPOSITORY / "script").iterdir() if path.is_file())


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name not in HELPED_BY_PYTHON])
def test_a_script_prints_its_usage(name: str, tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    for option in ("--help", "-h"):
        done = subprocess.run(
            [REPOSITORY / "script" / name, option],
            cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        assert f"script/{name}" in done.stdout
        assert not done.stdout.startswith("#")
    assert not list(tmp_path.iterdir())
