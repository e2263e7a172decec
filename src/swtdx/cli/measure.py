# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx measure``: the MRTD of a firmware image, bare on stdout; with a kernel to boot, RTMR0-2 too."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from swtdx.attest.measure import (
    MeasureError,
    complete,
    depends_on_memory,
    measure_tdvf,
    order_matters,
    order_name,
)
from swtdx.cli import declaration as typer
from swtdx.cli.input import firmware_bytes
from swtdx.cli.option_groups import grouped
from swtdx.cli.parameters import InputError, memory_size
from swtdx.cli.predicted_boot import OtherMachine, Started, linux_files, predict, with_kernel_of
from swtdx.cli.verdict import Failure, Verdict
from swtdx.image.mrtd import Order
from swtdx.image.tdvf import Tdvf, TdvfError, parse

if TYPE_CHECKING:  # loaded only where a kernel is given
    from swtdx.attest.boot_prediction import BootPrediction
    from swtdx.attest.measure import Measurement

DEFAULT_MEMORY = "256M"  # that of swtdx run
EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx measure OVMF.fd[/cyan] - what Linux gives

[cyan]swtdx measure OVMF.fd --order region[/cyan] - what kernels before Linux 6.16 (vendor trees) gave

[cyan]swtdx measure OVMF.fd --output-format base64[/cyan]

[cyan]swtdx measure TDX.fd --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --memory 1G[/cyan] - and RTMR0-2

[cyan]swtdx measure none --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --memory 1G[/cyan] - no firmware

[cyan]swtdx measure TDX.fd --kernel linux.efi --memory 1G[/cyan] - a unified kernel image

[cyan]swtdx measure OVMF.fd --boot shimx64.efi --boot grubx64.efi --grub-root esp/ --disk disk.img[/cyan] - from a disk

[cyan]swtdx measure td-shim.bin --kernel vmlinux --append quiet --td-hob hob.bin[/cyan]

[cyan]swtdx measure TDX.fd --kernel vmlinuz --fw-cfg fw_cfg/ --memory 2G[/cyan] - another machine's ACPI tables

[cyan]swtdx measure TDX.fd --kernel vmlinuz --policy-out td.toml[/cyan] - a policy that swtdx quote verify reads

[bold]RTMRs[/bold]

The guest extends RTMR0-3: the firmware with its findings about the machine, the boot loader with the kernel. With
--kernel the command predicts the values that swtdx run shows with the same options, once the kernel runs. It knows
edk2's build for TDs, 2025.05 and later, and its generic build, 2025.02 and later; under Secure Boot the kernel must
be signed by a key of its db. Of edk2's other builds it predicts RTMR1 and RTMR2. An event that is not known is named,
and its RTMR is left out.

With --boot the firmware starts shim, GRUB or a UKI from a disk. GRUB's configuration and the files that it reads come
from --grub-root: the command carries the configuration out as GRUB does, up to the kernel of the default entry.

Firmware without a measurement driver leaves them zero; the output states this. Other machines have other tables, and
another RTMR0: with --event-log the events of the machine come from a log, and only those of the given files are
replaced; with --fw-cfg, --td-hob and --variables they come from files.

[bold]Exit status[/bold]

0 measured; 1 wrong usage, also an option that cannot change the result; 2 no TD can start from the image, or it cannot
be predicted; 3 a file cannot be read; 5 the event log cannot be read
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


@dataclass(frozen=True)
class Subject:
    """What is measured."""

    image: Annotated[
        Path | None,
        typer.Argument(
            help="Firmware image. Not given: the one that swtdx run uses; none: --kernel is entered without firmware.",
            show_default=False,
        ),
    ] = None
    order: Annotated[
        OrderChoice | None,
        typer.Option(help="Add and measure page by page (default), or a region at a time.", show_default=False),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Guest memory (default 256M). Needed only with --kernel, or if the image measures its TD HOB.",
        ),
    ] = None


@dataclass(frozen=True)
class Printed:
    """How the result is printed."""

    output_format: Annotated[OutputFormat | None, typer.Option(help="hex (default) or base64.", show_default=False)] = (
        None
    )
    policy_out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A policy for swtdx quote verify --policy that accepts these values."),
    ] = None
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the digest, and errors.")] = False

    def check(self) -> None:
        """Raise `Failure` for options that exclude each other."""
        if self.json and self.output_format is not None:
            raise Failure("--output-format does not change what --json writes", Verdict.USAGE)


