# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx quote parse|verify``: a TD's quote, taken apart, and verified offline."""

from __future__ import annotations

import json as json_format
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from swtdx.attest.pck import pck_of
from swtdx.attest.policy import TCB_STATUSES, Policy, violations
from swtdx.attest.quote import Quote, QuoteError, parse_quote
from swtdx.attest.verify import CollateralError, VerificationError, Verified, verify_quote
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

[cyan]swtdx quote verify quote.bin --collateral tcb.json --mrtd $OLD --mrtd $NEW[/cyan] - of one of two

[bold]Exit status[/bold]

0 genuine, and the policy is met; 1 wrong usage; 2 not a TD's quote, or not genuine; 3 quote or collateral
cannot be read; 4 genuine, but the policy is not met
"""

QuoteFile = Annotated[Path, typer.Argument(metavar="FILE", help="Raw, hexadecimal, base64, or JSON; - is stdin.")]
Hex = Annotated[
    list[str] | None,
    typer.Option(metavar="HEX", help="Refuse any other value (may be repeated: one of these).", show_default=False),
]
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
        elif isinstance(value, list) and name == "rtmrs":
            for index, each in enumerate(value):
                print(f"{indent}{name.removesuffix('s')}{index}: {each}")
        elif isinstance(value, list):
            print(f"{indent}{name}: {', '.join(map(str, value)) or '-'}")
        elif isinstance(value, str) and "\n" in value:
            print(f"{indent}{name}: {len(value)} characters of PEM (--json shows them)")
        else:
            print(f"{indent}{name}: {'-' if value is None else value}")


def quote_as_json(quote: Quote) -> dict[str, Any]:
    """Every field of a quote, and the platform of its PCK certificate."""
    pck = pck_of(quote)
    return {**quote.as_json(), "pck": None if pck is None else pck.as_json()}


def parse(file: QuoteFile, json: Json = False, quiet: Quiet = False) -> None:
    """Show all fields of a quote. Nothing is verified."""
    content = quote_as_json(quote_of(file))
    if json:
        print(json_format.dumps(content, indent=2))
    elif not quiet:
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
    mrsignerseam: Hex = None,
    mrservicetd: Hex = None,
    reportdata: Hex = None,
    xfam: Hex = None,
    attributes: Hex = None,
    allow_debug: Annotated[bool, typer.Option("--allow-debug", help="Accept a TD that can be debugged.")] = False,
    allow_migratable: Annotated[
        bool, typer.Option("--allow-migratable", help="Accept a TD that can be migrated.")
    ] = False,
    allow_service_td: Annotated[
        bool, typer.Option("--allow-service-td", help="Accept a TD to which service TDs are bound.")
    ] = False,
    allow_sept_ve: Annotated[
        bool, typer.Option("--allow-sept-ve", help="Accept a TD without SEPT_VE_DISABLE.")
    ] = False,
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
    """Verify a quote offline, and compare it with a policy."""
    options = locals()  # by their names, which are those of the policy's members
    policy, when, quote = _policy(options), _time(at), quote_of(file)
    verified = _verified(file, quote, collateral, when)
    found = violations(policy, quote.body, verified.tcb_status)
    if json:
        content = {"verified": verified.as_json(), "violations": found, **quote_as_json(quote)}
        print(json_format.dumps(content, indent=2))
    elif not quiet:
        print(f"genuine; TCB status {verified.tcb_status}; advisories: {', '.join(verified.advisory_ids) or 'none'}")
        for lack in verified.missing:
            print(f"  {lack}")
    if found:
        raise Failure(f"{file}: genuine, but not as the policy asks: {'; '.join(found)}", Verdict.POLICY, shown=True)


def _policy(options: dict[str, Any]) -> Policy:
    """The policy of the options of ``verify``. Raises `Failure`."""
    unknown = [status for status in options["tcb_status"] or () if status not in TCB_STATUSES]
    if unknown:
        raise Failure(f"--tcb-status {unknown[0]}: must be one of {', '.join(TCB_STATUSES)}", Verdict.USAGE)
    if options["collateral"] is not None and str(options["collateral"]) == str(options["file"]) == "-":
        raise Failure("the quote and --collateral cannot both be standard input", Verdict.USAGE)

    def values(name: str, size: int = 48) -> tuple[bytes, ...] | None:
        given = [_bytes(f"--{name}", text, size) for text in options[name] or ()]
        return tuple(given) or None

    def masks(name: str) -> tuple[int, ...] | None:
        return tuple(_mask(f"--{name}", text) for text in options[name] or ()) or None

    minimum = options["minimum_tee_tcb_svn"]
    allowed = ("allow_debug", "allow_migratable", "allow_service_td", "allow_sept_ve")
    return Policy(
        mrtd=values("mrtd"),
        mrconfigid=values("mrconfigid"),
        mrowner=values("mrowner"),
        mrownerconfig=values("mrownerconfig"),
        mrseam=values("mrseam"),
        mrsignerseam=values("mrsignerseam"),
        mrservicetd=values("mrservicetd"),
        rtmrs=(values("rtmr0"), values("rtmr1"), values("rtmr2"), values("rtmr3")),
        reportdata=values("reportdata", 64),
        xfam=masks("xfam"),
        attributes=masks("attributes"),
        **{name: options[name] for name in allowed},
        minimum_tee_tcb_svn=None if minimum is None else _bytes("--minimum-tee-tcb-svn", minimum, 16),
        tcb_statuses=frozenset(options["tcb_status"] or ["UpToDate"]),
    )


def _verified(file: Path, quote: Quote, collateral: Path, when: int) -> Verified:
    try:
        return verify_quote(quote, file_bytes(collateral, 16 << 20), when)
    except CollateralError as error:
        raise Failure(f"{collateral}: {error}", Verdict.NO_INPUT) from None
    except VerificationError as error:
        raise Failure(f"{file}: {error}", Verdict.FAILED) from None


def _bytes(option: str, text: str, size: int) -> bytes:
    try:
        value = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        value = b""
    if len(value) != size:
        raise Failure(f"{option} must be {size} bytes in hexadecimal", Verdict.USAGE)
    return value


def _mask(option: str, text: str) -> int:
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 64:
        raise Failure(f"{option} must be a 64-bit mask in hexadecimal, as in 0x10000000", Verdict.USAGE)
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
