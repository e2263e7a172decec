# SPDX-License-Identifier: GPL-2.0-or-later
"""How help looks: a switch takes nothing, and says nothing of what it would take.

Typer names the type of every option, and a reader of ``--json <bool>`` would look for the value to give.
"""

from __future__ import annotations

from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from swtdx.cli.declaration import for_typer


def _plain(option: Any) -> Any:
    if getattr(option, "is_flag", False) and option.metavar is None:
        option.metavar = ""
    return option


class Command(TyperCommand):
    """A command, its switches without a type."""

    def get_params(self, *arguments: Any, **named: Any) -> Any:
        """Return all parameters, the option for help among them."""
        return [_plain(each) for each in super().get_params(*arguments, **named)]


class Group(TyperGroup):
    """The same for a group of commands."""

    def get_params(self, *arguments: Any, **named: Any) -> Any:
        """Return all parameters, the option for help among them."""
        return [_plain(each) for each in super().get_params(*arguments, **named)]


def in_paragraphs(text: str) -> str:
    """Return a docstring with each paragraph in one line, which the help wraps to the width that there is.

    >>> in_paragraphs("One\\n    two.\\n\\n    Three.")
    'One two.\\n\\nThree.'
    """
    return "\n\n".join(" ".join(each.split()) for each in cleandoc(text).split("\n\n"))


def dress(app: typer.Typer) -> None:
    """Have every command that ``app`` knows so far show itself like that."""
    for command in app.registered_commands:
        command.cls = Command
        if command.callback is not None:
            command.callback = for_typer(command.callback)
            command.help = command.help or in_paragraphs(command.callback.__doc__ or "")
    for group in app.registered_groups:
        group.cls = Group
        if group.typer_instance is not None:
            dress(group.typer_instance)
