# SPDX-License-Identifier: GPL-2.0-or-later
"""The tests that the documentation names as what shows a claim are there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_NAMED = re.compile(r"`(tests/[\w/]+\.py)?::(\w+)`")


def named() -> Iterator[tuple[str, str, str]]:
    """Yield (page, file, test); a name without a file is of the file named last before it on the line."""
    for page in sorted(ROOT.glob("docs/**/*.md")):
        for line in page.read_text().splitlines():
            file = ""
            for match in _NAMED.finditer(line):
                file = match[1] or file
                yield page.name, file, match[2]


@pytest.mark.parametrize(("page", "file", "test"), sorted(set(named())))
def test_a_named_test_exists(page: str, file: str, test: str) -> None:
    assert file, f"{page}: {test} comes before any file"
    tree = ast.parse((ROOT / file).read_text())
    assert test in {each.name for each in tree.body if isinstance(each, ast.FunctionDef)}


def test_some_are_named() -> None:
    assert len(list(named())) > 20
