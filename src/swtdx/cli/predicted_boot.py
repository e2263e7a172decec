# SPDX-License-Identifier: GPL-2.0-or-later
"""What ``swtdx measure`` is told of the boot whose RTMRs it predicts: what is started, and on which machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from swtdx.cli import declaration as typer
from swtdx.cli.input import file_bytes
from swtdx.cli.verdict import Failure, Verdict
from swtdx.image.memory_map import MAXIMUM_MEMORY
from swtdx.image.tdvf import Tdvf

if TYPE_CHECKING:  # loaded only where a boot is predicted
    from swtdx.attest.boot_prediction import BootPrediction
    from swtdx.attest.disk_boot import DiskBoot
    from swtdx.attest.event_log import Event
    from swtdx.attest.machine_files import MachineFiles
    from swtdx.image.linux_image import LinuxBoot

_PARTITION_TABLE = 1 << 20
"""Bytes at the start of a disk that hold its partition table."""


@dataclass(frozen=True)
class Started:
    """What the firmware starts."""

    kernel: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Linux kernel or UKI that the firmware starts: predict RTMR0-2.")
    ] = None
    initrd: Annotated[Path | None, typer.Option(metavar="FILE", help="Initial RAM disk.")] = None
    append: Annotated[str | None, typer.Option(metavar="TEXT", help="Kernel command line.")] = None
    boot: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="Started from a disk, in this order: shim, GRUB, or a UKI; in place of --kernel."
        ),
    ] = None
    grub_root: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DEVICE=]FOLDER", help="The files that GRUB sees on a partition (hd0,gpt1 unless it is named)."
        ),
    ] = None
    disk: Annotated[Path | None, typer.Option(metavar="FILE", help="With --boot: the disk (its partition table).")] = (
        None
    )

    def check(self) -> None:
        """Raise `Failure` for options that cannot change the result."""
        if self.kernel is not None and self.boot:
            raise Failure("--kernel and --boot are two ways to boot: give one", Verdict.USAGE)
        for option, value, needs, wanted in (
            ("--initrd", self.initrd, self.kernel, "--kernel"),
            ("--append", self.append, self.kernel, "--kernel"),
            ("--grub-root", self.grub_root, self.boot, "--boot"),
            ("--disk", self.disk, self.boot, "--boot"),
        ):
            if value is not None and needs is None:
                text = f"{option} cannot change anything: it is for {wanted}, which is not given"
                raise Failure(text, Verdict.USAGE)

    @property
    def given(self) -> bool:
        """Whether there is a boot to predict."""
        return self.kernel is not None or bool(self.boot)

    def files(self) -> list[Path]:
        """All files that are read."""
        return [each for each in (self.kernel, self.initrd, self.disk, *(self.boot or ())) if each is not None]

    def from_disk(self) -> DiskBoot:
        """The chain of ``--boot``. Raises `Failure`."""
        from swtdx.attest.disk_boot import DiskBoot, Image

        chain = tuple(Image(str(path), file_bytes(path)) for path in self.boot or ())
        disk = None if self.disk is None else file_bytes(self.disk, _PARTITION_TABLE)
        folders = dict(_partition(each) for each in self.grub_root or ())
        if not folders:
            return DiskBoot(chain, disk=disk)

        def read(device: str, path: str) -> bytes | None:
            return _inside(folders[device], path) if device in folders else None

        return DiskBoot(chain, read, tuple(folders), disk)

    def described(self, linux: LinuxBoot | None) -> dict[str, Any]:
        """For JSON."""
        import hashlib

        if linux is None:
            return {"boot": [str(each) for each in self.boot or ()]}
        return {
            "kernel": linux.kernel.name,
            "kernel_sha256": hashlib.sha256(linux.kernel.image).hexdigest(),
            "initrd_sha256": hashlib.sha256(linux.initrd).hexdigest() if linux.initrd else None,
            "append": linux.command_line,
        }


@dataclass(frozen=True)
class OtherMachine:
    """The machine, where it is not the board of ``swtdx run``."""

    cpus: Annotated[
        int | None,
        typer.Option(min=1, max=64, metavar="N", help="vCPUs, with --kernel (not given: 1).", show_default=False),
    ] = None
    event_log: Annotated[
        Path | None,
        typer.Option(metavar="CCEL", help="With --kernel: predict for the machine that wrote this event log."),
    ] = None
    fw_cfg: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="For a machine with these files of fw_cfg (ACPI tables): a copy of /sys/firmware/qemu_fw_cfg/by_name, "
            "or what swtdx qemu --fw-cfg wrote.",
        ),
    ] = None
    td_hob: Annotated[
        Path | None, typer.Option(metavar="FILE", help="For a VMM that makes this TD HOB; td-shim measures it, too.")
    ] = None
    variables: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="UEFI variables in place of the image's: a store (OVMF_VARS.fd), or JSON."),
    ] = None

    def check(self, started: Started) -> None:
        """Raise `Failure` for options that cannot change the result."""
        for option, value in (
            ("--cpus", self.cpus),
            ("--event-log", self.event_log),
            ("--fw-cfg", self.fw_cfg),
            ("--td-hob", self.td_hob),
            ("--variables", self.variables),
        ):
            if value is not None and not started.given:
                text = f"{option} cannot change anything: it is for --kernel, which is not given"
                raise Failure(text, Verdict.USAGE)
        excluded = {
            "--cpus": self.cpus is not None,
            "--fw-cfg": self.fw_cfg is not None,
            "--td-hob": self.td_hob is not None,
            "--variables": self.variables is not None,
        }
        for option, given in excluded.items():
            if self.event_log is not None and given:
                text = f"{option} cannot change the result: the event log is of a machine that has its own"
                raise Failure(text, Verdict.USAGE)
        if self.fw_cfg is not None and self.cpus is not None:
            text = "--cpus cannot change the result: the files of fw_cfg are of a machine that has its own"
            raise Failure(text, Verdict.USAGE)

    def files(self) -> list[Path]:
        """All files that are read."""
        return [each for each in (self.event_log, self.td_hob, self.variables) if each is not None]

    def known(self, tdvf: Tdvf) -> MachineFiles:
        """Read the files. Raises `Failure`, and `PredictionError` for a folder that is not one of fw_cfg."""
        from swtdx.attest.machine_files import MachineFiles, read_fw_cfg, read_variables
        from swtdx.attest.variable_store import VariableStoreError
        from swtdx.image.tdvf import SectionType

        try:
            files = None if self.fw_cfg is None else read_fw_cfg(self.fw_cfg)
        except OSError as error:
            raise Failure(f"{self.fw_cfg} cannot be read: {error.strerror}", Verdict.NO_INPUT) from None
        hob = None if self.td_hob is None else file_bytes(self.td_hob)
        if self.variables is None:
            return MachineFiles(files, hob)
        contents = file_bytes(self.variables)
        try:
            variables = read_variables(contents)
        except VariableStoreError as error:
            raise Failure(f"{self.variables}: {error}", Verdict.FAILED) from None
        size = sum(each.raw_size for each in tdvf.sections if each.type is SectionType.CFV)
        return MachineFiles(files, hob, variables, contents if len(contents) == size else None)

    def as_json(self) -> dict[str, Any]:
        """The machine, for JSON."""
        named = {"event_log": self.event_log, "fw_cfg": self.fw_cfg, "td_hob": self.td_hob, "variables": self.variables}
        found = {name: str(path) for name, path in named.items() if path is not None}
        return found if self.event_log or self.fw_cfg else {**found, "cpus": self.cpus or 1}


def predict(
    tdvf: Tdvf, started: Started, machine: OtherMachine, size: int | None, name: str
) -> tuple[LinuxBoot | None, BootPrediction]:
    """Return the kernel, if there is one, and the boot's RTMRs. Raises `Failure`, and what the prediction raises."""
    from swtdx.attest.td_shim import is_td_shim, predict_td_shim

    image = bytes(tdvf.image)
    if is_td_shim(image):
        if started.boot:
            raise Failure(f"{name} is td-shim, which boots from no disk: give --kernel", Verdict.USAGE)
        return None, predict_td_shim(tdvf, machine.known(tdvf).hob)
    if started.boot:
        from swtdx.attest.disk_boot import predict_disk_boot

        if machine.event_log is not None:
            from swtdx.attest.board_log import predict_disk_from_log

            return None, predict_disk_from_log(image, started.from_disk(), _log(machine.event_log), name)
        assert size is not None, "there is a default"
        return None, predict_disk_boot(image, started.from_disk(), size, machine.cpus or 1, name, machine.known(tdvf))
    assert started.kernel is not None
    boot = linux_files(started.kernel, started.initrd, started.append or "", size or MAXIMUM_MEMORY)
    if machine.event_log is not None:
        from swtdx.attest.board_log import predict_from_log

        return boot, predict_from_log(image, boot, _log(machine.event_log), name)
    from swtdx.attest.direct_boot import predict_direct_boot

    assert size is not None, "without an event log there is a default"
    return boot, predict_direct_boot(image, boot, size, machine.cpus or 1, name, machine.known(tdvf))


