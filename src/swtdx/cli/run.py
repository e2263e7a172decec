# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run``: its options, in groups, and what `swtdx.cli.session` is asked for.

What carries the command out is imported when it runs: declaring the options must be quick.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from swtdx.cli import declaration as typer
from swtdx.cli.kernel_choice import (
    CpuFeaturesOption,
    DialectOption,
    InjectOption,
    KernelReleaseOption,
    ModuleVersionChoice,
    ModuleVersionOption,
    checked_injections,
    checked_lies,
    chosen_features,
    chosen_release,
    module_refusal,
)
from swtdx.cli.option_groups import grouped
from swtdx.trace.format import TraceFormat

if TYPE_CHECKING:
    from swtdx.vmm.launch import TdParameters

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx run[/cyan] - the installed firmware as a TD, to the UEFI shell

[cyan]swtdx run --until 'Shell>' --json run.json[/cyan] - with all results as JSON

[cyan]swtdx run --firmware OVMF.fd --memory 2G --cpus 2 --timeout 60[/cyan]

[cyan]swtdx run --kernel-release 6.16[/cyan] - on an older Linux

[cyan]swtdx run --kernel-release v10 --module-version 1.0[/cyan] - the ioctls and the TDX module of November 2022

[cyan]swtdx run --cpu-features x86-64-v3[/cyan] - a processor of that level, and no more than that

[cyan]swtdx run --vm-type default[/cyan] - the same firmware as an ordinary VM

[cyan]swtdx run --disk disk.img --disk seed.img,ro --rng[/cyan] - with virtio devices

[cyan]swtdx run --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --memory 1G[/cyan] - Linux as a TD

[cyan]swtdx run --firmware none --kernel vmlinuz --initrd initrd.img --append console=ttyS0[/cyan] - without firmware

[cyan]swtdx run --kernel vmlinuz --append console=ttyS0 --snapshot-at '# ' --snapshot linux.snapshot[/cyan] - keep it

[cyan]swtdx run --from linux.snapshot --until '# '[/cyan] - and go on from there, as often as wanted

[cyan]swtdx run --kernel vmlinuz --append console=ttyS0 --record run.record[/cyan] - for replay-run

[cyan]swtdx run --quote-generation-socket unix:/run/tdx-qgs/qgs.socket[/cyan] - quotes by another process

[cyan]swtdx run --html boot.html[/cyan] - the run as one HTML page

[cyan]swtdx run --trace boot.json --trace-format chrome[/cyan] - every event, for https://ui.perfetto.dev

[cyan]swtdx run --lint --kernel vmlinuz --append console=ttyS0[/cyan] - does it hand the host more than it needs?

[cyan]swtdx run --vm-type default --gdb :1234 --gdb-wait[/cyan] - then: gdb -ex 'target remote :1234'

[cyan]swtdx run --debug-td --gdb :1234[/cyan] - a debug TD under gdb

[cyan]swtdx run --inject 'TDH.MEM.PAGE.AUG: OPERAND_BUSY every 10'[/cyan] - what does the kernel do then?

[cyan]swtdx run --lie 'any: random 1% seed 7' --lies-to lies.txt[/cyan] - does the guest survive a host that lies?

[cyan]swtdx run --lies-from lies.txt[/cyan] - the same lies again

[cyan]swtdx run --kvm host[/cyan] - on this machine's own /dev/kvm

[bold]Exit status[/bold]

0 powered off, reset, text or prompt seen, left; 1 internal error; 2 bad input;

3 the guest reported a fatal error, crashed, or found nothing to boot; 4 timeout; 5 --lint found a leak; 130 interrupted
"""


class KvmChoice(StrEnum):
    """Whose /dev/kvm."""

    emulated = "emulated"
    host = "host"


class VmType(StrEnum):
    """What to build."""

    tdx = "tdx"
    default = "default"


class OnPanicChoice(StrEnum):
    """What a panic of the guest's kernel does to the run, of `swtdx.cli.session.OnPanic`."""

    stop = "stop"
    # "continue" is a word of Python's
    go_on = "continue"


class GpaWidth(StrEnum):
    """Guest physical address widths that a TD can have."""

    w48 = "48"
    w52 = "52"


