# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx measure``: the MRTD of a firmware image, bare on stdout; with a kernel to boot, RTMR0-2 too."""

from __future__ import annotations

import base64
import hashlib
import json as json_format
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from swtdx.attest.measure import MeasureError, checked, depends_on_memory, measure_image, order_matters
from swtdx.cli.input import file_bytes, firmware_bytes
from swtdx.cli.parameters import InputError, memory_size
from swtdx.cli.verdict import Failure, Verdict
from swtdx.image.memory_map import MAXIMUM_MEMORY
from swtdx.image.mrtd import Order
from swtdx.image.tdvf import TdvfError

if TYPE_CHECKING:  # loaded only where a kernel is given
    from swtdx.attest.direct_boot import BootPrediction
    from swtdx.image.linux_image import LinuxBoot

DEFAULT_MEMORY = "256M"  # that of swtdx run
PREDICTED_RTMRS = (0, 1, 2)  # RTMR3 is the guest's own
EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx measure OVMF.fd[/cyan] - what today's Linux gives

[cyan]swtdx measure OVMF.fd --order region[/cyan] - what kernels before Linux 6.16 (vendor trees) gave

[cyan]swtdx measure OVMF.fd --output-format base64[/cyan]

[cyan]swtdx measure TDX.fd --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --memory 1G[/cyan] - and RTMR0-2

[cyan]swtdx measure none --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --memory 1G[/cyan] - no firmware

[bold]RTMRs[/bold]

RTMR0-3 are extended by the guest: by the firmware with what it finds on the machine, by the boot loader with the
kernel. With --kernel they are those that swtdx run shows with the same options, once the kernel runs. What is
predicted is edk2's build for TDs, 2025.05 and later; under Secure Boot the kernel must be signed by a key of its db.
Firmware without a driver that measures leaves them zero, and that is said. On another machine they differ by its
tables: with --event-log these come from a log that it has once written, and what the files given decide is put in
place of what they were then.

[bold]Exit status[/bold]

0 measured; 1 wrong usage, also an option that cannot change the result; 2 no TD can start from the image, or it cannot
be predicted; 3 a file is not to be had; 5 the event log cannot be read
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
        Path | None,
        typer.Argument(
            help="Firmware image. Not given: as swtdx run finds it; none: --kernel is entered without firmware.",
            show_default=False,
        ),
    ] = None,
    order: Annotated[
        OrderChoice | None,
        typer.Option(help="Add and measure page by page (default), or a region at a time.", show_default=False),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE", help="Guest memory; with --kernel (not given: 256M), or if the TD HOB is measured."
        ),
    ] = None,
    kernel: Annotated[
        Path | None, typer.Option(metavar="BZIMAGE", help="Linux kernel that the firmware starts: predict RTMR0-2 too.")
    ] = None,
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Its initial RAM disk.")] = None,
    append: Annotated[str | None, typer.Option(metavar="TEXT", help="Its command line.")] = None,
    cpus: Annotated[
        int | None, typer.Option(min=1, max=64, help="vCPUs, with --kernel (not given: 1).", show_default=False)
    ] = None,
    event_log: Annotated[
        Path | None,
        typer.Option(
            metavar="CCEL",
            help="With --kernel: for the machine that has written this event log, in place of that of swtdx run.",
        ),
    ] = None,
    output_format: Annotated[
        OutputFormat | None, typer.Option(help="hex (default) or base64.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the digest, and errors.")] = False,
) -> None:
    """Tell the MRTD that a TD has which is built from a firmware image, and its RTMRs if that starts a kernel."""
    if json and output_format is not None:
        raise Failure("--output-format does not change what --json writes", Verdict.USAGE)
    if kernel is None:
        only_with_it = (("--initrd", initrd), ("--append", append), ("--cpus", cpus), ("--event-log", event_log))
        for option, value in only_with_it:
            if value is not None:
                raise Failure(f"{option} cannot change the MRTD; it is for --kernel, which names none", Verdict.USAGE)
    elif event_log is not None:
        if cpus is not None:
            raise Failure(
                "--cpus cannot change the result: the event log is of a machine that has its own", Verdict.USAGE
            )
    elif memory is None:
        memory = DEFAULT_MEMORY
    if str(image) == "none":
        if event_log is not None:
            raise Failure("without firmware (none) there is no event log", Verdict.USAGE)
        _measure_direct(kernel, initrd, append, memory, cpus, order, output_format, json)
        return
    contents, name = firmware_bytes(image, quiet)
    try:
        tdvf = checked(contents, name)
        if order is not None and not order_matters(tdvf):
            raise Failure(f"--order cannot change the MRTD of {name}: no more than a page is measured", Verdict.USAGE)
        if memory is not None and (kernel is None or event_log is not None) and not depends_on_memory(tdvf):
            raise Failure(f"--memory cannot change the MRTD of {name}: its TD HOB is not measured", Verdict.USAGE)
        if memory is None and depends_on_memory(tdvf):
            raise Failure(f"{name} has its TD HOB measured, which describes guest memory: give --memory", Verdict.USAGE)
        size = None if memory is None else memory_size(memory)
        measurement = measure_image(contents, name, ORDERS[order or OrderChoice.page], size)
        linux = None if kernel is None else linux_files(kernel, initrd, append or "", size or MAXIMUM_MEMORY)
        boot = None
        if linux is not None and event_log is not None:
            boot = _on_the_machine_of(event_log, contents, linux, name)
        elif linux is not None and size is not None:
            from swtdx.attest.direct_boot import predict_direct_boot

            boot = predict_direct_boot(contents, linux, size, cpus or 1, name)
    except InputError as error:
        raise Failure(str(error), Verdict.USAGE) from None
    except (MeasureError, TdvfError) as error:
        raise Failure(str(error), Verdict.FAILED) from None
    for note in boot.notes if boot is not None and not quiet else []:
        print(f"swtdx: {note}", file=sys.stderr)
    if json:
        content = measurement.as_json()
        if boot is not None and linux is not None:
            machine = {"event_log": str(event_log)} if event_log is not None else {"cpus": cpus or 1}
            content["direct_boot"] = {**_described(linux), **machine, **boot.as_json()}
        print(json_format.dumps(content, indent=2))
        return
    rows = {"": measurement.mrtd}
    if boot is not None:
        rows = {"MRTD ": measurement.mrtd, **{f"RTMR{number} ": boot.rtmrs[number] for number in PREDICTED_RTMRS}}
    for label, digest in rows.items():
        print(label + _written(digest, output_format))


