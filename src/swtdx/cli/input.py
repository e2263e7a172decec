# SPDX-License-Identifier: GPL-2.0-or-later
"""What a verifier's command is given to read, and where its results go; an input that cannot be read is status 3."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from swtdx.cli.verdict import Failure, Verdict

if TYPE_CHECKING:
    from swtdx.cli.output import Output

MAXIMUM_INPUT_SIZE = 256 << 20
"""Bytes; no image, record, quote or event log is that large."""


def firmware_bytes(named: Path | None, quiet: bool) -> tuple[bytes, str]:
    """Return (image, name) of the file that was named, or of the firmware that ``swtdx run`` would take.

    Which one was found is said on stderr, unless ``quiet``. Raises `Failure`.
    """
    if named is not None:
        from swtdx.image.tdvf import MAXIMUM_IMAGE_SIZE  # only here: other inputs are read without it

        image = file_bytes(named, MAXIMUM_IMAGE_SIZE + 1)
        return image, str(named)
    from swtdx.image.firmware import FirmwareError, find_firmware

    try:
        firmware = find_firmware()
    except FirmwareError as error:
        text = str(error).replace("name one with --firmware", "name one")
        raise Failure(text, Verdict.NO_INPUT) from None
    if not quiet:
        print(f"swtdx: {firmware.described}", file=sys.stderr)
    return firmware.image, str(firmware.path)


def file_bytes(path: Path, at_most: int = MAXIMUM_INPUT_SIZE) -> bytes:
    """Return the first ``at_most`` bytes of a file, or of standard input for ``-``. Raises `Failure`."""
    try:
        if str(path) == "-":
            contents = sys.stdin.buffer.read(at_most)
        else:
            with path.open("rb") as file:
                contents = file.read(at_most)
    except (OSError, ValueError, AttributeError) as error:  # a closed standard input is None, or raises ValueError
        name = "standard input" if str(path) == "-" else str(path)
        raise Failure(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}", Verdict.NO_INPUT) from None
    if len(contents) == MAXIMUM_INPUT_SIZE:
        raise Failure(f"{path} is longer than {MAXIMUM_INPUT_SIZE >> 20} MiB, which no input is", Verdict.NO_INPUT)
    return contents


def time_of(option: str, text: str) -> int:
    """Return a time in seconds since 1970, typed as such or as a date. Raises `Failure`."""
    from swtdx.attest.verify import seconds

    try:
        return int(text) if text.isascii() and text.isdigit() else seconds(text)
    except (ValueError, OverflowError):
        raise Failure(f"{option} {text}: seconds since 1970, or as in 2025-06-20T00:00:00Z", Verdict.USAGE) from None


@contextmanager
def result_file(option: str, path: Path | None, *reads: Path | None, quiet: bool) -> Iterator[Output | None]:
    """The file of ``option``, opened before the files that the command ``reads`` are looked at; None without a path.

    Raises `Failure`, as wrong usage, if it cannot be written, or is one of the files that are read.
    """
    if path is None:
        yield None
        return
    from swtdx.cli.output import OutputError, Outputs

    try:
        with Outputs(stdout=not quiet) as outputs:
            for file in reads:
                if file is not None:
                    outputs.reads(str(file), file)
            yield outputs.open(option, path)
    except OutputError as error:
        raise Failure(str(error), Verdict.USAGE) from None
    if outputs.failed:
        import typer

        raise typer.Exit(Verdict.USAGE)
