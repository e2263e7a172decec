# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx replay``: an event log in words, and the RTMRs it leads to."""

from __future__ import annotations

import json as json_format
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from swtdx.attest.event_digest import Vouched
from swtdx.attest.event_log import MAXIMUM_LOG_SIZE, Event, EventLogError, parse_event_log, parse_table
from swtdx.attest.event_words import type_name
from swtdx.attest.replay import Rtmrs, covered, leads_to, remarks, replay
from swtdx.cli import declaration as typer
from swtdx.cli.declaration import Json, Quiet
from swtdx.cli.input import file_bytes
from swtdx.cli.verdict import Failure, Verdict

IMA_RTMRS = (2, 3)
EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx replay /sys/firmware/acpi/tables/data/CCEL[/cyan] - inside a TD: its own log

[cyan]swtdx replay ccel.bin --quote quote.bin[/cyan] - does it lead to the quote's registers?

[cyan]swtdx replay ccel.bin --ima ascii_runtime_measurements --quote quote.bin[/cyan] - with Linux's IMA log after it

[bold]Exit status[/bold]

0 read, and leads to the RTMRs of the quote or report, if one is given; 1 wrong usage; 2 not a TD's quote or report; 3 a
file cannot be read; 5 the log cannot be read, describes an event by data that were not measured, or leads elsewhere
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="replay", epilog=EPILOG)(replay_command)


def replay_command(
    ccel: Annotated[Path, typer.Argument(metavar="CCEL", help="The log's data, or a JSON log; - is stdin.")],
    table: Annotated[Path | None, typer.Option(metavar="FILE", help="The ACPI table CCEL.")] = None,
    ima: Annotated[Path | None, typer.Option(metavar="FILE", help="Linux's IMA log, replayed after it.")] = None,
    ima_rtmr: Annotated[int, typer.Option(metavar="2|3", help="The register of IMA's lines of PCR 10.")] = 2,
    quote: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare with this quote.")] = None,
    report: Annotated[Path | None, typer.Option(metavar="FILE", help="Compare with this TDREPORT.")] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Decode and replay an event log, and compare the result with a quote or TDREPORT.

    The last column shows what each event's digest covers. RTMR3 is compared if the log extends it; firmware's logs
    do not.
    """
    _replay(_Inputs(ccel, table, ima, ima_rtmr, quote, report), json=json, quiet=quiet)


@dataclass(frozen=True)
class _Inputs:
    ccel: Path
    table: Path | None
    ima: Path | None
    ima_rtmr: int
    quote: Path | None
    report: Path | None


def _replay(inputs: _Inputs, *, json: bool, quiet: bool) -> None:
    if inputs.quote and inputs.report:
        raise Failure("--quote and --report exclude each other", Verdict.USAGE)
    if inputs.ima_rtmr not in IMA_RTMRS:
        raise Failure(f"--ima-rtmr {inputs.ima_rtmr}: must be 2 or 3", Verdict.USAGE)
    events = _events(inputs)
    replayed, reported = replay(events), _reported(inputs.quote, inputs.report)
    wrong = _fault(inputs, events, replayed, reported)
    said = remarks(events)
    if json:
        content = {
            "events": [event.as_json() for event in events],
            "rtmrs": [value.hex() for value in replayed],
            "covered": list(covered(replayed)),
            "reported": None if reported is None else [value.hex() for value in reported],
            "equal": None if reported is None else [a == b for a, b in zip(replayed, reported, strict=True)],
            "remarks": said,
            "error": wrong,
        }
        print(json_format.dumps(content, indent=2))
    elif not quiet:
        _show(events, replayed, reported)
        for remark in said:
            print(f"remark: {remark}")
    if wrong is not None:
        raise Failure(wrong, Verdict.EVENT_LOG, shown=True)


def _events(inputs: _Inputs) -> list[Event]:
    log = file_bytes(inputs.ccel, MAXIMUM_LOG_SIZE + 1)
    described = None if inputs.table is None else file_bytes(inputs.table, 1 << 16)
    if described is not None:
        try:
            parse_table(described)
        except EventLogError as error:
            raise Failure(f"{inputs.table}: {error}", Verdict.EVENT_LOG) from None
    try:
        events = parse_event_log(log, described)
    except EventLogError as error:
        from swtdx.attest.evidence_kind import misplaced

        raise Failure(f"{inputs.ccel}: {error}{misplaced(log, 'swtdx replay')}", Verdict.EVENT_LOG) from None
    if inputs.ima is None:
        return events
    from swtdx.attest.ima_log import parse_ima_log

    try:
        return events + parse_ima_log(file_bytes(inputs.ima, MAXIMUM_LOG_SIZE), inputs.ima_rtmr, len(events))
    except EventLogError as error:
        raise Failure(f"{inputs.ima}: {error}", Verdict.EVENT_LOG) from None


def _fault(inputs: _Inputs, events: list[Event], replayed: Rtmrs, reported: Rtmrs | None) -> str | None:
    """Return what makes the exit status 5; None if nothing does."""
    forged = [str(event.number) for event in events if event.vouched is Vouched.CONTRADICTED]
    if forged:
        which = f"event{'s' if len(forged) > 1 else ''} {', '.join(forged[:8])}{', ...' if len(forged) > 8 else ''}"
        return f"{inputs.ccel}: the data of {which} are not what was measured"
    if reported is not None and not leads_to(replayed, reported):
        wrong = ", ".join(f"RTMR{index}" for index in covered(replayed) if replayed[index] != reported[index])
        return f"{inputs.ccel} does not lead to {wrong} of {inputs.quote or inputs.report}"
    return None


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
        raise Failure(f"{report}: its hashes are not those of its contents", Verdict.FAILED)
    return parsed.rtmrs


def _show(events: list[Event], replayed: Rtmrs, reported: Rtmrs | None) -> None:
    rows = [
        (
            str(each.number),
            "MRTD" if each.rtmr is None else f"RTMR{each.rtmr}",
            type_name(each.event_type),
            each.words,
            "[extends nothing]" if each.vouched is None else f"[{each.vouched.value}]",
        )
        for each in events
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        grid = Table("event", "register", "type", "what", "digest")
        for row in rows:
            grid.add_row(*(Text(cell) for cell in row))
        Console().print(grid)
    else:
        for row in rows:
            print("\t".join(row))
    decided = covered(replayed)
    for index, value in enumerate(replayed):
        verdict = ""
        if reported is not None and index not in decided:
            verdict = "" if reported[index] == value else f" not covered by this log, reported {reported[index].hex()}"
        elif reported is not None:
            verdict = " equal" if value == reported[index] else f" DIFFERS, reported {reported[index].hex()}"
        print(f"RTMR{index} {value.hex()}{verdict}")