@dataclass(frozen=True)
class Guest:
    """What to run."""

    PANEL: ClassVar[str] = "Guest"

    firmware: Annotated[
        Path | None,
        typer.Option(
            metavar="IMAGE|none",
            help="TDVF image. Not given: QEMU's firmware descriptors with intel-tdx, then the usual paths. none: "
            "straight into --kernel, without firmware.",
        ),
    ] = None
    memory: Annotated[str, typer.Option("--memory", "-m", metavar="SIZE", help="512M, 2G, or MiB as in QEMU.")] = "256M"
    cpus: Annotated[int, typer.Option(min=1, max=64, metavar="N", help="Number of vCPUs.")] = 1
    vm_type: Annotated[VmType, typer.Option(help="A Trust Domain, or an ordinary VM.")] = VmType.tdx
    kernel: Annotated[
        Path | None,
        typer.Option(
            metavar="BZIMAGE|host|emulated",
            help="A Linux kernel for the guest, which the firmware starts. host and emulated are accepted as an alias "
            "of --kvm.",
        ),
    ] = None
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Initial RAM disk.")] = None
    append: Annotated[str | None, typer.Option(metavar="TEXT", help="Kernel command line.")] = None
    smbios: Annotated[
        list[str] | None,
        typer.Option(
            metavar="type=N,NAME=TEXT",
            help="SMBIOS tables for the firmware, in QEMU's syntax; may be repeated.",
        ),
    ] = None

    @property
    def is_td(self) -> bool:
        """Whether it is a Trust Domain."""
        return self.vm_type is VmType.tdx

    def options(self, host: Host) -> dict[str, Any]:
        """Return the members of `swtdx.cli.run_options.Options` that follow. Raises InputError."""
        from swtdx.cli.parameters import memory_size

        return {
            "firmware": self.firmware,
            "memory": memory_size(self.memory),
            "cpus": self.cpus,
            "kernel": None if host.named_by(self.kernel) else self.kernel,
            "initrd": self.initrd,
            "append": self.append,
            "smbios": tuple(self.smbios or ()),
        }


@dataclass(frozen=True)
class Host:
    """Which kernel and TDX module to run it on."""

    PANEL: ClassVar[str] = "Kernel, TDX module and processor"

    kvm: Annotated[
        KvmChoice | None, typer.Option(help="The embedded kernel's KVM (default), or this machine's own /dev/kvm.")
    ] = None
    kernel_release: KernelReleaseOption = None
    dialect: DialectOption = None
    module_version: ModuleVersionOption = ModuleVersionChoice.v1_5
    cpu_features: CpuFeaturesOption = None
    no_rbp_mod: Annotated[
        bool,
        typer.Option(
            "--no-rbp-mod",
            help="Create the TD with NO_RBP_MOD, as Linux does: firmware from before edk2-stable202405 fails with it.",
        ),
    ] = False
    no_huge_pages: Annotated[
        bool,
        typer.Option(
            "--no-huge-pages",
            help="With --kernel-release next: map private memory in 4 KiB pages, as released kernels do.",
        ),
    ] = False
    inject: InjectOption = None
    lie: Annotated[
        list[str] | None,
        typer.Option(
            metavar="'CALL [OPERAND]: ANSWER [WHEN]'",
            help="Answer a TDVMCALL of the TD otherwise, as in 'RDMSR 0x1b: R11=0', 'MapGPA: RETRY every 2' or 'any: "
            "random 1% seed 7'. When: as of --inject. May be repeated.",
        ),
    ] = None
    lies_from: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Lies as --lie takes them, one a line: those of an earlier run.")
    ] = None

    @staticmethod
    def named_by(kernel: Path | None) -> bool:
        """Return whether --kernel has a word that means --kvm."""
        return kernel is not None and str(kernel) in KvmChoice.__members__

    def options(self, guest: Guest) -> dict[str, Any]:
        """Return the members of `swtdx.cli.run_options.Options` that follow. Raises InputError."""
        from swtdx.cli.parameters import InputError
        from swtdx.uapi.dialect import Dialect

        kvm = self.kvm
        if self.named_by(guest.kernel):
            if kvm not in (None, KvmChoice(str(guest.kernel))):
                raise InputError(f"--kernel {guest.kernel} and --kvm {kvm} contradict each other")
            kvm = KvmChoice(str(guest.kernel))
        kvm = kvm or KvmChoice.emulated
        release = chosen_release(self.kernel_release, self.dialect)
        emulated = kvm is KvmChoice.emulated
        if not emulated:
            self._check_host()
        refusal = module_refusal(release, self.module_version)
        if refusal is not None and guest.is_td:
            raise InputError(refusal)
        return {
            "kvm": kvm.value,
            "kernel_release": release.value if emulated else None,
            "dialect": Dialect(release.dialect_name) if emulated else None,
            "module_version": self.module_version.value,
            "cpu_features": chosen_features(self.cpu_features),
            "no_rbp_mod": self.no_rbp_mod,
            "huge_pages": not self.no_huge_pages,
            "inject": checked_injections(self.inject),
            "lies": checked_lies(self.lie, self.lies_from),
            "lies_from": self.lies_from,
        }

    def _check_host(self) -> None:
        """Refuse what only an emulated machine can choose. Raises InputError."""
        from swtdx.cli.parameters import InputError

        if self.module_version is not ModuleVersionChoice.v1_5:
            raise InputError(
                f"--module-version {self.module_version.value} is for the embedded kernel: the TDX module of "
                "this machine cannot be chosen"
            )
        if self.lie or self.lies_from is not None:
            raise InputError("--lie is for the embedded kernel: this machine's answers its TDs itself")
        if self.inject:
            raise InputError("--inject is for the embedded kernel: the calls of this machine's cannot be made to fail")
        if self.cpu_features is not None:
            raise InputError("--cpu-features is for the emulated processor: this machine has the one that it has")
        if self.kernel_release is not None:
            raise InputError(
                f"--kernel-release {self.kernel_release.value} is for the embedded kernel: the kernel of "
                "this machine cannot be chosen"
            )


