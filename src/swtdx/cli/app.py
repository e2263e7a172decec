# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: options, help, and what becomes of an error (one sentence on stderr and an exit status).

Exit statuses: of ``run`` those of `swtdx.vmm.outcome`, of the commands of a verifier those of `swtdx.cli.verdict`.

A command's imports are its own: hashing a file must not wait for the engine and the board.  So commands live in modules
that are imported only when their name is typed or help is asked for, and ``run`` imports what it needs when it runs.
"""

from __future__ import annotations

import os
import re
from errno import errorcode
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer

import swtdx
from swtdx.cli import COMPLETION_VARIABLE
from swtdx.cli.complaint import carried_out
from swtdx.cli.help import Group, dress
from swtdx.cli.qemu_spelling import as_here
from swtdx.cli.standard_streams import StandardStreams
from swtdx.cli.usage_sentence import usage_sentence
from swtdx.cli.verdict import RUN_BAD_INPUT, Failure, Verdict

COMMANDS: dict[str, str] = {
    "exec": "swtdx.cli.exec_command",
    "qemu": "swtdx.cli.qemu",
    "selftest": "swtdx.cli.selftest",
    "probe": "swtdx.cli.probe",
    "trace": "swtdx.cli.trace",
    "lint": "swtdx.cli.lint",
    "fuzz": "swtdx.cli.fuzz",
    "inspect": "swtdx.cli.inspect",
    "measure": "swtdx.cli.measure",
    "diff": "swtdx.cli.diff",
    "replay": "swtdx.cli.replay",
    "replay-run": "swtdx.cli.replay_run",
    "quote": "swtdx.cli.quote",
    "pki": "swtdx.cli.pki",
    "qgs": "swtdx.cli.qgs",
    "pccs": "swtdx.cli.pccs",
    "collateral": "swtdx.cli.collateral",
    "report": "swtdx.cli.report",
    "explain": "swtdx.cli.explain",
    "seamcall": "swtdx.cli.seamcall",
    "completion": "swtdx.cli.completion",
}
"""Command beside ``run`` -> the module whose ``register(app)`` declares it."""

RUN = "swtdx.cli.run"

PANELS = {
    "Run a guest": ("run", "replay-run", "exec", "qemu"),
    "Measurements and evidence": ("inspect", "measure", "diff", "replay", "quote", "report"),
    "Quoting services with test keys": ("pki", "qgs", "pccs", "collateral"),
    "Find out why": ("explain", "seamcall", "trace", "lint", "fuzz"),
    "This installation": ("selftest", "probe", "completion"),
}
"""Panel of ``swtdx --help`` -> its commands."""

USAGE_STATUS = {"exec": 125, "qemu": 125}
"""Wrong usage, where it must not look like the status of the command that was to be run."""

HELP = """Intel TDX under KVM, in software: launch a real firmware as a Trust Domain on any x86-64 Linux machine."""

# Each paragraph becomes one line of the help.
EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx probe[/cyan] - what does this machine offer?

[cyan]swtdx selftest[/cyan] - does this installation work? Two seconds, and nothing but the package

[cyan]swtdx run[/cyan] - the installed firmware as a Trust Domain

[cyan]swtdx run --html boot.html[/cyan] - and what happened inside, on one page

[cyan]swtdx measure OVMF.fd[/cyan] - the MRTD that it will have

[cyan]swtdx explain EINVAL --command KVM_TDX_INIT_VM --hw-error 0xc000010000000041[/cyan] - why a launch failed

[cyan]swtdx COMMAND --help[/cyan] - options and examples of each

[cyan]man swtdx[/cyan] - the manual, which a wheel brings; [cyan]script/docs[/cyan] of a checkout makes all pages
"""

app = typer.Typer(
    name="swtdx",
    cls=Group,
    help=HELP,
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"swtdx {swtdx.__version__}")
        raise typer.Exit


@app.callback()
def swtdx_command(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Intel TDX under KVM, in software: launch a real firmware as a Trust Domain on any x86-64 Linux machine."""


@cache
def _declare(command: str) -> None:
    """Make a command known to the app, once. Each costs time even when another is run: typer compiles its options."""
    commands, groups = len(app.registered_commands), len(app.registered_groups)
    import_module(RUN if command == "run" else COMMANDS[command]).register(app)
    dress(app)
    panel = next(panel for panel, members in PANELS.items() if command in members)
    for alone in app.registered_commands[commands:]:
        alone.rich_help_panel = panel
    for group in app.registered_groups[groups:]:
        group.rich_help_panel = panel


def whole_app() -> typer.Typer:
    """Return the app with every command declared: what the documentation, the manual page and shell completion read."""
    for command in _in_panels():
        _declare(command)
    return app


def _in_panels() -> list[str]:
    return [command for commands in PANELS.values() for command in commands]


def carry_out(arguments: list[str], streams: StandardStreams) -> tuple[int, int]:
    """Carry out what was typed; return its exit status, and the one that it has if its output is lost."""
    typed = next((argument for argument in arguments if not argument.startswith("-")), "")
    known = typed == "run" or typed in COMMANDS
    if COMPLETION_VARIABLE in os.environ:  # a shell asks what may come next
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()

    def action() -> int:
        try:
            for command in _in_panels():
                if typed == command or not known:
                    _declare(command)
            return int(app(_as_declared(typed, arguments), standalone_mode=False) or 0)
        except _UsageError as error:
            status = USAGE_STATUS.get(typed, Verdict.USAGE if typed in COMMANDS else RUN_BAD_INPUT)
            command = getattr(getattr(error, "ctx", None), "command_path", None) or "swtdx"
            raise _WrongUsageError(usage_sentence(error.format_message(), command), status) from None
        except typer.Abort:
            raise KeyboardInterrupt from None

    system_status = Verdict.NO_INPUT if typed in COMMANDS else RUN_BAD_INPUT
    as_json = "--json" in arguments and arguments[0] in COMMANDS and arguments[0] not in USAGE_STATUS
    status = carried_out(action, system_status, streams, as_json=as_json)
    return status, Verdict.USAGE if typed in COMMANDS else RUN_BAD_INPUT


def _as_declared(command: str, arguments: list[str]) -> list[str]:
    """Return what was typed in the spelling that the command declares. Raises `swtdx.cli.parameters.InputError`."""
    if command == "run":
        return as_here(arguments)
    if command == "explain":  # -22, as a system call returns it, would be an option
        return [errorcode.get(int(each[1:]), each) if re.fullmatch(r"-\d{1,3}", each) else each for each in arguments]
    return arguments


class _WrongUsageError(Failure):
    """What was typed cannot be read; each kind of command has a status of its own for that."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text, Verdict.USAGE)
        self.status = status


# What typer raises for anything wrong on the command line; it has no public name that all its versions share.
_UsageError: Any = typer.BadParameter.__bases__[0]


__all__ = ["app", "carry_out", "whole_app"]
