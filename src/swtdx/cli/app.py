# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: options, help, and what becomes of an error (one sentence on stderr and an exit status).

Exit statuses: of ``run`` those of `swtdx.vmm.outcome`, of the commands of a verifier those of `swtdx.cli.verdict`.

A command's imports are its own: hashing a file must not wait for the engine and the board.  So commands live in modules
that are imported only when their name is typed or help is asked for, and ``run`` imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from functools import cache
from importlib import import_module
from typing import Annotated, Any

import typer

import swtdx
from swtdx.cli.help import Group, dress
from swtdx.cli.standard_streams import StandardStreams, standard_streams
from swtdx.cli.verdict import Failure, Verdict

COMMANDS: dict[str, str] = {
    "exec": "swtdx.cli.exec_command",
    "qemu": "swtdx.cli.qemu",
    "probe": "swtdx.cli.probe",
    "trace": "swtdx.cli.trace",
    "inspect": "swtdx.cli.inspect",
    "measure": "swtdx.cli.measure",
    "diff": "swtdx.cli.diff",
    "replay": "swtdx.cli.replay",
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

USAGE_STATUS = {"exec": 125, "qemu": 125}
"""Wrong usage, where it must not look like the status of the command that was to be run."""

COMPLETION_VARIABLE = "_SWTDX_COMPLETE"
"""Set by the scripts of ``swtdx completion``; typer and they have agreed on its name."""
_STATUS_BAD_INPUT = 2  # swtdx.vmm.outcome, of `run`
_STATUS_INTERRUPTED = 130

HELP = """Intel TDX under KVM, in software: launch a real firmware as a Trust Domain on any x86-64 Linux machine."""

# Each paragraph becomes one line of the help.
EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx probe[/cyan] - what does this machine offer?

[cyan]swtdx run[/cyan] - the installed firmware as a Trust Domain

[cyan]swtdx run --html boot.html[/cyan] - and what happened inside, on one page

[cyan]swtdx measure OVMF.fd[/cyan] - the MRTD that it will have

[cyan]swtdx explain EINVAL --command KVM_TDX_INIT_VM --hw-error 0xc000010000000041[/cyan] - why a launch failed

[cyan]swtdx COMMAND --help[/cyan] - more of each
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
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Intel TDX under KVM, in software: launch a real firmware as a Trust Domain on any x86-64 Linux machine."""


@cache
def _declare(command: str) -> None:
    """Make a command known to the app, once. Each costs time even when another is run: typer compiles its options."""
    import_module(RUN if command == "run" else COMMANDS[command]).register(app)
    dress(app)


def whole_app() -> typer.Typer:
    """The app with every command declared: what the documentation, the manual page and shell completion read."""
    for command in ("run", *COMMANDS):
        _declare(command)
    return app


def main() -> None:
    """The entry point: every error that can be foreseen ends as one sentence and an exit status."""
    arguments = sys.argv[1:] or ["--help"]
    typed = next((argument for argument in arguments if not argument.startswith("-")), "")
    with standard_streams() as streams:
        status = _carry_out(arguments, typed, streams)
        status = streams.finish(status, when_lost=Verdict.USAGE if typed in COMMANDS else _STATUS_BAD_INPUT)
    sys.exit(status)


def _carry_out(arguments: list[str], typed: str, streams: StandardStreams) -> int:
    known = typed == "run" or typed in COMMANDS
    if COMPLETION_VARIABLE in os.environ:  # a shell asks what may come next
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        for command in ("run", *COMMANDS):
            if typed == command or not known:
                _declare(command)
        return int(app(arguments, standalone_mode=False) or 0)
    except Failure as failure:
        return _complain(str(failure), failure.status, shown=failure.shown)
    except _UsageError as error:
        name = f"swtdx {typed}" if known else "swtdx"
        status = USAGE_STATUS.get(typed, Verdict.USAGE if typed in COMMANDS else _STATUS_BAD_INPUT)
        words = error.format_message().replace("Value error, ", "")  # pydantic's, in some versions of typer
        return _complain(f"{words} ({name} --help says what there is)", status)
    except (KeyboardInterrupt, typer.Abort):
        return _STATUS_INTERRUPTED
    except MemoryError:
        return _complain_of(OSError(errno.ENOMEM, "there is not enough memory"), typed)
    except OSError as error:
        if error is streams.stdout_problem:
            return 0  # `StandardStreams.finish` reports it
        return _complain_of(error, typed)
    except _foreseen() as error:  # evaluated only when something else was raised
        return _complain_of(error, typed)


def _of_the_system(typed: str) -> int:
    """The exit status of a command that the system lets down: no memory, a folder that cannot be searched."""
    return Verdict.NO_INPUT if typed in COMMANDS else _STATUS_BAD_INPUT


def _foreseen() -> tuple[type[Exception], ...]:
    """What ``run`` raises for a person; its modules are loaded already when one of these comes."""
    from swtdx.cli.session import BAD_INPUT
    from swtdx.uapi.client import KvmError

    return (*BAD_INPUT, KvmError)


def _complain_of(error: Exception, typed: str) -> int:
    from swtdx.uapi.client import KvmError
    from swtdx.vmm.outcome import End

    if isinstance(error, KvmError):
        status = _complain(f"the kernel refused: {error}", End.INTERNAL_ERROR.status)
    elif isinstance(error, OSError):
        from swtdx.cli.parameters import address_space_limit

        limit = address_space_limit() if error.errno == errno.ENOMEM else ""
        what = f"{error.filename}: " if error.filename is not None else ""
        status = _complain(f"{what}{error.strerror or error}{limit}", _of_the_system(typed))
    else:
        status = _complain(str(error), _STATUS_BAD_INPUT)
    for line in getattr(error, "__notes__", ()):  # what the refusal means: swtdx.explain.notes
        print(f"  {line}", file=sys.stderr)
    return status


# What typer raises for anything wrong on the command line; it has no public name that all its versions share.
_UsageError: Any = typer.BadParameter.__bases__[0]


def _complain(text: str, status: int, *, shown: bool = False) -> int:
    """Print one sentence on stderr; with ``--json`` an object on stdout too, unless the command has printed its own."""
    sentence = " ".join(text.split())
    print(f"swtdx: {sentence}", file=sys.stderr)
    if not shown and "--json" in sys.argv and sys.argv[1] in COMMANDS and sys.argv[1] not in USAGE_STATUS:
        print(json.dumps({"error": sentence, "status": int(status)}, indent=2))
    return status


__all__ = ["app", "main", "whole_app"]
