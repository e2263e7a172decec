# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verifier's command is given to read, and where its results go; an input that is not to be had is status 3."""

from __future__ import annotations

import sys
from pathlib import Path

from swtdx.cli.verdict import Failure, Verdict
from swtdx.vmm.firmware import FirmwareError, find_firmware
from swtdx.vmm.tdvf import MAXIMUM_IMAGE_SIZE

MAXIMUM_INPUT_SIZE = 256 << 20
"""Bytes; no image, record, quote or event log is that large."""


def firmware_bytes(named: Path | None, quiet: bool) -> tuple[bytes, str]:
    """(image, name) of the file that was named, or of the firmware that ``swtdx run`` would take.

    Which one was found is said on stderr, unless ``quiet``. Raises `Failure`.
    """
    if named is not None:
        image = file_bytes(named, MAXIMUM_IMAGE_SIZE + 1)
        return image, str(named)
    try:
        firmware = find_firmware()
    except FirmwareError as error:
        text = str(error).replace("name one with --firmware", "name one")
        raise Failure(text, Verdict.NO_INPUT) from None
    if not quiet:
        print(f"swtdx: {firmware.path}: {firmware.why}", file=sys.stderr)
    return firmware.image, str(firmware.path)


def file_bytes(path: Path, at_most: int = MAXIMUM_INPUT_SIZE) -> bytes:
    """The first ``at_most`` bytes of a file. Raises `Failure` if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(at_most)
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror or error}", Verdict.NO_INPUT) from None


def write_text(option: str, path: Path, text: str) -> None:
    """Write a result into a file. Raises `Failure`, as wrong usage, if that cannot be."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(f"{option} {path} cannot be written: {error.strerror or error}", Verdict.USAGE) from None
