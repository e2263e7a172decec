# SPDX-License-Identifier: GPL-2.0-or-later
"""Tests, fuzzer and benchmark share `testing`; it imports none of them, and they do not import each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from testing.places import REPOSITORY
from tests.architecture.sources import imports_and_calls

MAY_IMPORT = {
    "testing": {"testing", "guest"},  # guest writes the initrd, and imports none of these
    "bench": {"bench", "testing", "guest"},
    "fuzz": {"fuzz", "testing"},
    "tests": {"tests", "testing", "guest"},
}


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """(place, top-level package of this repository) of each import, also those by ``import_module``."""
    for file in sorted((REPOSITORY / folder).rglob("*.py")):
        for node in imports_and_calls(file):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names = [node.module]
            elif isinstance(node, ast.Call):
                names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
            for name in names:
                assert isinstance(node, ast.stmt | ast.expr)
                yield f"{file.relative_to(REPOSITORY)}:{node.lineno}", name.split(".")[0]


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_shared_code_is_below_its_users(folder: str) -> None:
    ours = {"testing", "bench", "fuzz", "tests", "guest"}
    found = [f"{place} imports {name}" for place, name in imports(folder) if name in ours - MAY_IMPORT[folder]]
    assert found == []
