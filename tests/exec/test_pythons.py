# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that are Python themselves: they share their interpreter with the emulated kernel, and end normally."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from swtdx.exec.notify import available
from swtdx.exec.settings import ExecError, libpython
from tests.conftest import skip
from tests.exec.conftest import Run

OPEN = "import os; fd = os.open('/dev/kvm', os.O_RDWR)"
VERSION = f"{OPEN}; import fcntl; print(fcntl.ioctl(fd, 0xae00))"
DEBIANS = f"/usr/bin/python3.{sys.version_info.minor}"
THREADS = f"""
{OPEN}
import fcntl, threading
def ask():
    fcntl.ioctl(fd, 0xae00)
threads = [threading.Thread(target=ask) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(12)
"""
AT_THE_END = f"""
{OPEN}
import fcntl
class Machine:
    def __init__(self):
        self.fd = fcntl.ioctl(fd, 0xae01, 0)
    def __del__(self, fcntl=fcntl, os=os):
        os.write(1, b'%d\\n' % fcntl.ioctl(self.fd, 0xae03, 0))
        os.close(self.fd)
kept = Machine()
kept.itself = kept
print(12, flush=True)
"""
ATEXIT = f"import atexit; import os, fcntl; atexit.register(lambda: print(fcntl.ioctl(fd, 0xae00))); {OPEN}"
FORK = f"{OPEN}; import fcntl; pid = os.fork(); print(fcntl.ioctl(fd, 0xae00), flush=True); pid and os.waitpid(pid, 0)"
DAEMON_THREAD = f"""
{OPEN}
import fcntl, threading, time
def ask():
    while True:
        fcntl.ioctl(fd, 0xae00)
threading.Thread(target=ask, daemon=True).start()
time.sleep(0.2)
print(12)
"""
CASES = {
    "open": (VERSION, "12\n", 0),
    "a status": (f"{VERSION}; raise SystemExit(7)", "12\n", 7),
    "_exit": (f"{VERSION}; import sys; sys.stdout.flush(); os._exit(9)", "12\n", 9),
    "threads": (THREADS, "12\n", 0),
    "a daemon thread": (DAEMON_THREAD, "12\n", 0),
    "a function at exit": (ATEXIT, "12\n", 0),
    "fork": (FORK, "12\n12\n", 0),
    "a file object that is open at the end": (f"{VERSION}; file = os.fdopen(fd, 'rb', 0)", "12\n", 0),
}


def _python(kind: str) -> str:
    """The program: of this environment, or Debian's (which has the interpreter in the executable, and not shared)."""
    if kind == "own":
        return sys.executable
    if not Path(DEBIANS).exists():
        skip(f"{DEBIANS} is not installed")
    return DEBIANS


@pytest.mark.parametrize("kind", ["own", "system"])
@pytest.mark.parametrize("case", CASES)
def test_a_python_program_ends_as_it_should(swtdx_exec: Run, kind: str, case: str) -> None:
    code, expected, status = CASES[case]
    done = swtdx_exec(_python(kind), "-c", code, options=["--quiet"])
    assert (done.stdout, done.returncode, done.stderr) == (expected, status, "")


@pytest.mark.parametrize("kind", ["own", "system"])
def test_objects_that_outlive_the_program_do_not_crash_it(swtdx_exec: Run, kind: str) -> None:
    """What Python collects when it ends finds a machine that is off, never memory that is gone."""
    done = swtdx_exec(_python(kind), "-c", AT_THE_END)
    assert done.stdout.startswith("12\n")
    assert done.returncode == 0


def test_the_record_of_a_python_program_is_complete(swtdx_exec: Run, tmp_path: Path) -> None:
    record = tmp_path / "run.json"
    done = swtdx_exec(sys.executable, "-c", VERSION, options=["--json", str(record)])
    assert done.returncode == 0, done.stderr
    assert '"exited": true' in record.read_text().replace('"exited":true', '"exited": true')


