# SPDX-License-Identifier: GPL-2.0-or-later
"""Make the initrd: ``python -m guest.initrd FOLDER`` writes FOLDER/initrd.img.

FOLDER has what the packages brought: ``busybox`` (static), and ``lib/modules/VERSION`` of the kernel in ``boot/``.
"""

from __future__ import annotations

import lzma
import subprocess
import sys
import tempfile
from pathlib import Path

from guest.newc import DIRECTORY, FILE, newc

HERE = Path(__file__).parent
MODULES = ("configfs", "tsm", "tsm_report", "tdx-guest", "virtio_blk", "virtio-rng", "pvpanic", "pvpanic-mmio")
FOLDERS = ("bin", "dev", "lib", "proc", "sys", "tmp")


def tdreport() -> bytes:
    """The program, compiled. Raises CalledProcessError."""
    with tempfile.TemporaryDirectory() as scratch:
        program = Path(scratch) / "tdreport"
        options = ["-O2", "-static", "-nostdlib", "-ffreestanding", "-fno-stack-protector", "-s"]
        subprocess.run(["cc", *options, "-o", program, HERE / "tdreport.c"], check=True)
        return program.read_bytes()


def build(folder: Path) -> bytes:
    """The archive. Raises FileNotFoundError, CalledProcessError."""
    entries = [(name, DIRECTORY, b"") for name in FOLDERS]
    entries.append(("bin/busybox", FILE, (folder / "busybox").read_bytes()))
    entries.append(("bin/tdreport", FILE, tdreport()))
    entries.append(("init", FILE, (HERE / "init").read_bytes()))
    entries.append(("bin/measure", FILE, (HERE / "measure").read_bytes()))
    for name in MODULES:
        for found in sorted((folder / "lib/modules").glob(f"*/**/{name}.ko*")):
            contents = found.read_bytes()
            entries.append((f"lib/{name}.ko", FILE, lzma.decompress(contents) if found.suffix == ".xz" else contents))
            break
    return newc(entries)


def main(folder: str) -> None:
    """Write it, or leave what was there."""
    target = Path(folder) / "initrd.img"
    made = target.with_suffix(".new")
    made.write_bytes(build(Path(folder)))
    made.replace(target)


if __name__ == "__main__":
    main(sys.argv[1])
