# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs in C, compiled for the test, on the emulated kernel by ``swtdx exec``."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import skip

PROGRAMS = Path(__file__).with_name("programs")
Run = Callable[..., "subprocess.CompletedProcess[str]"]
_IMPORTED = (
    *("swtdx.cli.app", "swtdx.cli.exec_command", "swtdx.cli.exec_record", "swtdx.exec.launch", "swtdx.exec.sightings"),
    *("swtdx.exec.notify.file_calls", "swtdx.exec.notify.kvm_calls", "swtdx.exec.notify.memory_calls"),
    *("swtdx.exec.notify.fork_calls", "swtdx.exec.notify.server", "swtdx.exec.machine", "swtdx.exec.record"),
    *("swtdx.exec.telling", "swtdx.quoting.machine_folder", "cryptography"),
)


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
    """``swtdx_exec("./program", "argument", options=["--quiet"])``; ``fresh``: by a Python started for it.

    Otherwise a child of the tests' process runs the command: what that takes is imported once, not each time.
    """

    def run(
        *command: str | Path,
        options: list[str] | None = None,
        timeout: float = 120,
        fresh: bool = False,
        env: dict[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        line = ["exec", *(options or []), "--", *map(str, command)]
        if fresh:
            line = [sys.executable, "-m", "swtdx", *line]
            return subprocess.run(line, check=False, capture_output=True, text=True, timeout=timeout, env=env, cwd=cwd)
        return _forked(line, timeout, env, cwd)

    return run


def _forked(
    line: list[str], timeout: float, env: dict[str, str] | None, cwd: Path | None
) -> subprocess.CompletedProcess[str]:
    """Run ``swtdx`` with these arguments in a child of this process."""
    for name in _IMPORTED:
        import_module(name)
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        with warnings.catch_warnings(action="ignore"):  # a worker of pytest-xdist has threads, which the child lacks
            child = os.fork()
        if not child:
            _be_swtdx(line, env, cwd, output.fileno(), errors.fileno())
        pidfd = os.pidfd_open(child)
        ended = select.select([pidfd], [], [], timeout)[0]
        os.close(pidfd)
        if not ended:
            os.kill(child, signal.SIGKILL)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        output.seek(0)
        errors.seek(0)
        if not ended:
            raise subprocess.TimeoutExpired(line, timeout, output.read(), errors.read())
        return subprocess.CompletedProcess(line, status, output.read().decode(), errors.read().decode())


def _be_swtdx(line: list[str], env: dict[str, str] | None, cwd: Path | None, output: int, errors: int) -> None:
    """What the child does, as a process of its own would. Does not return."""
    status: object = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(errors, 2)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", closefd=False, encoding="utf-8")  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", closefd=False, encoding="utf-8")  # type: ignore[misc]
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        os.chdir(cwd or ".")
        tempfile.tempdir = None  # as TMPDIR says
        sys.argv = ["swtdx", *line]
        import_module("swtdx.cli").main()
    except SystemExit as error:
        status = error.code
    except BaseException:  # noqa: BLE001 - the child must not run the tests
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 0)


def real_kvm() -> bool:
    """Whether the machine's own /dev/kvm makes VMs for us."""
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(fd)
    return True
