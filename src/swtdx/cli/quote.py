# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx quote parse|verify``: a TD's quote, taken apart, and verified offline."""

from __future__ import annotations

import json as json_format
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from swtdx.attest.pck import pck_of
from swtdx.attest.policy import TCB_STATUSES, Policy, violations
from swtdx.attest.quote import Quote, QuoteError, parse_quote
from swtdx.attest.text_form import binary_of
from swtdx.attest.verify import (
    INTEL_ROOT,
    CollateralError,
    VerificationError,
    Verified,
    of_test_root,
    root_certificate,
    verify_quote,
)
from swtdx.cli import declaration as typer
from swtdx.cli.declaration import Json, PkiFolder, Quiet
from swtdx.cli.input import file_bytes, result_file, time_of
from swtdx.cli.verdict import Failure, Verdict

MAXIMUM_QUOTE_SIZE = 4 << 20
MAXIMUM_COLLATERAL_SIZE = 16 << 20
PARSE_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx quote parse quote.bin[/cyan]

[cyan]swtdx quote parse quote.bin --json | jq -r .body.mrtd[/cyan] - one field

[bold]Exit status[/bold]

0 shown; 1 wrong usage; 2 not a TD's quote; 3 it cannot be read
"""

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx quote verify quote.bin --collateral tcb.json[/cyan] - is it genuine now?

[cyan]swtdx quote verify quote.bin --collateral tcb.json --mrtd $(swtdx measure OVMF.fd)[/cyan] - and of this image?

[cyan]swtdx quote verify quote.bin --collateral tcb.json --mrtd $OLD --mrtd $NEW[/cyan] - of one of two

[cyan]swtdx quote verify quote.bin --collateral tcb.json --root root-ca.pem[/cyan] - a test quote of swtdx pki

[cyan]swtdx quote verify quote.bin --collateral tcb.json --policy td.toml --event-log ccel.bin[/cyan] - by a policy file

[bold]Exit status[/bold]

0 genuine, and the policy is met; 1 wrong usage; 2 not a TD's quote, or not genuine; 3 quote or collateral
cannot be read; 4 genuine, but the policy is not met
"""

MAKE_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx quote make --reportdata 6e6f6e6365 --output quote.bin[/cyan] - of a TD that is built and run for it

[cyan]swtdx quote make tdreport.bin --output quote.bin[/cyan] - of a TDREPORT of swtdx run

[bold]Exit status[/bold]

0 made; 1 wrong usage; 2 not a TDREPORT of this machine; 3 it, or the test keys, cannot be read
"""

QuoteFile = Annotated[Path, typer.Argument(metavar="FILE", help="Raw, hexadecimal, base64, or JSON; - is stdin.")]
RootFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Trust this root certificate (PEM or DER) in place of Intel's; swtdx pki has one.",
        show_default=False,
    ),
]
Hex = Annotated[
    list[str] | None,
    typer.Option(metavar="HEX", help="Require this value (repeated: one of these).", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="Show a TD's quote, verify it offline, or make a test quote.", no_args_is_help=False)
    group.command(name="parse", epilog=PARSE_EPILOG)(parse)
    group.command(name="verify", epilog=EPILOG)(verify)
    group.command(name="make", epilog=MAKE_EPILOG)(make)
    app.add_typer(group, name="quote")


def quote_of(path: Path) -> Quote:
    """Return the quote in a file. Raises `Failure`."""
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
    """Return every field of a quote, and the platform of its PCK certificate."""
    pck = pck_of(quote)
    return {**quote.as_json(), "pck": None if pck is None else pck.as_json()}


def parse(file: QuoteFile, json: Json = False, quiet: Quiet = False) -> None:
    """Show all fields of a quote. Nothing is verified."""
    content = quote_as_json(quote_of(file))
    if json:
        print(json_format.dumps(content, indent=2))
    elif not quiet:
        print_fields(content)


def _show(verified: Verified) -> None:
    """Print the verdict on a genuine quote, and what its platform lacks."""
    under = "" if verified.root == INTEL_ROOT else f" under {verified.root}: not Intel's"
    advisories = ", ".join(verified.advisory_ids) or "none"
    print(f"genuine{under}; TCB status {verified.tcb_status}; advisories: {advisories}")
    for lack in verified.missing:
        print(f"  {lack}")


def verify(
    file: QuoteFile,
    collateral: Annotated[Path, typer.Option(metavar="FILE", help="Intel's collateral for the platform, as JSON.")],
    root: RootFile = None,
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
    policy: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A policy in TOML, in place of the options above.", show_default=False),
    ] = None,
    event_log: Annotated[
        Path | None,
        typer.Option(metavar="CCEL", help="With --policy: the event log for its rules.", show_default=False),
    ] = None,
    claims: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --policy: write the result to FILE as claims (EAT/EAR)."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Verify a quote offline, and compare it with a policy."""
    options = locals()  # by their names, which are those of the policy's members
    wanted, when = _policy(options), _time(at)
    anchor = None if root is None else _root(root)
    ear: dict[str, Any] = {}
    if policy is not None:
        from swtdx.cli import appraisal

        def judged(quote: Quote, content: bytes) -> Verified:
            return _verified(options, quote, content, when, anchor)

        quote, verified, found, ear = appraisal.appraised(options, when, judged)
    else:
        if event_log is not None or claims is not None:
            raise Failure("--event-log and --claims need --policy", Verdict.USAGE)
        quote = quote_of(file)
        verified = _verified(options, quote, file_bytes(collateral, MAXIMUM_COLLATERAL_SIZE), when, anchor)
        found = violations(wanted, quote.body, verified.tcb_status)
    if json:
        content = {"verified": verified.as_json(), "violations": found, **quote_as_json(quote), **ear}
        print(json_format.dumps(content, indent=2))
    elif not quiet:
        _show(verified)
    if found:
        raise Failure(f"{file}: genuine, but not as the policy asks: {'; '.join(found)}", Verdict.POLICY, shown=True)