@dataclass(frozen=True)
class Ending:
    """When the run ends."""

    PANEL: ClassVar[str] = "End of the run"

    until: Annotated[str | None, typer.Option(metavar="TEXT", help="End when the console shows TEXT.")] = None
    timeout: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="End after this time (0: never). Unattended without --until: 300."),
    ] = None
    debug_exit: Annotated[
        str | None,
        typer.Option(metavar="PORT", help="QEMU's isa-debug-exit: a write of N to PORT ends with status 2 N + 1."),
    ] = None
    on_panic: Annotated[
        OnPanicChoice | None,
        typer.Option(
            help="When the guest's kernel panics: end the run, or let it go on (kdump, panic=). Not given: stop, but "
            "continue on a terminal and with --gdb.",
            show_default=False,
        ),
    ] = None

    def options(self) -> dict[str, Any]:
        """Return the members of `swtdx.cli.run_options.Options` that follow. Raises InputError."""
        from swtdx.cli.parameters import InputError, port, seconds
        from swtdx.cli.run_options import OnPanic

        if self.until == "":
            raise InputError("--until needs a text to wait for")
        return {
            "until": self.until,
            "timeout": None if self.timeout is None else seconds("--timeout", self.timeout),
            "debug_exit": None if self.debug_exit is None else port("--debug-exit", self.debug_exit),
            "on_panic": None if self.on_panic is None else OnPanic(self.on_panic.value),
        }


@dataclass(frozen=True)
class Devices:
    """Devices of the board."""

    PANEL: ClassVar[str] = "Devices"

    disk: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE[,ro]", help="A raw image as a virtio disk (/dev/vda, ...); may be repeated."),
    ] = None
    virtio_console: Annotated[
        bool,
        typer.Option(
            "--virtio-console",
            help="A virtio console (hvc0) next to the serial port: both are shown, keys go to it once its driver runs.",
        ),
    ] = False
    rng: Annotated[bool, typer.Option("--rng", help="A virtio source of random numbers.")] = False

    def options(self) -> dict[str, Any]:
        """Return the members of `swtdx.cli.run_options.Options` that follow."""
        return {"disks": tuple(self.disk or ()), "virtio_console": self.virtio_console, "rng": self.rng}


