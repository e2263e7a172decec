# SPDX-License-Identifier: GPL-2.0-or-later
"""The snapshot of ``swtdx fuzz guest --kernel``: made once by ``swtdx run``, kept in the folder of the campaign."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from swtdx.cli.parameters import InputError

SNAPSHOT, MADE_OF = "guest.snapshot", "guest.json"


@dataclass(frozen=True)
class Boot:
    """What is started, and the text at which it is kept; the options of ``swtdx run``."""

    kernel: Path
    initrd: Path | None
    append: str
    firmware: str
    memory: str
    cpus: int
    rng: bool
    attributes: str | None
    snapshot_at: str
    disks: tuple[str, ...] = ()

    def arguments(self) -> list[str]:
        """As ``swtdx run`` takes them."""
        words = ["--firmware", self.firmware, "--kernel", str(self.kernel), "--append", self.append]
        words += ["--memory", self.memory, "--cpus", str(self.cpus), "--snapshot-at", self.snapshot_at]
        words += ["--initrd", str(self.initrd)] if self.initrd is not None else []
        words += ["--attributes", self.attributes] if self.attributes is not None else []
        words += ["--rng"] if self.rng else []
        return words + [word for disk in self.disks for word in ("--disk", disk)]

    def made_of(self) -> dict[str, object]:
        """Return what decides about the snapshot. Raises InputError."""
        files = {
            option: path for option, path in (("kernel", self.kernel), ("initrd", self.initrd)) if path is not None
        }
        return {
            **{option: _digest(f"--{option}", path) for option, path in files.items()},
            **{name: getattr(self, name) for name in ("append", "firmware", "memory", "cpus", "rng", "attributes")},
            "snapshot_at": self.snapshot_at,
            "disks": len(self.disks),
        }


def booted(folder: Path, boot: Boot) -> Path:
    """Return the snapshot of the guest in ``folder``, made now if there is none. Raises InputError."""
    snapshot, note = folder / SNAPSHOT, folder / MADE_OF
    try:
        made_of = boot.made_of()
    except InputError:
        _tidy(folder)
        raise
    if snapshot.exists() and note.exists():
        try:
            known = json.loads(note.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"--corpus {folder}: {MADE_OF} cannot be read ({error})") from None
        if known != made_of:
            raise InputError(f"--corpus {folder} is of a guest that was started otherwise: give a new folder")
        return snapshot
    command = [sys.executable, "-m", "swtdx", "run", "--quiet", *boot.arguments(), "--snapshot", str(snapshot)]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode or not snapshot.exists():
        said = [line for line in done.stderr.splitlines() if line.startswith("swtdx: ")]
        why = said[-1].removeprefix("swtdx: ") if said else f"its console never showed {boot.snapshot_at!r}"
        snapshot.unlink(missing_ok=True)
        _tidy(folder)
        raise InputError(f"the guest could not be started: {why}" if done.returncode != 2 else why)
    note.write_text(json.dumps(made_of) + "\n", "utf-8")
    return snapshot


def _tidy(folder: Path) -> None:
    """Leave nothing of a campaign that has not begun."""
    for each in (folder / "corpus", folder / "crashes", folder):
        with suppress(OSError):  # it is not empty
            each.rmdir()


def _digest(option: str, path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{option} {path} cannot be read: {error.strerror or error}") from None
