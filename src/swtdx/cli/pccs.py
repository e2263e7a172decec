# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx pccs``: a collateral service for verifiers, with test keys."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from swtdx.cli.declaration import PkiFolder
from swtdx.cli.input import file_bytes
from swtdx.cli.quoting_keys import Quiet, TcbStatus, Timeout, announcer, opened_pki, serve, status_of
from swtdx.cli.verdict import Failure, Verdict
from swtdx.quoting.collateral import SCENARIOS
from swtdx.quoting.machine_folder import FolderError
from swtdx.quoting.pccs import CollateralService, PccsServer, PccsUnusable, Schedule, parse_schedule
from swtdx.quoting.pki import HTTPS_CA, keep
from swtdx.quoting.tls import LOCAL_NAMES, https_ca

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx pccs[/cyan] - then point the verifier's PCCS_URL at http://127.0.0.1:8081

[cyan]swtdx pccs --tcb-status OutOfDate[/cyan] - to test with a platform that is out of date

[cyan]swtdx pccs --port 0 --tcb-status Revoked -- pytest tests/[/cyan] - while a command runs, which finds $PCCS_URL

[cyan]swtdx pccs --script steps.txt[/cyan] - the lines "0 UpToDate", "10 OutOfDate", "20 Revoked"

[cyan]swtdx pccs --https --port 8443[/cyan] - curl --cacert FOLDER/https-ca.pem https://localhost:8443/

[cyan]swtdx pccs --as-intel[/cyan] - then: HTTPS_PROXY=http://127.0.0.1:8081 SSL_CERT_FILE=FOLDER/https-ca.pem VERIFIER

[bold]Exit status[/bold]

0 ended by a signal, or after --timeout (with a COMMAND: its status); 1 wrong usage, or it cannot listen there; 3 the
test keys or the script cannot be read

[bold]What --tcb-status may be[/bold]

""" + "\n\n".join(f"[cyan]{name}[/cyan] - {scenario.summary}" for name, scenario in SCENARIOS.items())


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="pccs", epilog=EPILOG, context_settings={"allow_interspersed_args": False})(pccs)


def pccs(
    command: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- COMMAND [ARGUMENT]...]",
            help="Serve while this runs, with $PCCS_URL in its environment. Not given: until a signal.",
            show_default=False,
        ),
    ] = None,
    folder: PkiFolder = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="A loopback address of this machine.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="0: any free one. Not given: the one in the certificates, where their CRLs are.",
            show_default=False,
        ),
    ] = None,
    tcb_status: TcbStatus = "UpToDate",
    script: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Lines of SECONDS and STATUS: when to change to which status.", show_default=False
        ),
    ] = None,
    https: Annotated[
        bool, typer.Option("--https", help="TLS, with a certificate of a test CA (https-ca.pem).")
    ] = False,
    as_intel: Annotated[
        bool,
        typer.Option("--as-intel", help="Also be a proxy for Intel's addresses, for clients with fixed URLs."),
    ] = False,
    timeout: Timeout = None,
    json: Annotated[bool, typer.Option("--json", help="Print the address as JSON when the service listens.")] = False,
    quiet: Quiet = False,
) -> None:
    """Serve collateral for the test keys: the paths of Intel's PCS and PCCS, version 4.

    TCB info, QE identity, CRLs and their issuers. A verifier that uses them reports the TCB status of --tcb-status.
    """
    status = status_of(tcb_status)
    if https and as_intel:
        raise Failure("--https and --as-intel: the proxy itself speaks HTTP", Verdict.USAGE)
    if host not in LOCAL_NAMES:
        raise Failure(
            f"--host {host}: test collateral is served on a loopback address only (127.0.0.1, ::1)", Verdict.USAGE
        )
    schedule: Schedule = () if script is None else _schedule(script)
    pki = opened_pki(folder)
    assert pki.folder is not None
    say = announcer(quiet)
    service = CollateralService(pki, status, schedule)
    listen_at = pki.port if port is None else port
    authority = None
    if https or as_intel:
        authority = str(pki.folder / HTTPS_CA)
        try:
            keep(pki.folder / HTTPS_CA, https_ca(pki))
        except FolderError as error:
            raise Failure(str(error), Verdict.NO_INPUT) from None
    try:
        server = PccsServer(service, host, listen_at, https=https, as_intel=as_intel, say=say)
    except PccsUnusable as error:
        raise Failure(f"{error} (--port chooses another)", Verdict.USAGE) from None
    with server:
        say(f"test collateral (it protects nothing) at {server.url}, TCB status {service.status}")
        ready = {"url": server.url, "tcb_status": service.status, "https_ca": authority, "pki": pki.as_json()}
        if command:
            raise typer.Exit(_run(command, server.url, timeout))
        serve(ready, timeout, json=json)


def _run(command: list[str], url: str, timeout: float | None) -> int:
    """Run a command beside the service. Return its exit status, as a shell would."""
    try:
        done = subprocess.run(command, env=os.environ | {"PCCS_URL": url}, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"{command[0]} has not ended after {timeout:g} s", Verdict.FAILED) from None
    except OSError as error:
        raise Failure(f"{command[0]} cannot be run: {error.strerror}", Verdict.NO_INPUT) from None
    return done.returncode if done.returncode >= 0 else 128 - done.returncode


def _schedule(path: Path) -> Schedule:
    try:
        return parse_schedule(file_bytes(path, 1 << 20).decode())
    except ValueError as error:
        raise Failure(f"{path}: {error}", Verdict.NO_INPUT) from None
