# SPDX-License-Identifier: GPL-2.0-or-later
"""Shell completion and the manners of the command line as a whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from swtdx.cli.app import COMMANDS
from tests.cli.conftest import Command

SWTDX = Path(sys.executable).with_name("swtdx")


def completed(words: str) -> list[str]:
    """What bash would be offered after these words, by the script that ``swtdx completion bash`` prints."""
    if not SWTDX.exists() or shutil.which("bash") is None:
        pytest.skip("NOT SHOWN: completion in bash; there is no bash, or swtdx is not installed beside this Python")
    script = subprocess.run([SWTDX, "completion", "bash"], capture_output=True, text=True, check=True).stdout
    function = re.search(r"^(\w+)\(\)", script, re.MULTILINE)
    assert function is not None
    ask = f"""{script}
    COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )); COMP_LINE="{words}"; COMP_POINT=${{#COMP_LINE}}
    {function[1]} swtdx "${{COMP_WORDS[COMP_CWORD]}}" ; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    environment = os.environ | {"PATH": f"{SWTDX.parent}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, env=environment, timeout=60, check=True)
    return [word.strip() for word in done.stdout.split("\n") if word.strip()]


def test_commands_are_completed() -> None:
    assert set(completed("swtdx re")) == {name for name in ("run", *COMMANDS) if name.startswith("re")}


def test_sub_commands_and_options_are_completed() -> None:
    assert {"parse", "html"} <= set(completed("swtdx report ''"))
    assert "--trace-format" in completed("swtdx run --tr")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(command: Command, shell: str) -> None:
    result = command("completion", shell)
    assert result.status == 0
    assert "_SWTDX_COMPLETE" in result.out


def test_a_shell_that_is_not_known(command: Command) -> None:
    assert command("completion", "tcsh").status == 1


@pytest.mark.parametrize("name", ["run", *COMMANDS])
def test_help_has_a_sentence_and_no_colours_in_a_pipe(command: Command, name: str) -> None:
    result = command(name, "--help")
    assert result.status == 0
    assert "\x1b" not in result.out + result.err
    assert f"swtdx {name}" in result.out


def test_every_command_shows_examples() -> None:
    from swtdx.cli.app import whole_app

    app = whole_app()
    commands = list(app.registered_commands)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        commands += group.typer_instance.registered_commands
    assert len(commands) > 8
    for heading in ("Examples", "Exit status"):
        without = [each.callback.__name__ for each in commands if each.callback and heading not in (each.epilog or "")]
        assert without == [], heading


def test_a_switch_says_nothing_of_a_value_to_give(command: Command) -> None:
    for name in ("", "run", "explain", "quote"):
        shown = command(*filter(None, [name]), "--help").out
        assert not re.search(r"--(help|json|quiet|version|rng)\b.*<bool>", shown)


def test_leaf_functions_and_ioctls_are_completed() -> None:
    assert completed("swtdx seamcall show TDG.MR.R") == ["TDG.MR.RTMR.EXTEND", "TDG.MR.REPORT"]
    assert "KVM_TDX_INIT_VM" in completed("swtdx explain EIO --command KVM_TDX_INI")
