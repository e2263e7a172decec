# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx --help``: every command under a heading that says what it is for, and where to read on."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import typer.main

from swtdx.cli.app import COMMANDS, PANELS, whole_app


def test_every_command_is_in_one_panel() -> None:
    listed = [command for commands in PANELS.values() for command in commands]
    assert sorted(listed) == sorted(["run", *COMMANDS])


def test_the_help_shows_each_panel_with_its_commands_and_the_manual() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "swtdx", "--help"], capture_output=True, text=True, check=True, timeout=60
    ).stdout
    sections = shown.split("╭─ ")[1:]
    named = {section.partition(" ─")[0]: section for section in sections}
    assert [name for name in named if name != "Options"] == list(PANELS)
    for name, commands in PANELS.items():
        for command in commands:
            assert f"│ {command} " in named[name]
    assert "man swtdx" in shown


def _leaves(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of each command."""
    if not hasattr(command, "commands"):
        yield path
        return
    for name, each in command.commands.items():
        yield from _leaves(each, (*path, name))


def test_examples_fill_no_screens(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each, what is longer indented below it; nothing wider than the terminal, no empty line among them."""
    monkeypatch.setenv("COLUMNS", "80")
    command = typer.main.get_command(whole_app())
    seen = 0
    for words in _leaves(command):
        with pytest.raises(SystemExit):
            command([*words, "--help"], prog_name="swtdx")
        help_ = capsys.readouterr().out
        assert all(len(line) <= 80 for line in help_.splitlines()), words
        below = help_.rpartition("╯")[2].strip().split("\n\n")
        headings = [part.strip().splitlines()[0].strip() for part in below]
        assert {"Examples", "Exit status"} <= set(headings), (words, headings)
        examples = next(part for part in below if part.strip().startswith("Examples"))
        assert all(line.startswith((" swtdx ", "   ")) or "swtdx" in line for line in examples.splitlines()[1:]), words
        seen += 1
    assert seen > 20


def test_what_options_and_arguments_take_is_said_in_one_style(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In capitals or as a choice of words, as in the text of the pages: no name of a Python type, no braces."""
    monkeypatch.setenv("COLUMNS", "200")
    command = typer.main.get_command(whole_app())
    for words in _leaves(command):
        with pytest.raises(SystemExit):
            command([*words, "--help"], prog_name="swtdx")
        above = capsys.readouterr().out.partition("Examples")[0]
        usage = next(line for line in above.splitlines() if "Usage:" in line).partition("[OPTIONS]")[2]
        assert not re.search(r"[{}]|\[\[A|\]\]", usage), usage
        assert usage == usage.upper() or words == ("completion",), usage
        taken = re.findall(r"^│ +--\S+ +(?:-[a-z] +)?(\S.*?)  ", above, re.MULTILINE)
        assert not [each for each in taken if re.match(r"<|(?:str|path|int|float|bool)\b", each)], words
