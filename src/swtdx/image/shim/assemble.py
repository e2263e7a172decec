# SPDX-License-Identifier: GPL-2.0-or-later
"""Assembles ``shim.S``: ``python -m swtdx.image.shim.assemble`` rewrites ``shim.bin`` beside it.

The addresses in it come from here, so that Python and assembly cannot disagree without a test that shows it.  A C
compiler driver and GNU ld are needed only by who changes the source.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

from swtdx.image.boot_protocol import BOOT_PARAMS, MAILBOX, METADATA_ROOM, PAGE_TABLES, SHIM
from swtdx.units import PAGE_SIZE

SOURCE = Path(__file__).with_name("shim.S")
_DEFINITIONS = {
    "MAILBOX": MAILBOX,
    "PAGE_TABLES": PAGE_TABLES,
    "BOOT_PARAMS": BOOT_PARAMS,
    "PAGE_SIZE": PAGE_SIZE,
    "METADATA_ROOM": METADATA_ROOM,
}


def assemble(source: Path = SOURCE) -> bytes:
    """The page that the system's assembler makes of the source. Raises OSError, CalledProcessError."""
    with tempfile.TemporaryDirectory() as folder:
        compiled, linked = Path(folder, "shim.o"), Path(folder, "shim.bin")
        definitions = [f"-D{name}={value:#x}" for name, value in _DEFINITIONS.items()]
        subprocess.run(["gcc", "-m64", *definitions, "-c", "-o", compiled, source], check=True)
        layout = ["-m", "elf_x86_64", "--oformat", "binary", "-e", "0", f"-Ttext={SHIM:#x}"]
        subprocess.run(["ld", *layout, "-o", linked, compiled], check=True)
        return linked.read_bytes()


if __name__ == "__main__":
    SOURCE.with_suffix(".bin").write_bytes(assemble())
