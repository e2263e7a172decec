# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx report``: a TDREPORT taken apart, its hashes checked; a run written to one HTML page."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

from swtdx.attest.hcl_report import is_hcl_report, parse_hcl_report
from swtdx.attest.report import ReportError, parse_report
from swtdx.cli import declaration as typer
from swtdx.cli.declaration import Json, Quiet
from swtdx.cli.input import file_bytes, result_file
from swtdx.cli.quote import print_fields
from swtdx.cli.verdict import Failure, Verdict
from swtdx.trace.event import Event
from swtdx.trace.file import End, TraceError

PARSE_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx report parse tdreport.bin[/cyan]

[cyan]swtdx report parse tdreport.bin --json[/cyan]

[bold]Exit status[/bold]

0 shown; 1 wrong usage; 2 not a TDREPORT, or its hashes are wrong; 3 it cannot be read
"""

HTML_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx run --html boot.html[/cyan] - at once, without keeping the trace

[cyan]swtdx run --trace boot.jsonl[/cyan] - the trace first

[cyan]swtdx report html boot.jsonl --output boot.html[/cyan]

[bold]Exit status[/bold]

0 written; 1 wrong usage; 2 not such a trace; 3 it cannot be read
"""


ReportFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="A TDREPORT: raw, hexadecimal, base64, or JSON; - is stdin.")
]


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="Show a TDREPORT, or write a run as one HTML page.")
    group.callback()(_report)
    group.command(name="parse", epilog=PARSE_EPILOG)(parse)
    group.command(name="html", epilog=HTML_EPILOG)(html)
    app.add_typer(group, name="report")


def _report() -> None:
    """Show a TDREPORT, or write a run as one HTML page."""


def parse(file: ReportFile, json: Json = False, quiet: Quiet = False) -> None:
    """Show all fields of a TDREPORT, and whether its two hashes are right (exit status 2 if not).

    An Azure HCL report is read too: its TDREPORT, and whether REPORTDATA binds its runtime claims.
    """
    data = file_bytes(file, 1 << 20)
    try:
        hcl = parse_hcl_report(data) if is_hcl_report(data) else None
        report = parse_report(data) if hcl is None else hcl.report
    except ReportError as error:
        raise Failure(f"{file}: {error}", Verdict.FAILED) from None
    wrong = None
    if not report.consistent:
        which = "TEE_INFO_HASH" if report.tee_tcb_info_hash_matches else "TEE_TCB_INFO_HASH"
        wrong = f"{file}: {which} is not the hash of the report's contents"
    elif hcl is not None and not hcl.claims_bound:
        wrong = f"{file}: REPORTDATA is not the {hcl.hash_name} of the runtime claims"
    content = report.as_json() if hcl is None else hcl.as_json()
    if json:
        print(json_format.dumps({**content, "error": wrong}, indent=2))
    elif not quiet:
        print_fields(content)
    if wrong is not None:
        raise Failure(wrong, Verdict.FAILED, shown=True)


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
    """Write a run to one self-contained HTML page: memory by state over time, Secure EPT, exits, console."""
    from swtdx.cli.trace import with_progress
    from swtdx.trace.history import RunHistory
    from swtdx.trace.html import page

    target = output or trace.with_name(trace.name.removesuffix(".gz")).with_suffix(".html")
    with result_file("--output", target, trace, quiet=quiet) as file:
        history = RunHistory()
        try:
            for line in with_progress(trace, "reading", quiet=quiet):
                if isinstance(line, Event):
                    history.add(line)
                elif isinstance(line, End):
                    history.record = line.record
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
