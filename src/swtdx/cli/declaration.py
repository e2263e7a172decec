# SPDX-License-Identifier: GPL-2.0-or-later
"""Options and arguments declared as for typer, without importing typer.

typer and pydantic take several times as long to import as a verifier's command takes to run.  A command module that
imports this module in place of typer can be called by `swtdx.cli.plain` without them.  Where typer is needed, for help
and for mistakes, `for_typer` makes its own declarations of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from typer import Argument as Argument
    from typer import Exit as Exit
    from typer import Option as Option
    from typer import Typer as Typer


@dataclass(frozen=True)
class Declared:
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


def parameters_of(function: Callable[..., Any]) -> list[inspect.Parameter]:
    """Return a command's parameters, their annotations evaluated."""
    signature = inspect.signature(function)
    if all(not isinstance(each.annotation, str) for each in signature.parameters.values()):
        return list(signature.parameters.values())
    hints = get_type_hints(function, include_extras=True)
    return [each.replace(annotation=hints[name]) for name, each in signature.parameters.items()]


def for_typer(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the same command with the declarations that typer reads; ``function`` itself if it has them already."""
    import typer

    parameters = parameters_of(function)
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
