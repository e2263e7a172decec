# SPDX-License-Identifier: GPL-2.0-or-later
"""No function is longer than a screen: 80 lines, its signature and docstring included."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from testing.places import REPOSITORY
from tests.architecture.sources import parsed, statements

LONGEST = 80
FOLDERS = ("src", "testing", "tests", "bench", "fuzz", "docs", "guest", "native")


def functions() -> Iterator[tuple[int, str]]:
    """(lines, place) of every function."""
    for folder in FOLDERS:
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            for node in statements(parsed(file)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    length = (node.end_lineno or node.lineno) - node.lineno + 1
                    yield length, f"{file.relative_to(REPOSITORY)}:{node.lineno} {node.name}"


def test_no_function_is_longer_than_a_screen() -> None:
    assert [f"{place}: {length} lines" for length, place in functions() if length > LONGEST] == []
