# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx report``: a TDREPORT taken apart, its hashes checked; a run told on one HTML page."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from swtdx.attest.report import ReportError, parse_report
from swtdx.cli.input import file_bytes, result_file
from swtdx.cli.quote import Json, Quiet, QuoteFile, print_fields
from swtdx.cli.verdict import Failure, Verdict
from swtdx.trace.file import TraceError

PARSE_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx report parse tdreport.bin[/cyan]

[cyan]swtdx report parse tdreport.bin --json[/cyan]

[bold]Exit status[/bold]

0 shown; 1 wrong usage; 2 no TDREPORT, or its hashes are wrong; 3 it cannot be read
"""

HTML_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx run --html boot.html[/cyan] - at once, without keeping the trace

[cyan]swtdx run --trace boot.jsonl[/cyan] - the trace first

[cyan]swtdx report html boot.jsonl --output boot.html[/cyan]

[bold]Exit status[/bold]

0 written; 1 wrong usage; 2 the file is no such trace; 3 it cannot be read
"""


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="Take a TDREPORT apart, or tell a run on one HTML page.")
    group.callback()(_report)
    group.command(name="parse", epilog=PARSE_EPILOG)(parse)
    group.command(name="html", epilog=HTML_EPILOG)(html)
    app.add_typer(group, name="report")


def _report() -> None:
    """Take a TDREPORT apart, or tell a run on one HTML page."""


def parse(file: QuoteFile, json: Json = False, quiet: Quiet = False) -> None:
    """Show all fields of a TDREPORT, and whether its two hashes are right (exit status 2 if not)."""
    try:
        report = parse_report(file_bytes(file, 1 << 20))
    except ReportError as error:
        raise Failure(f"{file}: {error}", Verdict.FAILED) from None
    if json:
        print(json_format.dumps(report.as_json(), indent=2))
    elif not quiet:
        print_fields(report.as_json())
    if not report.consistent:
        wrong = "TEE_INFO_HASH" if report.tee_tcb_info_hash_matches else "TEE_TCB_INFO_HASH"
        raise Failure(f"{file}: {wrong} is not the hash of what the report holds", Verdict.FAILED)


def html(
    trace: Annotated[
        Path, typer.Argument(help="A trace of swtdx run --trace, as JSON lines; .gz is read too.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="The page. Not given: beside the trace, as .html."),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Tell a run on one HTML page that needs nothing else: memory by state over time, Secure EPT, exits, console."""
    from swtdx.cli.trace import with_progress
    from swtdx.trace.history import RunHistory
    from swtdx.trace.html import page

    target = output or trace.with_name(trace.name.removesuffix(".gz")).with_suffix(".html")
    with result_file("--output", target, trace, quiet=quiet) as file:
        history = RunHistory()
        try:
            for event in with_progress(trace, "reading", quiet=quiet):
                history.add(event)
            history.finish()
            text = page(history)
        except TraceError as error:
            raise Failure(str(error), Verdict.FAILED) from None
        except (KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError):
            text = f"{trace} lacks operands that a page needs: was it written by swtdx run --trace?"
            raise Failure(text, Verdict.FAILED) from None
        except OSError as error:
            raise Failure(f"{trace} cannot be read: {error.strerror or error}", Verdict.NO_INPUT) from None
        if file is not None:
            file.replace(text.encode("utf-8", "replace"))
    if not quiet:
        print(target)
