# SPDX-License-Identifier: GPL-2.0-or-later
"""What cannot run on the emulated kernel ends as one sentence, and never on the machine's real /dev/kvm."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import skip
from tests.exec.conftest import Run

OPENED = "12\n"
PRELOAD = ["--front-end", "preload"]
_OPEN = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
int main(void) { printf("%d\\n", ioctl(open("/dev/kvm", O_RDWR), 0xae00, 0L)); return 0; }
"""


@pytest.fixture
def opener(tmp_path: Path) -> Callable[..., Path]:
    """``opener("-static")``: a program that opens /dev/kvm and prints its API version."""

    def build(*flags: str) -> Path:
        source, program = tmp_path / "open.c", tmp_path / "open"
        source.write_text(_OPEN)
        done = subprocess.run(["gcc", "-w", "-o", program, source, *flags], check=False, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"gcc {' '.join(flags)} does not work here: {done.stderr.splitlines()[-1]}")
        return program

    return build


def is_alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def refused(done: subprocess.CompletedProcess[str], status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("swtdx: ")
    assert done.stderr.count("\n") == 1
    for word in words:
        assert word in done.stderr


def test_a_program_that_does_not_exist(swtdx_exec: Run, tmp_path: Path) -> None:
    refused(swtdx_exec("no-such-program-anywhere"), 127, "no-such-program-anywhere", "PATH")
    refused(swtdx_exec(tmp_path / "missing"), 127, "missing", "no such file")


def test_no_command_at_all(swtdx_exec: Run) -> None:
    refused(swtdx_exec(), 125, "COMMAND")


def test_a_file_that_is_not_executable(swtdx_exec: Run, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    refused(swtdx_exec(tmp_path / "text"), 126, "not an executable file")
    (tmp_path / "text").chmod(0o755)
    refused(swtdx_exec(tmp_path / "text"), 126, "neither an ELF executable nor a script")


def test_what_is_no_file(swtdx_exec: Run, tmp_path: Path) -> None:
    """A FIFO was opened, which waited for a writer; a directory was to be made executable."""
    os.mkfifo(tmp_path / "fifo", 0o777)
    (tmp_path / "script").write_text(f"#!{tmp_path}\n")
    (tmp_path / "script").chmod(0o755)
    refused(swtdx_exec(tmp_path), 126, f"{tmp_path}: a directory, not a program")
    refused(swtdx_exec(tmp_path / "script"), 126, f"{tmp_path}: a directory, not a program")
    refused(swtdx_exec(tmp_path / "fifo", timeout=60), 126, "fifo: a device, a FIFO or a socket, not a program")


@pytest.mark.parametrize("front_end", ["preload", "notify"])
def test_a_program_that_executes_what_is_no_program_is_answered_as_by_linux(
    swtdx_exec: Run, tmp_path: Path, front_end: str
) -> None:
    os.mkfifo(tmp_path / "fifo", 0o777)
    (tmp_path / "empty").touch(0o755)
    code = f"""import os
for name in "fifo", "empty", "", "missing":
    try: os.execv({str(tmp_path)!r} + "/" + name, ["x"])
    except OSError as error: print(error.errno)"""
    done = swtdx_exec(sys.executable, "-c", code, options=["--front-end", front_end], timeout=60)
    numbers = [errno.EACCES, errno.ENOEXEC, errno.EACCES, errno.ENOENT]
    assert (done.stdout.split(), done.returncode, done.stderr) == ([*map(str, numbers)], 0, "")


def test_a_static_program_is_refused_by_the_preloaded_library(swtdx_exec: Run, opener: Callable[..., Path]) -> None:
    refused(swtdx_exec(opener("-static"), options=PRELOAD), 126, "linked statically", "--allow-host-kvm")


def test_a_static_program_runs_where_the_real_kvm_is_allowed(swtdx_exec: Run, opener: Callable[..., Path]) -> None:
    done = swtdx_exec(opener("-static"), options=["--allow-host-kvm"])
    assert done.returncode == 0
    assert done.stdout in (OPENED, "-1\n")  # whatever the machine has


def test_a_32_bit_program_is_refused(swtdx_exec: Run, opener: Callable[..., Path]) -> None:
    program = opener()
    data = bytearray(program.read_bytes())
    data[4] = 1  # EI_CLASS
    struct.pack_into("<H", data, 18, 3)  # EM_386
    program.write_bytes(data)
    refused(swtdx_exec(program), 126, "32-bit x86")


def test_a_program_for_another_architecture_is_refused(swtdx_exec: Run, opener: Callable[..., Path]) -> None:
    program = opener()
    data = bytearray(program.read_bytes())
    struct.pack_into("<H", data, 18, 183)  # EM_AARCH64
    program.write_bytes(data)
    refused(swtdx_exec(program), 126, "64-bit ARM")


@pytest.mark.parametrize(
    ("loader", "words"), [("/lib/ld-musl-x86_64.so.1", "musl"), ("/lib64/ld-other.so.9", "does not exist")]
)
def test_a_program_of_another_libc_is_refused(
    swtdx_exec: Run, opener: Callable[..., Path], loader: str, words: str
) -> None:
    program = opener(f"-Wl,--dynamic-linker={loader}")
    refused(swtdx_exec(program, options=PRELOAD), 126, words)


@pytest.mark.parametrize("name", ["ld-musl-none.so.1", "ld-other.so.9"])
def test_a_program_whose_loader_is_missing_is_refused(
    swtdx_exec: Run, opener: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """Of musl it was "No such file or directory", although the program was there."""
    program = opener(f"-Wl,--dynamic-linker={tmp_path}/{name}")
    refused(swtdx_exec(program), 126, f"its loader {tmp_path}/{name} does not exist", "install that libc")


def test_a_truncated_program_is_refused(swtdx_exec: Run, opener: Callable[..., Path]) -> None:
    program = opener()
    program.write_bytes(program.read_bytes()[:80])
    refused(swtdx_exec(program), 126, "truncated")


@pytest.mark.skipif(os.geteuid() != 0, reason="a setuid program of another user can be made by root only")
def test_a_setuid_program_is_refused(swtdx_exec: Run, opener: Callable[..., Path]) -> None:
    program = opener()
    os.chown(program, 65534, 65534)
    program.chmod(0o4755)
    refused(swtdx_exec(program), 126, "setuid", "LD_PRELOAD")


def test_a_script_is_looked_at_by_its_interpreter(swtdx_exec: Run, opener: Callable[..., Path], tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{opener('-static')}\n")
    script.chmod(0o755)
    refused(swtdx_exec(script, options=PRELOAD), 126, "linked statically")
    script.write_text("#!/usr/bin/env sh\nexit 7\n")
    assert swtdx_exec(script).returncode == 7
    script.write_text("#!/no/such/interpreter\n")
    refused(swtdx_exec(script), 127, "/no/such/interpreter")


def test_options(swtdx_exec: Run) -> None:
    for options, words in {
        ("--memory", "much"): "--memory",
        ("--memory", "1536M"): "1 GiB",
        ("--module-version", "1.0"): "--kernel-release v10",
        ("--inject", "KVM_RUNN: EINTR"): "did you mean KVM_RUN?",
        ("--dialect", "v11"): "v11",
        ("--trace", "/no/such/folder/trace"): "--trace",
        ("--json", "/no/such/folder/record"): "--json",
        ("--json", "-"): "standard output is COMMAND's",
        ("--trace", "-"): "standard output is COMMAND's",
        ("--trace", "same", "--json", "same"): "--trace and --json name the same file",
        ("--trace", "same", "--html", "./same"): "--trace and --html name the same file",
        ("--no-such-option",): "--no-such-option",
    }.items():
        refused(swtdx_exec("true", options=list(options)), 125, words)


def test_a_trace_that_is_not_a_file_is_refused_and_left_alone(swtdx_exec: Run, tmp_path: Path) -> None:
    """As root, /dev/null was removed."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    refused(swtdx_exec("true", options=["--trace", str(pipe)]), 125, str(pipe), "not a regular file")
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_the_exit_status_is_the_commands(swtdx_exec: Run) -> None:
    assert swtdx_exec("true").returncode == 0
    assert swtdx_exec("sh", "-c", "exit 77").returncode == 77
    assert swtdx_exec("sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM
    assert swtdx_exec("sh", "-c", "kill -KILL $$").returncode == 128 + signal.SIGKILL


def test_a_signal_to_swtdx_reaches_the_command(swtdx_exec: Run) -> None:
    line = [sys.executable, "-m", "swtdx", "exec", "--", "sh", "-c", "trap 'exit 9' TERM; echo ready; sleep 60 & wait"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.wait(30) == 9


_SLOW_AFTER_FORK = """
import os, runpy, sys, time
fork = os.fork
def slow_fork():
    child = fork()
    if child:
        time.sleep(0.3)
    return child
os.fork = slow_fork
os.environ["COMMAND"] = str(os.getpid())
sys.argv[0] = "swtdx"
runpy.run_module("swtdx", run_name="__main__")
"""


@pytest.mark.parametrize("front_end", ["preload", "notify"])
@pytest.mark.parametrize("name", ["HUP", "TERM", "USR1", "USR2"])
def test_a_signal_that_comes_at_once_reaches_the_command(swtdx_exec: Run, front_end: str, name: str) -> None:
    """It came before there was a handler, and ended swtdx; or just before the wait, and was seen after it."""
    # No call follows: a signal can end one with EINTR while it is being stopped, fork(2) too (docs/howto/exec.md).
    script = f"trap 'exit 9' {name}; kill -{name} $COMMAND; while :; do :; done"
    line = [sys.executable, "-c", _SLOW_AFTER_FORK, "exec", "--front-end", front_end, "--", "sh", "-c", script]
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        try:
            assert process.wait(15) == 9
        finally:
            process.kill()


def test_killing_swtdx_kills_the_command(swtdx_exec: Run, tmp_path: Path) -> None:
    line = [sys.executable, "-m", "swtdx", "exec", "--", "sh", "-c", "echo $$; exec sleep 60"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait(30)
        for _ in range(200):
            if not is_alive(child):
                return
            time.sleep(0.05)
        pytest.fail("the command is still there")


def test_a_library_that_is_gone_is_not_ignored(swtdx_exec: Run, opener: Callable[..., Path], tmp_path: Path) -> None:
    """A program that executes others after the settings were removed must not find the real /dev/kvm."""
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    done = swtdx_exec(
        "sh", "-c", f"rm -rf {temporary}/swtdx-exec-*; {opener()}", env={**os.environ, "TMPDIR": str(temporary)}
    )
    assert OPENED not in done.stdout
    if os.access("/dev/kvm", os.R_OK | os.W_OK):
        assert done.returncode == 126  # the shell's: it could not execute the program
        assert "--allow-host-kvm" in done.stderr


def test_a_settings_folder_of_somebody_else_is_refused(swtdx_exec: Run, tmp_path: Path) -> None:
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    assert swtdx_exec("true", env=environment).returncode == 0
    (folder,) = tmp_path.iterdir()
    folder.chmod(0o777)
    refused(swtdx_exec("true", env=environment), 125, str(folder))


def test_a_temporary_folder_that_ld_preload_cannot_name(swtdx_exec: Run, tmp_path: Path) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    refused(swtdx_exec("true", env={**os.environ, "TMPDIR": str(folder)}), 125, "TMPDIR")


def test_other_users_can_read_the_settings(swtdx_exec: Run, tmp_path: Path) -> None:
    swtdx_exec("true", env={**os.environ, "TMPDIR": str(tmp_path)})
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    for path in folder.rglob("*"):
        assert path.stat().st_mode & stat.S_IROTH


def test_another_python_is_refused(swtdx_exec: Run, tmp_path: Path) -> None:
    fake = tmp_path / "python3.2"
    shutil.copy(shutil.which("true") or "/bin/true", fake)
    refused(swtdx_exec(fake, options=PRELOAD), 126, "Python 3.2")


@pytest.mark.parametrize("flags", [(), ("-static",)], ids=["dynamic", "static"])
@pytest.mark.parametrize(("options", "proc"), [("-pf", False), ("-pfm --mount-proc", True)], ids=["stale", "own"])
def test_a_sandbox_with_the_proc_of_another_pid_namespace(
    swtdx_exec: Run, compiled: Callable[..., Path], options: str, flags: tuple[str, ...], proc: bool
) -> None:
    """What serves a program finds it by /proc. Without it the static one silently had the machine's own device."""
    if subprocess.run(["unshare", *options.split(), "true"], check=False).returncode:
        skip("no PID namespace can be made here")
    done = swtdx_exec("unshare", *options.split(), compiled("adversary", *flags), "whose")
    if proc:
        assert (done.returncode, done.stderr) == (9, ""), "9: the emulated device"
    else:
        assert done.returncode in (1, 126), "7 would be the machine's own"
        assert "/proc here is that of another PID namespace: mount one" in done.stderr
        assert done.stderr.count("\n") == 1
