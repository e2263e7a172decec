# SPDX-License-Identifier: GPL-2.0-or-later
"""Our own C has one form: that of ``.clang-format``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = {"swtdx_host_table.h", "swtdx_vex_table.h"}
FILES = sorted(
    path.relative_to(ROOT)
    for folder in ("engine", "preload", "notify")
    for path in (ROOT / "native" / folder).glob("*.[ch]")
    if path.name not in GENERATED
)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_file_is_formatted(path: Path) -> None:
    formatter = Path(sys.executable).parent / "clang-format"
    formatted = subprocess.run([formatter, path], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    if formatted != (ROOT / path).read_text():
        pytest.fail(f"run '.venv/bin/clang-format -i {path}'")