@grouped
def measure(subject: Subject, started: Started, machine: OtherMachine, printed: Printed) -> None:
    """Print the MRTD of a TD built from a firmware image, and its RTMRs if it starts a kernel."""
    printed.check()
    started.check()
    machine.check(started)
    memory = subject.memory
    if started.given and machine.event_log is None and memory is None:
        memory = DEFAULT_MEMORY
    if str(subject.image) == "none":
        if machine.files() or machine.fw_cfg or started.boot:
            raise Failure("without firmware (none) there is only --kernel, and no other machine", Verdict.USAGE)
        _measure_direct(started, machine.cpus or 1, memory, subject.order, printed)
        return
    contents, name = firmware_bytes(subject.image, printed.quiet)
    try:
        tdvf = complete(with_kernel_of(parse(contents, name), started))
        _check_options(tdvf, name, subject.order, memory, started, machine)
        size = None if memory is None else memory_size(memory)
        measurement = measure_tdvf(tdvf, ORDERS[subject.order or OrderChoice.page], size)
        predicted = predict(tdvf, started, machine, size, name) if started.given else None
    except InputError as error:
        raise Failure(str(error), Verdict.USAGE) from None
    except (MeasureError, TdvfError) as error:
        raise Failure(str(error), Verdict.FAILED) from None
    for note in predicted[1].notes if predicted is not None and not printed.quiet else []:
        print(f"swtdx: {note}", file=sys.stderr)
    if printed.policy_out is not None:
        registers = _registers(predicted[1]) if predicted is not None else {}
        _write_policy(printed.policy_out, measurement, registers, started, machine, subject.image)
    if printed.json:
        import json as json_format

        content = measurement.as_json()
        if predicted is not None:
            content["direct_boot"] = {
                **started.described(predicted[0]),
                **machine.as_json(),
                **predicted[1].as_json(),
            }
        print(json_format.dumps(content, indent=2))
        return
    rows = {"": measurement.mrtd}
    if predicted is not None:
        rows = {"MRTD ": measurement.mrtd}
        rows |= {f"RTMR{number} ": digest for number, digest in _registers(predicted[1]).items()}
    for label, digest in rows.items():
        print(label + _written(digest, printed.output_format))


def _registers(prediction: BootPrediction) -> dict[int, bytes]:
    """The RTMRs that are predicted, by number. RTMR3 is the guest's own."""
    return {number: prediction.rtmrs[number] for number in prediction.registers}


def _check_options(
    tdvf: Tdvf, name: str, order: OrderChoice | None, memory: str | None, started: Started, machine: OtherMachine
) -> None:
    """Raise `Failure` for options that cannot change the MRTD of this image, or that it needs."""
    if order is not None and not order_matters(tdvf):
        raise Failure(f"--order cannot change the MRTD of {name}: no more than a page is measured", Verdict.USAGE)
    if memory is not None and (not started.given or machine.event_log is not None) and not depends_on_memory(tdvf):
        raise Failure(f"--memory cannot change the MRTD of {name}: its TD HOB is not measured", Verdict.USAGE)
    if memory is None and depends_on_memory(tdvf):
        raise Failure(f"{name} has its TD HOB measured, which describes guest memory: give --memory", Verdict.USAGE)


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="measure", epilog=EPILOG)(measure)


def _measure_direct(
    started: Started, cpus: int, memory: str | None, order: OrderChoice | None, printed: Printed
) -> None:
    """``measure none --kernel ...``: all of the boot is in MRTD, and the RTMRs stay zero. Raises `Failure`."""
    from swtdx.attest.measure import measure_direct
    from swtdx.image.linux_image import LinuxImageError

    if started.kernel is None:
        raise Failure("without firmware (none) there must be a kernel: give --kernel", Verdict.USAGE)
    try:
        size = memory_size(memory or DEFAULT_MEMORY)
        boot = linux_files(started.kernel, started.initrd, started.append or "", size)
        measurement = measure_direct(boot, size, cpus, ORDERS[order or OrderChoice.page])
    except InputError as error:
        raise Failure(str(error), Verdict.USAGE) from None
    except (MeasureError, LinuxImageError, TdvfError) as error:
        raise Failure(str(error), Verdict.FAILED) from None
    if printed.policy_out is not None:
        _write_policy(printed.policy_out, measurement, {}, started, OtherMachine(), None)
    if printed.json:
        import json as json_format

        entered = {"entered_directly": {**started.described(boot), "cpus": cpus}}
        print(json_format.dumps({**measurement.as_json(), **entered}, indent=2))
        return
    print(_written(measurement.mrtd, printed.output_format))


def _write_policy(
    path: Path,
    measurement: Measurement,
    rtmrs: dict[int, bytes],
    started: Started,
    machine: OtherMachine,
    image: Path | None,
) -> None:
    """Write a policy that accepts what was predicted. Raises `Failure`."""
    from swtdx.attest.policy_file import policy_text
    from swtdx.cli.input import result_file

    made_of = [f"{measurement.tdvf.name}, {order_name(measurement.order)} order"]
    if started.kernel is not None:
        made_of.append(f"{started.kernel}, command line {started.append or ''!r}")
    made_of += [str(each) for each in started.boot or ()]
    reads = (image, *started.files(), *machine.files())
    with result_file("--policy-out", path, *reads, quiet=False) as out:
        assert out is not None
        out.replace(policy_text(measurement.mrtd, rtmrs, made_of).encode())


def _written(digest: bytes, output_format: OutputFormat | None) -> str:
    if output_format is not OutputFormat.base64:
        return digest.hex()
    import base64

    return base64.b64encode(digest).decode()
