# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx diff``: where images, launches, predictions, quotes, TDREPORTs and event logs part, in any pair."""

from __future__ import annotations

import json as json_format
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from swtdx.attest.build_calls import Build, RecordError, build_of, recorded_build, with_boot
from swtdx.attest.divergence import Comparison, compare
from swtdx.attest.evidence import (
    Evidence,
    EvidenceComparison,
    EvidenceError,
    compare_evidence,
    evidence_of,
    of_build,
)
from swtdx.attest.evidence_kind import FIRMWARE, kind_of
from swtdx.attest.measure import MeasureError, checked, complete, depends_on_memory, order_matters
from swtdx.attest.text_form import text_bytes
from swtdx.cli import declaration as typer
from swtdx.cli.input import file_bytes
from swtdx.cli.measure import DEFAULT_MEMORY, ORDERS, OrderChoice
from swtdx.cli.option_groups import grouped
from swtdx.cli.parameters import InputError, memory_size
from swtdx.cli.predicted_boot import OtherMachine, Started, linux_files, predict, with_kernel_of
from swtdx.cli.verdict import Failure, Verdict
from swtdx.image.firmware import NO_FIRMWARE
from swtdx.image.mrtd import Order
from swtdx.image.tdvf import Tdvf, TdvfError, parse

_NO_IMAGE = "--kernel and --boot cannot change anything: they are for images, whose firmware starts what they name"

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx diff old.fd new.fd[/cyan] - two images

[cyan]swtdx run --json run.json; swtdx diff run.json OVMF.fd[/cyan] - a launch against the prediction

[cyan]swtdx diff run.json TDX.fd --kernel vmlinuz --append console=ttyS0[/cyan] - RTMR0-2 too, to the first event

[cyan]swtdx diff run.json none --kernel vmlinuz[/cyan] - a launch of --firmware none against the prediction

[cyan]swtdx diff ccel.bin OVMF.fd --boot shimx64.efi --boot grubx64.efi --grub-root esp/ --disk disk.img[/cyan] - which
event of a boot from a disk is not as predicted, and why

[cyan]swtdx diff monday.json tuesday.json[/cyan] - two launches, also their RTMRs

[cyan]swtdx diff quote.bin OVMF.fd[/cyan] - is it of this image, and in which order of calls?

[cyan]swtdx diff monday-ccel.bin tuesday-ccel.bin[/cyan] - two event logs, to the first event that differs

[cyan]swtdx diff quote.bin ccel.bin[/cyan] - does the log lead to the quote, and if not, up to where?

[bold]Exit status[/bold]

0 equal; 1 wrong usage; 2 they differ, or one has no measurement; 3 a file cannot be read
"""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="diff", epilog=EPILOG)(diff)


@dataclass(frozen=True)
class Sides:
    """What is compared."""

    one: Annotated[
        Path,
        typer.Argument(
            metavar="A",
            help="Image, record of a run, quote, TDREPORT, event log, or swtdx measure --json; none: no firmware.",
        ),
    ]
    other: Annotated[Path, typer.Argument(metavar="B", help="The same.")]
    order: Annotated[
        OrderChoice | None,
        typer.Option(help="Order of the calls for images. Not given: the launch's, or page.", show_default=False),
    ] = None
    memory: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="Guest memory; for --kernel and --boot (not given: the launch's, or 256M), or a HOB measured.",
        ),
    ] = None


@dataclass(frozen=True)
class Printed:
    """How the result is printed."""

    json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing; only the exit status counts.")] = False


@grouped
def diff(sides: Sides, started: Started, machine: OtherMachine, printed: Printed) -> None:
    """Show the first call or event where two measurements differ: section, address, page and byte, or words."""
    if printed.json and printed.quiet:
        raise Failure("--json and --quiet exclude each other", Verdict.USAGE)
    started.check()
    machine.check(started)
    paths = (sides.one, sides.other)
    given = [(b"" if str(path) == NO_FIRMWARE else text_bytes(file_bytes(path)), str(path)) for path in paths]
    if started.kernel is None and any(name == NO_FIRMWARE for _, name in given):
        raise Failure("without firmware (none) there must be a kernel: give --kernel", Verdict.USAGE)
    boot = Boot(started, machine, printed.quiet) if started.given else None
    comparison: Comparison | EvidenceComparison
    try:
        if any(_is_evidence(contents) for contents, _ in given):
            comparison, text = _of_evidence(given, sides.order, sides.memory, boot)
        else:
            comparison = compare(*_builds(given, sides.order, sides.memory, boot))
            text = _report(comparison)
    except InputError as error:
        raise Failure(str(error), Verdict.USAGE) from None
    except (RecordError, TdvfError, MeasureError, EvidenceError) as error:
        raise Failure(str(error), Verdict.FAILED) from None
    if printed.json:
        print(json_format.dumps(comparison.as_json(), indent=2))
    elif not printed.quiet:
        print("\n".join(text))
    raise typer.Exit(Verdict.OK if comparison.equal else Verdict.FAILED)


@dataclass(frozen=True)
class Boot:
    """What an image's firmware is to start, and on which machine."""

    started: Started
    machine: OtherMachine
    quiet: bool

    def tdvf(self, contents: bytes, name: str, memory: int, cpus: int) -> Tdvf:
        """Return the image, with the kernel in it where that is its place; or what stands in for no firmware.

        Raises `Failure`, `MeasureError`, `TdvfError`.
        """
        from swtdx.attest.measure import direct_tdvf
        from swtdx.image.linux_image import LinuxImageError

        if name != NO_FIRMWARE:
            return complete(with_kernel_of(parse(contents, name), self.started))
        assert self.started.kernel is not None
        if self.machine.files() or self.machine.fw_cfg:
            raise Failure("without firmware (none) there is only --kernel, and no other machine", Verdict.USAGE)
        try:
            linux = linux_files(self.started.kernel, self.started.initrd, self.started.append or "", memory)
            return direct_tdvf(linux, memory, self.machine.cpus or cpus)
        except LinuxImageError as error:
            raise Failure(str(error), Verdict.FAILED) from None

    def of(self, build: Build, memory: int, cpus: int) -> Build:
        """Return the image's build with its RTMRs. Raises `Failure` and what `predict` raises."""
        if build.name == NO_FIRMWARE:  # there is no firmware to extend them
            return replace(build, rtmr=(bytes(48),) * 4, events=())
        assert build.tdvf is not None
        machine = self.machine
        if machine.fw_cfg is None and machine.event_log is None:
            machine = replace(machine, cpus=machine.cpus or cpus)
        _, prediction = predict(build.tdvf, self.started, machine, memory, build.name)
        for note in prediction.notes if prediction.unknown and not self.quiet else []:
            print(f"swtdx: {note}", file=sys.stderr)
        return with_boot(build, prediction)


