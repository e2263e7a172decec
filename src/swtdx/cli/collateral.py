# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx collateral``: the collateral of the test keys as files."""

from __future__ import annotations

import json as json_format
from pathlib import Path
from typing import Annotated

import typer

from swtdx.cli.declaration import PkiFolder
from swtdx.cli.input import result_file
from swtdx.cli.quoting_keys import Quiet, TcbStatus, moment_of, opened_pki, status_of
from swtdx.cli.verdict import Failure, Verdict
from swtdx.quoting.collateral import Collateral, make_collateral

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx collateral --output tcb.json[/cyan] - then: swtdx quote verify quote.bin --collateral tcb.json --root ROOT

[cyan]swtdx collateral --tcb-status Revoked | jq .tcb_info[/cyan]

[cyan]swtdx collateral --responses pcs/[/cyan] - each response of a PCS, and its issuers, as a file

[bold]Exit status[/bold]

0 written; 1 wrong usage, or a file cannot be written; 3 the test keys cannot be used
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="collateral", epilog=EPILOG)(collateral)


def collateral(
    folder: PkiFolder = None,
    tcb_status: TcbStatus = "UpToDate",
    at: Annotated[
        str | None, typer.Option(metavar="TIME", help="Issue it for this time. Not given: now.", show_default=False)
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Not given: standard output.", show_default=False),
    ] = None,
    responses: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write each response of a PCS as a file, in place of the JSON.", show_default=False
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The JSON, which is written anyway.")] = False,
    quiet: Quiet = False,
) -> None:
    """Write the collateral for quotes under the test keys, in the JSON form that dcap-qvl reads."""
    status = status_of(tcb_status)
    moment = None if at is None else moment_of("--at", at)
    if responses is not None and (output is not None or json):
        raise Failure("--responses writes files of its own: omit --output and --json", Verdict.USAGE)
    with result_file("--output", output, quiet=quiet) as file:
        try:
            made = make_collateral(opened_pki(folder), status, moment)
        except (ValueError, OverflowError, OSError) as error:
            raise Failure(f"--at {at}: {error}", Verdict.USAGE) from None
        if responses is not None:
            _write_responses(made, responses)
            return
        text = json_format.dumps(made.as_json(), indent=2) + "\n"
        if file is None:
            print(text, end="")
        else:
            file.begin()
            file.write(text.encode())


def _write_responses(made: Collateral, folder: Path) -> None:
    files = {
        "tcb_info.json": made.tcb_info_response.encode(),
        "qe_identity.json": made.qe_identity_response.encode(),
        "tcb_signing_chain.pem": made.tcb_signing_chain,
        "root_ca.crl.der": made.root_ca_crl,
        **{f"pck_{ca}.crl.der": crl for ca, crl in made.pck_crls.items()},
        **{f"pck_{ca}_chain.pem": made.ca_chain(ca) for ca in made.pck_crls},
    }
    try:
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except OSError as error:
        raise Failure(f"--responses {folder}: {error.strerror}", Verdict.USAGE) from None
