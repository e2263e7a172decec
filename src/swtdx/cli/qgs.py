# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx qgs``: a quote generation service for VMMs, with test keys."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from swtdx.cli.declaration import PkiFolder
from swtdx.cli.quote import QuoteVersionChoice, QuoteVersionOption
from swtdx.cli.quoting_keys import Quiet, TcbStatus, Timeout, announcer, opened_pki, serve, status_of
from swtdx.cli.verdict import Failure, Verdict
from swtdx.quoting.enclave import MacCheck, QuotingEnclave
from swtdx.quoting.enclave import QuoteVersion as Version
from swtdx.quoting.machine_folder import report_key
from swtdx.quoting.qgs import DEFAULT_PATH, VSOCK_PORT, QgsServer, QgsUnusable, QuoteService
from swtdx.vmm.qgs_socket import AddressError, SocketAddress, parse_address

EPILOG = f"""
[bold]Examples[/bold]

[cyan]swtdx qgs[/cyan] - at {DEFAULT_PATH}

[cyan]swtdx qgs unix:./qgs.socket[/cyan] - then: swtdx run --quote-generation-socket ./qgs.socket

[cyan]swtdx qgs vsock:4294967295:{VSOCK_PORT} 127.0.0.1:{VSOCK_PORT}[/cyan] - on vsock (any CID) and TCP

[cyan]swtdx exec -- qemu-system-x86_64 -object '{{"qom-type":"tdx-guest","id":"tdx0","quote-generation-socket":\
{{"type":"unix","path":"{DEFAULT_PATH}"}}}}' ...[/cyan] - QEMU

[bold]Exit status[/bold]

0 ended by a signal, or after --timeout; 1 wrong usage, or it cannot listen there; 3 the test keys cannot be used
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="qgs", epilog=EPILOG)(qgs)


def qgs(
    addresses: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ADDRESS",
            help=f"unix:PATH, vsock:CID:PORT or HOST:PORT. Not given: unix:{DEFAULT_PATH}.",
            show_default=False,
        ),
    ] = None,
    folder: PkiFolder = None,
    quote_version: QuoteVersionOption = QuoteVersionChoice.default,
    tcb_status: TcbStatus = "UpToDate",
    timeout: Timeout = None,
    json: Annotated[bool, typer.Option("--json", help="Print the address as JSON when the service listens.")] = False,
    quiet: Quiet = False,
) -> None:
    """Serve quotes of this machine's TDs with the protocol of Intel's service.

    The TDs are those of swtdx run and swtdx exec with the same test keys: a TDREPORT of another machine has another
    MAC, and is refused. --tcb-status also sets the collateral that the service returns.
    """
    places = [_address(text) for text in addresses or [f"unix:{DEFAULT_PATH}"]]
    status = status_of(tcb_status)
    pki = opened_pki(folder)
    assert pki.folder is not None
    say = announcer(quiet)
    enclave = QuotingEnclave(pki, MacCheck(report_key(pki.folder)), Version(quote_version.value))
    if not addresses:
        with suppress(OSError):
            Path(DEFAULT_PATH).parent.mkdir(exist_ok=True)
    with QgsServer(QuoteService(enclave, status, say)) as server:
        try:
            listening = [str(server.listen(place)) for place in places]
        except QgsUnusable as error:
            raise Failure(str(error), Verdict.USAGE) from None
        say(f"test quotes (they protect nothing) at {', '.join(listening)}; root {pki.as_json()['root_ca']}")
        serve({"addresses": listening, "pki": pki.as_json()}, timeout, json=json)


def _address(text: str) -> SocketAddress:
    try:
        return parse_address(text)
    except AddressError as error:
        raise Failure(str(error), Verdict.USAGE) from None
