# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx fuzz guest``: what does a guest do wrong when its host lies?"""

from __future__ import annotations

import json as json_format
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from swtdx.cli.option_groups import grouped
from swtdx.fuzzing.page import counted

if TYPE_CHECKING:
    from swtdx.cli.fuzzed_guest import Settings
    from swtdx.cli.output import Output, Outputs
    from swtdx.fuzzing.campaign import Campaign, Crash

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx fuzz guest --kernel vmlinuz --initrd initrd.img --rng --snapshot-at 'Run /init' --timeout 600[/cyan]

[cyan]swtdx run --kernel vmlinuz --append console=ttyS0 --snapshot-at 'Run /init' --snapshot linux.snapshot[/cyan]

[cyan]swtdx fuzz guest --from linux.snapshot --until '# ' --timeout 600[/cyan] - ten minutes from there

[cyan]swtdx fuzz guest --from linux.snapshot --type 'cat /proc/interrupts\\n'[/cyan] - a shell that does something

[cyan]swtdx fuzz guest --from linux.snapshot --lies virtio,interrupts[/cyan] - what its devices say, and vectors

[cyan]swtdx fuzz guest --from linux.snapshot --code 0xffffffff81000000-0xffffffff82000000[/cyan] - what counts as new

[cyan]swtdx fuzz guest --from linux.snapshot --check my_checks:looks_right[/cyan] - what is wrong without a crash

[cyan]swtdx fuzz guest --from linux.snapshot --workers 8[/cyan] - on eight processors

[cyan]swtdx fuzz guest --from /shared/linux.snapshot --cluster tcp://head:8786[/cyan] - on Dask's workers

[cyan]swtdx fuzz guest --from linux.snapshot --replay swtdx-fuzz/crashes/oops-1a2b3c4d.lies[/cyan] - once more

[cyan]swtdx run --from linux.snapshot --lies-from swtdx-fuzz/crashes/oops-1a2b3c4d.lies[/cyan] - and watch it

[bold]Exit status[/bold]

