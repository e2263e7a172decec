# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx --help``: every command under a heading that says what it is for, and where to read on."""

from __future__ import annotations

import subprocess
import sys

from swtdx.cli.app import COMMANDS, PANELS


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
