# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx exec``: run a program that opens /dev/kvm, unmodified, on the emulated kernel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from swtdx.cli.kernel_choice import (
    CpuFeaturesOption,
    DialectChoice,
    DialectOption,
    InjectOption,
    KernelReleaseOption,
    ModuleVersionChoice,
    ModuleVersionOption,
    checked_injections,
    chosen_features,
    chosen_release,
    module_refusal,
)
from swtdx.cli.output import OutputError
from swtdx.cli.parameters import InputError, memory_size
from swtdx.cli.verdict import Failure, Verdict
from swtdx.exec.program import FrontEnd, ProgramError
from swtdx.exec.settings import MEMORY, PROCESSORS, ExecError, Settings
from swtdx.trace.format import TraceFormat
from swtdx.uapi.release import KernelRelease
from swtdx.units import readable_size

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx exec -- qemu-system-x86_64 -accel kvm -machine q35 -nographic[/cyan] - an ordinary VM

[cyan]swtdx exec -- ./my_vmm --tdx[/cyan] - a VMM of your own

[cyan]swtdx exec -- pytest tests/[/cyan] - its tests, without TDX hardware

[cyan]swtdx exec --kernel-release 6.16 -- ./my_vmm[/cyan] - on an older Linux

[cyan]swtdx exec --inject 'KVM_TDX_INIT_VM: EAGAIN @1' -- ./my_vmm[/cyan] - does it try again?

[cyan]swtdx exec --trace run.jsonl -- ./my_vmm[/cyan] - then: swtdx trace summary run.jsonl

[cyan]swtdx exec --json run.json --html run.html -- ./my_vmm[/cyan] - MRTD and RTMRs; the run on one page

[bold]Exit status[/bold]

that of COMMAND, 128 plus its number if a signal killed it; 125 swtdx itself failed or an option is wrong;

126 COMMAND cannot be executed on the emulated kernel; 127 COMMAND was not found
"""

OWN_FAILURE = 125
GIB = 1 << 30


class ExecFailure(Failure):
    """One sentence, and an exit status that is not a verdict."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text, Verdict.USAGE)
        self.status = status


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(name="exec", epilog=EPILOG, context_settings={"allow_interspersed_args": False})(exec_)


def exec_(
    command: Annotated[
        list[str], typer.Argument(metavar="[--] COMMAND [ARGUMENT]...", help="The program and its arguments.")
    ],
    kernel_release: KernelReleaseOption = None,
    dialect: DialectOption = None,
    module_version: ModuleVersionOption = ModuleVersionChoice.v1_5,
    cpu_features: CpuFeaturesOption = None,
    memory: Annotated[
        str, typer.Option(metavar="SIZE", help="The machine's memory for TDs and page tables, in GiB; used as needed.")
    ] = readable_size(MEMORY),
    processors: Annotated[
        int, typer.Option(metavar="N", min=1, max=1024, help="The machine's logical processors.")
    ] = PROCESSORS,
    inject: InjectOption = None,
    no_tdx: Annotated[bool, typer.Option("--no-tdx", help="Emulate a machine without TDX (kvm_intel.tdx=0).")] = False,
    front_end: Annotated[
        FrontEnd | None,
        typer.Option(help="How the program's calls reach the emulated kernel. Not given: chosen by its ELF header."),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Every ioctl, SEAMCALL, TDCALL, VM exit and injected event to FILE. The first process "
            "that opens /dev/kvm writes FILE, others add their process id to the name.",
        ),
    ] = None,
    trace_format: Annotated[
        TraceFormat, typer.Option(help="JSON lines, or Chrome's trace format, which Perfetto opens.")
    ] = TraceFormat.jsonl,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The run on one HTML page: memory, exits, SEAMCALLs.")
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="MRTD and RTMRs of each TD, failed ioctls and counts, by process, in FILE."),
    ] = None,
    pki: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The machine's test keys. Not given: $SWTDX_PKI, or in the state folder."),
    ] = None,
    allow_host_kvm: Annotated[
        bool,
        typer.Option(
            "--allow-host-kvm", help="Where swtdx cannot redirect a program, let it use this machine's own /dev/kvm."
        ),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not report why ioctls fail.")] = False,
) -> None:
    """Run COMMAND with /dev/kvm served by the emulated kernel, TDX included.

    COMMAND and its children see the emulated /dev/kvm; all other files are unchanged. Each process that opens it has a
    machine of its own. When an ioctl fails, the reason is printed on standard error.
    """
    from swtdx.cli.exec_record import Keeper
    from swtdx.exec.sightings import files

    release = _release(kernel_release, dialect)
    refusal = module_refusal(release, module_version)
    if refusal is not None and not no_tdx:
        raise ExecFailure(refusal, OWN_FAILURE)
    settings = Settings(
        kernel_release=release.value,
        module_version=module_version.value,
        cpu_features=_features(cpu_features),
        memory=_machine_memory(memory),
        processors=processors,
        tdx=not no_tdx,
        inject=_injections(inject),
        quiet=quiet,
        host=allow_host_kvm,
        files=files(tdx=not no_tdx, release=release, module_version=module_version.value),
        pki="" if no_tdx else _keys(pki),
    )
    with foreseen(), Keeper(command, trace, trace_format, html, json) as keeper:
        status = _execute(command, keeper.settings(settings), front_end)
        keeper.done(status)
    raise typer.Exit(status)