0 nothing found; 1 wrong usage; 2 bad input; 3 something that crashes the guest was found, or replayed
"""

STATUS_FOUND = 3
STATUS_LOST = 2
"""Exit status where a file could not be written, as of ``swtdx run``."""
USUAL_KINDS = ("calls", "virtio", "interrupts", "time")
"""The others reach only some guests: those that have not read their tables yet, or let a page be taken."""
_SLICE_SECONDS = 5.0
_LARGEST = 1 << 64


@dataclass(frozen=True)
class What:
    """What to run."""

    PANEL: ClassVar[str] = "Guest"

    restored: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="The snapshot of a Trust Domain (swtdx run --snapshot)."),
    ] = None
    typed: Annotated[
        str | None, typer.Option("--type", metavar="TEXT", help=r"What is typed after each restore; \n is Enter.")
    ] = None
    disk: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE,ro", help="A disk that the machine in the snapshot has; may be repeated."),
    ] = None
    lies: Annotated[
        str,
        typer.Option(
            metavar="KIND[,KIND]",
            help="What the host lies about: calls, virtio, acpi, interrupts, ve, time, or all of them.",
        ),
    ] = ",".join(USUAL_KINDS)
    code: Annotated[
        list[str] | None,
        typer.Option(metavar="START-END", help="Only blocks at these addresses count as new; may be repeated."),
    ] = None
    check: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Called with the guest after each run without a crash; what is wrong with it, or None.",
        ),
    ] = None


@dataclass(frozen=True)
class Start:
    """A guest that is started once, in place of a snapshot."""

    PANEL: ClassVar[str] = "A guest that is started here, in place of --from"

    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Start this Linux kernel once, and keep it at --snapshot-at.")
    ] = None
    snapshot_at: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Each run begins where the console showed TEXT.")
    ] = None
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Its initrd.")] = None
    append: Annotated[str, typer.Option(metavar="TEXT", help="Its command line.")] = "console=ttyS0 oops=panic panic=-1"
    firmware: Annotated[str, typer.Option(metavar="FILE", help="A firmware that starts it; none: without.")] = "none"
    memory: Annotated[str, typer.Option(metavar="SIZE", help="Its memory.")] = "512M"
    cpus: Annotated[int, typer.Option(min=1, metavar="N", help="Its virtual CPUs.")] = 1
    rng: Annotated[bool, typer.Option("--rng", help="With a virtio-rng device.")] = False
    attributes: Annotated[
        str | None, typer.Option(metavar="MASK", help="TD attributes. Not given: SEPT_VE_DISABLE (0x10000000).")
    ] = None


@dataclass(frozen=True)
class Ending:
    """When a run ends, and all of it."""

    PANEL: ClassVar[str] = "End of a run, and of the campaign"

    calls: Annotated[int, typer.Option(min=1, metavar="N", help="End a run after so many TDVMCALLs.")] = 2000
    run_seconds: Annotated[str, typer.Option(metavar="SECONDS", help="End a run after this time.")] = "2"
    until: Annotated[str | None, typer.Option(metavar="TEXT", help="End a run when the console shows TEXT.")] = None
    timeout: Annotated[
        str, typer.Option(metavar="SECONDS", help="End the campaign after this time; 0: when it is interrupted.")
    ] = "0"


@dataclass(frozen=True)
class How:
    """How it is done, and what comes of it."""

    PANEL: ClassVar[str] = "Campaign"

    corpus: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where cases and crashes are kept, and continued from.")
    ] = Path("swtdx-fuzz")
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of all choices.")] = 1
    workers: Annotated[int, typer.Option(metavar="N", help="So many processes (more than 1: swtdx[cluster]).")] = 1
    cluster: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS", help="A scheduler of Dask's, whose workers have the snapshot at the same path."
        ),
    ] = None
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Run once with the lies of FILE, and say what comes of it.")
    ] = None
    json: Annotated[bool, typer.Option("--json", help="The results as JSON, in place of the text.")] = False
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One page: coverage over time, crashes, where lies entered.")
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the result, and errors.")] = False


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="Find faults by inputs that are drawn.")
    group.callback()(_fuzz)
    group.command(name="guest", epilog=EPILOG)(guest)
    app.add_typer(group, name="fuzz")


def _fuzz() -> None:
    """Look for what goes wrong with inputs that are drawn."""


@grouped
def guest(what: What, start: Start, ending: Ending, how: How) -> None:
    """Find what a Trust Domain does wrong when its host lies.

    Each run starts at the snapshot, and the host answers some TDVMCALLs otherwise, writes other things into shared
    memory, interrupts, or sets clocks (see --lie of swtdx run). Cases that reach new code are changed further. What
    crashes the guest is reduced to the lies that are needed and kept in a file.
    """
    _check(what, start, how)
    with _outputs(what, start, how.html) as (outputs, html):
        campaign = _campaign(what, start, ending, how)
        if html is not None:
            from swtdx.fuzzing.page import page

            html.replace(page(campaign.as_json(), str(start.kernel or what.restored)).encode("utf-8", "replace"))
    _show(campaign, how)
    if outputs.failed:
        raise typer.Exit(STATUS_LOST)
    raise typer.Exit(STATUS_FOUND if campaign.crashes else 0)


def _campaign(what: What, start: Start, ending: Ending, how: How) -> Campaign:
    """Carry a campaign out, or replay one case and exit. Raises InputError."""
    from swtdx.cli.fuzzed_guest import check, digest_of
    from swtdx.cli.parameters import InputError
    from swtdx.fuzzing.campaign import Campaign
    from swtdx.fuzzing.folder import Folder, FolderError

    settings = _settings(what, ending)
    try:
        folder = None if start.kernel is None else Folder(how.corpus)
        if start.kernel is not None:
            settings = replace(settings, snapshot=_booted(start, what, how))
        if how.replay is not None:
            raise typer.Exit(_replay(settings, how))
        _needs_hypothesis()
        check(settings, here=how.workers == 1 and how.cluster is None)
        campaign = Campaign(folder or Folder(how.corpus), digest_of(settings.snapshot))
    except FolderError as error:
        raise InputError(str(error)) from None
    progress = _Progress(campaign, quiet=how.quiet)
    with progress:
        _carry_out(settings, how, campaign, progress, _seconds("--timeout", ending.timeout))
    return campaign


@contextmanager
def _outputs(what: What, start: Start, html: Path | None) -> Iterator[tuple[Outputs, Output | None]]:
    """Open the page before hours of work go into it, and not onto what is read. Raises InputError."""
    from swtdx.cli.output import OutputError, Outputs
    from swtdx.cli.parameters import InputError
    from swtdx.vmm.disk_image import DiskError, parse_disk

    try:
        with Outputs() as outputs:
            disks = [("--disk", parse_disk(text).path) for text in what.disk or ()]
            for option, read in (
                ("--from", what.restored),
                ("--kernel", start.kernel),
                ("--initrd", start.initrd),
                *disks,
            ):
                if read is not None:
                    outputs.reads(f"{option} {read}", read)
            yield outputs, None if html is None else outputs.open("--html", html)
    except (OutputError, DiskError) as error:
        raise InputError(str(error)) from None


def _check(what: What, start: Start, how: How) -> None:
    """Refuse what cannot go together, before anything is made. Raises InputError."""
    from swtdx.cli.parameters import InputError

    if (what.restored is None) == (start.kernel is None):
        raise InputError("give a guest: either --from SNAPSHOT, or --kernel FILE with --snapshot-at TEXT")
    if start.kernel is not None and not start.snapshot_at:
        raise InputError("--kernel needs --snapshot-at TEXT: what its console shows where each run is to begin")
    if start.kernel is None and (start.snapshot_at or start.initrd):
        raise InputError("--snapshot-at and --initrd go with --kernel; the guest of --from is started already")
    if how.workers < 1:
        raise InputError(f"--workers {how.workers}: at least one is needed")


def _booted(start: Start, what: What, how: How) -> Path:
    """Return the snapshot of the guest that is to be started. Raises InputError."""
    from swtdx.cli.fuzzed_boot import Boot, booted

    assert start.kernel is not None
    assert start.snapshot_at is not None
    options = {field.name: getattr(start, field.name) for field in fields(start)}
    boot = Boot(**options, disks=tuple(what.disk or ()))
    if not how.quiet:
        print(f"swtdx: the guest is started, and kept where it shows {start.snapshot_at!r}", file=sys.stderr)
    return booted(how.corpus.absolute(), boot)


def _needs_hypothesis() -> None:
    from importlib.util import find_spec

    from swtdx.cli.parameters import InputError

    if find_spec("hypothesis") is None:
        raise InputError("fuzz guest needs Hypothesis: pip install 'swtdx[fuzz]'")


def _seconds(option: str, text: str) -> float:
    from swtdx.cli.parameters import seconds

    return seconds(option, text)


def _settings(what: What, ending: Ending) -> Settings:
    """Return what a worker must know. Raises InputError."""
    from swtdx.cli.fuzzed_guest import Settings, checker_named
    from swtdx.cli.parameters import InputError
    from swtdx.fuzzing.guest import Limits

    run_seconds = _seconds("--run-seconds", ending.run_seconds)
    if not run_seconds:
        raise InputError("--run-seconds 0: a run needs time")
    if ending.until == "":
        raise InputError("--until needs a text to wait for")
    checker_named(what.check)
    limits = Limits(ending.calls, run_seconds, ending.until)
    typed = (what.typed or "").replace("\\n", "\r").encode()
    code = tuple(_range(each) for each in what.code or ())
    return Settings(
        (what.restored or Path()).absolute(), limits, typed, code, what.check, tuple(what.disk or ()), _kinds(what.lies)
    )


def _kinds(text: str) -> tuple[str, ...]:
    """Return the kinds of lies that are named. Raises InputError."""
    from swtdx.cli.parameters import InputError
    from swtdx.lying.lie import kinds

    named = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if named == ("all",):
        return tuple(kinds())
    unknown = [word for word in named if word not in kinds()]
    if unknown or not named:
        raise InputError(f"--lies {text}: there is no such kind; the kinds are {', '.join(kinds())}")
    return named


def _range(text: str) -> tuple[int, int]:
    from swtdx.cli.parameters import InputError

    first, dash, last = text.partition("-")
    try:
        start, end = int(first, 0), int(last, 0)
    except ValueError:
        start = end = 0
    if not dash or not 0 <= start < end <= _LARGEST:
        raise InputError(f"--code {text}: write START-END, as in 0xffffffff81000000-0xffffffff82000000")
    return start, end


def _replay(settings: Settings, how: How) -> int:
    """Run one case. Raises InputError."""
    from swtdx.cli.fuzzed_guest import open_guest
    from swtdx.cli.kernel_choice import checked_lies

    assert how.replay is not None
    lies = checked_lies(None, how.replay, "--replay")
    with ExitStack() as files:
        result = open_guest(settings, files).run(lies)
    if how.json:
        outcome = result.outcome
        print(json_format.dumps({"kind": outcome.kind, "text": str(outcome), "told": result.told}, indent=2))
    else:
        told, calls = counted(len(result.told), "lie"), counted(result.calls, "call")
        print(f"{told} told in {calls}: {result.outcome}")
    return STATUS_FOUND if result.outcome.is_crash else 0


def _carry_out(settings: Settings, how: How, campaign: Campaign, progress: _Progress, seconds: float) -> None:
    """Work until it is over. Raises InputError."""
    from swtdx.cli.fuzzed_guest import slice_of
    from swtdx.cli.parameters import InputError

    def goes_on() -> bool:
        return not seconds or campaign.seconds < seconds

    def slice_seconds() -> float:
        return min(_SLICE_SECONDS, max(seconds - campaign.seconds, 0.1)) if seconds else _SLICE_SECONDS

    if how.workers > 1 or how.cluster is not None:
        from swtdx.fuzzing import cluster

        try:
            with cluster.workers(how.workers, how.cluster) as client:
                cluster.run(
                    client,
                    partial(slice_of, settings),
                    campaign,
                    seed=how.seed,
                    slice_seconds=slice_seconds(),
                    goes_on=goes_on,
                    tell=progress.tell,
                )
        except cluster.ClusterError as error:
            raise InputError(str(error)) from None
        except KeyboardInterrupt:
            return
        return
    seed, interrupted = how.seed, False
    while goes_on() and not interrupted:
        found = slice_of(settings, campaign.known(), seed, slice_seconds())
        progress.tell(campaign.add(found))
        _check_possible(settings, campaign)
        seed, interrupted = seed + 1, found.interrupted


def _check_possible(settings: Settings, campaign: Campaign) -> None:
    """Refuse a guest about which nothing can be found. Raises InputError."""
    from swtdx.cli.parameters import InputError

    if not campaign.sites:
        raise InputError(
            f"the guest in {settings.snapshot.name} asks its host for nothing in {settings.limits.seconds:g} s, so it "
            "cannot be lied to: give --type, --run-seconds, or an earlier snapshot"
        )
    if settings.code and not campaign.blocks:
        raise InputError("no coverage is possible: the guest executes nothing new in the range of --code")


class _Progress:
    """One line on a terminal; elsewhere a line for each crash."""

    def __init__(self, campaign: Campaign, *, quiet: bool) -> None:
        from rich.console import Console

        self.campaign = campaign
        self.quiet = quiet
        self.console = Console(stderr=True, highlight=False)
        self._status = self.console.status("starting") if self.console.is_terminal and not quiet else None

    def __enter__(self) -> None:
        if self._status is not None:
            self._status.start()

    def __exit__(self, *exception: object) -> None:
        if self._status is not None:
            self._status.stop()

    def tell(self, crashes: list[Crash]) -> None:
        """A slice has come back."""
        campaign = self.campaign
        if self.quiet:
            return
        for crash in crashes:
            at = time.strftime("%H:%M:%S")
            lies = counted(len(crash.case), "lie")
            text = f"{at} {crash.outcome} ({lies}, replayed {crash.replayed} of {crash.replays})"
            self.console.print(text, markup=False, soft_wrap=True)
        if self._status is not None:
            self._status.update(_figures(campaign))


def _figures(campaign: Campaign) -> str:
    seconds = campaign.seconds
    return (
        f"{seconds:,.0f} s, {campaign.runs:,} runs ({campaign.runs / seconds if seconds else 0:.1f}/s), "
        f"{len(campaign.blocks):,} blocks, {counted(len(campaign.corpus), 'case')}, "
        f"{counted(len(campaign.crashes), 'kind')} of crash"
    )


def _show(campaign: Campaign, how: How) -> None:
    """Print what was found."""
    if how.json:
        print(json_format.dumps(campaign.as_json(), indent=2))
        return
    print(_figures(campaign))
    for crash in campaign.crashes.values():
        print(f"{crash.outcome}\n    {how.corpus}/crashes/{crash.outcome.name}.lies", end="")
        print(f": {counted(len(crash.case), 'lie')}, replayed {crash.replayed} of {crash.replays}")
    if not campaign.crashes:
        print("nothing that crashes the guest was found", file=sys.stderr)
