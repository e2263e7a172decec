# SPDX-License-Identifier: GPL-2.0-or-later
"""Python files as trees, each parsed once for all tests of a process."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

CALLS = ("import_module", "__import__")
"""Functions that import by name."""


@cache
def parsed(file: Path) -> ast.Module:
    """A file that does not change while the tests run, as its tree."""
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def statements(tree: ast.AST) -> Iterator[ast.stmt]:
    """All statements, wherever they stand. What is in expressions is not looked at, which is most of a tree."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(tree, name, ())
        for node in inner if isinstance(inner, list) else ():
            if isinstance(node, ast.stmt):
                yield node
            yield from statements(node)


def imports_and_calls(file: Path) -> Iterator[ast.stmt | ast.expr]:
    """The import statements of a file, and its calls of `CALLS`."""
    text = file.read_text(encoding="utf-8")
    tree = parsed(file)
    yield from (node for node in statements(tree) if isinstance(node, ast.Import | ast.ImportFrom))
    if any(name in text for name in CALLS):
        yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call) and called(node) in CALLS)


def called(node: ast.Call) -> str:
    """The last part of the name of what is called."""
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
