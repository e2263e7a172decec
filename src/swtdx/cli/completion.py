# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx completion``: the script with which a shell completes swtdx's commands and options."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer
from typer.completion import get_completion_script  # type: ignore[attr-defined]

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx completion bash > ~/.local/share/bash-completion/completions/swtdx[/cyan]

[cyan]swtdx completion zsh > ~/.zfunc/_swtdx[/cyan] - where fpath has ~/.zfunc

[cyan]swtdx completion fish > ~/.config/fish/completions/swtdx.fish[/cyan]

[bold]Exit status[/bold]

0 printed; 1 wrong usage
"""


class Shell(StrEnum):
    """Shells that have a script."""

    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="completion", epilog=EPILOG)(completion)


def completion(
    shell: Annotated[Shell, typer.Argument(metavar="bash|zsh|fish", help="For which shell.", show_default=False)],
) -> None:
    """Print a shell's completion script."""
    print(get_completion_script(prog_name="swtdx", complete_var="_SWTDX_COMPLETE", shell=shell.value))
