# SPDX-License-Identifier: GPL-2.0-or-later
"""The folder of a campaign: a case is a file of lies, as ``swtdx run --lies-from`` takes it.

========================  ============================================================
swtdx-fuzz.json           what this is, and of which snapshot (SHA-256)
corpus/DIGEST.lies        a case that reached new code
crashes/KIND-DIGEST.lies  what crashes the guest; comments say how, and how often
========================  ============================================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from swtdx.fuzzing.mutation import Case

MARK = "swtdx-fuzz.json"
_FORMAT = 1


class FolderError(Exception):
    """The folder cannot be used; the text is a sentence."""


class Folder:
    """A folder that is there."""

    def __init__(self, path: Path) -> None:
        """Make it, or go on in it. Raises FolderError."""
        self.path = path
        try:
            if path.exists() and not path.is_dir():
                raise FolderError(f"--corpus {path} is not a folder")
            if path.is_dir() and any(path.iterdir()) and not (path / MARK).is_file():
                raise FolderError(f"--corpus {path} is not the folder of a campaign: it has files, and no {MARK}")
            for name in ("corpus", "crashes"):
                (path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FolderError(f"--corpus {path} cannot be used: {error.strerror or error}") from None

    def belongs_to(self, snapshot: str) -> None:
        """Note, or compare, of which snapshot it is. Raises FolderError."""
        mark = self.path / MARK
        try:
            if not mark.exists():
                mark.write_text(json.dumps({"format": _FORMAT, "snapshot": snapshot}) + "\n", "ascii")
                return
            known = json.loads(mark.read_text("utf-8"))
            if known.get("format") != _FORMAT or not isinstance(known.get("snapshot"), str):
                raise FolderError(f"--corpus {self.path}: {MARK} is of another format")
        except (OSError, ValueError, AttributeError) as error:
            raise FolderError(f"--corpus {self.path}: {MARK} cannot be read ({error})") from None
        if known["snapshot"] != snapshot:
            raise FolderError(f"--corpus {self.path} belongs to another snapshot: give a new folder")

    def corpus(self) -> list[Case]:
        """Return the cases that are there. Raises FolderError."""
        try:
            files = sorted((self.path / "corpus").glob("*.lies"))
            return [lies_of(file.read_text("utf-8")) for file in files]
        except (OSError, UnicodeDecodeError) as error:
            raise FolderError(f"--corpus {self.path}: a case cannot be read ({error})") from None

    def keep(self, case: Case) -> None:
        """Write a case that reached new code."""
        text = "".join(f"{lie}\n" for lie in case)
        digest = hashlib.sha256(text.encode()).hexdigest()[:16]
        _write(self.path / "corpus" / f"{digest}.lies", text)

    def keep_crash(self, name: str, case: Case, comments: Iterable[str]) -> Path:
        """Write what crashes the guest."""
        path = self.path / "crashes" / f"{name}.lies"
        heading = "".join(f"# {line}\n" for comment in comments for line in comment.splitlines())
        _write(path, heading + "".join(f"{lie}\n" for lie in case))
        return path


def _write(path: Path, text: str) -> None:
    """Write all of a file, or nothing."""
    beside = path.with_suffix(".new")
    beside.write_text(text, "utf-8")
    beside.replace(path)


def lies_of(text: str) -> Case:
    """Return the lies of a file, without its comments."""
    return tuple(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
