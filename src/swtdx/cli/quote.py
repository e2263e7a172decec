# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx quote parse|verify``: a TD's quote, taken apart, and judged offline."""

from __future__ import annotations

import json as json_format
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from swtdx.attest.policy import TCB_STATUSES, Policy, violations
from swtdx.attest.quote import Quote, QuoteError, parse_quote
from swtdx.attest.verify import CollateralError, VerificationError, verify_quote
from swtdx.cli.input import file_bytes
from swtdx.cli.verdict import Failure, Verdict

MAXIMUM_QUOTE_SIZE = 4 << 20
PARSE_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx quote parse quote.bin[/cyan]

[cyan]swtdx quote parse quote.bin --json | jq -r .body.mrtd[/cyan] - one field

[bold]Exit status[/bold]

0 shown; 1 wrong usage; 2 not a TD's quote; 3 it cannot be read
"""

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx quote verify quote.bin --collateral tcb.json[/cyan] - is it genuine, today?

[cyan]swtdx quote verify quote.bin --collateral tcb.json --mrtd $(swtdx measure OVMF.fd)[/cyan] - and of this image?

[bold]Exit status[/bold]

0 genuine, and as the policy wants it; 1 wrong usage; 2 not a TD's quote, or not genuine; 3 quote or collateral not to
be had; 4 the policy is not met
"""

QuoteFile = Annotated[Path, typer.Argument(metavar="FILE", help="Raw, hexadecimal, base64, or JSON with a quote.")]
Hex = Annotated[str | None, typer.Option(metavar="HEX", help="Refuse another value.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the exit status, and errors.")]
Json = Annotated[bool, typer.Option("--json", help="Everything as JSON.")]


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="Take a TD's quote apart, or verify it offline.", no_args_is_help=False)
    group.command(name="parse", epilog=PARSE_EPILOG)(parse)
    group.command(name="verify", epilog=EPILOG)(verify)
    app.add_typer(group, name="quote")


def quote_of(path: Path) -> Quote:
    """The quote in a file. Raises `Failure`."""
    try:
        return parse_quote(file_bytes(path, MAXIMUM_QUOTE_SIZE))
    except QuoteError as error:
        raise Failure(f"{path}: {error}", Verdict.FAILED) from None


def print_fields(content: dict[str, Any], indent: str = "") -> None:
    """A field a line: name and value."""
    for name, value in content.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            print_fields(value, indent + "  ")
        elif isinstance(value, list):
            for index, each in enumerate(value):
                print(f"{indent}{name.removesuffix('s')}{index}: {each}")
        elif isinstance(value, str) and "\n" in value:
            print(f"{indent}{name}: {len(value)} characters of PEM (--json shows them)")
        else:
            print(f"{indent}{name}: {'-' if value is None else value}")


def parse(file: QuoteFile, json: Json = False, quiet: Quiet = False) -> None:
    """Show all fields of a quote. Nothing is verified."""
    content = quote_of(file).as_json()
    if quiet:
        return
    if json:
        print(json_format.dumps(content, indent=2))
    else:
        print_fields(content)


def verify(
    file: QuoteFile,
    collateral: Annotated[Path, typer.Option(metavar="FILE", help="Intel's collateral for the platform, as JSON.")],
    at: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="For this time: seconds since 1970, or ISO 8601. Not given: now."),
    ] = None,
    mrtd: Hex = None,
    rtmr0: Hex = None,
    rtmr1: Hex = None,
    rtmr2: Hex = None,
    rtmr3: Hex = None,
    mrconfigid: Hex = None,
    mrowner: Hex = None,
    mrownerconfig: Hex = None,
    mrseam: Hex = None,
    reportdata: Hex = None,
    xfam: Hex = None,
    attributes: Hex = None,
    allow_debug: Annotated[bool, typer.Option("--allow-debug", help="Accept a TD that can be debugged.")] = False,
    minimum_tee_tcb_svn: Annotated[
        str | None, typer.Option(metavar="HEX", help="16 bytes: refuse any smaller component.", show_default=False)
    ] = None,
    tcb_status: Annotated[
        list[str] | None,
        typer.Option(metavar="STATUS", help="Accept this TCB status (may be repeated). Not given: UpToDate."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify a quote offline, and hold it against a policy."""
    unknown = [status for status in tcb_status or () if status not in TCB_STATUSES]
    if unknown:
        raise Failure(f"--tcb-status {unknown[0]}: there are {', '.join(TCB_STATUSES)}", Verdict.USAGE)
    policy = Policy(
        mrtd=_bytes("--mrtd", mrtd, 48),
        rtmrs=(
            _bytes("--rtmr0", rtmr0, 48),
            _bytes("--rtmr1", rtmr1, 48),
            _bytes("--rtmr2", rtmr2, 48),
            _bytes("--rtmr3", rtmr3, 48),
        ),
        mrconfigid=_bytes("--mrconfigid", mrconfigid, 48),
        mrowner=_bytes("--mrowner", mrowner, 48),
        mrownerconfig=_bytes("--mrownerconfig", mrownerconfig, 48),
        mrseam=_bytes("--mrseam", mrseam, 48),
        reportdata=_bytes("--reportdata", reportdata, 64),
        xfam=_mask("--xfam", xfam),
        attributes=_mask("--attributes", attributes),
        allow_debug=allow_debug,
        minimum_tee_tcb_svn=_bytes("--minimum-tee-tcb-svn", minimum_tee_tcb_svn, 16),
        tcb_statuses=frozenset(tcb_status or ["UpToDate"]),
    )
    when = _time(at)
    quote = quote_of(file)
    try:
        verified = verify_quote(quote, file_bytes(collateral, 16 << 20), when)
    except CollateralError as error:
        raise Failure(f"{collateral}: {error}", Verdict.NO_INPUT) from None
    except VerificationError as error:
        raise Failure(f"{file}: {error}", Verdict.FAILED) from None
    found = violations(policy, quote.body, verified.tcb_status)
    if json:
        print(json_format.dumps({"verified": verified.as_json(), "violations": found, **quote.as_json()}, indent=2))
    elif not quiet:
        print(f"genuine; TCB status {verified.tcb_status}; advisories: {', '.join(verified.advisory_ids) or 'none'}")
    if found:
        raise Failure(f"{file}: {'; '.join(found)}", Verdict.POLICY)


def _bytes(option: str, text: str | None, size: int) -> bytes | None:
    if text is None:
        return None
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) != size:
        raise Failure(f"{option} wants {size} bytes in hexadecimal", Verdict.USAGE)
    return value


def _mask(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise Failure(f"{option} wants a 64-bit mask in hexadecimal, as in 0x10000000", Verdict.USAGE)
    return value


def _time(text: str | None) -> int:
    if text is None:
        return int(time.time())
    try:
        if text.isascii() and text.isdigit():
            return int(text)
        moment = datetime.fromisoformat(text)
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        raise Failure(f"--at {text}: seconds since 1970, or as in 2025-06-20T00:00:00Z", Verdict.USAGE) from None
