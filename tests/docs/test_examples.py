# SPDX-License-Identifier: GPL-2.0-or-later
"""Workflows and examples: each command line of swtdx in them is one that swtdx takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from swtdx.cli.app import whole_app
from testing.places import REPOSITORY

FILES = sorted(
    [*REPOSITORY.glob("examples/*.yml"), *REPOSITORY.glob(".github/workflows/*.yml"), REPOSITORY / "action.yml"]
)


def command_lines(path: Path) -> Iterator[list[str]]:
    """The words of each call of swtdx in a workflow, continued lines put together."""
    text = re.sub(r"\\\n\s*", "", path.read_text(encoding="utf-8"))
    for line in text.splitlines():
        match = re.match(r"\s*(?:- run: |- )?(swtdx .*)", line)
        if match is not None:
            words = shlex.split(re.sub(r"\$\{\{.*?\}\}", "7.2", match[1]).split("||")[0])
            yield words[1 : words.index(">") if ">" in words else None]


def refusals(words: list[str]) -> Iterator[str]:
    """What of a call is neither a command nor an option of it."""
    at: Any = typer.main.get_command(whole_app())
    words = words[: words.index("--")] if "--" in words else words
    while words and hasattr(at, "commands"):
        if words[0].startswith("-"):
            break
        if words[0] not in at.commands:
            yield words[0]
            return
        at, words = at.commands[words[0]], words[1:]
    known = {name for parameter in at.params for name in (*parameter.opts, *parameter.secondary_opts)}
    yield from (word for word in words if word.startswith("--") and word.partition("=")[0] not in known)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_commands_and_options_are_those_that_there_are(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: GPL-2.0-or-later\n")
    assert [found for words in command_lines(path) for found in refusals(words)] == []


def test_a_mistake_would_be_found() -> None:
    assert list(refusals(["run", "--firmwear", "x"])) == ["--firmwear"]
    assert list(refusals(["quote", "mkae"])) == ["mkae"]


def test_the_examples_are_listed_and_have_calls() -> None:
    listed = (REPOSITORY / "examples/README.md").read_text(encoding="utf-8")
    for path in REPOSITORY.glob("examples/*.yml"):
        assert f"({path.name})" in listed
        assert list(command_lines(path))
