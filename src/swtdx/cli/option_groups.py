# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands whose options are fields of dataclasses: one dataclass for each subject, in place of one long signature.

`grouped` gives typer the signature that it reads, with a keyword for each field. A field is written as typer wants a
parameter: ``memory: Annotated[str, typer.Option(help="...")] = "256M"``. A dataclass with ``PANEL`` has its options in
a part of the help that is called so.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints


def grouped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that takes the fields of all dataclasses that ``function`` takes, by keyword.

    >>> from dataclasses import dataclass
    >>> @dataclass
    ... class Place:
    ...     x: int
    ...     y: int = 0
    >>> @dataclass
    ... class Name:
    ...     name: str = "here"
    >>> @grouped
    ... def show(place: Place, name: Name) -> str:
    ...     return f"{name.name}: {place.x}, {place.y}"
    >>> show(x=1, name="there")
    'there: 1, 0'
    >>> list(inspect.signature(show).parameters)
    ['x', 'y', 'name']
    """
    kinds = {name: kind for name, kind in get_type_hints(function).items() if name != "return"}
    hints = [
        {name: _in_panel(hint, getattr(kind, "PANEL", None)) for name, hint in _hints(kind).items()}
        for kind in kinds.values()
    ]

    def call(**given: Any) -> Any:
        made = {
            name: kind(**{field.name: given[field.name] for field in fields(kind) if field.name in given})
            for name, kind in kinds.items()
        }
        return function(**made)

    parameters = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=_default(field), annotation=types[field.name]
        )
        for kind, types in zip(kinds.values(), hints, strict=True)
        for field in fields(kind)
    ]
    call.__name__, call.__doc__, call.__module__ = function.__name__, function.__doc__, function.__module__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _in_panel(annotation: Any, panel: str | None) -> Any:
    """The same option in the part of the help that is called ``panel``, unless it names one by itself."""
    if panel is None or get_origin(annotation) is not Annotated:
        return annotation
    for option in get_args(annotation)[1:]:
        named = getattr(option, "named", None)  # of swtdx.cli.declaration
        if named is not None:
            named.setdefault("rich_help_panel", panel)
        elif getattr(option, "rich_help_panel", "") is None:
            option.rich_help_panel = panel
    return annotation


def _default(field: Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is MISSING else field.default
