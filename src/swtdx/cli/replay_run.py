# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx replay-run``: a recorded run once more, to the instruction."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from swtdx.trace.format import TraceFormat

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx run --kernel vmlinuz --append console=ttyS0 --record run.record[/cyan] - record

[cyan]swtdx replay-run run.record[/cyan] - the same run again

[cyan]swtdx replay-run run.record --trace trace.jsonl[/cyan] - and look into it, as often as wanted

[cyan]swtdx replay-run run.record --gdb :1234 --gdb-wait[/cyan] - under gdb: an ordinary VM or a debug TD

[cyan]swtdx replay-run run.record --kernel boot/vmlinuz[/cyan] - where the kernel was moved to

[bold]Exit status[/bold]

0 the run was repeated to its end; 1 it went another way; 2 bad input; others: as of swtdx run
"""


def replay_run_command(
    record: Annotated[Path, typer.Argument(metavar="FILE", help="What swtdx run --record wrote.")],
    kernel: Annotated[
        Path | None, typer.Option(metavar="BZIMAGE", help="The recorded run's kernel, if it is elsewhere now.")
    ] = None,
    initrd: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recorded run's initial RAM disk, if it is elsewhere now.")
    ] = None,
    firmware: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The recorded run's firmware, if it is elsewhere now.")
    ] = None,
    disk: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="The recorded run's disks, if they are elsewhere now.")
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything about the run to FILE.")] = None,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write console output to FILE.")] = None,
    debugcon: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The debug port's output to FILE, if the recorded run had one.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Every ioctl, SEAMCALL, TDCALL, VM exit and event to FILE.")
    ] = None,
    trace_format: Annotated[
        TraceFormat, typer.Option(help="JSON lines, or Chrome's trace format, which Perfetto opens.")
    ] = TraceFormat.jsonl,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="The run on one HTML page.")] = None,
    gdb: Annotated[
        str | None, typer.Option(metavar="[HOST]:PORT|PATH", help="Listen for gdb, as swtdx run does.")
    ] = None,
    gdb_wait: Annotated[
        bool, typer.Option("--gdb-wait", help="Do not start until a debugger connects and continues.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the guest's console, and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more at the end.")] = False,
) -> None:
    """Repeat a run that was recorded with `swtdx run --record`, to the instruction.

    Time, interrupts, random numbers and what was typed come as they came. The replay is compared with the record, and
    ends with a sentence where it goes another way.
    """
    from swtdx.cli.run_options import OnPanic, Options
    from swtdx.cli.session import run as carry_out

    options = Options(
        kernel=kernel,
        initrd=initrd,
        firmware=firmware,
        disks=tuple(disk or ()),
        json=json,
        log=log,
        debugcon=debugcon,
        trace=trace,
        trace_format=trace_format,
        html=html,
        gdb=gdb,
        gdb_wait=gdb_wait,
        quiet=quiet,
        verbose=verbose,
        on_panic=OnPanic.CONTINUE,
        replayed=record,
    )
    raise typer.Exit(carry_out(options))


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="replay-run", epilog=EPILOG)(replay_run_command)
