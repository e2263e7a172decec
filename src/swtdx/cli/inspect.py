# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx inspect``: a firmware image's TDVF metadata, whether it can start as a TD, and a picture of guest memory."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from swtdx.attest.inspection import Inspection, attribute_names, in_mrtd, inspect_image, type_name
from swtdx.attest.memory_picture import svg_picture, text_picture
from swtdx.cli.colour import printed
from swtdx.cli.input import firmware_bytes, result_file
from swtdx.cli.parameters import InputError, memory_size
from swtdx.cli.verdict import Failure, Verdict

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx inspect[/cyan] - the firmware that swtdx run would use

[cyan]swtdx inspect OVMF.fd --svg memory.svg[/cyan] - with the picture as a file

[cyan]swtdx inspect OVMF.fd --json | jq .broken[/cyan] - the rules that it violates

[bold]Exit status[/bold]

0 the image can start as a TD; 1 wrong usage; 2 it cannot; 3 the image cannot be read
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="inspect", epilog=EPILOG)(inspect)


def inspect(
    image: Annotated[
        Path | None, typer.Argument(help="Firmware image. Not given: the one that swtdx run uses.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON, in place of the tables.")] = False,
    svg: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the picture to FILE as SVG.")] = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Guest memory that the sections must fit into, as in 512M or 2G.")
    ] = "256M",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing; only the exit status counts.")] = False,
) -> None:
    """Explain a firmware image: its TDVF sections, what of them is measured, whether it can start as a TD."""
    if json and quiet:
        raise Failure("--json and --quiet exclude each other", Verdict.USAGE)
    try:
        size = memory_size(memory)
    except InputError as error:
        raise Failure(str(error), Verdict.USAGE) from None
    with result_file("--svg", svg, image, quiet=quiet) as picture:
        contents, name = firmware_bytes(image, quiet or json)
        inspection = inspect_image(contents, name, size)
        if picture is not None:
            picture.replace(svg_picture(inspection).encode())
    if json:
        print(json_format.dumps(inspection.as_json(), indent=2))
    elif not quiet:
        printed(_report(inspection, picture=svg is None))
    raise typer.Exit(Verdict.OK if inspection.can_start else Verdict.FAILED)


def _report(inspection: Inspection, picture: bool) -> Iterator[str]:
    yield f"image    {inspection.name}"
    yield f"size     {inspection.size} bytes"
    yield f"sha256   {inspection.sha256}"
    if inspection.can_start:
        yield "TD       yes, it can start as a TD"
    else:
        yield "TD       no, it cannot start as a TD:"
        yield from (f"         {fault.rule}: {fault}" for fault in inspection.broken)
    if inspection.rows:
        yield from _traits(inspection)
        yield ""
        yield from _table(inspection)
    if picture:
        yield ""
        yield text_picture(inspection)


_RTMRS = {
    True: "this firmware extends them",
    False: "stay zero: this firmware carries no driver that extends them (TdTcg2Dxe)",
    None: "unknown: this does not look like a build of edk2, and only a launch shows it",
}


def _traits(inspection: Inspection) -> Iterator[str]:
    if not any(in_mrtd(row) == "contents" for row in inspection.rows):
        yield "MRTD     measures addresses only: nothing of this firmware's contents"
    yield f"RTMRs    {_RTMRS[inspection.traits.extends_rtmrs]}"
    if inspection.traits.secure_boot is not None:
        enforced = inspection.traits.secure_boot
        yield f"boot     Secure Boot is {'enforced: only what its keys have signed' if enforced else 'off'}"


def _table(inspection: Inspection) -> Iterator[str]:
    head = ("#", "type", "GPA", "memory", "file offset", "file size", "attributes", "in MRTD")
    body = [
        (
            str(index),
            type_name(row),
            f"{row.address:#x}",
            f"{row.memory_size:#x}",
            f"{row.data_offset:#x}" if row.raw_size else "-",
            f"{row.raw_size:#x}" if row.raw_size else "-",
            " ".join(attribute_names(row)) or "-",
            in_mrtd(row),
        )
        for index, row in enumerate(inspection.rows)
    ]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    for line in (head, *body):
        cells = [
            cell.rjust(width) if 2 <= column <= 5 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
