# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx measure``: the MRTD of a firmware image, bare on stdout."""

from __future__ import annotations

import base64
import json as json_format
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from swtdx.attest.measure import MeasureError, checked, depends_on_memory, measure_image, order_matters
from swtdx.cli.input import firmware_bytes
from swtdx.cli.parameters import InputError, memory_size
from swtdx.cli.verdict import Failure, Verdict
from swtdx.vmm.measurement import Order
from swtdx.vmm.tdvf import TdvfError

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx measure OVMF.fd[/cyan] - what today's Linux gives

[cyan]swtdx measure OVMF.fd --order region[/cyan] - what kernels before Linux 6.16 (vendor trees) gave

[cyan]swtdx measure OVMF.fd --output-format base64[/cyan]

[bold]What it does not tell[/bold]

RTMR0-3 are extended by the guest: by the firmware with the machine's tables, by the boot loader with the kernel.
This command does not predict them; swtdx run boots from firmware only, without a kernel of its own.

[bold]Exit status[/bold]

0 measured; 1 wrong usage, also an option that cannot change the result; 2 no TD can start from the image; 3 no image
"""


class OrderChoice(StrEnum):
    """In which order the kernel adds and extends."""

    page = "page"
    region = "region"


class OutputFormat(StrEnum):
    """How the digest is written."""

    hex = "hex"
    base64 = "base64"


ORDERS = {OrderChoice.page: Order.PER_PAGE, OrderChoice.region: Order.PER_REGION}


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="measure", epilog=EPILOG)(measure)


def measure(
    image: Annotated[
        Path | None, typer.Argument(help="Firmware image. Not given: as swtdx run finds it.", show_default=False)
    ] = None,
    order: Annotated[
        OrderChoice | None,
        typer.Option(help="Add and measure page by page (default), or a region at a time.", show_default=False),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Guest memory; only for an image whose TD HOB is measured.")
    ] = None,
    output_format: Annotated[
        OutputFormat | None, typer.Option(help="hex (default) or base64.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the digest, and errors.")] = False,
) -> None:
    """Tell the MRTD that a TD has which is built from a firmware image."""
    if json and output_format is not None:
        raise Failure("--output-format does not change what --json writes", Verdict.USAGE)
    contents, name = firmware_bytes(image, quiet)
    try:
        tdvf = checked(contents, name)
        if order is not None and not order_matters(tdvf):
            raise Failure(f"--order cannot change the MRTD of {name}: no more than a page is measured", Verdict.USAGE)
        if memory is not None and not depends_on_memory(tdvf):
            raise Failure(f"--memory cannot change the MRTD of {name}: its TD HOB is not measured", Verdict.USAGE)
        if memory is None and depends_on_memory(tdvf):
            raise Failure(f"{name} has its TD HOB measured, which describes guest memory: give --memory", Verdict.USAGE)
        size = None if memory is None else memory_size(memory)
        measurement = measure_image(contents, name, ORDERS[order or OrderChoice.page], size)
    except InputError as error:
        raise Failure(str(error), Verdict.USAGE) from None
    except (MeasureError, TdvfError) as error:
        raise Failure(str(error), Verdict.FAILED) from None
    if json:
        print(json_format.dumps(measurement.as_json(), indent=2))
    elif output_format is OutputFormat.base64:
        print(base64.b64encode(measurement.mrtd).decode())
    else:
        print(measurement.mrtd.hex())
