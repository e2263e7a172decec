# SPDX-License-Identifier: GPL-2.0-or-later
"""How help looks: what an option takes is in capitals or a choice of words, a switch takes nothing, examples are lines.

Typer names the type of every option and argument, in a style that differs between its releases: a reader of
``--json <bool>`` would look for the value to give, and ``{FILE} <path>`` says FILE twice. It also prints an empty line
between any two lines of what stands below the options, so that examples fill screens.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from swtdx.cli.declaration import for_typer


def _plain(parameter: Any) -> Any:
    """Say what an option or argument takes, in one style."""
    if parameter.param_type_name == "argument":
        parameter.metavar = parameter.metavar or parameter.name.upper()
        parameter.display_type_rich = _nothing  # the column for its type, which the name says
    elif getattr(parameter, "is_flag", False):
        parameter.metavar = parameter.metavar or ""
    elif parameter.metavar is None and not isinstance(getattr(parameter, "display_type_rich", None), _Bare | None):
        parameter.display_type_rich = _Bare(parameter.display_type_rich)
    return parameter


def _nothing(**_: object) -> None:
    """Return no type."""


class _Bare:
    """What typer says of an option's type, ``<a|b>`` without the brackets."""

    def __init__(self, whole: Callable[..., str | None]) -> None:
        self._whole = whole

    def __call__(self, **named: Any) -> str | None:
        return (self._whole(**named) or "").strip("<>") or None


def _usage(command: Any, context: Any) -> list[str]:
    """Return the words of the usage line behind the command: ``[IMAGE]`` may be missing, ``ADDRESS...`` be several."""
    words = [command.options_metavar]
    for parameter in command.get_params(context):
        if parameter.param_type_name != "argument":
            continue
        word = parameter.metavar + ("..." if parameter.nargs != 1 and "..." not in parameter.metavar else "")
        words.append(word if parameter.required or word.startswith("[") else f"[{word}]")
    return words


def _print_below(text: str) -> None:
    """Print examples and exit statuses: an empty line before each heading, and what does not fit is indented."""
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for paragraph in text.strip().split("\n\n"):
        line = Text.from_markup(paragraph.replace("\n", " "))
        if paragraph.startswith("[bold]"):
            console.print()
        for number, part in enumerate(line.wrap(console, max(console.width - 4, 20))):
            part.rstrip()
            console.print(Padding(part, (0, 0, 0, 3 if number else 1), expand=False))
    console.print()


def _print_help(command: TyperCommand | TyperGroup, above: Callable[[], None]) -> None:
    """Print the help; ``above`` prints what typer makes of it, for which there is nothing below the options."""
    below, command.epilog = command.epilog, None
    try:
        above()
    finally:
        command.epilog = below
    if below:
        _print_below(below)


class Command(TyperCommand):
    """A command, what its parameters take in one style."""

    def format_help(self, context: Any, formatter: Any) -> None:
        """Print the help."""
        above = super().format_help
        _print_help(self, lambda: above(context, formatter))

    def get_params(self, *arguments: Any, **named: Any) -> Any:
        """Return all parameters, the option for help among them."""
        return [_plain(each) for each in super().get_params(*arguments, **named)]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the words of the usage line behind the command."""
        return _usage(self, ctx)


class Group(TyperGroup):
    """The same for a group of commands."""

    def format_help(self, context: Any, formatter: Any) -> None:
        """Print the help."""
        above = super().format_help
        _print_help(self, lambda: above(context, formatter))

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