@dataclass(frozen=True)
class Records:
    """Files that the run writes, and what is said meanwhile."""

    PANEL: ClassVar[str] = "Output"

    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write everything about the run to FILE.")] = None
    log: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write console output to FILE.")] = None
    debugcon: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The firmware's debug port (0x402) to FILE.")
    ] = None
    trace: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Every ioctl, SEAMCALL, TDCALL, VM exit and injected event to FILE (compressed if it ends in .gz).",
        ),
    ] = None
    trace_format: Annotated[
        TraceFormat, typer.Option(help="JSON lines, or Chrome's trace format, which Perfetto opens.")
    ] = TraceFormat.jsonl
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The run on one HTML page: memory, exits, SEAMCALLs, console.")
    ] = None
    lies_to: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Every lie that was told to FILE, for --lies-from.")
    ] = None
    lint: Annotated[
        bool,
        typer.Option("--lint", help="Report what the TD hands to the host, or takes from it, beyond what it needs."),
    ] = False
    lint_notes: Annotated[
        bool, typer.Option("--lint-notes", help="With --lint: also what does not leak by itself.")
    ] = False
    symbols: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --lint: names for addresses (System.map, kallsyms or an ELF file)."),
    ] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the guest's console, and errors.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print more at the end.")] = False


@dataclass(frozen=True)
class TrustDomain:
    """The parameters of the TD."""

    PANEL: ClassVar[str] = "Trust Domain"

    attributes: Annotated[
        str | None, typer.Option(metavar="MASK", help="TD attributes. Not given: SEPT_VE_DISABLE (0x10000000).")
    ] = None
    gpaw: Annotated[GpaWidth, typer.Option(help="Guest physical address width.")] = GpaWidth.w48
    mrconfigid: Annotated[str | None, typer.Option(metavar="HEX", help="MRCONFIGID, 48 bytes.")] = None
    mrowner: Annotated[str | None, typer.Option(metavar="HEX", help="MROWNER, 48 bytes.")] = None
    mrownerconfig: Annotated[str | None, typer.Option(metavar="HEX", help="MROWNERCONFIG, 48 bytes.")] = None
    debug_td: Annotated[
        bool,
        typer.Option(
            "--debug-td",
            help="A TD with ATTRIBUTES.DEBUG: the host can read and change it. MRTD is unchanged; TDREPORT shows "
            "the attribute.",
        ),
    ] = False

    def parameters(self) -> TdParameters:
        """Return them as the VMM takes them. Raises InputError."""
        from swtdx.cli.parameters import bit_mask, digest
        from swtdx.vmm.launch import TdParameters

        return TdParameters(
            attributes=None if self.attributes is None else bit_mask("--attributes", self.attributes),
            gpa_width=int(self.gpaw.value),
            mrconfigid=digest("--mrconfigid", self.mrconfigid),
            mrowner=digest("--mrowner", self.mrowner),
            mrownerconfig=digest("--mrownerconfig", self.mrownerconfig),
            debug=self.debug_td,
        )


class QuotesChoice(StrEnum):
    """What GetQuote is answered with."""

    on = "on"
    off = "off"


@dataclass(frozen=True)
class Quoting:
    """What the guest's request for a quote is answered with."""

    PANEL: ClassVar[str] = "Quotes"

    quotes: Annotated[
        QuotesChoice | None,
        typer.Option(
            help="on: quotes under the test root of --pki (swtdx pki). off: the guest is told there is no service. "
            "Not given: on with the embedded kernel.",
            show_default=False,
        ),
    ] = None
    quote_generation_socket: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Ask this service for quotes, as QEMU does: unix:PATH, vsock:CID:PORT, HOST:PORT, or QEMU's JSON.",
        ),
    ] = None
    pki: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The machine's test keys. Not given: $SWTDX_PKI, or in the state folder."),
    ] = None
    module_updated: Annotated[
        bool,
        typer.Option(
            "--module-updated",
            help="Emulate an update of the TDX module while the TD runs: TEE_TCB_SVN2 is higher (TD relaunch advised).",
        ),
    ] = False

    def options(self, host: Host) -> dict[str, Any]:
        """Return the members of `swtdx.cli.run_options.Options` that follow. Raises InputError."""
        from swtdx.cli.parameters import InputError

        if self.quotes is QuotesChoice.off and self.quote_generation_socket is not None:
            raise InputError("--quotes off and --quote-generation-socket contradict each other")
        if host.kvm is KvmChoice.host and self.quotes is QuotesChoice.on and self.quote_generation_socket is None:
            raise InputError(
                "--quotes on is for the embedded kernel's machine: this machine has a quoting enclave of its own "
                "(--quote-generation-socket)"
            )
        if self.module_updated and host.module_version is ModuleVersionChoice.v1_0:
            raise InputError("--module-updated: reports of module 1.0 do not show an update")
        return {
            "quotes": self.quotes is not QuotesChoice.off,
            "quote_socket": self.quote_generation_socket,
            "pki": self.pki,
            "module_updated": self.module_updated,
        }