def with_kernel_of(tdvf: Tdvf, started: Started) -> Tdvf:
    """td-shim with the kernel that a VMM puts into it; any other image as it is.

    Raises `Failure`, `PredictionError`.
    """
    if started.kernel is None:
        return tdvf
    from swtdx.attest.td_shim import is_td_shim, with_payload

    if not is_td_shim(bytes(tdvf.image)):
        return tdvf
    if started.initrd is not None:
        raise Failure("td-shim has no place for an initrd: it must be in the kernel", Verdict.USAGE)
    return with_payload(tdvf, file_bytes(started.kernel), started.append or "")


def _partition(text: str) -> tuple[str, Path]:
    """``[DEVICE=]FOLDER``. Raises `Failure`."""
    device, equals, folder = text.partition("=")
    if not equals:
        device, folder = "hd0,gpt1", text
    if not Path(folder).is_dir():
        raise Failure(f"--grub-root {folder} is not a folder", Verdict.NO_INPUT)
    return device.strip("()"), Path(folder)


def _inside(folder: Path, path: str) -> bytes | None:
    """A file below a folder, as GRUB names it; None if there is none."""
    found = (folder / path.lstrip("/")).resolve()
    if not found.is_relative_to(folder.resolve()) or not found.is_file():
        return None
    return file_bytes(found)


def _log(event_log: Path) -> list[Event]:
    """Raises `Failure`."""
    from swtdx.attest.event_log import MAXIMUM_LOG_SIZE, EventLogError, parse_event_log

    try:
        return parse_event_log(file_bytes(event_log, MAXIMUM_LOG_SIZE + 1))
    except EventLogError as error:
        raise Failure(f"{event_log}: {error}", Verdict.EVENT_LOG) from None


def linux_files(kernel: Path, initrd: Path | None, append: str, memory: int) -> LinuxBoot:
    """Return what a firmware is to start, from its files. Raises `Failure`."""
    from swtdx.image.linux_image import LinuxImageError, load

    for path in (kernel, initrd):
        if path is not None:
            file_bytes(path, 1)  # a file that is not there has a status of its own
    try:
        return load(kernel, initrd, append, memory)
    except LinuxImageError as error:
        raise Failure(str(error), Verdict.FAILED) from None
