# SPDX-License-Identifier: GPL-2.0-or-later
"""What the commands around quotes share: the folder of test keys, and a service that runs until it is ended."""

from __future__ import annotations

import json as json_format
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swtdx.cli.input import time_of
from swtdx.cli.interruption import Interruption
from swtdx.cli.verdict import Failure, Verdict
from swtdx.quoting.collateral import SCENARIOS
from swtdx.quoting.machine_folder import FolderError, default_folder
from swtdx.quoting.pki import Pki, open_pki

if TYPE_CHECKING:
    from swtdx.quoting.enclave import QuotingEnclave

_POLL_SECONDS = 0.1
TcbStatus = Annotated[
    str, typer.Option(metavar="STATUS", help="TCB status that verifiers report (swtdx pccs --help lists all).")
]
Timeout = Annotated[
    float | None, typer.Option(metavar="SECONDS", min=0, max=1e9, help="End after this time. Not given: never.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only errors.")]


class CaChoice(StrEnum):
    """Which CA certifies the platform."""

    platform = "platform"
    processor = "processor"


def opened_pki(folder: Path | None, new: Pki | None = None) -> Pki:
    """Return the PKI of a folder, made if it has none. Raises `Failure`."""
    try:
        return open_pki((folder or default_folder()).absolute(), new)
    except FolderError as error:
        raise Failure(str(error), Verdict.NO_INPUT) from None


def status_of(text: str) -> str:
    """Return a TCB status by its name, in whatever case. Raises `Failure`."""
    found = next((name for name in SCENARIOS if name.lower() == text.lower()), None)
    if found is None:
        raise Failure(f"--tcb-status {text}: must be one of {', '.join(SCENARIOS)}", Verdict.USAGE)
    return found


def moment_of(option: str, text: str) -> datetime:
    """Return a time that was typed, in UTC. Raises `Failure`."""
    try:
        return datetime.fromtimestamp(time_of(option, text), UTC).replace(tzinfo=None)
    except (ValueError, OverflowError, OSError):
        raise Failure(f"{option} {text} is later than any date", Verdict.USAGE) from None


def quote_of_a_td(enclave: QuotingEnclave, key: bytes, reportdata: bytes, *, updated: bool) -> bytes:
    """Build a TD of a few bytes on a machine with that report key, and return the quote that it gets."""
    from swtdx.cpu.platform import Platform
    from swtdx.machine import boot
    from swtdx.quoting.quote_sources import EnclaveQuotes
    from swtdx.quoting.quoting_td import QuotingTd
    from swtdx.uapi.client import Kvm

    kernel = boot(platform=Platform(logical_processors=1, report_key=key, module_updated=updated))
    try:
        with Kvm(kernel) as device, QuotingTd(device, EnclaveQuotes(enclave)) as td:
            return td.quote(reportdata)
    finally:
        kernel.shutdown()


def announcer(quiet: bool) -> Callable[[str], None]:
    """Return what says something on stderr, a line at a time, from any thread."""
    lock = threading.Lock()

    def say(text: str) -> None:
        if not quiet:
            with lock:
                print(f"swtdx: {text}", file=sys.stderr, flush=True)

    return say


def serve(ready: dict[str, Any], timeout: float | None, *, json: bool) -> None:
    """Print where the service is, then wait for a signal or until time is up. Both are a good end."""
    if json:
        print(json_format.dumps(ready), flush=True)
    deadline = None if timeout is None else time.monotonic() + timeout
    with Interruption() as interruption:
        interruption.deferred = True
        while interruption.arrived is None and (deadline is None or time.monotonic() < deadline):
            time.sleep(_POLL_SECONDS)
