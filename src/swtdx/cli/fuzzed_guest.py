# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest of ``swtdx fuzz guest``: the machine of a snapshot, with a host that lies.

`slice_of` is what a worker does, here or elsewhere: it needs the file of the snapshot, and nothing of this process.
"""

from __future__ import annotations

import hashlib
import importlib
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swtdx.cli.machine_parts import devices, kernel_for
from swtdx.cli.parameters import InputError
from swtdx.cli.run_options import Options
from swtdx.cli.saved_machine import give_back
from swtdx.fuzzing.campaign import Known, Slice, work
from swtdx.fuzzing.guest import Checker, Code, Guest, Limits
from swtdx.fuzzing.host import Host
from swtdx.lying.lie import kinds
from swtdx.uapi.abilities import powers_off
from swtdx.uapi.client import Kvm
from swtdx.uapi.tdx_upstream import TDX_TD_ATTR_SEPT_VE_DISABLE
from swtdx.vmm.disk_image import open_disk, parse_disk
from swtdx.vmm.launch import Plan, launch

if TYPE_CHECKING:
    from swtdx.snapshot.file import Saved


@dataclass(frozen=True)
class Settings:
    """Everything that a worker must know."""

    snapshot: Path
    limits: Limits
    typed: bytes = b""
    code: tuple[tuple[int, int], ...] = ()
    check: str | None = None
    disks: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ("calls",)
    """Of lies."""


def checker_named(name: str | None) -> Checker | None:
    """Return the function ``MODULE:FUNCTION``. Raises InputError."""
    if name is None:
        return None
    module, _, function = name.partition(":")
    if not module or not function:
        raise InputError(f"--check {name}: write MODULE:FUNCTION")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"--check {name}: {error}") from None
    if not callable(found):
        raise InputError(f"--check {name}: it is not a function")
    checker: Checker = found
    return checker


def open_guest(settings: Settings, files: ExitStack) -> Guest:
    """Build the machine of the snapshot. Raises InputError."""
    path = settings.snapshot
    saved, options, plan = _read(settings)
    host = Host(set(settings.kinds) - (set() if _lets_pages_be_taken(plan) else {"ve"}))
    kernel: Any = kernel_for(options, None, lies=host)
    guest = Guest(
        host,
        kernel.processor,
        settings.limits,
        typed=settings.typed,
        code=Code(settings.code),
        checker=checker_named(settings.check),
    )
    disks = [files.enter_context(open_disk(parse_disk(text))) for text in settings.disks]
    plan = replace(plan, serial=guest.feed, devices=tuple(devices(options, disks, guest.feed)))
    device = files.enter_context(Kvm(kernel, options.dialect))
    machine = files.enter_context(launch(device, plan))
    if (switch := powers_off(kernel)) is not None:
        files.callback(switch.power_off)
    give_back(path, machine, saved)
    guest.attach(machine, saved.snapshot)
    return guest


def _read(settings: Settings) -> tuple[Saved, Options, Plan]:
    """Read the snapshot. Raises InputError."""
    from swtdx.cli import saved_machine

    path = settings.snapshot
    saved = saved_machine.load(path)
    options, plan = saved_machine.planned(path, saved, Options(restored=path, disks=settings.disks))
    if plan.td is None:
        raise InputError(f"--from {path}: the machine in it is an ordinary VM; a host lies to Trust Domains")
    if "ve" in settings.kinds and set(settings.kinds) != set(kinds()) and not _lets_pages_be_taken(plan):
        raise InputError(
            "--lies ve: the TD has the attribute SEPT_VE_DISABLE, so that a page which its host takes is never a #VE: "
            "run it with other --attributes, or name other kinds"
        )
    return saved, options, plan


def _lets_pages_be_taken(plan: Plan) -> bool:
    """Whether the guest continues, by #VE, when it comes to a page that its host took."""
    attributes = plan.td.attributes if plan.td is not None else None
    return attributes is not None and not attributes & TDX_TD_ATTR_SEPT_VE_DISABLE


def check(settings: Settings, *, here: bool) -> None:
    """Find out whether the snapshot can be used; ``here``: by this process, which keeps it. Raises InputError."""
    if here:
        _opened(settings)
    else:
        _read(settings)


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a snapshot. Raises InputError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"--from {path} cannot be read: {error.strerror or error}") from None


_open: dict[Settings, Guest] = {}
_files = ExitStack()


def slice_of(settings: Settings, known: Known, seed: int, seconds: float) -> Slice:
    """Work for some seconds, on a machine that this process keeps for the next time."""
    return work(_opened(settings), known, seed, seconds)


def _opened(settings: Settings) -> Guest:
    guest = _open.get(settings)
    if guest is None:
        guest = _open[settings] = open_guest(settings, _files)
    return guest