@dataclass(frozen=True)
class Debugger:
    """Access for gdb."""

    PANEL: ClassVar[str] = "Debugging"

    gdb: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST]:PORT|PATH",
            help="Listen for gdb (target remote), on this machine only if no HOST is given, or on a unix socket. For "
            "ordinary VMs and debug TDs.",
        ),
    ] = None
    gdb_wait: Annotated[
        bool, typer.Option("--gdb-wait", help="Do not start vCPUs until a debugger connects and continues.")
    ] = False


@dataclass(frozen=True)
class Keeping:
    """Machines that are kept."""

    PANEL: ClassVar[str] = "Snapshots and recordings"

    snapshot_at: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="When the console shows TEXT, keep the whole machine in --snapshot FILE."),
    ] = None
    snapshot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where --snapshot-at keeps it. Holds all of the guest's memory.")
    ] = None
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Record the run, for swtdx replay-run. One vCPU, disks read-only."),
    ] = None
    restored: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Go on from a snapshot, which says what the machine is."),
    ] = None

    def options(self, host: Host, debugger: Debugger) -> dict[str, Any]:
        """Return the members of `swtdx.cli.run_options.Options` that follow. Raises InputError."""
        from swtdx.cli.parameters import InputError

        if (self.snapshot_at is None) != (self.snapshot is None):
            raise InputError("--snapshot-at TEXT and --snapshot FILE belong together")
        if self.snapshot_at == "":
            raise InputError("--snapshot-at needs a text to wait for")
        if self.snapshot is not None and host.kvm is KvmChoice.host:
            raise InputError("--snapshot is for the embedded kernel: the host's kernel keeps no machines")
        if self.snapshot is not None and debugger.gdb is not None:
            raise InputError("--snapshot-at and --gdb cannot be used together: both stop the machine")
        return vars(self)

    def check_alone(self, *groups: object) -> None:
        """Refuse options that say what the machine is, beside a snapshot that does. Raises InputError."""
        from swtdx.cli.parameters import InputError

        if self.restored is None:
            return
        for group in groups:
            for option in fields(group):  # type: ignore[arg-type]
                if option.name not in _NOT_OF_THE_MACHINE and getattr(group, option.name) != option.default:
                    name = option.name.replace("_", "-")
                    raise InputError(
                        f"--{name} and --from contradict each other: the snapshot says what the machine is"
                    )


_NOT_OF_THE_MACHINE = {"disk", "inject", "lie", "lies_from"}
"""What may be given beside a snapshot: files that it names only, and what its host does from there."""


@grouped
def run(
    guest: Guest,
    host: Host,
    ending: Ending,
    devices: Devices,
    records: Records,
    td: TrustDomain,
    quoting: Quoting,
    debugger: Debugger,
    keeping: Keeping,
) -> int:
    """Launch a firmware as a Trust Domain and stream its console.

    The guest's console is stdout; all other messages go to stderr. On a terminal keys go to the guest, and Ctrl-A X
    ends the run. Without a terminal the run ends at the UEFI shell's prompt.
    """
    from swtdx.cli.run_options import Options
    from swtdx.cli.session import run as carry_out

    keeping.check_alone(guest, host, devices, td)
    members = host.options(guest) | ending.options() | guest.options(host) | devices.options() | quoting.options(host)
    members |= keeping.options(host, debugger)
    parameters = td.parameters()
    options = Options(td=parameters if guest.is_td else None, **members, **vars(records), **vars(debugger))
    return carry_out(options)


def register(app: typer.Typer) -> None:
    """Declare the command."""
    app.command(epilog=EPILOG)(run)