class QuoteVersionChoice(StrEnum):
    """Which quote to make, of `swtdx.quoting.enclave.QuoteVersion`."""

    default = "default"
    v4 = "4"
    v5_1_0 = "5-1.0"
    v5_1_5 = "5-1.5"


QuoteVersionOption = Annotated[
    QuoteVersionChoice,
    typer.Option(help="Version, and of version 5 the TDX version of its body. default: as Intel's enclave."),
]


def make(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[TDREPORT]",
            help="Raw, hexadecimal, base64, or JSON; - is stdin. Not given: that of a small TD, built for this.",
            show_default=False,
        ),
    ] = None,
    pki: PkiFolder = None,
    quote_version: QuoteVersionOption = QuoteVersionChoice.default,
    reportdata: Annotated[
        str | None,
        typer.Option(
            metavar="HEX", help="Without a TDREPORT: REPORTDATA of the TD, up to 64 bytes.", show_default=False
        ),
    ] = None,
    module_updated: Annotated[
        bool,
        typer.Option("--module-updated", help="Without a TDREPORT: of a TD that ran while the module was updated."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="Not given: hexadecimal, on standard output.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="All fields of the quote as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Make a quote with the test keys of this machine: of a TDREPORT, or of a TD that is built for it.

    A TDREPORT of another machine is refused.
    """
    from swtdx.cli.quoting_keys import opened_pki, quote_of_a_td
    from swtdx.quoting.enclave import MacCheck, QuoteVersion, QuotingEnclave, QuotingError
    from swtdx.quoting.machine_folder import report_key

    if file is not None and (reportdata is not None or module_updated):
        raise Failure("--reportdata and --module-updated are in the TDREPORT already", Verdict.USAGE)
    data = _report_data(reportdata or "")
    with result_file("--output", output, file, quiet=quiet and not json) as out:
        content = None if file is None else file_bytes(file, MAXIMUM_QUOTE_SIZE)
        opened = opened_pki(pki)
        assert opened.folder is not None
        key = report_key(opened.folder)
        enclave = QuotingEnclave(opened, MacCheck(key), QuoteVersion(quote_version.value))
        if content is None:
            quote = quote_of_a_td(enclave, key, data, updated=module_updated)
        else:
            from swtdx.attest.report import REPORT_MEMBERS

            try:
                quote = enclave.quote(binary_of(content, REPORT_MEMBERS))
            except (QuotingError, ValueError) as error:
                raise Failure(f"{file}: {error}", Verdict.FAILED) from None
        if out is not None:
            out.begin()
            out.write(quote)
    if json:
        print(json_format.dumps(quote_as_json(parse_quote(quote)), indent=2))
    elif out is None and not quiet:
        print(quote.hex())


def _report_data(text: str) -> bytes:
    try:
        data = bytes.fromhex(text.removeprefix("0x"))
    except ValueError:
        raise Failure(f"--reportdata {text} is not hexadecimal", Verdict.USAGE) from None
    if len(data) > 64:
        raise Failure(f"--reportdata has {len(data)} bytes, a TDREPORT has 64", Verdict.USAGE)
    return data


def _policy(options: dict[str, Any]) -> Policy:
    """Return the policy of the options of ``verify``. Raises `Failure`."""
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


def _root(path: Path) -> bytes:
    try:
        return root_certificate(file_bytes(path, 1 << 20))
    except ValueError as error:
        raise Failure(f"--root {path}: {error}", Verdict.NO_INPUT) from None


def _verified(options: dict[str, Any], quote: Quote, collateral: bytes, when: int, root: bytes | None) -> Verified:
    """Return the platform of a quote, judged with the content of --collateral. Raises `Failure`."""
    try:
        return verify_quote(quote, collateral, when, root)
    except CollateralError as error:
        raise Failure(f"{options['collateral']}: {error}", Verdict.NO_INPUT) from None
    except VerificationError as error:
        hint = (
            "; it is a test quote of swtdx's, whose root `swtdx pki` names (--root)"
            if root is None and of_test_root(quote)
            else ""
        )
        raise Failure(f"{options['file']}: {error}{hint}", Verdict.FAILED) from None


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
    return int(time.time()) if text is None else time_of("--at", text)
