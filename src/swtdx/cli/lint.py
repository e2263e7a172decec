# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx lint``: what the TD of a trace handed to its host beyond what it needed; ``swtdx run --lint`` looks live."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from swtdx.cli import declaration as typer
from swtdx.cli.verdict import Failure, Verdict

if TYPE_CHECKING:
    from swtdx.cli.run_options import Options
    from swtdx.lint.report import Findings, Symbol
    from swtdx.lint.symbols import Symbols

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx run --trace boot.jsonl.gz --kernel vmlinuz --append console=ttyS0[/cyan] - make a trace

[cyan]swtdx lint boot.jsonl.gz[/cyan]

[cyan]swtdx lint boot.jsonl.gz --symbols System.map --kaslr-offset 0x2a000000[/cyan] - with names

[cyan]swtdx lint boot.jsonl.gz --json | jq '.findings[].what'[/cyan]

[cyan]swtdx run --lint --kernel vmlinuz --append console=ttyS0[/cyan] - live: answers and buffers are looked at, too

[bold]Exit status[/bold]

0 nothing found; 1 wrong usage; 2 a leak was found, or the file is not a trace; 3 it cannot be read
"""

STATUS_LEAK = 5
"""Exit status of a run that ended well and whose guest leaks."""


class Lint:
    """The lint of one run."""

    def __init__(self, *, notes: bool, symbols: Path | None) -> None:
        """Raises InputError for a file without symbols."""
        from swtdx.cli.parameters import InputError
        from swtdx.lint.report import Findings
        from swtdx.lint.symbols import SymbolError, read

        self.findings: Findings = Findings(notes=notes)
        self._symbols: Symbols | None = None
        if symbols is None:
            return
        try:
            self._symbols = read(symbols)
        except OSError as error:
            raise InputError(f"--symbols {symbols} cannot be read: {error.strerror or error}") from None
        except SymbolError as error:
            raise InputError(f"--symbols {error}") from None

    @classmethod
    def of(cls, options: Options) -> Lint | None:
        """Return the lint that is asked for. Raises InputError."""
        from swtdx.cli.parameters import InputError

        if options.lint and options.kvm == "host":
            raise InputError("--lint is for the embedded kernel: what a TD of this machine's hands over cannot be seen")
        if options.lint and options.td is None:
            raise InputError("--lint looks at Trust Domains: omit --vm-type default")
        if not options.lint and (options.lint_notes or options.symbols is not None):
            raise InputError("--lint-notes and --symbols go with --lint")
        return cls(notes=options.lint_notes, symbols=options.symbols) if options.lint else None

    @property
    def names(self) -> Symbol:
        """Return names of addresses, for a kernel that is where its system calls enter."""
        from swtdx.lint.symbols import none

        if self._symbols is None:
            return none
        self._symbols.place(value for value, _ in self.findings.system_call_entries.most_common())
        return self._symbols

    def as_json(self) -> dict[str, Any]:
        """Ready for JSON."""
        return self.findings.as_json(self.names)

    def show(self) -> None:
        """Print it on standard error."""
        for line in self.findings.lines(self.names):
            print(f"lint: {line}" if not line.startswith(" ") else line, file=sys.stderr)


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(epilog=EPILOG)(lint)


def lint(
    file: Annotated[Path, typer.Argument(help="A trace of swtdx run or exec; .gz is read too.", show_default=False)],
    symbols: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Names for addresses: System.map, kallsyms or an ELF file (vmlinux)."),
    ] = None,
    kaslr_offset: Annotated[
        str | None, typer.Option(metavar="HEX", help="By how much the guest's kernel is moved against --symbols.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Everything as JSON, in place of the text.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; only the result, and errors.")] = False,
) -> None:
    """Find what a TD hands to its host beyond what its calls need, in a trace.

    Registers with bits beyond the operand, registers that the function does not use, lengths that do not fit: each kind
    once, with the guest's instruction, a count and an example.
    """
    findings, names = _looked_at(file, quiet=quiet), _names(symbols, kaslr_offset)
    if json:
        print(json_format.dumps(findings.as_json(names), indent=2))
    else:
        print("\n".join(findings.lines(names)))
    raise typer.Exit(Verdict.FAILED if findings.leaks else Verdict.OK)


def _looked_at(file: Path, *, quiet: bool) -> Findings:
    from swtdx.cli.trace import with_progress
    from swtdx.lint.from_trace import lint as look_at
    from swtdx.lint.report import Findings
    from swtdx.trace.event import Event
    from swtdx.trace.file import TraceError

    findings = Findings()
    try:
        look_at((each for each in with_progress(file, "reading", quiet=quiet) if isinstance(each, Event)), findings)
    except TraceError as error:
        raise Failure(str(error), Verdict.FAILED) from None
    except OSError as error:
        raise Failure(f"{file} cannot be read: {error.strerror or error}", Verdict.NO_INPUT) from None
    return findings


def _names(symbols: Path | None, kaslr_offset: str | None) -> Symbol:
    from swtdx.lint.symbols import SymbolError, none, read

    if kaslr_offset is not None and symbols is None:
        raise Failure("--kaslr-offset goes with --symbols", Verdict.USAGE)
    if symbols is None:
        return none
    try:
        found = read(symbols)
    except OSError as error:
        raise Failure(f"--symbols {symbols} cannot be read: {error.strerror or error}", Verdict.NO_INPUT) from None
    except SymbolError as error:
        raise Failure(f"--symbols {error}", Verdict.FAILED) from None
    if kaslr_offset is not None:
        try:
            found.offset = int(kaslr_offset, 16)
        except ValueError:
            raise Failure(f"--kaslr-offset {kaslr_offset!r} is not hexadecimal", Verdict.USAGE) from None
    return found
