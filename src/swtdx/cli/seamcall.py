# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx seamcall``: the leaf functions of the TDX module, SEAMCALLs and TDCALLs, and the rules of each."""

from __future__ import annotations

import json as json_format
import shutil
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from swtdx.cli.verdict import Failure, Verdict
from swtdx.explain import words
from swtdx.explain.leaf import SEAMCALL, TDCALL, Leaf, all_leaves
from swtdx.explain.status import complete_leaf, parse_leaf
from swtdx.seam.tables import MODULE_VERSION

LIST_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx seamcall list[/cyan] - all of them

[cyan]swtdx seamcall list mem.page[/cyan] - those with that in their name

[cyan]swtdx seamcall list --tdcall[/cyan] - what a guest can call

[cyan]swtdx seamcall list --json | jq -r '.[].name'[/cyan]

[bold]Exit status[/bold]

0 shown; 1 wrong usage, or no such leaf
"""

SHOW_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx seamcall show TDH.MEM.PAGE.ADD[/cyan] - registers, states, and what is checked in which order

[cyan]swtdx seamcall show mng_init[/cyan]

[cyan]swtdx seamcall show 21[/cyan] - by number: a SEAMCALL

[cyan]swtdx seamcall show TDG.MR.REPORT --json[/cyan]

[cyan]swtdx explain 0xc0000b0d00000001 --leaf TDH.MEM.PAGE.ADD[/cyan] - the rule behind a status

[bold]Exit status[/bold]

0 shown; 1 wrong usage, or no such leaf
"""

Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="List the leaf functions of the TDX module; show the rules of one.")
    group.callback()(_seamcall)
    group.command(name="list", epilog=LIST_EPILOG)(list_leaves)
    group.command(name="show", epilog=SHOW_EPILOG)(show)
    app.add_typer(group, name="seamcall")


def _seamcall() -> None:
    """List the leaf functions of the TDX module; show the rules of one."""


def list_leaves(
    word: Annotated[
        str | None, typer.Argument(help="Only leaf functions whose name contains this.", show_default=False)
    ] = None,
    seamcall: Annotated[bool, typer.Option("--seamcall", help="Only SEAMCALLs, what the host calls.")] = False,
    tdcall: Annotated[bool, typer.Option("--tdcall", help="Only TDCALLs, what a guest calls.")] = False,
    json: Json = False,
) -> None:
    """List SEAMCALL and TDCALL leaf functions with their numbers."""
    kinds = {kind for kind, wanted in ((SEAMCALL, seamcall), (TDCALL, tdcall)) if wanted} or {SEAMCALL, TDCALL}
    wanted = (word or "").upper().replace("_", ".")
    found = [leaf for leaf in all_leaves().values() if leaf.kind in kinds and wanted in leaf.name]
    if not found:
        raise Failure(f"no leaf function has {word!r} in its name", Verdict.USAGE)
    if json:
        print(json_format.dumps([leaf.as_json() for leaf in found], indent=2))
        return
    for leaf in found:
        print(f"{leaf.kind:<8}  {leaf.number:>2}  {leaf.name:<26}  {leaf.description or 'not reproduced'}".rstrip())


def show(
    leaf: Annotated[
        str,
        typer.Argument(help="Its name, or the number of a SEAMCALL.", show_default=False, autocompletion=complete_leaf),
    ],
    json: Json = False,
) -> None:
    """Show a leaf function: registers, states in which it is allowed, and its rules in the order of the checks."""
    found = _named(leaf)
    if json:
        print(json_format.dumps(found.as_json(), indent=2))
        return
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n".join(words.aligned(list(_lines(found)), columns)))
    if found.rules:
        print(f"\nModule {MODULE_VERSION} checks in this order; the first that does not hold decides the status:\n")
        print("\n".join(words.aligned([(rule.answer, rule.text) for rule in found.rules], columns)))


def _named(text: str) -> Leaf:
    try:
        number = int(text, 0)
    except ValueError:
        name = parse_leaf(text)
    else:
        name = next(
            (each.name for each in all_leaves().values() if (each.kind, each.number) == (SEAMCALL, number)), None
        )
    if name is None:
        raise Failure(f"{text!r}: there is no such SEAMCALL or TDCALL (swtdx seamcall list)", Verdict.USAGE)
    return all_leaves()[name]


def _lines(leaf: Leaf) -> Iterator[tuple[str, str]]:
    versions = ", ".join(map(str, leaf.versions))
    yield leaf.kind.upper(), f"{leaf.name}, number {leaf.number} ({leaf.number:#x}), version {versions}"
    yield "does", leaf.description or "not reproduced: it answers as a module without the feature"
    yield "in", "; ".join(map(str, leaf.inputs)) or "nothing"
    yield "out", "; ".join(map(str, leaf.outputs)) or "nothing but RAX"
    if leaf.op_states:
        yield "OP_STATE", ", ".join(leaf.op_states)
    if leaf.entry_states:
        yield "entry", ", ".join(leaf.entry_states)
    if leaf.moves:
        yield "becomes", "; ".join(f"{before} -> {after}" for before, after in leaf.moves)
    yield "modules", ", ".join(leaf.module_versions)
    if leaf.served_by:
        yield "served by", leaf.served_by
