# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx qemu``: QEMU with a Trust Domain on the emulated kernel, in few words.

It adds to the arguments what a TD needs (accelerator, machine, firmware) and hands all of it to ``swtdx exec``. What is
among the arguments already is left alone, so any of it can be chosen otherwise.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import typer

from swtdx.cli.exec_command import OWN_FAILURE, ExecFailure
from swtdx.cli.kernel_choice import KernelReleaseOption

EPILOG = """
[bold]Examples[/bold]

[cyan]swtdx qemu --print[/cyan] - the command that would be executed

[cyan]swtdx qemu -m 1G -nographic[/cyan] - the installed TDX firmware in a TD

[cyan]swtdx qemu -m 1G -nographic -kernel vmlinuz -initrd initrd.img -append console=ttyS0[/cyan] - Linux in a TD

[cyan]swtdx qemu --fw-cfg fw_cfg/ -m 1G -smp 2[/cyan] - what RTMR0 depends on, for swtdx measure --fw-cfg fw_cfg/

[bold]Exit status[/bold]

as of swtdx exec: that of QEMU; 125 swtdx itself failed; 127 QEMU was not found
"""
TDX_SINCE = (10, 1)
"""The first QEMU with ``-object tdx-guest``."""


def register(app: typer.Typer) -> None:
    """Declare the command."""
    # No -h: it would be found in the letters of -machine and -chardev.
    settings = {"allow_interspersed_args": False, "ignore_unknown_options": True, "help_option_names": ["--help"]}
    app.command(name="qemu", epilog=EPILOG, context_settings=settings)(qemu)


def qemu(
    arguments: Annotated[list[str] | None, typer.Argument(metavar="[ARGUMENT]...", help="Arguments for QEMU.")] = None,
    print_: Annotated[bool, typer.Option("--print", help="Print the command and do not execute it.")] = False,
    binary: Annotated[str, typer.Option("--qemu", metavar="PROGRAM", help="The QEMU.")] = "qemu-system-x86_64",
    firmware: Annotated[Path | None, typer.Option(metavar="IMAGE", help="The TDVF image.")] = None,
    fw_cfg: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write the files of fw_cfg (ACPI tables) for swtdx measure --fw-cfg; no guest runs."
        ),
    ] = None,
    kernel_release: KernelReleaseOption = None,
) -> None:
    """Run QEMU with a Trust Domain on the emulated kernel.

    QEMU must have TDX: version 10.1 or later.
    """
    from swtdx.cli.exec_command import launch

    program = shutil.which(binary)
    if program is None:
        raise ExecFailure(f"{binary}: no such program in PATH: install qemu-system-x86, or name one with --qemu", 127)
    given = list(arguments or ())
    command = [program, *td_arguments(given, firmware), *given]
    if has_vga(given):
        print(f"swtdx: {_VGA_IN_A_TD}", file=sys.stderr)
    if print_:
        chosen = ["--kernel-release", kernel_release.value] if kernel_release is not None else []
        print(shlex.join(["swtdx", "exec", *chosen, "--", *command]))
        return
    version = version_of(program)
    if version is not None and version < TDX_SINCE:
        raise ExecFailure(
            f"{program} is QEMU {'.'.join(map(str, version))}, which has no TDX: use 10.1 or later "
            "(--qemu PROGRAM), or run an ordinary VM with swtdx exec",
            OWN_FAILURE,
        )
    if fw_cfg is not None:
        from swtdx.cli.fw_cfg_dump import dump

        count = dump(command, fw_cfg, kernel_release.value if kernel_release is not None else None)
        print(f"{fw_cfg}: {count} files of fw_cfg")
        return
    raise typer.Exit(launch(command, kernel_release))


def td_arguments(given: list[str], firmware: Path | None) -> list[str]:
    """Return what a TD needs and ``given`` does not say."""
    joined = " ".join(given)
    result = []
    if not {"-accel", "-enable-kvm"} & set(given) and "accel=" not in joined:
        result += ["-accel", "kvm"]
    if "-cpu" not in given:
        result += ["-cpu", "host"]
    if "tdx-guest" not in joined:
        result += ["-object", "tdx-guest,id=tdx0"]
    options = "kernel-irqchip=split,confidential-guest-support=" + _object_id(joined)
    if not {"-machine", "-M"} & set(given):
        result += ["-machine", f"q35,{options}"]
    elif "confidential-guest-support" not in joined:  # QEMU puts the options of several -machine together
        result += ["-machine", options]
    if not _says_vga(given):
        result += ["-vga", "none"]
    if "-bios" not in given:
        result += ["-bios", str(firmware or _installed_firmware())]
    return result


_VGA_IN_A_TD = (
    "a VGA device takes 0xa0000 to 0xbffff out of the guest's memory, and a TD's firmware accepts all of it: such a TD "
    "ends at its start, on hardware, too; use -vga none, and virtio-gpu-pci for a display"
)
_VGA_DEVICE = re.compile(
    r"(?:^|\bdriver\"?[=:]\s*\"?)(?:VGA|(?:isa-|isa-cirrus-|cirrus-|ati-|qxl-|virtio-|vhost-user-)vga|vmware-svga)\b"
)


def has_vga(given: list[str]) -> bool:
    """Return whether these arguments ask for a VGA device, which a TD does not survive."""
    named = _values(given, "vga")
    return named[-1:] not in ([], ["none"]) or any(_VGA_DEVICE.search(value) for value in _values(given, "device"))


def _says_vga(given: list[str]) -> bool:
    """Return whether QEMU adds no VGA device of its own, because these arguments have one or want none."""
    return bool({"-nodefaults", "--nodefaults"} & set(given) or _values(given, "vga")) or has_vga(given)


def _values(given: list[str], option: str) -> list[str]:
    """Return what follows an option, which QEMU takes with one hyphen or two."""
    return [following for word, following in pairwise(given) if word in (f"-{option}", f"--{option}")]


def _object_id(joined: str) -> str:
    """Return the name of the tdx-guest object that is given, or of ours."""
    found = re.search(r"tdx-guest\S*?\bid\"?[=:]\"?([\w.-]+)", joined)
    return found[1] if found else "tdx0"


def _installed_firmware() -> Path:
    """Return the first TDVF image of the usual places. Raises `ExecFailure` if there is none."""
    from swtdx.image.firmware import candidates
    from swtdx.image.tdvf import TdvfError, parse

    for path, _ in candidates():
        try:
            parse(path.read_bytes(), path.name)
        except (OSError, TdvfError):
            continue
        return path
    raise ExecFailure("no TDVF image was found: install ovmf or ovmf-inteltdx, or use --firmware", OWN_FAILURE)


def version_of(program: str) -> tuple[int, ...] | None:
    """Return the version of a QEMU, or None if it does not say one."""
    try:
        done = subprocess.run([program, "--version"], check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    return tuple(map(int, found.groups())) if found else None
