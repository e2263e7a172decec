# SPDX-License-Identifier: GPL-2.0-or-later
"""Boot the initrd by ``swtdx run --firmware none``, and watch the console."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testing.selftests.outcome import Ended
from testing.selftests.programs import InputError

BOOT_SECONDS = 300  # a loaded machine; the first line of init ends it
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Linux:
    """The folder that script/linux prints."""

    kernel: Path
    busybox: bytes


def linux_in(folder: str | None) -> Linux:
    """Return the guest's parts. Raise InputError if they are not there."""
    if not folder:
        raise InputError("SWTDX_LINUX is not set: it names the folder that script/linux prints")
    kernels = sorted(Path(folder).glob("boot/vmlinuz-*"))
    busybox = Path(folder) / "busybox"
    if not kernels or not busybox.is_file():
        raise InputError(f"SWTDX_LINUX={folder}: it has no boot/vmlinuz-* or no busybox")
    return Linux(kernels[-1], busybox.read_bytes())


def boot(kernel: Path, initrd: Path, vm_type: str, cpus: int, test_seconds: int, show: Callable[[str], None]) -> Ended:
    """Run one guest to its end, or until its console is silent for longer than a test may take."""
    command = [sys.executable, "-m", "swtdx", "run", "--firmware", "none", "--vm-type", vm_type, "--quiet"]
    command += ["--kernel", str(kernel), "--initrd", str(initrd), "--memory", "512M", "--cpus", str(cpus)]
    command += ["--append", "console=ttyS0 quiet panic=-1", "--timeout", "0"]
    console = bytearray()
    shown = 0
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        assert run.stdout is not None
        assert run.stderr is not None
        files = [run.stdout.fileno(), run.stderr.fileno()]
        said = bytearray()
        heard = time.monotonic()
        how = ""
        while files:
            patience = test_seconds + 60 if b"SELFTEST begin" in console else BOOT_SECONDS
            ready = select.select(files, [], [], max(0.0, heard + patience - time.monotonic()))[0]
            if not ready:
                how = f"no output for {patience} s"
                run.kill()
                break
            for descriptor in ready:
                data = os.read(descriptor, _CHUNK)
                if not data:
                    files.remove(descriptor)
                elif descriptor == run.stdout.fileno():
                    console += data
                    heard = time.monotonic()
                else:
                    said += data
            end = console.rfind(b"\n") + 1
            for line in console[shown:end].decode("latin-1").splitlines():
                show(line)
            shown = max(shown, end)
        status = run.wait()
    if not how and status != 0:
        last = said.decode("latin-1").strip().splitlines()[-1:] or [""]
        how = f"swtdx run ended with status {status} ({last[0]})"
    return Ended(console.decode("latin-1"), how)
