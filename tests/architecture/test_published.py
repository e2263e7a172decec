# SPDX-License-Identifier: GPL-2.0-or-later
"""What needs published material is one small folder; each file says why. A clone without it runs all the rest."""

from __future__ import annotations

import re
from pathlib import Path

from testing.places import REPOSITORY

FOLDER = REPOSITORY / "tests" / "published"
ELSEWHERE = {
    "testing/places.py": "says where the material is",
    "testing/published.py": "computes testing/published.json from it",
    "testing/fuzzing/parser_seeds.py": "damages real logs too, where there are any",
    "tests/conftest.py": "selects the folder where there is material",
    "tests/architecture/test_published.py": "this file",
}
NAMES = re.compile(r"reference_directory|shared_reference|SWTDX_SHARED|\.\./shared")


def python_files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def test_nothing_else_reads_the_material() -> None:
    readers = {
        str(path.relative_to(REPOSITORY))
        for path in python_files("tests", "testing", "src", "fuzz", "bench", "docs")
        if FOLDER not in path.parents and NAMES.search(path.read_text())
    }
    assert readers == set(ELSEWHERE)


def test_each_file_of_the_folder_gives_its_reason() -> None:
    files = sorted(FOLDER.glob("test_*.py"))
    assert 1 < len(files) <= 4
    for path in files:
        docstring = path.read_text().split('"""')[1]
        assert "\nWhy here: " in docstring, path
