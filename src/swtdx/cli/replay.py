# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx replay``: an event log in words, and the RTMRs it leads to."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer

from swtdx.attest.event_log import MAXIMUM_LOG_SIZE, Event, EventLogError, parse_event_log, parse_table
from swtdx.attest.event_words import type_name
from swtdx.attest.replay import Rtmrs, leads_to, replay
from swtdx.cli.input import file_bytes
from swtdx.cli.quote import Json, Quiet
from swtdx.cli.verdict import Failure, Verdict

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx replay /sys/firmware/acpi/tables/data/CCEL[/cyan] - inside a TD: its own log

[cyan]swtdx replay ccel.bin --quote quote.bin[/cyan] - does it lead to the quote's registers?

[bold]Exit status[/bold]

0 read, and leads to RTMR0-2 of the quote or report, if one is given; 1 wrong usage; 2 no TD's quote or report; 3 a file
is not to be had; 5 the log cannot be read, says of an event what was not measured, or leads elsewhere
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="replay", epilog=EPILOG)(replay_command)


def replay_command(
    ccel: Annotated[Path, typer.Argument(metavar="CCEL", help="The log's data, or dstack's JSON event log.")],
    table: Annotated[Path | None, typer.Option(metavar="FILE", help="The ACPI table CCEL.")] = None,
    quote: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare with this quote.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare with this TDREPORT.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Show an event log in words, replay it, and compare the result with a quote or TDREPORT.

    RTMR3 is shown and not enforced: firmware's logs do not carry it. Registers vouch for digests; where a digest is of
    the event's own data, these are checked too.
    """
    if quote and report:
        raise Failure("--quote and --report: one of them", Verdict.USAGE)
    log, described = file_bytes(ccel, MAXIMUM_LOG_SIZE + 1), None if table is None else file_bytes(table, 1 << 16)
    if described is not None:
        try:
            parse_table(described)
        except EventLogError as error:
            raise Failure(f"{table}: {error}", Verdict.EVENT_LOG) from None
    try:
        events = parse_event_log(log, described)
    except EventLogError as error:
        raise Failure(f"{ccel}: {error}", Verdict.EVENT_LOG) from None
    replayed, reported = replay(events), _reported(quote, report)
    if json:
        content = {
            "events": [event.as_json() for event in events],
            "rtmrs": [value.hex() for value in replayed],
            "reported": None if reported is None else [value.hex() for value in reported],
            "equal": None if reported is None else [a == b for a, b in zip(replayed, reported, strict=True)],
        }
        print(json_format.dumps(content, indent=2))
    elif not quiet:
        _show(events, replayed, reported)
    forged = [str(event.number) for event in events if event.data_measured is False]
    if forged:
        which = f"event{'s' if len(forged) > 1 else ''} {', '.join(forged[:8])}{', ...' if len(forged) > 8 else ''}"
        raise Failure(f"{ccel}: what it says of {which} is not what was measured", Verdict.EVENT_LOG)
    if reported is not None and not leads_to(replayed, reported):
        wrong = ", ".join(f"RTMR{index}" for index in range(3) if replayed[index] != reported[index])
        raise Failure(f"{ccel} does not lead to {wrong} of {quote or report}", Verdict.EVENT_LOG)


def _reported(quote: Path | None, report: Path | None) -> Rtmrs | None:
    if quote is not None:
        from swtdx.cli.quote import quote_of

        return quote_of(quote).body.rtmrs
    if report is None:
        return None
    from swtdx.attest.report import ReportError, parse_report

    try:
        parsed = parse_report(file_bytes(report, 1 << 20))
    except ReportError as error:
        raise Failure(f"{report}: {error}", Verdict.FAILED) from None
    if not parsed.consistent:
        raise Failure(f"{report}: its hashes are not those of what it holds", Verdict.FAILED)
    return parsed.rtmrs


def _show(events: list[Event], replayed: Rtmrs, reported: Rtmrs | None) -> None:
    rows = [
        (
            str(each.number),
            "MRTD" if each.rtmr is None else f"RTMR{each.rtmr}",
            type_name(each.event_type),
            each.words + (" [NOT what was measured]" if each.data_measured is False else ""),
        )
        for each in events
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        grid = Table("event", "register", "type", "what")
        for row in rows:
            grid.add_row(*(Text(cell) for cell in row))
        Console().print(grid)
    else:
        for row in rows:
            print("\t".join(row))
    for index, value in enumerate(replayed):
        verdict = ""
        if reported is not None:
            verdict = " equal" if value == reported[index] else f" reported {reported[index].hex()}"
            verdict += " (not enforced)" if index == 3 else ""
        print(f"RTMR{index} {value.hex()}{verdict}")
