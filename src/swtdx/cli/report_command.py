# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx report parse``: a TDREPORT, taken apart, its hashes checked."""

from __future__ import annotations

import json as json_format

import typer

from swtdx.attest.report import ReportError, parse_report
from swtdx.cli.input import file_bytes
from swtdx.cli.quote import Json, Quiet, QuoteFile, print_fields
from swtdx.cli.verdict import Failure, Verdict


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="Take a TDREPORT apart.")
    group.callback()(_report)
    group.command(name="parse")(parse)
    app.add_typer(group, name="report")


def _report() -> None:
    """Take a TDREPORT apart."""


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