def _builds(
    given: list[tuple[bytes, str]], choice: OrderChoice | None, memory: str | None, boot: Boot | None
) -> tuple[Build, Build]:
    """Records first, as they know the order in which an image beside them is to be measured."""
    records = {name: recorded_build(contents, name) for contents, name in given if _is_json(contents)}
    launch = next(iter(records.values()), None)
    size = None if memory is None else memory_size(memory)
    machine_memory = size or (launch.memory_size if launch else None) or memory_size(DEFAULT_MEMORY)
    machine_cpus = (launch.cpus if launch else None) or 1
    images = {
        name: boot.tdvf(contents, name, machine_memory, machine_cpus) if boot else checked(contents, name)
        for contents, name in given
        if name not in records
    }
    tdvfs = images.values()
    if choice is not None and not any(map(order_matters, tdvfs)):
        raise Failure("--order cannot change anything: it is for images, whose calls were not made yet", Verdict.USAGE)
    if boot is not None and not images:
        raise Failure(_NO_IMAGE, Verdict.USAGE)
    if memory is not None and boot is None and not any(map(depends_on_memory, tdvfs)):
        raise Failure("--memory cannot change anything: it is for images whose TD HOB is measured", Verdict.USAGE)
    known = next((build.order for build in records.values() if build.order is not None), Order.PER_PAGE)
    order = known if choice is None else ORDERS[choice]
    known_size = machine_memory if boot is not None else size
    builds = {name: build_of(tdvf, order, known_size) for name, tdvf in images.items()} | records
    if boot is not None:
        for name in images:
            builds[name] = boot.of(builds[name], machine_memory, machine_cpus)
    return builds[given[0][1]], builds[given[1][1]]


def _is_evidence(contents: bytes) -> bool:
    """Whether it is a quote, a TDREPORT, an event log or a prediction, and neither an image nor a launch's record."""
    kind = kind_of(contents)
    if kind == FIRMWARE:
        return False
    if _is_json(contents):
        return b'"mrtd_order"' not in contents
    return kind is not None or contents[:1].isalnum()


