# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in C, compiled for the test, on the emulated kernel by ``swtdx exec``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import skip

PROGRAMS = Path(__file__).with_name("programs")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``compiled("signals")``: the path of the program, built once in a session; further arguments are gcc's."""
    folder = tmp_path_factory.mktemp("programs")
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        skip("no C compiler: the programs of these tests cannot be built")

    used: str = compiler

    def build(name: str, *flags: str) -> Path:
        program = folder / "-".join([name, *(flag.strip("-").replace("/", "_") for flag in flags)])
        if not program.exists():
            source = PROGRAMS / f"{name}.c"
            command = [used, "-O1", "-w", "-o", str(program), str(source), "-lpthread", *flags]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
        return program

    return build


@pytest.fixture
def swtdx_exec() -> Run:
    """``swtdx_exec("./program", "argument", options=["--quiet"])``."""

    def run(
        *command: str | Path, options: list[str] | None = None, timeout: float = 120, **more: object
    ) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "swtdx", "exec", *(options or []), "--", *map(str, command)]
        return subprocess.run(line, check=False, capture_output=True, text=True, timeout=timeout, **more)  # type: ignore[call-overload,no-any-return]

    return run


def real_kvm() -> bool:
    """Whether the machine's own /dev/kvm makes VMs for us."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(fd)
    return True
