# SPDX-License-Identifier: GPL-2.0-or-later
"""Options and arguments declared as for typer, without importing typer.

typer and pydantic take several times as long to import as a verifier's command takes to run.  A command module that
imports this module in place of typer can be called by `swtdx.cli.plain` without them.  Where typer is needed, for help
and for mistakes, `for_typer` makes its own declarations of these.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from typer import Argument as Argument
    from typer import Exit as Exit
    from typer import Option as Option
    from typer import Typer as Typer


class Declared(NamedTuple):
    """One option or argument: what `typer.Option` or `typer.Argument` would be called with."""

    kind: str
    names: tuple[str, ...]
    named: dict[str, Any]


if not TYPE_CHECKING:

    def Option(*names: str, **named: Any) -> Declared:
        """Return an option, as `typer.Option` declares it."""
        return Declared("Option", names, named)

    def Argument(**named: Any) -> Declared:
        """Return an argument, as `typer.Argument` declares it."""
        return Declared("Argument", (), named)

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):  # import looks for __path__
            raise AttributeError(name)
        import typer

        return getattr(typer, name)


Quiet = Annotated[bool, Option("--quiet", "-q", help="Print only errors.")]
Json = Annotated[bool, Option("--json", help="Everything as JSON.")]
PkiFolder = Annotated[
    Path | None,
    Option("--pki", metavar="FOLDER", help="The test keys. Not given: $SWTDX_PKI, or in the state folder."),
]


REQUIRED = object()
"""The default of a parameter without one."""


class Parameter(NamedTuple):
    """A parameter of a command: what `inspect.Parameter` says, without importing inspect, which takes long."""

    name: str
    annotation: Any
    default: Any


def parameters_of(function: Callable[..., Any]) -> list[Parameter]:
    """Return a command's parameters in order, their annotations evaluated."""
    signature = getattr(function, "__signature__", None)
    if signature is not None:  # of swtdx.cli.option_groups
        return [
            Parameter(each.name, each.annotation, REQUIRED if each.default is each.empty else each.default)
            for each in signature.parameters.values()
        ]
    code = function.__code__
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    positional = function.__defaults__ or ()
    first = code.co_argcount - len(positional)
    defaults = {**dict(zip(names[first:], positional, strict=False)), **(function.__kwdefaults__ or {})}
    hints = get_type_hints(function, include_extras=True)
    return [Parameter(name, hints[name], defaults.get(name, REQUIRED)) for name in names]


def for_typer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same command with the declarations that typer reads; ``function`` itself if it has them already."""
    import inspect

    import typer

    signature = inspect.signature(function)
    hints = get_type_hints(function, include_extras=True)
    parameters = [each.replace(annotation=hints[name]) for name, each in signature.parameters.items()]
    if not any(_declared(each.annotation) for each in parameters):
        return function

    def call(*given: Any, **named: Any) -> Any:
        return function(*given, **named)

    converted = []
    for each in parameters:
        declared = _declared(each.annotation)
        annotation = each.annotation
        if declared is not None:
            made = getattr(typer, declared.kind)(*declared.names, **declared.named)
            annotation = Annotated[get_args(annotation)[0], made]
        converted.append(each.replace(annotation=annotation))
    call.__name__, call.__doc__, call.__module__ = function.__name__, function.__doc__, function.__module__
    call.__annotations__ = {each.name: each.annotation for each in converted}
    call.__signature__ = inspect.Signature(converted)  # type: ignore[attr-defined]
    return call


def _declared(annotation: Any) -> Declared | None:
    if get_origin(annotation) is not Annotated:
        return None
    return next((each for each in get_args(annotation)[1:] if isinstance(each, Declared)), None)
