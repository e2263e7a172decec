# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx selftest``: whether this installation works, from the engine to a quote that verifies, in two seconds.

It needs nothing but the package: the guest is a few bytes of code, the keys are made for it and forgotten.
"""

from __future__ import annotations

import hashlib
import json as json_format
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import swtdx
from swtdx.cli.verdict import Verdict

if TYPE_CHECKING:
    from swtdx.vmm.get_quote import QuoteSource

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx selftest[/cyan] - a line for each step

[cyan]swtdx selftest --quiet && swtdx run[/cyan]

[cyan]swtdx selftest --json | jq .passed[/cyan]

[bold]Exit status[/bold]

0 everything works; 1 wrong usage; 2 a step failed, which is named
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="selftest", epilog=EPILOG)(selftest)


def selftest(
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only a step that failed.")] = False,
) -> None:
    """Check this installation: build, measure and run a small TD, and verify a quote of it with test keys.

    No firmware, no /dev/kvm, no network and no files are needed. The steps come in the order in which they depend on
    each other, and end with the first that fails.
    """
    steps: list[dict[str, Any]] = []
    with ExitStack() as undo:
        work = _steps(undo)
        for name in _NAMES:
            began = time.monotonic()
            error = None
            try:
                text = next(work)
            except Exception as problem:  # noqa: BLE001 - whatever is wrong here is what is asked for
                error = text = f"{type(problem).__name__}: {problem}" if str(problem) else type(problem).__name__
            seconds = time.monotonic() - began
            steps.append({"step": name, "passed": error is None, "text": text, "seconds": round(seconds, 3)})
            if not json and (error is not None or not quiet):
                mark = "ok" if error is None else "FAILED"
                print(f"{mark:6}  {name:9}  {text} ({1000 * seconds:.0f} ms)", flush=True)
            if error is not None:
                break
    passed = all(each["passed"] for each in steps)
    if json:
        print(json_format.dumps({"swtdx": swtdx.__version__, "passed": passed, "steps": steps}, indent=2))
    raise typer.Exit(Verdict.OK if passed else Verdict.FAILED)


_NAMES = ("engine", "machine", "TD", "MRTD", "run", "TDREPORT", "quote")


class _Recorded:
    """A quote source that keeps the last report that it was given."""

    def __init__(self, source: QuoteSource) -> None:
        self.source = source
        self.patience = source.patience
        self.report = b""

    def quote(self, report: bytes) -> bytes:
        """Return the quote of a TDREPORT. Raises what the source raises."""
        self.report = report
        return self.source.quote(report)

    def close(self) -> None:
        """Give up what is under way."""
        self.source.close()


def _steps(undo: ExitStack) -> Iterator[str]:
    """One text for each of `_NAMES`. Raises whatever goes wrong."""
    from swtdx.cpu import _engine

    yield f"the processor is loaded: {Path(_engine.__file__).name}"

    from swtdx.attest.quote import parse_quote
    from swtdx.attest.report import parse_report
    from swtdx.attest.verify import verify_quote
    from swtdx.cpu.platform import Platform
    from swtdx.image.mrtd import MrtdPredictor
    from swtdx.machine import open_kernel
    from swtdx.quoting.collateral import make_collateral
    from swtdx.quoting.enclave import QuotingEnclave
    from swtdx.quoting.pki import Pki
    from swtdx.quoting.quote_sources import EnclaveQuotes
    from swtdx.quoting.quoting_td import READY_PORT, QuotingTd, code
    from swtdx.uapi.abilities import inspectable, stated_release, verifying_reports
    from swtdx.uapi.client import Kvm
    from swtdx.vmm import bare_guest

    kernel = open_kernel("emulated", platform=Platform(logical_processors=1))
    device = undo.enter_context(Kvm(kernel))
    yield f"the TDX module is loaded, and KVM of Linux {stated_release(kernel)} offers TDs"

    machine, window = verifying_reports(kernel), inspectable(kernel)
    assert machine is not None
    assert window is not None
    pki = Pki.new()
    source = _Recorded(EnclaveQuotes(QuotingEnclave(pki, machine.everifyreport2)))
    td = undo.enter_context(QuotingTd(device, source))
    seen = window.inspect_td(td.td.vm.fd)
    regions = bare_guest.regions(code())
    yield f"a TD of {sum(len(contents) for _, contents in regions) >> 12} pages is built and final"

    predictor = MrtdPredictor()
    for gpa, contents in regions:
        predictor.add_region(gpa, contents, measured=True)
    mrtd = bytes.fromhex(seen["mrtd"])
    _expect(mrtd == predictor.digest(), f"the module measured {mrtd.hex()}, predicted is {predictor.digest().hex()}")
    yield f"{mrtd.hex()[:16]}... measured, as predicted"

    page = td.td.vcpu.kvm_run
    _expect(page.io.port == READY_PORT, f"the guest left at port {page.io.port:#x}, not {READY_PORT:#x}")
    yield f"the guest ran, and left for port {READY_PORT:#x}"

    reportdata = hashlib.sha512(b"swtdx selftest").digest()
    quote = td.quote(reportdata)
    report = parse_report(source.report)
    _expect(report.consistent and report.reportdata == reportdata and report.mrtd == mrtd, "it is not of this TD")
    yield "the guest has its TDREPORT: hashes, MRTD and REPORTDATA are right"

    facts = json_format.dumps(make_collateral(pki).as_json())
    verified = verify_quote(parse_quote(quote), facts, int(time.time()), pki.root)
    _expect(verified.tcb_status == "UpToDate", f"its TCB status is {verified.tcb_status}")
    yield f"a quote of {len(quote):,} bytes verifies under a test root, TCB status {verified.tcb_status}"


def _expect(right: bool, otherwise: str) -> None:
    if not right:
        raise RuntimeError(otherwise)
