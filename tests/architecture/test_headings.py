# SPDX-License-Identifier: GPL-2.0-or-later
"""One style of heading inside a file: ``# --- what follows ---...``, dashes up to column 120."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from testing.places import REPOSITORY

FOLDERS = ("src", "tests", "testing", "bench", "fuzz", "docs", "native")
HEADING = re.compile(r" *# --- \S.* -+")
WIDTH = 120


def wrong_headings(text: str) -> list[tuple[int, str]]:
    """(line, text) of comments that are headings, in another style.

    A heading is a comment of one line with an empty line before and after it, or with dashes around it.
    """
    lines = ["", *text.splitlines(), ""]
    found = []
    for number in range(4, len(lines) - 1):  # licence and docstring come first
        line = lines[number]
        comment = line.strip()
        if not comment.startswith("#"):
            continue
        alone = not lines[number - 1].strip() and not lines[number + 1].strip()
        dashed = bool(re.match(r"#\s*-", comment) or re.search(r"-{4,}$", comment))
        if (alone or dashed) and not (HEADING.fullmatch(line) and len(line) == WIDTH):
            found.append((number, comment))
    return found


def test_headings_have_one_style() -> None:
    files = [file for folder in FOLDERS for file in sorted((REPOSITORY / folder).rglob("*.py"))]
    names = [(file, file.relative_to(REPOSITORY).as_posix()) for file in files if "_build" not in file.parts]
    found = [
        f"{name}:{number}: {text}"
        for file, name in names
        for number, text in wrong_headings(Path(file).read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize("line", ["# Life", "# -- life -----", "# Memory ------", "# --- life -----", "    # Calls"])
def test_another_style_is_found(line: str) -> None:
    assert wrong_headings(f"# licence\n'''doc'''\n\n\n{line}\n\nx = 1\n") == [(5, line.strip())]


def test_comments_at_code_are_no_headings() -> None:
    heading = "# --- life " + "-" * (WIDTH - 11)
    assert (
        wrong_headings(f"# licence\n'''doc'''\n\n{heading}\n\n# why\nx = 1  # --- so\n\nif x:\n    # and\n    y = 2\n")
        == []
    )
