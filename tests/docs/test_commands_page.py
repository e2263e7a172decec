# SPDX-License-Identifier: GPL-2.0-or-later
"""The page of all commands: each option stands there under every name that its help shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer.main

from swtdx.cli.app import whole_app
from testing.places import REPOSITORY


def options(command: Any, path: str) -> Iterator[tuple[str, set[str]]]:
    """(a command, all names of its options that are shown)."""
    for name, each in getattr(command, "commands", {}).items():
        yield from options(each, f"{path} {name}")
    if not hasattr(command, "commands"):
        shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        yield path, {name for each in shown for name in each.opts if name.startswith("-") and name != "--help"}


def test_every_name_of_an_option_is_there() -> None:
    program = "import sys; sys.path.insert(0, 'docs'); import generate; print(generate.commands())"
    page = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, check=True, capture_output=True, text=True, timeout=100
    ).stdout
    sections = {part.partition("\n")[0]: part for part in page.split("\n## ")[1:]}
    missing = {
        path: sorted(lacking)
        for path, names in options(typer.main.get_command(whole_app()), "swtdx")
        if (
            lacking := {
                name for name in names if f"`{name}`" not in sections[path] and f"`{name} " not in sections[path]
            }
        )
    }
    assert missing == {}