def test_pytest_runs_under_exec(swtdx_exec: Run, tmp_path: Path) -> None:
    test = tmp_path / "test_kvm.py"
    test.write_text(
        "import fcntl, os, pytest\n\n\n"
        "@pytest.fixture(scope='session')\ndef kvm():\n    fd = os.open('/dev/kvm', os.O_RDWR)\n    yield fd\n\n\n"
        "def test_version(kvm):\n    assert fcntl.ioctl(kvm, 0xae00) == 12\n\n\n"
        "def test_vm(kvm):\n    assert fcntl.ioctl(kvm, 0xae01, 0) > 0\n"
    )
    done = swtdx_exec(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout


def _embedding(tmp_path: Path, library: Path, home: str, scope: str) -> Path:
    """A C program that loads a libpython, starts it and opens /dev/kvm."""
    source, program = tmp_path / "embed.c", tmp_path / "embed"
    source.write_text(
        "#include <dlfcn.h>\n#include <fcntl.h>\n#include <stdio.h>\n#include <stdlib.h>\n#include <sys/ioctl.h>\n"
        "int main(void) {\n"
        f'    setenv("PYTHONHOME", "{home}", 1);\n'
        f'    void *python = dlopen("{library}", RTLD_NOW | {scope});\n'
        '    void (*start)(int) = (void (*)(int))dlsym(python, "Py_InitializeEx");\n'
        '    int (*end)(void) = (int (*)(void))dlsym(python, "Py_FinalizeEx");\n'
        "    start(0);\n"
        '    printf("%d\\n", ioctl(open("/dev/kvm", O_RDWR), 0xae00, 0L));\n'
        "    fflush(stdout);\n"
        "    return end();\n}\n"
    )
    done = subprocess.run(["gcc", "-w", "-o", program, source, "-ldl"], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def _libpython() -> Path:
    try:
        return Path(libpython())
    except ExecError as error:
        skip(str(error))


@pytest.mark.parametrize("scope", ["RTLD_LOCAL", "RTLD_GLOBAL"])
def test_a_program_that_embeds_this_python_shares_it(swtdx_exec: Run, tmp_path: Path, scope: str) -> None:
    """Also one that keeps the interpreter's symbols to itself, as a plugin does, or has a copy of the library."""
    library = _libpython()
    if shutil.which("gcc") is None:
        skip("no C compiler")
    home = sys.base_prefix if library.is_relative_to(sys.base_prefix) else "/usr"
    for each in (library, Path(shutil.copy(library, tmp_path))):
        done = swtdx_exec(_embedding(tmp_path, each, home, scope))
        assert (done.stdout, done.returncode, done.stderr) == ("12\n", 0, "")


def _others() -> list[Path]:
    """Shared libraries of Pythons of another version on this machine."""
    ours = f"{sys.version_info.major}.{sys.version_info.minor}"
    places = [Path("/usr/lib/x86_64-linux-gnu"), *Path(sys.base_prefix).parent.glob("3.*/lib")]
    found = [path for place in places for path in place.glob("libpython3.*.so.1.0")]
    return [path for path in found if f"python{ours}." not in path.name]


@pytest.mark.parametrize("scope", ["RTLD_LOCAL", "RTLD_GLOBAL"])
def test_a_program_that_embeds_another_python_is_refused(swtdx_exec: Run, tmp_path: Path, scope: str) -> None:
    others = _others()
    if not others or shutil.which("gcc") is None:
        skip("no shared library of another Python, or no C compiler")
    home = str(others[-1].parent.parent)
    done = swtdx_exec(_embedding(tmp_path, others[-1], home, scope))
    assert done.stdout == "-1\n"
    assert done.returncode == 0
    assert "swtdx is installed for Python" in done.stderr
    assert "--front-end notify" in done.stderr


def test_another_python_is_served_by_notification(swtdx_exec: Run) -> None:
    """The command, and one that the command starts."""
    pythons = [path.parent.parent / "bin" / path.name.split(".so")[0].removeprefix("lib") for path in _others()]
    pythons = [path for path in pythons if path.exists() and path.name != "python3.6m"]
    if not pythons or available():
        skip(available() or "no Python of another version")
    assert swtdx_exec(pythons[-1], "-c", VERSION).stdout == "12\n"
    assert swtdx_exec("sh", "-c", f'{pythons[-1]} -c "{VERSION}"; true').stdout == "12\n"


def test_without_a_shared_library_the_other_front_end_serves(
    compiled: Callable[..., Path], swtdx_exec: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's python3 alone has none, and a user without root cannot add it."""

    def absent() -> str:
        raise ExecError("there is no shared library of Python")

    monkeypatch.setattr("swtdx.exec.settings.libpython", absent)
    done = swtdx_exec(compiled("irqfd"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "taken\n", "")
    asked_for = swtdx_exec(compiled("irqfd"), options=["--front-end", "preload"])
    assert asked_for.returncode == 125
    assert "no shared library of Python" in asked_for.stderr
