# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx trace summary``: counts and times of a trace that ``swtdx run --trace`` wrote, by kind and name."""

from __future__ import annotations

import json as json_format
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from swtdx.cli.colour import printed
from swtdx.cli.verdict import Failure, Verdict
from swtdx.cli.writing import complain
from swtdx.trace.event import KINDS, Event, Exit
from swtdx.trace.file import CutOff, TraceError, read_events
from swtdx.trace.file import Line as TraceLine

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx run --trace boot.jsonl[/cyan] - make one

[cyan]swtdx trace summary boot.jsonl[/cyan]

[cyan]swtdx trace summary boot.jsonl.gz --kind seamcall --kind tdcall[/cyan]

[cyan]swtdx trace summary boot.jsonl --json | jq '.by_kind.exit'[/cyan]

[bold]Exit status[/bold]

0 shown; 1 wrong usage; 2 the file is not a trace; 3 it cannot be read
"""


@dataclass
class Line:
    """Of one name: how often, how long, how often it failed. Times in microseconds."""

    count: int = 0
    total: float = 0.0
    longest: float = 0.0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """With which errno or status, and how often."""

    def add(self, event: Event) -> None:
        """Count one event."""
        self.count += 1
        self.total += event.dur / 1000
        self.longest = max(self.longest, event.dur / 1000)
        self.failed += event.failed
        if event.failed:
            name = getattr(event, "errno", "") or getattr(event, "text", "")
            self.errors[name] = self.errors.get(name, 0) + 1

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "count": self.count,
            "total_us": round(self.total, 3),
            "mean_us": round(self.total / self.count, 3) if self.count else 0,
            "longest_us": round(self.longest, 3),
            "failed": self.failed,
            "errors": self.errors,
        }


@dataclass
class Summary:
    """All of a trace in counts and times."""

    kinds: dict[str, dict[str, Line]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    guest: float = 0.0
    first: float | None = None
    last: float = 0.0

    def add(self, event: Event) -> None:
        """Count one event."""
        if event.kind not in self.kinds:
            return
        name = event.name
        if name == "KVM_MEMORY_ENCRYPT_OP":
            name = event.args.get("command", name)
        elif name == "TDG.VP.VMCALL":
            name = f"{name} {event.args.get('function', '')}".rstrip()
        self.kinds[event.kind].setdefault(name, Line()).add(event)
        guest = event.guest / 1000 if isinstance(event, Exit) else 0.0
        self.guest += guest
        began = event.t / 1000 - guest
        self.first = began if self.first is None else min(self.first, began)
        self.last = max(self.last, (event.t + event.dur) / 1000)

    @property
    def seconds(self) -> float:
        """From the first event to the end of the last."""
        return (self.last - (self.first or 0.0)) / 1e6

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON: names in order of their total time."""
        return {
            "seconds": round(self.seconds, 6),
            "guest_seconds": round(self.guest / 1e6, 6),
            "by_kind": {
                kind: {
                    "count": sum(line.count for line in names.values()),
                    "total_us": round(sum(line.total for line in names.values()), 3),
                    "by_name": {name: line.as_json() for name, line in _by_time(names)},
                }
                for kind, names in self.kinds.items()
                if names
            },
        }


def _by_time(names: dict[str, Line]) -> list[tuple[str, Line]]:
    return sorted(names.items(), key=lambda item: (-item[1].total, item[0]))


def register(app: typer.Typer) -> None:
    """Declare the commands."""
    group = typer.Typer(help="Summarise a trace.")
    group.callback()(_trace)
    group.command(name="summary", epilog=EPILOG)(summary)
    app.add_typer(group, name="trace")


def _trace() -> None:
    """Look at a trace that swtdx run --trace wrote."""


def summary(
    file: Annotated[Path, typer.Argument(help="The trace, in either format; .gz is read too.", show_default=False)],
    kind: Annotated[
        list[str] | None, typer.Option(metavar="KIND", help=f"Only this kind: {', '.join(KINDS)}. Can be repeated.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON, in place of the table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the result, and errors.")] = False,
) -> None:
    """Count the events of a trace and their time, by kind and name.

    The time of an ioctl includes its SEAMCALLs; that of TDH.VP.ENTER includes the guest; that of an exit ends when the
    guest runs again.
    """
    wanted = tuple(kind or KINDS)
    for name in wanted:
        if name not in KINDS:
            raise Failure(f"--kind {name!r}: there are {', '.join(KINDS)}", Verdict.USAGE)
    found = summarise(file, wanted, quiet=quiet)
    if json:
        print(json_format.dumps(found.as_json(), indent=2))
    else:
        printed(_table(found), table=True)


def summarise(path: Path, kinds: tuple[str, ...] = KINDS, *, quiet: bool = False) -> Summary:
    """Read a trace. Raises `Failure`."""
    found = Summary({kind: {} for kind in kinds})
    try:
        for event in with_progress(path, "reading", quiet=quiet):
            if isinstance(event, Event):
                found.add(event)
    except TraceError as error:
        raise Failure(str(error), Verdict.FAILED) from None
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror or error}", Verdict.NO_INPUT) from None
    return found


def with_progress(path: Path, doing: str, *, quiet: bool = False) -> Iterator[TraceLine]:
    """Yield the lines of a trace; on a terminal a line tells how many have come.

    A trace that does not end is reported on stderr; without a whole event it is an error. Raises as `read_events`.
    """
    events = 0
    console = Console(stderr=True)
    with Progress(
        TextColumn(f"{doing} {path.name}"), BarColumn(), TextColumn("{task.completed:,} events"),
        console=console, transient=True, disable=quiet or not console.is_terminal,
    ) as progress:  # fmt: skip
        task = progress.add_task("", total=None)
        for number, event in enumerate(read_events(path), 1):
            if number % 10000 == 0:
                progress.update(task, completed=number)
            if isinstance(event, CutOff):
                if not events:
                    raise TraceError(f"{path} has no whole event: it {event.why}")
                complain(f"{path} {event.why}; {events:,} whole events are read")
            events += isinstance(event, Event)
            yield event


def _table(found: Summary) -> Iterator[str]:
    rows = [("kind", "name", "count", "total ms", "mean µs", "longest µs", "failed")]
    for kind, names in found.kinds.items():
        for name, line in _by_time(names):
            mean = line.total / line.count
            failed = f"{line.failed} ({', '.join(line.errors)})" if line.failed else ""
            times = (f"{line.total / 1000:,.3f}", f"{mean:,.1f}", f"{line.longest:,.1f}")
            rows.append((kind, name, f"{line.count:,}", *times, failed))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()
    total = sum(line.count for names in found.kinds.values() for line in names.values())
    ran = f"; the vCPUs were in the guest for {found.guest / 1e6:.3f} s" if found.guest else ""
    yield f"{total:,} events in {found.seconds:.3f} s{ran}"


__all__ = ["Line", "Summary", "register", "summarise", "with_progress"]
