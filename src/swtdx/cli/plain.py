# SPDX-License-Identifier: GPL-2.0-or-later
"""A command line read without typer, where it is plain.

Plain is what typer would read the same way without help, correction or conversion that this module does not know: each
option by its whole name, once unless it may be repeated, with a value that is a path, text, a number in range or a
choice.  For all else `plain_call` returns None, and typer reads the command line, with its help and its messages.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from functools import partial
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from swtdx.cli.declaration import REQUIRED, Declared, Parameter, parameters_of

COMMANDS = {
    ("run",): ("swtdx.cli.run", "run"),
    ("measure",): ("swtdx.cli.measure", "measure"),
    ("replay",): ("swtdx.cli.replay", "replay_command"),
    ("quote", "parse"): ("swtdx.cli.quote", "parse"),
    ("quote", "verify"): ("swtdx.cli.quote", "verify"),
    ("report", "parse"): ("swtdx.cli.report", "parse"),
}
"""What is typed -> module and function."""
_HELP = {"-h", "--help"}


class _NotPlainError(Exception):
    """typer must read this command line."""


def plain_call(arguments: list[str]) -> Callable[[], Any] | None:
    """Return the command that was typed, its parameters bound; None if typer must read the command line.

    >>> plain_call(["measure", "--help"]) is None, plain_call(["exec"]) is None
    (True, True)
    """
    for words, (module, function) in COMMANDS.items():
        rest = arguments[len(words) :]
        if tuple(arguments[: len(words)]) == words and not _HELP.intersection(rest):
            command = getattr(import_module(module), function)
            try:
                return partial(command, **read(command, rest))
            except _NotPlainError:
                return None
    return None


def read(command: Callable[..., Any], arguments: list[str]) -> dict[str, Any]:
    """Return the values of all parameters of ``command``. Raises `_NotPlainError`."""
    options, positional = _declarations(parameters_of(command))
    given: dict[str, Any] = {}
    free = list(positional)
    waiting = iter(arguments)
    for word in waiting:
        if not word.startswith("-") or word == "-":
            if not free:
                raise _NotPlainError
            parameter = free.pop(0)
            given[parameter.name] = _value(parameter, word)
            continue
        name, equals, value = word.partition("=")
        found = options.get(name)
        if found is None or (equals and not name.startswith("--")):
            raise _NotPlainError
        parameter = found
        if _kind(parameter) is bool:
            if equals or parameter.name in given:
                raise _NotPlainError
            given[parameter.name] = True
            continue
        text = value if equals else next(waiting, "")
        if text.startswith("-") and text != "-":
            raise _NotPlainError
        if get_origin(_kind(parameter)) is list:
            given.setdefault(parameter.name, []).append(_value(parameter, text))
        elif parameter.name in given:
            raise _NotPlainError
        else:
            given[parameter.name] = _value(parameter, text)
    for parameter in (*options.values(), *positional):
        if parameter.name not in given:
            if parameter.default is REQUIRED:
                raise _NotPlainError
            given[parameter.name] = parameter.default
    return given


def _declarations(
    parameters: list[Parameter],
) -> tuple[dict[str, Parameter], list[Parameter]]:
    """Return options by each of their names, and arguments in order.

    Raises `_NotPlainError` for what is not known here.
    """
    options: dict[str, Parameter] = {}
    positional = []
    for parameter in parameters:
        declared = _declared(parameter)
        if declared.kind == "Argument":
            positional.append(parameter)
            continue
        names = declared.names or (f"--{parameter.name.replace('_', '-')}",)
        if {"callback", "parser", "envvar"} & declared.named.keys() or (
            _kind(parameter) is bool and not declared.names
        ):  # a switch without names has an opposite
            raise _NotPlainError
        options.update(dict.fromkeys(names, parameter))
    return options, positional


def _declared(parameter: Parameter) -> Declared:
    metadata = getattr(parameter.annotation, "__metadata__", ())
    declared = next((each for each in metadata if isinstance(each, Declared)), None)
    if declared is None:
        raise _NotPlainError
    return declared


def _kind(parameter: Parameter) -> Any:
    """Return the type of a parameter, without None."""
    kind = get_args(parameter.annotation)[0]
    if get_origin(kind) in (Union, UnionType):
        kinds = [each for each in get_args(kind) if each is not NoneType]
        return kinds[0] if len(kinds) == 1 else None
    return kind


def _value(parameter: Parameter, text: str) -> Any:
    """Convert what was typed. Raises `_NotPlainError` for what is wrong, and for types not known here."""
    kind, limits = _kind(parameter), _declared(parameter).named
    if get_origin(kind) is list:
        (kind,) = get_args(kind)
    if not text:
        raise _NotPlainError
    if kind is Path:
        return Path(text)
    if kind is str:
        return text
    if kind is int and text.isascii() and text.isdigit() and len(text) < 10:
        number = int(text)
        if limits.get("min", number) <= number <= limits.get("max", number):
            return number
    elif isinstance(kind, type) and issubclass(kind, StrEnum):
        chosen = next((each for each in kind if each.value == text), None)
        if chosen is not None:
            return chosen
    raise _NotPlainError