def _on_the_machine_of(event_log: Path, image: bytes, linux: LinuxBoot, name: str) -> BootPrediction:
    """Raises `Failure`, and what `predict_from_log` raises."""
    from swtdx.attest.board_log import predict_from_log
    from swtdx.attest.event_log import MAXIMUM_LOG_SIZE, EventLogError, parse_event_log

    try:
        log = parse_event_log(file_bytes(event_log, MAXIMUM_LOG_SIZE + 1))
    except EventLogError as error:
        raise Failure(f"{event_log}: {error}", Verdict.EVENT_LOG) from None
    return predict_from_log(image, linux, log, name)


def _measure_direct(
    kernel: Path | None,
    initrd: Path | None,
    append: str | None,
    memory: str | None,
    cpus: int | None,
    order: OrderChoice | None,
    output_format: OutputFormat | None,
    json: bool,
) -> None:
    """``measure none --kernel ...``: all of the boot is in MRTD, and the RTMRs stay zero. Raises `Failure`."""
    from swtdx.attest.measure import measure_direct
    from swtdx.image.linux_image import LinuxImageError

    if kernel is None:
        raise Failure("without firmware (none) there must be a kernel: give --kernel", Verdict.USAGE)
    try:
        size = memory_size(memory or DEFAULT_MEMORY)
        linux = linux_files(kernel, initrd, append or "", size)
        measurement = measure_direct(linux, size, cpus or 1, ORDERS[order or OrderChoice.page])
    except InputError as error:
        raise Failure(str(error), Verdict.USAGE) from None
    except (MeasureError, LinuxImageError, TdvfError) as error:
        raise Failure(str(error), Verdict.FAILED) from None
    if json:
        entered = {"entered_directly": {**_described(linux), "cpus": cpus or 1}}
        print(json_format.dumps({**measurement.as_json(), **entered}, indent=2))
        return
    print(_written(measurement.mrtd, output_format))


def _written(digest: bytes, output_format: OutputFormat | None) -> str:
    return base64.b64encode(digest).decode() if output_format is OutputFormat.base64 else digest.hex()


def linux_files(kernel: Path, initrd: Path | None, append: str, memory: int) -> LinuxBoot:
    """What a firmware is to start, from its files. Raises `Failure`."""
    from swtdx.image.linux_image import LinuxImageError, load

    for path in (kernel, initrd):
        if path is not None:
            file_bytes(path, 1)  # a file that is not there has a status of its own
    try:
        return load(kernel, initrd, append, memory)
    except LinuxImageError as error:
        raise Failure(str(error), Verdict.FAILED) from None


def _described(linux: LinuxBoot) -> dict[str, Any]:
    return {
        "kernel": linux.kernel.name,
        "kernel_sha256": hashlib.sha256(linux.kernel.image).hexdigest(),
        "initrd_sha256": hashlib.sha256(linux.initrd).hexdigest() if linux.initrd else None,
        "append": linux.command_line,
    }
