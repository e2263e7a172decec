# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line: options, help, and what becomes of an error (one sentence on stderr and an exit status).

Exit statuses: of ``run`` those of `swtdx.vmm.outcome`, of the commands of a verifier those of `swtdx.cli.verdict`.

A command's imports are its own: hashing a file must not wait for the engine and the board.  So ``run`` imports what it
needs when it runs, and the other commands live in modules that are imported only when their name is typed or help is
asked for.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from enum import StrEnum
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

import swtdx
from swtdx.cli.help import Group, dress
from swtdx.cli.standard_streams import StandardStreams, standard_streams
from swtdx.cli.verdict import Failure, Verdict
from swtdx.trace.file import TraceFormat

COMMANDS: dict[str, str] = {
    "exec": "swtdx.cli.exec_command",
    "probe": "swtdx.cli.probe",
    "trace": "swtdx.cli.trace",
    "inspect": "swtdx.cli.inspect",
    "measure": "swtdx.cli.measure",
    "diff": "swtdx.cli.diff",
    "replay": "swtdx.cli.replay",
    "quote": "swtdx.cli.quote",
    "report": "swtdx.cli.report",
    "explain": "swtdx.cli.explain",
    "seamcall": "swtdx.cli.seamcall",
    "completion": "swtdx.cli.completion",
}
"""Command beside ``run`` -> the module whose ``register(app)`` declares it."""

USAGE_STATUS = {"exec": 125}
"""Wrong usage, where it must not look like the status of the command that was to be run."""

COMPLETION_VARIABLE = "_SWTDX_COMPLETE"
"""Set by the scripts of ``swtdx completion``; typer and they have agreed on its name."""
_STATUS_BAD_INPUT = 2  # swtdx.vmm.outcome, of `run`
_STATUS_INTERRUPTED = 130

HELP = """Intel TDX under KVM, in software: launch a real firmware as a Trust Domain on any x86-64 Linux machine."""

# Each paragraph becomes one line of the help.
EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx probe[/cyan] - what does this machine offer?

[cyan]swtdx run[/cyan] - the installed firmware as a Trust Domain

[cyan]swtdx run --html boot.html[/cyan] - and what happened inside, on one page

[cyan]swtdx measure OVMF.fd[/cyan] - the MRTD that it will have

[cyan]swtdx explain EINVAL --command KVM_TDX_INIT_VM --hw-error 0xc000010000000041[/cyan] - why a launch failed

[cyan]swtdx COMMAND --help[/cyan] - more of each
"""

RUN_EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx run[/cyan] - the installed firmware as a TD, to the UEFI shell

[cyan]swtdx run --until 'Shell>' --json run.json[/cyan] - keep all there is to know

[cyan]swtdx run --firmware OVMF.fd --memory 2G --cpus 2 --timeout 60[/cyan]

[cyan]swtdx run --dialect v10[/cyan] - by the ioctls of November 2022

[cyan]swtdx run --dialect v10 --module-version 1.0[/cyan] - and on a TDX module of that time

[cyan]swtdx run --vm-type default[/cyan] - the same firmware as an ordinary VM

[cyan]swtdx run --disk disk.img --disk seed.img,ro --rng[/cyan] - with virtio devices

[cyan]swtdx run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --memory 1G[/cyan] - Linux as a TD

[cyan]swtdx run --firmware none --kernel vmlinuz --initrd initrd.img --append console=ttyS0[/cyan] - the quick way

[cyan]swtdx run --html boot.html[/cyan] - the run on one page, for a browser

[cyan]swtdx run --trace boot.json --trace-format chrome[/cyan] - all that happens, for https://ui.perfetto.dev

[cyan]swtdx run --vm-type default --gdb :1234 --gdb-wait[/cyan] - then: gdb -ex 'target remote :1234'

[cyan]swtdx run --debug-td --gdb :1234[/cyan] - a debug TD under gdb

[cyan]swtdx run --kvm host[/cyan] - on this machine's own /dev/kvm

[bold]Exit status[/bold]

0 powered off, reset, text or prompt seen, left; 1 internal error; 2 bad input;

3 the guest reported a fatal error or crashed; 4 timeout; 130 interrupted
"""


class KvmChoice(StrEnum):
    """Whose /dev/kvm."""

    emulated = "emulated"
    host = "host"


class VmType(StrEnum):
    """What to build."""

    tdx = "tdx"
    default = "default"


class DialectChoice(StrEnum):
    """Which ioctl interface."""

    upstream = "upstream"
    v10 = "v10"