def _release(release: KernelRelease | None, dialect: DialectChoice | None) -> KernelRelease:
    try:
        return chosen_release(release, dialect)
    except InputError as error:
        raise ExecFailure(str(error), OWN_FAILURE) from None


def launch(command: list[str], kernel_release: KernelRelease | None = None) -> int:
    """Run a command on the default machine, with another kernel if one is named. Return its exit status."""
    from swtdx.exec.sightings import files

    release = chosen_release(kernel_release, None)
    with foreseen():
        settings = Settings(kernel_release=release.value, files=files(tdx=True, release=release), pki=_keys(None))
        return _execute(command, settings, None)


def _keys(named: Path | None) -> str:
    """Return the folder with the machine's report key, made if need be, so that a quote generation service finds it."""
    from swtdx.quoting.machine_folder import FolderError, default_folder, report_key

    folder = (named or default_folder()).absolute()
    try:
        report_key(folder)
    except FolderError as error:
        if named is not None:
            raise ExecFailure(f"--pki {named}: {error}", OWN_FAILURE) from None
        return ""
    return str(folder)


@contextmanager
def foreseen() -> Iterator[None]:
    """Turn the errors that can be foreseen into `ExecFailure`."""
    try:
        yield
    except ProgramError as error:
        raise ExecFailure(str(error), error.status) from None
    except (ExecError, OutputError) as error:
        raise ExecFailure(str(error), OWN_FAILURE) from None


def _execute(command: list[str], settings: Settings, wanted: FrontEnd | None) -> int:
    """Run the command by the front end that reaches it, or that is ``wanted``. Return its exit status."""
    from swtdx.exec.launch import run
    from swtdx.exec.notify import available
    from swtdx.exec.notify import run as run_notified
    from swtdx.exec.program import choose, find, refusal
    from swtdx.exec.settings import has_libpython

    path = find(command[0])
    try:
        front_end, why = choose(path, command[1:])
    except ProgramError:
        if not settings.host:
            raise
        return run(path, command, None)
    if wanted is None and front_end is FrontEnd.preload and not settings.host and not has_libpython():
        if not available():  # it can be used: Debian's python3 alone brings no shared library, which takes root to add
            front_end = wanted = FrontEnd.notify
    if front_end is FrontEnd.notify and wanted is not FrontEnd.notify:
        cannot = available() if wanted is None else "--front-end preload was asked for"
        if settings.host and (cannot or wanted is None):
            return run(path, command, None)
        if cannot:
            raise refusal(path, why, cannot)
    elif wanted is FrontEnd.notify and (cannot := available()):
        raise ProgramError(f"--front-end notify: {cannot}")
    if FrontEnd.notify in (front_end, wanted):
        return run_notified(path, command, settings)
    return run(path, command, settings.write(), guarded=not settings.host)


def _injections(texts: list[str] | None) -> tuple[str, ...]:
    try:
        return checked_injections(texts)
    except InputError as error:
        raise ExecFailure(str(error), OWN_FAILURE) from None


def _features(text: str | None) -> tuple[str, ...] | None:
    try:
        chosen = chosen_features(text)
    except InputError as error:
        raise ExecFailure(str(error), OWN_FAILURE) from None
    return None if chosen is None else tuple(sorted(chosen))


def _machine_memory(text: str) -> int:
    try:
        size = memory_size(text)
    except InputError as error:
        raise ExecFailure(str(error), OWN_FAILURE) from None
    if size % GIB or not size:
        raise ExecFailure(f"--memory {text} is not a multiple of 1 GiB", OWN_FAILURE)
    return size
