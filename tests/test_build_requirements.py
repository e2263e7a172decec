# SPDX-License-Identifier: GPL-2.0-or-later
"""What the build starts or imports is among what it requires: pip's own environment for a build has nothing else."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from testing.places import REPOSITORY

BUILT_BY = [REPOSITORY / "setup.py", REPOSITORY / "native/unicorn.py"]
"""The other programs of native/ are started by people and by script/wheel, in the project's own environment."""
IMPORTED_AS = {"patch-ng": "patch_ng"}


def _required() -> set[str]:
    with (REPOSITORY / "pyproject.toml").open("rb") as file:
        listed = tomllib.load(file)["build-system"]["requires"]
    return {re.split(r"[<>=!~ ]", name)[0] for name in listed}


def used(source: str) -> Iterator[str]:
    """The modules that a file imports or starts with ``-m``, and the programs whose presence it asks for."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        elif isinstance(node, (ast.List, ast.Tuple)):
            words = [item.value for item in node.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)]
            yield from (after for before, after in pairwise(words) if before == "-m")


@pytest.mark.parametrize("path", BUILT_BY, ids=lambda path: path.name)
def test_a_build_uses_only_what_it_requires(path: Path) -> None:
    required = {IMPORTED_AS.get(one, one) for one in _required()}
    own = {file.stem for file in BUILT_BY}
    found = set(used(path.read_text(encoding="utf-8")))
    assert found - required - own - sys.stdlib_module_names == set()


def test_the_programs_that_a_build_looks_for_are_required() -> None:
    source = (REPOSITORY / "native/unicorn.py").read_text(encoding="utf-8")
    looked_for = re.search(r"for tool in \(([^)]*)\)", source)
    assert looked_for is not None
    assert set(re.findall(r'"(\w+)"', looked_for[1])) <= _required()


def test_what_is_missing_would_be_found() -> None:
    assert set(used('import a.b\nfrom c import d\nrun([x, "-m", "pip", "y"])')) == {"a", "c", "pip"}