def _of_evidence(
    given: list[tuple[bytes, str]], order: OrderChoice | None, memory: str | None, boot: Boot | None
) -> tuple[EvidenceComparison, Iterator[str]]:
    """Compare two sides of which at least one is evidence of a TD that has run, or a prediction's JSON."""
    sides: list[Evidence] = []
    notes: list[str] = []
    read = {name: evidence_of(contents, name) for contents, name in given if _is_evidence(contents)}
    if boot is not None and all(name in read for _, name in given):
        raise Failure(_NO_IMAGE, Verdict.USAGE)
    wanted = next((each.mrtd for each in read.values()), None)
    for contents, name in given:
        if name in read:
            sides.append(read[name])
            continue
        build, _ = _builds([(contents, name)] * 2, None, memory, boot)
        if build.tdvf is not None and not build.launched and order is None and wanted is not None:
            build, note = _in_the_order_of(build, wanted)
            notes.append(note)
        elif order is not None and build.tdvf is not None:
            build = replace(
                build, mrtd=build_of(build.tdvf, ORDERS[order], build.memory_size).mrtd, order=ORDERS[order]
            )
        sides.append(of_build(build))
    comparison = compare_evidence(sides[0], sides[1])
    return comparison, _evidence_report(comparison, notes)


def _in_the_order_of(build: Build, mrtd: bytes) -> tuple[Build, str]:
    """The build of an image in the order of calls that leads to an MRTD, and a sentence on it."""
    assert build.tdvf is not None
    for order in Order:
        found = build_of(build.tdvf, order, build.memory_size)
        if found.mrtd == mrtd:
            return replace(build, mrtd=mrtd, order=order), f"This MRTD is of {build.name}, its calls {order.value}."
    tried = " nor ".join(order.value for order in Order)
    return build, f"No order of calls makes this MRTD of {build.name}: neither {tried}."


def _evidence_report(comparison: EvidenceComparison, notes: list[str]) -> Iterator[str]:
    for label, side in zip("AB", comparison.sides, strict=True):
        yield f"{label}  {side.name} ({side.kind})"
    yield from notes
    if not comparison.compared:
        yield "There is nothing that both of them know."
        return
    different = {each.what for each in comparison.differences}
    same = [what for what in comparison.compared if what not in different]
    for each in comparison.differences:
        yield f"{each.text}."
        if each.reason is not None:
            yield f"Usual reason: {each.reason}."
    if same:
        yield f"{', '.join(same)} {'is' if len(same) == 1 else 'are'} equal."


def _is_json(contents: bytes) -> bool:
    """A record begins with a brace; an image never does: it begins with a firmware volume's zero bytes or with code."""
    return contents[:64].lstrip().startswith((b"{", b"["))


def _report(comparison: Comparison) -> Iterator[str]:
    for label, build in zip("AB", comparison.builds, strict=True):
        kind = "launch" if build.launched else "prediction"
        order = "in an unknown order" if build.order is None else build.order.value
        yield f"{label}  {build.name} ({kind}, {order})"
        yield f"   MRTD {build.mrtd.hex()}"
    if comparison.mrtd_equal:
        yield "MRTD is equal."
        yield from _unmeasured(comparison)
    elif comparison.divergence is not None:
        yield f"MRTD differs: {comparison.divergence}."
    else:
        yield "MRTD differs, though the recorded pages are equal: the calls came in an order that is not known."
    if comparison.rtmrs is None:
        return
    one, other = comparison.builds
    assert one.rtmr is not None
    assert other.rtmr is not None
    if not comparison.rtmrs:
        compared = [number for number in range(4) if one.rtmr[number] and other.rtmr[number]]
        every = "RTMR0-3" if len(compared) == 4 else ", ".join(f"RTMR{number}" for number in compared)
        yield f"{every} {'is' if len(compared) == 1 else 'are'} equal." if compared else "No RTMR is known of both."
        return
    for number in comparison.rtmrs:
        first, second = one.rtmr[number], other.rtmr[number]
        assert first is not None
        assert second is not None
        yield f"RTMR{number} differs: {first.hex()}"
        yield f"           and: {second.hex()}"
    if comparison.first_event is None:
        yield "Which event was the first to differ only the guest's event log can tell; the record has no events."
        return
    yield f"The first event to differ is number {comparison.first_event}:"
    for label, extensions in zip("AB", comparison.extensions, strict=True):
        assert extensions is not None
        if comparison.first_event < len(extensions):
            register, digest = extensions[comparison.first_event]
            yield f"{label}  RTMR{register} extended with {digest.hex()}"
        else:
            yield f"{label}  there is none"
    if comparison.first_event_words is not None:
        yield f"Predicted there is {comparison.first_event_words}."
    if comparison.reason is not None:
        yield f"Usual reason: {comparison.reason}."


def _unmeasured(comparison: Comparison) -> Iterator[str]:
    """Files may differ where nothing is measured."""
    one, other = (build.tdvf for build in comparison.builds)
    if one is None or other is None or one.image == other.image:
        return
    pairs = enumerate(zip(one.image, other.image, strict=False))
    first = next((at for at, (left, right) in pairs if left != right), min(len(one.image), len(other.image)))
    yield f"The files differ, from byte {first:#x} on, but in nothing that MRTD measures."
