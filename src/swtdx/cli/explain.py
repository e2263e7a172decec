# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx explain``: a status of the TDX module (RAX, hw_error) in words, and what its operand is to a leaf."""

from __future__ import annotations

import json as json_format
from typing import Annotated, Any

import typer

from swtdx.cli.verdict import Failure, Verdict
from swtdx.seam.status import ERROR, FATAL, NON_RECOVERABLE, Operand, decode
from swtdx.seam.tables import load

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx explain 0xc000010000000001[/cyan] - OPERAND_INVALID, operand RCX

[cyan]swtdx explain 0xc000010000000001 --leaf TDH.MEM.PAGE.ADD[/cyan] - and what RCX is to that leaf
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="explain", epilog=EPILOG)(explain)


def explain(
    status: Annotated[str, typer.Argument(help="The status, as in 0xc000010000000001.", show_default=False)],
    leaf: Annotated[str | None, typer.Option(metavar="NAME", help="The SEAMCALL that answered it.")] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Take a status of the TDX module apart: name, operand, whether trying again can help."""
    try:
        value = int(status, 0)
    except ValueError:
        raise Failure(f"{status!r} is not a number", Verdict.USAGE) from None
    if not 0 <= value < 1 << 64:
        raise Failure(f"{status}: a status has 64 bits", Verdict.USAGE)
    operands = load("operands")["seamcall"]
    if leaf is not None and leaf not in operands:
        raise Failure(f"--leaf {leaf!r}: there is no such SEAMCALL", Verdict.USAGE)
    found = explained(value, leaf)
    print(json_format.dumps(found, indent=2) if json else "\n".join(f"{key}: {text}" for key, text in found.items()))


def explained(value: int, leaf: str | None = None) -> dict[str, Any]:
    """What a 64-bit status says; ``leaf`` names the SEAMCALL, for the meaning of a register."""
    code, detail = decode(value)
    found: dict[str, Any] = {"status": f"{value:#018x}", "name": code.name if code is not None else "unknown"}
    found["error"] = bool(value & ERROR)
    found["recoverable"] = not value & NON_RECOVERABLE
    found["fatal"] = bool(value & FATAL)
    if not value & ERROR or code is None:
        return found
    if value >> 40 & 0xFF in (1, 2) and detail in set(Operand):
        found["operand"] = Operand(detail).name
        if leaf is not None:
            inputs = (part.partition(":") for part in load("operands")["seamcall"][leaf][-2].split())
            found["operand_of_leaf"] = {name: meaning for name, _, meaning in inputs}.get(found["operand"].lower())
    elif detail:
        found["detail"] = f"{detail:#x}"
    return found
