# SPDX-License-Identifier: GPL-2.0-or-later
"""``swtdx run --snapshot FILE`` and ``--from FILE``: what of a run goes into the file, and the run that comes of it.

A file holds the options that decide what the machine is, and the images that it was built from. From these the machine
is built once more, which takes a tenth of a second, and then given the state that was kept. So a file brings no object
of its own: `swtdx.snapshot.file`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtdx import __version__
from swtdx.cli.parameters import InputError
from swtdx.image.firmware import Firmware
from swtdx.image.linux_image import LinuxBoot, parse
from swtdx.image.mrtd import Order
from swtdx.image.smbios import parse_smbios
from swtdx.snapshot.file import Maker, Saved, SnapshotError, pieces, read
from swtdx.snapshot.taken import Snapshot
from swtdx.uapi.abilities import KeepError, powers_off
from swtdx.uapi.client import KvmError
from swtdx.uapi.dialect import Dialect
from swtdx.vmm.board.virtio.blk import VirtioBlk
from swtdx.vmm.disk_image import parse_disk
from swtdx.vmm.launch import Machine, Plan, TdParameters, direct_boot
from swtdx.x86 import PAGE_SIZE

if TYPE_CHECKING:
    from swtdx.cli.run_options import Options

ALIKE = (
    "memory", "cpus", "kernel_release", "module_version", "no_rbp_mod", "huge_pages", "debug_exit", "virtio_console",
    "rng", "module_updated",
)  # fmt: skip
"""Options that decide what the machine is, and are JSON as they are."""
MAXIMUM_CPUS = 64
_DIGESTS = ("mrconfigid", "mrowner", "mrownerconfig")


def contents(options: Options, machine: Machine) -> Iterator[bytes]:
    """Keep a machine that is paused, and yield the contents of the file. Raises KeepError, NotKept."""
    snapshot = machine.snapshot(movable=True)
    assert isinstance(snapshot, Snapshot)
    plan = machine.plan
    linux = plan.linux or (plan.direct.linux if plan.direct is not None else None)
    recipe: dict[str, Any] = {
        **{name: getattr(options, name) for name in ALIKE},
        "dialect": machine.vm.dialect.value,
        "cpu_features": sorted(_platform(machine).features),
        "tsc_hz": _platform(machine).tsc_hz,
        "td": td_as_json(plan.td),
        "debugcon": plan.debug is not None,
        "mrtd": {order.name: digest.hex() for order, digest in machine.mrtd.items()},
        "disks": [disk_label(device) for device in plan.devices if isinstance(device, VirtioBlk)],
        "smbios": plan.smbios.texts if plan.smbios is not None else (),
        "firmware": [str(plan.firmware.path), plan.firmware.why],
        "direct": plan.direct is not None,
        "kernel": linux.kernel.name if linux is not None else None,
        "append": linux.command_line if linux is not None else "",
    }
    blobs = {"firmware": plan.firmware.image}
    if linux is not None:
        blobs |= {"kernel": linux.kernel.image, "initrd": linux.initrd}
    return pieces(Saved(recipe, blobs, snapshot), _maker())


def td_as_json(td: TdParameters | None) -> dict[str, Any] | None:
    """Return the parameters of a TD for a file; None: an ordinary VM."""
    if td is None:
        return None
    return {**asdict(td), **{name: getattr(td, name).hex() for name in _DIGESTS}}


def td_from_json(td: dict[str, Any] | None) -> TdParameters | None:
    """Return what `td_as_json` was given. Raises KeyError, TypeError, ValueError for what it did not make."""
    if td is None:
        return None
    return TdParameters(**{**td, **{name: bytes.fromhex(td[name]) for name in _DIGESTS}})


def disk_label(device: VirtioBlk) -> list[Any]:
    """Return what a disk is recognised by: the name of its file, its size, when it was changed last, its SHA-256.

    Its path is for the user to give. A block device has no SHA-256: it may be large. Raises OSError.
    """
    known = device.as_json()
    file = Path(str(known["image"]))
    return [file.name, known["size"], file.stat().st_mtime_ns, _digest(file) if file.is_file() else None]


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _has_changed(file: Path, changed_at: int, digest: str | None) -> bool:
    """Whether a file has other contents than when it was kept; it is read only where its time differs."""
    if digest is None or not file.is_file():
        return False
    return file.stat().st_mtime_ns != changed_at and _digest(file) != digest


def give_back(path: Path, machine: Machine, saved: Saved) -> None:
    """Have the machine that was built be the one that was kept. Raises InputError."""
    try:
        machine.restore(saved.snapshot)
        machine.mrtd = _predicted_mrtd(saved)
    except (KeepError, KvmError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        if (kernel := powers_off(machine.vm.kernel)) is not None:
            kernel.power_off()  # what it consists of is of no use to anybody
        raise InputError(f"--from {path} does not fit the machine that it describes: {error}") from None


def _predicted_mrtd(saved: Saved) -> dict[Order, bytes]:
    """Return what was predicted when the machine was first built."""
    return {
        order: bytes.fromhex(saved.recipe["mrtd"][order.name]) for order in Order if order.name in saved.recipe["mrtd"]
    }


def _platform(machine: Machine) -> Any:
    kernel: Any = machine.vm.kernel
    return getattr(kernel, "wrapped", kernel).processor.platform


def _maker() -> Maker:
    from swtdx.cpu import _engine

    return Maker(__version__, _engine.state_layout())


def load(path: Path) -> Saved:
    """Read a file. Raises InputError."""
    try:
        return read(path, _maker())
    except SnapshotError as error:
        raise InputError(f"--from {path} {error}") from None
    except OSError as error:
        raise InputError(f"--from {path} cannot be read: {error.strerror or error}") from None


def planned(path: Path, saved: Saved, options: Options) -> tuple[Options, Plan]:
    """Return the options of the run that continues, and what to build first. Raises InputError."""
    try:
        return _planned(path, saved, options)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(f"--from {path} is damaged: it does not say what the machine is ({error})") from None


def _check_numbers(options: Options) -> None:
    """Raise ValueError or TypeError for what `swtdx run` would not have taken."""
    if not 0 < options.memory < 1 << 44 or options.memory % PAGE_SIZE or not 0 < options.cpus <= MAXIMUM_CPUS:
        raise ValueError("memory or processors")
    for name in ("no_rbp_mod", "huge_pages", "virtio_console", "rng", "module_updated"):
        if type(getattr(options, name)) is not bool:
            raise TypeError(name)
    if options.debug_exit is not None and not 0 <= options.debug_exit < 1 << 16:
        raise ValueError("debug_exit")


def check_disks_are_kept(given: tuple[str, ...]) -> None:
    """Raise InputError for a disk that can be written, before the run."""
    for text in given:
        if not parse_disk(text).read_only:
            raise InputError(f"--snapshot does not keep what is written to a disk: --disk {text},ro")


def _check_disks(path: Path, needed: list[list[Any]], given: tuple[str, ...]) -> None:
    """Raise InputError unless the disks that the machine has are given again: a file does not name what is opened."""
    if len(needed) != len(given):
        names = " ".join(f"--disk {name},ro" for name, *_ in needed)
        raise InputError(
            f"--from {path}: the machine in it has no disk"
            if not needed
            else f"--from {path}: give the disks that the machine in it has: {names}"
        )
    for text, (name, size, changed_at, digest) in zip(given, needed, strict=True):
        spec = parse_disk(text)
        if not spec.read_only:
            raise InputError(f"--disk {text}: the machine in {path} has it read-only: --disk {text},ro")
        if spec.path.exists() and spec.path.stat().st_size != size:
            raise InputError(f"--disk {text} has another size than {name}, which the machine in {path} has")
        try:
            changed = _has_changed(spec.path, changed_at, digest)
        except OSError as error:
            raise InputError(f"--disk {text} cannot be read: {error.strerror or error}") from None
        if changed:
            raise InputError(f"--disk {text} has other contents than {name} had when the machine in {path} was kept")


def _planned(path: Path, saved: Saved, options: Options) -> tuple[Options, Plan]:
    from swtdx.cpu.platform import Platform

    recipe, blobs = saved.recipe, saved.blobs
    here = Platform().tsc_hz
    if recipe["tsc_hz"] != here:
        raise InputError(
            f"--from {path} was made where the time-stamp counter runs at {recipe['tsc_hz'] / 1e9:g} GHz; here it runs "
            f"at {here / 1e9:g} GHz"
        )
    if options.debugcon is not None and not recipe["debugcon"]:
        raise InputError(f"--debugcon: the machine in {path} has no debug port")
    td = td_from_json(recipe["td"])
    options = replace(
        options,
        **{name: recipe[name] for name in ALIKE},
        dialect=Dialect(recipe["dialect"]),
        cpu_features=frozenset(recipe["cpu_features"]),
        td=td,
    )
    _check_numbers(options)
    _check_disks(path, recipe["disks"], options.disks)
    image, why = recipe["firmware"]
    firmware = Firmware(Path(image), why, blobs["firmware"])
    linux = None
    if recipe["kernel"] is not None:
        linux = LinuxBoot(parse(blobs["kernel"], recipe["kernel"]), blobs["initrd"], recipe["append"])
    smbios = parse_smbios(tuple(recipe["smbios"])) if recipe["smbios"] else None
    nowhere = (lambda data: None) if recipe["debugcon"] else None
    if recipe["direct"]:
        if linux is None:
            raise ValueError("no kernel")
        boot, firmware = direct_boot(linux, options.memory, options.cpus, td=options.td is not None)
        return options, Plan(firmware, options.memory, options.cpus, options.td, direct=boot, debug=nowhere, empty=True)
    plan = Plan(
        firmware, options.memory, options.cpus, options.td, linux=linux, smbios=smbios, debug=nowhere, empty=True
    )
    return options, plan
