# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx pki``: the test keys of the machine, which certify its quotes."""

from __future__ import annotations

import json as json_format
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated

import typer

from swtdx.cli.declaration import PkiFolder
from swtdx.cli.quoting_keys import CaChoice, Quiet, moment_of, opened_pki
from swtdx.cli.verdict import Failure, Verdict
from swtdx.quoting.pki import END, PORT, Pki

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx pki[/cyan] - where the test keys are, and until when they are valid

[cyan]swtdx quote verify quote.bin --root $(swtdx pki --json | jq -r .root_ca) --collateral tcb.json[/cyan]

[cyan]swtdx pki --pki ./keys --seed ci[/cyan] - the same keys on each machine

[bold]Exit status[/bold]

0 shown; 1 wrong usage; 3 the folder cannot be used, or holds something else
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="pki", epilog=EPILOG)(pki)


def pki(
    folder: PkiFolder = None,
    seed: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Derive all keys from this. Not given: random.", show_default=False),
    ] = None,
    ca: Annotated[
        CaChoice | None,
        typer.Option(help="Which CA certifies the platform. Not given: platform.", show_default=False),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=1,
            max=65535,
            help=f"Port on this machine in the certificates' CRL addresses. Not given: {PORT}.",
            show_default=False,
        ),
    ] = None,
    valid_until: Annotated[
        str | None, typer.Option(metavar="TIME", help="When all certificates expire.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
    quiet: Quiet = False,
) -> None:
    """Show the test keys of this machine; create them if there are none.

    A root CA, platform and processor CA, a PCK certificate, TCB signing and attestation keys: what Intel's are on real
    hardware. They protect nothing, and no verifier accepts them unless it is told to trust this root. --seed, --ca,
    --port and --valid-until are for new ones.
    """
    new = None
    if (seed, ca, port, valid_until) != (None, None, None, None):
        end = END if valid_until is None else moment_of("--valid-until", valid_until)
        if end <= datetime.now(UTC).replace(tzinfo=None):
            raise Failure(f"--valid-until {valid_until} is over: keys that have expired are of no use", Verdict.USAGE)
        new = replace(Pki.new(seed), ca_type=(ca or CaChoice.platform).value, port=port or PORT, end=end)
    content = opened_pki(folder, new).as_json()
    if json:
        print(json_format.dumps(content, indent=2))
    elif not quiet:
        print("test keys of swtdx, which protect nothing")
        for name, value in content.items():
            print(f"{name}: {value}")