class ModuleVersionChoice(StrEnum):
    """Which TDX module, of `swtdx.cpu.platform.MODULE_VERSIONS`."""

    v1_5 = "1.5.06"
    v1_0 = "1.0"


class OnPanicChoice(StrEnum):
    """What a panic of the guest's kernel does to the run, of `swtdx.cli.run.OnPanic`."""

    stop = "stop"
    # "continue" is a word of Python's
    go_on = "continue"


class GpaWidth(StrEnum):
    """Guest physical address widths that a TD can have."""

    w48 = "48"
    w52 = "52"


app = typer.Typer(
    name="swtdx",
    cls=Group,
    help=HELP,
    epilog=EPILOG,
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"swtdx {swtdx.__version__}")
        raise typer.Exit


@app.callback()
def swtdx_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Say the version and stop.")
    ] = False,
) -> None:
    """Intel TDX under KVM, in software: launch a real firmware as a Trust Domain on any x86-64 Linux machine."""


def run(
    firmware: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE|none",
            help="TDVF image. Not given: QEMU's firmware descriptors with intel-tdx, then the usual paths. none: "
            "straight into --kernel, without firmware.",
        ),
    ] = None,
    memory: Annotated[str, typer.Option(help="Guest memory, as in 512M or 2G.")] = "256M",
    cpus: Annotated[int, typer.Option(min=1, max=64, help="Number of vCPUs.")] = 1,
    vm_type: Annotated[VmType, typer.Option(help="A Trust Domain, or an ordinary VM.")] = VmType.tdx,
    kernel: Annotated[
        Path | None,
        typer.Option(
            metavar="BZIMAGE|host|emulated",
            help="A Linux kernel for the guest, which the firmware starts. The words host and emulated mean --kvm.",
        ),
    ] = None,
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Its initial RAM disk.")] = None,
    append: Annotated[str | None, typer.Option(metavar="TEXT", help="Its command line.")] = None,
    kvm: Annotated[
        KvmChoice | None, typer.Option(help="The embedded kernel's KVM (default), or this machine's own /dev/kvm.")
    ] = None,
    dialect: Annotated[
        DialectChoice, typer.Option(help="TDX ioctls of Linux 6.16 and later, or of the document of Nov 2022.")
    ] = DialectChoice.upstream,
    module_version: Annotated[
        ModuleVersionChoice,
        typer.Option(help="The TDX module of the embedded kernel's machine. 1.0 is of the v10 dialect's time."),
    ] = ModuleVersionChoice.v1_5,
    until: Annotated[str | None, typer.Option(metavar="TEXT", help="End when the console shows TEXT.")] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="End after so long (0: never). Unattended without --until: 300."),
    ] = None,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep everything about the run in FILE.")] = None,
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="What the console shows, to FILE too.")] = None,
    debug_exit: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="QEMU's isa-debug-exit: a write of N to PORT ends with status 2 N + 1."),
    ] = None,
    debugcon: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The firmware's debug port (0x402) to FILE.")
    ] = None,
    disk: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE[,ro]", help="A raw image as a virtio disk (/dev/vda, ...); more than one may be given."
        ),
    ] = None,
    smbios: Annotated[
        list[str] | None,
        typer.Option(
            metavar="type=N,NAME=TEXT",
            help="SMBIOS tables for the firmware, with this in them, as for QEMU; may be given more than once.",
        ),
    ] = None,
    virtio_console: Annotated[
        bool,
        typer.Option(
            "--virtio-console",
            help="A virtio console (hvc0) beside the serial port: both are shown, keys go to it once its driver runs.",
        ),
    ] = False,
    rng: Annotated[bool, typer.Option("--rng", help="A virtio source of random numbers.")] = False,
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Every ioctl, SEAMCALL, TDCALL, VM exit and injected event to FILE (compressed if it ends in .gz).",
        ),
    ] = None,
    trace_format: Annotated[
        TraceFormat, typer.Option(help="JSON lines, or Chrome's trace format, which Perfetto opens.")
    ] = TraceFormat.jsonl,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The run on one HTML page: memory, exits, SEAMCALLs, console.")
    ] = None,
    attributes: Annotated[
        str | None, typer.Option(metavar="MASK", help="TD attributes. Not given: SEPT_VE_DISABLE (0x10000000).")
    ] = None,
    gpaw: Annotated[GpaWidth, typer.Option(help="Guest physical address width.")] = GpaWidth.w48,
    mrconfigid: Annotated[str | None, typer.Option(metavar="HEX", help="MRCONFIGID, 48 bytes.")] = None,
    mrowner: Annotated[str | None, typer.Option(metavar="HEX", help="MROWNER, 48 bytes.")] = None,
    mrownerconfig: Annotated[str | None, typer.Option(metavar="HEX", help="MROWNERCONFIG, 48 bytes.")] = None,
    no_rbp_mod: Annotated[
        bool,
        typer.Option(
            "--no-rbp-mod",
            help="Create the TD with NO_RBP_MOD, as Linux does: firmware from before edk2-stable202405 dies of it.",
        ),
    ] = False,
    no_huge_pages: Annotated[
        bool,
        typer.Option(
            "--no-huge-pages", help="Map private memory in 4 KiB pages only, as merged kernels do: slower, same guest."
        ),
    ] = False,
    debug_td: Annotated[
        bool,
        typer.Option(
            "--debug-td",
            help="A TD with ATTRIBUTES.DEBUG: the host may see and change all of it. MRTD is the same, TDREPORT tells.",
        ),
    ] = False,
    gdb: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST]:PORT|PATH",
            help="Listen for gdb (target remote), on this machine only if no HOST is given, or on a unix socket. For "
            "ordinary VMs and debug TDs.",
        ),
    ] = None,
    gdb_wait: Annotated[
        bool, typer.Option("--gdb-wait", help="Let no vCPU run before a debugger has come and says so.")
    ] = False,
    on_panic: Annotated[
        OnPanicChoice | None,
        typer.Option(
            help="When the guest's kernel panics: end the run, or let it go on (kdump, panic=). Not given: stop, but "
            "continue on a terminal and with --gdb.",
            show_default=False,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the guest's console, and errors.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more at the end.")] = False,
) -> None:
    """Launch a firmware as a Trust Domain and stream its console.

    The guest's console is stdout; everything else is said on stderr. On a terminal keys go to the guest, and Ctrl-A X
    ends the run. Without one the run ends by itself at the UEFI shell's prompt.
    """
    from swtdx.cli.parameters import InputError, bit_mask, digest, memory_size, port
    from swtdx.cli.run import OnPanic, Options
    from swtdx.cli.run import run as carry_out
    from swtdx.uapi.dialect import Dialect
    from swtdx.vmm.launch import TdParameters

    if kernel is not None and str(kernel) in KvmChoice.__members__:
        if kvm not in (None, KvmChoice(str(kernel))):
            raise InputError(f"--kernel {kernel} and --kvm {kvm} contradict each other")
        kvm, kernel = KvmChoice(str(kernel)), None
    kvm = kvm or KvmChoice.emulated
    if timeout is not None and not 0 <= timeout < 1e9:
        raise InputError(f"--timeout {timeout:g} is no number of seconds")
    if until == "":
        raise InputError("--until needs a text to wait for")
    if module_version is ModuleVersionChoice.v1_0:
        if kvm is KvmChoice.host:
            raise InputError("--module-version 1.0 is for the embedded kernel: this machine has the module that it has")
        if dialect is DialectChoice.upstream and vm_type is VmType.tdx:
            raise InputError(
                "--module-version 1.0 has no TDH.SYS.RD, which Linux 6.16 and later need for TDs: add --dialect v10"
            )
    td = TdParameters(
        attributes=None if attributes is None else bit_mask("--attributes", attributes),
        gpa_width=int(gpaw.value),
        mrconfigid=digest("--mrconfigid", mrconfigid),
        mrowner=digest("--mrowner", mrowner),
        mrownerconfig=digest("--mrownerconfig", mrownerconfig),
        debug=debug_td,
    )
    options = Options(
        firmware=firmware,
        memory=memory_size(memory),
        cpus=cpus,
        td=td if vm_type is VmType.tdx else None,
        dialect=Dialect(dialect.value) if kvm is KvmChoice.emulated else None,
        kvm=kvm.value,
        module_version=module_version.value,
        kernel=kernel,
        initrd=initrd,
        append=append,
        no_rbp_mod=no_rbp_mod,
        huge_pages=not no_huge_pages,
        gdb=gdb,
        gdb_wait=gdb_wait,
        until=until,
        timeout=timeout,
        json=json,
        debugcon=debugcon,
        log=log,
        debug_exit=None if debug_exit is None else port("--debug-exit", debug_exit),
        disks=tuple(disk or ()),
        smbios=tuple(smbios or ()),
        on_panic=None if on_panic is None else OnPanic(on_panic.value),
        virtio_console=virtio_console,
        rng=rng,
        trace=trace,
        trace_format=trace_format,
        html=html,
        quiet=quiet,
        verbose=verbose,
    )
    raise typer.Exit(carry_out(options))


@cache
def _declare(command: str) -> None:
    """Make a command known to the app, once. Each costs time even when another is run: typer compiles its options."""
    if command == "run":
        app.command(epilog=RUN_EPILOG)(run)
    else:
        import_module(COMMANDS[command]).register(app)
    dress(app)


def whole_app() -> typer.Typer:
    """The app with every command declared: what the documentation, the manual page and shell completion read."""
    for command in ("run", *COMMANDS):
        _declare(command)
    return app


def main() -> None:
    """The entry point: every error that can be foreseen ends as one sentence and an exit status."""
    arguments = sys.argv[1:] or ["--help"]
    typed = next((argument for argument in arguments if not argument.startswith("-")), "")
    with standard_streams() as streams:
        status = _carry_out(arguments, typed, streams)
        status = streams.finish(status, when_lost=Verdict.USAGE if typed in COMMANDS else _STATUS_BAD_INPUT)
    sys.exit(status)


def _carry_out(arguments: list[str], typed: str, streams: StandardStreams) -> int:
    known = typed == "run" or typed in COMMANDS
    if COMPLETION_VARIABLE in os.environ:  # a shell asks what may come next
        from typer.completion import completion_init  # type: ignore[attr-defined]

        completion_init()
    try:
        for command in ("run", *COMMANDS):
            if typed == command or not known:
                _declare(command)
        return int(app(arguments, standalone_mode=False) or 0)
    except Failure as failure:
        return _complain(str(failure), failure.status, shown=failure.shown)
    except _UsageError as error:
        name = f"swtdx {typed}" if known else "swtdx"
        status = USAGE_STATUS.get(typed, Verdict.USAGE if typed in COMMANDS else _STATUS_BAD_INPUT)
        words = error.format_message().replace("Value error, ", "")  # pydantic's, in some versions of typer
        return _complain(f"{words} ({name} --help says what there is)", status)
    except (KeyboardInterrupt, typer.Abort):
        return _STATUS_INTERRUPTED
    except MemoryError:
        return _complain_of(OSError(errno.ENOMEM, "there is not enough memory"), typed)
    except OSError as error:
        if error is streams.stdout_problem:
            return 0  # `StandardStreams.finish` reports it
        return _complain_of(error, typed)
    except _foreseen() as error:  # evaluated only when something else was raised
        return _complain_of(error, typed)


def _of_the_system(typed: str) -> int:
    """The exit status of a command that the system lets down: no memory, a folder that cannot be searched."""
    return Verdict.NO_INPUT if typed in COMMANDS else _STATUS_BAD_INPUT


def _foreseen() -> tuple[type[Exception], ...]:
    """What ``run`` raises for a person; its modules are loaded already when one of these comes."""
    from swtdx.cli.run import BAD_INPUT
    from swtdx.uapi.client import KvmError

    return (*BAD_INPUT, KvmError)


def _complain_of(error: Exception, typed: str) -> int:
    from swtdx.uapi.client import KvmError
    from swtdx.vmm.outcome import End

    if isinstance(error, KvmError):
        status = _complain(f"the kernel refused: {error}", End.INTERNAL_ERROR.status)
    elif isinstance(error, OSError):
        from swtdx.cli.parameters import address_space_limit

        limit = address_space_limit() if error.errno == errno.ENOMEM else ""
        what = f"{error.filename}: " if error.filename is not None else ""
        status = _complain(f"{what}{error.strerror or error}{limit}", _of_the_system(typed))
    else:
        status = _complain(str(error), _STATUS_BAD_INPUT)
    for line in getattr(error, "__notes__", ()):  # what the refusal means: swtdx.explain.notes
        print(f"  {line}", file=sys.stderr)
    return status


# What typer raises for anything wrong on the command line; it has no public name that all its versions share.
_UsageError: Any = typer.BadParameter.__bases__[0]


def _complain(text: str, status: int, *, shown: bool = False) -> int:
    """Print one sentence on stderr; with ``--json`` an object on stdout too, unless the command has printed its own."""
    sentence = " ".join(text.split())
    print(f"swtdx: {sentence}", file=sys.stderr)
    if not shown and "--json" in sys.argv and sys.argv[1] in COMMANDS:
        print(json.dumps({"error": sentence, "status": int(status)}, indent=2))
    return status


__all__ = ["app", "main", "whole_app"]
