# SPDX-License-Identifier: GPL-2.0-or-later
"""What it costs to measure a firmware image: in process, beside one hash call over as many bytes; and as a command.

The stream that becomes MRTD has 128 bytes for each page that is added and 6144 more for each that is measured.  Nothing
can be faster than hashing it, so the aim is a ratio to that, both taken in turn so that they see the same machine.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from swtdx.attest import measure_image
from swtdx.image.firmware import Firmware, FirmwareError, find_firmware
from swtdx.image.tdvf import parse

_PAGE = 4096
_ADD_BYTES = 128
_EXTEND_BYTES = 16 * (128 + 256)


@dataclass(frozen=True)
class InProcess:
    """Seconds of each run: MRTD of the image, and SHA-384 of ``stream_bytes`` bytes in one call."""

    mrtd: tuple[float, ...]
    hash: tuple[float, ...]
    stream_bytes: int

    @property
    def ratios(self) -> list[float]:
        """Of each pair of runs."""
        return [mrtd / hashed for mrtd, hashed in zip(self.mrtd, self.hash, strict=True)]


def firmware() -> Firmware | None:
    """The installed TDVF, None where there is none to be measured."""
    try:
        return find_firmware()
    except FirmwareError:
        return None


def in_process(image: bytes, repetitions: int, inner: int) -> InProcess:
    """Each run is the median of ``inner``, so that one interruption does not count."""
    pages = [(one.memory_size // _PAGE, one.measured) for one in parse(image, "").sections if one.added]
    stream = os.urandom(sum(count * (_ADD_BYTES + _EXTEND_BYTES * measured) for count, measured in pages))

    def seconds(once: Callable[[], object]) -> float:
        begin = time.perf_counter()
        once()
        return time.perf_counter() - begin

    def pair() -> tuple[float, float]:
        both = [
            (seconds(lambda: measure_image(image)), seconds(lambda: hashlib.sha384(stream).digest()))
            for _ in range(inner)
        ]
        return statistics.median(mrtd for mrtd, _ in both), statistics.median(hashed for _, hashed in both)

    pair()  # caches
    runs = [pair() for _ in range(repetitions)]
    return InProcess(tuple(mrtd for mrtd, _ in runs), tuple(hashed for _, hashed in runs), len(stream))


def command(image: Path) -> float:
    """Seconds of one ``swtdx measure``, from the start of its process to the end.

    As installed: with Python's bytecode beside the source, which the first call leaves there.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    arguments = [str(Path(sys.executable).with_name("swtdx")), "measure", str(image)]
    begin = time.perf_counter()
    subprocess.run(arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, check=True)
    return time.perf_counter() - begin
